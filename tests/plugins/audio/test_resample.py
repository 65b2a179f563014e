"""Resampling: equal to torchaudio's, equal in blocks of any size, and what an ideal resampler does to tones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchaudio.functional as AF
from cnnkit.errors import InputError
from cnnkit_audio.resample import Resampler, resample
from scipy import signal

PAIRS = [(44100, 32000), (48000, 16000), (16000, 44100), (8000, 32000), (192000, 32000), (11025, 8000), (22050, 22049), (16000, 80)]


def noise(rate: int, seconds: float = 0.2, channels: int = 2, *, seed: int = 0) -> np.ndarray:
    return 0.2 * np.random.default_rng(seed).standard_normal((channels, int(rate * seconds) + 5))


@pytest.mark.parametrize(("rate_in", "rate_out"), [pair for pair in PAIRS if pair != (22050, 22049)])
@pytest.mark.parametrize("zeros", [6, 32])
def test_equals_torchaudio(rate_in: int, rate_out: int, zeros: int) -> None:
    x = noise(max(rate_in, 1000), 0.1)
    ours = resample(x, rate_in, rate_out, zeros=zeros)
    theirs = AF.resample(torch.from_numpy(x), rate_in, rate_out, lowpass_filter_width=zeros).numpy()
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-10)
    single = resample(x.astype(np.float32), rate_in, rate_out, zeros=zeros)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, theirs, atol=3e-6)


@pytest.mark.parametrize("longest", [1, 50, 5000])
@pytest.mark.parametrize(("rate_in", "rate_out"), PAIRS)
def test_blocks_equal_the_whole(rate_in: int, rate_out: int, longest: int) -> None:
    x = noise(max(rate_in, 1000), 0.01 if longest == 1 else 0.2).astype(np.float32)
    rng = np.random.default_rng(1)
    resampler, parts, place = Resampler(rate_in, rate_out), [], 0
    while place < x.shape[1]:
        size = int(rng.integers(1, longest + 1))
        parts.append(resampler.push(x[:, place : place + size]))
        place += size
    parts.append(resampler.finish())
    np.testing.assert_allclose(np.concatenate(parts, axis=1), resample(x, rate_in, rate_out), atol=1e-6)


def test_outputs_leave_as_soon_as_they_can() -> None:
    resampler = Resampler(48000, 16000)
    pushed = given = 0
    for _ in range(100):
        given += resampler.push(np.zeros((1, 480), np.float32)).shape[1]
        pushed += 480
        assert given / 16000 >= pushed / 48000 - 0.0022
        assert resampler._held is not None and resampler._held.shape[1] < 1000


def test_length_of_every_sound_is_that_of_its_time() -> None:
    for length in range(1, 60):
        assert resample(np.ones((1, length)), 44100, 32000).shape[1] == -(-length * 32000 // 44100)


@pytest.mark.parametrize(("rate_in", "rate_out"), [(44100, 16000), (192000, 32000), (48000, 32000)])
def test_aliases_are_60_db_down(rate_in: int, rate_out: int) -> None:
    window = signal.windows.blackmanharris(rate_out)[None]
    for frequency in np.linspace(rate_out / 2 * 1.2, rate_in / 2 * 0.98, 7):
        tone = np.sin(2 * np.pi * frequency * np.arange(rate_in) / rate_in)[None]
        kept = resample(tone, rate_in, rate_out) * window
        assert 10 * np.log10(np.sum(kept**2) / np.sum(window**2) / 0.5) < -60


@pytest.mark.parametrize(("rate_in", "rate_out"), [(44100, 32000), (16000, 44100), (8000, 32000)])
def test_a_tone_keeps_frequency_phase_and_level(rate_in: int, rate_out: int) -> None:
    for frequency in (50.0, 997.3, 0.35 * min(rate_in, rate_out)):
        x, wanted = (np.sin(2 * np.pi * frequency * np.arange(rate) / rate + 0.3)[None] for rate in (rate_in, rate_out))
        middle = slice(rate_out // 10, -rate_out // 10)
        assert np.abs(resample(x, rate_in, rate_out) - wanted)[0, middle].max() < 1.5e-4


def test_upsampling_makes_no_images() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000)[None]
    spectrum = np.abs(np.fft.rfft(resample(tone, 8000, 32000)[0] * signal.windows.blackmanharris(32000)))
    assert 20 * np.log10(spectrum[4000:].max() / spectrum.max()) < -60


def test_equal_rates_change_nothing() -> None:
    x = noise(100)
    assert resample(x, 8000, 8000) is x


def test_odd_rates_are_refused_before_they_fill_the_memory() -> None:
    with pytest.raises(InputError, match="too small a common divisor"):
        Resampler(9_999_991, 32000)
    with pytest.raises(ValueError, match="positive"):
        Resampler(0, 32000)
