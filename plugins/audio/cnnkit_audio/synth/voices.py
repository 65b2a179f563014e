"""Speakers and speech from a source and a filter: a glottal pulse train through the moving resonances of a vocal tract.

What belongs to a speaker stays (pitch, length and shape of the tract, breath, tilt, pace); what is said changes (vowels, consonants,
melody, pauses). The filters of all frames are applied at once to their spectra, and overlapping frames are added.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

VOWELS = np.array(
    [
        (270, 2290, 3010),
        (390, 1990, 2550),
        (530, 1840, 2480),
        (660, 1720, 2410),
        (730, 1090, 2440),
        (570, 840, 2410),
        (440, 1020, 2240),
        (300, 870, 2240),
        (640, 1190, 2390),
        (490, 1350, 1690),
    ]
)
"""First three formants in Hz of ten American vowels spoken by men (Peterson and Barney, 1952)."""
HIGHER = (3500.0, 4500.0)
"""Fourth and fifth formant, nearly the same in all vowels."""
BANDWIDTHS = np.array((60.0, 90.0, 120.0, 180.0, 250.0))
"""Width of each resonance in Hz."""
NASAL = (280.0, 1250.0, 2250.0)
"""Formants of a nasal."""
FRAME = 0.016
"""Seconds of one frame; frames overlap by half."""
PARTS = 6
"""Half frames in a transform, of which two are signal."""


@dataclass(frozen=True)
class Speaker:
    """What stays the same while somebody speaks.

    Args:
        pitch: Median pitch in Hz.
        liveliness: Standard deviation of the melody in semitones.
        tract: Factor on all formants: below 1 for a longer vocal tract than an average man's.
        shifts: Factor on each of five formants beside it.
        damping: Factor on the widths of the resonances.
        breathiness: Share of noise in the voice.
        cutoff: Hz above which the glottal pulse falls by another 6 dB per octave: low for a soft voice.
        openness: Share of a period for which the glottis is open.
        pace: Syllables per second.
    """

    pitch: float
    liveliness: float
    tract: float
    shifts: tuple[float, ...]
    damping: float
    breathiness: float
    cutoff: float
    openness: float
    pace: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Speaker:
        """Draw a person: pitch and tract hang together as in men and women, the rest is independent."""
        female = rng.random() < 0.5
        return cls(
            pitch=float(np.exp(rng.normal(np.log(205.0 if female else 118.0), 0.16))),
            liveliness=float(rng.uniform(0.8, 2.5)),
            tract=float(rng.normal(1.16 if female else 1.0, 0.05)),
            shifts=tuple(float(shift) for shift in np.exp(rng.normal(0.0, 0.05, len(BANDWIDTHS)))),
            damping=float(np.exp(rng.normal(0.0, 0.25))),
            breathiness=float(rng.beta(1.5, 6.0)),
            cutoff=float(np.exp(rng.uniform(np.log(900.0), np.log(4000.0)))),
            openness=float(rng.uniform(0.45, 0.75)),
            pace=float(rng.uniform(3.0, 6.0)),
        )


def speech(rng: np.random.Generator, seconds: float, rate: int, speaker: Speaker | None = None) -> np.ndarray:
    """Speak nonsense: syllables of random consonants and vowels in phrases, with pauses between them.

    Args:
        rng: Decides what is said, and who speaks if nobody is named.
        seconds: Length.
        rate: Samples per second; formants beyond its reach are left out.
        speaker: Who speaks.

    Shapes:
        ``(round(seconds * rate),)`` float32 in [-1, 1], whose peak is between 0.25 and 0.9.

    Raises:
        ValueError: If the length is less than one sample or the rate below 4000.
    """
    length = round(seconds * rate)
    if length < 1 or rate < 4000:
        raise ValueError(f"no speech of {seconds} seconds at {rate} samples per second; accepted: one sample or more, 4000 or more")
    speaker = speaker or Speaker.draw(rng)
    half = max(1, round(FRAME * rate / 2))
    frames = length // half + 2
    score = _score(rng, frames, half / rate, speaker)
    total = (frames + 1) * half

    voice = _glottis(rng, score, half, total, rate, speaker)
    noise = rng.standard_normal(total)
    bins = PARTS // 2 * half  # Room for the resonances to ring off.
    turn = np.exp(-1j * np.pi * np.arange(bins + 1) / bins).astype(np.complex64)
    voiced = _spectra(voice, half, bins) * _tract(score, turn, rate, speaker)
    hiss = _spectra(noise, half, bins) * _fricative(score, bins, rate, speaker)
    pieces = np.fft.irfft(voiced + hiss, axis=-1)
    signal = np.zeros((frames + PARTS - 1, half))
    for part in range(PARTS):
        signal[part : part + frames] += pieces[:, part * half : (part + 1) * half]
    signal = signal.reshape(-1)[half : half + length]
    peak = float(np.abs(signal).max())
    loudness = rng.uniform(0.25, 0.9)
    return (signal * (loudness / peak) if peak > 0 else signal).astype(np.float32)


@dataclass
class _Score:
    """What is said, frame by frame."""

    formants: np.ndarray  # (frames, 3) of the average man.
    voicing: np.ndarray  # (frames,) amplitude of the voice.
    hiss: np.ndarray  # (frames,) amplitude of the consonants' noise.
    centre: np.ndarray  # (frames,) Hz around which that noise lies.
    melody: np.ndarray  # (frames,) semitones above the median pitch.


def _score(rng: np.random.Generator, frames: int, step: float, speaker: Speaker) -> _Score:
    """Write the syllables as targets, then let the articulators move smoothly between them."""
    formants = np.empty((frames, 3))
    formants[:] = VOWELS[rng.integers(len(VOWELS))]
    voicing, hiss, centre, melody = np.zeros(frames), np.zeros(frames), np.full(frames, 3000.0), np.zeros(frames)

    def put(start: int, seconds: float, *, voice: float, noise: float = 0.0) -> slice:
        where = slice(start, start + max(1, round(seconds / step)))
        voicing[where], hiss[where] = voice, noise
        return where

    at = -int(rng.integers(0, max(1, round(0.2 / step))))  # The recording may begin within a syllable.
    at = max(at, 0)
    while at < frames:
        syllables = int(rng.integers(3, 9))
        start = at
        for _ in range(syllables):
            length = float(rng.uniform(0.7, 1.3)) / speaker.pace
            kind = rng.choice(("none", "fricative", "plosive", "nasal"), p=(0.25, 0.3, 0.25, 0.2))
            consonant = 0.0 if kind == "none" else min(0.35 * length, float(rng.uniform(0.04, 0.12)))
            if kind == "fricative":
                where = put(at, consonant, voice=0.25 * float(rng.integers(0, 2)), noise=float(rng.uniform(0.05, 0.25)))
                centre[where] = rng.uniform(2000.0, 7000.0)
                at = where.stop
            elif kind == "plosive":
                at = put(at, 0.7 * consonant, voice=0.0).stop
                where = put(at, 0.015, voice=0.0, noise=float(rng.uniform(0.3, 0.6)))
                centre[where] = rng.uniform(800.0, 4500.0)
                at = where.stop
            elif kind == "nasal":
                where = put(at, consonant, voice=0.35)
                formants[where] = NASAL
                at = where.stop
            where = put(at, length - consonant, voice=float(rng.uniform(0.7, 1.0)))
            formants[where] = VOWELS[rng.integers(len(VOWELS))]
            melody[where] = rng.normal(0.0, speaker.liveliness)
            at = where.stop
        if at > start:
            melody[start:at] += np.linspace(1.0, -1.5, at - start)[: max(0, frames - start)]  # Phrases decline.
        at = put(at, float(rng.uniform(0.1, 0.45)), voice=0.0).stop
    return _Score(
        formants=_smooth(formants, 0.05 / step),
        voicing=_smooth(voicing, 0.02 / step),
        hiss=_smooth(hiss, 0.01 / step),
        centre=centre,
        melody=_smooth(melody, 0.1 / step),
    )


def _smooth(track: np.ndarray, width: float) -> np.ndarray:
    """Average over a Hann window of about ``width`` frames, holding the ends."""
    from scipy.ndimage import convolve1d

    window = np.hanning(2 * max(1, round(width)) + 1)[1:-1] if width >= 1 else np.ones(1)
    return convolve1d(track, window / window.sum(), axis=0, mode="nearest")


def _glottis(rng: np.random.Generator, score: _Score, half: int, total: int, rate: int, speaker: Speaker) -> np.ndarray:
    """Return the flow's derivative, ``(total,)``: Rosenberg's pulse with jitter, and breath while the glottis is open."""
    from scipy.signal import lfilter

    centres = (np.arange(len(score.melody)) + 1) * half
    semitones = np.interp(np.arange(total), centres, score.melody + rng.normal(0.0, 0.15, len(score.melody)))
    amplitude = np.interp(np.arange(total), centres, score.voicing)
    period = np.cumsum(speaker.pitch * 2 ** (semitones / 12) / rate) % 1.0
    opening, closing = speaker.openness * 0.7, speaker.openness
    rise = 0.5 - 0.5 * np.cos(np.pi * period / opening)
    fall = np.cos(0.5 * np.pi * (period - opening) / (closing - opening))
    flow = np.where(period < opening, rise, np.where(period < closing, fall, 0.0))
    breath = rng.standard_normal(total) * (0.2 + flow) * speaker.breathiness * 0.3
    share = np.exp(-2 * np.pi * speaker.cutoff / rate)
    source = lfilter([1 - share], [1, -share], np.diff(flow * 12.0 * rate / 16000, prepend=0.0) + breath)
    return source * amplitude


def _spectra(signal: np.ndarray, half: int, bins: int) -> np.ndarray:
    """Return the spectra of overlapping Hann-windowed frames, ``(frames, bins + 1)``."""
    frames = np.lib.stride_tricks.sliding_window_view(signal, 2 * half)[::half]
    window = np.sin(np.pi * (np.arange(2 * half) + 0.5) / (2 * half)) ** 2
    return np.fft.rfft((frames * window).astype(np.float32), n=2 * bins, axis=-1)


def _tract(score: _Score, turn: np.ndarray, rate: int, speaker: Speaker) -> np.ndarray:
    """Return the transfer functions of resonators in a row, each of gain one at frequency zero, ``(frames, bins + 1)``."""
    frames = len(score.formants)
    formants = np.concatenate([score.formants, np.broadcast_to(HIGHER, (frames, 2))], axis=1) * speaker.tract * np.array(speaker.shifts)
    gain, denominator = np.ones(frames), np.ones((frames, len(turn)), np.complex64)
    for index, width in enumerate(BANDWIDTHS * speaker.damping):
        inside = formants[:, index] < 0.47 * rate
        radius = np.exp(-np.pi * width / rate)
        first, second = -2 * radius * np.cos(2 * np.pi * formants[:, index] / rate), radius**2
        gain *= np.where(inside, 1 + first + second, 1)
        if inside.all():
            denominator *= (1 + second * turn**2) + first.astype(np.float32)[:, None] * turn
        else:
            denominator *= 1 + inside[:, None] * (second * turn**2 + first.astype(np.float32)[:, None] * turn)
    return gain.astype(np.float32)[:, None] / denominator


def _fricative(score: _Score, bins: int, rate: int, speaker: Speaker) -> np.ndarray:
    """Return a band around the place of articulation for the noise of consonants, ``(frames, bins + 1)``."""
    hertz = (np.arange(bins + 1) * (rate / 2 / bins)).astype(np.float32)
    centre = np.minimum(score.centre * speaker.tract, 0.45 * rate).astype(np.float32)[:, None]
    return (score.hiss[:, None] / (1 + ((hertz - centre) / (0.25 * centre)) ** 2)).astype(np.float32)
