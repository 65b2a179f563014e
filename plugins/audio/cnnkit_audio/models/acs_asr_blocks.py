"""Conformer layers (Gulati et al. 2020) on padded frames, and the masks that keep padding out of them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["layer", "batch"]


def lengths_to_mask(lengths: Tensor, frames: int) -> Tensor:
    """Return which frames exist, ``(B, frames)`` bool, for ``lengths`` ``(B,)``."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def every(x: Tensor, step: int, first: int = 0) -> Tensor:
    """Return each ``step``-th entry along the second axis, beginning at ``first``: what ``x[:, first::step]`` is, but never a view.

    The exporter cannot tell that views with strides suit all lengths.
    """
    return x[:, torch.arange(first, x.shape[1], step, device=x.device)]


def floor(like: Tensor) -> float:
    """Return a logit below all that occur, of which several can be added up without an overflow."""
    return max(torch.finfo(like.dtype).min / 4, -1e30)


def masked_logits(allowed: Tensor, like: Tensor) -> Tensor:
    """Return 0 where ``allowed`` and a number below all logits elsewhere: finite, so that a row without any key stays finite too."""
    return torch.zeros(allowed.shape, dtype=like.dtype, device=like.device).masked_fill(~allowed, floor(like))


class SelfAttention(nn.Module):
    """Multi-head attention with the parameters of :class:`torch.nn.MultiheadAttention`, batch first.

    Args:
        width: Features of a frame.
        heads: Heads, which divide the features.
        dropout: Of the attention weights.

    Shapes:
        x: ``(B, N, width)`` asks ``memory``, ``(B, M, width)`` (itself by default); ``bias``, broadcastable to ``(B, 1, N, M)``, is
        added to the logits.
    """

    def __init__(self, width: int, heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, memory: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Return what the frames learn from the memory, ``(B, N, width)``."""
        width = x.shape[-1]
        if memory is None:
            query, key, value = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            query = F.linear(x, self.in_proj_weight[:width], self.in_proj_bias[:width])
            key, value = F.linear(memory, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, -1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        return self.out_proj(found.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int, *, dropout: float) -> None:
        super().__init__()
        self.sequential = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.SiLU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.sequential(x)


class _Convolution(nn.Module):
    """Gated pointwise and depthwise convolution over time. Padded frames are zeroed before the kernel could reach them."""

    def __init__(self, width: int, kernel: int, *, dropout: float, norm: Norm) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(width)
        self.sequential = nn.Sequential(
            nn.Conv1d(width, 2 * width, 1),
            nn.GLU(dim=1),
            nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width),
            nn.BatchNorm1d(width) if norm == "batch" else ChannelsFirstNorm(width),
            nn.SiLU(),
            nn.Conv1d(width, width, 1),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor, frames: Tensor) -> Tensor:
        gated = self.sequential[:2](self.layer_norm(x).transpose(1, 2))
        return self.sequential[2:](gated * frames[:, None]).transpose(1, 2)


class ChannelsFirstNorm(nn.LayerNorm):
    """Layer normalisation of ``(B, channels, N)`` over the channels of each frame, which neither other frames nor other clips enter."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised frames."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class ConformerLayer(nn.Module):
    """Half a feed-forward network, self-attention, convolution, the other half, each added to its input.

    The parameters are those of ``torchaudio.models.conformer.ConformerLayer``; unlike there, padding changes nothing at all.

    Args:
        width: Features of a frame.
        heads: Heads of the attention.
        hidden: Features inside the feed-forward networks.
        kernel: Frames that the convolution sees; odd.
        dropout: Everywhere.
        norm: Inside the convolution: ``"layer"`` (each frame by itself) or ``"batch"`` (the paper's, and torchaudio's).

    Shapes:
        x: ``(B, N, width)``, ``frames``: ``(B, N)`` bool; the result is like ``x``, with whatever in the padding.
    """

    def __init__(self, width: int, heads: int, hidden: int, kernel: int, *, dropout: float = 0.0, norm: Norm = "layer") -> None:
        super().__init__()
        self.ffn1 = _FeedForward(width, hidden, dropout=dropout)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn = SelfAttention(width, heads, dropout=dropout)
        self.self_attn_dropout = nn.Dropout(dropout)
        self.conv_module = _Convolution(width, kernel, dropout=dropout, norm=norm)
        self.ffn2 = _FeedForward(width, hidden, dropout=dropout)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, frames: Tensor) -> Tensor:
        """Return the frames after one layer."""
        x = x + 0.5 * self.ffn1(x)
        bias = masked_logits(frames, x)[:, None, None]
        x = x + self.self_attn_dropout(self.self_attn(self.self_attn_layer_norm(x), bias=bias))
        x = x + self.conv_module(x, frames)
        return self.final_layer_norm(x + 0.5 * self.ffn2(x))


class Conformer(nn.Module):
    """Several :class:`ConformerLayer`, with the parameter names of ``torchaudio.models.Conformer``; arguments as there."""

    def __init__(
        self, width: int, heads: int, hidden: int, layers: int, kernel: int, *, dropout: float = 0.0, norm: Norm = "layer"
    ) -> None:
        super().__init__()
        self.conformer_layers = nn.ModuleList(
            ConformerLayer(width, heads, hidden, kernel, dropout=dropout, norm=norm) for _ in range(layers)
        )

    def forward(self, x: Tensor, frames: Tensor) -> Tensor:
        """Return the frames ``(B, N, width)`` after all layers."""
        for layer in self.conformer_layers:
            x = layer(x, frames)
        return x
