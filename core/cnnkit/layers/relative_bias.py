"""A learnt bias of attention by relative position.

Liu et al. (2021), "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows". Every head has a table, with
one axis per spatial dimension so that it can be resampled for another window::

    bias[h, q, k] = table[h, k - q]
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cnnkit.layers.attention import Attention
from cnnkit.layers.nd import resize
from cnnkit.layers.window import relative_position_index


class RelativePositionBias(nn.Module):
    """The bias of every head for every two positions of a window.

    Shapes:
        result: ``(heads, N, N)`` with ``N = prod(window)``, queries before keys.

    Args:
        heads: Attention heads.
        window: Side lengths of the window that the table is made for.
    """

    index: Tensor

    def __init__(self, heads: int, window: Sequence[int]) -> None:
        super().__init__()
        self.window = tuple(window)
        self.relative_position_bias_table = nn.Parameter(torch.empty(heads, *(2 * side - 1 for side in window)))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        # Of key minus query; :func:`relative_position_index` numbers query minus key.
        self.register_buffer("index", relative_position_index(window).T.flatten(), persistent=False)

    def forward(self, window: Sequence[int] | None = None) -> Tensor:
        """Return the biases.

        Args:
            window: Side lengths of another window; the table is resampled linearly for it.
        """
        table: Tensor = self.relative_position_bias_table
        index = self.index
        if window is not None and tuple(window) != self.window:
            table = resize(table[None], [2 * side - 1 for side in window])[0]
            index = relative_position_index(window).to(table.device).T.flatten()
        tokens = math.isqrt(index.shape[0])
        return table.flatten(1).index_select(1, index).unflatten(1, (tokens, tokens))

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.relative_position_bias_table.shape[0]}, window={self.window}"


class RelativeAttention(Attention):
    """Self-attention among the tokens of a window, with a bias by relative position.

    Shapes:
        x: ``(B, N, channels)`` with ``N = prod(window)``; the result has the same shape.

    Args:
        channels: Features of a token.
        heads: Attention heads.
        window: Side lengths of the window; ``None`` leaves out the bias.
    """

    def __init__(self, channels: int, *, heads: int, window: Sequence[int] | None) -> None:
        super().__init__(channels, heads=heads)
        self.rel_pos = None if window is None else RelativePositionBias(heads, window)

    def forward(self, x: Tensor, bias: Tensor | None = None, *, window: Sequence[int] | None = None) -> Tensor:
        """Let every token attend to every other.

        Args:
            x: The tokens.
            bias: A further bias of the logits.
            window: Side lengths of the window that the tokens come from, if not the one the table is made for.
        """
        if self.rel_pos is not None:
            own = self.rel_pos(window)
            bias = own if bias is None else own + bias
        return super().forward(x, bias)
