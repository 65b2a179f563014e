"""Convolution with the padding that TensorFlow calls "same", for weights that were trained with it.

With stride ``s`` the output has ``ceil(n / s)`` positions, and the total padding is what this needs and no more::

    p = max((ceil(n / s) - 1) * s + d * (k - 1) + 1 - n, 0)

half of it before and the rest after. At stride 2 and even ``n`` a 3x3 kernel is thus shifted by one position against
the usual symmetric padding of 1; at stride 1 and odd ``k`` the two are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from cnnkit.errors import ConfigError, unknown
from cnnkit.layers.conv import same_padding
from cnnkit.layers.nd import check_dims, conv

PADDINGS = ("symmetric", "same")


def pad_same(x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Pad ``(B, C, *spatial)`` with zeros so that an unpadded convolution gives ``ceil(spatial / stride)``."""
    pads: list[int] = []
    for size, k, s, d in zip(x.shape[2:], kernel_size, stride, dilation, strict=True):
        total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
        pads = [total // 2, total - total // 2, *pads]  # F.pad counts the axes from the last one.
    return F.pad(x, pads) if any(pads) else x


class SameConv1d(nn.Conv1d):
    """A convolution of signals that pads its input by :func:`pad_same`."""

    def forward(self, input: Tensor) -> Tensor:
        """Pad and convolve."""
        return super().forward(pad_same(input, self.kernel_size, self.stride, self.dilation))


class SameConv2d(nn.Conv2d):
    """A convolution of images that pads its input by :func:`pad_same`."""

    def forward(self, input: Tensor) -> Tensor:
        """Pad and convolve."""
        return super().forward(pad_same(input, self.kernel_size, self.stride, self.dilation))


class SameConv3d(nn.Conv3d):
    """A convolution of volumes that pads its input by :func:`pad_same`."""

    def forward(self, input: Tensor) -> Tensor:
        """Pad and convolve."""
        return super().forward(pad_same(input, self.kernel_size, self.stride, self.dilation))


_SAME_CONV = {1: SameConv1d, 2: SameConv2d, 3: SameConv3d}


def padded_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    dims: int = 2,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    padding: str = "symmetric",
) -> nn.Module:
    """Return a convolution with ``ceil(spatial / stride)`` outputs, for an odd kernel.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Size of the kernel along every axis, odd.
        dims: Number of spatial dimensions.
        stride: Stride along every axis.
        groups: Groups of the convolution.
        bias: Whether it has a bias.
        padding: ``"symmetric"``, ``(k - 1) / 2`` on both sides, or ``"same"``, TensorFlow's.

    Raises:
        ConfigError: If the padding is unknown.
    """
    if padding not in PADDINGS:
        raise ConfigError(unknown("padding", padding, PADDINGS))
    if padding == "same" and stride > 1:
        return _SAME_CONV[check_dims(dims)](in_channels, out_channels, kernel_size, stride=stride, groups=groups, bias=bias)
    both: tuple = same_padding(kernel_size, dims=dims)
    return conv(dims)(in_channels, out_channels, kernel_size, stride=stride, padding=both, groups=groups, bias=bias)
