"""PANNs: CNN6, CNN10 and CNN14 (Kong et al., 2020, "PANNs: Large-Scale Pretrained Audio Neural Networks for Audio Pattern Recognition").

VGG on the log-mel spectrogram of 64 bands: blocks of 3x3 convolutions (one of 5x5 in CNN6) and averages over 2x2, then the mean over bands,
and over time the sum of mean and maximum, so that a short event counts as much as a long one. Pellegrini et al. (2023, "Adapting a ConvNeXt
model to audio classification on AudioSet") replace each convolution by a depthwise and a 1x1 convolution (*DSC*):

    ``x -> log-mel -> normalised bands -> blocks -> mean over bands -> max + mean over time -> relu(fc1) -> fc_audioset``

Their public code holds no such network. Ours has no normalisation between the two convolutions, and leaves the first, which has one input
channel, as it is: our reading.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from cnnkit.errors import ConfigError
from cnnkit.weights import Layout
from torch import Tensor, nn

from cnnkit_audio import frontends
from cnnkit_audio.augment_features import SpecAugment
from cnnkit_audio.models._base import Tagger
from cnnkit_audio.window_features import Stem

FRONT = ("spectrogram_extractor.", "logmel_extractor.")
"""Keys of the official front end, which holds constants."""
WINDOW = 10.0
"""Seconds of an AudioSet clip."""
_WIDE = 2**20


def is_official(keys: Collection[str]) -> bool:
    """Whether a file has the official front end among its weights, which is all that differs from our keys."""
    return any(key.startswith(FRONT) for key in keys)


def without_front(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the constants of the official front end."""
    return {key: value for key, value in state.items() if not key.startswith(FRONT)}


def normalise_bands(norm: nn.Module, mask: nn.Module, features: Tensor) -> Tensor:
    """Return ``(B, 1, frames, bands)``, as official kernels lie, of ``(B, 1, bands, frames)``: bands normalised, then masked."""
    return mask(norm(features.transpose(1, 2)).transpose(1, 2)).transpose(2, 3)


def spec_augment(freq_mask: int, time_mask: int) -> SpecAugment:
    """Return the mask of the official code: two stripes over bands and two over frames, filled with 0, the mean of normalised bands."""
    return SpecAugment(freq_mask=freq_mask, time_mask=time_mask, freq_masks=2, time_masks=2, fill=0.0)


def pool_clip(x: Tensor) -> Tensor:
    """Return ``(B, C)`` of ``(B, C, frames, bands)``: the mean over bands, then maximum plus mean over time."""
    x = x.mean(3)
    return x.amax(2) + x.mean(2)


def halved(x: Tensor) -> Tensor:
    """Return averages over 2x2 of ``(B, C, H, W)``; a last odd row or column is left out.

    Sums of slices, where no gradient is wanted: PyTorch's own average of maps whose channels do not lie together, or are few, takes
    several times as long on a processor.
    """
    apart = x.shape[1] < 32 or x.is_contiguous()
    if torch.compiler.is_exporting() or torch.is_grad_enabled() or x.device.type != "cpu" or not apart:
        return F.avg_pool2d(x, 2)
    height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    rows = x[:, :, 0:height:2, :width] + x[:, :, 1:height:2, :width]
    return (rows[..., ::2] + rows[..., 1::2]).mul_(0.25)


class WideConv2d(nn.Conv2d):
    """A convolution of many channels and stride 1, as one matrix product where it meets few positions on a processor.

    CNN14's last layers have 38 million weights for some thirty positions. A convolution first brings its kernel to its own order in
    memory, which there takes most of the time; the product reads each weight once.
    """

    FEW = 128
    """Positions of a batch up to which the product is faster."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``."""
        positions = input.shape[0] * input.shape[2] * input.shape[3]
        if torch.compiler.is_exporting() or input.device.type != "cpu" or positions > self.FEW:
            return super().forward(input)
        height, width = self.kernel_size
        columns = F.unfold(input, (height, width), padding=(height // 2, width // 2))
        if self.weight.is_contiguous():
            kernel = self.weight.flatten(1)
        else:  # Channels last, as merged networks have it: turn the columns, not the kernel.
            columns = columns.unflatten(1, (self.in_channels, height * width)).transpose(1, 2).flatten(1, 2)
            kernel = self.weight.permute(0, 2, 3, 1).flatten(1)
        out = kernel @ columns
        if self.bias is not None:
            out = out + self.bias[:, None]
        return out.unflatten(-1, input.shape[2:])


def _conv(inputs: int, outputs: int, kernel: int, *, separable: bool) -> nn.Module:
    if not separable or inputs == 1:
        kind = WideConv2d if inputs * outputs >= _WIDE else nn.Conv2d
        return kind(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    depthwise = nn.Conv2d(inputs, inputs, kernel, padding=kernel // 2, groups=inputs, bias=False)
    return nn.Sequential(depthwise, nn.Conv2d(inputs, outputs, 1, bias=False))


class Block(nn.Module):
    """Normalised convolutions with ReLU: one of 5x5, or two of 3x3.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: 5 for one convolution, 3 for two.
        separable: Depthwise and 1x1 convolutions in place of each.
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int, separable: bool) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, out_channels, kernel_size, separable=separable)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.two = kernel_size == 3
        if self.two:
            self.conv2 = _conv(out_channels, out_channels, kernel_size, separable=separable)
            self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``."""
        x = F.relu_(self.bn1(self.conv1(x)))
        return F.relu_(self.bn2(self.conv2(x))) if self.two else x


class Pann(Tagger):
    """CNN6, CNN10 or CNN14.

    Args:
        num_classes: Sounds that it knows; AudioSet has 527.
        sample_rate: Samples per second: 32 000, or 16 000 or 8 000 with the same frames per second.
        n_mels: Bands of the spectrogram.
        widths: Channels of the blocks.
        kernel_size: 3, or 5 for blocks of one convolution (CNN6).
        pools: How many blocks are followed by an average over 2x2; CNN14's last is not.
        separable: Depthwise and 1x1 convolutions in place of each convolution.
        drop_rate: Dropout after each block; before the first linear layer 0.5.
        freq_mask: Largest width of SpecAugment's two masks over bands in training; the paper's is 8.
        time_mask: Largest width of its two masks over frames; the paper's is 64.
        window: Seconds of sound that it looks at in one piece.

    Shapes:
        x: ``(B, 1, T)``, ``T`` from :attr:`least` on; the result is logits ``(B, num_classes)``.

    Raises:
        ConfigError: If the kernel is neither 3 nor 5, or there are more averages than blocks.
    """

    multilabel = True

    layouts: ClassVar[tuple[Layout, ...]] = (Layout("official", is_official, without_front),)
    classifier: ClassVar[str] = "fc_audioset"

    def __init__(
        self,
        *,
        num_classes: int = 527,
        sample_rate: int = 32_000,
        n_mels: int = 64,
        widths: Sequence[int] = (64, 128, 256, 512, 1024, 2048),
        kernel_size: int = 3,
        pools: int = 5,
        separable: bool = False,
        drop_rate: float = 0.2,
        freq_mask: int = 0,
        time_mask: int = 0,
        window: float = WINDOW,
    ) -> None:
        front = frontends.panns(sample_rate=sample_rate, n_mels=n_mels)
        super().__init__(sample_rate=sample_rate, num_classes=num_classes, front=front, window=window)
        if kernel_size not in (3, 5):
            raise ConfigError(f"kernel_size={kernel_size}; accepted: 3 for blocks of two convolutions, 5 for blocks of one")
        if not 0 <= pools <= len(widths):
            raise ConfigError(f"pools={pools} of {len(widths)} blocks; accepted: 0 to {len(widths)}")
        self.widths, self.blocks, self.pools, self.drop_rate, self._hop = tuple(widths), len(widths), pools, drop_rate, front.hop
        self.bn0 = nn.BatchNorm2d(n_mels)
        self.mask = spec_augment(freq_mask, time_mask)
        for index, (before, after) in enumerate(pairwise((1, *widths)), start=1):
            self.add_module(f"conv_block{index}", Block(before, after, kernel_size=kernel_size, separable=separable))
        self.fc1 = nn.Linear(widths[-1], widths[-1])
        self.fc_audioset = nn.Linear(widths[-1], num_classes)
        self.apply(_init)

    @property
    def least(self) -> int:
        """Samples of the shortest clip that leaves a frame after the last average."""
        assert self.front is not None
        return max((2**self.pools - 1) * self._hop, self.front.least)

    def forward_maps(self, features: Tensor) -> Tensor:
        """Return the last maps, ``(B, C, frames / 2^pools, bands / 2^pools)``, of spectrograms ``(B, 1, bands, frames)``."""
        x = self._blocks(normalise_bands(self.bn0, self.mask, features), 0, self.blocks)
        return self._reduced(x, self.blocks)

    def embed(self, features: Tensor) -> Tensor:
        """Return the vector before the classifier, ``(B, widths[-1])``, for spectrograms ``(B, 1, bands, frames)``."""
        return self._vector(self.forward_maps(features))

    def stems(self) -> list[Stem]:
        """Return the front end, and with it each number of blocks; before the average behind the last, which halves the places."""
        stems = super().stems()
        if self.training:
            return stems
        assert self.front is not None
        stride, reach = 1, 0
        for index, width in enumerate(self.widths, start=1):
            reach += 2 * stride  # One convolution of 5x5, or two of 3x3.
            layers, rest = partial(self._stem, blocks=index), partial(self._rest, blocks=index)
            bands = self.front.bands // stride
            stems.append(Stem(self.front, layers, rest, channels=width, bands=bands, stride=stride, reach=reach))
            stride *= 2 if index <= self.pools else 1
        return stems

    def _stem(self, features: Tensor, blocks: int) -> Tensor:
        return self._blocks(normalise_bands(self.bn0, self.mask, features), 0, blocks).transpose(2, 3)

    def _rest(self, maps: Tensor, blocks: int) -> Tensor:
        return self._vector(self._reduced(self._blocks(maps.transpose(2, 3), blocks, self.blocks), self.blocks))

    def _blocks(self, x: Tensor, done: int, last: int) -> Tensor:
        """Run the blocks behind the first ``done`` up to the one numbered ``last``."""
        for index in range(done + 1, last + 1):
            x = self.get_submodule(f"conv_block{index}")(self._reduced(x, index - 1))
        return x

    def _reduced(self, x: Tensor, index: int) -> Tensor:
        """Do what follows the block of that number."""
        if index == 0:
            return x
        return F.dropout(halved(x) if index <= self.pools else x, self.drop_rate, self.training)

    def _vector(self, maps: Tensor) -> Tensor:
        return F.relu_(self.fc1(F.dropout(pool_clip(maps), 0.5, self.training)))

    def head(self, embedding: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)``; the probability of each sound is their sigmoid."""
        return self.fc_audioset(embedding)


def _init(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
