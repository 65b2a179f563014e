"""Distances of two sounds by their spectra.

The mel distance is that of the Descript audio codec, which ESC is trained and measured with: seven windows from 2 to 128 ms at 16 kHz, each
with as many bands as fit it. The STFT distances are those of Yamamoto et al. (2020), "Parallel WaveGAN".
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from torch import Tensor, nn

MEL_WINDOWS = (32, 64, 128, 256, 512, 1024, 2048)
"""Samples of the windows."""
MEL_BANDS = (5, 10, 20, 40, 80, 160, 320)
"""Bands of each."""
FLOOR = 1e-5
"""Magnitude below which nothing is compared."""
RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
"""Length of the transform, step and window of the STFT distances, in samples."""


class MelDistances(NamedTuple):
    """Mean absolute differences, summed over the windows, ``(B,)``: of magnitudes, and of ``log10`` of their squares."""

    magnitude: Tensor
    log: Tensor


class MelDistance(nn.Module):
    """Compare two sounds by mel magnitudes at several resolutions.

    Args:
        sample_rate: Samples per second.

    Shapes:
        x, y: ``(B, 1, T)``; each result is ``(B,)``.
    """

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        for window, bands in zip(MEL_WINDOWS, MEL_BANDS, strict=True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # Bands that fall between two bins are empty in both sounds.
                banks = AF.melscale_fbanks(window // 2 + 1, 0.0, sample_rate / 2, bands, sample_rate, mel_scale="htk")
            self.register_buffer(f"banks{window}", banks.T.contiguous(), persistent=False)
            self.register_buffer(f"window{window}", torch.hann_window(window), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> MelDistances:
        """Return both distances."""
        magnitudes, logs = [], []
        for window in MEL_WINDOWS:
            one, other = (self._mel(sound, window) for sound in (x, y))
            magnitudes.append((one - other).abs().mean((1, 2)))
            one, other = (2 * sound.clamp_min(FLOOR).log10() for sound in (one, other))
            logs.append((one - other).abs().mean((1, 2)))
        return MelDistances(torch.stack(magnitudes).sum(0), torch.stack(logs).sum(0))

    def _mel(self, x: Tensor, window: int) -> Tensor:
        spectrum = _stft(x, window, window // 4, self.get_buffer(f"window{window}"))
        return self.get_buffer(f"banks{window}") @ spectrum


class StftDistances(NamedTuple):
    """Means over the resolutions, ``(B,)``.

    Attributes:
        convergence: Norm of the difference of magnitudes by that of the reference.
        log: Mean absolute difference of the logarithms of magnitudes.
    """

    convergence: Tensor
    log: Tensor


def stft_distances(reference: Tensor, estimate: Tensor) -> StftDistances:
    """Return the distances of two sounds by their magnitudes at three resolutions.

    Shapes:
        reference, estimate: ``(B, 1, T)``.
    """
    convergence, log = [], []
    for n_fft, hop, length in RESOLUTIONS:
        window = torch.hann_window(length, device=reference.device, dtype=reference.dtype)
        one, other = (_stft(sound, n_fft, hop, window).square().clamp_min(1e-7).sqrt() for sound in (reference, estimate))
        convergence.append((one - other).square().sum((1, 2)).sqrt() / one.square().sum((1, 2)).sqrt())
        log.append((one.log() - other.log()).abs().mean((1, 2)))
    return StftDistances(torch.stack(convergence).mean(0), torch.stack(log).mean(0))


def power_law(spectrum: Tensor, power: float) -> Tensor:
    """Raise the magnitude of each number to a power and keep its sign."""
    return spectrum.sign() * (spectrum.abs() + 1e-10) ** power


def _stft(x: Tensor, n_fft: int, hop: int, window: Tensor) -> Tensor:
    """Return magnitudes ``(B, bins, frames)``; sounds that are too short to be mirrored at the border are filled up with silence."""
    x = F.pad(x[:, 0], (0, max(0, n_fft // 2 + 1 - x.shape[-1])))
    return torch.stft(x, n_fft, hop, len(window), window.to(x), center=True, pad_mode="reflect", return_complex=True).abs()
