"""What the tests of the command line and of batches share: an installed toy plugin, and a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOY = Path(__file__).parent / "toy_plugin"


@pytest.fixture
def toy(monkeypatch):
    """The toy plugin, found by its entry point as if it were installed."""
    from cnnkit import plugin

    monkeypatch.syspath_prepend(str(TOY))
    monkeypatch.setenv("CNNKIT_PLUGINS", "toy")
    plugin.discover.cache_clear()
    yield plugin.get("toy")
    plugin.discover.cache_clear()


@pytest.fixture(scope="session")
def toy_checkpoint(tmp_path_factory):
    """A checkpoint of the toy task that doubles numbers."""
    import torch
    from cnnkit.checkpoint import Header, save_checkpoint

    header = Header(task="toy", plugin="cnnkit-toy", config={"names": ["number"]}, labels=("number",), metrics={"mean": 2.0})
    return save_checkpoint(tmp_path_factory.mktemp("toy") / "double.ckpt", {"weight": torch.tensor([[2.0]])}, header)


@pytest.fixture(scope="session")
def fresh():
    """Run the command line (or other code) in a fresh interpreter, with folders put on its path first."""

    def run(*args: str, code: str = "from cnnkit.cli import main; main()", path: tuple[Path, ...] = (), env: dict[str, str] | None = None):
        environment = {key: value for key, value in os.environ.items() if key != "CNNKIT_PLUGINS"}
        environment["PYTHONPATH"] = os.pathsep.join([*map(str, path), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment.update(env or {})
        command = [sys.executable, "-c", code, *map(str, args)]
        return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=120)

    return run
