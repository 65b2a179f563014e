"""cnnkit: one core of convolutional building blocks, and the interface that hosts task packages.

The names below are the public ones. Each is imported when it is first used, so ``import cnnkit`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "create_model": "cnnkit.backbones",
    "list_models": "cnnkit.backbones",
    "load_checkpoint": "cnnkit.checkpoint",
    "save_checkpoint": "cnnkit.checkpoint",
    "read_header": "cnnkit.checkpoint",
    "CnnkitError": "cnnkit.errors",
    "InputError": "cnnkit.errors",
    "load": "cnnkit.engine.load",
    "fit": "cnnkit.engine.fit",
    "evaluate": "cnnkit.engine.evaluate",
    "run": "cnnkit.api",
}

__all__ = ["__version__", *sorted(_PUBLIC)]

if TYPE_CHECKING:
    from cnnkit.api import run as run
    from cnnkit.backbones import create_model as create_model
    from cnnkit.backbones import list_models as list_models
    from cnnkit.checkpoint import load_checkpoint as load_checkpoint
    from cnnkit.checkpoint import read_header as read_header
    from cnnkit.checkpoint import save_checkpoint as save_checkpoint
    from cnnkit.engine.evaluate import evaluate as evaluate
    from cnnkit.engine.fit import fit as fit
    from cnnkit.engine.load import load as load
    from cnnkit.errors import CnnkitError as CnnkitError
    from cnnkit.errors import InputError as InputError


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'cnnkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
