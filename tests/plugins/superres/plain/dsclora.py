"""DSCLoRA the straightforward way: the convolution with its factors, and whole matrices of similarity."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ADAPTED = [f"block_{i}.c{j}_r.eval_conv" for i in range(1, 7) for j in (1, 2, 3)] + ["conv_2.eval_conv", "upsampler.0"]
"""The convolutions that the challenge's code replaces."""


class PlainLoraConv(nn.Conv2d):
    """A convolution of a square kernel whose weight is frozen, with the factors beside it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, rank: int, alpha: float, **options) -> None:
        super().__init__(inputs, outputs, kernel, **options)
        self.lora_A = nn.Parameter(self.weight.new_zeros(rank * kernel, inputs // self.groups * kernel))
        self.lora_B = nn.Parameter(self.weight.new_zeros(outputs * kernel, rank * kernel))
        self.scaling = alpha / rank
        self.weight.requires_grad = False

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with the sum."""
        update = (self.lora_B @ self.lora_A).view(self.weight.shape) * self.scaling
        return F.conv2d(x, self.weight + update, self.bias, self.stride, self.padding, self.dilation, self.groups)


def spatial_similarity(features: Tensor) -> Tensor:
    """Return the cosines between all positions, ``(B, HW, HW)``."""
    flat = features.flatten(2)
    unit = flat / flat.square().sum(1, keepdim=True).sqrt()
    return unit.transpose(1, 2).bmm(unit)


def affinity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return L1 between the matrices."""
    return (spatial_similarity(student) - spatial_similarity(teacher)).abs().mean()


def total_loss(output: Tensor, target: Tensor, students: list[Tensor], teachers: list[Tensor], weight: float) -> Tensor:
    """Return the sum of the pixels' and the features' losses."""
    return (output - target).abs().mean() + weight * torch.stack(list(map(affinity_loss, students, teachers))).mean()
