"""EER, minDCF and normalised scores, against scikit-learn's ROC, loops over all thresholds, and cases by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from cnnkit.errors import InputError
from cnnkit_audio.embedding.metrics import VerificationMetric, as_norm, cosines, eer, error_rates, min_dcf

pytestmark = pytest.mark.paper("efficienttdnn")


def by_roc(scores: np.ndarray, targets: np.ndarray) -> float:
    """The usual script: where the interpolated ROC crosses the diagonal."""
    brentq = pytest.importorskip("scipy.optimize").brentq
    fpr, tpr, _ = pytest.importorskip("sklearn.metrics").roc_curve(targets, scores)
    return float(brentq(lambda x: 1.0 - x - np.interp(x, fpr, tpr), 0.0, 1.0))


def by_loop(scores: np.ndarray, targets: np.ndarray, prior: float, miss: float = 1.0, alarm: float = 1.0) -> float:
    """The cost at every threshold, one after the other."""
    costs = []
    for threshold in [-np.inf, *scores, np.inf]:
        missed = np.mean(scores[targets == 1] < threshold)
        passed = np.mean(scores[targets == 0] >= threshold)
        costs.append(miss * prior * missed + alarm * (1 - prior) * passed)
    return float(min(costs) / min(miss * prior, alarm * (1 - prior)))


def trials(seed: int, count: int, shift: float, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two kinds, rounded so that ties are many where the levels are few."""
    rng = np.random.default_rng(seed)
    targets = (rng.random(count) < 0.3).astype(int)
    targets[:2] = (0, 1)
    scores = rng.normal(size=count) + shift * targets
    return np.round(scores * levels) / levels, targets


@pytest.mark.parametrize("levels", [1, 3, 1000])
@pytest.mark.parametrize("count", [2, 5, 40, 3000])
@pytest.mark.parametrize("shift", [0.0, 1.5, 8.0])
def test_equal_to_the_references(count: int, levels: int, shift: float) -> None:
    """On many and few trials, with and without ties, from chance to perfect."""
    for seed in range(3):
        scores, targets = trials(seed, count, shift, levels)
        # On a perfect ROC the interpolation along a vertical line is only as fine as the root finder.
        assert eer(scores, targets)[0] == pytest.approx(by_roc(scores, targets), abs=1e-9)
        for prior in (0.01, 0.05, 0.5):
            few = slice(None, 400)
            both = scores[few], targets[few]
            assert min_dcf(*both, prior=prior) == pytest.approx(by_loop(*both, prior), abs=1e-12)


def test_costs_of_misses_and_alarms() -> None:
    """NIST's earlier costs too."""
    scores, targets = trials(0, 300, 1.0, 1000)
    assert min_dcf(scores, targets, prior=0.01, miss=10) == pytest.approx(by_loop(scores, targets, 0.01, miss=10), abs=1e-12)


def test_by_hand() -> None:
    """One error of each kind among four trials of each; all scores equal; perfect; the wrong way round."""
    scores = np.array([4.0, 3.0, 2.5, 1.0, 3.5, 0.5, 0.2, 0.1])
    targets = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    assert eer(scores, targets)[0] == pytest.approx(0.25)
    assert eer(np.ones(6), np.array([1, 0, 1, 0, 0, 0]))[0] == pytest.approx(0.5)
    assert min_dcf(np.ones(6), np.array([1, 0, 1, 0, 0, 0])) == 1.0
    rate, threshold = eer(np.array([0.9, 0.8, 0.1, 0.3]), np.array([1, 1, 0, 0]))
    assert rate == 0.0 and threshold == pytest.approx(0.55)
    assert eer(np.array([0.1, 0.9]), np.array([1, 0]))[0] == 1.0
    # A threshold of equal scores cannot tell them apart: half of what is tied counts.
    assert eer(np.array([0.9, 0.5, 0.5, 0.1]), np.array([1, 1, 0, 0]))[0] == pytest.approx(
        by_roc(np.array([0.9, 0.5, 0.5, 0.1]), np.array([1, 1, 0, 0]))
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_has_the_errors(seed: int) -> None:
    """Decisions at the threshold make both errors about equally often: up to one trial of each kind."""
    scores, targets = trials(seed, 500, 1.5, 10**6)
    rate, threshold = eer(scores, targets)
    missed = np.mean(scores[targets == 1] < threshold)
    passed = np.mean(scores[targets == 0] >= threshold)
    assert abs(missed - rate) <= 1 / (targets == 1).sum() and abs(passed - rate) <= 1 / (targets == 0).sum()


def test_rates_start_with_nothing_accepted() -> None:
    """And end with everything; equal scores are one step."""
    misses, alarms, thresholds = error_rates(np.array([0.5, 0.5, 0.2]), np.array([1, 0, 0]))
    assert misses.tolist() == [1, 0, 0] and alarms.tolist() == [0, 0.5, 1] and thresholds.tolist() == [np.inf, 0.5, 0.2]


@pytest.mark.parametrize(("scores", "targets"), [([1.0], [1]), ([1.0, 2.0], [0, 0]), ([np.nan, 1.0], [0, 1]), ([1.0, 2.0, 3.0], [0, 1])])
def test_what_cannot_be_measured(scores: list[float], targets: list[int]) -> None:
    """Trials of one kind, scores that are no numbers, another number of labels."""
    with pytest.raises(InputError):
        eer(np.array(scores), np.array(targets))


def test_normalisation_by_hand_and_by_a_loop() -> None:
    """The mean of both sides, by the mean and the deviation of the highest of the cohort."""
    assert as_norm(np.array([3.0]), np.array([[0.0, 2.0, -9.0]]), np.array([[1.0, -5.0, 3.0]]), top=2) == pytest.approx((2.0 + 1.0) / 2)
    rng = np.random.default_rng(0)
    scores, enrol, test = rng.normal(size=7), rng.normal(size=(7, 30)), rng.normal(size=(7, 30))
    found = as_norm(scores, enrol, test, top=10)
    for index in range(7):
        sides = []
        for side in (enrol[index], test[index]):
            near = np.sort(side)[-10:]
            sides.append((scores[index] - near.mean()) / near.std())
        assert found[index] == pytest.approx(np.mean(sides))
    assert as_norm(scores, enrol, test, top=300) == pytest.approx(as_norm(scores, enrol, test, top=30))
    assert np.isfinite(as_norm(scores, np.ones((7, 4)), np.ones((7, 4)))).all()


def voices(vectors: np.ndarray) -> list[SimpleNamespace]:
    return [SimpleNamespace(vector=vector) for vector in vectors]


def test_the_metric_scores_trials_by_name_and_merges() -> None:
    """Whatever the order of the batches; a trial that two processes bring counts once."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(6, 4)) + 2 * np.repeat(np.eye(4)[:3], 2, axis=0)
    names = [f"{person}{take}" for person in "abc" for take in "12"]
    pairs = [(int(one[0] == two[0]), one, two) for one in names for two in names if one < two]
    whole, left, right = VerificationMetric(), VerificationMetric(), VerificationMetric()
    whole.update(voices(vectors), {"name": names, "trials": pairs})
    left.update(voices(vectors[::2]), {"name": names[::2], "trials": pairs})
    right.update(voices(vectors[1::2]), {"name": names[1::2], "trials": pairs})
    left.merge(right)
    assert left.compute() == pytest.approx(whole.compute())
    table = cosines(vectors, vectors)
    expected = [table[names.index(one), names.index(two)] for _, one, two in pairs]
    assert whole.compute()["eer"] == eer(np.array(expected), np.array([label for label, *_ in pairs]))[0]
    whole.update(voices(rng.normal(size=(9, 4))), {"name": [f"x{i}" for i in range(9)], "cohort": True})
    assert {"eer_norm", "threshold_norm", "min_dcf_01_norm", "min_dcf_05_norm"} <= set(whole.compute())
    with pytest.raises(InputError, match="c2"):
        right = VerificationMetric()
        right.update(voices(vectors[:5]), {"name": names[:5], "trials": pairs})
        right.compute()
