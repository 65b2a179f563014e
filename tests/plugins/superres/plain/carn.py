"""CARN and CARN-M the straightforward way: every concatenation written out, the mean colour moved by 1x1 convolutions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MeanShift(nn.Module):
    """A 1x1 convolution that takes the mean colour off or puts it back."""

    def __init__(self, sign: int) -> None:
        super().__init__()
        self.shifter = nn.Conv2d(3, 3, 1)
        self.shifter.weight.data = torch.eye(3).view(3, 3, 1, 1)
        self.shifter.bias.data = sign * torch.tensor([0.4488, 0.4371, 0.4040])

    def forward(self, x: Tensor) -> Tensor:
        return self.shifter(x)


class ConvReLU(nn.Module):
    """A 1x1 convolution and ReLU: what fuses a concatenation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Residual(nn.Module):
    """Two 3x3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(inplace=True), nn.Conv2d(width, width, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + x)


class EfficientResidual(nn.Module):
    """Two 3x3 convolutions in groups and one 1x1."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1, groups=groups),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, 1, 1, groups=groups),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + x)


class Cascade(nn.Module):
    """Three residual blocks, or one three times, and three fusions."""

    def __init__(self, width: int, mobile: bool, groups: int) -> None:
        super().__init__()
        self.mobile = mobile
        if mobile:
            self.b1 = EfficientResidual(width, groups)
        else:
            self.b1 = Residual(width)
            self.b2 = Residual(width)
            self.b3 = Residual(width)
        self.c1 = ConvReLU(width * 2, width)
        self.c2 = ConvReLU(width * 3, width)
        self.c3 = ConvReLU(width * 4, width)

    def forward(self, x: Tensor) -> Tensor:
        b1 = self.b1(x)
        c1 = torch.cat([x, b1], dim=1)
        o1 = self.c1(c1)
        b2 = self.b1(o1) if self.mobile else self.b2(o1)
        c2 = torch.cat([c1, b2], dim=1)
        o2 = self.c2(c2)
        b3 = self.b1(o2) if self.mobile else self.b3(o2)
        c3 = torch.cat([c2, b3], dim=1)
        return self.c3(c3)


class Upsampler(nn.Module):
    """Convolution, ReLU and shuffle: once for 2 and 3, twice for 4."""

    def __init__(self, width: int, scale: int, groups: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for factor in {2: [2], 3: [3], 4: [2, 2]}[scale]:
            layers += [nn.Conv2d(width, factor**2 * width, 3, 1, 1, groups=groups), nn.ReLU(inplace=True), nn.PixelShuffle(factor)]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Upsamplers(nn.Module):
    """A branch for each scale."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.up2 = Upsampler(width, 2, groups)
        self.up3 = Upsampler(width, 3, groups)
        self.up4 = Upsampler(width, 4, groups)

    def forward(self, x: Tensor, scale: int) -> Tensor:
        if scale == 2:
            return self.up2(x)
        if scale == 3:
            return self.up3(x)
        return self.up4(x)


class PlainCARN(nn.Module):
    """The multi-scale network; the scale is an argument of the call."""

    def __init__(self, scale: int = 2, mobile: bool = False, groups: int = 1, width: int = 64) -> None:
        super().__init__()
        self.scale = scale
        self.sub_mean = MeanShift(-1)
        self.add_mean = MeanShift(1)
        self.entry = nn.Conv2d(3, width, 3, 1, 1)
        self.b1 = Cascade(width, mobile, groups)
        self.b2 = Cascade(width, mobile, groups)
        self.b3 = Cascade(width, mobile, groups)
        self.c1 = ConvReLU(width * 2, width)
        self.c2 = ConvReLU(width * 3, width)
        self.c3 = ConvReLU(width * 4, width)
        self.upsample = Upsamplers(width, groups)
        self.exit = nn.Conv2d(width, 3, 3, 1, 1)

    def forward(self, x: Tensor, scale: int | None = None) -> Tensor:
        """Enlarge a picture in [0, 1] by ``scale``, by default the constructor's."""
        x = self.entry(self.sub_mean(x))
        b1 = self.b1(x)
        c1 = torch.cat([x, b1], dim=1)
        o1 = self.c1(c1)
        b2 = self.b2(o1)
        c2 = torch.cat([c1, b2], dim=1)
        o2 = self.c2(c2)
        b3 = self.b3(o2)
        c3 = torch.cat([c2, b3], dim=1)
        o3 = self.c3(c3)
        return self.add_mean(self.exit(self.upsample(o3, self.scale if scale is None else scale)))


def create(name: str) -> nn.Module:
    """Build the network that is registered as ``superres/NAME``."""
    kind, _, scale = name.rpartition("_x")
    return PlainCARN(int(scale), mobile=kind == "carn_m", groups=4 if kind == "carn_m" else 1)
