"""What lies between a source and its recording: noise of any colour, rooms, and channels that raise some bands and lower others."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator


def coloured_noise(rng: Generator, samples: int, exponent: float) -> np.ndarray:
    """Return Gaussian noise of unit variance and no mean whose energy falls as ``f^-exponent``: 0 white, 1 pink, 2 brown."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum[0] = 0
    spectrum[1:] *= np.arange(1, spectrum.size) ** (-exponent / 2)
    noise = np.fft.irfft(spectrum, samples)
    return noise / max(float(noise.std()), 1e-12)


def room_noise(rng: Generator, rate: int, rt60: float, direct: float) -> np.ndarray:
    """Return an impulse response: one, and ``rt60`` seconds of noise that falls by 60 dB, ``1 / direct`` times its energy."""
    times = np.arange(1, max(2, round(rt60 * rate))) / rate
    tail = rng.standard_normal(len(times)) * 10 ** (-3 * times / rt60)
    return np.concatenate(([1.0], tail / np.sqrt(direct * np.square(tail).sum())))


def channel_gains(rng: Generator, samples: int, rate: int) -> np.ndarray:
    """Return a random channel as factors of the bins of a real Fourier transform of so many samples, ``(samples // 2 + 1,)``.

    Three bands are raised or lowered by up to 12 dB, and what lies beyond a lower and an upper edge falls by 12 dB per octave.
    """
    octave = np.log2(np.maximum(np.fft.rfftfreq(samples, 1 / rate), 20))
    decibels = np.zeros_like(octave)
    for _ in range(3):
        decibels += rng.uniform(-12, 12) * np.exp(-(((octave - rng.uniform(6.5, 12.5)) / rng.uniform(0.4, 1.5)) ** 2))
    low, high = rng.uniform(4.5, 7.5), rng.uniform(11.5, 13.5)
    decibels -= 12 * (np.maximum(low - octave, 0) + np.maximum(octave - high, 0))
    return 10 ** (decibels / 20)
