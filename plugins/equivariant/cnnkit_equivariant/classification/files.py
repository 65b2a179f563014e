"""Read pictures and fields from files, and write what a network says of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cnnkit.errors import InputError
from numpy.typing import NDArray

from cnnkit_equivariant.args import FIELDS

SMALLEST = 4
"""Rows and columns that a picture has at least."""


def read_array(path: Path, channels: int) -> NDArray[np.float32]:
    """Return a picture or a field ``(channels, H, W)``.

    Whole numbers are divided by the largest of their kind (255, 65535), floating point numbers stay. A png is made grey for one channel,
    red, green and blue for three.

    Raises:
        InputError: If the file cannot be read, is no picture, has another number of channels, or holds NaN or infinity.
    """
    if path.suffix.lower() not in FIELDS:
        raise InputError(f"{path.name} is no field or picture; this network takes {', '.join(FIELDS)}")
    values = _read_npy(path) if path.suffix.lower() == ".npy" else _read_png(path, channels)
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or min(values.shape[1:], default=0) < SMALLEST:
        raise InputError(f"{path.name} has the shape {values.shape}; accepted: (H, W) or ({channels}, H, W), H and W at least {SMALLEST}")
    if len(values) != channels:
        raise InputError(f"{path.name} has {len(values)} channels, of shape {values.shape}, and the network takes {channels}")
    if not np.isfinite(values).all():
        raise InputError(f"{path.name} holds NaN or infinity; fill the gaps before you classify it")
    return np.ascontiguousarray(values, np.float32)


def _read_npy(path: Path) -> NDArray[np.floating]:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path.name} cannot be read as npy ({error}); write it by numpy.save, an array of numbers") from error
    if not isinstance(values, np.ndarray):
        values.close()
        raise InputError(f"{path.name} is an archive of arrays; write one of them by numpy.save")
    if values.dtype == bool or np.issubdtype(values.dtype, np.unsignedinteger):
        largest = 1 if values.dtype == bool else np.iinfo(values.dtype).max
        return values.astype(np.float64) / largest
    if np.issubdtype(values.dtype, np.signedinteger) or np.issubdtype(values.dtype, np.floating):
        return values.astype(np.float64)
    raise InputError(f"{path.name} holds {values.dtype}; accepted: real numbers")


def _read_png(path: Path, channels: int) -> NDArray[np.floating]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            if picture.mode.startswith("I"):  # 16 bits, grey.
                return np.asarray(picture, np.float64) / 65535
            values = np.asarray(picture.convert("L" if channels == 1 else "RGB"), np.float64) / 255
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(f"{path.name} cannot be read as png ({error})") from error
    return values if values.ndim == 2 else values.transpose(2, 0, 1)
