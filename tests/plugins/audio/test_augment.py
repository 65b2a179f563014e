"""Augmentation: closed forms, exact levels, statistics over many draws, and the same batch from the same generator."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cnnkit.errors import ConfigError
from cnnkit_audio import augment
from cnnkit_audio.augment_features import SpecAugment, shift_features, stretch_features, sum_same_class, warp_bands
from cnnkit_audio.data_config import AugmentConfig
from scipy import signal
from torch import Tensor

RATE = 16_000


def generator(seed: int = 0) -> np.random.Generator:
    """The source of a test's draws."""
    return np.random.default_rng(seed)


def clips(batch: int = 4, samples: int = 8_000) -> Tensor:
    """White noise of different levels."""
    noise = torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(batch))
    return noise * torch.logspace(-2, -0.5, batch)[:, None, None]


def tone(frequency: float, samples: int = RATE) -> Tensor:
    """One clip."""
    return torch.sin(2 * torch.pi * frequency * torch.arange(samples) / RATE)[None, None]


def pitch(clip: Tensor) -> float:
    """The frequency of the loudest bin in hertz."""
    windowed = clip[0] * torch.hann_window(clip.shape[-1])
    return float(torch.fft.rfft(windowed).abs().argmax()) * RATE / clip.shape[-1]


STEPS: dict[str, Callable[[Tensor, np.random.Generator], Tensor]] = {
    "gain": lambda x, rng: augment.change_gain(x, rng, db=6),
    "roll": augment.roll,
    "noise": lambda x, rng: augment.add_noise(x, rng, snr_db=(0, 20), colour="any"),
    "clipping": lambda x, rng: augment.saturate(x, rng, most=0.1),
    "reverb": lambda x, rng: augment.reverberate(x, rng, RATE),
    "speed": lambda x, rng: augment.change_speed(x, rng, most=0.2),
    "tempo": lambda x, rng: augment.change_tempo(x, rng, RATE, most=0.2),
    "pitch": lambda x, rng: augment.change_pitch(x, rng, RATE, semitones=3),
}


@pytest.mark.parametrize("name", STEPS)
def test_each_step_follows_its_generator_and_keeps_shape(name: str) -> None:
    """The same draws from the same seed, others from another; each clip its own; short clips and silence; the input is left alone."""
    x = clips(2)[:1].expand(3, -1, -1).contiguous()
    before = x.clone()
    step = STEPS[name]
    y = step(x, generator(1))
    assert y.shape == x.shape and y.dtype == x.dtype and y.isfinite().all()
    assert torch.equal(y, step(x, generator(1))) and not torch.equal(y, step(x, generator(2)))
    assert not torch.equal(y[0], y[1]) and torch.equal(x, before)
    for samples in (1, 100):
        assert step(torch.zeros(2, 1, samples), generator()).eq(0).all()
        assert step(torch.ones(2, 1, samples), generator()).isfinite().all()


@pytest.mark.parametrize("seed", range(3))
def test_mixup_is_a_weighted_sum(seed: int) -> None:
    """Clips and labels by the same share, at least a half the clip's own; the Beta distribution's mean."""
    x, targets = torch.eye(64)[:, None], torch.eye(64)
    mixed, labels = augment.mixup(x, targets, generator(seed), alpha=0.4)
    torch.testing.assert_close(mixed[:, 0], labels)
    torch.testing.assert_close(labels.sum(1), torch.ones(64))
    assert (labels.diagonal() >= 0.5).all() and (labels.gt(0).sum(1) <= 2).all()
    many = generator(seed).beta(0.4, 0.4, 64)
    shares = np.maximum(many, 1 - many)
    own = labels.diagonal().numpy()
    alone = (labels.gt(0).sum(1) == 1).numpy()  # Mixed with itself.
    np.testing.assert_allclose(own[~alone], shares[~alone], rtol=1e-5)


def gain_of_official_code(sound: np.ndarray, rate: int) -> float:
    """The loudness that between-class learning defines, frame by frame."""
    size = {16_000: 2_048, 20_000: 2_048, 44_100: 4_096}[rate]
    square = np.linspace(0, rate // 2, size // 2 + 1) ** 2
    square[0] = 1
    weight = 2.0 + 20 * (
        2 * np.log10(12194) + 2 * np.log10(square) - np.log10(square + 12194**2) - np.log10(square + 20.6**2)
        - 0.5 * np.log10(square + 107.7**2) - 0.5 * np.log10(square + 737.9**2)
    )  # fmt: skip
    weight = np.maximum(weight, -80)
    window = np.hanning(size + 1)[:-1]
    gains = [
        np.sum(np.abs(np.fft.rfft(window * sound[first : first + size])) ** 2 * 10 ** (weight / 10))
        for first in range(0, len(sound) - size + 1, size // 2)
    ]
    return float(10 * np.log10(np.maximum(gains, 1e-8)).max())


@pytest.mark.paper("acdnet")
@pytest.mark.parametrize("rate", [16_000, 20_000, 44_100])
def test_loudness_is_a_weighted(rate: int) -> None:
    """1e-3 dB beside the definition; a tone of 1 kHz weighs 0 dB, one of 100 Hz -19.1 dB."""
    x = clips(3, rate)
    for clip, ours in zip(x, augment.loudness(x, rate), strict=True):
        assert float(ours) == pytest.approx(gain_of_official_code(clip[0].double().numpy(), rate), abs=1e-3)
    times = torch.arange(rate) / rate
    tones = torch.stack([torch.sin(2 * torch.pi * frequency * times)[None] for frequency in (1_000, 100)])
    kilohertz, low = augment.loudness(tones, rate).tolist()
    assert low - kilohertz == pytest.approx(-19.1, abs=0.2)
    assert augment.loudness(torch.zeros(1, 1, 10), rate).tolist() == [-80.0]


@pytest.mark.paper("acdnet")
def test_between_class_mixing_is_its_closed_form() -> None:
    """The amplitude's share makes up for the difference in loudness; partners are of another class; labels sum to one."""
    x, targets = clips(4, RATE), torch.eye(2)[[0, 0, 1, 1]]
    mixed, labels = augment.mix_between_classes(x, targets, generator(3), RATE)
    assert labels.min() > 0
    torch.testing.assert_close(labels.sum(1), torch.ones(4))
    levels = [gain_of_official_code(clip[0].double().numpy(), RATE) for clip in x]
    for row in range(4):
        share = float(labels[row, targets[row].argmax()])
        errors = []
        for partner in range(4):
            amplitude = 1 / (1 + 10 ** ((levels[row] - levels[partner]) / 20) * (1 - share) / share)
            expected = (amplitude * x[row] + (1 - amplitude) * x[partner]) / np.sqrt(amplitude**2 + (1 - amplitude) ** 2)
            errors.append(float((mixed[row] - expected).abs().max()))
        best = int(np.argmin(errors))
        assert errors[best] < 1e-4 and not torch.equal(targets[best], targets[row])


def test_clips_of_one_class_alone_are_mixed_too() -> None:
    """There is no stranger in the batch."""
    _, labels = augment.mix_between_classes(clips(3), torch.eye(2)[[0, 0, 0]], generator(), RATE)
    torch.testing.assert_close(labels, torch.eye(2)[[0, 0, 0]])


@pytest.mark.parametrize(("colour", "slope"), [("white", 0.0), ("pink", -1.0), ("brown", -2.0)])
def test_noise_has_its_ratio_and_its_colour(colour: str, slope: float) -> None:
    """0.1 dB, and the slope of the spectrum within 0.1."""
    x = clips(8, 32_768)
    noise = augment.add_noise(x, generator(), snr_db=(6.0, 6.0), colour=colour) - x
    ratio = 10 * (x.square().mean(-1) / noise.square().mean(-1)).log10()
    assert (ratio - 6).abs().max() < 0.1
    energies = (noise[:, 0] / noise[:, 0].std(-1, keepdim=True)).double()
    frequencies, spectrum = signal.welch(energies.numpy(), RATE, nperseg=4_096)
    inside = (frequencies > 50) & (frequencies < 6_000)
    fit = np.polyfit(np.log(frequencies[inside]), np.log(spectrum[:, inside].mean(0)), 1)
    assert fit[0] == pytest.approx(slope, abs=0.1)


def test_noise_is_drawn_between_two_ratios() -> None:
    """Uniformly in decibels."""
    x = clips(1, 500).expand(400, -1, -1)
    noise = augment.add_noise(x, generator(), snr_db=(0.0, 10.0)) - x
    ratios = 10 * (x.square().mean(-1) / noise.square().mean(-1)).log10()
    assert -0.01 < float(ratios.min()) < 0.3 and 9.7 < float(ratios.max()) < 10.01 and abs(float(ratios.mean()) - 5) < 0.5
    with pytest.raises(ConfigError, match="accepted: white, pink, brown, any"):
        augment.add_noise(x, generator(), snr_db=(0, 1), colour="blue")


def test_gain_is_uniform_in_decibels() -> None:
    """Between both limits."""
    decibels = 20 * augment.change_gain(torch.ones(500, 1, 1), generator(), db=12).log10()
    assert decibels.abs().max() <= 12.001 and float(decibels.abs().max()) > 11.5 and abs(float(decibels.mean())) < 1


def test_roll_and_crop_keep_the_samples_in_order() -> None:
    """A roll is a circle, a crop a stretch; shorter clips lie in silence."""
    x = torch.arange(10.0).expand(200, 1, 10)
    rolled = augment.roll(x, generator())[:, 0]
    assert (rolled.diff().remainder(10) == 1).all() and len(rolled[:, 0].unique()) == 10
    cropped = augment.crop(x, generator(), samples=4)[:, 0]
    assert (cropped.diff() == 1).all() and sorted(cropped[:, 0].unique().tolist()) == list(range(7))
    padded = augment.crop(x + 1, generator(), samples=12)[:, 0]
    assert (padded.gt(0).sum(1) == 10).all() and sorted((padded == 1).int().argmax(1).unique().tolist()) == [0, 1, 2]


def test_clipping_cuts_the_share_of_samples() -> None:
    """The largest share, over many clips; what lies below the limit stays."""
    x = clips(1, 1_000).expand(300, -1, -1)
    y = augment.saturate(x, generator(), most=0.2)
    limits = y.abs().amax(-1, keepdim=True)
    share = (y.abs() == limits).float().mean(-1)
    assert 0.18 < float(share.max()) <= 0.201 and abs(float(share.mean()) - 0.1) < 0.01
    torch.testing.assert_close(y, torch.minimum(torch.maximum(x, -limits), limits))


@pytest.mark.parametrize("rt60", [0.2, 0.5])
def test_a_room_decays_by_60_db_in_its_time(rt60: float) -> None:
    """A tenth, by the slope of the backward integral from -5 to -35 dB; the direct sound has its share of the energy."""
    response = augment.room_noise(generator(), RATE, rt60, 2.0)
    assert np.square(response[1:]).sum() == pytest.approx(0.5) and response[0] == 1
    energy = np.cumsum(np.square(response[:0:-1]))[::-1]
    decibels = 10 * np.log10(energy / energy[0])
    inside = (decibels < -5) & (decibels > -35)
    slope = np.polyfit(np.flatnonzero(inside) / RATE, decibels[inside], 1)[0]
    assert -60 / slope == pytest.approx(rt60, rel=0.1)


def test_reverberation_keeps_the_energy_and_leaves_the_others_alone() -> None:
    """A share of the clips."""
    x = clips(200, 2_000)
    y = augment.reverberate(x, generator(), RATE, share=0.3)
    changed = (y != x).flatten(1).any(1)
    assert 40 < int(changed.sum()) < 80
    torch.testing.assert_close(y.square().mean(-1), x.square().mean(-1), rtol=1e-4, atol=0)


def test_speed_moves_the_pitch_and_tempo_does_not() -> None:
    """Within 2 %, of a tone of 1 kHz."""
    x = tone(1_000).expand(12, -1, -1)
    speeds = np.array([pitch(clip) / 1_000 for clip in augment.change_speed(x, generator(), most=0.2)])
    np.testing.assert_allclose(speeds, np.round(generator().uniform(0.8, 1.2, 12), 2), rtol=0.02)
    assert np.ptp(speeds) > 0.2
    for clip in augment.change_tempo(x[:4], generator(), RATE, most=0.2):
        assert pitch(clip) == pytest.approx(1_000, rel=0.02)


def test_pitch_moves_by_semitones_at_the_same_tempo() -> None:
    """A tone that stops at half the clip stops there still."""
    x = tone(1_000).clone()
    x[..., RATE // 2 :] = 0
    for seed in range(4):
        ratio = 2 ** (generator(seed).uniform(-4, 4, 1)[0] / 12)
        (clip,) = augment.change_pitch(x, generator(seed), RATE, semitones=4)
        assert pitch(clip) == pytest.approx(1_000 * ratio, rel=0.02)
        energy = clip[0].square().cumsum(0)
        assert int((energy < 0.98 * energy[-1]).sum()) == pytest.approx(RATE / 2, rel=0.08)


CHANGES: dict[str, dict[str, Any]] = {
    "mixup": {"mix": "mixup"},
    "between class": {"mix": "between_class"},
    "gain": {"gain_db": 6.0},
    "roll": {"roll": True},
    "noise": {"noise_db": 3.0},
    "channel": {"channel": 1.0},
    "reverb": {"reverb": 1.0},
    "speed": {"speed": 0.2},
    "pitch": {"pitch": 2.0},
    "tempo": {"time_scale": 0.2},
    "clipping": {"clipping": 0.2},
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_key_of_the_configuration_does_something(name: str) -> None:
    """Reproducibly; labels keep their sums; without keys nothing changes."""
    x, targets = clips(4, RATE), torch.eye(4)
    cfg = AugmentConfig(**CHANGES[name])
    y, labels = augment.augment_batch(x, targets, cfg, generator(5), RATE)
    again, _ = augment.augment_batch(x, targets, cfg, generator(5), RATE)
    assert y.shape == x.shape and torch.equal(y, again) and not torch.equal(y, x)
    torch.testing.assert_close(labels.sum(1), torch.ones(4))
    assert torch.equal(labels, targets) == ("mix" not in CHANGES[name])
    still, same = augment.augment_batch(x, targets, AugmentConfig(), generator(), RATE)
    assert torch.equal(still, x) and torch.equal(same, targets)


def test_noise_of_the_configuration_is_at_least_its_ratio() -> None:
    """And below the span, after everything else."""
    x = clips(50, 1_000)
    cfg = AugmentConfig(noise_db=3.0, noise_span_db=2.0, noise_colour="any")
    noise = augment.augment_batch(x, torch.eye(50), cfg, generator(), RATE)[0] - x
    ratio = 10 * (x.square().mean(-1) / noise.square().mean(-1)).log10()
    assert 2.99 < float(ratio.min()) < 3.3 and 4.7 < float(ratio.max()) < 5.01


def test_every_key_is_tested() -> None:
    """So that none is forgotten; the masks are those of :class:`SpecAugment`."""
    keys = {key for change in CHANGES.values() for key in change}
    details = {"mix_alpha", "noise_span_db", "noise_colour", "rt60", "freq_mask", "time_mask"}
    assert keys | details == {field.name for field in dataclasses.fields(AugmentConfig)}


def test_changes_of_speed_stay_below_one() -> None:
    """A clip cannot stand still."""
    with pytest.raises(ConfigError, match="below 1"):
        augment.change_speed(clips(), generator(), most=1.0)


def test_masks_hide_as_much_as_they_say() -> None:
    """Widths from none to the largest, equally often, in one piece, for each clip by itself; nothing in evaluation."""
    x = torch.rand(2_000, 1, 20, 30) + 1
    masks = SpecAugment(freq_mask=5, time_mask=7, fill=0.0, generator=torch.Generator().manual_seed(0))
    assert masks.eval()(x) is x
    hidden = masks.train()(x) == 0
    bands, frames = hidden.all(-1)[:, 0], hidden.all(-2)[:, 0]
    assert torch.equal(hidden[:, 0], bands[:, :, None] | frames[:, None])
    for places, widest in ((bands, 5), (frames, 7)):
        widths = places.sum(1)
        shares = torch.bincount(widths) / len(x)
        assert len(shares) == widest + 1 and (shares - 1 / (widest + 1)).abs().max() < 0.03
        edges = torch.nn.functional.pad(places.int(), (1, 1)).diff().abs().sum(1)
        assert ((edges == 2) | (widths == 0)).all()
        assert places.any(0).all()


def test_masks_are_filled_with_the_mean_and_let_slopes_through() -> None:
    """Several masks; the same ones from the same generator."""
    x = torch.rand(4, 1, 16, 40, requires_grad=True)
    made = [
        SpecAugment(freq_mask=4, time_mask=8, freq_masks=2, time_masks=2, generator=torch.Generator().manual_seed(1))(x) for _ in range(2)
    ]
    assert torch.equal(*made)
    changed = made[0] != x
    means = x.mean((1, 2, 3), keepdim=True).expand_as(x)
    torch.testing.assert_close(made[0][changed], means[changed])
    made[0].sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    with pytest.raises(ConfigError, match="mean"):
        SpecAugment(fill="median")


def test_features_are_shifted_over_time_and_bands() -> None:
    """In a circle, and with the edge band repeated."""
    x = (torch.arange(8.0)[:, None] * 100 + torch.arange(10.0)).expand(300, 1, 8, 10)
    y = shift_features(x, generator(), bands=2, frames=3)[:, 0]
    moved, later = y[:, 4, 0].div(100).floor() - 4, y[:, 4, 0].remainder(100)
    assert sorted(moved.unique().tolist()) == [-2, -1, 0, 1, 2] and sorted(later.unique().tolist()) == [0, 1, 2, 3, 7, 8, 9]
    for clip, up, first in zip(y, moved, later, strict=True):
        rows = (torch.arange(8.0) + up).clamp(0, 7)
        torch.testing.assert_close(clip, rows[:, None] * 100 + (torch.arange(10.0) + first).remainder(10))


def test_sums_are_of_the_same_class() -> None:
    """A lonely clip stays."""
    x = torch.tensor([1.0, 3.0, 10.0, 20.0, 7.0])[:, None, None, None].expand(-1, 1, 2, 2)
    y = sum_same_class(x, torch.eye(3)[[0, 0, 1, 1, 2]], generator())
    assert y[:, 0, 0, 0].tolist() == [2.0, 2.0, 15.0, 15.0, 7.0]


def test_a_warp_moves_bands_by_its_factor_and_keeps_the_ends() -> None:
    """A ramp of bands shows where each comes from."""
    bands = 101
    x = torch.linspace(0, 1, bands)[:, None].expand(50, 1, bands, 3)
    y = warp_bands(x, generator(4), most=0.2, knee=0.8)
    factors = generator(4).uniform(0.8, 1.2, 50)
    assert y[:, 0, 0].abs().max() == 0 and (y[:, 0, -1] - 1).abs().max() < 1e-6
    torch.testing.assert_close(y[:, 0, 40, 0], torch.from_numpy(0.4 / factors).float(), rtol=0, atol=1e-5)
    assert (y.diff(dim=2) > 0).all()
    torch.testing.assert_close(warp_bands(x, generator(), most=0.0), x)


def test_features_are_stretched_in_time() -> None:
    """A ramp of frames shows the tempo; the shape stays."""
    x = torch.arange(200.0).expand(40, 1, 3, 200)
    y = stretch_features(x, generator(2), most=0.25)
    tempos = generator(2).uniform(0.75, 1.25, 40)
    assert y.shape == x.shape
    slopes = y[:, 0, 0, 20:120].diff(dim=-1).mean(-1)
    torch.testing.assert_close(slopes, torch.from_numpy(tempos).float(), rtol=0.01, atol=0)
    torch.testing.assert_close(stretch_features(x, generator(), most=0.0), x)


def test_channels_colour_some_clips_at_their_energy() -> None:
    """A share of the clips changes, each by a channel of its own; their energies stay."""
    x = torch.randn(200, 1, 512, generator=torch.Generator().manual_seed(0))
    wet = augment.pass_channel(x, generator(), RATE, share=0.3)
    changed = (wet != x).any(2)[:, 0]
    assert 0.2 < changed.float().mean() < 0.4
    torch.testing.assert_close(wet.square().mean(2), x.square().mean(2))
    spectra = (torch.fft.rfft(wet[changed]).abs() / torch.fft.rfft(x[changed]).abs())[:, 0]
    assert not torch.allclose(spectra[0], spectra[1], rtol=0.1)
    assert torch.equal(augment.pass_channel(x, generator(), RATE, share=0.0), x)
