"""ResNeSt: Zhang, Wu, Zhang, Zhu, Lin, Zhang, Sun, He, Mueller, Manmatha, Li and Smola (2022), "ResNeSt: Split-Attention Networks".

The 3x3 convolution of a bottleneck makes ``R`` answers (the radix) instead of one, each from its own part of the channels, and
each channel chooses among them by what the whole image shows::

    u_r = relu(norm(conv_r(x_r)));    a = softmax over r of W2 relu(norm(W1 mean(sum_r u_r)));    y = sum_r a_r u_r

in each of ``K`` groups of channels (the cardinality) by itself. With ``R = 1`` the softmax is a sigmoid, and the layer a grouped
convolution with squeeze-and-excitation. The rest is ResNet-D (a stem of three 3x3 convolutions, means in front of a shortcut's
convolution), with 3x3 means in place of the stride inside a block as well; the fast variants take them before the convolution.
A name such as ``4s2x40d`` says radix 4, cardinality 2, and 40 channels in a group at a width of 64.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cnnkit.backbones._base import Family, Figures, Layout, Variant
from cnnkit.backbones.resnet import ResidualNet, deep_stem, pool_shortcut, same_conv
from cnnkit.errors import ConfigError
from cnnkit.layers.drop import DropPath
from cnnkit.layers.nd import avg_pool, batch_norm, conv


class SplitAttention(nn.Module):
    """A 3x3 convolution with several answers, each from its own part of the channels, and for each channel a weighted mean of them.

    Shapes:
        x: ``(B, channels, *spatial)``; the result has the same shape.

    Args:
        channels: Number of channels, in and out.
        dims: Number of spatial dimensions: 1, 2 or 3.
        radix: Answers of each channel.
        groups: Groups of channels that do not see each other.
        dilation: Dilation of the convolution.
        reduction: ``radix * channels`` by the hidden width of the weights' map, which is at least 32.

    Raises:
        ConfigError: If groups and answers do not divide the channels or the hidden width, or there is no answer.
    """

    def __init__(self, channels: int, *, dims: int = 2, radix: int = 2, groups: int = 1, dilation: int = 1, reduction: int = 4) -> None:
        super().__init__()
        hidden = max(channels * radix // reduction, 32)
        if radix < 1:
            raise ConfigError(f"radix={radix} is no number of answers; use 1 or more")
        if channels % (groups * radix) or hidden % groups:
            raise ConfigError(
                f"{groups} groups of {radix} answers do not fit {channels} channels and a hidden width of {hidden}: groups must divide the "
                "hidden width, and groups times answers the channels"
            )
        self.radix = radix
        self.groups = groups
        self.conv = same_conv(channels, channels * radix, 3, dims=dims, dilation=dilation, groups=groups * radix)
        self.bn0 = batch_norm(dims)(channels * radix)
        self.act = nn.ReLU(inplace=True)
        self.fc1 = conv(dims)(channels, hidden, 1, groups=groups)
        self.bn1 = batch_norm(dims)(hidden)
        self.fc2 = conv(dims)(hidden, channels * radix, 1, groups=groups)

    def weights(self, answers: Tensor) -> Tensor:
        """Return the weight of every answer, ``(B, radix, channels, 1, ...)``, from all of them, ``(B, radix * channels, *spatial)``."""
        # The mean of the answers' sum, as the sum of their means: a pass over the features less.
        means = answers.mean(tuple(range(2, answers.ndim)), keepdim=True).unflatten(1, (self.radix, -1)).sum(1)
        scores = self.fc2(self.act(self.bn1(self.fc1(means))))
        if self.radix == 1:
            return scores.sigmoid().unsqueeze(1)
        # The scores lie by group and then by answer, because they come from a grouped map.
        return scores.unflatten(1, (self.groups, self.radix, -1)).transpose(1, 2).softmax(1).flatten(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Answer, weigh and sum."""
        answers = self.act(self.bn0(self.conv(x)))
        weights = self.weights(answers).unbind(1)
        first, *others = answers.unflatten(1, (self.radix, -1)).unbind(1)
        total = first * weights[0]
        for answer, weight in zip(others, weights[1:], strict=True):
            total = torch.addcmul(total, answer, weight)
        return total


def _means(dims: int, stride: int) -> nn.Module:
    """Return the mean over 3 positions along each axis, zeros beyond the border included."""
    if dims == 3:  # Here torch refuses a side of 2, although its padding makes it 4.
        return nn.Sequential(nn.ConstantPad3d(1, 0.0), nn.AvgPool3d(3, stride))
    return avg_pool(dims)(3, stride, padding=1)


class ResNeStBottleneck(nn.Module):
    """A bottleneck with split attention between its two 1x1 convolutions, and means in place of a stride.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, 4 * width, *ceil(spatial / stride))``.

    Args:
        in_channels: Channels of the input.
        width: A quarter of the output's channels.
        dims: Number of spatial dimensions.
        stride: Stride of the block.
        dilation: Dilation of the stage.
        first_dilation: Dilation of the convolution, where it differs from the stage's.
        radix: Answers of each channel.
        cardinality: Groups of channels.
        base_width: Channels of one group, at a width of 64.
        pool_first: Take the means before the convolution instead of after it.
        shortcut: What brings the input to the output's shape; ``None`` for the identity.
        drop_path: Probability that the branch is dropped while training.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        dims: int = 2,
        stride: int = 1,
        dilation: int = 1,
        first_dilation: int | None = None,
        radix: int = 2,
        cardinality: int = 1,
        base_width: int = 64,
        pool_first: bool = False,
        shortcut: nn.Module | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        first_dilation = first_dilation or dilation
        inner = width * base_width // 64 * cardinality
        out_channels = width * self.expansion
        self.conv1 = same_conv(in_channels, inner, 1, dims=dims)
        self.bn1 = batch_norm(dims)(inner)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = SplitAttention(inner, dims=dims, radix=radix, groups=cardinality, dilation=first_dilation)
        # A stage that trades its stride for dilation still averages, at stride 1, as in the authors' code.
        averages = stride > 1 or first_dilation != dilation
        pool = _means(dims, stride) if averages else nn.Identity()
        self.pool_before = pool if pool_first else nn.Identity()
        self.pool_after = nn.Identity() if pool_first else pool
        self.conv3 = same_conv(inner, out_channels, 1, dims=dims)
        self.bn3 = batch_norm(dims)(out_channels)
        self.drop_path = DropPath(drop_path)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        branch = self.pool_before(self.act(self.bn1(self.conv1(x))))
        branch = self.pool_after(self.conv2(branch))
        branch = self.drop_path(self.bn3(self.conv3(branch)))
        return self.act(branch + (x if self.downsample is None else self.downsample(x)))


class ResNeSt(ResidualNet):
    """ResNeSt of any depth, radix and cardinality.

    Args:
        depths: Number of blocks of each stage.
        widths: A quarter of each stage's output channels.
        radix: Answers of each channel.
        cardinality: Groups of channels.
        base_width: Channels of one group, at a width of 64.
        pool_first: Take a block's means before its 3x3 convolution instead of after it: the fast variants.
        stem_width: Channels of the stem's first two convolutions; the third has twice as many.
        output_stride: Reduction of the last stage: 32, or 16 or 8 with dilation in place of stride.
        dims: Number of spatial dimensions: 1, 2 or 3.
        in_chans: Channels of the input.
        num_classes: Outputs of the classifier; 0 leaves it out.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.

    Raises:
        ConfigError: If cardinality and radix do not divide a block's inner width, or ``radix`` is not positive.
    """

    layouts = (Layout("timm"), Layout("official"))

    def __init__(
        self,
        *,
        depths: Sequence[int] = (3, 4, 6, 3),
        widths: Sequence[int] = (64, 128, 256, 512),
        radix: int = 2,
        cardinality: int = 1,
        base_width: int = 64,
        pool_first: bool = False,
        stem_width: int = 32,
        output_stride: int = 32,
        dims: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        block = functools.partial(
            ResNeStBottleneck, dims=dims, radix=radix, cardinality=cardinality, base_width=base_width, pool_first=pool_first
        )
        super().__init__(
            stem=deep_stem(in_chans, stem_width, dims=dims),
            stem_channels=2 * stem_width,
            block=block,
            shortcut=pool_shortcut,
            expansion=ResNeStBottleneck.expansion,
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


_NORMS = "The authors also count an operation for each normalised value; here only what layers with weights multiply."
_ROUNDED = f"{_NORMS} The 26,217,896 parameters are printed as 26.3 million."
_REST = f"{_NORMS} It explains a part of the difference; of the rest we do not know the reason."


def _fast(radix: int, cardinality: int, base_width: int, figures: Figures) -> Variant:
    args = {"radix": radix, "cardinality": cardinality, "base_width": base_width, "pool_first": True}
    return Variant(args, dataclasses.replace(figures, note=figures.note or _NORMS))


# Figures of the fast variants are those of the table in the authors' repository.
FAMILY = Family(
    name="resnest",
    cls=ResNeSt,
    small=("resnest50d", {"depths": (1, 2, 1, 1), "widths": (8, 8, 16, 24), "cardinality": 2, "stem_width": 8}),
    paper="resnest",
    summary="Residual network whose convolutions give several answers, weighted by channel (Zhang et al., 2022).",
    variants={
        "resnest14d": Variant({"depths": (1, 1, 1, 1)}),
        "resnest26d": Variant({"depths": (2, 2, 2, 2)}),
        "resnest50d": Variant({}, Figures(params_m=27.5, gmacs=5.39, counted_gmacs=5.37, note=_NORMS, quality="81.13 top-1")),
        "resnest101e": Variant(
            {"depths": (3, 4, 23, 3), "stem_width": 64}, Figures(params_m=48.3, gmacs=10.2, quality="82.83 top-1 at 256")
        ),
        "resnest200e": Variant({"depths": (3, 24, 36, 3), "stem_width": 64}, Figures(params_m=70, quality="83.84 top-1 at 320")),
        "resnest269e": Variant({"depths": (3, 30, 48, 8), "stem_width": 64}, Figures(params_m=111, quality="84.54 top-1 at 416")),
        "resnest50d_1s1x64d": _fast(
            1, 1, 64, Figures(params_m=26.3, counted_params_m=26.2, gmacs=4.34, counted_gmacs=4.33, note=_ROUNDED, quality="80.33 top-1")
        ),
        "resnest50d_2s1x64d": _fast(2, 1, 64, Figures(params_m=27.5, gmacs=4.34, counted_gmacs=4.33, quality="80.53 top-1")),
        "resnest50d_4s1x64d": _fast(4, 1, 64, Figures(params_m=31.9, gmacs=4.35, counted_gmacs=4.34, quality="80.76 top-1")),
        "resnest50d_1s2x40d": _fast(1, 2, 40, Figures(params_m=25.9, gmacs=4.38, counted_gmacs=4.36, quality="80.59 top-1")),
        "resnest50d_2s2x40d": _fast(2, 2, 40, Figures(params_m=26.9, gmacs=4.38, counted_gmacs=4.37, quality="80.97 top-1")),
        "resnest50d_4s2x40d": _fast(4, 2, 40, Figures(params_m=30.4, gmacs=4.41, counted_gmacs=4.37, note=_REST, quality="80.86 top-1")),
        "resnest50d_1s4x24d": _fast(1, 4, 24, Figures(params_m=25.7, gmacs=4.42, counted_gmacs=4.4, note=_REST, quality="80.99 top-1")),
    },
)
