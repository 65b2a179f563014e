"""AclNet (Huang and Alvarado Leanos, 2018, "AclNet: efficient end-to-end audio classification CNN").

Two strided 1-D convolutions on the waveform and a maximum over 10 ms stand in for a spectrogram (the *low-level features*, 64 of them).
Their map, features by frames, is an image of one channel, which a network in the manner of VGG classifies (the *high-level features*):

    ``x -> conv 9 / S1 -> conv 5 / S2 -> max over 10 ms -> (1, 64, frames) -> conv -> 4 times [conv, conv, max 2x2] -> mean -> classes``

All convolutions but the first of each part may be depthwise-separable, as in MobileNet, and a multiplier scales the widths of the second
part: the two trade accuracy for parameters and time.

There is no official code. Kernels, widths and the order of layers are those of a public re-implementation of the paper's two tables. It
has a fifth 2x2 maximum, after the first convolution of the image (``stem_pool=True``): with it the 49.3 M multiply-adds per second that the
paper prints for 155 k parameters come out as 15 M, without it as 48 M, so that we leave it out. That this small configuration is separable,
at 44.1 kHz, and that 1.44 k parameters make low-level features of it, is what a public review of the paper notes; the multiplier 0.5,
the normalisation after the first convolution and the strides 7 and 3 are our reading of these sums.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from cnnkit.errors import ConfigError
from cnnkit.layers.conv import ConvNormAct
from torch import Tensor, nn

from cnnkit_audio.models._base import Tagger

LOW = 64
"""Low-level features, the height of the image."""
STAGES = ((64, 64), (128, 128), (256, 256), (512, 512))
"""Channels of the convolutions between two maxima of the high-level features, before the multiplier."""
STEM = 32
"""Channels of the image's first convolution, before the multiplier."""
FRAMES_PER_SECOND = 100


def conv_norm(
    in_channels: int, out_channels: int, kernel_size: int = 3, *, dims: int = 2, stride: int = 1, separable: bool = False
) -> nn.Sequential:
    """Return a convolution and its normalisation, without the activation, which comes after the maximum if one follows.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Size of the kernel.
        dims: Spatial dimensions.
        stride: Stride.
        separable: A depthwise convolution, normalised and activated, then a 1x1 convolution.
    """
    if not separable:
        return nn.Sequential(ConvNormAct(in_channels, out_channels, kernel_size, dims=dims, stride=stride, act="none"))
    depthwise = ConvNormAct(in_channels, in_channels, kernel_size, dims=dims, stride=stride, groups=in_channels)
    return nn.Sequential(depthwise, ConvNormAct(in_channels, out_channels, 1, dims=dims, act="none"))


def frame_maximum(x: Tensor, pool: int, frames: int) -> Tensor:
    """Return the maximum over each frame of ``pool`` values: ``(B, C, frames)`` of ``(B, C, T)``, ``T`` at least their product.

    ``amax`` is vectorised where ``max_pool1d`` is not.
    """
    return x[..., : frames * pool].unflatten(-1, (frames, pool)).amax(-1)


class LowLevel(nn.Module):
    """Two strided convolutions on the waveform, and the maximum over each frame.

    Args:
        channels: Channels of the first convolution.
        strides: Strides of the two.
        pool: Outputs of the second that make one frame.
        separable: Whether the second is depthwise-separable.
    """

    def __init__(self, *, channels: int, strides: tuple[int, int], pool: int, separable: bool) -> None:
        super().__init__()
        self.conv1 = conv_norm(1, channels, 9, dims=1, stride=strides[0])
        self.conv2 = conv_norm(channels, LOW, 5, dims=1, stride=strides[1], separable=separable)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """Map waveforms ``(B, 1, T)`` to an image ``(B, 1, 64, frames)``."""
        x = self.conv2(F.relu(self.conv1(x)))
        # The maximum of what is rectified is the maximum, rectified.
        return F.relu(frame_maximum(x, self.pool, x.shape[-1] // self.pool))[:, None]


class AclNet(Tagger):
    """The network of the paper.

    Args:
        sample_rate: Samples per second.
        num_classes: Sounds that it knows.
        width: Multiplier of the channels of the high-level features.
        separable: Depthwise-separable convolutions in place of standard ones.
        low_channels: Channels of the first convolution.
        strides: Strides of the two convolutions on the waveform; the paper's (2, 4) at 16 kHz are about as long as (7, 3) at 44.1 kHz.
        stem_pool: A further 2x2 maximum after the first convolution of the image: a quarter of the multiply-adds.
        drop_rate: Dropout of the last map.
        window: Seconds of sound that it looks at in one piece.

    Shapes:
        x: ``(B, 1, T)``, ``T`` from :attr:`least` on; the result is logits ``(B, num_classes)``.

    Raises:
        ConfigError: If the multiplier leaves no channel, or the strides are longer than a frame.
    """

    def __init__(
        self,
        *,
        sample_rate: int = 44100,
        num_classes: int = 50,
        width: float = 1.0,
        separable: bool = False,
        low_channels: int = 16,
        strides: tuple[int, int] = (7, 3),
        stem_pool: bool = False,
        drop_rate: float = 0.2,
        window: float = 1.28,
    ) -> None:
        super().__init__(sample_rate=sample_rate, num_classes=num_classes, window=window)
        if STEM * width < 1:
            raise ConfigError(f"width={width} leaves no channel of {STEM}; accepted: {1 / STEM:g} or more")
        step = strides[0] * strides[1]
        pool = round(sample_rate / FRAMES_PER_SECOND / step)
        if pool < 1:
            raise ConfigError(
                f"strides={strides} are {step} samples, and 10 ms at {sample_rate} Hz are {sample_rate // FRAMES_PER_SECOND}; "
                "accepted: a smaller product"
            )
        self.hop = step * pool
        self.low = LowLevel(channels=low_channels, strides=strides, pool=pool, separable=separable)
        stem = int(STEM * width)
        self.stem = conv_norm(1, stem)
        self.stem_pool = stem_pool
        self.stages = nn.ModuleList()
        for widths in STAGES:
            channels = (stem, *(int(channels * width) for channels in widths))
            self.stages.append(nn.ModuleList(conv_norm(before, after, separable=separable) for before, after in pairwise(channels)))
            stem = channels[-1]
        self.drop = nn.Dropout(drop_rate)
        self.classifier = nn.Linear(stem, num_classes)

    @property
    def least(self) -> int:
        """Samples of the shortest clip that leaves something after the last maximum."""
        return self.hop * 2 ** (len(STAGES) + self.stem_pool)

    def embed(self, features: Tensor) -> Tensor:
        """Return the mean of the last map, ``(B, D)``, for waveforms ``(B, 1, T)``."""
        x = self.stem(self.low(features))
        x = F.relu(F.max_pool2d(x, 2) if self.stem_pool else x)
        for stage in self.stages:
            assert isinstance(stage, nn.ModuleList)
            for index, layer in enumerate(stage, start=1):
                x = layer(x)
                x = F.relu(F.max_pool2d(x, 2) if index == len(stage) else x)
        return self.drop(x).mean((2, 3))

    def head(self, embedding: Tensor) -> Tensor:
        """Return logits; the paper's 1x1 convolution before the mean is this linear layer after it."""
        return self.classifier(embedding)
