"""Spherical CNN for atoms (Esteves, Slotine and Makadia, 2023, "Scaling Spherical CNNs"): every atom sees its neighbours as a picture.

On the sphere around an atom, each neighbour is a smooth spot in its direction, as bright as a power of its distance says:

    ``f_pt(x) = sum_j w_t(j) (2 A / r_ij)^p fall(r_ij) exp(-(x . n_ij - 1)^2 / s^2)``,   ``s^2 = (1 - cos a)^2 / ln 20``,

with ``n_ij`` the direction, ``p`` in (2, 6) as in the paper's code, and the angle ``a`` at which a spot has faded to 5 %. A spherical CNN
makes of these fields what no rotation changes, and of that the atom's energy.

Where we go other ways than the paper. Spots go into the network by their harmonic coefficients in closed form, a product of Legendre
coefficients of the spot and harmonics of ``n_ij``, in place of samples on a grid, so that the input turns exactly and can be differentiated
for forces. A field for each element of a neighbour becomes a few learned mixtures ``w_t`` of elements. Neighbours fade at the cutoff, and
energies are sums over atoms, without the paper's layers after the sum, so that two copies far apart have twice the energy. Normalization
takes its running statistics in training too. By default the phase collapse mixes squares of moduli on a finer grid, which no rotation
changes but for rounding; ``nonlinearity="phase_collapse"`` is the paper's, with an error under rotations that a test states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from cnnkit.errors import ConfigError
from torch import Tensor, nn

from cnnkit_equivariant.models._base import AtomicOutput, Potential
from cnnkit_equivariant.models._radial import envelope, lengths, sum_to_centres
from cnnkit_equivariant.models._spherical_layers import Spins, check_spins, in_full, invariants, stack
from cnnkit_equivariant.models.spherical_cnn import run_blocks
from cnnkit_equivariant.so3.harmonics import spherical_harmonics

FADED = 0.05
"""What is left of a spot at its angle."""
UNIT = 2.0
"""Distance in A at which a neighbour has the brightness 1."""
NEAREST = 0.5
"""Distance in A from which on a neighbour is no brighter: powers of smaller ones would overflow."""


def spot(bandwidth: int, angle: float) -> np.ndarray:
    """Return the factor by which a spot's coefficients ``c_lm`` differ from the harmonics at its centre, by degree, ``(bandwidth,)``.

    It is ``2 pi`` times the integral of the spot times the Legendre polynomial (the theorem of Funk and Hecke), by Gauss's quadrature.
    """
    nodes, weights = np.polynomial.legendre.leggauss(200)
    values = np.exp(-((nodes - 1) ** 2) * -math.log(FADED) / (1 - math.cos(angle)) ** 2)
    return 2 * np.pi * np.polynomial.legendre.legvander(nodes, bandwidth - 1).T @ (weights * values)


def real_to_complex(bandwidth: int) -> np.ndarray:
    """Return the matrix from e3nn's real coefficients to complex ones, ``(M, L, bandwidth ** 2)``, with e3nn's (z, x, y) as (x, y, z)."""
    lmax = bandwidth - 1
    matrix = np.zeros((2 * lmax + 1, bandwidth, bandwidth**2), complex)
    for degree in range(bandwidth):
        middle = degree * degree + degree
        matrix[lmax, degree, middle] = 1
        for order in range(1, degree + 1):
            sign = (-1) ** order / math.sqrt(2)
            matrix[lmax + order, degree, [middle + order, middle - order]] = sign, -1j * sign
            matrix[lmax - order, degree, [middle + order, middle - order]] = abs(sign), 1j * abs(sign)
    return matrix


class SphericalMolecule(Potential):
    """Energies and forces of atoms from spherical pictures of their neighbours.

    Args:
        elements: Symbols that it knows; by default the first 89.
        cutoff: Distance up to which atoms see each other, in A.
        types: Mixtures of elements that neighbours are painted in, each in every power.
        powers: How fast the brightness of a neighbour falls with its distance.
        angle: Where a spot has faded to 5 %, in degrees.
        widths: Channels of each spin after each block.
        bandwidths: Degrees after each block.
        knots: Degrees at which the filters of each block are given.
        spins: Spins of the features, 0 first.
        hidden: Features of an atom after the spheres.
        nonlinearity: ``"square_collapse"``, exact under rotations, or ``"phase_collapse"``.
        oversampling: Of the grids of nonlinearities; 1.5 is what squares need.

    Raises:
        ConfigError: If the plan of the blocks is not one, or a spot has no size.
    """

    analysis: Tensor

    def __init__(
        self,
        *,
        elements: Sequence[str] | None = None,
        cutoff: float = 5.0,
        types: int = 8,
        powers: tuple[float, ...] = (2.0, 6.0),
        angle: float = 60.0,
        widths: tuple[int, ...] = (16, 16, 32),
        bandwidths: tuple[int, ...] = (6, 6, 3),
        knots: tuple[int, ...] = (4, 4, 3),
        spins: Spins = (0, 1),
        hidden: int = 64,
        nonlinearity: str = "square_collapse",
        oversampling: float = 1.5,
    ) -> None:
        super().__init__(elements=elements, cutoff=cutoff)
        if len({len(widths), len(bandwidths), len(knots)}) != 1 or not widths or min(*widths, *bandwidths, *knots) < 1:
            raise ConfigError(f"{widths=}, {bandwidths=}, {knots=}; accepted: one positive number of each for every block")
        if not 0 < angle <= 180 or not powers or types < 1:
            raise ConfigError(f"{angle=}, {powers=}, {types=}; accepted: an angle up to 180 degrees, one power and one type or more")
        check_spins(spins)
        self.powers, self.angle, self.nonlinearity, self.bandwidth = tuple(powers), math.radians(angle), nonlinearity, bandwidths[0]
        self.paint = nn.Embedding(len(self.elements), types)
        sizes = zip(widths, bandwidths, knots, strict=True)
        self.blocks = stack(types * len(powers), sizes, spins=spins, steady=True, kind=nonlinearity, oversampling=oversampling)
        before = widths[-1]
        self.features = nn.Linear(len(spins) * before, hidden)
        self.centre = nn.Embedding(len(self.elements), hidden)
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1))
        self.register_buffer("analysis", torch.zeros(()), persistent=False)
        self._fill()

    def _fill(self) -> None:
        """Make the matrix from sums of real harmonics to the complex coefficients of spots, ``(M, L, K, 2)``."""
        matrix = real_to_complex(self.bandwidth) * spot(self.bandwidth, self.angle)[:, None]
        self.analysis = torch.as_tensor(np.stack([matrix.real, matrix.imag], -1), dtype=self.analysis.dtype, device=self.analysis.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SphericalMolecule:
        before = self.analysis.dtype, self.analysis.device
        super()._apply(fn, recurse)
        if (self.analysis.dtype, self.analysis.device) != before:
            self._fill()  # At full precision: a rounded matrix would not turn exactly.
        return self

    def spheres(self, species: Tensor, vectors: Tensor, edge_index: Tensor) -> Tensor:
        """Return the coefficients of the pictures that atoms see, ``(1, M, L, N, types * powers)``."""
        source, target = edge_index
        distances, apart = lengths(vectors)
        weights = torch.where(apart, envelope(distances, self.cutoff, power=5), 0.0)
        radial = torch.stack([(distances.clamp_min(NEAREST) / UNIT) ** -power for power in self.powers], -1) * weights[:, None]
        colours = (radial[:, :, None] * self.paint(species)[source][:, None]).flatten(1)
        harmonics = spherical_harmonics(self.bandwidth - 1, vectors, normalization="integral")
        summed = sum_to_centres(harmonics[:, :, None] * colours[:, None], target, species.shape[0])
        real, imaginary = torch.einsum("mlkp,nkc->pmlnc", self.analysis, summed)
        return torch.complex(real, imaginary)[None]

    def atomwise(self, species: Tensor, vectors: Tensor, edge_index: Tensor) -> AtomicOutput:
        """Return the energies of the atoms."""
        with in_full(vectors):
            fields, grid = run_blocks(self.blocks, self.spheres(species, vectors, edge_index))
        found = invariants(fields, grid, power=1 if self.nonlinearity == "phase_collapse" else 2)
        return AtomicOutput(self.head(self.features(found) + self.centre(species))[:, 0])
