"""From the network's grid back to the image's: interpolation fused with the decision, block by block.

The field's usual way interpolates every class over the whole volume and takes the arg max of that array: memory and time
grow with classes x voxels of the original image, and this is where export runs out of memory. Here a block of logits is
interpolated, decided and forgotten: what stays is the label map, one plane of logits, and scratch that fits the cache.

Interpolation is linear with half-pixel centres and clamped borders: torch's ``align_corners=False``, skimage's
``resize(order=1, mode="edge")``, which nnU-Net uses on its logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from cnnkit.errors import ConfigError, InputError, unknown
from numpy.typing import NDArray
from torch import Tensor

Stream = Iterable[tuple[int | tuple[int, ...], Tensor]]
Logits = Tensor | NDArray[np.float32]  # arrays on the CPU, tensors on a device
Consume = Callable[[range, range, Logits], None]  # output planes, output lines, logits (K, planes, lines, Z)
_BAND = 16  # Output positions per matrix product: the matrices stay small, and no BLAS would wake its threads for them.
_INFINITY = 1e30  # Stands for infinite logits.
_SCRATCH = 1 << 18  # Logits per piece: 1 MiB of float32, which the second-level cache of common processors holds.
_SCRATCH_DEVICE = 1 << 26  # On a device a piece should keep all its processors busy.
_COLUMNS = 1 << 15  # Voxels decided at once.


@dataclass(frozen=True)
class Argmax:
    """The class of the largest logit wins.

    Args:
        values: Label written for each class; the class index if empty.
    """

    values: tuple[int, ...] = ()

    def highest(self, classes: int) -> int:
        """Return the largest label that can be written."""
        if self.values and len(self.values) != classes:
            raise ConfigError(f"{len(self.values)} label values for {classes} classes of logits")
        return max(self.values, default=classes - 1)

    def __call__(self, logits: Logits) -> NDArray[Any]:
        """Return the labels ``(N,)`` of logits ``(K, N)``; of equal logits the first wins."""
        labels = logits.argmax(0).cpu().numpy() if isinstance(logits, Tensor) else _argmax(logits)
        return np.asarray(self.values)[labels] if self.values not in ((), tuple(range(len(logits)))) else labels


@dataclass(frozen=True)
class Regions:
    """Overlapping classes, painted one over the other where the probability (a sigmoid) is above one half.

    Args:
        order: Label written for each region, in the order of painting (nnU-Net's ``regions_class_order``).
    """

    order: tuple[int, ...]

    def highest(self, classes: int) -> int:
        """Return the largest label that can be written."""
        if len(self.order) != classes:
            raise ConfigError(f"{len(self.order)} labels in regions_class_order for {classes} regions of logits")
        return max(self.order)

    def __call__(self, logits: Logits) -> NDArray[Any]:
        """Return the labels ``(N,)`` of logits ``(K, N)``."""
        inside = (logits > 0).cpu().numpy() if isinstance(logits, Tensor) else logits > 0  # sigmoid(x) > 1/2 where x > 0
        labels = np.zeros(inside.shape[1], _label_dtype(max(self.order)))
        for region, value in zip(inside, self.order, strict=True):
            np.copyto(labels, value, where=region, casting="unsafe")
        return labels


Decide = Argmax | Regions


def _label_dtype(highest: int) -> type[np.unsignedinteger[Any]]:
    return np.uint8 if highest < 255 else np.uint16  # nnU-Net's rule


def _argmax(logits: NDArray[np.floating[Any]]) -> NDArray[Any]:
    """Return the arg max over the first axis, many times faster than a reduction over a strided axis.

    Three vector operations per class: compare with the best so far, keep the better, and raise the label. The class index
    only grows, so the label is the largest index that was ever strictly better.
    """
    dtype = np.dtype(np.uint8 if len(logits) <= 256 else np.uint16)
    best = logits[0].copy()
    labels = np.zeros(best.shape, dtype)
    better = np.empty(best.shape, dtype)
    for index in range(1, len(logits)):
        if dtype == np.uint8:
            np.greater(logits[index], best, out=better.view(bool))
        else:
            better[:] = logits[index] > best
        np.maximum(best, logits[index], out=best)
        np.multiply(better, dtype.type(index), out=better)
        np.maximum(labels, better, out=labels)
    return labels


@dataclass(frozen=True)
class _Axis:
    """For each output position the two source positions, and the share of the second."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    share: NDArray[np.float32]
    same: bool
    nearest: bool

    @classmethod
    def build(cls, size: int, out: int, nearest: bool) -> _Axis:
        where = np.clip((np.arange(out) + 0.5) * (size / out) - 0.5, 0, size - 1)
        first = np.floor(where + 0.5 * nearest).astype(np.int64)
        second = first if nearest else np.minimum(first + 1, size - 1)
        share = np.zeros(out) if nearest else where - first
        return cls(first, second, share.astype(np.float32), size == out, nearest)

    def owned(self, begin: int, end: int) -> range:
        """Return the output positions whose second source position lies in ``[begin, end)``."""
        low, high = np.searchsorted(self.second, [begin, end])
        return range(int(low), int(high))


@dataclass(frozen=True)
class _Band:
    """Some neighbouring output positions of an axis as a matrix product: ``matrix @ source[begin:end]``."""

    out: slice
    source: slice
    matrix: NDArray[np.float32]


def _bands(axis: _Axis, out: range, offset: int) -> list[_Band]:
    """Cut the output positions ``out`` into narrow bands; the source begins at position ``offset``."""
    bands = []
    for begin in range(out.start, out.stop, _BAND):
        end = min(begin + _BAND, out.stop)
        low, high = int(axis.first[begin]), int(axis.second[end - 1]) + 1
        matrix, row = np.zeros((end - begin, high - low), np.float32), np.arange(end - begin)
        matrix[row, axis.second[begin:end] - low] = axis.share[begin:end]
        matrix[row, axis.first[begin:end] - low] += 1 - axis.share[begin:end]
        bands.append(_Band(slice(begin - out.start, end - out.start), slice(low - offset, high - offset), matrix))
    return bands


def _blend(source: Logits, axis: _Axis, out: range, offset: int, dim: int, bands: Sequence[_Band]) -> Logits:
    """Interpolate ``(K, lines, Z)`` along ``dim`` at the output positions ``out``; the source begins at position ``offset``.

    On the CPU as products with narrow matrices: they are mostly zeros, and yet several times faster than gathering two
    operands and mixing them, since the result is written once and nothing between.
    """
    if axis.same:
        return source[(slice(None),) * dim + (slice(out.start - offset, out.stop - offset),)]
    if isinstance(source, Tensor):
        cut = slice(out.start, out.stop)
        first, second, share = (
            torch.from_numpy(values).to(source.device) for values in (axis.first[cut] - offset, axis.second[cut] - offset, axis.share[cut])
        )
        share = share.to(source.dtype).view(-1, *(1,) * (source.ndim - 1 - dim))
        return source.index_select(dim, first).lerp_(source.index_select(dim, second), share)
    result = np.empty((*source.shape[:dim], len(out), *source.shape[dim + 1 :]), np.float32)
    for band in bands:
        if dim == 1:
            np.matmul(band.matrix, source[:, band.source], out=result[:, band.out])
        else:
            np.matmul(source[:, :, band.source], band.matrix.T, out=result[:, :, band.out])
    return result


def _lerp(left: Logits, right: Logits, share: float) -> Logits:
    """Return ``left + share * (right - left)``."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.lerp(right, share)
    result: Any = right - left
    result *= np.float32(share)
    result += left
    return result


class _Seams:
    """The last plane and line of complete blocks, which the interpolation in the next block begins from."""

    def __init__(self, lines: int) -> None:
        self.lines = lines
        self.plane: dict[int, Any] = {}  # logits of the kind of the blocks, by the plane that follows
        self.line: dict[int, Logits] = {}  # by the first plane of the row of blocks

    def extend(self, x: int, y: int, block: Logits) -> tuple[Logits | None, Logits | None]:
        """Return the plane ``(K, 1, Y, Z)`` before a block and the line ``(K, n, 1, Z)`` before it, and keep its own."""
        end = x + block.shape[1]
        plane, line = self.plane.get(x), self.line.pop(x, None)
        if end not in self.plane:
            shape = (block.shape[0], 1, self.lines, block.shape[3])
            self.plane[end] = block.new_empty(shape) if isinstance(block, Tensor) else np.empty(shape, block.dtype)
        self.plane[end][:, :, y : y + block.shape[2]] = block[:, -1:]
        if y + block.shape[2] < self.lines:
            self.line[x] = block[:, :, -1:].clone() if isinstance(block, Tensor) else block[:, :, -1:].copy()
        else:
            self.plane.pop(x, None)
        return plane, line


@dataclass(frozen=True)
class _Context:
    """A block ``(K, n, m, Z)`` at plane ``x`` and line ``y``, with the plane and the line before it."""

    x: int
    y: int
    block: Logits
    plane: Logits | None
    line: Logits | None

    def lines(self, index: int, low: int, high: int) -> Logits:
        """Return the lines ``[low, high)`` of source plane ``index``, ``(K, high - low, Z)``."""
        if index < self.x and self.plane is not None:
            return self.plane[:, 0, low:high]
        piece = self.block[:, index - self.x, max(low - self.y, 0) : high - self.y]
        if low >= self.y or self.line is None:
            return piece
        before: Any = self.line[:, index - self.x]  # Of the piece's kind.
        return torch.cat([before, piece], 1) if isinstance(piece, Tensor) else np.concatenate([before, piece], 1)


@dataclass(frozen=True)
class _Resampler:
    """Interpolates the blocks of a stream and hands the pieces on; what lies between blocks is in the seams.

    On the CPU the pieces are small enough for the cache, and threads share them out: an operator that splits such a small
    piece over threads would wait for them longer than it works.
    """

    axes: tuple[_Axis, _Axis, _Axis]
    seams: _Seams
    pool: ThreadPoolExecutor

    def feed(self, x: int, y: int, block: Tensor, consume: Consume) -> None:
        """Interpolate all output positions that a block ``(K, n, m, Z)`` at plane ``x`` and line ``y`` completes."""
        on_cpu = block.device.type == "cpu"
        logits: Logits = block.float().numpy() if on_cpu else block
        run = self.pool.map if on_cpu else map
        if all(axis.same for axis in self.axes):
            step = max(1, _COLUMNS // block[0, 0].numel())
            parts = [range(begin, min(begin + step, block.shape[1])) for begin in range(0, block.shape[1], step)]
            lines = range(y, y + block.shape[2])
            work = run(lambda part: consume(range(x + part.start, x + part.stop), lines, logits[:, part.start : part.stop]), parts)
        else:
            if isinstance(logits, np.ndarray) and not np.isfinite(logits.sum()):
                logits = logits.clip(-_INFINITY, _INFINITY)  # Zero times infinity would spoil the neighbours.
            context = _Context(x, y, logits, *self.seams.extend(x, y, logits))
            lines = self.axes[1].owned(y, y + block.shape[2])
            step = max(_BAND, (_SCRATCH if on_cpu else _SCRATCH_DEVICE) // (block.shape[0] * len(self.axes[2].first)))
            parts = [range(begin, min(begin + step, lines.stop)) for begin in range(lines.start, lines.stop, step)]
            work = run(lambda rows: self._rows(context, rows, consume), parts)
        for _ in work:  # The result of each part is None; a part's error is raised here.
            pass

    def _rows(self, context: _Context, rows: range, consume: Consume) -> None:
        """Interpolate some output lines in all output planes that a block completes."""
        across, along, through = self.axes
        low, high = int(along.first[rows.start]), int(along.second[rows.stop - 1]) + 1
        bands, row_bands = _bands(through, range(len(through.first)), 0), _bands(along, rows, low)
        recent: dict[int, Logits] = {}
        for out in across.owned(context.x, context.x + context.block.shape[1]):
            first, second, share = int(across.first[out]), int(across.second[out]), float(across.share[out])
            for index in {first, second} - recent.keys():
                recent[index] = _blend(context.lines(index, low, high), through, range(len(through.first)), 0, 2, bands)
            recent = {index: recent[index] for index in (first, second)}
            piece = _lerp(recent[first], recent[second], share) if share else recent[first]
            consume(range(out, out + 1), rows, _blend(piece, along, rows, low, 1, row_bands)[:, None])


def _stream(
    slabs: Stream, shape: Sequence[int], out_shape: Sequence[int], nearest_axes: Sequence[int], consume: Callable[[int], Consume]
) -> None:
    """Pass a stream through the interpolation; ``consume(classes)`` is asked once for what takes the pieces."""
    if len(shape) not in (2, 3) or len(out_shape) != len(shape) or min(*shape, *out_shape) < 1:
        raise ConfigError(f"cannot restore logits on a grid of {tuple(shape)} voxels to one of {tuple(out_shape)}")
    flat = len(shape) == 2
    nearest = [axis + (flat and axis == 1) for axis in nearest_axes]
    sizes, outs = ((n[0], 1, n[1]) if flat else tuple(n) for n in (shape, out_shape))
    axes = [_Axis.build(size, out, index in nearest) for index, (size, out) in enumerate(zip(sizes, outs, strict=True))]
    take: Consume | None = None
    seen = 0
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        resampler = _Resampler((axes[0], axes[1], axes[2]), _Seams(sizes[1]), pool)
        for origin, block in slabs:
            x, y = (origin, 0) if isinstance(origin, int) else (*origin, 0)[:2]
            block = block[:, :, None] if flat else block
            if block.shape[3] != sizes[2] or x + block.shape[1] > sizes[0] or y + block.shape[2] > sizes[1]:
                raise InputError(f"a block of logits {tuple(block.shape)} at {origin} does not lie on a grid of {tuple(shape)} voxels")
            take = take or consume(len(block))
            seen += block[0].numel()
            resampler.feed(x, y, block.detach(), take)
    if seen != np.prod(sizes):
        raise InputError(f"the stream of logits held {seen} voxels, but a grid of {tuple(shape)} has {int(np.prod(sizes))}")


def restore_labels(
    slabs: Stream,
    shape: Sequence[int],
    out_shape: Sequence[int],
    *,
    decide: Decide | None = None,
    nearest_axes: Sequence[int] = (),
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Return the label map ``(*out_shape)`` of a stream of logits, in memory of a plane of logits besides the map itself.

    Args:
        slabs: ``(first plane, logits (K, n, Y, Z))`` as :func:`~cnnkit_medseg.window.slabs` yields them, or blocks with
            ``(first plane, first line)`` as :func:`~cnnkit_medseg.window.tiles` does. A block may be reused after its turn.
        shape: The network's grid, two or three numbers.
        out_shape: The grid of the label map. Equal to ``shape``, nothing is interpolated.
        decide: :class:`Argmax` (the default) or :class:`Regions`.
        nearest_axes: Axes that take the nearest voxel instead, as nnU-Net does along the coarse axis of anisotropic volumes.
        out: Integer array ``(*out_shape)`` to fill; by default uint8, or uint16 for labels of 255 and more.

    Raises:
        ConfigError: If the sizes, the labels or the shape of ``out`` do not fit.
        InputError: If the stream does not cover the grid.
    """
    decide = decide or Argmax()
    if out is not None and out.shape != tuple(out_shape):
        raise ConfigError(f"the array for the labels has shape {out.shape}, expected {tuple(out_shape)}")
    result = out

    def consume(classes: int) -> Consume:
        nonlocal result
        highest = decide.highest(classes)
        if result is None:
            result = np.empty(tuple(out_shape), _label_dtype(highest))
        elif np.iinfo(result.dtype).max < highest:
            raise ConfigError(f"labels up to {highest} do not fit the given array of {result.dtype}")
        view = result if result.ndim == 3 else result[:, None]

        def take(planes: range, lines: range, piece: Logits) -> None:
            labels = decide(piece.reshape(len(piece), -1))
            view[planes.start : planes.stop, lines.start : lines.stop] = labels.reshape(piece.shape[1:])

        return take

    _stream(slabs, shape, out_shape, nearest_axes, consume)
    assert result is not None  # _stream refuses an empty stream
    return result


def restore_probabilities(
    slabs: Stream,
    shape: Sequence[int],
    out_shape: Sequence[int],
    *,
    activation: Literal["softmax", "sigmoid"] = "softmax",
    nearest_axes: Sequence[int] = (),
    out: NDArray[np.floating[Any]] | None = None,
) -> NDArray[np.floating[Any]]:
    """Return the probabilities ``(K, *out_shape)`` in float32: the logits are interpolated first, as for the labels.

    This takes ``K * voxels`` of memory by its nature; pass a memory map as ``out`` where that is too much. The other
    arguments are those of :func:`restore_labels`.

    Raises:
        ConfigError: If the sizes do not fit or the activation is unknown.
        InputError: If the stream does not cover the grid.
    """
    if activation not in ("softmax", "sigmoid"):
        raise ConfigError(unknown("activation", activation, ("softmax", "sigmoid")))
    result = out

    def consume(classes: int) -> Consume:
        nonlocal result
        expected = (classes, *out_shape)
        if result is None:
            result = np.empty(expected, np.float32)
        elif result.shape != expected:
            raise ConfigError(f"the array for the probabilities has shape {result.shape}, expected {expected}")
        view = result if result.ndim == 4 else result[:, :, None]

        def take(planes: range, lines: range, piece: Logits) -> None:
            logits = torch.as_tensor(piece).float()
            values = logits.softmax(0) if activation == "softmax" else logits.sigmoid()
            view[:, planes.start : planes.stop, lines.start : lines.stop] = values.cpu().numpy()

        return take

    _stream(slabs, shape, out_shape, nearest_axes, consume)
    assert result is not None  # _stream refuses an empty stream
    return result
