"""Clebsch-Gordan coefficients of the real basis, and tensor products with the harmonics of an edge as maps order by order.

A full tensor product ``sum over paths w C(l1, l2, l3) x_l1 Y_l2(edge)`` costs O(L^6). In the frame of the edge only ``Y_l2,0`` is not
zero, and ``C`` couples ``m`` with ``+m`` (l1 + l2 + l3 even) or ``-m`` (odd) only: the even paths make the real weights of
:class:`~.convolution.SO2Linear`, the odd ones the imaginary weights. For degrees ``l1`` and ``l3`` there are ``2 min(l1, l3) + 1`` of
either, so that each is the other in another basis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from cnnkit.errors import ConfigError
from torch import Tensor

from . import order
from .convolution import SO2Linear

Path = tuple[int, int, int]
"""Degrees of the input, of the harmonics and of the output."""


def clebsch_gordan(l1: int, l2: int, l3: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the coefficients ``(2 l1 + 1, 2 l2 + 1, 2 l3 + 1)`` that couple two degrees to a third, of norm 1.

    They are e3nn's ``wigner_3j``, sign included.

    Raises:
        ConfigError: If the degrees do not couple: ``|l1 - l2| <= l3 <= l1 + l2``.
    """
    if min(l1, l2, l3) < 0 or not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ConfigError(f"degrees {l1}, {l2} and {l3} do not couple; accepted: |l1 - l2| <= l3 <= l1 + l2")
    return torch.tensor(_coupling(l1, l2, l3), dtype=dtype)


def paths(lmax: int, filter_lmax: int | None = None) -> list[Path]:
    """Return the paths of a tensor product of degrees up to ``lmax`` with harmonics, to degrees up to ``lmax``.

    Args:
        lmax: Highest degree of input and output.
        filter_lmax: Highest degree of the harmonics; ``2 lmax``, above which none couples, if ``None``.
    """
    top = 2 * order.check(lmax) if filter_lmax is None else filter_lmax
    degrees = range(lmax + 1)
    return [(l1, l2, l3) for l1 in degrees for l3 in degrees for l2 in range(abs(l1 - l3), min(l1 + l3, top) + 1)]


def so2_weights_from_tensor_product(weights: Mapping[Path, Tensor], lmax: int) -> tuple[Tensor, list[Tensor]]:
    """Return the weights by order of the tensor product with the harmonics of an edge ("component" normalization).

    Args:
        weights: For each path that there is, ``(in_channels, out_channels)``; the result of a path is ``clebsch_gordan`` applied to
            input and harmonics, times its weights, without a further factor.
        lmax: Highest degree of input and output.

    Returns:
        ``weight`` and ``weights`` as of :class:`~.convolution.SO2Linear` with ``mmax = lmax``. Derivatives pass.

    Raises:
        ConfigError: If there is no path, or one that does not exist.
    """
    strange = sorted(set(weights) - set(paths(lmax)))
    if strange or not weights:
        raise ConfigError(f"paths {strange} are none of lmax={lmax}; accepted: those of paths({lmax}), at least one")
    some = next(iter(weights.values()))
    orders = []
    for m in range(lmax + 1):
        rows = [torch.stack([_blocks(weights, l1, l3, m, some) for l1 in range(m, lmax + 1)], 2) for l3 in range(m, lmax + 1)]
        # (2, out, l1, in) for each l3, to rows of (l3, out) and columns of (l1, in).
        orders.append(torch.cat([row.flatten(2) for row in rows], 1))
    return orders[0][0], orders[1:]


def tensor_product_weights(layer: SO2Linear) -> dict[Path, Tensor]:
    """Return the path weights ``(in_channels, out_channels)`` that make the same map: the inverse of the function above.

    Raises:
        ConfigError: If the layer drops orders, or does more than a linear map of coefficients.
    """
    if layer.mmax != layer.lmax or layer.extra_scalars or layer.bias is not None or layer.gates is not None:
        raise ConfigError("only an SO2Linear with mmax = lmax, and without bias, gates and extra scalars, is a tensor product")
    zonal = torch.stack([layer.weight, torch.zeros_like(layer.weight)])
    orders = [
        part.unflatten(2, (-1, layer.in_channels)).unflatten(1, (-1, layer.out_channels)) for part in (zonal, *layer.weights)
    ]  # (2, l3, out, l1, in)
    found: dict[Path, Tensor] = {}
    for l1 in range(layer.lmax + 1):
        for l3 in range(layer.lmax + 1):
            low = min(l1, l3)
            known = [orders[m][part, l3 - m, :, l1 - m] for m in range(low + 1) for part in range(2 if m else 1)]
            filters = range(abs(l1 - l3), l1 + l3 + 1)
            rows = np.stack([_shares(l1, l2, l3)[: low + 1].ravel()[[0, *range(2, 2 * low + 2)]] for l2 in filters], 1)
            solved = torch.einsum("pk,koi->pio", torch.from_numpy(np.linalg.inv(rows)).to(known[0]), torch.stack(known))
            found |= {(l1, l2, l3): solved[at] for at, l2 in enumerate(filters)}
    return found


def _blocks(weights: Mapping[Path, Tensor], l1: int, l3: int, m: int, like: Tensor) -> Tensor:
    """Return real and imaginary weights of one order from degree l1 to l3, ``(2, out, in)``."""
    found = like.new_zeros(2, like.shape[1], like.shape[0])
    for l2 in range(abs(l1 - l3), l1 + l3 + 1):
        if (l1, l2, l3) in weights:
            shares = torch.from_numpy(_shares(l1, l2, l3)[m]).to(like)
            found = found + shares[:, None, None] * weights[l1, l2, l3].t()
    return found


@cache
def _shares(l1: int, l2: int, l3: int) -> np.ndarray:
    """Return what a path adds to the real and the imaginary weight of the orders 0..min(l1, l3), ``(orders, 2)``."""
    middle = _coupling(l1, l2, l3)[:, l2] * math.sqrt(2 * l2 + 1)  # The harmonics at the polar axis.
    return np.array([(middle[l1 + m, l3 + m], middle[l1 + m, l3 - m] if m else 0.0) for m in range(min(l1, l3) + 1)])


@cache
def _coupling(l1: int, l2: int, l3: int) -> np.ndarray:
    found = np.einsum("ij,kl,nm,ikn->jlm", _complex(l1), _complex(l2), _complex(l3).conj(), _su2(l1, l2, l3), optimize=True).real
    return found / np.linalg.norm(found)


def _complex(degree: int) -> np.ndarray:
    """Return the change from real harmonics to complex ones, with the power of i that makes couplings of the real ones real."""
    found = np.zeros((2 * degree + 1, 2 * degree + 1), dtype=complex)
    found[degree, degree] = 1
    for m in range(1, degree + 1):
        found[degree - m, [degree + m, degree - m]] = math.sqrt(0.5), -1j * math.sqrt(0.5)
        found[degree + m, [degree + m, degree - m]] = (-1) ** m * found[degree - m, [degree + m, degree - m]].conj()
    return (-1j) ** degree * found


def _su2(l1: int, l2: int, l3: int) -> np.ndarray:
    """Return the coefficients <l1 m1 l2 m2 | l3 m3> by Racah's formula, whose alternating sum is of integers."""
    fac = math.factorial
    found = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    outer = (2 * l3 + 1) * fac(l3 + l1 - l2) * fac(l3 - l1 + l2) * fac(l1 + l2 - l3)
    for m1 in range(-l1, l1 + 1):
        for m2 in range(max(-l2, -l3 - m1), min(l2, l3 - m1) + 1):
            m3 = m1 + m2
            total, sign = 0, 1
            # Multinomials instead of inverse factorials: (a! b! c!) / (k! (a - k)! ...) are products of binomials.
            for k in range(l1 + l2 - l3 + 1):
                total += sign * math.comb(l1 + l2 - l3, k) * _binomial(l3 + l1 - l2, l1 - m1 - k) * _binomial(l3 - l1 + l2, l2 + m2 - k)
                sign = -sign
            inner = fac(l3 + m3) * fac(l3 - m3) * fac(l1 - m1) * fac(l1 + m1) * fac(l2 - m2) * fac(l2 + m2)
            below = fac(l1 + l2 + l3 + 1) * (fac(l1 + l2 - l3) * fac(l3 + l1 - l2) * fac(l3 - l1 + l2)) ** 2
            found[l1 + m1, l2 + m2, l3 + m3] = math.copysign(math.sqrt(outer * inner * total * total / below), total) if total else 0.0
    return found


def _binomial(n: int, k: int) -> int:
    return math.comb(n, k) if k >= 0 else 0
