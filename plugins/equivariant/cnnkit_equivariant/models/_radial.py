"""Distances between atoms as networks read them: a smooth length, Gaussians, and the envelope that ends at the cutoff."""

from __future__ import annotations

import math

import torch
from cnnkit.errors import ConfigError
from torch import Tensor, nn
from torch.nn import functional

TOUCHING = 1e-6
"""Atoms that are nearer than this, in A, are at the same place: their edge has no direction."""

NOTHING = 1e-25
"""Values below this are 0: products with denormal numbers, as the tails of Gaussians are in single precision, take ten times as long."""


def lengths(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lengths ``(E,)`` of vectors ``(E, 3)``, and which of them have a direction.

    A vector without a direction has length 0 and passes no gradient, where a plain root would pass NaN.
    """
    squares = vectors.square().sum(-1)
    apart = squares > TOUCHING**2
    return torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0), apart


class GaussianBasis(nn.Module):
    """Gaussians of the distance at even steps from 0 to the cutoff.

    Shapes:
        distances: ``(E,)`` in A; the result is ``(E, count)``.

    Args:
        count: Number of Gaussians.
        cutoff: Centre of the last, in A.
        width: Standard deviation in steps between the centres.

    Raises:
        ConfigError: If there are fewer than two Gaussians, or they have no width.
    """

    centres: Tensor

    def __init__(self, count: int, cutoff: float, *, width: float = 1.0) -> None:
        super().__init__()
        if count < 2 or not width > 0:
            raise ConfigError(f"{count} Gaussians of width {width} resolve no distance; accepted: 2 or more, of a width above 0")
        self.count, self.width, self.step = count, width, cutoff / (count - 1)
        self.register_buffer("centres", torch.arange(float(count)), persistent=False)  # In steps: exact in any precision.

    def forward(self, distances: Tensor) -> Tensor:
        """Return the values of the Gaussians."""
        values = ((distances / self.step)[:, None] - self.centres).square().mul(-0.5 / self.width**2).exp()
        return functional.threshold(values, NOTHING, 0.0)


def envelope(distances: Tensor, cutoff: float, *, power: int) -> Tensor:
    """Return a weight that falls from 1 at no distance to 0 at the cutoff, with two continuous derivatives (DimeNet, equation 8).

    Args:
        distances: In A, any shape.
        cutoff: Where it ends, in A; it is 0 from there on.
        power: How long it stays near 1: 2 or more.
    """
    x = (distances / cutoff).clamp(max=1.0)
    first, second, third = -(power + 1) * (power + 2) / 2, power * (power + 2), -power * (power + 1) / 2
    return 1 + x.pow(power) * (first + x * (second + x * third))


def cosine_envelope(distances: Tensor, cutoff: float) -> Tensor:
    """Return half a period of a cosine from 1 to 0 at the cutoff (Behler and Parrinello): one continuous derivative."""
    return 0.5 + 0.5 * torch.cos(math.pi / cutoff * distances.clamp(max=cutoff))


def sum_to_centres(messages: Tensor, centres: Tensor, count: int) -> Tensor:
    """Return the sums ``(count, ...)`` of messages ``(E, ...)`` over the edges of each centre ``(E,)``; 0 where there are none."""
    return messages.new_zeros(count, *messages.shape[1:]).index_add(0, centres, messages)
