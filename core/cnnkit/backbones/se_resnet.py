"""SE-ResNet, SE-ResNeXt and SENet-154: Hu, Shen and Sun (2018), "Squeeze-and-Excitation Networks".

A residual network that reweights the channels of each block's branch by a function of their global means
(:mod:`cnnkit.layers.squeeze_excite`) before it is added::

    y = relu(x + s * F(x)),     s = sigmoid(W2 relu(W1 mean(F(x))))

With a reduction of ``r = 16`` this costs ``2 / r * sum_s N_s C_s^2`` weights for ``N_s`` blocks of ``C_s`` channels. SE-ResNet and
SE-ResNeXt are :class:`~cnnkit.backbones.resnet.ResNet` and :class:`~cnnkit.backbones.resnext.ResNeXt` with ``attention="se"``.
SENet-154, which won the ILSVRC of 2017, is a ResNeXt-152 (64x4d) with further changes: see :class:`SENet`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import nn

from cnnkit.backbones._base import Family, Figures, Layout, Variant
from cnnkit.backbones.resnet import Bottleneck, ResidualNet, ResNet, deep_stem, same_conv
from cnnkit.backbones.resnext import ResNeXt
from cnnkit.layers.nd import batch_norm
from cnnkit.layers.recalibrate import get_recalibration


class SENetBottleneck(Bottleneck):
    """A grouped bottleneck with a first 1x1 convolution of half the inner width, and squeeze-and-excitation.

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
        drop_path: Probability that the branch is dropped while training.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        dims: int = 2,
        stride: int = 1,
        dilation: int = 1,
        first_dilation: int | None = None,
        inner_factor: float = 4.0,
        groups: int = 64,
        shortcut: nn.Module | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(
            in_channels,
            width,
            dims=dims,
            inner_factor=inner_factor,
            groups=groups,
            shortcut=shortcut,
            attention=lambda channels: get_recalibration("se", dims, channels),
            drop_path=drop_path,
        )
        inner = int(width * inner_factor)
        dilation = first_dilation or dilation
        self.conv1 = same_conv(in_channels, inner // 2, 1, dims=dims)
        self.bn1 = batch_norm(dims)(inner // 2)
        self.conv2 = same_conv(inner // 2, inner, 3, dims=dims, stride=stride, dilation=dilation, groups=groups)


def wide_shortcut(
    in_channels: int, out_channels: int, /, *, dims: int, stride: int, dilation: int = 1, first_dilation: int = 1
) -> nn.Module:
    """Return SENet-154's shortcut: a convolution, 1x1 in the first stage and 3x3 in the others, and batch normalisation."""
    size = 1 if stride == dilation == 1 else 3
    projection = same_conv(in_channels, out_channels, size, dims=dims, stride=stride, dilation=first_dilation)
    return nn.Sequential(projection, batch_norm(dims)(out_channels))


class SENet(ResidualNet):
    """SENet: a deep stem, grouped bottlenecks that begin narrow, 3x3 shortcuts, dropout before the classifier.

    Args:
        depths: Number of blocks of each stage.
        widths: A quarter of each stage's output channels.
        cardinality: Groups of the 3x3 convolutions.
        base_width: Channels of one group, at a width of 64.
        stem_width: Channels of the stem's first two convolutions; the third has twice as many.
        output_stride: Reduction of the last stage: 32, or 16 or 8 with dilation in place of stride.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
    """

    layouts = (Layout("timm"),)

    def __init__(
        self,
        *,
        depths: Sequence[int] = (3, 8, 36, 3),
        widths: Sequence[int] = (64, 128, 256, 512),
        cardinality: int = 64,
        base_width: int = 4,
        stem_width: int = 64,
        output_stride: int = 32,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.2,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(
            stem=deep_stem(in_chans, stem_width, dims=dims),
            stem_channels=2 * stem_width,
            block=functools.partial(SENetBottleneck, dims=dims, inner_factor=cardinality * base_width / 64, groups=cardinality),
            shortcut=wide_shortcut,
            expansion=SENetBottleneck.expansion,
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


def _variant(depths: tuple[int, ...], figures: Figures | None = None, cls: type[ResNet] = ResNet, **args: object) -> Variant:
    return Variant({"depths": depths, "attention": "se", **args}, figures or Figures(), cls=cls)


_STRIDE = "The paper has a bottleneck's stride in its first 1x1 convolution; here it is in the 3x3 one, as in timm."

FAMILY = Family(
    name="se_resnet",
    cls=ResNet,
    small=("senet154", {"depths": (1, 2, 1, 1), "widths": (16, 16, 16, 32), "cardinality": 4, "base_width": 32, "stem_width": 16}),
    paper="se",
    summary="Residual network that reweights channels by their global means (Hu et al., 2018).",
    variants={
        "seresnet18": _variant((2, 2, 2, 2), block="basic"),
        "seresnet34": _variant((3, 4, 6, 3), block="basic"),
        "seresnet50": _variant(
            (3, 4, 6, 3), Figures(params_m=28.1, gmacs=3.87, counted_gmacs=4.09, note=_STRIDE, quality="23.29 % top-1 error")
        ),
        "seresnet101": _variant((3, 4, 23, 3), Figures(quality="22.38 % top-1 error")),
        "seresnet152": _variant((3, 8, 36, 3)),
        "seresnet152d": _variant((3, 8, 36, 3), stem="deep", shortcut="pool"),
        "seresnext50_32x4d": _variant((3, 4, 6, 3), cls=ResNeXt),
        "seresnext101_32x4d": _variant((3, 4, 23, 3), cls=ResNeXt),
        "seresnext101_32x8d": _variant((3, 4, 23, 3), cls=ResNeXt, base_width=8),
        "seresnext101_64x4d": _variant((3, 4, 23, 3), cls=ResNeXt, cardinality=64),
        "senet154": Variant({}, Figures(quality="18.68 % top-1 error"), cls=SENet),
    },
)
