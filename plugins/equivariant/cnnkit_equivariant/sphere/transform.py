"""Spin-weighted spherical harmonic transforms on equiangular grids, as matrix products.

A function of spin ``s`` on the sphere is a sum ``f = sum_lm c_lm sY_lm`` of spin-weighted harmonics

    ``sY_lm(theta, phi) = (-1)^s sqrt((2 l + 1) / 4 pi) d^l_{m,-s}(theta) exp(i m phi)``,

with Wigner's ``d^l_{mn}(beta) = <l m| exp(-i beta J_y) |l n>``; spin 0 are the usual harmonics with the phase of Condon and Shortley (those
of ``scipy.special.sph_harm_y``). ``theta`` is the colatitude from +z, ``phi`` the longitude from x towards y; e3nn's real harmonics are
these with its axes (z, x, y) for our (x, y, z). A rotation maps ``c_lm`` to ``sum_n D^l_mn c_ln`` for every spin.

The coefficients of a function on a grid are a discrete Fourier transform along the rings, then for each order ``m`` a product with a table
of weighted ``d``; the way back is the transposed pair. Both are products with tables that are computed once, which is how the paper
(Esteves, Slotine and Makadia, 2023, "Scaling Spherical CNNs") makes them fast. The quadrature over the rings is that of Clenshaw and Curtis
(grids with both poles) or Fejer (rings at the centres of bands): exact for functions of degree up to ``lmax``
if there are at least ``2 lmax + 1`` rings and as many longitudes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Self

import numpy as np
import torch
from cnnkit.errors import ConfigError, InputError
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]


def ring_angles(rings: int, *, poles: bool = True) -> Array:
    """Return the colatitudes of the rings of an equiangular grid, in radians.

    Args:
        rings: How many.
        poles: Whether the first and the last ring are the poles; else rings lie in the middle of bands of equal width.
    """
    return np.linspace(0, np.pi, rings) if poles else (np.arange(rings) + 0.5) * np.pi / rings


def ring_weights(rings: int, *, poles: bool = True) -> Array:
    """Return the weights with which a sum over the rings is the integral over ``cos(theta)`` from -1 to 1.

    Exact for polynomials in ``cos(theta)`` of degree below ``rings`` (Clenshaw and Curtis 1960; Fejer 1933).
    """
    angles, spans = ring_angles(rings, poles=poles), rings - 1 if poles else rings
    orders = np.arange(1, spans // 2 + 1)
    factors = np.where(2 * orders == spans, 1.0 if poles else 2.0, 2.0) / (4.0 * orders**2 - 1)
    weights = 2 / spans * (1 - np.cos(2 * angles[:, None] * orders) @ factors)
    if poles:
        weights[[0, -1]] /= 2
    return weights


def wigner_d(lmax: int, beta: Array, first: NDArray[np.int64], second: NDArray[np.int64]) -> Array:
    """Return Wigner's ``d^l_{first,second}(beta)`` for all degrees, by the recurrence in the degree, which is stable.

    Args:
        lmax: Highest degree.
        beta: Angles, ``(P,)``.
        first: First orders ``(K,)``.
        second: Second orders ``(K,)``, each for the one at its place in ``first``.

    Returns:
        ``(lmax + 1, K, P)``; zero where the degree is less than an order.
    """
    m, n = first[:, None].astype(float), second[:, None].astype(float)
    start = np.maximum(np.abs(first), np.abs(second))
    found = np.zeros((lmax + 1, len(first), len(beta)))
    lowest = _lowest(first, second, start, beta)
    cosine = np.cos(beta)
    for degree in range(lmax + 1):
        if degree >= 1:
            j = degree - 1
            norm = np.sqrt(np.maximum((degree**2 - m**2) * (degree**2 - n**2), 0))
            past = np.sqrt(np.maximum((j**2 - m**2) * (j**2 - n**2), 0)) / j * found[j - 1] if j else 0.0
            shift = m * n / (j * degree) if j else 0.0
            with np.errstate(divide="ignore", invalid="ignore"):
                step = degree / norm * ((2 * j + 1) * (cosine - shift) * found[j] - past)
            found[degree][degree > start] = step[degree > start]
        found[degree][degree == start] = lowest[degree == start]
    return found


def _lowest(first: NDArray[np.int64], second: NDArray[np.int64], start: NDArray[np.int64], beta: Array) -> Array:
    """Return ``d`` at the lowest degree that the orders allow, where it has one term."""
    swap = np.abs(first) < np.abs(second)
    large, small = np.where(swap, second, first), np.where(swap, first, second)
    up = np.where(large >= 0, start + small, start - small)  # Power of the cosine of half the angle.
    down = 2 * start - up
    log = 0.5 * np.array(
        [math.lgamma(2 * j + 1) - math.lgamma(a + 1) - math.lgamma(b + 1) for j, a, b in zip(start, up, down, strict=True)]
    )
    # Swapping the orders gives (-1)^(first - second), which is (-1)^down.
    sign = np.where(np.logical_xor(large >= 0, swap), (-1.0) ** down, 1.0)
    half = beta / 2
    return sign[:, None] * np.exp(log)[:, None] * np.cos(half) ** up[:, None] * np.sin(half) ** down[:, None]


@lru_cache(maxsize=64)
def _legendre(lmax: int, rings: int, spin: int, poles: bool) -> Array:
    """Return ``sY_lm(theta, 0)`` on the rings, ``(M, lmax + 1, rings)`` with ``m = -lmax..lmax``."""
    orders = np.arange(-lmax, lmax + 1)
    table = wigner_d(lmax, ring_angles(rings, poles=poles), orders, np.full_like(orders, -spin))
    table *= (-1) ** spin * np.sqrt((2 * np.arange(lmax + 1) + 1) / (4 * np.pi))[:, None, None]
    table = np.ascontiguousarray(table.transpose(1, 0, 2))
    table.flags.writeable = False
    return table


class SphereTransform(nn.Module):
    """The transform of one grid up to one degree, and its inverse.

    Functions of degree at most ``lmax`` come back exactly; the tables follow the module to other dtypes at full precision. Coefficients
    are padded to a rectangle: orders ``m = -lmax..lmax`` are at ``lmax + m``, and those with ``|m| > l`` are zero.

    Args:
        lmax: Highest degree.
        rings: Rings of the grid; by default ``2 (lmax + 1)``.
        longitudes: Points of a ring, from longitude 0; by default as many as rings.
        spins: Spin of each of the functions that are transformed together.
        poles: Whether the grid has points at the poles, see :func:`ring_angles`.

    Raises:
        ConfigError: If the grid is too coarse for the degree.
    """

    analysis: Tensor
    synthesis: Tensor
    waves: Tensor

    def __init__(
        self, lmax: int, *, rings: int | None = None, longitudes: int | None = None, spins: Sequence[int] = (0, 1), poles: bool = True
    ) -> None:
        super().__init__()
        rings = 2 * (lmax + 1) if rings is None else rings
        longitudes = rings if longitudes is None else longitudes
        if lmax < 0 or min(rings, longitudes) < 2 * lmax + 1 or (poles and rings < 2):
            raise ConfigError(
                f"a grid of {rings} rings of {longitudes} points does not hold degrees up to {lmax}; "
                f"accepted: {max(2 * lmax + 1, 2)} rings and points or more"
            )
        self.lmax, self.rings, self.longitudes, self.spins, self.poles = lmax, rings, longitudes, tuple(spins), poles
        for name in ("analysis", "synthesis", "waves"):
            self.register_buffer(name, torch.zeros(()), persistent=False)
        self._fill()

    def _fill(self) -> None:
        like = self.waves
        table = np.stack([_legendre(self.lmax, self.rings, spin, self.poles) for spin in self.spins])
        weights = ring_weights(self.rings, poles=self.poles) * 2 * np.pi / self.longitudes
        angles = np.outer(np.arange(-self.lmax, self.lmax + 1), np.arange(self.longitudes)) * (2 * np.pi / self.longitudes)
        self.analysis = torch.as_tensor(table * weights, dtype=like.dtype, device=like.device)
        self.synthesis = torch.as_tensor(table.transpose(0, 1, 3, 2).copy(), dtype=like.dtype, device=like.device)
        self.waves = torch.as_tensor(np.stack([np.cos(angles), np.sin(angles)]), dtype=like.dtype, device=like.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.waves.dtype, self.waves.device
        super()._apply(fn, recurse)
        if (self.waves.dtype, self.waves.device) != before:
            self._fill()  # A table that was rounded to float32 would stay rounded in float64.
        return self

    def analyse(self, x: Tensor, lmax: int | None = None) -> Tensor:
        """Return the coefficients ``(S, M, L, ...)`` of functions ``(S, W, H, ...)``, complex, or real for spin 0 alone.

        Longitude first and channels last is the layout in which both products read and write memory in order.

        Args:
            x: The functions.
            lmax: Leave out higher degrees; none of them is computed.
        """
        lmax = self.lmax if lmax is None else lmax
        if not x.is_complex():
            return self._analyse_real(x, lmax)
        orders = slice(self.lmax - lmax, self.lmax + lmax + 1)
        waves, table = self.waves[:, orders], self.analysis[:, orders, : lmax + 1]
        rows = torch.complex(waves[0], -waves[1]) @ x.reshape(len(self.spins), self.longitudes, -1)
        columns = torch.view_as_real(rows.view(len(self.spins), 2 * lmax + 1, self.rings, -1)).flatten(-2)
        return torch.view_as_complex((table @ columns).unflatten(-1, (-1, 2))).unflatten(-1, x.shape[3:])

    def _analyse_real(self, x: Tensor, lmax: int) -> Tensor:
        """Orders below zero of a real function follow from those above: ``c_{l,-m} = (-1)^m conj(c_lm)``."""
        if any(self.spins):
            raise ConfigError(f"a real function has spin 0, not {self.spins}; accepted: a complex tensor")
        orders = slice(self.lmax, self.lmax + lmax + 1)
        rows = torch.cat([self.waves[0, orders], -self.waves[1, orders]]) @ x.reshape(self.longitudes, -1)
        real, imaginary = self.analysis[0, orders, : lmax + 1] @ rows.view(2, lmax + 1, self.rings, -1)
        half = torch.complex(real, imaginary)
        signs = 1.0 - 2.0 * (torch.arange(lmax, 0, -1, device=x.device) % 2)
        below = signs.to(real.dtype)[:, None, None] * half[1:].flip(0).conj()
        return torch.cat([below, half])[None].unflatten(-1, x.shape[3:])

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """Return the functions ``(S, W, H, ...)`` of coefficients ``(S, M, L, ...)``, complex."""
        shape = coefficients.shape[3:]
        columns = torch.view_as_real(coefficients.reshape(*coefficients.shape[:3], -1)).flatten(-2)
        rows = torch.view_as_complex((self.synthesis @ columns).unflatten(-1, (-1, 2)))
        waves = torch.complex(self.waves[0], self.waves[1]).mT
        return (waves @ rows.flatten(2)).view(len(self.spins), self.longitudes, self.rings, *shape)

    def forward(self, fields: Tensor) -> Tensor:
        """Return the coefficients ``(..., S, lmax + 1, 2 lmax + 1)`` of fields ``(..., S, rings, longitudes)``."""
        if fields.shape[-3:] != (len(self.spins), self.rings, self.longitudes):
            raise InputError(
                f"fields are {tuple(fields.shape)}; accepted: (..., {len(self.spins)}, {self.rings}, {self.longitudes}), which is spins, "
                "rings from the north pole, longitudes"
            )
        x = fields.movedim((-3, -1, -2), (0, 1, 2))
        return self.analyse(x).movedim((0, 1, 2), (-3, -1, -2))

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Return the fields ``(..., S, rings, longitudes)`` of coefficients ``(..., S, lmax + 1, 2 lmax + 1)``, complex."""
        return self.synthesise(coefficients.movedim((-3, -1, -2), (0, 1, 2))).movedim((0, 1, 2), (-3, -1, -2))

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"lmax={self.lmax}, rings={self.rings}, longitudes={self.longitudes}, spins={self.spins}, poles={self.poles}"


def harmonics(lmax: int, directions: Array, *, spin: int = 0) -> NDArray[np.complex128]:
    """Return the harmonics ``sY_lm`` at any directions, ``(P, lmax + 1, 2 lmax + 1)``, zero where ``|m| > l``.

    Args:
        lmax: Highest degree.
        directions: Vectors ``(P, 3)`` of any length but zero.
        spin: Spin.
    """
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    theta, phi = np.arctan2(np.hypot(unit[:, 0], unit[:, 1]), unit[:, 2]), np.arctan2(unit[:, 1], unit[:, 0])
    orders = np.arange(-lmax, lmax + 1)
    table = wigner_d(lmax, theta, orders, np.full_like(orders, -spin))
    table *= (-1) ** spin * np.sqrt((2 * np.arange(lmax + 1) + 1) / (4 * np.pi))[:, None, None]
    return table.transpose(2, 0, 1) * np.exp(1j * phi[:, None] * orders)[:, None]


def rotation_matrices(lmax: int, rotation: Array) -> NDArray[np.complex128]:
    """Return Wigner's ``D^l_mn`` of a rotation ``(3, 3)``: ``(lmax + 1, 2 lmax + 1, 2 lmax + 1)``, padded with zeros."""
    beta = math.atan2(math.hypot(rotation[0, 2], rotation[1, 2]), rotation[2, 2])
    if math.hypot(rotation[0, 2], rotation[1, 2]) > 1e-12:
        alpha, gamma = math.atan2(rotation[1, 2], rotation[0, 2]), math.atan2(rotation[2, 1], -rotation[2, 0])
    else:  # About the axis alone: the two turns about z are one.
        alpha, gamma = math.copysign(1.0, rotation[2, 2]) * math.atan2(rotation[1, 0], rotation[1, 1]), 0.0
    orders = np.arange(-lmax, lmax + 1)
    first, second = (pair.ravel() for pair in np.meshgrid(orders, orders, indexing="ij"))
    small = wigner_d(lmax, np.array([beta]), first, second)[..., 0].reshape(lmax + 1, len(orders), len(orders))
    return np.exp(-1j * alpha * orders)[:, None] * small * np.exp(-1j * gamma * orders)


def rotate(coefficients: Tensor, rotation: Array) -> Tensor:
    """Return the coefficients of ``f(R^-1 x)``, the function of any spin that a rotation ``R`` has moved.

    Args:
        coefficients: ``(..., lmax + 1, 2 lmax + 1)``, complex.
        rotation: ``R``, ``(3, 3)``.
    """
    matrices = rotation_matrices(coefficients.shape[-2] - 1, rotation)
    turned = torch.as_tensor(matrices, dtype=coefficients.dtype, device=coefficients.device)
    return torch.einsum("lmn,...ln->...lm", turned, coefficients)
