"""CARN and CARN-M (Ahn et al., ECCV 2018): residual blocks whose outputs are all fused again, within blocks and between them.

In a *cascading block* every 1x1 convolution sees the block's input and all outputs so far, and the network is itself such a cascade of
cascading blocks:

    ``o_0 = x,  b_k = R_k(o_(k-1)),  o_k = relu(W_k [x; b_1; ...; b_k] + c_k),  k = 1, 2, 3``

Later layers so reach earlier features by short ways. One set of weights serves the scales 2, 3 and 4, by a branch of sub-pixel
convolutions for each. CARN-M is for mobile devices: its residual block has two 3x3 convolutions in four groups and a 1x1 convolution,
and a cascading block applies one such block three times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from cnnkit.errors import ConfigError
from cnnkit.weights import Layout
from torch import Tensor, nn

from cnnkit_superres.models._base import RGB, SuperResolver
from cnnkit_superres.models._concat import ConcatConv

MEAN = (0.4488, 0.4371, 0.4040)
"""Mean colour of DIV2K's training pictures."""
FACTORS = {2: (2,), 3: (3,), 4: (2, 2)}
"""Steps by which a branch enlarges."""


class MeanShift(nn.Module):
    """Add a constant to every colour: a 1x1 convolution that does not learn.

    Args:
        in_chans: Colours.
        sign: -1 takes the mean colour off, 1 puts it back.
    """

    def __init__(self, in_chans: int, sign: int) -> None:
        super().__init__()
        mean = torch.tensor(MEAN if in_chans == RGB else [sum(MEAN) / RGB] * in_chans)
        self.shifter = nn.Conv2d(in_chans, in_chans, 1).requires_grad_(False)
        self.shifter.weight.copy_(torch.eye(in_chans)[..., None, None])
        self.shifter.bias.copy_(sign * mean)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """Shift the colours of ``(B, in_chans, H, W)``."""
        return self.shifter(x)


class ResidualBlock(nn.Module):
    """``relu(x + conv(relu(conv(x))))``; an efficient block's are in groups, which a third convolution, 1x1, mixes.

    Args:
        width: Channels.
        efficient: Whether the two 3x3 convolutions are in groups and the third follows.
        groups: How many groups.
    """

    def __init__(self, width: int, *, efficient: bool = False, groups: int = 1) -> None:
        super().__init__()
        groups = groups if efficient else 1
        layers: list[nn.Module] = [
            nn.Conv2d(width, width, 3, padding=1, groups=groups),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, groups=groups),
        ]
        if efficient:
            layers += [nn.ReLU(inplace=True), nn.Conv2d(width, width, 1)]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return as many channels as ``x`` has."""
        out = self.body(x)
        out += x  # A convolution does not need its output for its gradient, nor does the sum.
        return F.relu_(out)


class Fusion(nn.Module):
    """All maps so far, fused by a 1x1 convolution.

    Args:
        width: Channels of each map.
        number: How many there are.
    """

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.body = ConcatConv(width, number, nn.ReLU(inplace=True))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return ``(B, width, H, W)`` of ``number`` such maps."""
        return self.body(maps)


def cascade(x: Tensor, blocks: Sequence[nn.Module], fusions: Sequence[nn.Module]) -> Tensor:
    """Apply blocks one after the other, and after each the fusion of the input and all their outputs so far."""
    maps, out = [x], x
    for block, fusion in zip(blocks, fusions, strict=True):
        maps.append(block(out))
        out = fusion(maps)
    return out


class CascadingBlock(nn.Module):
    """A cascade of three residual blocks; efficient ones are one block, applied three times.

    Args:
        width: Channels.
        efficient: As for :class:`ResidualBlock`.
        groups: As for :class:`ResidualBlock`.
    """

    def __init__(self, width: int, *, efficient: bool, groups: int) -> None:
        super().__init__()
        self.b1 = ResidualBlock(width, efficient=efficient, groups=groups)
        if not efficient:
            self.b2 = ResidualBlock(width)
            self.b3 = ResidualBlock(width)
        self.c1 = Fusion(width, 2)
        self.c2 = Fusion(width, 3)
        self.c3 = Fusion(width, 4)
        self.efficient = efficient

    def forward(self, x: Tensor) -> Tensor:
        """Return as many channels as ``x`` has."""
        blocks = [self.b1] * 3 if self.efficient else [self.b1, self.b2, self.b3]
        return cascade(x, blocks, (self.c1, self.c2, self.c3))


class Upsampler(nn.Module):
    """Sub-pixel convolutions with ReLU: one for 2 and 3, two for 4.

    Args:
        width: Channels.
        scale: 2, 3 or 4.
        groups: Groups of the convolutions.
    """

    def __init__(self, width: int, scale: int, groups: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for factor in FACTORS[scale]:
            conv = nn.Conv2d(width, factor**2 * width, 3, padding=1, groups=groups)
            layers += [conv, nn.ReLU(inplace=True), nn.PixelShuffle(factor)]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, width, H, W)`` to ``(B, width, scale * H, scale * W)``."""
        return self.body(x)


class CARN(SuperResolver):
    """The cascading residual network.

    Args:
        scale: Factor that it works at.
        scales: Factors that one set of weights serves. In a training step only the branch of the current :attr:`scale` gets a gradient, so
            several want a step at each; empty for a network of ``scale`` alone.
        in_chans: Colours; the mean colour that is taken off is DIV2K's for 3, its average otherwise.
        width: Channels.
        efficient: CARN-M's residual blocks, shared within a cascading block.
        groups: Groups of the upsampler's convolutions, and of the 3x3 convolutions of efficient blocks.

    Shapes:
        x: ``(B, in_chans, H, W)``; the result is ``(B, in_chans, scale * H, scale * W)``.

    Raises:
        ConfigError: If a scale is none of 2, 3 and 4, or the groups do not divide the width.
    """

    layouts: ClassVar[tuple[Layout, ...]] = (Layout("official"),)

    def __init__(
        self,
        *,
        scale: int = 2,
        scales: Sequence[int] = (2, 3, 4),
        in_chans: int = RGB,
        width: int = 64,
        efficient: bool = False,
        groups: int = 1,
    ) -> None:
        super().__init__(scale=scale, scales=scales, in_chans=in_chans)
        if unserved := [str(other) for other in self.scales if other not in FACTORS]:
            raise ConfigError(f"CARN has no branch for scale {', '.join(unserved)}; accepted: {', '.join(map(str, FACTORS))}")
        if width % groups:
            raise ConfigError(f"groups={groups} does not divide width={width}")
        self.sub_mean = MeanShift(in_chans, -1)
        self.add_mean = MeanShift(in_chans, 1)
        self.entry = nn.Conv2d(in_chans, width, 3, padding=1)
        self.b1 = CascadingBlock(width, efficient=efficient, groups=groups)
        self.b2 = CascadingBlock(width, efficient=efficient, groups=groups)
        self.b3 = CascadingBlock(width, efficient=efficient, groups=groups)
        self.c1 = Fusion(width, 2)
        self.c2 = Fusion(width, 3)
        self.c3 = Fusion(width, 4)
        self.several = bool(scales)
        self.upsample = nn.ModuleDict({self._branch(factor): Upsampler(width, factor, groups) for factor in self.scales})
        self.exit = nn.Conv2d(width, in_chans, 3, padding=1)

    def enlarge(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C, scale * H, scale * W)``."""
        x = self.entry(self.sub_mean(x))
        x = cascade(x, (self.b1, self.b2, self.b3), (self.c1, self.c2, self.c3))
        return self.add_mean(self.exit(self.upsample[self._branch(self.scale)](x)))

    def _branch(self, scale: int) -> str:
        return f"up{scale}" if self.several else "up"
