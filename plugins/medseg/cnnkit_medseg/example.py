"""The built-in example: grey and white matter of the MNI152 template, with ways to spoil it and the thresholds to beat.

The ICBM 152 non-linear symmetric template, version 2009a (Fonov et al., "Unbiased average age-appropriate atlases for pediatric
studies", NeuroImage 54, 2011), is the average of 152 T1-weighted scans with maps of the tissues' probabilities. nilearn ships it:
head removed, 1 mm voxels, intensities 0 to 255, probabilities as uint8 that count 255ths. The reference is the most probable of
grey matter, white matter and the rest (cerebrospinal fluid and air, whose probability is what is left).

Left and right are mirror images, so a split between them would hold nothing out. The brain is cut from front to back instead: what
lies behind :data:`TRAIN_BEHIND_MM` is for training, what lies before :data:`HELDOUT_FROM_MM` is held out. The 22 mm between are the
largest distance from which the shipped network's convolutions reach a voxel.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from cnnkit.errors import InputError, unknown
from numpy.random import Generator
from numpy.typing import NDArray

from cnnkit_medseg.geometry import Grid
from cnnkit_medseg.io import Volume, read_volume

LABELS = {"background": 0, "grey_matter": 1, "white_matter": 2}
"""Label values of the reference; the background is cerebrospinal fluid and whatever lies outside of the brain."""

TRAIN_BEHIND_MM = -12.0
"""Coronal planes with an MNI coordinate y below this are for training."""

HELDOUT_FROM_MM = 10.0
"""Coronal planes with an MNI coordinate y of this or more are held out."""

CORRUPTIONS = ("bias", "noise", "gamma0.7", "gamma1.5", "slices2mm")
"""Names that :func:`corrupt` knows."""

_FILE = "datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
_BIAS = 0.4
_NOISE = 0.05
_LEVELS = 256  # Intensities are histogrammed in 256 steps from zero to the largest.

Box = tuple[slice, slice, slice]
Thresholds = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Example:
    """A volume with its reference.

    Args:
        volume: The image, ``(1, X, Y, Z)``.
        probabilities: Of background, grey and white matter, ``(3, X, Y, Z)`` float32.
    """

    volume: Volume
    probabilities: NDArray[np.float32]

    @cached_property
    def labels(self) -> NDArray[np.uint8]:
        """The most probable label of every voxel, ``(X, Y, Z)``."""
        return self.probabilities.argmax(axis=0).astype(np.uint8)

    def cut(self, box: Box) -> Example:
        """Return a part as a volume of its own, at its place in the world."""
        array = np.ascontiguousarray(self.volume.array[(slice(None), *box)])
        affine = self.volume.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [part.indices(size)[0] for part, size in zip(box, self.labels.shape, strict=True)]
        return Example(_on_grid(self.volume, array, affine), np.ascontiguousarray(self.probabilities[(slice(None), *box)]))


def example_volume() -> Example:
    """Read the template and its tissue maps from nilearn's files, without importing nilearn.

    Raises:
        InputError: If nilearn is not installed or its files are elsewhere.
    """
    t1, grey, white = (read_volume([_template_file(kind)], name="mni152") for kind in ("t1", "gm", "wm"))
    tissues = np.concatenate([grey.array, white.array]) / np.float32(255)
    rest = np.clip(1 - tissues.sum(axis=0, keepdims=True), 0, 1)
    return Example(t1, np.concatenate([rest, tissues]))


def training_part(volume: Volume) -> Box:
    """Return where the training part lies in a volume in MNI space (axes along the world's)."""
    return (slice(None), slice(0, _plane(volume, TRAIN_BEHIND_MM)), slice(None))


def heldout_part(volume: Volume) -> Box:
    """Return where the held-out part lies in a volume in MNI space (axes along the world's)."""
    return (slice(None), slice(_plane(volume, HELDOUT_FROM_MM), volume.array.shape[2]), slice(None))


def corrupt(name: str, array: NDArray[np.float32], rng: Generator) -> NDArray[np.float32]:
    """Spoil an image ``(X, Y, Z)`` whose background is 0, and return a new one; the background stays 0.

    * ``bias``: times a smooth field that ranges from 0.6 to 1.4 over the brain: a random 3x3x3 grid, interpolated by cubic splines.
    * ``noise``: plus Gaussian noise whose standard deviation is 5 % of the largest intensity, within the brain.
    * ``gamma0.7``, ``gamma1.5``: to the power of 0.7 or 1.5, the largest intensity kept.
    * ``slices2mm``: slices along the last axis averaged in pairs, so that there are half as many; an odd last one is dropped.

    Args:
        name: One of :data:`CORRUPTIONS`.
        array: The image.
        rng: Draws field and noise.

    Raises:
        InputError: If there is no corruption of that name.
    """
    if name == "bias":
        return array * _smooth_field(array > 0, rng)
    if name == "noise":
        noisy = array + rng.normal(0, _NOISE * array.max(), array.shape)
        return np.where(array > 0, np.maximum(noisy, 1), 0).astype(np.float32)  # At least 1: zero means "not brain".
    if name in ("gamma0.7", "gamma1.5"):
        top = array.max()
        return (top * (array / top) ** float(name.removeprefix("gamma"))).astype(np.float32)
    if name == "slices2mm":
        return _mean_of_pairs(array)
    raise InputError(unknown("corruption", name, CORRUPTIONS))


def corrupted(example: Example, name: str, rng: Generator) -> Example:
    """Return the example with its image spoilt by :func:`corrupt`, and for thick slices the reference averaged likewise."""
    array = corrupt(name, example.volume.array[0], rng)[None]
    if name != "slices2mm":
        return Example(replace(example.volume, array=array), example.probabilities)
    affine = example.volume.affine.copy()
    affine[:3, 3] += affine[:3, 2] / 2  # The first thick slice is centred between the first two thin ones.
    affine[:3, 2] *= 2
    return Example(_on_grid(example.volume, array, affine), _mean_of_pairs(example.probabilities))


def dice(predicted: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """Return the Dice coefficient of each tissue, and their ``mean``."""
    scores = {}
    for name, value in LABELS.items():
        if value:
            ours, theirs = predicted == value, labels == value
            scores[name] = 2 * float((ours & theirs).sum()) / float(ours.sum() + theirs.sum())
    return {**scores, "mean": sum(scores.values()) / len(scores)}


def threshold_baseline(array: NDArray[np.floating[Any]], thresholds: Thresholds) -> NDArray[np.uint8]:
    """Segment by two thresholds: grey matter from the first on, white matter from the second on."""
    return np.digitize(array, thresholds).astype(np.uint8)


def fit_thresholds(array: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> Thresholds:
    """Return the two thresholds with the largest mean Dice of grey and white matter, of all pairs of 256 levels.

    Args:
        array: Image, of which the voxels above 0 count.
        labels: Its reference, of the same shape.
    """
    inside = array > 0
    counts = np.stack([_histogram(array[inside & (labels == value)], array.max()) for value in LABELS.values()])
    below = np.pad(counts.cumsum(axis=1), ((0, 0), (1, 0)))  # Voxels per label below each level.
    totals, everything = below[:, -1], below.sum(axis=0)
    first, second = np.arange(_LEVELS)[:, None], np.arange(_LEVELS)[None]
    grey = 2 * (below[1, second] - below[1, first]) / np.maximum(everything[second] - everything[first] + totals[1], 1)
    white = 2 * (totals[2] - below[2, second]) / np.maximum(everything[-1] - everything[second] + totals[2], 1)
    return _best_pair(grey + white, array.max())


def otsu_thresholds(array: NDArray[np.floating[Any]]) -> Thresholds:
    """Return the two thresholds that separate the brightness of three classes best (Otsu, 1979), of all pairs of 256 levels.

    They need no reference, so they can follow a volume whose contrast has changed.

    Args:
        array: Image, of which the voxels above 0 count.
    """
    counts = _histogram(array[array > 0], array.max())
    number = np.pad(counts.cumsum(), (1, 0)).astype(np.float64)
    total = np.pad((counts * np.arange(_LEVELS)).cumsum(), (1, 0)).astype(np.float64)
    first, second = np.arange(_LEVELS)[:, None], np.arange(_LEVELS)[None]

    def between(low: Any, high: Any) -> NDArray[np.float64]:
        # Up to a constant, the variance between classes is the sum of (sum of a class)^2 / (number in it).
        return (total[high] - total[low]) ** 2 / np.maximum(number[high] - number[low], 1)

    return _best_pair(between(0, first) + between(first, second) + between(second, _LEVELS), array.max())


def _template_file(kind: str) -> Path:
    found = importlib.util.find_spec("nilearn")
    if found is None or found.origin is None:
        raise InputError("the example needs the MNI152 template that nilearn ships; type: pip install nilearn")
    file = Path(found.origin).parent / _FILE.format(kind)
    if not file.is_file():
        raise InputError(
            f"{file} is missing; this release of nilearn does not ship the template of 2009: type: pip install 'nilearn>=0.11'"
        )
    return file


def _plane(volume: Volume, millimetres: float) -> int:
    return round((millimetres - float(volume.affine[1, 3])) / float(volume.affine[1, 1]))


def _on_grid(volume: Volume, array: NDArray[np.float32], affine: NDArray[np.float64]) -> Volume:
    """Return a volume on a new grid in RAS order."""
    x, y, z = array.shape[1:]
    grid = Grid((x, y, z), affine, None, volume.grid.source)
    return replace(volume, array=array, spacing=grid.ras_spacing, affine=affine, grid=grid)


def _smooth_field(inside: NDArray[np.bool_], rng: Generator) -> NDArray[np.float32]:
    from scipy.ndimage import zoom

    coarse = rng.standard_normal((3, 3, 3)).astype(np.float32)
    field = zoom(coarse, [size / 3 for size in inside.shape], order=3, mode="nearest")
    low, high = field[inside].min(), field[inside].max()
    return np.where(inside, 1 - _BIAS + 2 * _BIAS * (field - low) / (high - low), 1).astype(np.float32)


def _mean_of_pairs(array: NDArray[np.float32]) -> NDArray[np.float32]:
    pairs = array.shape[-1] // 2
    return array[..., : 2 * pairs].reshape(*array.shape[:-1], pairs, 2).mean(axis=-1)


def _histogram(values: NDArray[np.floating[Any]], top: float) -> NDArray[np.int64]:
    levels = np.rint(values * ((_LEVELS - 1) / top)).astype(np.int64)
    return np.bincount(levels, minlength=_LEVELS)


def _best_pair(score: NDArray[np.float64], top: float) -> Thresholds:
    """Return the intensities half a level below the best pair of levels (first, second) with first < second."""
    allowed = np.triu(np.ones_like(score, dtype=bool), k=1)
    first, second = np.unravel_index(np.where(allowed, score, -np.inf).argmax(), score.shape)
    step = float(top) / (_LEVELS - 1)
    return (float(first) - 0.5) * step, (float(second) - 0.5) * step
