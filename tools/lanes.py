"""Run the tests in isolation: the core alone, the core with one plugin, everything.

    python tools/lanes.py core              a new virtual environment with the core and nothing else
    python tools/lanes.py medseg            the core with one plugin
    python tools/lanes.py all               the core, its extras and every plugin
    python tools/lanes.py core medseg all   several lanes, one after the other
    python tools/lanes.py                   the core, and of every plugin by itself the contract tests
    python tools/lanes.py --here [LANE...]  in this environment: what does not belong to the lane cannot be imported

The lane of the core proves that it needs no plugin's library; the lane of a plugin, that it needs no other plugin.
``--here`` needs no network and no installation: a hook in every Python that the tests start hides the other
libraries and plugins, and their metadata. What it cannot show is a dependency that a ``pyproject.toml`` forgets to name but another library
brings along. Words after ``--`` go to pytest.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("pytest", "pytest-xdist", "hypothesis")
"""Test tools of every lane. Libraries that serve as oracles come with a plugin's extra ``test``, and all of them with the lane ``all``."""

BLOCKER = '''\
"""Hide the libraries that do not belong to the lane from this Python."""

import json
import os
import re
import sys

HIDDEN = json.loads(os.environ["CNNKIT_LANE_HIDDEN"])
MODULES, PROJECTS = frozenset(HIDDEN["modules"]), frozenset(HIDDEN["projects"])


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


class Hider:
    """A finder that finds what another one does, except for what is hidden."""

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, fullname, path=None, target=None):
        return None if fullname.partition(".")[0] in MODULES else self.finder.find_spec(fullname, path, target)

    def find_distributions(self, *context):
        # Some libraries ask for the version of another one, and import it if there is one.
        find = getattr(self.finder, "find_distributions", None)
        return (each for each in (find(*context) if find else ()) if normal(each.metadata["Name"] or "") not in PROJECTS)


sys.meta_path[:] = [Hider(finder) for finder in sys.meta_path]
'''


@dataclass(frozen=True)
class Lane:
    """What is installed, and which tests then have to pass.

    Args:
        name: Its name.
        projects: Folders that are installed, each with its extras: ``{folder: ("train", ...)}``.
        plugins: Plugins of this repository that it has.
        tests: Files and folders of tests.
    """

    name: str
    projects: dict[Path, tuple[str, ...]]
    plugins: tuple[str, ...] = ()
    tests: tuple[Path, ...] = ()


def plugin_names() -> list[str]:
    """Return the plugins of this repository."""
    return sorted(path.parent.name for path in (ROOT / "plugins").glob("*/pyproject.toml"))


def contract_tests(plugins: Iterable[str]) -> list[Path]:
    """Return the contract tests of the core and of some plugins; those of the others belong to their own lanes."""
    others = {f"test_{name}" for name in set(plugin_names()) - set(plugins)}
    return [path for path in sorted((ROOT / "tests" / "contract").glob("test_*.py")) if path.stem not in others]


def find_lane(name: str) -> Lane:
    """Return a lane by its name.

    Raises:
        SystemExit: If there is none.
    """
    core, contract = ROOT / "tests" / "core", tuple(contract_tests(()))
    if name == "core":
        return Lane(name, {ROOT: ()}, tests=(core, *contract))
    if name == "all":
        plugins = plugin_names()
        folders = [ROOT / "plugins" / plugin for plugin in plugins]
        projects: dict[Path, tuple[str, ...]] = {ROOT: ("train", "onnx", "plot", "test"), **{folder: ("test",) for folder in folders}}
        return Lane(name, projects, tuple(plugins), (ROOT / "tests",))
    if name in plugin_names():
        folder = ROOT / "plugins" / name
        tests = [ROOT / "tests" / "contract" / f"test_{name}.py", ROOT / "tests" / "plugins" / name]
        return Lane(name, {ROOT: (), folder: ("test",)}, (name,), tuple(path for path in tests if path.exists()))
    raise SystemExit(f"no lane {name!r}; there are: core, {', '.join(plugin_names())}, all")


def contract_lane(plugin: str) -> Lane:
    """Return the lane of a plugin with its contract tests alone: what a run over all lanes can pay."""
    lane = find_lane(plugin)
    return dataclasses.replace(lane, tests=tuple(path for path in lane.tests if path.parent.name == "contract") or lane.tests)


# In a new environment.


def run_installed(lane: Lane, folder: Path, extra: Sequence[str]) -> int:
    """Install a lane into a new virtual environment in ``folder`` and return the exit status of its tests."""
    venv.create(folder, with_pip=True, clear=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    constraints = ROOT / "constraints.txt"
    limit = ["-c", str(constraints)] if constraints.is_file() else []
    wanted = [f"{path}[{','.join(extras)}]" if extras else str(path) for path, extras in lane.projects.items()]
    subprocess.run([str(python), "-m", "pip", "install", "-q", *limit, *wanted, *TOOLS], check=True)
    return run_tests(lane, [str(python), "-m", "pytest"], dict(os.environ), extra)


def project_of(folder: Path) -> dict[str, Any]:
    """Return a folder's ``pyproject.toml``."""
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def run_tests(lane: Lane, command: list[str], env: dict[str, str], extra: Sequence[str]) -> int:
    """Run the tests of a lane and return pytest's exit status."""
    env |= {"CNNKIT_PLUGINS": ",".join(lane.plugins)}
    words = [*command, "-p", "no:cacheprovider", *map(str, lane.tests), *extra]
    print(f"lane {lane.name}: {', '.join(path.relative_to(ROOT).as_posix() for path in lane.tests)}", flush=True)
    return subprocess.run(words, env=env, cwd=ROOT, check=False).returncode


# In this environment.


def run_here(lane: Lane, extra: Sequence[str]) -> int:
    """Run the tests of a lane in this environment with everything hidden that does not belong to it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(BLOCKER, encoding="utf-8")
        path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH", ""))))
        modules = hidden_modules(lane)
        hidden = json.dumps({"modules": sorted(modules), "projects": sorted(owners_of(modules))})
        env = {**os.environ, "PYTHONPATH": path, "CNNKIT_LANE_HIDDEN": hidden}
        return run_tests(lane, [sys.executable, "-m", "pytest"], env, extra)


def hidden_modules(lane: Lane) -> set[str]:
    """Return the importable names in this environment that no requirement of the lane leads to."""
    wanted = [text for folder, extras in lane.projects.items() for text in requirements_of(folder, extras)]
    belongs = closure([*wanted, *TOOLS, "pip", "setuptools", "wheel"])
    owners = importlib.metadata.packages_distributions()
    hidden = {module for module, names in owners.items() if not belongs & {normal(name) for name in names}}
    own = {f"cnnkit_{name}" for name in lane.plugins} | {"cnnkit"}
    return (hidden | {f"cnnkit_{name}" for name in plugin_names()}) - own


def owners_of(modules: Iterable[str]) -> set[str]:
    """Return the installed distributions that importable names come from, by normal name."""
    owners = importlib.metadata.packages_distributions()
    return {normal(name) for module in modules for name in owners.get(module, ())}


def requirements_of(folder: Path, extras: Iterable[str]) -> list[str]:
    """Return what a project requires, with some of its extras; the extras of the core that a plugin asks for count."""
    project = project_of(folder)["project"]
    optional = project.get("optional-dependencies", {})
    texts = [*project.get("dependencies", []), *(text for extra in extras for text in optional.get(extra, []))]
    for text in list(texts):
        match = re.match(r"cnnkit\[([\w,\s-]+)\]", text)
        if match:
            texts += requirements_of(ROOT, [extra.strip() for extra in match[1].split(",")])
    return [text for text in texts if not re.match(r"cnnkit\b", text)]


def closure(texts: Iterable[str]) -> set[str]:
    """Return the installed distributions that some requirements lead to, by normal name.

    A requirement under a marker counts if it is installed: markers choose by platform and Python, which are those here.
    Extras that a requirement names are followed; others are not.
    """
    found: set[tuple[str, str]] = set()
    waiting = [item for text in texts for item in parse(text)]
    while waiting:
        item = waiting.pop()
        if item in found:
            continue
        found.add(item)
        name, extra = item
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for text in required:
            condition = re.search(r"extra\s*==\s*[\"']([\w.-]+)[\"']", text)
            if (normal(condition[1]) if condition else "") in ("", extra):
                waiting += parse(text)
    return {name for name, _ in found}


def parse(text: str) -> list[tuple[str, str]]:
    """Split ``"name[extra,extra]>=1"`` into ``(name, extra)`` pairs, the one without extra first."""
    match = re.match(r"\s*([\w.-]+)\s*(?:\[([^\]]*)\])?", text)
    if not match:
        raise SystemExit(f"requirement {text!r} cannot be read")
    extras = [normal(extra) for extra in (match[2] or "").split(",") if extra.strip()]
    return [(normal(match[1]), extra) for extra in ("", *extras)]


def normal(name: str) -> str:
    """Return a distribution's name in its normal form."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the lanes and return 1 if one of them fails."""
    parser = argparse.ArgumentParser(description="Run the tests in isolation.", epilog="Words after -- go to pytest.")
    parser.add_argument("lanes", nargs="*", metavar="LANE", help=f"core, {', '.join(plugin_names())}, all")
    parser.add_argument("--here", action="store_true", help="hide libraries in this environment instead of installing a new one")
    parser.add_argument("--venv", type=Path, help="folder for the virtual environments (a temporary one by default)")
    given = list(sys.argv[1:] if arguments is None else arguments)
    extra = given[given.index("--") + 1 :] if "--" in given else []
    options = parser.parse_args(given[: given.index("--")] if "--" in given else given)
    results: dict[str, int] = {}
    lanes = [find_lane(name) for name in options.lanes] or [find_lane("core"), *(contract_lane(name) for name in plugin_names())]
    for lane in lanes:
        if options.here:
            results[lane.name] = run_here(lane, extra)
        elif options.venv:
            results[lane.name] = run_installed(lane, options.venv.resolve() / lane.name, extra)
        else:
            with tempfile.TemporaryDirectory() as folder:
                results[lane.name] = run_installed(lane, Path(folder) / lane.name, extra)
    for name, status in results.items():
        print(f"lane {name}: {'passed' if status == 0 else f'FAILED (pytest exit status {status})'}")
    return 1 if any(results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
