"""Drums, tones, and a compressor whose equations are known: pairs of dry and wet sound to learn a device from."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from scipy.signal import butter, sosfilt

KNEE_DB = 6.0
ATTACK, RELEASE = 0.005, 0.2
"""Seconds in which the gain follows a louder and a softer sound by all but 1/e."""


def compress(x: np.ndarray, limit: np.ndarray, peak_reduction: np.ndarray, rate: int) -> np.ndarray:
    """Return sounds as a feed-forward compressor in decibels with a soft knee changes them.

    The level's excess over a threshold is reduced by a ratio; the reduction is smoothed, quickly while it grows and slowly while it falls.

    Args:
        x: Sounds ``(B, T)``.
        limit: ``(B,)``: 1 for a ratio of 20, 0 for one of 4.
        peak_reduction: ``(B,)``, 0 to 1: the threshold falls from 0 to -40 dB.
        rate: Samples per second.
    """
    level = 20 * np.log10(np.maximum(np.abs(x), 1e-5))
    over = level + 40 * peak_reduction[:, None]
    slope = 1 - 1 / np.where(limit > 0.5, 20.0, 4.0)[:, None]
    knee = np.clip(over + KNEE_DB / 2, 0, KNEE_DB) ** 2 / (2 * KNEE_DB)
    wanted = slope * np.where(over > KNEE_DB / 2, over, knee)
    fast, slow = (np.exp(-1 / (seconds * rate)) for seconds in (ATTACK, RELEASE))
    reduction, now = np.empty_like(wanted), np.zeros(len(x))
    for step, target in enumerate(wanted.T):  # Which of the two speeds holds depends on the sample before: no filter does it at once.
        now = target + np.where(target > now, fast, slow) * (now - target)
        reduction[:, step] = now
    return x * 10 ** (-reduction / 20)


def drums(rng: Generator, seconds: float, rate: int) -> np.ndarray:
    """Return a rhythm of kicks, snares and hats with tones between, whose loudness varies over 40 dB; ``(T,)``, peak 0.9."""
    samples = round(seconds * rate)
    sound = np.zeros(samples)
    beat = rng.uniform(0.1, 0.25)
    for number in range(int(seconds / beat) + 1):
        start = round((number + rng.uniform(0, 0.1)) * beat * rate)
        hit = _HITS[rng.integers(len(_HITS))](rng, rate) * 10 ** (rng.uniform(-40, 0) / 20)
        stop = min(start + hit.size, samples)
        sound[start:stop] += hit[: max(stop - start, 0)]
    return (0.9 * sound / max(np.abs(sound).max(), 1e-9)).astype(np.float32)


def _decay(seconds: float, rate: int) -> tuple[np.ndarray, np.ndarray]:
    time = np.arange(round(4 * seconds * rate)) / rate
    return time, np.exp(-time / seconds)


def _kick(rng: Generator, rate: int) -> np.ndarray:
    time, decay = _decay(rng.uniform(0.05, 0.12), rate)
    return decay * np.sin(2 * np.pi * (rng.uniform(45, 70) * time + rng.uniform(1, 3) * (1 - np.exp(-time / 0.02))))


def _snare(rng: Generator, rate: int) -> np.ndarray:
    time, decay = _decay(rng.uniform(0.03, 0.08), rate)
    return decay * (0.6 * rng.standard_normal(time.size) + 0.5 * np.sin(2 * np.pi * rng.uniform(150, 250) * time))


def _hat(rng: Generator, rate: int) -> np.ndarray:
    time, decay = _decay(rng.uniform(0.01, 0.04), rate)
    return sosfilt(butter(2, 0.3, "highpass", output="sos"), decay * rng.standard_normal(time.size))


def _note(rng: Generator, rate: int) -> np.ndarray:
    time, decay = _decay(rng.uniform(0.1, 0.3), rate)
    pitch = rng.uniform(100, 800)
    return decay * sum(np.sin(2 * np.pi * pitch * harmonic * time) / harmonic for harmonic in (1, 2, 3))


_HITS = (_kick, _snare, _hat, _note)
