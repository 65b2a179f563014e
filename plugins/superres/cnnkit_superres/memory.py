"""How much memory a network takes for each pixel, and how much there is.

A device says when its memory is full. A processor's operating system promises more than it has, and ends the process when it is
used: there, the size of tiles is chosen beforehand.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PROBE = 48
"""Side of the picture that memory is measured on."""
SHARE = 0.7
"""Share of the available memory that is counted on; convolutions take more for a moment than their tensors."""


class _Peak(TorchDispatchMode):
    """Follow how many bytes the tensors hold that are made under it, and remember the most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return output

    def _add(self, storage: torch.UntypedStorage) -> None:
        if id(storage) not in self.seen:
            self.seen.add(id(storage))
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._remove, id(storage), storage.nbytes())

    def _remove(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that memory, of a device or of the machine, ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        sign in words for sign in ("out of memory", "not enough memory", "can't allocate memory")
    )


def bytes_per_pixel(model: nn.Module, colours: int) -> float:
    """Return the most bytes that tensors hold during a forward pass, for each pixel of the small picture.

    Args:
        model: A network in evaluation mode.
        colours: Channels that it takes.
    """
    weight = next(model.parameters(), torch.empty(0))
    picture = torch.zeros(1, colours, PROBE, PROBE, dtype=weight.dtype, device=weight.device)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), _Peak() as peak:
        model(picture)
    return peak.most / PROBE**2


def available() -> float:
    """Return the bytes that this process may still take, of the machine's memory and its control group's; infinity if that is unknown."""
    return min(_machine(), _group())


def largest_side(model: nn.Module, colours: int, reserved: int) -> float:
    """Return the side of the largest square picture that memory should suffice for.

    Args:
        model: A network in evaluation mode, on the processor.
        colours: Channels that it takes.
        reserved: Bytes that something else will take.
    """
    free = SHARE * available() - reserved
    return math.inf if free == math.inf else math.sqrt(max(free, 0) / max(bytes_per_pixel(model, colours), 1))


def _machine(file: Path = Path("/proc/meminfo")) -> float:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:  # Not Linux.
        return math.inf
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), math.inf)


def _group(folder: Path = Path("/sys/fs/cgroup")) -> float:
    try:
        limit = (folder / "memory.max").read_text(encoding="utf-8").strip()
        used = int((folder / "memory.current").read_text(encoding="utf-8"))
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
    except OSError:  # No control group, or one of the first version.
        return math.inf
    if limit == "max":
        return math.inf
    # Pages of files that were read lately count as used and are given back on demand.
    return max(float(int(limit) - used + int(statistics.get("inactive_file", 0))), 0.0)
