"""RGB and YCbCr as MATLAB's ``rgb2ycbcr`` converts them, which is what published figures on "the Y channel" mean.

ITU-R BT.601 in the studio range: of 8 bits, Y takes 16 to 235, and Cb and Cr take 16 to 240 around 128. JPEG, and with it OpenCV
and Pillow, spread Y over 0 to 255 instead; the same error then scores 20 log10(255 / 219) = 1.32 dB less.

With the weights ``k`` of red, green and blue, ``Y = 219 k.rgb + 16``, ``Cb = 112 (B - k.rgb) / (1 - k_B) + 128`` and
``Cr = 112 (R - k.rgb) / (1 - k_R) + 128``. MATLAB prints and uses the coefficients with three decimals.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from cnnkit.errors import InputError
from numpy.typing import NDArray

Colours = TypeVar("Colours")  # numpy array or torch tensor

BT601 = np.array([0.299, 0.587, 0.114])
"""How much red, green and blue weigh in the luminance."""

_RED, _BLUE = np.array([1.0, 0, 0]), np.array([0, 0, 1.0])
YCBCR = np.round([219 * BT601, 112 * (_BLUE - BT601) / (1 - BT601[2]), 112 * (_RED - BT601) / (1 - BT601[0])], 3)
"""Rows Y, Cb, Cr; columns R, G, B of 0 to 1; in units of 8 bits."""

OFFSETS = np.array([16.0, 128.0, 128.0])
"""What black has, in units of 8 bits."""

_FORWARD = YCBCR / 255
_INVERSE: NDArray[Any] = np.linalg.inv(_FORWARD)
_AT_ONCE = 8


def rgb_to_ycbcr(rgb: Colours) -> Colours:
    """Convert RGB to YCbCr.

    Args:
        rgb: numpy array ``(..., 3)`` or torch tensor ``(..., 3, H, W)``: uint8, uint16, or floats in [0, 1].

    Returns:
        Colours of the same library, type and layout: whole numbers rounded, with Y in [16, 235] (times 257 for uint16), floats not
        rounded, with Y in [16, 235] / 255.

    Raises:
        InputError: Another number type, or not three channels where they belong.
    """
    colours: Any = rgb
    unit = _unit(colours)
    return _transform(colours, _FORWARD, OFFSETS * unit, rounded=True)


def ycbcr_to_rgb(ycbcr: Colours) -> Colours:
    """Convert YCbCr to RGB, the inverse of :func:`rgb_to_ycbcr`.

    Whole numbers are rounded and clipped; floats are not clipped, so that gradients pass and nothing is lost on the way back.

    Args:
        ycbcr: As :func:`rgb_to_ycbcr` returns it.

    Raises:
        InputError: Another number type, or not three channels where they belong.
    """
    colours: Any = ycbcr
    unit = _unit(colours)
    return _transform(colours, _INVERSE, -_INVERSE @ OFFSETS * unit, rounded=True)


def luminance(rgb: Colours) -> Colours:
    """Return Y of RGB, not rounded: the channel on which super-resolution is scored, and trained for luminance networks.

    Args:
        rgb: numpy array ``(..., 3)`` or torch tensor ``(..., 3, H, W)``: uint8, uint16, or floats in [0, 1].

    Returns:
        ``(..., 1)`` or ``(..., 1, H, W)``. Of uint8 it is float64 in [16, 235], of uint16 float64 in [4112, 60395]; floats keep their
        type, in [16, 235] / 255.

    Raises:
        InputError: Another number type, or not three channels where they belong.
    """
    colours: Any = rgb
    unit = _unit(colours)
    return _transform(colours, _FORWARD[:1], OFFSETS[:1] * unit, rounded=False)


def luminance_of_steps(steps: NDArray[np.float64], peak: float) -> NDArray[np.float64]:
    """Return :func:`luminance` of whole numbers that are float64 already, ``(..., 3)``, without the last axis.

    Args:
        steps: The whole numbers.
        peak: Their white: 255 or 65535.
    """
    out = _multiply(steps, _FORWARD[:1])[..., 0]
    out += OFFSETS[0] * peak / 255
    return out


def _unit(colours: Any) -> float:
    """Return what one step of 8 bits is in the values of ``colours``, after a look at their type and layout."""
    axis = -1 if isinstance(colours, np.ndarray) else -3
    if not hasattr(colours, "dtype") or colours.ndim < -axis or colours.shape[axis] != 3:
        shape = tuple(getattr(colours, "shape", ())) or type(colours).__name__
        raise InputError(f"colours are a numpy array (..., 3) or a tensor (..., 3, H, W), not {shape}")
    name = str(colours.dtype).removeprefix("torch.")
    if name not in ("uint8", "uint16") and "float" not in name:
        raise InputError(f"colours of {name} have no known range; convert to uint8, uint16, or floats in [0, 1]")
    return {"uint8": 1.0, "uint16": 257.0}.get(name, 1 / 255)


def _transform(colours: Any, matrix: NDArray[Any], offsets: NDArray[Any], *, rounded: bool) -> Any:
    """Multiply the channels by a matrix and add an offset; whole numbers come back as they were if ``rounded``."""
    if isinstance(colours, np.ndarray):
        whole = colours.dtype.kind == "u"
        work = np.dtype(np.float64) if whole else np.promote_types(colours.dtype, np.float32)
        out = _multiply(colours.astype(work, copy=False), matrix)
        out += offsets.astype(work)
        if whole and rounded:
            out = np.floor(out.clip(0, np.iinfo(colours.dtype).max) + 0.5)
        return out if whole and not rounded else out.astype(colours.dtype, copy=False)
    import torch

    whole = not colours.dtype.is_floating_point
    x = colours.to(torch.float64 if whole else torch.promote_types(colours.dtype, torch.float32))
    weights, shift = (torch.from_numpy(array).to(x) for array in (matrix, offsets))
    out = (weights @ x.flatten(-2) + shift[:, None]).unflatten(-1, x.shape[-2:])
    if whole and rounded:
        out = (out.clamp(0, torch.iinfo(colours.dtype).max) + 0.5).floor()
    return out if whole and not rounded else out.to(colours.dtype)


def _multiply(colours: NDArray[Any], matrix: NDArray[Any]) -> NDArray[Any]:
    """Return ``colours @ matrix.T``, several colours at once: a product with only three terms is slow."""
    flat, channels = colours.reshape(-1, 3), len(matrix)
    out = np.empty((len(flat), channels), colours.dtype)
    whole = len(flat) // _AT_ONCE * _AT_ONCE
    wide = _repeated(matrix.tobytes(), colours.dtype)
    np.matmul(flat[:whole].reshape(-1, 3 * _AT_ONCE), wide, out=out[:whole].reshape(-1, channels * _AT_ONCE))
    np.matmul(flat[whole:], wide[:3, :channels], out=out[whole:])
    return out.reshape(*colours.shape[:-1], channels)


@lru_cache(maxsize=16)
def _repeated(matrix: bytes, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the transpose of a matrix of float64 along the diagonal, once for each colour that is converted at once."""
    return np.kron(np.eye(_AT_ONCE), np.frombuffer(matrix).reshape(-1, 3).T).astype(dtype)
