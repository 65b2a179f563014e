"""MATLAB's bicubic imresize written as a loop over the rows, then over the columns, of the output."""

from __future__ import annotations

import math

import numpy as np


def cubic(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0


def taps(side: int, out: int, scale: float, antialias: bool) -> list[tuple[list[int], np.ndarray]]:
    """Return for every output pixel the input pixels, counted from 0, and their weights."""
    shrink = scale if antialias and scale < 1 else 1.0
    result = []
    for k in range(1, out + 1):
        u = k / scale + 0.5 * (1 - 1 / scale)
        left = math.floor(u - 2 / shrink)
        positions = range(left, left + math.ceil(4 / shrink) + 2)
        weights = np.array([shrink * cubic(shrink * (u - i)) for i in positions])
        mirror = [*range(side), *range(side - 1, -1, -1)]
        result.append(([mirror[(i - 1) % (2 * side)] for i in positions], weights / weights.sum()))
    return result


def imresize(image: np.ndarray, scale: float, antialias: bool = True) -> np.ndarray:
    """Resize ``(H, W, C)``; uint8 and uint16 are rounded after the rows and after the columns."""
    height, width, channels = image.shape
    rows, columns = math.ceil(height * scale), math.ceil(width * scale)
    work = np.float64 if image.dtype.kind == "u" else image.dtype
    tall = np.empty((rows, width, channels), work)
    for k, (places, weights) in enumerate(taps(height, rows, scale, antialias)):
        for c in range(channels):
            tall[k, :, c] = weights.astype(work) @ image[places, :, c].astype(work)
    tall = as_before(tall, image)
    out = np.empty((rows, columns, channels), work)
    for k, (places, weights) in enumerate(taps(width, columns, scale, antialias)):
        for c in range(channels):
            out[:, k, c] = tall[:, places, c].astype(work) @ weights.astype(work)
    return as_before(out, image)


def as_before(x: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Round halves up, also those that a sum in floating point has just missed."""
    if image.dtype.kind != "u":
        return x
    return np.floor(np.clip(x, 0, np.iinfo(image.dtype).max) + 0.5 + 1e-9).astype(image.dtype)
