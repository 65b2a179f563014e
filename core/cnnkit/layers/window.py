"""Windows of a grid of tokens: cut, join, number relative positions, mark what a cyclic shift brought together.

Liu et al. (2021), "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", for 1 to 3 spatial
dimensions. The grid partition is that of Tu et al. (2022), "MaxViT: Multi-Axis Vision Transformer".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
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


def map_by_mask(windows: Tensor, shift: Sequence[int], function: Callable[[Tensor, tuple[bool, ...]], Tensor]) -> Tensor:
    """Apply a function to the windows in groups that share the pairs of :func:`wrapped_pairs`.

    All windows but the last along a shifted axis have the same pairs, so there are at most ``2^dims`` groups; a mask for each
    window by itself would be a large tensor.

    Args:
        windows: Windows of :func:`partition`, ``(B, *grid, N, C)``.
        shift: Cyclic shift along each axis.
        function: Takes ``(B, *part of the grid, N, C)`` and whether the group is the last one along each axis; keeps all but ``C``.
    """

    def descend(group: Tensor, last: tuple[bool, ...]) -> Tensor:
        axis = len(last) + 1
        if axis > len(shift):
            return function(group, last)
        if not shift[axis - 1]:
            return descend(group, (*last, False))
        inner, outer = group.split((group.shape[axis] - 1, 1), dim=axis)
        return torch.cat([descend(inner, (*last, False)), descend(outer, (*last, True))], dim=axis)

    return descend(windows, ())


def pad_to_multiple(x: Tensor, multiples: Sequence[int], *, first: int) -> Tensor:
    """Pad consecutive axes with zeros at their far ends, so that their lengths become multiples.

    Args:
        x: Any tensor.
        multiples: One for each axis.
        first: Position of the first of the axes.
    """
    fill = [-x.shape[first + axis] % multiple for axis, multiple in enumerate(multiples)]
    if not any(fill):
        return x
    behind = (0, 0) * (x.ndim - first - len(multiples))
    return F.pad(x, (*behind, *itertools.chain.from_iterable((0, f) for f in reversed(fill))))


def in_windows(
    x: Tensor, window: Sequence[int], shifted: bool, function: Callable[[Tensor, tuple[int, ...], tuple[int, ...]], Tensor]
) -> Tensor:
    """Cut a channels-last grid of any size into windows, apply a function to them, and join what it returns.

    Zeros at the far ends fill the last windows up. A window is never larger than the grid, and a grid that is no larger than
    the window is not shifted.

    Args:
        x: The grid, ``(B, *spatial, C)``.
        window: Side lengths of a window.
        shifted: Whether windows begin half a window further on; the grid is rolled, and its two ends meet in the last windows.
        function: Takes the windows ``(B, *grid, N, C)``, their side lengths and the shift; returns the same shape.
    """
    size = x.shape[1:-1]
    window = tuple(min(w, s) for w, s in zip(window, size, strict=True))
    shift = tuple(w // 2 if shifted and s > w else 0 for w, s in zip(window, size, strict=True))
    axes = tuple(range(1, len(size) + 1))
    x = pad_to_multiple(x, window, first=1)
    if any(shift):
        x = torch.roll(x, [-s for s in shift], axes)
    x = unpartition(function(partition(x, window), window, shift), window)
    if any(shift):
        x = torch.roll(x, shift, axes)
    for axis, side in zip(axes, size, strict=True):
        x = x.narrow(axis, 0, side)
    return x
