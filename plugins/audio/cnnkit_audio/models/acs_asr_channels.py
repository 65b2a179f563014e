"""The parts that work between microphones: choosing them, letting them attend to each other, and merging them into one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnkit_audio.models.acs_asr_blocks import SelfAttention, every, floor, masked_logits

SMALLEST = 1e-7
"""Weight below which a microphone's share is not told apart from this: the least that half precision holds."""


class Selection(NamedTuple):
    """What a selector decided about the microphones of each recording.

    Attributes:
        scores: ``(B, C)`` logits; the lowest number for microphones that do not exist.
        weights: ``(B, C)``, summing to one; zero for those that were dropped.
        ranks: ``(B, C)``, 0 for the best.
        kept: ``(B, C)`` bool.
    """

    scores: Tensor
    weights: Tensor
    ranks: Tensor
    kept: Tensor

    @classmethod
    def of(cls, scores: Tensor, channels: Tensor, keep: int, *, hard: bool) -> Selection:
        """Rank scores, and share the weight among all microphones (soft) or among the ``keep`` best (hard)."""
        scores = scores.masked_fill(~channels, floor(scores))
        ahead = scores[:, None, :] > scores[:, :, None]
        numbers = torch.arange(scores.shape[1], device=scores.device)
        tied = (scores[:, None, :] == scores[:, :, None]) & (numbers < numbers[:, None])
        ranks = (ahead | tied).sum(-1)
        kept = (ranks < keep) & channels
        among = kept if hard else channels
        return cls(scores, torch.softmax(scores + masked_logits(among, scores), -1) * among, ranks, kept)

    def take(self, x: Tensor, slots: int) -> Tensor:
        """Return the ``slots`` best microphones of ``x`` ``(B, C, ...)``, best first, with zeros where there are fewer."""
        wanted = torch.arange(slots, device=x.device)[:, None]
        chosen = (self.ranks[:, None, :] == wanted) & self.kept[:, None, :]
        there = chosen.any(-1).reshape(*chosen.shape[:2], *(1 for _ in x.shape[2:]))
        return x[torch.arange(x.shape[0], device=x.device)[:, None], chosen.to(torch.uint8).argmax(-1)] * there


class ChannelSelector(nn.Module):
    """Scores the microphones of an utterance by attention, and keeps the best.

    Attention over time sums up each microphone (mean and deviation under the attention's weights); the sums attend to each other, so
    that a microphone is judged against the others; a linear map gives the score. In training every microphone keeps a share of
    the weight, the softmax of the scores; in evaluation only the ``keep`` best do.

    Args:
        width: Features of a frame.
        heads: Heads of the attention between microphones.
        keep: Microphones that are kept at most.

    Shapes:
        x: ``(B, C, N, width)``; ``frames``: ``(B, N)`` bool; ``channels``: ``(B, C)`` bool.
    """

    def __init__(self, width: int, heads: int, keep: int) -> None:
        super().__init__()
        self.keep = keep
        self.pool = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1, bias=False))
        self.summary = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1, bias=False))

    def forward(self, x: Tensor, frames: Tensor, channels: Tensor) -> Selection:
        """Return scores, weights and what is kept."""
        when = torch.softmax(self.pool(x) + masked_logits(frames, x)[:, None, :, None], 2)
        mean = (when * x).sum(2)
        deviation = ((when * (x - mean[:, :, None]).square()).sum(2) + 1e-5).sqrt()
        heard = self.summary(torch.cat((mean, deviation), -1))
        heard = heard + self.attention(self.norm(heard), bias=masked_logits(channels, x)[:, None, None])
        return Selection.of(self.out(heard)[..., 0], channels, self.keep, hard=not self.training)


class CrossChannelAttention(nn.Module):
    """Multi-frame cross-channel attention: a frame of one microphone asks all microphones at the frames around it.

    The logarithm of a microphone's weight is added to its logits: half the weight counts as half as many frames, none as no frame.

    Args:
        width: Features of a frame.
        heads: Heads.
        around: Frames before and after that are asked too.

    Shapes:
        x, spatial: ``(B, C, N, width)``, what is heard and where from; ``frames``: ``(B, N)`` bool; ``weights``: ``(B, C)``.
    """

    def __init__(self, width: int, heads: int, around: int) -> None:
        super().__init__()
        self.heads, self.around = heads, around
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)  # A bias would add the same to all logits of a query.
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, spatial: Tensor, frames: Tensor, weights: Tensor) -> Tensor:
        """Return what each frame learns, like ``x``."""
        asked = self.norm(x) + spatial
        query, key, value = (
            part(asked).unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1, 4) for part in (self.query, self.key, self.value)
        )
        # (B, N, heads, C, d): frames are neighbours along the second axis, so that a shifted view stands for a copy of all windows.
        count, reach = x.shape[2], 2 * self.around + 1
        key, value = (F.pad(part, (0, 0, 0, 0, 0, 0, self.around, self.around)) for part in (key, value))
        there = F.pad(frames, (self.around, self.around))
        share = masked_logits(weights > 0, x) + weights.clamp_min(SMALLEST).log()
        scaled = query * query.shape[-1] ** -0.5
        logits = torch.cat(
            [
                scaled @ key[:, shift : shift + count].transpose(-1, -2)
                + masked_logits(there[:, shift : shift + count], x)[:, :, None, None, None]
                for shift in range(reach)
            ],
            -1,
        )
        asking = torch.softmax(logits + share.repeat(1, reach)[:, None, None, None], -1).chunk(reach, -1)
        found = torch.stack([asking[shift] @ value[:, shift : shift + count] for shift in range(reach)]).sum(0)
        return self.out(found.permute(0, 3, 1, 2, 4).flatten(3))


class ConvolutionFusion(nn.Module):
    """Multi-layer convolution fusion, shaped like a U-Net: from the best microphones to one stream.

    The microphones, best first, are the channels of a picture of frames and features. Two steps halve both sides, two go back up
    with skips, and the last layer has one channel. Its output is added to the weighted sum of the microphones.

    Args:
        slots: Microphones that it takes.
        width: Channels of the first level; the next ones have twice and four times as many.

    Shapes:
        x: ``(B, slots, N, features)``, N and features divisible by four; ``frames``: ``(B, N)`` bool; the result is
        ``(B, N, features)``.
    """

    def __init__(self, slots: int, width: int) -> None:
        super().__init__()
        self.enter = _convolution(slots, width)
        self.down = nn.ModuleList((_convolution(width, 2 * width, stride=2), _convolution(2 * width, 4 * width, stride=2)))
        self.up = nn.ModuleList((_convolution(6 * width, 2 * width), _convolution(3 * width, width)))
        self.leave = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x: Tensor, frames: Tensor) -> Tensor:
        """Return the merged stream."""
        masks = [every(frames, step)[:, None, :, None].to(x.dtype) for step in (1, 2, 4)]
        levels = [self.enter(x * masks[0]) * masks[0]]
        for layer, mask in zip(self.down, masks[1:], strict=True):
            levels.append(layer(levels[-1]) * mask)
        found = levels.pop()
        for layer, skip, mask in zip(self.up, reversed(levels), reversed(masks[:-1]), strict=True):
            wide = F.interpolate(found, scale_factor=2.0, mode="nearest")
            found = layer(torch.cat((wide, skip), 1) * mask) * mask
        return self.leave(found)[:, 0]


def _convolution(inside: int, outside: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, stride=stride, padding=1), nn.SiLU())
