"""Activation functions by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from cnnkit.errors import ConfigError, unknown

ACTS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
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
