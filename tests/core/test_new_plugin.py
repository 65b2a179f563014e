"""``cnnkit new plugin``: what it writes installs, passes the contract, trains and runs, with no edit to the core."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cnnkit.cli import main
from cnnkit.cli.new import check_name, write_plugin
from cnnkit.errors import UsageError
from cnnkit.testing import fresh_interpreter

NAME = "tiny_waves"
CNNKIT = ["-c", "from cnnkit.cli import main; main()"]
ENTRY = f'[project.entry-points."cnnkit.plugins"]\n{NAME} = "cnnkit_{NAME}:PLUGIN"\n'


def can_build_wheels() -> bool:
    """pip without a network needs the build tools here: setuptools, with wheel or new enough to do without."""
    if any(importlib.util.find_spec(name) is None for name in ("pip", "setuptools")):
        return False
    major, minor = (int(part) for part in importlib.metadata.version("setuptools").split(".")[:2])
    return (major, minor) >= (70, 1) or importlib.util.find_spec("wheel") is not None


def install(project: Path, target: Path) -> None:
    """Install a project into a folder; without build tools, put its package and its entry point there by hand."""
    if can_build_wheels():
        words = ["install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target), str(project)]
        subprocess.run([sys.executable, "-m", "pip", *words], check=True, capture_output=True, text=True)
        return
    info = target / f"cnnkit_{NAME}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: cnnkit-{NAME}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[cnnkit.plugins]\n{NAME} = cnnkit_{NAME}:PLUGIN\n")
    (target / f"cnnkit_{NAME}").symlink_to(project / f"cnnkit_{NAME}", target_is_directory=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    return write_plugin(NAME, tmp_path_factory.mktemp("new"))


@pytest.fixture(scope="module")
def env(project, tmp_path_factory) -> dict[str, str]:
    target = tmp_path_factory.mktemp("site")
    install(project, target)
    path = os.pathsep.join(filter(None, (str(target), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path, "CNNKIT_PLUGINS": NAME}


def run(words: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], env=env, capture_output=True, encoding="utf-8", timeout=300, check=False)


def test_every_file_is_written_and_no_placeholder_is_left(project):
    files = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    package = ("__init__", "args", "config", "data", "task", "models/__init__", "models/wave_net")
    assert files == {"pyproject.toml", "README.md", "tests/test_contract.py", *(f"cnnkit_{NAME}/{name}.py" for name in package)}
    for file in files:
        text = (project / file).read_text(encoding="utf-8")
        assert "$" not in text and "TODO" not in text
        if file.endswith(".py"):
            compile(text, file, "exec")
    assert ENTRY in (project / "pyproject.toml").read_text(encoding="utf-8")


def test_its_own_suite_passes(project, env):
    """The contract suite, and a training whose checkpoint then runs on files."""
    result = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", str(project)], env)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout and "failed" not in result.stdout


def test_train_and_run_on_the_command_line(env, tmp_path):
    pytest.importorskip("lightning")
    train = [f"--set=train.{value}" for value in ("accelerator=cpu", "devices=1")]
    result = run([*CNNKIT, "train", NAME, "--preset", "quick", "-o", str(tmp_path / "run"), "-q", *train], env)
    assert result.returncode == 0, result.stderr
    assert "accuracy" in result.stdout
    np.save(tmp_path / "one.npy", np.sin(np.linspace(0, 20, 300)))
    words = ["run", NAME, str(tmp_path / "one.npy"), "--ckpt", str(tmp_path / "run" / "best.ckpt"), "-o", str(tmp_path / "out"), "-q"]
    result = run([*CNNKIT, *words], env)
    assert result.returncode == 0, result.stderr
    prediction = json.loads((tmp_path / "out" / "one.json").read_text(encoding="utf-8"))
    assert prediction["label"] in ("sine", "square", "sawtooth")
    assert sum(prediction["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_the_command_says_what_to_type_next(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["new", "plugin", "bird_calls", "-o", str(tmp_path)])
    assert stopped.value.code == 0
    assert f"pip install -e {tmp_path / 'cnnkit-bird_calls'}" in capsys.readouterr().out
    assert "class BirdCallsTask" in (tmp_path / "cnnkit-bird_calls" / "cnnkit_bird_calls" / "task.py").read_text(encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        main(["new", "plugin", "bird_calls", "-o", str(tmp_path)])
    assert stopped.value.code == 2
    assert "already exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Birds", "lower-case"),
        ("2d", "starts with a letter"),
        ("a-b", "lower-case"),
        ("a__b", "single underscores"),
        ("../up", "lower-case"),
        ("", "lower-case"),
        ("class", "word of Python"),
        ("match", "word of Python"),
        ("run", "reserved"),
        ("cnnkit", "reserved"),
        ("medseg", "taken"),
    ],
)
def test_names_that_cannot_be_used_are_refused(name, reason):
    with pytest.raises(UsageError, match=reason):
        check_name(name)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write .*file"):
        write_plugin("birds", tmp_path / "file")


def test_the_verb_is_light():
    fresh = fresh_interpreter("from cnnkit.cli import main; main(['new', 'plugin', '--help'])")
    assert fresh.status == 0 and "NAME" in fresh.output
    assert not {"torch", "numpy", "pydantic"} & fresh.modules
