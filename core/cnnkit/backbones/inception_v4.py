"""Inception-v4: Szegedy, Ioffe, Vanhoucke and Alemi (2017).

The paper is "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning"; its residual networks are in
``inception_resnet.py``.

Inception-v3 made uniform: every grid has one kind of block, repeated, and the stem already branches. All branches are concatenated::

    y = [W1 * x,  W3x3 * (W1 * x),  W3x3 * (W3x3 * (W1 * x)),  W1 * avgpool3(x)]    on the grid of 35 positions, four times
    y = [W1 * x,  W7x1 * (W1x7 * (W1 * x)),  ...]                                   on that of 17, seven times
    y = [W1 * x,  [W1x3, W3x1] * (W1 * x),  ...]                                    on that of 8, three times

where ``W`` stands for a convolution, batch normalisation and ReLU. In one dimension a factorised convolution is one convolution, in
three dimensions three; the last blocks put one kernel per axis side by side, and so their width depends on the number of dimensions
(1024, 1536 or 2048 channels).

The paper's stem pads few of its convolutions: 299 pixels give levels of 147, 73, 35, 17 and 8. For dense predictions
``aligned=True`` pads all, and the levels are the input's size over their reductions; weights fit both.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from cnnkit.backbones._base import Family, Figures, Layout, Variant
from cnnkit.backbones._inception import Along, Branch, Conv, InceptionNet, Make, Mixed, Parts, numbered


def pooled(parts: Parts, channels: int, width: int) -> Branch:
    """Return average pooling over the positions that exist, and a 1x1 convolution."""
    return Branch(parts.avg_pool(include_pad=False), parts.unit(channels, Conv(width)))


def stem(parts: Parts) -> list[Make]:
    """Return the paper's Figure 3, six modules from the image to the grid of 35: twice a pooling and a convolution reduce side by side."""

    def reduce_once(channels: int) -> Mixed:
        conv = parts.unit(channels, Conv(96, 3, stride=2, padded=False))
        return Mixed(channels, [[{"maxpool": parts.max_pool()}], [{"conv": conv}]])

    def see_far(channels: int) -> Mixed:
        near = parts.branch(channels, Conv(64), Conv(96, 3, padded=False))
        far = parts.branch(channels, Conv(64), *parts.per_axis(7, 64, 64), Conv(96, 3, padded=False))
        return Mixed(channels, numbered([near, far]))

    def reduce_again(channels: int) -> Mixed:
        conv = parts.unit(channels, Conv(192, 3, stride=2, padded=False))
        return Mixed(channels, [[{"conv": conv}], [{"maxpool": parts.max_pool()}]])

    return [
        lambda c: parts.unit(c, Conv(32, 3, stride=2, padded=False)),
        lambda c: parts.unit(c, Conv(32, 3, padded=False)),
        lambda c: parts.unit(c, Conv(64, 3)),
        reduce_once,
        see_far,
        reduce_again,
    ]


def inception_a(parts: Parts, channels: int) -> Mixed:
    """Return the paper's Figure 4, on the grid of 35."""
    branches = [
        parts.unit(channels, Conv(96)),
        parts.branch(channels, Conv(64), Conv(96, 3)),
        parts.branch(channels, Conv(64), Conv(96, 3), Conv(96, 3)),
        pooled(parts, channels, 96),
    ]
    return Mixed(channels, numbered(branches))


def reduction_a(parts: Parts, channels: int, widths: Sequence[int]) -> Mixed:
    """Return the paper's Figure 7, from the grid of 35 to that of 17; ``widths`` are the paper's k, l, m and n."""
    narrow, middle, deep, plain = widths
    branches = [
        parts.unit(channels, Conv(plain, 3, stride=2, padded=False)),
        parts.branch(channels, Conv(narrow), Conv(middle, 3), Conv(deep, 3, stride=2, padded=False)),
        parts.max_pool(),
    ]
    return Mixed(channels, numbered(branches))


def inception_b(parts: Parts, channels: int) -> Mixed:
    """Return the paper's Figure 5, on the grid of 17."""
    forth = list(range(parts.dims))
    twice = [*parts.per_axis(7, 192, 224, axes=forth), *parts.per_axis(7, 224, 256, axes=forth)]
    branches = [
        parts.unit(channels, Conv(384)),
        parts.branch(channels, Conv(192), *parts.per_axis(7, 224, 256)),
        parts.branch(channels, Conv(192), *twice),
        pooled(parts, channels, 128),
    ]
    return Mixed(channels, numbered(branches))


def reduction_b(parts: Parts, channels: int) -> Mixed:
    """Return the paper's Figure 8, from the grid of 17 to that of 8."""
    last = Conv(320, 3, stride=2, padded=False)
    branches = [
        parts.branch(channels, Conv(192), Conv(192, 3, stride=2, padded=False)),
        parts.branch(channels, Conv(256), *parts.per_axis(7, 256, 320), last),
        parts.max_pool(),
    ]
    return Mixed(channels, numbered(branches))


def inception_c(parts: Parts, channels: int) -> Mixed:
    """Return the paper's Figure 6, on the grid of 8: kernels of 3 along each axis, in the end side by side."""

    def side_by_side(name: str, channels: int) -> dict[str, nn.Module]:
        axes = zip("abc", parts.axes(), strict=False)
        return {name + letter: parts.unit(channels, Conv(256, Along(axis, 3))) for letter, axis in axes}

    short = parts.unit(channels, Conv(384))
    long = parts.units(channels, Conv(384), *parts.per_axis(3, 448, 512, axes=list(range(parts.dims))))
    return Mixed(
        channels,
        [
            [{"branch0": parts.unit(channels, Conv(256))}],
            [{"branch1_0": short}, side_by_side("branch1_1", short.out_channels)],
            [*({f"branch2_{index}": unit} for index, unit in enumerate(long)), side_by_side(f"branch2_{len(long)}", long[-1].out_channels)],
            [{"branch3": pooled(parts, channels, 256)}],
        ],
    )


class InceptionV4(InceptionNet):
    """Inception-v4.

    Args:
        depths: Number of blocks on each of the three grids.
        width: Factor on all widths.
        aligned: Pad every convolution and pooling, so that the levels are the input's size over their reductions.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier; the paper trains with 0.2.
    """

    layouts = (Layout("timm"),)
    classifier = "last_linear"
    head_modules = ("last_linear",)

    def __init__(
        self,
        *,
        depths: Sequence[int] = (4, 7, 3),
        width: float = 1.0,
        aligned: bool = False,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        parts = Parts(dims, width, aligned)
        modules = stem(parts)
        ends = [2, 3]
        grids: list[tuple[list[Make], Make]] = [
            ([], lambda c: inception_a(parts, c)),
            ([lambda c: reduction_a(parts, c, (192, 224, 256, 384))], lambda c: inception_b(parts, c)),
            ([lambda c: reduction_b(parts, c)], lambda c: inception_c(parts, c)),
        ]
        for (reduction, block), depth in zip(grids, depths, strict=True):
            modules += [*reduction, *[block] * depth]
            ends.append(len(modules) - 1)
        super().__init__(
            {f"features.{index}": make for index, make in enumerate(modules)},
            {f"features.{end}": 2 ** (level + 1) for level, end in enumerate(ends)},
            parts,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )
        self.apply(init_weights)


def init_weights(module: nn.Module) -> None:
    """Draw convolutions from a normal distribution with variance ``2 / fan_in``, as the released code does."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


FAMILY = Family(
    name="inception_v4",
    cls=InceptionV4,
    paper="inception-v4",
    small=("inception_v4", {"width": 0.1, "depths": (1, 1, 1), "aligned": True}),
    summary="Inception with one kind of block per grid, and a stem that branches (Szegedy et al., 2017).",
    variants={"inception_v4": Variant({}, Figures(input_size=299, quality="20.0 % top-1 and 5.0 % top-5 error, single crop"))},
)
