"""A 1x1 convolution over the concatenation of several maps, which inference need not concatenate.

The convolution of a concatenation is a sum over its parts::

    W [x_1; x_2; ...; x_n] + b  =  W_1 x_1 + W_2 x_2 + ... + W_n x_n + b,    W = [W_1, W_2, ..., W_n]

so matrix products that add to one result take the place of a copy of all maps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ConcatConv(nn.Sequential):
    """Concatenate maps of equal width along the channels, fuse them by a 1x1 convolution, and apply an activation.

    Its keys are those of a plain sequence: ``0.weight`` and ``0.bias``.

    Args:
        width: Channels of every map, and of the result.
        number: How many maps there are.
        act: The activation.

    Shapes:
        maps: ``number`` tensors ``(B, width, H, W)``; the result is one more.
    """

    def __init__(self, width: int, number: int, act: nn.Module) -> None:
        super().__init__(nn.Conv2d(number * width, width, 1), act)
        self.width = width

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Fuse the maps."""
        return super().forward(torch.cat(list(maps), 1))

    def merged(self) -> nn.Module:
        """Return the module that adds the products of the parts, without the concatenation."""
        conv, act = self
        state = conv.state_dict()
        return _AccumulatedConv(state["weight"], state["bias"], self.width, act)


class _AccumulatedConv(nn.Module):
    """:class:`ConcatConv` as matrix products over pixels, which read maps that are channels-last in memory without a copy."""

    def __init__(self, weight: Tensor, bias: Tensor, width: int, act: nn.Module) -> None:
        super().__init__()
        self.weights = nn.ParameterList(part.t().contiguous() for part in weight.flatten(1).split(width, dim=1))
        self.bias = nn.Parameter(bias.clone())
        self.act = act

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        batch, _, height, width = maps[0].shape
        pixels = [x.permute(0, 2, 3, 1).flatten(0, 2) for x in maps]
        out = torch.addmm(self.bias, pixels[0], self.weights[0])
        for x, weight in zip(pixels[1:], self.weights[1:], strict=True):
            out.addmm_(x, weight)
        return self.act(out.view(batch, height, width, -1).permute(0, 3, 1, 2))
