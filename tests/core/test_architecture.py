"""The rules of the layout, read from the sources: who may import whom, how long a file is, what is public."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import cnnkit
import pytest
from cnnkit.backbones import list_models
from cnnkit.catalogue import titles
from cnnkit.cli import VERBS
from cnnkit.plugin import Plugin

ROOT = Path(__file__).parents[2]
CORE = ROOT / "core" / "cnnkit"
NAMES = Path(__file__).with_name("public_names.json")
LONGEST = 500

FOREIGN = {"monai", "mmdet", "mmcv", "mmengine", "torchaudio", "torchvision", "torch_geometric", "e3nn", "kornia", "timm", "lightning"}
"""What the core leaves to plugins and to the optional extras; ``lightning`` is at home in ``engine/lightning_*.py``."""

TORCH_FREE = ("__init__", "api", "catalogue", "checkpoint", "config", "errors", "options", "plugin", "registry", "task", "versions")
LIGHT = {"cnnkit", "click", "rich"}
"""What the modules of the command line may import at module level besides the standard library."""


def sources(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*.py")) if not {"build", ".venv", "__pycache__"} & set(path.parts)]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    """The full names of imported modules; a relative import stays inside its package and is left out."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return names


def at_module_level(path: Path) -> set[str]:
    """Modules that are imported when the file is: not those inside functions or under ``TYPE_CHECKING``."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from (grandchild for part in child.orelse for grandchild in ast.walk(part))
                continue
            yield child
            yield from walk(child)

    return imported(walk(tree(path)))


def anywhere(path: Path) -> set[str]:
    return imported(ast.walk(tree(path)))


def tops(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


CORE_FILES = sources(CORE)
PLUGIN_FILES = sources(ROOT / "plugins")
OWN_FILES = [*CORE_FILES, *PLUGIN_FILES, *sources(ROOT / "apps"), *sources(ROOT / "tools"), *sources(ROOT / "tests")]


def test_the_reader_of_imports_tells_the_levels_apart(tmp_path):
    file = tmp_path / "example.py"
    file.write_text(
        "import a.b\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import c\nelse:\n    import d\n"
        "try:\n    import e\nexcept ImportError:\n    pass\nclass K:\n    import f\ndef g():\n    import h\n"
    )
    assert at_module_level(file) == {"a.b", "typing", "d", "e", "f"}
    assert anywhere(file) == {"a.b", "typing", "c", "d", "e", "f", "h"}


@pytest.mark.parametrize("path", CORE_FILES, ids=named)
def test_the_core_imports_no_plugin_and_nothing_foreign(path):
    plugins = {name for name in tops(anywhere(path)) if name.startswith("cnnkit_")}
    assert not plugins, "the core never imports a plugin; what two plugins need moves to the core"
    allowed = {"lightning"} if path.parent.name == "engine" and path.name.startswith("lightning_") else set()
    assert not tops(at_module_level(path)) & (FOREIGN - allowed), "import it in the function that needs it"


@pytest.mark.parametrize("path", PLUGIN_FILES, ids=named)
def test_a_plugin_imports_no_other_plugin(path):
    own = f"cnnkit_{path.relative_to(ROOT / 'plugins').parts[0]}"
    assert {name for name in tops(anywhere(path)) if name.startswith("cnnkit_")} <= {own}


@pytest.mark.parametrize("path", [*(CORE / f"{name}.py" for name in TORCH_FREE), *sources(CORE / "cli")], ids=named)
def test_what_the_command_line_reads_first_imports_the_standard_library(path):
    extra = tops(at_module_level(path)) - set(sys.stdlib_module_names) - LIGHT
    assert not extra, f"{named(path)} is read by every --help; import {', '.join(sorted(extra))} in the function that needs it"


def test_manifests_hold_nothing_else():
    """A plugin's ``__init__`` is read by every command: the manifest and its two imports, and what is imported when it is asked for."""
    for path in sorted((ROOT / "plugins").glob("*/cnnkit_*/__init__.py")):
        assert at_module_level(path) <= {"cnnkit.plugin", "cnnkit.registry", "__future__", "typing"}, named(path)
        body = [node for node in tree(path).body if not (isinstance(node, ast.FunctionDef) and node.name == "__getattr__")]
        kinds = {type(node) for node in body} - {ast.Expr, ast.ImportFrom, ast.Assign, ast.AnnAssign}
        assert not kinds, f"{named(path)} holds more than a manifest"


def test_files_can_be_read_in_one_sitting():
    long = {named(path): lines for path in OWN_FILES if (lines := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST}
    assert not long, f"longer than {LONGEST} lines: {long}; split them by what they are about"


def test_the_public_surface_is_what_was_agreed():
    """A name that goes away breaks somebody's script: that is a decision, and this file records it."""
    present = surface()
    agreed = json.loads(NAMES.read_text(encoding="utf-8"))
    removed = {key: sorted(set(agreed[key]) - set(present[key])) for key in agreed}
    added = {key: sorted(set(present[key]) - set(agreed.get(key, ()))) for key in present}
    assert present == agreed, (
        f"removed: {removed}; added: {added}. If that is meant, run: python {named(Path(__file__))}  (and write removals into CHANGELOG.md)"
    )


def surface() -> dict[str, list[str]]:
    return {"cnnkit": sorted(cnnkit.__all__), "verbs": list(VERBS), "backbones": list_models(), "plugins": manifests()}


def manifest(path: Path) -> Plugin:
    """The manifest in a plugin's ``__init__.py``, whether it is installed or not: it imports nothing but the core's data classes."""
    spec = importlib.util.spec_from_file_location(f"manifest_of_{path.parent.name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PLUGIN


def manifests() -> list[str]:
    """Every plugin of the repository, and the models and parts of its manifest."""
    names = []
    for path in sorted((ROOT / "plugins").glob("*/cnnkit_*/__init__.py")):
        plugin = manifest(path)
        names += [plugin.name, *sorted({**plugin.models, **plugin.parts})]
    return names


def slugs(path: Path) -> set[str]:
    """The slugs of ``@pytest.mark.paper(...)``, and of ``pytest.mark.paper`` in parametrisations."""
    calls = (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.paper"))
    return {arg.value for call in calls for arg in call.args if isinstance(arg, ast.Constant)}


def test_papers_that_tests_answer_for_exist():
    wrong = {named(path): sorted(missing) for path in sources(ROOT / "tests") if (missing := slugs(path) - set(titles()))}
    assert not wrong, f"no such slug in core/cnnkit/papers.json: {wrong}"


def test_papers_of_registered_names_exist():
    known = set(titles())
    index = json.loads((CORE / "backbones" / "_index.json").read_text(encoding="utf-8"))
    assert {entry["paper"] for entry in index.values() if entry.get("paper")} <= known
    for path in sorted((ROOT / "plugins").glob("*/cnnkit_*/__init__.py")):
        plugin = manifest(path)
        papers = {entry.paper for entry in {**plugin.models, **plugin.parts}.values()} - {""}
        assert papers <= known, named(path)


HOMES = re.compile(r"(?<![\w./])/(?:home|Users|root|work|mnt|scratch)/\w+")


def test_no_file_names_a_place_on_somebodys_machine():
    files = [
        *OWN_FILES,
        *(ROOT / "configs").rglob("*.yaml"),
        *ROOT.glob("*.md"),
        *ROOT.glob("*.toml"),
        *(CORE / "templates").rglob("*.tmpl"),
    ]
    found = {named(path): HOMES.findall(path.read_text(encoding="utf-8")) for path in files if path != Path(__file__)}
    assert not {name: places for name, places in found.items() if places}


if __name__ == "__main__":
    NAMES.write_text(json.dumps(surface(), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {NAMES}")
