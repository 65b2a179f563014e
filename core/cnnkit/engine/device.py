"""Choose a device by a word, and move what a batch is made of to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from cnnkit.errors import UsageError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def available_devices() -> list[str]:
    """Return the words that :func:`pick_device` accepts on this machine besides ``"auto"``, fastest first."""
    import torch

    found = ["cuda"] * torch.cuda.is_available() + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return found + ["mps"] * torch.backends.mps.is_available() + ["cpu"]


def pick_device(text: str = "auto") -> torch.device:
    """Return the device that ``text`` names; ``"auto"`` takes CUDA, else MPS, else the CPU.

    Raises:
        UsageError: If there is no such device here; the message names those there are.
    """
    import torch

    found = available_devices()
    word = text.strip().lower()
    if word == "auto":
        return torch.device(found[0])
    if word not in found:
        raise UsageError(f"device {text!r} is not available here; available: auto, {', '.join(found)}")
    return torch.device(word)


def to_device(batch: T, device: torch.device | str) -> T:
    """Move the tensors in nested mappings, lists, tuples and dataclasses to ``device``; leave everything else.

    Copies from pinned memory do not wait for the device. What holds no tensor is returned as it is.
    """
    import torch

    def moved(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            return item.to(device, non_blocking=True)
        if isinstance(item, Mapping):
            return _like_mapping(item, {key: moved(value) for key, value in item.items()})
        if isinstance(item, tuple) and hasattr(item, "_fields"):
            return type(item)(*(moved(value) for value in item))
        if type(item) in (list, tuple):
            return type(item)(moved(value) for value in item)
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            changed = {field.name: moved(getattr(item, field.name)) for field in dataclasses.fields(item) if field.init}
            same = all(changed[name] is getattr(item, name) for name in changed)
            return item if same else dataclasses.replace(item, **changed)
        return item

    return moved(batch)


def _like_mapping(original: Mapping[Any, Any], data: dict[Any, Any]) -> Any:
    """Return ``data`` as a plain dict; a mapping without tensors in it keeps its own type and identity."""
    return original if all(data[key] is original[key] for key in data) else data
