"""Pictures of any size as the networks of the domain ``"picture"`` take them: resampled without aliases, turned about their centre."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from cnnkit.errors import ConfigError
from torch import Tensor
from torch.nn import functional as F

FINE = 4
"""How much finer than the picture the grid is on which a turned one is looked up."""


@lru_cache(maxsize=64)
def resampling(source: int, target: int) -> Tensor:
    """Return the matrix ``(target, source)`` that resamples a periodic signal by its Fourier series.

    The first samples of both coincide. Frequencies that either side cannot hold are left out, and so is the highest one of an even
    ``target`` that is smaller than ``source``; a signal without them comes back exactly. The matrix is shared: leave it as it is.
    """
    kept = min(source, target)
    there, here = np.arange(target)[:, None] / target, np.arange(source)[None] / source
    # In pairs of +-f; the Nyquist frequency of an even source has no pair.
    matrix = 1 + 2 * sum(np.cos(2 * np.pi * f * (there - here)) for f in range(1, (kept + 1) // 2))
    if kept == source and kept % 2 == 0:
        matrix = matrix + np.cos(np.pi * source * (there - here))
    return torch.from_numpy(np.broadcast_to(matrix / source, (target, source)).copy())


def resample(pictures: Tensor, size: int) -> Tensor:
    """Return pictures ``(B, C, size, size)`` from ``(B, C, h, w)`` by their Fourier series, which is what scaling a torus means."""
    if pictures.shape[-2:] == (size, size):
        return pictures
    rows, columns = (resampling(side, size).to(pictures) for side in pictures.shape[-2:])
    return rows @ pictures @ columns.mT


def turn(pictures: Tensor, angles: Tensor) -> Tensor:
    """Turn each picture ``(B, C, s, s)`` counter-clockwise about its centre by an angle ``(B,)`` in radians; what comes in is zero.

    Linear on a grid that is finer by :data:`FINE`: its error is ``1 / (8 FINE**2)`` of the second derivatives, by pixels.
    """
    size = pictures.shape[-1]
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    back = torch.stack([torch.stack([cos, -sin, zero], -1), torch.stack([sin, cos, zero], -1)], -2).to(pictures)
    # Sample k of the fine grid lies at k / FINE of the coarse one.
    steps = torch.arange(size, dtype=pictures.dtype, device=pictures.device) - (size - 1) / 2
    places = torch.stack([*torch.meshgrid(steps, steps, indexing="xy"), torch.ones(size, size).to(pictures)], -1)
    wanted = torch.einsum("bij,yxj->byxi", back, places) + (size - 1) / 2
    fine = resample(pictures, FINE * size)
    return F.grid_sample(fine, 2 * (FINE * wanted + 0.5) / (FINE * size) - 1, padding_mode="zeros", align_corners=False)


def present(pictures: Tensor, size: int, *, turns: str, rng: np.random.Generator) -> Tensor:
    """Return pictures ``(B, C, size, size)``, turned if asked for.

    Args:
        pictures: ``(B, C, h, w)`` in [0, 1].
        size: Side of the result.
        turns: ``"none"`` or ``"axis"``: by any angle about the centre.
        rng: Draws the angles.

    Raises:
        ConfigError: If ``turns`` is a rotation of the sphere.
    """
    if turns not in ("none", "axis"):
        raise ConfigError(f"a picture has one axis, and turns={turns!r} is for spheres; accepted: none, axis")
    shown = resample(pictures, size)
    if turns == "none":
        return shown
    return turn(shown, torch.from_numpy(rng.uniform(0, 2 * math.pi, len(shown))))


def read_field(array: np.ndarray, size: int) -> Tensor:
    """Return a picture ``(C, H, W)`` as the network takes it, ``(C, size, size)``."""
    return resample(torch.as_tensor(array, dtype=torch.float32)[None], size)[0]
