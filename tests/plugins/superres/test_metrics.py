"""PSNR and SSIM of super-resolution: closed forms, windows one by one, scikit-image, the traps of the protocol, bad input, the table."""

from __future__ import annotations

import copy
import csv
import math
import pickle

import numpy as np
import pytest
from cnnkit.errors import ConfigError, InputError, UsageError
from cnnkit.task import Metric, Reports
from cnnkit_superres.colour import luminance
from cnnkit_superres.metrics import PictureScores, Scores, modcrop, psnr, score, ssim
from skimage import color
from skimage.metrics import peak_signal_noise_ratio, structural_similarity


def pair(height=40, width=53, channels=3, dtype=np.uint8, seed=0):
    """A picture with structure of all sizes, and the same with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / f + c) * np.cos(y / (f + 2) - c) for c in range(channels) for f in (3, 9)]
    a = 0.5 + 0.2 * np.stack([waves[2 * c] + waves[2 * c + 1] for c in range(channels)], -1)
    a, b = a.clip(0, 1), (a + rng.normal(0, 0.04, a.shape)).clip(0, 1)
    if np.dtype(dtype).kind == "f":
        return a.astype(dtype), b.astype(dtype)
    peak = np.iinfo(dtype).max
    return (a * peak).round().astype(dtype), (b * peak).round().astype(dtype)


def windows_one_by_one(a, b, peak):
    """SSIM of one channel by its definition, in float64: a mean over windows of weighted means, variances and covariances."""
    offsets = np.arange(-5, 6)
    w = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    w /= w.sum()
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    values = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            x, y = a[i : i + 11, j : j + 11].astype(float), b[i : i + 11, j : j + 11].astype(float)
            mx, my = (w * x).sum(), (w * y).sum()
            vx, vy, cov = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum(), (w * (x - mx) * (y - my)).sum()
            values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return np.mean(values)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shift", [1, 7, 100])
def test_a_constant_shift_has_a_known_psnr(dtype, shift):
    peak = np.iinfo(dtype).max
    a = np.random.default_rng(1).integers(0, peak - shift, (9, 8, 3)).astype(dtype)
    b = (a + shift).astype(dtype)
    assert psnr(a, b, luminance=False) == pytest.approx(20 * math.log10(peak / shift), abs=1e-12)
    assert psnr(a[..., 0], b[..., 0]) == psnr(a[..., :1], b[..., :1]) == pytest.approx(20 * math.log10(peak / shift), abs=1e-12)
    assert psnr(a, b) == pytest.approx(20 * math.log10(peak / (shift * 219 / 255)), abs=1e-10)


def test_equal_pictures():
    a, _ = pair()
    assert psnr(a, a) == psnr(a, a.copy(), luminance=False) == math.inf
    assert ssim(a, a) == pytest.approx(1, abs=1e-12)
    assert psnr(np.zeros_like(a), np.full_like(a, 255), luminance=False) == 0


@pytest.mark.parametrize(("p", "q"), [(0, 255), (10, 30), (200, 201)])
def test_ssim_of_constants_is_a_closed_form(p, q):
    """No variance and no covariance: what remains is the term of the means."""
    a, b = np.full((20, 30), p, np.uint8), np.full((20, 30), q, np.uint8)
    assert ssim(a, b) == pytest.approx((2 * p * q + 2.55**2) / (p**2 + q**2 + 2.55**2), abs=1e-9)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(11, 11), (12, 25), (17, 11), (43, 31)])
def test_ssim_is_the_mean_over_windows(dtype, size):
    a, b = pair(*size, dtype=dtype)
    peak = np.iinfo(dtype).max
    assert ssim(a, b) == pytest.approx(windows_one_by_one(luminance(a)[..., 0], luminance(b)[..., 0], peak), abs=1e-10)
    each = [windows_one_by_one(a[..., c], b[..., c], peak) for c in range(3)]
    assert ssim(a, b, luminance=False) == pytest.approx(np.mean(each), abs=1e-10)
    assert ssim(a[..., 0], b[..., 0]) == pytest.approx(each[0], abs=1e-10)


@pytest.mark.parametrize("size", [(74, 203), (75, 401), (11, 212), (130, 11), (42, 202)])
@pytest.mark.parametrize("crop", [0, 3])
def test_scikit_image_agrees_in_every_division_into_tiles(size, crop):
    """Its mean leaves out the windows that reach over the border as well."""
    a, b = pair(size[0] + 2 * crop, size[1] + 2 * crop)
    ya, yb = (color.rgb2ycbcr(x)[crop : len(x) - crop, crop : x.shape[1] - crop, 0] for x in (a, b))
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    assert ssim(a, b, crop=crop) == pytest.approx(structural_similarity(ya, yb, **settings), abs=1e-12)
    assert psnr(a, b, crop=crop) == pytest.approx(peak_signal_noise_ratio(ya, yb, data_range=255), abs=1e-10)
    ca, cb = (x[crop : len(x) - crop, crop : x.shape[1] - crop] for x in (a, b))
    colours = structural_similarity(ca, cb, channel_axis=-1, **settings)
    assert ssim(a, b, crop=crop, luminance=False) == pytest.approx(colours, abs=1e-12)
    assert psnr(a, b, crop=crop, luminance=False) == pytest.approx(peak_signal_noise_ratio(ca, cb), abs=1e-10)


@pytest.mark.parametrize("luma", [True, False])
def test_both_at_once_are_what_they_are_alone(luma):
    a, b = pair(90, 71)
    both = score(a, b, crop=2, luminance=luma)
    assert both.ssim == ssim(a, b, crop=2, luminance=luma)
    assert both.psnr == pytest.approx(psnr(a, b, crop=2, luminance=luma), abs=1e-12)


def test_floats_are_first_rounded_to_eight_bits():
    a, b = pair(dtype=np.float32)
    as_bytes = [(x * 255 + 0.5).astype(np.uint8) for x in (a, b)]
    assert score(a, b) == score(*as_bytes)
    assert score(a + 0.5, b) == score((np.minimum(a + 0.5, 1) * 255 + 0.5).astype(np.uint8), as_bytes[1])
    assert psnr(a, a + np.float32(1e-4)) > 60  # Most pixels round to the same byte.
    assert psnr(np.full((4, 4), 0.5), np.full((4, 4), 0.5001)) == math.inf


def test_eight_and_sixteen_bits_score_alike():
    a, b = pair()
    deep = [x.astype(np.uint16) * np.uint16(257) for x in (a, b)]
    assert psnr(*deep) == pytest.approx(psnr(a, b), abs=1e-9)
    assert ssim(*deep) == pytest.approx(ssim(a, b), abs=1e-9)
    dark = [(x >> 6).astype(np.uint16) for x in (a, b)]  # Values below 256 do not make a picture of 8 bits.
    assert psnr(*dark, luminance=False) > 80


def test_the_trap_of_the_luminance_range():
    """On Y in JPEG's range the same pictures have 20 log10(255 / 219) = 1.32 dB less, as threads on unlike figures found."""
    a, b = pair()
    full = [x @ np.array([0.299, 0.587, 0.114]) for x in (a.astype(float), b.astype(float))]
    theirs = peak_signal_noise_ratio(*full, data_range=255)
    assert psnr(a, b) - theirs == pytest.approx(20 * math.log10(255 / 219), abs=1e-3)


def test_the_trap_of_a_rounded_luminance():
    a, b = pair()
    rounded = [np.round(luminance(x)) for x in (a, b)]
    assert abs(psnr(a, b) - peak_signal_noise_ratio(*rounded, data_range=255)) > 1e-3


def test_the_trap_of_the_border():
    a, _ = pair()
    b = a.copy()
    b[:3] = b[-3:] = 0
    b[:, :3] = b[:, -3:] = 0
    assert psnr(a, b, crop=3) == math.inf
    assert ssim(a, b, crop=3) == pytest.approx(1, abs=1e-12)
    assert psnr(a, b, crop=2) < 20


def test_the_trap_of_colours():
    """Noise that is alike in no channel is less on Y: RGB has another score."""
    a, b = pair()
    assert psnr(a, b) - psnr(a, b, luminance=False) > 3


def test_cutting_to_a_multiple():
    x = np.zeros((13, 10, 3))
    assert modcrop(x, 4).shape == (12, 8, 3)
    assert modcrop(x[..., 0], 3).shape == (12, 9)
    assert modcrop(x, 1) is not None and modcrop(x, 1).shape == x.shape
    assert np.shares_memory(modcrop(x, 4), x)
    with pytest.raises(InputError, match="10x13 is smaller than the factor 11"):
        modcrop(x, 11)
    with pytest.raises(ConfigError, match="from 1, not 0"):
        modcrop(x, 0)


A, B = pair(20, 24)


@pytest.mark.parametrize(
    ("a", "b", "crop", "error", "words"),
    [
        (A, B[:19], 0, InputError, r"\(20, 24, 3\) and \(19, 24, 3\).*modcrop"),
        (A, B[..., :1], 0, InputError, r"\(20, 24, 3\) and \(20, 24, 1\)"),
        (A, B.astype(np.uint16), 0, InputError, "uint8 and uint16"),
        (A, B.astype(np.float32), 0, InputError, "uint8 and float32"),
        (A.astype(int), B.astype(int), 0, InputError, "int64 have no known range"),
        (A.astype(float), B.astype(float), 0, InputError, r"\[0, 1\], but one reaches"),
        (A / 255, np.where(np.arange(24)[:, None] == 3, np.nan, B / 255), 0, InputError, "not finite"),
        (np.full((20, 20), np.inf), np.ones((20, 20)), 0, InputError, "not finite"),
        (np.zeros((20, 20, 4), np.uint8), np.zeros((20, 20, 4), np.uint8), 0, InputError, "alpha"),
        (np.zeros(20, np.uint8), np.zeros(20, np.uint8), 0, InputError, r"not \(20,\)"),
        (np.zeros((0, 20), np.uint8), np.zeros((0, 20), np.uint8), 0, InputError, "20x0"),
        (A, B, -1, ConfigError, "not -1"),
        (A, B, 10, ConfigError, "10 pixels off every border.*24x20"),
    ],
)
def test_what_cannot_be_compared_is_named(a, b, crop, error, words):
    for function in (psnr, ssim, score):
        with pytest.raises(error, match=words):
            function(a, b, crop=crop)


def test_pictures_smaller_than_the_window_have_a_psnr_only():
    assert psnr(A[:10], B[:10]) > 20
    with pytest.raises(InputError, match="24x10 are smaller than the 11 pixels"):
        ssim(A[:10], B[:10])
    assert psnr(A, B, crop=5) > 20
    with pytest.raises(ConfigError, match="leave less than 11"):
        ssim(A, B, crop=5)


def collected():
    metric = PictureScores(crop=2)
    for n, (dataset, name) in enumerate([("Set5", "baby"), ("Set5", "bird"), ("Set14", "baby")]):
        a, b = pair(30 + n, 40, seed=n)
        metric.update(name, b, a, dataset, baseline=np.roll(a, 9, 0))
    return metric


def test_means_by_data_set():
    metric, rows = collected(), [score(*reversed(pair(30 + n, 40, seed=n)), crop=2) for n in range(3)]
    assert isinstance(metric, Metric) and isinstance(metric, Reports)
    found = metric.compute()
    assert found["psnr"] == pytest.approx(np.mean([row.psnr for row in rows]), abs=1e-12)
    assert found["ssim/Set5"] == pytest.approx((rows[0].ssim + rows[1].ssim) / 2, abs=1e-12)
    assert found["psnr/Set14"] == rows[2].psnr
    assert found["baseline_psnr/Set14"] < found["psnr/Set14"]
    assert set(found) == {f"{b}{f}{d}" for b in ("", "baseline_") for f in ("psnr", "ssim") for d in ("", "/Set5", "/Set14")}


def test_update_returns_the_picture():
    a, b = pair()
    assert PictureScores().update("x", b, a) == pytest.approx({"psnr": psnr(b, a), "ssim": ssim(b, a)}, abs=1e-12)
    found = PictureScores(3, luminance=False).update("x", b, a, baseline=a)
    assert Scores(found["psnr"], found["ssim"]) == score(b, a, crop=3, luminance=False)
    assert found["baseline_psnr"] == math.inf


def test_without_pictures_and_without_all_baselines():
    empty = PictureScores().compute()
    assert set(empty) == {"psnr", "ssim"}
    assert all(map(math.isnan, empty.values()))
    metric = collected()
    a, b = pair()
    metric.update("butterfly", b, a, "Set5")
    found = metric.compute()
    assert "baseline_psnr" not in found and "baseline_psnr/Set5" not in found
    assert "baseline_psnr/Set14" in found


def test_merging_equals_collecting():
    whole, parts = collected(), [PictureScores(crop=2), PictureScores(crop=2)]
    for n, (key, row) in enumerate(whole.rows.items()):
        parts[n % 2].rows[key] = row
    parts[0].merge(pickle.loads(pickle.dumps(copy.deepcopy(parts[1]))))
    assert parts[0].compute() == pytest.approx(whole.compute(), abs=1e-13)
    parts[0].merge(whole)
    assert len(parts[0].rows) == 3
    with pytest.raises(UsageError, match="same border"):
        whole.merge(PictureScores(crop=3))


def test_a_picture_counts_once_and_a_bad_one_is_named():
    metric = collected()
    a, b = pair()
    with pytest.raises(UsageError, match="'baby' was scored before"):
        metric.update("baby", b, a, "Set5")
    with pytest.raises(InputError, match="picture head: pictures of the shapes"):
        metric.update("head", b[1:], a, "Set5")
    with pytest.raises(InputError, match="picture head: pictures of float64 and uint8"):
        metric.update("head", b, a, "Set5", baseline=b / 255)
    assert len(metric.rows) == 3


def test_report(tmp_path):
    metric = collected()
    paths = metric.report(tmp_path / "new")
    assert [path.name for path in paths] == ["scores.csv", "scores.md"]
    with open(paths[0], newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["dataset"], row["picture"]) for row in rows] == [("Set5", "baby"), ("Set5", "bird"), ("Set14", "baby")]
    for row in rows:
        assert float(row["psnr"]) == pytest.approx(metric.rows[row["dataset"], row["picture"]].scores.psnr, abs=1e-6)
        assert float(row["baseline_ssim"]) < float(row["ssim"])
    found, text = metric.compute(), paths[1].read_text()
    assert "Y of YCbCr" in text and "border of 2 pixels" in text
    assert "| Data set | Pictures | PSNR | SSIM | bicubic PSNR | bicubic SSIM |" in text
    assert f"| Set5 | 2 | {found['psnr/Set5']:.2f} | {found['ssim/Set5']:.4f} | {found['baseline_psnr/Set5']:.2f} |" in text
    assert f"| all | 3 | {found['psnr']:.2f} |" in text


def test_report_of_equal_pictures_without_a_data_set(tmp_path):
    a, _ = pair()
    metric = PictureScores()
    metric.update("a,b", a, a)
    table, text = (path.read_text() for path in metric.report(tmp_path))
    assert '"a,b",inf,1.0' in table
    assert "| pictures | 1 | inf | 1.0000 |" in text
    assert "all" not in text
