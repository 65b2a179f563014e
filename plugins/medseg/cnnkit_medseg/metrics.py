"""Scores of label volumes against references: Dice and IoU by nnU-Net's conventions, surface distances in mm.

Dice and IoU are nan for a class that is in neither volume, and means skip nan (nnU-Net's convention, so that numbers compare
with its ``summary.json``). Surface measures follow the reference that their name states, see :mod:`cnnkit_medseg.surface`:
where only one of the two volumes has the class, MONAI's HD95 is nan and ASSD is inf, while Dice and NSD are 0. Read a mean
HD95 beside the Dice for that reason. numpy only at import.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from cnnkit.errors import InputError, UsageError, unknown
from numpy.typing import NDArray

from cnnkit_medseg.surface import METHODS, Method, SurfaceDistances

Surface = Literal["hd95", "assd", "nsd"]
SURFACES: tuple[Surface, ...] = ("hd95", "assd", "nsd")
Region = int | tuple[int, ...]

_CHUNK = 1 << 20  # voxels that are widened to machine integers at once
_TABLE = 1 << 16  # widest range of labels that is translated through a table


def confusion(pred: NDArray[Any], ref: NDArray[Any], label_ids: Sequence[int], ignore: int | None = None) -> NDArray[np.int64]:
    """Count voxels by predicted and reference label, for all labels in one pass.

    Args:
        pred: ``(*spatial)`` labels: integers, bool, or floats without a fraction.
        ref: ``(*spatial)`` labels of the same shape.
        label_ids: The ``K`` labels to tell apart; all others are counted together as number 0.
        ignore: Voxels whose *reference* has this label are left out.

    Returns:
        ``(K + 1, K + 1)`` counts; the row is the prediction, the column the reference, ``label_ids[n]`` is number ``n + 1``.

    Raises:
        InputError: The shapes differ, or the values are not labels.
    """
    pred, ref = as_labels(pred, "prediction"), as_labels(ref, "reference")
    if pred.shape != ref.shape:
        raise InputError(f"the prediction has shape {pred.shape}, the reference {ref.shape}; they must lie on the same grid")
    width = len(label_ids) + 1
    rows, columns = pred.reshape(-1), ref.reshape(-1)
    row_number, column_number = _numbering(rows, label_ids, None), _numbering(columns, label_ids, ignore)
    counts = np.zeros(width * (width + 1), dtype=np.int64)
    for start in range(0, rows.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        counts += np.bincount(row_number(rows[part]) * (width + 1) + column_number(columns[part]), minlength=counts.size)
    return counts.reshape(width, width + 1)[:, :width]  # the last column are the ignored voxels


def as_labels(array: NDArray[Any], what: str) -> NDArray[Any]:
    """Return an array of integers for labels of any number type.

    Raises:
        InputError: A value has a fraction, or is not finite; the message starts with ``what``.
    """
    array = np.asarray(array)
    if array.dtype == bool:
        return array.view(np.uint8)
    if array.dtype.kind in "iu":
        return array
    if array.dtype.kind == "f" and np.isfinite(array).all() and (np.rint(array) == array).all():
        return array.astype(np.int64)
    raise InputError(f"the {what} holds {array.dtype} values that are no labels; labels are whole numbers (are these probabilities?)")


def _numbering(labels: NDArray[Any], label_ids: Sequence[int], ignore: int | None) -> Any:
    """Return the function from labels to their numbers in :func:`confusion`; the ignored label gets the number after the last."""
    numbers = {label: n for n, label in enumerate(label_ids, start=1)}
    if ignore is not None:
        numbers[ignore] = len(label_ids) + 1
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if high - low < _TABLE:
        table = np.zeros(high - low + 1, dtype=np.intp)
        for label, number in numbers.items():
            if low <= label <= high:
                table[label - low] = number
        return lambda part: table.take(part if low == 0 else part.astype(np.int64) - low)
    known = np.array(sorted(numbers))
    targets = np.array([numbers[label] for label in known.tolist()], dtype=np.intp)

    def search(part: NDArray[Any]) -> NDArray[np.intp]:
        place = np.minimum(np.searchsorted(known, part), known.size - 1)
        return np.where(known[place] == part, targets[place], 0)

    return search


def overlap(counts: NDArray[np.int64], members: Sequence[int]) -> dict[str, float]:
    """Return nnU-Net's eight figures of one class, or of a region of several labels.

    Args:
        counts: What :func:`confusion` returned.
        members: Numbers of the labels in ``counts`` (1 for the first of ``label_ids``).
    """
    inside = np.zeros(counts.shape[0], dtype=bool)
    inside[list(members)] = True
    tp, fp = int(counts[np.ix_(inside, inside)].sum()), int(counts[np.ix_(inside, ~inside)].sum())
    fn, tn = int(counts[np.ix_(~inside, inside)].sum()), int(counts[np.ix_(~inside, ~inside)].sum())
    present = tp + fp + fn > 0
    return {
        "Dice": 2 * tp / (2 * tp + fp + fn) if present else float("nan"),
        "IoU": tp / (tp + fp + fn) if present else float("nan"),
        **{"FN": fn, "FP": fp, "TN": tn, "TP": tp, "n_pred": tp + fp, "n_ref": tp + fn},
    }


@dataclass(frozen=True)
class Case:
    """The figures of one case: ``metrics[class name][figure]``, and the files that they are about."""

    case: str
    metrics: dict[str, dict[str, float]]
    prediction_file: str = ""
    reference_file: str = ""


class SegmentationMetric:
    """Collects the scores of cases; writes nnU-Net's ``summary.json``.

    Args:
        labels: Class names with their label, or the labels of a region: ``{"whole_tumour": (1, 2, 3), "core": (2, 3)}``.
            A class of label 0 is scored, but is not part of the foreground means.
        ignore_label: Voxels whose reference has this label are left out of everything; for surfaces they are background in
            both masks.
        surface: Which surface measures to compute, of ``"hd95"``, ``"assd"``, ``"nsd"``; empty for the fast scores only.
        hd95_method: ``"monai"``, ``"medpy"`` or ``"surfel"``, see :mod:`cnnkit_medseg.surface`; ASSD is computed on the same surface.
        nsd_method: ``"surfel"`` or ``"monai"``.
        nsd_tolerance_mm: Accepted deviation of the NSD.

    Raises:
        UsageError: An unknown measure or method, or no labels.
    """

    def __init__(
        self,
        labels: Mapping[str, int | Sequence[int]],
        *,
        ignore_label: int | None = None,
        surface: Sequence[Surface] = SURFACES,
        hd95_method: Method = "monai",
        nsd_method: Literal["surfel", "monai"] = "surfel",
        nsd_tolerance_mm: float = 1.0,
    ) -> None:
        if not labels:
            raise UsageError("no labels to score; give class names with their label, for example {'liver': 1}")
        for name, known in (*((s, SURFACES) for s in surface), (hd95_method, METHODS), (nsd_method, ("surfel", "monai"))):
            if name not in known:
                raise UsageError(unknown("surface measure" if known is SURFACES else "method of surface distance", name, known))
        self.labels: dict[str, Region] = {
            name: int(label) if np.isscalar(label) else tuple(int(member) for member in label)  # type: ignore[arg-type, union-attr]
            for name, label in labels.items()
        }
        self.ignore_label, self.surface = ignore_label, tuple(surface)
        self.hd95_method, self.nsd_method, self.nsd_tolerance_mm = hd95_method, nsd_method, float(nsd_tolerance_mm)
        self.label_ids = sorted({label for region in self.labels.values() for label in _members(region)})
        if ignore_label in self.label_ids:
            raise UsageError(f"label {ignore_label} is to be ignored, and is also one of the labels to score: {dict(labels)}")
        self.cases: dict[str, Case] = {}

    @property
    def figures(self) -> list[str]:
        """Names of all figures in the order of the report: nnU-Net's eight, then the surface measures, lengths in mm."""
        variant = "_surfel" if self.hd95_method == "surfel" else ""
        counting = "" if self.nsd_method == "surfel" else "_monai"
        names = {"hd95": f"HD95_{self.hd95_method}", "assd": f"ASSD{variant}", "nsd": f"NSD{counting}_{self.nsd_tolerance_mm:g}mm"}
        return ["Dice", "IoU", "FN", "FP", "TN", "TP", "n_pred", "n_ref", *(names[s] for s in SURFACES if s in self.surface)]

    def update(
        self,
        prediction: NDArray[Any],
        reference: NDArray[Any],
        *,
        spacing: Sequence[float] | float | None = None,
        case: str,
        prediction_file: str = "",
        reference_file: str = "",
    ) -> dict[str, dict[str, float]]:
        """Score one case and return its figures by class.

        Args:
            prediction: ``(*spatial)`` labels.
            reference: ``(*spatial)`` labels of the same shape.
            spacing: Size of a voxel in mm along each axis; ``None`` is 1 mm.
            case: Name of the case.
            prediction_file: Shown in the report.
            reference_file: Shown in the report.

        Raises:
            InputError: The volumes do not fit each other, or hold no labels; the message names the case.
            UsageError: The case was scored before.
        """
        if case in self.cases:
            raise UsageError(f"case {case!r} was scored before; give every case a name of its own, or start with a new metric")
        try:
            prediction, reference = as_labels(prediction, "prediction"), as_labels(reference, "reference")
            counts = confusion(prediction, reference, self.label_ids, self.ignore_label)
            metrics = {}
            for name, region in self.labels.items():
                members = [self.label_ids.index(label) + 1 for label in _members(region)]
                metrics[name] = overlap(counts, members) | self._surface(prediction, reference, region, spacing)
        except InputError as error:
            raise InputError(f"case {case}: {error}") from error
        self.cases[case] = Case(case, metrics, prediction_file, reference_file)
        return metrics

    def _surface(
        self, prediction: NDArray[Any], reference: NDArray[Any], region: Region, spacing: Sequence[float] | float | None
    ) -> dict[str, float]:
        if not self.surface:
            return {}
        pred, ref = _mask(prediction, region), _mask(reference, region)
        if self.ignore_label is not None:
            kept = reference != self.ignore_label
            pred, ref = pred & kept, ref & kept
        both = SurfaceDistances(pred, ref, spacing)
        nothing = both.pred_empty and both.ref_empty
        compute = {
            "hd95": lambda: both.hd95(method=self.hd95_method),
            "assd": lambda: both.assd(method=self.hd95_method),
            "nsd": lambda: both.nsd(tolerance=self.nsd_tolerance_mm, method=self.nsd_method),
        }
        wanted = [measure for measure in SURFACES if measure in self.surface]
        return {name: float("nan") if nothing else compute[s]() for name, s in zip(self.figures[8:], wanted, strict=True)}

    def merge(self, other: SegmentationMetric) -> None:
        """Take in the cases of another instance; a case that both hold (padding of a distributed sampler) counts once.

        Raises:
            UsageError: The other instance scores other labels or measures.
        """
        if (self.labels, self.figures, self.ignore_label) != (other.labels, other.figures, other.ignore_label):
            raise UsageError("metrics can be merged only if they score the same labels with the same measures")
        self.cases = other.cases | self.cases

    def means(self) -> dict[str, dict[str, float]]:
        """Return the mean over cases of every figure by class; nan is skipped."""
        rows = self.cases.values()
        return {name: {f: _nanmean([row.metrics[name][f] for row in rows]) for f in self.figures} for name in self.labels}

    def compute(self) -> dict[str, float]:
        """Return ``dice``, ``iou`` and the surface measures: each by class (``dice/liver``) and as the mean of the foreground classes.

        Lengths are in mm. The mean over classes skips classes that were in no case.
        """
        means, result = self.means(), {}
        for figure in (f for f in self.figures if f in ("Dice", "IoU") or f not in self.figures[:8]):
            foreground = [means[name][figure] for name, region in self.labels.items() if region != 0]
            result[figure.lower()] = _nanmean(foreground)
            result |= {f"{figure.lower()}/{name}": means[name][figure] for name in self.labels}
        return result

    def summary(self) -> dict[str, Any]:
        """Return the content of nnU-Net's ``summary.json``: ``metric_per_case``, ``mean`` and ``foreground_mean``.

        Classes are named by their label, regions as ``"(1, 2)"``. As in nnU-Net the foreground mean is nan when a class was in no
        case; :meth:`compute` skips such a class.
        """
        keys = {name: str(region) for name, region in self.labels.items()}
        means = self.means()
        foreground = [name for name, region in self.labels.items() if region != 0]
        return {
            "metric_per_case": [
                {
                    "metrics": {keys[name]: row.metrics[name] for name in self.labels},
                    "prediction_file": row.prediction_file,
                    "reference_file": row.reference_file,
                }
                for _, row in sorted(self.cases.items())
            ],
            "mean": {keys[name]: means[name] for name in self.labels},
            "foreground_mean": {f: float(np.mean([means[n][f] for n in foreground])) if foreground else float("nan") for f in self.figures},
        }

    def report(self, folder: Path | str) -> list[Path]:
        """Write ``summary.json`` into ``folder``, atomically, and return its path in a list.

        Undefined values read ``NaN`` and infinite ones ``Infinity``, as Python's json reads and writes them.
        """
        from cnnkit.engine.files import write_text

        return [write_text(Path(folder) / "summary.json", json.dumps(self.summary(), indent=4, sort_keys=True) + "\n")]


@dataclass
class FolderScores:
    """What :func:`score_folders` found: the metric, the files that it wrote, and one error per case that could not be scored."""

    metric: SegmentationMetric
    files: list[Path] = field(default_factory=list)
    errors: dict[str, InputError] = field(default_factory=dict)


def score_folders(
    predictions: Path | str,
    references: Path | str,
    labels: Mapping[str, int | Sequence[int]],
    *,
    out: Path | str | None = None,
    ignore_label: int | None = None,
    surface: Sequence[Surface] = SURFACES,
    hd95_method: Method = "monai",
    nsd_method: Literal["surfel", "monai"] = "surfel",
    nsd_tolerance_mm: float = 1.0,
    progress: bool = True,
) -> FolderScores:
    """Score the label files of one folder against the files of the same case names in another.

    A case that cannot be scored (a missing or damaged file, another shape, another place in space) becomes an
    :class:`~cnnkit.errors.InputError` in ``errors``, and the others go on.

    Args:
        predictions: Folder of label files.
        references: Folder of label files.
        labels: As for :class:`SegmentationMetric`, like the arguments not listed here.
        out: Folder for ``summary.json``; ``None`` writes nothing.
        ignore_label: Label of the references that is left out.
        surface: Which surface measures to compute.
        hd95_method: Variant of HD95 and ASSD.
        nsd_method: Variant of NSD.
        nsd_tolerance_mm: Tolerance of NSD.
        progress: Show progress on standard error.

    Raises:
        InputError: A folder is missing or holds no label files.
    """
    from rich.console import Console
    from rich.progress import track

    metric = SegmentationMetric(
        labels,
        ignore_label=ignore_label,
        surface=surface,
        hd95_method=hd95_method,
        nsd_method=nsd_method,
        nsd_tolerance_mm=nsd_tolerance_mm,
    )
    found, expected = _label_files(Path(predictions)), _label_files(Path(references))
    scores = FolderScores(metric)
    for case in track(sorted(found | expected), "score", console=Console(stderr=True), disable=not progress):
        try:
            if case not in found:
                raise InputError(f"case {case}: no prediction in {predictions} for the reference {expected[case]}")
            if case not in expected:
                raise InputError(f"case {case}: no reference in {references} for the prediction {found[case]}")
            _score_files(metric, case, found[case], expected[case])
        except InputError as error:
            scores.errors[case] = error
    if out is not None:
        scores.files = metric.report(out)
    return scores


def _score_files(metric: SegmentationMetric, case: str, prediction: Path, reference: Path) -> None:
    from cnnkit_medseg.io import read_labels

    pred, _, pred_affine = read_labels(prediction)
    ref, spacing, ref_affine = read_labels(reference)
    if pred.shape != ref.shape:
        raise InputError(f"case {case}: {prediction} has shape {pred.shape}, but {reference} has {ref.shape}; resample one to the other")
    corners = np.array([[*corner, 1] for corner in np.ndindex(*(2,) * pred.ndim)]) * [*(n - 1 for n in pred.shape), 1]
    apart = float(np.abs(corners @ (np.asarray(pred_affine) - np.asarray(ref_affine)).T).max())
    if apart > 0.1 * min(spacing):
        raise InputError(
            f"case {case}: {prediction} and {reference} lie up to {apart:.3g} mm apart in space (their affines differ); "
            "write the prediction on the grid of the image that the reference belongs to"
        )
    metric.update(pred, ref, spacing=spacing, case=case, prediction_file=str(prediction), reference_file=str(reference))


def _label_files(folder: Path) -> dict[str, Path]:
    from cnnkit_medseg.cases import SUFFIXES, split_suffix

    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give a folder of label files ({' '.join(SUFFIXES)})")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        case, suffix = split_suffix(path)
        if path.is_file() and suffix and not path.name.startswith("."):
            files.setdefault(case, path)
    if not files:
        raise InputError(f"{folder}: no label files; accepted are {' '.join(SUFFIXES)}")
    return files


def _members(region: Region) -> tuple[int, ...]:
    return region if isinstance(region, tuple) else (region,)


def _mask(labels: NDArray[Any], region: Region) -> NDArray[np.bool_]:
    first, *others = _members(region)
    mask = labels == first
    for label in others:
        mask |= labels == label
    return mask


def _nanmean(values: Sequence[float]) -> float:
    kept = [value for value in values if not math.isnan(value)]
    return math.fsum(kept) / len(kept) if kept else float("nan")  # fsum: the order in which processes merge changes nothing
