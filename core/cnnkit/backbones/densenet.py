"""DenseNet: Huang, Liu, van der Maaten and Weinberger (2017), "Densely Connected Convolutional Networks".

Each layer reads the features of all layers before it in its block and adds ``k`` new ones, the growth rate::

    x_l = H_l([x_0, x_1, ..., x_{l-1}]),    H = conv3 relu norm conv1 relu norm

where the brackets concatenate channels. The 1x1 convolution to ``4 k`` channels is the bottleneck (the letter B of
DenseNet-BC), and the transition between blocks, a 1x1 convolution and average pooling, compresses the channels by a
half (the letter C). With checkpointing, concatenations and normalisations are recomputed in the backward pass, so that
memory grows linearly with depth: Pleiss et al. (2017), "Memory-Efficient Implementation of DenseNets".

:class:`AggregatedNet` is the frame (stem, blocks, transitions, head) of networks whose layers read some of the layers
before them; a family says which ones, and how they are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cnnkit.backbones._base import Backbone, Family, FeatureInfo, Figures, Layout, Variant, has_keys, rename_keys
from cnnkit.errors import ConfigError, unknown
from cnnkit.layers.nd import avg_pool, batch_norm, conv, max_pool

Sources = Callable[[int], Sequence[int]]
"""Which of so many features (0 is the block's input, then one per layer) the next layer reads, in the order in which they are joined."""

Join = Callable[[Sequence[Tensor]], Tensor]
"""Makes one input of the features that a layer reads."""


def concatenate(features: Sequence[Tensor]) -> Tensor:
    """Concatenate along the channels."""
    return features[0] if len(features) == 1 else torch.cat(tuple(features), 1)


class DenseLayer(nn.Module):
    """Normalise, activate, convolve, once or with a bottleneck twice.

    Shapes:
        features: A sequence of ``(B, C_i, *spatial)``; the result is ``(B, growth, *spatial)``.

    Args:
        in_channels: Channels of the joined features.
        growth: Channels of the output.
        join: Makes one input of the features.
        dims: Number of spatial dimensions.
        bottleneck: Channels of the 1x1 convolution by ``growth``; 0 leaves it out.
        drop: Dropout after each convolution.
    """

    def __init__(self, in_channels: int, growth: int, *, join: Join, dims: int = 2, bottleneck: int = 4, drop: float = 0.0) -> None:
        super().__init__()
        self.join = join
        self.norm1 = batch_norm(dims)(in_channels)
        inner = bottleneck * growth
        if bottleneck:
            self.conv1 = conv(dims)(in_channels, inner, 1, bias=False)
            self.norm2: nn.Module | None = batch_norm(dims)(inner)
            self.conv2 = conv(dims)(inner, growth, 3, padding=1, bias=False)
        else:
            self.conv1 = conv(dims)(in_channels, growth, 3, padding=1, bias=False)
            self.norm2 = None
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(drop)

    def first(self, *features: Tensor) -> Tensor:
        """Join and apply what ends with the first convolution: the part that is cheap to recompute and large to keep."""
        return self.conv1(self.act(self.norm1(self.join(features))))

    def forward(self, features: Sequence[Tensor], recompute: bool = False) -> Tensor:
        """Return the new features.

        Args:
            features: What the layer reads.
            recompute: Keep no activation of :meth:`first` for the backward pass.
        """
        x = self.drop(checkpoint(self.first, *features, use_reentrant=False) if recompute else self.first(*features))
        return x if self.norm2 is None else self.drop(self.conv2(self.act(self.norm2(x))))


class DenseBlock(nn.Module):
    """Layers of which each reads features of the block's input and of layers before it.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, out_channels, *spatial)``.

    Args:
        depth: Number of layers.
        in_channels: Channels of the input.
        growth: Channels of each layer.
        sources: Which features a layer reads, and after the last layer the block's output.
        join: Makes one input of them.
        dims: Number of spatial dimensions.
        bottleneck: Channels of a layer's 1x1 convolution by ``growth``; 0 leaves it out.
        drop: Dropout after each convolution.
    """

    def __init__(
        self,
        depth: int,
        in_channels: int,
        growth: int,
        *,
        sources: Sources,
        join: Join = concatenate,
        dims: int = 2,
        bottleneck: int = 4,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.join = join
        self.reads = [tuple(sources(count)) for count in range(1, depth + 2)]
        # A feature is let go after its last reader: then a sparse block holds few of them at once.
        last = {feature: reader for reader, features in enumerate(self.reads) for feature in features}
        self.frees = [tuple(feature for feature, at in last.items() if at == reader) for reader in range(depth)]
        # What a join makes of features with these channels, asked without arithmetic.
        shapes = [torch.empty(1, channels, 0, device="meta") for channels in [in_channels] + [growth] * depth]
        joined = [join([shapes[i] for i in reads]).shape[1] for reads in self.reads]
        self.out_channels = joined[-1]
        for index in range(depth):
            layer = DenseLayer(joined[index], growth, join=join, dims=dims, bottleneck=bottleneck, drop=drop)
            self.add_module(f"denselayer{index + 1}", layer)

    def forward(self, x: Tensor, recompute: bool = False) -> Tensor:
        """Apply the layers in order; for ``recompute`` see :meth:`DenseLayer.forward`."""
        features: dict[int, Tensor] = {0: x}
        for index, layer in enumerate(self.children()):
            features[index + 1] = layer([features[i] for i in self.reads[index]], recompute)
            for i in self.frees[index]:
                del features[i]
        return self.join([features[i] for i in self.reads[-1]])


class Transition(nn.Sequential):
    """Normalise, activate, project by a 1x1 convolution, and halve the size by average pooling."""

    def __init__(self, in_channels: int, out_channels: int, *, dims: int = 2, drop: float = 0.0) -> None:
        super().__init__()
        self.add_module("norm", batch_norm(dims)(in_channels))
        self.add_module("relu", nn.ReLU(inplace=True))
        self.add_module("conv", conv(dims)(in_channels, out_channels, 1, bias=False))
        self.add_module("drop", nn.Dropout(drop))
        self.add_module("pool", avg_pool(dims)(2))


STEMS = ("cifar", "imagenet", "deep")


def _stem(kind: str, in_chans: int, channels: int, dims: int) -> nn.Sequential:
    """Return the stem: a 3x3 convolution, or what brings the size to a quarter by one 7x7 or three 3x3 convolutions and pooling."""
    sizes: dict[str, tuple[tuple[int, int, int], ...]] = {
        "cifar": ((3, 1, channels),),
        "imagenet": ((7, 2, channels),),
        "deep": ((3, 2, channels // 2), (3, 1, channels // 2), (3, 1, channels)),
    }
    stem = nn.Sequential()
    for index, (size, stride, out) in enumerate(sizes[kind]):
        stem.add_module(f"conv{index}", conv(dims)(in_chans, out, size, stride=stride, padding=size // 2, bias=False))
        if kind != "cifar":
            stem.add_module(f"norm{index}", batch_norm(dims)(out))
            stem.add_module(f"relu{index}", nn.ReLU(inplace=True))
        in_chans = out
    if kind != "cifar":
        stem.add_module("pool0", max_pool(dims)(3, stride=2, padding=1))
    return stem


def _from_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of timm and torchvision, also that of torchvision's old files, from when names of modules could hold dots."""
    return rename_keys(state, ((r"\.(norm|conv)\.(\d)\.", r".\1\2."), (r"^classifier\.", "fc.")))


class AggregatedNet(Backbone):
    """The frame of networks of aggregating layers: a stem, blocks with transitions between them, a last normalisation, a linear layer.

    Args:
        depths: Number of layers of each block.
        growth_rates: Channels of each layer, by block.
        sources: Which features a layer reads.
        join: Makes one input of them.
        stem: ``"imagenet"`` (7x7 convolution and pooling), ``"deep"`` (three 3x3 convolutions and pooling) or ``"cifar"`` (one of 3x3).
        stem_channels: Channels of the stem.
        transitions: Channels after each transition, from those before it and the index of the next block.
        bottleneck: Channels of a layer's 1x1 convolution by its growth rate; 0 leaves it out.
        dims: Number of spatial dimensions.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout after each convolution but the stem's.

    Raises:
        ConfigError: If the stem is unknown.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int],
        growth_rates: Sequence[int],
        sources: Sources,
        join: Join = concatenate,
        stem: str,
        stem_channels: int,
        transitions: Callable[[int, int], int],
        bottleneck: int,
        dims: int,
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        proj_drop_rate: float,
    ) -> None:
        if stem not in STEMS:
            raise ConfigError(unknown("stem", stem, STEMS))
        features = _stem(stem, in_chans, stem_channels, dims)
        info, reduction, channels = FeatureInfo(), 1, stem_channels
        if stem != "cifar":
            info.append({"num_chs": channels, "reduction": 2, "module": f"features.{list(features._modules)[-2]}"})
            reduction = 4
        for index, (depth, growth) in enumerate(zip(depths, growth_rates, strict=True)):
            if index:
                out = transitions(channels, index)
                features.add_module(f"transition{index}", Transition(channels, out, dims=dims, drop=proj_drop_rate))
                channels, reduction = out, reduction * 2
            block = DenseBlock(depth, channels, growth, sources=sources, join=join, dims=dims, bottleneck=bottleneck, drop=proj_drop_rate)
            features.add_module(f"denseblock{index + 1}", block)
            channels = block.out_channels
            info.append({"num_chs": channels, "reduction": reduction, "module": f"features.denseblock{index + 1}"})
        info[-1]["module"] = "features.relu5"
        super().__init__(
            dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=channels, global_pool=global_pool, drop_rate=drop_rate
        )
        # The number in the names is that of the paper's ImageNet networks, in timm and torchvision for every depth.
        features.add_module("norm5", batch_norm(dims)(channels))
        features.add_module("relu5", nn.ReLU(inplace=True))
        self.features = features
        self.feature_info = info
        self.fc = self.new_classifier(num_classes)
        for module in self.features.modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight)

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the stem's features before pooling, where it pools, those of each block, and for the last one its activated ones."""
        taps = set(self.feature_info.module_name())
        levels = []
        for name, module in self.features.named_children():
            x = module(x, self.grad_checkpointing and self.training) if isinstance(module, DenseBlock) else module(x)
            if f"features.{name}" in taps:
                levels.append(x)
        return levels

    def drop_levels(self, after: int) -> None:
        """Remove everything behind level ``after``."""
        names = list(self.features._modules)
        kept = names.index(self.feature_info[after]["module"].removeprefix("features."))
        for name in names[kept + 1 :]:
            self.features.set_submodule(name, nn.Identity())


class DenseNet(AggregatedNet):
    """DenseNet of any depth and growth rate; with ``bottleneck=0`` and ``compression=1`` without the letters B and C.

    Args:
        depths: Number of layers of each block.
        growth_rate: Channels that a layer adds.
        stem: ``"imagenet"``, ``"deep"`` (three 3x3 convolutions, as in timm's models with a final d) or ``"cifar"``.
        stem_channels: Channels of the stem; by default twice the growth rate.
        bottleneck: Channels of a layer's 1x1 convolution by ``growth_rate``; 0 leaves it out.
        compression: Channels after a transition by those before.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout after each convolution but the stem's; the paper uses 0.2 without augmentation.

    Raises:
        ConfigError: If the stem is unknown.
    """

    layouts = (
        Layout("timm", has_keys("features.denseblock1.denselayer1.norm1.weight", "classifier.weight"), _from_timm),
        Layout("torchvision", has_keys("features.denseblock1.denselayer1.norm.1.weight"), _from_timm),
    )

    def __init__(
        self,
        *,
        depths: Sequence[int] = (6, 12, 24, 16),
        growth_rate: int = 32,
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
        super().__init__(
            depths=depths,
            growth_rates=(growth_rate,) * len(depths),
            sources=range,
            stem=stem,
            stem_channels=2 * growth_rate if stem_channels is None else stem_channels,
            transitions=lambda channels, _: int(channels * compression),
            bottleneck=bottleneck,
            dims=dims,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            proj_drop_rate=proj_drop_rate,
        )


TEN_CLASSES = "The paper counts ten classes; the head has a thousand by default."


def _imagenet(depths: tuple[int, ...], growth: int, quality: str = "", **more: str) -> Variant:
    return Variant({"depths": depths, "growth_rate": growth, **more}, Figures(quality=quality))


def _cifar(depth: int, growth: int, params_m: float, counted: float, error: str, *, plain: bool = False) -> Variant:
    args = {"depths": ((depth - 4) // (3 if plain else 6),) * 3, "growth_rate": growth, "stem": "cifar"}
    figures = Figures(
        params_m=params_m, counted_params_m=counted, note=TEN_CLASSES, quality=f"{error} % error on CIFAR-10 with augmentation"
    )
    return Variant({**args, "stem_channels": 16, "bottleneck": 0, "compression": 1.0} if plain else args, figures)


# Figures of the paper's Table 2 and of its code's documentation; neither prints parameters of the ImageNet networks.
FAMILY = Family(
    name="densenet",
    cls=DenseNet,
    small=("densenet121", {"depths": (2, 3, 2), "growth_rate": 8}),
    small_size=32,
    paper="densenet",
    summary="Every layer reads the features of all layers before it in its block (Huang et al., 2017).",
    variants={
        "densenet121": _imagenet((6, 12, 24, 16), 32, "25.0 % top-1 error"),
        "densenet161": _imagenet((6, 12, 36, 24), 48, "22.2 % top-1 error"),
        "densenet169": _imagenet((6, 12, 32, 32), 32, "23.6 % top-1 error"),
        "densenet201": _imagenet((6, 12, 48, 32), 32, "22.5 % top-1 error"),
        "densenet264": _imagenet((6, 12, 64, 48), 32),
        "densenet264d": _imagenet((6, 12, 64, 48), 48, stem="deep"),
        "densenet40_k12_cifar": _cifar(40, 12, 1.0, 1.46, "5.24", plain=True),
        "densenet100_k12_cifar": _cifar(100, 12, 7.0, 8.14, "4.10", plain=True),
        "densenet100_k24_cifar": _cifar(100, 24, 27.2, 29.55, "3.74", plain=True),
        "densenet100_k12_bc_cifar": _cifar(100, 12, 0.8, 1.11, "4.51"),
        "densenet190_k40_bc_cifar": _cifar(190, 40, 25.6, 27.79, "3.46"),
        "densenet250_k24_bc_cifar": _cifar(250, 24, 15.3, 17.04, "3.62"),
    },
)
