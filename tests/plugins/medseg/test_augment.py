from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cnnkit_medseg import augment as A
from cnnkit_medseg.config import AugmentConfig
from cnnkit_medseg.dataset import OUTSIDE

KEPT = ("scale_range", "noise_range", "mirror")
NONE = replace(AugmentConfig(), **{f.name: 0.0 for f in fields(AugmentConfig) if f.name not in KEPT}, mirror=False)
ALL = replace(NONE, **{f.name: 1.0 for f in fields(AugmentConfig) if f.name not in KEPT}, mirror=True)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def blobs(*size: int, labels: int = 3, seed: int = 0) -> torch.Tensor:
    """Return a smooth label map ``(1, *size)`` with labels 0 to ``labels``."""
    coarse = torch.from_numpy(rng(seed).standard_normal((1, labels + 1, *[max(2, n // 6) for n in size]))).float()
    return F.interpolate(coarse, size, mode="trilinear" if len(size) == 3 else "bilinear").argmax(dim=1).to(torch.int16)


def patch(*size: int, channels: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(rng(seed).standard_normal((channels, *size), dtype=np.float32))


@pytest.mark.parametrize("size", [(12, 10, 14), (20, 17)])
def test_nothing_drawn_changes_nothing(size):
    image, label = patch(*size), blobs(*size)
    new_image, new_label = A.augment(image, label, NONE, rng())
    assert torch.equal(new_image, image) and torch.equal(new_label, label)


@pytest.mark.parametrize("size", [(16, 14, 18), (6, 24, 24), (24, 20)])
def test_one_generator_gives_one_result_and_leaves_the_input(size):
    image, label = patch(*size), blobs(*size)
    before = image.clone(), label.clone()
    first, second, other = (A.augment(image, label, ALL, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(image, before[0]) and torch.equal(label, before[1])
    assert first[0].shape == image.shape and first[0].dtype == torch.float32 and torch.isfinite(first[0]).all()
    assert first[1].shape == label.shape and first[1].dtype == torch.int16
    assert set(first[1].unique().tolist()) <= {OUTSIDE, *label.unique().tolist()}


@pytest.mark.parametrize("size", [(15, 18, 21), (6, 22, 24), (21, 28), (21, 40)])
@pytest.mark.parametrize("seed", range(3))
def test_labels_follow_the_largest_linear_weight(size, seed):
    """The oracle interpolates every label's mask by itself, as nnU-Net does."""
    label = blobs(*size, labels=4, seed=seed)
    warp = A.draw_warp(size, replace(NONE, rotate=1, scale=1), rng(seed))
    region = warp.source_shape(size)
    grown = F.pad(label, [v for n, m in zip(reversed(size), reversed(region), strict=True) for v in ((m - n) // 2, (m - n) // 2)], value=-1)
    masks = torch.stack([(grown[0] == value).float() for value in range(-1, 5)])
    soft, result = warp.apply(masks, grown, size)
    top = soft.topk(2, dim=0).values
    clear = top[0] - top[1] > 1e-3  # Ties are decided by rounding.
    assert clear.float().mean() > 0.95
    assert torch.equal(result[0].long()[clear], soft.argmax(dim=0)[clear] - 1)


def test_image_and_label_move_together():
    label = blobs(24, 24, 24, labels=1)
    for seed in range(5):
        image, moved = A.augment(label.float(), label, replace(NONE, rotate=1, scale=1, mirror=True), rng(seed))
        inside = moved != OUTSIDE
        wrong = ((image > 0.5) != (moved == 1))[inside]  # Where a third of a voxel lies outside, the largest share is below one half.
        assert wrong.float().mean() < 0.01


def test_a_quarter_turn_is_exact():
    """The closed form: 90 degrees in the plane is a permutation of the voxels."""
    image, label = patch(9, 9), blobs(9, 9)
    turn = A.Warp(np.array([[0.0, -1.0], [1.0, 0.0]]))
    new_image, new_label = turn.apply(image, label, (9, 9))
    torch.testing.assert_close(new_image, image.rot90(-1, (1, 2)), atol=1e-5, rtol=1e-5)
    assert torch.equal(new_label, label.rot90(-1, (1, 2)))


@pytest.mark.parametrize("size", [(16, 16, 16), (32, 20, 24), (5, 30, 31), (33, 12)])
def test_the_region_is_all_that_a_warp_reads(size):
    """Within the region nothing comes from beyond it, and its centre is the patch's."""
    for seed in range(8):
        warp = A.draw_warp(size, replace(NONE, rotate=1, scale=1), rng(seed))
        region = warp.source_shape(size)
        assert all((m - n) % 2 == 0 and m >= 1 for n, m in zip(size, region, strict=True))
        ones, label = warp.apply(torch.ones(1, *region), torch.ones(1, *region, dtype=torch.int16), size)
        assert (label == 1).all()
        torch.testing.assert_close(ones, torch.ones_like(ones))


def test_angles_and_axes_are_those_of_nnunet():
    def angles(size):
        drawn = [A.draw_warp(size, replace(NONE, rotate=1), rng(seed)).matrix for seed in range(60)]
        return [np.degrees(np.arccos((np.trace(matrix) - (len(size) - 2)) / 2)) for matrix in drawn]

    assert max(angles((32, 32))) > 90 and max(angles((32, 64))) <= 15 + 1e-6
    assert 30 < max(angles((32, 32, 32))) < 60  # Three turns of up to 30 degrees.
    flat = [A.draw_warp((32, 8, 32), replace(NONE, rotate=1, scale=1), rng(s)).matrix for s in range(20)]
    assert all(np.array_equal(m[1], [0, 1, 0]) and np.array_equal(m[:, 1], [0, 1, 0]) for m in flat)
    assert A.flat_axis((32, 8, 32)) == 1 and A.flat_axis((24, 8, 24)) is None and A.flat_axis((8, 64)) is None


def test_scale_range_is_the_size_ratio():
    factors = [A.draw_warp((8, 8, 8), replace(NONE, scale=1), rng(s)).matrix[0, 0] for s in range(200)]
    assert 0.7 <= min(factors) < 0.75 and 1.35 < max(factors) <= 1.4


def test_gamma_keeps_mean_deviation_and_order():
    image = patch(16, 16, 16)
    result = A.gamma(image, rng(3))
    assert not torch.allclose(result, image)
    for old, new in zip(image, result, strict=True):
        torch.testing.assert_close(new.mean(), old.mean(), atol=1e-5, rtol=0)
        torch.testing.assert_close(new.std(), old.std(), atol=1e-5, rtol=1e-5)
        assert (new.flatten()[old.flatten().argsort()].diff() >= -1e-6).all()
    constant = torch.full((1, 4, 4), 2.5)
    assert torch.equal(A.gamma(constant, rng()), constant)


def test_contrast_keeps_the_range_and_brightness_is_one_factor():
    image = patch(12, 12, 12)
    stretched = A.contrast(image, rng(1))
    for old, new in zip(image, stretched, strict=True):
        assert old.min() <= new.min() and new.max() <= old.max()
    ratio = A.brightness(image, rng(1)) / image
    for channel in ratio:
        torch.testing.assert_close(channel, torch.full_like(channel, channel.flatten()[0]))
        assert 0.75 <= channel.flatten()[0] <= 1.25
    assert not torch.allclose(ratio[0], ratio[1])


def test_noise_deviation_and_blur_oracle():
    from scipy.ndimage import gaussian_filter

    deviations = [float((A.noise(torch.zeros(1, 20, 20, 20), (0.0, 0.1), rng(s))).std()) for s in range(60)]
    assert 0 <= min(deviations) < 0.02 and 0.08 < max(deviations) < 0.105
    image = patch(10, 11, 12, channels=1)
    drawn = next(s for s in range(20) if rng(s).random() < 0.5)
    mirrored = rng(drawn)
    mirrored.random()
    expected = gaussian_filter(image[0].numpy(), mirrored.uniform(0.5, 1.0, 3), mode="mirror", truncate=3)
    np.testing.assert_allclose(A.blur(image, rng(drawn))[0].numpy(), expected, atol=1e-6)


def test_low_resolution_keeps_constants_and_the_flat_axis():
    assert torch.equal(A.low_resolution(torch.full((3, 9, 8, 7), 1.5), rng(2)), torch.full((3, 9, 8, 7), 1.5))
    ramp = torch.arange(5.0).view(1, 1, 5, 1).expand(1, 20, 5, 20).contiguous()
    assert all(torch.equal(A.low_resolution(ramp, rng(s)), ramp) for s in range(4))
    noisy = patch(20, 20, 20, channels=1)
    changed = [A.low_resolution(noisy, rng(s)) for s in range(20)]
    assert 3 < sum(not torch.equal(item, noisy) for item in changed) < 17  # Half of the channels.


def test_bias_field_is_smooth_positive_and_of_mean_one():
    ones = torch.cat([torch.ones(1, 24, 24, 24), 2 * torch.ones(1, 24, 24, 24)])
    ones[:, 0, 0, 0] = 0  # The lowest value, from which the shading counts.
    field = A.bias_field(ones, rng(4))
    assert field[0, 0, 0, 0] == 0 and (field[:, 1:] > 0).all()
    torch.testing.assert_close(field[1], 2 * field[0])
    assert abs(float(field[0].mean()) - 1) < 1e-2 and float(field[0, 1:].std()) > 0.02
    assert float(field[0, 1:].min()) > 0.6 and float(field[0, 1:].max()) < 1.6
    assert float(field[0, 1:].diff(dim=0).abs().max()) < 0.15


def test_mirroring_twice_is_the_identity_and_reaches_every_axis():
    image, label = patch(5, 6, 7), blobs(5, 6, 7)
    seen = set()
    for seed in range(40):
        once = A.mirror(image, label, rng(seed))
        twice = A.mirror(*once, rng(seed))
        assert torch.equal(twice[0], image) and torch.equal(twice[1], label)
        seen.add(once[0].numpy().tobytes())
    assert len(seen) == 8
