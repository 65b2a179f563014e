"""Weights that turn the bins of a spectrum into bands, and bands into cepstra. All in float64."""

from __future__ import annotations

from typing import Literal

import numpy as np
from cnnkit.errors import ConfigError

from cnnkit_audio.frontends._base import one_of

Scale = Literal["slaney", "htk", "kaldi"]
"""Mel scales: ``"slaney"`` is linear below 1 kHz; ``"htk"`` is logarithmic, with triangles over hertz; ``"kaldi"`` has them over mel."""

_LINEAR_HZ = 200 / 3
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _LINEAR_HZ
_STEP = np.log(6.4) / 27


def hz_to_mel(hz: np.ndarray | float, scale: Scale) -> np.ndarray:
    """Return mel values of frequencies."""
    hz = np.asarray(hz, dtype=np.float64)
    if scale != "slaney":
        return 2595 * np.log10(1 + hz / 700) if scale == "htk" else 1127 * np.log1p(hz / 700)
    return np.where(hz < _BREAK_HZ, hz / _LINEAR_HZ, _BREAK_MEL + np.log(np.maximum(hz, _BREAK_HZ) / _BREAK_HZ) / _STEP)


def mel_to_hz(mel: np.ndarray | float, scale: Scale) -> np.ndarray:
    """Return the frequencies of mel values."""
    mel = np.asarray(mel, dtype=np.float64)
    if scale != "slaney":
        return 700 * (10 ** (mel / 2595) - 1) if scale == "htk" else 700 * np.expm1(mel / 1127)
    return np.where(mel < _BREAK_MEL, mel * _LINEAR_HZ, _BREAK_HZ * np.exp(_STEP * (np.maximum(mel, _BREAK_MEL) - _BREAK_MEL)))


def mel_banks(*, n_mels: int, n_fft: int, sample_rate: int, f_min: float, f_max: float, scale: Scale, area: bool) -> np.ndarray:
    """Return triangular mel filters ``(n_mels, n_fft // 2 + 1)``.

    Args:
        n_mels: Number of bands.
        n_fft: Length of the Fourier transform.
        sample_rate: Samples per second.
        f_min: Lower edge of the lowest band in hertz.
        f_max: Upper edge of the highest.
        scale: The mel scale; Kaldi's leaves out the bin of half the rate.
        area: Divide each filter by half its width in hertz, so that all have the same area.
    """
    one_of("mel", scale, Scale)
    if n_mels < 1 or not 0 <= f_min < f_max <= sample_rate / 2:
        raise ConfigError(
            f"n_mels={n_mels}, f_min={f_min}, f_max={f_max}: accepted are 1 or more bands and 0 <= f_min < f_max <= {sample_rate / 2:g} Hz"
        )
    points = np.linspace(hz_to_mel(f_min, scale), hz_to_mel(f_max, scale), n_mels + 2)
    bins = np.arange(n_fft // 2 + 1) * (sample_rate / n_fft)
    if scale == "kaldi":
        bins = hz_to_mel(bins, scale)
    else:
        points = mel_to_hz(points, scale)
    low, centre, high = points[:-2, None], points[1:-1, None], points[2:, None]
    banks = np.maximum(np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)), 0)
    if scale == "kaldi" and n_fft % 2 == 0:
        banks[:, -1] = 0
    return banks * 2 / (high - low) if area else banks


def dct_matrix(bands: int, coefficients: int) -> np.ndarray:
    """Return the orthonormal DCT-II as ``(coefficients, bands)``."""
    rows = np.arange(coefficients)[:, None]
    matrix = np.cos(np.pi / bands * (np.arange(bands) + 0.5) * rows) * np.sqrt(2 / bands)
    matrix[0] /= np.sqrt(2)
    return matrix
