"""Tell which network of this plugin bare weights belong to: by the keys and shapes of every layout that it understands."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache

from cnnkit.backbones import create_model
from cnnkit.count import on_meta
from cnnkit.errors import CheckpointError, InputWarning
from cnnkit.plugin import get
from cnnkit.weights import load_weights
from torch import Tensor, nn


def find_network(state: Mapping[str, Tensor]) -> str | None:
    """Return the registered name of the network that the weights fit, or ``None``.

    Every network is built without memory and asked to load weights of these shapes. Of several that fit the first by name is returned:
    one file serves several scales, or, with a warning, its shapes do not tell the only scale that it was trained for.

    Args:
        state: Tensors by name.
    """
    shapes = {key: value.to("meta") for key, value in state.items()}
    names = sorted(get("superres").models)
    same = _shapes(shapes)
    own = next((name for name in names if _own(name) == same), None)
    first = own or next((name for name in names if _fits(name, shapes)), None)
    if first is None or len(empty_network(first).scales) > 1:  # type: ignore[arg-type]
        return first
    family = first.rpartition("_x")[0]
    others = [name for name in names if name != first and name.rpartition("_x")[0] == family and _fits(name, shapes)]
    if others:
        warnings.warn(
            f"these weights fit {' and '.join([first, *others])} alike, and are taken as {first}; if they were trained for another scale, "
            f"type --set network.name={others[0]}",
            InputWarning,
            stacklevel=2,
        )
    return first


def _fits(name: str, shapes: Mapping[str, Tensor]) -> bool:
    """Tell whether weights of these shapes load into a network, in any layout that it understands."""
    try:
        with on_meta():
            load_weights(empty_network(name), shapes)
    except (CheckpointError, RuntimeError, KeyError):  # A layout's conversion may read what a foreign file lacks.
        return False
    return True


@cache
def empty_network(name: str) -> nn.Module:
    """Return a registered network without values, built once."""
    with on_meta():
        return create_model(name)


@cache
def _own(name: str) -> frozenset[tuple[str, tuple[int, ...]]]:
    return _shapes(empty_network(name).state_dict())


def _shapes(state: Mapping[str, Tensor]) -> frozenset[tuple[str, tuple[int, ...]]]:
    return frozenset((key, tuple(value.shape)) for key, value in state.items())
