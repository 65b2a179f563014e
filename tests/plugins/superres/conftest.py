"""Fixtures of the super-resolution tests."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def plain() -> Callable[[str], ModuleType]:
    """A function that imports ``plain/NAME.py``: a network written the straightforward way, to compare with."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"plain_{name}", Path(__file__).parent / "plain" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
