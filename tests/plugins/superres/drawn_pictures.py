"""Pictures that the tests of reading and writing draw, and what stands for a network in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from cnnkit_superres.pictures import Picture, open_source
from PIL import Image


def smooth(height: int = 24, width: int = 32) -> np.ndarray:
    """Return RGB that lossy formats keep within a few levels."""
    y, x = np.mgrid[:height, :width]
    right, down = max(width - 1, 1), max(height - 1, 1)
    return np.stack([x * 255 // right, y * 255 // down, (x + y) * 255 // max(width + height - 2, 1)], axis=2).astype(np.uint8)


def discs(count: int = 4, size: int = 24) -> list[Image.Image]:
    """Return transparent frames with an opaque disc that moves."""
    frames = []
    y, x = np.mgrid[:size, :size]
    for index in range(count):
        frame = np.zeros((size, size, 4), np.uint8)
        frame[(y - 8) ** 2 + (x - 6 - 4 * index) ** 2 < 20] = (200, 40 * index, 30, 255)
        frames.append(Image.fromarray(frame))
    return frames


def only(path: Path, **options: Any) -> Picture:
    """Return the one frame of a file."""
    (picture,) = open_source(path, **options).frames()
    return picture


def twice(picture: Picture) -> Picture:
    """Return every pixel four times."""

    def grow(values: np.ndarray) -> np.ndarray:
        return values.repeat(2, axis=0).repeat(2, axis=1)

    return picture.replaced(grow(picture.pixels), None if picture.alpha is None else grow(picture.alpha))


def enlarge(path: Path, out: Path, **options: Any) -> Path:
    """Write a file with every pixel four times."""
    source = open_source(path)
    return source.write(out, map(twice, source.frames()), **options)
