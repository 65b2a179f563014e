"""Where a coefficient (l, m) stands: by degree as e3nn has it, or by order m as convolutions in the frame of an edge want it.

By degree, ``l = 0..lmax`` and within it ``m = -l..l``: the index is ``l * l + l + m``. By order, first the coefficients with ``m = 0``,
then for each ``m = 1..mmax`` those with ``+m`` and those with ``-m``, each group with the degree rising from ``m`` to ``lmax``.
"""

from __future__ import annotations

from cnnkit.errors import ConfigError
from torch import Tensor, tensor


def check(lmax: int, mmax: int | None = None) -> int:
    """Return the highest order that is kept: ``mmax``, or ``lmax`` if it is ``None``.

    Raises:
        ConfigError: If ``lmax`` is negative, or ``mmax`` not in 0..lmax.
    """
    if lmax < 0:
        raise ConfigError(f"lmax={lmax} is no degree; accepted: 0 or more")
    if mmax is not None and not 0 <= mmax <= lmax:
        raise ConfigError(f"mmax={mmax} is no order of degrees up to lmax={lmax}; accepted: 0..{lmax}")
    return lmax if mmax is None else mmax


def size(lmax: int, mmax: int | None = None) -> int:
    """Return how many coefficients there are with ``l <= lmax`` and ``|m| <= mmax``."""
    top = check(lmax, mmax)
    return sum(2 * min(degree, top) + 1 for degree in range(lmax + 1))


def order_sizes(lmax: int, mmax: int | None = None) -> list[int]:
    """Return how many coefficients there are of each ``|m| = 0..mmax``, both signs together."""
    return [(lmax + 1 - m) * (2 if m else 1) for m in range(check(lmax, mmax) + 1)]


def _by_degree(lmax: int, mmax: int | None) -> list[tuple[int, int]]:
    top = check(lmax, mmax)
    return [(degree, m) for degree in range(lmax + 1) for m in range(-min(degree, top), min(degree, top) + 1)]


def _by_order(lmax: int, mmax: int | None) -> list[tuple[int, int]]:
    signed = [0] + [sign * m for m in range(1, check(lmax, mmax) + 1) for sign in (1, -1)]
    return [(degree, m) for m in signed for degree in range(abs(m), lmax + 1)]


def lm_index(lmax: int, mmax: int | None = None) -> Tensor:
    """Return the places, among all coefficients by degree, of those with ``|m| <= mmax``, by degree."""
    return tensor([degree * degree + degree + m for degree, m in _by_degree(lmax, mmax)])


def to_m_order(lmax: int, mmax: int | None = None) -> Tensor:
    """Return the places, among all coefficients by degree, of those with ``|m| <= mmax``, by order.

    ``x[:, to_m_order(lmax, mmax)]`` takes coefficients ``(E, (lmax + 1) ** 2, C)`` to the order of :class:`~.convolution.SO2Linear`.
    """
    return tensor([degree * degree + degree + m for degree, m in _by_order(lmax, mmax)])


def from_m_order(lmax: int, mmax: int | None = None) -> Tensor:
    """Return, for every coefficient of :func:`lm_index`, its place among those of :func:`to_m_order`: back to degrees."""
    places = {pair: place for place, pair in enumerate(_by_order(lmax, mmax))}
    return tensor([places[pair] for pair in _by_degree(lmax, mmax)])


def degrees(lmax: int, mmax: int | None = None, *, by_order: bool = False) -> Tensor:
    """Return the degree of every coefficient with ``|m| <= mmax``, by degree or by order."""
    return tensor([degree for degree, _ in (_by_order if by_order else _by_degree)(lmax, mmax)])
