"""Inception-v3: Szegedy, Vanhoucke, Ioffe, Shlens and Wojna (2016), "Rethinking the Inception Architecture for Computer Vision".

Blocks of parallel branches whose large kernels are factorised: 5x5 into two 3x3, and on the coarser grids an n x n kernel into one
convolution per axis, which costs ``2 n`` instead of ``n^2`` multiply-adds::

    W7x7 * x   becomes   relu W7x1 * (relu W1x7 * x)

The grid is reduced by strided convolutions and strided pooling side by side, so that no bottleneck arises. In one dimension a
factorised convolution is one convolution, in three dimensions three; the coarsest blocks, which put 1x3 and 3x1 side by side, have
one branch per axis, and so their width depends on the number of dimensions (1280, 2048 or 2816 channels in the end).

The paper's stem pads only one of its convolutions: 299 pixels give levels of 147, 71, 35, 17 and 8. For dense predictions
``aligned=True`` pads all, and the levels are the input's size over their reductions; weights fit both.

The auxiliary head (``aux_logits=True``) is a second classifier on the last 17x17 grid, which regularises the training: minimise
``loss(logits) + 0.3 loss(aux)`` of :meth:`InceptionV3.forward_with_aux`, both with a label smoothing of 0.1.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cnnkit.backbones._base import Family, Figures, Layout, Variant, has_keys
from cnnkit.backbones._inception import Along, Conv, InceptionNet, Make, Mixed, Parts
from cnnkit.errors import InputError, UsageError
from cnnkit.layers.nd import avg_pool
from cnnkit.layers.pool import global_pool

Step = dict[str, nn.Module]


def _named(name: str, units: Sequence[nn.Module]) -> list[Step]:
    """Return units as the steps of a branch, numbered as in torchvision."""
    return [{f"{name}_{index + 1}": unit} for index, unit in enumerate(units)]


def _side_by_side(parts: Parts, channels: int, name: str, width: int) -> Step:
    """Return one convolution of size 3 per axis, named with letters."""
    return {name + letter: parts.unit(channels, Conv(width, Along(axis, 3))) for letter, axis in zip("abc", parts.axes(), strict=False)}


def _pool(parts: Parts, channels: int, width: int) -> list[Step]:
    return [{"pool": parts.avg_pool(include_pad=True)}, {"branch_pool": parts.unit(channels, Conv(width))}]


def inception_a(parts: Parts, channels: int, pool_width: int) -> Mixed:
    """Return the paper's Figure 5, on the grid of 35: two 3x3 convolutions in place of one of 5x5 (the released one keeps a 5x5 too)."""
    return Mixed(
        channels,
        [
            [{"branch1x1": parts.unit(channels, Conv(64))}],
            _named("branch5x5", parts.units(channels, Conv(48), Conv(64, 5))),
            _named("branch3x3dbl", parts.units(channels, Conv(64), Conv(96, 3), Conv(96, 3))),
            _pool(parts, channels, pool_width),
        ],
    )


def reduction_a(parts: Parts, channels: int) -> Mixed:
    """Return the paper's Figure 10, from the grid of 35 to that of 17."""
    return Mixed(
        channels,
        [
            [{"branch3x3": parts.unit(channels, Conv(384, 3, stride=2, padded=False))}],
            _named("branch3x3dbl", parts.units(channels, Conv(64), Conv(96, 3), Conv(96, 3, stride=2, padded=False))),
            [{"pool": parts.max_pool()}],
        ],
    )


def inception_b(parts: Parts, channels: int, width: int) -> Mixed:
    """Return the paper's Figure 6, on the grid of 17: kernels of 7 along one axis at a time; ``width`` is that of the inner layers."""
    forth, twice = parts.axes(), 2 * list(range(parts.dims))
    return Mixed(
        channels,
        [
            [{"branch1x1": parts.unit(channels, Conv(192))}],
            _named("branch7x7", parts.units(channels, Conv(width), *parts.per_axis(7, width, 192, axes=forth))),
            _named("branch7x7dbl", parts.units(channels, Conv(width), *parts.per_axis(7, width, 192, axes=twice))),
            _pool(parts, channels, 192),
        ],
    )


def reduction_b(parts: Parts, channels: int) -> Mixed:
    """Return the block from the grid of 17 to that of 8."""
    return Mixed(
        channels,
        [
            _named("branch3x3", parts.units(channels, Conv(192), Conv(320, 3, stride=2, padded=False))),
            _named("branch7x7x3", parts.units(channels, Conv(192), *parts.per_axis(7, 192, 192), Conv(192, 3, stride=2, padded=False))),
            [{"pool": parts.max_pool()}],
        ],
    )


def inception_c(parts: Parts, channels: int) -> Mixed:
    """Return the paper's Figure 7, on the grid of 8: kernels of 3 along each axis, side by side."""
    single = parts.units(channels, Conv(384))
    double = parts.units(channels, Conv(448), Conv(384, 3))
    return Mixed(
        channels,
        [
            [{"branch1x1": parts.unit(channels, Conv(320))}],
            [*_named("branch3x3", single), _side_by_side(parts, single[-1].out_channels, "branch3x3_2", 384)],
            [*_named("branch3x3dbl", double), _side_by_side(parts, double[-1].out_channels, "branch3x3dbl_3", 384)],
            _pool(parts, channels, 192),
        ],
    )


class AuxiliaryHead(nn.Module):
    """The second classifier, on the last grid of 17 positions.

    Shapes:
        x: ``(B, in_channels, *spatial)`` with at least 17 positions along each axis; the result is ``(B, num_classes)``.

    Args:
        in_channels: Channels of the grid.
        num_classes: Outputs.
        parts: Widths and number of dimensions.
    """

    def __init__(self, in_channels: int, num_classes: int, parts: Parts) -> None:
        super().__init__()
        self.pool = avg_pool(parts.dims)(5, stride=3)
        self.conv0 = parts.unit(in_channels, Conv(128))
        self.conv1 = Parts(parts.dims, parts.width).unit(self.conv0.out_channels, Conv(768, 5, padded=False))
        self.fc = nn.Linear(self.conv1.out_channels, num_classes)
        _init(self.conv0.conv)
        _init(self.conv1.conv, 0.01)
        _init(self.fc, 0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Return the auxiliary logits.

        Raises:
            InputError: If the grid is too small for the head's kernels.
        """
        if min(x.shape[2:]) < 17:
            raise InputError(
                f"the auxiliary head needs a grid of at least 17 positions and got {tuple(x.shape[2:])}; train with 299 pixels, or "
                "without it (aux_logits=False)"
            )
        return self.fc(global_pool(self.conv1(self.conv0(self.pool(x)))))


def _without_auxiliary_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of torchvision, which always has the auxiliary head."""
    return {key: value for key, value in state.items() if not key.startswith("AuxLogits.")}


class InceptionV3(InceptionNet):
    """Inception-v3.

    Args:
        width: Factor on all widths.
        aligned: Pad every convolution and pooling, so that the levels are the input's size over their reductions.
        aux_logits: Add the auxiliary head; see :meth:`forward_with_aux`.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it and the auxiliary head out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.
    """

    layouts = (Layout("timm"), Layout("torchvision", has_keys("AuxLogits.fc.weight"), _without_auxiliary_head))
    classifier = "fc"
    head_modules = ("fc", "AuxLogits")

    def __init__(
        self,
        *,
        width: float = 1.0,
        aligned: bool = False,
        aux_logits: bool = False,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        parts = Parts(dims, width, aligned)
        super().__init__(
            _steps(parts),
            {"Conv2d_2b_3x3": 2, "Conv2d_4a_3x3": 4, "Mixed_5d": 8, "Mixed_6e": 16, "Mixed_7c": 32},
            parts,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )
        for module in self.modules():
            _init(module)
        self.parts, self.aux_logits = parts, aux_logits
        self.AuxLogits = self._new_auxiliary_head(num_classes)

    def _new_auxiliary_head(self, num_classes: int) -> nn.Module:
        if not (self.aux_logits and num_classes):
            return nn.Identity()
        return AuxiliaryHead(self.feature_info[3]["num_chs"], num_classes, self.parts)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier, and with it the auxiliary head; see :meth:`Backbone.reset_classifier`."""
        super().reset_classifier(num_classes, global_pool)
        some = next(self.parameters())
        self.AuxLogits = self._new_auxiliary_head(num_classes).to(device=some.device, dtype=some.dtype).train(self.training)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a fresh last layer, drawn as the convolutions are."""
        classifier = super().new_classifier(num_classes)
        _init(classifier)
        return classifier

    def forward_with_aux(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits and those of the auxiliary head, for training.

        Raises:
            UsageError: If the model was built without it.
            InputError: If the input is too small for it.
        """
        if not isinstance(self.AuxLogits, AuxiliaryHead):
            raise UsageError("this model has no auxiliary head; build it with aux_logits=True and with classes")
        levels = self.forward_pyramid(x)
        return self.forward_head(levels[-1]), self.AuxLogits(levels[3])


def _steps(parts: Parts) -> dict[str, Make]:
    """Return the chain, under the names of the released model."""
    return {
        "Conv2d_1a_3x3": lambda c: parts.unit(c, Conv(32, 3, stride=2, padded=False)),
        "Conv2d_2a_3x3": lambda c: parts.unit(c, Conv(32, 3, padded=False)),
        "Conv2d_2b_3x3": lambda c: parts.unit(c, Conv(64, 3)),
        "Pool1": lambda c: parts.max_pool(),
        "Conv2d_3b_1x1": lambda c: parts.unit(c, Conv(80)),
        "Conv2d_4a_3x3": lambda c: parts.unit(c, Conv(192, 3, padded=False)),
        "Pool2": lambda c: parts.max_pool(),
        "Mixed_5b": lambda c: inception_a(parts, c, 32),
        "Mixed_5c": lambda c: inception_a(parts, c, 64),
        "Mixed_5d": lambda c: inception_a(parts, c, 64),
        "Mixed_6a": lambda c: reduction_a(parts, c),
        "Mixed_6b": lambda c: inception_b(parts, c, 128),
        "Mixed_6c": lambda c: inception_b(parts, c, 160),
        "Mixed_6d": lambda c: inception_b(parts, c, 160),
        "Mixed_6e": lambda c: inception_b(parts, c, 192),
        "Mixed_7a": lambda c: reduction_b(parts, c),
        "Mixed_7b": lambda c: inception_c(parts, c),
        "Mixed_7c": lambda c: inception_c(parts, c),
    }


def _init(module: nn.Module, deviation: float = 0.1) -> None:
    """A normal distribution cut off at 2, with the deviations of the released code."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=deviation)


FAMILY = Family(
    name="inception_v3",
    cls=InceptionV3,
    paper="inception-v3",
    small=("inception_v3", {"width": 0.08, "aligned": True}),
    summary="Inception with factorised convolutions (Szegedy et al., 2016).",
    variants={
        "inception_v3": Variant(
            {},
            Figures(
                gmacs=5,
                input_size=299,
                quality="21.2 % top-1 and 5.6 % top-5 error, single frame",
                counted_gmacs=5.71,
                note="The abstract's 5 billion is not the count of the released model, whose weights and layers these are.",
            ),
        )
    },
)
