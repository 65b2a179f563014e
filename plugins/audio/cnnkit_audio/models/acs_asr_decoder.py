"""The attention decoder: a transformer that spells one unit after another while it looks at the encoder's frames."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class AttentionDecoder(nn.Module):
    """A transformer decoder (Vaswani et al. 2017), normalised before each part, with sines as positions.

    Args:
        units: Size of the vocabulary.
        width: Features.
        heads: Heads of both attentions.
        hidden: Features inside the feed-forward networks.
        layers: Number of layers.
        dropout: Everywhere.

    Shapes:
        tokens: ``(B, L)`` of what came before; memory: ``(B, N, width)``; frames: ``(B, N)`` bool; the result is ``(B, L, units)``.
    """

    def __init__(self, units: int, width: int, heads: int, hidden: int, layers: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(units, width)
        layer = nn.TransformerDecoderLayer(width, heads, hidden, dropout, batch_first=True, norm_first=True)
        self.layers = nn.TransformerDecoder(layer, layers, norm=nn.LayerNorm(width))
        self.out = nn.Linear(width, units)

    def forward(self, tokens: Tensor, memory: Tensor, frames: Tensor) -> Tensor:
        """Return logits of the unit after each token."""
        x = self.embed(tokens)
        x = x * math.sqrt(x.shape[-1]) + positions(x.shape[1], x.shape[2]).to(x)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        return self.out(self.layers(x, memory, tgt_mask=later, memory_key_padding_mask=~frames))


def positions(count: int, width: int) -> Tensor:
    """Return sines (even features) and cosines (odd features) of positions at wavelengths from 2 pi to 20000 pi, ``(count, width)``."""
    steps = torch.arange(0, width, 2, dtype=torch.float64)
    angles = torch.arange(count, dtype=torch.float64)[:, None] * torch.exp(steps * (-math.log(10000.0) / width))
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1)[:, :width]
