"""AclNet: the paper's layers with the same weights, its sizes, any length and rate, training, merging and export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.count import count_macs, count_params, on_meta
from cnnkit.errors import ConfigError
from cnnkit.layers.fuse import fuse
from cnnkit.testing.compare import assert_near, randomise, without_gradient
from torch import Tensor, nn

pytestmark = pytest.mark.paper("aclnet")

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "standard": ({"width": 0.25}, {"width": 0.25}),
    "separable": ({"width": 0.25, "separable": True}, {"width": 0.25, "separable": True}),
    "16 kHz": (
        {"width": 0.25, "sample_rate": 16000, "strides": (2, 4), "stem_pool": True, "low_channels": 8},
        {"width": 0.25, "frame": 160, "s1": 2, "s2": 4, "first_pool": True, "c1": 8},
    ),
}
"""Arguments of ours, and of the plain network."""


def waves(samples: int, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(seed))


def pair(plain, variant: str) -> tuple[Any, nn.Module]:
    """Return ours and the plain network with the same random weights: both keep their layers in the order of use."""
    args, plain_args = VARIANTS[variant]
    ours: Any = randomise(create_model("audio/aclnet", dims=1, num_classes=7, **args), gain=2.0)
    theirs = plain("aclnet").PlainAclNet(7, **plain_args).eval()
    state = theirs.state_dict()
    assert [tuple(value.shape[:2]) for value in state.values()] == [tuple(value.shape[:2]) for value in ours.state_dict().values()]
    theirs.load_state_dict({key: value.reshape(state[key].shape) for key, value in zip(state, ours.state_dict().values(), strict=True)})
    return ours, theirs


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_the_papers_network_at_any_length(plain, variant):
    ours, theirs = pair(plain, variant)
    for samples in (ours.least, ours.least + 1, 20480, 23457):
        assert_near(ours(waves(samples)).detach(), theirs(waves(samples)).detach(), 1e-5)
    ours, theirs = ours.double(), theirs.double()
    for samples in (20480, 23457):
        assert_near(ours(waves(samples).double()).detach(), theirs(waves(samples).double()).detach(), 1e-10)


@pytest.mark.parametrize("variant", ["standard", "separable"])
def test_gradients_are_the_papers_too(plain, variant):
    """The maximum before the rectifier hands its gradient to the same sample as after it."""
    ours, theirs = pair(plain, variant)
    x, y = (waves(9000).double().requires_grad_() for _ in range(2))
    ours.double()(x).square().sum().backward()
    theirs.double()(y).square().sum().backward()
    assert x.grad is not None and y.grad is not None
    assert_near(x.grad, y.grad, 1e-10)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert_near(one.grad.flatten(), other.grad.flatten(), 1e-10)


def test_the_small_configuration_has_the_papers_size():
    """155 k parameters; 49.3 M multiply-adds per second within 5 %; low-level features of 1.44 k parameters."""
    with on_meta():
        model: Any = create_model("audio/aclnet_small", dims=1, num_classes=50)
        pooled = create_model("audio/aclnet_small", dims=1, num_classes=50, stem_pool=True)
    assert round(count_params(model) / 1000) == 155
    assert count_params(model.low) == 1440
    assert count_macs(model, (1, 1, 44100)) == pytest.approx(49.3e6, rel=0.05)
    assert count_macs(pooled, (1, 1, 44100)) < 16e6


def test_the_low_level_features_are_64_by_one_per_10_ms():
    for rate, strides in ((44100, (7, 3)), (16000, (2, 4))):
        with on_meta():
            model: Any = create_model("audio/aclnet", dims=1, sample_rate=rate, strides=strides)
        assert model.hop == rate // 100
        assert model.low(torch.empty(1, 1, round(1.28 * rate), device="meta")).shape == (1, 1, 64, 128)


def test_the_multiplier_scales_the_cost_and_both_kinds_share_the_interface():
    sizes = {}
    for separable in (False, True):
        for width in (0.125, 0.5, 1.0):
            with on_meta():
                model: Any = create_model("audio/aclnet", dims=1, width=width, separable=separable, num_classes=5)
            sizes[separable, width] = count_params(model)
            x = torch.empty(3, 1, 20000, device="meta")
            assert model(x).shape == (3, 5)
            assert model.embed(x).shape == (3, int(512 * width))
    assert sizes[False, 1.0] > 13 * sizes[False, 0.25 / 2] and sizes[False, 1.0] > 7 * sizes[True, 1.0]


def test_logits_are_the_head_of_the_embedding():
    model: Any = randomise(create_model("audio/aclnet_small", dims=1, num_classes=4))
    x = waves(9000)
    torch.testing.assert_close(model.head(model.embed(x)), model(x))
    torch.testing.assert_close(model.classify(x), model(x))


@pytest.mark.parametrize("separable", [False, True])
def test_a_step_reaches_every_parameter(separable):
    model = create_model("audio/aclnet", dims=1, num_classes=3, width=0.25, separable=separable).train()
    model(waves(12000)).square().mean().backward()
    assert without_gradient(model) == []


@pytest.mark.parametrize("separable", [False, True])
def test_the_merged_form_computes_the_same(separable):
    model: Any = randomise(create_model("audio/aclnet", dims=1, num_classes=3, width=0.25, separable=separable), gain=2.0)
    x = waves(12000)
    expected = model(x).detach()
    fuse(model, x)
    assert not any(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) for module in model.modules())
    assert_near(model(x).detach(), expected, 1e-5)


def test_it_exports_with_a_length_that_varies():
    """In steps of what the maxima take together: torch's exporter wants to know that they leave no rest."""
    model: Any = randomise(create_model("audio/aclnet_small", dims=1, num_classes=3, width=0.25))
    steps = torch.export.Dim("steps", min=2, max=1000)
    program = torch.export.export(model, (waves(4 * model.least),), dynamic_shapes=({2: model.least * steps},)).module()
    for samples in (2 * model.least, 5 * model.least):
        assert_near(program(waves(samples)).detach(), model(waves(samples)).detach(), 1e-6)


def test_wrong_arguments_say_what_is_accepted():
    with pytest.raises(ConfigError, match=r"width=0.01 leaves no channel of 32; accepted: 0.03125 or more"):
        create_model("audio/aclnet", dims=1, width=0.01)
    with pytest.raises(ConfigError, match=r"strides=\(20, 20\) are 400 samples, and 10 ms at 16000 Hz are 160; accepted"):
        create_model("audio/aclnet", dims=1, sample_rate=16000, strides=(20, 20))


def test_it_learns_tones_chirps_and_noise():
    """A few steps tell three kinds of sound apart that it has not heard."""
    torch.manual_seed(0)

    def clips(number: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(number) % 3
        time = torch.arange(3200) / 16000
        low = 200 + 1500 * torch.rand(number, 1, generator=generator)
        tone = torch.sin(2 * torch.pi * low * time)
        chirp = torch.sin(2 * torch.pi * (low * time + 8000 * time**2))
        noise = torch.randn(number, 3200, generator=generator) * 0.5
        return torch.where(labels[:, None] == 0, tone, torch.where(labels[:, None] == 1, chirp, noise))[:, None], labels

    args: dict[str, Any] = {"sample_rate": 16000, "strides": (4, 4), "low_channels": 8, "drop_rate": 0.0}
    model = create_model("audio/aclnet", dims=1, num_classes=3, width=0.125, **args).train()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = 0.5  # So few steps would not move the running statistics at the usual 0.1.
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    x, labels = clips(96, 1)
    for step in range(18):
        part = torch.arange(32) + 32 * (step % 3)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[part]), labels[part]).backward()
        optimizer.step()
    fresh, truth = clips(60, 2)
    with torch.no_grad():
        assert (model.eval()(fresh).argmax(1) == truth).float().mean() > 0.9
