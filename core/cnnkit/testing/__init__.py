"""Contract suites for authors of plugins: subclass one, name what it tests, and pytest runs the rest.

::

    from cnnkit.testing import TaskContract

    class TestTask(TaskContract):
        plugin = "waves"
        config = {"length": 64}

* :class:`TaskContract`: a task from its manifest to ``cnnkit run``.
* :class:`ModelContract`: the models that a manifest lists.
* :class:`BackboneContract`: registered backbones.
* :func:`fresh_interpreter` and :func:`assert_no_heavy_imports` prove what an import costs.

The suites need pytest, which the core itself does not: ``pip install pytest``.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from cnnkit.testing.interpreter import HEAVY, Fresh, assert_no_heavy_imports, fresh_interpreter, watch_outside

__all__ = [
    "HEAVY",
    "BackboneContract",
    "Fresh",
    "ModelContract",
    "SmallModel",
    "TaskContract",
    "assert_no_heavy_imports",
    "assert_same",
    "fresh_interpreter",
    "watch_outside",
]

if TYPE_CHECKING:
    from cnnkit.testing.backbones import BackboneContract as BackboneContract
    from cnnkit.testing.compare import assert_same as assert_same
    from cnnkit.testing.models import ModelContract as ModelContract
    from cnnkit.testing.models import SmallModel as SmallModel
    from cnnkit.testing.tasks import TaskContract as TaskContract

_SUITES = {
    "BackboneContract": "cnnkit.testing.backbones",
    "ModelContract": "cnnkit.testing.models",
    "SmallModel": "cnnkit.testing.models",
    "TaskContract": "cnnkit.testing.tasks",
    "assert_same": "cnnkit.testing.compare",
}


def __getattr__(name: str) -> Any:
    if name not in _SUITES:
        raise AttributeError(f"module 'cnnkit.testing' has no attribute {name!r}")
    try:
        import pytest
    except ModuleNotFoundError as error:
        raise ImportError(
            "the contract suites of cnnkit.testing run under pytest, which is not installed; type: pip install pytest"
        ) from error
    module = _SUITES[name]
    if module not in sys.modules:
        pytest.register_assert_rewrite(module)  # So that a failing contract shows its values.
    return getattr(importlib.import_module(module), name)
