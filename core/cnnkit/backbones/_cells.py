"""What networks of searched cells share: a cell as data, the module that computes it, and the auxiliary head.

A cell reads the outputs of the two cells before it, brings both to its width, and then, block by block, applies an operation to each of
two states and adds the results to a new state. Names of parameters are those of the published weights of NASNet. Padding is
TensorFlow's throughout.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnkit.errors import ConfigError, InputError, unknown
from cnnkit.layers.drop import DropPath
from cnnkit.layers.nd import avg_pool, batch_norm, conv
from cnnkit.layers.pool import global_pool
from cnnkit.layers.same import padded_conv

Block = tuple[str, int, str, int]
"""Two operations, each with the state that it reads: 0 is the cell before, 1 the one before that, the others the blocks in order."""


class Design(NamedTuple):
    """A cell as data: its blocks, and the states that it returns."""

    blocks: Sequence[Block]
    output: Sequence[int]


OPERATIONS = ("identity", "separable_3", "separable_5", "separable_7", "avg_pool_3", "max_pool_3", "max_pool_5", "max_pool_7")
POOL: dict[str, dict[int, Callable[..., Tensor]]] = {
    "avg": {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d},
    "max": {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d},
}


class SamePool(nn.Module):
    """Pooling with TensorFlow's padding: ``ceil(spatial / stride)`` positions.

    Shapes:
        x: ``(B, C, *spatial)``; the result is ``(B, C, *ceil(spatial / stride))``.

    Args:
        kind: ``"avg"`` or ``"max"``.
        kernel_size: Side of the cells.
        stride: Stride.
        count_border: Whether an average counts the zeros outside.
    """

    def __init__(self, kind: str, kernel_size: int, *, stride: int, count_border: bool = False) -> None:
        super().__init__()
        self.kind, self.kernel_size, self.stride, self.count_border = kind, kernel_size, stride, count_border

    def forward(self, x: Tensor) -> Tensor:
        """Return the means or the maxima."""
        k, s = self.kernel_size, self.stride
        totals = [max((-(-size // s) - 1) * s + k - size, 0) for size in x.shape[2:]]
        pool = POOL[self.kind][len(totals)]
        if len(totals) < 3 and not self.count_border:
            # The last cell may overhang by one: the same padding, without a copy.
            own = {"count_include_pad": False} if self.kind == "avg" else {}
            return pool(x, k, s, [total // 2 for total in totals], ceil_mode=True, **own)
        # torch's pooling in three dimensions refuses an input that is smaller than the kernel, whatever the padding.
        pads = [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
        if self.kind == "max":
            return pool(F.pad(x, pads, value=float("-inf")), k, s)
        means = pool(F.pad(x, pads), k, s)
        return means if self.count_border else means / pool(F.pad(torch.ones_like(x[:1, :1]), pads), k, s)


class SeparableConv(nn.Module):
    """A depthwise and a 1x1 convolution.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the depthwise kernel.
        stride: Its stride.
        dims: Number of spatial dimensions.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int, dims: int) -> None:
        super().__init__()
        self.depthwise_conv2d = padded_conv(
            in_channels, in_channels, kernel_size, dims=dims, stride=stride, groups=in_channels, padding="same"
        )
        self.pointwise_conv2d = conv(dims)(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both."""
        return self.pointwise_conv2d(self.depthwise_conv2d(x))


class Separable(nn.Module):
    """Separable convolution and batch normalisation, twice, with ReLU before each; the first ReLU is the cell's.

    Shapes:
        x: ``(B, in_channels, *spatial)``, rectified; the result is ``(B, out_channels, *ceil(spatial / stride))``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the depthwise kernels.
        stride: Stride of the first.
        dims: Number of spatial dimensions.
        norm_eps: Added to the variances.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int, dims: int, norm_eps: float) -> None:
        super().__init__()
        self.separable_1 = SeparableConv(in_channels, out_channels, kernel_size, stride=stride, dims=dims)
        self.bn_sep_1 = batch_norm(dims)(out_channels, eps=norm_eps)
        self.act = nn.ReLU(inplace=True)
        self.separable_2 = SeparableConv(out_channels, out_channels, kernel_size, stride=1, dims=dims)
        self.bn_sep_2 = batch_norm(dims)(out_channels, eps=norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both."""
        return self.bn_sep_2(self.separable_2(self.act(self.bn_sep_1(self.separable_1(x)))))


class Project(nn.Module):
    """ReLU, if asked for, then a 1x1 convolution and batch normalisation.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride.
        rectify: Whether there is a ReLU.
        dims: Number of spatial dimensions.
        norm_eps: Added to the variance.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, rectify: bool = True, dims: int = 2, norm_eps: float = 1e-3
    ) -> None:
        super().__init__()
        self.act = nn.ReLU() if rectify else nn.Identity()
        self.conv = conv(dims)(in_channels, out_channels, 1, stride=stride, bias=False)
        self.bn = batch_norm(dims)(out_channels, eps=norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the three in order."""
        return self.bn(self.conv(self.act(x)))


class Cell(nn.Module):
    """One cell.

    Shapes:
        now, before: ``(B, channels, *spatial)`` each; ``before`` may have twice the size. The result is ``(B, out_channels, *spatial)``,
        at half the size of ``now`` with ``stride=2``.

    Args:
        now: Channels of the output of the cell before.
        before: Channels of the one before that.
        width: Channels of every state.
        design: The cell's blocks and outputs.
        stride: What strides the operations on the two inputs.
        align: How ``before`` comes to the shape of ``now``: ``"project"``, ``"reduce"`` where it is twice as large, or ``"none"`` in the
            first cell of a network, where both are the same.
        dims: Number of spatial dimensions.
        norm_eps: Added to the variances.
        count_border: Whether strided averages count the zeros outside.
        drop_path: Probability that an operation is dropped while training.

    Raises:
        ConfigError: If an operation is unknown.
    """

    def __init__(
        self,
        now: int,
        before: int,
        width: int,
        *,
        design: Design,
        stride: int,
        align: str,
        dims: int,
        norm_eps: float,
        count_border: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.align, self.stride = align, stride
        self.blocks: list[Block] = [(left, i, right, j) for left, i, right, j in design[0]]
        self.output = list(design[1])
        self.make: dict[str, Any] = {"dims": dims, "norm_eps": norm_eps}
        self.conv_1x1 = Project(now, width, **self.make)
        if align == "project":
            self.conv_prev_1x1 = Project(before, width, **self.make)
        elif align == "reduce":
            # Every second position from the first on, and from the second on: none is left out.
            self.path_1, self.path_2 = (
                nn.Sequential(OrderedDict(conv=conv(dims)(before, width // 2, 1, stride=2, bias=False))) for _ in range(2)
            )
            self.final_path_bn: nn.Module = batch_norm(dims)(width, eps=norm_eps)
        channels = [width, before if align == "none" else width] + [width] * len(self.blocks)
        for index, (left, i, right, j) in enumerate(self.blocks):
            self.add_module(f"comb_iter_{index}_left", self._operation(left, i, channels[i], width, count_border))
            self.add_module(f"comb_iter_{index}_right", self._operation(right, j, channels[j], width, count_border))
        self.wide = [state for state in self.output if channels[state] != width]
        for state in self.wide:
            self.add_module(f"reduction_{state}", Project(channels[state], width, rectify=False, **self.make))
        self.out_channels = width * len(self.output)
        self.drop_path = DropPath(drop_path)

    def _operation(self, name: str, state: int, channels: int, width: int, count_border: bool) -> nn.Module:
        """Return an operation; on one of the cell's inputs it has the cell's stride."""
        if name not in OPERATIONS:
            raise ConfigError(unknown("operation", name, OPERATIONS))
        stride = self.stride if state < 2 else 1
        if name == "identity":
            plain = stride == 1 and channels == width
            return nn.Identity() if plain else Project(channels, width, stride=stride, **self.make)
        kind, size = name[:-2], int(name[-1])
        if kind == "separable":
            return Separable(channels, width, size, stride=stride, **self.make)
        pool = SamePool(kind[:3], size, stride=stride, count_border=count_border and stride > 1)
        return pool if channels == width else nn.Sequential(pool, Project(channels, width, rectify=False, **self.make))

    def forward(self, now: Tensor, before: Tensor) -> Tensor:
        """Compute the states in order and concatenate those that are returned."""
        states = [self.conv_1x1(now), self._aligned(before)]
        rectified: dict[int, Tensor] = {}
        pooled: dict[tuple[str, int], Tensor] = {}

        def apply(name: str, state: int, operation: nn.Module) -> Tensor:
            if name == "identity":
                return operation(states[state])
            if name.startswith("separable"):
                if state not in rectified:
                    rectified[state] = F.relu(states[state])
                return self.drop_path(operation(rectified[state]))
            if not isinstance(operation, SamePool):
                return self.drop_path(operation(states[state]))
            if (name, state) not in pooled:
                pooled[name, state] = operation(states[state])
            return self.drop_path(pooled[name, state])

        for index, (left, i, right, j) in enumerate(self.blocks):
            first = apply(left, i, self.get_submodule(f"comb_iter_{index}_left"))
            states.append(first + apply(right, j, self.get_submodule(f"comb_iter_{index}_right")))
        for state in self.wide:
            states[state] = self.get_submodule(f"reduction_{state}")(states[state])
        return torch.cat([states[state] for state in self.output], 1)

    def _aligned(self, before: Tensor) -> Tensor:
        """Bring the older input to the width and size of the newer one."""
        if self.align == "project":
            return self.conv_prev_1x1(before)
        if self.align == "none":
            return before
        x = F.relu(before)
        shifted = F.pad(x, (-1, 1) * (x.ndim - 2))
        return self.final_path_bn(torch.cat([self.path_1(x), self.path_2(shifted)], 1))


class AuxiliaryHead(nn.Module):
    """The second classifier, at two thirds of the depth.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, num_classes)``.

    Args:
        in_channels: Channels of the features.
        num_classes: Outputs.
        kernel_size: Positions that are left after the pooling, at the training's image size.
        dims: Number of spatial dimensions.
        norm_eps: Added to the variances.
    """

    def __init__(self, in_channels: int, num_classes: int, kernel_size: int, *, dims: int, norm_eps: float) -> None:
        super().__init__()
        self.least = 3 * kernel_size + 2
        self.pool = avg_pool(dims)(5, stride=3)
        self.proj = conv(dims)(in_channels, 128, 1, bias=False)
        self.aux_bn0 = batch_norm(dims)(128, eps=norm_eps)
        self.conv = conv(dims)(128, 768, kernel_size, bias=False)
        self.aux_bn1 = batch_norm(dims)(768, eps=norm_eps)
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the auxiliary logits.

        Raises:
            InputError: If the features are too small for the head's kernels.
        """
        if min(x.shape[2:]) < self.least:
            raise InputError(
                f"the auxiliary head needs a grid of at least {self.least} positions and got {tuple(x.shape[2:])}; train with larger "
                "images, or without it (aux_logits=False)"
            )
        x = self.act(self.aux_bn0(self.proj(self.pool(x))))
        return self.fc(global_pool(self.act(self.aux_bn1(self.conv(x)))))
