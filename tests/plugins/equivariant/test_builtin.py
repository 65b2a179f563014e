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
from cnnkit_equivariant.atoms.adsorption import FMAX, STEPS, compare, start
from cnnkit_equivariant.atoms.relax import relax
from scipy.spatial.transform import Rotation


@pytest.fixture(scope="module")
def potential() -> Calculator:
    return Calculator(device="cpu", dtype="float64")


def test_it_is_small() -> None:
    assert find_checkpoint(get("equivariant")).stat().st_size < 2e6


@pytest.mark.paper("escn")
def test_it_knows_structures_that_it_was_not_trained_on(potential: Calculator) -> None:
    """Below 10 meV/atom and 50 meV/A, and energies ten times better than the mean of each kind."""
    truths = emt.structures("test", 96)
    energies, forces = [], []
    for truth in truths:
        atoms = truth.copy()
        atoms.calc = potential
        energies.append((atoms.get_potential_energy() - truth.get_potential_energy()) / len(atoms))
        forces.append(np.abs(atoms.get_forces() - truth.get_forces()).ravel())
    per_atom = np.array([truth.get_potential_energy() / len(truth) for truth in truths])
    kinds = np.array([truth.info["kind"] for truth in truths])
    spread = np.concatenate([np.abs(per_atom[kinds == kind] - per_atom[kinds == kind].mean()) for kind in sorted(set(kinds))])
    assert np.mean(np.abs(energies)) < min(0.010, np.mean(spread) / 10)
    assert np.concatenate(forces).mean() < 0.050


def test_an_adsorbate_relaxes_to_where_it_does_by_emt(potential: Calculator) -> None:
    """Within 0.05 A, from 0.3 A away, of a combination that was held out."""
    what = emt.Adsorption("Cu", "100", "N")
    found = compare(what, relax(start(what), potential, fmax=FMAX, steps=STEPS))
    assert what.split == "test" and found.moved > 0.3 and found.apart < 0.05
    assert found.network_energy == pytest.approx(found.emt_energy, abs=0.05)


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
    assert turned.get_potential_energy() == pytest.approx(energy, abs=5e-6)
    assert np.abs(turned.get_forces() - forces @ matrix.T).max() < 2e-4
