"""Structures as graphs: vectors, targets, precision far from the origin, and every structure that no potential can take."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from cnnkit.errors import InputError, InputWarning
from cnnkit_equivariant.atoms.structures import check_structure, references, to_graph, voigt, warn_of_units
from cnnkit_equivariant.models._base import AtomicOutput, Potential, edge_vectors
from torch_geometric.data import Batch

pytestmark = pytest.mark.paper("escn")


class Lonely(Potential):
    """Counts neighbours with a weight that fades out at the cutoff."""

    def __init__(self, elements=("Cu", "O")):
        super().__init__(elements=elements, cutoff=5.0)
        self.weight = torch.nn.Parameter(torch.ones(()))

    def atomwise(self, species, vectors, edge_index):
        each = self.weight * (1 - vectors.square().sum(1) / self.cutoff**2).clamp_min(0) ** 3
        return AtomicOutput(torch.zeros(len(species), dtype=each.dtype).index_add(0, edge_index[1], each))


def vectors_of(graph):
    batch = torch.zeros_like(graph.z)
    return edge_vectors(graph.pos, graph.cell, None, graph.edge_index, graph.shifts, batch)


def slab():
    atoms = fcc111("Cu", (2, 2, 3), vacuum=8.0)
    atoms.rattle(0.1, seed=1)
    return atoms


def test_the_form_of_a_graph():
    graph = to_graph(slab(), 5.0)
    edges = graph.edge_index.shape[1]
    assert graph.pos.shape == graph.forces.shape == (12, 3) and graph.z.tolist() == [29] * 12
    assert (
        graph.shifts.shape == (edges, 3)
        and graph.cell.shape == graph.stress.shape == (1, 3, 3)
        and graph.pbc.tolist() == [[True, True, False]]
    )
    assert graph.energy.dtype == torch.float64 and graph.pos.dtype == graph.forces.dtype == torch.float32
    lengths = vectors_of(graph).norm(dim=1)
    assert float(lengths.min()) > 2.0 and float(lengths.max()) < 5.0
    assert to_graph(slab(), 5.0, max_neighbors=4).edge_index.shape[1] == 48
    both = Batch.from_data_list([graph, to_graph(molecule("O2"), 5.0)])
    assert both.cell.shape == (2, 3, 3) and both.energy.shape == (2,) and both.num_graphs == 2


def test_references_of_a_calculator_that_has_them():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    atoms.calc = EMT()
    assert not references(atoms).any, "nothing is computed"
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False)
    graph = to_graph(atoms, 5.0, dtype=torch.float64)
    assert graph.energy.item() == energy
    assert np.array_equal(graph.forces, forces) and np.allclose(graph.stress[0], stress, atol=1e-15)
    assert np.array_equal(voigt(references(atoms).stress), atoms.get_stress())
    atoms.positions[0] += 0.1
    assert not references(atoms).any, "they belong to another structure"


def test_what_is_not_known_is_nan():
    atoms = bulk("Cu", cubic=True)
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
    graph = to_graph(atoms, 5.0)
    assert graph.energy.item() == -1.0
    assert bool(graph.forces.isnan().all()) and bool(graph.stress.isnan().all())
    other = bulk("Cu", cubic=True)
    other.info["REF_energy"], other.arrays["REF_forces"] = -2.0, np.full((4, 3), 0.5)
    graph = to_graph(other, 5.0)
    assert graph.energy.item() == -2.0 and float(graph.forces.min()) == 0.5 and bool(graph.stress.isnan().all())


def test_references_of_the_wrong_form():
    atoms = bulk("Cu", cubic=True)
    for name, value, told in (
        ("energy", "low", "the energy"),
        ("forces", np.zeros((3, 3)), "the forces"),
        ("stress", np.zeros(5), "the stress"),
    ):
        atoms.calc = SinglePointCalculator(atoms, **{name: value})
        with pytest.raises(InputError, match=told):
            to_graph(atoms, 5.0)


@pytest.mark.parametrize("far", [1e3, 1e6, -4e7])
def test_single_precision_far_from_the_origin(far):
    """Bond lengths keep six digits where float32 coordinates would have lost them all."""
    for atoms in (molecule("C6H6"), slab(), bulk("Cu").repeat(2)):
        exact = vectors_of(to_graph(atoms, 5.0, dtype=torch.float64))
        moved = atoms.copy()
        moved.positions += far * np.array([1.0, -0.7, 0.4])
        graph = to_graph(moved, 5.0)
        found = vectors_of(graph).double()
        assert found.shape == exact.shape
        apart = torch.cdist(exact, found).amin(1)  # The order of edges depends on where the cell begins.
        assert float(apart.max()) < 2e-6 + 1e-15 * abs(far) * 4
        assert float(graph.pos.abs().max()) < 40


def test_atoms_outside_the_cell_make_the_same_graph():
    atoms = slab()
    moved = atoms.copy()
    moved.positions += np.random.default_rng(0).integers(-3, 4, (12, 2)) @ np.array(atoms.cell)[:2]
    first, second = (to_graph(each, 5.0, dtype=torch.float64) for each in (atoms, moved))
    model = Lonely().double().eval()
    assert torch.allclose(first.pos, second.pos, atol=1e-12) and torch.equal(first.edge_index, second.edge_index)
    assert torch.allclose(model(first)["forces"], model(second)["forces"], atol=1e-12)


def test_lonely_and_straight_structures_are_fine():
    """One atom, atoms that see no other, and molecules in a line along each axis."""
    model = Lonely().eval()
    for atoms in (Atoms("Cu"), Atoms("Cu2", [(0, 0, 0), (0, 0, 50)]), Atoms("Cu", cell=[9, 9, 9], pbc=True)):
        found = model(to_graph(atoms, 5.0))
        assert float(found["energy"]) == 0 and float(found["forces"].abs().max()) == 0
    for axis in range(3):
        atoms = Atoms("O3", np.eye(3)[axis] * np.array([[0], [1.2], [2.4]]))
        check_structure(atoms)
        forces = model(to_graph(atoms, 5.0))["forces"]
        assert bool(forces.isfinite().all()) and float(forces.abs().amax(0)[axis]) > 0


def test_atoms_at_one_place():
    """In the cell, through its boundary, and as an image of itself."""
    atoms = Atoms("CuO", [(1, 1, 1), (1, 1, 1.005)])
    for check in (check_structure, lambda each: to_graph(each, 5.0)):
        with pytest.raises(InputError, match=r"atoms 0 \(Cu\) and 1 \(O\) are 0.005 A apart"):
            check(atoms)
        with pytest.raises(InputError, match=r"atoms 0 \(Cu\) and 1 \(O\) \(an image of it\) are 0.004 A apart"):
            check(Atoms("CuO", [(0, 0, 0), (0, 0, 3.996)], cell=[4, 4, 4], pbc=True))
    check_structure(Atoms("CuO", [(1, 1, 1), (1, 1, 1.02)]))
    with pytest.raises(InputError, match=r"0 \(Cu\) and 0 \(Cu\) \(an image of it\)"):
        check_structure(Atoms("Cu", cell=[0.009, 4, 4], pbc=True))
    for count in (2, 400):
        many = Atoms(
            f"Cu{count}", [(2.5 * index, 0, 0) for index in range(count)], cell=[[2.5 * count, 0, 0], [3, 9, 0], [-2, 1, 9]], pbc=True
        )
        check_structure(many)
        many.positions[1] = many.positions[0] + 2 * many.cell[0] - many.cell[2]
        with pytest.raises(InputError, match=r"atoms 0 \(Cu\) and 1 \(Cu\)"):
            check_structure(many)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_positions_that_are_no_numbers(value):
    atoms = Atoms("CuO", [(0, 0, 0), (0, 0, value)])
    for check in (check_structure, lambda each: to_graph(each, 5.0)):
        with pytest.raises(InputError, match=r"atom 1 \(O\) has a position that is not a finite number"):
            check(atoms)


def test_nothing_and_no_volume():
    for check in (check_structure, lambda each: to_graph(each, 5.0)):
        with pytest.raises(InputError, match="no atoms"):
            check(Atoms())
        with pytest.raises(InputError, match="periodic along a, b, c, but its vectors span no volume"):
            check(Atoms("Cu", pbc=True))
        with pytest.raises(InputError, match="no volume"):
            check(Atoms("Cu", cell=[[1, 0, 0], [0, 1, 0], [1, 1, 0]], pbc=True))


@pytest.mark.parametrize(("symbol", "named"), [("X", "X"), ("Fe", "Fe")])
def test_elements_that_a_network_does_not_know(symbol, named):
    """A ghost atom and another metal; the message names what it knows."""
    with pytest.raises(InputError, match=rf"{named}: not among the elements .* \(Cu, O\)"):
        Lonely()(to_graph(Atoms(["Cu", symbol], [(0, 0, 0), (0, 0, 2)]), 5.0))


def test_units_that_look_like_kilocalories():
    """Forces and energies of EMT pass; the same numbers in kcal/mol are warned of, with the factor."""

    def labelled(factor):
        made = []
        for seed in range(4):
            atoms = bulk("Cu", cubic=True)
            atoms.rattle(0.1 + 0.1 * seed, seed=seed)
            atoms.calc = EMT()
            energy, forces = factor * atoms.get_potential_energy(), factor * atoms.get_forces()
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
            made.append(atoms)
        return made

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_units(labelled(1.0), "a.xyz")
        warn_of_units([molecule("H2O")], "a.xyz")
        warn_of_units([], "a.xyz")
    with pytest.warns(InputWarning, match=r"a.xyz: the forces' root mean square is .*kcal/mol, multiply .* 0.0433641"):
        warn_of_units(labelled(1 / 0.0433641), "a.xyz")
    wide = [bulk("Cu", cubic=True) for _ in range(2)]
    for atoms, energy in zip(wide, (0.0, 80.0), strict=True):
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
    with pytest.warns(InputWarning, match="spread by 10 eV per atom"):
        warn_of_units(wide, "a.xyz")
