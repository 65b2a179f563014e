"""What the Inception networks share: the unit, parallel branches, kernels that span one axis, and the frame of the network.

A block applies several branches to the same input and concatenates what they return. A large kernel is factorised into one
convolution per axis, in two dimensions 1x7 and then 7x1; in one dimension that is a single convolution, in three it is three of them
(1x1x7, 1x7x1 and 7x1x1). Where the paper puts a 1x3 and a 3x1 convolution side by side, there is one branch per axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnkit.backbones._base import FeatureInfo
from cnnkit.backbones._chain import ChainNet
from cnnkit.layers.nd import avg_pool, batch_norm, conv, max_pool


class Along(NamedTuple):
    """A kernel that spans ``size`` positions of one axis and a single one of the others."""

    axis: int
    size: int


class Conv(NamedTuple):
    """What the papers' figures say of one convolution: its width, its kernel, and whether it is strided or without padding."""

    width: int
    kernel: int | Along = 1
    stride: int = 1
    padded: bool = True


class Unit(nn.Module):
    """A convolution without bias, batch normalisation with the papers' epsilon of 1e-3, and ReLU.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, out_channels, *spatial)``, with the size that stride and padding leave.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Size of the kernel along each axis.
        stride: Stride.
        padded: Pad by half the kernel.
        dims: Number of spatial dimensions.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Sequence[int], *, stride: int = 1, padded: bool = True, dims: int = 2
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        padding: tuple = tuple(size // 2 if padded else 0 for size in kernel_size)
        kernel: tuple = tuple(kernel_size)
        self.conv = conv(dims)(in_channels, out_channels, kernel, stride=stride, padding=padding, bias=False)
        self.bn = batch_norm(dims)(out_channels, eps=1e-3)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the three in order."""
        return self.act(self.bn(self.conv(x)))


class Branch(nn.Sequential):
    """Units one after another; ``out_channels`` is what the last one returns."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        self.out_channels = modules[-1].out_channels


class Smooth(nn.Module):
    """Average pooling of size 3 and stride 1, with zeros outside.

    Shapes:
        x: ``(B, C, *spatial)``; the result has the same shape.

    Args:
        dims: Number of spatial dimensions.
        include_pad: Whether the zeros outside count.
    """

    def __init__(self, *, dims: int, include_pad: bool) -> None:
        super().__init__()
        self.include_pad = include_pad
        # torch's pooling in three dimensions refuses an input that is smaller than the kernel, whatever the padding.
        self.pad = dims == 3
        self.pool = avg_pool(dims)(3, stride=1, padding=0 if self.pad else 1, count_include_pad=include_pad)

    def forward(self, x: Tensor) -> Tensor:
        """Return the means."""
        if not self.pad:
            return self.pool(x)
        means = self.pool(F.pad(x, (1,) * 6))
        return means if self.include_pad else means / self.pool(F.pad(torch.ones_like(x[:1, :1]), (1,) * 6))


class Mixed(nn.Module):
    """Parallel branches on one input, concatenated along the channels.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, out_channels, *spatial)``, with the size that the branches leave.

    Args:
        in_channels: Channels of the input.
        branches: Each a sequence of steps, and each step its modules by name: one, or in the last step several in parallel.
    """

    def __init__(self, in_channels: int, branches: Iterable[Sequence[Mapping[str, nn.Module]]]) -> None:
        super().__init__()
        self.names: list[list[list[str]]] = []
        self.out_channels = 0
        for branch in branches:
            self.names.append([list(step) for step in branch])
            for step in branch:
                for name, module in step.items():
                    self.add_module(name, module)
            self.out_channels += sum(getattr(module, "out_channels", in_channels) for module in branch[-1].values())

    def forward(self, x: Tensor) -> Tensor:
        """Apply every branch to ``x``."""
        outputs = []
        for *before, last in self.names:
            y = x
            for (name,) in before:
                y = getattr(self, name)(y)
            outputs += [getattr(self, name)(y) for name in last]
        return torch.cat(outputs, 1)


def numbered(branches: Iterable[nn.Module]) -> list[list[dict[str, nn.Module]]]:
    """Return branches of one module each for :class:`Mixed`, under the names ``branch0``, ``branch1`` and so on."""
    return [[{f"branch{index}": branch}] for index, branch in enumerate(branches)]


@dataclass(frozen=True)
class Parts:
    """Makes the parts of one network.

    Args:
        dims: Number of spatial dimensions.
        width: Factor on all widths.
        aligned: Pad also where the papers do not.
    """

    dims: int
    width: float = 1.0
    aligned: bool = False

    def scaled(self, channels: int) -> int:
        """Return a width of the papers times the factor, at least 2."""
        return channels if self.width == 1.0 else max(round(channels * self.width), 2)

    def unit(self, channels: int, spec: Conv) -> Unit:
        """Return one unit for ``channels`` channels of input."""
        size, axis = (spec.kernel.size, spec.kernel.axis) if isinstance(spec.kernel, Along) else (spec.kernel, None)
        kernel_size = [size if axis in (None, own) else 1 for own in range(self.dims)]
        padded = spec.padded or self.aligned
        return Unit(channels, self.scaled(spec.width), kernel_size, stride=spec.stride, padded=padded, dims=self.dims)

    def units(self, channels: int, *specs: Conv) -> list[Unit]:
        """Return units that follow one another."""
        made: list[Unit] = []
        for spec in specs:
            made.append(self.unit(channels, spec))
            channels = made[-1].out_channels
        return made

    def branch(self, channels: int, *specs: Conv) -> nn.Module:
        """Return one unit, or a sequence of several."""
        made = self.units(channels, *specs)
        return made[0] if len(made) == 1 else Branch(*made)

    def axes(self) -> list[int]:
        """Return the axes from the last to the first: in two dimensions, 1x7 comes before 7x1."""
        return list(reversed(range(self.dims)))

    def per_axis(self, size: int, width: int, last: int, *, axes: Sequence[int] | None = None) -> list[Conv]:
        """Return the factorised convolution: one kernel of ``size`` per axis.

        Args:
            size: Side of the kernel.
            width: Width of all but the last.
            last: Width of the last.
            axes: Order of the axes, by default that of :meth:`axes`.
        """
        *before, end = self.axes() if axes is None else axes
        return [*(Conv(width, Along(axis, size)) for axis in before), Conv(last, Along(end, size))]

    def max_pool(self) -> nn.Module:
        """Return max pooling of size 3 and stride 2."""
        return max_pool(self.dims)(3, stride=2, padding=int(self.aligned))

    def avg_pool(self, *, include_pad: bool) -> nn.Module:
        """Return average pooling of size 3 and stride 1; with ``include_pad`` the zeros outside count."""
        return Smooth(dims=self.dims, include_pad=include_pad)


Make = Callable[[int], nn.Module]
"""Makes a module for so many channels of input; a module without ``out_channels`` keeps their number."""


class InceptionNet(ChainNet):
    """The frame: a chain of units and blocks, global pooling, and a linear layer under the name in ``classifier``.

    Args:
        steps: The chain: what makes each module, by its name.
        levels: Reduction of the pyramid's levels, by the name of the module that makes them.
        parts: Whether it is aligned, and the number of dimensions.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.
    """

    def __init__(
        self,
        steps: Mapping[str, Make],
        levels: Mapping[str, int],
        parts: Parts,
        *,
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
    ) -> None:
        modules: dict[str, nn.Module] = {}
        channels, info = in_chans, FeatureInfo()
        for name, make in steps.items():
            modules[name] = make(channels)
            channels = getattr(modules[name], "out_channels", channels)
            if name in levels:
                info.append({"num_chs": channels, "reduction": levels[name], "module": name})
        super().__init__(
            dims=parts.dims,
            in_chans=in_chans,
            num_classes=num_classes,
            num_features=channels,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )
        self.feature_info = info
        self.chain = list(modules)
        for name, module in modules.items():
            owner, _, leaf = name.rpartition(".")
            if owner and owner not in self._modules:
                self.add_module(owner, nn.Sequential())
            self.get_submodule(owner).add_module(leaf, module)
        if not parts.aligned:
            # 75 pixels leave 37, 35, 17, 15, 7, 3 and 1 positions.
            self.min_size, self.size_slack = 75, 4
        self.add_module(self.classifier, self.new_classifier(num_classes))
