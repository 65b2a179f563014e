"""A picture for people: the whole by the network, and beneath it the places with the finest detail, bicubic beside network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cnnkit.engine.files import atomic_path
from PIL import Image, ImageDraw, ImageFont

from cnnkit_superres.pictures import Picture

ZOOMS = 3
WIDTH = 1200
MARGIN = 12
LINE = (235, 90, 40)
PAPER, INK = (255, 255, 255), (30, 30, 30)


def write_comparison(path: Path, before: Picture, after: Picture, *, labels: tuple[str, str] = ("bicubic", "network")) -> Path:
    """Draw two enlargements of one picture and write the drawing as PNG, atomically.

    Args:
        path: The file.
        before: The enlargement by interpolation.
        after: The enlargement by the network, of the same size.
        labels: What to write under the zooms.
    """
    old, new = _rgb8(before), _rgb8(after)
    height, width = new.shape[:2]
    side = min(max(8, min(height, width) // 8), height, width)
    places = detailed_places(new, side, ZOOMS)
    cell = (WIDTH - MARGIN * (2 * ZOOMS + 1)) // (2 * ZOOMS)
    whole = Image.fromarray(new)
    whole.thumbnail((WIDTH - 2 * MARGIN, WIDTH), Image.Resampling.LANCZOS)
    font = ImageFont.load_default(15)
    sheet = Image.new("RGB", (WIDTH, whole.height + cell + 3 * MARGIN + 24), PAPER)
    left = (WIDTH - whole.width) // 2
    sheet.paste(whole, (left, MARGIN))
    draw = ImageDraw.Draw(sheet)
    ratio = whole.width / width
    for number, (y, x) in enumerate(places):
        corner = (left + x * ratio, MARGIN + y * ratio)
        draw.rectangle((*corner, corner[0] + side * ratio, corner[1] + side * ratio), outline=LINE, width=2)
        draw.rectangle((*corner, corner[0] + 14, corner[1] + 18), fill=LINE)
        draw.text((corner[0] + 4, corner[1]), str(number + 1), fill=PAPER, font=font)
        for column, (pixels, label) in enumerate(zip((old, new), labels, strict=True)):
            zoom = Image.fromarray(pixels[y : y + side, x : x + side]).resize((cell, cell), Image.Resampling.NEAREST)
            place = (MARGIN + (2 * number + column) * (cell + MARGIN), whole.height + 2 * MARGIN)
            sheet.paste(zoom, place)
            draw.text((place[0], place[1] + cell + 4), f"{number + 1}: {label}", fill=INK, font=font)
    with atomic_path(path) as part:
        sheet.save(part, format="PNG")
    return path


def detailed_places(pixels: np.ndarray, side: int, count: int) -> list[tuple[int, int]]:
    """Return the corners ``(y, x)`` of the squares with the most fine detail, none overlapping another.

    Args:
        pixels: ``(H, W, 3)`` uint8.
        side: Side of the squares.
        count: How many, at most; a small picture has fewer.
    """
    grey = pixels.astype(np.float32).mean(2)
    rows, columns = grey.shape[0] // side, grey.shape[1] // side
    if rows == 0 or columns == 0:
        return []
    detail = np.zeros_like(grey)
    detail[:-1] += np.abs(np.diff(grey, axis=0))
    detail[:, :-1] += np.abs(np.diff(grey, axis=1))
    scores = detail[: rows * side, : columns * side].reshape(rows, side, columns, side).mean((1, 3))
    best = np.argsort(scores, axis=None)[::-1][:count]
    return [(int(index // columns) * side, int(index % columns) * side) for index in best]


def _rgb8(picture: Picture) -> np.ndarray:
    """Return the picture as people see it, on white: ``(H, W, 3)`` uint8."""
    unit = picture.pixels.astype(np.float32) / picture.peak
    if picture.alpha is not None:
        share = np.clip(picture.alpha.astype(np.float32)[..., None] / picture.opaque, 0, 1)
        unit = unit * share + (1 - share)
    eight = np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)
    return np.repeat(eight, 3, axis=2) if eight.shape[2] == 1 else eight
