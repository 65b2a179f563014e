"""A network as it infers: what serves training alone, branches, adapters and normalisations, is part of its convolutions."""

from __future__ import annotations

import copy

import torch
from cnnkit.count import count_params
from cnnkit.layers.fuse import fuse
from torch import Tensor, nn

from cnnkit_superres.dsclora import merge_adapters
from cnnkit_superres.foreign import ForeignNetwork
from cnnkit_superres.models._base import SuperResolver

_EXAMPLE = 16  # Side of the picture that shows which layers follow each other.


def merged(model: SuperResolver) -> SuperResolver:
    """Return a copy that is merged for inference, in evaluation mode; another project's network stays as its library built it.

    Args:
        model: The network, which keeps its weights and its mode.
    """
    if isinstance(model, ForeignNetwork):
        return model
    with torch.inference_mode(False), torch.no_grad():  # What is kept from a pass in inference mode must serve other modes too.
        copied = copy.deepcopy(model).eval()
        merge_adapters(copied)
        place = next(copied.parameters())
        fuse(copied, torch.zeros(1, model.in_chans, _EXAMPLE, _EXAMPLE, device=place.device, dtype=place.dtype))
    return copied


def fold_branches(model: SuperResolver) -> None:
    """Replace in place what has parameters for training alone by what infers with fewer: the form whose cost papers print.

    Layers that inference only computes in another way, with as many parameters or more, stay as the paper writes them. Values are not
    needed: a network on the meta device is folded as well.
    """
    if isinstance(model, ForeignNetwork):
        return
    with torch.no_grad():
        merge_adapters(model)
        for name, module in list(model.named_modules()):
            if name and hasattr(module, "merged") and count_params(smaller := module.merged()) < count_params(module):
                model.set_submodule(name, smaller.train(module.training))


class MergedCopy:
    """The merged copy of a network that may still be trained: made once, and anew when the weights have changed.

    The copy is kept because what is known of it, such as its receptive field, is found at its first use.
    """

    def __init__(self) -> None:
        self._scale = 0
        self._state: dict[str, Tensor] = {}
        self._original: nn.Module | None = None
        self._copy: SuperResolver | None = None

    def of(self, model: SuperResolver) -> SuperResolver:
        """Return the merged copy of ``model`` as it is now."""
        if isinstance(model, ForeignNetwork):
            return model
        state = model.state_dict()
        if self._copy is None or self._original is not model or self._scale != model.scale or not _equal(self._state, state):
            self._original, self._scale = model, model.scale
            self._state = {name: value.clone() for name, value in state.items()}
            self._copy = merged(model)
        return self._copy


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Tell whether two states hold the same values on the same device; where the weights were moved, the copy has to follow."""
    return one.keys() == other.keys() and all(
        value.device == other[name].device and value.dtype == other[name].dtype and torch.equal(value, other[name])
        for name, value in one.items()
    )
