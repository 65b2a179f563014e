"""U-Net as nnU-Net plans it (Isensee et al., 2021, after Ronneberger et al., 2015), with any core backbone as encoder.

An encoder of strided convolutions, a decoder of transposed convolutions, and a skip at every resolution. Each
resolution but the deepest has a head of its own, whose loss supervises the decoder from within. Strides and kernels
may differ by axis, for volumes whose slices lie further apart than their pixels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model
from cnnkit.backbones._base import FeaturePyramid
from cnnkit.errors import ConfigError
from cnnkit.layers import nd
from cnnkit.layers.act import get_act
from cnnkit.layers.conv import ConvNormAct
from cnnkit.layers.resample import TransposedConv
from cnnkit.weights import Layout, has_keys, rename_keys
from torch import Tensor, nn

Sizes = int | Sequence[int]


class ConvStage(nn.Module):
    """The convolutions at one resolution, with a shortcut around them if residual.

    Args:
        dims: Spatial dimensions.
        in_channels: Channels of the input.
        channels: Channels of the output.
        convs: Number of convolutions, each with normalisation and activation.
        kernel_size: Kernel, one or one per axis.
        stride: Stride of the first convolution, one or one per axis.
        norm: Name of the normalisation.
        act: Name of the activation.
        bias: Whether convolutions have a bias.
        residual: Add the input before the last activation; where shapes differ, a 1x1 convolution of it.
    """

    def __init__(
        self,
        dims: int,
        in_channels: int,
        channels: int,
        *,
        convs: int = 2,
        kernel_size: Sizes = 3,
        stride: Sizes = 1,
        norm: str = "instance",
        act: str = "leaky_relu",
        bias: bool = True,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.convs = nn.Sequential(
            *(
                ConvNormAct(
                    in_channels if index == 0 else channels,
                    channels,
                    kernel_size,
                    dims=dims,
                    stride=stride if index == 0 else 1,
                    bias=bias,
                    norm=norm,
                    act="none" if residual and index == convs - 1 else act,
                )
                for index in range(convs)
            )
        )
        if residual:
            same = in_channels == channels and set(nd.tupled(stride, dims)) == {1}
            shortcut = ConvNormAct(in_channels, channels, 1, dims=dims, stride=stride, bias=bias, norm=norm, act="none")
            self.shortcut = nn.Identity() if same else shortcut
            self.act = get_act(act)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, *spatial)`` to ``(B, channels, *spatial / stride)``."""
        y = self.convs(x)
        return self.act(y + self.shortcut(x)) if self.residual else y


class ConvEncoder(nn.Module):
    """Stages of strided convolutions.

    Args:
        stages: The stages, from full resolution down.
    """

    def __init__(self, stages: Iterable[ConvStage]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features of every resolution, finest first."""
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class UpStage(nn.Module):
    """Enlarge the features from below, join the skip, and convolve.

    Args:
        below: Channels from below.
        scale: Factor of the enlargement, one per axis.
        stage: The convolutions; they take their own output channels and the skip's.
        channels: Output channels of ``stage``.
        bias: Whether the transposed convolution has a bias.
    """

    def __init__(self, below: int, scale: Sequence[int], stage: ConvStage, channels: int, *, bias: bool = True) -> None:
        super().__init__()
        self.up = TransposedConv(below, channels, dims=len(scale), scale=scale, bias=bias)
        self.stage = stage

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map ``(B, below, *spatial)`` and the skip ``(B, C, *scale * spatial)`` to ``(B, channels, *scale * spatial)``."""
        return self.stage(torch.cat((self.up(x), skip), dim=1))


def _from_nnunet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    # nnU-Net registers every convolution a second time under all_modules, and its encoder again inside the decoder.
    own = {key: value for key, value in state.items() if ".all_modules." not in key and not key.startswith("decoder.encoder.")}
    levels = sum(bool(re.fullmatch(r"decoder\.transpconvs\.\d+\.weight", key)) for key in own)
    rules = [(r"^encoder\.stages\.(\d+)\.0\.convs\.", r"encoder.stages.\1.convs.")]
    for stage in range(levels):
        level = levels - 1 - stage
        rules += [
            (rf"^decoder\.stages\.{stage}\.convs\.", f"up.{level}.stage.convs."),
            (rf"^decoder\.transpconvs\.{stage}\.", f"up.{level}.up.conv."),
            (rf"^decoder\.seg_layers\.{stage}\.", f"heads.{level}."),
        ]
    return rename_keys(own, [*rules, (r"^up\.", "decoder.")])


def _from_dynunet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    own = {key: value for key, value in state.items() if not key.startswith("skip_layers.")}
    levels = sum(bool(re.fullmatch(r"upsamples\.\d+\.transp_conv\.conv\.weight", key)) for key in own)
    rules = [
        (r"^input_block\.", "encoder.stages.0."),
        (r"^bottleneck\.", f"encoder.stages.{levels}."),
        (r"^output_block\.conv\.conv\.", "heads.0."),
    ]
    for index in range(levels):
        level = levels - 1 - index
        rules += [
            (rf"^downsamples\.{index}\.", f"encoder.stages.{index + 1}."),
            (rf"^upsamples\.{index}\.transp_conv\.", f"decoder.{level}.up."),
            (rf"^upsamples\.{index}\.conv_block\.", f"decoder.{level}.stage."),
            (rf"^deep_supervision_heads\.{index}\.conv\.conv\.", f"heads.{index + 1}."),
        ]
    for number, name in (("1", "convs.0"), ("2", "convs.1"), ("3", "shortcut")):
        rules += [(rf"\.conv{number}\.conv\.", f".{name}.conv."), (rf"\.norm{number}\.", f".{name}.norm.")]
    return rename_keys(own, rules)


class UNet(nn.Module):
    """U-Net for signals, images and volumes of any size.

    Args:
        in_chans: Input channels.
        num_classes: Channels of the output.
        dims: 1, 2 or 3.
        channels: Features at each resolution, full resolution first. With ``encoder``, the decoder's, of which the
            first are used.
        strides: Stride of each stage, one or one per axis; the first must be 1. By default 1 and then 2.
        kernel_sizes: Kernel of each stage, one or one per axis; by default 3.
        convs_per_stage: Convolutions at each resolution of the encoder and of the decoder.
        norm: Name of the normalisation, as for :func:`cnnkit.layers.norm.get_norm`.
        act: Name of the activation, as for :func:`cnnkit.layers.act.get_act`.
        conv_bias: Whether convolutions have a bias. nnU-Net's have one, MONAI's DynUNet's have none.
        residual: Residual stages in the encoder.
        deep_supervision: Have a head at every resolution but the deepest, and return all their logits in training.
        encoder: Name of a core backbone that takes the place of the strided convolutions; ``strides``,
            ``kernel_sizes`` and ``residual`` must then be left at their defaults. Where its first features are
            coarser than the input, the skip at full resolution comes from a stage of convolutions on the input.
        encoder_args: Further arguments of the backbone.

    Shapes:
        input: ``(B, in_chans, *spatial)``. Sides that the network's strides do not divide, or that its encoder does not
            admit, are padded with zeros at their far end, and the output is cropped.
        output: logits ``(B, num_classes, *spatial)``; in training with deep supervision a list of logits, full
            resolution first, each side divided by the strides and rounded up.

    Raises:
        ConfigError: If the numbers of stages differ, the first stride is not 1, an argument does not go with ``encoder``, or that
            backbone has no pyramid that a decoder could climb.
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("nnunet", has_keys("encoder.stages.0.0.convs.0.conv.weight", "decoder.transpconvs.0.weight"), _from_nnunet),
        Layout("monai-dynunet", has_keys("input_block.conv1.conv.weight", "upsamples.0.transp_conv.conv.weight"), _from_dynunet),
    )

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 2,
        dims: int = 3,
        *,
        channels: Sequence[int] = (32, 64, 128, 256, 320, 320),
        strides: Sequence[Sizes] | None = None,
        kernel_sizes: Sequence[Sizes] | None = None,
        convs_per_stage: int = 2,
        norm: str = "instance",
        act: str = "leaky_relu",
        conv_bias: bool = True,
        residual: bool = False,
        deep_supervision: bool = True,
        encoder: str | None = None,
        encoder_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.dims = nd.check_dims(dims)
        self.deep_supervision = deep_supervision
        self.norm = norm
        stage = partial(ConvStage, dims, convs=convs_per_stage, norm=norm, act=act, bias=conv_bias)
        self.stem: ConvStage | None = None
        self.encoder: nn.Module
        step, self.least = 1, 1
        if encoder is None:
            if encoder_args:
                raise ConfigError("encoder_args are of a backbone: name it by encoder, or leave them out")
            scales = self._per_stage("strides", strides, (1,) + (2,) * (len(channels) - 1), len(channels))
            kernels = self._per_stage("kernel_sizes", kernel_sizes, (3,) * len(channels), len(channels))
            if set(scales[0]) != {1}:
                raise ConfigError(f"the first stride of a U-Net must be 1, so that it labels every voxel; got {scales[0]}")
            self.encoder = ConvEncoder(
                stage(before, width, kernel_size=kernel, stride=scale, residual=residual)
                for before, width, kernel, scale in zip((in_chans, *channels[:-1]), channels, kernels, scales, strict=True)
            )
            self.encoder.apply(_he_init)
            skips = tuple(channels)
        else:
            if strides is not None or kernel_sizes is not None or residual:
                raise ConfigError(f"strides, kernel_sizes and residual are of the plain encoder; {encoder!r} has its own")
            pyramid = _pyramid(encoder, dims, in_chans, encoder_args or {})
            self.encoder = pyramid
            step, self.least = pyramid.backbone.size_multiple, pyramid.backbone.min_size
            skips, reductions = tuple(pyramid.channels), pyramid.reductions
            if reductions[0] > 1:
                self.stem = stage(in_chans, channels[0])
                skips, reductions = (channels[0], *skips), [1, *reductions]
            scales = [(coarse // fine,) * dims for fine, coarse in zip([1, *reductions[:-1]], reductions, strict=True)]
            kernels = [(3,) * dims] * len(skips)
            if len(channels) < len(skips) - 1:
                raise ConfigError(f"a decoder for {encoder!r} needs {len(skips) - 1} entries in channels, got {tuple(channels)}")
        levels = len(skips) - 1
        widths = (*channels[:levels], skips[-1])
        self.scales = scales
        self.multiple = tuple(math.lcm(math.prod(axis), step) for axis in zip(*scales, strict=True))
        self.decoder = nn.ModuleList(
            UpStage(
                widths[level + 1],
                scales[level + 1],
                stage(widths[level] + skips[level], widths[level], kernel_size=kernels[level]),
                widths[level],
                bias=conv_bias,
            )
            for level in range(levels)
        )
        supervised = widths[: levels if deep_supervision else 1]
        self.heads = nn.ModuleList(nd.conv(dims)(width, num_classes, kernel_size=1) for width in supervised)
        for part in (self.stem, self.decoder, self.heads):
            if part is not None:
                part.apply(_he_init)

    def _per_stage(self, name: str, values: Sequence[Sizes] | None, default: Sequence[int], count: int) -> list[tuple[int, ...]]:
        values = default if values is None else values
        if len(values) != count:
            raise ConfigError(f"{name} has {len(values)} entries for {count} stages of channels; give one for each")
        return [nd.tupled(value, self.dims) for value in values]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return the logits, or in training with deep supervision those of every resolution."""
        size = x.shape[2:]
        x = self._pad(x)
        skips = self.encoder(x)
        if self.stem is not None:
            skips = [self.stem(x), *skips]
        y = skips.pop()
        outputs: list[Tensor] = []
        for level in reversed(range(len(self.decoder))):
            y = self.decoder[level](y, skips[level])
            if level == 0 or (self.training and self.deep_supervision):
                outputs.insert(0, self.heads[level](y))
        outputs = self._crop(outputs, size)
        return outputs if self.training and self.deep_supervision else outputs[0]

    def _pad(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        if len(size) != self.dims:
            raise ValueError(f"this UNet has dims={self.dims}, the input has {len(size)} spatial sides: {tuple(size)}")
        single = all(side <= multiple for side, multiple in zip(size, self.multiple, strict=True))
        if single and self.norm == "instance" and isinstance(self.encoder, ConvEncoder):
            raise ValueError(f"instance normalisation at the deepest stage needs a side longer than {self.multiple}, got {tuple(size)}")
        whole = [-(-max(side, self.least) // multiple) * multiple for side, multiple in zip(size, self.multiple, strict=True)]
        padding = [to - side for side, to in zip(size, whole, strict=True)]
        if not any(padding):
            return x
        return F.pad(x, [amount for far in reversed(padding) for amount in (0, far)])

    def _crop(self, outputs: list[Tensor], size: Sequence[int]) -> list[Tensor]:
        cropped = []
        for output, scale in zip(outputs, self.scales, strict=False):
            size = [-(-side // step) for side, step in zip(size, scale, strict=True)]
            if tuple(output.shape[2:]) != tuple(size):
                for axis, side in enumerate(size, start=2):
                    output = output.narrow(axis, 0, side)
            cropped.append(output)
        return cropped


def _pyramid(name: str, dims: int, in_chans: int, args: Mapping[str, Any]) -> FeaturePyramid:
    """Build a backbone whose levels a decoder can climb: every resolution a whole multiple of the last, at any size of the input.

    Raises:
        ConfigError: If it is none, saying why.
    """
    pyramid = cast(FeaturePyramid, create_model(name, dims=dims, in_chans=in_chans, features_only=True, **args))
    backbone = pyramid.backbone
    wrong = ""
    if backbone.fixed_size is not None:
        wrong = f"it takes inputs of {' x '.join(map(str, backbone.fixed_size))} alone, and a U-Net those of any size"
    elif len(set(pyramid.reductions)) == 1:
        wrong = f"all its features are of one resolution, 1/{pyramid.reductions[0]} of the input, so there is nothing to climb"
    elif backbone.size_slack:
        wrong = "its unpadded convolutions make its levels smaller than the decoder's; with encoder_args: {aligned: true} it pads them"
    if wrong:
        raise ConfigError(f"{name!r} cannot be the encoder of a U-Net: {wrong}. 'cnnkit list backbones' shows the others.")
    return pyramid


def _he_init(module: nn.Module) -> None:
    # He initialisation for leaky ReLU of slope 0.01, as in nnU-Net.
    if isinstance(module, nn.modules.conv._ConvNd):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
