"""Plugins: what a package offers is declared as data, found by entry point, and imported on use.

Standard library only. A package offers itself by one line of its ``pyproject.toml``::

    [project.entry-points."cnnkit.plugins"]
    medseg = "cnnkit_medseg:PLUGIN"

and ``cnnkit_medseg/__init__.py`` holds nothing but the manifest.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cnnkit.errors import CnnkitError, PluginError, RegistryError, unknown
from cnnkit.registry import Entry, resolve

API = 1
GROUP = "cnnkit.plugins"

KNOWN = {
    "audio": "Hear what sounds when, tell speakers apart, code speech, model effects, recognise distant words.",
    "equivariant": "Energies and forces of atoms, and classes of fields on spheres, at any scale, on meshes and in hyperbolic space.",
    "medseg": "Segment organs, tissues and lesions in CT and MR volumes.",
    "superres": "Enlarge pictures and videos by two, three or four, in seamless tiles.",
}
"""Plugins of this repository, so that one that is not installed is answered with its install line."""


@dataclass(frozen=True)
class Plugin:
    """The manifest of a plugin: a frozen dataclass of strings.

    Args:
        name: The word on the command line (``cnnkit run NAME``).
        api: Version of the plugin interface that it speaks (:data:`API`).
        summary: One line for people.
        task: ``"module:Class"`` of the task (see :class:`cnnkit.task.Task`).
        run: ``"module:Class"`` of the dataclass with the options of ``run``; its module imports no torch.
        requires: Import names of the libraries that it needs, checked by ``cnnkit doctor``.
        models: Entries by name; a name starts with ``"<plugin>/"``.
        parts: What else stands for a paper (a sampler, an adapter, a loss ...), by name as for the models.
        commands: ``"module:attribute"`` of extra click commands, by name: ``cnnkit <plugin> <command>``.
        checkpoint: File name of the built-in checkpoint inside the package, or empty.
    """

    name: str
    api: int
    summary: str
    task: str
    run: str
    requires: tuple[str, ...] = ()
    models: Mapping[str, Entry] = field(default_factory=dict)
    parts: Mapping[str, Entry] = field(default_factory=dict)
    commands: Mapping[str, str] = field(default_factory=dict)
    checkpoint: str = ""

    def __post_init__(self) -> None:
        for name in (*self.models, *self.parts):
            if not name.startswith(self.name + "/"):
                raise PluginError(f"plugin {self.name!r} names a model {name!r}; a plugin's model names start with '{self.name}/'")

    def load_task(self) -> type[Any]:
        """Import and return the task class.

        Raises:
            PluginError: If a library that the plugin needs is missing.
        """
        return self._load(self.task)

    def load_run(self) -> type[Any]:
        """Import and return the dataclass with the options of ``run``."""
        return self._load(self.run)

    def load_command(self, name: str) -> Any:
        """Import and return one of the plugin's own commands."""
        return self._load(self.commands[name])

    def missing(self) -> list[str]:
        """Return the libraries in ``requires`` that are not installed."""
        return [name for name in self.requires if not _installed(name)]

    def _load(self, target: str) -> Any:
        try:
            return resolve(target)
        except ImportError as error:
            missing = self.missing()
            cause = f"{', '.join(missing)} not installed ({error})" if missing else str(error)
            raise PluginError(f"plugin {self.name!r} does not load: {cause}; try: pip install cnnkit cnnkit-{self.name}") from error
        except CnnkitError:
            raise
        except Exception as error:  # A plugin is foreign code: say whose fault it is.
            raise PluginError(f"plugin {self.name!r} does not load: {target} raised {type(error).__name__}: {error}") from error


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # The parent of a dotted name is missing, or a module without a spec.
        return False


@dataclass(frozen=True)
class Broken:
    """A plugin that was found but cannot be used, with the reason."""

    name: str
    reason: str
    source: str = ""


def parse(name: str, manifest: object) -> Plugin | Broken:
    """Accept a manifest, or say why it cannot be used."""
    if not isinstance(manifest, Plugin):
        return Broken(name, f"its entry point leads to {type(manifest).__name__}, not to a cnnkit.plugin.Plugin")
    if manifest.api != API:
        newer = "a newer cnnkit" if manifest.api > API else f"a newer cnnkit-{name}"
        return Broken(name, f"it speaks plugin interface {manifest.api} and this cnnkit speaks {API}; install {newer}")
    if manifest.name != name:
        return Broken(name, f"its entry point is named {name!r} but its manifest {manifest.name!r}")
    return manifest


@functools.cache
def discover() -> Mapping[str, Plugin | Broken]:
    """Return every installed plugin by name; one that does not load is kept as :class:`Broken`.

    The environment variable ``CNNKIT_PLUGINS`` (names with commas) limits what is looked at.
    """
    names = _limit()
    found: dict[str, Plugin | Broken] = {}
    for point in importlib.metadata.entry_points(group=GROUP):
        if names is not None and point.name not in names:
            continue
        if point.name in found:
            found[point.name] = Broken(point.name, "two installed packages offer a plugin of this name", point.value)
            continue
        try:
            found[point.name] = parse(point.name, point.load())
        except (Exception, SystemExit) as error:  # A plugin is foreign code: whatever it raises must not take the command line down.
            found[point.name] = Broken(point.name, f"{type(error).__name__}: {error}", point.value)
    return dict(sorted(found.items()))


def _limit() -> set[str] | None:
    """Return the names in ``CNNKIT_PLUGINS``; ``None`` if it is not set."""
    wanted = os.environ.get("CNNKIT_PLUGINS")
    return None if wanted is None else {name.strip() for name in wanted.split(",") if name.strip()}


def get(name: str) -> Plugin:
    """Return the installed plugin ``name``.

    Raises:
        PluginError: If it is broken, not installed, or unknown; the message says what to type.
    """
    plugin = discover().get(name)
    if isinstance(plugin, Plugin):
        return plugin
    if isinstance(plugin, Broken):
        raise PluginError(f"plugin {name!r} is installed but cannot be used: {plugin.reason}; 'cnnkit doctor' says more")
    limit = _limit()
    if limit is not None and name not in limit and name in {point.name for point in importlib.metadata.entry_points(group=GROUP)}:
        raise PluginError(
            f"plugin {name!r} is left out by CNNKIT_PLUGINS={os.environ['CNNKIT_PLUGINS']}; add it there, or unset the variable"
        )
    if name in KNOWN:
        raise PluginError(f"plugin {name!r} is not installed here; type: pip install cnnkit cnnkit-{name}")
    raise PluginError(unknown("plugin", name, {*discover(), *KNOWN}, more="'cnnkit list plugins' shows what is installed."))


def models() -> dict[str, Entry]:
    """Return the models of all usable plugins by their full name."""
    return {name: entry for plugin in discover().values() if isinstance(plugin, Plugin) for name, entry in plugin.models.items()}


def parts() -> dict[str, Entry]:
    """Return what else the usable plugins have that stands for a paper, by full name."""
    return {name: entry for plugin in discover().values() if isinstance(plugin, Plugin) for name, entry in plugin.parts.items()}


def find_model(name: str) -> Entry:
    """Return the entry of a plugin's model, for example ``"medseg/swin_unetr"``.

    Raises:
        PluginError: If the plugin cannot be used.
        RegistryError: If it has no such model.
    """
    plugin = get(name.partition("/")[0])
    try:
        return plugin.models[name]
    except KeyError:
        raise RegistryError(unknown("model", name, plugin.models)) from None
