"""Volume and intensity of every class, in one pass over the labelled voxels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cnnkit.engine.files import write_json
from cnnkit.errors import InputError
from numpy.typing import NDArray

from cnnkit_medseg.geometry import spacing_of

_SLAB = 16  # Slices that are counted at once: index arrays stay this small.


def count_labels(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Return how many voxels of ``labels`` ``(X, Y, Z)`` have each value from 0 to the largest."""
    counts = np.zeros(int(labels.max(initial=0)) + 1, np.int64)
    for start in range(0, len(labels), _SLAB):
        counts += np.bincount(labels[start : start + _SLAB].ravel(), minlength=len(counts))
    return counts


def statistics(
    array: NDArray[Any],
    labels: NDArray[Any],
    names: Mapping[int, str],
    *,
    spacing: Sequence[float] | None = None,
    affine: NDArray[Any] | None = None,
) -> dict[str, Any]:
    """Measure every class of a segmentation.

    Args:
        array: ``(C, X, Y, Z)`` intensities.
        labels: ``(X, Y, Z)`` integers; 0 is background and not measured.
        names: Names of the labels; a label without a name is called ``label_N``. A named label that is absent has 0 voxels.
        spacing: Voxel size in mm along X, Y, Z; not needed if ``affine`` is given.
        affine: From voxel indices to mm in RAS, ``(4, 4)``; adds the bounding box and centre of mass in mm.

    Returns:
        ``voxel_volume_ml``, ``spacing_mm``, and ``classes``: by name the label, ``voxels``, ``volume_ml``, ``mean`` and ``std``
        (of the population) per channel, ``bounding_box`` as first and last voxel, ``centre`` in voxels, and with an affine
        ``bounding_box_mm`` (of the outer voxel faces, in RAS) and ``centre_mm``. Plain JSON data.

    Raises:
        InputError: If the shapes do not match, or neither spacing nor affine is given.
    """
    if array.ndim != 4 or array.shape[1:] != labels.shape:
        raise InputError(f"intensities (C, X, Y, Z) and labels (X, Y, Z) must have one shape, not {array.shape} and {labels.shape}")
    if affine is not None:
        spacing, millilitres = spacing_of(affine), abs(float(np.linalg.det(np.asarray(affine, np.float64)[:3, :3]))) / 1000
    elif spacing is not None:
        millilitres = float(np.prod(np.asarray(spacing, np.float64))) / 1000
    else:
        raise InputError("statistics need the spacing or the affine of the volume")
    moments = _Moments(array, labels)
    known = {label: name for label, name in names.items() if label != 0}
    known |= {int(label): f"label_{label}" for label in np.flatnonzero(moments.counts) if label != 0 and label not in known}
    classes = {name: moments.of(label, millilitres, affine) for label, name in sorted(known.items())}
    return {"voxel_volume_ml": millilitres, "spacing_mm": [float(size) for size in spacing], "classes": classes}


def write_statistics(
    path: Path | str,
    array: NDArray[Any],
    labels: NDArray[Any],
    names: Mapping[int, str],
    *,
    spacing: Sequence[float] | None = None,
    affine: NDArray[Any] | None = None,
) -> Path:
    """Write :func:`statistics` as JSON, atomically, and return the path."""
    return write_json(path, statistics(array, labels, names, spacing=spacing, affine=affine))


class _Moments:
    """Counts, intensity sums and extents by label, gathered slab by slab."""

    def __init__(self, array: NDArray[Any], labels: NDArray[Any]) -> None:
        self.counts = count_labels(labels)
        size = len(self.counts)
        # Sums about the middle of the intensities: the variance of values far from zero would lose its digits.
        self.pivots = [float(channel[::8, ::8, ::8].mean(dtype=np.float64)) for channel in array]
        self.sums, self.squares = np.zeros((2, len(array), size))
        self.profiles = [np.zeros((size, length), np.int64) for length in labels.shape]
        for start in range(0, len(labels), _SLAB):
            self._add(array[:, start : start + _SLAB], labels[start : start + _SLAB], start)

    def _add(self, array: NDArray[Any], labels: NDArray[Any], start: int) -> None:
        where = np.nonzero(labels)
        label = labels[where].astype(np.intp)
        for axis, (profile, index) in enumerate(zip(self.profiles, where, strict=True)):
            length = profile.shape[1]
            key = label * length + index + (start if axis == 0 else 0)
            profile += np.bincount(key, minlength=profile.size).reshape(profile.shape)
        for channel, values in enumerate(array):
            shifted = values[where].astype(np.float64) - self.pivots[channel]
            self.sums[channel] += np.bincount(label, shifted, minlength=len(self.counts))
            self.squares[channel] += np.bincount(label, shifted * shifted, minlength=len(self.counts))

    def of(self, label: int, millilitres: float, affine: NDArray[Any] | None) -> dict[str, Any]:
        """Return the figures of one label."""
        count = int(self.counts[label]) if label < len(self.counts) else 0
        row: dict[str, Any] = {"label": int(label), "voxels": count, "volume_ml": count * millilitres}
        if count == 0:
            return row | {"mean": None, "std": None, "bounding_box": None, "centre": None}
        mean = self.sums[:, label] / count
        variance = np.maximum(self.squares[:, label] / count - mean**2, 0)
        row["mean"] = [float(value + pivot) for value, pivot in zip(mean, self.pivots, strict=True)]
        row["std"] = np.sqrt(variance).tolist()
        profiles = [profile[label] for profile in self.profiles]
        low, high = np.array([np.flatnonzero(profile)[[0, -1]] for profile in profiles]).T
        centre = np.array([profile @ np.arange(len(profile)) / count for profile in profiles])
        row["bounding_box"], row["centre"] = [low.tolist(), high.tolist()], centre.tolist()
        if affine is not None:
            matrix = np.asarray(affine, np.float64)
            corners = np.array([np.where(bits, high + 0.5, low - 0.5) for bits in np.ndindex(2, 2, 2)]) @ matrix[:3, :3].T + matrix[:3, 3]
            row["bounding_box_mm"] = [corners.min(axis=0).tolist(), corners.max(axis=0).tolist()]
            row["centre_mm"] = (matrix[:3, :3] @ centre + matrix[:3, 3]).tolist()
        return row
