"""A picture to judge a segmentation by: slices in three planes, the labels over them, and a legend with volumes.

Pillow and numpy only: the picture of a 256^3 volume takes a fraction of a second.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cnnkit.engine.files import atomic_path
from cnnkit.errors import InputError
from numpy.typing import NDArray

from cnnkit_medseg.statistics import count_labels

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

Colour = tuple[int, int, int]

BACKGROUND, INK, FAINT = (13, 17, 23), (230, 237, 243), (125, 136, 148)
_WIDTH, _MARGIN, _GAP, _TITLE, _HEADING, _FOOT = 1320, 36, 6, 88, 34, 40  # Pixels.
_DIM, _FILL, _LINE = 0.88, 0.42, 0.9  # Brightness of the image below a region, opacity of the region and of its outline.
_COLUMNS, _LINE_HEIGHT = 4, 30  # Of the legend.
_MAX_SMOOTH = 64  # Labels in one slice.
_MAX_PANEL_RATIO = 1.35  # A row whose slices are taller than this gets more and narrower slices.

# Okabe and Ito's colours for all kinds of colour vision, without black and in an order that suits a dark ground.
_FIRST: tuple[Colour, ...] = ((86, 180, 233), (230, 159, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66), (213, 94, 0), (0, 114, 178))

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB: protanopia and deuteranopia.
_DEFICIENCIES = (
    ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
)

# Oklab (Ottosson, 2020): linear sRGB to cone responses, their cube roots to lightness, green-red and blue-yellow.
_CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_OPPONENT = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)


@dataclass(frozen=True)
class _Plane:
    """A way to cut a volume ``(X, Y, Z)`` in RAS order into pictures whose rows run down."""

    name: str
    axis: int
    across: int
    down: int
    left: str
    right: str
    top: str
    bottom: str

    def cut(self, volume: NDArray[Any], index: int) -> NDArray[Any]:
        """Return slice ``index`` as ``(rows, columns)``, patient's right (or front) on the left, head (or front) at the top."""
        return np.take(volume, index, axis=self.axis).T[::-1, ::-1]


_PLANES = (
    _Plane("Axial", axis=2, across=0, down=1, left="R", right="L", top="A", bottom="P"),
    _Plane("Coronal", axis=1, across=0, down=2, left="R", right="L", top="S", bottom="I"),
    _Plane("Sagittal", axis=0, across=1, down=2, left="A", right="P", top="S", bottom="I"),
)


@lru_cache(maxsize=8)
def palette(count: int) -> tuple[Colour, ...]:
    """Return ``count`` colours that stay apart on a dark ground for normal and red-green deficient vision.

    The first seven are Okabe and Ito's. Each further one is the candidate farthest from all before it, where the distance of
    two colours is the smallest over normal vision, protanopia and deuteranopia in the perceptual space Oklab. So the colours of a
    short palette are the first colours of a longer one.
    """
    steps = np.arange(30, 256, 15)
    candidates = np.array([*_FIRST, *np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)])
    seen = _as_seen(candidates)
    bright = seen[0, :, 0] > 0.45
    bright[: len(_FIRST)] = True
    chosen = list(range(min(count, len(_FIRST))))
    nearest = np.full(len(candidates), np.inf)
    nearest[~bright] = -np.inf
    for index in chosen:
        nearest = np.minimum(nearest, np.linalg.norm(seen - seen[:, index : index + 1], axis=-1).min(axis=0))
    while len(chosen) < count:
        index = int(nearest.argmax())
        chosen.append(index)
        nearest = np.minimum(nearest, np.linalg.norm(seen - seen[:, index : index + 1], axis=-1).min(axis=0))
    return tuple((int(red), int(green), int(blue)) for red, green, blue in candidates[chosen])


def _as_seen(colours: NDArray[Any]) -> NDArray[np.float64]:
    """Return Oklab coordinates ``(3 kinds of vision, N, 3)`` of sRGB colours ``(N, 3)``."""
    value = colours / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    kinds = np.stack([linear, *(np.clip(linear @ np.array(matrix).T, 0, 1) for matrix in _DEFICIENCIES)])
    return np.cbrt(kinds @ np.array(_CONES).T) @ np.array(_OPPONENT).T


def write_overlay(
    path: Path | str,
    image: NDArray[Any],
    labels: NDArray[Any],
    names: Mapping[int, str],
    spacing: Sequence[float],
    *,
    title: str = "",
    affine: NDArray[Any] | None = None,
) -> Path:
    """Write a PNG with axial, coronal and sagittal slices through the labelled region, in the radiological view.

    Args:
        path: The PNG file; written atomically.
        image: ``(X, Y, Z)`` intensities in RAS order.
        labels: ``(X, Y, Z)`` integers in RAS order; 0 is background.
        names: Names of the labels; a label without a name is called by its number.
        spacing: Voxel size in mm along X, Y, Z.
        title: Heading, by default the stem of the file.
        affine: From voxel indices to mm in RAS; with it the slices are captioned with their position in mm.

    Raises:
        InputError: If the shapes of image and labels differ.
    """
    from PIL import Image, ImageDraw

    path = Path(path)
    if image.ndim != 3 or image.shape != labels.shape:
        raise InputError(f"{path}: image of shape {image.shape} and labels of shape {labels.shape} must be one and the same (X, Y, Z)")
    counts = count_labels(labels)
    present = [int(label) for label in np.flatnonzero(counts) if label > 0]
    colours = dict(zip(present, _colours_of(present, names), strict=True))
    scene = _Scene(image, labels, colours, tuple(float(size) for size in spacing), affine, _window(image), _occupied(labels))
    view = _field_of_view(scene)
    rows = [_row(plane, scene, view) for plane in _PLANES]
    legend_rows = -(-len(present) // _COLUMNS)
    legend_top = _TITLE + sum(row.height + _HEADING for row in rows)
    height = legend_top + _HEADING + legend_rows * _LINE_HEIGHT + _FOOT
    canvas = Image.new("RGB", (_WIDTH + 2 * _MARGIN, height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    _text(draw, (_MARGIN, 22), title or path.stem, 30)
    size = " x ".join(f"{length:.3g}" for length in spacing)
    _text(draw, (_MARGIN, 60), f"{' x '.join(map(str, image.shape))} voxels of {size} mm", 15, FAINT)
    top = _TITLE
    for plane, row in zip(_PLANES, rows, strict=True):
        _text(draw, (_MARGIN, top + 12), plane.name.upper(), 14, FAINT)
        canvas.paste(row, (_MARGIN, top + _HEADING))
        top += _HEADING + row.height
    volumes = {label: float(counts[label] * np.prod(spacing) / 1000) for label in present}
    _text(draw, (_MARGIN, top + 12), "VOLUMES" if present else "NO LABEL IN THIS VOLUME", 14, FAINT)
    _draw_legend(draw, top + _HEADING, legend_rows, names, colours, volumes)
    _text(draw, (_MARGIN, height - 26), "Radiological view: the patient's right (R) is on the left of the picture.", 13, FAINT)
    with atomic_path(path) as part:
        canvas.save(part, format="PNG", compress_level=1)
    return path


def _colours_of(present: Sequence[int], names: Mapping[int, str]) -> list[Colour]:
    """Give each label the colour of its rank among all names, so that it keeps its colour from case to case."""
    ranks = {label: rank for rank, label in enumerate(sorted({*names, *present} - {0}))}
    colours = palette(len(ranks))
    return [colours[ranks[label]] for label in present]


@dataclass(frozen=True, eq=False)
class _Scene:
    """What is drawn: a volume, its labels, and how both are shown."""

    image: NDArray[Any]
    labels: NDArray[Any]
    colours: Mapping[int, Colour]
    spacing: tuple[float, ...]
    affine: NDArray[Any] | None
    window: tuple[float, float]
    occupied: tuple[tuple[int, ...], ...]

    def gray(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Return ``values`` as brightness from 0 to 255."""
        low, high = self.window
        return np.clip((values - np.float32(low)) * np.float32(255 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)


def _thinned(image: NDArray[Any]) -> tuple[NDArray[Any], int]:
    step = max(1, round((image.size / 300_000) ** (1 / 3)))
    return image[::step, ::step, ::step], step


def _window(image: NDArray[Any]) -> tuple[float, float]:
    """Return the intensities shown as black and white: a soft-tissue window for CT, a robust range otherwise."""
    low, high = np.percentile(_thinned(image)[0], (0.5, 99.7))
    return (-200.0, 300.0) if low < -400 else (float(low), float(high))  # Below -400 there is air in Hounsfield units.


def _field_of_view(scene: _Scene) -> tuple[slice, ...]:
    """Return the box around everything that is visible or labelled, with a margin, so that no panel is mostly black."""
    sample, step = _thinned(scene.image)
    visible = scene.gray(sample) > 20
    view = []
    for axis, length in enumerate(scene.labels.shape):
        others = tuple(other for other in range(3) if other != axis)
        seen = np.flatnonzero(visible.mean(axis=others) > 0.002) * step
        places = [*seen[[0, -1]], *scene.occupied[axis]] if seen.size else [0, length - 1]
        margin = 0.04 * length
        view.append(slice(max(0, int(min(places) - margin)), min(length, int(max(places) + margin) + 1)))
    return tuple(view)


def _occupied(labels: NDArray[Any]) -> tuple[tuple[int, ...], ...]:
    """Return the first and last index with a label for each axis, or nothing."""
    across: NDArray[np.bool_] = np.any(labels, axis=0)
    profiles = (np.array([plane.any() for plane in labels]), across.any(axis=1), across.any(axis=0))
    return tuple((int(found[0]), int(found[-1])) if (found := np.flatnonzero(profile)).size else () for profile in profiles)


def _row(plane: _Plane, scene: _Scene, view: tuple[slice, ...]) -> Image.Image:
    """Render evenly spaced slices of one plane side by side."""
    from PIL import Image, ImageDraw

    tall, wide = ((view[axis].stop - view[axis].start) * scene.spacing[axis] for axis in (plane.down, plane.across))
    ratio = tall / wide
    count = 5 if ratio <= _MAX_PANEL_RATIO else min(9, round(5 * ratio / _MAX_PANEL_RATIO))
    width = (_WIDTH - (count - 1) * _GAP) // count
    size = (width, int(np.clip(round(width * ratio), 40, 3 * width)))
    row = Image.new("RGB", (_WIDTH, size[1]), BACKGROUND)
    box = tuple(slice(None) if axis == plane.axis else view[axis] for axis in range(3))
    image, labels = scene.image[box], scene.labels[box]
    for number, index in enumerate(_positions(scene, plane.axis, count)):
        panel = _panel(scene.gray(plane.cut(image, index)), plane.cut(labels, index), scene.colours, size)
        draw = ImageDraw.Draw(panel)
        if number == 0:
            _letters(draw, plane, size)
        position = None if scene.affine is None else _position(scene.affine, scene.labels.shape, plane.axis, index)
        caption = f"slice {index}" if position is None else f"{'xyz'[plane.axis]} = {round(position):d} mm"
        _text(draw, (size[0] - 8, size[1] - 8), caption, 13, INK, anchor="rs")
        row.paste(panel, (round(number * (_WIDTH - width) / max(count - 1, 1)), 0))
    return row


def _positions(scene: _Scene, axis: int, count: int) -> list[int]:
    """Return evenly spaced slice indices through the labelled region, or through the middle of the volume if there is none."""
    length = scene.labels.shape[axis]
    low, high = scene.occupied[axis] or (length * 0.2, length * 0.8 - 1)
    edge = 0.5 / count
    return [round(float(low + (high - low) * share)) for share in np.linspace(edge, 1 - edge, count)]


def _position(affine: NDArray[Any], shape: Sequence[int], axis: int, index: int) -> float:
    """Return the coordinate in mm of the middle of a slice along its own axis."""
    voxel = np.array([*((size - 1) / 2 for size in shape), 1.0])
    voxel[axis] = index
    return float((np.asarray(affine) @ voxel)[axis])


def _panel(gray: NDArray[np.uint8], labels: NDArray[Any], colours: Mapping[int, Colour], size: tuple[int, int]) -> Image.Image:
    """Blend fills and outlines over one slice."""
    from PIL import Image

    base = Image.fromarray(np.ascontiguousarray(gray)).resize(size, Image.Resampling.BICUBIC)
    region = _enlarge(labels, size)
    table = np.zeros((max(colours, default=0) + 1, 3), np.float32)
    for label, colour in colours.items():
        table[label] = colour
    inside = region > 0
    opacity = np.where(_outline(region), np.float32(_LINE), inside * np.float32(_FILL))
    light = np.asarray(base, np.float32) * (1 - opacity) * np.where(inside, np.float32(_DIM), np.float32(1))
    return Image.fromarray((light[:, :, None] + opacity[:, :, None] * table[region]).round().astype(np.uint8))


def _enlarge(labels: NDArray[Any], size: tuple[int, int]) -> NDArray[np.intp]:
    """Resize a label slice with smooth borders: every label as a soft mask, and the largest wins.

    A slice with very many labels, as from an untrained model, keeps hard borders.
    """
    from PIL import Image

    best = np.zeros(size[::-1], np.uint8)
    winner = np.zeros(size[::-1], np.intp)
    scales = size[1] / labels.shape[0], size[0] / labels.shape[1]
    present = np.flatnonzero(np.bincount(labels.ravel()))
    if len(present) > _MAX_SMOOTH:
        rows, columns = ((np.arange(length) + 0.5) // scale for length, scale in zip(size[::-1], scales, strict=True))
        return labels[rows.astype(np.intp)[:, None], columns.astype(np.intp)].astype(np.intp)
    for label in present:
        mask = labels == label
        # Only the pixels around the label: with a hundred organs, whole panels would take seconds.
        (top, bottom), (left, right) = (
            _reach(mask.any(axis=1 - axis), scale, size[1 - axis]) for axis, scale in zip((0, 1), scales, strict=True)
        )
        box = (left / scales[1], top / scales[0], right / scales[1], bottom / scales[0])
        shape = (right - left, bottom - top)
        soft = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(shape, Image.Resampling.BICUBIC, box=box))
        place = (slice(top, bottom), slice(left, right))
        better = soft > best[place]
        best[place][better], winner[place][better] = soft[better], label
    return winner


def _reach(profile: NDArray[np.bool_], scale: float, size: int) -> tuple[int, int]:
    """Return the range of enlarged pixels that the occupied part of ``profile`` can reach through the filter."""
    occupied = np.flatnonzero(profile)
    return max(0, int((occupied[0] - 3) * scale)), min(size, int((occupied[-1] + 4) * scale) + 1)


def _outline(region: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Mark the labelled pixels that touch another label or the background."""
    edge = np.zeros(region.shape, bool)
    down, across = region[1:] != region[:-1], region[:, 1:] != region[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    return edge & (region > 0)


def _letters(draw: ImageDraw.ImageDraw, plane: _Plane, size: tuple[int, int]) -> None:
    width, height = size
    for place, letter, anchor in (
        ((8, height / 2), plane.left, "lm"),
        ((width - 8, height / 2), plane.right, "rm"),
        ((width / 2, 6), plane.top, "ma"),
        ((width / 2, height - 6), plane.bottom, "md"),
    ):
        _text(draw, place, letter, 15, INK, anchor=anchor)


def _draw_legend(
    draw: ImageDraw.ImageDraw, top: int, rows: int, names: Mapping[int, str], colours: Mapping[int, Colour], volumes: Mapping[int, float]
) -> None:
    pitch = (_WIDTH + 24) // _COLUMNS
    for number, (label, colour) in enumerate(colours.items()):
        column, row = divmod(number, rows)
        x, y = _MARGIN + column * pitch, top + row * _LINE_HEIGHT
        volume = volumes[label]
        figure = f"{volume:,.0f} ml" if volume >= 100 else f"{volume:.1f} ml" if volume >= 1 else f"{volume:.2g} ml"
        draw.rounded_rectangle((x, y + 4, x + 16, y + 20), radius=4, fill=colour)
        _text(draw, (x + pitch - 24, y + 12), figure, 15, FAINT, anchor="rm")
        room = pitch - 24 - 28 - 12 - draw.textlength(figure, font=_font(15))
        _text(draw, (x + 28, y + 12), _shorten(draw, names.get(label, f"label {label}").replace("_", " "), room), 16, anchor="lm")


def _shorten(draw: ImageDraw.ImageDraw, text: str, room: float) -> str:
    if draw.textlength(text, font=_font(16)) <= room:
        return text
    length = bisect_right(range(len(text)), room, key=lambda count: draw.textlength(text[:count] + "…", font=_font(16))) - 1
    return text[: max(length, 0)].rstrip() + "…"


def _text(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, colour: Colour = INK, *, anchor: str = "la") -> None:
    # Pillow's own font has no accented letters: they lose their accents instead of becoming boxes.
    text = "".join(letter for letter in unicodedata.normalize("NFD", text) if not unicodedata.combining(letter))
    draw.text(place, text, fill=colour, font=_font(size), anchor=anchor, stroke_width=2, stroke_fill=BACKGROUND)


@lru_cache(maxsize=16)
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=size)
