"""MATLAB's imresize: against a plain loop, cases worked out by hand, other libraries away from the border, and its traps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cnnkit.errors import ConfigError, InputError
from cnnkit_superres.resize import KERNELS, contributions, imresize
from PIL import Image
from torch.nn import functional as F


def picture(height, width, channels=3, dtype=np.float64, seed=0):
    x = np.random.default_rng(seed).random((height, width, channels))
    return x.astype(dtype) if np.dtype(dtype).kind == "f" else (x * np.iinfo(dtype).max).round().astype(dtype)


@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 0.37, 1, 1.5, 2, 3, 4])
@pytest.mark.parametrize(("dtype", "error"), [(np.float64, 1e-12), (np.float32, 1e-5), (np.uint8, 0), (np.uint16, 0)])
def test_it_is_the_loop_over_rows_and_columns(plain, scale, dtype, error):
    """Sizes that the scale does not divide, and one smaller than the kernel, so that mirrors are mirrored."""
    for size in ((37, 30), (3, 5)):
        x = picture(*size, dtype=dtype)
        ours, theirs = imresize(x, scale), plain("imresize").imresize(x, scale)
        assert ours.dtype == dtype
        assert ours.shape == theirs.shape == (math.ceil(size[0] * scale), math.ceil(size[1] * scale), 3)
        assert np.abs(ours.astype(np.float64) - theirs).max() <= error


def test_without_antialiasing_the_kernel_is_not_widened(plain):
    x = picture(40, 36)
    assert np.abs(imresize(x, 0.4, antialias=False) - plain("imresize").imresize(x, 0.4, antialias=False)).max() < 1e-12
    assert np.abs(imresize(x, 0.4) - imresize(x, 0.4, antialias=False)).max() > 0.1


def test_four_pixels_become_two_by_hand():
    """The kernel at 1/4, 3/4, 5/4, 7/4, halved; pixels before the first are the first, the second, the third."""
    near, second, third, far = 111 / 256, 29 / 256, -9 / 256, -3 / 256
    row = np.array([[near + second, near + third, second + far, third + far]])
    assert row.sum() == 1
    assert np.array_equal(contributions(4, 2, 0.5, "bicubic", True)[0].sum(1), [1, 1])
    for k, pixel in enumerate(np.eye(4)):
        out = imresize(np.tile(pixel, (4, 1)), (4, 2))
        assert np.array_equal(out, np.tile([row[0, k], row[0, 3 - k]], (4, 1)))


def test_doubling_two_pixels_by_hand():
    """Output lies at 3/4, 5/4, 7/4, 9/4 of the row 1, 2, which goes on as ... 2 1 | 1 2 | 2 1 ..."""
    w = {d: (1.5 * d - 2.5) * d * d + 1 if d < 1 else ((-0.5 * d + 2.5) * d - 4) * d + 2 for d in (0.25, 0.75, 1.25, 1.75)}
    out = imresize(np.array([[0.0, 1.0]]), (1, 4))[0]
    assert out == pytest.approx([w[1.25] + w[1.75], w[0.75] + w[1.75], 1 - w[0.75] - w[1.75], 1 - w[1.25] - w[1.75]], abs=1e-15)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("scale", [0.23, 0.5, 1, 1.7, 3])
def test_a_constant_stays_constant(kernel, scale):
    x = np.full((19, 23, 2), 0.3)
    assert np.abs(imresize(x, scale, kernel=kernel) - 0.3).max() < 1e-14
    bright = np.full((19, 23), 65535, np.uint16)
    assert (imresize(bright, scale, kernel=kernel) == 65535).all()


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
@pytest.mark.parametrize("scale", [1 / 4, 1 / 3, 1 / 2, 2, 3.5])
def test_a_ramp_stays_a_ramp_away_from_the_border(kernel, scale):
    """Output pixel k lies at u = k / s + (1 - 1 / s) / 2, and the kernels reproduce straight lines at whole factors."""
    ramp = np.tile(np.arange(1.0, 61), (60, 1))
    out = imresize(ramp, scale, kernel=kernel)
    u = np.arange(1, out.shape[1] + 1) / scale + 0.5 * (1 - 1 / scale)
    reach = 2 * max(1, 1 / scale)
    inside = (u > reach + 1) & (u < 60 - reach)
    assert inside.sum() >= 9
    assert np.abs(out - u)[:, inside].max() < 1e-12
    assert np.abs(imresize(ramp.T, scale, kernel=kernel) - out.T).max() < 1e-12


def test_scale_one_is_the_picture_itself():
    x = picture(9, 7)
    for kernel in KERNELS:
        assert np.abs(imresize(x, 1, kernel=kernel) - x).max() < 1e-15


def test_nearest_and_box():
    x = picture(8, 12, dtype=np.uint8)
    assert np.array_equal(imresize(x, 3, kernel="nearest"), x.repeat(3, 0).repeat(3, 1))
    assert np.array_equal(imresize(x, 1 / 3, kernel="nearest")[:2], x[1:6:3, 1::3])
    means = x[..., 0].astype(float).reshape(4, 2, 6, 2).mean((1, 3))
    assert np.abs(imresize(x[..., 0].astype(float), 0.5, kernel="box") - means).max() < 1e-13


@pytest.mark.parametrize(("kernel", "filter_"), [("bicubic", Image.BICUBIC), ("bilinear", Image.BILINEAR), ("lanczos3", Image.LANCZOS)])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_pillow_agrees_away_from_the_border(kernel, filter_, factor):
    """Its kernels are the same and widened too; at the border it drops pixels where MATLAB mirrors them."""
    x = picture(72, 96, 1, np.float32)[..., 0]
    theirs = np.asarray(Image.fromarray(x).resize((96 // factor, 72 // factor), filter_))
    apart = np.abs(imresize(x, 1 / factor, kernel=kernel) - theirs)
    assert apart[3:-3, 3:-3].max() < 2e-6
    assert apart[0].max() > 1e-3


@pytest.mark.parametrize("scale", [1 / 4, 1 / 2, 0.75, 2, 3])
def test_torchvision_with_antialiasing_agrees_away_from_the_border(scale):
    from torchvision.transforms.v2 import functional as T

    x = torch.from_numpy(picture(48, 64)).permute(2, 0, 1)
    ours = imresize(x, scale)
    theirs = T.resize(x, list(ours.shape[-2:]), interpolation=T.InterpolationMode.BICUBIC, antialias=True)
    edge = math.ceil(3 * max(scale, 1))
    apart = (ours - theirs).abs()
    assert apart[:, edge:-edge, edge:-edge].max() < 1e-12
    assert apart.max() > 1e-3


@pytest.mark.parametrize("scale", [1 / 2, 3])
def test_the_trap_of_interpolation_without_antialiasing(scale):
    """What torch and OpenCV do by default (a = -0.75, and no widening) is another picture."""
    x = torch.from_numpy(picture(48, 64)).permute(2, 0, 1)
    theirs = F.interpolate(x[None], scale_factor=scale, mode="bicubic")[0]
    assert (imresize(x, scale) - theirs).abs()[:, 10:-10, 10:-10].max() > 0.05


def test_whole_numbers_are_rounded_after_each_axis_as_in_matlab():
    x = picture(64, 64, dtype=np.uint8, seed=3) // 2 + 64
    exact = imresize(x.astype(np.float64), 0.5)
    twice = imresize(x, 0.5)
    assert (np.floor(exact + 0.5) != twice).any()
    assert np.abs(exact - twice).max() <= 0.5 + 0.5 * 1.1875  # The second pass weighs the first's rounding; |weights| sum to 19/16.


def test_whole_numbers_are_clipped():
    checks = np.indices((8, 8)).sum(0) % 2 * np.uint8(255)
    assert {0, 255} <= set(imresize(checks.astype(np.uint8), 2).ravel().tolist())


def test_the_smaller_factor_comes_first():
    """Whole numbers show the order, because they are rounded in between."""
    x = picture(30, 60, 1, np.uint8)[..., 0]
    columns_first = imresize(imresize(x, (30, 20)), (28, 20))
    rows_first = imresize(imresize(x, (28, 60)), (28, 20))
    assert np.array_equal(imresize(x, (28, 20)), columns_first)
    assert not np.array_equal(columns_first, rows_first)
    assert np.array_equal(imresize(x.T, (20, 28)), columns_first.T)


def test_a_size_sets_the_factor_and_a_factor_rounds_the_size_up():
    x = picture(10, 10)
    assert imresize(x, 0.33).shape == imresize(x, (4, 4)).shape == (4, 4, 3)
    assert np.abs(imresize(x, 0.33) - imresize(x, (4, 4))).max() > 0.01
    assert imresize(picture(1, 1), 1 / 4).shape == (1, 1, 3)
    assert imresize(picture(3, 200), 1 / 4).shape == (1, 50, 3)


@pytest.mark.parametrize("scale", [0.25, 0.6, 3])
@pytest.mark.parametrize(("dtype", "error"), [(np.float64, 1e-13), (np.float32, 1e-5), (np.uint8, 0), (np.uint16, 0)])
def test_tensors_give_what_arrays_give(scale, dtype, error):
    x = picture(33, 26, dtype=dtype)
    out = imresize(torch.from_numpy(x).permute(2, 0, 1).expand(2, 3, 33, 26), scale)
    assert out.dtype == torch.from_numpy(x).dtype
    assert np.abs(out[1].permute(1, 2, 0).numpy().astype(float) - imresize(x, scale)).max() <= error


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_computed_in_float32(dtype):
    x = torch.from_numpy(picture(20, 24, dtype=np.float32)).permute(2, 0, 1).to(dtype)
    out = imresize(x, 0.5)
    assert torch.equal(out, imresize(x.float(), 0.5).to(dtype))
    half = picture(20, 24, dtype=np.float16)
    assert np.array_equal(imresize(half, 2), imresize(half.astype(np.float32), 2).astype(np.float16))


def test_gradients():
    x = torch.from_numpy(picture(7, 6)).permute(2, 0, 1).requires_grad_()
    for scale in (0.5, 2):
        assert torch.autograd.gradcheck(lambda x, scale=scale: imresize(x, scale), (x,))


def test_weights_kept_from_inference_serve_training():
    x = torch.rand(3, 21, 23)
    with torch.inference_mode():
        expected = imresize(x, 0.45)
    leaf = x.clone().requires_grad_()
    out = imresize(leaf, 0.45)
    out.sum().backward()
    assert torch.equal(out.detach(), expected)
    assert leaf.grad is not None and leaf.grad.abs().min() > 0


def test_views_and_many_channels():
    x = picture(40, 30, 5)
    view = x[::2, ::-1]
    assert np.array_equal(imresize(view, 0.5), imresize(np.ascontiguousarray(view), 0.5))
    for c in range(5):
        assert np.abs(imresize(x, 0.5)[..., c] - imresize(x[..., c], 0.5)).max() < 1e-14


def test_the_input_is_left_alone():
    x = picture(12, 12, dtype=np.uint8)
    before = x.copy()
    imresize(x, 1)[:] = 0
    assert np.array_equal(x, before)


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.int16), np.zeros((4, 4), bool), np.zeros((4, 4), complex), torch.zeros(4, 4).int()])
def test_other_number_types_are_named(bad):
    with pytest.raises(InputError, match=r"uint8, uint16 or a float"):
        imresize(bad, 2)


@pytest.mark.parametrize("bad", [np.zeros(4), np.zeros((1, 2, 3, 4)), torch.zeros(4), [[1.0]], None])
def test_other_layouts_are_named(bad):
    with pytest.raises(InputError, match=r"H, W"):
        imresize(bad, 2)


@pytest.mark.parametrize("bad", [np.zeros((0, 4)), torch.zeros(3, 4, 0)])
def test_no_pixels(bad):
    with pytest.raises(InputError, match="no pixels"):
        imresize(bad, 2)


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, (3,), (0, 3), (2.5, 3), (1, 2, 3)])
def test_scales_and_sizes_that_are_none(bad):
    with pytest.raises(ConfigError, match=r"positive number|two whole numbers"):
        imresize(np.zeros((4, 4)), bad)


def test_an_unknown_kernel_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="'bicubic'"):
        imresize(np.zeros((4, 4)), 2, kernel="bicubc")
