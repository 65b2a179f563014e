"""Spectra of simplices by the formula as it is printed: one simplex, one frequency at a time, with contents by Cayley-Menger."""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def content(corners: NDArray[np.float64]) -> float:
    """Length, area or volume of one simplex ``(j + 1, n)`` from the distances of its vertices."""
    order = len(corners) - 1
    if order == 0:
        return 1.0
    bordered = np.ones((order + 2, order + 2))
    bordered[0, 0] = 0.0
    bordered[1:, 1:] = ((corners[:, None] - corners[None]) ** 2).sum(-1)
    squared = (-1) ** (order + 1) / (2**order * math.factorial(order) ** 2) * np.linalg.det(bordered)
    return math.sqrt(max(squared, 0.0))


def transform(corners: NDArray[np.float64], wave: NDArray[np.float64]) -> complex:
    """Fourier transform of one simplex with density 1 at one frequency; wrong or an error where two ``s`` are close."""
    order = len(corners) - 1
    phases = [float(wave @ corner) for corner in corners]
    total = 0j
    for here, phase in enumerate(phases):
        product = 1.0
        for there, other in enumerate(phases):
            if there != here:
                product *= phase - other
        total += cmath.exp(-1j * phase) / product
    return 1j**order * math.factorial(order) * content(corners) * total


def spectrum(corners: NDArray[np.float64], values: Sequence[float], size: Sequence[int]) -> NDArray[np.complex128]:
    """The half spectrum of simplices ``(E, j + 1, n)`` in a cell of side 1."""
    half = (*size[:-1], size[-1] // 2 + 1)
    found = np.zeros(half, np.complex128)
    for place in np.ndindex(*half):
        folded = [index - side if 2 * index >= side else index for index, side in zip(place[:-1], size[:-1], strict=True)]
        numbers = [*folded, place[-1]]
        wave = 2 * np.pi * np.array(numbers, np.float64)
        for simplex, value in zip(corners, values, strict=True):
            found[place] += value * (transform(simplex, wave) if any(place) else content(simplex))
    return found
