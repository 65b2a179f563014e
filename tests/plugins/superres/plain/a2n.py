"""A2N the straightforward way; colours from 0 to 255 at both ends, as in the official code."""

import torch.nn.functional as F
from torch import Tensor, nn


class PA(nn.Module):
    """Pixel attention."""

    def __init__(self, nf: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(nf, nf, 1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x.mul(self.sigmoid(self.conv(x)))


class Attention(nn.Module):
    def __init__(self, nf: int) -> None:
        super().__init__()
        self.k1 = nn.Conv2d(nf, nf, 3, padding=1, bias=False)
        self.lrelu = nn.LeakyReLU(0.2, inplace=True)
        self.k2 = nn.Conv2d(nf, nf, 1)
        self.sigmoid = nn.Sigmoid()
        self.k3 = nn.Conv2d(nf, nf, 3, padding=1, bias=False)
        self.k4 = nn.Conv2d(nf, nf, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.sigmoid(self.k2(self.lrelu(self.k1(x))))
        return self.k4(self.k3(x).mul(gate))


class AAB(nn.Module):
    """A block; ``k`` is 3 for A2N and 1 for A2N-M."""

    def __init__(self, nf: int, k: int, t: float = 30.0) -> None:
        super().__init__()
        self.t = t
        self.conv_first = nn.Conv2d(nf, nf, 1, bias=False)
        self.conv_last = nn.Conv2d(nf, nf, 1, bias=False)
        self.lrelu = nn.LeakyReLU(0.2, inplace=True)
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.ADM = nn.Sequential(nn.Linear(nf, nf // 4, bias=False), nn.ReLU(inplace=True), nn.Linear(nf // 4, 2, bias=False))
        self.attention = Attention(nf)
        self.non_attention = nn.Conv2d(nf, nf, k, padding=(k - 1) // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        batch, channels = x.shape[:2]
        x = self.lrelu(self.conv_first(x))
        weights = F.softmax(self.ADM(self.avg_pool(x).view(batch, channels)) / self.t, dim=1)
        with_attention = self.attention(x) * weights[:, 0].view(batch, 1, 1, 1)
        without = self.non_attention(x) * weights[:, 1].view(batch, 1, 1, 1)
        out = self.conv_last(self.lrelu(with_attention + without))
        out += residual
        return out


class PlainA2N(nn.Module):
    """The paper's network."""

    def __init__(self, scale: int, k: int = 3, nf: int = 40, unf: int = 24, nb: int = 16) -> None:
        super().__init__()
        self.scale = scale
        self.conv_first = nn.Conv2d(3, nf, 3, 1, 1)
        self.AAB_trunk = nn.Sequential(*[AAB(nf, k) for _ in range(nb)])
        self.trunk_conv = nn.Conv2d(nf, nf, 3, 1, 1)
        self.upconv1 = nn.Conv2d(nf, unf, 3, 1, 1)
        self.att1 = PA(unf)
        self.HRconv1 = nn.Conv2d(unf, unf, 3, 1, 1)
        if scale == 4:
            self.upconv2 = nn.Conv2d(unf, unf, 3, 1, 1)
            self.att2 = PA(unf)
            self.HRconv2 = nn.Conv2d(unf, unf, 3, 1, 1)
        self.conv_last = nn.Conv2d(unf, 3, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, 3, H, W)`` to ``(B, 3, scale * H, scale * W)``."""
        features = self.conv_first(x)
        features = features + self.trunk_conv(self.AAB_trunk(features))
        first = 2 if self.scale == 4 else self.scale
        features = self.upconv1(F.interpolate(features, scale_factor=first, mode="nearest"))
        features = self.lrelu(self.att1(features))
        features = self.lrelu(self.HRconv1(features))
        if self.scale == 4:
            features = self.upconv2(F.interpolate(features, scale_factor=2, mode="nearest"))
            features = self.lrelu(self.att2(features))
            features = self.lrelu(self.HRconv2(features))
        return self.conv_last(features) + F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)
