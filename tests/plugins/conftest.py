"""Fixtures that the tests of all plugins share."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def plain(request: pytest.FixtureRequest) -> Callable[[str], ModuleType]:
    """A function that imports ``plain/NAME.py`` beside the test: a network written the straightforward way, to compare with."""
    folder = request.path.parent / "plain"

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"plain_{folder.parent.name}_{name}", folder / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
