"""Integer arithmetic as TFLite and CMSIS-NN define it, on arrays: what a microcontroller computes, bit for bit.

A real factor ``M > 0`` is stored as a 31-bit mantissa and an exponent, ``M = m 2^(e - 31)``, ``2^30 <= m < 2^31``, and applied to a 32-bit
accumulator by two roundings (gemmlowp's definitions): the high half of the doubled product, then a division by a power of two, each to
the nearest, the second with ties away from zero.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Ints = np.ndarray[Any, np.dtype[np.int64]]
"""Integers of 64 bits that hold values of 32."""

INT32_MAX, INT32_MIN = 2**31 - 1, -(2**31)
INT8_MAX, INT8_MIN = 127, -128


def quantise_multiplier(factor: float) -> tuple[int, int]:
    """Return mantissa and exponent of a factor; ``(0, 0)`` for one too small to matter.

    Raises:
        ValueError: If the factor is negative, not finite, or 2^31 and more.
    """
    if not (math.isfinite(factor) and 0 <= factor < 2**31):
        raise ValueError(f"a factor of {factor} cannot be written with 31 bits and a shift")
    mantissa, exponent = math.frexp(factor)
    fixed = round(mantissa * 2**31)
    if fixed == 2**31:
        fixed, exponent = fixed // 2, exponent + 1
    return (0, 0) if exponent < -31 or not fixed else (fixed, exponent)


def doubling_high_product(a: Ints, b: Ints) -> Ints:
    """Return ``round(2 a b / 2^32)``, ties as gemmlowp has them, with the one case that overflows saturated."""
    product = np.asarray(a, np.int64) * np.asarray(b, np.int64)
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = np.sign(nudged) * (np.abs(nudged) >> 31)  # A division in C: towards zero.
    return np.minimum(high, INT32_MAX)


def divide_by_power(x: Ints, exponent: Ints) -> Ints:
    """Return ``x / 2^exponent`` to the nearest integer, ties away from zero."""
    x, exponent = np.asarray(x, np.int64), np.asarray(exponent, np.int64)
    mask = (np.int64(1) << exponent) - 1
    threshold = (mask >> 1) + (x < 0)
    return (x >> exponent) + ((x & mask) > threshold)


def multiply(x: Ints, mantissa: Ints, exponent: Ints) -> Ints:
    """Return ``x M`` for 32-bit values; where a left shift would overflow, as it may for ``M >= 1``, it saturates."""
    x, exponent = np.asarray(x, np.int64), np.asarray(exponent, np.int64)
    left, right = np.maximum(exponent, 0), np.maximum(-exponent, 0)
    shifted = np.clip(x << left, INT32_MIN, INT32_MAX)
    return divide_by_power(doubling_high_product(shifted, mantissa), right)


def rounded_mean(total: Ints, count: int) -> Ints:
    """Return ``total / count`` to the nearest integer, ties away from zero: TFLite's average pooling."""
    total = np.asarray(total, np.int64)
    return np.sign(total) * ((np.abs(total) + count // 2) // count)
