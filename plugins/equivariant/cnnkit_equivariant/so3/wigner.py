"""Wigner matrices in the real basis, as polynomials in the entries of the rotation: no angle, so no place where one is undefined.

An entry of the complex matrix is ``exp(i (m alpha + m' gamma)) d(beta)``. With ``a = cos(beta / 2) exp(i (alpha + gamma) / 2)`` and
``b = sin(beta / 2) exp(i (alpha - gamma) / 2)`` it is ``a ** (m + m') b ** (m - m')`` (of the conjugate for a negative exponent) times a
Jacobi polynomial of ``cos(beta)``. The exponents have equal parity, so that only ``a * a``, ``b * b``, ``a * b`` and ``a * conj(b)``
occur, and these four are linear in the entries of the rotation. The first factor does not depend on the degree, and the second is one
matrix product for all degrees. Rows are entries and the batch comes last, so that every step runs along the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import order
from .harmonics import normalized

# From the entries of a rotation: real and imaginary parts, twice as large, of a a, b b, a b, a conj(b) and its conjugate; y is the
# polar axis.
_REAL = ("+xx+zz", "+xx-zz", "+zy", "-yz", "-yz")
_IMAGINARY = ("+xz-zx", "-xz-zx", "+xy", "+yx", "-yx")
_HIGHEST_SINGLE = 6
"""Above this degree the terms of a polynomial cancel by more than single precision can bear."""
_AA, _BB, _AB, _AC, _CA = range(5)


def wigner(lmax: int, rotation: Tensor, *, mmax: int | None = None) -> list[Tensor]:
    """Return the matrices that rotate coefficients: ``Y(R v) = D(R) Y(v)`` for real harmonics in e3nn's basis.

    Args:
        lmax: Highest degree.
        rotation: Rotation matrices, ``(..., 3, 3)``.
        mmax: Which rows are made, those with ``|m| <= mmax``; all if ``None``. They suffice to rotate into the frame of an edge
            for a convolution that drops higher orders, and their transposes to rotate back.

    Returns:
        For ``l = 0..lmax`` a tensor ``(..., 2 min(l, mmax) + 1, 2l + 1)``; they are views of one.
    """
    plan = _plan(lmax, order.check(lmax, mmax))
    blocks = _flat(lmax, plan, rotation).split([high * wide for high, wide in plan.shapes], -1)
    return [block.reshape(*rotation.shape[:-2], *shape) for block, shape in zip(blocks, plan.shapes, strict=True)]


def wigner_matrix(lmax: int, rotation: Tensor, *, mmax: int | None = None, by_order: bool = False) -> Tensor:
    """Return what :func:`wigner` does as one matrix, which rotates faster than its blocks one by one.

    Args:
        lmax: Highest degree.
        rotation: Rotation matrices, ``(..., 3, 3)``.
        mmax: Which rows are made, those with ``|m| <= mmax``; all if ``None``.
        by_order: Whether rows stand by order instead of by degree; see :mod:`~.order`.

    Returns:
        ``(..., K, (lmax + 1) ** 2)`` with ``K`` as :func:`~.order.size` says. ``matrix @ x`` takes coefficients into the turned frame,
        ``matrix.mT @ y`` takes them back.
    """
    plan = _plan(lmax, order.check(lmax, mmax))
    flat = _flat(lmax, plan, rotation)
    rows, columns = order.size(lmax, mmax), (lmax + 1) ** 2
    whole = flat.new_zeros(flat.shape[0], rows * columns)
    return whole.index_copy_(1, _like(plan.by_order if by_order else plan.by_degree, flat), flat).view(*rotation.shape[:-2], rows, columns)


def block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """Return one matrix from blocks ``(..., rows, columns)``: for all degrees ``(..., (lmax + 1) ** 2, (lmax + 1) ** 2)``."""
    width, left, rows = sum(block.shape[-1] for block in blocks), 0, []
    for block in blocks:
        rows.append(torch.nn.functional.pad(block, (left, width - left - block.shape[-1])))
        left += block.shape[-1]
    return torch.cat(rows, -2)


def edge_rotation(vectors: Tensor) -> Tensor:
    """Return rotations that take vectors to the polar axis: ``R @ v = |v| y``.

    The shortest rotation where ``v`` points up; where it points down, the mirror image of that in a half turn about x. So nothing is
    divided by less than 1, and edges along +-y are no special case. At ``y = 0`` the roll about the axis jumps, which a convolution
    that commutes with rolls does not see.

    Args:
        vectors: ``(..., 3)``; of a zero vector the result is the identity, without a gradient.

    Returns:
        ``(..., 3, 3)``.
    """
    x, y, z = normalized(vectors).unbind(-1)
    y = torch.where((vectors == 0).all(-1), 1.0, y)
    sign = torch.where(y < 0, -1.0, 1.0).to(y)
    up, side = y * sign, z * sign
    share = 1 / (1 + up)
    mixed = -x * side * share
    first = torch.stack([1 - x * x * share, -x * sign, mixed * sign], -1)
    second = torch.stack([x, y, z], -1)
    third = torch.stack([mixed, -z, sign - sign * side * side * share], -1)
    return torch.stack([first, second, third], -2)


def _flat(lmax: int, plan: _Plan, rotation: Tensor) -> Tensor:
    """Return the entries of all blocks, row by row, ``(N, entries)``."""
    entries = rotation.reshape(-1, 9).t()
    real, imaginary, cosine = (_like(plan.halves, entries) @ entries).split([5, 5, 1])
    real, imaginary = _angular(plan, *_powers(lmax, real, imaginary))
    polynomials = _polynomials(lmax, plan, cosine)
    shared = _like(plan.shared, entries)
    real, imaginary = real.index_select(0, shared) * polynomials, imaginary.index_select(0, shared) * polynomials
    same, opposite, alone = plan.counts
    u, v, single = real.split([same, opposite, alone])
    u_imaginary, v_imaginary, single_imaginary = imaginary.split([same, opposite, alone])
    rows = torch.cat([u + v, u - v, u_imaginary + v_imaginary, v_imaginary - u_imaginary, single, single_imaginary])
    return _Transposed.apply(rows.index_select(0, _like(plan.places, entries)))


class _Transposed(torch.autograd.Function):
    """A transposed copy whose gradient is one, too: what comes before gets it with contiguous rows."""

    @staticmethod
    def forward(rows: Tensor) -> Tensor:
        return rows.t().contiguous()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        """Nothing to remember."""

    @staticmethod
    def backward(ctx, slope: Tensor) -> Tensor:
        return _Transposed.apply(slope)


def _powers(lmax: int, real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
    """Return parts of the powers 0..lmax of five complex numbers ``(5, N)`` as rows ``(5 (lmax + 1), N)``, power by power."""
    reals, imaginaries = [torch.ones_like(real), real], [torch.zeros_like(real), imaginary]
    for _ in range(lmax - 1):
        a, b = reals[-1], imaginaries[-1]
        reals.append(a * real - b * imaginary)
        imaginaries.append(a * imaginary + b * real)
    return torch.cat(reals[: lmax + 1]), torch.cat(imaginaries[: lmax + 1])


def _angular(plan: _Plan, reals: Tensor, imaginaries: Tensor) -> tuple[Tensor, Tensor]:
    """Return parts of the factors that do not depend on the degree: products of two powers."""
    first, second = _like(plan.first, reals), _like(plan.second, reals)
    a, b = reals.index_select(0, first), imaginaries.index_select(0, first)
    c, d = reals.index_select(0, second), imaginaries.index_select(0, second)
    return a * c - b * d, a * d + b * c


def _polynomials(lmax: int, plan: _Plan, cosine: Tensor) -> Tensor:
    """Return the polynomials of ``(1, N)`` that :class:`_Plan` names, as rows."""
    like = cosine
    if lmax > _HIGHEST_SINGLE:
        cosine = cosine.double()
    found = [torch.ones_like(cosine), cosine]
    for _ in range(lmax - 1):
        found.append(2 * cosine * found[-1] - found[-2])
    return (_like(plan.jacobi, cosine) @ torch.cat(found[: lmax + 1])).to(like.dtype)


class _Plan(NamedTuple):
    """What :func:`wigner` computes for one ``lmax`` and ``mmax``.

    ``u`` stands for the factor of (m, m'), ``v`` for that of (m, -m'), with m, m' >= 0; where one of them is 0 there is only ``u``.

    Attributes:
        halves: Makes the five complex numbers and the cosine, ``(11, 9)``.
        first: Row of the first power, of each factor.
        second: Row of the second power, of each factor.
        shared: Which factor each product has: all ``u`` of m, m' > 0, all ``v``, then the other ``u``, degree by degree.
        jacobi: Its polynomial and sign, by Chebyshev polynomials.
        counts: How many of the three kinds.
        places: Which of the sums each entry of the blocks is, row by row, block by block.
        shapes: Of the blocks.
        by_degree: Place of each entry in one matrix whose rows stand by degree.
        by_order: The same for rows by order.
    """

    halves: np.ndarray
    first: np.ndarray
    second: np.ndarray
    shared: np.ndarray
    jacobi: np.ndarray
    counts: tuple[int, int, int]
    places: np.ndarray
    shapes: list[tuple[int, int]]
    by_degree: np.ndarray
    by_order: np.ndarray


def _like(array: np.ndarray, like: Tensor) -> Tensor:
    # Plans are kept as arrays: a tensor that is made while a graph is traced must not outlive it.
    found = torch.from_numpy(array)
    return found.to(like.device, like.dtype if found.is_floating_point() else found.dtype)


@cache
def _plan(lmax: int, mmax: int) -> _Plan:
    inner = [(degree, m, k) for degree in range(lmax + 1) for m in range(1, min(degree, mmax) + 1) for k in range(1, degree + 1)]
    outer = [(degree, m, k) for degree in range(lmax + 1) for m in range(min(degree, mmax) + 1) for k in range(degree + 1) if not m * k]
    factors = [(m, k, False) for m in range(mmax + 1) for k in range(lmax + 1)]
    factors += [(m, k, True) for m in range(1, mmax + 1) for k in range(1, lmax + 1)]
    factor = {pair: row for row, pair in enumerate(factors)}
    products = [(*triple, False) for triple in inner] + [(*triple, True) for triple in inner] + [(*triple, False) for triple in outer]
    row = {(*triple, part): part * len(inner) + at for part in range(4) for at, triple in enumerate(inner)}
    row |= {(*triple, part): 4 * len(inner) + part * len(outer) + at for part in range(2) for at, triple in enumerate(outer)}
    places = []
    for degree in range(lmax + 1):
        for m in range(-min(degree, mmax), min(degree, mmax) + 1):
            # Parts 0..3 of an entry with orders (+, +), (-, -), (-, +), (+, -); with a zero there are 0, 2 and 3 and the last two are one.
            part = {(True, True): 0, (False, False): 1, (False, True): 2, (True, False): 3}
            for k in range(-degree, degree + 1):
                which = part[m >= 0, k >= 0]
                places.append(row[degree, abs(m), abs(k), which if m * k else min(which, 1)])
    powers = [_factor_powers(*pair) for pair in factors]
    return _Plan(
        halves=_halves(),
        first=np.array([5 * power + number for (number, power), _ in powers]),
        second=np.array([5 * power + number for _, (number, power) in powers]),
        shared=np.array([factor[m, k, opposite] for _, m, k, opposite in products]),
        jacobi=np.stack([_polynomial(lmax, *product) for product in products]),
        counts=(len(inner), len(inner), len(outer)),
        places=np.array(places),
        shapes=[(2 * min(degree, mmax) + 1, 2 * degree + 1) for degree in range(lmax + 1)],
        by_degree=_in_matrix(lmax, np.arange(order.size(lmax, mmax)), order.degrees(lmax, mmax).numpy()),
        by_order=_in_matrix(lmax, order.from_m_order(lmax, mmax).numpy(), order.degrees(lmax, mmax).numpy()),
    )


def _in_matrix(lmax: int, rows: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """Return the places of the entries of blocks whose rows, of the given degrees, become ``rows``."""
    wide = (lmax + 1) ** 2
    return np.concatenate([row * wide + np.arange(degree**2, (degree + 1) ** 2) for row, degree in zip(rows, degrees, strict=True)])


def _halves() -> np.ndarray:
    matrix = np.zeros((11, 9))
    for row, terms in enumerate(_REAL + _IMAGINARY):
        for at in range(0, len(terms), 3):
            matrix[row, 3 * "xyz".index(terms[at + 1]) + "xyz".index(terms[at + 2])] = 0.5 if terms[at] == "+" else -0.5
    matrix[10, 4] = 1.0
    return matrix


def _factor_powers(m: int, k: int, opposite: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return which numbers, to which powers, make the factor of orders (m, k) or (m, -k)."""
    if opposite:
        return (_BB, min(m, k)), (_AB, m - k) if m >= k else (_CA, k - m)
    # With m = 0 the entry at -k is minus the imaginary part: that of the conjugate.
    return (_AA, min(m, k)), (_AB, m - k) if m >= k else (_AC if m else _CA, k - m)


def _polynomial(lmax: int, degree: int, m: int, k: int, opposite: bool) -> np.ndarray:
    """Return a Jacobi polynomial with its factor in Wigner's d, and the change to the real basis, by Chebyshev polynomials."""
    from numpy.polynomial import chebyshev
    from scipy.special import eval_jacobi

    other = -k if opposite else k
    sine, cosine, low = abs(m - other), abs(m + other), degree - max(m, k)
    ratio = math.factorial(low) * math.factorial(low + sine + cosine) / (math.factorial(low + sine) * math.factorial(low + cosine))
    sign = (-1) ** max(0, m - other)
    basis = (-1) ** (m if opposite else m + k) * (math.sqrt(2) if (m == 0) != (k == 0) else 1.0)
    found = np.zeros(lmax + 1)
    found[: low + 1] = chebyshev.chebinterpolate(lambda c: eval_jacobi(low, sine, cosine, c), low)
    return found * (sign * basis * math.sqrt(ratio))
