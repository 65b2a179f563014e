"""Structures labelled by ASE's effective medium theory (EMT): metals, alloys and small adsorbates on slabs, a miniature of OC20.

Every structure is a function of the split, the seed and its number alone. What validation and test show was not trained on:

=========  ==============================  ==============================================================
kind       training                        test
=========  ==============================  ==============================================================
bulk       primitive and cubic cells       cells of other shape
alloy      two metals                      three metals
slab       metal, facet and adsorbate      combinations of the three that are held out
clean      two or three layers             four layers
gas        one to three light atoms        others of the kind
=========  ==============================  ==============================================================

Validation shows other structures of the training's kinds, and slabs that are held out for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from ase import Atoms
from ase.build import bulk, fcc100, fcc111
from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
METALS = {"Ag": 4.09, "Al": 4.05, "Au": 4.08, "Cu": 3.61, "Ni": 3.52, "Pd": 3.89, "Pt": 3.92}
"""Lattice constants of the fcc metals in A."""
RADII = {"H": 0.68, "C": 0.45, "N": 0.45, "O": 0.57}
"""What an adsorbed atom adds to the metal's radius in the distance at which EMT holds it, in A."""
ADSORBATES = {"H": ("H",), "C": ("C",), "N": ("N",), "O": ("O",), "CO": ("C", "O"), "OH": ("O", "H"), "NH": ("N", "H"), "N2": ("N", "N")}
"""Atoms of each adsorbate, the one at the metal first."""
BONDS = {"CO": 1.05, "OH": 1.05, "NH": 1.05, "N2": 1.0}
"""Lengths of EMT's free molecules in A."""
FACETS = ("111", "100")
SITES = {"111": ("ontop", "bridge", "fcc", "hcp"), "100": ("ontop", "bridge", "hollow")}
ELEMENTS = (*METALS, *RADII)
KINDS = ("slab", "alloy", "slab", "bulk", "slab", "alloy", "slab", "clean", "slab", "alloy", "slab", "gas")
"""The kind of structure number ``i`` is that at ``i % 12``."""
VACUUM = 5.0
MOST_FORCE = 8.0
"""Structures with a larger force than this, in eV/A, are drawn anew."""


@dataclass(frozen=True)
class Adsorption:
    """An adsorbate on a metal's facet."""

    metal: str
    facet: str
    adsorbate: str

    @property
    def split(self) -> Split:
        """Which split shows it: one in eight the test, one in sixteen the validation; its parts occur in training, each with the others."""
        metal, adsorbate = list(METALS).index(self.metal), list(ADSORBATES).index(self.adsorbate)
        turn = (metal + 3 * FACETS.index(self.facet) + adsorbate) % 8
        if turn == 4 and metal % 2:
            return "val"
        return "test" if turn == 0 else "train"


@lru_cache
def adsorptions(split: Split) -> tuple[Adsorption, ...]:
    """Return the combinations of metal, facet and adsorbate that a split shows."""
    every = (Adsorption(metal, facet, adsorbate) for metal in METALS for facet in FACETS for adsorbate in ADSORBATES)
    return tuple(item for item in every if item.split == split)


def label(atoms: Atoms) -> Atoms:
    """Put EMT's energy, forces, and for cells that repeat in three directions its stress, on a structure, and return it."""
    engine = EMT()
    engine.calculate(atoms, ["energy", "forces"], all_changes)
    found = {name: engine.results[name] for name in ("energy", "forces", "stress")[: 3 if atoms.pbc.all() else 2]}
    atoms.calc = SinglePointCalculator(
        atoms, **{name: np.array(value, float) if np.ndim(value) else float(value) for name, value in found.items()}
    )
    return atoms


@lru_cache(maxsize=8)
def structures(split: Split, count: int, *, seed: int = 0) -> tuple[Atoms, ...]:
    """Return labelled structures, the first ``count`` of a split; about 9 ms each, and made once.

    Their ``info["kind"]`` is one of :data:`KINDS`.
    """
    return tuple(structure(split, number, seed=seed) for number in range(count))


def structure(split: Split, number: int, *, seed: int = 0) -> Atoms:
    """Return one labelled structure."""
    rng = np.random.default_rng((seed, SPLITS.index(split), number))
    kind = KINDS[number % len(KINDS)]
    while True:
        atoms = _MAKERS[kind](rng, split)
        _disturb(atoms, rng)
        if label(atoms).get_forces().__abs__().max() <= MOST_FORCE:
            atoms.info["kind"] = kind
            return atoms


def slab(
    what: Adsorption,
    site: str,
    *,
    size: tuple[int, int, int] = (2, 2, 3),
    shift: tuple[float, float] = (0.0, 0.0),
    stretch: float = 1.0,
    bond: float = 1.0,
    tilt: tuple[float, float] = (0.0, 0.0),
) -> Atoms:
    """Build an adsorbate on a slab, whose atoms stand where the bulk's would.

    Args:
        what: Metal, facet and adsorbate.
        site: One of :data:`SITES` of the facet.
        size: Atoms along both sides, and layers.
        shift: By how much the adsorbate is off its site, in A.
        stretch: Distance to the nearest metal atom, over that at which EMT about holds it.
        bond: Length of a molecule, over its length when it is free.
        tilt: Angles of a molecule in radians: from the normal, and about it.
    """
    build = fcc111 if what.facet == "111" else fcc100
    atoms = build(what.metal, size, a=METALS[what.metal], vacuum=VACUUM)
    first, *rest = ADSORBATES[what.adsorbate]
    place = np.array(atoms.info["adsorbate_info"]["sites"][site]) @ atoms.info["adsorbate_info"]["cell"] + shift
    distance = stretch * (METALS[what.metal] / 8**0.5 + RADII[first])
    anchor = np.array([*place, _height(atoms, place, distance)])
    symbols, positions = [first], [anchor]
    if rest:
        lean, around = tilt
        direction = np.array([np.sin(lean) * np.cos(around), np.sin(lean) * np.sin(around), np.cos(lean)])
        symbols, positions = [first, *rest], [anchor, anchor + bond * BONDS[what.adsorbate] * direction]
    atoms += Atoms(symbols, positions)
    atoms.cell[2, 2] = atoms.positions[:, 2].max() + VACUUM
    atoms.info = {}
    return atoms


def _height(atoms: Atoms, place: np.ndarray, distance: float) -> float:
    """Return the least height over a place at which no atom is nearer than a distance, and 0.6 A above the slab at least."""
    repeats = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]) @ atoms.cell[:2]
    positions = (atoms.positions[:, None] + repeats).reshape(-1, 3)
    across = np.square(positions[:, :2] - place).sum(1)
    near = across < distance**2
    touching = positions[near, 2] + np.sqrt(distance**2 - across[near])
    return float(max([*touching, atoms.positions[:, 2].max() + 0.6]))


def _metal(rng: np.random.Generator, split: Split) -> Atoms:
    metal = rng.choice(list(METALS))
    primitive = bulk(metal, "fcc", METALS[metal])
    if split == "test":
        cells = [bulk(metal, "fcc", METALS[metal], orthorhombic=True) * (2, 1, 1), primitive * (3, 2, 1)]
    else:
        cells = [bulk(metal, "fcc", METALS[metal], cubic=True), primitive * (2, 2, 1), primitive]
    return cells[rng.integers(len(cells))]


def _alloy(rng: np.random.Generator, split: Split) -> Atoms:
    metals = rng.choice(list(METALS), 3 if split == "test" else 2, replace=False)
    cells = (bulk("Cu", "fcc", 1.0, cubic=True), bulk("Cu", "fcc", 1.0) * (2, 2, 1), bulk("Cu", "fcc", 1.0) * (2, 2, 2))
    atoms = cells[rng.integers(len(cells))]
    others = rng.choice(metals, len(atoms) - len(metals))
    symbols = rng.permutation([*metals, *others])
    atoms.symbols[:] = symbols
    constant = float(np.mean([METALS[symbol] for symbol in symbols]))  # Vegard's rule.
    atoms.set_cell(constant * atoms.cell, scale_atoms=True)
    return atoms


def _slab(rng: np.random.Generator, split: Split) -> Atoms:
    choices = adsorptions(split)
    what = choices[rng.integers(len(choices))]
    sites = SITES[what.facet]
    return slab(
        what,
        sites[rng.integers(len(sites))],
        shift=tuple(rng.normal(0, 0.35, 2)),
        stretch=rng.uniform(0.88, 1.35),
        bond=rng.uniform(0.93, 1.2) if rng.random() < 0.6 else rng.uniform(1.2, 2.8),  # EMT lets molecules lie down, and some come apart.
        tilt=(rng.uniform(0, 0.5 * np.pi), rng.uniform(0, 2 * np.pi)),
    )


def _clean(rng: np.random.Generator, split: Split) -> Atoms:
    metal, build = rng.choice(list(METALS)), (fcc111, fcc100)[rng.integers(2)]
    atoms = build(metal, (2, 2, 4 if split == "test" else rng.integers(2, 4)), a=METALS[metal], vacuum=VACUUM)
    atoms.info = {}
    return atoms


def _gas(rng: np.random.Generator, split: Split) -> Atoms:
    """Return an atom, or more that each are bound to one before, or nearly so."""
    symbols = rng.choice(list(RADII), rng.choice([1, 2, 3], p=[0.1, 0.6, 0.3]))
    positions = [np.zeros(3)]
    for number in range(1, len(symbols)):
        direction = rng.normal(size=3)
        length = rng.uniform(0.85, 1.4) if rng.random() < 0.7 else rng.uniform(1.4, 3.0)
        positions.append(positions[rng.integers(number)] + length * direction / np.linalg.norm(direction))
    return Atoms(symbols, positions)


_MAKERS = {"bulk": _metal, "alloy": _alloy, "slab": _slab, "clean": _clean, "gas": _gas}


def _disturb(atoms: Atoms, rng: np.random.Generator) -> None:
    """Strain the directions in which a structure repeats, and displace its atoms."""
    strain = rng.normal(0, 0.015, (3, 3)) + rng.normal(0, 0.025) * np.eye(3)
    strain = (strain + strain.T) / 2
    strain[~atoms.pbc] = strain[:, ~atoms.pbc] = 0
    atoms.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
    amplitude = np.exp(rng.uniform(np.log(0.01), np.log(0.15)))
    atoms.positions += rng.normal(0, amplitude, atoms.positions.shape)
