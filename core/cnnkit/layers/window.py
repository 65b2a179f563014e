"""Windows of a grid of tokens: cut, join, number relative positions, mark what a cyclic shift brought together.

Liu et al. (2021), "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", for 1 to 3 spatial
dimensions. The grid partition is that of Tu et al. (2022), "MaxViT: Multi-Axis Vision Transformer".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def relative_position_index(window: Sequence[int]) -> Tensor:
    """Number the relative positions of every two tokens of a window, row by row.

    Shapes:
        result: ``(N, N)`` int64 with ``N = prod(window)``, values in ``[0, prod(2 * w - 1))``.
    """
    position = torch.stack(torch.meshgrid(*(torch.arange(size) for size in window), indexing="ij")).flatten(1)
    index = torch.zeros(position.shape[1], position.shape[1], dtype=torch.long)
    for axis, size in enumerate(window):
        index = index * (2 * size - 1) + (position[axis, :, None] - position[axis, None, :] + size - 1)
    return index


def partition(x: Tensor, window: Sequence[int]) -> Tensor:
    """Cut a channels-last grid into windows.

    Shapes:
        x: ``(B, *spatial, C)``, every side a multiple of the window's; the result is ``(B, *grid, N, C)``.
    """
    dims = len(window)
    sides = [part for size, w in zip(x.shape[1:-1], window, strict=True) for part in (size // w, w)]
    x = x.reshape(x.shape[0], *sides, x.shape[-1])
    x = x.permute(0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2), 2 * dims + 1)
    return x.flatten(dims + 1, 2 * dims)


def unpartition(windows: Tensor, window: Sequence[int]) -> Tensor:
    """Join windows to the grid that :func:`partition` cut."""
    dims = len(window)
    x = windows.unflatten(-2, tuple(window))
    x = x.permute(0, *(axis for pair in zip(range(1, dims + 1), range(dims + 1, 2 * dims + 1), strict=True) for axis in pair), 2 * dims + 1)
    sides = [grid * w for grid, w in zip(windows.shape[1:-2], window, strict=True)]
    return x.reshape(windows.shape[0], *sides, windows.shape[-1])


def partition_grid(x: Tensor, grid: Sequence[int]) -> Tensor:
    """Gather tokens that lie a fixed number of steps apart, so that each set spans the whole map.

    Shapes:
        x: ``(B, *spatial, C)``, every side a multiple of the grid's; the result is ``(B, *(spatial / grid), prod(grid), C)``.
    """
    dims = len(grid)
    sides = [part for size, g in zip(x.shape[1:-1], grid, strict=True) for part in (g, size // g)]
    x = x.reshape(x.shape[0], *sides, x.shape[-1])
    x = x.permute(0, *range(2, 2 * dims + 1, 2), *range(1, 2 * dims, 2), 2 * dims + 1)
    return x.flatten(dims + 1, 2 * dims)


def unpartition_grid(sets: Tensor, grid: Sequence[int]) -> Tensor:
    """Put the tokens back to where :func:`partition_grid` took them from."""
    dims = len(grid)
    x = sets.unflatten(-2, tuple(grid))
    x = x.permute(0, *(axis for pair in zip(range(dims + 1, 2 * dims + 1), range(1, dims + 1), strict=True) for axis in pair), 2 * dims + 1)
    sides = [g * steps for g, steps in zip(grid, sets.shape[1:-2], strict=True)]
    return x.reshape(sets.shape[0], *sides, sets.shape[-1])


def wrapped_pairs(window: Sequence[int], shift: Sequence[int], last: Sequence[bool], device: torch.device) -> Tensor:
    """Mark the pairs of tokens in a window that only the cyclic shift brought together.

    Only the last window along an axis holds tokens from both ends of the image: its final ``shift`` positions.

    Args:
        window: Side lengths of the window.
        shift: Cyclic shift along each axis.
        last: Whether the window is the last one along each axis.
        device: Where the result is needed.

    Shapes:
        result: ``(N, N)`` bool.
    """
    sides = [(torch.arange(w, device=device) >= w - s) & is_last for w, s, is_last in zip(window, shift, last, strict=True)]
    wrapped = torch.stack(torch.meshgrid(*sides, indexing="ij")).flatten(1)
    return (wrapped[:, :, None] != wrapped[:, None, :]).any(0)
