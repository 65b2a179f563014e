"""Structures of an experiment: which are for what, what they say before the first step, and batches of graphs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("cnnkit_equivariant")

from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from cnnkit.errors import ConfigError, InputError
from cnnkit_equivariant.atoms import data, emt
from cnnkit_equivariant.atoms.batches import BoundedSampler
from cnnkit_equivariant.atoms.config import AtomsConfig, EMTConfig
from torch_geometric.data import Batch

SMALL = AtomsConfig(emt=EMTConfig(train=12, val=4, test=6))


def labelled(symbols: str, energy: float | None, seed: int = 0) -> Atoms:
    """Atoms in a cell with an energy, and forces of 1 eV/A along x."""
    rng = np.random.default_rng(seed)
    atoms = Atoms(symbols, pbc=True, cell=8 * np.eye(3))
    atoms.positions = 2.2 * np.arange(len(atoms))[:, None] * [1, 0.3, 0] + rng.normal(0, 0.1, (len(atoms), 3))
    if energy is not None:
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.tile([1.0, 0.0, 0.0], (len(atoms), 1)))
    return atoms


def extxyz(path: Path, count: int) -> str:
    """Write structures whose energies are their numbers."""
    write(path, [labelled("CuO", float(number), number) for number in range(count)], format="extxyz")
    return str(path)


def energies(structures: data.Frames | None) -> list[float]:
    assert structures is not None
    return [atoms.get_potential_energy() for atoms in structures]


def test_without_files_structures_are_synthetic() -> None:
    for split, count in (("train", 12), ("val", 4), ("test", 6)):
        found = data.frames(SMALL, split, seed=0)
        assert found is not None and len(found) == count
        np.testing.assert_array_equal(found[0].positions, emt.structure(split, 0).positions)
    with pytest.raises(ConfigError, match=r"atoms.emt.train=0"):
        data.frames(replace(SMALL, emt=EMTConfig(train=0)), "train", seed=0)
    assert data.frames(replace(SMALL, emt=EMTConfig(test=0)), "test", seed=0) is None


def test_a_share_of_the_training_files_is_for_validation(tmp_path: Path) -> None:
    files = (extxyz(tmp_path / "one.extxyz", 15), extxyz(tmp_path / "two.extxyz", 5))
    cfg = AtomsConfig(train=files, val_share=0.2)
    train, val = (energies(data.frames(cfg, split, seed=3)) for split in ("train", "val"))
    assert len(train) == 16 and len(val) == 4
    assert sorted(train + val) == sorted([*range(15), *range(5)])
    assert energies(data.frames(cfg, "val", seed=3)) == val != energies(data.frames(cfg, "val", seed=4))
    assert data.frames(cfg, "test", seed=3) is None
    assert data.frames(replace(cfg, val_share=0.0), "val", seed=3) is None
    with pytest.raises(ConfigError, match=r"val_share=1"):
        data.frames(replace(cfg, val_share=1.0), "val", seed=3)


def test_files_for_each_split_are_taken_as_they_are(tmp_path: Path) -> None:
    train, val, test = (extxyz(tmp_path / f"{name}.extxyz", count) for name, count in (("train", 6), ("val", 3), ("test", 2)))
    cfg = AtomsConfig(train=(train,), val=(val,), test=(test,))
    assert [len(energies(data.frames(cfg, split, seed=0))) for split in ("train", "val", "test")] == [6, 3, 2]
    every_second = replace(cfg, frames="::2")
    assert energies(data.frames(every_second, "train", seed=0)) == [0, 2, 4]


def test_facts_are_elements_references_and_the_size_of_forces() -> None:
    structures = [labelled("Cu2O", -11.0), labelled("CuO2", -10.0), labelled("O", None), labelled("Cu", -4.0)]
    found = data.facts(structures)
    assert found.elements == ("O", "Cu")
    np.testing.assert_allclose(found.references, [-3.0, -4.0], rtol=1e-9)
    assert found.scale == pytest.approx(np.sqrt(1 / 3))
    named = data.facts(structures, ("Cu", "H", "O"))
    assert named.elements == ("Cu", "H", "O") and named.references[0] == pytest.approx(-4.0)
    assert data.facts(structures, ("Cu", "O"), (1.0, 2.0)).references == (1.0, 2.0)


def test_facts_that_cannot_be_are_explained() -> None:
    with pytest.raises(ConfigError, match=r"hold O, which atoms.elements=\['Cu'\] lacks"):
        data.facts([labelled("CuO", 1.0)], ("Cu",))
    with pytest.raises(ConfigError, match=r"3 energies for 2 elements"):
        data.facts([labelled("CuO", 1.0)], (), (1.0, 2.0, 3.0))
    with pytest.raises(InputError, match="none of the 1 training structures has an energy"):
        data.facts([labelled("CuO", None)])


def test_a_batch_is_what_torch_geometric_makes() -> None:
    structures = [*emt.structures("train", 4), labelled("CuO", None)]
    graphs = data.Graphs(structures, 4.0, torch.float64)
    batch = graphs.batch([2, 4, 0])
    graph, expected = data.as_graph(batch), Batch.from_data_list([graphs.graphs[2], graphs.graphs[4], graphs.graphs[0]])
    for name in ("pos", "z", "edge_index", "shifts", "cell", "pbc", "energy", "forces", "stress", "batch", "ptr"):
        torch.testing.assert_close(getattr(graph, name), getattr(expected, name), rtol=0, atol=0, equal_nan=True)
    assert batch["kind"] == ["slab", "", "slab"]
    assert graph.pos.dtype == graph.forces.dtype == torch.float64 and torch.isnan(graph.energy).tolist() == [False, True, False]


def test_an_epoch_shows_every_structure_once_in_an_order_of_its_own() -> None:
    graphs = data.Graphs(emt.structures("train", 12), 3.0, torch.float32)
    loader = data.train_loader(graphs, replace(SMALL, batch_size=5), seed=1)
    orders = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        orders.append([float(energy) for batch in loader for energy in batch["graph"]["energy"]])
    every = sorted(float(graph.energy) for graph in graphs.graphs)
    assert len(loader) == 3 and len(orders[0]) == 15  # Batches are full: the first three of another order come again.
    assert sorted(orders[0][:12]) == every and orders[0] == orders[2] != orders[1]
    with pytest.raises(ConfigError, match=r"batch_size=0"):
        data.train_loader(graphs, replace(SMALL, batch_size=0), seed=1)
    assert len(next(iter(data.train_loader(graphs, replace(SMALL, batch_size=99), seed=1)))["kind"]) == 12


@pytest.mark.parametrize("most", [150, 400, 10**6])
def test_batches_of_bounded_edges(most: int) -> None:
    """Every structure once an epoch, within the bounds, in as many steps, whatever the epoch; a function of seed and epoch alone."""
    graphs = data.Graphs(emt.structures("train", 24), 3.5, torch.float32)
    sizes = {float(graph.energy): graph.edge_index.shape[1] for graph in graphs.graphs}
    assert max(sizes.values()) > 150 and len(sizes) == 24
    cfg = replace(SMALL, batch_size=5, max_edges=most)
    loader = data.train_loader(graphs, cfg, seed=1)
    epochs = []
    for epoch in (0, 1, 2, 1):
        loader.set_epoch(epoch)
        epochs.append([batch["graph"]["energy"].tolist() for batch in loader])
        assert len(epochs[-1]) == len(loader)
        assert sorted(energy for batch in epochs[-1] for energy in batch) == sorted(sizes)
        assert all(len(batch) == 1 or (len(batch) <= 5 and sum(map(sizes.__getitem__, batch)) <= most) for batch in epochs[-1])
    assert epochs[1] == epochs[3] != epochs[0] != epochs[2]
    assert len({frozenset(batch) for epoch in epochs[:3] for batch in epoch if len(batch) > 1}) > len(loader) or most == 150
    again = data.train_loader(graphs, cfg, seed=1)
    again.set_epoch(2)
    assert [batch["graph"]["energy"].tolist() for batch in again] == epochs[2], "a training that goes on sees what it would have seen"
    if most == 10**6:
        assert len(loader) == 5
    with pytest.raises(ConfigError, match=r"max_edges=-1 is no bound; accepted: 1 or more, or 0"):
        data.train_loader(graphs, replace(cfg, max_edges=-1), seed=1)


def test_bounded_batches_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes as many steps, together they see everything, and what comes twice is what fills the last step."""
    rng = np.random.default_rng(0)
    sizes = rng.lognormal(4, 1, 200).astype(int)
    for world in (1, 2, 3):
        seen, steps = [], set()
        for rank in range(world):
            monkeypatch.setattr("cnnkit_equivariant.atoms.batches.process", lambda pair=(rank, world): pair)
            sampler = BoundedSampler(sizes.tolist(), batch_size=12, most=600, seed=3)
            sampler.set_epoch(4)
            mine = list(sampler)
            steps |= {len(mine), len(sampler)}
            assert all(len(batch) <= 12 // world for batch in mine)
            assert all(len(batch) == 1 or sum(sizes[item] for _, _, item in batch) <= 600 for batch in mine)
            seen += [batch for batch in mine]
        assert len(steps) == 1 and len({position for batch in seen for position in batch}) == 200
        assert {item for batch in seen for _, _, item in batch} == set(range(200)) and all(epoch == 4 for (epoch, _, _), *_ in seen)
        assert len(seen) - len({tuple(batch) for batch in seen}) < world
        fewest = max(-(-200 // (12 // world)), -(-int(np.minimum(sizes, 600).sum()) // 600))
        assert len(seen) <= 1.1 * fewest + world, "few batches are less than full"


def test_what_is_measured_comes_once_in_order_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = data.Graphs(emt.structures("val", 7), 4.0, torch.float32)
    batches = list(data.whole_loader(graphs, 3))
    assert [len(batch["kind"]) for batch in batches] == [3, 3, 1]
    assert [float(energy) for batch in batches for energy in batch["graph"]["energy"]] == [float(graph.energy) for graph in graphs.graphs]
    monkeypatch.setattr(data, "MOST_EDGES", 250)
    batches = list(data.whole_loader(graphs, 3))
    assert all(len(batch["kind"]) == 1 or batch["graph"]["edge_index"].shape[1] <= 250 for batch in batches) and len(batches) > 3
    assert len(list(data.whole_loader(graphs, 3, 1))) == 7 and len(list(data.whole_loader(graphs, 3, 10**9))) == len(batches)


def test_runs_of_bounded_size() -> None:
    assert list(data.bounded([1, 2, 1, 5, 9, 1, 2], lambda size: size, 3, 6)) == [[1, 2, 1], [5], [9], [1, 2]]
    assert list(data.bounded([], lambda size: size, 3, 6)) == []


def test_rows_that_are_known() -> None:
    nan = float("nan")
    assert data.known_rows(torch.tensor([1.0, nan])).tolist() == [True, False]
    assert data.known_rows(torch.tensor([[1.0, nan], [0.0, 2.0]])).tolist() == [False, True]
    assert data.known_rows(torch.full((2, 3, 3), nan)).tolist() == [False, False]


def test_small_structures_of_any_element() -> None:
    structures = data.small_structures(["Si"])
    graphs = data.Graphs(structures, 4.0, torch.float32).graphs
    assert all(graph.edge_index.shape[1] > 0 and torch.isfinite(graph.forces).all() for graph in graphs)
    assert torch.isfinite(graphs[0].stress).all() and not bool(structures[-1].pbc.any())
