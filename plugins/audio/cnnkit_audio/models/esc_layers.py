"""Layers of ESC: attention in shifted windows of fixed size, and what halves, doubles, cuts and joins the axis of frequencies.

Maps are channels last, ``(B, H, W, C)`` with frequencies before times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from cnnkit.layers.relative_bias import RelativeAttention
from cnnkit.layers.transformer import TransformerBlock
from cnnkit.layers.window import pad_to_multiple, partition, wrapped_pairs
from torch import Tensor, nn

EPS = 1e-5
"""Added to the variance by every normalisation."""


class WindowAttention(nn.Module):
    """Attention among the tokens of square windows, all of the same size.

    Other than :func:`cnnkit.layers.window.in_windows`, a map that is smaller than a window is filled up with zeros, which are attended to,
    and a map of one window is shifted too: so the authors' code does, whose weights were trained with it.

    Args:
        channels: Features of a token.
        heads: Attention heads.
        window: Side of a window.
        shifted: Whether windows begin half a window further on; tokens that only the cyclic shift brings together do not see each other.

    Shapes:
        x: ``(B, H, W, channels)``; the result has the same shape.
    """

    def __init__(self, channels: int, *, heads: int, window: int, shifted: bool) -> None:
        super().__init__()
        self.window = (window, window)
        self.shift = (window // 2,) * 2 if shifted else (0, 0)
        self.tokens = RelativeAttention(channels, heads=heads, window=self.window)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within windows."""
        height, width = x.shape[1:3]
        x = pad_to_multiple(x, self.window, first=1)
        size = x.shape[1:3]
        order, groups = self._order(size, x.device)
        # One gather shifts and cuts, and one joins and shifts back: the fewest copies there can be.
        windows = x.flatten(1, 2).index_select(1, order).unflatten(1, (-1, math.prod(self.window)))
        parts = windows.split([number for _, number in groups], 1)
        attended = torch.cat([self._attend(part, last) for part, (last, _) in zip(parts, groups, strict=True)], 1)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
        return attended.flatten(1, 2).index_select(1, back).unflatten(1, size)[:, :height, :width]

    def _order(self, size: Sequence[int], device: torch.device) -> tuple[Tensor, list[tuple[tuple[bool, bool], int]]]:
        """Return where the tokens of all windows lie in the map, and how many windows, in this order, are the last ones along each axis."""
        where = torch.arange(size[0] * size[1], device=device).view(1, *size, 1)
        if not any(self.shift):
            windows = partition(where, self.window)
            return windows.flatten(), [((False, False), math.prod(windows.shape[1:3]))]
        windows = partition(torch.roll(where, [-shift for shift in self.shift], (1, 2)), self.window)[0]
        ends = ((False, slice(None, -1)), (True, slice(-1, None)))
        parts = [((down, right), windows[rows, columns].flatten(0, 1)) for down, rows in ends for right, columns in ends]
        parts = [(last, part) for last, part in parts if len(part)]
        return torch.cat([part.flatten() for _, part in parts]), [(last, len(part)) for last, part in parts]

    def _attend(self, windows: Tensor, last: tuple[bool, bool]) -> Tensor:
        """Attend within windows ``(B, number, N, C)``, those that are ``last`` along an axis without what the shift brought together."""
        number = windows.shape[2]
        # PyTorch's fused attention on the CPU takes a bias of four axes, and none of three.
        bias = torch.zeros(1, 1, number, number, dtype=windows.dtype, device=windows.device)
        if any(last):
            bias.masked_fill_(wrapped_pairs(self.window, self.shift, last, windows.device), -100.0)
        return self.tokens(windows.flatten(0, 1), bias).view(windows.shape)


class Merge(nn.Module):
    """Join two neighbouring frequencies to one token.

    Shapes:
        x: ``(B, H, W, channels)`` with an even ``H``; the result is ``(B, H / 2, W, out_channels)``.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * channels, eps=EPS)
        self.down = nn.Linear(2 * channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the frequencies."""
        return self.down(self.norm(x.unflatten(1, (-1, 2)).transpose(2, 3).flatten(3)))


class Split(nn.Module):
    """Make two neighbouring frequencies of one token.

    Shapes:
        x: ``(B, H, W, channels)``; the result is ``(B, 2 H, W, out_channels)``.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.up = nn.Linear(channels, 2 * out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Double the frequencies."""
        return self.up(self.norm(x)).unflatten(3, (2, -1)).transpose(2, 3).flatten(1, 2)


class Stage(nn.Module):
    """Blocks of window attention, every other one shifted, and then a change of scale.

    Args:
        channels: Features of a token.
        depth: Blocks.
        heads: Attention heads.
        window: Side of a window.
        mlp_ratio: Hidden width of the perceptrons by ``channels``.
        scale: What changes the scale at the end, if anything does.
    """

    def __init__(self, channels: int, *, depth: int, heads: int, window: int, mlp_ratio: float, scale: nn.Module | None = None) -> None:
        super().__init__()
        self.swint_blocks = nn.ModuleList(
            TransformerBlock(
                channels,
                WindowAttention(channels, heads=heads, window=window, shifted=index % 2 == 1),
                mlp_ratio=mlp_ratio,
                eps=EPS,
            )
            for index in range(depth)
        )
        self.subsample = scale

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, channels)`` to the features at the next scale."""
        for block in self.swint_blocks:
            x = block(x)
        return x if self.subsample is None else self.subsample(x)


class PatchEmbed(nn.Module):
    """Cut a spectrum into patches, each a token.

    Shapes:
        x: ``(B, 2, F, frames)``; the result is ``(B, F / patch[0], frames / patch[1], channels)``. What does not fill a patch is left out.
    """

    def __init__(self, patch: tuple[int, int], channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(2, channels, patch, patch)
        self.norm = nn.LayerNorm(channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens."""
        high, wide = self.proj.kernel_size
        _, _, bins, frames = x.shape
        # Patches do not overlap, so the convolution is a product of matrices, whose result is channels last as it is needed.
        x = x[:, :, : bins // high * high, : frames // wide * wide].unflatten(3, (-1, wide)).unflatten(2, (-1, high))
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(3)
        return self.norm(F.linear(x, self.proj.weight.flatten(1), self.proj.bias))


class PatchJoin(nn.Module):
    """Turn tokens back into a spectrum: a convolution makes the patches, another one smooths where they meet.

    Shapes:
        x: ``(B, H, W, channels)``; the result is ``(B, 2, H * patch[0], W * patch[1])``.
    """

    def __init__(self, patch: tuple[int, int], channels: int) -> None:
        super().__init__()
        self.patch = patch
        self.de_proj1 = nn.Conv2d(channels, channels * self.patch[0] * self.patch[1], 5, padding=2)
        self.de_proj2 = nn.Conv2d(channels, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the spectrum."""
        high, wide = self.patch
        x = self.de_proj1(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        # The channels of a patch are ordered by frequency, then time, then feature; maps stay channels last.
        x = x.unflatten(3, (high, wide, -1)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return self.de_proj2(x.permute(0, 3, 1, 2))
