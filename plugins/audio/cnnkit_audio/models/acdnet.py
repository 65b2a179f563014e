"""ACDNet (Mohaimenuzzaman et al., Pattern Recognition 2023): environmental sounds from the raw waveform, made to be pruned.

Two convolutions along time with strides make a learnt filter bank, whose output is pooled to frames of 10 ms; then the filters become
the rows of a picture with one channel, on which a network of pairs of 3x3 convolutions works::

    (B, 1, 1, T) -> 1x9 / 2 -> 1x5 / 2 -> max over 10 ms -> (B, F, 1, frames) -> swap -> (B, 1, F, frames) -> 3x3 convolutions

How often rows and frames are halved follows from their number, so the input's length is part of the network. Any list of twelve widths is
a network: a pruned one is described by its list, and Micro-ACDNet is one, 36 times smaller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from cnnkit.errors import ConfigError, UsageError
from cnnkit.weights import Layout
from torch import Tensor, nn

from cnnkit_audio.compress.chain import Swap
from cnnkit_audio.models._base import Tagger

MICRO = (7, 20, 10, 14, 22, 31, 35, 41, 51, 67, 69, 48)
"""Widths of Micro-ACDNet."""
WIDTHS = (8, 64, 32, 64, 64, 128, 128, 256, 256, 512, 512)
"""Widths of ACDNet; a twelfth is the number of classes."""
LENGTH = 30225
"""Samples of the paper's input: 1.51 s at 20 kHz."""
_POOLS = 6
_PAIRS = ((2,), (3, 4), (5, 6), (7, 8), (9, 10))
"""Positions in the widths of the convolutions between two poolings."""


def pool_sizes(size: int) -> tuple[int, ...]:
    """Return the windows of the five max poolings and the average pooling along one side: halve while it can be, then take what is left."""
    found = []
    for index in range(_POOLS):
        last = index == _POOLS - 1
        found.append(1 if size < 2 else size if last else 2)
        size = max(size // 2, 1)
    return tuple(found)


class ACDNet(Tagger):
    """The network.

    Args:
        num_classes: Sounds that it knows.
        channels: Widths of its twelve convolutions; the second is also the number of rows of the picture. By default the paper's.
        length: Samples of a clip; the poolings follow from it. Longer clips are accepted, and what their windows say is averaged.
        sample_rate: Samples per second.
        dropout: Share of the features that training hides before the last convolution.

    Shapes:
        x: ``(B, 1, T)``, ``T >= length``; the result is logits ``(B, num_classes)``.

    Raises:
        ConfigError: If the widths are not twelve positive numbers, or the poolings do not fit the length.
    """

    layouts: ClassVar[tuple[Layout, ...]] = (Layout("official"),)

    def __init__(
        self,
        *,
        num_classes: int = 50,
        channels: Sequence[int] | None = None,
        length: int = LENGTH,
        sample_rate: int = 20_000,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(sample_rate=sample_rate, num_classes=num_classes, window=length / sample_rate)
        widths = (*WIDTHS, num_classes) if channels is None else tuple(channels)
        if len(widths) != len(WIDTHS) + 1 or min(widths) < 1:
            raise ConfigError(f"channels={list(widths)}: accepted are {len(WIDTHS) + 1} widths of 1 or more, as in {list(MICRO)}")
        self.widths, self.length, self.dropout = widths, length, dropout
        rows, frames = widths[1], frame_count(length, sample_rate)
        windows = tuple(zip(pool_sizes(rows), pool_sizes(_nominal_frames(length, sample_rate)), strict=True))
        if frames < 1 or not _fits(frames, [window[1] for window in windows]):
            raise ConfigError(
                f"length={length} at {sample_rate} Hz gives {frames} frames, which the poolings do not divide; "
                f"the nearest lengths that work are {nearest_lengths(length, sample_rate)}"
            )
        self.sfeb = nn.Sequential(
            *_block(1, widths[0], (1, 9), stride=2),
            *_block(widths[0], widths[1], (1, 5), stride=2),
            nn.MaxPool2d((1, _frame(sample_rate))),
        )
        self.swap = Swap()
        layers: list[nn.Module] = []
        before = 1
        for pair, window in zip(_PAIRS, windows, strict=False):
            for index in pair:
                layers += _block(before, widths[index], (3, 3), padding=1)
                before = widths[index]
            if window != (1, 1):
                layers.append(nn.MaxPool2d(window))
        layers += [nn.Dropout(dropout), *_block(before, widths[-1], (1, 1))]
        if windows[-1] != (1, 1):
            layers.append(nn.AvgPool2d(windows[-1]))
        classifier = nn.Linear(widths[-1], num_classes)
        nn.init.kaiming_normal_(classifier.weight, nonlinearity="sigmoid")
        self.tfeb = nn.Sequential(*layers, nn.Flatten(), classifier)

    @classmethod
    def arguments_of(cls, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Return the arguments that build the network of official weights, pruned or not, read from the shapes of its convolutions.

        The length and rate of the input leave no trace in the weights but where poolings are absent; they are taken to be the paper's.
        """
        kernels = [value for key, value in state.items() if key.startswith(("sfeb.", "tfeb.")) and value.ndim == 4]
        classes = [value for key, value in state.items() if key.startswith("tfeb.") and value.ndim == 2]
        if len(kernels) != len(WIDTHS) + 1 or len(classes) != 1:
            return None
        return {"channels": [int(kernel.shape[0]) for kernel in kernels], "num_classes": int(classes[0].shape[0])}

    def chain(self) -> list[nn.Module]:
        """Return the layers in their order (:class:`~cnnkit_audio.compress.chain.Chain`)."""
        return [*self.sfeb, self.swap, *self.tfeb]

    def resized(self, widths: Sequence[int]) -> ACDNet:
        """Return a fresh network with other widths."""
        return ACDNet(num_classes=self.num_classes, channels=widths, length=self.length, sample_rate=self.sample_rate, dropout=self.dropout)

    def embed(self, features: Tensor) -> Tensor:
        """Return ``(B, channels[11])`` for waveforms ``(B, 1, T)``."""
        if features.shape[-1] < self.length:
            raise UsageError(f"a clip of {features.shape[-1]} samples is too short for this network; pad it to {self.length}")
        x = self.swap(self.sfeb(features[:, :, None]))
        for layer in list(self.tfeb)[:-2]:
            x = layer(x)
        return x.mean((2, 3))  # One position, but for clips that are longer than the network's length.

    def head(self, embedding: Tensor) -> Tensor:
        """Return logits for embeddings."""
        return self.tfeb[-1](embedding)


def _block(inputs: int, outputs: int, kernel: tuple[int, int], *, stride: int = 1, padding: int = 0) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, (1, stride), padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def _frame(sample_rate: int) -> int:
    """Return how many steps of the strided filter bank 10 ms are."""
    return int(sample_rate / 1000 * 10 / 4)


def _nominal_frames(length: int, sample_rate: int) -> int:
    """Return in how many frames of 10 ms the official code believes, which decides the poolings."""
    return int(length / sample_rate * 1000 / 10)


def frame_count(length: int, sample_rate: int) -> int:
    """Return how many frames the filter bank makes: up to one less than there are in the clip."""
    steps = ((length - 9) // 2 + 1 - 5) // 2 + 1
    return max(steps, 0) // _frame(sample_rate) if _frame(sample_rate) else 0


def _fits(frames: int, windows: Sequence[int]) -> bool:
    for window in windows:
        frames //= window
    return frames == 1


def nearest_lengths(length: int, sample_rate: int) -> str:
    """Return the nearest shorter and longer input that the poolings fit, in words."""

    def works(samples: int) -> bool:
        return _fits(frame_count(samples, sample_rate), pool_sizes(_nominal_frames(samples, sample_rate)))

    below = next((samples for samples in range(length, 0, -1) if works(samples)), None)
    above = next((samples for samples in range(length, length + 2 * sample_rate) if works(samples)), None)
    return " and ".join(str(samples) for samples in (below, above) if samples is not None) or "none: the sample rate is too low"


def crops(sound: Tensor, length: int, count: int = 10) -> Tensor:
    """Return windows spread evenly over a sound with silence of half a window at both ends, as the paper tests.

    Args:
        sound: One clip.
        length: Samples of a window.
        count: How many.

    Shapes:
        sound: ``(1, T)``; the result is ``(count, 1, length)``.
    """
    if not sound.shape[-1]:
        raise UsageError("a sound without samples has no crops")
    padded = F.pad(sound, (length // 2, length // 2))
    step = (padded.shape[-1] - length) // max(count - 1, 1)
    return torch.stack([padded[:, index * step : index * step + length] for index in range(count)])
