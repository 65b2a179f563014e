"""IMDN (Hui et al., ACM MM 2019): a block keeps a quarter of its channels at each step and refines the rest.

An information multi-distillation block splits the output of each 3x3 convolution ``F_i``: 16 of 64 channels are kept, 48 go on.

    ``[k_1, p_1] = F_1(x),  [k_2, p_2] = F_2(p_1),  [k_3, p_3] = F_3(p_2),  k_4 = F_4(p_3)``
    ``block(x) = W a([k_1; k_2; k_3; k_4]) + x,    a(y) = y * sigmoid(V_2 relu(V_1 (std(y) + mean(y))))``

The attention ``a`` judges a channel by its contrast as well as its mean: texture and edges raise the deviation and not the mean.
Its statistics are of the whole picture, so a network that is run on parts of a picture answers a little differently.

IMDN_AS is the network for any scale: its input is already of the size of its output, and two convolutions of stride 2 bring the work to
a quarter of both sides. Its sides must then be multiples of 4. Others are extended by reflection here; the paper's own answer,
overlapping patches of a size that fits, is :func:`cnnkit_superres.adaptive_crop.adaptive_crop`.
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

SLOPE = 0.05
STRIDE = 4
"""How much smaller than its input the features of IMDN_AS are."""


class ContrastAttention(nn.Module):
    """Weight every channel by its standard deviation plus its mean, through two 1x1 convolutions and a sigmoid.

    Args:
        channels: Channels.
        reduction: How many times fewer lie between the two convolutions; at least one is left.
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.conv_du = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Weight ``(B, channels, H, W)``."""
        mean = x.mean((2, 3), keepdim=True)
        variance = (x - mean).square().mean((2, 3), keepdim=True)
        # The slope of a root at zero is infinite, and a picture of one pixel or one colour has no variance.
        contrast = variance.clamp_min(torch.finfo(x.dtype).tiny).sqrt()
        return x * self.conv_du(contrast + mean)


class DistillationBlock(nn.Module):
    """The information multi-distillation block.

    Args:
        width: Channels, a multiple of 4.
        reduction: As for :class:`ContrastAttention`.
    """

    def __init__(self, width: int, *, reduction: int = 16) -> None:
        super().__init__()
        kept = width // 4
        self.sizes = (kept, width - kept)
        self.c1 = nn.Conv2d(width, width, 3, padding=1)
        self.c2 = nn.Conv2d(width - kept, width, 3, padding=1)
        self.c3 = nn.Conv2d(width - kept, width, 3, padding=1)
        self.c4 = nn.Conv2d(width - kept, kept, 3, padding=1)
        self.c5 = nn.Conv2d(width, width, 1)
        self.cca = ContrastAttention(width, reduction=reduction)

    def forward(self, x: Tensor) -> Tensor:
        """Return as many channels as ``x`` has."""
        parts, passed = [], x
        for conv in (self.c1, self.c2, self.c3):
            kept, passed = F.leaky_relu_(conv(passed), SLOPE).split(self.sizes, dim=1)
            parts.append(kept)
        out = self.c5(self.cca(torch.cat([*parts, self.c4(passed)], 1)))
        out += x
        return out


class IMDN(SuperResolver):
    """The information multi-distillation network.

    Args:
        scale: Factor.
        in_chans: Colours.
        width: Channels, a multiple of 4.
        reduction: How many times fewer channels the attention has inside.

    Shapes:
        x: ``(B, in_chans, H, W)``; the result is ``(B, in_chans, scale * H, scale * W)``.

    Raises:
        ConfigError: If the width is not a multiple of 4.
    """

    layouts: ClassVar[tuple[Layout, ...]] = (Layout("official"),)

    def __init__(self, *, scale: int = 4, in_chans: int = RGB, width: int = 64, reduction: int = 16) -> None:
        super().__init__(scale=scale, in_chans=in_chans)
        self.fea_conv: nn.Module = nn.Conv2d(in_chans, width, 3, padding=1)
        self._build(width, scale, reduction)

    def _build(self, width: int, factor: int, reduction: int) -> None:
        """Add what follows the first features; ``factor`` brings them to the size of the output."""
        if width % 4:
            raise ConfigError(f"width={width} is not a multiple of 4: a quarter of the channels is kept at each step")
        self.IMDB1 = DistillationBlock(width, reduction=reduction)
        self.IMDB2 = DistillationBlock(width, reduction=reduction)
        self.IMDB3 = DistillationBlock(width, reduction=reduction)
        self.IMDB4 = DistillationBlock(width, reduction=reduction)
        self.IMDB5 = DistillationBlock(width, reduction=reduction)
        self.IMDB6 = DistillationBlock(width, reduction=reduction)
        self.c = ConcatConv(width, 6, nn.LeakyReLU(SLOPE, inplace=True))
        self.LR_conv = nn.Conv2d(width, width, 3, padding=1)
        self.upsampler = nn.Sequential(nn.Conv2d(width, self.in_chans * factor**2, 3, padding=1), nn.PixelShuffle(factor))

    def enlarge(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C, scale * H, scale * W)``."""
        features = out = self.fea_conv(x)
        outputs = []
        for block in (self.IMDB1, self.IMDB2, self.IMDB3, self.IMDB4, self.IMDB5, self.IMDB6):
            out = block(out)
            outputs.append(out)
        out = self.LR_conv(self.c(outputs))
        out += features
        return self.upsampler(out)


class IMDNAS(IMDN):
    """IMDN_AS, for any scale: the picture is enlarged by a bicubic filter first, and the network restores its detail.

    The same weights serve every scale. At scale 1 the picture is taken as it is: so it was trained and tested by its authors, with
    photographs of two focal lengths that are aligned and of one size.

    Args:
        scale: Factor.
        scales: Factors that the same weights serve.
        in_chans: Colours.
        width: Channels, a multiple of 4.
        reduction: How many times fewer channels the attention has inside.

    Shapes:
        x: ``(B, in_chans, H, W)``; the result is ``(B, in_chans, scale * H, scale * W)``.

    Raises:
        ConfigError: If the width is not a multiple of 4, or ``scale`` is none of ``scales``.
    """

    def __init__(
        self, *, scale: int = 4, scales: Sequence[int] = (1, 2, 3, 4), in_chans: int = RGB, width: int = 64, reduction: int = 16
    ) -> None:
        SuperResolver.__init__(self, scale=scale, scales=scales, in_chans=in_chans, size_multiple=STRIDE)
        self.fea_conv = nn.Sequential(
            nn.Conv2d(in_chans, width, 3, stride=2, padding=1),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
        )
        self._build(width, STRIDE, reduction)

    def enlarge(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C, scale * H, scale * W)``."""
        if self.scale > 1:
            # With antialiasing the filter is the one of MATLAB (a = -0.5), by which all of these networks are trained.
            x = F.interpolate(x, scale_factor=self.scale, mode="bicubic", antialias=True)
        return super().enlarge(x)
