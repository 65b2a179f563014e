"""A recording at a glance: its spectrogram, and below it which label is heard when."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torchaudio.functional as AF
from cnnkit.engine.curves import ticks
from cnnkit.engine.files import atomic_path
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

BANDS = 80
COLUMNS = 2000
SHOWN = 8
RANGE_DB = 70.0

_WIDTH, _LEFT, _RIGHT, _TOP = 1280, 170, 30, 20
_SPECTRUM, _ROW, _AXIS = 3 * BANDS, 26, 44
_PAPER, _INK, _FAINT, _BAR = (255, 255, 255), (30, 30, 30), (130, 130, 130), (0, 90, 160)
_ANCHORS = np.array([(8, 6, 30), (66, 20, 105), (150, 40, 110), (225, 85, 75), (252, 165, 70), (253, 240, 170)], float)
"""Colours from quiet to loud, rising evenly in lightness."""


class Overview:
    """A spectrogram of a recording of any length in at most :data:`COLUMNS` columns, gathered while its blocks pass by.

    When the columns are full, neighbours are joined and each stands for twice the time.

    Args:
        rate: Samples per second of the blocks.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.size = 2 ** round(np.log2(0.064 * rate))
        self.banks = AF.melscale_fbanks(self.size // 2 + 1, 0, rate / 2, BANDS, rate).numpy()
        self.columns: list[NDArray[Any]] = []
        self.frames = 1
        self.samples = 0
        self._rest = np.zeros(0, np.float32)
        self._open: list[NDArray[Any]] = []

    @property
    def seconds(self) -> float:
        """Length of what has passed by."""
        return self.samples / self.rate

    @property
    def column_seconds(self) -> float:
        """Time that a column stands for."""
        return self.frames * self.size / self.rate

    def watch(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Pass blocks ``(1, n)`` on and look at them."""
        for block in blocks:
            self._take(block[0])
            yield block

    def _take(self, samples: np.ndarray) -> None:
        self.samples += samples.size
        self._rest = np.concatenate([self._rest, samples])
        count = self._rest.size // self.size
        frames, self._rest = self._rest[: count * self.size].reshape(count, self.size), self._rest[count * self.size :]
        for energies in (np.abs(np.fft.rfft(frames * np.hanning(self.size), axis=1)) ** 2) @ self.banks:
            self._open.append(energies)
            if len(self._open) == self.frames:
                self.columns.append(np.mean(self._open, axis=0))
                self._open = []
                if len(self.columns) == COLUMNS:
                    self.columns = [(a + b) / 2 for a, b in zip(self.columns[::2], self.columns[1::2], strict=True)]
                    self.frames *= 2

    def levels(self) -> NDArray[np.float64]:
        """Return loudness from 0 (:data:`RANGE_DB` below the loudest) to 1, ``(BANDS, columns)``, low bands last."""
        columns = [*self.columns, np.mean(self._open, axis=0)] if self._open else self.columns
        if not columns:
            return np.zeros((BANDS, 1))
        decibels = 10 * np.log10(np.maximum(np.stack(columns, axis=1), 1e-12))
        return np.clip(1 + (decibels - decibels.max()) / RANGE_DB, 0, 1)[::-1]


def draw_tags(path: Path, overview: Overview, starts: np.ndarray, ends: np.ndarray, scores: np.ndarray, labels: Sequence[str]) -> Path:
    """Draw the spectrogram over the :data:`SHOWN` labels of the highest confidence, one row for each, darker where it is surer.

    Args:
        path: The picture to write.
        overview: The spectrogram.
        starts: Seconds at which each window starts, ``(N,)``.
        ends: Seconds at which each ends, ``(N,)``.
        scores: Confidences, ``(N, C)``.
        labels: The ``C`` names.
    """
    best = np.argsort(-scores.max(axis=0), kind="stable")[:SHOWN]
    width, height = _WIDTH - _LEFT - _RIGHT, _TOP + _SPECTRUM + 14 + _ROW * best.size + _AXIS
    picture = Image.new("RGB", (_WIDTH, height), _PAPER)
    draw = ImageDraw.Draw(picture)
    seconds = max(overview.seconds, float(ends.max()), 1e-3)
    heard = max(1, round(width * min(overview.seconds / seconds, 1)))
    picture.paste(_spectrum(overview, heard), (_LEFT, _TOP))
    for row, label in enumerate(best):
        top = _TOP + _SPECTRUM + 14 + row * _ROW
        picture.paste(_bar(starts, ends, scores[:, label], width, seconds), (_LEFT, top + 3))
        _text(draw, (_LEFT - 10, top + _ROW / 2), _short(labels[label].replace("_", " ")), 15, anchor="rm")
    _axes(draw, overview.rate, seconds, width, height)
    with atomic_path(path) as part:
        picture.save(part)
    return path


def _spectrum(overview: Overview, width: int) -> Image.Image:
    levels = overview.levels() * (len(_ANCHORS) - 1)
    low = np.minimum(levels.astype(int), len(_ANCHORS) - 2)
    colours = _ANCHORS[low] + (levels - low)[..., None] * (_ANCHORS[low + 1] - _ANCHORS[low])
    return Image.fromarray(np.rint(colours).astype(np.uint8)).resize((width, _SPECTRUM), Image.Resampling.BOX)


def _bar(starts: np.ndarray, ends: np.ndarray, scores: np.ndarray, width: int, seconds: float) -> Image.Image:
    surest = np.zeros(width)
    for start, end, score in zip(starts, ends, scores, strict=True):
        covered = slice(int(start / seconds * width), max(int(start / seconds * width) + 1, round(end / seconds * width)))
        surest[covered] = np.maximum(surest[covered], score)
    ground = np.array((238, 240, 243), float)
    colours = np.rint(ground + surest[:, None] * (np.array(_BAR) - ground)).astype(np.uint8)
    return Image.fromarray(np.repeat(colours[None], _ROW - 6, axis=0))


def _axes(draw: ImageDraw.ImageDraw, rate: int, seconds: float, width: int, height: int) -> None:
    base = height - _AXIS + 6
    draw.line((_LEFT, base, _LEFT + width, base), fill=_FAINT)
    for tick in ticks(0, seconds, 10):
        x = _LEFT + tick / seconds * width
        draw.line((x, base, x, base + 5), fill=_FAINT)
        _text(draw, (x, base + 8), _clock(tick, seconds), 13, anchor="ma")
    top_mel = 2595 * np.log10(1 + rate / 2 / 700)
    for hertz in (250, 1000, 4000, 16000):
        if hertz < rate / 2:
            y = _TOP + _SPECTRUM * (1 - 2595 * np.log10(1 + hertz / 700) / top_mel)
            draw.line((_LEFT - 6, y, _LEFT, y), fill=_FAINT)
            _text(draw, (_LEFT - 10, y), f"{hertz} Hz" if hertz < 1000 else f"{hertz // 1000} kHz", 13, anchor="rm")


def _clock(time: float, seconds: float) -> str:
    if seconds < 60:
        return f"{time:g} s"
    minutes, rest = divmod(round(time), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if seconds >= 3600 else f"{minutes}:{rest:02d}"


def _short(text: str) -> str:
    return text if len(text) <= 20 else text[:19] + "…"


def _text(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, *, anchor: str) -> None:
    draw.text(place, text, fill=_INK, font=_font(size), anchor=anchor)


@lru_cache(maxsize=4)
def _font(size: int) -> Any:
    return ImageFont.load_default(size=size)
