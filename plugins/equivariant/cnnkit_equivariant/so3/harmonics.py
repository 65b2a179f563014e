"""Real spherical harmonics by recurrences that are polynomials in the coordinates, so that every gradient is finite.

The basis is e3nn's: ``y`` is the polar axis, degree ``l`` holds ``m = -l..l``, and degree 1 is ``(x, y, z)`` up to a factor.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

import torch
from cnnkit.errors import ConfigError
from torch import Tensor

from . import order

Normalization = Literal["component", "norm", "integral"]


def normalized(vectors: Tensor) -> Tensor:
    """Return the directions of vectors ``(..., 3)``; the zero vector stays zero, and so is its gradient.

    Lengths whose square would overflow or vanish in the precision at hand do no harm.
    """
    longest = vectors.detach().abs().amax(-1, keepdim=True)
    some = longest > 0
    # A direction does not depend on the scale, so neither does its gradient: the scale may count as a constant.
    scaled = vectors / torch.where(some, longest, 1.0)
    square = scaled.square().sum(-1, keepdim=True)
    return torch.where(some, scaled * torch.where(some, square, 1.0).rsqrt(), 0.0)


def spherical_harmonics(lmax: int, vectors: Tensor, *, normalize: bool = True, normalization: Normalization = "component") -> Tensor:
    """Return all real spherical harmonics up to ``lmax``.

    Args:
        lmax: Highest degree.
        vectors: Where they are evaluated, ``(..., 3)``.
        normalize: Whether only directions count; otherwise degree ``l`` grows with the length to the power ``l``.
        normalization: ``"component"``: the squares of a degree sum to ``2l + 1``; ``"norm"``: to 1; ``"integral"``: to
            ``(2l + 1) / 4 pi``, so that the integral of a square over the sphere is 1.

    Returns:
        ``(..., (lmax + 1) ** 2)``. Of a zero vector, all but degree 0 are zero, and so are their gradients if ``normalize``.

    Raises:
        ConfigError: If ``lmax`` is negative or the normalization has no such name.
    """
    factors = _factors(order.check(lmax), normalization)
    vectors = normalized(vectors) if normalize else vectors
    x, y, z = vectors.unbind(-1)
    # Rows of a tensor per degree: components first, so that every step runs along the points.
    legendre = _legendre(lmax, y, vectors.square().sum(-1))
    cosines, sines = _powers(lmax, z, x)
    rows = []
    for degree in range(lmax + 1):
        if degree:
            rows.append((legendre[degree][1:] * sines[1 : degree + 1]).flip(0))
        rows.append(legendre[degree] * cosines[: degree + 1])
    scale = torch.from_numpy(factors).to(vectors).reshape(-1, *[1] * (vectors.dim() - 1))
    return (torch.cat(rows) * scale).movedim(0, -1)


def _powers(lmax: int, real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
    """Return real and imaginary parts of the powers 0..lmax of a complex number, one row each."""
    reals, imaginaries = [torch.ones_like(real)], [torch.zeros_like(real)]
    for _ in range(lmax):
        a, b = reals[-1], imaginaries[-1]
        reals.append(a * real - b * imaginary)
        imaginaries.append(a * imaginary + b * real)
    return torch.stack(reals), torch.stack(imaginaries)


def _legendre(lmax: int, y: Tensor, square: Tensor) -> list[Tensor]:
    """Return for every degree the rows m = 0..l of the associated Legendre functions without their power of the sine.

    They are normalised so that each times the real or imaginary part of ``(z + ix) ** m`` has squares that integrate to the same, but
    for the factor of :func:`_factors`; so no intermediate value is large.
    """
    found = [torch.ones_like(y)[None]]
    for degree in range(1, lmax + 1):
        previous = found[-1]
        top = previous[-1:] * math.sqrt((2 * degree + 1) / (2 * degree))
        # a(l, m) and b(l, m) of Q(l, m) = a (y Q(l - 1, m) - b r^2 Q(l - 2, m)), for m < l; b is zero for m = l - 1.
        a = [math.sqrt((4 * degree**2 - 1) / (degree**2 - m**2)) for m in range(degree)]
        b = [math.sqrt(((degree - 1) ** 2 - m**2) / (4 * (degree - 1) ** 2 - 1)) for m in range(degree - 1)]
        rest = y * previous
        if b:
            rest = torch.cat([rest[:-1] - _column(b, y) * found[-2] * square, rest[-1:]])
        found.append(torch.cat([_column(a, y) * rest, top]))
    return found


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).reshape(-1, *[1] * like.dim())


@cache
def _factors(lmax: int, normalization: str):
    import numpy as np

    scales = {
        "component": lambda degree: 1.0,
        "norm": lambda degree: 1 / math.sqrt(2 * degree + 1),
        "integral": lambda degree: 1 / math.sqrt(4 * math.pi),
    }
    if normalization not in scales:
        raise ConfigError(f"normalization={normalization!r} is not known; accepted: {', '.join(scales)}")
    pairs = [(degree, m) for degree in range(lmax + 1) for m in range(-degree, degree + 1)]
    return np.array([scales[normalization](degree) * (math.sqrt(2) if m else 1) for degree, m in pairs])
