"""SPAN and DSCF the straightforward way: branches in training, the merged kernel formed anew in every evaluation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainTriple(nn.Module):
    """Four convolutions in training; one, whose weights are computed from theirs, in evaluation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.sk = nn.Conv2d(inputs, outputs, 1)
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, 2 * inputs, 1), nn.Conv2d(2 * inputs, 2 * outputs, 3), nn.Conv2d(2 * outputs, outputs, 1)
        )
        self.eval_conv = nn.Conv2d(inputs, outputs, 3, padding=1).requires_grad_(False)

    def update(self) -> None:
        """Compose the kernels by convolving one with the other."""
        one, three, out = (layer.weight.detach() for layer in self.conv)
        first, second, third = (layer.bias.detach() for layer in self.conv)
        kernel = F.conv2d(one.transpose(0, 1), three, padding=2).flip(2, 3).transpose(0, 1)
        bias = (three * first.view(1, -1, 1, 1)).sum((1, 2, 3)) + second
        kernel = F.conv2d(kernel.transpose(0, 1), out).transpose(0, 1)
        bias = (out * bias.view(1, -1, 1, 1)).sum((1, 2, 3)) + third
        self.eval_conv.weight.data = kernel + F.pad(self.sk.weight.detach(), [1, 1, 1, 1])
        self.eval_conv.bias.data = bias + self.sk.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Choose the form by the mode."""
        if self.training:
            return self.conv(F.pad(x, (1, 1, 1, 1))) + self.sk(x)
        self.update()
        return self.eval_conv(x)


class PlainMerged(nn.Module):
    """What is left of it for the challenge."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.eval_conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return self.eval_conv(x)


class PlainBlock(nn.Module):
    """The paper's block."""

    def __init__(self, layer: type, width: int) -> None:
        super().__init__()
        self.c1_r = layer(width, width)
        self.c2_r = layer(width, width)
        self.c3_r = layer(width, width)
        self.act1 = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output, and the first map, which the activation has changed in place."""
        out1 = self.c1_r(x)
        out1_act = self.act1(out1)
        out2 = self.c2_r(out1_act)
        out2_act = self.act1(out2)
        out3 = self.c3_r(out2_act)
        attention = torch.sigmoid(out3) - 0.5
        return (out3 + x) * attention, out1


class PlainSPAN(nn.Module):
    """The network for RGB in [0, 1]."""

    def __init__(self, scale: int, width: int = 48, merged: bool = False) -> None:
        super().__init__()
        layer = PlainMerged if merged else PlainTriple
        self.mean = torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)
        self.conv_1 = layer(3, width)
        self.block_1 = PlainBlock(layer, width)
        self.block_2 = PlainBlock(layer, width)
        self.block_3 = PlainBlock(layer, width)
        self.block_4 = PlainBlock(layer, width)
        self.block_5 = PlainBlock(layer, width)
        self.block_6 = PlainBlock(layer, width)
        self.conv_cat = nn.Conv2d(4 * width, width, 1)
        self.conv_2 = layer(width, width)
        self.upsampler = nn.Sequential(nn.Conv2d(width, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, 3, H, W)`` to ``(B, 3, scale * H, scale * W)``."""
        self.mean = self.mean.type_as(x)
        x = (x - self.mean) * 255.0
        feature = self.conv_1(x)
        b1, _ = self.block_1(feature)
        b2, _ = self.block_2(b1)
        b3, _ = self.block_3(b2)
        b4, _ = self.block_4(b3)
        b5, _ = self.block_5(b4)
        b6, b6_first = self.block_6(b5)
        b6 = self.conv_2(b6)
        out = self.conv_cat(torch.cat([feature, b6, b1, b6_first], 1))
        return self.upsampler(out)
