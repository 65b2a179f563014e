"""Error rates of verification: EER, the minimum of the detection cost, and scores normalised by a cohort.

A trial is accepted if its score reaches the threshold. Scores that are equal are accepted or refused together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from cnnkit.errors import InputError


def error_rates(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return misses and false alarms at every threshold that makes a difference.

    Args:
        scores: Of the trials, ``(N,)``.
        targets: Whether both sides are the same speaker, ``(N,)``.

    Returns:
        Shares of targets that are refused and of others that are accepted, and the thresholds: from infinity, where nothing is accepted,
        down to the least score, where everything is.

    Raises:
        InputError: If a score is not finite, or all trials are of one kind.
    """
    scores, targets = np.asarray(scores, dtype=float).ravel(), np.asarray(targets).astype(bool).ravel()
    if scores.shape != targets.shape or not np.isfinite(scores).all():
        raise InputError(f"{scores.size} scores and {targets.size} labels of trials; accepted: as many, and finite numbers")
    if targets.all() or not targets.any():
        raise InputError("error rates need trials of the same speaker and trials of different speakers")
    order = np.argsort(-scores, kind="stable")
    scores, targets = scores[order], targets[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # The last trial of each group of equal scores.
    hits, alarms = np.cumsum(targets)[last], np.cumsum(~targets)[last]
    misses = np.concatenate([[1.0], 1 - hits / hits[-1]])
    return misses, np.concatenate([[0.0], alarms / alarms[-1]]), np.concatenate([[np.inf], scores[last]])


def eer(scores: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Return the equal error rate, and a threshold at which it is reached.

    Between two thresholds the rates are taken to go along a straight line, as in the area under the ROC.

    Raises:
        InputError: As for :func:`error_rates`.
    """
    misses, alarms, thresholds = error_rates(scores, targets)
    gap = misses - alarms  # Falls from 1 to -1.
    after = int(np.argmax(gap <= 0))
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    rate = misses[after - 1] + share * (misses[after] - misses[after - 1])
    low = thresholds[after]
    if share == 1 and after + 1 < len(thresholds):
        return float(rate), float((low + thresholds[after + 1]) / 2)  # Any value down to the next score does the same.
    high = thresholds[after - 1]
    return float(rate), float(low if np.isinf(high) else high + share * (low - high))


def min_dcf(scores: np.ndarray, targets: np.ndarray, *, prior: float = 0.01, miss: float = 1.0, alarm: float = 1.0) -> float:
    """Return the least detection cost over all thresholds, as a share of the cost of always saying the same (NIST, 2016).

    Args:
        scores: Of the trials, ``(N,)``.
        targets: Whether both sides are the same speaker, ``(N,)``.
        prior: Share of targets that is assumed.
        miss: Cost of a miss.
        alarm: Cost of a false alarm.

    Raises:
        InputError: As for :func:`error_rates`.
    """
    misses, alarms, _ = error_rates(scores, targets)
    cost = miss * prior * misses + alarm * (1 - prior) * alarms
    return float(cost.min() / min(miss * prior, alarm * (1 - prior)))


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the cosine of each of ``(N, D)`` with each of ``(M, D)``, ``(N, M)``."""
    return _directions(one) @ _directions(other).T


def _directions(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=float)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def as_norm(scores: np.ndarray, enrol: np.ndarray, test: np.ndarray, *, top: int = 300) -> np.ndarray:
    """Normalise scores by those of the nearest of a cohort (adaptive symmetric normalisation).

    Args:
        scores: Of the trials, ``(N,)``.
        enrol: Scores of each trial's first side with the cohort, ``(N, C)``.
        test: Scores of its second side with the cohort, ``(N, C)``.
        top: How many of the highest count; all if the cohort is smaller.

    Returns:
        The mean of both normalised scores, ``(N,)``.
    """
    parts = []
    for side in (enrol, test):
        nearest = -np.partition(-side, min(top, side.shape[1]) - 1, axis=1)[:, : min(top, side.shape[1])]
        parts.append((scores - nearest.mean(1)) / np.maximum(nearest.std(1), 1e-8))
    return (parts[0] + parts[1]) / 2


class VerificationMetric:
    """The core's metric interface: collects embeddings by name, and scores the trials that batches name.

    Args:
        top: Recordings of the cohort that count in the normalisation.
    """

    def __init__(self, top: int = 300) -> None:
        self.top = top
        self.embeddings: dict[str, np.ndarray] = {}
        self.trials: list[tuple[int, str, str]] = []
        self.cohort: dict[str, np.ndarray] = {}

    def update(self, predictions: Sequence[Any], batch: Any) -> None:
        """Take in embeddings; ``batch`` has their names, and may have trials, and say that they are of the cohort."""
        target = self.cohort if batch.get("cohort") else self.embeddings
        for name, prediction in zip(batch["name"], predictions, strict=True):
            target[name] = prediction.vector
        self._add(batch.get("trials", ()))

    def merge(self, other: VerificationMetric) -> None:
        """Take in what another process has collected."""
        self.embeddings |= other.embeddings
        self.cohort |= other.cohort
        self._add(other.trials)

    def _add(self, trials: Sequence[tuple[int, str, str]]) -> None:
        known = set(self.trials)
        self.trials += [trial for trial in trials if trial not in known]

    def scores(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return cosines and labels of the trials, and normalised scores if there is a cohort.

        Raises:
            InputError: If a trial names a recording that was not seen.
        """
        if unseen := next((name for _, *names in self.trials for name in names if name not in self.embeddings), None):
            raise InputError(f"a trial names {unseen}, which is not among the {len(self.embeddings)} recordings")
        names = list(self.embeddings)
        place = {name: index for index, name in enumerate(names)}
        table = np.array([(label, place[one], place[other]) for label, one, other in self.trials], dtype=int).reshape(-1, 3)
        vectors = _directions(np.stack([self.embeddings[name] for name in names]))
        scores = (vectors[table[:, 1]] * vectors[table[:, 2]]).sum(1)
        if not self.cohort:
            return scores, table[:, 0], None
        near = cosines(vectors, np.stack(list(self.cohort.values())))
        return scores, table[:, 0], as_norm(scores, near[table[:, 1]], near[table[:, 2]], top=self.top)

    def compute(self) -> dict[str, float]:
        """Return the EER, its threshold, and minDCF at priors of 0.01 and 0.05; with a cohort also those of normalised scores."""
        scores, targets, normalised = self.scores()
        rate, threshold = eer(scores, targets)
        figures = {"eer": rate, "threshold": threshold} | _costs(scores, targets)
        if normalised is not None:
            rate, threshold = eer(normalised, targets)
            costs = {f"{name}_norm": value for name, value in _costs(normalised, targets).items()}
            figures |= {"eer_norm": rate, "threshold_norm": threshold} | costs
        return figures


def _costs(scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    return {f"min_dcf_{name}": min_dcf(scores, targets, prior=prior) for name, prior in (("01", 0.01), ("05", 0.05))}
