"""A language of ten words made of tones and chirps, spoken by drawn voices and heard by microphones in drawn rooms.

A word is two or three pieces in a row, each a tone or a glide between pitches. Several words are made of the same pieces in another
order, so that which frequencies sound does not tell them apart: when they sound does. A voice moves all pitches and the tempo.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from cnnkit_audio.synth.rooms import ARRAYS, Room, draw_array

LOW, MIDDLE, HIGH = 350.0, 600.0, 1000.0
WORDS: dict[str, tuple[tuple[float, float], ...]] = {
    "zero": ((LOW, LOW), (HIGH, HIGH)),
    "one": ((HIGH, HIGH), (LOW, LOW)),
    "two": ((LOW, HIGH), (HIGH, HIGH)),
    "three": ((HIGH, HIGH), (HIGH, LOW)),
    "four": ((LOW, LOW), (MIDDLE, MIDDLE), (HIGH, HIGH)),
    "five": ((HIGH, HIGH), (MIDDLE, MIDDLE), (LOW, LOW)),
    "six": ((MIDDLE, MIDDLE), (LOW, LOW), (MIDDLE, MIDDLE)),
    "seven": ((LOW, LOW), (MIDDLE, MIDDLE), (LOW, LOW)),
    "eight": ((MIDDLE, HIGH), (HIGH, MIDDLE)),
    "nine": ((HIGH, MIDDLE), (MIDDLE, HIGH)),
}
"""Each word with the first and last pitch, in hertz, of its pieces."""


@dataclass(frozen=True)
class Voice:
    """How somebody says the words.

    Args:
        pitch: Factor on every frequency.
        tempo: Seconds per piece.
        overtone: Amplitude of the second harmonic against the first.
    """

    pitch: float = 1.0
    tempo: float = 0.14
    overtone: float = 0.2

    @classmethod
    def draw(cls, rng: Generator) -> Voice:
        """Draw a voice: pitches within 8 percent, tempo within 20 percent."""
        return cls(float(rng.uniform(0.92, 1.08)), float(rng.uniform(0.11, 0.17)), float(rng.uniform(0.05, 0.4)))

    def say(self, word: str, rate: int) -> np.ndarray:
        """Return a word, ``(T,)`` float64 in [-1, 1], with soft ends."""
        samples = round(self.tempo * rate)
        pitches = np.concatenate([np.geomspace(first, last, samples) for first, last in WORDS[word]]) * self.pitch
        phase = 2 * np.pi * np.cumsum(pitches) / rate
        ends = np.minimum(1.0, np.minimum(np.arange(len(phase)), np.arange(len(phase))[::-1]) / (0.01 * rate))
        return ends * (np.sin(phase) + self.overtone * np.sin(2 * phase)) / (1 + self.overtone)


@dataclass(frozen=True)
class Sentence:
    """Words with their times.

    Args:
        words: The words.
        times: Start and end of each in seconds.
        sound: ``(T,)``, without room and noise.
    """

    words: tuple[str, ...]
    times: tuple[tuple[float, float], ...]
    sound: np.ndarray

    @property
    def text(self) -> str:
        """The transcript."""
        return " ".join(self.words)


def draw_sentence(rng: Generator, rate: int, *, words: tuple[int, int] = (2, 5), pause: tuple[float, float] = (0.05, 0.2)) -> Sentence:
    """Draw a sentence of a drawn voice.

    Args:
        rng: Random generator.
        rate: Samples per second.
        words: Fewest and most words.
        pause: Seconds of silence before, between and after the words: least and most.
    """
    voice = Voice.draw(rng)
    chosen = tuple(rng.choice(list(WORDS), int(rng.integers(words[0], words[1] + 1))).tolist())
    pieces, times, at = [], [], 0
    for word in chosen:
        silence = round(rng.uniform(*pause) * rate)
        said = voice.say(word, rate) * rng.uniform(0.7, 1.0)
        pieces += [np.zeros(silence), said]
        times.append(((at + silence) / rate, (at + silence + len(said)) / rate))
        at += silence + len(said)
    return Sentence(chosen, tuple(times), np.concatenate([*pieces, np.zeros(round(rng.uniform(*pause) * rate))]))


@dataclass(frozen=True)
class Scene:
    """A sentence as microphones heard it.

    Args:
        sound: ``(C, T)`` float32 in [-1, 1].
        sentence: What was said.
        snr: Decibels of signal over noise at each microphone.
        clean: Which microphones were given the low noise, ``(C,)`` bool.
    """

    sound: np.ndarray
    sentence: Sentence
    snr: np.ndarray
    clean: np.ndarray


@dataclass(frozen=True)
class Place:
    """A room with a source and microphones.

    Args:
        response: From the source to each microphone, ``(C, L)``, each of unit energy.
        array: Geometry of the microphones.
    """

    response: np.ndarray
    array: str

    @classmethod
    def draw(cls, rng: Generator, rate: int, *, microphones: tuple[int, int] = (2, 12), max_order: int | None = 6) -> Place:
        """Draw a room, an array of a drawn kind in it, and a source."""
        room, count = Room.draw(rng), int(rng.integers(microphones[0], microphones[1] + 1))
        kind = str(rng.choice(ARRAYS))
        places = draw_array(rng, room, count, kind)
        response = room.response(room.place(rng, 1)[0], places, rate=rate, max_order=max_order)
        return cls(response / np.sqrt((response**2).sum(1, keepdims=True)), kind)


def record(
    rng: Generator,
    sentence: Sentence,
    place: Place,
    *,
    clean: int = 2,
    clean_snr: tuple[float, float] = (12.0, 20.0),
    noisy_snr: tuple[float, float] = (-12.0, -4.0),
) -> Scene:
    """Record a sentence in a place: every microphone has its own gain and its own white noise, and few have little of it.

    Args:
        rng: Random generator.
        sentence: What is said.
        place: Where.
        clean: Microphones with little noise, drawn among all.
        clean_snr: Decibels of signal over noise at these.
        noisy_snr: Decibels at the others.
    """
    count, samples = len(place.response), len(sentence.sound) + place.response.shape[1] - 1
    length = 1 << (samples - 1).bit_length()
    heard = np.fft.irfft(np.fft.rfft(place.response, length) * np.fft.rfft(sentence.sound, length), length)[:, :samples]
    which = np.zeros(count, bool)
    which[rng.permutation(count)[:clean]] = True
    snr = np.where(which, rng.uniform(*clean_snr, count), rng.uniform(*noisy_snr, count))
    power = (heard**2).mean(1, keepdims=True)
    noisy = heard + rng.standard_normal(heard.shape) * np.sqrt(power / 10 ** (snr[:, None] / 10))
    peak = np.abs(noisy).max(1, keepdims=True)
    return Scene((noisy / peak * rng.uniform(0.2, 0.9, (count, 1))).astype(np.float32), sentence, snr, which)
