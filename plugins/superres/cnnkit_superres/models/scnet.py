"""SCNet (Wu, Jiang, Jiang and Liu, 2023, "Fully 1x1 Convolutional Network for Lightweight Image Super-Resolution").

No kernel is larger than 1x1. Neighbours meet because eighths of the channels move by one pixel, each in its own direction, between two
convolutions::

    block:  x + W2 relu(shift(W1 x))            up:  W2 shift(leaky(W1 upsample(x)))    or    shuffle(W2 shift(leaky(W1 x)))

so that a block's view grows by one pixel on each side, without a parameter or a multiplication for it. Around the blocks stand a 1x1
convolution, one such enlargement per factor of two (or one by three), two 1x1 convolutions, and the input enlarged bilinearly.

The official code has both forms of the enlargement; its options name the size T (64 channels, 16 blocks). The size B is that of its
authors' own count, 557 K at factor two: 64 channels, 64 blocks and the shuffle. Of L no source that could be read states the size;
here it has twice the blocks of B. Keys are those of the official code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from cnnkit.errors import ConfigError
from cnnkit.layers.spatial_shift import SpatialShift, spatial_shift
from cnnkit.weights import Layout
from torch import Tensor, nn

from cnnkit_superres.models._base import RGB, SuperResolver

STEPS = ((1, 0), (-1, 0), (0, 1), (0, -1), (-1, -1), (-1, 1), (1, -1), (1, 1))
"""Where each eighth of the channels moves, down and right being positive."""
STAGES = {2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}
"""The factors of the enlargements that follow each other, by scale."""


class ShiftBlock(nn.Module):
    """A 1x1 convolution, the shift, ReLU and a 1x1 convolution, beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.relu = nn.ReLU(inplace=True)
        self.shift = SpatialShift(STEPS)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the neighbours say."""
        return self.conv2(self.relu(self.shift(self.conv1(x)))).add_(x)


class ShiftBody(nn.Sequential):
    """Blocks one after the other; inference computes them in memory that all of them use.

    Args:
        channels: Features.
        depth: Blocks.
    """

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__(*(ShiftBlock(channels) for _ in range(depth)))

    def merged(self) -> nn.Module:
        """Return the blocks as matrix products that add to one map."""
        return _ProductBody([(block.conv1, block.conv2) for block in self]) if len(self) else nn.Identity()  # type: ignore[misc]


class _ProductBody(nn.Module):
    """:class:`ShiftBody` in inference: ``x += [W2 b2] [relu(shift([W1 b1] [x; 1])); 1]``, a row of ones taking the biases in.

    So a block reads and writes memory for two products and for one copy that shifts and cuts off at zero.
    """

    def __init__(self, pairs: Sequence[tuple[nn.Conv2d, nn.Conv2d]]) -> None:
        super().__init__()
        self.first, self.second = (
            nn.ParameterList(torch.cat([conv.weight.detach().flatten(1), conv.bias.detach()[:, None]], 1) for conv in convs)  # type: ignore[union-attr]
            for convs in zip(*pairs, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self._as_written(x)
        channels, *sides = x.shape[1:]
        one: Tensor = self.first[0]
        features, moved = (one.new_ones(channels + 1, math.prod(sides)) for _ in range(2))
        mixed = one.new_empty(channels, math.prod(sides))
        result = torch.empty_like(x, dtype=one.dtype, memory_format=torch.contiguous_format)
        for picture, out in zip(x, result, strict=True):
            features[:channels].view_as(out).copy_(picture)
            for first, second in zip(self.first, self.second, strict=True):
                torch.mm(first, features, out=mixed)
                _shift_and_cut(mixed.view_as(out), moved[:channels].view_as(out))
                features[:channels].addmm_(second, moved)
            out.copy_(features[:channels].view_as(out))
        return result

    def _as_written(self, x: Tensor) -> Tensor:
        """Compute the same without writing over anything: gradients and exported graphs need every value."""
        for first, second in zip(self.first, self.second, strict=True):
            mixed = F.conv2d(x, first[:, :-1, None, None], first[:, -1])
            x = x + F.conv2d(F.relu(spatial_shift(mixed, STEPS)), second[:, :-1, None, None], second[:, -1])
        return x


def _shift_and_cut(x: Tensor, moved: Tensor) -> None:
    """Write ``relu(shift(x))`` of ``(C, H, W)``, every value once: the zeros that enter along each axis, then what stays inside."""
    group = len(x) // len(STEPS)
    torch.clamp_min(x[len(STEPS) * group :], 0, out=moved[len(STEPS) * group :])
    for index, step in enumerate(STEPS):
        source, target = (part[index * group : (index + 1) * group] for part in (x, moved))
        for axis, distance in enumerate(step, start=1):
            stays = max(x.shape[axis] - abs(distance), 0)
            edge = x.shape[axis] - stays
            if distance:
                target.narrow(axis, 0 if distance > 0 else stays, edge).zero_()
            target = target.narrow(axis, edge if distance > 0 else 0, stays)
            source = source.narrow(axis, 0 if distance > 0 else edge, stays)
        torch.clamp_min(source, 0, out=target)


class InterpolatedUp(nn.Module):
    """Enlarge features bilinearly, between two 1x1 convolutions with a shift.

    The paper enlarges first. A 1x1 convolution gives the same before a bilinear enlargement, whose weights sum to one, at a fraction of
    the cost; so it goes first here, whatever its place in the list.
    """

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.up_layer = nn.Sequential(
            nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=False),
            nn.Conv2d(channels, channels, 1),
            nn.LeakyReLU(0.02, inplace=True),
            SpatialShift(STEPS),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C, scale * H, scale * W)``."""
        enlarge, mix, act, shift, mix_again = self.up_layer
        return mix_again(shift(act(enlarge(mix(x)))))


class ShuffledUp(nn.Module):
    """Enlarge features by a pixel shuffle, after two 1x1 convolutions with a shift between them."""

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.up_layer = nn.Sequential(
            nn.Conv2d(channels, channels, 1),
            nn.LeakyReLU(0.02, inplace=True),
            SpatialShift(STEPS),
            nn.Conv2d(channels, channels * scale**2, 1),
            nn.PixelShuffle(scale),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C, scale * H, scale * W)``."""
        return self.up_layer(x)


class SCNet(SuperResolver):
    """A network of 1x1 convolutions and shifts.

    Args:
        scale: Factor: 2, 3, 4 or 8.
        in_chans: 3 for RGB, as in the paper, or 1.
        channels: Features, at least 8.
        depth: Blocks.
        pixel_shuffle: Enlarge by pixel shuffles and not bilinearly; the authors report that it is better.

    Shapes:
        x: ``(B, in_chans, H, W)``; the result is ``(B, in_chans, scale * H, scale * W)``.

    Raises:
        ConfigError: If there is no such scale, or there are fewer channels than directions.
    """

    layouts = (Layout("official"),)

    def __init__(self, *, scale: int = 2, in_chans: int = RGB, channels: int = 64, depth: int = 16, pixel_shuffle: bool = False) -> None:
        super().__init__(scale=scale, in_chans=in_chans)
        if scale not in STAGES:
            raise ConfigError(f"scale={scale} is not among those of SCNet: {', '.join(map(str, STAGES))}")
        if channels < len(STEPS):
            raise ConfigError(f"channels={channels} cannot move in {len(STEPS)} directions; give {len(STEPS)} or more")
        self.conv_first = nn.Conv2d(in_chans, channels, 1)
        self.body = ShiftBody(channels, depth)
        self.ups = [f"upconv{stage}" for stage in range(1, len(STAGES[scale]) + 1)]
        for name, factor in zip(self.ups, STAGES[scale], strict=True):
            self.add_module(name, (ShuffledUp if pixel_shuffle else InterpolatedUp)(channels, factor))
        self.conv_hr = nn.Conv2d(channels, channels, 1)
        self.conv_last = nn.Conv2d(channels, in_chans, 1)
        self.lrelu = nn.LeakyReLU(0.1, inplace=True)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, a=99**0.5)  # A tenth of He's draw: residual branches begin small.
                nn.init.zeros_(module.bias)

    def enlarge(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C, scale * H, scale * W)``."""
        x = x.contiguous()  # A shift copies planes three times as fast as a few channels of every pixel.
        features = self.body(self.lrelu(self.conv_first(x)))
        for name in self.ups:
            features = self.lrelu(self.get_submodule(name)(features))
        details = self.conv_last(self.lrelu(self.conv_hr(features)))
        return details + F.interpolate(x, scale_factor=float(self.scale), mode="bilinear", align_corners=False)
