"""Graphs of atoms by brute force: every pair with every image of it."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch_geometric.data import Data


def edges(positions: Tensor, cutoff: float, cell: Tensor | None, images: int) -> tuple[Tensor, Tensor]:
    """Neighbour and centre ``(2, E)``, and whole cells ``(E, 3)`` by which the neighbour is moved."""
    count = len(positions)
    found, shifts = [], []
    around = list(itertools.product(range(-images, images + 1), repeat=3)) if cell is not None else [(0, 0, 0)]
    for shift in around:
        moved = torch.tensor(shift, dtype=positions.dtype)
        offset = moved @ cell.to(positions) if cell is not None else torch.zeros(3, dtype=positions.dtype)
        near = (positions[:, None] + offset - positions[None]).norm(dim=2) < cutoff
        if shift == (0, 0, 0):
            near &= ~torch.eye(count, dtype=torch.bool)
        pairs = near.nonzero().t()
        found.append(pairs)
        shifts.append(moved.expand(pairs.shape[1], 3))
    return torch.cat(found, 1), torch.cat(shifts)


def graph(positions: Tensor, numbers: Tensor, cutoff: float, cell: Tensor | None = None, images: int = 3) -> Data:
    """A structure, periodic in all directions if it has a cell."""
    edge_index, shifts = edges(positions, cutoff, cell, images)
    return Data(
        pos=positions,
        z=numbers,
        edge_index=edge_index,
        shifts=shifts,
        cell=(torch.zeros(3, 3) if cell is None else cell).to(positions)[None],
        pbc=torch.full((1, 3), cell is not None),
    )
