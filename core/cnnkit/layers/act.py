"""Activation functions by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cnnkit.errors import ConfigError, unknown


class SquaredReLU(nn.Module):
    """``relu(x)^2``: So et al. (2021), "Primer: Searching for Efficient Transformers for Language Modeling"."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the square of the positive part."""
        return x.relu().square()


class QuickGELU(nn.Module):
    """``x sigmoid(1.702 x)``, the approximation of Hendrycks and Gimpel (2016), "Gaussian Error Linear Units"."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to every element."""
        return x * torch.sigmoid(1.702 * x)


class StarReLU(nn.Module):
    """``scale * relu(x)^2 + shift``: Yu et al. (2024), "MetaFormer Baselines for Vision".

    Both scalars are learnt. They start, as the paper derives, where a standard normal comes out with mean 0 and variance 1: its squared
    positive part has mean 1/2 and variance 5/4. (The official code starts at 1 and 0.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), 0.8**0.5))
        self.bias = nn.Parameter(torch.full((1,), -0.5 * 0.8**0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to every element."""
        return torch.addcmul(self.bias, self.scale, x.relu().square())


ACTS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "squared_relu": SquaredReLU,
    "star_relu": StarReLU,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "quick_gelu": QuickGELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "hard_swish": nn.Hardswish,
    "hard_sigmoid": nn.Hardsigmoid,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "none": nn.Identity,
}
_INPLACE = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid)


def get_act(name: str, *, negative_slope: float = 0.01, inplace: bool = False) -> nn.Module:
    """Return a new activation module.

    Args:
        name: A key of :data:`ACTS`, for example ``"relu"``, ``"gelu"``, ``"silu"`` or ``"none"``.
        negative_slope: For ``"leaky_relu"``.
        inplace: Overwrite the input where the function can; it saves memory, and must not be used on
            a tensor that something else still reads.

    Raises:
        ConfigError: If the name is unknown.
    """
    if name not in ACTS:
        raise ConfigError(unknown("activation", name, ACTS))
    act = ACTS[name]()
    if isinstance(act, nn.LeakyReLU):
        act.negative_slope = negative_slope
    if inplace and isinstance(act, _INPLACE):
        act.inplace = True
    return act
