"""PSNR and SSIM by the protocol of the super-resolution literature, and the table that papers print.

Pictures are of 8 bits (or 16). Both measures are taken on Y of YCbCr in MATLAB's range, which is not rounded, after as many pixels
as the factor have been cut off at every border. PSNR is ``10 log10(peak^2 / MSE)`` and infinite for equal pictures; SSIM is that of
:mod:`cnnkit_superres.ssim`. Scores on RGB, on Y in JPEG's range or without the cut are other numbers, by a decibel and more.
numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cnnkit.errors import ConfigError, InputError, UsageError
from numpy.typing import NDArray

from cnnkit_superres import colour
from cnnkit_superres.ssim import WINDOW, Plane, Planes, compare

Picture = NDArray[Any]

_STRIP = 32  # Rows that are widened to float64 at once.


@dataclass(frozen=True)
class Scores:
    """PSNR in dB and mean SSIM of one picture."""

    psnr: float
    ssim: float


def psnr(a: Picture, b: Picture, *, crop: int = 0, luminance: bool = True) -> float:
    """Return the peak signal-to-noise ratio of two pictures in dB; infinite if they are equal.

    Args:
        a: ``(H, W)`` or ``(H, W, C)`` with 1 or 3 channels: uint8, uint16, or floats in [0, 1], which are first rounded to 8 bits.
        b: As ``a``, of the same shape and type.
        crop: Pixels that are cut off at every border; papers cut as many as the factor.
        luminance: Compare Y where the pictures have colours; otherwise the mean over R, G and B.

    Raises:
        InputError: The pictures cannot be compared, or hold no picture (nan, another type or layout).
        ConfigError: ``crop`` is negative or leaves nothing.
    """
    a, b, peak = _comparable(a, b, crop, 1)
    squared = 0.0
    channels = _channels(a, b, luminance)
    for planes in channels:
        for top in range(0, len(a), _STRIP):
            difference = np.subtract(*planes(slice(top, top + _STRIP), slice(None)))
            squared += float(np.vdot(difference, difference))
    return _decibel(squared / (len(channels) * a[..., 0].size), peak)


def ssim(a: Picture, b: Picture, *, crop: int = 0, luminance: bool = True) -> float:
    """Return the mean structural similarity of two pictures, at most 1.

    Args:
        a: ``(H, W)`` or ``(H, W, C)`` with 1 or 3 channels: uint8, uint16, or floats in [0, 1], which are first rounded to 8 bits.
        b: As ``a``, of the same shape and type.
        crop: Pixels that are cut off at every border.
        luminance: Compare Y where the pictures have colours; otherwise the mean over R, G and B.

    Raises:
        InputError: As for :func:`psnr`; or the picture is smaller than the window of 11 pixels.
        ConfigError: ``crop`` is negative or leaves less than the window.
    """
    return score(a, b, crop=crop, luminance=luminance).ssim


def score(a: Picture, b: Picture, *, crop: int = 0, luminance: bool = True) -> Scores:
    """Return :func:`psnr` and :func:`ssim` of two pictures at once, which saves converting them twice.

    Raises:
        InputError: As for :func:`ssim`.
        ConfigError: As for :func:`ssim`.
    """
    a, b, peak = _comparable(a, b, crop, WINDOW)
    found = [compare(planes, len(a), a.shape[1], peak) for planes in _channels(a, b, luminance)]
    mse, similarity = (math.fsum(values) / len(found) for values in zip(*found, strict=True))
    return Scores(_decibel(mse, peak), similarity)


def modcrop(image: Picture, multiple: int) -> Picture:
    """Cut rows and columns off the end so that both sides are multiples, as references are before they are made small.

    Args:
        image: ``(H, W)`` or ``(H, W, C)``.
        multiple: The factor of the enlargement.

    Returns:
        A view.

    Raises:
        ConfigError: ``multiple`` is below 1.
        InputError: The picture is smaller than ``multiple``.
    """
    if multiple < 1:
        raise ConfigError(f"pictures are cut to a multiple from 1, not {multiple}")
    height, width = image.shape[:2]
    if min(height, width) < multiple:
        raise InputError(f"a picture of {width}x{height} is smaller than the factor {multiple}; nothing of it would be left")
    return image[: height - height % multiple, : width - width % multiple]


def _comparable(a: Picture, b: Picture, crop: int, smallest: int) -> tuple[Picture, Picture, float]:
    """Return both pictures as ``(H, W, C)`` whole numbers without their borders, and the largest possible value."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        raise InputError(f"pictures of the shapes {a.shape} and {b.shape} cannot be compared; cut the reference with modcrop")
    if a.dtype != b.dtype:
        raise InputError(f"pictures of {a.dtype} and {b.dtype} cannot be compared; convert one to the type of the other")
    if a.ndim not in (2, 3) or (a.ndim == 3 and a.shape[2] not in (1, 3)):
        raise InputError(f"pictures have the shape (H, W), (H, W, 1) or (H, W, 3), not {a.shape}; leave out an alpha channel")
    height, width = a.shape[:2]
    if min(height, width) < smallest:
        raise InputError(f"pictures of {width}x{height} are smaller than the {smallest} pixels that a score needs")
    if crop < 0:
        raise ConfigError(f"as many pixels as the factor are cut off at a border, not {crop}")
    if min(height, width) - 2 * crop < smallest:
        raise ConfigError(f"{crop} pixels off every border leave less than {smallest} pixels of a picture of {width}x{height}")
    inside = (slice(crop, height - crop), slice(crop, width - crop))
    a, b = (_whole(picture[inside].reshape(height - 2 * crop, width - 2 * crop, -1)) for picture in (a, b))
    return a, b, float(np.iinfo(a.dtype).max)


def _whole(picture: Picture) -> Picture:
    """Return uint8 or uint16 as they are, and floats rounded to uint8."""
    if picture.dtype in (np.uint8, np.uint16):
        return picture
    if picture.dtype.kind != "f":
        raise InputError(f"pictures of {picture.dtype} have no known range; convert to uint8, uint16, or floats in [0, 1]")
    if not np.isfinite(picture).all():
        raise InputError(f"a picture of {picture.dtype} holds values that are not finite (nan or inf); a score would be nan")
    if picture.size and picture.max() > 2:  # A little above 1 is usual before clipping; 255 is another range.
        raise InputError(f"pictures of {picture.dtype} have values in [0, 1], but one reaches {picture.max():g}; divide by its peak")
    return (picture.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _channels(a: Picture, b: Picture, luminance: bool) -> list[Planes]:
    """Return for each channel that is compared (Y, or all) what gives a part of both pictures in float64."""
    if luminance and a.shape[2] == 3:
        return [_Luminance(a, b)]

    def channel(c: int, rows: slice, columns: slice) -> tuple[Plane, Plane]:
        return a[rows, columns, c].astype(np.float64), b[rows, columns, c].astype(np.float64)

    return [partial(channel, c) for c in range(a.shape[2])]


class _Luminance:
    """Gives Y of parts of two pictures; the memory for their colours is used again."""

    def __init__(self, a: Picture, b: Picture) -> None:
        self.pictures, self.peak = (a, b), float(np.iinfo(a.dtype).max)
        self.colours = np.empty((2, 0, 0, 3))

    def __call__(self, rows: slice, columns: slice) -> tuple[Plane, Plane]:
        parts = [picture[rows, columns] for picture in self.pictures]
        if self.colours.shape[1:] != parts[0].shape:
            self.colours = np.empty((2, *parts[0].shape))
        self.colours[0], self.colours[1] = parts
        # One by one: how a product is rounded depends on the place in it, and equal pictures have to differ by nothing at all.
        a, b = (colour.luminance_of_steps(colours, self.peak) for colours in self.colours)
        return a, b


def _decibel(mse: float, peak: float) -> float:
    return 10 * math.log10(peak**2 / mse) if mse else math.inf


@dataclass(frozen=True)
class _Row:
    scores: Scores
    baseline: Scores | None


class PictureScores:
    """Collects the scores of pictures by data set; writes the table that papers print.

    Args:
        crop: Pixels that are cut off at every border: the factor.
        luminance: Score Y of pictures with colours.
    """

    def __init__(self, crop: int = 0, luminance: bool = True) -> None:
        self.crop, self.luminance = crop, luminance
        self.rows: dict[tuple[str, str], _Row] = {}

    def update(
        self, name: str, prediction: Picture, reference: Picture, dataset: str = "", *, baseline: Picture | None = None
    ) -> dict[str, float]:
        """Score one picture and return its ``psnr`` and ``ssim``, and ``baseline_psnr`` and ``baseline_ssim`` if there is one.

        Args:
            name: Name of the picture in its data set.
            prediction: ``(H, W, C)``, uint8 or uint16.
            reference: As ``prediction``, of the same shape and type.
            dataset: Name of the data set, for example ``"Set5"``.
            baseline: What another method makes of the same picture: bicubic enlargement.

        Raises:
            InputError: The pictures cannot be compared; the message names the picture.
            ConfigError: Nothing is left within the borders that are cut off.
            UsageError: The picture was scored before.
        """
        if (dataset, name) in self.rows:
            raise UsageError(f"picture {name!r} was scored before; give every picture of a data set a name of its own")
        try:
            scores = score(prediction, reference, crop=self.crop, luminance=self.luminance)
            other = None if baseline is None else score(baseline, reference, crop=self.crop, luminance=self.luminance)
        except (InputError, ConfigError) as error:
            raise type(error)(f"picture {name}: {error}") from error
        row = self.rows[dataset, name] = _Row(scores, other)
        return _means([row])

    def merge(self, other: PictureScores) -> None:
        """Take in the pictures of another instance; one that both hold (padding of a distributed sampler) counts once.

        Raises:
            UsageError: The other instance scores by another protocol.
        """
        if (self.crop, self.luminance) != (other.crop, other.luminance):
            raise UsageError("scores can be merged only if they cut off the same border and compare the same channels")
        self.rows = self.rows | {key: row for key, row in other.rows.items() if key not in self.rows}

    def compute(self) -> dict[str, float]:
        """Return ``psnr`` and ``ssim``, the means over all pictures, and by data set ``psnr/Set5`` and so on.

        If every picture has a baseline, there are ``baseline_psnr`` and ``baseline_ssim`` too. Without pictures all is nan.
        """
        result = _means(self.rows.values())
        for dataset, rows in self._datasets().items():
            result |= {f"{figure}/{dataset}": value for figure, value in _means(rows.values()).items() if dataset}
        return result

    def report(self, folder: Path | str) -> list[Path]:
        """Write ``scores.csv``, a row for every picture, and the table ``scores.md`` into ``folder``, atomically."""
        from cnnkit.engine.files import write_rows, write_text

        return [write_rows(Path(folder) / "scores.csv", self._table()), write_text(Path(folder) / "scores.md", self._markdown())]

    def _datasets(self) -> dict[str, dict[str, _Row]]:
        found: dict[str, dict[str, _Row]] = {}
        for (dataset, name), row in self.rows.items():
            found.setdefault(dataset, {})[name] = row
        return found

    def _table(self) -> list[list[str]]:
        figures = list(_means(self.rows.values()))
        table = [["dataset", "picture", *figures]]
        for dataset, rows in self._datasets().items():
            for name, row in sorted(rows.items()):
                found = _means([row])
                table.append([dataset, name, *(f"{found[figure]:.6f}" for figure in figures)])
        return table

    def _markdown(self) -> str:
        figures = list(_means(self.rows.values()))
        titles = {"psnr": "PSNR", "ssim": "SSIM", "baseline_psnr": "bicubic PSNR", "baseline_ssim": "bicubic SSIM"}
        datasets = {dataset or "pictures": list(rows.values()) for dataset, rows in self._datasets().items()}
        if len(datasets) > 1:
            datasets["all"] = list(self.rows.values())
        channels = "Y of YCbCr (BT.601, 16 to 235)" if self.luminance else "RGB"
        lines = [
            f"PSNR in dB and SSIM on {channels}; a border of {self.crop} pixels is cut off.",
            "",
            "| Data set | Pictures | " + " | ".join(titles[figure] for figure in figures) + " |",
            "|---|---:|" + "---:|" * len(figures),
        ]
        for dataset, rows in datasets.items():
            values = [f"{value:.{2 if 'psnr' in figure else 4}f}" for figure, value in _means(rows).items() if figure in figures]
            lines.append(f"| {dataset} | {len(rows)} | " + " | ".join(values) + " |")
        return "\n".join(lines) + "\n"


def _means(rows: Iterable[_Row]) -> dict[str, float]:
    """Return the mean of every figure; those of the baseline if all rows have one."""
    rows = list(rows)
    columns: Mapping[str, list[Scores]] = {"": [row.scores for row in rows]}
    baselines = [row.baseline for row in rows if row.baseline is not None]
    if rows and len(baselines) == len(rows):
        columns = {**columns, "baseline_": baselines}
    return {
        f"{which}{figure}": math.fsum(getattr(one, figure) for one in scores) / len(scores) if scores else math.nan
        for which, scores in columns.items()
        for figure in ("psnr", "ssim")
    }
