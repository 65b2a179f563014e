"""Outlines of what a picture shows, as networks of the domain ``"outline"`` take them: line segments, whose order means nothing.

Marching squares: each cell between four samples has at most two pieces of the contour at :data:`LEVEL`, whose ends are interpolated along
the cell's sides. The pieces of one picture are never chained together, because the spectrum of a contour does not depend on their order.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from cnnkit.errors import ConfigError
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

LEVEL = 0.5
"""What is brighter than this is inside."""

_TOP, _RIGHT, _BOTTOM, _LEFT = range(4)
# By which corners are inside (1 upper left, 2 upper right, 4 lower left, 8 lower right): the sides where a piece starts and ends, so that
# in axes (row, column) contours turn counter-clockwise about what is bright. Opposite bright corners stay apart.
_PIECES = {
    1: [(_LEFT, _TOP)],
    2: [(_TOP, _RIGHT)],
    3: [(_LEFT, _RIGHT)],
    4: [(_BOTTOM, _LEFT)],
    5: [(_BOTTOM, _TOP)],
    6: [(_TOP, _RIGHT), (_BOTTOM, _LEFT)],
    7: [(_BOTTOM, _RIGHT)],
    8: [(_RIGHT, _BOTTOM)],
    9: [(_LEFT, _TOP), (_RIGHT, _BOTTOM)],
    10: [(_TOP, _BOTTOM)],
    11: [(_LEFT, _BOTTOM)],
    12: [(_RIGHT, _LEFT)],
    13: [(_RIGHT, _TOP)],
    14: [(_TOP, _LEFT)],
}
_STARTS, _ENDS = np.full((2, 16, 2), -1)
for _case, _found in _PIECES.items():
    for _number, (_start, _end) in enumerate(_found):
        _STARTS[_case, _number], _ENDS[_case, _number] = _start, _end


def marching_squares(values: NDArray[np.floating], level: float = LEVEL) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the contours of pictures as pieces: which picture each is of, ``(S,)``, and its two ends as (row, column), ``(S, 2, 2)``.

    Contours are closed but where they leave the picture, enclose what is above the level counter-clockwise in axes (row, column), and holes
    the other way. Sample ``[i, j]`` lies at ``(i, j)``.

    Shapes:
        values: ``(B, h, w)``.
    """
    padded = np.asarray(values, np.float64)
    corners = np.stack([padded[:, :-1, :-1], padded[:, :-1, 1:], padded[:, 1:, :-1], padded[:, 1:, 1:]], -1)
    case = ((corners > level) * np.array([1, 2, 4, 8])).sum(-1)
    crossed = np.nonzero((case > 0) & (case < 15))
    upper_left, upper_right, lower_left, lower_right = corners[crossed].T

    def cross(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
        return (level - first) / np.where(first == second, 1.0, second - first)  # Sides that are not crossed are never looked at.

    zero, one = np.zeros(len(upper_left)), np.ones(len(upper_left))
    sides = [
        np.stack([zero, cross(upper_left, upper_right)], -1),
        np.stack([cross(upper_right, lower_right), one], -1),
        np.stack([one, cross(lower_left, lower_right)], -1),
        np.stack([cross(upper_left, lower_left), zero], -1),
    ]
    crossings = np.stack(sides, 1) + np.stack(crossed[1:], -1)[:, None]
    cells, numbers = np.nonzero(_STARTS[case[crossed]] >= 0)
    cases = case[crossed][cells]
    ends = [crossings[cells, which[cases, numbers]] for which in (_STARTS, _ENDS)]
    return crossed[0][cells], np.stack(ends, 1)


def outlines(pictures: Tensor, size: int) -> list[Tensor]:
    """Return the contours of each picture, ``(S, 2, 2)``, in a unit square that holds the picture.

    The picture is first brought to ``size`` samples along its longer side, by cubic interpolation; beyond its edge it is dark, so that
    every contour is closed. Coordinates are (row, column) from the upper left corner, over the longer side; the shorter one is centred.

    Args:
        pictures: ``(N, h, w)`` in [0, 1].
        size: Samples along the longer side.
    """
    longer = max(pictures.shape[-2:])
    sides = [max(2, round(side * size / longer)) for side in pictures.shape[-2:]]
    fine = F.interpolate(pictures[:, None].double(), sides, mode="bicubic", align_corners=False, antialias=True)[:, 0]
    owners, pieces = marching_squares(F.pad(fine, (1, 1, 1, 1)).numpy())
    # Sample i of the padded picture is the middle of cell i - 1.
    scaled = (pieces - 0.5 + 0.5 * (max(sides) - np.array(sides))) / max(sides)
    order = np.searchsorted(owners, np.arange(len(fine) + 1))
    return [torch.from_numpy(scaled[first:last]) for first, last in itertools.pairwise(order)]


def turned(segments: Tensor, angle: float) -> Tensor:
    """Turn segments ``(S, 2, 2)`` counter-clockwise, as one sees them, about the middle of the unit square; exactly."""
    cos, sin = math.cos(angle), math.sin(angle)
    return (segments - 0.5) @ segments.new_tensor([[cos, sin], [-sin, cos]]) + 0.5


def present(pictures: Tensor, size: int, *, turns: str, rng: np.random.Generator) -> Tensor:
    """Return the outlines of pictures, turned if asked for: ``(B, S, 2, 2)``, or ``(B, S, C, 2, 2)`` if they have several channels.

    ``S`` is the number of pieces that the longest outline has; the others are filled up with segments of no length.

    Args:
        pictures: ``(B, C, h, w)`` in [0, 1].
        size: Samples on which the outline is traced, along the longer side of a picture.
        turns: ``"none"`` or ``"axis"``: by any angle about the centre.
        rng: Draws the angles.

    Raises:
        ConfigError: If ``turns`` is a rotation of the sphere.
    """
    if turns not in ("none", "axis"):
        raise ConfigError(f"an outline has one axis, and turns={turns!r} is for spheres; accepted: none, axis")
    batch, channels = pictures.shape[:2]
    found = outlines(pictures.flatten(0, 1), size)
    if turns == "axis":
        angles = np.repeat(rng.uniform(0, 2 * math.pi, batch), channels)
        found = [turned(segments, angle) for segments, angle in zip(found, angles, strict=True)]
    result = torch.zeros(batch * channels, max([1, *(len(segments) for segments in found)]), 2, 2)
    for row, segments in zip(result, found, strict=True):
        row[: len(segments)] = segments
    return result if channels == 1 else result.unflatten(0, (batch, channels)).transpose(1, 2).contiguous()


def read_field(array: NDArray[np.floating], size: int) -> Tensor:
    """Return the outline of a picture ``(C, H, W)``: ``(S, 2, 2)``, or ``(S, C, 2, 2)``."""
    return present(torch.as_tensor(array)[None], size, turns="none", rng=np.random.default_rng(0))[0]
