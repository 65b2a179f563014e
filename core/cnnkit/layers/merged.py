"""A merged copy of a network for inference, beside the network itself, which may still be trained or exported."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from cnnkit.layers.fuse import fuse

Model = TypeVar("Model", bound=nn.Module)


def merged(model: Model, example: Tensor, *, before: Callable[[Model], object] | None = None) -> Model:
    """Return a copy in evaluation mode that is merged as :func:`cnnkit.layers.fuse.fuse` does it; the model stays as it is.

    Args:
        model: The network.
        example: An input that it accepts, on its device; a batch of one is enough.
        before: Merges in place what a task alone knows, first.
    """
    with torch.inference_mode(False), torch.no_grad():  # What is kept from a pass in inference mode must serve other modes too.
        copied = copy.deepcopy(model).eval()
        if before is not None:
            before(copied)
        fuse(copied, example.clone())
    return copied


class MergedCopy(Generic[Model]):
    """What was made of a network for inference: once, and anew when its weights have changed.

    Weights are compared by value, as nothing else notices every way to change them; that takes a small part of a pass.

    Args:
        make: Returns the copy of a network, for example by :func:`merged`; or the network itself, where there is nothing to merge.
        setting: Returns what the copy depends on beside the weights, if there is such.
    """

    def __init__(self, make: Callable[[Model], Model], *, setting: Callable[[Model], object] = lambda model: None) -> None:
        self._make, self._setting = make, setting
        self._original: Model | None = None
        self._copy: Model | None = None
        self._state: dict[str, Tensor] = {}
        self._set: object = None

    def of(self, model: Model) -> Model:
        """Return the copy of ``model`` as it is now."""
        state, now = model.state_dict(), self._setting(model)
        if self._copy is None or self._original is not model or self._set != now or not _equal(self._state, state):
            made = self._make(model)
            if made is model:
                return model
            self._original, self._copy, self._set = model, made, now
            self._state = {name: value.clone() for name, value in state.items()}
        return self._copy


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Tell whether two states hold the same values on the same device; where the weights were moved, the copy has to follow."""
    return one.keys() == other.keys() and all(
        value.device == other[name].device and value.dtype == other[name].dtype and torch.equal(value, other[name])
        for name, value in one.items()
    )
