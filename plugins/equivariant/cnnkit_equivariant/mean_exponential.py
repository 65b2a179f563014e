"""The mean of ``exp(-i s)`` over a simplex on which ``s`` is linear: divided differences of the exponential, exact wherever nodes fall.

A divided difference divides by the distances of its nodes, and they coincide often: for ``k = 0``, for edges at right angles to ``k``, for
degenerate simplices. By the Hermite-Genocchi formula it is an integral that has no such places. Here a recurrence over sorted nodes
computes it where they lie apart, and a power series where they do not. Its derivatives are means of the same kind, of one node more.
Everything is in real arithmetic, and in place: complex exponentials and products cost several times as much.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]

NEAR = 1.0
"""Spread of the nodes, in radians, below which the series takes over from the recurrence, which loses digits by its inverse."""

TERMS = {torch.float32: 11, torch.float64: 18}
"""Terms of the series after which nothing is left to add within :data:`NEAR`."""


def _sorted(nodes: Sequence[Tensor]) -> list[Tensor]:
    """Sort elementwise, by exchanges of neighbours: for five tensors at most, and no indices are needed."""
    found = list(nodes)
    for end in range(len(found) - 1, 0, -1):
        for at in range(end):
            found[at : at + 2] = torch.minimum(found[at], found[at + 1]), torch.maximum(found[at], found[at + 1])
    return found


def _series(nodes: Sequence[Tensor]) -> Pair:
    """Return the mean for nodes that are close: ``exp(-i m) sum_n (-i)^n h_n(s - m) / (n + j)!`` with ``m`` their mean.

    ``h_n`` are the complete homogeneous symmetric polynomials; they follow from the elementary ones, the first of which is 0 here.
    """
    count, dtype = len(nodes), nodes[0].dtype
    middle = nodes[0].clone()
    for node in nodes[1:]:
        middle += node
    middle /= count
    deviations = [node - middle for node in nodes]
    elementary = [torch.ones_like(middle), deviations[0].clone()]
    for deviation in deviations[1:]:
        elementary.append(elementary[-1] * deviation)
        for order in range(len(elementary) - 2, 0, -1):
            elementary[order].addcmul_(elementary[order - 1], deviation)
    for order in range(2, count + 1, 2):  # Their signs in the recurrence.
        elementary[order].neg_()
    complete = [elementary[0], torch.zeros_like(middle)]
    even, odd = torch.full_like(middle, 1 / math.factorial(count - 1)), torch.zeros_like(middle)
    for n in range(2, TERMS.get(dtype, TERMS[torch.float64])):
        complete.append(elementary[2] * complete[n - 2])
        for order in range(3, min(n, count) + 1):
            complete[n].addcmul_(elementary[order], complete[n - order])
        scale = (-1.0) ** (n // 2) / math.factorial(n + count - 1)
        if n % 2:
            odd.sub_(complete[n], alpha=scale)
        else:
            even.add_(complete[n], alpha=scale)
    cos, sin = middle.cos(), middle.sin()
    return (cos * even).addcmul_(sin, odd), (cos * odd).addcmul_(sin, even, value=-1)


def _mean(nodes: Sequence[Tensor]) -> Pair:
    """Return real and imaginary part of ``int exp(-i t . s) dt`` over the standard simplex, for up to any number of nodes.

    Divided differences of neighbours in sorted order, level by level; entries of a level whose nodes are close come from the series.
    """
    if len(nodes) == 1:
        return nodes[0].cos(), -nodes[0].sin()
    nodes = [node.reshape(-1) for node in _sorted(nodes)]
    level = []
    for low, high in itertools.pairwise(nodes):  # Of two nodes: exp(-i mean) sinc(half their distance).
        half = (high - low).mul_(0.5).clamp_min_(1e-30)
        middle, size = (high + low).mul_(0.5), half.sin().div_(half)
        level.append((middle.cos().mul_(size), middle.sin().mul_(size).neg_()))
    for width in range(2, len(nodes)):
        level = [_wider(nodes[at : at + width + 1], level[at], level[at + 1]) for at in range(len(nodes) - width)]
    return level[0]


def _wider(nodes: Sequence[Tensor], left: Pair, right: Pair) -> Pair:
    gap = nodes[-1] - nodes[0]
    near = (gap < NEAR).nonzero()[:, 0]
    if len(near) == len(gap):
        return _series(nodes)
    inverse = gap.clamp_min_(NEAR).reciprocal_()
    real, imaginary = (left[1] - right[1]).mul_(inverse), (right[0] - left[0]).mul_(inverse)
    if len(near):
        close = _series([node.index_select(0, near) for node in nodes])
        real.index_copy_(0, near, close[0])
        imaginary.index_copy_(0, near, close[1])
    return real, imaginary


class _MeanExponential(torch.autograd.Function):
    """:func:`_mean` whose derivative by a node is ``-i`` times the mean with that node twice, and so has derivatives itself."""

    @staticmethod
    def forward(ctx: Any, *nodes: Tensor) -> Pair:
        real, imaginary = (part.reshape(nodes[0].shape) for part in _mean(nodes))
        ctx.save_for_backward(real, imaginary, *nodes)
        return real, imaginary

    @staticmethod
    def backward(ctx: Any, to_real: Tensor, to_imaginary: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        real, imaginary, *nodes = ctx.saved_tensors
        slopes = []
        for node in nodes[:-1]:
            twice = _MeanExponential.apply(*nodes, node)
            slopes.append(to_real * twice[1] - to_imaginary * twice[0])
        # A shift of all nodes by the same amount only turns the phase: the slopes add up to that of the phase.
        every = to_real * imaginary - to_imaginary * real
        return (*slopes, every - sum(slopes[1:], slopes[0]) if slopes else every)


def means(nodes: Sequence[Tensor]) -> Pair:
    """Return real and imaginary part of :func:`mean_exponential`, of as many tensors as there are nodes."""
    if torch.is_grad_enabled() and any(node.requires_grad for node in nodes):
        return _MeanExponential.apply(*nodes)
    real, imaginary = _mean(nodes)
    return real.reshape(nodes[0].shape), imaginary.reshape(nodes[0].shape)


def mean_exponential(s: Tensor) -> Tensor:
    """Return ``int exp(-i t . s) dt`` over the standard simplex, which is ``i^j`` times the divided difference of ``exp(-i s)``.

    It is exact to rounding for any ``s``, coinciding ones among them, and can be differentiated any number of times.

    Shapes:
        s: ``(..., j + 1)`` real; the result is ``(...)`` complex, and ``1 / j!`` where all ``s`` are 0.
    """
    return torch.complex(*means([node.contiguous() for node in s.unbind(-1)]))
