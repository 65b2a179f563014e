"""The figures of codecs against independent libraries and closed forms."""

from __future__ import annotations

import copy

import fast_bss_eval
import librosa
import numpy as np
import pytest
import torch
import torchaudio
from cnnkit_audio.codec.bitstream import pack
from cnnkit_audio.codec.config import CodecLossConfig
from cnnkit_audio.codec.losses import CodecLoss
from cnnkit_audio.codec.metrics import CodecMetric, Measured, codebook_figures, si_sdr
from cnnkit_audio.codec.spectra import MEL_BANDS, MEL_WINDOWS, RESOLUTIONS, MelDistance, power_law, stft_distances
from cnnkit_audio.models._codec import Coded
from torch import Tensor

pytestmark = pytest.mark.paper("esc-codec")


def sounds(samples: int = 4000, batch: int = 2) -> tuple[Tensor, Tensor]:
    """A sound and one that is near it, ``(batch, 1, samples)`` float64."""
    generator = torch.Generator().manual_seed(0)
    x = 0.2 * torch.randn(batch, 1, samples, generator=generator, dtype=torch.float64) + 0.05
    return x, 0.7 * x + 0.05 * torch.randn(x.shape, generator=generator, dtype=torch.float64)


def test_si_sdr_equals_fast_bss_eval() -> None:
    """For sounds with an offset, to rounding."""
    x, y = sounds()
    theirs = fast_bss_eval.si_sdr(x, y, zero_mean=True)
    torch.testing.assert_close(si_sdr(x, y), torch.as_tensor(theirs), rtol=1e-8, atol=1e-8)


def test_si_sdr_in_closed_form() -> None:
    """Noise that is orthogonal to the sound, at a tenth of its amplitude: 20 dB, at any scale."""
    time = torch.arange(1600, dtype=torch.float64) / 1600
    tone, other = (torch.sin(2 * torch.pi * frequency * time) for frequency in (50, 90))
    for scale in (0.01, 1.0, -3.0):
        assert float(si_sdr(tone, scale * (tone + 0.1 * other))) == pytest.approx(20, abs=1e-9)


@pytest.mark.filterwarnings("ignore:At least one mel filterbank")
def test_mel_distance_equals_torchaudio_and_librosa() -> None:
    """With the transforms that the authors use, at all seven resolutions; one of them against librosa too."""
    x, y = sounds()
    magnitude, log = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for window, bands in zip(MEL_WINDOWS, MEL_BANDS, strict=True):
        mel = torchaudio.transforms.MelSpectrogram(
            16000, n_fft=window, win_length=window, hop_length=window // 4, n_mels=bands, power=1
        ).double()
        one, other = mel(x[:, 0]), mel(y[:, 0])
        magnitude += (one - other).abs().mean((1, 2))
        log += (one.clamp(1e-5).pow(2).log10() - other.clamp(1e-5).pow(2).log10()).abs().mean((1, 2))
    distance = MelDistance(16000).double()
    found = distance(x, y)
    torch.testing.assert_close(found.magnitude, magnitude, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.log, log, rtol=1e-6, atol=0)
    theirs = librosa.feature.melspectrogram(
        y=x[0, 0].numpy(), sr=16000, n_fft=512, hop_length=128, n_mels=80, power=1, htk=True, norm=None, pad_mode="reflect"
    )
    np.testing.assert_allclose(distance._mel(x, 512)[0].numpy(), theirs, rtol=1e-4, atol=1e-5)


def test_mel_distance_of_a_gain() -> None:
    """Twice as loud is log10(4) at each resolution, and a sound is at no distance from itself; short sounds have one too."""
    x = sounds()[0].float()
    distance = MelDistance(16000)
    empty = sum(float((distance.get_buffer(f"banks{window}").sum(1) == 0).double().mean()) for window in MEL_WINDOWS)
    assert float(distance(x, 2 * x).log[0]) == pytest.approx((len(MEL_WINDOWS) - empty) * np.log10(4), rel=1e-3)
    assert float(distance(x, x).log.abs().max()) == 0
    assert torch.isfinite(distance(x[..., :40], x[..., 1:41]).log).all()


def test_stft_distances_equal_librosa() -> None:
    """By the definition, with librosa's transform; and for a gain in closed form."""
    x, y = sounds(6000)
    convergence, log = [], []
    for n_fft, hop, length in RESOLUTIONS:
        one, other = (
            np.abs(librosa.stft(sound[0, 0].numpy(), n_fft=n_fft, hop_length=hop, win_length=length, pad_mode="reflect"))
            for sound in (x, y)
        )
        convergence.append(np.linalg.norm(one - other) / np.linalg.norm(one))
        log.append(np.abs(np.log(np.maximum(one, 1e-7**0.5)) - np.log(np.maximum(other, 1e-7**0.5))).mean())
    found = stft_distances(x, y)
    assert float(found.convergence[0]) == pytest.approx(np.mean(convergence), rel=1e-6)
    assert float(found.log[0]) == pytest.approx(np.mean(log), rel=1e-5)
    gain = stft_distances(x, 0.5 * x)
    assert float(gain.convergence[0]) == pytest.approx(0.5, rel=1e-6)
    assert float(gain.log[0]) == pytest.approx(np.log(2), rel=1e-2)


def test_codebook_figures_in_closed_form() -> None:
    """All entries alike; a single one; half of them; and the mean over codebooks."""
    even, single, half = np.full(16, 5), np.eye(16, dtype=int)[3] * 9, np.repeat([4, 0], 8)
    assert codebook_figures(even[None]) == pytest.approx({"codebook_use": 1.0, "perplexity": 16.0, "bit_use": 1.0})
    assert codebook_figures(single[None]) == pytest.approx({"codebook_use": 1 / 16, "perplexity": 1.0, "bit_use": 0.0})
    assert codebook_figures(half[None]) == pytest.approx({"codebook_use": 0.5, "perplexity": 8.0, "bit_use": 0.75})
    assert codebook_figures(np.stack([even, half])) == pytest.approx({"codebook_use": 0.75, "perplexity": 12.0, "bit_use": 0.875})


def test_metric_counts_real_bits_and_merges() -> None:
    """The rate is that of the packed codes; two processes measure what one does."""
    x, y = (sound.float() for sound in sounds(3200, batch=2))
    codes = np.random.default_rng(0).integers(0, 16, (2, 3, 10))
    measured = [Measured(codes, {1: y[item, 0].numpy() * 0.5, 2: y[item, 0].numpy()}) for item in range(2)]

    def metric() -> CodecMetric:
        return CodecMetric(sample_rate=16000, codebook_size=16, bits=4)

    whole = metric()
    whole.update(measured, {"wave": x})
    figures = whole.compute()
    assert figures["bits_per_second"] == 8 * len(pack(codes, 4)) / 0.2 == 2 * 3 * 4 * 50
    assert figures["mel_distance"] == figures["mel_distance/2"] < figures["mel_distance/1"]
    assert figures["si_sdr"] == pytest.approx(float(si_sdr(x.double(), y.double()).mean()), abs=1e-4)
    assert figures["codebook_use"] == np.mean([np.unique(group).size / 16 for level in codes for group in level])
    one, other = metric(), metric()
    one.update(measured[:1], {"wave": x[:1]})
    other.update(measured[1:], {"wave": x[1:]})
    merged = copy.deepcopy(one)
    merged.merge(other)
    assert merged.compute() == pytest.approx(figures)
    assert metric().compute() == {}


def test_losses_by_hand() -> None:
    """Each term has its weight, a weight of zero leaves the term out, and a perfect copy costs nothing."""
    x, y = (sound.float() for sound in sounds(2500))
    spectrum = torch.randn(2, 2, 4, 5)
    coded = Coded(y, 2 * spectrum, spectrum, torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]))
    cfg = CodecLossConfig(spectrum=2.0, mel=0.5)
    losses = CodecLoss(cfg, 16000)(coded, x)
    expected = 2 * ((2**0.3 - 1) * spectrum.abs() ** 0.3).square().mean()
    assert float(losses["spectrum"]) == pytest.approx(float(expected), rel=1e-4)
    mel = MelDistance(16000)(y, x)
    assert float(losses["mel"]) == pytest.approx(0.5 * float((mel.magnitude + mel.log).mean()), rel=1e-5)
    assert (float(losses["commitment"]), float(losses["codebook"])) == (0.5, 2.0)
    assert set(CodecLoss(CodecLossConfig(spectrum=0, mel=0), 16000)(coded, x)) == {"commitment", "codebook"}
    perfect = CodecLoss(CodecLossConfig(), 16000)(Coded(x, spectrum, spectrum, torch.zeros(2), torch.zeros(2)), x)
    assert all(float(loss) == 0 for loss in perfect.values())
    assert torch.equal(power_law(torch.tensor([-16.0, 0.0, 16.0]), 0.5), torch.tensor([-4.0, 0.0, 4.0]))
