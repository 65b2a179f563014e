"""Inception-ResNet: Szegedy, Ioffe, Vanhoucke and Alemi (2017).

The paper is "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning"; Inception-v4 is in
``inception_v4.py``. Here a 1x1 convolution without normalisation or activation widens the concatenated branches again, and what it
returns is scaled down and added to the input::

    y = relu(x + s (W * [branch1(x), branch2(x), ...] + b)),    s = 0.17, 0.10 and 0.20 on the three grids

Without the scale, networks of more than a thousand channels died in training: the paper recommends 0.1 to 0.3, the numbers are those
of the released code. A factorised kernel is one convolution in one dimension and three in three.

The paper's tables and what was released differ. ``inception_resnet_v1`` and ``inception_resnet_v2_paper`` are the paper's figures, 5,
10 and 5 blocks; where the widths printed for the second (1154 and 2048) cannot be those of a sum, they are what the concatenation
gives, 1152 and 2144. ``inception_resnet_v2`` is the released network: the plain stem with one Inception block, 10, 20 and 10 blocks of
which the last neither scales nor rectifies, and a last 1x1 convolution. ``inception_resnet_v1_facenet`` is the network of faces that
is often used: such a last block too, and an embedding before the classifier.

As in Inception-v4, ``aligned=True`` pads everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from cnnkit.backbones._base import Family, Figures, Layout, Variant, has_keys, rename_keys
from cnnkit.backbones._inception import Branch, Conv, InceptionNet, Make, Mixed, Parts, numbered
from cnnkit.backbones.inception_v4 import init_weights, pooled, reduction_a
from cnnkit.backbones.inception_v4 import stem as mixed_stem
from cnnkit.errors import ConfigError, unknown
from cnnkit.layers.drop import DropPath, drop_path_rates
from cnnkit.layers.nd import conv

STEMS = ("plain", "mixed")


class ResidualMixed(Mixed):
    """Parallel branches, a 1x1 convolution back to the width of the input, and a scaled addition.

    Shapes:
        x: ``(B, channels, *spatial)``; the result has the same shape.

    Args:
        channels: Channels of the input.
        branches: The branches.
        scale: Factor on what is added.
        act: Rectify the sum.
        dims: Number of spatial dimensions.
        drop_path: Probability that the addition is dropped while training.
    """

    def __init__(
        self, channels: int, branches: Sequence[nn.Module], *, scale: float, act: bool = True, dims: int = 2, drop_path: float = 0.0
    ) -> None:
        super().__init__(channels, numbered(branches))
        self.conv2d = conv(dims)(self.out_channels, channels, 1)
        self.out_channels = channels
        self.scale = scale
        self.drop_path = DropPath(drop_path)
        self.act = nn.ReLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Add to ``x`` what the branches see in it."""
        return self.act(torch.add(x, self.drop_path(self.conv2d(super().forward(x))), alpha=self.scale))


Branches = Callable[[int], list[nn.Module]]
"""Makes the branches of a block for so many channels."""


def _v1(parts: Parts) -> list[Branches]:
    """Return the branches on the three grids: the paper's Figures 10, 11 and 13."""
    return [
        lambda c: [
            parts.unit(c, Conv(32)),
            parts.branch(c, Conv(32), Conv(32, 3)),
            parts.branch(c, Conv(32), Conv(32, 3), Conv(32, 3)),
        ],
        lambda c: [parts.unit(c, Conv(128)), parts.branch(c, Conv(128), *parts.per_axis(7, 128, 128))],
        lambda c: [parts.unit(c, Conv(192)), parts.branch(c, Conv(192), *parts.per_axis(3, 192, 192))],
    ]


def _v2(parts: Parts) -> list[Branches]:
    """Return the branches on the three grids: the paper's Figures 16, 17 and 19."""
    return [
        lambda c: [
            parts.unit(c, Conv(32)),
            parts.branch(c, Conv(32), Conv(32, 3)),
            parts.branch(c, Conv(32), Conv(48, 3), Conv(64, 3)),
        ],
        lambda c: [parts.unit(c, Conv(192)), parts.branch(c, Conv(128), *parts.per_axis(7, 160, 192))],
        lambda c: [parts.unit(c, Conv(192)), parts.branch(c, Conv(192), *parts.per_axis(3, 224, 256))],
    ]


def _reduction_b(parts: Parts, channels: int, middle: int, last: int) -> Mixed:
    """Return the paper's Figures 12 and 18, from the grid of 17 to that of 8: three convolutions and a pooling, side by side."""
    branches = [
        parts.branch(channels, Conv(256), Conv(384, 3, stride=2, padded=False)),
        parts.branch(channels, Conv(256), Conv(middle, 3, stride=2, padded=False)),
        parts.branch(channels, Conv(256), Conv(middle, 3), Conv(last, 3, stride=2, padded=False)),
        parts.max_pool(),
    ]
    return Mixed(channels, numbered(branches))


def _mixed_5b(parts: Parts, channels: int) -> Mixed:
    """Return the one block without a residual that ends the released stem."""
    branches = [
        parts.unit(channels, Conv(96)),
        parts.branch(channels, Conv(48), Conv(64, 5)),
        parts.branch(channels, Conv(64), Conv(96, 3), Conv(96, 3)),
        pooled(parts, channels, 64),
    ]
    return Mixed(channels, numbered(branches))


def _plain_stem(parts: Parts) -> dict[str, Make]:
    """Return the paper's Figure 14 but for its last convolution: from the image to the grid of 71."""
    return {
        "conv2d_1a": lambda c: parts.unit(c, Conv(32, 3, stride=2, padded=False)),
        "conv2d_2a": lambda c: parts.unit(c, Conv(32, 3, padded=False)),
        "conv2d_2b": lambda c: parts.unit(c, Conv(64, 3)),
        "maxpool_3a": lambda c: parts.max_pool(),
        "conv2d_3b": lambda c: parts.unit(c, Conv(80)),
        "conv2d_4a": lambda c: parts.unit(c, Conv(192, 3, padded=False)),
    }


def _stages(
    parts: Parts,
    names: Sequence[str],
    branches: Sequence[Branches],
    reductions: Mapping[str, Make],
    *,
    depths: Sequence[int],
    scales: Sequence[float],
    closing: bool,
    drop_path_rate: float,
) -> dict[str, Make]:
    """Return the blocks on the three grids and the reductions between them.

    Args:
        parts: Makes the parts.
        names: Names of the three sequences of blocks.
        branches: Their branches.
        reductions: What leads from a grid to the next, by name.
        depths: Number of blocks on each grid.
        scales: Factor on what their blocks add.
        closing: Whether the last block neither scales nor rectifies.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If a grid has too few blocks.
    """
    if len(depths) != 3 or len(scales) != 3 or min(depths) < 1 or depths[2] <= closing:
        raise ConfigError(
            f"depths={tuple(depths)} and scales={tuple(scales)} do not fit: give three of each, at least one block per grid"
            + (", and two on the last, of which one closes" if closing else "")
        )
    rates = drop_path_rates(drop_path_rate, depths)
    scaled = [depths[0], depths[1], depths[2] - closing]

    def repeat(grid: int) -> Make:
        def make(channels: int) -> Branch:
            return Branch(
                *(
                    ResidualMixed(channels, branches[grid](channels), scale=scales[grid], dims=parts.dims, drop_path=rates[grid][index])
                    for index in range(scaled[grid])
                )
            )

        return make

    def close(channels: int) -> ResidualMixed:
        return ResidualMixed(channels, branches[2](channels), scale=1.0, act=False, dims=parts.dims, drop_path=rates[2][-1])

    steps: dict[str, Make] = {names[0]: repeat(0)}
    for grid, (name, reduction) in enumerate(reductions.items(), 1):
        steps |= {name: reduction, names[grid]: repeat(grid)}
    return {**steps, "block8": close} if closing else steps


class InceptionResNetV1(InceptionNet):
    """Inception-ResNet-v1, of the cost of Inception-v3.

    Args:
        depths: Number of blocks on each of the three grids.
        scales: Factor on what the blocks of a grid add.
        closing: Whether the last block neither scales nor rectifies.
        embedding: Width of a linear layer with batch normalisation before the classifier; 0 leaves it out. The embedding is
            ``forward_head(features, pre_logits=True)``, and without classes there is none.
        width: Factor on all widths.
        aligned: Pad every convolution and pooling, so that the levels are the input's size over their reductions.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it and the embedding out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout after the pooling; the paper trains with 0.2.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If a grid has too few blocks.
    """

    layouts: ClassVar[tuple[Layout, ...]] = (Layout("facenet-pytorch"),)
    classifier = "logits"
    head_modules = ("last_linear", "last_bn", "logits")
    embedding = 0

    def __init__(
        self,
        *,
        depths: Sequence[int] = (5, 10, 5),
        scales: Sequence[float] = (0.17, 0.10, 0.20),
        closing: bool = False,
        embedding: int = 0,
        width: float = 1.0,
        aligned: bool = False,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        parts = Parts(dims, width, aligned)
        steps = {
            **_plain_stem(parts),
            "conv2d_4b": lambda c: parts.unit(c, Conv(256, 3, stride=2, padded=False)),
            **_stages(
                parts,
                ("repeat_1", "repeat_2", "repeat_3"),
                _v1(parts),
                {
                    "mixed_6a": lambda c: reduction_a(parts, c, (192, 192, 256, 384)),
                    "mixed_7a": lambda c: _reduction_b(parts, c, 256, 256),
                },
                depths=depths,
                scales=scales,
                closing=closing,
                drop_path_rate=drop_path_rate,
            ),
        }
        super().__init__(
            steps,
            {"conv2d_2b": 2, "conv2d_4a": 4, "repeat_1": 8, "repeat_2": 16, list(steps)[-1]: 32},
            parts,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )
        self.embedding = parts.scaled(embedding) if embedding else 0
        self.last_linear: nn.Module = nn.Identity()
        self.last_bn: nn.Module = nn.Identity()
        self.logits = self.new_classifier(num_classes)
        self._set_embedding(num_classes)
        self.apply(init_weights)

    def _set_embedding(self, num_classes: int) -> None:
        """Set the layers between the pooling and the classifier; without classes there are none."""
        if not (self.embedding and num_classes):
            self.last_linear, self.last_bn = nn.Identity(), nn.Identity()
        elif not isinstance(self.last_linear, nn.Linear):
            self.last_linear = nn.Linear(self.num_features, self.embedding, bias=False)
            self.last_bn = nn.BatchNorm1d(self.embedding, eps=1e-3)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a fresh last layer, for the embedding or for the pooled features."""
        return nn.Linear(self.embedding or self.num_features, num_classes) if num_classes else nn.Identity()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; without classes the embedding goes too. See :meth:`Backbone.reset_classifier`."""
        some = next(self.parameters())
        self._set_embedding(num_classes)
        for module in (self.last_linear, self.last_bn):
            module.to(device=some.device, dtype=some.dtype).train(self.training)
        super().reset_classifier(num_classes, global_pool)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool, embed and classify; see :meth:`Backbone.forward_head`."""
        x = self.last_bn(self.last_linear(super().forward_head(x, pre_logits=True)))
        return x if pre_logits else self.logits(x)


class InceptionResNetV2(InceptionNet):
    """Inception-ResNet-v2, of the cost of Inception-v4.

    Args:
        stem: ``"plain"`` with one Inception block after it, as released, or ``"mixed"``, the paper's, which is that of Inception-v4.
        depths: Number of blocks on each of the three grids.
        scales: Factor on what the blocks of a grid add.
        closing: Whether the last block neither scales nor rectifies.
        last_width: Channels of a last 1x1 convolution; 0 leaves it out.
        width: Factor on all widths.
        aligned: Pad every convolution and pooling, so that the levels are the input's size over their reductions.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier; the paper trains with 0.2.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If the stem is unknown, or a grid has too few blocks.
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("timm"),
        Layout("pretrained-models", has_keys("last_linear.weight"), lambda state: rename_keys(state, ((r"^last_linear\.", "classif."),))),
    )
    classifier = "classif"
    head_modules = ("classif",)

    def __init__(
        self,
        *,
        stem: str = "plain",
        depths: Sequence[int] = (10, 20, 10),
        scales: Sequence[float] = (0.17, 0.10, 0.20),
        closing: bool = True,
        last_width: int = 1536,
        width: float = 1.0,
        aligned: bool = False,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if stem not in STEMS:
            raise ConfigError(unknown("stem", stem, STEMS))
        parts = Parts(dims, width, aligned)
        if stem == "plain":
            start = _plain_stem(parts) | {"maxpool_5a": lambda c: parts.max_pool(), "mixed_5b": lambda c: _mixed_5b(parts, c)}
        else:
            names = ("conv2d_1a", "conv2d_2a", "conv2d_2b", "mixed_3a", "mixed_4a", "mixed_5a")
            start = dict(zip(names, mixed_stem(parts), strict=True))
        steps = start | _stages(
            parts,
            ("repeat", "repeat_1", "repeat_2"),
            _v2(parts),
            {
                "mixed_6a": lambda c: reduction_a(parts, c, (256, 256, 384, 384)),
                "mixed_7a": lambda c: _reduction_b(parts, c, 288, 320),
            },
            depths=depths,
            scales=scales,
            closing=closing,
            drop_path_rate=drop_path_rate,
        )
        if last_width:
            steps["conv2d_7b"] = lambda c: parts.unit(c, Conv(last_width))
        second = "conv2d_4a" if stem == "plain" else "mixed_3a"
        super().__init__(
            steps,
            {"conv2d_2b": 2, second: 4, "repeat": 8, "repeat_1": 16, list(steps)[-1]: 32},
            parts,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )
        self.apply(init_weights)


# Errors of the paper's Table 2: one crop, one network.
FAMILY = Family(
    name="inception_resnet",
    cls=InceptionResNetV2,
    paper="inception-v4",
    small=("inception_resnet_v2", {"width": 0.06, "depths": (1, 1, 2), "aligned": True}),
    summary="Inception blocks whose output is scaled down and added to their input (Szegedy et al., 2017).",
    variants={
        "inception_resnet_v1": Variant(
            {}, Figures(input_size=299, quality="21.3 % top-1 and 5.5 % top-5 error, single crop"), cls=InceptionResNetV1
        ),
        "inception_resnet_v1_facenet": Variant(
            {"depths": (5, 10, 6), "closing": True, "embedding": 512},
            paper="",
            summary="Inception-ResNet-v1 with a last block more and an embedding, as it is used for faces.",
            cls=InceptionResNetV1,
        ),
        "inception_resnet_v2": Variant(
            {},
            Figures(input_size=299, quality="19.9 % top-1 and 4.9 % top-5 error, single crop"),
            summary="Inception-ResNet-v2 as it was released, with twice the blocks of the paper (Szegedy et al., 2017).",
        ),
        "inception_resnet_v2_paper": Variant(
            {"stem": "mixed", "depths": (5, 10, 5), "closing": False, "last_width": 0},
            summary="Inception-ResNet-v2 of the paper's figures (Szegedy et al., 2017).",
        ),
    },
)
