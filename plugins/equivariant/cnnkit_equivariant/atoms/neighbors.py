"""Which atoms see each other: neighbour lists in torch, for cells of any shape.

The atoms are sorted into columns that run along the third vector of the cell, and by height within a column. What lies within the cutoff of
an atom is then one stretch of every column nearby, found by bisection; images are columns and heights that a whole number of cells moves.
No cell is too small or too oblique for this, and empty space costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from cnnkit.errors import InputError
from torch import Tensor

REACH = 1
"""Columns that the cutoff reaches to either side: of more and narrower ones fewer hold strangers, but each has to be asked."""
MOST_BINS = 2**15
"""Columns along one axis at most, so that column and height together keep their digits in one float64."""
MOST_QUERIES, MOST_CANDIDATES = 2**15, 2**18
"""Work that is done at once; it bounds the memory."""
MOST_PAIRS = 2_000_000_000
"""More pairs than this are a mistake of units rather than a structure."""


def neighbor_list(
    positions: Tensor, cell: Tensor, pbc: Tensor, cutoff: float, *, max_neighbors: int | None = None
) -> tuple[Tensor, Tensor]:
    """Find all pairs of atoms that are closer than a cutoff, through every periodic boundary.

    An edge goes from the neighbour ``j`` to the centre ``i``, along ``positions[j] + shift @ cell - positions[i]``; each pair stands in
    both directions, and an atom neighbours its own images. Atoms may lie outside the cell. Edges are ordered by their centre, and depend
    on nothing but the arguments. Distances are taken in float64 whatever the dtype.

    Args:
        positions: In A, ``(N, 3)``.
        cell: Rows are the vectors, ``(3, 3)``; those of directions that are not periodic are not looked at, and may be zero.
        pbc: Which directions are periodic, ``(3,)``.
        cutoff: Pairs at exactly this distance are left out, in A.
        max_neighbors: Keep the nearest of each centre only; of equally near ones those that come first. The list then need not hold a
            pair in both directions.

    Returns:
        ``edge_index (2, E)`` = neighbour, centre; and ``shifts (E, 3)``, whole numbers in the dtype of the positions.

    Raises:
        InputError: If positions or cell are not finite, the periodic vectors span no volume, or the pairs would be billions.
    """
    if not cutoff > 0:
        raise InputError(f"a cutoff of {cutoff} A finds no neighbours; accepted: more than 0")
    if max_neighbors is not None and max_neighbors < 1:
        raise InputError(f"max_neighbors={max_neighbors} would leave no edge; accepted: 1 or more, or None for all")
    if not bool(torch.isfinite(positions).all()):
        raise InputError(f"{_first_bad(positions)} is at no place: its position is not finite")
    columns = _Columns.sort(positions.detach().double(), cell.detach().double().view(3, 3), pbc.view(3).to(torch.bool), cutoff)
    edges, shifts, squares = (torch.cat(part, 1) for part in zip(*columns.edges(), strict=True))
    if max_neighbors is not None:
        keep = _nearest(edges[1], squares[0], max_neighbors)
        edges, shifts = edges[:, keep], shifts[:, keep]
    return edges, shifts.T.to(positions.dtype).contiguous()


@dataclass(frozen=True)
class _Columns:
    """Atoms, sorted by column and by height, in axes where the third vector of the cell is the third axis.

    Args:
        cutoff: In A.
        basis: Vectors of the cell: the third along the third axis, the first without a second component.
        periodic: Which of them are periodic.
        bins: Columns along the first and the second vector.
        places: Of the atoms, moved into the home cell, in their own order, ``(N, 3)``.
        home: By how many cells each was moved, ``(N, 3)``.
        order: Atom of each rank.
        ranks: Rank of each atom.
        keys: Column and height of each rank, growing.
        stride: What one column adds to a key.
    """

    cutoff: float
    basis: np.ndarray
    periodic: tuple[bool, bool, bool]
    bins: tuple[int, int]
    places: Tensor
    home: Tensor
    order: Tensor
    ranks: Tensor
    keys: Tensor
    stride: float

    @classmethod
    def sort(cls, positions: Tensor, cell: Tensor, pbc: Tensor, cutoff: float) -> _Columns:
        basis, origin = complete_cell(positions, cell, pbc)
        axes = _axes(basis)
        basis, periodic = basis @ axes.T, tuple(bool(flag) for flag in pbc.tolist())
        places = (positions - positions.new_tensor(origin)) @ positions.new_tensor(axes.T)
        home = torch.zeros_like(places)
        for axis in (1, 0, 2):  # Each vector has no component along the axes that were done before it.
            if periodic[axis]:
                home[:, axis] = torch.floor(_fraction(places, basis, axis))
                places = places - home[:, axis, None] * places.new_tensor(basis[axis])
        heights = _spacings(basis)
        bins = tuple(min(max(int(REACH * height / cutoff), 1), MOST_BINS) for height in heights)
        column = _bin(places, basis, 0, bins[0]) * bins[1] + _bin(places, basis, 1, bins[1])
        stride = float(basis[2, 2]) + 1.0
        keys, order = torch.sort(column * stride + places[:, 2], stable=True)
        _check_number(len(places), basis, periodic, cutoff)
        ranks = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
        return cls(cutoff, basis, periodic, bins, places, home, order, ranks, keys, stride)  # type: ignore[arg-type]

    def edges(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield edges ``(2, E)``, shifts ``(3, E)`` and squared distances ``(1, E)`` of one block of centres after the other."""
        around = self._around()
        sorted_places = self.places[self.order].T.contiguous()
        block = max(MOST_QUERIES // len(around), 1)
        for first in range(0, max(len(self.places), 1), block):
            center = torch.arange(first, min(first + block, len(self.places)), device=self.places.device)
            for stretches in self._stretches(center, around).pieces():
                yield self._pairs(stretches, sorted_places)

    def _around(self) -> Tensor:
        """Return the columns around one that the cutoff can reach, as steps ``(K, 2)``."""
        steps = []
        for axis, height in enumerate(_spacings(self.basis)):
            reach = math.ceil(self.cutoff * self.bins[axis] / height)
            reach = reach if self.periodic[axis] else min(reach, self.bins[axis] - 1)
            steps.append(torch.arange(-reach, reach + 1, device=self.places.device))
        return torch.cartesian_prod(*steps)

    def _stretches(self, center: Tensor, around: Tensor) -> _Stretches:
        """Return the stretches of columns within the cutoff of the centres."""
        gaps, wrapped, cells = [], [], []
        inside = torch.ones(len(center), len(around), dtype=torch.bool, device=center.device)
        own = self.places[center]
        for axis, height in enumerate(_spacings(self.basis)):
            count, step = self.bins[axis], around[:, axis]
            fraction = _fraction(own, self.basis, axis)[:, None]
            column = _bin(own, self.basis, axis, count)[:, None] + step
            edge = torch.where(step > 0, column, column + 1) / count
            gaps.append(torch.where(step == 0, 0.0, (edge - fraction) * step.sign()).clamp_min(0) * height)
            cells.append(torch.div(column, count, rounding_mode="floor"))
            wrapped.append(column - cells[-1] * count)
            if not self.periodic[axis]:
                inside &= cells[-1] == 0
        # A little more than the cutoff, lest rounding lose a pair: what is too far is dropped later.
        room = (self.cutoff * (1 + 1e-9)) ** 2 - _least_square(gaps[0], gaps[1], around, self.basis)
        chosen = (inside & (room > 0)).flatten().nonzero()[:, 0]
        first, second, column, room = (
            each.flatten().index_select(0, chosen) for each in (*cells, wrapped[0] * self.bins[1] + wrapped[1], room)
        )
        which = chosen // len(around)
        below = own[:, 2].index_select(0, which) - first * float(self.basis[0, 2]) - second * float(self.basis[1, 2])
        return self._images(center.index_select(0, which), column, first, second, below, room.sqrt() + 1e-9)

    def _images(self, center: Tensor, column: Tensor, first: Tensor, second: Tensor, height: Tensor, reach: Tensor) -> _Stretches:
        """Repeat the stretches for every image along the third vector that they touch, and look up where they begin and end."""
        length = float(self.basis[2, 2])
        third = torch.zeros_like(first)
        if self.periodic[2]:
            lowest = torch.floor((height - reach) / length).long()
            images = torch.floor((height + reach) / length).long() - lowest + 1
            index = torch.repeat_interleave(images)
            begin = images.cumsum(0) - images
            third = (lowest - begin).index_select(0, index) + torch.arange(len(index), device=index.device)
            center, column, first, second, height, reach = (
                each.index_select(0, index) for each in (center, column, first, second, height, reach)
            )
        height = height - third * length
        base = column * self.stride
        slack = 1e-9 + 4e-16 * float(self.keys[-1].abs()) if len(self.keys) else 0.0
        start = torch.searchsorted(self.keys, base + (height - reach).clamp_min(0) - slack)
        stop = torch.searchsorted(self.keys, base + (height + reach).clamp_max(length) + slack, right=True)
        cells = torch.stack([first, second, third])
        some = (stop > start).nonzero()[:, 0]
        return _Stretches(center[some], cells[:, some].to(self.places.dtype), start[some], (stop - start)[some])

    def _pairs(self, stretches: _Stretches, sorted_places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count, center = stretches.count, stretches.center
        first = count.cumsum(0) - count
        # Numbers of 32 bits: there are many candidates, and a piece of them holds fewer than MOST_PAIRS.
        which = torch.repeat_interleave(torch.arange(len(count), dtype=torch.int32, device=count.device), count)
        rank = (stretches.start - first).int().index_select(0, which) + torch.arange(len(which), dtype=torch.int32, device=which.device)
        origin = self.places[center].T - self.places.new_tensor(self.basis.T) @ stretches.cells
        squares = torch.zeros(len(which), dtype=self.places.dtype, device=which.device)
        for axis in range(3):  # One component after the other: whole rows are gathered several times slower.
            squares += (sorted_places[axis].index_select(0, rank) - origin[axis].index_select(0, which)).square_()
        squares.index_fill_(0, self._itself(stretches, first), torch.inf)
        near = (squares < self.cutoff**2).nonzero()[:, 0]
        which, neighbor = which.index_select(0, near), self.order.index_select(0, rank.index_select(0, near))
        moved = stretches.cells + self.home[center].T
        shifts = torch.stack([each.index_select(0, which) for each in moved])
        if bool(self.home.any()):
            shifts -= torch.stack([each.index_select(0, neighbor) for each in self.home.T.contiguous()])
        return torch.stack([neighbor, center.index_select(0, which)]), shifts, squares.index_select(0, near)[None]

    def _itself(self, stretches: _Stretches, first: Tensor) -> Tensor:
        """Return which candidates are the centre itself, where it is not moved."""
        away = self.ranks[stretches.center] - stretches.start
        itself = (away >= 0) & (away < stretches.count) & ~stretches.cells.any(0)
        return (first + away)[itself]


@dataclass(frozen=True)
class _Stretches:
    """Stretches of the sorted atoms: the centre that each belongs to, the cells by which it is moved ``(3, S)``, first rank, length."""

    center: Tensor
    cells: Tensor
    start: Tensor
    count: Tensor

    def pieces(self) -> Iterator[_Stretches]:
        """Cut into pieces with a bounded number of candidates."""
        total = self.count.cumsum(0)
        marks = list(range(MOST_CANDIDATES, int(total[-1]) if len(total) else 0, MOST_CANDIDATES))
        cuts = [0, *torch.searchsorted(total, total.new_tensor(marks)).tolist(), len(total)]
        for low, high in pairwise(cuts):
            yield _Stretches(self.center[low:high], self.cells[:, low:high], self.start[low:high], self.count[low:high])


def complete_cell(positions: Tensor, cell: Tensor, pbc: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors that span space, and the origin: those of a cell, with the size of the structure where it is not periodic.

    Args:
        positions: ``(N, 3)``.
        cell: ``(3, 3)``.
        pbc: ``(3,)``.

    Raises:
        InputError: If the periodic vectors are not finite or span no volume.
    """
    periodic = pbc.cpu().numpy()
    basis = np.where(periodic[:, None], cell.cpu().numpy(), 0.0)
    if not np.isfinite(basis).all():
        raise InputError("the cell is not finite; give three vectors in A, or switch its periodic directions off")
    if periodic.all() and abs(np.linalg.det(basis)) > 1e-6 * np.prod(np.linalg.norm(basis, axis=1)):
        return basis, np.zeros(3)
    lengths = np.linalg.norm(basis[periodic], axis=1)
    _, spans, frame = np.linalg.svd(basis[periodic] / np.maximum(lengths, 1e-300)[:, None])
    if (lengths < 1e-6).any() or spans.prod() < 1e-6:
        which = ", ".join("abc"[axis] for axis in range(3) if periodic[axis])
        raise InputError(f"the cell is periodic along {which}, but its vectors span no volume; correct the cell, or set pbc to False")
    free = frame[len(lengths) :]
    low = high = np.zeros(len(free))
    if len(positions):
        along = positions @ positions.new_tensor(free.T)
        low, high = along.amin(0).cpu().numpy(), along.amax(0).cpu().numpy()
    basis[~periodic] = free * (np.maximum(high - low, 1.0) * (1 + 1e-9))[:, None]
    return basis, low @ free


def _axes(basis: np.ndarray) -> np.ndarray:
    """Return axes (as rows) whose third is along the third vector, and whose second is at right angles to the first vector."""
    third = basis[2] / np.linalg.norm(basis[2])
    first = basis[0] - (basis[0] @ third) * third
    first /= np.linalg.norm(first)
    second = np.cross(third, first)
    return np.stack([first, second * np.sign(second @ basis[1]), third])


def _fraction(places: Tensor, basis: np.ndarray, axis: int) -> Tensor:
    """Return one coordinate in units of the vectors: of the first two across the columns, and the height along the third."""
    if axis == 2:
        return places[:, 2] / float(basis[2, 2])
    second = places[:, 1] / float(basis[1, 1])
    return second if axis == 1 else (places[:, 0] - second * float(basis[1, 0])) / float(basis[0, 0])


def _bin(places: Tensor, basis: np.ndarray, axis: int, count: int) -> Tensor:
    return torch.floor(_fraction(places, basis, axis) * count).long().clamp(0, count - 1)


def _spacings(basis: np.ndarray) -> tuple[float, float]:
    """Return the distances between opposite sides of the cell, seen along its third vector."""
    return float(basis[0, 0] / math.hypot(1, basis[1, 0] / basis[1, 1])), float(basis[1, 1])


def _least_square(first: Tensor, second: Tensor, around: Tensor, basis: np.ndarray) -> Tensor:
    """Return the squared distance to a column of which only the gaps to two of its sides are known."""
    slope = float(basis[1, 0] / basis[1, 1])
    cosine = -slope / math.hypot(1, slope) * (around[:, 0] * around[:, 1]).sign()
    corner = (first**2 + second**2 - 2 * cosine * first * second) / (1 - cosine**2)
    side = torch.maximum(first, second)
    beside = (cosine * side >= torch.minimum(first, second)) | (around == 0).any(1)
    return torch.where(beside, side**2, corner)


def _nearest(center: Tensor, squares: Tensor, most: int) -> Tensor:
    """Return which edges are among the nearest of their centre; edges come ordered by centre."""
    # Distances of images that symmetry makes equal differ by rounding: to ten digits they are equal, and their order decides.
    order = torch.sort(torch.round(squares, decimals=10), stable=True).indices
    order = order[torch.sort(center[order], stable=True).indices]
    counts = torch.bincount(center)
    begin = counts.cumsum(0) - counts
    place = torch.arange(len(center), device=center.device) - begin[center]  # The centre of each place is the same in either order.
    keep = torch.zeros(len(center), dtype=torch.bool, device=center.device)
    keep[order[place < most]] = True
    return keep


def _check_number(atoms: int, basis: np.ndarray, periodic: tuple[bool, ...], cutoff: float) -> None:
    if not all(periodic):
        return
    pairs = 4.19 * cutoff**3 * atoms**2 / abs(float(np.linalg.det(basis)))
    if pairs > MOST_PAIRS:
        raise InputError(
            f"{atoms} atoms in this cell would have about {pairs:.0e} pairs within {cutoff:g} A; cell and positions must be in A"
        )


def _first_bad(positions: Tensor) -> str:
    bad = (~torch.isfinite(positions)).any(1).nonzero()[:, 0]
    return f"atom {int(bad[0])}" + (f" (and {len(bad) - 1} more)" if len(bad) > 1 else "")
