"""The potential that comes with the plugin: small, better than what knows less, and symmetric after its training."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import fcc111

pytest.importorskip("cnnkit_equivariant")

from cnnkit.api import find_checkpoint
from cnnkit.plugin import get
from cnnkit_equivariant import Calculator
from cnnkit_equivariant.atoms import emt
from scipy.spatial.transform import Rotation


@pytest.fixture(scope="module")
def potential() -> Calculator:
    return Calculator(device="cpu", dtype="float64")


def test_it_is_small() -> None:
    assert find_checkpoint(get("equivariant")).stat().st_size < 2e6


@pytest.mark.paper("escn")
def test_it_knows_structures_that_it_was_not_trained_on(potential: Calculator) -> None:
    """Energies per atom five times better than the mean of a kind's, forces three times better than none."""
    structures = [atoms.copy() for atoms in emt.structures("test", 24)]
    energies, forces = [], []
    for atoms, truth in zip(structures, emt.structures("test", 24), strict=True):
        atoms.calc = potential
        energies.append((atoms.get_potential_energy() - truth.get_potential_energy()) / len(atoms))
        forces.append([atoms.get_forces().ravel() - truth.get_forces().ravel(), truth.get_forces().ravel()])
    per_atom = np.array([atoms.get_potential_energy() / len(atoms) for atoms in emt.structures("test", 24)])
    kinds = np.array([atoms.info["kind"] for atoms in emt.structures("test", 24)])
    spread = np.concatenate([np.abs(per_atom[kinds == kind] - per_atom[kinds == kind].mean()) for kind in sorted(set(kinds))])
    assert 5 * np.mean(np.abs(energies)) < np.mean(spread)
    errors, sizes = (np.concatenate([pair[part] for pair in forces]) for part in (0, 1))
    assert 3 * np.abs(errors).mean() < np.abs(sizes).mean()


def test_a_surface_turns(potential: Calculator) -> None:
    """Without its cell it is a cluster, whose energy is that of the turned one; and forces turn with it."""
    atoms = fcc111("Pd", (2, 2, 2), vacuum=5.0)
    atoms.pbc, atoms.cell = False, None
    atoms.rattle(0.1, seed=0)
    turned = atoms.copy()
    matrix = Rotation.random(rng=np.random.default_rng(0)).as_matrix()
    turned.positions = turned.positions @ matrix.T
    atoms.calc = turned.calc = potential
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    assert turned.get_potential_energy() == pytest.approx(energy, abs=3e-4)
    assert np.abs(turned.get_forces() - forces @ matrix.T).max() < 3e-3
