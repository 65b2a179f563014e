"""Pairs of pictures as pixels: read, cropped to each other, and kept in memory as bytes. No torch."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from cnnkit.errors import ConfigError, InputError, InputWarning
from numpy.typing import NDArray

from cnnkit_superres.folders import Pair, listed
from cnnkit_superres.metrics import modcrop
from cnnkit_superres.pictures import open_source
from cnnkit_superres.resize import imresize

Pixels = NDArray[np.uint8]
"""A picture ``(H, W, C)``, C = 1 (grey) or 3 (RGB)."""

_MEGABYTE = 2**20
_READERS = 8  # Threads of the reading pass, at most.


class PictureCache:
    """Pictures as bytes, read in one pass; beyond the memory that is granted they are decoded anew whenever they are asked for.

    Args:
        pairs: The pictures.
        scale: Factor between HR and LR.
        megabytes: Memory for those that are kept.
        inspect: Called with the number, HR and LR of each during the pass; the results are in :attr:`inspected`. An
            :class:`InputError` of it is a problem with the picture.
        progress: Show a bar while pictures are read, on a terminal.

    Raises:
        InputError: Naming every picture that cannot be used.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        scale: int,
        megabytes: int,
        inspect: Callable[[int, Pixels, Pixels], Any] | None = None,
        progress: bool = True,
    ) -> None:
        if not pairs:
            raise ConfigError("there is no picture to train on")
        self.pairs, self.scale = tuple(pairs), scale
        self.inspected: list[Any] = []
        self._kept: dict[int, tuple[Pixels, Pixels]] = {}
        self._read(megabytes * _MEGABYTE, inspect, progress)

    def _read(self, budget: int, inspect: Callable[[int, Pixels, Pixels], Any] | None, progress: bool) -> None:
        def read(index: int) -> tuple[Pixels, Pixels, Any] | InputError:
            try:
                hr, lr = read_pair(self.pairs[index], self.scale)
                return hr, lr, None if inspect is None else inspect(index, hr, lr)
            except InputError as error:
                return error

        problems, used, total = [], 0, 0
        for index, result in enumerate(_bar(_in_threads(read, len(self)), len(self), progress)):
            if isinstance(result, InputError):
                problems.append(f"  {result}")
                continue
            hr, lr, found = result
            self.inspected.append(found)
            total += hr.nbytes + lr.nbytes
            if used + hr.nbytes + lr.nbytes <= budget:
                used += hr.nbytes + lr.nbytes
                self._kept[index] = hr, lr
        if problems:
            raise InputError(
                listed(f"{len(problems)} of {len(self)} pictures cannot be trained on; repair them or take them out", problems)
            )
        if total > used:
            warnings.warn(
                f"{len(self) - len(self._kept)} of {len(self)} pictures do not fit into data.cache_mb={budget // _MEGABYTE} "
                f"and are decoded for every patch, which is slow; all of them need --set data.cache_mb={-(-total // _MEGABYTE)}",
                InputWarning,
                stacklevel=4,
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Pixels, Pixels]:
        """Return HR ``(s h, s w, C)`` and LR ``(h, w, C)``."""
        return self._kept[index] if index in self._kept else read_pair(self.pairs[index], self.scale)


def read_pair(pair: Pair, scale: int) -> tuple[Pixels, Pixels]:
    """Return HR, cropped to the multiple of ``scale`` that LR covers, and LR; where there is none it is MATLAB's bicubic reduction.

    Shapes:
        HR: ``(s h, s w, C)``. LR: ``(h, w, C)``. C is 1 if both are grey, otherwise 3.

    Raises:
        InputError: If a picture cannot be read, is smaller than ``scale``, or the sizes do not fit.
    """
    hr = _pixels(pair.hr)
    if pair.size is not None and hr.shape[:2] != pair.size:
        raise InputError(f"{source(pair.hr, pair.name)}: {_size(hr)} pixels, but its list says {pair.size[1]} x {pair.size[0]}")
    if pair.lr is None:
        hr = _cropped(pair, hr, scale)
        return hr, imresize(hr, (hr.shape[0] // scale, hr.shape[1] // scale))
    lr = _pixels(pair.lr)
    fitting = [_cropped(pair, hr, scale)]
    if 12 % scale == 0 and min(hr.shape[:2]) >= 12:  # BasicSR's LR pictures come from HR pictures cropped to multiples of 12.
        fitting.append(_cropped(pair, hr, 12))
    covered = next((part for part in fitting if part.shape[:2] == (scale * lr.shape[0], scale * lr.shape[1])), None)
    if covered is None or not lr.size:
        raise InputError(
            f"{source(pair.lr, pair.name)} ({_size(lr)}) is not the LR picture of {source(pair.hr, pair.name)} ({_size(hr)}) at x{scale}: "
            f"{_size(fitting[0][::scale, ::scale])} are expected"
        )
    if covered.shape[2] != lr.shape[2]:
        covered, lr = (np.repeat(x, 3 // x.shape[2], axis=2) for x in (covered, lr))
    return covered, lr


def _cropped(pair: Pair, hr: Pixels, multiple: int) -> Pixels:
    try:
        return np.ascontiguousarray(modcrop(hr, multiple))  # A view would keep the whole picture in memory.
    except InputError as error:
        raise InputError(f"{source(pair.hr, pair.name)}: {error}") from error


def source(picture: Path | Pixels, name: str) -> str:
    """Return what a picture is called in messages: its file, or its name."""
    return name if isinstance(picture, np.ndarray) else str(picture)


def _size(pixels: Pixels) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]}"


def _pixels(picture: Path | Pixels) -> Pixels:
    """Return 8 bits per sample, in which LR pictures are always stored; opacity plays no part."""
    if isinstance(picture, np.ndarray):
        return picture
    frame = next(open_source(picture).frames())
    if frame.pixels.dtype == np.uint8:
        return frame.pixels
    return np.rint(frame.pixels.astype(np.float64) / frame.peak * 255).clip(0, 255).astype(np.uint8)


def _in_threads(function: Callable[[int], Any], count: int) -> Iterator[Any]:
    """Yield ``function(0)``, ``function(1)`` ...: decoders let other threads run. Few results wait, for pictures are large."""
    threads = min(_READERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, count, threads):
            yield from pool.map(function, range(start, min(start + threads, count)))


def _bar(items: Iterator[Any], total: int, progress: bool) -> Iterator[Any]:
    if not (progress and sys.stderr.isatty()):
        return items
    from rich.console import Console
    from rich.progress import track

    return iter(track(items, "reading pictures", total=total, console=Console(stderr=True), transient=True))
