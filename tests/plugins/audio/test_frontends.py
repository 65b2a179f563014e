"""Front ends against librosa, torchaudio, Kaldi's port, transformers and plain NumPy, and against physics."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import librosa
import numpy as np
import pytest
import torch
import torchaudio
from cnnkit.errors import ConfigError, InputError
from cnnkit.testing.onnx_program import through_onnx
from cnnkit_audio import frontends
from cnnkit_audio.frontends import Fbank, FrontEnd, LogMel, Mfcc
from torchaudio.compliance import kaldi

RATE = 16_000


def noise(samples: int = 8_000, *, seed: int = 0, batch: int = 1) -> torch.Tensor:
    """White noise of a tenth of full scale over a tone."""
    rng = np.random.default_rng(seed)
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(samples) / RATE)
    return torch.from_numpy((0.1 * rng.normal(size=(batch, 1, samples)) + tone).astype(np.float32))


def close(ours: torch.Tensor, theirs: np.ndarray | torch.Tensor, tolerance: float) -> None:
    """Compare ``(1, 1, bands, frames)`` with ``(bands, frames)``, by the largest difference."""
    theirs = torch.as_tensor(theirs)
    assert ours[0, 0].shape == theirs.shape
    assert (ours[0, 0] - theirs).abs().max() < tolerance


@pytest.mark.parametrize("htk", [False, True])
@pytest.mark.parametrize(("power", "pad"), [(2.0, "reflect"), (1.0, "constant"), (2.0, "none")])
def test_mel_energies_are_those_of_librosa(htk: bool, power: float, pad: Any) -> None:
    """1e-6 of the largest energy; HTK with area normalisation, as librosa combines them; a window shorter than the transform."""
    x = noise()
    front = LogMel(
        sample_rate=RATE, n_fft=512, win_length=400, hop=160, n_mels=40, f_min=50, f_max=7_600,
        mel="htk" if htk else "slaney", area=True, power=power, pad=pad, log="none",
    )  # fmt: skip
    theirs = librosa.feature.melspectrogram(
        y=x[0, 0].numpy(), sr=RATE, n_fft=512, win_length=400, hop_length=160, n_mels=40, fmin=50, fmax=7_600,
        htk=htk, power=power, center=pad != "none", pad_mode=pad if pad != "none" else "constant",
    )  # fmt: skip
    close(front(x), theirs, 1e-6 * theirs.max())
    assert front.frames(x.shape[-1]) == theirs.shape[1]


@pytest.mark.parametrize(("ref", "top_db"), [(1.0, None), (0.5, 30.0), ("max", 80.0), ("max", None)])
def test_decibels_are_those_of_librosa(ref: Any, top_db: float | None) -> None:
    """1e-4 dB; per clip: the quiet clip of a batch keeps its own loudest band."""
    x = torch.cat((noise(), 1e-3 * noise(seed=1)))
    ours = LogMel(sample_rate=RATE, n_fft=512, hop=160, ref=ref, top_db=top_db)(x)
    for clip, theirs in zip(x[:, 0].numpy(), ours, strict=True):
        energies = librosa.feature.melspectrogram(y=clip, sr=RATE, n_fft=512, hop_length=160, n_mels=64, pad_mode="reflect")
        expected = librosa.power_to_db(energies, ref=np.max if ref == "max" else ref, top_db=top_db)
        close(theirs[None], expected, 1e-4)


@pytest.mark.parametrize(("mel", "norm"), [("htk", None), ("slaney", "slaney")])
def test_mel_spectrogram_is_that_of_torchaudio(mel: Any, norm: str | None) -> None:
    """1e-5 of the largest energy, the rounding of torchaudio's banks."""
    theirs = torchaudio.transforms.MelSpectrogram(
        RATE, n_fft=512, win_length=400, hop_length=160, n_mels=40, norm=norm, mel_scale=mel, window_fn=torch.hamming_window
    )
    x = noise()
    ours = LogMel(sample_rate=RATE, n_fft=512, win_length=400, hop=160, n_mels=40, mel=mel, window="hamming", log="none")
    expected = theirs(x[0, 0])
    close(ours(x), expected, 1e-5 * float(expected.max()))


@pytest.mark.parametrize("lifter", [0, 22])
def test_cepstra_are_those_of_librosa(lifter: int) -> None:
    """1e-3 of cepstra of several hundred."""
    x = noise()
    mel = LogMel(sample_rate=RATE, n_fft=512, hop=160, n_mels=40, pad="constant", top_db=80.0)
    theirs = librosa.feature.mfcc(y=x[0, 0].numpy(), sr=RATE, n_mfcc=13, lifter=lifter, n_fft=512, hop_length=160, n_mels=40)
    close(Mfcc(mel=mel, coefficients=13, lifter=lifter)(x), theirs, 1e-3)


KALDI: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "ast": ({"window": "hann_symmetric", "n_mels": 128}, {"window_type": "hanning", "num_mel_bins": 128}),
    "edges": ({"snip_edges": False}, {"snip_edges": False}),
    "gaps": ({"snip_edges": False, "frame_shift": 40.0}, {"snip_edges": False, "frame_shift": 40.0}),
    "plain": ({"remove_dc": False, "preemphasis": 0.0}, {"remove_dc_offset": False, "preemphasis_coefficient": 0.0}),
    "magnitude": ({"power": 1.0}, {"use_power": False}),
    "energy": ({"use_energy": True}, {"use_energy": True}),
    "energy last": ({"use_energy": True, "htk_compat": True}, {"use_energy": True, "htk_compat": True}),
    "band": ({"f_min": 100.0, "f_max": -400.0}, {"low_freq": 100.0, "high_freq": -400.0}),
    "hamming": ({"window": "hamming_symmetric"}, {"window_type": "hamming"}),
    "frames": ({"frame_length": 20.0, "frame_shift": 12.5}, {"frame_length": 20.0, "frame_shift": 12.5}),
}


@pytest.mark.parametrize("case", KALDI)
def test_filter_banks_are_those_of_kaldi(case: str) -> None:
    """1e-3 of natural logarithms, the rounding of the port's banks, on the scale of 16-bit integers with a constant offset."""
    ours, theirs = KALDI[case]
    x = noise(8_123) + 0.2
    expected = kaldi.fbank(x[0] * 2**15, sample_frequency=RATE, **{"num_mel_bins": 40, **theirs}).T
    front = Fbank(scale=2.0**15, **{"n_mels": 40, **ours})
    close(front(x), expected, 1e-3)
    assert front.frames(8_123) == expected.shape[1] and front.bands == expected.shape[0]


def test_cepstra_are_those_of_kaldi() -> None:
    """1e-3."""
    x = noise()
    front = Mfcc(mel=Fbank(n_mels=23), coefficients=13, lifter=22.0, lifter_from=0)
    close(front(x), kaldi.mfcc(x[0], sample_frequency=RATE).T, 1e-3)


def test_ast_is_that_of_transformers() -> None:
    """1e-4 of normalised features."""
    transformers = pytest.importorskip("transformers")
    x = noise(RATE)
    frames = frontends.ast().frames(RATE)
    theirs = transformers.ASTFeatureExtractor(max_length=frames)(x[0, 0].numpy(), sampling_rate=RATE)["input_values"][0]
    close(frontends.ast()(x), np.asarray(theirs).T, 1e-4)


def test_beats_is_kaldis_normalised() -> None:
    """By its formula; 1e-4."""
    x = noise()
    banks = kaldi.fbank(x[0] * 2**15, num_mel_bins=128, sample_frequency=16_000, frame_length=25, frame_shift=10)
    close(frontends.beats()(x), ((banks - 15.41663) / (2 * 6.55582)).T, 1e-4)


def test_efficientat_is_its_formula() -> None:
    """1e-4: pre-emphasis, centred transform with a window of 800, Kaldi's banks, ln(x + 1e-5), (x + 4.5) / 5."""
    x = noise(16_000)
    emphasised = torch.nn.functional.conv1d(x, torch.tensor([[[-0.97, 1.0]]]))[:, 0]
    spectrum = torch.stft(
        emphasised, 1024, 320, 800, torch.hann_window(800, periodic=False), center=True, pad_mode="reflect", return_complex=True
    )
    banks, _ = kaldi.get_mel_banks(128, 1024, 32_000, 0.0, 15_000.0, 100.0, -500.0, 1.0)
    energies = torch.nn.functional.pad(banks, (0, 1)) @ spectrum.abs().square()
    close(frontends.efficientat()(x), (((energies + 1e-5).log() + 4.5) / 5)[0], 1e-4)


@pytest.mark.parametrize(("preset", "bands"), [(frontends.panns, 64), (frontends.convnext_audioset, 224)])
def test_panns_is_librosas_spectrogram_in_decibels(preset: object, bands: int) -> None:
    """1e-3 dB, with the constants of the official networks."""
    x = noise(16_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 224 bands of 1024 samples: the lowest have no bin of their own.
        energies = librosa.feature.melspectrogram(
            y=x[0, 0].numpy(), sr=32_000, n_fft=1024, hop_length=320, n_mels=bands, fmin=50, fmax=14_000, pad_mode="reflect"
        )
    close(preset()(x), librosa.power_to_db(energies, top_db=None), 1e-3)  # type: ignore[operator]


def test_bands_are_normalised_over_the_batch_on_request() -> None:
    """As a BatchNorm2d with the bands as channels, the network's ``bn0``."""
    x = noise(batch=3)
    front = frontends.panns(batch_norm=True).train()
    plain = frontends.panns()(x)
    expected = torch.nn.BatchNorm2d(64)(plain.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(front(x), expected)
    assert not front.shift_invariant and front.eval().shift_invariant


FRONTS: dict[str, Callable[[], FrontEnd]] = {
    "panns": frontends.panns,
    "efficientat": frontends.efficientat,
    "ast": frontends.ast,
    "beats": frontends.beats,
    "kaldi": lambda: Fbank(snip_edges=False, use_energy=True),
    "none": lambda: LogMel(sample_rate=RATE, n_fft=512, win_length=400, hop=160, pad="none", power=1.0, log="ln_max", mel="htk"),
    "cepstra": lambda: Mfcc(mel=LogMel(sample_rate=RATE, top_db=80.0)),
}


@pytest.fixture(params=FRONTS)
def front(request: pytest.FixtureRequest) -> FrontEnd:
    """Each front end in evaluation mode."""
    return FRONTS[request.param]().eval()


def test_frames_are_as_many_as_announced(front: FrontEnd) -> None:
    """From the shortest clip on."""
    for samples in (front.least, front.least + 1, 4_000, 4_321):
        assert front(noise(samples)).shape == (1, 1, front.bands, front.frames(samples))
    assert front.frames(front.least) >= 1


def test_a_clip_that_is_too_short_is_refused_with_the_least_length(front: FrontEnd) -> None:
    """One sample less than the least."""
    with pytest.raises(InputError, match=f"pad it with silence to {front.least}"):
        front(noise(front.least - 1))


@pytest.mark.parametrize("kind", ["silence", "quiet", "loud", "impulse", "offset"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_clips_give_finite_features_and_slopes(front: FrontEnd, kind: str, dtype: torch.dtype) -> None:
    """In half precision too, for half waveforms and under autocast."""
    x = {
        "silence": torch.zeros(2, 1, 4_000),
        "quiet": 1e-7 * noise(4_000, batch=2),
        "loud": noise(4_000, batch=2).sign(),
        "impulse": torch.nn.functional.pad(torch.ones(2, 1, 1), (1_999, 2_000)),
        "offset": torch.ones(2, 1, 4_000),
    }[kind].requires_grad_()
    y = front(x.to(dtype))
    assert y.dtype == dtype and y.isfinite().all()
    if dtype == torch.float32:
        y.sum().backward()
        assert x.grad is not None and x.grad.isfinite().all()
    else:
        with torch.autocast("cpu", dtype):
            torch.testing.assert_close(front(x), front(x.float()))


def test_a_tone_has_its_energy_in_its_band() -> None:
    """For each band, a tone at its centre is loudest there."""
    front = LogMel(sample_rate=RATE, n_fft=1024, hop=512, n_mels=30, f_min=300, log="none", area=False)
    mels = np.linspace(librosa.hz_to_mel(300), librosa.hz_to_mel(RATE / 2), 32)[1:-1]
    times = np.arange(4_096) / RATE
    tones = torch.from_numpy(np.sin(2 * np.pi * librosa.mel_to_hz(mels)[:, None] * times).astype(np.float32))[:, None]
    assert front(tones)[:, 0, :, 4].argmax(1).tolist() == list(range(30))


def test_energies_obey_parseval() -> None:
    """The energies of all bins of a frame, mirrored ones included, sum to n_fft times that of the windowed frame."""
    front = LogMel(sample_rate=RATE, n_fft=512, hop=512, pad="none", window="rectangular")
    x = noise(512).double()
    energies = front.spectrum(x[:, 0])[0, 0]
    assert float(energies[0] + 2 * energies[1:-1].sum() + energies[-1]) == pytest.approx(512 * float(x.square().sum()), rel=1e-9)


def test_features_move_with_the_signal(front: FrontEnd) -> None:
    """A clip that starts three hops later gives the same frames three earlier, away from the edges."""
    x = noise(6_400)
    if not front.shift_invariant:
        return
    late = front(x[..., 3 * front.hop :])
    first, last = -(-front.left // front.hop), (x.shape[-1] - 3 * front.hop - front.right) // front.hop
    torch.testing.assert_close(late[..., first:last], front(x)[..., 3 + first : 3 + last], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "arguments",
    [
        {"n_mels": 0},
        {"f_min": 9_000.0},
        {"f_max": 9_000.0},
        {"win_length": 2_048},
        {"mel": "slanei"},
        {"window": "hamm"},
        {"log": "log"},
        {"log": "ln", "top_db": 80.0},
        {"amin": 0.0},
        {"pad": "symmetric"},
        {"power": 0.0},
    ],
)
def test_contradictory_arguments_are_refused(arguments: dict[str, object]) -> None:
    """With what is accepted."""
    with pytest.raises(ConfigError, match=r"accepted|known|leave them out"):
        LogMel(sample_rate=RATE, **arguments)  # type: ignore[arg-type]


def test_wrong_shapes_are_refused() -> None:
    """Stereo, or no batch."""
    for shape in ((1, 2, 8_000), (1, 8_000)):
        with pytest.raises(InputError, match=r"\(batch, 1, samples\)"):
            frontends.panns()(torch.zeros(shape))


def test_front_ends_add_nothing_to_a_checkpoint(front: FrontEnd) -> None:
    """Windows and banks are made, not stored."""
    assert not front.state_dict()


TRANSFORMS = [
    {"n_fft": 512, "hop": 128},
    {"n_fft": 382, "hop": 80, "win_length": 320},
    {"n_fft": 256, "hop": 100, "window": "hamming"},
]


@pytest.mark.parametrize("arguments", TRANSFORMS)
def test_complex_spectra_are_those_of_torch(arguments: dict[str, Any]) -> None:
    """1e-5 of the largest magnitude, for two channels; 1e-7 in float64, where the window is still of float32."""
    x = torch.cat((noise(4_321, batch=2), noise(4_321, batch=2, seed=1)), 1)
    length = arguments.get("win_length", arguments["n_fft"])
    window = torch.hamming_window(length) if "window" in arguments else torch.hann_window(length)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-7)):
        theirs = torch.stft(
            x.flatten(0, 1).to(dtype), arguments["n_fft"], arguments["hop"], length, window.to(dtype), return_complex=True
        ).unflatten(0, (2, 2))
        ours = frontends.Stft(**arguments)(x.to(dtype))
        assert ours.dtype == dtype and ours.shape[1] == 4
        expected = torch.cat((theirs.real, theirs.imag), 1)
        assert (ours - expected).abs().max() < tolerance * theirs.abs().max()


@pytest.mark.parametrize("arguments", TRANSFORMS)
@pytest.mark.parametrize("samples", [4_321, 4_000, 300])
def test_the_inverse_gives_the_waveform_back(arguments: dict[str, Any], samples: int) -> None:
    """1e-6 in float32, 1e-12 in float64, to the last sample; and slopes for both."""
    forth, back = frontends.Stft(**arguments), frontends.InverseStft(**arguments)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        x = torch.cat((noise(samples, batch=2), noise(samples, batch=2, seed=1)), 1).to(dtype).requires_grad_()
        z = forth(x)
        assert z.shape[-1] == forth.frames(samples)
        again = back(z, samples)
        assert again.shape == x.shape and (again - x).abs().max() < tolerance
        again.square().sum().backward()
        assert x.grad is not None
        torch.testing.assert_close(x.grad, 2 * x.detach(), rtol=0, atol=10 * tolerance)
    assert back(z).shape[-1] == (forth.frames(samples) - 1) * arguments["hop"]


def test_the_inverse_of_no_waveforms_spectra_is_that_of_torch() -> None:
    """1e-6: the nearest waveform."""
    z = torch.randn(1, 2, 129, 20, generator=torch.Generator().manual_seed(0))
    theirs = torch.istft(torch.complex(z[:, 0], z[:, 1]), 256, 64, 256, torch.hann_window(256))
    torch.testing.assert_close(frontends.InverseStft(n_fft=256, hop=64)(z)[0], theirs, rtol=0, atol=1e-6)


def test_an_inverse_that_does_not_exist_is_refused() -> None:
    """Periodic Hann windows that touch where they are zero, odd transforms, short clips."""
    with pytest.raises(ConfigError, match="half of win_length"):
        frontends.InverseStft(n_fft=256, hop=256)
    with pytest.raises(ConfigError, match="even n_fft"):
        frontends.Stft(n_fft=255, hop=64)
    with pytest.raises(InputError, match="silence to 129"):
        frontends.Stft(n_fft=256, hop=64)(torch.zeros(1, 1, 128))


def test_what_is_exported_is_the_same(front: FrontEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """2e-5 of the range, in eager mode: the path by real products."""
    x = noise(7_010)
    expected = front(x)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(front(x), expected, rtol=0, atol=2e-5 * float(expected.max() - expected.min()))


def test_a_log_mel_spectrogram_is_exported_for_any_length() -> None:
    """torch.export 1e-5 of the features' range, ONNX (by onnxruntime) 1e-4, at two lengths that were not seen while exporting."""
    front = frontends.efficientat().eval()
    samples = torch.export.Dim("samples", min=2_000, max=1_000_000)
    program = torch.export.export(front, (noise(4_000),), dynamic_shapes=({2: samples},))
    exported = through_onnx(program)
    for length in (3_210, 8_000):
        x = noise(length, seed=length)
        expected = front(x)
        span = float(expected.max() - expected.min())
        torch.testing.assert_close(program.module()(x), expected, rtol=0, atol=1e-5 * span)
        torch.testing.assert_close(exported(x), expected, rtol=0, atol=1e-4 * span)


def test_spectra_and_their_inverse_are_exported() -> None:
    """1e-5 of the waveform, by onnxruntime, for another length."""
    arguments: dict[str, Any] = {"n_fft": 256, "hop": 80, "win_length": 200}
    loop = torch.nn.Sequential(frontends.Stft(**arguments), frontends.InverseStft(**arguments))
    hops = torch.export.Dim("hops", min=10, max=1_000)
    program = torch.export.export(loop, (noise(4_000),), dynamic_shapes=({2: 80 * hops},))
    x = noise(8_000, seed=3)
    torch.testing.assert_close(through_onnx(program)(x), x, rtol=0, atol=1e-5)
