"""From picture to picture: colours, depths, transparency, sizes, the ensemble and tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.errors import ConfigError
from cnnkit_superres.colour import rgb_to_ycbcr, ycbcr_to_rgb
from cnnkit_superres.models._base import SuperResolver, reflect_to_multiple
from cnnkit_superres.pictures import Picture
from cnnkit_superres.predict import Ensemble, Settings, bicubic, enlarge
from cnnkit_superres.receptive import reach
from cnnkit_superres.resize import imresize
from torch.nn import functional as F


def small(name: str = "superres/span_x2", **args) -> SuperResolver:
    """Return a small network near bicubic interpolation, so that its results are pictures and not noise beyond black and white."""
    torch.manual_seed(0)
    args = args or {"channels": 8, "merged": True}
    return Near(create_model(name, **args).eval()).eval()


class Near(SuperResolver):
    """Interpolation and a little of a network."""

    def __init__(self, inner: SuperResolver) -> None:
        super().__init__(scale=inner.scale, in_chans=inner.in_chans, size_multiple=inner.size_multiple)
        self.inner = inner

    def enlarge(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, scale_factor=self.scale, mode="bilinear") + 0.05 * self.inner(x).tanh()


@pytest.fixture(scope="module")
def rgb() -> SuperResolver:
    return small()


@pytest.fixture(scope="module")
def luma() -> SuperResolver:
    return small("superres/espcn_x3", widths=(8, 6))


def noise(height: int, width: int, channels: int = 3, dtype=np.uint8, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).random((height, width, channels))
    peak = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}.get(np.dtype(dtype), 1)
    return (values * peak).round().astype(dtype) if peak > 1 else values.astype(dtype)


def answer(model: SuperResolver, unit: np.ndarray) -> np.ndarray:
    """Return the network's own answer to ``(H, W, C)`` in [0, 1], clipped."""
    with torch.no_grad():
        out = model(torch.from_numpy(np.ascontiguousarray(unit.transpose(2, 0, 1), np.float32))[None])[0]
    return out.clamp(0, 1).numpy().transpose(1, 2, 0)


@pytest.mark.parametrize(("dtype", "peak"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1)])
def test_rgb_through_an_rgb_network_is_its_answer(rgb, dtype, peak):
    picture = Picture(noise(13, 17, dtype=dtype))
    result = enlarge(rgb, picture)
    assert result.pixels.dtype == dtype and result.size == (26, 34) and result.alpha is None
    wanted = answer(rgb, picture.pixels.astype(np.float32) / peak) * peak
    assert np.abs(result.pixels - wanted).max() <= {255: 0.501, 65535: 0.6, 1: 1e-5}[peak]


def test_grey_through_an_rgb_network_is_the_mean_of_its_three(rgb):
    grey = noise(12, 15, 1)
    result = enlarge(rgb, Picture(grey))
    assert result.pixels.shape == (24, 30, 1) and result.pixels.dtype == np.uint8
    wanted = answer(rgb, np.repeat(grey, 3, 2) / 255).mean(2, keepdims=True) * 255
    assert np.abs(result.pixels - wanted).max() <= 1


def test_rgb_through_a_luminance_network_keeps_chroma_bicubic(luma):
    unit = noise(10, 14, dtype=np.float32)
    planes = rgb_to_ycbcr(unit)
    y = answer(luma, planes[..., :1])
    wanted = ycbcr_to_rgb(np.concatenate([y, imresize(planes[..., 1:], 3)], 2)).clip(0, 1)
    assert np.allclose(enlarge(luma, Picture(unit)).pixels, wanted, atol=1e-5)
    deep = Picture((unit * 65535).round().astype(np.uint16))
    assert np.abs(enlarge(luma, deep).pixels / 65535 - wanted).max() < 1e-4


def test_grey_through_a_luminance_network_has_matlabs_range(luma):
    grey = noise(9, 11, 1)
    wanted = (answer(luma, grey / 255 * (219 / 255) + 16 / 255) * 255 - 16) / 219 * 255
    result = enlarge(luma, Picture(grey)).pixels
    assert result.shape == (27, 33, 1)
    assert np.abs(result - wanted.clip(0, 255)).max() <= 0.501


def test_a_grey_picture_is_the_same_as_one_of_equal_colours(luma):
    grey = noise(9, 11, 1)
    three = enlarge(luma, Picture(np.repeat(grey, 3, 2))).pixels.astype(int)
    assert np.abs(three - enlarge(luma, Picture(grey)).pixels).max() <= 1


@pytest.mark.parametrize("which", ["rgb", "luma"])
def test_float_colours_keep_their_white_and_their_black(which, request):
    """A picture of 0 to 5 is one of 0 to 1 five times as bright, and nothing falls below black that no network was given."""
    model = request.getfixturevalue(which)
    unit = noise(8, 9, dtype=np.float32)
    unit[0, 0], unit[0, 1] = 1, 0
    bright = enlarge(model, Picture(5 * unit))
    plain = enlarge(model, Picture(unit))
    assert bright.peak == 5 and np.allclose(bright.pixels, 5 * plain.pixels, atol=1e-4)
    assert plain.pixels.min() >= 0 and plain.pixels.max() <= 1
    below = unit - 0.5
    assert enlarge(model, Picture(below)).pixels.min() < 0  # What the file itself has is kept.


def test_opaque_alpha_stays_so_and_changes_nothing(rgb):
    pixels = noise(8, 10)
    result = enlarge(rgb, Picture(pixels, np.full((8, 10), 255, np.uint8)))
    assert (result.alpha == 255).all() and result.alpha.shape == (16, 20)
    assert np.array_equal(result.pixels, enlarge(rgb, Picture(pixels)).pixels)


def test_opacity_of_a_bright_float_picture_is_one(rgb):
    unit = noise(8, 10, dtype=np.float32)
    unit[0, 0] = 1
    opaque = enlarge(rgb, Picture(4 * unit, np.ones((8, 10), np.float32)))
    assert (opaque.alpha == 1).all() and np.array_equal(opaque.pixels, enlarge(rgb, Picture(4 * unit)).pixels)
    alpha = np.linspace(0.2, 1, 80, dtype=np.float32).reshape(8, 10)
    bright, plain = enlarge(rgb, Picture(4 * unit, alpha)), enlarge(rgb, Picture(unit, alpha))
    assert np.allclose(bright.alpha, plain.alpha, atol=1e-6) and bright.alpha.max() > 0.9
    assert np.allclose(bright.pixels, 4 * plain.pixels, atol=1e-4)


@pytest.mark.parametrize("alpha", ["network", "bicubic"])
@pytest.mark.parametrize("which", ["rgb", "luma"])
def test_hidden_colours_do_not_bleed(which, alpha, request):
    model = request.getfixturevalue(which)
    seen = noise(12, 12)
    mask = np.full((12, 12), 255, np.uint8)
    mask[:, 6:] = 0
    hidden = seen.copy()
    hidden[:, 6:] = (255, 0, 0)
    settings = Settings(alpha=alpha)
    one, other = enlarge(model, Picture(seen, mask), settings), enlarge(model, Picture(hidden, mask), settings)
    assert np.array_equal(one.pixels, other.pixels) and np.array_equal(one.alpha, other.alpha)
    assert one.alpha[:, : 4 * model.scale].mean() > 200 > 60 > one.alpha[:, 8 * model.scale :].mean()


def test_a_flat_colour_stays_flat_over_a_soft_edge():
    """Interpolation alone, so that the quotient can be told: colours come back although alpha falls."""

    class Linear(SuperResolver):
        def enlarge(self, x):
            return F.interpolate(x, scale_factor=2, mode="bilinear")

    pixels = np.broadcast_to(np.array([200, 100, 50], np.uint8), (8, 16, 3)).copy()
    alpha = np.broadcast_to(np.linspace(0, 255, 16).astype(np.uint8), (8, 16)).copy()
    result = enlarge(Linear(scale=2).eval(), Picture(pixels, alpha))
    shown = result.alpha > 2
    assert np.abs(result.pixels[shown].astype(int) - (200, 100, 50)).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_nothing_seen_stays_unseen(rgb, dtype):
    result = enlarge(rgb, Picture(noise(6, 7, dtype=dtype), np.zeros((6, 7), dtype)))
    assert not result.alpha.any() and not result.pixels.any() and result.alpha.dtype == dtype


def test_bicubic_alpha_is_interpolated(rgb):
    alpha = noise(9, 8, 1)[..., 0]
    picture = Picture(noise(9, 8, seed=1), alpha)
    result = enlarge(rgb, picture, Settings(alpha="bicubic"))
    wanted = imresize(alpha[..., None].astype(np.float32) / 255, 2)[..., 0].clip(0, 1) * 255
    assert np.abs(result.alpha - wanted).max() <= 0.501
    assert not np.array_equal(result.alpha, enlarge(rgb, picture).alpha)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 1), (2, 5)])
@pytest.mark.parametrize("which", ["rgb", "luma"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sizes_are_exact(size, which, channels, request):
    model = request.getfixturevalue(which)
    alpha = np.full(size, 100, np.uint8)
    for picture in (Picture(noise(*size, channels)), Picture(noise(*size, channels), alpha)):
        result = enlarge(model, picture)
        assert result.pixels.shape == (model.scale * size[0], model.scale * size[1], channels)
        assert result.alpha is None or result.alpha.shape == result.pixels.shape[:2]


@pytest.mark.parametrize("size", [(1, 1), (7, 10)])
@pytest.mark.parametrize("which", ["rgb", "luma"])
def test_ensemble_is_the_mean_of_eight(size, which, request):
    model = request.getfixturevalue(which)
    x = torch.rand(1, model.in_chans, *size)
    outs = []
    with torch.no_grad():
        for quarter in range(4):  # Turns and one flip make the same eight as two flips and a transposition.
            for flipped in (False, True):
                view = torch.rot90(x.flip(3) if flipped else x, quarter, (2, 3))
                out = torch.rot90(model(view), -quarter, (2, 3))
                outs.append(out.flip(3) if flipped else out)
        mean = torch.stack(outs).mean(0)
        assert torch.allclose(Ensemble(model).eval()(x), mean, atol=1e-6)
    unit = x[0].numpy().transpose(1, 2, 0)
    if model.in_chans == 3:
        result = enlarge(model, Picture(unit), Settings(ensemble=True)).pixels
        assert np.allclose(result, mean[0].clamp(0, 1).numpy().transpose(1, 2, 0), atol=1e-6)
        assert min(size) == 1 or not np.allclose(result, enlarge(model, Picture(unit)).pixels, atol=1e-3)


def test_ensemble_of_a_network_with_a_size_multiple_extends_first():
    model = small("superres/scnet_t_x2", channels=16, depth=1)
    model.size_multiple = 4
    x = torch.rand(1, 3, 6, 9)
    wide = reflect_to_multiple(x, 4)
    with torch.no_grad():
        assert torch.allclose(Ensemble(model).eval()(x), Ensemble(model).eval()(wide)[..., :12, :18])


def test_ensemble_says_of_itself_what_its_network_says(rgb):
    model = small()
    model.tiling, model.minimum = "internal", 8
    ensemble = Ensemble(model)
    assert (ensemble.tiling, ensemble.minimum, ensemble.scale) == ("internal", 8, 2)
    with pytest.raises(ConfigError, match="--approximate"):
        enlarge(model, Picture(noise(40, 40)), Settings(tile=16, ensemble=True))
    assert not hasattr(Ensemble(rgb), "tiling") and reach(Ensemble(rgb)).halo == reach(rgb).halo


@pytest.mark.parametrize("ensemble", [False, True])
def test_tiles_cannot_be_told_from_the_whole(rgb, ensemble):
    picture = Picture(noise(70, 90, dtype=np.float32), noise(70, 90, 1, np.float32, seed=2)[..., 0])
    whole = enlarge(rgb, picture, Settings(ensemble=ensemble))
    seen = []
    tiled = enlarge(rgb, picture, Settings(tile=32, ensemble=ensemble), progress=lambda done, total: seen.append((done, total)))
    assert np.abs(tiled.pixels - whole.pixels).max() < 1e-4  # Colours are divided by alpha, down to a hundredth of it.
    assert np.abs(tiled.alpha - whole.alpha).max() < 1e-5
    assert seen[-1] == (9, 9)


def test_less_overlap_differs_but_little(rgb):
    picture = Picture(noise(64, 64, dtype=np.float32))
    whole = enlarge(rgb, picture).pixels
    blended = enlarge(rgb, picture, Settings(tile=32, overlap=4)).pixels
    assert 0 < np.abs(blended - whole).max() < 0.1


def test_bicubic_is_matlabs():
    picture = Picture(noise(6, 5, dtype=np.uint16), noise(6, 5, 1, np.uint16)[..., 0])
    result = bicubic(picture, 2)
    assert np.array_equal(result.pixels, imresize(picture.pixels, 2)) and np.array_equal(result.alpha, imresize(picture.alpha, 2))
