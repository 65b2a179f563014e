"""The MetaFormer skeleton: four stages of blocks with a token mixer and a perceptron, both on residual branches.

    y = s1 * x + g1 * mixer(norm(x));    z = s2 * y + g2 * mlp(norm(y))

What makes a family is the mixer, the normalisation and the activation; ``s`` and ``g`` are optional scales per channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnkit.backbones._base import Backbone, FeatureInfo
from cnnkit.errors import ConfigError, unknown
from cnnkit.layers.act import get_act
from cnnkit.layers.attention import Attention
from cnnkit.layers.drop import DropPath, drop_path_rates
from cnnkit.layers.init import init_truncated
from cnnkit.layers.nd import avg_pool, check_dims, conv, tupled

HEAD_WIDTH = 32
"""Features of an attention head."""


class Pooling(nn.Module):
    """The difference of the local mean to the value: ``mean3(x) - x``, zero where the map is constant.

    Positions outside of the map do not count. The block adds ``x`` again, so what it adds is ``mean3(x)``.

    Args:
        dims: Number of spatial dimensions.
    """

    def __init__(self, *, dims: int = 2) -> None:
        super().__init__()
        self.pool = avg_pool(min(check_dims(dims), 2))(3, stride=1, padding=1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the difference, in the shape of ``x``."""
        if x.ndim < 5:
            return self.pool(x) - x
        # A mean over a box is a mean over its sides: cheaper, and PyTorch's own refuses volumes with a side below 3.
        slices = self.pool(x.flatten(1, 2)).view(x.shape).flatten(3)
        return F.avg_pool2d(slices, (3, 1), 1, (1, 0), count_include_pad=False).view(x.shape) - x


class RandomMixing(nn.Module):
    """Mix all positions by one matrix that is drawn once and never learnt; its rows are positive and add up to 1.

    Args:
        tokens: Number of positions.
    """

    random_matrix: Tensor

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.register_buffer("random_matrix", torch.rand(tokens, tokens).softmax(-1))

    def forward(self, x: Tensor) -> Tensor:
        """Mix the positions of ``(B, C, *spatial)``."""
        return F.linear(x.flatten(2), self.random_matrix).view(x.shape)


class SpatialLinear(nn.Module):
    """Mix all positions by one matrix that is learnt.

    Args:
        tokens: Number of positions.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.fc = nn.Linear(tokens, tokens, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the positions of ``(B, C, *spatial)``."""
        return self.fc(x.flatten(2)).view(x.shape)


class SeparableConv(nn.Module):
    """A depthwise convolution between two maps of the channels, in twice as many channels.

    Args:
        channels: Number of channels.
        dims: Number of spatial dimensions.
    """

    def __init__(self, channels: int, *, dims: int = 2) -> None:
        super().__init__()
        wide = 2 * channels
        self.pwconv1 = conv(dims)(channels, wide, 1, bias=False)
        self.act1 = get_act("star_relu")
        self.dwconv = conv(dims)(wide, wide, 7, padding=3, groups=wide, bias=False)
        self.pwconv2 = conv(dims)(wide, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the three convolutions."""
        return self.pwconv2(self.dwconv(self.act1(self.pwconv1(x))))


class MapAttention(Attention):
    """Self-attention among all positions of a map, in heads of 32 features and without biases.

    Args:
        channels: Number of channels.
        axis: Where the channels are: 1, or -1 for channels-last maps.
    """

    def __init__(self, channels: int, *, axis: int = 1) -> None:
        heads = max(channels // HEAD_WIDTH, 1)
        super().__init__(channels, heads=heads, inner=heads * HEAD_WIDTH, qkv_bias=False, proj_bias=False)
        self.axis = axis

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Let every position attend to every other."""
        last = x.movedim(self.axis, -1)
        return super().forward(last.flatten(1, -2), bias).view(last.shape).movedim(-1, self.axis)


MIXERS = ("identity", "pool", "random", "spatial", "conv", "attention")
SIZED = ("random", "spatial")
"""The mixers whose weights belong to positions."""


def new_mixer(name: str, channels: int, size: Sequence[int], *, axis: int = 1) -> nn.Module:
    """Return the token mixer called ``name``.

    Args:
        name: One of :data:`MIXERS`.
        channels: Number of channels.
        size: Size of the map that it mixes; it is read by the mixers in :data:`SIZED`.
        axis: Where the channels are, for attention; the other mixers take channels-first maps.

    Raises:
        ConfigError: If the name is unknown.
    """
    mixers: dict[str, Callable[[], nn.Module]] = {
        "identity": nn.Identity,
        "pool": lambda: Pooling(dims=len(size)),
        "random": lambda: RandomMixing(math.prod(size)),
        "spatial": lambda: SpatialLinear(math.prod(size)),
        "conv": lambda: SeparableConv(channels, dims=len(size)),
        "attention": lambda: MapAttention(channels, axis=axis),
    }
    if name not in mixers:
        raise ConfigError(unknown("token mixer", name, MIXERS))
    return mixers[name]()


class Scale(nn.Module):
    """Scale every channel by a learnt factor.

    Args:
        channels: Number of channels.
        start: Initial factor.
        trailing: Axes after that of the channels: the spatial ones, or 0 for channels-last maps.
    """

    def __init__(self, channels: int, start: float, *, trailing: int) -> None:
        super().__init__()
        self.shape = (channels,) + (1,) * trailing
        self.scale = nn.Parameter(torch.full((channels,), start))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled ``x``."""
        return x * self.scale.view(self.shape)


class MetaFormerBlock(nn.Module):
    """A token mixer and a perceptron, each after a normalisation and on a residual branch.

    Args:
        channels: Number of channels.
        mixer: Mixes positions.
        mlp: Mixes channels.
        norm: Makes a normalisation for a number of channels.
        trailing: Axes after that of the channels: the spatial ones, or 0 for channels-last maps.
        layer_scale: Start of the branches' scales; ``None`` leaves them out.
        res_scale: Start of the shortcuts' scales; ``None`` leaves them out.
        drop_path: Probability that a branch is dropped while training.
    """

    def __init__(
        self,
        channels: int,
        *,
        mixer: nn.Module,
        mlp: nn.Module,
        norm: Callable[[int], nn.Module],
        trailing: int,
        layer_scale: float | None = None,
        res_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()

        def scale(start: float | None) -> nn.Module:
            return nn.Identity() if start is None else Scale(channels, start, trailing=trailing)

        self.norm1 = norm(channels)
        self.token_mixer = mixer
        self.layer_scale1, self.res_scale1 = scale(layer_scale), scale(res_scale)
        self.norm2 = norm(channels)
        self.mlp = mlp
        self.layer_scale2, self.res_scale2 = scale(layer_scale), scale(res_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        x = self.res_scale1(x) + self.drop_path(self.layer_scale1(self.token_mixer(self.norm1(x))))
        return self.res_scale2(x) + self.drop_path(self.layer_scale2(self.mlp(self.norm2(x))))


class Downsampling(nn.Module):
    """A convolution that reduces the size; a normalisation comes before it, or after it in the stem."""

    def __init__(self, conv: nn.Module, norm: nn.Module, *, norm_first: bool) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.norm_first = norm_first

    def forward(self, x: Tensor) -> Tensor:
        """Return the smaller map."""
        return self.conv(self.norm(x)) if self.norm_first else self.norm(self.conv(x))


class MetaFormerStage(nn.Module):
    """Down-sampling where it is due, then blocks.

    Args:
        downsample: Reduces the size, or an identity.
        blocks: The blocks.
        channels_last: Whether the blocks take channels-last maps.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], *, channels_last: bool) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.channels_last = channels_last


class MetaFormerHead(nn.Module):
    """The layers of the head that hold parameters: a normalisation and the classifier."""

    def __init__(self, norm: nn.Module, fc: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.fc = fc


class NewBlock(Protocol):
    """What makes a family's blocks: index of the stage, size of its map, rate of stochastic depth."""

    def __call__(self, stage: int, size: Sequence[int], drop_path: float) -> nn.Module:
        """Return a block."""


class MetaFormer(Backbone):
    """The stages and the pyramid of a MetaFormer; a family says what its blocks, normalisations and head are.

    Args:
        depths: Number of blocks of each stage.
        widths: Channels of each stage.
        mixers: Token mixer of each stage.
        channels_last: Whether the blocks of a stage take channels-last maps, for each stage.
        img_size: Size of the input, one or one per dimension; the only admitted one if a mixer is in :data:`SIZED`.
        new_block: Makes a block.
        down_norm: Makes the normalisation of the stem and of each down-sampling layer.
        head_norm: The normalisation in the head.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling in the head.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If the stages' settings differ in number.
    """

    classifier = "head.fc"
    head_modules = ("head",)

    def __init__(
        self,
        *,
        depths: Sequence[int],
        widths: Sequence[int],
        mixers: Sequence[str],
        channels_last: Sequence[bool],
        img_size: int | Sequence[int],
        new_block: NewBlock,
        down_norm: Callable[[int], nn.Module],
        head_norm: nn.Module,
        dims: int,
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        drop_path_rate: float,
    ) -> None:
        if not len(depths) == len(widths) == len(mixers):
            raise ConfigError(f"depths has {len(depths)} stages, widths {len(widths)} and mixers {len(mixers)}; give one of each per stage")
        super().__init__(
            dims=dims, in_chans=in_chans, num_classes=num_classes, num_features=widths[-1], global_pool=global_pool, drop_rate=drop_rate
        )
        size = tupled(img_size, dims)
        if any(name in SIZED for name in mixers):
            self.fixed_size = size
        self.stem = Downsampling(conv(dims)(in_chans, widths[0], 7, stride=4, padding=2), down_norm(widths[0]), norm_first=False)
        size = tuple((side + 1) // 4 for side in size)
        self.stages = nn.ModuleList()
        self.feature_info = FeatureInfo()
        for index, (width, rates) in enumerate(zip(widths, drop_path_rates(drop_path_rate, depths), strict=True)):
            downsample: nn.Module = nn.Identity()
            if index:
                before = widths[index - 1]
                downsample = Downsampling(conv(dims)(before, width, 3, stride=2, padding=1), down_norm(before), norm_first=True)
                size = tuple((side + 1) // 2 for side in size)
            blocks = [new_block(index, size, rate) for rate in rates]
            self.stages.append(MetaFormerStage(downsample, blocks, channels_last=channels_last[index]))
            self.feature_info.append({"num_chs": width, "reduction": 4 * 2**index, "module": f"stages.{index}"})
        self.head: nn.Module = MetaFormerHead(head_norm, self.new_classifier(num_classes))
        self.apply(init_truncated)

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a fresh last layer, drawn as the other layers are."""
        return super().new_classifier(num_classes).apply(init_truncated)

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the features of every stage."""
        self.check_size(x)
        x = self.stem(x)
        levels = []
        for stage in self.stages:
            if isinstance(stage, MetaFormerStage):
                x = stage.downsample(x)
                x = (
                    self.run_blocks(stage.blocks, x.movedim(1, -1)).movedim(-1, 1)
                    if stage.channels_last
                    else self.run_blocks(stage.blocks, x)
                )
            levels.append(x)
        return levels
