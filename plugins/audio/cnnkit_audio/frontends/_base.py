"""What all front ends share: frames of a clip, the precision they are computed in, and the check of the clip's length."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from cnnkit.errors import ConfigError, InputError, unknown
from torch import Tensor, nn

Padding = Literal["reflect", "constant", "replicate", "symmetric", "none"]
Window = Literal["hann", "hann_symmetric", "hamming", "hamming_symmetric", "povey", "rectangular"]

_HANN = (0.5, 0.5)
_HAMMING = (0.54, 0.46)


def one_of(name: str, value: str, accepted: object) -> None:
    """Refuse a value that is none of a ``Literal``'s, naming the nearest."""
    if value not in get_args(accepted):
        raise ConfigError(unknown(name, value, get_args(accepted)))


def table(values: np.ndarray) -> Tensor:
    """Return constants as float32, on the device that modules are being built on."""
    return torch.as_tensor(np.ascontiguousarray(values, dtype=np.float32))


def exported(values: np.ndarray, like: Tensor) -> Tensor:
    """Return an array as a constant of the program that is being exported; in the module it takes no memory."""
    return torch.from_numpy(values.astype(np.float32)).to(like.device, like.dtype)


def full_precision(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Return a context without autocast, where there is any."""
    if torch.compiler.is_exporting() or not torch.amp.is_autocast_available(x.device.type):
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def window_function(kind: Window, length: int) -> np.ndarray:
    """Return a window in float64.

    Args:
        kind: ``"hann"`` and ``"hamming"`` are periodic, as spectra want them; ``..._symmetric`` end as they begin; ``"povey"`` is
            Kaldi's, the symmetric Hann window to the power of 0.85.
        length: Samples.
    """
    one_of("window", kind, Window)
    if kind == "rectangular":
        return np.ones(length)
    constant, cosine = _HAMMING if kind.startswith("hamming") else _HANN
    period = length if kind in ("hann", "hamming") else max(length - 1, 1)
    window = np.maximum(constant - cosine * np.cos(2 * np.pi * np.arange(length) / period), 0.0)
    return window**0.85 if kind == "povey" else window


@dataclass(frozen=True)
class Framing:
    """Where frames lie: frame ``t`` covers ``length`` samples from ``t * hop - left`` on.

    Args:
        length: Samples of a frame.
        hop: Samples between two frames.
        left: Samples before the clip that are made up; negative: samples of the clip that are left out.
        right: As many behind it.
        padding: How they are made up: mirrored without the edge sample (``"reflect"``) or with it (``"symmetric"``), zeros
            (``"constant"``), the edge sample (``"replicate"``), or not at all.
    """

    length: int
    hop: int
    left: int
    right: int
    padding: Padding

    @classmethod
    def centred(cls, n_fft: int, length: int, hop: int, padding: Padding) -> Framing:
        """Frames around the multiples of ``hop``, as librosa and ``torch.stft`` place them; with ``"none"`` only those inside the clip."""
        one_of("pad", padding, Padding)
        if padding == "symmetric":
            raise ConfigError('pad="symmetric" is for Kaldi\'s frames; accepted here: reflect, constant, replicate, none')
        if not 0 < length <= n_fft or hop < 1:
            raise ConfigError(f"win_length={length}, hop={hop}: accepted are 1 <= win_length <= n_fft={n_fft} and hop >= 1")
        before = (n_fft - length) // 2
        half = 0 if padding == "none" else n_fft // 2
        return cls(length, hop, half - before, half - (n_fft - length - before), padding)

    @classmethod
    def kaldi(cls, length: int, hop: int, *, snip_edges: bool) -> Framing:
        """Frames inside the clip, or (without ``snip_edges``) one per hop with the clip mirrored at its ends."""
        if snip_edges:
            return cls(length, hop, 0, 0, "none")
        left = length // 2 - hop // 2
        return cls(length, hop, left, length - left - hop + hop // 2, "symmetric")

    @property
    def least(self) -> int:
        """Samples that a clip must have."""
        inside = self.length - self.left - self.right
        mirrored = {"reflect": max(self.left, self.right) + 1, "symmetric": max(self.left, self.right)}
        return max(inside, mirrored.get(self.padding, 1), 1)

    @property
    def reach(self) -> int:
        """Frame ``t`` is there, with nothing made up on its right, from ``t * hop + reach`` samples on."""
        return self.length - self.left - min(self.right, 0)

    def count(self, samples: int) -> int:
        """Return the number of frames of so many samples."""
        return (samples + self.left + self.right - self.length) // self.hop + 1

    def pad(self, x: Tensor) -> Tensor:
        """Return clips ``(B, T)`` with what lies before and behind them."""
        if self.left < 0 or self.right < 0:  # Frames that do not reach the ends of the clip.
            x = x[:, max(-self.left, 0) : x.shape[-1] + min(self.right, 0)]
        left, right = max(self.left, 0), max(self.right, 0)
        if left == 0 and right == 0:
            return x
        if self.padding == "symmetric":
            return torch.cat((x[:, :left].flip(-1), x, x[:, x.shape[-1] - right :].flip(-1)), -1)
        return F.pad(x[:, None], (left, right), mode=self.padding)[:, 0]

    def cut(self, x: Tensor) -> Tensor:
        """Return the frames ``(B, frames, length)`` of clips ``(B, T)``."""
        return self.pad(x).unfold(-1, self.length, self.hop)


class FrontEnd(nn.Module, ABC):
    """From waveforms ``(B, 1, T)`` to features ``(B, 1, bands, frames)``.

    Features are computed in float32 at least, under autocast too (energies of loud sound do not fit into half precision, those of
    quiet sound vanish in it), and returned in the type of the waveform.

    A clip that is too short for the padding of its edges is refused with the least length; pad it with silence.

    Args:
        sample_rate: Samples per second.
        bands: Rows of the features.
        hop: Samples between two frames.
        left: Frame ``t`` depends on the samples from ``t * hop - left`` on.
        right: ... and up to ``t * hop + right``, exclusive.
        least: Samples that a clip must have.

    Class attributes:
        channels: Channels of the features.
        stride: Frames for each column of them.
    """

    channels: ClassVar[int] = 1
    stride: ClassVar[int] = 1

    def __init__(self, *, sample_rate: int, bands: int, hop: int, left: int = 0, right: int = 0, least: int = 1) -> None:
        super().__init__()
        self.sample_rate, self.bands, self.hop = sample_rate, bands, hop
        self.left, self.right, self.least = left, right, least

    @property
    def shift_invariant(self) -> bool:
        """Whether a frame depends on the samples around it alone, so that overlapping windows can share it."""
        return True

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of waveforms.

        Raises:
            InputError: If the waveforms are shorter than :attr:`least`.
        """
        if x.ndim != 3 or x.shape[1] != 1:
            raise InputError(f"a front end takes waveforms (batch, 1, samples); got {tuple(x.shape)}")
        if not torch.compiler.is_exporting() and x.shape[-1] < self.least:
            raise InputError(f"a clip of {x.shape[-1]} samples is too short for this front end; pad it with silence to {self.least}")
        with full_precision(x):
            wide = x[:, 0].float() if x.dtype in (torch.float16, torch.bfloat16) else x[:, 0]
            return self.features(wide)[:, None].to(x.dtype)

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Return ``(B, bands, frames)`` of waveforms ``(B, T)``, which are float32 or float64."""

    @abstractmethod
    def frames(self, samples: int) -> int:
        """Return how many frames so many samples give."""
