"""What the training structures say before the first step: elements, an energy for an atom of each, and the size of forces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RANK = 1e-4
"""Compositions that vary by less than this share of the one that varies most are taken not to vary."""


def fit_references(counts: np.ndarray, energies: np.ndarray) -> np.ndarray:
    """Return the energy per atom of each element that explains energies best, by least squares of the energy per atom.

    Where compositions leave a difference between elements open (two that only come together, or one structure alone), it is the least:
    references are the mean energy per atom plus a vector of smallest length.

    Args:
        counts: Atoms of each element in each structure, ``(G, K)``.
        energies: In eV, ``(G,)``; a structure without one (NaN) does not count.

    Returns:
        ``(K,)`` in eV; zeros if no structure has an energy.
    """
    known = np.isfinite(energies) & (counts.sum(1) > 0)
    if not known.any():
        return np.zeros(counts.shape[1])
    atoms = counts[known].sum(1)
    per_atom = energies[known] / atoms
    mean = per_atom.mean()
    return mean + np.linalg.lstsq(counts[known] / atoms[:, None], per_atom - mean, rcond=RANK)[0]


def force_scale(forces: Sequence[np.ndarray], rest: np.ndarray) -> float:
    """Return the root mean square of the components of forces; where there are none or all vanish, that of energies per atom; or 1.

    Args:
        forces: Of each structure ``(N, 3)``; NaN where they are not known.
        rest: Energy per atom that references leave open, ``(G,)``, NaN where it is not known.
    """
    for values in (np.concatenate([part.ravel() for part in forces]) if forces else np.zeros(0), rest):
        known = values[np.isfinite(values)]
        size = float(np.sqrt(np.mean(np.square(known)))) if known.size else 0.0
        if size > 1e-12:
            return size
    return 1.0
