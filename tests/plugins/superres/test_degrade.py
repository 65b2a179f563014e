"""The parts of the blind degradations against closed forms, kornia and statistics, and the whole under one generator."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from cnnkit_superres.data_config import KERNELS, DegradeConfig, StageConfig, real_esrgan
from cnnkit_superres.degrade import (
    degrade,
    draw_kernel,
    filter2d,
    gaussian_kernel,
    gaussian_noise,
    jpeg,
    poisson_noise,
    resize,
    sinc_kernel,
)

NOTHING = StageConfig(blur=0.0, resize=(0.0, 0.0, 1.0), noise=0.0, jpeg=0.0)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def photograph(side: int = 96) -> torch.Tensor:
    from skimage import data

    return torch.from_numpy(data.astronaut()[: 2 * side : 2, 150 : 150 + 2 * side : 2].copy()).permute(2, 0, 1).float() / 255


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    return -10 * math.log10((one - other).square().mean().item())


def covariance(kernel: np.ndarray) -> np.ndarray:
    offset = np.arange(len(kernel)) - len(kernel) // 2
    x, y = np.meshgrid(offset, offset)
    return np.array([[(kernel * x * x).sum(), (kernel * x * y).sum()], [(kernel * x * y).sum(), (kernel * y * y).sum()]])


@pytest.mark.parametrize("sigma", [0.5, 1.3, 3.0])
def test_an_isotropic_kernel_and_its_filter_are_kornias(sigma):
    from kornia.filters import gaussian_blur2d, get_gaussian_kernel2d

    kernel = gaussian_kernel(21, (sigma, sigma))
    theirs = get_gaussian_kernel2d(21, (sigma, sigma), dtype=torch.float64)[0].numpy()
    np.testing.assert_allclose(kernel, theirs, atol=1e-12)
    x = photograph(40)[None].double()
    torch.testing.assert_close(filter2d(x, kernel), gaussian_blur2d(x, 21, (sigma, sigma)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(30, 41), (64, 64), (9, 50)])
@pytest.mark.parametrize("side", [7, 13, 15, 21])
def test_small_and_large_kernels_are_correlated_as_kornia_does(side, size):
    from kornia.filters import filter2d as correlate

    kernel = generator().random((side, side))  # Without any symmetry, so that a flip would be seen.
    x = torch.rand(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    border = "reflect" if min(size) > side // 2 else "replicate"
    theirs = correlate(x, torch.from_numpy(kernel)[None], border_type=border)
    torch.testing.assert_close(filter2d(x, kernel), theirs, rtol=1e-12, atol=1e-12)


def test_an_anisotropic_kernel_has_the_covariance_of_its_axes():
    for angle in (0.0, 0.4, -1.1, math.pi / 2):
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        expected = turn @ np.diag([2.5**2, 1.2**2]) @ turn.T
        np.testing.assert_allclose(covariance(gaussian_kernel(41, (2.5, 1.2), angle)), expected, atol=1e-3)


def test_generalised_kernels_and_plateaus_have_their_closed_forms():
    for beta in (0.5, 1.0, 2.0):
        kernel, flat = gaussian_kernel(9, (2.0, 2.0), beta=beta), gaussian_kernel(9, (2.0, 2.0), beta=beta, plateau=True)
        q = (3 / 2) ** 2
        assert kernel[4, 7] / kernel[4, 4] == pytest.approx(math.exp(-(q**beta) / 2))
        assert flat[1, 4] / flat[4, 4] == pytest.approx(1 / (1 + q**beta))
        assert kernel.sum() == pytest.approx(1) and flat.sum() == pytest.approx(1)
    np.testing.assert_allclose(gaussian_kernel(9, (2.0, 1.0), 0.3), gaussian_kernel(9, (2.0, 1.0), 0.3, beta=1.0))


@pytest.mark.parametrize("cutoff", [math.pi / 3, math.pi / 2])
def test_a_sinc_filter_passes_what_is_below_its_cutoff(cutoff):
    kernel = sinc_kernel(21, cutoff)
    assert kernel.sum() == pytest.approx(1) and (kernel < -1e-4).any()  # It rings.
    np.testing.assert_allclose(kernel, kernel.T)
    response = np.abs(np.fft.rfft2(kernel, (256, 256)))
    row, column = np.meshgrid(np.fft.fftfreq(256), np.fft.rfftfreq(256), indexing="ij")
    frequency = 2 * math.pi * np.hypot(row, column)
    assert abs(response[frequency < 0.6 * cutoff] - 1).max() < 0.16  # Cut off after 10 pixels, the filter has ripples.
    assert response[frequency > 1.4 * cutoff].max() < 0.12


@pytest.mark.parametrize("name", KERNELS)
def test_every_kind_of_kernel_is_drawn_within_its_ranges(name):
    stage = StageConfig(kernels={name: 1.0}, kernel_size=(7, 11), sigma=(0.5, 1.0))
    rng = generator()
    kernels = [draw_kernel(stage, rng) for _ in range(30)]
    assert {len(kernel) for kernel in kernels} == {7, 9, 11}
    for kernel in kernels:
        assert kernel.shape[0] == kernel.shape[1] and kernel.sum() == pytest.approx(1)
        np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-12)  # The same in both directions: nothing is displaced.
    skewed = [kernel for kernel in kernels if not np.allclose(kernel, kernel.T, rtol=1e-6)]
    assert bool(skewed) == name.endswith("aniso")


def test_kernels_are_drawn_by_their_weights():
    stage = StageConfig(kernels={"iso": 3.0, "sinc": 1.0}, kernel_size=(21, 21), sigma=(1.0, 2.0))
    rng = generator(1)
    ringing = np.mean([(draw_kernel(stage, rng) < 0).any() for _ in range(800)])
    assert abs(ringing - 0.25) < 4.5 * math.sqrt(0.25 * 0.75 / 800)


def test_a_filter_works_on_a_picture_smaller_than_itself():
    assert torch.allclose(filter2d(torch.full((1, 1, 3, 4), 0.3), gaussian_kernel(21, (3.0, 3.0))), torch.tensor(0.3))


@pytest.mark.parametrize("gray", [False, True])
def test_gaussian_noise_has_its_deviation(gray):
    noise = gaussian_noise(torch.zeros(1, 3, 200, 200), 0.1, gray, generator())
    assert noise.std().item() == pytest.approx(0.1, rel=0.02) and abs(noise.mean().item()) < 0.002
    assert torch.equal(noise[:, 0], noise[:, 1]) == gray


@pytest.mark.parametrize("gray", [False, True])
def test_poisson_noise_has_the_variance_of_its_light(gray):
    for light in (0.1, 0.6):
        noise = poisson_noise(torch.full((1, 3, 200, 200), light), gray, generator())
        assert noise.var().item() == pytest.approx(light / 256, rel=0.04)
        assert abs(noise.mean().item()) < 5 * math.sqrt(light / 256 / 40_000)
        assert torch.equal(noise[:, 0], noise[:, 1]) == gray
    assert not poisson_noise(torch.zeros(1, 1, 8, 8), gray, generator()).any()


@pytest.mark.parametrize("quality", [30, 60, 95])
def test_jpeg_is_what_kornias_codec_does(quality):
    from kornia.enhance import jpeg_codec_differentiable

    x = photograph()
    ours, theirs = jpeg(x, quality), jpeg_codec_differentiable(x[None], torch.tensor([float(quality)]))[0]
    assert ours.shape == x.shape and ours.min() >= 0 and ours.max() <= 1
    assert psnr(ours, theirs) > psnr(ours, x) + 5 and psnr(ours, theirs) > 36
    assert jpeg(x[:1], quality).shape == (1, 96, 96)


def test_a_better_jpeg_is_nearer_to_the_picture():
    x = photograph()
    assert psnr(jpeg(x, 20), x) < psnr(jpeg(x, 60), x) < psnr(jpeg(x, 95), x)


def test_sizes_are_changed_by_all_three_kernels():
    x, rng = photograph(24)[None], generator()
    seen = [resize(x, (11, 13), rng) for _ in range(40)]
    assert all(item.shape == (1, 3, 11, 13) for item in seen)
    assert len({item.sum().item() for item in seen}) == 3
    assert resize(x, (24, 24), rng) is x


def test_without_its_parts_a_degradation_is_a_reduction():
    x = photograph(24)
    lr = degrade(x, DegradeConfig(kind="blur_noise_jpeg", stages=(NOTHING,)), scale=2, rng=generator())
    modes = [torch.nn.functional.interpolate(x[None], size=(12, 12), mode=mode)[0] for mode in ("area", "bilinear", "bicubic")]
    assert any(torch.equal(lr, (mode.clamp(0, 1) * 255).round() / 255) for mode in modes)


@pytest.mark.parametrize("kind", ["blur_noise_jpeg", "real_esrgan"])
@pytest.mark.parametrize(("scale", "channels"), [(2, 3), (3, 1), (4, 3)])
def test_a_degradation_has_the_size_range_and_randomness_of_its_generator(kind, scale, channels):
    cfg, x = DegradeConfig(kind=kind), photograph()[:channels]
    made = [degrade(x, cfg, scale=scale, rng=generator(seed)) for seed in range(6)]
    for seed, lr in enumerate(made):
        assert lr.shape == (channels, 96 // scale, 96 // scale) and lr.dtype == torch.float32
        assert torch.equal(lr, (lr * 255).round() / 255) and lr.min() >= 0 and lr.max() <= 1
        torch.manual_seed(seed + 99)  # The global generators play no part.
        np.random.seed(seed + 99)
        assert torch.equal(lr, degrade(x, cfg, scale=scale, rng=generator(seed)))
    assert len({lr.sum().item() for lr in made}) == 6


@pytest.mark.parametrize("kind", ["blur_noise_jpeg", "real_esrgan"])
def test_a_degraded_picture_is_still_that_picture_in_its_place(kind):
    x = photograph()
    clean = torch.nn.functional.interpolate(x[None], size=(48, 48), mode="area")[0]
    mean = torch.stack([degrade(x, DegradeConfig(kind=kind), scale=2, rng=generator(seed)) for seed in range(40)]).mean(0)

    def likeness(other: torch.Tensor) -> float:
        return float(np.corrcoef(mean.flatten().numpy(), other.flatten().numpy())[0, 1])

    assert likeness(clean) > 0.9
    for shift in ((0, 1), (0, -1), (1, 0), (-1, 0)):  # No half-pixel displacement on average.
        assert likeness(clean.roll(shift, (1, 2))) < likeness(clean)


def test_two_stages_do_more_than_one_and_the_sinc_filter_rings():
    x, rng = photograph(), generator(3)
    clean = torch.nn.functional.interpolate(x[None], size=(48, 48), mode="area")[0]

    def mean_psnr(cfg: DegradeConfig) -> float:
        return float(np.mean([psnr(degrade(x, cfg, scale=2, rng=rng), clean) for _ in range(25)]))

    one = DegradeConfig(kind="blur_noise_jpeg", stages=real_esrgan()[1:])
    assert mean_psnr(DegradeConfig(kind="real_esrgan")) < mean_psnr(one)
    edge = torch.zeros(1, 64, 64)
    edge[..., 32:] = 0.6
    still = DegradeConfig(kind="blur_noise_jpeg", stages=(replace(NOTHING, kernel_size=(21, 21)),), final_sinc=1.0)
    for seed in range(4):  # The same generator reduces by the same kernel, which may overshoot by itself.
        ringing, plain = (degrade(edge, replace(still, final_sinc=p), scale=2, rng=generator(seed)) for p in (1.0, 0.0))
        assert ringing.max() > plain.max() + 0.01 and ringing[0, 0, 20:].std() > 2 * plain[0, 0, 20:].std()


def test_the_published_values_stand_in_the_recipe():
    first, second = DegradeConfig(kind="real_esrgan").recipe
    assert (first.sigma, second.sigma) == ((0.2, 3.0), (0.2, 1.5))
    assert (first.resize, second.resize) == ((0.2, 0.7, 0.1), (0.3, 0.4, 0.3))
    assert (first.resize_range, second.resize_range) == ((0.15, 1.5), (0.3, 1.2))
    assert sum(first.kernels.values()) == pytest.approx(1) and first.kernels["iso"] == pytest.approx(0.9 * 0.45)
    assert DegradeConfig(kind="real_esrgan").sinc == 0.8 and DegradeConfig(kind="blur_noise_jpeg").sinc == 0
    assert DegradeConfig(kind="real_esrgan", final_sinc=0.0).sinc == 0
    assert not DegradeConfig().recipe and not DegradeConfig().blind


def test_what_cannot_be_degraded_is_said():
    with pytest.raises(ValueError, match="imresize"):
        degrade(photograph(), DegradeConfig(), scale=2, rng=generator())
    with pytest.raises(ValueError, match="multiples"):
        degrade(photograph(95), DegradeConfig(kind="real_esrgan"), scale=2, rng=generator())
