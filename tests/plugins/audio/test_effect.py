"""Devices: pairs in SignalTrain's layout, the simulated compressor, processing in time with the input, and the metrics."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from cnnkit.errors import ConfigError, InputError, UsageError
from cnnkit.testing.compare import stir
from cnnkit_audio.effect.config import EffectConfig
from cnnkit_audio.effect.data import PairCrops, SimulatedPairs, read_pairs
from cnnkit_audio.effect.metrics import EffectMetric, error_to_signal, loudness, stft_distance
from cnnkit_audio.effect.task import Processed, settings, through
from cnnkit_audio.models.micro_tcn import LSTMEffect, MicroTCN
from cnnkit_audio.sound import write_sound
from cnnkit_audio.synth.dynamics import ATTACK, RELEASE, compress, drums

pytestmark = pytest.mark.paper("micro-tcn")
RATE = 8000


# The simulated compressor.


def test_steady_levels_follow_the_ratio() -> None:
    """10 dB above the threshold, four to one leaves a quarter of the excess, twenty to one a twentieth; below nothing changes."""
    level = 10 ** (-10 / 20)  # 10 dB above a threshold of -20 dB.
    x = np.full((3, RATE), level)
    out = compress(x, np.array([0.0, 1, 0]), np.array([0.5, 0.5, 0.1]), RATE)[:, -1]
    reduction = -20 * np.log10(out / level)
    assert reduction[:2] == pytest.approx([7.5, 9.5], abs=1e-3)
    assert reduction[2] == pytest.approx(0, abs=1e-9)


def test_attack_and_release() -> None:
    """After the time constant all but 1/e of the reduction is there, and all but 1/e of it gone."""
    x = np.full((1, 3 * RATE), 10 ** (-10 / 20))
    x[:, 2 * RATE :] = 1e-3
    gain = 20 * np.log10(compress(x, np.zeros(1), np.array([0.5]), RATE)[0] / x[0])
    assert gain[round(ATTACK * RATE) - 1] / gain[2 * RATE - 1] == pytest.approx(1 - np.exp(-1), abs=0.01)
    assert gain[2 * RATE + round(RELEASE * RATE) - 1] / gain[2 * RATE - 1] == pytest.approx(np.exp(-1), abs=0.01)


def test_drums_have_dynamics() -> None:
    sound = drums(np.random.default_rng(0), 2.0, RATE)
    assert sound.shape == (2 * RATE,) and np.abs(sound).max() == pytest.approx(0.9, rel=1e-5) and sound.std() < 0.3
    np.testing.assert_array_equal(sound, drums(np.random.default_rng(0), 2.0, RATE))


# Pairs.


def test_signaltrain_layout(tmp_path: Path) -> None:
    """Knobs come from the names, scaled; what does not fit is named."""
    rng = np.random.default_rng(0)
    for number, (limit, peak) in enumerate([(0, 40), (1, 65)]):
        for name in (f"input_{number}_.wav", f"target_{number}_LA2A_3c__{limit}__{peak}.wav"):
            (tmp_path / "Train").mkdir(exist_ok=True)
            write_sound(tmp_path / "Train" / name, rng.uniform(-0.5, 0.5, (1, 900)).astype(np.float32), RATE)
    cfg = EffectConfig(folder=str(tmp_path))
    pairs = read_pairs(cfg, "train", RATE)
    assert pairs is not None and pairs.knobs.tolist() == [[0, pytest.approx(0.4)], [1, pytest.approx(0.65)]]
    assert pairs.pair(1).shape == (2, 900)
    assert read_pairs(cfg, "val", RATE) is None
    with pytest.raises(ConfigError, match=r"2 knobs and effect\.scales 1"):
        read_pairs(EffectConfig(folder=str(tmp_path), scales=(1.0,)), "train", RATE)
    with pytest.raises(InputError, match="900 samples, fewer than the 1000"):
        PairCrops(pairs, 1000, 0)[(0, 0, 0)]
    write_sound(tmp_path / "Train" / "input_1_.wav", rng.uniform(-0.5, 0.5, (1, 800)).astype(np.float32), RATE)
    with pytest.raises(InputError, match="900 samples"):
        read_pairs(cfg, "train", RATE).pair(1)
    (tmp_path / "Train" / "input_0_.wav").unlink()
    with pytest.raises(ConfigError, match=r"has no input_0_\.wav"):
        read_pairs(cfg, "train", RATE)
    with pytest.raises(ConfigError, match="has no folder Train"):
        read_pairs(EffectConfig(folder=str(tmp_path / "Train")), "train", RATE)


def test_as_many_pairs_are_simulated_as_asked_for() -> None:
    pairs = read_pairs(EffectConfig(simulated=2), "train", RATE)
    assert pairs is not None and len(pairs) == 2 and not np.array_equal(pairs.knobs[0], pairs.knobs[1])
    with pytest.raises(ConfigError, match="accepted: 1 or more"):
        read_pairs(EffectConfig(simulated=0), "train", RATE)


def test_crops_depend_on_their_position_alone() -> None:
    """Dry and wet are cut at the same place and turned over together."""
    pairs = SimulatedPairs("train", RATE, count=3, seconds=0.2)
    crops = PairCrops(pairs, 400, seed=1)
    item, again, other = crops[(0, 5, 2)], crops[(0, 5, 2)], crops[(1, 5, 2)]
    assert torch.equal(item["dry"], again["dry"]) and not torch.equal(item["dry"], other["dry"])
    dry, wet = pairs.pair(2)
    piece = item["dry"][0].numpy()
    start = next(first for first in range(dry.size - 399) if np.allclose(np.abs(dry[first : first + 400]), np.abs(piece)))
    sign = 1 if np.allclose(dry[start : start + 400], piece) else -1
    np.testing.assert_allclose(item["wet"][0].numpy(), sign * wet[start : start + 400])


# Processing.


@pytest.mark.parametrize("block", [5, 300])
@pytest.mark.parametrize("kind", ["causal", "centred", "lstm"])
def test_output_is_in_time_with_the_input(kind: str, block: int) -> None:
    """As many samples as came in, equal to the network on the padded whole, for each channel, in blocks of any size."""
    torch.manual_seed(0)
    small = {"growth": 4, "blocks": 3, "kernel": 5, "channels": 6}
    model = LSTMEffect(hidden=4) if kind == "lstm" else stir(MicroTCN(causal=kind == "causal", **small))
    model.eval()
    x, knobs = torch.rand(2, 1, 333) - 0.5, torch.rand(2)
    pieces = [x[:, 0, first : first + block].numpy() for first in range(0, 333, block)]
    found = np.concatenate(list(through(model, pieces, knobs)), axis=1)
    padded = torch.nn.functional.pad(x, (model.context - model.lookahead, model.lookahead + model.delay))
    with torch.no_grad():
        expected = model(padded, knobs.expand(2, -1))[:, 0, model.delay :]
    assert found.shape == (2, 333)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert list(through(model, [], knobs)) == []


def test_settings_of_knobs() -> None:
    assert settings(" limit=1, peak_reduction=0.4", ("limit", "peak_reduction")) == [1.0, 0.4]
    for text, message in (
        ("limit=1", "needs --knobs with peak_reduction"),
        ("limt=1,peak_reduction=0", "limt"),
        ("limit=a,peak_reduction=0", "is no setting"),
        ("limit,peak_reduction=0", "is no setting"),
        ("limit=nan,peak_reduction=0", "is no setting"),
    ):
        with pytest.raises(UsageError, match=message):
            settings(text, ("limit", "peak_reduction"))


# Metrics.


def test_metrics_by_closed_form() -> None:
    """Half the amplitude is an error of -6.02 dB and 6.02 LU; equal sounds are at no distance."""
    target = torch.sin(torch.arange(RATE) * 0.3)[None, None]
    assert 10 * error_to_signal(target / 2, target).log10().item() == pytest.approx(-6.0206, abs=1e-3)
    assert stft_distance(target, target).item() == 0
    noise = torch.randn(1, 1, RATE, generator=torch.Generator().manual_seed(0))  # All its bins are above the floor.
    assert stft_distance(noise / 2, noise, (256, 1024)).item() == pytest.approx(0.5 + np.log(2), abs=1e-3)
    assert loudness(target[0], RATE) - loudness(target[0] / 2, RATE) == pytest.approx(6.0206, abs=1e-2)
    assert loudness(torch.zeros(1, RATE), RATE) == float("-inf")
    assert np.isnan(loudness(target[0, :, :100], RATE))


def test_metric_collects_and_merges(tmp_path: Path) -> None:
    metric, other = EffectMetric(RATE), EffectMetric(RATE)
    wet = torch.sin(torch.arange(RATE) * 0.3)[None, None]
    metric.update([Processed(wet[0].numpy() / 2)], {"wet": wet, "dry": wet * 2, "name": ["a"]})
    figures = metric.compute()
    assert figures["esr_db"] == pytest.approx(-6.02, abs=0.01) and figures["dry_esr_db"] == pytest.approx(0, abs=0.01)
    other.merge(copy.deepcopy(metric))
    assert other.compute() == figures
    (path,) = metric.report(tmp_path)
    assert path.read_text(encoding="utf-8").startswith("name,mae,esr_db,stft,lufs_difference,dry_esr_db\na,")
