"""Exact spectra of points, segments, triangles and tetrahedra (Jiang et al., 2019).

The paper is "Convolutional Neural Networks on non-uniform geometrical signals using Euclidean spectral transformation". A signal that is
constant on each simplex has a Fourier transform in closed form. With ``s_t = k . x_t`` for the vertices ``x_t`` of a ``j``-simplex it is::

    F(k) = value * content * j! * i^j * sum_t exp(-i s_t) / prod_{l != t} (s_t - s_l)

so no sampling, and none of its noise, stands between a mesh and the picture or volume that a network sees. The sum is a divided difference
of the exponential, which :mod:`cnnkit_equivariant.mean_exponential` computes without the formula's divisions by zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from cnnkit.errors import ConfigError, InputError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cnnkit_equivariant.mean_exponential import Pair, means

CHUNK = 1 << 16
"""Evaluations of the formula (simplices times frequencies) that are in memory at once."""

Parts = Tensor | Sequence[Tensor]


def content(corners: Tensor) -> Tensor:
    """Return the contents of simplices: 1 for points, then length, area, volume.

    It is the root of the Cayley-Menger determinant, taken without its squares of squares: with the first vertex subtracted from the
    others the determinant becomes that of a Gram matrix, and its root a norm or the determinant of the edges. Degenerate simplices have
    content 0 and a gradient of 0.

    Shapes:
        corners: ``(..., j + 1, n)`` with ``j <= n``, ``n`` 2 or 3; the result is ``(...)``.
    """
    order, dims = corners.shape[-2] - 1, corners.shape[-1]
    if order == 0:
        return corners.new_ones(corners.shape[:-2])
    if order == dims:
        return signed_content(corners).abs()
    edges = corners[..., 1:, :] - corners[..., :1, :]
    vector = edges[..., 0, :] if order == 1 else 0.5 * torch.linalg.cross(edges[..., 0, :], edges[..., 1, :])
    squared = vector.square().sum(-1)
    flat = squared == 0
    return torch.where(flat, 0.0, torch.where(flat, 1.0, squared).sqrt())


def signed_content(corners: Tensor) -> Tensor:
    """Return the contents of simplices of full dimension, negative for those with the other orientation.

    Shapes:
        corners: ``(..., n + 1, n)``; the result is ``(...)``.
    """
    edges = corners[..., 1:, :] - corners[..., :1, :]
    if corners.shape[-1] == 2:
        return 0.5 * (edges[..., 0, 0] * edges[..., 1, 1] - edges[..., 0, 1] * edges[..., 1, 0])
    return (torch.linalg.cross(edges[..., 0, :], edges[..., 1, :]) * edges[..., 2, :]).sum(-1) / 6


def cone(corners: Tensor) -> tuple[Tensor, Tensor]:
    """Join the faces of a closed boundary to an auxiliary vertex at the origin; return the simplices and the sign of each.

    Summed with these signs they are the inside, wherever the origin lies: what is outside is counted once with each sign. For
    ``solid=True`` the faces that they share have been cancelled on paper; this is for those who need the simplices.

    Shapes:
        corners: ``(..., n, n)``; the results are ``(..., n + 1, n)`` and ``(...)``.
    """
    joined = torch.cat([torch.zeros_like(corners[..., :1, :]), corners], -2)
    return joined, signed_content(joined).sign()


def _normals(corners: Tensor) -> Tensor:
    """Return the outward normals of faces, as long as the faces are large. Shapes: ``(..., n, n)`` to ``(..., n)``."""
    edges = corners[..., 1:, :] - corners[..., :1, :]
    if corners.shape[-1] == 2:
        return torch.stack([edges[..., 0, 1], -edges[..., 0, 0]], -1)
    return 0.5 * torch.linalg.cross(edges[..., 0, :], edges[..., 1, :])


def wave_vectors(size: Sequence[int], period: Sequence[float], *, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """Return the wave vectors ``k = 2 pi m / period`` in the order of :func:`torch.fft.rfftn`.

    Shapes:
        The result is ``(*size[:-1], size[-1] // 2 + 1, n)``.
    """
    axes = [_numbers(side, half=axis == len(size) - 1) for axis, side in enumerate(size)]
    scaled = [2 * math.pi * axis.to(device) / length for axis, length in zip(axes, period, strict=True)]
    return torch.stack(torch.meshgrid(*scaled, indexing="ij"), -1).to(dtype)


def _numbers(side: int, *, half: bool) -> Tensor:
    """Return the whole numbers of waves in a period, in the order of the fast transform; only those from 0 on for its ``half``."""
    order = torch.arange(side // 2 + 1 if half else side, dtype=torch.float64)
    return order if half else (order + side // 2) % side - side // 2


def _chunk_sum(corners: Tensor, weights: Tensor, waves: Tensor) -> Pair:
    """Sum over simplices. Shapes: ``(j + 1, B, E, n)``, ``(B, C, E)``, ``(K, n)`` to two ``(B, C, K)``."""
    real, imaginary = means((corners @ waves.T).unbind(0))
    return weights @ real, weights @ imaginary


def _weighted_sum(corners: Tensor, weights: Tensor, waves: Tensor, chunk: int) -> Pair:
    """:func:`_chunk_sum` a piece at a time, or at once if ``chunk`` is 0; what a piece needs for its gradient is computed again."""
    _, batch, simplices, _ = corners.shape
    if not chunk or not corners.numel():
        return _chunk_sum(corners, weights, waves)
    waves_each = min(len(waves), chunk)
    each = max(1, min(simplices, chunk // waves_each))
    samples = max(1, chunk // (waves_each * each))
    again = torch.is_grad_enabled() and (corners.requires_grad or weights.requires_grad) and samples * each < batch * simplices
    rows = []
    for first in range(0, batch, samples):
        own, own_weights = corners[:, first : first + samples], weights[first : first + samples]
        columns = []
        for start in range(0, len(waves), waves_each):
            here = waves[start : start + waves_each]
            real = imaginary = torch.zeros((), dtype=corners.dtype, device=corners.device)
            for at in range(0, simplices, each):
                piece = own[:, :, at : at + each], own_weights[..., at : at + each], here
                found = checkpoint(_chunk_sum, *piece, use_reentrant=False) if again else _chunk_sum(*piece)
                real, imaginary = real + found[0], imaginary + found[1]
            columns.append((real, imaginary))
        rows.append(tuple(torch.cat(parts, -1) for parts in zip(*columns, strict=True)))
    real, imaginary = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return real, imaginary


def spectrum(
    corners: Tensor,
    values: Tensor | None = None,
    *,
    size: Sequence[int],
    period: Sequence[float] | float = 1.0,
    solid: bool = False,
    chunk: int = CHUNK,
) -> Tensor:
    """Return the Fourier transform of signals that are constant on simplices, at the frequencies of a grid.

    With ``solid`` the simplices are the faces of closed boundaries and the signal fills what they enclose. By the divergence theorem that
    is ``i / |k|^2`` times the transform of ``k . normal`` over the faces: the simplices that join each face to an auxiliary vertex
    (:func:`cone`) give the same at a higher price. Faces turn counter-clockwise, seen from outside in right-handed axes; turned the
    other way they are holes.

    Shapes:
        corners: ``(*batch, E, j + 1, n)``, with ``j + 1 = n`` for ``solid``.
        values: ``(*batch, E)`` or ``(*batch, E, C)``; the result is ``(*batch, C, *size[:-1], size[-1] // 2 + 1)``, complex.

    Args:
        corners: Positions of the vertices.
        values: Density on each simplex (of points: mass), 1 by default.
        size: Sides of the grid.
        period: Length of the cell that repeats itself, one or one for each axis.
        solid: Fill closed boundaries.
        chunk: Evaluations of the formula that are in memory at once; 0 for all of them.

    Raises:
        InputError: If the shapes do not fit each other.
    """
    return torch.complex(*_parts(corners, values, size, _periods(period, len(size)), solid, chunk))


def _parts(corners: Tensor, values: Tensor | None, size: Sequence[int], period: Sequence[float], solid: bool, chunk: int) -> Pair:
    """:func:`spectrum` as real and imaginary part: a network in real arithmetic can be exported."""
    order, dims = corners.shape[-2] - 1, corners.shape[-1]
    if dims not in (2, 3) or len(size) != dims or not 0 <= order <= dims or (solid and order != dims - 1):
        wanted = f"(..., E, {dims}, {dims})" if solid else "(..., E, j + 1, n) with j <= n"
        raise InputError(
            f"corners {tuple(corners.shape)} on a grid {tuple(size)}: accepted are {wanted}, n = 2 or 3, and one side for each axis"
        )
    batch, count = corners.shape[:-3], corners.shape[-3]
    values = corners.new_ones((*batch, count)) if values is None else values.to(corners.dtype)
    values = values.unsqueeze(-1) if values.ndim == corners.ndim - 2 else values
    if values.shape[:-1] != (*batch, count):
        raise InputError(
            f"values {tuple(values.shape)} for corners {tuple(corners.shape)}: accepted are one number or vector for each simplex"
        )
    grid = wave_vectors(size, period, dtype=corners.dtype, device=corners.device)
    waves = grid.reshape(-1, dims)
    flat = corners.reshape(math.prod(batch), count, order + 1, dims)
    if solid:
        faces = values.reshape(flat.shape[0], count, values.shape[-1], 1) * _normals(flat)[:, :, None]
        weights = faces.flatten(2) * math.factorial(order)
    else:
        weights = values.reshape(flat.shape[0], count, values.shape[-1]) * (content(flat) * math.factorial(order))[..., None]
    real, imaginary = _weighted_sum(flat.permute(2, 0, 1, 3).contiguous(), weights.mT, waves, chunk)
    if solid:
        inside = (faces * flat.mean(2)[:, :, None]).sum((1, 3))[..., None] / dims
        real, imaginary = _inside(real, imaginary, waves, inside)
    shape = (*batch, values.shape[-1], *grid.shape[:-1])
    return real.reshape(shape), imaginary.reshape(shape)


def _inside(real: Tensor, imaginary: Tensor, waves: Tensor, inside: Tensor) -> Pair:
    """Return the transform of what faces enclose from that of their normals; ``inside`` is its value for ``k = 0``."""
    along = (waves[1:] / waves[1:].square().sum(-1, keepdim=True)).T
    real, imaginary = (part.unflatten(1, (-1, waves.shape[1]))[..., 1:] for part in (real, imaginary))
    return torch.cat([inside, -(along * imaginary).sum(2)], -1), torch.cat([torch.zeros_like(inside), (along * real).sum(2)], -1)


def _periods(period: Sequence[float] | float, dims: int) -> tuple[float, ...]:
    periods = (float(period),) * dims if isinstance(period, (int, float)) else tuple(float(length) for length in period)
    if len(periods) != dims or not all(0 < length < math.inf for length in periods):
        raise ConfigError(f"period={period!r} must be one length above 0, or one for each of {dims} axes")
    return periods


class SimplexRaster(nn.Module):
    """Draw simplices on a grid without aliasing: their exact spectrum up to the grid's band limit, transformed back.

    A sample stands at the middle of each of the ``size`` equal cells that the period is cut into. Solids, and simplices of full dimension,
    come out with their density; curves, surfaces and points so that the sum over samples, times the volume of a cell, is their content.

    Shapes:
        vertices: ``(V, n)`` or ``(B, V, n)``.
        simplices: Indices ``(E, j + 1)``, or ``(B, E, j + 1)`` for shapes that differ in them; several such for parts of a mixed topology.
        values: None, ``(E,)`` or ``(E, C)``, with ``B`` in front for batches; as many as there are parts.
        The result is ``(C, *size)`` or ``(B, C, *size)``.

    Args:
        size: Sides of the grid, two or three.
        period: Length of the cell, one or one for each axis; what sticks out comes in on the other side.
        origin: Lower corner of the cell, one or one for each axis.
        smoothing: Deviation, in samples, of the Gaussian that the grid is smoothed with against ringing; 0 for none. The default makes the
            highest frequency ``exp(-2)``, as in the authors' follow-up (DDSL).
        solid: Faces of closed boundaries are filled.
        chunk: Evaluations of the formula that are in memory at once; 0 for all of them.
    """

    def __init__(
        self,
        *,
        size: Sequence[int],
        period: Sequence[float] | float = 1.0,
        origin: Sequence[float] | float = 0.0,
        smoothing: float = 2 / math.pi,
        solid: bool = False,
        chunk: int = CHUNK,
    ) -> None:
        super().__init__()
        self.size, dims = tuple(int(side) for side in size), len(size)
        if dims not in (2, 3) or min(self.size) < 2:
            raise ConfigError(f"size={tuple(size)} must be two or three sides of 2 or more")
        if not smoothing >= 0 or chunk < 0:
            raise ConfigError(f"smoothing={smoothing} must be 0 or more, chunk={chunk} too")
        self.period, self.smoothing, self.solid, self.chunk = _periods(period, dims), float(smoothing), solid, int(chunk)
        self.origin = (float(origin),) * dims if isinstance(origin, (int, float)) else tuple(float(start) for start in origin)
        if len(self.origin) != dims:
            raise ConfigError(f"origin={origin!r} must be one number, or one for each of {dims} axes")

    def _inverse(self, axis: int, like: Tensor) -> Pair:
        """Return the real and imaginary part of the matrix ``(frequencies, samples)`` that transforms an axis back, smoothed."""
        side, length, half = self.size[axis], self.period[axis], axis == len(self.size) - 1
        numbers = _numbers(side, half=half)
        turns = numbers[:, None] * (self.origin[axis] / length + (torch.arange(side, dtype=torch.float64) + 0.5) / side)
        weight = torch.exp(-0.5 * (2 * math.pi * self.smoothing * numbers / side).square()) / length
        # A frequency of exactly half the sampling rate has no partner of the other sign: a real grid cannot tell its phase.
        weight = torch.where(2 * numbers.abs() == side, 0.0, weight)
        if half:  # Its partners are not there, and count by it.
            weight = torch.where(numbers > 0, 2 * weight, weight)
        phase = 2 * math.pi * turns
        return tuple((weight[:, None] * wave).to(like) for wave in (phase.cos(), phase.sin()))  # type: ignore[return-value]

    def _back(self, real: Tensor, imaginary: Tensor) -> Tensor:
        """Transform back axis by axis: matrix products in place of fast transforms cost next to nothing beside the spectrum."""
        dims = len(self.size)
        for axis in range(dims - 1):
            cos, sin = self._inverse(axis, real)
            parts = [part.transpose(axis - dims, -1) for part in (real, imaginary)]
            real = (parts[0] @ cos - parts[1] @ sin).transpose(axis - dims, -1)
            imaginary = (parts[0] @ sin + parts[1] @ cos).transpose(axis - dims, -1)
        cos, sin = self._inverse(dims - 1, real)
        return real @ cos - imaginary @ sin

    def draw(self, corners: Tensor, values: Tensor | None = None) -> Tensor:
        """Return the grids ``(*batch, C, *size)`` of corners ``(*batch, E, j + 1, n)``; the rest is as in :func:`spectrum`."""
        return self._back(*self._parts(corners, values))

    def _parts(self, corners: Tensor, values: Tensor | None) -> Pair:
        chunk = 0 if torch.compiler.is_exporting() else self.chunk  # The number of simplices is free in an exported network.
        return _parts(corners, values, self.size, self.period, self.solid, chunk)

    def to_grid(self, found: Tensor) -> Tensor:
        """Transform a spectrum ``(*batch, C, *size[:-1], size[-1] // 2 + 1)`` back, smoothed, to ``(*batch, C, *size)``."""
        return self._back(found.real, found.imag)

    def forward(self, vertices: Tensor, simplices: Parts, values: Parts | None = None) -> Tensor:
        """Draw a mesh, or the sum of several parts.

        Raises:
            InputError: If shapes do not fit, an index points to no vertex, or a vertex is not finite.
        """
        parts = [simplices] if isinstance(simplices, Tensor) else list(simplices)
        given = [values] * len(parts) if values is None or isinstance(values, Tensor) else list(values)
        if len(given) != len(parts) or not parts:
            raise InputError(f"{len(parts)} parts of simplices with {len(given)} of values; give as many, and at least one")
        if not bool(torch.isfinite(vertices).all()):
            raise InputError("a vertex is not finite (NaN or infinite); remove it and the simplices that use it")
        spectra = [self._parts(corners_of(vertices, part), value) for part, value in zip(parts, given, strict=True)]
        real, imaginary = (torch.stack(some).sum(0) for some in zip(*spectra, strict=True))
        return self._back(real, imaginary)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"size={self.size}, period={self.period}, smoothing={self.smoothing:.3g}, solid={self.solid}"


def corners_of(vertices: Tensor, simplices: Tensor) -> Tensor:
    """Return the positions of the vertices of each simplex.

    Shapes:
        vertices: ``(V, n)`` or ``(B, V, n)``.
        simplices: Indices ``(E, j + 1)`` or, for batches, ``(B, E, j + 1)``; the result is ``(E, j + 1, n)`` or ``(B, E, j + 1, n)``.

    Raises:
        InputError: If an index points to no vertex, or the shapes do not fit.
    """
    if vertices.ndim not in (2, 3) or simplices.ndim not in (2, vertices.ndim) or simplices.is_floating_point():
        raise InputError(
            f"vertices {tuple(vertices.shape)} with simplices {tuple(simplices.shape)} ({simplices.dtype}): accepted are (V, n) or "
            "(B, V, n) with whole numbers (E, j + 1) or (B, E, j + 1)"
        )
    if simplices.numel() and (int(simplices.min()) < 0 or int(simplices.max()) >= vertices.shape[-2]):
        raise InputError(f"a simplex points to vertex {int(simplices.max())} or {int(simplices.min())}, of {vertices.shape[-2]} from 0")
    if simplices.ndim == 2:
        return vertices[..., simplices, :]
    return vertices[torch.arange(len(vertices), device=vertices.device)[:, None, None], simplices]
