"""SIC: Wang, Liu and Foroosh (2016), single intra-channel convolution, topological subdivisioning and the spatial bottleneck.

"Design of Efficient Convolutional Layers using Single Intra-channel Convolution, Topological Subdivisioning and Spatial "Bottleneck"
Structure". A convolution of ``n`` channels with kernels of ``k x k`` filters every pair of channels. Here every channel is filtered
once, and a projection ``P`` mixes them; several such layers take the place of one::

    y = x + relu(norm(P (K * x)))        (k^2 + n) n  multiply-adds per pixel, in place of k^2 n^2

Two things make the projection cheaper. With the channels laid out as a grid of ``n_1 x ... x n_s``, an output can be linked to the
``c_1 x ... x c_s`` channels around its own place alone, across the border to the other side::

    (k^2 + c_1 ... c_s) n

And it can stand on a small map: a filter of stride ``k`` before it, and one that brings the size back after it::

    (2 + n / k^2) n
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnkit.errors import ConfigError
from cnnkit.layers.act import get_act
from cnnkit.layers.conv import same_padding
from cnnkit.layers.nd import check_dims, conv, conv_transpose, tupled
from cnnkit.layers.norm import get_norm
from cnnkit.registry import Entry


class SubdividedProjection(nn.Module):
    """A projection of the channels in which every output is linked to the neighbours of its place in a grid of channels.

    Shapes:
        x: ``(B, prod(grid), *spatial)``; the result has the same shape.

    Args:
        grid: Sides of the grid; the last one runs fastest.
        reach: Sides of the neighbourhood, each from 1 to that of the grid. Of an even one, the place itself is right of the middle.
        dims: Number of spatial dimensions: 1, 2 or 3.

    Raises:
        ConfigError: If a neighbourhood does not fit the grid.
    """

    neighbours: Tensor

    def __init__(self, grid: Sequence[int], reach: Sequence[int], *, dims: int = 2) -> None:
        super().__init__()
        if len(grid) != len(reach) or any(not 1 <= side <= whole for side, whole in zip(reach, grid, strict=True)):
            raise ConfigError(f"a neighbourhood of {tuple(reach)} does not fit a grid of {tuple(grid)}; give one side each, none longer")
        self.grid, self.reach = tuple(grid), tuple(reach)
        channels, links = math.prod(grid), math.prod(reach)
        # Python's integers: a model on the meta device has places too.
        steps = [math.prod(grid[axis + 1 :]) for axis in range(len(grid))]
        places = [
            sum((at + move - side // 2) % whole * step for at, move, side, whole, step in zip(*axes, strict=True))
            for axes in (
                (place, moves, reach, grid, steps)
                for place in itertools.product(*map(range, grid))
                for moves in itertools.product(*map(range, reach))
            )
        ]
        # Derived from the arguments alone: it follows the model to a device, and stays out of its weights.
        self.register_buffer("neighbours", torch.tensor(places), persistent=False)
        self.links = conv(check_dims(dims))(channels * links, channels, 1, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Project."""
        return self.links(x.index_select(1, self.neighbours))

    def matrix(self) -> Tensor:
        """Return the projection as a matrix with zeros between channels that are not linked, ``(channels, channels)``."""
        weight = self.links.weight.flatten(1)
        places = self.neighbours.view_as(weight)
        return weight.new_zeros(len(weight), len(weight)).scatter_add(1, places, weight)


def _projection(in_channels: int, out_channels: int, grid: Sequence[int] | None, reach: Sequence[int] | None, dims: int) -> nn.Module:
    """A full projection, or one among neighbours."""
    if grid is None or reach is None:
        if grid is not None or reach is not None:
            raise ConfigError("grid and reach say together which channels are linked; give both or none")
        return conv(dims)(in_channels, out_channels, 1, bias=False)
    if not in_channels == out_channels == math.prod(grid):
        raise ConfigError(f"a grid of {tuple(grid)} holds {math.prod(grid)} channels, and the layer has {in_channels} and {out_channels}")
    return SubdividedProjection(grid, reach, dims=dims)


class SIC(nn.Module):
    """One filter per channel, a projection of the channels, a normalisation, an activation, and a shortcut where the shape is kept.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, out_channels, *spatial / stride)``, rounded up for odd kernels.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Size of the filters, one or one per dimension.
        dims: Number of spatial dimensions: 1, 2 or 3.
        stride: Stride of the filters, one or one per dimension.
        grid: How the channels are laid out for a subdivided projection; by default all are linked.
        reach: The neighbourhood of linked channels in the grid.
        norm: Normalisation, for :func:`~cnnkit.layers.norm.get_norm`.
        act: Activation.

    Raises:
        ConfigError: If the grid does not hold the channels, or a name is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        *,
        dims: int = 2,
        stride: int | Sequence[int] = 1,
        grid: Sequence[int] | None = None,
        reach: Sequence[int] | None = None,
        norm: str = "batch",
        act: str = "relu",
    ) -> None:
        super().__init__()
        self.filter = conv(check_dims(dims))(
            in_channels,
            in_channels,
            tupled(kernel_size, dims),  # type: ignore[arg-type]
            stride=tupled(stride, dims),  # type: ignore[arg-type]
            padding=same_padding(kernel_size, dims=dims),  # type: ignore[arg-type]
            groups=in_channels,
            bias=False,
        )
        self.project = _projection(in_channels, out_channels, grid, reach, dims)
        self.norm = get_norm(norm, dims, out_channels)
        self.act = get_act(act)
        self.has_shortcut = in_channels == out_channels and set(tupled(stride, dims)) == {1}

    def forward(self, x: Tensor) -> Tensor:
        """Filter and project."""
        y = self.act(self.norm(self.project(self.filter(x))))
        return x + y if self.has_shortcut else y


class SICStack(nn.Sequential):
    """Several :class:`SIC` layers in a row, in place of one dense convolution with its normalisation and activation.

    Shapes:
        x: As for :class:`SIC`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Size of the filters, one or one per dimension.
        repeats: Number of layers; the first one changes width and size.
        dims: Number of spatial dimensions: 1, 2 or 3.
        stride: Stride of the first layer.
        grid: How the channels of the output are laid out; the first layer is subdivided only if it keeps the width.
        reach: The neighbourhood of linked channels in the grid.
        norm: Normalisation of every layer.
        act: Activation of every layer.

    Raises:
        ConfigError: If there is no layer, the grid does not hold the channels, or a name is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        *,
        repeats: int = 2,
        dims: int = 2,
        stride: int | Sequence[int] = 1,
        grid: Sequence[int] | None = None,
        reach: Sequence[int] | None = None,
        norm: str = "batch",
        act: str = "relu",
    ) -> None:
        if repeats < 1:
            raise ConfigError(f"repeats={repeats} leaves no layer; give 1 or more")
        super().__init__()
        for index in range(repeats):
            before = out_channels if index else in_channels
            links = (grid, reach) if before == out_channels else (None, None)
            step = 1 if index else stride
            self.append(SIC(before, out_channels, kernel_size, dims=dims, stride=step, grid=links[0], reach=links[1], norm=norm, act=act))


class SpatialBottleneck(nn.Module):
    """A projection of the channels on a small map: filters of stride ``k`` before it, filters that bring the size back after it.

    A side that ``k`` does not divide is continued by zeros, and the result cut off.

    Shapes:
        x: ``(B, channels, *spatial)``; the result has the same shape.

    Args:
        channels: Number of channels.
        kernel_size: ``k``, size and stride of both filters, one or one per dimension.
        dims: Number of spatial dimensions: 1, 2 or 3.
        grid: How the channels are laid out for a subdivided projection; by default all are linked.
        reach: The neighbourhood of linked channels in the grid.
        norm: Normalisation, for :func:`~cnnkit.layers.norm.get_norm`.
        act: Activation.

    Raises:
        ConfigError: If the grid does not hold the channels, or a name is unknown.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | Sequence[int] = 2,
        *,
        dims: int = 2,
        grid: Sequence[int] | None = None,
        reach: Sequence[int] | None = None,
        norm: str = "batch",
        act: str = "relu",
    ) -> None:
        super().__init__()
        self.sides = tupled(kernel_size, dims)
        self.shrink = conv(dims)(channels, channels, self.sides, stride=self.sides, groups=channels, bias=False)  # type: ignore[arg-type]
        self.project = _projection(channels, channels, grid, reach, dims)
        self.grow = conv_transpose(dims)(channels, channels, self.sides, stride=self.sides, groups=channels, bias=False)  # type: ignore[arg-type]
        self.norm = get_norm(norm, dims, channels)
        self.act = get_act(act)

    def forward(self, x: Tensor) -> Tensor:
        """Shrink, project and grow, beside the shortcut."""
        size = x.shape[2:]
        short = [-side % k for side, k in zip(size, self.sides, strict=True)]
        y = F.pad(x, [amount for each in reversed(short) for amount in (0, each)]) if any(short) else x
        y = self.grow(self.project(self.shrink(y)))
        for axis, side in enumerate(size if any(short) else (), start=2):
            y = y.narrow(axis, 0, side)
        return x + self.act(self.norm(y))


LAYERS = {
    "sic": Entry(
        "cnnkit.layers.sic:SICStack",
        paper="sic-layer",
        summary="One filter per channel and a projection, several times in place of a dense convolution (Wang et al., 2016).",
        dims=(1, 2, 3),
    ),
    "spatial_bottleneck": Entry(
        "cnnkit.layers.sic:SpatialBottleneck",
        paper="sic-layer",
        summary="A projection of the channels on a map that is shrunk before and grown after it (Wang et al., 2016).",
        dims=(1, 2, 3),
    ),
    "subdivided_projection": Entry(
        "cnnkit.layers.sic:SubdividedProjection",
        paper="sic-layer",
        summary="A projection that links neighbours in a grid of channels alone (Wang et al., 2016).",
        dims=(1, 2, 3),
    ),
}
