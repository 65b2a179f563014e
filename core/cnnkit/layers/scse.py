"""Spatial and channel squeeze-and-excitation: Roy, Navab and Wachinger (2018).

"Recalibrating Fully Convolutional Networks with Spatial and Channel 'Squeeze & Excitation' Blocks". A segmentation
network needs to know where as much as what, so it is recalibrated twice, by a weight per channel (from the mean over all
positions) and by a weight per position (from all channels there)::

    cSE(x) = sigmoid(W2 relu(W1 mean(x))) * x,      W1: C -> C/2
    sSE(x) = sigmoid(w . x) * x,                     w: C -> 1, at every position
    scSE(x) = max(cSE(x), sSE(x))

The maximum makes the two compete; sum, product and concatenation are the paper's other ways to join them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnnkit.errors import ConfigError, unknown
from cnnkit.layers.nd import conv
from cnnkit.layers.squeeze_excite import SqueezeExcite
from cnnkit.registry import Entry

JOINS = ("max", "add", "mul", "concat")


class SpatialSqueezeExcite(nn.Module):
    """The paper's sSE: reweight the positions by a linear function of their channels.

    Shapes:
        x: ``(B, channels, *spatial)``; the result has the same shape.

    Args:
        channels: Number of channels.
        dims: Number of spatial dimensions: 1, 2 or 3.
        device: Where the parameters live.
        dtype: Their type.
    """

    def __init__(self, channels: int, *, dims: int = 2, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.conv = conv(dims)(channels, 1, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the reweighted ``x``."""
        return x * self.conv(x).sigmoid()


class SpatialChannelSqueezeExcite(nn.Module):
    """The paper's scSE: reweight channels and positions side by side, and join the two results.

    Shapes:
        x: ``(B, channels, *spatial)``; the result has the same shape, or twice the channels with ``join="concat"``.

    Args:
        channels: Number of channels.
        dims: Number of spatial dimensions: 1, 2 or 3.
        reduction: The hidden width of the channel part is ``channels // reduction``.
        join: ``"max"``, ``"add"``, ``"mul"`` or ``"concat"``.
        device: Where the parameters live.
        dtype: Their type.

    Raises:
        ConfigError: If ``join`` is unknown.
    """

    def __init__(
        self,
        channels: int,
        *,
        dims: int = 2,
        reduction: int = 2,
        join: str = "max",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if join not in JOINS:
            raise ConfigError(unknown("join", join, JOINS))
        self.join = join
        self.cse = SqueezeExcite(channels, dims=dims, reduction=reduction, device=device, dtype=dtype)
        self.sse = SpatialSqueezeExcite(channels, dims=dims, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the recalibrated ``x``."""
        by_channel, by_position = self.cse(x), self.sse(x)
        if self.join == "max":
            return torch.maximum(by_channel, by_position)
        if self.join == "add":
            return by_channel + by_position
        if self.join == "mul":
            return by_channel * by_position
        return torch.cat([by_channel, by_position], dim=1)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"join={self.join!r}"


LAYERS = {
    "scse": Entry(
        "cnnkit.layers.scse:SpatialChannelSqueezeExcite",
        paper="scse",
        summary="Reweight channels and positions side by side (Roy et al., 2018).",
        dims=(1, 2, 3),
    ),
    "sse": Entry(
        "cnnkit.layers.scse:SpatialSqueezeExcite",
        paper="scse",
        summary="Reweight positions by a linear function of their channels (Roy et al., 2018).",
        dims=(1, 2, 3),
    ),
}
