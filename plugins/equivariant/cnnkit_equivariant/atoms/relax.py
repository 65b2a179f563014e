"""Relaxations: atoms, and if wanted the cell, moved until the forces are small."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE, LBFGS
from cnnkit.errors import CnnkitError, InputError, InputWarning

OPTIMIZERS = {"lbfgs": LBFGS, "bfgs": BFGS, "fire": FIRE}


@dataclass
class Relaxation:
    """What became of a structure.

    Args:
        atoms: The last structure, with its energy, forces and, of a cell, stress as results.
        energies: At each step from the start, in eV.
        forces: Largest force at each step, in eV/A; of a cell that relaxes, its stress counts as ASE's filter has it.
        converged: Whether the last of these is below what was asked for.
    """

    atoms: Atoms
    energies: list[float] = field(default_factory=list)
    forces: list[float] = field(default_factory=list)
    converged: bool = False

    @property
    def steps(self) -> int:
        """How often the atoms were moved."""
        return len(self.energies) - 1


def relax(
    atoms: Atoms,
    calculator: Any,
    *,
    cell: bool = False,
    fmax: float = 0.05,
    steps: int = 200,
    optimizer: Literal["lbfgs", "bfgs", "fire"] = "lbfgs",
) -> Relaxation:
    """Move the atoms of a copy of a structure until no force is larger than ``fmax``; atoms that are fixed stay.

    A relaxation that does not get there within ``steps`` ends with an :class:`~cnnkit.errors.InputWarning`.

    Args:
        atoms: Where it starts; left as it is.
        calculator: What gives the forces: any of ASE's kind.
        cell: Whether the cell changes too, in the directions in which it is periodic.
        fmax: In eV/A.
        steps: At most.
        optimizer: Whose steps: ``"lbfgs"``, ``"bfgs"`` (better for few atoms) or ``"fire"`` (slower, and sure-footed far from a minimum).

    Raises:
        InputError: If the cell is to change and there is none, or the potential cannot take the structure.
        CnnkitError: If energies or forces stop being finite.
    """
    moving = atoms.copy()
    moving.calc = calculator
    target: Any = moving
    if cell:
        if moving.cell.rank < 3 or not moving.pbc.any():
            raise InputError("the structure has no periodic cell that could relax; leave --cell out")
        a, b, c = moving.pbc.astype(int)
        target = FrechetCellFilter(moving, mask=[a, b, c, b * c, a * c, a * b])
    result = Relaxation(moving)
    for converged in OPTIMIZERS[optimizer](target, logfile=None).irun(fmax=fmax, steps=steps):
        energy, force = moving.get_potential_energy(), float(np.linalg.norm(target.get_forces(), axis=1).max())
        if not (np.isfinite(energy) and np.isfinite(force)):
            raise CnnkitError(
                f"the relaxation went astray at step {len(result.energies)}: its energy is {energy:g} eV, its largest force {force:g} eV/A"
            )
        result.energies.append(float(energy))
        result.forces.append(force)
        result.converged = bool(converged)
    if not result.converged:
        warnings.warn(
            f"{atoms.get_chemical_formula()} was not relaxed after {result.steps} steps: its largest force is {result.forces[-1]:.3g} eV/A "
            f"instead of {fmax:g}; take more --steps or a larger --fmax",
            InputWarning,
            stacklevel=2,
        )
    known = {name: calculator.get_property(name, moving, allow_calculation=False) for name in ("energy", "forces", "stress")}
    moving.calc = SinglePointCalculator(moving, **{name: value for name, value in known.items() if value is not None})
    return result
