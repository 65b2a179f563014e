"""TCSR (Wu, Jiang, Bai and Liu, 2023, "Incorporating Transformer Designs into Convolutions for Lightweight Image Super-Resolution").

Large kernels see far and cost much. Here a window slides over the features like a kernel, but its weights are attention of each pixel to
its neighbours, and the feed-forward part lets hidden channels move by a pixel, each eighth in its own direction, which costs nothing::

    x = x + NA(norm(x)),    x = x + EFFN(norm(x)),    EFFN(x) = W2 gelu(shift(W1 x))

A 3x3 convolution stands before the blocks, a long shortcut around them, and a 3x3 convolution and a pixel shuffle after them.

The official repository holds results and no code, and the paper's own text could not be read; this is built after its abstract. What it
does not state is chosen so that the parameters are those that the authors print for factor four, 682 K (B) and 1,030 K (L): 64 channels,
4 heads, windows of 11 x 11, three times as many hidden channels, 15 and 23 blocks. The qualities that they print are those of their
network, so weights of theirs, if there are any, need not fit.
"""

from __future__ import annotations

from cnnkit.errors import ConfigError
from cnnkit.layers.neighborhood_attention import NeighborhoodAttention
from cnnkit.layers.spatial_shift import SpatialShift
from torch import Tensor, nn

from cnnkit_superres.models._base import RGB, SuperResolver


class ShiftFeedForward(nn.Module):
    """Two linear maps over the channels, between them the shift and GELU (EFFN).

    Shapes:
        x: ``(B, H, W, C)``; the result has the same shape.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.shift = SpatialShift()
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both maps."""
        moved = self.shift(self.fc1(x).movedim(-1, 1)).movedim(1, -1)
        return self.fc2(self.act(moved))


class NeighborhoodBlock(nn.Module):
    """Attention to the window around each pixel and the feed-forward network, each after a layer normalisation, beside shortcuts.

    Shapes:
        x: ``(B, H, W, C)``; the result has the same shape.
    """

    def __init__(self, channels: int, *, heads: int, window: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = NeighborhoodAttention(channels, heads=heads, window=window)
        self.norm2 = nn.LayerNorm(channels)
        self.ffn = ShiftFeedForward(channels, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both parts."""
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class TCSR(SuperResolver):
    """A convolution, blocks of neighbourhood attention with a long shortcut, a convolution and a pixel shuffle.

    Args:
        scale: Factor.
        in_chans: 3 for RGB, as in the paper, or 1.
        channels: Features.
        depth: Blocks.
        heads: Attention heads; they divide ``channels``.
        window: Side of the window that a pixel attends to, odd.
        ratio: Hidden channels of the feed-forward network, by ``channels``.

    Shapes:
        x: ``(B, in_chans, H, W)``; the result is ``(B, in_chans, scale * H, scale * W)``. A window covers a side that is no longer.

    Raises:
        ConfigError: If the window is even, the heads do not divide the channels, or fewer than eight hidden channels would move.
    """

    def __init__(
        self,
        *,
        scale: int = 2,
        in_chans: int = RGB,
        channels: int = 64,
        depth: int = 15,
        heads: int = 4,
        window: int = 11,
        ratio: int = 3,
    ) -> None:
        super().__init__(scale=scale, in_chans=in_chans)
        if channels * ratio < 8:
            raise ConfigError(f"channels={channels} and ratio={ratio} give {channels * ratio} hidden channels to move in 8 directions")
        self.head = nn.Conv2d(in_chans, channels, 3, padding=1)
        self.blocks = nn.Sequential(
            *(NeighborhoodBlock(channels, heads=heads, window=window, hidden=ratio * channels) for _ in range(depth))
        )
        self.tail = nn.Conv2d(channels, in_chans * scale**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(scale)

    def enlarge(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C, scale * H, scale * W)``."""
        shallow = self.head(x)
        deep = self.blocks(shallow.movedim(1, -1).contiguous()).movedim(-1, 1)
        return self.shuffle(self.tail(shallow + deep))
