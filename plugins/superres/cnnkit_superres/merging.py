"""A network as it infers: what serves training alone, branches, adapters and normalisations, is part of its convolutions."""

from __future__ import annotations

import torch
from cnnkit.count import count_params
from cnnkit.layers.merged import merged as merged_copy

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
    place = next(model.parameters())
    example = torch.zeros(1, model.in_chans, _EXAMPLE, _EXAMPLE, device=place.device, dtype=place.dtype)
    return merged_copy(model, example, before=merge_adapters)


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
