"""WaveMsNet: the official layers with the same weights, equal maps of the branches, the two phases, filters that can be looked at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.count import on_meta
from cnnkit.errors import CheckpointError, ConfigError, UsageError
from cnnkit.layers.fuse import fuse
from cnnkit.testing.compare import assert_near, assert_same_keys, randomise, without_gradient
from cnnkit.weights import load_weights
from torch import Tensor, nn

pytestmark = pytest.mark.paper("wavemsnet")

SIZES: dict[str, Any] = {"filters": 8, "widths": (6, 7, 8, 9), "hidden": 20}
FRONT = tuple(f"{kind}_{number}." for kind in ("conv1", "bn1", "conv2", "bn2") for number in (1, 2, 3))
CLIP = 66_150


def waves(samples: int = CLIP, batch: int = 2, seed: int = 1) -> Tensor:
    return 0.2 * torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(seed))


def small(phase: int = 1, **args: Any) -> Any:
    return create_model("audio/wavemsnet", dims=1, **{"num_classes": 7, "phase": phase, **SIZES, **args})


@pytest.mark.parametrize("phase", [1, 2])
def test_official_weights_give_the_official_logits(plain, phase):
    theirs = randomise(plain("wavemsnet").PlainWaveMsNet(phase, classes=7, **SIZES), gain=2.0)
    ours = small(phase)
    assert load_weights(ours, theirs.state_dict()) == "cnnkit"
    ours.eval()
    for samples in (CLIP, CLIP + (300 if phase == 1 else 3)):  # The official code takes what has five columns at the end.
        assert_near(ours(waves(samples)).detach(), theirs(waves(samples)).detach(), 1e-5)
    if phase == 1:
        ours, theirs = ours.double(), theirs.double()
        assert_near(ours(waves().double()).detach(), theirs(waves().double()).detach(), 1e-10)


@pytest.mark.parametrize("phase", [1, 2])
def test_the_full_network_has_the_official_keys(plain, phase):
    with on_meta():
        ours = create_model("audio/wavemsnet" if phase == 1 else "audio/wavemsnet_logmel", dims=1, num_classes=50)
    with torch.device("meta"):
        theirs = plain("wavemsnet").PlainWaveMsNet(phase)
    assert_same_keys(ours, theirs)


def test_the_branches_give_maps_of_one_size():
    """441 frames for 1.5 s at 44.1 kHz, as the paper says, and as many for each branch at any other length."""
    with on_meta():
        ours: Any = create_model("audio/wavemsnet", dims=1)
        for samples in (CLIP, CLIP + 1, CLIP + 149, 88_888):
            maps = ours.wave_maps(torch.empty(1, 1, samples, device="meta"))
            assert [tuple(part.shape) for part in maps] == [(1, 32, samples // 150)] * 3
        assert ours.picture(torch.empty(1, 1, CLIP, device="meta")).shape == (1, 1, 96, 441)
        two: Any = create_model("audio/wavemsnet_logmel", dims=1)
        assert two.picture(torch.empty(1, 1, CLIP, device="meta")).shape == (1, 2, 96, 441)


@pytest.mark.parametrize("phase", [1, 2])
def test_longer_clips_are_heard_too(phase):
    ours: Any = randomise(small(phase), gain=2.0)
    x = waves(100_000)
    assert ours(x).shape == (2, 7)
    torch.testing.assert_close(ours.head(ours.embed(x)), ours(x))


def test_phase_two_starts_where_phase_one_ended():
    """The picture's new channel adds nothing yet."""
    one: Any = randomise(small(1), gain=2.0)
    two = small(2)
    assert load_weights(two, one.state_dict()) == "phase 1"
    x = waves()
    assert_near(two.eval()(x).detach(), one(x).detach(), 1e-6)
    with pytest.raises(CheckpointError, match=r"conv3\.weight is \(6, 2, 3, 3\) and must be \(6, 1, 3, 3\)"):
        load_weights(one, two.state_dict())
    with pytest.raises(CheckpointError, match="its head has 7 classes and the model was built with num_classes=3"):
        load_weights(small(2, num_classes=3), one.state_dict())


def test_phase_two_leaves_the_front_end_as_it_is_bit_by_bit():
    """Kernels, normalisations and their running statistics, over steps with momentum and weight decay; all else learns."""
    two: Any = small(2, weights=randomise(small(1), gain=2.0).state_dict())
    before = {key: value.clone() for key, value in two.state_dict().items()}
    optimizer = torch.optim.AdamW(two.parameters(), lr=1e-2, weight_decay=0.1)
    two.train()
    for step in range(3):
        optimizer.zero_grad()
        two(waves(batch=4, seed=step)).square().mean().backward()
        assert without_gradient(two) == []
        optimizer.step()
    after = two.state_dict()
    frozen = [key for key in before if key.startswith(FRONT)]
    assert len(frozen) == 6 * 2 + 6 * 5
    assert all(torch.equal(after[key], before[key]) for key in frozen)
    assert not any(torch.equal(after[key], before[key]) for key in before if key not in frozen)


def test_phase_one_trains_everything():
    one = small(1).train()
    one(waves(batch=4)).square().mean().backward()
    assert without_gradient(one) == [] and all(parameter.requires_grad for parameter in one.parameters())


@pytest.mark.parametrize("phase", [1, 2])
def test_the_merged_form_computes_the_same(phase):
    ours: Any = randomise(small(phase), gain=2.0)
    expected = ours(waves()).detach()
    fuse(ours, waves())
    assert not any(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) for module in ours.modules())
    assert_near(ours(waves()).detach(), expected, 1e-5)


def test_filters_are_sorted_by_the_frequency_that_they_pass():
    """Kernels that are windowed cosines come out in the order of their frequencies, at these frequencies."""
    ours = small(1)
    hertz = torch.tensor([8000.0, 500.0, 12_000.0, 2000.0, 4000.0, 1000.0, 16_000.0, 3000.0])
    time = torch.arange(101) / 44_100
    cosines = torch.cos(2 * torch.pi * hertz[:, None] * time) * torch.hann_window(101)
    ours.conv1_3.weight.data = cosines[:, None]
    found = ours.learned_filters(3, n_fft=4096)
    order = hertz.argsort()
    assert torch.equal(found.kernels, cosines[order])
    assert_near(found.centres, hertz[order], 0.01)
    assert bool((found.centres.diff() > 0).all())
    assert found.responses.shape == (8, 2049) and float(found.frequencies[-1]) == 22_050
    with pytest.raises(UsageError, match="branch 4 does not exist; accepted: 1 to 3"):
        ours.learned_filters(4)
    with pytest.raises(UsageError, match="n_fft=64 is shorter than the kernels; accepted: 101 or more"):
        ours.learned_filters(3, n_fft=64)


def test_wrong_arguments_say_what_is_accepted():
    with pytest.raises(
        ConfigError, match="phase=3; accepted: 1 for the waveform alone, 2 with a log-mel spectrogram beside frozen filters"
    ):
        small(3)
    with pytest.raises(ConfigError, match=r"filters=4, widths=\(1, 2\); accepted: 8 or more filters, and 4 widths"):
        small(1, filters=4, widths=(1, 2))


@pytest.mark.parametrize("phase", [1, 2])
def test_it_exports(phase):
    ours: Any = randomise(small(phase), gain=2.0)
    program = torch.export.export(ours, (waves(),)).module()
    assert_near(program(waves(seed=2)).detach(), ours(waves(seed=2)).detach(), 1e-4)
