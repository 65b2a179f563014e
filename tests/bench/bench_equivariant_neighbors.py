"""Neighbour lists beside ASE's and matscipy's: rattled copper of 100, 1000 and 10000 atoms, and an oblique slab, within 6 A.

One thread; the three run in turns, and the minimum of the repeats counts, in processor time. They must find the same pairs. Exits with 1
where ours takes more than twice matscipy's time, for the crystals more than a tenth of ASE's (for the slab, with half as many pairs per
atom, that ratio is only shown), or finds other pairs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

CUTOFF = 6.0
FASTER_THAN_ASE, SLOWER_THAN_MATSCIPY = 10.0, 2.0

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Centres, neighbours and shifts."""


def structures(largest: int) -> Iterator[tuple[str, object]]:
    """Yield structures by name."""
    from ase.build import bulk, fcc211

    for repeat in ((3, 3, 3), (6, 6, 7), (13, 13, 15)):
        atoms = bulk("Cu", cubic=True).repeat(repeat)
        if len(atoms) <= largest:
            atoms.rattle(0.1, seed=0)
            yield f"copper, {len(atoms)} atoms", atoms
    slab = fcc211("Pt", (18, 12, 6), vacuum=8.0)
    slab.set_cell(slab.cell + 0.3 * np.roll(np.array(slab.cell), 1, 0), scale_atoms=False)
    slab.rattle(0.1, seed=0)
    yield f"oblique slab, {len(slab)} atoms", slab


def ways(atoms: object) -> dict[str, Callable[[], Pairs]]:
    """Return the three, ours first."""
    import torch
    from ase.neighborlist import primitive_neighbor_list
    from cnnkit_equivariant.atoms.neighbors import neighbor_list
    from matscipy.neighbours import neighbour_list

    cell, pbc = np.array(atoms.cell), np.array(atoms.pbc)  # type: ignore[attr-defined]
    positions = atoms.positions  # type: ignore[attr-defined]
    given = torch.from_numpy(positions), torch.from_numpy(cell), torch.from_numpy(pbc)

    def ours() -> Pairs:
        (neighbor, center), shifts = neighbor_list(*given, CUTOFF)
        return center.numpy(), neighbor.numpy(), shifts.numpy()

    return {
        "ours": ours,
        "ase": lambda: primitive_neighbor_list("ijS", pbc, cell, positions, CUTOFF),
        "matscipy": lambda: neighbour_list("ijS", cutoff=CUTOFF, positions=positions, cell=cell, pbc=pbc),
    }


def ordered(pairs: Pairs) -> np.ndarray:
    """Return the pairs as sorted rows."""
    rows = np.column_stack([pairs[0], pairs[1], np.asarray(pairs[2], int)])
    return rows[np.lexsort(rows.T[::-1])]


def pbc_everywhere(atoms: object) -> bool:
    """Return whether a structure has no surface."""
    return bool(np.all(atoms.pbc))  # type: ignore[attr-defined]


def main() -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=20_000, help="atoms")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    print(f"{'structure':26} {'pairs':>8} {'ours ms':>9} {'ase ms':>9} {'matscipy':>9} {'ase/ours':>9} {'ours/matscipy':>14}")
    met = True
    for name, atoms in structures(args.largest):
        runs = ways(atoms)
        seconds, found = dict.fromkeys(runs, float("inf")), {}
        for repeat in range(args.repeats):
            for way, run in runs.items():
                if way == "ase" and repeat > 1:  # Seconds each; two show enough.
                    continue
                start = time.process_time()
                found[way] = run()
                seconds[way] = min(seconds[way], time.process_time() - start)
        expected = ordered(found["matscipy"])
        equal = all(np.array_equal(ordered(pairs), expected) for pairs in found.values())
        faster, slower = seconds["ase"] / seconds["ours"], seconds["ours"] / seconds["matscipy"]
        line = " ".join(f"{seconds[way] * 1e3:9.1f}" for way in runs)
        print(f"{name:26} {len(expected):8} {line} {faster:9.1f} {slower:14.2f}{'' if equal else '  other pairs'}", flush=True)
        met &= equal and slower <= SLOWER_THAN_MATSCIPY and (faster >= FASTER_THAN_ASE or not pbc_everywhere(atoms))
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
