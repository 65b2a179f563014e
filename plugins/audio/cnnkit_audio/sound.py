"""Sound files: opened by what they hold, read whole or in blocks, at the rate and with the channels that a network wants."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from cnnkit.errors import InputError, InputWarning

from cnnkit_audio.decoding import Header, decode, look
from cnnkit_audio.inspection import Inspection, Nonfinite
from cnnkit_audio.resample import Resampler
from cnnkit_audio.writing import write_sound as write_sound

Channels = Literal["mono", "all"]

PIECE = 2**16
"""Samples of all channels that are decoded at once: they stay in the cache until they are resampled."""


@dataclass(frozen=True)
class Sound:
    """An opened sound file or stream.

    Args:
        path: Where it comes from; ``-`` for standard input.
        sample_rate: Samples per second in the file.
        channels: Number of channels in the file.
        frames: Samples per channel, by the file's header; ``None`` for a stream, whose end is not known.
        header: What else the file's header says: ``header.format`` and ``header.subtype`` by libsndfile's names.
        start: First frame that is read.
        nonfinite: Whether NaN and infinite samples are refused or taken as zero.
        quiet: Say nothing of what is odd.
    """

    path: Path
    sample_rate: int
    channels: int
    frames: int | None
    header: Header | None = None
    start: int = 0
    nonfinite: Nonfinite = "refuse"
    quiet: bool = False
    _said: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def blocks(self, rate: int, *, channels: Channels = "mono", seconds: float = 10.0) -> Iterator[np.ndarray]:
        """Return the sound in order as float32 arrays ``(C, n)`` at ``rate``, in constant memory.

        Put together, the blocks equal :meth:`read`. What a person should know (resampled, mixed, clipped, offset, silent, opposite
        phases, shorter than its header says) is an :class:`~cnnkit.errors.InputWarning`, once for each sound.

        Args:
            rate: Samples per second of the result; another one than the file's is resampled.
            channels: ``"mono"`` for the mean of the channels, ``"all"`` for each.
            seconds: Length of a block; the last one is shorter.

        Raises:
            InputError: While it is read: samples that are not finite, or a file that went away.
        """
        check_blocks(rate, channels, seconds)
        return _regroup(self._pieces(int(rate), channels == "mono" and self.channels > 1, PIECE), max(1, round(seconds * rate)))

    def read(self, rate: int, *, channels: Channels = "mono") -> np.ndarray:
        """Return the whole sound as float32, ``(C, T)``."""
        return np.concatenate(list(self.blocks(rate, channels=channels)), axis=1)

    def _pieces(self, rate: int, mix: bool, size: int) -> Iterator[np.ndarray]:
        """Yield the sound as it was decoded from ``size`` samples at once, and say what is odd about it at its end."""
        self._say_conversion(rate, mix)
        resampler = Resampler(self.sample_rate, rate)
        subtype = self.header.subtype if self.header else ""
        inspection = Inspection(self.name, self.sample_rate, self.channels, subtype=subtype, start=self.start, nonfinite=self.nonfinite)
        share = np.full(self.channels, 1 / self.channels, np.float32)
        for raw in self._decode(max(1, size // self.channels)):
            frames = inspection.add(raw)
            if mix:
                mixed = frames @ share
                inspection.add_mix(mixed)
                piece = resampler.push(mixed[None])
            else:
                piece = resampler.push(np.ascontiguousarray(frames.T))
            if piece.shape[1]:
                yield piece
        piece = resampler.finish()
        if piece.shape[1]:
            yield piece
        for kind, text in inspection.findings(mixed=mix).items():
            self._say(kind, text)

    def _decode(self, size: int) -> Iterator[np.ndarray]:
        """Yield the file's own samples, ``(n, C)``."""
        header = self.header or look(self.path)
        stop = None if self.frames is None else self.start + self.frames
        return decode(self.path, header, size, start=self.start, stop=stop, tell=lambda text: self._say("end", text))

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.path.name or str(self.path)

    def _say_conversion(self, rate: int, mix: bool) -> None:
        if self.header is not None and self.header.remark:
            self._say("header", self.header.remark)
        done = [f"resampled from {self.sample_rate} to {rate} Hz"] if rate != self.sample_rate else []
        done += [f"its {self.channels} channels mixed to one"] if mix else []
        if done:
            self._say("converted", ", ".join(done))

    def _say(self, kind: str, text: str) -> None:
        if not self.quiet and kind not in self._said:
            self._said.add(kind)
            warnings.warn(f"{self.name}: {text}", InputWarning, stacklevel=2)


def check_blocks(rate: int, channels: str, seconds: float) -> None:
    """Check the arguments of :meth:`Sound.blocks` when it is called, not when the first block is asked for."""
    if rate != int(rate) or rate < 1 or not seconds > 0 or channels not in ("mono", "all"):
        raise ValueError(f"rate={rate}, channels={channels!r}, seconds={seconds}: accepted are whole rates, 'mono' or 'all', any time")


def _regroup(pieces: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yield what comes in pieces ``(C, n)`` of any length in blocks of ``size``, the last one shorter."""
    waiting: list[np.ndarray] = []
    length = 0
    for piece in pieces:
        waiting.append(piece)
        length += piece.shape[1]
        if length < size:
            continue
        joined = np.concatenate(waiting, axis=1)
        whole = length - length % size
        for first in range(0, whole, size):
            yield joined[:, first : first + size]
        waiting, length = [joined[:, whole:]], length - whole
    if length:
        yield np.concatenate(waiting, axis=1)


def open_sound(
    path: Path | str, *, start: float = 0.0, end: float | None = None, nonfinite: Nonfinite = "refuse", quiet: bool = False
) -> Sound:
    """Open a file, and check that it can be read.

    Args:
        path: The file; its format is told by what it holds.
        start: Second from which it is read.
        end: Second up to which it is read; its end by default.
        nonfinite: ``"refuse"`` NaN and infinite samples, or take them as ``"zero"``.
        quiet: Say nothing of what is odd, as training on thousands of files wants it.

    Raises:
        InputError: If it is no sound file, holds no samples, is damaged, or is over before ``start``.
    """
    path = Path(path)
    if nonfinite not in ("refuse", "zero"):
        raise ValueError(f"nonfinite={nonfinite!r}; accepted: 'refuse', 'zero'")
    if start < 0 or (end is not None and end <= start):
        raise ValueError(f"from {start} s to {end} s is no time; accepted: 0 <= start < end")
    header = look(path)
    first = round(start * header.sample_rate)
    frames = None if header.frames is None else header.frames - first
    if end is not None:
        length = round(end * header.sample_rate) - first
        frames = length if frames is None else min(frames, length)
    if frames is not None and frames < 1:
        length_s = f"{header.frames / header.sample_rate:.2f} s long" if header.frames else "of unknown length"
        raise InputError(
            f"{path.name}: nothing lies between {start:g} s and {'its end' if end is None else f'{end:g} s'}; it is {length_s}"
        )
    return Sound(path, header.sample_rate, header.channels, frames, header, first, nonfinite, quiet)
