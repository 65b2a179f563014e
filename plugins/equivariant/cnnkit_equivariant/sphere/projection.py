"""Pictures on the sphere, and fields of files, on the equiangular grid that spherical networks take."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from cnnkit.errors import ConfigError, InputError
from numpy.typing import NDArray
from torch import Tensor

from cnnkit_equivariant.sphere.transform import SphereTransform, ring_angles

Turns = Literal["none", "axis", "any"]
LEAST = 4
"""Rings of the smallest grid that has a degree beyond the mean."""
_FINER = 2  # A picture has edges, which no grid holds: it is sampled more finely, and what the grid cannot hold is left out.


def grid_directions(rings: int, longitudes: int, *, poles: bool = True) -> NDArray[np.float64]:
    """Return the unit vectors of an equiangular grid, ``(rings, longitudes, 3)``: from +z down, eastward from +x."""
    theta = ring_angles(rings, poles=poles)[:, None]
    phi = np.arange(longitudes) * (2 * np.pi / longitudes)
    return np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta) * np.ones_like(phi)], -1)


def turn(turns: Turns, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return rotation matrices ``(count, 3, 3)``: all the identity, about the z axis, or drawn evenly from all rotations.

    Raises:
        ConfigError: If ``turns`` is none of these.
    """
    if turns not in get_args(Turns):
        raise ConfigError(f"turns={turns!r} is not known; accepted: {', '.join(get_args(Turns))}")
    w, x, y, z = np.array([[1.0], [0.0], [0.0], [0.0]]).repeat(count, 1)
    if turns == "axis":
        half = rng.uniform(0, math.pi, count)
        w, z = np.cos(half), np.sin(half)
    elif turns == "any":
        quaternions = rng.normal(size=(4, count))
        w, x, y, z = quaternions / np.linalg.norm(quaternions, axis=0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


@lru_cache(maxsize=8)
def _filter(rings: int, longitudes: int, size: int, poles: bool, dtype: torch.dtype) -> tuple[SphereTransform, SphereTransform]:
    """Return the transforms of a grid and of the square grid that keep the degrees that both hold."""
    lmax = (min(rings, longitudes, size) - 1) // 2
    source = SphereTransform(lmax, rings=rings, longitudes=longitudes, spins=(0,), poles=poles)
    return source.to(dtype), SphereTransform(lmax, rings=size, spins=(0,)).to(dtype)


def _resample(fields: Tensor, size: int, *, poles: bool = True) -> Tensor:
    source, target = _filter(*fields.shape[-2:], size, poles, fields.dtype)
    return target.inverse(source(fields.unsqueeze(-3))).real.squeeze(-3)


def present(pictures: Tensor, size: int, *, turns: Turns = "none", rng: np.random.Generator) -> Tensor:
    """Return pictures that lie on the sphere.

    The middle of a picture is at the south pole, and it is projected stereographically: the middles of its sides are on the equator, as in
    the spherical digits of Cohen et al. (2018). The turn is that of the continuous picture, not of the grid. Degrees that the grid cannot
    hold are left out, so that values can be a little below 0 or above 1.

    Args:
        pictures: ``(B, C, h, w)`` in [0, 1].
        size: Rings of the grid, and points of each ring; the poles are the first and the last ring.
        turns: Not turned, about the axis through the poles, or by any rotation.
        rng: Draws the turns, one for each picture.

    Returns:
        ``(B, C, size, size)``, colatitude then longitude.

    Raises:
        ConfigError: If the grid is too small, or ``turns`` is not known.
    """
    if size < LEAST:
        raise ConfigError(f"size={size} rings hold no picture; accepted: {LEAST} or more")
    fine = _FINER * size
    rotations = turn(turns, len(pictures), rng)
    # What is at x after the turn R was at R^T x before it, which as rows is x @ R.
    before = torch.from_numpy(grid_directions(fine, fine).reshape(1, -1, 3) @ rotations).to(pictures)
    plane = before[..., :2] / (1 - before[..., 2:]).clamp_min(1e-6)  # From the north pole: the equator has radius 1.
    samples = F.grid_sample(pictures, plane.view(len(pictures), fine, fine, 2), align_corners=False)
    return _resample(samples, size)


def read_field(array: NDArray[np.floating], size: int, *, poles: bool = True) -> Tensor:
    """Return a field of a file on the grid of a network.

    A field on another grid is transformed to harmonics and back, which is exact for the degrees that both hold.

    Args:
        array: ``(C, H, W)``: colatitude from the north pole to the south pole, longitude eastward, evenly spaced; ``W`` need not be ``H``.
        size: Rings of the network's grid.
        poles: Whether the first and last row are the poles; else rows are the middles of bands, as in many climate models.

    Returns:
        ``(C, size, size)``, float32.

    Raises:
        InputError: If it is not a finite field of three axes with at least four rows and columns.
    """
    if array.ndim != 3 or min(array.shape[1:]) < LEAST or array.shape[0] < 1:
        raise InputError(
            f"a field of shape {tuple(array.shape)} is not on a sphere; accepted: (channels, rings, longitudes), at least {LEAST} of both"
        )
    if not np.isfinite(array).all():
        raise InputError(f"{int((~np.isfinite(array)).sum())} of {array.size} values of the field are not finite; fill the gaps first")
    field = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))
    if poles and array.shape[1:] == (size, size):
        return field.float()
    return _resample(field, size, poles=poles).float()
