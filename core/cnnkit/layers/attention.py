"""Self-attention over tokens: Vaswani et al. (2017), "Attention Is All You Need"."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, *, scale: float | None = None, drop: float = 0.0
) -> Tensor:
    """Return ``softmax(Q K^T * scale + bias) V``.

    Shapes:
        query: ``(B, heads, N, d)``; key: ``(B, heads, M, d)``; value: ``(B, heads, M, e)``; bias: broadcast to
        ``(B, heads, N, M)``; the result is ``(B, heads, N, e)``.

    Args:
        query: What each token looks for.
        key: What each token offers.
        value: What is passed on.
        bias: Added to the logits.
        scale: Factor of the products; by default ``1 / sqrt(d)``.
        drop: Dropout of the attention weights; pass 0 outside of training.
    """
    if bias is not None and bias.requires_grad and query.device.type == "cpu":
        # PyTorch has no fused kernel on the CPU that differentiates by the bias, and its own fallback is slower.
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        weights = ((query * scale) @ key.transpose(-2, -1)).add_(bias).softmax(-1)
        return (F.dropout(weights, drop) if drop else weights) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=drop, scale=scale)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Turn ``(B, N, heads * d)`` into ``(B, heads, N, d)``."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def join_heads(x: Tensor) -> Tensor:
    """Turn ``(B, heads, N, d)`` into ``(B, N, heads * d)``."""
    return x.transpose(-3, -2).flatten(-2)


class Attention(nn.Module):
    """Multi-head self-attention among all tokens.

    Shapes:
        x: ``(B, N, channels)``, with an optional bias that broadcasts to ``(B, heads, N, N)``; the result has the shape of ``x``.

    Args:
        channels: Features of a token.
        heads: Attention heads; they divide ``channels`` (or ``inner``).
        inner: Features of queries, keys and values, where they differ from ``channels``.
        qkv_bias: Whether queries, keys and values have a bias.
        proj_bias: Whether the output has a bias.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout of the output.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int = 8,
        inner: int | None = None,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        inner = channels if inner is None else inner
        self.heads = heads
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(channels, 3 * inner, bias=qkv_bias)
        self.proj = nn.Linear(inner, channels, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Let every token attend to every other."""
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        x = attend(query, key, value, bias, drop=self.attn_drop if self.training else 0.0)
        return self.proj_drop(self.proj(join_heads(x)))
