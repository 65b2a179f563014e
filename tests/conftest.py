"""What all tests share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

# The tests' tensors are tiny: threads cost more than they bring, and several workers of pytest-xdist share the cores.
# Set before anything imports torch, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

FIRST = ("test_readme.py", "test_index.py", "test_fit_ddp.py", "test_new_plugin.py")
"""Files of single tests that take most of a minute. What is long and comes last keeps one worker busy while the others wait."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the long tests first; all others stay in their order."""
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))
