"""How good tags are: accuracy by fold, average precision, area under the curve and d'."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cnnkit.engine.files import write_rows
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import rankdata

Floats = NDArray[np.floating[Any]]


def average_precision(scores: Floats, truth: NDArray[Any]) -> float:
    """Return the area under the precision-recall steps, ``sum (R_n - R_(n-1)) P_n``; NaN without a positive.

    Args:
        scores: ``(N,)``; equal scores are one threshold, so that the order of ties does not matter.
        truth: ``(N,)``, 1 for positives.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order] > 0)
    if not hits.size or not hits[-1]:
        return float("nan")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # The last of each group of equal scores.
    return float(np.sum(np.diff(hits[last], prepend=0) / hits[-1] * hits[last] / (last + 1)))


def area_under_roc(scores: Floats, truth: NDArray[Any]) -> float:
    """Return the probability that a positive scores above a negative, ties counting half; NaN without either."""
    positive = truth > 0
    count = int(positive.sum())
    others = positive.size - count
    if not count or not others:
        return float("nan")
    return float((rankdata(scores)[positive].sum() - count * (count + 1) / 2) / (count * others))


def d_prime(auc: float) -> float:
    """Return the distance of two unit normal distributions with this area under the curve: ``sqrt(2) ppf(auc)``."""
    return float(np.sqrt(2) * ndtri(auc))


class TagMetric:
    """Collects confidences of clips against their labels.

    Args:
        labels: Names of the ``C`` labels.
        multilabel: Whether several may hold; then there is no accuracy.
    """

    def __init__(self, labels: Sequence[str], *, multilabel: bool) -> None:
        self.labels, self.multilabel = tuple(labels), multilabel
        self.scores: list[Floats] = []
        self.truth: list[Floats] = []
        self.folds: list[int] = []

    def update(self, predictions: Sequence[Any], batch: Any) -> None:
        """Take in one prediction per clip, with ``scores`` ``(windows, C)``: its mean counts."""
        truth = np.asarray(batch["target"].cpu())
        folds = batch.get("fold", [0] * len(predictions))
        for prediction, target, fold in zip(predictions, truth, folds, strict=True):
            self.scores.append(prediction.scores.mean(axis=0))
            self.truth.append(target)
            self.folds.append(int(fold))

    def merge(self, other: TagMetric) -> None:
        """Take in the clips of another process."""
        self.scores += other.scores
        self.truth += other.truth
        self.folds += other.folds

    def compute(self) -> dict[str, float]:
        """Return ``accuracy`` (single labels), ``map``, ``mauc`` and ``d_prime``: means over the labels that occur."""
        scores, truth = np.stack(self.scores), np.stack(self.truth)
        curves = np.array([self._label(scores[:, c], truth[:, c]) for c in range(len(self.labels))])
        precision, auc = (float(np.nanmean(column)) if np.isfinite(column).any() else float("nan") for column in curves.T)
        figures = {"map": precision, "mauc": auc, "d_prime": d_prime(auc)}
        if self.multilabel:
            return figures
        right = scores.argmax(1) == truth.argmax(1)
        by_fold = {fold: float(right[np.array(self.folds) == fold].mean()) for fold in sorted(set(self.folds))}
        folds = {f"fold_{fold}/accuracy": value for fold, value in by_fold.items()} if len(by_fold) > 1 else {}
        return {"accuracy": float(right.mean()), **figures, **folds}

    @staticmethod
    def _label(scores: Floats, truth: Floats) -> tuple[float, float]:
        return average_precision(scores, truth), area_under_roc(scores, truth)

    def report(self, folder: Path) -> list[Path]:
        """Write ``labels.csv`` with the figures of each label, and for single labels ``confusion.csv`` (rows are the truth)."""
        scores, truth = np.stack(self.scores), np.stack(self.truth)
        rows: list[tuple[Any, ...]] = [("label", "clips", "average_precision", "auc")]
        for c, label in enumerate(self.labels):
            precision, auc = self._label(scores[:, c], truth[:, c])
            rows.append((label, int((truth[:, c] > 0).sum()), f"{precision:.4f}", f"{auc:.4f}"))
        files = [write_rows(folder / "labels.csv", rows)]
        if not self.multilabel:
            counts = np.zeros((len(self.labels),) * 2, int)
            np.add.at(counts, (truth.argmax(1), scores.argmax(1)), 1)
            table = [("", *self.labels), *((label, *map(int, row)) for label, row in zip(self.labels, counts, strict=True))]
            files.append(write_rows(folder / "confusion.csv", table))
        return files
