"""Neighbourhood attention: every position attends to the window around it.

Hassani, Walton, Li, Li and Shi (2023), "Neighborhood Attention Transformer". The window of position ``i`` has ``k`` positions along each
axis; at a border it is shifted inside, so that every position has as many neighbours::

    y_i = sum_j softmax_j(q_i . k_j / sqrt(d) + b[j - i]) v_j,    s_i <= j < s_i + k,    s_i = max(min(i - k // 2, N - k), 0)

with a learnt bias ``b`` per head by relative position. Where the window covers the map this is attention among all positions.

To gather a window for every position would copy each key ``k^dims`` times. Here a block of queries shares the keys that its windows
have in common, and what lies outside of a query's own window is masked. A block of ``b`` queries that begins at ``p`` reads
``b + 2 (k // 2)`` positions from ``p - k // 2`` on, wherever it lies: so relative positions, and with them the biases, are the same in
all blocks, and masks differ only at the borders. Blocks of one mask are computed together, up to a bound of memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cnnkit.errors import ConfigError
from cnnkit.layers.attention import attend
from cnnkit.layers.nd import check_dims, tupled

BLOCK = {1: 64, 2: 8, 3: 4}
"""Side of a block of queries by spatial dimensions; it is more than half a window in any case."""
LOGITS = 1 << 22
"""Bound of the logits that are computed at a time, unless a single row of blocks has more."""


class BlockedAxis:
    """One axis, cut into blocks of queries; the last block ends where the axis does, and overlaps the one before it.

    Args:
        side: Length of the axis.
        block: Queries of a block, more than half a window.
        window: Positions of a window, odd.
        device: Where indices are needed.
    """

    def __init__(self, side: int, block: int, window: int, device: torch.device) -> None:
        half = window // 2
        self.side, self.block, self.half = side, block, half
        self.count = (side + block - 1) // block
        self.last = torch.sym_max(side - block, 0)
        self.numbers = torch.arange(self.count, device=device)
        first = (self.numbers * block).clamp(max=self.last)[:, None]
        queries = first + torch.arange(block, device=device)
        keys = first - half + torch.arange(block + 2 * half, device=device)
        start = (queries - half).clamp(max=side - window).clamp(min=0)[:, :, None]
        inside = (keys[:, None] >= start) & (keys[:, None] < start + window) & (keys[:, None] < side)
        self.mask = torch.zeros(inside.shape, device=device).masked_fill(~inside, -math.inf)
        self.queries, self.keys = queries.clamp(max=side - 1), keys.clamp(min=0).clamp(max=side - 1)

    def groups(self) -> list[tuple[Tensor, Tensor]]:
        """Return the numbers of blocks that share a mask, with it, ``(1, queries, keys)``; under export all blocks with all masks."""
        if torch.compiler.is_compiling():
            return [(self.numbers, self.mask)]
        firsts = [min(number * self.block, self.last) for number in range(self.count)]
        inner = [number for number, at in enumerate(firsts) if self.half <= at <= self.last - self.half]
        parts = [[number] for number in range(self.count) if number not in inner] + ([inner] if inner else [])
        return [(self.numbers[part[0] : part[-1] + 1], self.mask[part[:1]]) for part in parts]

    def home(self) -> tuple[Tensor, Tensor]:
        """Return for each position the block that holds its result, and which query of the block it is."""
        position = torch.arange(self.side, device=self.numbers.device)
        block = position // self.block
        return block, position - (block * self.block).clamp(max=self.last)


def _along(part: Tensor, axis: int, dims: int) -> Tensor:
    """Spread ``(a, b, ...)`` of one spatial axis to ``(a of every axis, b of every axis, ...)``, of length 1 along the others."""
    shape = [1] * (part.ndim * dims)
    shape[axis::dims] = part.shape
    return part.reshape(shape)


def _numbered(parts: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Return the numbers of places in a grid of ``sizes``, row by row, from their places along each axis, ``(a, b, ...)``."""
    number = _along(parts[0], 0, len(parts))
    for axis in range(1, len(parts)):
        number = number * sizes[axis] + _along(parts[axis], axis, len(parts))
    return number


def relative_index(block: Sequence[int], window: Sequence[int]) -> Tensor:
    """Number the relative positions, key minus query, of a block's queries and the keys that it reads.

    The numbers are those of a table of ``2 * window - 1`` entries per axis. What lies further away is always masked, and has the number
    of the furthest.

    Shapes:
        result: ``(prod(block), prod(block + 2 * (window // 2)))`` int64.
    """
    parts = []
    for b, w in zip(block, window, strict=True):
        relative = torch.arange(b + 2 * (w // 2)) - w // 2 - torch.arange(b)[:, None]
        parts.append(relative.clamp(1 - w, w - 1) + w - 1)
    return _numbered(parts, [2 * w - 1 for w in window]).reshape(math.prod(block), -1)


def attend_neighborhood(qkv: Tensor, bias: Tensor, *, heads: int, window: Sequence[int], block: Sequence[int], drop: float = 0.0) -> Tensor:
    """Let every position attend to its window.

    Shapes:
        qkv: ``(B, *spatial, 3 * C)``: queries, keys and values; bias: ``(heads, prod(block), prod(block + 2 * (window // 2)))``, by
        :func:`relative_index`; the result is ``(B, *spatial, C)``.

    Args:
        qkv: What each position looks for, what it offers, and what it passes on.
        bias: Added to the logits of a block's queries and the keys that it reads.
        heads: Attention heads.
        window: Sides of the window, odd; it covers an axis that is no longer than it.
        block: Sides of a block, each more than half a window.
        drop: Dropout of the attention weights; pass 0 outside of training.
    """
    batch, size, width = qkv.shape[0], qkv.shape[1:-1], qkv.shape[-1] // 3
    axes = [BlockedAxis(side, b, w, qkv.device) for side, b, w in zip(size, block, window, strict=True)]
    counts = [axis.count for axis in axes]
    # Copied once, since picking from a part of each row would copy all of it each time.
    queries, keys_values = (part.contiguous() for part in qkv.flatten(1, -2).split([width, 2 * width], dim=-1))
    results, numbers = [], []
    for group in itertools.product(*(axis.groups() for axis in axes)):
        shared = _block_bias(bias, [mask for _, mask in group])
        if torch.compiler.is_compiling():
            shared = shared.expand(batch, *shared.shape).flatten(0, 1)
        for members in _bounded([members for members, _ in group], batch * bias.numel()):
            ask = _numbered([axis.queries[part] for axis, part in zip(axes, members, strict=True)], size).flatten()
            read = _numbered([axis.keys[part] for axis, part in zip(axes, members, strict=True)], size).flatten()
            blocks = batch * math.prod(part.shape[0] for part in members)
            query = queries.index_select(1, ask).reshape(blocks, bias.shape[1], heads, width // heads)
            key, value = keys_values.index_select(1, read).reshape(blocks, bias.shape[2], 2, heads, width // heads).unbind(2)
            found = attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), shared, drop=drop)
            results.append(found.transpose(1, 2).reshape(batch, ask.shape[0], width))
            numbers.append(_numbered(members, counts).flatten())
    # Results come block by block in the order of the groups.
    place = torch.cat(numbers).argsort() if len(numbers) > 1 else numbers[0]
    holders, within = zip(*(axis.home() for axis in axes), strict=True)
    home = place[_numbered(holders, counts)] * bias.shape[1] + _numbered(within, block)
    return torch.cat(results, 1).index_select(1, home.flatten()).reshape(batch, *size, width)


def _block_bias(bias: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """Return the biases with the masks ``(blocks or 1, b, t)`` of every axis, ``(blocks or 1, heads, prod(b), prod(t))``."""
    dims = len(masks)
    mask = _along(masks[0], 0, dims)
    for axis in range(1, dims):
        mask = mask + _along(masks[axis], axis, dims)
    return mask.flatten(2 * dims).flatten(dims, -2).flatten(0, -3).unsqueeze(1).to(bias) + bias


def _bounded(members: list[Tensor], logits: int) -> list[list[Tensor]]:
    """Split the blocks of a group, given along each axis, into parts within the bound; a block has so many logits."""
    if torch.compiler.is_compiling():
        return [members]
    row = logits * math.prod(part.shape[0] for part in members[1:])
    return [[first, *members[1:]] for first in members[0].split(max(1, LOGITS // row))]


class NeighborhoodAttention(nn.Module):
    """Multi-head attention of every position to the window around it, with a bias by relative position.

    Parameters are named as in NATTEN's module: ``qkv``, ``rpb`` and ``proj``.

    Shapes:
        x: ``(B, *spatial, channels)`` of any size; the result has the same shape. A window covers an axis that is no longer than it.

    Args:
        channels: Features of a position.
        heads: Attention heads; they divide ``channels``.
        window: Side of the window, odd, or its sides.
        dims: Number of spatial dimensions.
        qkv_bias: Whether queries, keys and values have a bias.
        relative_bias: Whether logits have a bias by relative position.
        attn_drop: Dropout of the attention weights.

    Raises:
        ConfigError: If a side of the window is even, or the heads do not divide the channels.
    """

    index: Tensor

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        window: int | Sequence[int],
        dims: int = 2,
        qkv_bias: bool = True,
        relative_bias: bool = True,
        attn_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.window = tupled(window, check_dims(dims))
        if any(side % 2 == 0 for side in self.window):
            raise ConfigError(f"a window of {self.window} has no middle; its sides must be odd, for example {self.window[0] // 2 * 2 + 1}")
        if channels % heads:
            raise ConfigError(f"heads={heads} must divide channels={channels}")
        self.heads = heads
        self.attn_drop = attn_drop
        self.block = tuple(max(BLOCK[dims], side // 2 + 1) for side in self.window)
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.rpb = nn.Parameter(torch.empty(heads, *(2 * side - 1 for side in self.window))) if relative_bias else None
        if self.rpb is not None:
            nn.init.trunc_normal_(self.rpb, std=0.02)
        self.proj = nn.Linear(channels, channels)
        self.register_buffer("index", relative_index(self.block, self.window), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        if self.rpb is None:
            bias = x.new_zeros(self.heads, *self.index.shape)
        else:
            bias = self.rpb.flatten(1).index_select(1, self.index.flatten()).unflatten(1, self.index.shape)
        drop = self.attn_drop if self.training else 0.0
        return self.proj(attend_neighborhood(self.qkv(x), bias, heads=self.heads, window=self.window, block=self.block, drop=drop))

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"heads={self.heads}, window={self.window}"
