"""Adsorbates relaxed by a network and by EMT from the same start: where both end, and with which energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

from cnnkit_equivariant.atoms import emt
from cnnkit_equivariant.atoms.emt import Adsorption
from cnnkit_equivariant.atoms.relax import Relaxation, relax

EXAMPLE = Adsorption("Pd", "111", "O")
"""Held out: no split but the test shows it."""
FMAX, STEPS = 0.02, 200


def start(what: Adsorption) -> Atoms:
    """Return an adsorbate over a hollow of its slab: too high, off the site, a molecule stretched and tilted; the lowest layer is fixed."""
    site = "fcc" if what.facet == "111" else "hollow"
    atoms = emt.slab(what, site, shift=(0.25, 0.15), stretch=1.12, bond=1.06, tilt=(0.3, 0.5))
    heights = atoms.positions[:, 2]
    atoms.set_constraint(FixAtoms(mask=heights < heights.min() + 0.5))
    return atoms


@dataclass(frozen=True)
class Compared:
    """Two relaxations of an adsorbate.

    Args:
        what: The adsorbate and its slab.
        apart: By how much the ends of an atom of the adsorbate differ, at most, in A.
        moved: By how much EMT moves an atom of the adsorbate, at most, in A.
        network_energy: By the network at its end, in eV.
        emt_energy: By EMT at its own end, in eV.
        steps: Of the network's relaxation.
        emt_steps: Of EMT's.
    """

    what: Adsorption
    apart: float
    moved: float
    network_energy: float
    emt_energy: float
    steps: int
    emt_steps: int

    def summary(self) -> dict[str, Any]:
        """Return the figures in words."""
        return {
            f"{self.what.adsorbate} on {self.what.metal}({self.what.facet}), relaxed": {
                "energy by the network, eV": self.network_energy,
                "energy by EMT, eV": self.emt_energy,
                "steps of the network": self.steps,
                "steps of EMT": self.emt_steps,
                "EMT moves the adsorbate by, A": self.moved,
                "both ends are apart by, A": self.apart,
            }
        }


def compare(what: Adsorption, mine: Relaxation, *, fmax: float = FMAX, steps: int = STEPS) -> Compared:
    """Relax by EMT from where a network's relaxation started, and compare the ends.

    Args:
        what: The adsorbate and its slab, which started as :func:`start` says.
        mine: The network's relaxation.
        fmax: Largest force at which EMT's ends, in eV/A.
        steps: After which it ends anyway.
    """
    first = start(what)
    true = relax(first, EMT(), fmax=fmax, steps=steps)
    adsorbed = slice(-len(emt.ADSORBATES[what.adsorbate]), None)
    return Compared(
        what,
        apart=_farthest(mine.atoms.positions[adsorbed], true.atoms.positions[adsorbed]),
        moved=_farthest(first.positions[adsorbed], true.atoms.positions[adsorbed]),
        network_energy=mine.energies[-1],
        emt_energy=true.energies[-1],
        steps=mine.steps,
        emt_steps=true.steps,
    )


def _farthest(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other, axis=1).max())
