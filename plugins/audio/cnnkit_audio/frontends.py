"""Front ends: from waveforms to spectrograms, as parts of a network."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torchaudio.functional as AF
from torch import Tensor, nn


class FrontEnd(nn.Module, ABC):
    """From waveforms ``(B, 1, T)`` to features ``(B, 1, bands, frames)``.

    Args:
        sample_rate: Samples per second.
        bands: Rows of the features.
        hop: Samples between two frames.
    """

    def __init__(self, *, sample_rate: int, bands: int, hop: int) -> None:
        super().__init__()
        self.sample_rate, self.bands, self.hop = sample_rate, bands, hop

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return the features of waveforms."""

    @abstractmethod
    def frames(self, samples: int) -> int:
        """Return how many frames so many samples give."""


class LogMel(FrontEnd):
    """Logarithm of mel band energies.

    Args:
        sample_rate: Samples per second.
        n_fft: Length of the Fourier transform.
        win_length: Length of the Hann window; ``n_fft`` by default.
        hop: Samples between two frames.
        n_mels: Bands.
        f_min: Lower edge of the lowest band in hertz.
        f_max: Upper edge of the highest; half the rate by default.
        mel: ``"slaney"`` (librosa's default, area-normalised) or ``"htk"`` (not normalised).
        power: 2 for energies, 1 for magnitudes.
        log: ``"db"`` (``10 log10 max(x, amin)``) or ``"ln"`` (``ln(x + amin)``).
        amin: Floor.
    """

    banks: Tensor
    window: Tensor

    def __init__(
        self,
        *,
        sample_rate: int,
        n_fft: int = 1024,
        win_length: int | None = None,
        hop: int = 320,
        n_mels: int = 64,
        f_min: float = 0.0,
        f_max: float | None = None,
        mel: str = "slaney",
        power: float = 2.0,
        log: str = "db",
        amin: float = 1e-10,
    ) -> None:
        super().__init__(sample_rate=sample_rate, bands=n_mels, hop=hop)
        self.n_fft, self.power, self.log, self.amin = n_fft, power, log, amin
        self.win_length = win_length or n_fft
        f_max = sample_rate / 2 if f_max is None else f_max
        banks = AF.melscale_fbanks(
            n_fft // 2 + 1, f_min, f_max, n_mels, sample_rate, norm="slaney" if mel == "slaney" else None, mel_scale=mel
        )
        self.register_buffer("banks", banks.T.contiguous(), persistent=False)
        self.register_buffer("window", torch.hann_window(self.win_length), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, 1, n_mels, frames)``."""
        spectrum = torch.stft(
            x[:, 0], self.n_fft, self.hop, self.win_length, self.window, center=True, pad_mode="reflect", return_complex=True
        )
        energies = self.banks @ spectrum.abs().pow(self.power)
        if self.log == "db":
            return 10 * energies.clamp_min(self.amin).log10()[:, None]
        return (energies + self.amin).log()[:, None]

    def frames(self, samples: int) -> int:
        """Return the number of frames: one per hop, and one at the start."""
        return samples // self.hop + 1
