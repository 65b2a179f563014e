"""Pooling: global, and anti-aliased down-sampling."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnkit.errors import ConfigError, unknown
from cnnkit.layers.nd import check_dims

GLOBAL_POOLS = ("avg", "max", "avgmax", "none")


def global_pool(x: Tensor, kind: str = "avg", *, keepdim: bool = False) -> Tensor:
    """Reduce all spatial dimensions of ``x``.

    Shapes:
        x: ``(B, C, *spatial)``; the result is ``(B, C)``, or ``(B, C, 1, ...)`` with ``keepdim``.

    Args:
        x: The features.
        kind: ``"avg"``, ``"max"``, ``"avgmax"`` (mean of the two) or ``"none"`` (``x`` as it is).
        keepdim: Keep the reduced dimensions with size 1.

    Raises:
        ConfigError: If the kind is unknown.
    """
    spatial = tuple(range(2, x.ndim))
    if kind == "avg":
        return x.mean(spatial, keepdim=keepdim)
    if kind == "max":
        return x.amax(spatial, keepdim=keepdim)
    if kind == "avgmax":
        return 0.5 * (x.mean(spatial, keepdim=keepdim) + x.amax(spatial, keepdim=keepdim))
    if kind == "none":
        return x
    raise ConfigError(unknown("global pooling", kind, GLOBAL_POOLS))


class GlobalPool(nn.Module):
    """:func:`global_pool` as a module.

    Args:
        kind: ``"avg"``, ``"max"``, ``"avgmax"`` or ``"none"``.
        keepdim: Keep the reduced dimensions with size 1.
    """

    def __init__(self, kind: str = "avg", *, keepdim: bool = False) -> None:
        super().__init__()
        if kind not in GLOBAL_POOLS:
            raise ConfigError(unknown("global pooling", kind, GLOBAL_POOLS))
        self.kind = kind
        self.keepdim = keepdim

    def forward(self, x: Tensor) -> Tensor:
        """Reduce ``(B, C, *spatial)`` to ``(B, C)``."""
        return global_pool(x, self.kind, keepdim=self.keepdim)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.kind!r}, keepdim={self.keepdim}"


class BlurPool(nn.Module):
    """Low-pass filter, then subsample: Zhang (2019), "Making Convolutional Networks Shift-Invariant Again".

    The filter is the outer product of binomial coefficients, applied to each channel by itself with
    reflected borders; it has no parameters.

    Shapes:
        x: ``(B, channels, *spatial)``; the result is ``(B, channels, *ceil(spatial / stride))``.

    Args:
        channels: Number of channels.
        dims: Number of spatial dimensions: 1, 2 or 3.
        taps: Length of the filter along each axis; 3 gives ``[1, 2, 1] / 4``.
        stride: Subsampling factor.
        device: Where the filter lives.
        dtype: Its type.
    """

    kernel: Tensor

    def __init__(
        self,
        channels: int,
        *,
        dims: int = 2,
        taps: int = 3,
        stride: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.dims = check_dims(dims)
        self.taps = taps
        self.stride = stride
        row = torch.tensor([math.comb(taps - 1, i) for i in range(taps)], device=device, dtype=dtype or torch.get_default_dtype())
        row = row / 2 ** (taps - 1)
        kernel = row
        for _ in range(dims - 1):
            kernel = kernel.unsqueeze(-1) * row
        # Derived from the arguments alone: it follows the model to a device, and stays out of its weights.
        self.register_buffer("kernel", kernel.expand(channels, 1, *kernel.shape).contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Filter and subsample."""
        before = (self.taps - 1) // 2
        padded = F.pad(x, (before, self.taps - 1 - before) * self.dims, mode="reflect")
        convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[self.dims]
        return convolve(padded, self.kernel.to(x.dtype), stride=self.stride, groups=self.channels)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.channels}, dims={self.dims}, taps={self.taps}, stride={self.stride}"
