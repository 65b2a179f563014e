"""The convolution in the frame of an edge: linear maps order by order.

With the edge on the polar axis, its harmonics are zero but for ``m = 0``, and a tensor product with them mixes coefficients of equal
``|m|`` only. Passaro and Zitnick, "Reducing SO(3) Convolutions to SO(2) for Efficient Equivariant GNNs" (2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from cnnkit.errors import ConfigError
from torch import Tensor, nn

from . import order


class SO2Linear(nn.Module):
    """All linear maps that commute with rolls about the edge, over degrees and channels at once.

    ``m = 0`` has one dense map. For ``m > 0`` a roll multiplies ``x_m + i x_-m`` by a phase, so the map is complex:
    ``y_m = Wr x_m - Wi x_-m`` and ``y_-m = Wi x_m + Wr x_-m``, which is one real matrix product.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        lmax: Highest degree, of both.
        mmax: Highest order, of both; by default ``lmax``.
        extra_scalars: Numbers that are made of the ``m = 0`` coefficients besides, for gates or attention.
        edge_channels: Of invariants of an edge, which a linear map takes to a factor for each ``(l, |m|, channel)`` of the input.
            ``None`` for weights that do not depend on the edge.
        bias: Whether the ``m = 0`` results have one.

    Attributes:
        weight: Of ``m = 0``, ``(extra_scalars + (lmax + 1) * out_channels, (lmax + 1) * in_channels)``: first the extra scalars, then
            degree by degree.
        weights: Of ``m = 1..mmax``, ``(2, degrees * out_channels, degrees * in_channels)`` with the real part first.

    Shapes:
        x: ``(E, K, in_channels)`` by order, see :mod:`~.order`; gives ``(E, K, out_channels)``.
    """

    gate: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        lmax: int,
        mmax: int | None = None,
        *,
        extra_scalars: int = 0,
        edge_channels: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if min(in_channels, out_channels) < 1 or extra_scalars < 0:
            raise ConfigError(
                f"in_channels={in_channels}, out_channels={out_channels}, extra_scalars={extra_scalars}: at least one channel, no negative"
            )
        self.in_channels, self.out_channels, self.lmax, self.extra_scalars = in_channels, out_channels, lmax, extra_scalars
        self.mmax = order.check(lmax, mmax)
        self._kept = order.size(lmax, mmax)
        degrees = [lmax + 1 - m for m in range(self.mmax + 1)]
        self.weight = nn.Parameter(torch.empty(extra_scalars + degrees[0] * out_channels, degrees[0] * in_channels))
        self.weights = nn.ParameterList(torch.empty(2, count * out_channels, count * in_channels) for count in degrees[1:])
        self.bias = nn.Parameter(torch.zeros(len(self.weight))) if bias else None
        self.gates = nn.Linear(edge_channels, sum(degrees) * in_channels) if edge_channels else None
        starts = [sum(degrees[:m]) for m in range(self.mmax + 1)]
        rows = [row for m, start in enumerate(starts) for _ in range(2 if m else 1) for row in range(start, start + degrees[m])]
        self.register_buffer("gate", torch.tensor(rows), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights that keep the variance of coefficients, and set the gates around one."""
        bound = math.sqrt(3 / self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound)
        for weight in self.weights:
            bound = math.sqrt(1.5 / weight.shape[2])  # A result has two parts.
            nn.init.uniform_(weight, -bound, bound)
        if self.gates is not None:
            nn.init.ones_(self.gates.bias)

    def forward(self, x: Tensor, edges: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Return the coefficients ``(E, K, out_channels)``, with the extra scalars ``(E, extra_scalars)`` if there are any.

        Args:
            x: ``(E, K, in_channels)`` by order.
            edges: Invariants of the edges, ``(E, edge_channels)``, if the layer takes them.
        """
        flat = x.flatten(1) if self.gates is None else self._gated(x, edges)
        matrices = [self.weight.t().contiguous(), *(_real(weight) for weight in self.weights)]
        mixed = _by_order(flat, self.bias, matrices)
        if not self.extra_scalars:
            return mixed.unflatten(1, (self._kept, self.out_channels))
        extra, mixed = mixed.split([self.extra_scalars, self._kept * self.out_channels], 1)
        return mixed.unflatten(1, (self._kept, self.out_channels)), extra

    def _gated(self, x: Tensor, edges: Tensor | None) -> Tensor:
        assert self.gates is not None
        if edges is None:
            raise ConfigError(f"this SO2Linear has edge_channels={self.gates.in_features}: call it with the invariants of the edges, too")
        # Both signs of m have one factor: another would not commute with rolls.
        return (x * self.gates(edges).unflatten(1, (-1, self.in_channels)).index_select(1, self.gate)).flatten(1)

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"{self.in_channels}, {self.out_channels}, lmax={self.lmax}, mmax={self.mmax}, extra_scalars={self.extra_scalars}"


def _real(weight: Tensor) -> Tensor:
    """Return the complex map ``(2, out, in)`` as a real matrix ``(2 in, 2 out)``, +m before -m, that rows are multiplied by."""
    real, imaginary = weight.mT.unbind()
    return torch.cat([torch.cat([real, imaginary], 1), torch.cat([-imaginary, real], 1)])


def _by_order(x: Tensor, bias: Tensor | None, matrices: Sequence[Tensor]) -> Tensor:
    """Return ``x (E, sum of rows)`` times a block diagonal of matrices, and a bias for the columns of the first."""
    matrices = [matrix.to(x.dtype) for matrix in matrices]
    bias = None if bias is None else bias.to(x.dtype)
    if torch.compiler.is_compiling():  # A graph has no use for the function below, and an exported one no place.
        return _pieces(x, bias, matrices)
    return _BlockProduct.apply(x, bias, *matrices)


def _pieces(x: Tensor, bias: Tensor | None, matrices: Sequence[Tensor]) -> Tensor:
    parts = x.split([matrix.shape[0] for matrix in matrices], 1)
    first = parts[0] @ matrices[0] if bias is None else torch.addmm(bias, parts[0], matrices[0])
    return torch.cat([first, *(part @ matrix for part, matrix in zip(parts[1:], matrices[1:], strict=True))], 1)


class _BlockProduct(torch.autograd.Function):
    """:func:`_pieces` without a copy: every product is written where it belongs, and so is every gradient."""

    @staticmethod
    def forward(x: Tensor, bias: Tensor | None, *matrices: Tensor) -> Tensor:
        found = x.new_empty(x.shape[0], sum(matrix.shape[1] for matrix in matrices))
        parts = zip(x.split([m.shape[0] for m in matrices], 1), matrices, found.split([m.shape[1] for m in matrices], 1), strict=True)
        for part, matrix, place in parts:
            torch.mm(part, matrix, out=place)
        if bias is not None:
            found[:, : len(bias)] += bias
        return found

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, bias, *matrices = inputs
        ctx.biased = 0 if bias is None else len(bias)
        ctx.save_for_backward(x, *matrices)

    @staticmethod
    def backward(ctx, slope: Tensor):
        x, *matrices = ctx.saved_tensors
        # Only with differentiable operations, so that the gradient has one, too.
        for_x = _BlockProduct.apply(slope, None, *(matrix.t() for matrix in matrices)) if ctx.needs_input_grad[0] else None
        for_bias = slope[:, : ctx.biased].sum(0) if ctx.biased and ctx.needs_input_grad[1] else None
        rows, columns = x.split([m.shape[0] for m in matrices], 1), slope.split([m.shape[1] for m in matrices], 1)
        wanted = ctx.needs_input_grad[2:]
        for_matrices = [row.t() @ column if need else None for row, column, need in zip(rows, columns, wanted, strict=True)]
        return for_x, for_bias, *for_matrices
