"""Tell which network of this plugin bare weights belong to: by the keys and shapes of every layout that it understands."""

from __future__ import annotations

from collections.abc import Mapping

from cnnkit.backbones import create_model
from cnnkit.count import on_meta
from cnnkit.errors import CheckpointError
from cnnkit.plugin import get
from cnnkit.weights import load_weights
from torch import Tensor


def find_network(state: Mapping[str, Tensor]) -> str | None:
    """Return the registered name of the network that the weights fit, or ``None``.

    Every network is built without memory and asked to load weights of these shapes. Of several that fit (the scales of a network
    with several scales in one file) the first by name is returned.

    Args:
        state: Tensors by name.
    """
    shapes = {key: value.to("meta") for key, value in state.items()}
    for name in sorted(get("superres").models):
        with on_meta():
            model = create_model(name)
            try:
                load_weights(model, shapes)
            except (CheckpointError, RuntimeError, KeyError):  # A layout's conversion may read what a foreign file lacks.
                continue
        return name
    return None
