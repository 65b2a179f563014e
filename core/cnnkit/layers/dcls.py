"""DCLS: Khalfaoui-Hassani, Pellegrini and Masquelier (2023), "Dilated convolution with learnable spacings".

A large kernel of few weights whose places are learned. Weight ``w_k`` of a kernel stands at the real position ``p_k``, counted
from the kernel's centre ``c``, and is shared linearly among the cells of the grid around it::

    K[i] = sum_k w_k  prod_a max(0, 1 - |i_a - (c_a + p_ka)|)

so the position has a gradient: the difference of what the two neighbouring cells would like. The dense ``K`` is then an ordinary
kernel; with positions on a regular integer grid it is that of a dilated convolution. The paper trains positions without weight decay
and at five times the learning rate (:func:`position_groups`), and lets the layers of a stage share theirs::

    second.positions = first.positions
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnkit.errors import ConfigError
from cnnkit.layers.conv import same_padding
from cnnkit.layers.nd import check_dims, conv, tupled
from cnnkit.registry import Entry

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def spread(weight: Tensor, positions: Tensor, size: Sequence[int]) -> Tensor:
    """Build dense kernels from weights at real positions.

    Args:
        weight: ``(O, I, K)``.
        positions: ``(dims, O, I, K)``, from the centre ``(size - 1) / 2``; outside of the grid they are moved to its border.
        size: Sides of the kernels, at least 2 each.

    Shapes:
        result: ``(O, I, *size)``.
    """
    kernel = weight.unsqueeze(-2)  # (O, I, 1, K): the cells of the axes that are done, by the weights.
    for axis, side in enumerate(size):
        place = (positions[axis] + (side - 1) / 2).clamp(0, side - 1)
        # The last position belongs to the cell before it, so that its gradient points into the grid.
        lower = place.detach().floor().clamp(max=side - 2)
        upper_share = (place - lower).unsqueeze(-2)
        cell = torch.arange(side, device=weight.device, dtype=place.dtype).unsqueeze(-1) - lower.unsqueeze(-2)  # (O, I, side, K)
        share = (cell == 0).to(place.dtype) * (1 - upper_share) + (cell == 1).to(place.dtype) * upper_share
        last = axis == len(size) - 1  # The sum over the weights is left to the last axis: then it is one matrix product.
        kernel = kernel @ share.mT if last else (kernel.unsqueeze(-2) * share.unsqueeze(-3)).flatten(2, 3)
    return kernel.unflatten(2, tuple(size[:-1])) if len(size) > 1 else kernel.squeeze(2)


class LearnableSpacingConv(nn.Module):
    """A convolution whose kernel elements learn where they stand.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, out_channels, *spatial)`` for odd sizes at stride 1 with the default padding.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the grid in which the elements move, one or one per dimension, at least 2.
        elements: Number of elements of each kernel.
        dims: Number of spatial dimensions: 1, 2 or 3.
        stride: Stride, one or one per dimension.
        padding: Zeros on each side; by default what keeps the size at stride 1.
        groups: Groups of the convolution; ``in_channels`` makes it depthwise.
        bias: Whether the convolution has a bias.
        device: Where the parameters live.
        dtype: Their type.

    Raises:
        ConfigError: If a side is below 2 or ``groups`` does not divide the channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 17,
        *,
        elements: int = 34,
        dims: int = 2,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | None = None,
        groups: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dims = check_dims(dims)
        self.kernel_size = tupled(kernel_size, dims)
        if min(self.kernel_size) < 2:
            raise ConfigError(f"kernel_size={kernel_size!r} leaves positions no room; every side must be at least 2")
        if in_channels % groups or out_channels % groups:
            raise ConfigError(f"groups={groups} does not divide in_channels={in_channels} and out_channels={out_channels}")
        self.in_channels, self.out_channels, self.elements, self.groups = in_channels, out_channels, elements, groups
        self.stride = tupled(stride, dims)
        self.padding = same_padding(self.kernel_size, dims=dims) if padding is None else tupled(padding, dims)
        form = (out_channels, in_channels // groups, elements)
        self.weight = nn.Parameter(torch.empty(form, device=device, dtype=dtype))
        self.positions = nn.Parameter(torch.empty((dims, *form), device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and bias as a convolution of so many elements does, and the positions near the centre (deviation 0.5)."""
        bound = 1 / math.sqrt(self.weight.shape[1] * self.elements)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        nn.init.normal_(self.positions, std=0.5)
        self.clamp_positions()

    def clamp_positions(self) -> None:
        """Move positions that have left the grid to its border. In training every forward pass does this first."""
        # Through .data: the values that an earlier pass has saved for its backward are inside the grid already and do not change.
        for axis, side in enumerate(self.kernel_size):
            self.positions.data[axis].clamp_(-(side - 1) / 2, (side - 1) / 2)

    def kernel(self) -> Tensor:
        """Return the dense kernel, ``(out_channels, in_channels / groups, *kernel_size)``."""
        return spread(self.weight, self.positions, self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with the dense kernel."""
        if self.training:
            self.clamp_positions()
        return _CONV[self.dims](x, self.kernel(), self.bias, stride=self.stride, padding=self.padding, groups=self.groups)

    def merged(self) -> nn.Module:
        """Return an ordinary convolution with the dense kernel, for inference."""
        plain: Any = conv(self.dims)(
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type]
            stride=self.stride,  # type: ignore[arg-type]
            padding=self.padding,  # type: ignore[arg-type]
            groups=self.groups,
            bias=self.bias is not None,
            device="meta",
        )
        plain.weight = nn.Parameter(self.kernel().detach())
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias.detach().clone())
        return plain

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, elements={self.elements}, groups={self.groups}"


def position_groups(model: nn.Module, *, lr: float, weight_decay: float = 0.0, factor: float = 5.0) -> list[dict[str, Any]]:
    """Split the parameters for an optimizer: positions at ``factor`` times the learning rate and without weight decay, then the others.

    Args:
        model: Any model with such layers.
        lr: Learning rate of the others.
        weight_decay: Weight decay of the others.
        factor: How much faster positions learn.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, LearnableSpacingConv)]
    positions = list({id(layer.positions): layer.positions for layer in layers}.values())  # Shared ones once.
    known = {id(parameter) for parameter in positions}
    others = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups = [
        {"params": positions, "lr": factor * lr, "weight_decay": 0.0},
        {"params": others, "lr": lr, "weight_decay": weight_decay},
    ]
    return [group for group in groups if group["params"]]


LAYERS = {
    "dcls": Entry(
        "cnnkit.layers.dcls:LearnableSpacingConv",
        paper="dcls",
        summary="Convolution with a large kernel of few elements that learn their positions (Khalfaoui-Hassani et al., 2023).",
        dims=(1, 2, 3),
    ),
}
