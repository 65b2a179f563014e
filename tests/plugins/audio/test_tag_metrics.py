"""Tag metrics against scikit-learn and hand-made cases."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cnnkit_audio.tagging.metrics import TagMetric, area_under_roc, average_precision, d_prime
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score


@pytest.mark.parametrize("levels", [3, 10, 10**6])
@pytest.mark.parametrize("seed", range(5))
def test_equal_to_scikit_learn(seed: int, levels: int) -> None:
    """With many ties and with none, to 1e-12."""
    rng = np.random.default_rng(seed)
    truth, scores = rng.random(200) < 0.2, rng.integers(0, levels, 200) / levels
    assert average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    assert area_under_roc(scores, truth) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)


def test_undefined_is_nan() -> None:
    """A label that no clip has, or every one, has no curve."""
    scores = np.array([0.1, 0.5])
    assert np.isnan(average_precision(scores, np.zeros(2))) and np.isnan(area_under_roc(scores, np.zeros(2)))
    assert np.isnan(area_under_roc(scores, np.ones(2))) and average_precision(scores, np.ones(2)) == 1


def test_d_prime_is_the_distance_of_two_normals() -> None:
    """Scores one unit normal apart by 1.5 have that d', in closed form."""
    assert d_prime(float(norm.cdf(1.5 / np.sqrt(2)))) == pytest.approx(1.5)
    assert d_prime(0.5) == pytest.approx(0, abs=1e-12)


def predictions(scores: np.ndarray) -> list[SimpleNamespace]:
    return [SimpleNamespace(scores=row[None]) for row in scores]


def test_accuracy_by_fold(tmp_path: Path) -> None:
    """Clips count by the mean over their windows; folds are stated where there are several; merging is as one pass."""
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    target = torch.tensor([[1.0, 0], [0, 1], [0, 1], [0, 1]])
    whole = TagMetric(("a", "b"), multilabel=False)
    whole.update(predictions(scores), {"target": target, "fold": [1, 1, 2, 2]})
    figures = whole.compute()
    assert figures["accuracy"] == 0.75 and figures["fold_1/accuracy"] == 1 and figures["fold_2/accuracy"] == 0.5
    parts = [TagMetric(("a", "b"), multilabel=False) for _ in range(2)]
    for part, rows in zip(parts, (slice(0, 1), slice(1, 4)), strict=True):
        part.update(predictions(scores[rows]), {"target": target[rows], "fold": [1, 1, 2, 2][rows]})
    merged = copy.deepcopy(parts[0])
    merged.merge(parts[1])
    assert merged.compute() == figures
    files = {path.name: path.read_text(encoding="utf-8") for path in whole.report(tmp_path)}
    assert files["confusion.csv"].splitlines() == [",a,b", "a,1,0", "b,1,2"]
    assert files["labels.csv"].splitlines()[0] == "label,clips,average_precision,auc"
    windows = TagMetric(("a", "b"), multilabel=False)
    windows.update([SimpleNamespace(scores=np.array([[0.9, 0.1], [0.0, 1.0]]))], {"target": target[1:2]})
    assert windows.compute()["accuracy"] == 1


def test_several_labels_have_no_accuracy() -> None:
    """Only mAP, mAUC and d'."""
    metric = TagMetric(("a", "b"), multilabel=True)
    metric.update(predictions(np.array([[0.9, 0.8], [0.1, 0.9], [0.3, 0.1]])), {"target": torch.tensor([[1.0, 1], [0, 1], [0, 0]])})
    assert metric.compute() == {"map": 1.0, "mauc": 1.0, "d_prime": float("inf")}
