"""Gabor, gammatone, constant-Q and learned front ends against NumPy, SciPy, librosa and closed forms."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import librosa
import numpy as np
import pytest
import torch
from cnnkit.errors import ConfigError
from cnnkit_audio.frontends import ConstantQ, FrontEnd, Gabor, Gammatone, Leaf, LogMel, Pcen
from cnnkit_audio.window_features import window_features
from scipy import signal

RATE = 16_000
ENSEMBLE = pytest.mark.paper("audio-cnn-ensemble")

FRONTS: dict[str, Callable[[], FrontEnd]] = {
    "gabor": lambda: Gabor(sample_rate=RATE, channels=64, hop=32),
    "gammatone": lambda: Gammatone(sample_rate=RATE, n_bands=20, n_fft=512, hop=160),
    "constant q": lambda: ConstantQ(sample_rate=RATE, f_min=220.0, n_bins=24, hop=160),
    "leaf": Leaf,
    "leaf, logarithm": lambda: Leaf(n_filters=10, pcen=False),
}


@pytest.fixture(params=FRONTS)
def front(request: pytest.FixtureRequest) -> FrontEnd:
    """Each front end, small."""
    torch.manual_seed(0)
    return FRONTS[request.param]()


def noise(samples: int = 6_000, *, seed: int = 0) -> torch.Tensor:
    """White noise over a tone."""
    rng = np.random.default_rng(seed)
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(samples) / RATE)
    return torch.from_numpy((0.1 * rng.normal(size=(1, 1, samples)) + tone).astype(np.float32))


@ENSEMBLE
def test_the_gabor_transform_is_its_sum() -> None:
    """1e-5 of the largest energy: the sum over the whole signal, frame by frame and channel by channel."""
    channels, hop, x = 64, 32, noise(1_000)
    ours = Gabor(sample_rate=RATE, channels=channels, hop=hop, pad="constant", log="none")(x)[0, 0]
    samples = np.arange(1_000)
    area = np.sqrt(np.exp(-2 * np.pi * np.arange(-500, 501) ** 2 / (hop * channels)).sum())
    for frame in (0, 1, 7, 30):
        window = np.exp(-np.pi * (samples - frame * hop) ** 2 / (hop * channels)) / area
        waves = np.exp(-2j * np.pi * np.outer(np.arange(channels // 2 + 1), samples) / channels)
        expected = np.abs(waves @ (window * x[0, 0].double().numpy())) ** 2
        assert np.abs(ours[:, frame].numpy() - expected).max() < 1e-5 * float(ours.max())


@ENSEMBLE
def test_gammatone_responses_are_those_of_filters_in_time() -> None:
    """2 % of the peak: SciPy's impulse responses, transformed."""
    front = Gammatone(sample_rate=RATE, n_bands=12, f_min=200.0, f_max=6_000.0, n_fft=4096)
    for centre, response in zip(front.centres, front.bank.banks.T.numpy(), strict=True):
        taps, _ = signal.gammatone(centre, "fir", order=4, numtaps=4096, fs=RATE)
        assert np.abs(np.abs(np.fft.rfft(taps)) ** 2 - response).max() < 0.02


@ENSEMBLE
def test_gammatone_energies_are_those_of_filtered_sound() -> None:
    """1 dB of mean energies of noise, beside SciPy's filters; and by its formula, 1e-5."""
    x = noise(RATE)
    front = Gammatone(sample_rate=RATE, n_bands=12, f_min=200.0, f_max=6_000.0, n_fft=1024, hop=256, log="none")
    energies = front(x)[0, 0]
    window = np.hanning(1025)[:-1]
    for centre, ours in zip(front.centres, energies, strict=True):
        taps, _ = signal.gammatone(centre, "fir", order=4, numtaps=2048, fs=RATE)
        filtered = signal.fftconvolve(x[0, 0].double().numpy(), taps)[2_048:RATE]
        mean = np.mean(filtered**2) * np.square(window).sum() * 1024 / 2  # Of the bins from 0 to half the rate: half of all.
        assert 10 * abs(np.log10(float(ours[4:-4].mean()) / mean)) < 1
    spectrum = np.abs(librosa.stft(x[0, 0].numpy(), n_fft=1024, hop_length=256, pad_mode="reflect")) ** 2
    width = 1.019 * 24.7 * (4.37e-3 * front.centres + 1)
    weights = (1 + ((np.arange(513) * RATE / 1024 - front.centres[:, None]) / width[:, None]) ** 2) ** -4.0
    assert np.abs(weights @ spectrum - energies.numpy()).max() < 1e-5 * float(energies.max())


@ENSEMBLE
def test_constant_q_is_its_sum() -> None:
    """1e-4 of the largest energy, for what is left out of the waves' spectra: each frame times each windowed wave, in time."""
    x = noise(3_000)
    front = ConstantQ(sample_rate=RATE, f_min=500.0, n_bins=30, hop=300, pad="constant", log="none")
    ours = front(x)[0, 0]
    padded, quality = np.pad(x[0, 0].double().numpy(), 4_000), (2 ** (1 / 6) + 1) / (2 ** (1 / 6) - 1)
    expected = np.zeros(ours.shape)
    for band in range(30):
        frequency = 500 * 2 ** (band / 12)
        length = quality * RATE / frequency
        times = np.arange(-int(length / 2), int(length / 2) + 1)
        window = 0.5 + 0.5 * np.cos(2 * np.pi * times / length)
        wave = window / window.sum() * np.exp(-2j * np.pi * frequency * times / RATE)
        for frame in range(ours.shape[1]):
            expected[band, frame] = length * np.abs(padded[4_000 + 300 * frame + times] @ wave) ** 2
    assert np.abs(ours.numpy() - expected).max() < 1e-4 * expected.max()


@ENSEMBLE
def test_constant_q_is_that_of_librosa() -> None:
    """3 % of the largest magnitude, for all of its decimated octaves."""
    x = noise(RATE)
    front = ConstantQ(sample_rate=RATE, f_min=110.0, n_bins=60, hop=256, pad="constant", log="none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = np.abs(librosa.cqt(x[0, 0].numpy(), sr=RATE, hop_length=256, fmin=110.0, n_bins=60, sparsity=0.0, tuning=0.0))
    ours = front(x)[0, 0].sqrt().numpy()
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < 0.03 * theirs.max()


@ENSEMBLE
@pytest.mark.parametrize("name", ["gabor", "gammatone", "constant q"])
def test_a_tone_is_where_it_belongs(name: str) -> None:
    """The loudest band is that whose frequency is the tone's."""
    front = FRONTS[name]()
    frequencies = {
        "gabor": np.arange(33) * RATE / 64,
        "gammatone": getattr(front, "centres", np.zeros(0)),
        "constant q": 220 * 2 ** (np.arange(24) / 12),
    }[name]
    for band in (4, 11, 17):
        tone = torch.sin(2 * torch.pi * frequencies[band] * torch.arange(RATE) / RATE)[None, None]
        assert int(front(tone)[0, 0, :, 50].argmax()) == band


def test_energy_normalisation_is_that_of_librosa() -> None:
    """1e-4, with its averages started at the first frame; and slopes for all its parameters."""
    energies = LogMel(sample_rate=RATE, hop=160, n_mels=8, power=1.0, log="none")(noise(16_000))[0] * 2**15
    smooth, gain, bias, power = 0.06, 0.9, 3.0, 0.4
    pcen = Pcen(bands=8, alpha=gain, smooth=smooth, delta=bias, root=power, floor=1e-6)
    theirs = librosa.pcen(
        energies[0].double().numpy(), sr=RATE, hop_length=160, gain=gain, bias=bias, power=power, b=smooth, eps=1e-6,
        zi=(1 - smooth) * energies[0, :, :1].double().numpy(),
    )  # fmt: skip
    ours = pcen(energies)
    np.testing.assert_allclose(ours[0].detach().numpy(), theirs, atol=1e-4, rtol=1e-4)
    ours.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().min() > 0 for parameter in pcen.parameters())
    assert not list(Pcen(bands=8, learned=False).parameters())


@pytest.mark.parametrize("frames", [1, 2, 3, 64, 100])
def test_averages_are_the_recursion(frames: int) -> None:
    """1e-10 in float64; slopes by finite differences."""
    pcen = Pcen(bands=2, smooth=0.3).double()
    x = torch.rand(3, 2, frames, dtype=torch.float64)
    expected = [x[..., 0]]
    for index in range(1, frames):
        expected.append(0.7 * expected[-1] + 0.3 * x[..., index])
    smooth = float(torch.tensor(0.3))  # The parameter was made in float32.
    torch.testing.assert_close(pcen.average(x), torch.stack(expected, -1), rtol=0, atol=10 * abs(smooth - 0.3) + 1e-10)
    if frames == 3:
        assert torch.autograd.gradcheck(pcen, (x.requires_grad_(),))


def test_leaf_is_its_closed_form() -> None:
    """1e-5: filters, squares, averages and recursion, written out."""
    torch.manual_seed(0)
    front, x = Leaf(n_filters=6), noise(2_000)
    with torch.no_grad():
        front.centre.add_(0.1 * torch.rand(6))
        front.average_width.copy_(torch.linspace(0.001, 0.7, 6))
    ours = front(x)[0, 0].detach().numpy()
    times = np.arange(-200, 201)
    padded = np.pad(x[0, 0].double().numpy(), 200)
    unit = np.sqrt(2 * np.log(2)) / np.pi
    for band in range(6):
        centre, width = float(front.centre[band]), float(np.clip(front.width[band].item(), 4 * unit, 401 * unit))
        wave = np.exp(-(times**2) / (2 * width**2)) / (np.sqrt(2 * np.pi) * width) * np.exp(1j * centre * times)
        energy = np.pad(np.abs(np.convolve(padded, wave, "valid")) ** 2, 200)
        spread = np.clip(float(front.average_width[band]), 2 / 401, 0.5) * 200
        mean = np.convolve(energy, np.exp(-0.5 * (times / spread) ** 2), "valid")[::160].clip(1e-5)
        average, rows = mean[0], []
        for value in mean:
            average = 0.96 * average + 0.04 * value
            rows.append((value / (1e-12 + average) ** 0.96 + 2) ** 0.5 - 2**0.5)
        np.testing.assert_allclose(ours[band], rows, atol=1e-5)


def test_leaf_learns_all_of_it() -> None:
    """Each parameter of each band has a slope, also right at the start."""
    front = Leaf()
    front(noise()).square().sum().backward()
    for name, parameter in front.named_parameters():
        assert parameter.grad is not None and (parameter.grad != 0).any(), name


def test_leaf_starts_on_the_mel_scale() -> None:
    """Centres grow; the loudest filter for a tone is the one around it."""
    front = Leaf(pcen=False)
    assert (front.centre.diff() >= 0).all()
    band = 25
    frequency = float(front.centre[band]) / (2 * np.pi) * RATE
    tone = torch.sin(2 * torch.pi * frequency * torch.arange(4_000) / RATE)[None, None]
    assert int(front(tone)[0, 0, :, 12].argmax()) == band


def test_frames_silence_and_half_precision(front: FrontEnd) -> None:
    """As many frames as announced, finite for silence, the same under autocast."""
    for samples in (front.least, 3_000, 3_201):
        y = front(torch.zeros(2, 1, samples))
        assert y.shape == (2, 1, front.bands, front.frames(samples)) and y.isfinite().all()
    x = noise()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(front(x), front(x))
        under = front(x)
    torch.testing.assert_close(under, front(x), rtol=1e-5, atol=1e-4)
    assert front(x.half()).dtype == torch.float16


def test_shapes_are_known_without_values(front: FrontEnd) -> None:
    """On the meta device, where networks are counted."""
    assert front.to("meta")(torch.empty(2, 1, 4_000, device="meta")).shape == (2, 1, front.bands, front.frames(4_000))


def test_windows_share_what_they_can(front: FrontEnd) -> None:
    """1e-5 of the range; those with a memory are computed one by one."""
    x, starts = noise(9_600), [0, 2 * front.hop, 4 * front.hop, 9 * front.hop]
    ours = window_features(front, x, starts, 6_400)
    with torch.no_grad():
        expected = torch.cat([front(x[..., start : start + 6_400]) for start in starts])
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * float(expected.max() - expected.min()))


def test_what_is_exported_is_the_same(front: FrontEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """1e-6 of the range in float64 (tables are of float32), by real products; in float32 quiet cells are rounded by more in decibels."""
    front, x = copy.deepcopy(front).double(), noise(7_010).double()
    expected = front(x).detach()
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(front(x).detach(), expected, rtol=0, atol=1e-6 * float(expected.max() - expected.min()))


def test_the_learned_front_end_is_exported_for_any_length() -> None:
    """1e-5 of the range."""
    front = Leaf().eval()
    samples = torch.export.Dim("samples", min=3_000, max=1_000_000)
    program = torch.export.export(front, (noise(4_000),), dynamic_shapes=({2: samples},))
    x = noise(7_010, seed=1)
    expected = front(x).detach()
    torch.testing.assert_close(program.module()(x), expected, rtol=0, atol=1e-5 * float(expected.max() - expected.min()))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gabor(sample_rate=RATE, channels=63),
        lambda: Gammatone(sample_rate=RATE, f_max=9_000.0),
        lambda: ConstantQ(sample_rate=RATE, n_bins=90),
        lambda: Leaf(hop_ms=0.01),
        lambda: Leaf(n_filters=0),
    ],
)
def test_contradictory_arguments_are_refused(make: Callable[[], FrontEnd]) -> None:
    """With what is accepted."""
    with pytest.raises(ConfigError, match="accepted"):
        make()
