"""Errors of energies, forces and stresses against scikit-learn and numpy."""

from __future__ import annotations

import copy
import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("cnnkit_equivariant")

from cnnkit_equivariant.atoms.metrics import COLUMNS, AtomsMetric
from cnnkit_equivariant.atoms.parity import Panel, bounds, density, draw_parity
from cnnkit_equivariant.atoms.prediction import Predicted
from cnnkit_equivariant.atoms.references import fit_references, force_scale
from PIL import Image
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_absolute_error, root_mean_squared_error
from sklearn.metrics.pairwise import paired_cosine_distances

SIZES = (3, 1, 4, 2)


def example(rng: np.random.Generator, *, without: bool = False) -> tuple[list[Predicted], dict[str, Any]]:
    """Predictions and a batch of four structures; ``without`` leaves references out: an energy, an atom's force, and all but one stress."""
    total = sum(SIZES)
    starts = np.concatenate([[0], np.cumsum(SIZES)])
    energy, forces, stress = rng.normal(size=4), rng.normal(size=(total, 3)), rng.normal(size=(4, 3, 3))
    guesses = [
        Predicted(
            energy[n] + 0.1 * rng.normal(),
            forces[starts[n] : starts[n + 1]] + 0.1 * rng.normal(size=(SIZES[n], 3)),
            stress[n] + rng.normal(),
        )
        for n in range(4)
    ]
    if without:
        energy[1], forces[4], stress[:3] = np.nan, np.nan, np.nan
    graph = {"energy": energy, "forces": forces, "stress": stress, "ptr": starts}
    return guesses, {"graph": {name: torch.from_numpy(value) for name, value in graph.items()}, "kind": ["slab", "bulk", "slab", "bulk"]}


def filled(predictions: list[Predicted], batch: dict[str, Any]) -> AtomsMetric:
    metric = AtomsMetric()
    metric.update(predictions, batch)
    return metric


@pytest.mark.parametrize("without", [False, True])
def test_figures_are_those_of_scikit_learn(without: bool) -> None:
    predictions, batch = example(np.random.default_rng(0), without=without)
    truth = {name: value.numpy() for name, value in batch["graph"].items()}
    found = {
        "energy": np.array([item.energy for item in predictions]),
        "forces": np.concatenate([item.forces for item in predictions]),
        "stress": np.stack([item.stress for item in predictions]),
    }
    figures = filled(predictions, batch).compute()
    known = np.isfinite(truth["energy"])
    per_atom = [truth["energy"] / SIZES, found["energy"] / SIZES]
    pairs = {"energy": [part[known] for part in per_atom]}
    for name in ("forces", "stress"):
        rows = np.isfinite(truth[name])
        pairs[name] = [truth[name][rows], found[name][rows]]
    for name, (one, other) in pairs.items():
        assert figures[f"{name}_mae"] == pytest.approx(1000 * mean_absolute_error(one, other), rel=1e-12)
        assert figures[f"{name}_rmse"] == pytest.approx(1000 * root_mean_squared_error(one, other), rel=1e-12)
    assert figures["total_mae"] == pytest.approx(1000 * mean_absolute_error(truth["energy"][known], found["energy"][known]), rel=1e-12)
    rows = np.isfinite(truth["forces"]).all(1)
    assert figures["forces_cos"] == pytest.approx(
        1 - paired_cosine_distances(truth["forces"][rows], found["forces"][rows]).mean(), rel=1e-12
    )


def test_kinds_are_measured_by_themselves() -> None:
    predictions, batch = example(np.random.default_rng(1))
    figures = filled(predictions, batch).compute()
    truth = batch["graph"]["energy"].numpy()
    error = [abs(item.energy - energy) / size for item, energy, size in zip(predictions, truth, SIZES, strict=True)]
    assert figures["slab/energy_mae"] == pytest.approx(1000 * (error[0] + error[2]) / 2, rel=1e-12)
    assert figures["bulk/energy_mae"] == pytest.approx(1000 * (error[1] + error[3]) / 2, rel=1e-12)


def test_processes_merge_to_the_whole() -> None:
    rng = np.random.default_rng(2)
    first, second = example(rng), example(rng, without=True)
    whole = filled(*first)
    whole.update(*second)
    merged = copy.deepcopy(filled(*first))
    merged.merge(filled(*second))
    assert merged.compute() == whole.compute()
    assert set(whole.compute()) == {*COLUMNS, *(f"{kind}/{name}" for kind in ("slab", "bulk") for name in COLUMNS)}


def test_what_is_not_known_has_no_figure() -> None:
    predictions, batch = example(np.random.default_rng(3))
    batch["graph"]["stress"] = torch.full((4, 3, 3), torch.nan, dtype=torch.float64)
    bare = [Predicted(item.energy) for item in predictions]
    figures = filled(bare, {**batch, "kind": [""] * 4}).compute()
    assert set(figures) == {"energy_mae", "energy_rmse", "total_mae"}


def test_report_has_a_row_for_each_kind_and_a_picture(tmp_path: Path) -> None:
    metric = filled(*example(np.random.default_rng(4)))
    files = metric.report(tmp_path)
    assert [file.name for file in files] == ["errors.csv", "errors.md", "parity.png"]
    with open(files[0], encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["structures"], row["number"]) for row in rows] == [("bulk", "2"), ("slab", "2"), ("all", "4")]
    assert float(rows[-1][COLUMNS["forces_mae"]]) == pytest.approx(metric.compute()["forces_mae"], rel=1e-3)
    assert files[1].read_text(encoding="utf-8").count("\n") == 5
    with Image.open(files[2]) as image:
        assert image.width == 3 * image.height * 508 // 512


def test_parity_counts_every_value_where_it_lies(tmp_path: Path) -> None:
    truth = np.array([0.0, 0.0, 1.0, 2.0])
    panel = Panel("forces", "eV/A", truth, truth + np.array([0, 0, 1, 0]))
    low, high = bounds(panel)
    assert low < 0 and high > 2
    counts = density(panel, low, high, 22)
    assert counts.sum() == 4 and counts.max() == 2
    rows, columns = np.nonzero(counts)
    assert (rows >= columns).all() and (rows > columns).sum() == 1  # The one that is too large lies above the diagonal.
    same = Panel("energy", "eV", np.full(3, -2.0), np.full(3, -2.0))
    assert density(same, *bounds(same), 10).sum() == 3
    assert draw_parity(tmp_path / "same.png", [same]).stat().st_size > 0


def test_references_are_those_of_linear_regression() -> None:
    rng = np.random.default_rng(5)
    counts, energies = rng.integers(1, 9, (40, 4)).astype(float), rng.normal(size=40)
    atoms = counts.sum(1)
    model = LinearRegression(fit_intercept=False).fit(counts / atoms[:, None], energies / atoms)
    np.testing.assert_allclose(fit_references(counts, energies), model.coef_, rtol=1e-9)


def test_references_of_energies_that_are_sums_are_exact() -> None:
    rng = np.random.default_rng(6)
    counts, truth = rng.integers(0, 5, (30, 3)) + np.eye(3)[rng.integers(0, 3, 30)], np.array([-3.7, -1400.2, 12.0])
    np.testing.assert_allclose(fit_references(counts, counts @ truth), truth, rtol=1e-9)
    energies = np.append(counts @ truth, np.nan)
    np.testing.assert_allclose(fit_references(np.vstack([counts, counts[:1]]), energies), truth, rtol=1e-9)


def test_references_that_compositions_leave_open_are_the_mean() -> None:
    """All of one composition: every atom gets the mean, however large it is, and the energy is explained."""
    counts, energies = np.tile([[2.0, 1.0]], (5, 1)), np.full(5, -3000.0)
    np.testing.assert_allclose(fit_references(counts, energies), [-1000.0, -1000.0], rtol=1e-12)
    counts = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 2.0], [2.0, 2.0, 1.0]])  # The first two only come together.
    found = fit_references(counts, counts @ np.array([-5.0, -3.0, 1.0]))
    np.testing.assert_allclose(found, [-4.0, -4.0, 1.0], rtol=1e-9)
    np.testing.assert_array_equal(fit_references(counts, np.full(3, np.nan)), np.zeros(3))


def test_scale_is_the_size_of_the_forces() -> None:
    forces = [np.array([[3.0, 0.0, 4.0]]), np.full((2, 3), np.nan), np.zeros((1, 3))]
    assert force_scale(forces, np.zeros(2)) == pytest.approx(np.sqrt(25 / 6))
    assert force_scale([np.zeros((2, 3))], np.array([0.5, -0.5, np.nan])) == pytest.approx(0.5)
    assert force_scale([], np.zeros(3)) == 1.0
