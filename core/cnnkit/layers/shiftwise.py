"""Shift-wise convolution: Li, Li, Chen and Li (2025), "ShiftwiseConv: Small Convolutional Kernel with Large Kernel Effect".

A strip of ``M x N`` taps is cut into ``m = ceil(M / N)`` small kernels of ``N x N``. One depthwise convolution computes all of them;
moved to their places and summed, they are the convolution with the long strip (``N`` is 3, ``c`` the strip's centre)::

    y_strip[q] = sum_s (w_s * x)[q + s N + N // 2 - M // 2]

The same pieces serve a strip along every axis, in several random orders each, and a small kernel of one piece per order. Every strip
has a batch normalisation of its own. Some channels (``ghost``) pass, and the others keep a shortcut::

    y = x + sum_axes bn(y_strip) + bn(y_small)

Whole pieces are switched off and others on while training (:meth:`ShiftwiseConv.prune`), which leaves sparse long-range links.
Sums commute, so orders and parallel paths are added up in the weights: one small convolution per axis, then shifts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnkit.errors import ConfigError
from cnnkit.layers.fuse import fold_batch_norm
from cnnkit.layers.nd import batch_norm, check_dims, conv
from cnnkit.registry import Entry

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def shift_sum(pieces: Tensor, shifts: Sequence[int], axis: int, side: int) -> Tensor:
    """Move every piece to its place along an axis and sum them; outside of a piece are zeros.

    Args:
        pieces: ``(B, C, m, *spatial)``.
        shifts: How far ahead of an output's position each of the ``m`` pieces is read.
        axis: The spatial axis, from 0.
        side: Length of the output along the axis.

    Shapes:
        result: ``(B, C, *spatial)`` with ``side`` along the axis.
    """
    batch, channels, _, *sides = pieces.shape
    length, sides[axis] = sides[axis], side
    total = pieces.new_zeros(batch, channels, *sides)
    for piece, shift in zip(pieces.unbind(2), shifts, strict=True):
        first, last = max(0, -shift), min(side, length - shift)
        if first < last:  # Else it lies outside of the image.
            part = piece.narrow(2 + axis, first + shift, last - first)
            total = total + F.pad(part, (*(0, 0) * (len(sides) - 1 - axis), first, side - last))
    return total


class Strips(nn.Module):
    """The large-kernel form: a depthwise convolution with a long strip along each axis, beside channels that pass.

    Args:
        strips: The depthwise convolutions; their sum is the output of the first channels.
        channels: How many channels they take; the others pass.
    """

    def __init__(self, strips: Sequence[nn.Module], channels: int) -> None:
        super().__init__()
        self.strips = nn.ModuleList(strips)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Apply the strips."""
        taken = x[:, : self.channels]
        y = self.strips[0](taken)
        for strip in list(self.strips)[1:]:
            y = y + strip(taken)
        return torch.cat((y, x[:, self.channels :]), 1) if self.channels < x.shape[1] else y


class ShiftwiseConv(nn.Module):
    """A large depthwise kernel in the shape of a cross, made of small ones that are shifted and summed.

    Shapes:
        x: ``(B, channels, *spatial)``; the result has the same shape.

    Args:
        channels: Number of channels.
        kernel_size: Length ``M`` of the strips, odd.
        dims: Number of spatial dimensions: 1, 2 or 3.
        piece_size: Side ``N`` of the small kernels, odd and not above ``kernel_size``.
        paths: Parallel sets of small kernels, summed.
        orders: Random orders in which the pieces are laid along each strip.
        ghost: Share of the channels that only pass.
        seed: Of the orders.

    Raises:
        ConfigError: If a size is even, a piece is longer than the strip, or no channel is left to convolve.
    """

    mask: Tensor
    layouts: Tensor
    chosen: Tensor

    def __init__(
        self,
        channels: int,
        kernel_size: int = 51,
        *,
        dims: int = 2,
        piece_size: int = 3,
        paths: int = 2,
        orders: int = 4,
        ghost: float = 0.23,
        seed: int = 123,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0 or piece_size % 2 == 0 or piece_size > kernel_size:
            raise ConfigError(f"kernel_size={kernel_size} and piece_size={piece_size} must be odd, and a piece not longer than the strip")
        if not 0 <= ghost < 1 or int(channels * (1 - ghost)) < 1:
            raise ConfigError(f"ghost={ghost} of {channels} channels leaves none to convolve; give a share below {1 - 1 / channels:.2f}")
        self.dims, self.kernel_size, self.piece_size = check_dims(dims), kernel_size, piece_size
        self.channels = channels
        self.active = int(channels * (1 - ghost))
        self.pieces = pieces = math.ceil(kernel_size / piece_size)
        self.weight = nn.Parameter(torch.empty(paths, self.active, pieces, *(piece_size,) * dims))
        nn.init.uniform_(self.weight, -(piece_size ** (-dims / 2)), piece_size ** (-dims / 2))
        self.norms = nn.ModuleList(batch_norm(dims)(self.active) for _ in range(dims))
        self.small_norm = batch_norm(dims)(self.active)
        self.register_buffer("mask", torch.ones(paths, self.active, pieces, dtype=torch.bool))
        # How often a piece lies in a slot of a strip, (axes, active, slots, pieces); how often it is in the small kernel, (active, pieces).
        generator = torch.Generator(device="cpu").manual_seed(seed)
        drawn = torch.rand(orders, dims, self.active, pieces, generator=generator, device="cpu").argsort(-1)
        picked = torch.randint(pieces, (orders, self.active), generator=generator, device="cpu")
        self.register_buffer("layouts", F.one_hot(drawn, pieces).sum(0).to(self.weight.device))
        self.register_buffer("chosen", F.one_hot(picked, pieces).sum(0).to(self.weight.device))

    @property
    def shifts(self) -> list[int]:
        """How far ahead of an output's position the slots of a strip are centred."""
        return [slot * self.piece_size + self.piece_size // 2 - self.kernel_size // 2 for slot in range(self.pieces)]

    def pieces_of(self, axis: int) -> Tensor:
        """Return the small kernels in the slots of the strip along ``axis``, ``(active, m, *piece)``."""
        return torch.einsum("csp,cp...->cs...", self.layouts[axis].to(self.weight.dtype), self._summed())

    def small_kernel(self) -> Tensor:
        """Return the kernel at the centre, ``(active, 1, *piece)``."""
        return torch.einsum("cp,cp...->c...", self.chosen.to(self.weight.dtype), self._summed()).unsqueeze(1)

    def _summed(self) -> Tensor:
        mask = self.mask.to(self.weight.dtype)
        return (self.weight * mask[(..., *(None,) * self.dims)]).sum(0)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with the pieces, shift, sum and normalise."""
        taken = x[:, : self.active]
        half = self.piece_size // 2
        y = taken + self.small_norm(_CONV[self.dims](taken, self.small_kernel(), padding=half, groups=self.active))
        for axis, norm in enumerate(self.norms):
            kernels = self.pieces_of(axis).flatten(0, 1).unsqueeze(1)
            # One ring more along the strip: a piece outside of the image may still reach into it.
            padding = [half + half * (other == axis) for other in range(self.dims)]
            parts = _CONV[self.dims](taken, kernels, padding=padding, groups=self.active).unflatten(1, (self.active, self.pieces))
            y = y + norm(shift_sum(parts, [half + shift for shift in self.shifts], axis, taken.shape[2 + axis]))
        return torch.cat((y, x[:, self.active :]), 1) if self.active < self.channels else y

    @torch.no_grad()
    def prune(self, sparsity: float, regrow: float = 0.0, generator: torch.Generator | None = None) -> None:
        """Switch off the weakest pieces, then exchange some of the weakest that are left for random ones that were off.

        A piece that comes back starts at zero, so the output does not jump. Sparsity is that of whole pieces.

        Args:
            sparsity: Share of the pieces that are off afterwards.
            regrow: Share of the pieces that are on which is exchanged.
            generator: Of the choice of what comes back.

        Raises:
            ConfigError: If a share is outside of ``[0, 1)``.
        """
        if not (0 <= sparsity < 1 and 0 <= regrow < 1):
            raise ConfigError(f"sparsity={sparsity} and regrow={regrow} must be in [0, 1)")
        kept = self.mask.numel() - round(sparsity * self.mask.numel())
        exchanged = min(round(regrow * kept), self.mask.numel() - kept)
        strength = self.weight.abs().sum(tuple(range(3, self.weight.ndim))).where(self.mask, -1.0).flatten()
        strongest = strength.argsort(descending=True)
        off = strongest[kept:]
        back = off[torch.randperm(len(off), generator=generator).to(off.device)[:exchanged]]
        mask = torch.zeros_like(self.mask.flatten())
        mask[strongest[: kept - exchanged]] = True
        weight = self.weight.flatten(0, 2)
        weight[~mask] = 0.0
        mask[back] = True
        self.mask.copy_(mask.view_as(self.mask))
        self.weight.copy_(weight.view_as(self.weight))

    def merged(self) -> nn.Module:
        """Return the strips as depthwise convolutions with biases, for inference; shortcut and small kernel are part of the first."""
        side = self.pieces * self.piece_size
        back = self.kernel_size // 2  # Taps before the centre; there are as many or more after it.
        ahead = side - 1 - back
        strips = []
        for axis, norm in enumerate(self.norms):
            kernel = torch.cat(self.pieces_of(axis).unbind(1), 1 + axis).unsqueeze(1)
            kernel = F.pad(kernel, (*(0, 0) * (self.dims - 1 - axis), ahead - back, 0))
            kernel, bias = self._folded(kernel, norm)
            if axis == 0:
                small, small_bias = self._folded(self.small_kernel(), self.small_norm)
                half = self.piece_size // 2
                small.view(self.active, 1, -1)[..., self.piece_size**self.dims // 2] += 1.0  # The shortcut.
                kernel.narrow(2, ahead - half, self.piece_size).add_(small)
                bias = bias + small_bias
            padding = [ahead if other == axis else self.piece_size // 2 for other in range(self.dims)]
            strip: Any = conv(self.dims)(
                self.active,
                self.active,
                tuple(kernel.shape[2:]),  # type: ignore[arg-type]
                padding=tuple(padding),  # type: ignore[arg-type]
                groups=self.active,
                device="meta",
            )
            strip.weight, strip.bias = nn.Parameter(kernel), nn.Parameter(bias)
            strips.append(strip)
        return Strips(strips, self.active)

    def _folded(self, kernel: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
        plain: Any = nn.Module()
        plain.weight, plain.bias = kernel.detach(), None
        weight, bias = fold_batch_norm(plain, norm)
        return weight.detach(), bias.detach()

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.channels}, kernel_size={self.kernel_size}, piece_size={self.piece_size}, active={self.active}"


LAYERS = {
    "shiftwise": Entry(
        "cnnkit.layers.shiftwise:ShiftwiseConv",
        paper="shiftwise",
        summary="Large depthwise kernel made of small ones that are shifted and summed (Li et al., 2025).",
        dims=(1, 2, 3),
    ),
}
