"""Spatial shift: groups of channels move by whole positions, each group in its own direction, without a parameter.

Wu, Wan, Yue et al. (2018), "Shift: A Zero FLOP, Zero Parameter Alternative to Spatial Convolutions"; between 1x1 convolutions it lets
every position see its neighbours (Wu, Jiang, Jiang and Liu, 2023, "Fully 1x1 Convolutional Network for Lightweight Image
Super-Resolution")::

    y[g, p] = x[g, p - d_g],    0 where p - d_g lies outside

A depthwise convolution with a single one in each kernel computes the same, at a cost; this one only copies.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnkit.errors import ConfigError
from cnnkit.layers.nd import check_dims

Step = tuple[int, ...]


def neighbour_steps(dims: int, distance: int = 1) -> tuple[Step, ...]:
    """Return the steps to all neighbours, diagonal ones too: 2, 8 or 26 of them in 1, 2 or 3 dimensions.

    Args:
        dims: Number of spatial dimensions.
        distance: Positions that a step covers along each of its axes.
    """
    grid = itertools.product((-distance, 0, distance), repeat=check_dims(dims))
    return tuple(step for step in grid if any(step))


def axis_steps(dims: int, distance: int = 1) -> tuple[Step, ...]:
    """Return the steps along the axes, backward and forward: 2, 4 or 6 of them in 1, 2 or 3 dimensions."""
    return tuple(step for step in neighbour_steps(dims, distance) if sum(map(bool, step)) == 1)


def spatial_shift(x: Tensor, steps: Sequence[Step]) -> Tensor:
    """Move equal groups of channels, the first by the first step and so on; channels that are left over stay in place.

    Shapes:
        x: ``(B, C, *spatial)``, of any size and memory format; the result has the same.

    Args:
        x: Feature maps.
        steps: How far each group moves along each spatial axis, positive towards larger indices.
    """
    group = x.shape[1] // len(steps)
    if (x.requires_grad and torch.is_grad_enabled()) or torch.compiler.is_compiling() or torch.jit.is_tracing():
        *groups, rest = x.split([*[group] * len(steps), x.shape[1] - group * len(steps)], dim=1)
        return torch.cat([*(_moved(part, step) for part, step in zip(groups, steps, strict=True)), rest], dim=1)
    moved = torch.empty_like(x)
    for index, step in enumerate(steps):
        _copy_moved(x.narrow(1, index * group, group), moved.narrow(1, index * group, group), step)
    moved[:, len(steps) * group :] = x[:, len(steps) * group :]
    return moved


def _moved(x: Tensor, step: Step) -> Tensor:
    """Return all of ``x`` moved by a step: zeros in front of one end of each axis, and as many positions fewer at the other."""
    sides = x.shape[2:]
    x = F.pad(x, [fill for distance in reversed(step) for fill in (max(distance, 0), max(-distance, 0))])
    for axis, (distance, side) in enumerate(zip(step, sides, strict=True), start=2):
        x = x.narrow(axis, max(-distance, 0), side)
    return x


def _copy_moved(x: Tensor, moved: Tensor, step: Step) -> None:
    """Write ``x`` moved by a step, every position once: the zeros that enter along each axis, then what stays inside."""
    for axis, distance in enumerate(step, start=2):
        side = x.shape[axis]
        stays = max(side - abs(distance), 0)
        if distance:
            moved.narrow(axis, 0 if distance > 0 else stays, side - stays).zero_()
        moved = moved.narrow(axis, side - stays if distance > 0 else 0, stays)
        x = x.narrow(axis, 0 if distance > 0 else side - stays, stays)
    moved.copy_(x)


class SpatialShift(nn.Module):
    """Groups of channels move in fixed directions; see :func:`spatial_shift`.

    Shapes:
        x: ``(B, C, *spatial)`` with ``C`` at least the number of steps; the result has the same shape.

    Args:
        steps: How far each group moves along each spatial axis; by default to all neighbours (:func:`neighbour_steps`).
        dims: Number of spatial dimensions.

    Raises:
        ConfigError: If there is no step, or one has another number of axes.
    """

    def __init__(self, steps: Sequence[Step] | None = None, *, dims: int = 2) -> None:
        super().__init__()
        self.steps = neighbour_steps(dims) if steps is None else tuple(tuple(step) for step in steps)
        wrong = [step for step in self.steps if len(step) != check_dims(dims)]
        if wrong or not self.steps:
            given = f"the step {wrong[0]} has {len(wrong[0])}" if wrong else "there is none"
            raise ConfigError(f"steps of dims={dims} have {dims} distances each; {given}")

    def forward(self, x: Tensor) -> Tensor:
        """Move the groups."""
        if x.shape[1] < len(self.steps):
            raise ConfigError(f"{x.shape[1]} channels cannot be split into {len(self.steps)} groups; give at least one for each step")
        return spatial_shift(x, self.steps)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.steps}"
