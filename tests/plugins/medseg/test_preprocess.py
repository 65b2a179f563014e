"""Preprocessing against skimage's resize, scipy and the formulas written out, as nnU-Net uses them."""

from __future__ import annotations

import numpy as np
import pytest
from cnnkit.errors import ConfigError, InputError
from cnnkit_medseg.preprocess import (
    canonical_scheme,
    coarse_axis,
    crop_to_nonzero,
    intensity_statistics,
    normalise,
    resample_image,
    resample_labels,
    resampled_shape,
)
from scipy.ndimage import binary_fill_holes, map_coordinates
from skimage.transform import resize

SHAPES = [((9, 8, 7), (13, 16, 5)), ((9, 8, 7), (9, 8, 21)), ((6, 5, 4), (3, 9, 4)), ((12, 9), (20, 5)), ((1, 8, 7), (2, 5, 9))]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def nnunet_separate(channel, shape, axis, order):
    """In-plane resize of every plane, then order 0 at half-pixel coordinates along the coarse axis."""
    flat = tuple(size for index, size in enumerate(shape) if index != axis)
    planes = [resize(plane.astype(float), flat, order, mode="edge", anti_aliasing=False) for plane in np.moveaxis(channel, axis, 0)]
    stack = np.stack(planes, axis)
    scale = [old / new for old, new in zip(stack.shape, shape, strict=True)]
    grid = np.stack([s * (g + 0.5) - 0.5 for s, g in zip(scale, np.mgrid[tuple(slice(n) for n in shape)], strict=True)])
    return map_coordinates(stack, grid, order=0, mode="nearest")


@pytest.mark.parametrize(("shape", "new"), SHAPES)
@pytest.mark.parametrize("order", [0, 1, 3])
def test_image_equals_skimage(rng, shape, new, order):
    image = rng.normal(size=(2, *shape)).astype(np.float32)
    result = resample_image(image, (1.0,) * len(shape), new_shape=new, order=order)
    axis = coarse_axis((1.0,) * len(shape), [s / n for s, n in zip(shape, new, strict=True)])
    if axis is None:
        expected = np.stack([resize(channel.astype(float), new, order=order, mode="edge", anti_aliasing=False) for channel in image])
    else:
        expected = np.stack([nnunet_separate(channel, new, axis, order) for channel in image])
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=2e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("order", [1, 3])
def test_anisotropic_image_equals_nnunets_separate_resampling(rng, axis, order):
    image = rng.normal(size=(1, 6, 6, 6)).astype(np.float32)
    spacing, new_spacing = [1.0, 1.0, 1.0], [0.7, 0.7, 0.7]
    spacing[axis], new_spacing[axis] = 5.0, 3.0
    new = resampled_shape((6, 6, 6), spacing, new_spacing)
    result = resample_image(image, spacing, new_spacing, order=order)
    np.testing.assert_allclose(result[0], nnunet_separate(image[0], new, axis, order), atol=2e-5)


def test_coarse_axis_with_a_spline_is_continuous(rng):
    image = rng.normal(size=(1, 6, 5, 4)).astype(np.float32)
    result = resample_image(image, (5.0, 1.0, 1.0), new_shape=(12, 5, 4), order_z=1)
    expected = resize(image[0].astype(float), (12, 5, 4), order=1, mode="edge", anti_aliasing=False)
    np.testing.assert_allclose(result[0], expected, atol=2e-5)


@pytest.mark.parametrize(("shape", "new"), SHAPES)
def test_labels_equal_one_resize_per_label(rng, shape, new):
    labels = rng.integers(0, 4, size=(1, *shape)).astype(np.int16)
    axis = coarse_axis((1.0,) * len(shape), [s / n for s, n in zip(shape, new, strict=True)])
    expected, unclear = np.zeros(new, np.int16), np.zeros(new, bool)
    for value in range(4):
        mask = (labels[0] == value).astype(float)
        share = resize(mask, new, 1, mode="edge", clip=True, anti_aliasing=False) if axis is None else nnunet_separate(mask, new, axis, 1)
        expected[share >= 0.5] = value
        unclear |= np.abs(share - 0.5) < 1e-5
    result = resample_labels(labels, (1.0,) * len(shape), new_shape=new)
    assert result.dtype == np.int16
    assert np.array_equal(result[0][~unclear], expected[~unclear])
    assert not unclear.all()


def test_labels_and_image_unchanged_when_the_grid_is():
    labels = np.ones((1, 3, 4, 5), np.uint8)
    assert resample_labels(labels, (1, 1, 1), (1, 1, 1)) is labels
    assert resample_image(labels.astype(np.float32), (1, 2, 1), new_shape=(3, 4, 5)).shape == (1, 3, 4, 5)


@pytest.mark.parametrize(
    ("spacing", "new_spacing", "axis"),
    [
        ((1, 1, 3), (1, 1, 1), None),
        ((1, 1, 3.1), (1, 1, 1), 2),
        ((4, 1, 1), (1, 1, 5), 0),
        ((1, 1, 1), (1, 5, 1), 1),
        ((0.24, 1.25, 1.25), (1, 1, 1), None),
        ((1, 9), (1, 1), None),
    ],
)
def test_coarse_axis(spacing, new_spacing, axis):
    assert coarse_axis(spacing, new_spacing) == axis


def test_resampled_shape_rounds_as_nnunet():
    assert resampled_shape((10, 11, 5), (1.0, 0.5, 3.0), (2.0, 1.0, 1.5)) == (5, 6, 10)
    assert resampled_shape((1, 1, 1), (0.1, 1, 1), (9.0, 1, 1)) == (1, 1, 1)


def test_crop_keeps_what_is_not_zero_in_any_channel(rng):
    array = np.zeros((2, 12, 11, 10), np.float32)
    array[0, 3:6, 2:9, 4:8], array[1, 4:9, 3:5, 5:7] = 1, -2
    array[0, 4, 4:6, 5:7] = array[1, 4, 4:6, 5:7] = 0
    cropped, box, mask = crop_to_nonzero(array)
    assert box == (slice(3, 9), slice(2, 9), slice(4, 8))
    assert np.shares_memory(cropped, array) and cropped.shape == (2, 6, 7, 4)
    assert np.array_equal(mask, binary_fill_holes((array != 0).any(0))[box])
    assert mask.sum() > (cropped != 0).any(0).sum()


def test_crop_leaves_zeros_whole():
    cropped, box, mask = crop_to_nonzero(np.zeros((1, 3, 4)))
    assert cropped.shape == (1, 3, 4) and box == (slice(0, 3), slice(0, 4)) and not mask.any()


def test_zscore_inside_a_mask_and_over_everything(rng):
    image = rng.normal(40, 9, size=(2, 8, 8, 8)).astype(np.float32)
    mask = rng.random((8, 8, 8)) > 0.4
    image[:, ~mask] = 0
    inside, whole = normalise(image, ["zscore", "ZScoreNormalization"], mask=mask, use_mask_for_norm=[True, False])
    np.testing.assert_allclose([inside[mask].mean(), inside[mask].std()], [0, 1], atol=1e-5)
    assert not inside[~mask].any()
    np.testing.assert_allclose(whole, (image[1] - image[1].mean()) / image[1].std(), rtol=1e-5, atol=1e-6)
    assert image.max() > 30, "the input is left alone"


def test_ct_clips_and_scales_by_the_training_set(rng):
    known = intensity_statistics(rng.normal(50, 30, size=5000))
    image = rng.uniform(-1000, 1000, size=(1, 5, 5, 5)).astype(np.float32)
    expected = (np.clip(image, known.percentile_00_5, known.percentile_99_5) - known.mean) / known.std
    np.testing.assert_allclose(normalise(image, ["ct"], [known]), expected, rtol=1e-5, atol=1e-5)


def test_other_schemes(rng):
    image = rng.uniform(0, 255, size=(3, 6, 5)).astype(np.float32)
    rescaled, rgb, same = normalise(image, ["rescale01", "rgb01", "none"])
    assert rescaled.min() == 0 and rescaled.max() == 1
    np.testing.assert_allclose(rgb, image[1] / 255, rtol=1e-6)
    assert np.array_equal(same, image[2])


def test_constant_volumes_stay_finite():
    image = np.full((1, 4, 4), 7)
    for scheme in ("zscore", "rescale01"):
        assert not normalise(image, [scheme]).any()
    assert normalise(image, ["zscore"], mask=np.zeros((4, 4), bool)).max() == 7


def test_statistics_are_numpys(rng):
    values = rng.gamma(2, 50, size=2001).astype(np.float32)
    known = intensity_statistics(values)
    assert (known.min, known.max, known.median) == (values.min(), values.max(), np.median(values))
    np.testing.assert_allclose([known.percentile_00_5, known.percentile_99_5], np.percentile(values, [0.5, 99.5]), rtol=1e-6)
    np.testing.assert_allclose([known.mean, known.std], [values.mean(), values.std()], rtol=1e-5)


def test_names():
    assert canonical_scheme("CTNormalization") == canonical_scheme("ct") == "ct"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: normalise(np.zeros((1, 2, 2)), ["zscor"]), ConfigError, "zscore"),
        (lambda: normalise(np.zeros((3, 2, 2)), ["zscore", "none"]), ConfigError, "2 normalisation schemes for 3 channels"),
        (lambda: normalise(np.zeros((1, 2, 2)), ["ct"]), ConfigError, "intensities"),
        (lambda: normalise(np.full((1, 2, 2), 300), ["rgb01"]), InputError, "0 to 255"),
        (lambda: intensity_statistics([]), InputError, "no foreground"),
        (lambda: resample_image(np.zeros((1, 2, 2)), (1, 1)), ConfigError, "new_spacing or new_shape"),
        (lambda: resample_image(np.zeros((1, 2, 2)), (1, 1, 1), (1, 1)), ConfigError, "2 spatial axes"),
        (lambda: resampled_shape((1, 2), (1, 1), (1,)), ConfigError, "differ in length"),
    ],
)
def test_what_does_not_fit_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
