"""Plugins: found by entry point, kept out when broken, and answered for when not installed."""

from __future__ import annotations

import sys

import pytest
from cnnkit import plugin
from cnnkit.errors import PluginError, RegistryError
from cnnkit.plugin import Broken, Plugin, parse
from cnnkit.registry import Entry

MANIFEST = {"name": "toy", "api": 1, "summary": "s", "task": "a:b", "run": "a:c"}


def install(folder, name: str, source: str, point: str | None = None) -> None:
    """Make a package with the given ``__init__.py`` and an entry point to its PLUGIN."""
    (folder / f"pkg_{name}").mkdir(parents=True)
    (folder / f"pkg_{name}" / "__init__.py").write_text(source)
    info = folder / f"cnnkit_{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: cnnkit-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[cnnkit.plugins]\n{point or name} = pkg_{name}:PLUGIN\n")


def manifest(**changes) -> str:
    return f"from cnnkit.plugin import Plugin\nPLUGIN = Plugin(**{MANIFEST | changes!r})\n"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A folder of packages on the path, looked at afresh by every call."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("CNNKIT_PLUGINS", raising=False)
    plugin.discover.cache_clear()
    yield tmp_path
    plugin.discover.cache_clear()
    for name in [name for name in sys.modules if name.startswith("pkg_")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("raise RuntimeError('a bug')", "RuntimeError: a bug"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("syntax error here", "SyntaxError"),
        ("x = 1", "AttributeError"),
        ("PLUGIN = 3", "leads to int, not to a cnnkit.plugin.Plugin"),
        (manifest(name="bad", api=2), "speaks plugin interface 2 and this cnnkit speaks 1; install a newer cnnkit"),
        (manifest(name="bad", api=0), "install a newer cnnkit-bad"),
        (manifest(name="other"), "entry point is named 'bad' but its manifest 'other'"),
        (manifest(name="bad", models={"toy/x": None}), "a plugin's model names start with 'bad/'"),
    ],
)
def test_a_broken_plugin_is_kept_with_its_reason_and_harms_no_other(source, reason, installed):
    install(installed, "bad", source)
    install(installed, "good", manifest(name="good"))
    found = plugin.discover()
    assert isinstance(found["bad"], Broken) and reason in found["bad"].reason
    assert plugin.get("good").summary == "s"
    with pytest.raises(PluginError, match=r"'bad' is installed but cannot be used: .*'cnnkit doctor' says more"):
        plugin.get("bad")


def test_two_packages_of_one_name(installed):
    install(installed, "one", manifest(name="toy"), point="toy")
    install(installed, "two", manifest(name="toy"), point="toy")
    assert "two installed packages" in plugin.discover()["toy"].reason


def test_the_environment_limits_what_is_looked_at(installed, monkeypatch):
    install(installed, "bad", f"open({str(installed / 'imported')!r}, 'w').close()\nPLUGIN = 3")
    install(installed, "good", manifest(name="good"))
    monkeypatch.setenv("CNNKIT_PLUGINS", " good , ")
    assert list(plugin.discover()) == ["good"] and not (installed / "imported").exists()
    with pytest.raises(PluginError, match=r"'bad' is left out by CNNKIT_PLUGINS=.* add it there"):
        plugin.get("bad")
    plugin.discover.cache_clear()
    monkeypatch.setenv("CNNKIT_PLUGINS", "")
    assert plugin.discover() == {} and plugin.models() == {}


def test_what_is_not_installed(installed, monkeypatch):
    monkeypatch.setattr(plugin, "KNOWN", {"medseg": "s", "absent": "s"})
    install(installed, "good", manifest(name="good"))
    with pytest.raises(PluginError, match="plugin 'absent' is not installed here; type: pip install cnnkit cnnkit-absent"):
        plugin.get("absent")
    with pytest.raises(PluginError, match=r"unknown plugin 'goood'; did you mean 'good'.*cnnkit list plugins"):
        plugin.get("goood")


def test_missing_libraries_are_named():
    item = Plugin(**MANIFEST | {"task": "no_such_library.task:T", "requires": ("json", "no_such_library", "no_such.sub")})
    assert item.missing() == ["no_such_library", "no_such.sub"]
    with pytest.raises(
        PluginError, match=r"'toy' does not load: no_such_library, no_such\.sub not installed .*pip install cnnkit cnnkit-toy"
    ):
        item.load_task()


def test_a_task_that_raises_on_import_is_the_plugins_fault(installed):
    install(installed, "good", manifest(name="good", task="pkg_good.task:T"))
    (installed / "pkg_good" / "task.py").write_text("1 / 0")
    with pytest.raises(PluginError, match=r"'good' does not load: pkg_good.task:T raised ZeroDivisionError"):
        plugin.get("good").load_task()
    (installed / "pkg_good" / "task.py").write_text("x = 1")
    with pytest.raises(RegistryError, match=r"pkg_good.task:T"):
        plugin.get("good").load_task()


def test_models_by_their_full_name(toy):
    assert plugin.models() == {"toy/line": Entry("torch.nn:Linear", summary="A straight line.")}
    assert plugin.find_model("toy/line").summary == "A straight line."
    with pytest.raises(RegistryError, match="unknown model 'toy/lime'; did you mean 'toy/line'"):
        plugin.find_model("toy/lime")
    assert parse("toy", toy) is toy
