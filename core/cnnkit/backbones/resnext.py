"""ResNeXt: Xie, Girshick, Dollar, Tu and He (2017), "Aggregated Residual Transformations for Deep Neural Networks".

A bottleneck's branch is split into many narrow ones of the same form, whose number (the cardinality ``C``) is a third axis
besides depth and width. The sum of the branches is one bottleneck with a grouped 3x3 convolution::

    y = relu(x + sum_i T_i(x)),     i = 1 .. C,     T_i: 1x1 to d channels, 3x3, 1x1

A stage of width 64 has ``C * d`` channels inside (32x4d: 128), and the next stages twice as many each.
"""

from __future__ import annotations

from collections.abc import Sequence

from cnnkit.backbones._base import Family, Figures, Variant
from cnnkit.backbones.resnet import ResNet
from cnnkit.errors import ConfigError


class ResNeXt(ResNet):
    """ResNeXt of any depth, cardinality and width.

    Args:
        depths: Number of blocks of each stage.
        widths: A quarter of each stage's output channels.
        cardinality: Branches of a block.
        base_width: Channels inside one branch, at a width of 64.
        attention: What reweights the features at the end of each block: a name for
            :func:`~cnnkit.layers.recalibrate.get_recalibration`.
        stem: ``"conv"`` (7x7, stride 2), ``"deep"`` (three of 3x3, stride 2) or ``"small"`` (3x3, stride 1, no max pooling).
        output_stride: Reduction of the last stage: 32, or 16 or 8 with dilation in place of stride.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If a branch would not have a whole number of channels, or a name is unknown.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int] = (3, 4, 6, 3),
        widths: Sequence[int] = (64, 128, 256, 512),
        cardinality: int = 32,
        base_width: int = 4,
        attention: str = "none",
        stem: str = "conv",
        output_stride: int = 32,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        for width in widths:
            if width * base_width % 64:
                raise ConfigError(
                    f"a branch of base_width={base_width} at a width of {width} would have {width * base_width / 64:g} channels; "
                    "width * base_width must be a multiple of 64"
                )
        super().__init__(
            depths=depths,
            widths=widths,
            inner_factor=cardinality * base_width / 64,
            groups=cardinality,
            attention=attention,
            stem=stem,
            output_stride=output_stride,
            dims=dims,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
        )


_CIFAR = {"depths": (3, 3, 3), "widths": (64, 128, 256), "base_width": 64, "stem": "small"}
_TEN = "The paper counts with 10 classes (34.43 and 68.16 million, the latter cut off), the index with 1000."

FAMILY = Family(
    name="resnext",
    cls=ResNeXt,
    small=("resnext50_32x4d", {"depths": (1, 2, 1, 1), "widths": (16, 16, 32, 48), "cardinality": 4, "base_width": 16}),
    paper="resnext",
    summary="Residual network whose blocks sum many narrow branches of the same form (Xie et al., 2017).",
    variants={
        "resnext50_32x4d": Variant({}, Figures(params_m=25.0, gmacs=4.2, quality="22.2 % top-1 error")),
        "resnext101_32x4d": Variant({"depths": (3, 4, 23, 3)}, Figures(quality="21.2 % top-1 error")),
        "resnext101_64x4d": Variant(
            {"depths": (3, 4, 23, 3), "cardinality": 64}, Figures(params_m=83.5, gmacs=15.5, quality="20.4 % top-1 error")
        ),
        "resnext101_32x8d": Variant({"depths": (3, 4, 23, 3), "base_width": 8}),
        "resnext101_32x16d": Variant({"depths": (3, 4, 23, 3), "base_width": 16}),
        "resnext101_32x32d": Variant({"depths": (3, 4, 23, 3), "base_width": 32}),
        "resnext29_8x64d": Variant(
            {**_CIFAR, "cardinality": 8}, Figures(params_m=34.4, counted_params_m=35.4, note=_TEN, quality="3.65 % error on CIFAR-10")
        ),
        "resnext29_16x64d": Variant(
            {**_CIFAR, "cardinality": 16}, Figures(params_m=68.1, counted_params_m=69.2, note=_TEN, quality="3.58 % error on CIFAR-10")
        ),
    },
)
