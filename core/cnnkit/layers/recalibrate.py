"""Layers that reweight features and keep their shape, by name: what a network's option ``attention`` chooses from."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from cnnkit.errors import ConfigError, unknown
from cnnkit.layers.eca import EfficientChannelAttention
from cnnkit.layers.nd import check_dims
from cnnkit.layers.scse import SpatialChannelSqueezeExcite, SpatialSqueezeExcite
from cnnkit.layers.squeeze_excite import SqueezeExcite

RECALIBRATIONS: dict[str, Callable[[int, int], nn.Module]] = {
    "none": lambda channels, dims: nn.Identity(),
    # Not below 8 hidden channels, timm's bound too: a sixteenth of a narrow network's channels would be next to none.
    "se": lambda channels, dims: SqueezeExcite(channels, dims=dims, hidden=max(channels // 16, 8)),
    "eca": lambda channels, dims: EfficientChannelAttention(channels),
    "cse": lambda channels, dims: SqueezeExcite(channels, dims=dims, reduction=2),
    "sse": lambda channels, dims: SpatialSqueezeExcite(channels, dims=dims),
    "scse": lambda channels, dims: SpatialChannelSqueezeExcite(channels, dims=dims),
}


def get_recalibration(name: str, dims: int, channels: int) -> nn.Module:
    """Return the layer called ``name`` for ``channels`` channels.

    Args:
        name: ``"se"`` (Hu et al., 2018), ``"eca"`` (Wang et al., 2020), ``"cse"``, ``"sse"``, ``"scse"`` (Roy et al., 2018)
            or ``"none"``.
        dims: Number of spatial dimensions of the input: 1, 2 or 3.
        channels: Number of channels.

    Raises:
        ConfigError: If the name is unknown.
    """
    if name not in RECALIBRATIONS:
        raise ConfigError(unknown("attention", name, RECALIBRATIONS))
    return RECALIBRATIONS[name](channels, check_dims(dims))
