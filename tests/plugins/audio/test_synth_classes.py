"""The ten synthetic sounds: the same ones in every run, none silent, and noise as loud as it is said to be."""

from __future__ import annotations

import numpy as np
import pytest
from cnnkit_audio.synth.channel import channel_gains, coloured_noise
from cnnkit_audio.synth.classes import CLASSES, Spoiling, make

RATE = 16000


@pytest.mark.parametrize("kind", CLASSES)
def test_a_class(kind: str) -> None:
    """Of any length and rate: finite, with a peak of one half, drawn from the generator alone, each time another."""
    for seconds, rate in ((2.0, RATE), (0.5, 8000), (1.28, 44100)):
        sound = make(kind, np.random.default_rng(1), seconds, rate)
        assert sound.shape == (round(seconds * rate),) and sound.dtype == np.float32 and np.isfinite(sound).all()
        assert np.abs(sound).max() == pytest.approx(0.5, rel=1e-5) and sound.std() > 1e-3
        np.testing.assert_array_equal(sound, make(kind, np.random.default_rng(1), seconds, rate))
        assert not np.array_equal(sound, make(kind, np.random.default_rng(2), seconds, rate))


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_colour_of_noise(exponent: float) -> None:
    """The power falls by ``f^-exponent``: the slope over three decades."""
    power = np.mean([np.abs(np.fft.rfft(coloured_noise(np.random.default_rng(seed), 2**14, exponent))) ** 2 for seed in range(20)], axis=0)
    band = slice(8, 8000)
    slope = np.polyfit(np.log(np.arange(2**13 + 1)[band]), np.log(power[band]), 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.03)


@pytest.mark.parametrize("snr_db", [20.0, 0.0, -5.0])
def test_noise_is_as_loud_as_stated(snr_db: float) -> None:
    """The ratio of the power that goes with the sound to the rest, in the mean over ten draws; nothing is clipped."""
    sound, ratios = make("tone", np.random.default_rng(3), 2.0, RATE).astype(float), []
    for seed in range(10):
        noisy = Spoiling(snr_db=snr_db).apply(sound, np.random.default_rng(seed), RATE).astype(float)
        heard = noisy @ sound / (sound @ sound) * sound
        assert np.abs(noisy).max() == pytest.approx(0.5, rel=1e-5)
        ratios.append(10 * np.log10(np.mean(heard**2) / np.mean((noisy - heard) ** 2)))
    assert np.mean(ratios) == pytest.approx(snr_db, abs=0.15)


def test_spoiling_changes_the_sound_and_keeps_its_range() -> None:
    """Channel, room and gain, drawn from the generator alone."""
    sound = make("chirp", np.random.default_rng(3), 2.0, RATE)
    for spoiling in (Spoiling(filtered=True), Spoiling(reverb=True), Spoiling(gain_db=12), Spoiling(10, 12, True, True)):
        spoiled = spoiling.apply(sound, np.random.default_rng(5), RATE)
        assert spoiled.shape == sound.shape and np.abs(spoiled).max() <= 1 and not np.allclose(spoiled, sound, atol=1e-3)
        np.testing.assert_array_equal(spoiled, spoiling.apply(sound, np.random.default_rng(5), RATE))


def test_channels_raise_and_lower_bands() -> None:
    """By no more than three times 12 dB within the audible middle, and ever less beyond the edges."""
    for seed in range(20):
        decibels = 20 * np.log10(channel_gains(np.random.default_rng(seed), RATE, RATE))
        assert decibels.shape == (RATE // 2 + 1,) and np.abs(decibels[200:2800]).max() <= 36
        assert decibels[20] < decibels[20:2000].max() - 5
