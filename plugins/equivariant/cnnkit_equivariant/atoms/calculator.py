"""Potentials as calculators of ASE: relaxations, molecular dynamics, vibrations and whatever else ASE does with energies and forces."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import PropertyNotImplementedError, all_changes
from cnnkit.api import find_checkpoint
from cnnkit.engine.device import pick_device
from cnnkit.engine.load import load
from cnnkit.errors import CheckpointError, CnnkitError, UsageError
from torch_geometric.data import Data

from cnnkit_equivariant import PLUGIN
from cnnkit_equivariant.atoms.structures import bare_graph, check_distances, origins, voigt
from cnnkit_equivariant.models._base import Potential

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Calculator(AseCalculator):
    """Energies, forces and stresses of a trained potential for ASE.

    ::

        from ase.build import molecule
        from cnnkit_equivariant import Calculator

        atoms = molecule("H2O")
        atoms.calc = Calculator("model.ckpt")
        atoms.get_forces()

    The energies of the atoms, each with its element's reference, are how the network divides the energy: their sum is what was learned.
    Who asks for an energy alone does not pay for forces. Forces of periodic structures come with the stress, which costs next to nothing
    more, unless the network predicts its forces by themselves. Neighbours are found for a little more than the cutoff and kept until
    an atom has moved half of what is more; which of them are near enough is looked at each time, so that this changes no result.

    Args:
        checkpoint: A checkpoint, or a network, which is used as it is; the plugin's built-in checkpoint by default.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
        dtype: ``"float32"`` or ``"float64"``, the latter for vibrations and relaxations to small forces; by default that of the weights.
            Distances are taken in float64 in either.
        skin: How much more than the cutoff, in A; 0 finds the neighbours anew each time.

    Raises:
        CheckpointError: If the checkpoint cannot be read or is of no potential.
        UsageError: If device or dtype are not known.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "energies", "forces", "stress"]  # type: ignore[misc]

    def __init__(
        self,
        checkpoint: str | Path | Potential | None = None,
        *,
        device: str = "auto",
        dtype: Literal["float32", "float64"] | None = None,
        skin: float = 0.5,
    ) -> None:
        super().__init__()
        if dtype is not None and dtype not in DTYPES:
            raise UsageError(f"dtype {dtype!r} is not known; accepted: {', '.join(DTYPES)}")
        if not skin >= 0:
            raise UsageError(f"skin={skin} is no distance; accepted: 0 A or more")
        self.model = _potential(checkpoint, pick_device(device), DTYPES.get(dtype or ""))
        self.neighbors = Neighbors(self.model.cutoff, skin)

    def calculate(
        self, atoms: Atoms | None = None, properties: Sequence[str] = ("energy",), system_changes: Sequence[str] = tuple(all_changes)
    ) -> None:
        """Compute what is asked for, and what comes with it, into :attr:`results`.

        Raises:
            InputError: If the structure cannot be taken: an unknown element, two atoms at one place, a position that is not finite.
            CnnkitError: If what the network says is not finite.
        """
        super().calculate(atoms, list(properties), list(system_changes))
        assert self.atoms is not None
        full = bool(self.atoms.cell.rank == 3)
        if "stress" in properties and not full:
            raise PropertyNotImplementedError("a stress needs a cell with three vectors; this structure has none")
        forces = "forces" in properties
        stress = "stress" in properties or (forces and full and bool(self.atoms.pbc.any()) and not self.model.direct)
        found = self._evaluate(self.neighbors.graph(self.atoms), forces=forces or stress, stress=stress, energies=True)
        energy = float(found["energy"][0])
        self.results = {"energy": energy, "free_energy": energy, "energies": found["energies"]}
        if forces or stress:
            self.results["forces"] = found["forces"]
        if stress:
            self.results["stress"] = voigt(found["stress"][0])
        bad = [name for name, value in self.results.items() if not np.isfinite(value).all()]
        if bad:
            raise CnnkitError(
                f"the network's {', '.join(bad)} of {self.atoms.get_chemical_formula()} are not finite: it is far from the structures of "
                "its training, or float32 is too little; try dtype='float64'"
            )

    def _evaluate(self, graph: Data, **wanted: bool) -> dict[str, np.ndarray]:
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                found = self.model(graph.to(str(self.model.scale.device)), **wanted)
        finally:
            self.model.train(training)
        return {name: value.cpu().double().numpy() for name, value in found.items()}


def _potential(checkpoint: str | Path | Potential | None, device: torch.device, dtype: torch.dtype | None) -> Potential:
    """Return the network of a checkpoint, or a network as it is if it is of the kind that is wanted, else a copy."""
    if isinstance(checkpoint, Potential):
        weights = next(checkpoint.parameters())
        same = weights.device == device and weights.dtype == (dtype or weights.dtype)
        return checkpoint if same else copy.deepcopy(checkpoint).to(device, dtype)
    path = find_checkpoint(PLUGIN, checkpoint)
    model = load(path, plugin=PLUGIN).model
    if not isinstance(model, Potential):
        raise CheckpointError(f"{path} holds {type(model).__name__}, which knows no energies; give a checkpoint of a potential")
    return model.to(device, dtype).eval().requires_grad_(False)


class Neighbors:
    """Edges of a structure that moves, found for a little more than the cutoff and used as long as that is enough.

    Args:
        cutoff: In A.
        skin: How much more, in A.
    """

    def __init__(self, cutoff: float, skin: float = 0.5) -> None:
        self.cutoff, self.skin = cutoff, skin
        self.built = 0
        self._atoms: Atoms | None = None
        self._origins = np.zeros((0, 3))
        self._graph = Data()

    def graph(self, atoms: Atoms) -> Data:
        """Return the graph of a structure with float64 positions: the same edges as without a skin.

        Raises:
            InputError: As :func:`~cnnkit_equivariant.atoms.structures.to_graph` does.
        """
        if not self._serves(atoms):
            self._atoms = None
            self._origins = origins(atoms)
            self._graph = bare_graph(atoms, self.cutoff + self.skin, dtype=torch.float64, origin=self._origins)
            self._atoms = atoms.copy()
            self.built += 1
        graph = copy.copy(self._graph)
        graph.pos = torch.from_numpy(atoms.positions - self._origins)
        neighbor, center = graph.edge_index
        vectors = graph.pos.index_select(0, neighbor) - graph.pos.index_select(0, center) + graph.shifts @ graph.cell[0]
        near = vectors.square().sum(1) < self.cutoff**2
        graph.edge_index, graph.shifts = graph.edge_index[:, near], graph.shifts[near]
        check_distances(atoms, graph.pos, graph.edge_index, graph.shifts)
        return graph

    def _serves(self, atoms: Atoms) -> bool:
        """Return whether the edges that were found hold all that are near enough now."""
        old = self._atoms
        if old is None or self.skin == 0 or len(old) != len(atoms):
            return False
        same = np.array_equal(old.numbers, atoms.numbers) and np.array_equal(old.pbc, atoms.pbc) and np.array_equal(old.cell, atoms.cell)
        if not same:
            return False
        moved = float(np.linalg.norm(atoms.positions - old.positions, axis=1).max(initial=0.0))
        return math.isfinite(moved) and moved < 0.5 * self.skin
