"""Neighbour lists beside those of ASE and matscipy, as sets of (centre, neighbour, shift), and where those two give up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.neighborlist import primitive_neighbor_list
from cnnkit.errors import InputError
from cnnkit_equivariant.atoms import neighbors
from cnnkit_equivariant.atoms.neighbors import neighbor_list

pytestmark = pytest.mark.paper("escn")


def ours(atoms, cutoff, **options):
    """The list of a structure."""
    return neighbor_list(
        torch.from_numpy(atoms.positions),
        torch.from_numpy(np.array(atoms.cell)),
        torch.from_numpy(np.array(atoms.pbc)),
        cutoff,
        **options,
    )


def edges(edge_index, shifts):
    """The edges as (centre, neighbour, shift), after a look at their order; none stands twice."""
    assert edge_index.dtype == torch.long and edge_index.shape[1] == len(shifts)
    assert bool((edge_index[1].diff() >= 0).all())
    assert torch.equal(shifts, shifts.round())
    listed = [(i, j, tuple(s)) for (j, i), s in zip(edge_index.T.tolist(), shifts.int().tolist(), strict=True)]
    assert len(set(listed)) == len(listed)
    return set(listed)


def listed_by_ase(atoms, cutoff):
    i, j, shifts = primitive_neighbor_list("ijS", atoms.pbc, np.array(atoms.cell), atoms.positions, cutoff)
    return set(zip(i.tolist(), j.tolist(), map(tuple, shifts.tolist()), strict=True))


def random_structures(count, seed):
    """Cells of any shape, some much smaller than the cutoff; any boundary; atoms far outside."""
    rng = np.random.default_rng(seed)
    while count:
        cell = rng.normal(0, 1, (3, 3)) * rng.uniform(1, 8)
        lengths = np.linalg.norm(cell, axis=1)
        if abs(np.linalg.det(cell)) < max(0.5, 0.03 * lengths.prod()):
            continue
        atoms = int(rng.integers(1, 12))
        places = rng.uniform(-1.5, 2.5, (atoms, 3)) @ cell
        yield Atoms(f"H{atoms}", places, cell=cell, pbc=rng.random(3) < 0.6), float(rng.uniform(0.5, 6))
        count -= 1


def test_random_cells_beside_ase():
    for atoms, cutoff in random_structures(25, 0):
        assert edges(*ours(atoms, cutoff)) == listed_by_ase(atoms, cutoff)


def test_random_cells_beside_matscipy():
    from matscipy.neighbours import neighbour_list

    for atoms, cutoff in random_structures(200, 1):
        i, j, shifts = neighbour_list("ijS", atoms, cutoff)
        assert edges(*ours(atoms, cutoff)) == set(zip(i.tolist(), j.tolist(), map(tuple, shifts.tolist()), strict=True))


@pytest.mark.parametrize("reach", [0.3, 1, 2, 3])
def test_the_way_the_work_is_cut_changes_nothing(reach, monkeypatch):
    """Neither the width of the columns nor how much is done at once."""
    atoms = bulk("Cu").repeat((4, 5, 3))
    atoms.rattle(0.1, seed=3)
    expected = listed_by_ase(atoms, 5.0)
    monkeypatch.setattr(neighbors, "REACH", reach)
    assert edges(*ours(atoms, 5.0)) == expected
    monkeypatch.setattr(neighbors, "MOST_QUERIES", 200)
    monkeypatch.setattr(neighbors, "MOST_CANDIDATES", 97)
    assert edges(*ours(atoms, 5.0)) == expected


def test_a_slab_and_a_molecule_without_a_cell():
    slab = fcc111("Cu", (3, 3, 3), vacuum=8.0)
    slab.rattle(0.05, seed=0)
    assert not slab.pbc[2]
    assert edges(*ours(slab, 6.0)) == listed_by_ase(slab, 6.0)
    water = molecule("H2O")
    assert np.allclose(water.cell, 0)
    assert edges(*ours(water, 6.0)) == {(i, j, (0, 0, 0)) for i in range(3) for j in range(3) if i != j}


def test_shells_of_a_crystal_are_complete():
    """One atom in a cell that is far smaller than the cutoff: 12 + 6 + 24 + 12 + 24 + 8 + 48 neighbours of a face-centred lattice."""
    copper = bulk("Cu", a=4.0)
    for shells, expected in enumerate(np.cumsum([12, 6, 24, 12, 24, 8, 48]), start=1):
        cutoff = 4.0 * np.sqrt((shells + 0.5) / 2)
        assert ours(copper, cutoff)[0].shape[1] == expected
    assert edges(*ours(copper, 7.9)) == listed_by_ase(copper, 7.9)


def test_vectors_are_shorter_than_the_cutoff_and_both_directions_stand():
    for atoms, cutoff in random_structures(20, 5):
        edge_index, shifts = ours(atoms, cutoff)
        x = torch.from_numpy(atoms.positions)
        vectors = x[edge_index[0]] - x[edge_index[1]] + shifts @ torch.from_numpy(np.array(atoms.cell))
        assert bool((vectors.norm(dim=1) < cutoff).all())
        found = edges(edge_index, shifts)
        assert {(j, i, tuple(-c for c in s)) for i, j, s in found} == found


def test_empty_single_and_lonely():
    """No atom, one atom, atoms that do not see each other, and one that sees only itself through the boundary."""
    nothing, one = torch.zeros(0, 3), torch.zeros(1, 3)
    open_, closed = torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
    for places, cell, pbc in ((nothing, torch.zeros(3, 3), open_), (nothing, torch.eye(3), closed), (one, torch.zeros(3, 3), open_)):
        edge_index, shifts = neighbor_list(places, cell, pbc, 5.0)
        assert edge_index.shape == (2, 0) and shifts.shape == (0, 3) and edge_index.dtype == torch.long
    far = torch.tensor([[0.0, 0, 0], [1e7, 0, 0], [0, -1e7, 3e6]])
    assert neighbor_list(far, torch.zeros(3, 3), open_, 5.0)[0].shape[1] == 0
    edge_index, shifts = neighbor_list(one, 3 * torch.eye(3), closed, 3.1)
    assert edge_index.shape[1] == 6 and bool((shifts.abs().sum(1) == 1).all())


def test_coincident_atoms_are_a_pair():
    """Whoever asks sees them, instead of their being lost as an atom that neighbours itself."""
    places = torch.tensor([[1.0, 2, 3], [1.0, 2, 3]])
    assert neighbor_list(places, torch.zeros(3, 3), torch.zeros(3, dtype=torch.bool), 2.0)[0].tolist() == [[1, 0], [0, 1]]


def test_dtypes_and_repeatability():
    atoms = bulk("Al", cubic=True).repeat(2)
    atoms.rattle(0.1, seed=0)
    first, second = ours(atoms, 5.0), ours(atoms, 5.0)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    single = neighbor_list(torch.from_numpy(atoms.positions).float(), torch.from_numpy(np.array(atoms.cell)).float(), torch.ones(3), 5.0)
    assert single[1].dtype == torch.float32 and first[1].dtype == torch.float64
    assert edges(*single) == edges(*first)


def test_the_nearest_only():
    """The nearest of each centre; of equally near ones the first."""
    for atoms, cutoff in random_structures(30, 7):
        edge_index, shifts = ours(atoms, cutoff)
        x = torch.from_numpy(atoms.positions)
        lengths = (x[edge_index[0]] - x[edge_index[1]] + shifts @ torch.from_numpy(np.array(atoms.cell))).norm(dim=1)
        kept = edges(*ours(atoms, cutoff, max_neighbors=5))
        expected = set()
        for i in range(len(atoms)):
            own = (edge_index[1] == i).nonzero()[:, 0]
            own = own[torch.sort(lengths[own].round(decimals=9), stable=True).indices[:5]]
            expected |= {(i, int(edge_index[0, e]), tuple(shifts[e].int().tolist())) for e in own}
        assert kept == expected
    copper = bulk("Cu", a=4.0)
    edge_index, shifts = ours(copper, 6.0, max_neighbors=5)
    assert torch.equal(shifts, ours(copper, 3.0)[1][:5]), "twelve are equally near"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_place(value):
    places = torch.zeros(3, 3)
    places[1, 2] = value
    with pytest.raises(InputError, match="atom 1 is at no place"):
        neighbor_list(places, torch.eye(3), torch.ones(3), 2.0)


def test_cells_that_are_none():
    """Periodic without a volume; flat; not finite; in another unit."""
    places, every = torch.rand(4, 3), torch.ones(3)
    with pytest.raises(InputError, match="periodic along a, b, c, but its vectors span no volume"):
        neighbor_list(places, torch.zeros(3, 3), every, 2.0)
    flat = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0]])
    with pytest.raises(InputError, match="no volume"):
        neighbor_list(places, flat, every, 2.0)
    assert neighbor_list(places, flat, torch.tensor([1, 1, 0]), 2.0)[0].shape[1] > 0
    with pytest.raises(InputError, match="not finite"):
        neighbor_list(places, torch.full((3, 3), torch.nan), every, 2.0)
    with pytest.raises(InputError, match="must be in A"):
        neighbor_list(torch.rand(1000, 3), 0.3 * torch.eye(3), every, 6.0)
    with pytest.raises(InputError, match="cutoff of 0"):
        neighbor_list(places, flat, torch.zeros(3), 0.0)
    with pytest.raises(InputError, match="max_neighbors=0"):
        neighbor_list(places, flat, torch.zeros(3), 1.0, max_neighbors=0)
