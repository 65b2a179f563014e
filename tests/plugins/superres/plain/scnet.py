"""SCNet the straightforward way: zeros, a padded copy and a slice of it for every direction; features are enlarged, then convolved."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PlainShift(nn.Module):
    """Each eighth of the channels reads the pixel above, below, left, right, and the four diagonal ones."""

    def forward(self, x: Tensor) -> Tensor:
        """Read the neighbours, zeros outside."""
        height, width = x.shape[2:]
        group = x.shape[1] // 8
        padded = F.pad(x, (1, 1, 1, 1))
        out = torch.zeros_like(x)
        reads = [(-1, 0), (1, 0), (0, -1), (0, 1), (1, 1), (1, -1), (-1, 1), (-1, -1)]
        for index, (down, right) in enumerate(reads):
            part = slice(index * group, (index + 1) * group)
            out[:, part] = padded[:, part, 1 + down : 1 + down + height, 1 + right : 1 + right + width]
        return out


class PlainBlock(nn.Module):
    """Convolution, shift, ReLU, convolution, and the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.relu = nn.ReLU(inplace=True)
        self.shift = PlainShift()

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of identity and branch."""
        return x + self.conv2(self.relu(self.shift(self.conv1(x))))


class PlainUp(nn.Module):
    """The paper's two ways of enlarging features."""

    def __init__(self, channels: int, scale: int, shuffle: bool) -> None:
        super().__init__()
        if shuffle:
            steps = [nn.Conv2d(channels, channels, 1), nn.LeakyReLU(0.02), PlainShift()]
            steps += [nn.Conv2d(channels, channels * scale * scale, 1), nn.PixelShuffle(scale)]
        else:
            steps = [nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=False), nn.Conv2d(channels, channels, 1)]
            steps += [nn.LeakyReLU(0.02), PlainShift(), nn.Conv2d(channels, channels, 1)]
        self.up_layer = nn.Sequential(*steps)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge."""
        return self.up_layer(x)


class PlainSCNet(nn.Module):
    """The network for a factor of 2, 3, 4 or 8."""

    def __init__(self, scale: int, channels: int = 64, depth: int = 16, shuffle: bool = False) -> None:
        super().__init__()
        self.scale = scale
        self.conv_first = nn.Conv2d(3, channels, 1)
        self.body = nn.Sequential(*[PlainBlock(channels) for _ in range(depth)])
        self.upconv1 = PlainUp(channels, 3 if scale == 3 else 2, shuffle)
        if scale in (4, 8):
            self.upconv2 = PlainUp(channels, 2, shuffle)
        if scale == 8:
            self.upconv3 = PlainUp(channels, 2, shuffle)
        self.conv_hr = nn.Conv2d(channels, channels, 1)
        self.conv_last = nn.Conv2d(channels, 3, 1)
        self.lrelu = nn.LeakyReLU(0.1, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, 3, H, W)`` to ``(B, 3, scale * H, scale * W)``."""
        out = self.body(self.lrelu(self.conv_first(x)))
        out = self.lrelu(self.upconv1(out))
        if self.scale in (4, 8):
            out = self.lrelu(self.upconv2(out))
        if self.scale == 8:
            out = self.lrelu(self.upconv3(out))
        out = self.conv_last(self.lrelu(self.conv_hr(out)))
        out += F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)
        return out
