"""TCSR the straightforward way: the keys and values of every window are gathered, and the shift is a padded copy and its slices."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PlainNeighborhood(nn.Module):
    """The equations of neighbourhood attention, position by position: a window's indices, its keys, its values."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(channels, 3 * channels)
        self.rpb = nn.Parameter(torch.zeros(heads, 2 * window - 1, 2 * window - 1))
        self.proj = nn.Linear(channels, channels)

    def starts(self, side: int) -> Tensor:
        """The first position of each position's window."""
        return (torch.arange(side) - self.window // 2).clamp(0, side - self.window)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, C)`` to the same shape; both sides are at least those of the window."""
        batch, height, width, channels = x.shape
        offsets = torch.arange(self.window)
        rows = self.starts(height)[:, None] + offsets
        columns = self.starts(width)[:, None] + offsets
        index = (rows[:, None, :, None] * width + columns[None, :, None, :]).reshape(height * width, -1)
        down = rows - torch.arange(height)[:, None] + self.window - 1
        right = columns - torch.arange(width)[:, None] + self.window - 1
        bias = self.rpb[:, down[:, None, :, None], right[None, :, None, :]].reshape(self.heads, height * width, -1)

        query, key, value = self.qkv(x).reshape(batch, height * width, 3, self.heads, channels // self.heads).unbind(2)
        query = query * (channels // self.heads) ** -0.5
        logits = torch.einsum("bnhd,bnkhd->bhnk", query, key[:, index]) + bias
        out = torch.einsum("bhnk,bnkhd->bnhd", logits.softmax(-1), value[:, index])
        return self.proj(out.reshape(batch, height, width, channels))


class PlainShiftFeedForward(nn.Module):
    """1x1 convolution, shift, GELU, 1x1 convolution."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, C)`` to the same shape."""
        x = self.fc1(x)
        height, width, hidden = x.shape[1:]
        group = hidden // 8
        padded = F.pad(x, (0, 0, 1, 1, 1, 1))
        out = torch.zeros_like(x)
        moves = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
        for number, (down, right) in enumerate(moves):
            part = slice(number * group, (number + 1) * group)
            out[..., part] = padded[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width, part]
        return self.fc2(F.gelu(out))


class PlainBlock(nn.Module):
    """Norm, attention, shortcut; norm, feed-forward, shortcut."""

    def __init__(self, channels: int, heads: int, window: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = PlainNeighborhood(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        self.ffn = PlainShiftFeedForward(channels, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both."""
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class PlainTCSR(nn.Module):
    """The network for a factor."""

    def __init__(self, scale: int, channels: int = 64, depth: int = 15, heads: int = 4, window: int = 11, ratio: int = 3) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(*[PlainBlock(channels, heads, window, ratio * channels) for _ in range(depth)])
        self.tail = nn.Conv2d(channels, 3 * scale * scale, 3, padding=1)
        self.shuffle = nn.PixelShuffle(scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, 3, H, W)`` to ``(B, 3, scale * H, scale * W)``."""
        shallow = self.head(x)
        deep = self.blocks(shallow.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.shuffle(self.tail(shallow + deep))
