"""RDNet: Kim, Heo and Han (2024), "DenseNets Reloaded: Paradigm Shift Beyond ResNets and ViTs".

A DenseNet with the design of recent networks: shortcuts still concatenate, but the network is wider and shallower, mixes features
as ConvNeXt does, and compresses after every three layers, not only where the size changes::

    x_{l+1} = [x_l, drop_path(gamma * f(x_l))],    f = W2 gelu(W1 norm(depthwise7(x_l)))

The hidden width of ``f`` follows the growing input (four times its channels), no longer the output, the growth rate. Where the
features are coarse enough, effective squeeze-and-excitation closes ``f``: Lee and Park (2020), "CenterMask: Real-Time Anchor-Free
Instance Segmentation". ``gamma`` is a scale per channel that starts near 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cnnkit.backbones._base import Backbone, Family, FeatureInfo, Figures, Layout, Variant, has_keys, rename_keys
from cnnkit.backbones.convnext import ConvNeXtHead
from cnnkit.errors import ConfigError
from cnnkit.layers.conv import same_padding
from cnnkit.layers.drop import DropPath, drop_path_rates
from cnnkit.layers.nd import conv
from cnnkit.layers.norm import LayerNormNd


class EffectiveSqueezeExcite(nn.Module):
    """Squeeze-and-excitation by one linear map of the global means, so that no channel is lost: ``x * hard_sigmoid(W mean(x))``.

    Shapes:
        x: ``(B, channels, *spatial)``; the result has the same shape.

    Args:
        channels: Number of channels.
        dims: Number of spatial dimensions.
    """

    def __init__(self, channels: int, *, dims: int = 2) -> None:
        super().__init__()
        self.fc = conv(dims)(channels, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Return the reweighted ``x``."""
        return x * self.gate(self.fc(x.mean(tuple(range(2, x.ndim)), keepdim=True)))


class FeatureMixer(nn.Module):
    """Makes the new features of one layer from all that its stage has so far.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, growth, *spatial)``.

    Args:
        in_channels: Channels of the input.
        growth: Channels of the output.
        dims: Number of spatial dimensions.
        expansion: Hidden channels by ``in_channels``; the product is rounded down to a multiple of 8.
        squeeze: Whether effective squeeze-and-excitation follows.
        layer_scale: Start of ``gamma``; ``None`` leaves it out.
        drop_path: Probability that the new features are dropped while training.
    """

    def __init__(
        self,
        in_channels: int,
        growth: int,
        *,
        dims: int = 2,
        expansion: float = 4.0,
        squeeze: bool = False,
        layer_scale: float | None = 1e-6,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        padding: tuple = same_padding(7, dims=dims)
        hidden = int(in_channels * expansion / 8) * 8
        self.gamma = nn.Parameter(torch.full((growth,), layer_scale)) if layer_scale is not None else None
        layers = nn.Sequential(
            conv(dims)(in_channels, in_channels, 7, padding=padding, groups=in_channels),
            LayerNormNd(in_channels),
            conv(dims)(in_channels, hidden, 1),
            nn.GELU(),
            conv(dims)(hidden, growth, 1),
        )
        if squeeze:
            layers.append(EffectiveSqueezeExcite(growth, dims=dims))
        # A level of its own, because it is one in timm's and the official keys.
        self.layers = nn.Sequential()
        self.layers.add_module("layers", layers)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return the new features."""
        x = self.layers(x)
        if self.gamma is not None:
            x = x * self.gamma.view(-1, *[1] * (x.ndim - 2))
        return self.drop_path(x)


class DenseStage(nn.Module):
    """Feature mixers of which each reads the stage's input and the features of all mixers before it.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, in_channels + growth * len(drop_paths), *spatial)``.

    Args:
        in_channels: Channels of the input.
        growth: Channels of each mixer.
        drop_paths: The mixers' probabilities to be dropped while training; as many as there are mixers.
        dims: Number of spatial dimensions.
        expansion: Hidden channels of a mixer by its input's.
        squeeze: Whether effective squeeze-and-excitation follows.
        layer_scale: Start of a mixer's scale; ``None`` leaves it out.
    """

    def __init__(
        self,
        in_channels: int,
        growth: int,
        drop_paths: Sequence[float],
        *,
        dims: int = 2,
        expansion: float = 4.0,
        squeeze: bool = False,
        layer_scale: float | None = 1e-6,
    ) -> None:
        super().__init__()
        for index, rate in enumerate(drop_paths):
            mixer = FeatureMixer(
                in_channels + index * growth,
                growth,
                dims=dims,
                expansion=expansion,
                squeeze=squeeze,
                layer_scale=layer_scale,
                drop_path=rate,
            )
            self.add_module(f"dense_block{index}", mixer)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the mixers in order."""
        for mixer in self.children():
            x = torch.cat((x, mixer(x)), 1)
        return x


def _from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of the paper's own code: the stem is a module inside a module."""
    return rename_keys(state, ((r"^stem\.stem\.", "stem."),))


class RDNet(Backbone):
    """RDNet of any depth and growth.

    Args:
        growth_rates: Channels that each mixer adds, by stage.
        depths: Number of mixers of each stage.
        downsample: Whether a stage begins by halving the size; the first follows the stem and cannot.
        stem_channels: Channels of the stem.
        squeeze_from: Position of the first stage with effective squeeze-and-excitation.
        expansion: Hidden channels of a mixer by its input's.
        compression: Channels after a transition by those before, rounded down to a multiple of 8.
        patch_size: Size and stride of the stem's convolution.
        layer_scale: Start of each mixer's scale; ``None`` leaves it out.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the head's normalisation.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last mixer, rising linearly from 0.

    Raises:
        ConfigError: If ``growth_rates``, ``depths`` and ``downsample`` differ in length, or the first stage is to halve the size.
    """

    layouts = (Layout("timm"), Layout("official", has_keys("stem.stem.0.weight"), _from_official))
    classifier = "head.fc"
    head_modules = ("head.norm", "head.fc")

    def __init__(
        self,
        *,
        growth_rates: Sequence[int] = (64, 104, 128, 128, 128, 128, 224),
        depths: Sequence[int] = (3, 3, 3, 3, 3, 3, 3),
        downsample: Sequence[bool] = (False, True, True, False, False, False, True),
        stem_channels: int = 64,
        squeeze_from: int = 2,
        expansion: float = 4.0,
        compression: float = 0.5,
        patch_size: int = 4,
        layer_scale: float | None = 1e-6,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if not len(growth_rates) == len(depths) == len(downsample):
            raise ConfigError(
                f"growth_rates has {len(growth_rates)} stages, depths {len(depths)} and downsample {len(downsample)}; "
                "give one of each per stage"
            )
        if downsample[0]:
            raise ConfigError("the first stage follows the stem and halves nothing: begin downsample with False, or change patch_size")
        stages, info = nn.Sequential(), FeatureInfo()
        channels, reduction = stem_channels, patch_size
        for index, (growth, rates, halve) in enumerate(zip(growth_rates, drop_path_rates(drop_path_rate, depths), downsample, strict=True)):
            stage = nn.Sequential()
            if index:
                before, channels = channels, int(channels * compression / 8) * 8
                size = 2 if halve else 1
                reduction *= size
                stage.extend((LayerNormNd(before), conv(dims)(before, channels, size, stride=size)))
            squeeze = index >= squeeze_from
            stage.append(DenseStage(channels, growth, rates, dims=dims, expansion=expansion, squeeze=squeeze, layer_scale=layer_scale))
            stages.append(stage)
            channels += growth * len(rates)
            if index + 1 == len(depths) or downsample[index + 1]:  # Several stages of one size make one level.
                info.append({"num_chs": channels, "reduction": reduction, "module": f"dense_stages.{index}"})
        super().__init__(
            dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=channels, global_pool=global_pool, drop_rate=drop_rate
        )
        self.min_size = reduction
        self.feature_info = info
        self.stem = nn.Sequential(conv(dims)(in_chans, stem_channels, patch_size, stride=patch_size), LayerNormNd(stem_channels))
        self.dense_stages = stages
        self.head = ConvNeXtHead(channels, self.new_classifier(num_classes))
        for module in self.modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a fresh last layer without a bias at first."""
        layer = super().new_classifier(num_classes)
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)
        return layer

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the features at the end of every size."""
        self.check_size(x)
        ends = set(self.feature_info.module_name())
        x = self.stem(x)
        levels = []
        for name, stage in self.dense_stages.named_children():
            x = self.run_blocks(stage, x)
            if f"dense_stages.{name}" in ends:
                levels.append(x)
        return levels

    def drop_levels(self, after: int) -> None:
        """Remove every stage behind level ``after``."""
        last = int(self.feature_info[after]["module"].rpartition(".")[2])
        for index in range(last + 1, len(self.dense_stages)):
            self.dense_stages[index] = nn.Identity()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and normalise the last features, then classify them; see :meth:`Backbone.forward_head`."""
        x = self.head_drop(self.head.norm(self.global_pool(x)))
        return x if pre_logits else self.get_classifier()(x)


def _variant(stem: int, growth: tuple[int, ...], halved: tuple[int, ...], figures: Figures) -> Variant:
    args = {
        "stem_channels": stem,
        "growth_rates": growth,
        "depths": (3,) * len(growth),
        "downsample": tuple(index in halved for index in range(len(growth))),
    }
    return Variant(args, figures)


# Figures of the cards that the authors publish with the models.
FAMILY = Family(
    name="rdnet",
    cls=RDNet,
    small=(
        "rdnet_tiny",
        {
            "stem_channels": 16,
            "growth_rates": (8, 8, 16, 16),
            "depths": (2, 2, 1, 2),
            "downsample": (False, True, False, True),
            "layer_scale": 1.0,
        },
    ),
    small_size=32,
    paper="rdnet",
    summary="DenseNet with the design of recent networks: concatenated shortcuts, wide and shallow (Kim et al., 2024).",
    variants={
        "rdnet_tiny": _variant(64, (64, 104, *[128] * 4, 224), (1, 2, 6), Figures(params_m=24, gmacs=5.0, quality="82.8 top-1")),
        "rdnet_small": _variant(72, (64, 128, *[128] * 7, 240, 240), (1, 2, 9), Figures(params_m=50, gmacs=8.7, quality="83.7 top-1")),
        "rdnet_base": _variant(120, (96, 128, *[168] * 7, 336, 336), (1, 2, 9), Figures(params_m=87, gmacs=15.4, quality="84.4 top-1")),
        "rdnet_large": _variant(144, (128, 192, *[256] * 8, 360, 360), (1, 2, 10), Figures(params_m=186, gmacs=34.7, quality="84.8 top-1")),
    },
)
