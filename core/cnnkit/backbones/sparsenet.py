"""SparseNet: Zhu, Deng, Maire, Deng, Mori and Tan (2018), "Sparsely Aggregated Convolutional Networks".

DenseNets and residual networks let every layer aggregate all earlier outputs, the one by concatenation, the other by a
sum. Here layer ``l`` aggregates only those at exponentially growing offsets::

    x_l = H_l(x_{l-1} + x_{l-c} + x_{l-c^2} + x_{l-c^3} + ...),    c = 2

where ``+`` is either (in the paper's names, SparseNet[⊕] and SparseNet[+]). A layer has O(log l) inputs in place of l,
a gradient still passes any two layers in O(log l) steps, and a growth rate can rise from block to block.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import Tensor

from cnnkit.backbones._base import Family, Figures, Layout, Variant, has_keys, rename_keys
from cnnkit.backbones.densenet import AggregatedNet, concatenate
from cnnkit.errors import ConfigError, unknown


def exponential_sources(count: int, base: int = 2) -> list[int]:
    """Return which of ``count`` features a layer reads: the last, and those ``base``, ``base ** 2``, ... from the end.

    Args:
        count: Number of features so far, the block's input among them.
        base: ``c`` of the paper; 1 is the limit in which every offset is taken, as in DenseNet.
    """
    if base == 1:
        return list(range(count - 1, -1, -1))
    sources, offset = [], 1
    while offset <= count:
        sources.append(count - offset)
        offset *= base
    return sources


def add(features: Sequence[Tensor]) -> Tensor:
    """Sum features of the same number of channels."""
    total = features[0]
    for feature in features[1:]:
        total = total + feature
    return total


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of the paper's own code, which counts blocks and transitions from 0."""
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        kind, _, number = parts[1].rpartition("-")
        if kind in ("dense-stage", "transition"):
            parts[1] = f"{'denseblock' if kind == 'dense-stage' else kind}{int(number) + 1}"
        renamed[".".join(parts)] = value
    return rename_keys(
        renamed,
        (
            (r"\.block-(\d+)\.bn", r".denselayer\1.norm"),
            (r"\.block-(\d+)\.", r".denselayer\1."),
            (r"(transition\d)\.bn1\.", r"\1.norm."),
            (r"(transition\d)\.conv1\.", r"\1.conv."),
            (r"^features\.norm_last\.", "features.norm5."),
            (r"^classifier\.linear\.", "fc."),
        ),
    )


AGGREGATIONS = ("concat", "sum")


class SparseNet(AggregatedNet):
    """SparseNet of any depth, growth and base.

    Args:
        depths: Number of layers of each block.
        growth_rates: Channels of each layer, by block; with ``aggregation="sum"`` the width of the block.
        base: ``c``: the factor from one offset to the next; 1 takes every offset.
        aggregation: ``"concat"`` or ``"sum"``.
        stem: ``"imagenet"``, ``"deep"`` or ``"cifar"``, as in DenseNet.
        stem_channels: Channels of the stem; by default twice the first growth rate. A sum needs the first width and takes it.
        bottleneck: Channels of a layer's 1x1 convolution by its growth rate; 0 leaves it out.
        compression: Channels after a transition by those before; a sum needs the next width and takes it.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout after each convolution but the stem's.

    Raises:
        ConfigError: If the aggregation, the stem or the base is not one of those, or ``depths`` and ``growth_rates`` differ in length.
    """

    layouts = (Layout("official", has_keys("features.dense-stage-0.block-1.bn1.weight"), _from_official),)

    def __init__(
        self,
        *,
        depths: Sequence[int] = (6, 12, 24, 16),
        growth_rates: Sequence[int] = (32, 32, 32, 32),
        base: int = 2,
        aggregation: str = "concat",
        stem: str = "imagenet",
        stem_channels: int | None = None,
        bottleneck: int = 4,
        compression: float = 0.5,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
    ) -> None:
        if aggregation not in AGGREGATIONS:
            raise ConfigError(unknown("aggregation", aggregation, AGGREGATIONS))
        if base < 1:
            raise ConfigError(f"base={base} gives no offsets; use 2, or another whole number from 1 on")
        if len(depths) != len(growth_rates):
            raise ConfigError(f"depths has {len(depths)} blocks and growth_rates {len(growth_rates)}; give one number of each per block")
        widths = tuple(growth_rates)
        sums = aggregation == "sum"
        super().__init__(
            depths=depths,
            growth_rates=widths,
            sources=functools.partial(exponential_sources, base=base),
            join=add if sums else concatenate,
            stem=stem,
            stem_channels=widths[0] if sums else 2 * widths[0] if stem_channels is None else stem_channels,
            transitions=lambda channels, block: widths[block] if sums else int(channels * compression),
            bottleneck=bottleneck,
            dims=dims,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            proj_drop_rate=proj_drop_rate,
        )


_CIFAR = "The paper counts the hundred classes of CIFAR-100; the head has a thousand by default."
_CIFAR_BC = f"{_CIFAR} It prints {{}}; by the rules that meet its other figures it is {{}}."
_IMAGENET = (
    "The paper's figures are those of a classifier that reads a 3x3 grid of positions side by side in place of their mean (nine times "
    "its weights), and count one operation more for every normalised value."
)


def _imagenet(depths: tuple[int, ...], growth: int, figures: Figures) -> Variant:
    return Variant({"depths": depths, "growth_rates": (growth,) * 4, "stem_channels": growth}, figures)


def _cifar(growth: tuple[int, ...], figures: Figures, *, depth: int = 100, plain: bool = False) -> Variant:
    args = {"depths": ((depth - 4) // (3 if plain else 6),) * 3, "growth_rates": growth, "stem": "cifar"}
    return Variant({**args, "bottleneck": 0, "compression": 1.0} if plain else args, figures)


def _error(rate: str) -> str:
    return f"{rate} % error on CIFAR-100"


# Figures of the tables in the paper and in its code's documentation, which count a multiply-add as two operations.
FAMILY = Family(
    name="sparsenet",
    cls=SparseNet,
    small=("sparsenet121", {"depths": (2, 4, 3), "growth_rates": (8, 8, 12), "stem_channels": 16}),
    small_size=32,
    paper="sparsenet",
    summary="Layers aggregate earlier outputs at exponentially growing offsets only (Zhu et al., 2018).",
    variants={
        "sparsenet121": _imagenet(
            (6, 12, 24, 16),
            32,
            Figures(4.51, 1.73, quality="25.6 % top-1 error", counted_params_m=3.23, counted_gmacs=1.722, note=_IMAGENET),
        ),
        "sparsenet169": _imagenet(
            (6, 12, 32, 32),
            32,
            Figures(6.23, 1.87, quality="24.2 % top-1 error", counted_params_m=4.69, counted_gmacs=1.861, note=_IMAGENET),
        ),
        "sparsenet201": _imagenet(
            (6, 12, 48, 32),
            32,
            Figures(7.22, 2.065, quality="23.1 % top-1 error", counted_params_m=5.69, counted_gmacs=2.054, note=_IMAGENET),
        ),
        "sparsenet201_k48": _imagenet(
            (6, 12, 48, 32),
            48,
            Figures(14.91, 4.595, quality="22.1 % top-1 error", counted_params_m=12.6, counted_gmacs=4.576, note=_IMAGENET),
        ),
        "sparsenet40_k24_cifar": _cifar(
            (24,) * 3, Figures(0.76, quality=_error("24.65"), counted_params_m=0.84, note=_CIFAR), depth=40, plain=True
        ),
        "sparsenet100_k36_cifar": _cifar((36,) * 3, Figures(5.65, quality=_error("20.50"), counted_params_m=5.84, note=_CIFAR), plain=True),
        "sparsenet100_k16_32_64_cifar": _cifar(
            (16, 32, 64), Figures(7.22, quality=_error("19.49"), counted_params_m=7.56, note=_CIFAR), plain=True
        ),
        "sparsenet100_k24_bc_cifar": _cifar((24,) * 3, Figures(1.46, quality=_error("22.12"), counted_params_m=1.57, note=_CIFAR)),
        "sparsenet100_k16_32_64_bc_cifar": _cifar(
            (16, 32, 64), Figures(4.38, quality=_error("19.71"), counted_params_m=4.65, note=_CIFAR_BC.format("4.38", "4.37"))
        ),
        "sparsenet100_k32_64_128_bc_cifar": _cifar(
            (32, 64, 128), Figures(16.72, quality=_error("17.71"), counted_params_m=17.92, note=_CIFAR_BC.format("16.72", "17.34"))
        ),
    },
)
