"""Normalisation layers by name, for any number of spatial dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnkit.errors import ConfigError, unknown
from cnnkit.layers.nd import batch_norm, check_dims, instance_norm


class LayerNormNd(nn.Module):
    """Layer normalisation over the channels of a channels-first tensor, at every position by itself.

    Layer normalisation is of Ba, Kiros and Hinton (2016), "Layer Normalization"; over the channels
    alone it is what ConvNeXt and its successors use between convolutions.

    Shapes:
        x: ``(B, C, *spatial)`` with any number of spatial dimensions, also none; the result has the same shape.

    Args:
        channels: ``C``.
        eps: Added to the variance.
        affine: Learn a scale and a shift per channel.
        device: Where the parameters live.
        dtype: Their type.
    """

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-6,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels, device=device, dtype=dtype)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with zero mean and unit variance over the channels, then scaled and shifted."""
        last = F.layer_norm(x.movedim(1, -1), (self.channels,), self.weight, self.bias, self.eps)
        return last.movedim(-1, 1)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.channels}, eps={self.eps}, affine={self.weight is not None}"


NORMS = ("batch", "instance", "group", "layer", "none")


def get_norm(
    name: str,
    dims: int,
    channels: int,
    *,
    groups: int = 32,
    eps: float | None = None,
    affine: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Return the normalisation called ``name`` for ``channels`` channels.

    Args:
        name: ``"batch"`` (Ioffe and Szegedy 2015), ``"instance"`` (Ulyanov et al. 2016), ``"group"``
            (Wu and He 2018), ``"layer"`` (over the channels) or ``"none"``.
        dims: Number of spatial dimensions of the input: 1, 2 or 3.
        channels: Number of channels.
        groups: For ``"group"``: wanted number of groups; the greatest common divisor with ``channels`` is taken.
        eps: Added to the variance; by default 1e-5, and 1e-6 for ``"layer"``.
        affine: Learn a scale and a shift per channel.
        device: Where the parameters live.
        dtype: Their type.

    Raises:
        ConfigError: If the name is unknown.
    """
    check_dims(dims)
    if name not in NORMS:
        raise ConfigError(unknown("normalisation", name, NORMS))
    if name == "none":
        return nn.Identity()
    if name == "layer":
        return LayerNormNd(channels, eps=1e-6 if eps is None else eps, affine=affine, device=device, dtype=dtype)
    eps = 1e-5 if eps is None else eps
    if name == "group":
        return nn.GroupNorm(math.gcd(groups, channels), channels, eps=eps, affine=affine, device=device, dtype=dtype)
    build: Callable[..., nn.Module] = batch_norm(dims) if name == "batch" else instance_norm(dims)
    return build(channels, eps=eps, affine=affine, device=device, dtype=dtype)
