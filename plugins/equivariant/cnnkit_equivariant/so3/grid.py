"""Functions on the sphere by their values at points, and back without an error for all that the points resolve."""

from __future__ import annotations

import math

import torch
from cnnkit.errors import ConfigError
from torch import Tensor, nn

from . import order
from .harmonics import Normalization, spherical_harmonics


class SphereGrid(nn.Module):
    """Coefficients to values on a grid, and values to coefficients by quadrature.

    Colatitudes are Gauss-Legendre nodes from north (+y) to south, longitudes are evenly spaced from +z over +x, as in e3nn. ``B``
    colatitudes and ``A`` longitudes integrate products exactly whose degrees sum to less than ``2 B`` and whose orders to less than
    ``A``: so ``from_grid(to_grid(x))`` is ``x`` on any grid that is accepted, and by default even the coefficients of a third power
    are exact.

    Args:
        lmax: Highest degree.
        mmax: Highest order that coefficients keep, in both directions; by default ``lmax``.
        resolution: Colatitudes and longitudes; by default ``(2 lmax + 2, 4 mmax + 1)``.
        normalization: Of the harmonics that the coefficients are for; see :func:`~.harmonics.spherical_harmonics`.
        by_order: Whether coefficients stand by order instead of by degree; see :mod:`~.order`.

    Attributes:
        points: Directions of the points, ``(B A, 3)``; longitudes change fastest.
        weights: Their shares of the sphere's area 4 pi, ``(B A,)``.

    Raises:
        ConfigError: If the grid is too coarse.
    """

    points: Tensor
    weights: Tensor
    values: Tensor
    integrals: Tensor

    def __init__(
        self,
        lmax: int,
        mmax: int | None = None,
        resolution: tuple[int, int] | None = None,
        *,
        normalization: Normalization = "integral",
        by_order: bool = False,
    ) -> None:
        super().__init__()
        top = order.check(lmax, mmax)
        rings, longitudes = resolution or (2 * lmax + 2, 4 * top + 1)
        if rings < lmax + 1 or longitudes < 2 * top + 1:
            raise ConfigError(
                f"resolution={resolution} is too coarse for lmax={lmax}, mmax={top}; "
                f"accepted: from ({lmax + 1}, {2 * top + 1}) colatitudes and longitudes"
            )
        self.lmax, self.mmax, self.resolution = lmax, top, (rings, longitudes)
        with torch.device("cpu"):  # Constants have values even where a network is built without its weights.
            points, weights = _points(rings, longitudes)
            kept = (order.to_m_order if by_order else order.lm_index)(lmax, mmax)
            values = spherical_harmonics(lmax, points, normalization=normalization)[:, kept]
            integrals = values * weights[:, None]
            integrals = (integrals / (integrals * values).sum(0)).T  # Over the squared norm of each harmonic, which the grid has exactly.
        # In double precision whatever the network has, and cast on use: so a network that is made in single and turned to double is exact.
        buffers = {"points": points, "weights": weights, "values": values, "integrals": integrals}
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer.contiguous(), persistent=False)

    def to_grid(self, coefficients: Tensor) -> Tensor:
        """Return the values ``(..., B A, C)`` of the functions with coefficients ``(..., K, C)``."""
        return self.values.to(coefficients.dtype) @ coefficients

    def from_grid(self, values: Tensor) -> Tensor:
        """Return the coefficients ``(..., K, C)`` of the functions with values ``(..., B A, C)``, without what is of higher degree."""
        return self.integrals.to(values.dtype) @ values

    def extra_repr(self) -> str:
        """Return what the grid is for."""
        return f"lmax={self.lmax}, mmax={self.mmax}, resolution={self.resolution}"


def _points(rings: int, longitudes: int) -> tuple[Tensor, Tensor]:
    import numpy as np

    heights, shares = np.polynomial.legendre.leggauss(rings)
    height, share = torch.from_numpy(heights[::-1].copy()), torch.from_numpy(shares[::-1].copy())
    angle = torch.arange(longitudes, dtype=torch.float64) * (2 * math.pi / longitudes)
    radius = (1 - height.square()).sqrt()[:, None]
    points = torch.stack([radius * angle.sin(), height[:, None].expand(rings, longitudes), radius * angle.cos()], -1)
    return points.reshape(-1, 3), (share * (2 * math.pi / longitudes)).repeat_interleave(longitudes)
