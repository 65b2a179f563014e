"""LS convolution: Wang, Chen, Lin, Han and Ding (2025), "LSNet: See Large, Focus Small".

A large kernel looks at the surroundings of each position and decides with which weights a small kernel sums up its nearest
neighbours::

    w = groupnorm(W4 relu(W3 depthwise7(relu(W1 x))))
    y(c, p) = x(c, p) + norm(sum over d in {-1, 0, 1}^dims of w(c mod G, d, p) x(c, p + d))

The ``G = channels / groups`` kernels of a position are each used by every ``G``-th channel. The paper's code has a kernel for
graphics cards for the sum; the same sum is written here with plain operations.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnkit.errors import ConfigError
from cnnkit.layers.conv import same_padding
from cnnkit.layers.nd import batch_norm, conv
from cnnkit.registry import Entry


class ConvBN(nn.Sequential):
    """A convolution without bias, padded so that stride 1 keeps the size, and a batch normalisation.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, out_channels, *ceil(spatial / stride))``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Size of the kernel, odd.
        dims: Number of spatial dimensions.
        stride: Stride of the convolution.
        groups: Groups of the convolution.
        scale: Start of the normalisation's scale.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        dims: int = 2,
        stride: int = 1,
        groups: int = 1,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        padding: tuple = same_padding(kernel_size, dims=dims)
        self.c = conv(dims)(in_channels, out_channels, kernel_size, stride=stride, padding=padding, groups=groups, bias=False)
        self.bn = batch_norm(dims)(out_channels)
        nn.init.constant_(self.bn.weight, scale)


def aggregate(x: Tensor, weights: Tensor) -> Tensor:
    """Sum up the neighbours of every position with weights of its own.

    Shapes:
        x: ``(B, C, *spatial)``; weights: ``(B, G, k^dims, *spatial)`` with ``G`` that divides ``C`` and an odd ``k``; the result has
        the shape of ``x``. Zeros surround ``x``.
    """
    size, dims = x.shape[2:], x.ndim - 2
    side = round(weights.shape[2] ** (1 / dims))
    padded = F.pad(x, (side // 2,) * (2 * dims)).unflatten(1, (-1, weights.shape[1]))
    total: Tensor | None = None
    for number, start in enumerate(itertools.product(range(side), repeat=dims)):
        # A shifted view for each neighbour: what unfolding would copy.
        shifted = padded[(..., *(slice(at, at + length) for at, length in zip(start, size, strict=True)))]
        weight = weights[:, None, :, number]
        total = weight * shifted if total is None else torch.addcmul(total, weight, shifted)
    assert total is not None
    return total.flatten(1, 2)


class LargeKernelPerception(nn.Module):
    """What decides on the weights of the small kernel.

    Shapes:
        x: ``(B, channels, *spatial)``; the result is ``(B, channels / groups, small^dims, *spatial)``.

    Args:
        channels: Number of channels.
        dims: Number of spatial dimensions.
        large: Size of the large kernel.
        small: Size of the small kernel.
        groups: Channels that share a small kernel.
    """

    def __init__(self, channels: int, *, dims: int = 2, large: int = 7, small: int = 3, groups: int = 8) -> None:
        super().__init__()
        half, kernels = channels // 2, channels // groups
        self.kernels = kernels
        self.cv1 = ConvBN(channels, half, dims=dims)
        self.act = nn.ReLU()
        self.cv2 = ConvBN(half, half, large, dims=dims, groups=half)
        self.cv3 = ConvBN(half, half, dims=dims)
        self.cv4 = conv(dims)(half, small**dims * kernels, 1)
        self.norm = nn.GroupNorm(kernels, small**dims * kernels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the weights of every position's kernels."""
        x = self.act(self.cv3(self.cv2(self.act(self.cv1(x)))))
        return self.norm(self.cv4(x)).unflatten(1, (self.kernels, -1))


class LSConv(nn.Module):
    """LS convolution with its normalisation and its shortcut.

    Shapes:
        x: ``(B, channels, *spatial)``; the result has the same shape.

    Args:
        channels: Number of channels, a multiple of ``groups`` and even.
        dims: Number of spatial dimensions.
        large: Size of the kernel that looks at the surroundings, odd.
        small: Size of the kernel that sums up, odd.
        groups: Channels that share a small kernel.

    Raises:
        ConfigError: If ``channels`` is odd or no multiple of ``groups``.
    """

    def __init__(self, channels: int, *, dims: int = 2, large: int = 7, small: int = 3, groups: int = 8) -> None:
        super().__init__()
        if channels % groups or channels % 2:
            raise ConfigError(f"channels={channels} must be even and a multiple of groups={groups}")
        self.lkp = LargeKernelPerception(channels, dims=dims, large=large, small=small, groups=groups)
        self.bn = batch_norm(dims)(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Perceive, aggregate, normalise and add."""
        return x + self.bn(aggregate(x, self.lkp(x)))


LAYERS = {
    "ls_conv": Entry(
        "cnnkit.layers.ls_conv:LSConv",
        paper="lsnet",
        summary="A large kernel chooses each position's weights of a small one (Wang et al., 2025).",
        dims=(1, 2, 3),
    )
}
