"""From ASE's atoms to graphs: edges, known energies, forces and stresses, and what is wrong with a structure said in words.

Units are ASE's: A, eV, eV/A, eV/A^3. What a structure does not say is NaN.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from cnnkit.errors import InputError, InputWarning
from torch import Tensor
from torch_geometric.data import Data

from cnnkit_equivariant.atoms.neighbors import complete_cell, neighbor_list

if TYPE_CHECKING:
    from ase import Atoms

CLOSEST = 0.01
"""Atoms that are closer than this, in A, are one atom that was written twice."""
MOST_PAIRED = 300
"""Atoms of which all pairs are looked at without a search."""
LARGE_FORCE = 15.0
"""Root mean square in eV/A above which forces are likely in another unit."""
LARGE_SPREAD = 3.0
"""Spread of the energy per atom of one composition in eV above which energies are likely in another unit."""
KCAL = 0.0433641
"""One kcal/mol in eV."""


@dataclass(frozen=True)
class References:
    """What is known of a structure; NaN where it is not.

    Args:
        energy: In eV.
        forces: In eV/A, ``(N, 3)``.
        stress: In eV/A^3, positive under tension, ``(3, 3)``.
    """

    energy: float
    forces: np.ndarray
    stress: np.ndarray

    @property
    def any(self) -> bool:
        """Whether an energy or a force is known."""
        return math.isfinite(self.energy) or bool(np.isfinite(self.forces).any())


def to_graph(atoms: Atoms, cutoff: float, *, dtype: torch.dtype = torch.float32, max_neighbors: int | None = None) -> Data:
    """Return a structure as the graph that a potential takes, with its references as targets.

    Positions are moved by whole cells into the cell, and along directions without a period to around the origin, so that they keep their
    digits in float32 wherever the structure lies; vectors between atoms stay as they are.

    Args:
        atoms: The structure.
        cutoff: Distance up to which atoms see each other, in A.
        dtype: Of positions, cell, forces and stress; energies are float64.
        max_neighbors: See :func:`~cnnkit_equivariant.atoms.neighbors.neighbor_list`.

    Returns:
        A graph with ``pos``, ``z``, ``edge_index``, ``shifts``, ``cell``, ``pbc``, and the targets ``energy (1,)``, ``forces (N, 3)`` and
        ``stress (1, 3, 3)``.

    Raises:
        InputError: If it has no atoms, a position is not finite, two atoms are at one place, or the periodic cell has no volume.
    """
    known = references(atoms)
    graph = bare_graph(atoms, cutoff, dtype=dtype, max_neighbors=max_neighbors)
    graph.energy = torch.tensor([known.energy], dtype=torch.float64)
    graph.forces = torch.from_numpy(known.forces).to(dtype)
    graph.stress = torch.from_numpy(known.stress).to(dtype)[None]
    return graph


def bare_graph(
    atoms: Atoms, cutoff: float, *, dtype: torch.dtype = torch.float32, max_neighbors: int | None = None, origin: np.ndarray | None = None
) -> Data:
    """Return the graph of :func:`to_graph` without targets.

    Args:
        atoms: The structure.
        cutoff: In A.
        dtype: Of positions and cell.
        max_neighbors: See :func:`to_graph`.
        origin: What :func:`origins` says, ``(N, 3)``, if it was asked already.

    Raises:
        InputError: As :func:`to_graph` does.
    """
    cell, pbc = torch.from_numpy(np.array(atoms.cell)), torch.from_numpy(np.array(atoms.pbc))
    places = torch.from_numpy(atoms.positions - (origins(atoms) if origin is None else origin))
    edge_index, shifts = neighbor_list(places, cell, pbc, cutoff, max_neighbors=max_neighbors)
    check_distances(atoms, places, edge_index, shifts)
    return Data(
        pos=places.to(dtype),
        z=torch.from_numpy(atoms.numbers.astype(np.int64)),
        edge_index=edge_index,
        shifts=shifts.to(dtype),
        cell=cell.to(dtype)[None],
        pbc=pbc[None],
    )


def check_structure(atoms: Atoms) -> None:
    """Refuse a structure that no potential can take, whatever its elements.

    Raises:
        InputError: If it has no atoms, a position is not finite, two atoms are at one place, the periodic cell has no volume, or its
            references have the wrong form.
    """
    cell, pbc = torch.from_numpy(np.array(atoms.cell)), torch.from_numpy(np.array(atoms.pbc))
    places = torch.from_numpy(atoms.positions - origins(atoms))
    if len(atoms) > MOST_PAIRED or _perhaps_close(atoms):
        check_distances(atoms, places, *neighbor_list(places, cell, pbc, CLOSEST))
    references(atoms)


def _perhaps_close(atoms: Atoms) -> bool:
    """Return quickly whether two atoms may be at one place: a file has thousands of structures, and next to none has such."""
    basis, _ = complete_cell(
        torch.from_numpy(atoms.positions), torch.from_numpy(np.array(atoms.cell)), torch.from_numpy(np.array(atoms.pbc))
    )
    inverse = np.linalg.inv(basis)
    if np.linalg.norm(inverse, axis=0).max() > 1:  # A cell thinner than 1 A: the nearest image need not be the one of rounding.
        return True
    apart = (atoms.positions[:, None] - atoms.positions) @ inverse
    apart -= np.where(atoms.pbc, np.round(apart), 0.0)
    squares = np.square(apart @ basis).sum(-1)
    np.fill_diagonal(squares, np.inf)
    return bool(squares.min() < (2 * CLOSEST) ** 2)


def _check_places(atoms: Atoms) -> None:
    if len(atoms) == 0:
        raise InputError("the structure has no atoms")
    bad = np.flatnonzero(~np.isfinite(atoms.positions).all(1))
    if len(bad):
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise InputError(f"atom {bad[0]} ({atoms.symbols[bad[0]]}){more} has a position that is not a finite number")


def origins(atoms: Atoms) -> np.ndarray:
    """Return what to subtract from the positions to bring them into the cell and around the origin, ``(N, 3)``.

    Raises:
        InputError: If there are no atoms, a position is not finite, or the periodic vectors span no volume.
    """
    _check_places(atoms)
    cell, pbc = torch.from_numpy(np.array(atoms.cell)), np.array(atoms.pbc)
    basis, _ = complete_cell(torch.from_numpy(atoms.positions), cell, torch.from_numpy(pbc))
    fractions = atoms.positions @ np.linalg.inv(basis)
    middle = 0.5 * (fractions.min(0) + fractions.max(0))
    result: np.ndarray = np.where(pbc, np.floor(fractions), middle) @ basis
    return result


def check_distances(atoms: Atoms, places: Tensor, edge_index: Tensor, shifts: Tensor) -> None:
    """Refuse atoms that are at one place.

    Raises:
        InputError: Naming the closest pair.
    """
    if not edge_index.shape[1]:
        return
    cell = torch.from_numpy(np.array(atoms.cell))
    neighbor, center = edge_index
    squares = (places[neighbor] - places[center] + shifts @ cell).square().sum(1)
    closest = int(squares.argmin())
    distance = math.sqrt(float(squares[closest]))
    if distance < CLOSEST:
        first, second = sorted((int(center[closest]), int(neighbor[closest])))
        image = " (an image of it)" if bool((shifts[closest] != 0).any()) else ""
        raise InputError(
            f"atoms {first} ({atoms.symbols[first]}) and {second} ({atoms.symbols[second]}){image} are {distance:.2g} A apart; "
            "two atoms cannot be at one place: remove one of them, or correct positions and cell (in A)"
        )


def references(atoms: Atoms) -> References:
    """Return the energy, forces and stress that came with a structure.

    They are taken from its calculator, if that has them without computing, else from ``REF_energy``, ``REF_forces`` and ``REF_stress``
    as other trainers write them.

    Raises:
        InputError: If one has the wrong form.
    """
    forces = _result(atoms, "forces")
    stress = _result(atoms, "stress")
    return References(
        float(_shaped(_result(atoms, "energy"), (), "the energy")),
        _shaped(forces, (len(atoms), 3), "the forces"),
        _full_stress(stress),
    )


def _result(atoms: Atoms, name: str) -> Any:
    value = atoms.calc.get_property(name, atoms, allow_calculation=False) if atoms.calc is not None else None
    if value is not None:
        return value
    return atoms.arrays.get(f"REF_{name}") if name == "forces" else atoms.info.get(f"REF_{name}")


def _shaped(value: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    if value is None:
        return np.full(shape, np.nan)
    try:
        return np.array(value, dtype=np.float64).reshape(shape)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} of the structure cannot be read ({error}); expected numbers of shape {shape}") from error


def _full_stress(value: Any) -> np.ndarray:
    if value is None or np.size(value) != 6:
        return _shaped(value, (3, 3), "the stress")
    xx, yy, zz, yz, xz, xy = _shaped(value, (6,), "the stress")
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])


def voigt(stress: np.ndarray) -> np.ndarray:
    """Return a symmetric ``(3, 3)`` as ASE's ``xx, yy, zz, yz, xz, xy``."""
    return stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


def warn_of_units(structures: Sequence[Atoms], source: str) -> None:
    """Warn if the references of structures are so large that they are likely in kcal/mol instead of eV.

    Args:
        structures: Structures of one source.
        source: Named in the warning.
    """
    known = [references(atoms) for atoms in structures]
    forces = np.concatenate([one.forces.ravel() for one in known]) if known else np.zeros(0)
    forces = forces[np.isfinite(forces)]
    signs = []
    if len(forces) and (size := float(np.sqrt(np.mean(forces**2)))) > LARGE_FORCE:
        signs.append(f"the forces' root mean square is {size:.3g} eV/A")
    energies: dict[str, list[float]] = {}
    for atoms, one in zip(structures, known, strict=True):
        if math.isfinite(one.energy):
            energies.setdefault(atoms.get_chemical_formula(), []).append(one.energy / len(atoms))
    spread = max((float(np.std(values)) for values in energies.values() if len(values) > 1), default=0.0)
    if spread > LARGE_SPREAD:
        signs.append(f"energies of one composition spread by {spread:.3g} eV per atom")
    if signs:
        warnings.warn(
            f"{source}: {' and '.join(signs)}, much for eV; if the file is in kcal/mol, multiply its energies and forces by {KCAL}",
            InputWarning,
            stacklevel=2,
        )
