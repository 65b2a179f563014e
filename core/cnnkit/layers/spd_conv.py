"""Sunkara and Luo (2022), "No More Strided Convolutions or Pooling: A New CNN Building Block for Low-Resolution Images and Small Objects".

A strided convolution looks at some positions more often than at others, and pooling forgets where it looked: fine detail is lost
early. SPD-Conv reduces the size without a loss: the positions of every ``s x s`` cell move into the channels (space to depth), and
a convolution of stride 1 decides what to keep of them::

    f_{i,j} = x[i::s, j::s];    y = W * [f_{0,0}, f_{1,0}, ..., f_{s-1,s-1}]

A strided convolution is the special case of a ``W`` that is zero nearly everywhere, so that :func:`replace_strides` turns any network
into one without strides that starts as the same function. (The paper trains from scratch, and its ResNets have no first pooling.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnkit.errors import ConfigError
from cnnkit.layers.conv import same_padding
from cnnkit.layers.nd import AVG_POOL, CONV, MAX_POOL, check_dims, conv, tupled
from cnnkit.registry import Entry

_CONVS, _AVG_POOLS, _MAX_POOLS = tuple(CONV.values()), tuple(AVG_POOL.values()), tuple(MAX_POOL.values())


def space_to_depth(x: Tensor, scale: int | Sequence[int] = 2, *, groups: int = 1) -> Tensor:
    """Move the positions of every cell into the channels, cell by cell; nothing is lost.

    The slices follow one another with the offset along the first axis changing fastest, the order of the paper; each holds all
    channels in their order. Sides that the scale does not divide are filled up with zeros at the end.

    Shapes:
        x: ``(B, C, *spatial)``; the result is ``(B, C * scale ** dims, *ceil(spatial / scale))``.

    Args:
        x: The features.
        scale: Side of a cell, one or one per dimension.
        groups: Keep the channels of so many groups together, each group with slices of its own, as a grouped convolution needs.
    """
    dims = x.ndim - 2
    scales = tupled(scale, dims)
    missing = [-side % s for side, s in zip(x.shape[2:], scales, strict=True)]
    if any(missing):
        x = F.pad(x, [amount for more in reversed(missing) for amount in (0, more)])
    cells = [side // s for side, s in zip(x.shape[2:], scales, strict=True)]
    axes = [number for pair in zip(cells, scales, strict=True) for number in pair]
    x = x.reshape(x.shape[0], groups, x.shape[1] // groups, *axes)
    places, offsets = range(3, 3 + 2 * dims, 2), range(4, 4 + 2 * dims, 2)
    return x.permute(0, 1, *reversed(offsets), 2, *places).reshape(x.shape[0], -1, *cells)


def depth_to_space(x: Tensor, scale: int | Sequence[int] = 2, *, groups: int = 1) -> Tensor:
    """Undo :func:`space_to_depth`.

    Shapes:
        x: ``(B, C * scale ** dims, *spatial)``; the result is ``(B, C, *(spatial * scale))``.

    Args:
        x: The features.
        scale: Side of a cell, one or one per dimension.
        groups: The groups that were kept together.
    """
    dims = x.ndim - 2
    scales = tupled(scale, dims)
    channels = x.shape[1] // (groups * math.prod(scales))
    split = x.reshape(x.shape[0], groups, *reversed(scales), channels, *x.shape[2:])
    # Of each axis the places, then the offsets, which are counted from the last axis on.
    pairs = [axis for index in range(dims) for axis in (3 + dims + index, 1 + dims - index)]
    sides = [side * s for side, s in zip(x.shape[2:], scales, strict=True)]
    return split.permute(0, 1, 2 + dims, *pairs).reshape(x.shape[0], groups * channels, *sides)


@dataclass(frozen=True)
class _Window:
    """The window of a strided operation along one axis, for the number of its outputs."""

    reach: int
    stride: int
    padding: int
    ceil: bool = False

    def outputs(self, side: int) -> int:
        """Return how many outputs an input of a length has."""
        room = side + 2 * self.padding - self.reach
        if not self.ceil:
            return room // self.stride + 1
        count = -(-room // self.stride) + 1
        # The last window has to begin in the input, or in the padding before it.
        return count - 1 if (count - 1) * self.stride >= side + self.padding else count


class SPDConv(nn.Module):
    """Space to depth, then a convolution of stride 1: what takes the place of a strided convolution.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, out_channels, *ceil(spatial / scale))``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Size of the kernel, in cells, odd; one or one per dimension.
        scale: Side of a cell, one or one per dimension.
        dims: Number of spatial dimensions: 1, 2 or 3.
        groups: Groups of the convolution; every group has the slices of its own channels.
        bias: Whether the convolution has a bias.
        device: Where the parameters live.
        dtype: Their type.

    Raises:
        ConfigError: If a side of the kernel is even.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        *,
        scale: int | Sequence[int] = 2,
        dims: int = 2,
        groups: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        size: tuple = tupled(kernel_size, check_dims(dims))
        if any(side % 2 == 0 for side in size):
            raise ConfigError(f"kernel_size={kernel_size!r} has no centre: every side must be odd")
        self.scale = tupled(scale, dims)
        self.groups = groups
        self.windows: tuple[_Window, ...] | None = None
        padding: tuple = same_padding(size, dims=dims)
        self.conv = conv(dims)(
            in_channels * math.prod(self.scale), out_channels, size, padding=padding, groups=groups, bias=bias, device=device, dtype=dtype
        )

    @classmethod
    @torch.no_grad()
    def from_conv(cls, layer: nn.Module) -> SPDConv:
        """Return a layer that computes what a strided convolution computes, at every input size, and can learn more.

        Its kernel is the smallest that covers the old one; ``.conv.reset_parameters()`` draws it anew.

        Raises:
            ConfigError: If the layer is not an ordinary convolution that pads with zeros.
        """
        plain: Any = layer
        if type(layer) not in _CONVS or plain.padding_mode != "zeros" or isinstance(plain.padding, str):
            raise ConfigError(f"{layer} cannot be replaced: only an ordinary convolution whose padding is a number of zeros can")
        weight, dims = plain.weight, plain.weight.ndim - 2
        # Along an axis, tap j of the old kernel reads position d j - p of the output's own cell: cell and offset.
        taps = [
            [divmod(d * j - p, s) for j in range(k)]
            for k, s, p, d in zip(plain.kernel_size, plain.stride, plain.padding, plain.dilation, strict=True)
        ]
        reach = [max(abs(cell) for cell, _ in axis) for axis in taps]
        new = cls(
            plain.in_channels,
            plain.out_channels,
            [2 * r + 1 for r in reach],
            scale=plain.stride,
            dims=dims,
            groups=plain.groups,
            bias=plain.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        new.windows = tuple(
            _Window(d * (k - 1) + 1, s, p)
            for k, s, p, d in zip(plain.kernel_size, plain.stride, plain.padding, plain.dilation, strict=True)
        )
        steps = [math.prod(plain.stride[:axis]) for axis in range(dims)]
        sliced = new.conv.weight.zero_().unflatten(1, (math.prod(plain.stride), -1))
        for index in itertools.product(*[range(k) for k in plain.kernel_size]):
            hits = [taps[axis][j] for axis, j in enumerate(index)]
            part = sum(offset * step for (_, offset), step in zip(hits, steps, strict=True))
            cells = tuple(cell + r for (cell, _), r in zip(hits, reach, strict=True))
            sliced[(slice(None), part, slice(None), *cells)] = weight[(..., *index)]
        if plain.bias is not None:
            new.conv.bias = nn.Parameter(plain.bias.clone())
        return new

    @classmethod
    @torch.no_grad()
    def from_pool(cls, layer: nn.Module, channels: int, *, like: Tensor) -> SPDConv:
        """Return a layer in the place of a strided pooling: between the same numbers of channels, and at first the mean over its window.

        That is what an average pooling computes (at the border: with zeros counted), and not what a max pooling does.

        Args:
            layer: The pooling.
            channels: Channels of its input.
            like: A tensor with the device and the type of the new parameters.
        """
        pool: Any = layer
        dims = next(dims for dims in CONV if isinstance(layer, (AVG_POOL[dims], MAX_POOL[dims])))
        size, stride, padding = (tupled(value, dims) for value in (pool.kernel_size, pool.stride, pool.padding))
        dilation = tupled(getattr(pool, "dilation", 1), dims)
        words: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "device": like.device, "dtype": like.dtype}
        mean: Any = conv(dims)(channels, channels, size, bias=False, **words)  # type: ignore[arg-type]
        mean.weight.zero_()
        mean.weight[range(channels), range(channels)] = 1 / math.prod(size)
        new = cls.from_conv(mean)
        new.windows = tuple(
            _Window(d * (k - 1) + 1, s, p, pool.ceil_mode) for k, s, p, d in zip(size, stride, padding, dilation, strict=True)
        )
        return new

    def forward(self, x: Tensor) -> Tensor:
        """Rearrange and convolve."""
        cells = space_to_depth(x, self.scale, groups=self.groups)
        if self.windows is None:
            return self.conv(cells)
        # What was replaced may have had more outputs than there are cells, or fewer.
        sizes = [window.outputs(side) for window, side in zip(self.windows, x.shape[2:], strict=True)]
        more = [max(size - have, 0) for size, have in zip(sizes, cells.shape[2:], strict=True)]
        if any(more):
            cells = F.pad(cells, [amount for extra in reversed(more) for amount in (0, extra)])
        y = self.conv(cells)
        return y[(..., *[slice(size) for size in sizes])] if list(y.shape[2:]) != sizes else y


def replace_strides(model: nn.Module, example: Tensor) -> int:
    """Replace every strided convolution and pooling of a model by an :class:`SPDConv`, in place, and return how many there were.

    Convolutions keep their function, average poolings too (at the border: with zeros counted); a max pooling begins as the mean over
    its window. All shapes stay. Functions that a model calls without a module are not seen, nor poolings that the example does not reach.

    Args:
        model: The model; its mode stays.
        example: An input that it accepts.

    Raises:
        ConfigError: If a strided convolution is not an ordinary one.
    """
    seen: dict[nn.Module, Tensor] = {}
    pools = [module for module in model.modules() if isinstance(module, (*_AVG_POOLS, *_MAX_POOLS)) and _is_strided(module)]
    handles = [pool.register_forward_pre_hook(lambda pool, args: seen.setdefault(pool, args[0])) for pool in pools]
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(example)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    made: dict[nn.Module, SPDConv] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module not in made:
            if isinstance(module, _CONVS) and _is_strided(module):
                made[module] = SPDConv.from_conv(module)
            elif module in seen:
                made[module] = SPDConv.from_pool(module, seen[module].shape[1], like=seen[module])
            else:
                continue
        model.set_submodule(name, made[module].train(module.training))
    return len(made)


def _is_strided(module: nn.Module) -> bool:
    stride: Any = module.stride
    return any(step > 1 for step in (stride if isinstance(stride, tuple) else (stride,)))


LAYERS = {
    "spd_conv": Entry(
        "cnnkit.layers.spd_conv:SPDConv",
        paper="spd-conv",
        summary="Space to depth and a convolution of stride 1, in place of strided convolution and pooling (Sunkara and Luo, 2022).",
        dims=(1, 2, 3),
    ),
}
