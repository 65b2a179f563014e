"""Structural similarity (Wang et al., IEEE TIP 2004) in the protocol of super-resolution, in float64 and in small matrix products.

The windows are gaussians of 11 x 11 pixels with a standard deviation of 1.5, and only those that lie inside the picture count.
With means ``m``, variances ``v`` and the covariance ``w`` under such a window, and ``C = (0.01 peak)^2``, ``D = (0.03 peak)^2``::

    SSIM = (2 m_a m_b + C) (2 w + D) / ((m_a^2 + m_b^2 + C) (v_a + v_b + D))

Everything is found from the sum ``s = a + b`` and the difference ``d = a - b``, because ``4 m_a m_b = m_s^2 - m_d^2``,
``2 (m_a^2 + m_b^2) = m_s^2 + m_d^2``, and alike for the variances: four filtered maps instead of five. They are filtered tile by tile, so
that a tile stays in the processor's second cache from its pixels to its sum.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

Plane = NDArray[np.float64]
Planes = Callable[[slice, slice], tuple[Plane, Plane]]

WINDOW = 11
"""Side of the window in pixels; a picture must be as large."""

_SIGMA, _K1, _K2 = 1.5, 0.01, 0.03
_HALO = WINDOW - 1
_ROWS, _COLUMNS, _STEP = 64, 128, 16  # Windows of a tile, and of one product along either side.


def compare(planes: Planes, height: int, width: int, peak: float) -> tuple[float, float]:
    """Return the mean squared difference and the mean SSIM of two planes of one channel, in one pass.

    Args:
        planes: Called with a range of rows and one of columns; returns ``a`` and ``b`` there, in float64.
        height: Rows of the planes, at least :data:`WINDOW`.
        width: Columns of the planes, at least :data:`WINDOW`.
        peak: Largest possible value of a pixel.
    """
    windows = (height - _HALO, width - _HALO)
    tile = _Tile(_side(_ROWS, windows[0]), _side(_COLUMNS, windows[1]), peak)
    rows, columns = tile.shape
    squared = similar = 0.0
    # The last tiles reach back, so that all are of one size, and what they have again is not counted: windows, and pixels seen before.
    for top in range(0, windows[0], rows):
        y = min(top, windows[0] - rows)
        for left in range(0, windows[1], columns):
            x = min(left, windows[1] - columns)
            tile.load(*planes(slice(y, y + rows + _HALO), slice(x, x + columns + _HALO)))
            squared += tile.squared(top - y + (_HALO if top else 0), left - x + (_HALO if left else 0))
            similar += tile.ssim(top - y, left - x)
    return squared / (height * width), similar / (windows[0] * windows[1])


def _side(most: int, windows: int) -> int:
    """Return the side of a tile: whole steps, or one short step in a picture that is smaller."""
    side = min(most, windows)
    return side // _STEP * _STEP or side


class _Tile:
    """The memory for ``rows`` x ``columns`` windows, used again for every tile; of four maps and, in turns, of what is made of them."""

    def __init__(self, rows: int, columns: int, peak: float) -> None:
        self.shape = (rows, columns)
        # The factors are twice those of the formula: so are m_s^2 - m_d^2 = 4 m_a m_b and m_s^2 + m_d^2 = 2 (m_a^2 + m_b^2).
        self.constants = (2 * (_K1 * peak) ** 2, 2 * (_K2 * peak) ** 2)
        tall, wide, down, across = rows + _HALO, columns + _HALO, min(rows, _STEP), min(columns, _STEP)
        self.down, self.across = _band(down), np.ascontiguousarray(_band(across).T)
        first, second = np.empty(4 * tall * wide), np.empty(4 * tall * columns)
        self.pixels = first.reshape(4, tall, wide)
        self.maps = first[: 4 * rows * columns].reshape(4, rows, columns)
        self.upper = second[: 2 * rows * columns].reshape(2, rows, columns)
        item = first.itemsize
        # The same memory as overlapping pieces: those of a step of columns have all rows of all maps below each other.
        pieces, steps = columns // across, (item * across, item * wide, item)
        self.wide_pieces = as_strided(first, (pieces, 4 * tall, across + _HALO), steps)
        self.narrow_pieces = as_strided(second, (pieces, 4 * tall, across), (item * across, item * columns, item))
        strides = (item * tall * columns, item * down * columns, item * columns, item)
        self.tall_pieces = as_strided(second, (4, rows // down, down + _HALO, columns), strides)
        self.short_pieces = self.maps.reshape(4, rows // down, down, columns)

    def load(self, a: Plane, b: Plane) -> None:
        """Take in the pixels of a tile, ``(rows + 10, columns + 10)``."""
        np.add(a, b, out=self.pixels[0])
        np.subtract(a, b, out=self.pixels[1])
        np.multiply(self.pixels[:2], self.pixels[:2], out=self.pixels[2:])

    def squared(self, top: int, left: int) -> float:
        """Return the sum of the squared differences from a row and a column on."""
        return float(self.pixels[3, top:, left:].sum())

    def ssim(self, top: int, left: int) -> float:
        """Return the sum of the SSIM of the windows from a row and a column on; the pixels are gone then."""
        np.matmul(self.wide_pieces, self.across, out=self.narrow_pieces)
        np.matmul(self.down, self.tall_pieces, out=self.short_pieces)
        means, variances = self.maps[:2], self.maps[2:]
        means *= means
        variances -= means
        of_sums, of_differences = self.maps[0::2], self.maps[1::2]  # Both in the order: means, variances.
        for values, constant in zip(of_sums, self.constants, strict=True):
            values += constant
        np.subtract(of_sums, of_differences, out=self.upper)
        of_sums += of_differences
        self.upper /= of_sums
        return float(np.vdot(*self.upper[:, top:, left:]))


@lru_cache(maxsize=32)
def _band(outputs: int) -> NDArray[Any]:
    """Return the matrix ``(outputs, outputs + 10)`` that filters a column of pixels."""
    window = np.exp(-0.5 * (np.arange(WINDOW) - WINDOW // 2) ** 2 / _SIGMA**2)
    matrix = np.zeros((outputs, outputs + _HALO))
    for row in range(outputs):
        matrix[row, row : row + WINDOW] = window / window.sum()
    return matrix
