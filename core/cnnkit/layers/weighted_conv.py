"""Weighted convolution: Cammarasana and Patane (2025), "Optimal Weighted Convolution for Classification and Denosing".

An ordinary kernel treats all its places alike. Here a fixed density scales the weight of every place by its distance from the centre::

    y = x * (w . phi),    phi[i, j] = a[i] a[j],    a = (..., a_2, a_1, 1, a_1, a_2, ...)

``phi`` is symmetric, 1 at the centre and not learned: a hyper-parameter of one number per distance, found by a search without derivatives
(:func:`search_profile`). There are as many weights as before, and for inference ``w . phi`` is an ordinary kernel (:meth:`merged`).
Gradient descent on ``w`` is descent on ``v = w . phi`` with a learning rate of ``phi^2`` per place and a start of ``w . phi``: what the
density changes is how training goes, not what can be represented.

Any network takes it by one call::

    weigh_convolutions(model, {3: (0.8,), 5: (0.2, 0.8)})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnkit.errors import ConfigError
from cnnkit.layers.conv import same_padding
from cnnkit.layers.nd import check_dims, conv, tupled
from cnnkit.registry import Entry

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def density(profile: Sequence[float], dims: int = 2, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return ``phi``, ``(k, ..., k)`` with ``k = 2 * len(profile) + 1``.

    Args:
        profile: Density along an axis, from the border to the neighbour of the centre, where it is 1.
        dims: Number of spatial dimensions.
        dtype: Type of the result.
    """
    along = torch.tensor((*profile, 1.0, *reversed(profile)), dtype=dtype)
    phi = along
    for _ in range(check_dims(dims) - 1):
        phi = phi.unsqueeze(-1) * along
    return phi


class WeightedConv(nn.Module):
    """A convolution whose kernel is scaled by a fixed density.

    The density is stored with the weights: a file from one density gives the same function under another.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, out_channels, *spatial / stride)``, rounded up with the default padding.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        profile: As for :func:`density`; the kernel's side is ``2 * len(profile) + 1``.
        dims: Number of spatial dimensions: 1, 2 or 3.
        stride: Stride, one or one per dimension.
        padding: Zeros on each side, or ``"same"``; by default what keeps the size at stride 1.
        dilation: Dilation, one or one per dimension.
        groups: Groups of the convolution; ``in_channels`` makes it depthwise.
        bias: Whether the convolution has a bias.
        device: Where the parameters live.
        dtype: Their type.
    """

    phi: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        profile: Sequence[float] = (0.8,),
        *,
        dims: int = 2,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] | None = None,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        kernel_size = (2 * len(profile) + 1,) * check_dims(dims)
        if padding is None:
            padding = same_padding(kernel_size, dilation, dims=dims)
        self.options: dict[str, Any] = {
            "stride": tupled(stride, dims),
            "padding": padding if isinstance(padding, str) else tupled(padding, dims),
            "dilation": tupled(dilation, dims),
            "groups": groups,
        }
        self.in_channels, self.out_channels, self.kernel_size, self.dims = in_channels, out_channels, kernel_size, dims
        # Drawn and checked as PyTorch's own.
        plain = self._plain(bias=bias, device=device, dtype=dtype)
        self.weight, self.bias = plain.weight, plain.bias
        self.register_buffer("phi", density(profile, dims, dtype=plain.weight.dtype).to(plain.weight.device))

    def _plain(self, **how: Any) -> Any:
        return conv(self.dims)(self.in_channels, self.out_channels, self.kernel_size, **self.options, **how)  # type: ignore[arg-type]

    @classmethod
    def of(cls, plain: nn.Conv1d | nn.Conv2d | nn.Conv3d, profile: Sequence[float]) -> WeightedConv:
        """Return a weighted convolution with the settings and weights of an ordinary one.

        Args:
            plain: The convolution; its parameters are shared.
            profile: As for :func:`density`, for its kernel.

        Raises:
            ConfigError: If its kernel has other sides than the profile, or its padding is not of zeros.
        """
        sides = 2 * len(profile) + 1
        if any(side != sides for side in plain.kernel_size):
            raise ConfigError(f"a profile of {len(profile)} values is for kernels of side {sides}, and this one has {plain.kernel_size}")
        if plain.padding_mode != "zeros":
            raise ConfigError(f"weighted convolutions pad with zeros, and this one with padding_mode={plain.padding_mode!r}")
        weighted = cls(
            plain.in_channels,
            plain.out_channels,
            profile,
            dims=len(plain.kernel_size),
            stride=plain.stride,
            padding=plain.padding,
            dilation=plain.dilation,
            groups=plain.groups,
            bias=plain.bias is not None,
            device="meta",
        )
        weighted.weight, weighted.bias = plain.weight, plain.bias
        weighted.phi = density(profile, weighted.dims, dtype=plain.weight.dtype).to(plain.weight.device)
        return weighted.train(plain.training)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with the scaled kernel."""
        return _CONV[self.dims](x, self.weight * self.phi, self.bias, **self.options)

    def merged(self) -> nn.Module:
        """Return an ordinary convolution with the scaled kernel, for inference."""
        plain = self._plain(bias=self.bias is not None, device="meta")
        plain.weight = nn.Parameter((self.weight * self.phi).detach())
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias.detach().clone())
        return plain

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, " + ", ".join(f"{k}={v}" for k, v in self.options.items())


def weigh_convolutions(model: nn.Module, profiles: Mapping[int, Sequence[float]]) -> int:
    """Replace convolutions by weighted ones in place, with the weights that they have, and return how many there were.

    Args:
        model: Any model. Kernels of unequal sides and subclasses of PyTorch's convolutions stay as they are.
        profiles: A profile for :func:`density` for every side of a kernel that is to be weighted, as ``{3: (0.8,)}``.

    Raises:
        ConfigError: If a profile does not belong to kernels of its side, or a convolution does not pad with zeros.
    """
    for side, profile in profiles.items():
        if side != 2 * len(profile) + 1:
            raise ConfigError(f"a profile of {len(profile)} values is for kernels of side {2 * len(profile) + 1}, not {side}")
    plain: dict[str, Any] = {name: module for name, module in model.named_modules() if name and type(module) in _PLAIN}
    sides = {name: module.kernel_size[0] for name, module in plain.items() if len(set(module.kernel_size)) == 1}
    weighted = {name: WeightedConv.of(plain[name], profiles[side]) for name, side in sides.items() if side in profiles}
    for name, module in weighted.items():
        model.set_submodule(name, module)
    return len(weighted)


def search_profile(
    score: Callable[[tuple[float, ...]], float], start: Sequence[float], *, step: float = 0.2, least: float = 0.02, low: float = 0.05
) -> tuple[tuple[float, ...], dict[tuple[float, ...], float]]:
    """Look for the profile with the highest score by a compass search: go where a step improves, halve the step where none does.

    Compare like with like: let ``score`` train from the same seed each time and judge on images that serve for nothing else.

    Args:
        score: Quality of a profile, higher is better; it is asked once for each.
        start: First profile, for example ones: the ordinary convolution.
        step: First step of every value.
        least: The search ends when the step is smaller.
        low: No value goes below.

    Returns:
        The best profile, and the scores of all that were tried, in their order.
    """
    best = tuple(float(value) for value in start)
    tried = {best: score(best)}
    while step >= least:
        steps = [(index, sign * step) for index in range(len(best)) for sign in (1, -1)]
        around = [tuple(round(max(v + s * (i == index), low), 6) for i, v in enumerate(best)) for index, s in steps]
        for profile in around:
            if profile not in tried:
                tried[profile] = score(profile)
        top = max(around, key=tried.__getitem__, default=best)
        if tried[top] > tried[best]:
            best = top
        else:
            step /= 2
    return best, tried


LAYERS = {
    "weighted_conv": Entry(
        "cnnkit.layers.weighted_conv:WeightedConv",
        paper="weighted-conv",
        summary="Convolution whose kernel is scaled by a fixed density of the distance to its centre (Cammarasana and Patane, 2025).",
        dims=(1, 2, 3),
    ),
}
