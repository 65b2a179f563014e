"""ResNet: He, Zhang, Ren and Sun (2016), "Deep Residual Learning for Image Recognition".

A block learns what to add to its input instead of a new mapping, so that depth does not make optimisation harder::

    y = relu(F(x) + W x)

where ``W`` is the identity, or a strided 1x1 convolution where the shape changes. The stride of a bottleneck is
in its 3x3 convolution, as in torchvision and timm (in the paper it is in the first 1x1: 7 % fewer multiply-adds,
less accuracy). The wide variants double the bottleneck's inner width: Zagoruyko and Komodakis (2016), "Wide
Residual Networks". The ``d`` variants begin with three 3x3 convolutions and average before a shortcut's convolution,
which otherwise skips three of four positions: He et al. (2019), "Bag of Tricks for Image Classification with
Convolutional Neural Networks".

:class:`ResidualNet` is the frame (stem, four stages, head) that a family with other blocks or another stem
builds on: it gives a stem and a function that makes a block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

from torch import Tensor, nn

from cnnkit.backbones._base import Backbone, Family, FeatureInfo, Figures, Layout, Variant
from cnnkit.errors import ConfigError, unknown
from cnnkit.layers.conv import same_padding
from cnnkit.layers.drop import DropPath, drop_path_rates
from cnnkit.layers.nd import avg_pool, batch_norm, conv, max_pool
from cnnkit.layers.recalibrate import get_recalibration

Attention = Callable[[int], nn.Module]
"""Makes a module that reweights so many channels at the end of a block's branch, for example squeeze-and-excitation."""


class BlockFactory(Protocol):
    """Makes one residual block; the frame calls it for every block of every stage."""

    def __call__(
        self,
        in_channels: int,
        width: int,
        /,
        *,
        stride: int,
        dilation: int,
        first_dilation: int,
        shortcut: nn.Module | None,
        drop_path: float,
    ) -> nn.Module:
        """Return a block from ``in_channels`` to ``width * expansion`` channels."""
        ...


class ShortcutFactory(Protocol):
    """Makes what brings a block's input to its output's shape; the frame calls it where the two differ.

    ``dilation`` is above 1 in a stage that keeps its size by dilation, ``first_dilation`` is that of the stage before it.
    """

    def __call__(
        self, in_channels: int, out_channels: int, /, *, dims: int, stride: int, dilation: int = 1, first_dilation: int = 1
    ) -> nn.Module:
        """Return a module from ``in_channels`` to ``out_channels``, at this stride."""
        ...


def same_conv(
    in_channels: int, out_channels: int, kernel_size: int, *, dims: int, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Module:
    """Return a convolution without bias, padded so that stride 1 keeps the size."""
    padding: tuple = same_padding(kernel_size, dilation, dims=dims)
    return conv(dims)(in_channels, out_channels, kernel_size, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, width, *ceil(spatial / stride))``.

    Args:
        in_channels: Channels of the input.
        width: Channels of both convolutions.
        dims: Number of spatial dimensions.
        stride: Stride of the first convolution.
        dilation: Dilation of the convolutions.
        first_dilation: Dilation of the first one, where it differs.
        shortcut: What brings the input to the output's shape; ``None`` for the identity.
        attention: Makes a module for the branch's end.
        drop_path: Probability that the branch is dropped while training.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        dims: int = 2,
        stride: int = 1,
        dilation: int = 1,
        first_dilation: int | None = None,
        shortcut: nn.Module | None = None,
        attention: Attention | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.conv1 = same_conv(in_channels, width, 3, dims=dims, stride=stride, dilation=first_dilation or dilation)
        self.bn1: nn.Module = batch_norm(dims)(width)
        self.conv2 = same_conv(width, width, 3, dims=dims, dilation=dilation)
        self.bn2 = batch_norm(dims)(width)
        self.act = nn.ReLU(inplace=True)
        self.act_out: nn.Module = nn.ReLU(inplace=True)  # By itself, so that a family can put a normalisation before it.
        # The slot's name is timm's, whatever attention stands in it, so that timm's files load as they are.
        self.se = attention(width) if attention else nn.Identity()
        self.drop_path = DropPath(drop_path)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        branch = self.act(self.bn1(self.conv1(x)))
        branch = self.drop_path(self.se(self.bn2(self.conv2(branch))))
        return self.act_out(branch + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """A 1x1 convolution that narrows, a 3x3 one, a 1x1 one that widens by four, and a shortcut.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, 4 * width, *ceil(spatial / stride))``.

    Args:
        in_channels: Channels of the input.
        width: A quarter of the output's channels.
        dims: Number of spatial dimensions.
        stride: Stride of the 3x3 convolution.
        dilation: Dilation of the stage.
        first_dilation: Dilation of the 3x3 convolution, where it differs from the stage's.
        inner_factor: Channels of the 3x3 convolution by ``width``.
        groups: Groups of the 3x3 convolution.
        shortcut: What brings the input to the output's shape; ``None`` for the identity.
        attention: Makes a module for the branch's end.
        drop_path: Probability that the branch is dropped while training.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        dims: int = 2,
        stride: int = 1,
        dilation: int = 1,
        first_dilation: int | None = None,
        inner_factor: float = 1.0,
        groups: int = 1,
        shortcut: nn.Module | None = None,
        attention: Attention | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        inner = int(width * inner_factor)
        out_channels = width * self.expansion
        self.conv1 = same_conv(in_channels, inner, 1, dims=dims)
        self.bn1: nn.Module = batch_norm(dims)(inner)
        self.conv2 = same_conv(inner, inner, 3, dims=dims, stride=stride, dilation=first_dilation or dilation, groups=groups)
        self.bn2 = batch_norm(dims)(inner)
        self.conv3 = same_conv(inner, out_channels, 1, dims=dims)
        self.bn3 = batch_norm(dims)(out_channels)
        self.act = nn.ReLU(inplace=True)
        self.act_out: nn.Module = nn.ReLU(inplace=True)  # By itself, so that a family can put a normalisation before it.
        self.se = attention(out_channels) if attention else nn.Identity()
        self.drop_path = DropPath(drop_path)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        branch = self.act(self.bn1(self.conv1(x)))
        branch = self.act(self.bn2(self.conv2(branch)))
        branch = self.drop_path(self.se(self.bn3(self.conv3(branch))))
        return self.act_out(branch + (x if self.downsample is None else self.downsample(x)))


def conv_shortcut(
    in_channels: int, out_channels: int, /, *, dims: int, stride: int, dilation: int = 1, first_dilation: int = 1
) -> nn.Module:
    """Return the paper's shortcut B: a strided 1x1 convolution, which has nothing to dilate, with batch normalisation."""
    return nn.Sequential(same_conv(in_channels, out_channels, 1, dims=dims, stride=stride), batch_norm(dims)(out_channels))


def pool_shortcut(
    in_channels: int, out_channels: int, /, *, dims: int, stride: int, dilation: int = 1, first_dilation: int = 1
) -> nn.Module:
    """Return a shortcut that averages before its 1x1 convolution, in place of a stride; where dilation is in its place, nothing is."""
    pool = nn.Identity() if stride == 1 else avg_pool(dims)(stride, stride, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(pool, same_conv(in_channels, out_channels, 1, dims=dims), batch_norm(dims)(out_channels))


def deep_stem(in_chans: int, width: int, *, dims: int) -> nn.Module:
    """Return three 3x3 convolutions of ``width``, ``width`` and ``2 * width`` channels, the first with stride 2."""
    return nn.Sequential(
        same_conv(in_chans, width, 3, dims=dims, stride=2),
        batch_norm(dims)(width),
        nn.ReLU(inplace=True),
        same_conv(width, width, 3, dims=dims),
        batch_norm(dims)(width),
        nn.ReLU(inplace=True),
        same_conv(width, 2 * width, 3, dims=dims),
    )


class ResidualNet(Backbone):
    """The frame of residual networks: a stem of stride 2, max pooling, stages, global pooling, a linear layer.

    Args:
        stem: From ``in_chans`` to ``stem_channels`` at stride 2, without the normalisation and activation that end it.
        stem_channels: Channels of the stem.
        small_input: Whether the stem has stride 1 and no max pooling follows it, as suits images of 32x32.
        block: Makes a block.
        shortcut: Makes the shortcut of a block whose shape changes.
        expansion: Output channels of a block by its width.
        depths: Number of blocks of each stage.
        widths: Width of each stage's blocks.
        output_stride: Reduction of the last stage: 32, or 16 or 8 with dilation in place of stride.
        dims: Number of spatial dimensions.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
    """

    def __init__(
        self,
        *,
        stem: nn.Module,
        stem_channels: int,
        small_input: bool = False,
        block: BlockFactory,
        shortcut: ShortcutFactory = conv_shortcut,
        expansion: int,
        depths: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        output_stride: int = 32,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        num_features = widths[-1] * expansion
        super().__init__(
            dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=num_features, global_pool=global_pool, drop_rate=drop_rate
        )
        if output_stride not in (8, 16, 32):
            raise ConfigError(f"output_stride={output_stride} is not supported; use 8, 16 or 32")
        self.conv1 = stem
        self.bn1: nn.Module = batch_norm(dims)(stem_channels)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small_input else max_pool(dims)(kernel_size=3, stride=2, padding=1)
        self.feature_info = FeatureInfo([{"num_chs": stem_channels, "reduction": 1 if small_input else 2, "module": "act1"}])

        channels, reduction, dilation = stem_channels, 1 if small_input else 4, 1
        for index, (width, rates) in enumerate(zip(widths, drop_path_rates(drop_path_rate, depths), strict=True)):
            stride, before = (1 if index == 0 else 2), dilation
            if reduction * stride > output_stride:
                stride, dilation = 1, dilation * 2
            reduction *= stride
            blocks = []
            for rate in rates:
                out = width * expansion
                skip = None
                if stride != 1 or channels != out:
                    skip = shortcut(channels, out, dims=dims, stride=stride, dilation=dilation, first_dilation=before)
                blocks.append(
                    block(channels, width, stride=stride, dilation=dilation, first_dilation=before, shortcut=skip, drop_path=rate)
                )
                # A stage that trades stride for dilation enters with the dilation of the stage before it.
                channels, stride, before = out, 1, dilation
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": f"layer{index + 1}"})
        self.fc = self.new_classifier(num_classes)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the convolutions from a normal distribution with variance ``2 / fan_out`` (He et al., 2015)."""
        for module in self.modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the stem's features and those of the stages."""
        x = self.act1(self.bn1(self.conv1(x)))
        levels = [x]
        x = self.maxpool(x)
        for level in self.feature_info[1:]:
            x = self.run_blocks(self.get_submodule(level["module"]), x)
            levels.append(x)
        return levels


STEMS = ("conv", "deep", "small")
SHORTCUTS: dict[str, ShortcutFactory] = {"conv": conv_shortcut, "pool": pool_shortcut}


class ResNet(ResidualNet):
    """ResNet of any depth.

    Args:
        block: ``"basic"`` or ``"bottleneck"``.
        depths: Number of blocks of each stage.
        widths: Width of each stage's blocks.
        inner_factor: Inner width of a bottleneck by its width; 2 in the wide variants.
        groups: Groups of a bottleneck's 3x3 convolution.
        attention: What reweights the features at the end of each block's branch: a name for
            :func:`~cnnkit.layers.recalibrate.get_recalibration`.
        stem: ``"conv"`` (7x7, stride 2), ``"deep"`` (three of 3x3, stride 2) or ``"small"`` (3x3, stride 1, no max pooling).
        stem_width: Channels of the deep stem's first two convolutions; the third has twice as many.
        shortcut: Where the shape changes: ``"conv"``, or ``"pool"`` to average before it.
        output_stride: Reduction of the last stage: 32, or 16 or 8 with dilation in place of stride.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If a name is unknown, or a basic block is given an inner factor or groups.
    """

    layouts: ClassVar[tuple[Layout, ...]] = (Layout("timm"), Layout("torchvision"))

    def __init__(
        self,
        *,
        block: str = "bottleneck",
        depths: Sequence[int] = (3, 4, 6, 3),
        widths: Sequence[int] = (64, 128, 256, 512),
        inner_factor: float = 1.0,
        groups: int = 1,
        attention: str = "none",
        stem: str = "conv",
        stem_width: int = 32,
        shortcut: str = "conv",
        output_stride: int = 32,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        names = {"block": (block, ("basic", "bottleneck")), "stem": (stem, STEMS), "shortcut": (shortcut, tuple(SHORTCUTS))}
        for word, (name, known) in names.items():
            if name not in known:
                raise ConfigError(unknown(word, name, known))
        if block == "basic" and inner_factor != 1.0:
            raise ConfigError("inner_factor widens a bottleneck and a basic block has none: leave it out, or use block='bottleneck'")
        if block == "basic" and groups != 1:
            raise ConfigError(
                "groups divide a bottleneck's 3x3 convolution and a basic block has none: leave it out, or use block='bottleneck'"
            )

        def reweight(channels: int) -> nn.Module:
            return get_recalibration(attention, dims, channels)

        factory: BlockFactory
        if block == "basic":
            factory = functools.partial(BasicBlock, dims=dims, attention=reweight)
        else:
            factory = functools.partial(Bottleneck, dims=dims, inner_factor=inner_factor, groups=groups, attention=reweight)
        stems = {
            "conv": lambda: same_conv(in_chans, 64, 7, dims=dims, stride=2),
            "deep": lambda: deep_stem(in_chans, stem_width, dims=dims),
            "small": lambda: same_conv(in_chans, 64, 3, dims=dims),
        }
        super().__init__(
            stem=stems[stem](),
            stem_channels=2 * stem_width if stem == "deep" else 64,
            small_input=stem == "small",
            block=factory,
            shortcut=SHORTCUTS[shortcut],
            expansion=BasicBlock.expansion if block == "basic" else Bottleneck.expansion,
            depths=depths,
            widths=widths,
            output_stride=output_stride,
            dims=dims,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
        )


_WIDE = "Wide residual network with a doubled bottleneck (Zagoruyko and Komodakis, 2016)."
_TRICKS = "ResNet with a deep stem and averaging shortcuts (He et al., 2019)."
_PAPER_TRUNCATES = "The paper's Table 1 prints 3.6, cut off from 3.66."
_STRIDE = "The paper has a bottleneck's stride in its first 1x1 convolution; here it is in the 3x3 one, as in torchvision and timm."

FAMILY = Family(
    name="resnet",
    cls=ResNet,
    small=("resnet50", {"depths": (1, 2, 1, 1), "widths": (8, 16, 24, 32)}),
    summary="Deep residual learning for image recognition (He et al., 2016).",
    variants={
        "resnet18": Variant({"block": "basic", "depths": (2, 2, 2, 2)}, Figures(gmacs=1.8)),
        "resnet34": Variant({"block": "basic", "depths": (3, 4, 6, 3)}, Figures(gmacs=3.6, counted_gmacs=3.66, note=_PAPER_TRUNCATES)),
        "resnet50": Variant({"depths": (3, 4, 6, 3)}, Figures(gmacs=3.8, counted_gmacs=4.09, note=_STRIDE)),
        "resnet101": Variant({"depths": (3, 4, 23, 3)}, Figures(gmacs=7.6, counted_gmacs=7.80, note=_STRIDE)),
        "resnet152": Variant({"depths": (3, 8, 36, 3)}, Figures(gmacs=11.3, counted_gmacs=11.51, note=_STRIDE)),
        "wide_resnet50_2": Variant({"depths": (3, 4, 6, 3), "inner_factor": 2.0}, summary=_WIDE),
        "wide_resnet101_2": Variant({"depths": (3, 4, 23, 3), "inner_factor": 2.0}, summary=_WIDE),
        "resnet50d": Variant({"depths": (3, 4, 6, 3), "stem": "deep", "shortcut": "pool"}, summary=_TRICKS),
        "resnet101d": Variant({"depths": (3, 4, 23, 3), "stem": "deep", "shortcut": "pool"}, summary=_TRICKS),
        "resnet152d": Variant({"depths": (3, 8, 36, 3), "stem": "deep", "shortcut": "pool"}, summary=_TRICKS),
    },
)
