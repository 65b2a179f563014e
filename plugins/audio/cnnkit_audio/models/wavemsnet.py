"""WaveMsNet (Zhu et al., 2018, "Learning Environmental Sounds with Multi-scale Convolutional Neural Network").

One size of filters on a waveform is a compromise between resolution in time and in frequency. Here three branches look with kernels of 11,
51 and 101 samples, at strides of 1, 5 and 10, and a second convolution; maxima over 150, 30 and 15 of their outputs bring all three to a
frame every 150 samples, so that 1.5 s at 44.1 kHz become 441 frames in each. Their filters, one above the other, are a picture for a
VGG-like network:

    ``x -> 3 times [conv, conv, max] -> (1, 96, frames) -> 4 times [conv 3x3, max] -> fc1 -> fc2``

Training has two phases. In the second one the filters are frozen, normalisations included, and a log-mel spectrogram of 96 bands joins the
picture as a second channel (``phase=2``). A network of phase 2 that starts from weights of phase 1 (``--init``, or ``weights=``) gives
their answer: the kernels for the new channel start at zero, our reading of "fused".

Strides, pooling and names are those of the official code. There each clip has 441 frames; here the last map of a longer clip is brought to
the same size by maxima.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from cnnkit.errors import ConfigError, UsageError
from cnnkit.weights import Layout
from torch import Tensor, nn

from cnnkit_audio.frontends import LogMel
from cnnkit_audio.models._base import Tagger
from cnnkit_audio.models.aclnet import frame_maximum

HOP = 150
"""Samples of a frame."""
BRANCHES = ((11, 1), (51, 5), (101, 10))
"""Kernel and stride of the first convolution of each branch."""
POOLS = ((3, 11), (2, 2), (2, 2), (2, 2))
"""Rows and frames that become one after each convolution of the picture."""
LAST = 5
"""Columns of the last map, which the first linear layer sees in their places."""


@dataclass(frozen=True)
class Filters:
    """The filters of one branch, from low to high.

    Args:
        kernels: ``(filters, kernel)``.
        centres: Where each passes most, in hertz.
        responses: Magnitudes of the frequency responses, ``(filters, bins)``.
        frequencies: Of the bins, in hertz.
    """

    kernels: Tensor
    centres: Tensor
    responses: Tensor
    frequencies: Tensor


def _is_phase_one(keys: Collection[str]) -> bool:
    return "conv1_1.weight" in keys and "conv3.weight" in keys


def _to_phase_two(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the picture's first convolution a second channel that adds nothing yet."""
    weight = state["conv3.weight"]
    if weight.shape[1] == 1:
        state["conv3.weight"] = torch.cat((weight, torch.zeros_like(weight)), 1)
    return state


class WaveMsNet(Tagger):
    """The network of the paper.

    Args:
        num_classes: Sounds that it knows.
        phase: 1 for the waveform alone; 2 for frozen filters and the log-mel spectrogram beside them.
        sample_rate: Samples per second.
        filters: Filters of each branch.
        widths: Channels of the convolutions of the picture.
        hidden: Width of the first linear layer.
        drop_rate: Dropout behind it.
        window: Seconds of sound that it looks at in one piece.

    Shapes:
        x: ``(B, 1, T)``, ``T`` from :attr:`least` on; the result is logits ``(B, num_classes)``.

    Raises:
        ConfigError: If the phase is neither 1 nor 2, there are fewer than 8 filters or not 4 widths.
    """

    layouts: ClassVar[tuple[Layout, ...]] = (Layout("official"),)
    classifier: ClassVar[str] = "fc2"

    def __init__(
        self,
        *,
        num_classes: int = 50,
        phase: int = 1,
        sample_rate: int = 44_100,
        filters: int = 32,
        widths: Sequence[int] = (64, 128, 256, 256),
        hidden: int = 4096,
        drop_rate: float = 0.5,
        window: float = 1.5,
    ) -> None:
        super().__init__(sample_rate=sample_rate, num_classes=num_classes, window=window)
        if phase not in (1, 2):
            raise ConfigError(f"phase={phase}; accepted: 1 for the waveform alone, 2 with a log-mel spectrogram beside frozen filters")
        if filters < 8 or len(widths) != len(POOLS):
            raise ConfigError(f"filters={filters}, widths={tuple(widths)}; accepted: 8 or more filters, and {len(POOLS)} widths")
        self.phase = phase
        for number, (kernel, stride) in enumerate(BRANCHES, start=1):
            self.add_module(f"conv1_{number}", nn.Conv1d(1, filters, kernel, stride=stride, padding=kernel // 2))
            self.add_module(f"bn1_{number}", nn.BatchNorm1d(filters))
            self.add_module(f"conv2_{number}", nn.Conv1d(filters, filters, 11, padding=5))
            self.add_module(f"bn2_{number}", nn.BatchNorm1d(filters))
        for number, (before, after) in enumerate(pairwise((phase, *widths)), start=3):
            self.add_module(f"conv{number}", nn.Conv2d(before, after, 3, padding=1))
            self.add_module(f"bn{number}", nn.BatchNorm2d(after))
        rows = len(BRANCHES) * filters
        self._last = (rows // 3 // 8, LAST)
        self.fc1 = nn.Linear(widths[-1] * self._last[0] * LAST, hidden)
        self.fc2 = nn.Linear(hidden, num_classes)
        self.dropout = nn.Dropout(drop_rate)
        self.logmel: LogMel | None = None
        if phase == 2:
            self.logmel = LogMel(sample_rate=sample_rate, n_fft=2048, hop=HOP, n_mels=rows, top_db=80.0)
            self.layouts = (*type(self).layouts, Layout("phase 1", _is_phase_one, _to_phase_two))  # type: ignore[misc]
            for layer in self._front_layers():
                layer.requires_grad_(False)

    def _front_layers(self) -> list[nn.Module]:
        names = [f"{kind}_{number}" for number in range(1, len(BRANCHES) + 1) for kind in ("conv1", "bn1", "conv2", "bn2")]
        return [self.get_submodule(name) for name in names]

    def train(self, mode: bool = True) -> WaveMsNet:
        """Switch to training or evaluation; the normalisations of frozen filters stay in evaluation."""
        super().train(mode)
        if self.phase == 2:
            for layer in self._front_layers():
                layer.eval()
        return self

    def wave_maps(self, x: Tensor) -> list[Tensor]:
        """Return what each branch makes of waveforms ``(B, 1, T)``: three maps ``(B, filters, T // 150)``."""
        maps = []
        for number, (_, stride) in enumerate(BRANCHES, start=1):
            conv1, bn1, conv2, bn2 = (self.get_submodule(f"{kind}_{number}") for kind in ("conv1", "bn1", "conv2", "bn2"))
            y = bn2(conv2(F.relu(bn1(conv1(x)))))
            maps.append(F.relu(frame_maximum(y, HOP // stride, x.shape[-1] // HOP)))
        return maps

    def picture(self, x: Tensor) -> Tensor:
        """Return the filters' maps one above the other, ``(B, 1, 3 * filters, T // 150)``, in phase 2 with log-mel as a second channel."""
        image = torch.cat(self.wave_maps(x), 1)[:, None]
        if self.logmel is None:
            return image
        return torch.cat((image, self.logmel(x)[..., : image.shape[-1]]), 1)

    def embed(self, features: Tensor) -> Tensor:
        """Return the vector before the classifier, ``(B, hidden)``, for waveforms ``(B, 1, T)``."""
        x = self.picture(features)
        for number, pool in enumerate(POOLS, start=3):
            x = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(x))
            x = F.relu(F.max_pool2d(x, pool))  # The maximum of what is rectified is the maximum, rectified.
        if tuple(x.shape[2:]) != self._last:
            x = F.adaptive_max_pool2d(x, self._last)
        return self.dropout(F.relu(self.fc1(x.flatten(1))))

    def head(self, embedding: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)``."""
        return self.fc2(embedding)

    @torch.no_grad()
    def learned_filters(self, branch: int, *, n_fft: int = 2048) -> Filters:
        """Return the filters of a branch, sorted by the frequency that they pass most.

        Args:
            branch: 1 for the shortest kernels, 2, or 3 for the longest.
            n_fft: Length of the Fourier transform that measures them.

        Raises:
            UsageError: If there is no such branch, or the transform is shorter than a kernel.
        """
        if not 1 <= branch <= len(BRANCHES):
            raise UsageError(f"branch {branch} does not exist; accepted: 1 to {len(BRANCHES)}")
        kernels = self.get_parameter(f"conv1_{branch}.weight")[:, 0].detach()
        if n_fft < kernels.shape[-1]:
            raise UsageError(f"n_fft={n_fft} is shorter than the kernels; accepted: {kernels.shape[-1]} or more")
        responses = torch.fft.rfft(kernels, n_fft).abs()
        frequencies = torch.fft.rfftfreq(n_fft, 1 / self.sample_rate, device=kernels.device)
        centres = frequencies[responses.argmax(-1)]
        order = centres.argsort(stable=True)
        return Filters(kernels[order].clone(), centres[order], responses[order], frequencies)
