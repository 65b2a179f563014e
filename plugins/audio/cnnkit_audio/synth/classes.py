"""Ten classes of sound made by their physics, and what spoils them: the data of the plugin's built-in network.

The classes differ in how the sound is made and moves, not in pitch or colour: each is drawn over several octaves and through a random
filter, so that a mean spectrum says little and time must be heard.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from scipy.signal import butter, fftconvolve, iirpeak, lfilter, sosfilt

from cnnkit_audio.synth.channel import channel_gains, coloured_noise, room_noise
from cnnkit_audio.synth.voices import speech

FOLDS = 5


@dataclass(frozen=True)
class Spoiling:
    """What happens between a source and the recording.

    Args:
        snr_db: Signal-to-noise ratio of added coloured noise; none without.
        gain_db: Largest gain in decibels, up or down.
        filtered: Whether a random channel (bands raised and lowered, edges cut) colours the sound.
        reverb: Whether a random room's decaying noise is convolved with it.
    """

    snr_db: float | None = None
    gain_db: float = 0.0
    filtered: bool = False
    reverb: bool = False

    def apply(self, signal: np.ndarray, rng: Generator, rate: int) -> np.ndarray:
        """Return the spoiled signal ``(T,)``, float32, in [-1, 1]."""
        if self.filtered:
            signal = np.fft.irfft(np.fft.rfft(signal) * channel_gains(rng, signal.size, rate), signal.size)
        if self.reverb:
            room = room_noise(rng, rate, rng.uniform(0.1, 0.6), 10 ** (rng.uniform(0, 12) / 10))
            signal = fftconvolve(signal, room)[: signal.size]
        if self.snr_db is not None:
            noise = coloured_noise(rng, signal.size, rng.uniform(0, 1.5))
            power = np.mean(signal**2) / max(float(np.mean(noise**2)), 1e-12)
            signal = signal + noise * np.sqrt(power * 10 ** (-self.snr_db / 10))
        signal = _to_peak(signal, 0.5) * 10 ** (rng.uniform(-self.gain_db, self.gain_db) / 20)
        return np.clip(signal, -1, 1).astype(np.float32)


def make(kind: str, rng: Generator, seconds: float, rate: int) -> np.ndarray:
    """Return one sound of a class, ``(T,)`` float32 with a peak of 0.5.

    Args:
        kind: A name of :data:`CLASSES`.
        rng: Draws pitch, colour, tempo and all else that is free within the class.
        seconds: Length.
        rate: Samples per second, 8000 or more.
    """
    return _to_peak(CLASSES[kind](rng, seconds, rate), 0.5).astype(np.float32)


# What sounds are made of.


def _time(seconds: float, rate: int) -> np.ndarray:
    return np.arange(round(seconds * rate)) / rate


def _to_peak(signal: np.ndarray, peak: float) -> np.ndarray:
    return signal * (peak / max(float(np.abs(signal).max()), 1e-9))


def _log_uniform(rng: Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _phase(frequency: np.ndarray | float, time: np.ndarray, rate: int) -> np.ndarray:
    """Return the running phase of a frequency in hertz that may change over time."""
    return 2 * np.pi * np.cumsum(np.broadcast_to(frequency, time.shape)) / rate


def _harmonics(phase: np.ndarray, frequency: np.ndarray | float, rng: Generator, rate: int) -> np.ndarray:
    """Return a sum of up to eight harmonics whose weights fall at a random rate, none above half the sampling rate."""
    fall, total = rng.uniform(0.5, 3), np.zeros_like(phase)
    for number in range(1, rng.integers(1, 9)):
        audible = number * np.asarray(frequency) < 0.45 * rate
        total += audible * np.sin(number * phase + rng.uniform(0, 2 * np.pi)) / number**fall
    return total if total.any() else np.sin(phase)


def _resonances(signal: np.ndarray, rng: Generator, rate: int, count: int) -> np.ndarray:
    """Return the signal through a few random resonators side by side."""
    total = np.zeros_like(signal)
    for _ in range(count):
        b, a = iirpeak(_log_uniform(rng, 150, 0.4 * rate), rng.uniform(1.5, 8), fs=rate)
        total += lfilter(b, a, signal) * rng.uniform(0.3, 1)
    return total


def _bursts(rng: Generator, time: np.ndarray, *, shortest: float, longest: float) -> list[slice]:
    """Return one to four stretches of time that do not overlap."""
    rate = round(1 / (time[1] - time[0]))
    bursts, start = [], int(rng.uniform(0, 0.3) * min(rate, time.size))
    for _ in range(rng.integers(1, 5)):
        length = int(rng.uniform(shortest, longest) * rate)
        bursts.append(slice(start, min(start + length, time.size)))
        start += length + int(rng.uniform(0.1, 0.4) * rate)
        if start >= time.size - shortest * rate:
            break
    return bursts


def _fade(samples: int, rate: int) -> np.ndarray:
    """Return an envelope that rises and falls within ten milliseconds at its ends."""
    ramp = np.minimum(np.arange(samples), np.arange(samples)[::-1]) / (0.01 * rate)
    return np.minimum(ramp, 1)


# The classes.


def _tone(rng: Generator, seconds: float, rate: int) -> np.ndarray:
    time = _time(seconds, rate)
    frequency, signal = _log_uniform(rng, 120, 3000), np.zeros_like(time)
    sound = _harmonics(_phase(frequency, time, rate), frequency, rng, rate)
    for part in _bursts(rng, time, shortest=0.3, longest=2.0):
        signal[part] = sound[part] * _fade(sound[part].size, rate)
    return signal


def _chirp(rng: Generator, seconds: float, rate: int) -> np.ndarray:
    time, signal = _time(seconds, rate), np.zeros(round(seconds * rate))
    octaves, middle = rng.uniform(1, 3) * rng.choice((-1, 1)), _log_uniform(rng, 300, 2500)
    for part in _bursts(rng, time, shortest=0.15, longest=1.0):
        length = part.stop - part.start
        frequency = np.minimum(middle * 2 ** (octaves * (np.arange(length) / max(length, 1) - 0.5)), 0.45 * rate)
        signal[part] = _harmonics(_phase(frequency, time[part], rate), frequency, rng, rate) * _fade(length, rate)
    return signal


def _am_fm(rng: Generator, seconds: float, rate: int) -> np.ndarray:
    time = _time(seconds, rate)
    carrier, beat = _log_uniform(rng, 120, 3000), rng.uniform(4, 14)
    swing = np.sin(2 * np.pi * beat * time + rng.uniform(0, 2 * np.pi))
    tremolo = rng.uniform(0.4, 0.95) if rng.random() < 0.6 else 0.0
    vibrato = rng.uniform(0.02, 0.06) if rng.random() < 0.6 or not tremolo else 0.0
    frequency = carrier * (1 + vibrato * swing)
    return _harmonics(_phase(frequency, time, rate), frequency, rng, rate) * (1 - tremolo * (0.5 + 0.5 * swing))


def _clicks(rng: Generator, seconds: float, rate: int) -> np.ndarray:
    samples = round(seconds * rate)
    gaps = rng.uniform(2, 12) ** -1.0 * (1 + rng.uniform(0, 0.5) * rng.standard_normal(round(15 * seconds)))
    places = (np.cumsum(np.maximum(gaps, 0.03)) * rate).astype(int)
    impulses = np.zeros(samples)
    inside = places[places < samples]
    impulses[inside] = rng.uniform(0.5, 1, inside.size) * rng.choice((-1, 1), inside.size)
    impulses[int(rng.integers(0, max(samples // 4, 1)))] = 1  # At least one is heard.
    return _resonances(impulses, rng, rate, 3)


def _noise(rng: Generator, seconds: float, rate: int) -> np.ndarray:
    noise = coloured_noise(rng, round(seconds * rate), rng.uniform(-0.5, 2))
    if rng.random() < 0.5:
        low = _log_uniform(rng, 100, 0.15 * rate)
        noise = sosfilt(butter(2, (low, min(low * rng.uniform(2, 8), 0.45 * rate)), "bandpass", fs=rate, output="sos"), noise)
    return noise


def _plucked_string(rng: Generator, seconds: float, rate: int) -> np.ndarray:
    """Karplus and Strong: a burst of noise in a delay line whose loop averages neighbours."""
    time, total = _time(seconds, rate), np.zeros(round(seconds * rate))
    for part in _bursts(rng, time, shortest=0.15, longest=0.6):
        period = round(rate / _log_uniform(rng, 90, 900))
        burst = np.zeros(total.size - part.start)
        burst[:period] = rng.uniform(-1, 1, min(period, burst.size))
        loop = np.zeros(period + 2)
        loop[0], loop[period], loop[period + 1] = 1, -0.5 * (damping := rng.uniform(0.985, 0.998)), -0.5 * damping
        total[part.start :] += lfilter([1], loop, burst)
    return total


def _speech(rng: Generator, seconds: float, rate: int) -> np.ndarray:
    return speech(rng, seconds, rate)


def _siren(rng: Generator, seconds: float, rate: int) -> np.ndarray:
    time = _time(seconds, rate)
    turns = rng.uniform(0.4, 3.5) * time + rng.uniform(0, 1)
    swing = (np.sin(2 * np.pi * turns), 2 * np.abs(2 * (turns % 1) - 1) - 1, np.sign(np.sin(2 * np.pi * turns)))[rng.integers(3)]
    frequency = _log_uniform(rng, 350, 1500) * 2 ** (rng.uniform(0.25, 0.9) * swing)
    return _harmonics(_phase(frequency, time, rate), frequency, rng, rate)


def _rain(rng: Generator, seconds: float, rate: int) -> np.ndarray:
    """Drops by a Poisson process, each a short ringing bubble, over a hiss."""
    samples = round(seconds * rate)
    drops = np.zeros(samples)
    count = rng.poisson(_log_uniform(rng, 60, 400) * seconds)
    np.add.at(drops, rng.integers(0, samples, count), rng.exponential(1, count) * rng.choice((-1, 1), count))
    ringing = _resonances(drops, rng, rate, 5)
    return ringing / max(ringing.std(), 1e-9) + rng.uniform(0.1, 0.5) * coloured_noise(rng, samples, rng.uniform(-0.5, 0.5))


def _engine(rng: Generator, seconds: float, rate: int) -> np.ndarray:
    """Explosions at 18 to 70 per second whose pace drifts and whose strengths differ by cylinder, through pipes."""
    time = _time(seconds, rate)
    pace = _log_uniform(rng, 18, 70) * (1 + rng.uniform(0, 0.25) * np.sin(2 * np.pi * rng.uniform(0.1, 0.6) * time + rng.uniform(0, 6)))
    turns = _phase(pace, time, rate) / (2 * np.pi)
    fires = np.flatnonzero(np.diff(np.floor(turns), prepend=-1) > 0)
    cylinders = rng.uniform(0.6, 1, 4)
    impulses = np.zeros(time.size)
    impulses[fires] = cylinders[np.arange(fires.size) % 4] * (1 + 0.1 * rng.standard_normal(fires.size))
    sound = _resonances(impulses, rng, rate, 4)
    return sound / max(sound.std(), 1e-9) + rng.uniform(0.05, 0.3) * coloured_noise(rng, time.size, 1)


CLASSES: dict[str, Callable[[Generator, float, int], np.ndarray]] = {
    "tone": _tone,
    "chirp": _chirp,
    "am_fm": _am_fm,
    "clicks": _clicks,
    "noise": _noise,
    "plucked_string": _plucked_string,
    "speech": _speech,
    "siren": _siren,
    "rain": _rain,
    "engine": _engine,
}
"""How each class is made, by the names that the built-in network's labels have."""
