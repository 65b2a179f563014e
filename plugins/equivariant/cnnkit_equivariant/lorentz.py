"""Hyperbolic space in the Lorentz model: distances, exponential maps, transport, centroids.

A point ``x = (t, s)`` has a time and a space part with ``<x, x> = -t**2 + |s|**2 = -1/k``. ``k`` is the curvature's size, so that
``k -> 0`` is flat space (some libraries, and the code of the paper, name ``1/k`` so). The space part alone tells the point, because
``t = sqrt(1/k + |s|**2)``: layers keep it alone, and every feature then lies on the manifold to rounding.

Formulas are written with functions of squares, such as ``sinh(sqrt(q)) / sqrt(q)``, which have no singularity where two points meet, and
with differences in place of the arc cosine, so that single precision and gradients hold there.
"""

from __future__ import annotations

import math

import torch
from cnnkit.errors import ConfigError
from torch import Tensor, nn

FAR = 30.0
"""Distance, in units of the radius of curvature, beyond which points are not told apart: squares of its sinh fit single precision."""


def _root(q: Tensor) -> Tensor:
    """Return the square root, kept off zero.

    The derivatives of the functions below lose digits as ``1 / q`` towards zero, where what they are multiplied by falls as ``q``.
    """
    return q.clamp_min(1e-20).sqrt()


def sinhc(q: Tensor) -> Tensor:
    """Return ``sinh(x) / x`` of ``x = sqrt(q)``, for ``q >= 0``."""
    x = _root(q)
    return x.sinh() / x


def asinhc(q: Tensor) -> Tensor:
    """Return ``asinh(x) / x`` of ``x = sqrt(q)``, for ``q >= 0``."""
    x = _root(q)
    return x.asinh() / x


def _within(q: Tensor) -> tuple[Tensor, Tensor]:
    """Return a squared length that is at most ``FAR**2``, and what shortens its vector to it."""
    return q.clamp_max(FAR**2), FAR / q.clamp_min(FAR**2).sqrt()


def stretch(q: Tensor) -> Tensor:
    """Return what the exponential map at the origin multiplies a tangent vector of squared length ``q`` (times ``k``) by."""
    q, scale = _within(q)
    return sinhc(q) * scale


def norm(square: Tensor) -> Tensor:
    """Return the square root of a squared length; where it is zero so is its gradient."""
    return square.clamp_min(1e-30).sqrt()


def inner(x: Tensor, y: Tensor, *, dim: int = -1) -> Tensor:
    """Return ``<x, y> = -t t' + s . s'`` of points or vectors with their time part, the axis kept with size 1."""
    product = x * y
    return product.sum(dim, keepdim=True) - 2 * product.narrow(dim, 0, 1)


class Lorentz(nn.Module):
    """The hyperboloid of one curvature, which may be learnt.

    Methods that name a ``space`` take and return space parts; the others take points and vectors with the time part first.

    Args:
        curvature: ``k`` of ``<x, x> = -1/k``; the sectional curvature is ``-k``.
        learnable: Whether its logarithm is a parameter.

    Raises:
        ConfigError: If the curvature is not positive.
    """

    log_curvature: Tensor

    def __init__(self, curvature: float = 1.0, *, learnable: bool = False) -> None:
        super().__init__()
        if not (curvature > 0 and math.isfinite(curvature)):
            raise ConfigError(f"curvature={curvature} is none of hyperbolic space; accepted: more than 0, where 0 would be flat")
        value = torch.tensor(math.log(curvature))
        if learnable:
            self.log_curvature = nn.Parameter(value)
        else:
            self.register_buffer("log_curvature", value)

    @property
    def k(self) -> Tensor:
        """The curvature, a scalar."""
        return self.log_curvature.exp()

    # Space parts alone.

    def time(self, space: Tensor, *, dim: int = -1) -> Tensor:
        """Return the time part of points by their space part, the axis kept with size 1."""
        return (space.square().sum(dim, keepdim=True) + 1 / self.k).sqrt()

    def point(self, space: Tensor, *, dim: int = -1) -> Tensor:
        """Return points, the time part first."""
        return torch.cat([self.time(space, dim=dim), space], dim)

    def exp0(self, tangent: Tensor, *, dim: int = -1) -> Tensor:
        """Return the space part of the point that a tangent vector at the origin leads to; its own time part is 0 and left out.

        Longer vectors than :data:`FAR` are shortened to it.
        """
        return stretch(self.k * tangent.square().sum(dim, keepdim=True)) * tangent

    def log0(self, space: Tensor, *, dim: int = -1) -> Tensor:
        """Return the tangent vector at the origin that leads to a point: as long as the distance; its time part is 0 and left out."""
        return asinhc(self.k * space.square().sum(dim, keepdim=True)) * space

    def boost(self, space: Tensor, to: Tensor, *, dim: int = -1) -> Tensor:
        """Move points by the isometry that takes the origin to a point along the line between them; ``-to`` undoes it.

        On tangent vectors at the origin it is the parallel transport.

        Args:
            space: Points.
            to: The point, broadcast against them.
            dim: The axis of the space part in both.
        """
        root = self.k.sqrt()
        along = (space * to).sum(dim, keepdim=True)
        return space + (self.k * along / (1 + root * self.time(to, dim=dim)) + root * self.time(space, dim=dim)) * to

    def centroid(self, space: Tensor, over: tuple[int, ...], *, dim: int = 1) -> Tensor:
        """Return the point with the least sum of squared Lorentz distances (:meth:`squared_distance`) to points; their mean, scaled.

        Args:
            space: Points.
            over: Axes to take it over; they are kept with size 1.
            dim: The axis of the space part.
        """
        mean, time = space.mean(over, keepdim=True), self.time(space, dim=dim).mean(over, keepdim=True)
        # Of a mean of points, -<m, m> is never less than 1/k.
        length = torch.maximum(time.square() - mean.square().sum(dim, keepdim=True), 1 / self.k)
        return mean / (self.k * length).sqrt()

    # Points and vectors with their time part.

    def project(self, x: Tensor) -> Tensor:
        """Return the point with the same space part."""
        return self.point(x[..., 1:])

    def project_tangent(self, x: Tensor, v: Tensor) -> Tensor:
        """Return what of a vector is tangent at a point."""
        return v + self.k * inner(x, v) * x

    def _square(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``y - x`` and its Lorentz square, without the cancellation of far points that are near each other."""
        space = y[..., 1:] - x[..., 1:]
        time = (space * (y[..., 1:] + x[..., 1:])).sum(-1, keepdim=True) / (y[..., :1] + x[..., :1])
        return torch.cat([time, space], -1), (space.square().sum(-1, keepdim=True) - time.square()).clamp_min(0)

    def squared_distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the squared Lorentz distance ``<x - y, x - y> = -2/k - 2 <x, y>``, ``(...)``."""
        return self._square(x, y)[1].squeeze(-1)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the length of the geodesic between points, ``(...)``."""
        quarter = self.squared_distance(x, y) / 4
        return 2 * norm(quarter) * asinhc(self.k * quarter)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """Return the point that a tangent vector at ``x`` leads to; longer vectors than :data:`FAR` are shortened to it."""
        q, scale = _within(self.k * inner(v, v).clamp_min(0))
        half = sinhc(q / 4)  # cosh(2a) = 1 + 2 sinh(a)**2.
        return self.project(x + 0.5 * q * half.square() * x + sinhc(q) * scale * v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the tangent vector at ``x`` that leads to ``y``."""
        difference, square = self._square(x, y)
        q = self.k * square / 4
        return (difference - 2 * q * x) * asinhc(q) / (1 + q).sqrt()

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Return a tangent vector at ``x`` after parallel transport along the geodesic to ``y``."""
        return v + self.k * inner(y, v) / (1 - self.k * inner(x, y)) * (x + y)
