"""The block of vision transformers: Dosovitskiy et al. (2021), "An Image is Worth 16x16 Words".

Some attention and a perceptron, each with a normalisation before and a shortcut around it::

    x = x + attention(norm(x));    y = x + perceptron(norm(x))
"""

from __future__ import annotations

from torch import Tensor, nn

from cnnkit.layers.drop import DropPath
from cnnkit.layers.mlp import Mlp


class TransformerBlock(nn.Module):
    """Attention and a perceptron, each with a normalisation before and a shortcut around it.

    Shapes:
        x: As the attention takes it, channels last; the result has the same shape.

    Args:
        channels: Features of a token.
        attention: The attention, of any kind that keeps the shape.
        mlp_ratio: Hidden width of the perceptron by ``channels``.
        eps: Added to the variance by the normalisations.
        drop_path: Probability that a branch is dropped while training.
    """

    def __init__(self, channels: int, attention: nn.Module, *, mlp_ratio: float = 4.0, eps: float = 1e-6, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=eps)
        self.attn = attention
        self.norm2 = nn.LayerNorm(channels, eps=eps)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))
