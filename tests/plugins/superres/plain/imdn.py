"""IMDN and IMDN_AS the straightforward way: splits, concatenations and the channel attention written out."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mean_of_channels(x: Tensor) -> Tensor:
    """The mean of each channel by sums over its two axes."""
    return x.sum(3, keepdim=True).sum(2, keepdim=True) / (x.size(2) * x.size(3))


def deviation_of_channels(x: Tensor) -> Tensor:
    """The standard deviation of each channel, over the number of pixels."""
    squares = (x - mean_of_channels(x)).pow(2)
    return (squares.sum(3, keepdim=True).sum(2, keepdim=True) / (x.size(2) * x.size(3))).pow(0.5)


class ContrastAttention(nn.Module):
    """Deviation plus mean, squeezed by 16, to a gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv_du = nn.Sequential(
            nn.Conv2d(channels, channels // 16, 1), nn.ReLU(inplace=True), nn.Conv2d(channels // 16, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = deviation_of_channels(x) + self.avg_pool(x)
        return x * self.conv_du(y)


class IMDB(nn.Module):
    """One information multi-distillation block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kept = width // 4
        self.passed = width - self.kept
        self.c1 = nn.Conv2d(width, width, 3, padding=1)
        self.c2 = nn.Conv2d(self.passed, width, 3, padding=1)
        self.c3 = nn.Conv2d(self.passed, width, 3, padding=1)
        self.c4 = nn.Conv2d(self.passed, self.kept, 3, padding=1)
        self.act = nn.LeakyReLU(0.05, inplace=True)
        self.c5 = nn.Conv2d(width, width, 1)
        self.cca = ContrastAttention(self.kept * 4)

    def forward(self, x: Tensor) -> Tensor:
        kept1, passed = torch.split(self.act(self.c1(x)), [self.kept, self.passed], dim=1)
        kept2, passed = torch.split(self.act(self.c2(passed)), [self.kept, self.passed], dim=1)
        kept3, passed = torch.split(self.act(self.c3(passed)), [self.kept, self.passed], dim=1)
        kept4 = self.c4(passed)
        return self.c5(self.cca(torch.cat([kept1, kept2, kept3, kept4], dim=1))) + x


class PlainIMDN(nn.Module):
    """Six blocks, their concatenation, and the shuffle; ``any_size`` is IMDN_AS, of an input at the size of the output."""

    def __init__(self, scale: int, any_size: bool = False, width: int = 64) -> None:
        super().__init__()
        self.scale, self.any_size = scale, any_size
        if any_size:
            self.fea_conv: nn.Module = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.LeakyReLU(0.05), nn.Conv2d(width, width, 3, 2, 1))
        else:
            self.fea_conv = nn.Conv2d(3, width, 3, padding=1)
        self.IMDB1 = IMDB(width)
        self.IMDB2 = IMDB(width)
        self.IMDB3 = IMDB(width)
        self.IMDB4 = IMDB(width)
        self.IMDB5 = IMDB(width)
        self.IMDB6 = IMDB(width)
        self.c = nn.Sequential(nn.Conv2d(6 * width, width, 1), nn.LeakyReLU(0.05, inplace=True))
        self.LR_conv = nn.Conv2d(width, width, 3, padding=1)
        factor = 4 if any_size else scale
        self.upsampler = nn.Sequential(nn.Conv2d(width, 3 * factor**2, 3, padding=1), nn.PixelShuffle(factor))

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge a picture in [0, 1]; with ``any_size``, enlarge it by a bicubic filter and restore the detail."""
        if self.any_size and self.scale > 1:
            x = F.interpolate(x, scale_factor=self.scale, mode="bicubic", antialias=True)
        x = self.fea_conv(x)
        out1 = self.IMDB1(x)
        out2 = self.IMDB2(out1)
        out3 = self.IMDB3(out2)
        out4 = self.IMDB4(out3)
        out5 = self.IMDB5(out4)
        out6 = self.IMDB6(out5)
        out = self.LR_conv(self.c(torch.cat([out1, out2, out3, out4, out5, out6], dim=1))) + x
        return self.upsampler(out)


def crop_forward(x: Tensor, model: nn.Module, shave: int = 32) -> Tensor:
    """The paper's adaptive cropping for a network whose output has the size of its input: four patches, one batch."""
    height, width = x.shape[2:]
    top, left = height // 2, width // 2
    tall, wide = top + shave - (top + shave) % 4, left + shave - (left + shave) % 4
    patches = [
        x[:, :, 0:tall, 0:wide],
        x[:, :, 0:tall, width - wide : width],
        x[:, :, height - tall : height, 0:wide],
        x[:, :, height - tall : height, width - wide : width],
    ]
    parts = model(torch.cat(patches, dim=0)).chunk(4, dim=0)
    output = torch.zeros_like(x)
    output[:, :, :top, :left] = parts[0][:, :, :top, :left]
    output[:, :, :top, left:] = parts[1][:, :, :top, wide - width + left :]
    output[:, :, top:, :left] = parts[2][:, :, tall - height + top :, :left]
    output[:, :, top:, left:] = parts[3][:, :, tall - height + top :, wide - width + left :]
    return output


def create(name: str) -> nn.Module:
    """Build the network that is registered as ``superres/NAME``."""
    kind, _, scale = name.rpartition("_x")
    return PlainIMDN(int(scale), any_size=kind == "imdn_as")
