"""The atoms job from the training structures to a checkpoint, and from files to predictions."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("cnnkit_equivariant")

from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from cnnkit import api
from cnnkit.checkpoint import save_checkpoint
from cnnkit.config import from_dict
from cnnkit.engine.evaluate import evaluate, write_evaluation
from cnnkit.engine.fit import fit, header_for
from cnnkit.engine.load import load
from cnnkit.errors import ConfigError
from cnnkit.plugin import get
from cnnkit_equivariant.atoms import data, emt
from cnnkit_equivariant.atoms.references import fit_references
from cnnkit_equivariant.atoms.task import Atomistic
from cnnkit_equivariant.config import Config
from cnnkit_equivariant.models._base import Potential

NETWORK = {"name": "equivariant/invariant", "args": {"channels": 8, "layers": 1, "gaussians": 8, "cutoff": 4.0}}
TRAIN = {"epochs": 1, "accelerator": "cpu", "devices": 1, "tensorboard": False, "ema": 0.9}


def task_of(schedule: dict[str, Any] | None = None, **atoms: Any) -> Atomistic:
    """A task with a tiny network."""
    synthetic = {"emt": {"train": 10, "val": 3, "test": 5}, "batch_size": 4, "elements": list(emt.ELEMENTS)}
    task = Atomistic(from_dict(Config, {"network": NETWORK, "train": TRAIN | (schedule or {}), "atoms": synthetic | atoms}))
    assert isinstance(task, Atomistic)
    return task


def batch_of(structures: list[Atoms], dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """A batch of all the structures."""
    return data.Graphs(structures, 4.0, dtype).batch(range(len(structures)))


@pytest.fixture
def prepared(tmp_path: Path) -> Atomistic:
    """A task after a look at its data."""
    return Atomistic(task_of().prepare(tmp_path))


@pytest.mark.paper("escn")
def test_references_and_scale_of_the_training_are_in_the_network(tmp_path: Path) -> None:
    prepared = Atomistic(task_of(elements=[]).prepare(tmp_path))
    structures = data.frames(prepared.cfg.atoms, "train", seed=0)
    assert structures is not None
    model = prepared.model()
    assert set(model.elements) == {symbol for atoms in structures for symbol in atoms.get_chemical_symbols()}
    counts = np.array([[atoms.get_chemical_symbols().count(symbol) for symbol in model.elements] for atoms in structures], float)
    energies = np.array([atoms.get_potential_energy() for atoms in structures])
    np.testing.assert_allclose(model.references.numpy(), fit_references(counts, energies), rtol=1e-12)
    forces = np.concatenate([atoms.get_forces() for atoms in structures])
    assert float(model.scale) == pytest.approx(np.sqrt(np.mean(forces**2)), rel=1e-12)


def test_what_the_configuration_says_is_not_fitted(tmp_path: Path) -> None:
    elements = [*emt.ELEMENTS, "Si"]
    given = task_of(elements=elements, references=[1.0] * len(elements), scale=2.0)
    cfg = given.prepare(tmp_path).atoms
    assert cfg.elements == tuple(elements) and cfg.references == (1.0,) * len(elements) and cfg.scale == 2.0
    with pytest.raises(ConfigError, match="2 energies for 3 elements"):
        task_of(elements=["Cu", "O", "H"], references=[1.0, 2.0]).model()


def test_losses_are_what_the_configuration_says(prepared: Atomistic) -> None:
    """Energies per atom and lengths of force errors; double precision, against numpy."""
    torch.manual_seed(0)
    model, batch = prepared.model().double().eval(), batch_of(list(emt.structures("train", 6)))
    with torch.no_grad():
        said = prepared.predict(model, batch)
    graph = data.as_graph(batch)
    energy = np.array([item.energy for item in said]) - graph.energy.numpy()
    per_atom = np.abs(energy / np.diff(graph.ptr.numpy()))
    lengths = np.linalg.norm(np.concatenate([item.forces for item in said]) - graph.forces.numpy(), axis=1)
    known = [number for number, item in enumerate(emt.structures("train", 6)) if item.pbc.all()]
    stress = np.array([np.linalg.norm(said[number].stress - graph.stress[number].numpy()) for number in known])
    huber = {"loss": "huber", "delta": 0.05}
    for settings, shape in (
        ({"loss": "mae"}, lambda size: size.mean()),
        ({"loss": "mse"}, lambda size: (size**2).mean()),
        (huber, lambda size: np.where(size < 0.05, size**2 / 2, 0.05 * (size - 0.025)).mean()),
    ):
        weights = {"energy_weight": 3.0, "forces_weight": 2.0, "stress_weight": 7.0}
        task = Atomistic(replace(prepared.cfg, atoms=replace(prepared.cfg.atoms, **weights, **settings)))
        losses = {name: float(value) for name, value in task.losses(model, batch).items()}
        expected = {"energy": 3 * shape(per_atom), "forces": 2 * shape(lengths), "stress": 7 * shape(stress)}
        assert losses == pytest.approx(expected, rel=1e-9)


def test_what_is_not_known_is_not_learned(prepared: Atomistic) -> None:
    """A structure without forces adds nothing to their loss, one without an energy nothing to its, and gradients stay finite."""
    full, bare = (emt.structure("train", number) for number in (0, 2))
    without_forces, without_energy = bare.copy(), bare.copy()
    without_forces.calc = SinglePointCalculator(without_forces, energy=bare.get_potential_energy())
    without_energy.calc = SinglePointCalculator(without_energy, forces=bare.get_forces())
    model = prepared.model().double().train()
    alone, both = (prepared.losses(model, batch_of(structures)) for structures in ([full], [full, without_forces]))
    assert both["forces"].item() == pytest.approx(alone["forces"].item(), rel=1e-12)
    with_other = prepared.losses(model, batch_of([full, without_energy]))
    assert with_other["energy"].item() == pytest.approx(alone["energy"].item(), rel=1e-12)
    only_energies = prepared.losses(model, batch_of([without_forces]))
    assert set(only_energies) == {"energy"}
    torch.stack(list(with_other.values())).sum().backward()
    assert all(parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()) for parameter in model.parameters())


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_a_training_leaves_a_checkpoint_that_predicts_the_same(precision: str, tmp_path: Path) -> None:
    """Elements, references and scale travel with it, and the average of the weights leaves them as they are."""
    task = task_of({"precision": precision})
    found = fit(task, output=tmp_path / "run", plugin=get("equivariant"), progress=False)
    loaded = load(found.last)
    assert isinstance(loaded.model, Potential) and loaded.task.cfg.atoms.elements == loaded.model.elements
    expected = Atomistic(task_of().prepare(tmp_path)).model()
    assert torch.equal(loaded.model.references, expected.references) and torch.equal(loaded.model.scale, expected.scale)
    assert loaded.model.dtype == (torch.float64 if precision == "64-true" else torch.float32)
    figures, metric = evaluate(loaded.task, loaded.model, device="cpu", progress=False)
    assert figures["energy_mae"] > 0 and figures["slab/forces_mae"] > 0 and -1 <= figures["forces_cos"] <= 1
    names = {path.name for path in write_evaluation(tmp_path / "eval", figures, metric)}
    assert names == {"metrics.json", "errors.csv", "errors.md", "parity.png"}


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_training_on_a_file(share: float, tmp_path: Path) -> None:
    """Of extended xyz alone, with a part of it or nothing to validate on; a frame without forces and one without an energy are no harm."""
    structures = [atoms.copy() for atoms in emt.structures("train", 8)]
    for number, (atoms, known) in enumerate(zip(structures, emt.structures("train", 8), strict=True)):
        results = {name: value for name, value in known.calc.results.items() if (number, name) not in ((1, "forces"), (2, "energy"))}
        atoms.calc = SinglePointCalculator(atoms, **results)
    write(tmp_path / "all.extxyz", structures)
    task = task_of(train=[str(tmp_path / "all.extxyz")], val_share=share, stress_weight=1.0)
    loaded = load(fit(task, output=tmp_path / "run", plugin=get("equivariant"), progress=False).last)
    assert float(loaded.model.scale) > 0.1 and loaded.task.loader("test") is None
    if share:
        assert evaluate(loaded.task, loaded.model, split="val", device="cpu", progress=False)[0]["energy_mae"] > 0


def test_halves_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"precision=16-true"):
        task_of({"precision": "16-true"}).prepare(tmp_path)


@pytest.fixture
def checkpoint(prepared: Atomistic, tmp_path: Path) -> Path:
    """A network with fresh weights."""
    torch.manual_seed(0)
    model = prepared.model()
    return save_checkpoint(tmp_path / "model.ckpt", model.state_dict(), header_for(prepared, model, get("equivariant"), {}))


def test_run_predicts_in_the_order_of_the_file(checkpoint: Path, tmp_path: Path) -> None:
    structures = list(emt.structures("test", 7))
    write(tmp_path / "some.extxyz", structures)
    report = api.run("equivariant", tmp_path / "some.extxyz", output=tmp_path / "out", checkpoint=checkpoint, stress=True, dtype="float64")
    assert not report.failed
    loaded = load(checkpoint)
    with torch.no_grad():
        said = loaded.task.predict(loaded.model.double(), batch_of(structures))
    images = read(tmp_path / "out" / "some.extxyz", ":")
    for image, truth, one in zip(images, structures, said, strict=True):
        np.testing.assert_allclose(image.positions, truth.positions, atol=1e-7)
        assert image.info["cnnkit_energy"] == pytest.approx(one.energy, abs=1e-6)
        np.testing.assert_allclose(image.arrays["cnnkit_forces"], one.forces, atol=1e-6)
        assert image.get_potential_energy() == pytest.approx(truth.get_potential_energy(), abs=1e-6)
    with open(tmp_path / "out" / "some.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["Energy (eV)"]) for row in rows] == pytest.approx([one.energy for one in said], abs=1e-5)


def test_run_leaves_out_frames_of_elements_that_it_does_not_know(checkpoint: Path, tmp_path: Path) -> None:
    write(tmp_path / "mixed.extxyz", [molecule("H2O"), molecule("SiH4"), molecule("CO")])
    write(tmp_path / "silane.extxyz", [molecule("SiH4")])
    inputs = [tmp_path / "mixed.extxyz", tmp_path / "silane.extxyz"]
    report = api.run("equivariant", inputs, output=tmp_path / "out", checkpoint=checkpoint, forces=False)
    good, bad = report.items
    assert good.status == "ok" and "frame 1" in good.warnings[0] and "Si" in good.warnings[0]
    images = read(tmp_path / "out" / "mixed.extxyz", ":")
    assert [image.get_chemical_formula() for image in images] == ["H2O", "CO"]
    assert "forces" not in images[0].calc.results
    assert bad.status == "error" and "Si: not among the elements" in bad.error


def test_groups_of_a_file_are_bounded(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a file is cut into batches, the figures are the same."""
    write(tmp_path / "some.extxyz", list(emt.structures("test", 5)))
    found = []
    for most in (10**9, 1):
        monkeypatch.setattr(data, "MOST_EDGES", most)
        output = tmp_path / str(most)
        api.run("equivariant", tmp_path / "some.extxyz", output=output, checkpoint=checkpoint, dtype="float64")
        found.append([image.info["cnnkit_energy"] for image in read(output / "some.extxyz", ":")])
    np.testing.assert_allclose(found[0], found[1], atol=1e-9)


def test_run_relaxes(checkpoint: Path, tmp_path: Path) -> None:
    atoms = emt.slab(emt.Adsorption("Cu", "111", "O"), "fcc", stretch=1.1)
    write(tmp_path / "slab.extxyz", atoms)
    options = {"relax": True, "steps": 3, "fmax": 1e-4}
    report = api.run("equivariant", tmp_path / "slab.extxyz", output=tmp_path / "out", checkpoint=checkpoint, **options)
    assert not report.failed
    names = {path.name for path in report.items[0].outputs}
    assert {"slab.relaxed.extxyz", "slab.png", "slab.csv"} <= names
    moved = read(tmp_path / "out" / "slab.relaxed.extxyz")
    assert 1e-5 < np.abs(moved.positions - atoms.positions).max() < 1.0


def test_the_example_compares_with_emt(checkpoint: Path, tmp_path: Path) -> None:
    report = api.run("equivariant", output=tmp_path / "out", checkpoint=checkpoint, example=True, steps=2)
    summary = json.loads(json.dumps(report.items[0].summary))
    assert "EMT" in json.dumps(summary) and not report.failed
