"""Closed forms of the losses, and the configurations that they accept."""

from __future__ import annotations

import math

import pytest
import torch
from cnnkit.config import from_dict, to_dict
from cnnkit.errors import ConfigError
from cnnkit_superres.data_config import DataConfig, DegradeConfig, InformativeConfig, LossConfig, StageConfig
from cnnkit_superres.losses import SuperResolutionLoss, amplitude_loss, charbonnier_loss, frequency_loss

SHAPE = (2, 3, 6, 8)


def drawn(seed: int, shape=SHAPE) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def only(**weights) -> LossConfig:
    return LossConfig(**{"l1": 0.0, **weights})


def wave(amplitude: float, phase: float) -> torch.Tensor:
    """One cosine along the width, which has exactly one coefficient among those that are kept."""
    x = torch.arange(8, dtype=torch.float64)
    return (amplitude * torch.cos(2 * math.pi * x / 8 + phase)).expand(1, 1, 6, 8)


def test_a_constant_error_has_its_closed_form_in_every_loss():
    target, error = drawn(0), 0.2
    output = target + error
    height, width = SHAPE[2:]
    kept = height * (width // 2 + 1)  # Coefficients of a real transform, of which a constant has only the first: H W error.
    for cfg, expected in (
        (only(l1=1.0), error),
        (only(l2=1.0), error**2),
        (only(charbonnier=1.0), math.sqrt(error**2 + 1e-6)),
        (only(charbonnier=1.0, epsilon=0.5), math.sqrt(error**2 + 0.25)),
        (only(frequency=1.0), error * height * width / (2 * kept)),
    ):
        assert SuperResolutionLoss(cfg)(output, target).item() == pytest.approx(expected, rel=1e-12)


def test_charbonnier_lies_between_l1_and_l1_plus_epsilon_and_is_smooth_at_zero():
    output, target = drawn(1), drawn(2)
    l1 = (output - target).abs().mean()
    assert l1 < charbonnier_loss(output, target) < l1 + 1e-3
    same = target.clone().requires_grad_()
    charbonnier_loss(same, target).backward()
    assert torch.equal(same.grad, torch.zeros(SHAPE, dtype=torch.float64))
    assert charbonnier_loss(target, target).item() == pytest.approx(1e-3, rel=1e-12)


def test_a_wave_has_one_coefficient_of_half_its_height_times_the_pixels():
    kept = 6 * 5
    coefficient = 0.3 * 6 * 8 / 2
    nothing = torch.zeros(1, 1, 6, 8, dtype=torch.float64)
    for phase in (0.0, 0.7):
        parts = coefficient * (abs(math.cos(phase)) + abs(math.sin(phase)))
        assert frequency_loss(wave(0.3, phase), nothing).item() == pytest.approx(parts / (2 * kept), rel=1e-10)
        assert amplitude_loss(wave(0.3, phase), nothing).item() == pytest.approx(coefficient / kept, rel=1e-10)


def test_the_amplitude_does_not_see_a_shift_and_the_frequency_loss_does():
    target = drawn(3)
    shifted = target.roll((2, 3), dims=(2, 3))
    assert amplitude_loss(shifted, target).item() < 1e-12
    assert frequency_loss(shifted, target).item() > 0.1


def test_the_frequency_loss_is_that_of_two_transforms():
    output, target = drawn(4, (1, 1, 5, 7)), drawn(5, (1, 1, 5, 7))
    parts = [torch.view_as_real(torch.fft.rfft2(x)) for x in (output, target)]
    assert frequency_loss(output, target).item() == pytest.approx((parts[0] - parts[1]).abs().mean().item(), rel=1e-12)


def test_terms_are_weighted_named_and_sum_to_the_loss():
    cfg = LossConfig(l1=0.5, l2=2.0, charbonnier=0.25, frequency=0.05, amplitude=0.01)
    output, target = drawn(6).requires_grad_(), drawn(7)
    loss = SuperResolutionLoss(cfg)
    terms = loss.terms(output, target)
    assert list(terms) == ["l1", "l2", "charbonnier", "frequency", "amplitude"]
    assert terms["l1"].item() == pytest.approx(0.5 * (output - target).abs().mean().item())
    assert terms["frequency"].item() == pytest.approx(0.05 * frequency_loss(output, target).item())
    assert loss(output, target).item() == pytest.approx(sum(term.item() for term in terms.values()))
    assert list(SuperResolutionLoss().terms(output, target)) == ["l1"]
    assert torch.autograd.gradcheck(loss, (drawn(8, (1, 1, 4, 4)).requires_grad_(), drawn(9, (1, 1, 4, 4))))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_single_precision_at_any_size(dtype):
    output = drawn(10, (1, 3, 6, 7)).to(dtype)
    loss = SuperResolutionLoss(LossConfig(charbonnier=1.0, frequency=0.05, amplitude=0.05))(output, output.float())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1e-3, rel=1e-5)


def test_shapes_that_differ_are_refused_instead_of_broadcast():
    with pytest.raises(ValueError, match="1, 6, 8"):
        SuperResolutionLoss()(drawn(0), drawn(0)[:, :1])


@pytest.mark.parametrize("weights", [{"l1": 0.0}, {"l1": -1.0}, {"l1": 1.0, "frequency": -0.1}, {"epsilon": 0.0}, {"l1": math.nan}])
def test_weights_that_cannot_teach_are_refused(weights):
    with pytest.raises(ValueError):
        LossConfig(**weights)


@pytest.mark.parametrize(
    "config",
    [
        DataConfig(train=("a", "b"), lr_folders=("c", "d"), informative=InformativeConfig(choice="nms")),
        DegradeConfig(kind="real_esrgan", stages=(StageConfig(kernels={"iso": 1.0}), StageConfig(blur=0.5)), final_sinc=0.3),
        LossConfig(l1=0.0, charbonnier=1.0),
    ],
)
def test_a_configuration_survives_being_written_and_read(config):
    data = to_dict(config)
    assert to_dict(from_dict(type(config), data)) == data


@pytest.mark.parametrize(
    ("cls", "data", "told"),
    [
        (DataConfig, {"patch": 0}, "1 or more"),
        (DataConfig, {"cache_mb": -1}, "0 or more"),
        (DataConfig, {"train": ["a", "b"], "lr_folders": ["c"]}, "one for each"),
        (DataConfig, {"sampler": "informativ"}, "informative"),
        (DataConfig, {"informative": {"portion": 0}}, "above 0"),
        (DataConfig, {"informative": {"overlap": 1}}, "below 1"),
        (DataConfig, {"informative": {"darts": 0}}, "at least 1"),
        (DegradeConfig, {"kind": "bicubic", "stages": [{}]}, "blur_noise_jpeg"),
        (DegradeConfig, {"kind": "real_esrgan", "final_sinc": 2}, "probability"),
        (DegradeConfig, {"margin": -1}, "0 or more"),
        (StageConfig, {"blur": 1.5}, "probability"),
        (StageConfig, {"kernels": {"izo": 1}}, "accepted: iso"),
        (StageConfig, {"kernels": {}}, "above 0"),
        (StageConfig, {"resize": [0, 0, 0]}, "above 0"),
        (StageConfig, {"sigma": [2, 1]}, "smaller number first"),
        (StageConfig, {"sigma": [0, 1]}, "none below"),
        (StageConfig, {"kernel_size": [6, 21]}, "odd"),
        (StageConfig, {"jpeg_quality": [0, 90]}, "between 1 and 100"),
    ],
)
def test_a_wrong_value_is_answered_with_what_is_accepted(cls, data, told):
    with pytest.raises(ConfigError, match=told):
        from_dict(cls, data)
