"""E2GC: Jha, Saini, Nag and Mittal (2020), "E2GC: Energy-efficient Group Convolution in Deep Neural Networks".

A grouped convolution is cheap in multiply-adds, and each of them uses values that had to be moved. With a fixed number of groups (32 in
ResNeXt, one per channel in MobileNet) the channels per group, and so the reuse of what was moved, change from layer to layer. E2GC keeps
the group size ``G`` constant instead and lets the number of groups grow with the channels::

    groups = C_in / G;    multiply-adds = C_out G k^d P;    moved = C_in P_in + C_out P + C_out G k^d;    intensity = multiply-adds / moved

``P`` is the number of positions. Larger groups cost multiply-adds, smaller ones cost reuse. Where moving a value costs as much as
``balance`` multiply-adds, in energy or in time, the two costs are equal at the group size whose intensity is ``balance``, which is what
:func:`recommend_group_size` looks for: below it arithmetic waits for data, above it every further channel of a group is paid in full. The
model counts what has to move at least, and knows nothing of how well a machine's own kernels do; :func:`time_group_sizes` asks the machine.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnnkit.errors import ConfigError
from cnnkit.layers.conv import same_padding
from cnnkit.layers.nd import conv, tupled
from cnnkit.registry import Entry

GROUP_SIZES = (1, 2, 4, 8, 16, 32)
"""The group sizes that are compared where nothing else is said."""


def group_size_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int | Sequence[int] = 3,
    *,
    group_size: int,
    dims: int = 2,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] | None = None,
    dilation: int | Sequence[int] = 1,
    bias: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    """Return a grouped convolution with ``group_size`` input channels in every group; 1 makes it depthwise.

    Args:
        in_channels: Channels of the input, a multiple of ``group_size``.
        out_channels: Channels of the output, a multiple of the number of groups.
        kernel_size: One size, or one per dimension.
        group_size: Input channels of a group.
        dims: Number of spatial dimensions: 1, 2 or 3.
        stride: Stride, one or one per dimension.
        padding: Zeros on each side, or ``"same"``; by default what keeps the size at stride 1.
        dilation: Dilation, one or one per dimension.
        bias: Whether the convolution has a bias.
        device: Where the parameters live.
        dtype: Their type.

    Raises:
        ConfigError: If the channels cannot be divided so.
    """
    if not _divides(group_size, in_channels, out_channels):
        fitting = [size for size in range(1, in_channels + 1) if _divides(size, in_channels, out_channels)]
        raise ConfigError(
            f"group_size={group_size} does not divide {in_channels} channels into groups that divide {out_channels}; "
            f"use one of {', '.join(map(str, fitting))}"
        )
    how: Any = {
        "stride": tupled(stride, dims),
        "padding": same_padding(kernel_size, dilation, dims=dims) if padding is None else padding,
        "dilation": tupled(dilation, dims),
        "groups": in_channels // group_size,
        "bias": bias,
        "device": device,
        "dtype": dtype,
    }
    return conv(dims)(in_channels, out_channels, tupled(kernel_size, dims), **how)  # type: ignore[arg-type]


def _divides(group_size: int, in_channels: int, out_channels: int) -> bool:
    return group_size > 0 and in_channels % group_size == 0 and out_channels % (in_channels // group_size) == 0


def grouped_convolutions(model: nn.Module) -> dict[str, Any]:
    """Return the convolutions of more than one group, by name."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds) and module.groups > 1}


def set_group_size(model: nn.Module, group_size: int) -> int:
    """Give every grouped convolution of a model the same group size, in place and with fresh weights; return how many there are.

    Args:
        model: Any model with grouped convolutions, as ResNeXt or a network of depthwise ones.
        group_size: Input channels of a group. It must not be all channels of a layer, which would then no longer be a grouped one.

    Raises:
        ConfigError: If the channels of a layer cannot be divided so; the model is then as it was.
    """
    changed = {}
    for name, module in grouped_convolutions(model).items():
        if name == "":
            raise ConfigError("the model is itself a convolution; make it with group_size_conv")
        if module.padding_mode != "zeros":
            raise ConfigError(f"{name} pads with padding_mode={module.padding_mode!r}; only zeros are supported")
        try:
            changed[name] = group_size_conv(
                module.in_channels,
                module.out_channels,
                module.kernel_size,
                group_size=group_size,
                dims=len(module.kernel_size),
                stride=module.stride,
                padding=module.padding,
                dilation=module.dilation,
                bias=module.bias is not None,
                device=module.weight.device,
                dtype=module.weight.dtype,
            ).train(module.training)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
    for name, module in changed.items():
        model.set_submodule(name, module)
    return len(changed)


@dataclass(frozen=True)
class Cost:
    """What a convolution does for one image.

    Args:
        macs: Multiply-adds.
        weights: Weights that are read, without biases.
        activations: Values of the input that are read and of the output that are written.
    """

    macs: int = 0
    weights: int = 0
    activations: int = 0

    @property
    def moved(self) -> int:
        """Values that are moved at least: all that is read and written, each once."""
        return self.weights + self.activations

    @property
    def intensity(self) -> float:
        """Multiply-adds for every value that is moved."""
        return self.macs / self.moved

    def __add__(self, other: Cost) -> Cost:
        """Return the cost of both."""
        return Cost(self.macs + other.macs, self.weights + other.weights, self.activations + other.activations)


def conv_cost(
    in_channels: int, out_channels: int, kernel_size: Sequence[int], in_size: Sequence[int], out_size: Sequence[int], group_size: int
) -> Cost:
    """Return the cost of a grouped convolution.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Sides of the kernel.
        in_size: Sides of the input.
        out_size: Sides of the output.
        group_size: Input channels of a group.
    """
    weights = out_channels * group_size * math.prod(kernel_size)
    positions = math.prod(out_size)
    return Cost(weights * positions, weights, in_channels * math.prod(in_size) + out_channels * positions)


def group_size_costs(model: nn.Module, example: Tensor, group_sizes: Sequence[int] = GROUP_SIZES) -> dict[int, Cost]:
    """Return the cost of all grouped convolutions of a model together, as if each had this group size.

    Args:
        model: Any model with grouped convolutions; its own group sizes do not matter, and it may be on the ``meta`` device.
        example: An input that it accepts; the cost is for one image.
        group_sizes: Group sizes to compare. Those that do not divide the channels of every layer are left out.

    Raises:
        ConfigError: If the model has no grouped convolution, or no group size fits all.
    """
    layers: list[tuple[Any, tuple[int, ...], tuple[int, ...]]] = []

    def note(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        layers.append((module, tuple(args[0].shape[2:]), tuple(output.shape[2:])))

    grouped = grouped_convolutions(model).values()
    handles = [module.register_forward_hook(note) for module in grouped]
    training = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(example)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    fitting = [size for size in group_sizes if all(_divides(size, module.in_channels, module.out_channels) for module in grouped)]
    if not layers or not fitting:
        raise ConfigError("the model has no grouped convolution" if not layers else f"none of {tuple(group_sizes)} divides every layer")
    return {
        size: sum((conv_cost(m.in_channels, m.out_channels, m.kernel_size, before, after, size) for m, before, after in layers), Cost())
        for size in fitting
    }


def recommend_group_size(model: nn.Module, example: Tensor, *, balance: float, group_sizes: Sequence[int] = GROUP_SIZES) -> int:
    """Return the group size at which arithmetic and movement cost most nearly the same.

    Args:
        model: Any model with grouped convolutions.
        example: An input that it accepts.
        balance: How many multiply-adds cost as much as moving one value, in energy or in time; for the latter see
            :func:`machine_balance`.
        group_sizes: Group sizes to choose from.

    Raises:
        ConfigError: As for :func:`group_size_costs`, or if ``balance`` is not positive.
    """
    if not balance > 0:
        raise ConfigError(f"balance={balance} must be positive")
    costs = group_size_costs(model, example, group_sizes)
    return min(costs, key=lambda size: abs(math.log(costs[size].intensity / balance)))


def match_macs(build: Callable[[float], int], target: int, *, low: float = 0.125, high: float = 8.0, steps: int = 24) -> float:
    """Return the width at which a network has so many multiply-adds: networks of different group sizes compare at equal complexity.

    Args:
        build: Returns the multiply-adds of the network of this width (a factor); they must not fall as the width rises.
        target: Multiply-adds to match.
        low: Smallest width.
        high: Largest width.
        steps: Halvings of the interval on a logarithmic scale.

    Raises:
        ConfigError: If the target is not between the two.
    """
    if not build(low) <= target <= build(high):
        raise ConfigError(f"{target} multiply-adds are not between those of the widths {low} and {high}")
    for _ in range(steps):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if build(middle) <= target else (low, middle)
    return low


def _seconds(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Return the shortest time of some runs after one that does not count."""
    best = math.inf
    for attempt in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start) if attempt else math.inf
    return best


@torch.no_grad()
def machine_balance(device: torch.device | str = "cpu", *, side: int = 1024, repeats: int = 5) -> float:
    """Return how many multiply-adds take as long as moving one value, both at their best.

    Args:
        device: The device to measure.
        side: Side of the matrices that are multiplied; 16 times as many values are copied as one has.
        repeats: Repetitions, of which the shortest counts.
    """
    where = torch.device(device)
    one, other = torch.rand(2, side, side, device=where)
    source = torch.rand(16 * side * side, device=where)
    target = torch.empty_like(source)
    per_mac = _seconds(lambda: one @ other, repeats, where) / side**3
    per_value = _seconds(lambda: target.copy_(source), repeats, where) / (2 * source.numel())  # Read and written.
    return per_value / per_mac


@torch.inference_mode()
def time_group_sizes(model: nn.Module, example: Tensor, group_sizes: Sequence[int] = GROUP_SIZES, *, repeats: int = 5) -> dict[int, float]:
    """Return the seconds per image of a model with each group size, measured where the example lives.

    Args:
        model: Any model with grouped convolutions; it stays as it is.
        example: An input that it accepts.
        group_sizes: Group sizes to compare. Those that do not divide the channels of every layer are left out.
        repeats: Repetitions, of which the shortest counts.

    Raises:
        ConfigError: If the model has no grouped convolution, or no group size fits all.
    """
    seconds = {}
    for size in group_size_costs(model, example, group_sizes):
        other = copy.deepcopy(model).eval()
        set_group_size(other, size)
        seconds[size] = _seconds(lambda other=other: other(example), repeats, example.device) / len(example)  # type: ignore[misc]
    return seconds


LAYERS = {
    "e2gc": Entry(
        "cnnkit.layers.e2gc:group_size_conv",
        paper="e2gc",
        summary="Grouped convolution with a constant number of channels per group, and a choice of that number (Jha et al., 2020).",
        dims=(1, 2, 3),
    ),
}
