"""``tools/lanes.py --here`` hides what does not belong to a lane: neither an import nor a look at the metadata finds it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).resolve().parents[2] / "tools" / "lanes.py"

ASK = """
import importlib.metadata, importlib.util, json
names = ["hidden_lib", "open_lib"]
projects = ["hidden-lib", "Hidden.Lib", "open-lib"]
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
every = {each.metadata["Name"] for each in importlib.metadata.distributions()}
groups = {point.name for point in importlib.metadata.entry_points(group="lanes.test")}
print(json.dumps([[importlib.util.find_spec(name) is not None for name in names], [version(name) for name in projects],
    sorted(every & {"Hidden_Lib", "open-lib"}), sorted(groups)]))
"""


@pytest.fixture
def lanes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("lanes", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "lanes", module)
    spec.loader.exec_module(module)
    return module


def install(folder: Path, module: str, project: str) -> None:
    """Put a library with metadata into a folder."""
    (folder / f"{module}.py").write_text("")
    about = folder / f"{module}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[lanes.test]\n{module} = {module}\n")


def test_a_hidden_library_has_neither_module_nor_metadata(lanes: ModuleType, tmp_path: Path) -> None:
    install(tmp_path, "hidden_lib", "Hidden_Lib")
    install(tmp_path, "open_lib", "open-lib")
    (tmp_path / "sitecustomize.py").write_text(lanes.BLOCKER, encoding="utf-8")
    found = {}
    for hidden in (["hidden_lib"], []):
        told = json.dumps({"modules": hidden, "projects": [lanes.normal(name) for name in hidden]})
        env = {**os.environ, "PYTHONPATH": str(tmp_path), "CNNKIT_LANE_HIDDEN": told}
        done = subprocess.run([sys.executable, "-c", ASK], env=env, capture_output=True, text=True, check=True, timeout=120)
        found[len(hidden)] = json.loads(done.stdout)
    assert found[0] == [[True, True], ["1.0", "1.0", "1.0"], ["Hidden_Lib", "open-lib"], ["hidden_lib", "open_lib"]]
    assert found[1] == [[False, True], [None, None, "1.0"], ["open-lib"], ["open_lib"]]


def test_what_belongs_to_a_lane_is_not_hidden(lanes: ModuleType) -> None:
    """Neither its own libraries nor those that they need, and of the others module and metadata alike."""
    modules = lanes.hidden_modules(lanes.find_lane("core"))
    projects = lanes.owners_of(modules)
    assert not {"torch", "numpy", "pytest", "cnnkit"} & modules and not {"torch", "numpy", "pytest", "cnnkit"} & projects
    assert {f"cnnkit_{name}" for name in lanes.plugin_names()} <= modules
    for module, project in (("ase", "ase"), ("sklearn", "scikit-learn"), ("librosa", "librosa")):
        assert (module in modules) == (project in projects)
