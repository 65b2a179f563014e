"""Large pictures in tiles that cannot be told from the whole: exact where the network allows it, blended where it does not.

A tile contributes its *core*; the network sees a *window*, the core and its surroundings, which end where the picture ends. If the
surroundings are the network's halo (:mod:`cnnkit_superres.receptive`) and begin at a multiple of its period, every pixel is computed from
the very values that it would be computed from in the whole picture, and cores are simply put side by side.

Where the surroundings are smaller, neighbouring tiles are faded into each other with half-sine weights, which add up to one. Only the
zones that two tiles share are kept in floating point, as long as the next tile needs them; all other pixels go to the result at once, in
the picture's own type. So memory holds the picture, the result, and one batch of tiles.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from cnnkit.errors import ConfigError, InputError, UsageError
from numpy.typing import NDArray
from torch import Tensor, nn

from cnnkit_superres.memory import largest_side, out_of_memory
from cnnkit_superres.models._base import SuperResolver
from cnnkit_superres.pictures import PEAKS
from cnnkit_superres.receptive import reach

Pixels = NDArray[Any]
Progress = Callable[[int, int], object]

OVERLAP = 32
"""Surroundings of approximate tiles where none are given."""
SMALLEST_TILE = 32
"""Cores are not made smaller when memory runs out: below, the surroundings are what fills it."""

UNQUESTIONED = 256
"""Pictures up to this side are computed as a whole without asking how much memory there is."""
ROWS = 256
"""Rows of a tile that are rounded at once."""


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in pixels of the small picture.

    Args:
        start: Where its core begins.
        stop: Where its core ends.
        first: Where its window begins.
        last: Where its window ends.
        before: Reach of the fading, to either side of ``start``.
        after: Reach of the fading, to either side of ``stop``.
    """

    start: int
    stop: int
    first: int
    last: int
    before: int = 0
    after: int = 0


@dataclass(frozen=True)
class Cutting:
    """How a network's pictures are cut.

    Args:
        context: Surroundings of a tile, a multiple of the period.
        period: Tiles and windows begin at multiples of it.
        minimum: Least side of a window, where the picture has it.
        blend: Whether tiles are faded into each other; else cores are put side by side.
    """

    context: int
    period: int = 1
    minimum: int = 1
    blend: bool = False

    def spans(self, side: int, tile: int, begin: int = 0) -> list[Span]:
        """Cut an axis from ``begin`` on into tiles of almost equal size, none with a core larger than ``tile``.

        Args:
            side: Length of the axis.
            tile: Largest core; at least one period.
            begin: Where the first core begins, a multiple of the period.
        """
        blocks = math.ceil((side - begin) / self.period)
        count = math.ceil(blocks / max(tile // self.period, 1))
        edges = [begin + self.period * (blocks * index // count) for index in range(count)] + [side]
        cores = list(itertools.pairwise(edges))
        # No further than half a core: a pixel lies in two tiles at most, along one axis.
        fade = min(self.context, min(stop - start for start, stop in cores) // 2) if self.blend else 0
        return [
            Span(start, stop, *self._window(start, stop, side), fade if start > begin else 0, fade if stop < side else 0)
            for start, stop in cores
        ]

    def _window(self, start: int, stop: int, side: int) -> tuple[int, int]:
        first, last = max(start - self.context, 0), min(stop + self.context, side)
        missing = self.minimum - (last - first)
        if missing > 0:  # Only at the picture's end, or in a small picture, is a window extended by reflection.
            first = max(first - math.ceil(missing / self.period) * self.period, 0)
            last = min(max(last, first + self.minimum), side)
        return first, last


def upscale(
    model: SuperResolver,
    pixels: Pixels,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    approximate: bool = False,
    batch: int = 1,
    peak: float | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Pixels:
    """Enlarge a picture, in tiles if asked to or if memory runs out.

    Tiles equal the whole picture unless ``overlap`` is given and smaller than the network's receptive radius.

    Args:
        model: The network. It is moved to ``device`` and ``dtype`` if they are given, and stays there.
        pixels: ``(H, W, C)`` in uint8, uint16, float32 or float64, with as many channels as the network has.
        tile: Largest side of what a tile contributes, in pixels of ``pixels``; by default the whole picture, or on a processor what memory
            should suffice for. Whenever memory runs out, tiles of half the size follow; rows that are finished are kept, unless tiles
            are blended.
        overlap: Surroundings that a tile sees at each side; by default the receptive radius. More changes nothing and is not computed,
            less blends neighbouring tiles.
        approximate: Allow tiles, blended, of a network that sees the whole picture at once.
        batch: Tiles of equal size that are computed together.
        peak: Value of white; by default 255, 65535, or 1 for floating point.
        device: Where to compute.
        dtype: Data type to compute in.
        progress: Called with (tiles done, tiles in all) after each batch; smaller tiles after a lack of memory count anew.

    Returns:
        ``(scale * H, scale * W, C)`` in the type of ``pixels``. Integers are rounded. Values are kept between 0 and white; floating-point
        pictures that exceed either end keep that end open.

    Raises:
        ConfigError: If tiles are asked for, or memory runs out, with a network that sees the whole picture; or if an argument is out of
            its range.
        InputError: If the picture is empty or has values that are no numbers.
        UsageError: If the picture does not fit the network, memory does not suffice for the smallest tiles, or the network's own result is
            no number, as happens in half precision.
    """
    peak = PEAKS.get(pixels.dtype, 1.0) if peak is None else peak
    _check(model, pixels, peak, dtype, tile=tile, overlap=overlap, batch=batch)
    if device is not None or dtype is not None:
        model.to(device=device, dtype=dtype)
    canvas = _Canvas(pixels, model.scale, peak)
    height, width = pixels.shape[:2]
    cutting: Cutting | None = None
    with _evaluation(model), torch.no_grad():
        tile = _fitting(model, canvas.result, overlap, approximate, (height, width)) if tile is None else tile
        while True:
            if cutting is None and tile < max(height, width):
                cutting = _cutting(model, overlap, approximate, (height, width))
            rows = (cutting or Cutting(0)).spans(height, tile, canvas.finished)
            columns = (cutting or Cutting(0)).spans(width, tile)
            try:
                _fill(model, canvas, rows, columns, batch, progress)
                return canvas.result
            except Exception as error:
                if not out_of_memory(error):
                    raise
                cause = str(error).strip().partition("\n")[0]
            # Out of the except clause, whose traceback keeps the tensors alive.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            canvas.restart(keep=cutting is not None and not cutting.blend)
            smallest = max(SMALLEST_TILE, cutting.period if cutting else 1)
            if batch > 1:
                batch //= 2
            elif tile <= smallest:
                window = max(row.last - row.first for row in rows), max(column.last - column.first for column in columns)
                raise UsageError(
                    f"memory does not suffice for windows of {window[1]} x {window[0]} pixels: tiles of at most {tile}, and "
                    f"{cutting.context if cutting else 0} that the network looks at around them on each side ({cause}); "
                    "a smaller --overlap needs less, and blends tiles"
                )
            else:
                tile = max(math.ceil(min(tile, max(height, width)) / 2), smallest)


def _check(model: SuperResolver, pixels: Pixels, peak: float, dtype: torch.dtype | None, **numbers: int | None) -> None:
    """Refuse what cannot be computed, before anything is."""
    if pixels.dtype not in PEAKS:
        raise UsageError(f"pixels of type {pixels.dtype} are not known; accepted: {', '.join(map(str, PEAKS))}")
    if pixels.ndim != 3 or pixels.shape[2] != model.in_chans:
        raise UsageError(f"an array of shape {pixels.shape} does not fit the network, which takes (height, width, {model.in_chans})")
    if not pixels.size:
        raise InputError(f"the picture is empty: {pixels.shape[1]} x {pixels.shape[0]} pixels")
    for name, value in numbers.items():
        least = 0 if name == "overlap" else 1
        if value is not None and value < least:
            raise ConfigError(f"{name} is {value}; it must be {least} or more")
    if not 0 < peak < math.inf or (pixels.dtype.kind == "u" and peak > PEAKS[pixels.dtype]):
        raise ConfigError(f"peak is {peak}; it is the value of white, above 0 and at most what {pixels.dtype} holds")
    known = getattr(model, "dtypes", None)
    if dtype is not None and known is not None and dtype not in known:
        raise ConfigError(f"this network does not work in {dtype}; accepted: {', '.join(map(str, known))}")


def _cutting(model: SuperResolver, overlap: int | None, approximate: bool, size: tuple[int, int]) -> Cutting:
    """Decide how to cut: exactly if the overlap suffices, else blended if that is allowed."""
    advice, minimum = getattr(model, "tiling", "supported"), int(getattr(model, "minimum", 1))
    found = None if advice == "internal" else reach(model)
    if found is not None:
        context = found.halo if overlap is None else math.ceil(overlap / found.period) * found.period
        if context >= found.halo:
            return Cutting(found.halo, found.period, minimum)
    if not approximate and (found is None or advice == "discouraged"):
        what = (
            "cuts the picture by itself"
            if advice == "internal"
            else "sees the whole picture at once"
            if found is None
            else f"suffers from tiles with less overlap than the {found.halo} pixels that it looks around"
        )
        raise ConfigError(
            f"this network {what}, so tiles of a picture of {size[1]} x {size[0]} pixels would differ from the whole; "
            "give --approximate to accept blended tiles, or leave out the size of tiles to compute it as a whole, which takes more memory"
        )
    period = found.period if found else model.size_multiple
    wanted = OVERLAP if overlap is None else overlap
    return Cutting(math.ceil(wanted / period) * period, period, minimum, blend=True)


def _fitting(model: SuperResolver, result: Pixels, overlap: int | None, approximate: bool, size: tuple[int, int]) -> int:
    """Return the largest tile that memory should suffice for, up to the whole picture.

    Devices answer that by themselves. So does the attempt with a network that must not be tiled: an estimate refuses nothing.
    """
    longest = max(size)
    if _weight(model).device.type != "cpu" or longest <= UNQUESTIONED:
        return longest
    side = largest_side(model, model.in_chans, result.nbytes)
    if math.prod(size) <= side**2:
        return longest
    try:
        context = _cutting(model, overlap, approximate, size).context
    except ConfigError:
        return longest
    return min(max(int(side) - 2 * context, SMALLEST_TILE), longest)


def _weight(model: nn.Module) -> Tensor:
    """Return a tensor of the network's data type and device."""
    return next(itertools.chain(model.parameters(), model.buffers()), torch.empty(0))


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Set a network to evaluation, and every module back to what it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _fill(model: SuperResolver, canvas: _Canvas, rows: list[Span], columns: list[Span], batch: int, progress: Progress | None) -> None:
    """Compute all tiles, in reading order."""
    done, total = 0, len(rows) * len(columns)
    weight = _weight(model)
    for row in rows:
        for group in _alike(columns, batch):
            # Pixels lie together in the picture, and so in memory here: kernels for processors are up to twice as fast on such maps.
            windows = torch.stack([canvas.window(row, column, weight) for column in group])
            outputs = model(windows.permute(0, 3, 1, 2))
            for output, column in zip(outputs, group, strict=True):
                canvas.add(output, row, column)
            done += len(group)
            if progress is not None:
                progress(done, total)
        canvas.end_row(row)


def _alike(columns: Iterable[Span], batch: int) -> Iterator[list[Span]]:
    """Yield neighbours whose windows have the same width, ``batch`` at a time."""
    for _, same in itertools.groupby(columns, key=lambda column: column.last - column.first):
        group = list(same)
        yield from (group[index : index + batch] for index in range(0, len(group), batch))


class _Canvas:
    """The picture and its enlargement, with the zones that neighbouring tiles share.

    ``left`` is the part of the last tile that the next one in its row is added to, ``above`` that of the row before.
    """

    def __init__(self, pixels: Pixels, scale: int, peak: float) -> None:
        self.pixels, self.scale, self.peak = pixels, scale, peak
        height, width, colours = pixels.shape
        self.low, self.high = 0.0, peak
        if pixels.dtype.kind == "f":
            least, most = float(pixels.min()), float(pixels.max())
            if not math.isfinite(least) or not math.isfinite(most):
                raise InputError("the picture has values that are infinite or no numbers; replace them before it is enlarged")
            self.low, self.high = (0.0 if least >= 0 else -math.inf), (peak if most <= peak else math.inf)
        self.result: Pixels = np.empty((scale * height, scale * width, colours), pixels.dtype)
        self.finished = 0
        self.left = self.above = torch.empty(0)

    def restart(self, *, keep: bool) -> None:
        """Forget unfinished tiles, and, unless ``keep``, finished rows."""
        self.finished = self.finished if keep else 0
        self.left = self.above = torch.empty(0)

    def window(self, row: Span, column: Span, like: Tensor) -> Tensor:
        """Return ``(h, w, C)`` in [0, 1] with the type and on the device of ``like``."""
        part = np.require(self.pixels[row.first : row.last, column.first : column.last], requirements=["C", "W"])
        if part.dtype == np.uint16:
            part = part.astype(np.float32)  # Few operations know the type, and not on every device.
        values = torch.from_numpy(part).to(like.device).to(torch.promote_types(like.dtype, torch.float32))
        return (values / self.peak).to(like.dtype)  # Divided first: half precision ends at 65504.

    def add(self, output: Tensor, row: Span, column: Span) -> None:
        """Put an enlarged window ``(C, h, w)`` in its place."""
        s = self.scale
        top, left = row.start - row.before, column.start - column.before
        bottom, right = row.stop + row.after, column.stop + column.after
        tile = output[:, s * (top - row.first) : s * (bottom - row.first), s * (left - column.first) : s * (right - column.first)]
        if row.before or row.after or column.before or column.after:
            tile = self._join(tile, row, column)
        self._write(tile, s * top, s * left)

    def end_row(self, row: Span) -> None:
        """Count a row of tiles as finished."""
        self.finished = row.stop

    def _join(self, tile: Tensor, row: Span, column: Span) -> Tensor:
        """Fade a tile, add what its neighbours left for it, and return what no later tile touches."""
        s = self.scale
        tile = tile.to("cpu", torch.promote_types(tile.dtype, torch.float32))
        tile = tile * _weights(tile.shape[1], s * row.before, s * row.after)[:, None].to(tile)
        tile = tile * _weights(tile.shape[2], s * column.before, s * column.after).to(tile)
        if column.before:
            tile[..., : self.left.shape[2]] += self.left
        keep = tile.shape[2] - 2 * s * column.after
        self.left, tile = tile[..., keep:].clone(), tile[..., :keep]
        begin = s * (column.start - column.before)
        across = slice(begin, begin + keep)
        if row.before:
            tile[:, : 2 * s * row.before] += self.above[..., across]
        if row.after:
            if not self.above.numel():
                self.above = tile.new_empty(len(tile), 2 * s * row.after, self.result.shape[1])
            keep = tile.shape[1] - 2 * s * row.after
            self.above[..., across] = tile[:, keep:]
            tile = tile[:, :keep]
        return tile

    def _write(self, tile: Tensor, top: int, left: int) -> None:
        """Round ``(C, h, w)`` into the result, some rows at a time: a large tile is not copied as a whole."""
        for begin in range(0, tile.shape[1], ROWS):
            part = tile[:, begin : begin + ROWS]
            if not bool(torch.isfinite(part).all()):
                raise UsageError(
                    f"the network's result is no number somewhere, computed in {tile.dtype}; single precision (float32) may help"
                )
            values = part.permute(1, 2, 0).to(torch.promote_types(tile.dtype, torch.float32)) * self.peak
            values = values.clamp_(self.low, self.high)
            if self.result.dtype.kind == "u":
                values = values.round_().to(torch.uint8 if self.result.dtype == np.uint8 else torch.int32)
            place = self.result[top + begin : top + begin + len(values), left : left + tile.shape[2]]
            place[:] = values.cpu().numpy()


def _weights(length: int, before: int, after: int) -> Tensor:
    """Return the weights of a tile along an axis: half a sine wave up over ``2 * before`` pixels, ones, and down over ``2 * after``."""
    weights = torch.ones(length, dtype=torch.float64)
    weights[: 2 * before] = _rise(before)
    weights[length - 2 * after :] = 1 - _rise(after)
    return weights


def _rise(reach: int) -> Tensor:
    """Return ``(1 - cos)/2`` at the centres of ``2 * reach`` pixels between 0 and pi."""
    return (1 - torch.cos((torch.arange(2 * reach, dtype=torch.float64) + 0.5) * (math.pi / max(2 * reach, 1)))) / 2
