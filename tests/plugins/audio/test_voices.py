"""Synthetic speakers: what stays theirs, what changes, and that the same seed says the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cnnkit_audio.embedding.data import record
from cnnkit_audio.synth.voices import Speaker, speech

RATE = 16000
ANNA = Speaker.draw(np.random.default_rng(1))


def spectrum(signal: np.ndarray) -> np.ndarray:
    """Long-term power, in bins of 62.5 Hz at 16 kHz."""
    frames = np.lib.stride_tricks.sliding_window_view(signal, 256)[::128]
    return (np.abs(np.fft.rfft(frames * np.hanning(256))) ** 2).mean(0)


@pytest.mark.parametrize(("seconds", "rate"), [(1.0, 16000), (0.37, 8000), (1 / 16000, 16000), (0.5, 44100), (0.2, 4000)])
def test_length_type_and_range(seconds: float, rate: int) -> None:
    """Exactly as long as asked, float32, within [-1, 1] and not silent."""
    signal = speech(np.random.default_rng(0), seconds, rate)
    assert signal.shape == (round(seconds * rate),) and signal.dtype == np.float32
    assert 0 < np.abs(signal).max() <= 0.9 + 1e-6


def test_same_seed_same_words() -> None:
    """A recording depends on its generator alone; another generator says something else."""
    one = speech(np.random.default_rng(3), 0.5, RATE, ANNA)
    assert np.array_equal(one, speech(np.random.default_rng(3), 0.5, RATE, ANNA))
    assert not np.array_equal(one, speech(np.random.default_rng(4), 0.5, RATE, ANNA))
    assert Speaker.draw(np.random.default_rng(5)) == Speaker.draw(np.random.default_rng(5))


def test_pitch_is_the_speakers() -> None:
    """The distance between pulses, by the autocorrelation of voiced frames, is near the speaker's period."""
    for pitch in (95.0, 180.0):
        voice = replace(ANNA, pitch=pitch, liveliness=0.3, breathiness=0.0)
        signal = speech(np.random.default_rng(0), 3.0, RATE, voice)
        found = []
        for frame in np.lib.stride_tricks.sliding_window_view(signal, 1024)[::512]:
            lags = np.correlate(frame, frame, "full")[1023:]
            first = 40
            peak = first + int(np.argmax(lags[first:400]))
            if lags[0] > 0 and lags[peak] > 0.6 * lags[0]:
                found.append(RATE / peak)
        assert len(found) > 20
        assert np.median(found) == pytest.approx(pitch, rel=0.1)


def test_a_longer_tract_has_lower_formants() -> None:
    """The balance point of the spectrum above the pitch moves with the tract."""
    centres = []
    for tract in (0.85, 1.0, 1.2):
        power = spectrum(speech(np.random.default_rng(2), 4.0, RATE, replace(ANNA, tract=tract, breathiness=0.0)))
        bins = np.arange(len(power)) * RATE / 256
        inside = (bins > 300) & (bins < 4000)
        centres.append(
            float((bins * np.log1p(power / power.max() * 1e3))[inside].sum() / np.log1p(power / power.max() * 1e3)[inside].sum())
        )
    assert centres == sorted(centres)


def test_there_are_pauses_and_breath() -> None:
    """A long recording has silent stretches; a breathier voice is less periodic."""
    signal = speech(np.random.default_rng(0), 6.0, RATE, ANNA)
    levels = np.abs(signal[: len(signal) // 800 * 800].reshape(-1, 800)).max(1)
    assert 0.03 < (levels < 0.02 * levels.max()).mean() < 0.6
    clear, breathy = (periodicity(speech(np.random.default_rng(0), 2.0, RATE, replace(ANNA, breathiness=share))) for share in (0.0, 0.9))
    assert breathy < clear - 0.05


def periodicity(signal: np.ndarray) -> float:
    """Median over the louder half of frames of the highest correlation with what was a period before."""
    frames = np.lib.stride_tricks.sliding_window_view(signal, 1024)[::512]
    frames = frames[np.argsort(frames.std(1))[len(frames) // 2 :]]
    return float(np.median([(np.correlate(frame, frame, "full")[1063:1423] / (frame @ frame)).max() for frame in frames]))


def test_a_channel_colours_and_a_noise_is_as_loud_as_said() -> None:
    """Without gains and with little noise a recording stays; the noise keeps to the ratio."""
    said = speech(np.random.default_rng(0), 1.0, RATE, ANNA)
    heard = record(said, np.random.default_rng(0), channel_db=0.0, noise_db=40.0)
    noise = heard - said
    ratio = 10 * np.log10(np.mean(said**2) / np.mean(noise**2))
    assert 39.0 < ratio < 61.0
    coloured = record(said, np.random.default_rng(0), channel_db=20.0, noise_db=60.0)
    assert np.abs(coloured).max() <= 1.0
    moved = 10 * np.log10(spectrum(coloured) / spectrum(said))[2:-2]
    assert np.ptp(moved) > 6.0


@pytest.mark.parametrize(("seconds", "rate"), [(0.0, 16000), (1.0, 2000)])
def test_what_cannot_be_said(seconds: float, rate: int) -> None:
    """No sample, or a rate that no formant fits under."""
    with pytest.raises(ValueError, match="accepted"):
        speech(np.random.default_rng(0), seconds, rate)
