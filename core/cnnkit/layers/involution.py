"""Involution: Li, Hu, Wang, Li, She, Zhu, Zhang and Chen (2021), "Involution: Inverting the Inherence of Convolution".

A convolution has one kernel for all places and another for every channel; an involution has another kernel at every
place, made from the features there, and one for all channels of a group::

    H[p] = W1 relu(norm(W0 x[p]));    y[p, c] = sum_k H[p, k, group(c)] x[p + k, c]
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnkit.errors import ConfigError
from cnnkit.layers.nd import avg_pool, batch_norm, conv
from cnnkit.registry import Entry


class Involution(nn.Module):
    """A neighbourhood sum whose weights are made at every place and shared among channels.

    Shapes:
        x: ``(B, channels, *spatial)``; the result is ``(B, channels, *ceil(spatial / stride))``.

    Args:
        channels: Number of channels, in and out.
        kernel_size: Size of the neighbourhood along each axis; odd.
        dims: Number of spatial dimensions: 1, 2 or 3.
        stride: Stride; the kernels are then made from means over ``stride`` places along each axis.
        dilation: Distance between the places of a neighbourhood.
        group_channels: Channels that share a kernel.
        reduction: ``channels`` by the hidden width of the map that makes the kernels.

    Raises:
        ConfigError: If the groups do not divide the channels, or the kernel size is even.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        *,
        dims: int = 2,
        stride: int = 1,
        dilation: int = 1,
        group_channels: int = 16,
        reduction: int = 4,
    ) -> None:
        super().__init__()
        if channels % group_channels:
            raise ConfigError(f"group_channels={group_channels} does not divide {channels} channels; choose a divisor of {channels}")
        if kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size={kernel_size} has no centre; use an odd number")
        self.kernel_size = kernel_size
        self.dims = dims
        self.stride = stride
        self.dilation = dilation
        self.groups = channels // group_channels
        hidden = max(channels // reduction, 1)
        # Means before the kernels are made, with a last window that may be smaller: as many places as the output has.
        self.pool = avg_pool(dims)(stride, stride, ceil_mode=True) if stride > 1 else nn.Identity()
        self.conv1 = conv(dims)(channels, hidden, 1, bias=False)
        self.bn1 = batch_norm(dims)(hidden)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = conv(dims)(hidden, self.groups * kernel_size**dims, 1)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def kernels(self, x: Tensor) -> Tensor:
        """Return the kernel of every place and group, ``(B, groups, kernel_size ** dims, *ceil(spatial / stride))``."""
        return self.conv2(self.act(self.bn1(self.conv1(self.pool(x))))).unflatten(1, (self.groups, -1))

    def forward(self, x: Tensor) -> Tensor:
        """Make the kernels and apply them."""
        kernels = self.kernels(x).unsqueeze(2)
        size = kernels.shape[4:]
        padding = self.dilation * (self.kernel_size - 1) // 2
        padded = F.pad(x, (padding,) * 2 * self.dims).unflatten(1, (self.groups, -1))
        # One offset after the other reads shifted views: unfolding would write every value kernel_size ** dims times.
        total = torch.zeros((), dtype=x.dtype, device=x.device)
        for number, offset in enumerate(itertools.product(range(self.kernel_size), repeat=self.dims)):
            shifted = padded
            for axis, (step, side) in enumerate(zip(offset, size, strict=True), start=3):
                start = step * self.dilation
                shifted = shifted.narrow(axis, start, (side - 1) * self.stride + 1)
                if self.stride > 1:
                    shifted = shifted[(slice(None),) * axis + (slice(None, None, self.stride),)]
            total = torch.addcmul(total, shifted, kernels[:, :, :, number])
        return total.flatten(1, 2)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"kernel_size={self.kernel_size}, dims={self.dims}, stride={self.stride}, dilation={self.dilation}, groups={self.groups}"


LAYERS = {
    "involution": Entry(
        "cnnkit.layers.involution:Involution",
        paper="involution",
        summary="Neighbourhood sums with kernels made at every place and shared among channels (Li et al., 2021).",
        dims=(1, 2, 3),
    ),
}
