"""Time-frequency images besides mel: the discrete Gabor transform, gammatone filters, and constant Q."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from cnnkit.errors import ConfigError
from torch import Tensor

from cnnkit_audio.frontends._base import Framing, FrontEnd, Padding, Window, exported
from cnnkit_audio.frontends._spectrum import Bank, Spectrum, band_energies
from cnnkit_audio.frontends.mel import Log, Scaling

Ref = float | Literal["max"]


class _Image(FrontEnd):
    """What the three share: energies by frames, scaled."""

    framing: Framing
    scaling: Scaling

    @property
    def shift_invariant(self) -> bool:
        """False with ``ref="max"`` or ``top_db``."""
        return self.scaling.local

    def frames(self, samples: int) -> int:
        """Return the number of frames: one per hop, and one at the start."""
        return self.framing.count(samples)


class Gabor(_Image):
    """The discrete Gabor transform: spectra under a Gaussian window, which is narrowest in time and frequency together.

    The window is ``exp(-pi t^2 / (hop * channels))``, of unit energy, which is as wide in time (in hops) as in frequency (in channels); it
    is cut off where it is below 1e-7 of its peak. It is longer than ``channels`` samples, and the transform takes every so many'th bin of
    its spectrum.

    Args:
        sample_rate: Samples per second.
        channels: Length of the transform; there are ``channels // 2 + 1`` bands from 0 to half the rate.
        hop: Samples between two frames.
        pad: How the clip goes on at its ends.
        log: Logarithm of the energies, as in :class:`LogMel`.
        amin: Floor.
        ref: What 0 dB means: an energy, or ``"max"``, the largest of the clip.
        top_db: Lift what is quieter than so many decibels below the clip's loudest.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        channels: int = 512,
        hop: int = 128,
        pad: Padding = "reflect",
        log: Log = "db",
        amin: float = 1e-10,
        ref: Ref = 1.0,
        top_db: float | None = None,
    ) -> None:
        if channels < 2 or channels % 2 or not 1 <= hop < channels:
            raise ConfigError(f"channels={channels}, hop={hop}: accepted are an even number of channels, and 1 <= hop < channels")
        half = np.sqrt(hop * channels * np.log(1e7) / np.pi)
        length = channels * int(np.ceil(2 * half / channels))
        framing = Framing.centred(length, length, hop, pad)
        super().__init__(
            sample_rate=sample_rate, bands=channels // 2 + 1, hop=hop, left=framing.left, right=framing.reach, least=framing.least
        )
        self.framing = framing
        window = np.exp(-np.pi * (np.arange(length) - length // 2) ** 2 / (hop * channels))
        self.spectrum = Spectrum(framing=framing, n_fft=channels, window=window / np.sqrt(np.square(window).sum()))
        self.scaling = Scaling(bands=self.bands, log=log, amin=amin, ref=ref, top_db=top_db)

    def features(self, x: Tensor) -> Tensor:
        """Return ``(B, channels // 2 + 1, frames)``."""
        return self.scaling(self.spectrum(x).transpose(1, 2))


class Gammatone(_Image):
    """Energies behind gammatone filters of fourth order, a model of the cochlea, on the scale of equivalent rectangular bandwidths.

    The filters are applied to the energies of a short-time Fourier transform, by their own frequency responses: cheaper than filters in
    time by far, and equal to them for sounds that last longer than the window.

    Args:
        sample_rate: Samples per second.
        n_bands: Number of filters.
        f_min: Centre of the lowest in hertz.
        f_max: Centre of the highest; nine tenths of half the rate by default.
        n_fft: Length of the transform.
        win_length: Length of the window; ``n_fft`` by default.
        hop: Samples between two frames.
        window: Its shape.
        pad: How the clip goes on at its ends.
        log: Logarithm of the energies, as in :class:`LogMel`.
        amin: Floor.
        ref: What 0 dB means: an energy, or ``"max"``, the largest of the clip.
        top_db: Lift what is quieter than so many decibels below the clip's loudest.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        n_bands: int = 64,
        f_min: float = 50.0,
        f_max: float | None = None,
        n_fft: int = 1024,
        win_length: int | None = None,
        hop: int = 320,
        window: Window = "hann",
        pad: Padding = "reflect",
        log: Log = "db",
        amin: float = 1e-10,
        ref: Ref = 1.0,
        top_db: float | None = None,
    ) -> None:
        highest = 0.45 * sample_rate if f_max is None else f_max
        if n_bands < 1 or not 0 < f_min < highest <= sample_rate / 2:
            raise ConfigError(
                f"n_bands={n_bands}, f_min={f_min}, f_max={f_max}: accepted are 1 or more bands, 0 < f_min < f_max <= {sample_rate / 2:g}"
            )
        framing = Framing.centred(n_fft, win_length or n_fft, hop, pad)
        super().__init__(sample_rate=sample_rate, bands=n_bands, hop=hop, left=framing.left, right=framing.reach, least=framing.least)
        self.framing = framing
        self.centres = erb_space(f_min, highest, n_bands)
        self.spectrum = Spectrum(framing=framing, n_fft=n_fft, window=window)
        self.bank = Bank(gammatone_responses(self.centres, np.arange(n_fft // 2 + 1) * (sample_rate / n_fft)))
        self.scaling = Scaling(bands=n_bands, log=log, amin=amin, ref=ref, top_db=top_db)

    def features(self, x: Tensor) -> Tensor:
        """Return ``(B, n_bands, frames)``."""
        return self.scaling(band_energies(self.spectrum, self.bank, x))


def erb_space(low: float, high: float, count: int) -> np.ndarray:
    """Return frequencies from ``low`` to ``high`` at equal distances in equivalent rectangular bandwidths (Glasberg and Moore 1990)."""
    return np.expm1(np.linspace(np.log1p(0.00437 * low), np.log1p(0.00437 * high), count)) / 0.00437


def gammatone_responses(centres: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Return what gammatone filters of fourth order, of unit gain at their centres, leave of energies: ``(centres, frequencies)``."""
    width = 1.019 * 24.7 * (1 + 0.00437 * centres[:, None])
    return (1 + ((frequencies - centres[:, None]) / width) ** 2) ** -4.0


class ConstantQ(_Image):
    """Energies of the constant-Q transform: bands at equal distances in pitch, each with a window of as many of its periods.

    Magnitudes are those of ``librosa.cqt`` (with its scaling by the windows' lengths), computed without decimation.

    Args:
        sample_rate: Samples per second.
        f_min: Frequency of the lowest band in hertz.
        n_bins: Number of bands.
        bins_per_octave: Bands per octave.
        hop: Samples between two frames.
        pad: How the clip goes on at its ends.
        log: Logarithm of the energies, as in :class:`LogMel`.
        amin: Floor.
        ref: What 0 dB means: an energy, or ``"max"``, the largest of the clip.
        top_db: Lift what is quieter than so many decibels below the clip's loudest.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        f_min: float = 65.406,
        n_bins: int = 72,
        bins_per_octave: int = 12,
        hop: int = 320,
        pad: Padding = "reflect",
        log: Log = "db",
        amin: float = 1e-10,
        ref: Ref = 1.0,
        top_db: float | None = None,
    ) -> None:
        frequencies = f_min * 2 ** (np.arange(n_bins) / bins_per_octave)
        if n_bins < 1 or f_min <= 0 or frequencies[-1] >= sample_rate / 2:
            raise ConfigError(
                f"f_min={f_min}, n_bins={n_bins}, bins_per_octave={bins_per_octave}: accepted are 1 or more bands, the highest of which "
                f"is below {sample_rate / 2:g} Hz"
            )
        ratio = 2 ** (2 / bins_per_octave)
        lengths = (ratio + 1) / (ratio - 1) * sample_rate / frequencies
        n_fft = 2 ** int(np.ceil(np.log2(max(lengths[0], hop))))
        framing = Framing.centred(n_fft, n_fft, hop, pad)
        super().__init__(sample_rate=sample_rate, bands=n_bins, hop=hop, left=framing.left, right=framing.reach, least=framing.least)
        self.framing = framing
        self.responses = _wavelets(frequencies / sample_rate, lengths, n_fft)
        self.bank = Bank(self.responses)
        self.scaling = Scaling(bands=n_bins, log=log, amin=amin, ref=ref, top_db=top_db)

    def features(self, x: Tensor) -> Tensor:
        """Return ``(B, n_bins, frames)``."""
        if torch.compiler.is_exporting():
            kernels = np.fft.fft(self.responses, self.framing.length, axis=1)
            both = np.concatenate((kernels.real, kernels.imag))[:, None]
            real, imag = F.conv1d(self.framing.pad(x)[:, None], exported(both, x), stride=self.hop).chunk(2, 1)
        else:
            spectrum = torch.fft.rfft(self.framing.cut(x))
            real, imag = self.bank(spectrum.real), self.bank(spectrum.imag)
        return self.scaling(torch.addcmul(real.square(), imag, imag))


def _wavelets(frequencies: np.ndarray, lengths: np.ndarray, n_fft: int) -> np.ndarray:
    """Return real weights ``(bands, n_fft // 2 + 1)`` that take the spectrum of a frame to a wavelet's product with its middle.

    A symmetric wavelet has a real spectrum around time zero; every other sign puts it into the middle of the frame.
    """
    times = np.arange(n_fft) - n_fft // 2
    signs = 1.0 - 2.0 * (np.arange(n_fft // 2 + 1) % 2)
    rows = []
    for frequency, length in zip(frequencies, lengths, strict=True):
        window = np.where(np.abs(times) <= length / 2, 0.5 + 0.5 * np.cos(2 * np.pi * times / length), 0)
        wavelet = np.sqrt(length) * window / window.sum() * np.exp(2j * np.pi * frequency * times)
        row = np.fft.fft(np.fft.ifftshift(wavelet)).real[: n_fft // 2 + 1] / n_fft
        rows.append(np.where(np.abs(row) > 1e-7 * np.abs(row).max(), row, 0) * signs)
    return np.stack(rows)
