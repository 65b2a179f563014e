"""What all tests share."""

from __future__ import annotations

import os

# The tests' tensors are tiny: threads cost more than they bring, and several workers of pytest-xdist share the cores.
# Set before anything imports torch, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
