"""Distances in millimetres between the surfaces of two binary masks: HD95, Hausdorff, ASSD and NSD.

The three references of the field disagree by design, so every function takes ``method`` and equals that reference:

* ``"monai"``: the surface is the set of foreground voxels that touch the background through a face (or the border of the
  image). HD95 is the larger of the two directed 95th percentiles, in float32 as ``monai.metrics`` computes it. This is what
  a paper that names MONAI, and most challenge papers since about 2020, report.
* ``"medpy"``: the same surface voxels in float64, but HD95 is the 95th percentile of both directions *pooled*, hence never
  above MONAI's. Papers that cite medpy (many of the BraTS, ACDC and Synapse tables: TransUNet, Swin-Unet) mean this one.
* ``"surfel"``: the surface is the marching-cubes surface between the voxel centres, every element (surfel) weighted by
  its area in mm^2 (length in mm in 2-D). This is Nikolov et al., "Clinically applicable segmentation of head and neck
  anatomy for radiotherapy" (2018, arXiv:1809.04430), DeepMind's ``surface-distance``: NSD in a paper usually means this
  one, and ``use_subvoxels=True`` in MONAI computes it.

Distances are exact. A surface is thin and two segmentations of one organ lie close together, so nothing is computed over
the whole volume but the distance along one axis; see :func:`nearest_distances`. numpy and scipy only.

An empty mask has no surface. Each method answers as its reference does:

==========  ==========================  =========================
method      one mask is empty           both are empty
==========  ==========================  =========================
``monai``   HD inf, HD95 nan, ASSD inf  nan
``medpy``   nan (medpy raises)          nan (medpy raises)
``surfel``  HD inf, HD95 inf, ASSD inf  HD and HD95 inf, ASSD nan
==========  ==========================  =========================

NSD is 0 when one mask is empty and nan when both are, for every method.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from cnnkit.errors import InputError, UsageError, unknown
from numpy.typing import ArrayLike, NDArray

Method = Literal["monai", "medpy", "surfel"]
METHODS: tuple[Method, ...] = ("monai", "medpy", "surfel")

_UNREACHED = 250  # of uint8: "no surface on this line", with room to add one without overflow
_SEARCH_VOXELS = 16  # radius of the local search, in voxels across the line
_EDT_RATIO = 40  # one far query of the tree costs what a distance transform spends on so many voxels

# The 13 surfaces that marching cubes knows in a 2 x 2 x 2 block of voxels, up to rotation, mirroring and exchange of inside and
# outside. Corner number 4i + 2j + k; for each triangle |normal| * area in eighths of a unit voxel's faces.
_SURFELS: tuple[tuple[tuple[int, ...], tuple[tuple[int, int, int], ...]], ...] = (
    ((7,), ((1, 1, 1),)),
    ((6, 7), ((2, 2, 0),) * 2),
    ((5, 6), ((1, 1, 1),) * 2),
    ((3, 4), ((1, 1, 1),) * 2),
    ((5, 6, 7), ((1, 1, 1), (2, 2, 2), (4, 0, 0))),
    ((3, 5, 6), ((1, 1, 1),) * 3),
    ((3, 4, 7), ((0, 2, 2), (0, 2, 2), (1, 1, 1))),
    ((4, 5, 6, 7), ((4, 0, 0),) * 2),
    ((3, 5, 6, 7), ((1, 1, 1), (1, 1, 1), (2, 2, 2), (2, 2, 2))),
    ((3, 4, 6, 7), ((0, 2, 2), (1, 1, 1), (2, 0, 2), (3, 3, 3))),
    ((3, 4, 5, 6), ((1, 1, 1), (1, 1, 1), (2, 2, 2), (4, 0, 0))),
    ((2, 3, 4, 5), ((2, 2, 0),) * 4),
    ((1, 2, 4, 7), ((1, 1, 1),) * 4),
)


def surfel_measures(spacing: Sequence[float]) -> NDArray[np.float64]:
    """Return the surface measure of every 2 x 2 (x 2) neighbourhood of voxels.

    Args:
        spacing: Size of a voxel in mm along each of 2 or 3 axes.

    Returns:
        ``(2 ** 2 ** dims,)`` lengths in mm (2-D) or areas in mm^2 (3-D), indexed by the bit pattern of the neighbourhood in
        which the voxel at offset ``(i, j, k)`` has bit ``4i + 2j + k`` (in 2-D: ``2i + j``).

    Raises:
        UsageError: ``spacing`` has another length than 2 or 3.
    """
    if len(spacing) == 2:
        rows, columns = (float(s) for s in spacing)
        corner = 0.5 * float(np.hypot(rows, columns))
        # One or three corners inside cut the block once diagonally, two opposite ones twice, two neighbours run straight.
        by_inside = {0b0110: 2 * corner, 0b1001: 2 * corner, 0b0011: columns, 0b1100: columns, 0b0101: rows, 0b1010: rows, 0: 0.0, 15: 0.0}
        return np.array([by_inside.get(code, corner) for code in range(16)])
    if len(spacing) != 3:
        raise UsageError(f"surface elements (method='surfel') are defined in 2-D and 3-D, not in {len(spacing)}-D; use method='monai'")
    faces = np.array([spacing[1] * spacing[2], spacing[0] * spacing[2], spacing[0] * spacing[1]], dtype=np.float64) / 8
    table = np.zeros(256)
    for corners, normals in _SURFELS:
        for axes in itertools.permutations(range(3)):
            area = sum(float(np.linalg.norm(np.array([normal[a] for a in axes]) * faces)) for normal in normals)
            for flip in range(8):
                bits = [(corner >> 2 & 1, corner >> 1 & 1, corner & 1) for corner in corners]
                code = sum(1 << ((4 * b[axes[0]] + 2 * b[axes[1]] + b[axes[2]]) ^ flip) for b in bits)
                table[code] = table[255 - code] = area
    return table


def voxel_surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the foreground voxels with a background voxel, or the border of the array, behind one of their faces.

    Args:
        mask: ``(*spatial)`` bool.
    """
    padded = np.pad(mask, 1)
    inner = tuple(slice(1, -1) for _ in mask.shape)
    interior = padded[inner].copy()
    for axis in range(mask.ndim):
        for side in (slice(0, -2), slice(2, None)):
            interior &= padded[(*inner[:axis], side, *inner[axis + 1 :])]
    return mask & ~interior


def surfel_surface(mask: NDArray[np.bool_], spacing: Sequence[float]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return the corners between voxels through which the surface passes, and the measure of the surface at each.

    Args:
        mask: ``(*spatial)`` bool, 2-D or 3-D; outside of the array is background.
        spacing: Size of a voxel in mm along each axis.

    Returns:
        The corner grid, every axis one longer than that of ``mask``, and the measures of its true elements in row-major order.
    """
    measures = surfel_measures(spacing)
    some = every = padded = np.pad(mask, 1)
    for axis in range(mask.ndim):
        low, high = [tuple(slice(*ends) if a == axis else slice(None) for a in range(mask.ndim)) for ends in ((None, -1), (1, None))]
        some, every = some[low] | some[high], every[low] & every[high]
    surface = some & ~every
    at = _places(surface)
    code = np.zeros(at[0].shape, dtype=np.uint8)
    for bit, offset in enumerate(itertools.product((0, 1), repeat=mask.ndim)):
        code |= padded[tuple(i + o for i, o in zip(at, offset, strict=True))].astype(np.uint8) << np.uint8(bit)
    return surface, measures[code]


def nearest_distances(source: NDArray[np.bool_], target: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float64]:
    """Return the exact Euclidean distance from every true element of ``source`` to the nearest of ``target``.

    One pass along the finest axis gives every voxel its distance to the surface on its own line. The distance in space is
    the minimum over the lines around it, and these are tried from near to far until none can be nearer any more. Points with
    no surface within about 16 voxels go to a k-d tree, or to a distance transform when there are very many of them.

    Args:
        source: ``(*spatial)`` bool.
        target: ``(*spatial)`` bool.
        spacing: Size of a voxel in mm along each axis.

    Returns:
        ``(source.sum(),)`` float64 in mm, in row-major order; inf when ``target`` is empty.
    """
    if target.ndim == 1:
        return nearest_distances(source[:, None], target[:, None], (*spacing, 1.0))
    points = _places(source)
    if not target.any():
        return np.full(points[0].shape, np.inf)
    squared, reach = _search_lines(points, target, spacing)
    far = np.flatnonzero(squared > reach)
    if far.size:
        squared[far] = _far_squared(tuple(p[far] for p in points), target, spacing)
    return np.sqrt(squared)


def _search_lines(
    points: tuple[NDArray[np.intp], ...], target: NDArray[np.bool_], spacing: Sequence[float]
) -> tuple[NDArray[np.float64], float]:
    """Return squared distances found by the local search, and up to which value they are exact."""
    dims = target.ndim
    line = int(np.argmin(spacing))
    others = [a for a in range(dims) if a != line]
    # The geometric mean keeps the number of lines, pi * _SEARCH_VOXELS ** 2 in 3-D, the same for every spacing.
    reach = min(_SEARCH_VOXELS * math.prod(spacing[a] for a in others) ** (1 / len(others)), (_UNREACHED - 1) * spacing[line])
    steps = [min(int(reach / spacing[a]), target.shape[a] - 1) for a in others]
    along = _line_distances(np.moveaxis(target, line, 0), steps)
    strides = [s // along.itemsize for s in along.strides]
    base = points[line] * strides[0]
    for axis, stride in zip(others, strides[1:], strict=True):
        base += points[axis] * stride

    line_squared = (np.arange(256) * spacing[line]) ** 2
    line_squared[_UNREACHED:] = np.inf
    flat = along.reshape(-1)
    best = np.full(base.shape, np.inf)
    active, nearest = np.arange(base.size), best.copy()
    for floor, (first, second), shifts in _rings(others, steps, strides[1:], spacing, reach):
        open_ = nearest > floor
        if np.count_nonzero(open_) < 0.8 * active.size:
            best[active] = nearest
            active, base, nearest = active[open_], base[open_], nearest[open_]
        if not active.size:
            break
        closest = flat[shifts[0] :].take(base)
        for shift in shifts[1:]:
            np.minimum(closest, flat[shift:].take(base), out=closest)
        candidate = line_squared.take(closest)
        candidate += first
        candidate += second
        np.minimum(nearest, candidate, out=nearest)
    best[active] = nearest
    return best, reach**2


def _rings(
    axes: Sequence[int], steps: Sequence[int], strides: Sequence[int], spacing: Sequence[float], reach: float
) -> list[tuple[float, tuple[float, float], list[int]]]:
    """Return the lines around a point from near to far: squared distance, its two summands, shifts (margin included) of its lines.

    The summands are added to the squared distance along the line in the order in which a distance transform adds the axes,
    so that equal distances are equal floats.
    """
    split = len(axes) == 2 and tuple(axes) != (0, 1)
    rings: dict[tuple[float, float], list[int]] = {}
    for offset in itertools.product(*(range(-step, step + 1) for step in steps)):
        squares = [(o * spacing[a]) ** 2 for o, a in zip(offset, axes, strict=True)]
        summands = (squares[0], squares[1]) if split else (float(sum(squares)), 0.0)
        shift = sum((o + step) * stride for o, step, stride in zip(offset, steps, strides, strict=True))
        rings.setdefault(summands, []).append(shift)
    return sorted((sum(pair), pair, shifts) for pair, shifts in rings.items() if sum(pair) <= reach**2)


def _places(mask: NDArray[np.bool_]) -> tuple[NDArray[np.intp], ...]:
    """Return what ``np.nonzero`` returns, several times faster where few elements are true."""
    return np.unravel_index(np.flatnonzero(mask), mask.shape)


def _line_distances(target: NDArray[np.bool_], margins: Sequence[int]) -> NDArray[np.uint8]:
    """Return the distance in voxels to the nearest true element along axis 0; the other axes gain a margin of ``_UNREACHED``."""
    distance = np.full((target.shape[0], *(n + 2 * m for n, m in zip(target.shape[1:], margins, strict=True))), _UNREACHED, dtype=np.uint8)
    distance[(slice(None), *(slice(m, m + n) for n, m in zip(target.shape[1:], margins, strict=True)))][target] = 0
    one = np.uint8(1)
    for sweep in (distance, distance[::-1]):
        for before, here in itertools.pairwise(sweep):
            np.minimum(here, before + one, out=here)
    return distance


def _far_squared(points: tuple[NDArray[np.intp], ...], target: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float64]:
    """Return squared distances of any size: by distance transform for very many points, else by a k-d tree."""
    if points[0].size * _EDT_RATIO > target.size:
        from scipy.ndimage import distance_transform_edt

        nearest = distance_transform_edt(~target, sampling=spacing, return_distances=False, return_indices=True)
        found = [axis[points] for axis in nearest]
    else:
        from scipy.spatial import cKDTree

        places = _places(target)
        scale = np.asarray(spacing, dtype=np.float64)
        tree = cKDTree(np.stack(places, axis=1) * scale, leafsize=32, balanced_tree=False, compact_nodes=False)
        rows = tree.query(np.stack(points, axis=1) * scale)[1]
        found = [axis[rows] for axis in places]
    squared = np.zeros(points[0].shape)
    for here, there, size in zip(points, found, spacing, strict=True):
        squared += ((here - there) * size) ** 2
    return squared


@dataclass(frozen=True)
class Directed:
    """Distances between two surfaces in both directions, in mm, with the measure of every surface element.

    Attributes:
        to_ref: ``(n_pred,)`` from each element of the prediction to the reference.
        to_pred: ``(n_ref,)`` from each element of the reference to the prediction.
        pred_measure: ``(n_pred,)`` area or length of the elements; ones for surface voxels.
        ref_measure: ``(n_ref,)``, likewise.
    """

    to_ref: NDArray[np.float64]
    to_pred: NDArray[np.float64]
    pred_measure: NDArray[np.float64]
    ref_measure: NDArray[np.float64]


class SurfaceDistances:
    """The surfaces of one prediction and one reference: distances are computed once and shared by all measures.

    All measures of ``"monai"`` and ``"medpy"`` share one computation, those of ``"surfel"`` another.

    Args:
        pred: ``(*spatial)`` mask, bool or any number; everything but zero is foreground.
        ref: ``(*spatial)`` mask of the same shape.
        spacing: Size of a voxel in mm along each axis; ``None`` is 1 mm.

    Raises:
        InputError: The shapes differ, or the spacing does not fit.
    """

    def __init__(self, pred: ArrayLike, ref: ArrayLike, spacing: Sequence[float] | float | None = None) -> None:
        pred, ref = np.asarray(pred).astype(bool, copy=False), np.asarray(ref).astype(bool, copy=False)
        if pred.shape != ref.shape or pred.ndim == 0:
            raise InputError(f"the masks must have one shape of one or more axes, got prediction {pred.shape} and reference {ref.shape}")
        self.spacing = _spacing(spacing, pred.ndim)
        box = bounding_box(pred | ref)
        self._pred, self._ref = np.ascontiguousarray(pred[box]), np.ascontiguousarray(ref[box])
        self.pred_empty, self.ref_empty = not self._pred.any(), not self._ref.any()

    @cached_property
    def voxels(self) -> Directed:
        """Distances between surface voxels (``"monai"`` and ``"medpy"``)."""
        pred, ref = voxel_surface(self._pred), voxel_surface(self._ref)
        to_ref, to_pred = nearest_distances(pred, ref, self.spacing), nearest_distances(ref, pred, self.spacing)
        return Directed(to_ref, to_pred, np.ones(to_ref.shape), np.ones(to_pred.shape))

    @cached_property
    def surfels(self) -> Directed:
        """Distances between surface elements with their areas in mm^2 (``"surfel"``), or lengths in mm in 2-D."""
        pred, pred_measure = surfel_surface(self._pred, self.spacing)
        ref, ref_measure = surfel_surface(self._ref, self.spacing)
        to_ref, to_pred = nearest_distances(pred, ref, self.spacing), nearest_distances(ref, pred, self.spacing)
        return Directed(to_ref, to_pred, pred_measure, ref_measure)

    def directed(self, method: Method) -> Directed:
        """Return the distances that ``method`` is computed from; raises UsageError for an unknown method."""
        if method not in METHODS:
            raise UsageError(unknown("method of surface distance", method, METHODS))
        return self.surfels if method == "surfel" else self.voxels

    def hd95(self, *, method: Method = "monai", percentile: float = 95) -> float:
        """Return the Hausdorff distance in mm at a percentile, see :func:`hd95`."""
        if not 0 < percentile <= 100:
            raise UsageError(f"percentile must lie above 0 and not above 100, got {percentile}")
        d = self.directed(method)
        if method == "surfel":
            pairs = ((d.to_ref, d.pred_measure), (d.to_pred, d.ref_measure))
            return max(_weighted_percentile(values, measure, percentile) for values, measure in pairs)
        if method == "medpy":
            return float("nan") if self.pred_empty or self.ref_empty else float(np.percentile(np.hstack((d.to_ref, d.to_pred)), percentile))
        return float(np.maximum(_quantile_float32(d.to_ref, percentile / 100), _quantile_float32(d.to_pred, percentile / 100)))

    def hausdorff(self, *, method: Method = "monai") -> float:
        """Return the Hausdorff distance in mm, see :func:`hausdorff`."""
        d = self.directed(method)
        if self.pred_empty or self.ref_empty:
            both = self.pred_empty and self.ref_empty
            return float("nan") if method == "medpy" or (both and method == "monai") else float("inf")
        largest = max(float(d.to_ref.max()), float(d.to_pred.max()))
        return float(np.float32(largest)) if method == "monai" else largest

    def assd(self, *, method: Method = "monai") -> float:
        """Return the average symmetric surface distance in mm, see :func:`assd`."""
        d = self.directed(method)
        if (self.pred_empty and self.ref_empty) or (method == "medpy" and (self.pred_empty or self.ref_empty)):
            return float("nan")
        total = float(d.to_ref @ d.pred_measure + d.to_pred @ d.ref_measure)
        return total / float(d.pred_measure.sum() + d.ref_measure.sum())

    def directed_averages(self, *, method: Method = "surfel") -> tuple[float, float]:
        """Return the average distance in mm from reference to prediction and from prediction to reference (nan without a surface)."""
        d = self.directed(method)
        pairs = ((d.to_pred, d.ref_measure), (d.to_ref, d.pred_measure))
        ref_to_pred, pred_to_ref = (float(dist @ measure / measure.sum()) if dist.size else float("nan") for dist, measure in pairs)
        return ref_to_pred, pred_to_ref

    def nsd(self, *, tolerance: float, method: Method = "surfel") -> float:
        """Return the normalised surface Dice at a tolerance in mm, see :func:`nsd`."""
        if not (np.isfinite(tolerance) and tolerance >= 0):
            raise UsageError(f"the tolerance of NSD is a length in mm, zero or more; got {tolerance}")
        if method == "medpy":
            raise UsageError("medpy has no NSD; use method='surfel' (as most papers) or method='monai'")
        d = self.directed(method)
        if self.pred_empty and self.ref_empty:
            return float("nan")
        # MONAI compares in float32, where 3 * 0.3 is 0.9; DeepMind in float64.
        kind = np.float32 if method == "monai" else np.float64
        limit = kind(tolerance)
        within = d.pred_measure[d.to_ref.astype(kind) <= limit].sum() + d.ref_measure[d.to_pred.astype(kind) <= limit].sum()
        return float(within / (d.pred_measure.sum() + d.ref_measure.sum()))


def hd95(
    pred: ArrayLike, ref: ArrayLike, spacing: Sequence[float] | float | None = None, *, method: Method = "monai", percentile: float = 95
) -> float:
    """Return the Hausdorff distance at a percentile, by default the 95th, in mm.

    A paper that cites MONAI or a challenge toolkit means ``"monai"`` (larger of the two directed percentiles), one that cites
    medpy ``"medpy"`` (percentile of the pooled distances), one that cites DeepMind's surface-distance ``"surfel"`` (larger
    of the two directed percentiles, weighted by area). Empty masks: see the table of this module.

    Args:
        pred: ``(*spatial)`` mask; everything but zero is foreground.
        ref: ``(*spatial)`` mask.
        spacing: Size of a voxel in mm along each axis; ``None`` is 1 mm.
        method: Which reference to equal.
        percentile: Above 0, up to 100.

    Raises:
        InputError: The shapes differ, or the spacing does not fit.
        UsageError: An unknown method or an impossible percentile.
    """
    return SurfaceDistances(pred, ref, spacing).hd95(method=method, percentile=percentile)


def hausdorff(pred: ArrayLike, ref: ArrayLike, spacing: Sequence[float] | float | None = None, *, method: Method = "monai") -> float:
    """Return the Hausdorff distance (largest distance of one surface to the other, both ways) in mm. Arguments as :func:`hd95`."""
    return SurfaceDistances(pred, ref, spacing).hausdorff(method=method)


def assd(pred: ArrayLike, ref: ArrayLike, spacing: Sequence[float] | float | None = None, *, method: Method = "monai") -> float:
    """Return the average symmetric surface distance in mm: the mean over the elements of both surfaces together.

    This is medpy's ``assd`` and MONAI's ``symmetric=True``; with ``"surfel"`` every element counts by its area (DeepMind's
    package gives the two directions apart: :meth:`SurfaceDistances.directed_averages`). Arguments as :func:`hd95`.
    """
    return SurfaceDistances(pred, ref, spacing).assd(method=method)


def nsd(
    pred: ArrayLike, ref: ArrayLike, spacing: Sequence[float] | float | None = None, *, tolerance: float, method: Method = "surfel"
) -> float:
    """Return the normalised surface Dice: the share of both surfaces that lies within ``tolerance`` mm of the other one.

    Nikolov et al., arXiv:1809.04430. A paper usually means ``"surfel"`` (by area; TotalSegmentator, the Decathlon);
    ``"monai"`` counts surface voxels (MONAI's default, and Seidlitz et al., arXiv:2111.05408). Arguments as :func:`hd95`.

    Args:
        pred: ``(*spatial)`` mask.
        ref: ``(*spatial)`` mask.
        spacing: Size of a voxel in mm along each axis; ``None`` is 1 mm.
        tolerance: Accepted deviation in mm.
        method: ``"surfel"`` or ``"monai"``.
    """
    return SurfaceDistances(pred, ref, spacing).nsd(tolerance=tolerance, method=method)


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Return the slices of the smallest box around the foreground; empty slices when there is none.

    Args:
        mask: ``(*spatial)`` bool.
    """
    ends: list[slice] = []
    while mask.ndim:
        on = np.flatnonzero(mask.reshape(mask.shape[0], -1).any(axis=1))
        ends.append(slice(int(on[0]), int(on[-1]) + 1) if on.size else slice(0, 0))
        mask = np.logical_or.reduce(mask[ends[-1]], axis=0)
    return tuple(ends)


def _spacing(spacing: Sequence[float] | float | None, dims: int) -> tuple[float, ...]:
    sizes = np.ones(dims) if spacing is None else np.asarray(spacing, dtype=np.float64)
    sizes = np.full(dims, sizes) if sizes.ndim == 0 else sizes
    if sizes.shape != (dims,) or not np.all(np.isfinite(sizes) & (sizes > 0)):
        raise InputError(f"the spacing of a {dims}-D mask is {dims} lengths in mm above zero, got {spacing}")
    return tuple(sizes.tolist())


def _quantile_float32(values: NDArray[np.float64], q: float) -> np.float32:
    """Interpolate linearly in float32, rank included, so that the result is torch.quantile's (nan for infinite distances)."""
    if not values.size:
        return np.float32(np.nan)
    rank = np.float32(q) * np.float32(values.size - 1)
    below, above = int(rank), int(np.ceil(rank))
    ends = np.partition(values.astype(np.float32), (below, above))[[below, above]]
    if not np.isfinite(ends).all():
        return np.float32(np.nan)
    weight = rank - np.float32(below)
    step = ends[1] - ends[0]
    return ends[0] + weight * step if weight < 0.5 else ends[1] - step * (np.float32(1) - weight)


def _weighted_percentile(values: NDArray[np.float64], measure: NDArray[np.float64], percentile: float) -> float:
    """Return the smallest distance that covers ``percentile`` of the surface; inf without a surface, as DeepMind's."""
    if not values.size:
        return float("inf")
    order = np.lexsort((measure, values))
    share = np.cumsum(measure[order]) / measure[order].sum()
    return float(values[order[min(int(np.searchsorted(share, percentile / 100)), values.size - 1)]])
