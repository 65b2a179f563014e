"""How often a classifier is right: over all, class by class, size by size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cnnkit.engine.files import write_rows


class ClassMetric:
    """Collects probabilities against the truth.

    Args:
        labels: Names of the ``C`` classes.
        size: The side at which the network was trained; ``accuracy`` is measured on it, unless nothing was shown at it.
    """

    def __init__(self, labels: Sequence[str], size: int) -> None:
        self.labels, self.size = tuple(labels), size
        self.counts: dict[int, np.ndarray] = {}
        self.log_loss: dict[int, float] = {}

    def update(self, predictions: Sequence[Any], batch: Any) -> None:
        """Take in one prediction per sample, with ``probabilities`` ``(C,)``; the batch has ``target (B,)`` and the ``size`` shown."""
        size, truth = int(batch["size"]), np.asarray(batch["target"].cpu())
        counts = self.counts.setdefault(size, np.zeros((len(self.labels),) * 2, int))
        for prediction, target in zip(predictions, truth, strict=True):
            counts[target, int(np.argmax(prediction.probabilities))] += 1
            surprise = -float(np.log(max(prediction.probabilities[target], 1e-12)))
            self.log_loss[size] = self.log_loss.get(size, 0.0) + surprise

    def merge(self, other: ClassMetric) -> None:
        """Take in the samples of another process."""
        for size, counts in other.counts.items():
            self.counts[size] = self.counts.get(size, 0) + counts
            self.log_loss[size] = self.log_loss.get(size, 0.0) + other.log_loss[size]

    def _own(self) -> int:
        return self.size if self.size in self.counts else min(self.counts)

    def compute(self) -> dict[str, float]:
        """Return ``accuracy``, ``balanced_accuracy`` (mean over the classes that occur) and ``log_loss`` at the size of the training.

        With other sizes also ``size_N/accuracy`` of each, and ``sizes/accuracy``, their mean.
        """
        own = self._own()
        counts = self.counts[own]
        figures = {
            "accuracy": _accuracy(counts),
            "balanced_accuracy": float(np.nanmean(_recalls(counts))),
            "log_loss": self.log_loss[own] / counts.sum(),
        }
        if len(self.counts) > 1:
            each = {size: _accuracy(self.counts[size]) for size in sorted(self.counts)}
            figures |= {f"size_{size}/accuracy": accuracy for size, accuracy in each.items()}
            figures["sizes/accuracy"] = float(np.mean(list(each.values())))
        return figures

    def report(self, folder: Path) -> list[Path]:
        """Write ``labels.csv`` with the figures of each class, and ``confusion.csv`` (rows are the truth), at the size of the training."""
        counts = self.counts[self._own()]
        rows: list[Sequence[object]] = [("label", "samples", "recall", "precision")]
        for label, samples, recall, precision in zip(self.labels, counts.sum(1), _recalls(counts), _recalls(counts.T), strict=True):
            rows.append((label, int(samples), f"{recall:.4f}", f"{precision:.4f}"))
        table = [("", *self.labels), *((label, *map(int, row)) for label, row in zip(self.labels, counts, strict=True))]
        return [write_rows(folder / "labels.csv", rows), write_rows(folder / "confusion.csv", table)]


def _accuracy(counts: np.ndarray) -> float:
    return float(np.trace(counts) / counts.sum())


def _recalls(counts: np.ndarray) -> np.ndarray:
    """Return the share of each row on the diagonal, NaN for empty rows."""
    total = counts.sum(1)
    return np.divide(np.diag(counts), total, out=np.full(len(counts), np.nan), where=total > 0)
