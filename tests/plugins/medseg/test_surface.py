"""Every variant of the surface measures equals the package that it is named after.

Tolerances: float32 references (MONAI) 2e-6 relative, float64 ones (medpy, DeepMind) 1e-12 relative.
"""

from __future__ import annotations

import itertools
import math
import types
import warnings

import numpy as np
import pytest
from cnnkit.errors import InputError, UsageError
from cnnkit_medseg import surface
from cnnkit_medseg.surface import SurfaceDistances
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

F32, F64 = 2e-6, 1e-12
SPACINGS = {2: [(1.0, 1.0), (0.7, 2.5), (2.0, 0.3)], 3: [(1.0, 1.0, 1.0), (3.0, 0.7, 0.7), (0.8, 1.3, 2.5), (1.5, 0.5, 0.9)]}


def blob(shape, *, seed, level=0.0, sigma=2.0):
    """A smooth random mask, which touches the borders of the array."""
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma) > level


def pairs():
    for dims, shape in ((2, (31, 24)), (3, (17, 14, 19))):
        for n, spacing in enumerate(SPACINGS[dims]):
            a, b = blob(shape, seed=10 * n), blob(shape, seed=10 * n + 1, level=0.05)
            yield pytest.param(a, b, spacing, id=f"{dims}d-random-{n}")
            yield pytest.param(a, a | blob(shape, seed=10 * n + 2, level=0.15), spacing, id=f"{dims}d-close-{n}")
            yield pytest.param(a, a, spacing, id=f"{dims}d-same-{n}")
            dot, block = np.zeros(shape, bool), np.zeros(shape, bool)
            dot[(1,) * dims] = True
            block[(slice(-6, None),) * dims] = True
            yield pytest.param(dot, block, spacing, id=f"{dims}d-dot-{n}")
            yield pytest.param(np.ones(shape, bool), block, spacing, id=f"{dims}d-full-{n}")


PAIRS = list(pairs())
pairwise = pytest.mark.parametrize(("pred", "ref", "spacing"), PAIRS)


@pytest.fixture(scope="module")
def deepmind():
    """DeepMind's package. Its one release predates numpy 2 and scipy 1.15, so it gets back the names that were removed since."""
    package = pytest.importorskip("surface_distance")
    old_numpy = types.SimpleNamespace(**{**vars(np), "Inf": np.inf, "NaN": np.nan})
    old_ndimage = types.SimpleNamespace(
        filters=types.SimpleNamespace(correlate=ndimage.correlate),
        morphology=types.SimpleNamespace(distance_transform_edt=ndimage.distance_transform_edt),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package.metrics, "np", old_numpy)
        patch.setattr(package.metrics, "ndimage", old_ndimage)
        yield package.metrics


def monai_masks(*masks):
    torch = pytest.importorskip("torch")
    return [torch.from_numpy(np.ascontiguousarray(mask)).float()[None, None] for mask in masks]


def same(ours, theirs, tolerance):
    assert ours == pytest.approx(float(theirs), rel=tolerance, abs=tolerance, nan_ok=True)


def monai_values(pred, ref, spacing, tolerance):
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    y_pred, y = monai_masks(pred, ref)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        common = {"include_background": True, "spacing": spacing}
        return {
            "hd95": compute_hausdorff_distance(y_pred, y, percentile=95, **common),
            "hd30": compute_hausdorff_distance(y_pred, y, percentile=30, **common),
            "hausdorff": compute_hausdorff_distance(y_pred, y, **common),
            "assd": compute_average_surface_distance(y_pred, y, symmetric=True, **common),
            "nsd": compute_surface_dice(y_pred, y, [tolerance], **common),
            "nsd_subvoxel": compute_surface_dice(y_pred, y, [tolerance], use_subvoxels=True, **common),
        }


def check_monai(pred, ref, spacing, tolerance=1.5):
    ours, theirs = SurfaceDistances(pred, ref, spacing), monai_values(pred, ref, spacing, tolerance)
    same(ours.hd95(), theirs["hd95"], F32)
    same(ours.hd95(percentile=30), theirs["hd30"], F32)
    same(ours.hausdorff(), theirs["hausdorff"], F32)
    same(ours.assd(), theirs["assd"], F32)
    same(ours.nsd(tolerance=tolerance, method="monai"), theirs["nsd"], F32)
    same(ours.nsd(tolerance=tolerance), theirs["nsd_subvoxel"], F32)


@pairwise
def test_monai(pred, ref, spacing):
    check_monai(pred, ref, spacing)


@pairwise
def test_medpy(pred, ref, spacing):
    binary = pytest.importorskip("medpy.metric.binary")
    ours = SurfaceDistances(pred, ref, spacing)
    same(ours.hd95(method="medpy"), binary.hd95(pred, ref, voxelspacing=spacing), F64)
    same(ours.hausdorff(method="medpy"), binary.hd(pred, ref, voxelspacing=spacing), F64)
    same(ours.assd(method="medpy"), binary.assd(pred, ref, voxelspacing=spacing), F64)


@pairwise
@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.1])
def test_deepmind(pred, ref, spacing, tolerance, deepmind):
    theirs = deepmind.compute_surface_distances(ref, pred, spacing)
    ours = SurfaceDistances(pred, ref, spacing)
    for percentile in (50, 95):
        same(ours.hd95(method="surfel", percentile=percentile), deepmind.compute_robust_hausdorff(theirs, percentile), F64)
    same(ours.nsd(tolerance=tolerance), deepmind.compute_surface_dice_at_tolerance(theirs, tolerance), F64)
    for mine, other in zip(ours.directed_averages(), deepmind.compute_average_surface_distance(theirs), strict=True):
        same(mine, other, F64)
    distances = np.concatenate([theirs["distances_gt_to_pred"], theirs["distances_pred_to_gt"]])
    areas = np.concatenate([theirs["surfel_areas_gt"], theirs["surfel_areas_pred"]])
    same(ours.assd(method="surfel"), np.average(distances, weights=areas), F64)
    same(ours.hausdorff(method="surfel"), distances.max(), F64)


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    shape=st.one_of(st.tuples(*[st.integers(1, 9)] * 2), st.tuples(*[st.integers(1, 6)] * 3)),
    density=st.sampled_from([0.02, 0.3, 0.9]),
    seed=st.integers(0, 2**16),
)
def test_any_masks_equal_brute_force(data, shape, density, seed):
    """The search over lines, the tree and the transform all give the distance of the nearest of all pairs of points."""
    spacing = data.draw(st.tuples(*[st.sampled_from([0.1, 0.5, 1.0, 4.0])] * len(shape)))
    rng = np.random.default_rng(seed)
    source, target = rng.random(shape) < density, rng.random(shape) < density
    found = surface.nearest_distances(source, target, spacing)
    if not target.any():
        assert np.isinf(found).all()
        return
    expected = cdist(np.argwhere(source) * np.array(spacing), np.argwhere(target) * np.array(spacing)).min(axis=1) if source.any() else []
    np.testing.assert_allclose(found, expected, rtol=F64, atol=F64)


@pytest.mark.parametrize("spacing", [(1.0, 0.4, 0.9), (0.4, 0.9, 1.0), (1.0, 1.0, 0.3)])
@pytest.mark.parametrize("ratio", [0, 10**9])
def test_far_points_are_exact(spacing, ratio, monkeypatch):
    """Points that the local search does not reach: by the tree (ratio 0) and by the distance transform (large ratio)."""
    monkeypatch.setattr(surface, "_SEARCH_VOXELS", 2)
    monkeypatch.setattr(surface, "_EDT_RATIO", ratio)
    source, target = np.zeros((2, 14, 20, 18), bool)
    source[2:4, :5, 1:9] = True
    target[11:, 12:, 15:] = True
    expected = ndimage.distance_transform_edt(~target, sampling=spacing)[source]
    np.testing.assert_array_equal(surface.nearest_distances(source, target, spacing), expected)


def test_long_line_beyond_the_byte_range():
    """Distances along the scanned axis are stored in a byte; longer ones must not wrap around."""
    source, target = np.zeros((2, 700, 3), bool)
    source[0, 1] = target[699, 2] = True
    for spacing in ((1.0, 1.0), (0.01, 4.0)):
        assert surface.nearest_distances(source, target, spacing)[0] == pytest.approx(math.hypot(699 * spacing[0], spacing[1]), rel=F64)


def test_distances_equal_a_distance_transform_bit_for_bit():
    for dims, spacings in SPACINGS.items():
        for spacing in spacings:
            source, target = surface.voxel_surface(blob((16,) * dims, seed=1)), surface.voxel_surface(blob((16,) * dims, seed=2))
            expected = ndimage.distance_transform_edt(~target, sampling=spacing)[source]
            np.testing.assert_allclose(surface.nearest_distances(source, target, spacing), expected, rtol=4e-16, atol=0)


def test_surfel_measures_equal_both_published_tables():
    tables = pytest.importorskip("surface_distance.lookup_tables")
    for spacing in SPACINGS[3]:
        expected = np.asarray(tables.create_table_neighbour_code_to_surface_area(spacing))
        # Their bit of the voxel at offset (i, j, k) is 7 - (4i + 2j + k).
        swapped = [int(f"{code:08b}"[::-1], 2) for code in range(256)]
        np.testing.assert_allclose(surface.surfel_measures(spacing), expected[swapped], rtol=1e-12)
    for spacing in SPACINGS[2]:
        expected = tables.create_table_neighbour_code_to_contour_length(spacing)
        np.testing.assert_allclose(surface.surfel_measures(spacing), expected[[int(f"{c:04b}"[::-1], 2) for c in range(16)]], rtol=1e-12)


def test_surfel_area_of_a_box_closed_form():
    """Faces of n - 1 voxels, edges cut diagonally over n - 1, eight corner triangles."""
    mask = np.zeros((9, 9, 9), bool)
    mask[2:7, 2:7, 2:7] = True
    area = surface.surfel_surface(mask, (1.0, 1.0, 1.0))[1].sum()
    assert area == pytest.approx(6 * 16 + 12 * 4 * math.sqrt(0.5) + 8 * math.sqrt(3) / 8, rel=F64)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("which", ["pred", "ref", "both"])
def test_empty_masks_follow_each_reference(dims, which, deepmind):
    shape, spacing = (9, 8, 7)[:dims], SPACINGS[dims][1]
    pred, ref = blob(shape, seed=3), blob(shape, seed=4)
    if which != "ref":
        pred = np.zeros(shape, bool)
    if which != "pred":
        ref = np.zeros(shape, bool)
    check_monai(pred, ref, spacing)
    ours = SurfaceDistances(pred, ref, spacing)
    theirs = deepmind.compute_surface_distances(ref, pred, spacing)
    same(ours.hd95(method="surfel"), deepmind.compute_robust_hausdorff(theirs, 95), F64)
    assert math.isinf(ours.hausdorff(method="surfel"))
    with np.errstate(invalid="ignore"):
        same(ours.nsd(tolerance=1), deepmind.compute_surface_dice_at_tolerance(theirs, 1), F64)
        for mine, other in zip(ours.directed_averages(), deepmind.compute_average_surface_distance(theirs), strict=True):
            same(mine, other, F64)
    for value in (ours.hd95(method="medpy"), ours.hausdorff(method="medpy"), ours.assd(method="medpy")):
        assert math.isnan(value)
    assert math.isnan(ours.assd(method="surfel")) if which == "both" else math.isinf(ours.assd(method="surfel"))


def test_rigid_moves_of_both_masks_change_nothing():
    pred, ref, spacing = blob((12, 13, 14), seed=5), blob((12, 13, 14), seed=6), (1.1, 0.6, 2.0)
    expected = SurfaceDistances(pred, ref, spacing)
    for axes in itertools.permutations(range(3)):
        moved = SurfaceDistances(np.flip(pred.transpose(axes), 1), np.flip(ref.transpose(axes), 1), [spacing[a] for a in axes])
        for method in surface.METHODS:
            assert moved.hd95(method=method) == pytest.approx(expected.hd95(method=method), rel=1e-6)
            assert moved.assd(method=method) == pytest.approx(expected.assd(method=method), rel=1e-6)
        assert moved.nsd(tolerance=1.0) == pytest.approx(expected.nsd(tolerance=1.0), rel=1e-9)


def test_symmetric_and_padding_invariant():
    pred, ref = blob((15, 12, 9), seed=7), blob((15, 12, 9), seed=8)
    padded = SurfaceDistances(np.pad(pred, 3), np.pad(ref, 3))
    swapped = SurfaceDistances(ref, pred)
    for method in surface.METHODS:
        assert padded.hd95(method=method) == SurfaceDistances(pred, ref).hd95(method=method) == swapped.hd95(method=method)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32, bool])
def test_any_number_type_and_the_functions(dtype):
    pred, ref = blob((14, 15), seed=9).astype(dtype), blob((14, 15), seed=11).astype(dtype)
    both = SurfaceDistances(pred.astype(bool), ref.astype(bool), 0.5)
    assert surface.hd95(pred, ref, 0.5) == both.hd95()
    assert surface.hausdorff(pred, ref, (0.5, 0.5)) == both.hausdorff()
    assert surface.assd(pred, ref, 0.5, method="medpy") == both.assd(method="medpy")
    assert surface.nsd(pred, ref, 0.5, tolerance=0.7) == both.nsd(tolerance=0.7)


def test_one_dimension_and_its_limit():
    pred, ref = np.zeros((2, 30), bool)
    pred[3:9] = ref[5:20] = True
    assert surface.hausdorff(pred, ref, [2.0]) == 22.0
    with pytest.raises(UsageError, match="2-D and 3-D"):
        surface.nsd(pred, ref, [2.0], tolerance=1)


def test_messages():
    mask = np.ones((3, 3), bool)
    with pytest.raises(InputError, match=r"\(3, 3\).*\(3, 4\)"):
        surface.hd95(mask, np.ones((3, 4), bool))
    for spacing in ((1.0, 0.0), (1.0, 1.0, 1.0), (1.0, math.nan)):
        with pytest.raises(InputError, match="spacing"):
            surface.hd95(mask, mask, spacing)
    with pytest.raises(UsageError, match="did you mean 'medpy'"):
        surface.hd95(mask, mask, method="medpi")
    with pytest.raises(UsageError, match="no NSD"):
        surface.nsd(mask, mask, tolerance=1, method="medpy")
    with pytest.raises(UsageError, match="percentile"):
        surface.hd95(mask, mask, percentile=0)
    with pytest.raises(UsageError, match="tolerance"):
        surface.nsd(mask, mask, tolerance=-1)
