"""Registry: a name leads to an entry that is data, and the entry to code when it is used.

Standard library only: listing what exists never imports torch.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cnnkit.errors import RegistryError, unknown


@dataclass(frozen=True)
class Figures:
    """Figures that the paper printed for one variant, to the precision it printed.

    A test over the whole registry holds them against the built model. ``None`` means that the
    paper states no such figure.

    Args:
        params_m: Parameters in millions.
        gmacs: Multiply-adds in units of 1e9, at ``input_size``.
        input_size: Side length of the input at which ``gmacs`` was counted, or its sides.
        quality: The paper's quality figure with its metric, for people.
        counted_params_m: Our own count where the paper's figure cannot be met.
        counted_gmacs: Our own count where the paper's figure cannot be met.
        note: Why the paper's figure cannot be met.
    """

    params_m: float | None = None
    gmacs: float | None = None
    input_size: int | tuple[int, ...] = 224
    quality: str = ""
    counted_params_m: float | None = None
    counted_gmacs: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Entry:
    """What is known of a registered name before its code is imported.

    Args:
        target: ``"module:attribute"`` of the class or function that builds it.
        paper: Slug of the paper in ``papers.json``, or empty.
        summary: One line for people.
        family: Name of the family that a variant belongs to.
        dims: Spatial dimensions that it supports.
        args: Arguments that make this variant of the target.
        figures: What the paper printed for this variant.
        layouts: Foreign weight layouts that are understood, for example ``("timm",)``.
        params: Parameters of the 2-D model with its default arguments, counted by the index tool.
        sizes: Input sizes that it admits, where not all, asked of that model by the index tool: ``multiple`` and ``least`` of every
            side, or the ``fixed`` sides.
    """

    target: str
    paper: str = ""
    summary: str = ""
    family: str = ""
    dims: tuple[int, ...] = (2,)
    args: Mapping[str, Any] = field(default_factory=dict)
    figures: Figures = field(default_factory=Figures)
    layouts: tuple[str, ...] = ()
    params: int | None = None
    sizes: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Any:
        """Import and return the target."""
        return resolve(self.target)

    def variant(self, figures: Figures | None = None, *, summary: str = "", **args: Any) -> Entry:
        """Return the same target with further arguments, its own figures, and its own summary if there is one."""
        return dataclasses.replace(self, summary=summary or self.summary, args={**self.args, **args}, figures=figures or Figures())

    def to_json(self) -> dict[str, Any]:
        """Return the entry as plain JSON data, without fields at their default."""
        data: dict[str, Any] = {"target": self.target}
        for item in dataclasses.fields(self)[1:]:
            value = getattr(self, item.name)
            if isinstance(value, Figures):
                default = Figures()
                value = {k: v for k, v in dataclasses.asdict(value).items() if v != getattr(default, k)}
            if value not in ("", None, {}, ()):
                data[item.name] = value
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Entry:
        """Rebuild an entry from :meth:`to_json`; lists in ``args`` and ``sizes`` become tuples."""
        data = dict(data)
        data["figures"] = Figures(**{key: _tupled(value) for key, value in data.get("figures", {}).items()})
        data["dims"] = tuple(data.get("dims", (2,)))
        data["layouts"] = tuple(data.get("layouts", ()))
        for key in ("args", "sizes"):
            data[key] = {name: _tupled(value) for name, value in data.get(key, {}).items()}
        return cls(**data)


def _tupled(value: Any) -> Any:
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value


def resolve(target: str) -> Any:
    """Import ``"module:attribute"`` and return the attribute.

    Raises:
        RegistryError: If the string is malformed or the module has no such attribute.
    """
    module, separator, attribute = target.partition(":")
    if not (module and separator and attribute):
        raise RegistryError(f"target {target!r} is not of the form 'module:attribute'")
    try:
        return getattr(importlib.import_module(module), attribute)
    except AttributeError as error:
        raise RegistryError(f"target {target!r}: {error}") from error


class Registry(Mapping[str, Entry]):
    """A mapping of names to entries; a second registration of a name is an error.

    Args:
        kind: What the names stand for, used in messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> Entry:
        """Register ``entry`` under ``name``.

        Raises:
            RegistryError: If the name is taken; the registry is left as it was.
        """
        taken = self._entries.get(name)
        if taken is not None and taken != entry:
            raise RegistryError(f"{self.kind} {name!r} is already registered by {taken.target}; {entry.target} needs another name")
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str) -> Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise RegistryError(unknown(self.kind, name, self._entries)) from None

    def __contains__(self, name: object) -> bool:  # Mapping's own would go through the costly message.
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)
