"""Structural similarity (Wang et al., IEEE TIP 2004) in the protocol of super-resolution, in float64 and in small matrix products.

The windows are gaussians of 11 x 11 pixels with a standard deviation of 1.5, and only those that lie inside the picture count.
With means ``m``, variances ``v`` and the covariance ``w`` under such a window, and ``C = (0.01 peak)^2``, ``D = (0.03 peak)^2``::

    SSIM = (2 m_a m_b + C) (2 w + D) / ((m_a^2 + m_b^2 + C) (v_a + v_b + D))

Everything is found from the sum ``s = a + b`` and the difference ``d = a - b``, because ``4 m_a m_b = m_s^2 - m_d^2``,
``2 (m_a^2 + m_b^2) = m_s^2 + m_d^2``, and alike for the variances: four filtered maps instead of five.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

Plane = NDArray[np.float64]
Planes = Callable[[slice], tuple[Plane, Plane]]

WINDOW = 11
"""Side of the window in pixels; a picture must be as large."""

_SIGMA, _K1, _K2 = 1.5, 0.01, 0.03
_HALO = WINDOW - 1
_ROWS, _COLUMNS, _STEP = 32, 192, 16  # Windows of a tile and of a product in it: the four maps of a tile fit the second cache.


def compare(planes: Planes, height: int, width: int, peak: float) -> tuple[float, float]:
    """Return the mean squared difference and the mean SSIM of two planes of one channel, in one pass from top to bottom.

    Args:
        planes: Called with a range of rows; returns ``a`` and ``b`` of these rows, ``(rows, width)`` in float64.
        height: Rows of the planes, at least :data:`WINDOW`.
        width: Columns of the planes, at least :data:`WINDOW`.
        peak: Largest possible value of a pixel.
    """
    windows = (height - _HALO, width - _HALO)
    step = min(_STEP, windows[1])
    columns = min(_COLUMNS, windows[1]) // step * step
    strips = np.empty((2, min(_ROWS, windows[0]) + _HALO, width))
    tile = _Tile(min(_ROWS, windows[0]), columns, step, peak)
    squared = similar = 0.0
    for top in range(0, windows[0], _ROWS):
        rows = min(_ROWS, windows[0] - top)
        kept = _HALO if top else 0  # Windows of the next strip begin in this one.
        if top:
            strips[:, :kept] = strips[:, _ROWS:]
        new = slice(kept, rows + _HALO)
        strips[0, new], strips[1, new] = planes(slice(top + kept, top + rows + _HALO))
        difference = strips[0, new] - strips[1, new]
        squared += float(np.vdot(difference, difference))
        tile = tile if rows == tile.shape[0] else _Tile(rows, columns, step, peak)
        similar += tile.sweep(strips[:, : rows + _HALO])
    return squared / (height * width), similar / (windows[0] * windows[1])


class _Tile:
    """The memory for ``rows`` x ``columns`` windows, used again for every tile."""

    def __init__(self, rows: int, columns: int, step: int, peak: float) -> None:
        self.shape = (rows, columns)
        # The factors are twice those of the formula: so are m_s^2 - m_d^2 = 4 m_a m_b and m_s^2 + m_d^2 = 2 (m_a^2 + m_b^2).
        self.constants = (2 * (_K1 * peak) ** 2, 2 * (_K2 * peak) ** 2)
        self.down, self.across = _band(rows), np.ascontiguousarray(_band(step).T)
        self.pixels = np.empty((4, rows + _HALO, columns + _HALO))
        self.columns = np.empty((4, rows, columns + _HALO))
        tall, wide, item = self.columns.strides
        pieces = columns // step
        self.pieces = as_strided(self.columns, (4, pieces, rows, step + _HALO), (tall, step * item, wide, item))
        self.maps = np.empty((4, pieces, rows, step))
        self.upper = np.empty((2, pieces, rows, step))

    def sweep(self, strips: Plane) -> float:
        """Return the sum of the SSIM of all windows in a strip of both planes, ``(2, rows + 10, W)``."""
        windows, columns = strips.shape[2] - _HALO, self.shape[1]
        result = 0.0
        for left in range(0, windows, columns):
            x = min(left, windows - columns)
            similar = self.ssim(*strips[:, :, x : x + columns + _HALO])
            if x < left:  # The last tile reaches back, and what it has again is not counted.
                similar = similar.transpose(1, 0, 2).reshape(self.shape)[:, left - x :]
            result += float(similar.sum())
        return result

    def ssim(self, a: Plane, b: Plane) -> Plane:
        """Return the SSIM of every window of a tile, ``(pieces, rows, step)``; it is overwritten by the next call."""
        np.add(a, b, out=self.pixels[0])
        np.subtract(a, b, out=self.pixels[1])
        np.multiply(self.pixels[:2], self.pixels[:2], out=self.pixels[2:])
        np.matmul(self.down, self.pixels, out=self.columns)
        np.matmul(self.pieces, self.across, out=self.maps)
        means, variances = self.maps[:2], self.maps[2:]
        np.multiply(means, means, out=means)
        variances -= means
        of_sums, of_differences = self.maps[0::2], self.maps[1::2]  # Both in the order: means, variances.
        for values, constant in zip(of_sums, self.constants, strict=True):
            values += constant
        np.subtract(of_sums, of_differences, out=self.upper)
        of_sums += of_differences
        ratio, lower = self.upper[0], of_sums[0]
        ratio *= self.upper[1]
        lower *= of_sums[1]
        ratio /= lower
        return ratio


@lru_cache(maxsize=32)
def _band(outputs: int) -> NDArray[Any]:
    """Return the matrix ``(outputs, outputs + 10)`` that filters a column of pixels."""
    window = np.exp(-0.5 * (np.arange(WINDOW) - WINDOW // 2) ** 2 / _SIGMA**2)
    matrix = np.zeros((outputs, outputs + _HALO))
    for row in range(outputs):
        matrix[row, row : row + WINDOW] = window / window.sum()
    return matrix
