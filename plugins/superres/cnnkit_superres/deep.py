"""16-bit colours through Pillow, which has no mode for them: exactly, by decoding the bytes of each sample apart."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def split_alpha(samples: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Split ``(H, W)`` or ``(H, W, 1 to 4)`` into colours and, for two or four channels, alpha."""
    samples = samples.reshape(*samples.shape[:2], -1)
    if samples.shape[2] in (1, 3):
        return samples, None
    return np.ascontiguousarray(samples[:, :, :-1]), np.ascontiguousarray(samples[:, :, -1])


def is_deep(image: Any) -> bool:
    """Whether the frame of an opened, not yet decoded Pillow image has 16 bits per sample."""
    return bool(image.mode.startswith("I;16") or ";16" in _raw_mode(image))


def deep_arrays(image: Any, again: Callable[[], Any]) -> tuple[NDArray[np.uint16], NDArray[np.uint16] | None]:
    """Return the pixels ``(H, W, 1 or 3)`` and the alpha of a 16-bit frame without loss.

    Pillow keeps the high byte of each colour sample, and its raw modes for the two byte orders tell it which one that is. Decoded once
    with either, the samples are whole again.

    Args:
        image: An opened, not yet decoded image for which :func:`is_deep` holds.
        again: Opens the same frame another time.
    """
    raw = _raw_mode(image)
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint16)
        return grey[:, :, None], None if key is None else _keyed(grey == key)
    if raw == "LA;16B":  # As wide as the four bytes of RGBA, whose raw mode leaves them as they are.
        return _split(np.ascontiguousarray(_decoded(image, "RGBA")).view(">u2"))
    kind, order = raw.split(";16")
    kind = "RGBA" if kind == "RGBa" else kind  # Premultiplied: as it is stored, which the caller undoes with all 16 bits.
    if order == "N":
        order = "L" if sys.byteorder == "little" else "B"
    samples: NDArray[np.uint16] = np.left_shift(_decoded(image, f"{kind};16{order}"), 8, dtype=np.uint16)
    samples |= _decoded(again(), f"{kind};16{'B' if order == 'L' else 'L'}")
    if key is not None:
        return samples, _keyed((samples == np.array(key)).all(axis=2))
    return _split(samples)


def _split(samples: NDArray[Any]) -> tuple[NDArray[np.uint16], NDArray[np.uint16] | None]:
    return split_alpha(samples.astype(np.uint16))


def _keyed(transparent: NDArray[np.bool_]) -> NDArray[np.uint16]:
    return np.where(transparent, 0, 65535).astype(np.uint16)


def _raw_mode(image: Any) -> str:
    args = image.tile[0].args if image.tile else ""
    raw = args[0] if isinstance(args, tuple) and args else args
    return raw if isinstance(raw, str) else ""


def _decoded(image: Any, raw: str) -> NDArray[np.uint8]:
    image.tile = [tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw) for tile in image.tile]
    return np.asarray(image)
