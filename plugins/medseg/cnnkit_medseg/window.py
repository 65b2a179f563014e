"""Sliding windows as a stream: logits leave as soon as no later window touches them, the volume never stands in memory.

Both of the field's grids are here, each equal to its reference: nnU-Net spreads the windows evenly (Isensee et al., 2021,
"nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation"), MONAI keeps the interval and
clamps the last window to the border.

The weights of a window are divided beforehand by the sum of the weights of all windows over each voxel. So the windows only
need to be added, each with one multiply-add per logit, and no count map and no division pass over all classes follow.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from cnnkit.errors import ConfigError, InputError, unknown
from cnnkit.layers.nd import tupled
from numpy.typing import NDArray
from torch import Tensor

Grid = Literal["nnunet", "monai"]
Weighting = Literal["gaussian", "constant"]
Predictor = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], object]
Array = NDArray[np.floating[Any]]

GRIDS = ("nnunet", "monai")
WEIGHTINGS = ("gaussian", "constant")
_MONAI_FLOOR = 1e-3  # MONAI lets no weight fall below this.
_SMALLEST = 1e-36  # Smaller products of Gaussians lose digits, or vanish, in float32.


def window_starts(size: int, window: int, overlap: float, grid: Grid = "nnunet") -> list[int]:
    """Return where the windows along one axis begin.

    Args:
        size: Length of the axis; an axis shorter than the window is one window, to be padded.
        window: Length of the window.
        overlap: Share of the window that neighbours share, ``0 <= overlap < 1``; nnU-Net's step size is ``1 - overlap``.
        grid: ``"nnunet"`` spreads the windows evenly and rounds; ``"monai"`` keeps ``int(window * (1 - overlap))`` between
            them and clamps the last to the border.

    Raises:
        ConfigError: If an argument is out of its range.
    """
    if grid not in GRIDS:
        raise ConfigError(unknown("grid of windows", grid, GRIDS))
    if not 0 <= overlap < 1 or window < 1:
        raise ConfigError(f"windows of {window} voxels with overlap {overlap}: a window has 1 voxel or more and 0 <= overlap < 1")
    room = size - window
    if room <= 0:
        return [0]
    if grid == "monai":
        step = max(int(window * (1 - overlap)), 1)
        return [min(index * step, room) for index in range(math.ceil(room / step) + 1)]
    count = math.ceil(room / (window * (1 - overlap))) + 1
    # Python rounds halves to even, as numpy does in nnU-Net.
    return [round(room / (count - 1) * index) for index in range(count)]


def gaussian_weights(window: Sequence[int], sigma_scale: float = 0.125, kind: Grid = "nnunet") -> Tensor:
    """Return the Gaussian importance of a window's voxels, ``(*window)`` in float32, with maximum 1 (or just below).

    Args:
        window: Size of the window.
        sigma_scale: Standard deviation as a share of the window.
        kind: ``"nnunet"`` centres on voxel ``length // 2`` and lifts zeros to the smallest other value; ``"monai"`` centres
            between the voxels and lifts everything to 0.001 at least.
    """
    return torch.from_numpy(_gaussian([_bell(length, sigma_scale, kind) for length in window], kind))


def _bell(length: int, sigma_scale: float, kind: Grid) -> Array:
    """Return the Gaussian along one axis, of height 1, before any floor."""
    sigma = sigma_scale * length
    if kind == "monai":
        return np.exp(-((np.arange(length) - (length - 1) / 2) ** 2) / (2 * sigma**2))
    # The response of scipy's gaussian_filter to a unit impulse at length // 2: cut off at four sigmas.
    offset = np.arange(length) - length // 2
    return np.exp(-(offset**2) / (2 * sigma**2)) * (np.abs(offset) <= int(4 * sigma + 0.5))


def _gaussian(bells: Sequence[Array], kind: Grid) -> Array:
    """Return the product of Gaussians in float32, lifted from the floor."""
    weights = _outer(bells)
    if kind == "monai":
        return np.maximum(weights, max(weights.min(), _MONAI_FLOOR), out=weights)
    positive = weights > 0
    if not positive.all():
        weights[~positive] = weights[positive].min()
    return weights


def _outer(factors: Sequence[Array]) -> Array:
    """Return the outer product of vectors in float32."""
    return reduce(np.multiply.outer, [factor.astype(np.float32) for factor in factors])


@dataclass(frozen=True)
class _Weights:
    """Weights of each window, normalised so that over every voxel they add up to 1.

    A product of vectors stays one after normalisation, since the grid is a product too: that costs almost nothing. A map
    with a floor is no product; its sum is taken over the neighbours that reach into the window. This is work on a single
    channel: numpy does it on one thread without the cost of waking others.
    """

    starts: tuple[list[int], ...]
    window: tuple[int, ...]
    full: Array | None = None
    vectors: tuple[list[Array], ...] = field(default=())

    @classmethod
    def build(cls, starts: tuple[list[int], ...], window: tuple[int, ...], weighting: Weighting, kind: Grid) -> _Weights:
        axes: list[Array] = [np.ones(length) for length in window]
        if weighting == "gaussian" and math.prod(map(len, starts)) > 1:  # A single window counts fully, whatever its weights.
            axes = [_bell(length, 0.125, kind) for length in window]
            lowest = math.prod(float(axis.min()) for axis in axes)
            if lowest < (_MONAI_FLOOR if kind == "monai" else _SMALLEST):
                return cls(starts, window, full=_gaussian(axes, kind))
        return cls(starts, window, vectors=tuple(_shares(axis, line) for axis, line in zip(axes, starts, strict=True)))

    def of(self, position: tuple[int, ...]) -> Tensor:
        """Return the weights of the window at these indices into the starts, ``(*window)`` in float32."""
        if self.full is None:
            return torch.from_numpy(_outer([vectors[index] for vectors, index in zip(self.vectors, position, strict=True)]))
        total = np.zeros_like(self.full)
        offsets = [
            [start - line[index] for start in line if abs(start - line[index]) < length]
            for line, index, length in zip(self.starts, position, self.window, strict=True)
        ]
        for offset in itertools.product(*offsets):
            mine = tuple(slice(max(o, 0), length + min(o, 0)) for o, length in zip(offset, self.window, strict=True))
            theirs = tuple(slice(max(-o, 0), length - max(o, 0)) for o, length in zip(offset, self.window, strict=True))
            total[mine] += self.full[theirs]
        return torch.from_numpy(np.divide(self.full, total, out=total))


def _shares(axis: Array, starts: list[int]) -> list[Array]:
    """Return for each start the axis' weights divided by their sum over all starts."""
    total = np.zeros(starts[-1] + len(axis))
    for start in starts:
        total[start : start + len(axis)] += axis
    return [axis / total[start : start + len(axis)] for start in starts]


class _Cells:
    """Accumulators by position on the streamed axes: cell ``i`` of an axis reaches from start ``i`` to start ``i + 1``.

    When the windows at ``(i, j)`` and before are added, no later one touches cell ``(i, j)``: it is complete. The last window
    alone is cut in two, where the one before it ends, so that no memory is taken before it is needed.
    """

    def __init__(
        self, starts: tuple[list[int], ...], sizes: tuple[int, ...], window: tuple[int, ...], streamed: int, recycle: bool
    ) -> None:
        axes = list(zip(starts, sizes, window, strict=True))[:streamed]
        self.edges = [sorted({*line, *(start + length for start in line[-2:])}) for line, _, length in axes]
        self.edges = [[*line[:-1], *edges[edges.index(line[-1]) :]] for line, edges in zip(starts, self.edges, strict=False)]
        self.ends = [len(line) - 1 for line in starts[:streamed]]
        self.rest = sizes[streamed:]
        self.recycle = recycle
        self.open: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self.spare: list[Tensor] = []

    def add(self, corner: tuple[int, ...], logits: Tensor, weights: Tensor) -> None:
        """Add one window ``(K, *window)`` times its weights."""
        window = weights.shape
        last = tuple(slice(start, start + length) for start, length in zip(corner, window, strict=True))[len(self.edges) :]
        for parts in itertools.product(*(_overlaps(*arguments) for arguments in zip(self.edges, corner, window, strict=False))):
            key = tuple(index for index, _, _ in parts)
            if key not in self.open:
                self.open[key] = self._new(key, logits)
            cell = self.open[key][0][(slice(None), *(inside for _, inside, _ in parts), *last)]
            part = tuple(piece for _, _, piece in parts)
            cell.addcmul_(logits[(slice(None), *part)], weights[part])

    def _new(self, key: tuple[int, ...], like: Tensor) -> tuple[Tensor, Tensor]:
        """Return a cell of zeros and the memory that it lies in."""
        shape = (len(like), *(edges[i + 1] - edges[i] for edges, i in zip(self.edges, key, strict=True)), *self.rest)
        count = math.prod(shape)
        # Fresh pages cost more than the additions on many systems, so a complete cell's memory serves again.
        for index, memory in enumerate(self.spare):
            if memory.numel() >= count:
                del self.spare[index]
                return memory[:count].zero_().view(shape), memory
        cell = torch.zeros(shape, dtype=like.dtype, device=like.device)
        return cell, cell.view(-1)

    def complete(self, position: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """Yield origin and logits of the cells that end with the windows at ``position``, and take their memory back."""
        groups = [
            range(index, len(edges) - 1) if index == end else (index,)
            for index, edges, end in zip(position, self.edges, self.ends, strict=True)
        ]
        for key in itertools.product(*groups):
            if key in self.open:  # Equal starts leave a cell without voxels.
                cell, memory = self.open.pop(key)
                yield tuple(edges[index] for edges, index in zip(self.edges, key, strict=True)), cell
                if self.recycle:
                    self.spare.append(memory)


def _overlaps(edges: list[int], start: int, length: int) -> list[tuple[int, slice, slice]]:
    """Return (cell, slice in the cell, slice in the window) for the cells of an axis that a window reaches."""
    found = []
    for index in range(len(edges) - 1):
        low, high = max(edges[index], start), min(edges[index + 1], start + length)
        if low < high:
            found.append((index, slice(low - edges[index], high - edges[index]), slice(low - start, high - start)))
    return found


def tiles(
    image: Tensor,
    predictor: Predictor,
    window: Sequence[int],
    *,
    overlap: float | Sequence[float] = 0.5,
    grid: Grid = "nnunet",
    weighting: Weighting = "gaussian",
    batch_size: int = 1,
    mirror_axes: Sequence[int] = (),
    progress: Progress | None = None,
    accumulate: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    accumulate_on: torch.device | str | None = None,
    recycle: bool = False,
    streamed: int | None = None,
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Yield complete blocks of logits in order: ``((first plane, first line), (K, planes, lines, Z))``, for 2-D ``((first,), ...)``.

    About ``K * (window * Y + step * window) * Z / 2`` accumulators are alive at overlap 0.5: a quarter to a half less than :func:`slabs`.

    Args:
        image: ``(C, *spatial)`` with two or three spatial axes. If it is smaller than the window it is padded with zeros
            on both sides, and the result is cropped.
        predictor: Maps ``(B, C, *window)`` to logits ``(B, K, *window)``.
        window: Spatial size. With one number fewer than the image has axes, the network is applied to every slice of the first axis.
        overlap: Share of the window that neighbours share, one for all axes or one per axis of the window.
        grid: ``"nnunet"`` or ``"monai"``, also for the form of the Gaussian.
        weighting: ``"gaussian"`` or ``"constant"``.
        batch_size: Windows per call of the predictor.
        mirror_axes: Spatial axes of the window; the logits are averaged over all combinations of flips (nnU-Net's way).
        progress: Called with (windows done, windows in all).
        accumulate: Data type of the accumulators and of the result.
        device: Where the windows are predicted; the image's device if not given.
        accumulate_on: Where the accumulators lie; the image's device if not given.
        recycle: Use the memory of a yielded block again. A block is then valid only until the next is asked for.
        streamed: How many leading axes are cut into blocks: all but the last by default.

    Raises:
        ConfigError: If the windows, the weights or the axes make no sense.
        InputError: If the image has no voxel.
    """
    slicewise = len(window) == image.ndim - 2
    dims = image.ndim - 1
    if dims not in (2, 3) or len(window) not in (dims, dims - 1) or (dims == 2 and slicewise):
        raise ConfigError(f"a window of {len(window)} numbers does not fit an image of shape {tuple(image.shape)}, which is (C, *spatial)")
    if weighting not in WEIGHTINGS:
        raise ConfigError(unknown("weighting of windows", weighting, WEIGHTINGS))
    if not image.numel():
        raise InputError(f"the image has no voxels: its shape is {tuple(image.shape)}")
    if any(not 0 <= axis < len(window) for axis in mirror_axes):
        raise ConfigError(f"mirror_axes {tuple(mirror_axes)} must be spatial axes of the window, 0 to {len(window) - 1}")
    overlaps = (*((0.0,) * slicewise), *tupled(overlap, len(window)))
    size = (*((1,) * slicewise), *window)
    before, padded = _pad(image, size)
    starts = tuple(window_starts(n, w, o, grid) for n, w, o in zip(padded.shape[1:], size, overlaps, strict=True))
    weights = _Weights.build(starts, size, weighting, grid)
    positions = list(itertools.product(*(range(len(line)) for line in starts)))
    cells = _Cells(starts, tuple(padded.shape[1:]), size, dims - 1 if streamed is None else streamed, recycle)
    leading = len(cells.edges)
    like = torch.empty(0, dtype=accumulate, device=accumulate_on or image.device)
    ask = _slicewise(predictor) if slicewise else predictor
    flips = _combinations([axis + 2 + slicewise for axis in mirror_axes])
    for first in range(0, len(positions), batch_size):
        batch = positions[first : first + batch_size]
        corners = [tuple(line[index] for line, index in zip(starts, position, strict=True)) for position in batch]
        logits = _predict(ask, padded, corners, size, flips, device or image.device).to(like)
        for position, corner, one in zip(batch, corners, logits, strict=True):
            cells.add(corner, one, weights.of(position).to(like))
        del logits, one  # The consumer and the next prediction may have this memory.
        if progress is not None:
            progress(first + len(batch), len(positions))
        following = positions[first + len(batch)][:leading] if first + len(batch) < len(positions) else None
        for passed in dict.fromkeys(position[:leading] for position in batch):
            if passed != following:
                for origin, block in cells.complete(passed):
                    yield _crop(origin, block, before, tuple(image.shape[1:]))


def slabs(
    image: Tensor,
    predictor: Predictor,
    window: Sequence[int],
    *,
    overlap: float | Sequence[float] = 0.5,
    grid: Grid = "nnunet",
    weighting: Weighting = "gaussian",
    batch_size: int = 1,
    mirror_axes: Sequence[int] = (),
    progress: Progress | None = None,
    accumulate: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    accumulate_on: torch.device | str | None = None,
    recycle: bool = False,
) -> Iterator[tuple[int, Tensor]]:
    """Yield ``(first plane, logits (K, planes, Y, Z))`` along the first spatial axis, in order and without gaps.

    Planes leave when no later window touches them, so only the planes of one window are alive: ``K * window * Y * Z``
    accumulators. The arguments are those of :func:`tiles`.
    """
    blocks = tiles(
        image, predictor, window, overlap=overlap, grid=grid, weighting=weighting, batch_size=batch_size, mirror_axes=mirror_axes,
        progress=progress, accumulate=accumulate, device=device, accumulate_on=accumulate_on, recycle=recycle, streamed=1,
    )  # fmt: skip
    for (plane,), block in blocks:
        yield plane, block


def sliding_window(
    image: Tensor,
    predictor: Predictor,
    window: Sequence[int],
    *,
    overlap: float | Sequence[float] = 0.5,
    grid: Grid = "nnunet",
    weighting: Weighting = "gaussian",
    batch_size: int = 1,
    mirror_axes: Sequence[int] = (),
    progress: Progress | None = None,
    accumulate: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    accumulate_on: torch.device | str | None = None,
) -> Tensor:
    """Return the logits of the whole image, ``(K, *spatial)``. The arguments are those of :func:`tiles`."""
    result: Tensor | None = None
    stream = slabs(
        image, predictor, window, overlap=overlap, grid=grid, weighting=weighting, batch_size=batch_size, mirror_axes=mirror_axes,
        progress=progress, accumulate=accumulate, device=device, accumulate_on=accumulate_on, recycle=True,
    )  # fmt: skip
    for plane, slab in stream:
        if result is None:
            result = slab.new_empty((len(slab), *image.shape[1:]))
        result[:, plane : plane + slab.shape[1]] = slab
    assert result is not None  # No image has no slab.
    return result


def _pad(image: Tensor, window: tuple[int, ...]) -> tuple[tuple[int, ...], Tensor]:
    """Return the voxels added before each axis, and the image padded with zeros to the window; the odd voxel goes behind."""
    missing = [max(length - size, 0) for length, size in zip(window, image.shape[1:], strict=True)]
    if not any(missing):
        return (0,) * len(window), image
    pads = [side for lack in reversed(missing) for side in (lack // 2, lack - lack // 2)]
    return tuple(lack // 2 for lack in missing), F.pad(image, pads)


def _crop(origin: tuple[int, ...], block: Tensor, before: tuple[int, ...], size: tuple[int, ...]) -> tuple[tuple[int, ...], Tensor]:
    """Take the padding off a block. A padded axis has a single window, so the block spans it whole."""
    inner = tuple(slice(pad, pad + min(n, length)) for pad, n, length in zip(before, block.shape[1:], size, strict=True))
    return origin, block[(slice(None), *inner)]


def _combinations(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Return all non-empty combinations of axes."""
    return [chosen for count in range(1, len(axes) + 1) for chosen in itertools.combinations(axes, count)]


def _slicewise(predictor: Predictor) -> Predictor:
    """Let a 2-D network predict windows that are one slice thick."""
    return lambda batch: predictor(batch.squeeze(2)).unsqueeze(2)


def _predict(
    predictor: Predictor,
    image: Tensor,
    corners: Sequence[tuple[int, ...]],
    size: tuple[int, ...],
    flips: Sequence[tuple[int, ...]],
    device: torch.device | str,
) -> Tensor:
    """Return the logits ``(B, K, *window)`` of some windows, averaged over the flips."""
    cuts = [tuple(slice(start, start + length) for start, length in zip(corner, size, strict=True)) for corner in corners]
    batch = torch.stack([image[(slice(None), *cut)] for cut in cuts]).to(device)
    logits = predictor(batch)
    if logits.shape[0] != len(corners) or tuple(logits.shape[2:]) != size:
        raise ConfigError(f"the network maps windows {tuple(batch.shape)} to {tuple(logits.shape)}; their spatial size must stay")
    if not flips:
        return logits
    total = logits.clone()  # A predictor may return its own input.
    del logits
    for axes in flips:
        total += predictor(batch.flip(axes)).flip(axes)
    return total.div_(len(flips) + 1)
