"""PyramidNet: Han, Kim and Kim (2017), "Deep Pyramidal Residual Networks".

A residual network usually doubles its channels where it halves its size. Here every one of the ``N`` blocks has a few channels more
than the one before, so that no block carries the change alone::

    D_k = floor(D_0 + alpha k / N)      or, multiplied,      D_k = floor(D_0 alpha^(k / N))
    y   = pad(x) + norm(W2 relu(norm(W1 norm(x))))

A block begins and ends with a normalisation, has no activation before its first convolution and none after the sum. The shortcut
has no parameters: means of 2x2 positions where the size changes, zeros in the new channels. A bottleneck has ``D_k`` channels
inside and four times as many outside.

The paper, and its numbers of parameters, cut widths to integers; all the code of its authors, and so their weights, round them
to the nearest: ``rounding="nearest"``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import torch.nn.functional as F
from torch import Tensor, nn

from cnnkit.backbones._base import Backbone, Family, FeatureInfo, Figures, Layout, Variant
from cnnkit.backbones.resnet import same_conv
from cnnkit.errors import ConfigError, unknown
from cnnkit.layers.drop import DropPath, drop_path_rates
from cnnkit.layers.nd import avg_pool, batch_norm, max_pool

BLOCKS = ("basic", "bottleneck")
STEMS = ("conv", "small")
WIDENINGS = ("add", "multiply")
ROUNDINGS = ("floor", "nearest")


def pyramid_widths(start: int, alpha: float, blocks: int, *, widening: str = "add", rounding: str = "floor") -> list[int]:
    """Return the width of every block.

    Args:
        start: Channels before the first block, ``D_0``.
        alpha: What the last block has more than ``start``: a number of channels, or a factor with ``widening="multiply"``.
        blocks: Number of blocks, ``N``.
        widening: ``"add"`` or ``"multiply"``.
        rounding: ``"floor"`` or ``"nearest"``.

    Raises:
        ConfigError: If a name is unknown, or the widths would fall.
    """
    for word, name, known in (("widening", widening, WIDENINGS), ("rounding", rounding, ROUNDINGS)):
        if name not in known:
            raise ConfigError(unknown(word, name, known))
    if alpha < (0 if widening == "add" else 1):
        raise ConfigError(f"alpha={alpha} would make later blocks narrower; use at least {0 if widening == 'add' else 1}")
    half = Fraction(1, 2) if rounding == "nearest" else Fraction(0)
    # Fractions, because a sum of floats may fall short of the integer that it should reach.
    steps = range(1, blocks + 1)
    if widening == "add":
        return [math.floor(start + Fraction(alpha) * step / blocks + half) for step in steps]
    return [math.floor(Fraction(start * alpha ** (step / blocks)).limit_denominator(10**9) + half) for step in steps]


class PyramidBlock(nn.Module):
    """Two 3x3 convolutions, or a bottleneck, between normalisations, and a shortcut that is padded with zeros.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, out_channels, *ceil(spatial / stride))`` with as many channels out
        as the width, or four times as many for a bottleneck.

    Args:
        in_channels: Channels of the input, not more than those of the output.
        width: Channels of the 3x3 convolutions.
        bottleneck: Whether 1x1 convolutions stand around a single 3x3 one.
        dims: Number of spatial dimensions.
        stride: Stride of the block.
        drop_path: Probability that the branch is dropped while training.
    """

    def __init__(
        self, in_channels: int, width: int, *, bottleneck: bool = False, dims: int = 2, stride: int = 1, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        out_channels = width * (4 if bottleneck else 1)
        strides = (1, stride) if bottleneck else (stride, 1)
        self.bn1 = batch_norm(dims)(in_channels)
        self.conv1 = same_conv(in_channels, width, 1 if bottleneck else 3, dims=dims, stride=strides[0])
        self.bn2 = batch_norm(dims)(width)
        self.conv2 = same_conv(width, width, 3, dims=dims, stride=strides[1])
        self.bn3 = batch_norm(dims)(width)
        self.bottleneck = bottleneck
        if bottleneck:
            self.conv3 = same_conv(width, out_channels, 1, dims=dims)
            self.bn4 = batch_norm(dims)(out_channels)
        self.new_channels = out_channels - in_channels
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = DropPath(drop_path)
        self.downsample = avg_pool(dims)(stride, stride, ceil_mode=True) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        branch = self.bn2(self.conv1(self.bn1(x)))
        branch = self.bn3(self.conv2(self.relu(branch)))
        if self.bottleneck:
            branch = self.bn4(self.conv3(self.relu(branch)))
        shortcut = self.downsample(x)
        if self.new_channels:
            shortcut = F.pad(shortcut, (0, 0) * (x.ndim - 2) + (0, self.new_channels))
        return shortcut + self.drop_path(branch)


class PyramidNet(Backbone):
    """PyramidNet of any depth and widening.

    Args:
        block: ``"basic"`` or ``"bottleneck"``.
        depths: Number of blocks of each stage.
        alpha: Channels that the last block has more than the first one's input, or with ``widening="multiply"`` their ratio.
        widening: ``"add"`` the same number of channels in every block, or ``"multiply"`` by the same factor.
        rounding: Of the widths: ``"floor"`` as in the paper, ``"nearest"`` as in its authors' code and weights.
        start: Channels of the stem.
        stem: ``"conv"`` (7x7, stride 2, max pooling) or ``"small"`` (3x3, stride 1), as suits images of 32x32.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If a name is unknown, or ``alpha`` would make the widths fall.
    """

    layouts = (Layout("official"),)

    def __init__(
        self,
        *,
        block: str = "bottleneck",
        depths: Sequence[int] = (3, 24, 36, 3),
        alpha: float = 300,
        widening: str = "add",
        rounding: str = "floor",
        start: int = 64,
        stem: str = "conv",
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        for word, name, known in (("block", block, BLOCKS), ("stem", stem, STEMS)):
            if name not in known:
                raise ConfigError(unknown(word, name, known))
        widths = pyramid_widths(start, alpha, sum(depths), widening=widening, rounding=rounding)
        expansion = 4 if block == "bottleneck" else 1
        super().__init__(
            dims=dims,
            in_chans=in_chans,
            num_classes=num_classes,
            num_features=widths[-1] * expansion,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )
        small = stem == "small"
        self.conv1 = same_conv(in_chans, start, 3 if small else 7, dims=dims, stride=1 if small else 2)
        self.bn1 = batch_norm(dims)(start)
        self.act1 = nn.Identity() if small else nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else max_pool(dims)(kernel_size=3, stride=2, padding=1)
        self.feature_info = FeatureInfo([{"num_chs": start, "reduction": 1 if small else 2, "module": "act1"}])
        channels, reduction, remaining = start, 1 if small else 4, iter(widths)
        for index, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            stage = nn.Sequential()
            for position, rate in enumerate(rates):
                stride, width = 2 if index and not position else 1, next(remaining)
                stage.append(PyramidBlock(channels, width, bottleneck=expansion == 4, dims=dims, stride=stride, drop_path=rate))
                channels, reduction = width * expansion, reduction * stride
            self.add_module(f"layer{index + 1}", stage)
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": f"layer{index + 1}"})
        self.bn_final: nn.Module = batch_norm(dims)(channels)
        self.relu_final = nn.ReLU(inplace=True)
        self.fc = self.new_classifier(num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the stem's features and those of the stages, the last of them normalised and rectified."""
        levels = [self.act1(self.bn1(self.conv1(x)))]
        x = self.maxpool(levels[0])
        for level in self.feature_info[1:]:
            x = self.run_blocks(self.get_submodule(level["module"]), x)
            levels.append(x)
        levels[-1] = self.relu_final(self.bn_final(x))
        return levels

    def drop_levels(self, after: int) -> None:
        """Remove what only the levels after position ``after`` use; see :meth:`Backbone.drop_levels`."""
        super().drop_levels(after)
        if after < len(self.feature_info) - 1:
            self.bn_final = nn.Identity()


_TEN = "The paper counts with 10 classes, the index with 1000."
_CUT = "The paper's figure is cut off after its first decimal."
_OPEN = f"{_TEN} By its own rule there are then %s million, and not the printed number; we do not know why."


def _cifar(depth: int, alpha: float, figures: Figures, *, bottleneck: bool = True, widening: str = "add") -> Variant:
    count = (depth - 2) // (9 if bottleneck else 6)
    block = "bottleneck" if bottleneck else "basic"
    args = {"block": block, "depths": (count,) * 3, "alpha": alpha, "widening": widening, "start": 16, "stem": "small"}
    return Variant(args, figures)


def _printed(params_m: float, counted: float, error: str, note: str = _TEN) -> Figures:
    return Figures(params_m=params_m, counted_params_m=counted, note=note, input_size=32, quality=f"{error} % error on CIFAR-10")


_add = functools.partial(_cifar, 110, bottleneck=False)
_multiply = functools.partial(_cifar, 110, bottleneck=False, widening="multiply")

# Figures of the tables in the authors' repositories.
FAMILY = Family(
    name="pyramidnet",
    cls=PyramidNet,
    small=("pyramidnet200_a300", {"depths": (1, 2, 1, 1), "alpha": 20, "start": 12}),
    paper="pyramidnet",
    summary="Residual network that widens a little in every block (Han et al., 2017).",
    variants={
        "pyramidnet110_a48_cifar": _add(48, _printed(1.7, 1.8, "4.62")),
        "pyramidnet110_a84_cifar": _add(84, _printed(3.8, 4.0, "4.27", f"{_TEN} {_CUT}")),
        "pyramidnet110_a270_cifar": _add(270, _printed(28.3, 28.8, "3.73", _OPEN % "28.5")),
        "pyramidnet110_mul4_75_cifar": _multiply(4.75, _printed(1.7, 1.8, "4.62")),
        "pyramidnet110_mul8_cifar": _multiply(8, _printed(3.8, 3.9, "4.50")),
        "pyramidnet110_mul27_cifar": _multiply(27, _printed(28.3, 28.7, "4.06")),
        "pyramidnet164_a48_bn_cifar": _cifar(164, 48, _printed(1.7, 1.9, "4.21")),
        "pyramidnet164_a84_bn_cifar": _cifar(164, 84, _printed(3.8, 4.1, "3.96", _OPEN % "3.7")),
        "pyramidnet164_a270_bn_cifar": _cifar(164, 270, _printed(27.0, 28.3, "3.48", _OPEN % "27.2")),
        "pyramidnet200_a240_bn_cifar": _cifar(200, 240, _printed(26.6, 27.6, "3.44")),
        "pyramidnet236_a220_bn_cifar": _cifar(236, 220, _printed(26.8, 27.7, "3.40")),
        "pyramidnet272_a200_bn_cifar": _cifar(272, 200, _printed(26.0, 26.9, "3.31")),
        "pyramidnet101_a360": Variant(
            {"depths": (3, 4, 23, 3), "alpha": 360, "rounding": "nearest"}, Figures(params_m=42.5, quality="21.98 % top-1 error")
        ),
        "pyramidnet200_a300": Variant(
            {"alpha": 300}, Figures(params_m=62.1, counted_params_m=62.2, note=_CUT, quality="20.47 % top-1 error")
        ),
        "pyramidnet200_a450": Variant(
            {"alpha": 450, "drop_rate": 0.5},
            Figures(params_m=116.4, counted_params_m=116.5, note=_CUT, quality="20.11 % top-1 error"),
        ),
    },
)
