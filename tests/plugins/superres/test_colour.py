"""YCbCr of MATLAB: its printed values, scikit-image, round trips, and the full range of JPEG as the trap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cnnkit.errors import InputError
from cnnkit_superres.colour import BT601, YCBCR, luminance, rgb_to_ycbcr, ycbcr_to_rgb
from PIL import Image
from skimage import color


def colours(dtype, shape=(14, 11), seed=0):
    x = np.random.default_rng(seed).random((*shape, 3))
    return x.astype(dtype) if np.dtype(dtype).kind == "f" else (x * np.iinfo(dtype).max).round().astype(dtype)


def as_tensor(x):
    return torch.from_numpy(x.copy()).movedim(-1, -3)


def test_the_coefficients_are_those_that_matlab_prints():
    printed = [[65.481, 128.553, 24.966], [-37.797, -74.203, 112], [112, -93.786, -18.214]]
    assert np.abs(YCBCR - printed).max() < 1e-12
    assert np.abs(YCBCR.sum(1) - [219, 0, 0]).max() < 1e-12
    assert BT601.sum() == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize(
    ("rgb", "ycbcr"),
    [
        ((0, 0, 0), (16, 128, 128)),
        ((255, 255, 255), (235, 128, 128)),
        ((255, 0, 0), (81, 90, 240)),
        ((0, 255, 0), (145, 54, 34)),
        ((0, 0, 255), (41, 240, 110)),
        ((128, 128, 128), (126, 128, 128)),  # 16 + 219 * 128 / 255 = 125.93
        ((200, 100, 50), (123, 91, 175)),  # 16 + 51.36 + 50.41 + 4.90, 128 - 29.64 - 29.10 + 21.96, 128 + 87.84 - 36.78 - 3.57
    ],
)
def test_values_worked_out_by_hand(rgb, ycbcr):
    out = rgb_to_ycbcr(np.array(rgb, np.uint8))
    assert tuple(out.tolist()) == ycbcr
    deep = rgb_to_ycbcr(np.array(rgb, np.uint16) * np.uint16(257))
    assert np.abs(deep / 257 - ycbcr).max() < 0.51


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_scikit_image_converts_alike(dtype):
    x = colours(dtype)
    error = 1e-13 if dtype == np.float64 else 1e-6
    assert rgb_to_ycbcr(x).dtype == dtype
    assert np.abs(rgb_to_ycbcr(x) * 255 - color.rgb2ycbcr(x)).max() < error * 255
    assert np.abs(ycbcr_to_rgb(rgb_to_ycbcr(x)) - x).max() < 10 * error
    assert np.abs(ycbcr_to_rgb(color.rgb2ycbcr(x) / 255) - x).max() < 10 * error


def test_whole_numbers_are_the_rounded_floats():
    x = colours(np.uint8)
    assert np.array_equal(rgb_to_ycbcr(x), np.floor(color.rgb2ycbcr(x) + 0.5))
    deep = colours(np.uint16)
    assert np.array_equal(rgb_to_ycbcr(deep), np.floor(257 * color.rgb2ycbcr(deep) + 0.5))


def test_all_corners_lie_in_the_studio_range():
    corners = np.stack(np.meshgrid(*[np.array([0, 255], np.uint8)] * 3), -1)
    out = rgb_to_ycbcr(corners)
    assert out.min((0, 1, 2)).tolist() == [16, 16, 16]
    assert out.max((0, 1, 2)).tolist() == [235, 240, 240]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_back_to_rgb_within_the_rounding(dtype):
    """Blue takes 1.164 of the rounding of Y and 2.017 of that of Cb, and is rounded itself: 2.09 steps at most."""
    x = colours(dtype, (60, 60))
    back = ycbcr_to_rgb(rgb_to_ycbcr(x))
    assert back.dtype == dtype
    assert np.abs(back.astype(int) - x).max() <= 2


def test_colours_outside_of_rgb_are_clipped_as_whole_numbers_only():
    wild = np.array([235, 240, 240], np.uint8)
    assert ycbcr_to_rgb(wild).max() == 255
    assert ycbcr_to_rgb(wild / 255).max() > 1.5
    assert ycbcr_to_rgb(np.array([16, 16, 16], np.uint8)).min() == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_luminance_is_the_first_channel_without_rounding(dtype):
    x = colours(dtype)
    y = luminance(x)
    assert y.shape == (14, 11, 1)
    assert y.dtype == (dtype if np.dtype(dtype).kind == "f" else np.float64)
    unit = {"uint8": 1, "uint16": 257}.get(np.dtype(dtype).name, 1 / 255)
    assert np.abs(y[..., 0] / unit - color.rgb2ycbcr(x)[..., 0]).max() < (1e-4 if dtype == np.float32 else 1e-11)
    if np.dtype(dtype).kind == "u":
        assert np.abs(y % 1).max() > 0.1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("function", [rgb_to_ycbcr, ycbcr_to_rgb, luminance])
def test_tensors_give_what_arrays_give(function, dtype):
    x = colours(dtype, (2, 5, 6))
    ours = function(as_tensor(x))
    assert ours.shape[-2:] == (5, 6)
    expected = as_tensor(function(x))
    assert ours.dtype == expected.dtype
    assert (ours.double() - expected.double()).abs().max() < (1e-6 if dtype == np.float32 else 1e-11)


def test_gradients_and_halves():
    x = as_tensor(colours(np.float64, (3, 4))).requires_grad_()
    for function in (rgb_to_ycbcr, ycbcr_to_rgb, luminance):
        assert torch.autograd.gradcheck(function, (x,))
        half = function(x.detach().to(torch.bfloat16))
        assert torch.equal(half, function(x.detach().to(torch.bfloat16).float()).to(torch.bfloat16))


def test_the_trap_of_the_full_range():
    """Pillow's and OpenCV's luminance of red is 76, MATLAB's 81; of white 255 against 235."""
    for rgb, full, studio in (((255, 0, 0), 76, 81), ((255, 255, 255), 255, 235), ((0, 0, 0), 0, 16)):
        theirs = Image.new("RGB", (1, 1), rgb).convert("YCbCr").getpixel((0, 0))
        assert theirs[0] == full
        assert rgb_to_ycbcr(np.array(rgb, np.uint8))[0] == studio


@pytest.mark.parametrize("bad", [np.zeros((3, 8, 8)), np.zeros((8, 8)), torch.zeros(8, 8, 3), torch.zeros(3), [1, 2, 3]])
def test_channels_elsewhere_are_refused(bad):
    for function in (rgb_to_ycbcr, ycbcr_to_rgb, luminance):
        with pytest.raises(InputError, match=r"array \(\.\.\., 3\) or a tensor"):
            function(bad)


@pytest.mark.parametrize("bad", [np.zeros((2, 2, 3), np.int32), np.zeros((2, 2, 3), bool), torch.zeros(3, 2, 2).long()])
def test_types_without_a_range_are_refused(bad):
    with pytest.raises(InputError, match="no known range"):
        luminance(bad)
