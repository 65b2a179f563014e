"""Attention within windows by cosines, with positions as a function of distance.

Liu et al. (2022), "Swin Transformer V2: Scaling Up Capacity and Resolution"::

    softmax(cos(q, k) / tau + B) v,    B(d) = 16 sigmoid(MLP(sign(d) log2(1 + 8 |d|) / log2(8)))

``tau`` is learnt per head and at least 0.01. ``d`` is the distance of query and key along each axis, of which 1 is the largest in
the window that was trained; so the same weights serve windows of other sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnkit.layers.attention import attend, join_heads, split_heads
from cnnkit.layers.window import map_by_mask, relative_position_index, wrapped_pairs

MASKED = -100.0
"""Added to the logits of tokens that only the shift brought together; the published weights were trained with this finite number."""


def log_offsets(window: Sequence[int], trained: int) -> Tensor:
    """Return the relative positions of a window on the logarithmic scale, in the order of their numbers.

    Shapes:
        result: ``(prod(2 * w - 1), dims)``.

    Args:
        window: Side lengths of the window.
        trained: Side of the window whose largest distance is 1.
    """
    axes = []
    for side in window:
        offset = torch.arange(1 - side, side) * (8.0 / max(trained - 1, 1))
        axes.append(offset.sign() * torch.log2(1.0 + offset.abs()) / 3.0)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)


class CosineAttention(nn.Module):
    """Attention within windows, by cosines and with a bias that is a function of relative positions.

    Shapes:
        x: ``(B, *grid, N, channels)``, the windows of a grid; the result has the same shape.

    Args:
        channels: Features of a token.
        heads: Attention heads.
        window: Side of the usual window.
        trained: Side of the window that the weights were trained with.
        dims: Number of spatial dimensions.
    """

    offsets: Tensor
    index: Tensor

    def __init__(self, channels: int, *, heads: int, window: int, trained: int, dims: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.trained = trained
        self.dims = dims
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10.0)))
        self.cpb_mlp = nn.Sequential(nn.Linear(dims, 512), nn.ReLU(inplace=True), nn.Linear(512, heads, bias=False))
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        # Keys have no bias: it would add the same to all logits of a query, were it not for the cosine.
        self.q_bias = nn.Parameter(torch.zeros(channels))
        self.v_bias = nn.Parameter(torch.zeros(channels))
        self.proj = nn.Linear(channels, channels)
        self.resize_window(window)

    def resize_window(self, window: int) -> None:
        """Make another window the usual one."""
        self.window = (window,) * self.dims
        weight = self.proj.weight
        self.register_buffer("offsets", log_offsets(self.window, self.trained).to(weight), persistent=False)
        self.register_buffer("index", relative_position_index(self.window).flatten().to(weight.device), persistent=False)

    def bias(self, window: Sequence[int]) -> Tensor:
        """Return the bias of every head for every two tokens of a window, ``(heads, N, N)``."""
        offsets, index = self.offsets, self.index
        if tuple(window) != self.window:
            offsets = log_offsets(window, self.trained).to(offsets)
            index = relative_position_index(window).flatten().to(index.device)
        table = 16.0 * torch.sigmoid(self.cpb_mlp(offsets)).T
        tokens = math.prod(window)
        return table.index_select(1, index).unflatten(1, (tokens, tokens))

    def forward(self, x: Tensor, window: Sequence[int], shift: Sequence[int]) -> Tensor:
        """Attend within every window; ``shift`` says by how much the grid was rolled."""
        qkv = F.linear(x, self.qkv.weight, torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias]))
        position = self.bias(window)
        scale = self.logit_scale.clamp(max=math.log(100.0)).exp()

        def attend_group(group: Tensor, last: tuple[bool, ...]) -> Tensor:
            query, key, value = (split_heads(part, self.heads) for part in group.flatten(0, -3).chunk(3, dim=-1))
            bias = position
            if any(last):
                bias = bias + MASKED * wrapped_pairs(window, shift, last, group.device)
            mixed = attend(F.normalize(query, dim=-1) * scale, F.normalize(key, dim=-1), value, bias[None], scale=1.0)
            return join_heads(mixed).unflatten(0, group.shape[:-2])

        return self.proj(map_by_mask(qkv, shift, attend_group))
