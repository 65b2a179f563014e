"""Parity plots: predictions over references, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cnnkit.engine.curves import ticks
from cnnkit.engine.files import atomic_path
from PIL import Image, ImageDraw, ImageFont

SIDE, LEFT, TOP, RIGHT, BOTTOM = 400, 84, 56, 24, 56
_PAPER, _INK, _FAINT, _GRID, _BAR = (255, 255, 255), (30, 30, 30), (130, 130, 130), (230, 230, 230), (213, 94, 0)
_FEW, _MANY = np.array((150, 190, 225), float), np.array((0, 45, 95), float)


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Args:
        title: What is compared.
        unit: Of both axes.
        truth: References, ``(N,)``.
        found: Predictions, ``(N,)``.
    """

    title: str
    unit: str
    truth: np.ndarray
    found: np.ndarray

    @property
    def mae(self) -> float:
        """Mean absolute difference."""
        return float(np.abs(self.found - self.truth).mean())


def draw_parity(path: Path, panels: Sequence[Panel]) -> Path:
    """Draw panels side by side and return the picture's path; a darker dot stands for more values."""
    width = LEFT + SIDE + RIGHT
    image = Image.new("RGB", (width * len(panels), TOP + SIDE + BOTTOM), _PAPER)
    for number, panel in enumerate(panels):
        image.paste(_draw(panel), (number * width, 0))
    with atomic_path(path) as part:
        image.save(part)
    return path


def density(panel: Panel, low: float, high: float, cells: int) -> np.ndarray:
    """Return how many values lie in each cell of a square from ``low`` to ``high``, ``(cells, cells)``: rows are predictions from below."""
    edges = np.linspace(low, high, cells + 1)
    return np.histogram2d(panel.found, panel.truth, bins=(edges, edges))[0]


def bounds(panel: Panel) -> tuple[float, float]:
    """Return where the axes start and end: all values, and a twentieth on both sides."""
    both = np.concatenate([panel.truth, panel.found])
    low, high = float(both.min()), float(both.max())
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _draw(panel: Panel) -> Image.Image:
    image = Image.new("RGB", (LEFT + SIDE + RIGHT, TOP + SIDE + BOTTOM), _PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    low, high = bounds(panel)

    def place(value: float) -> float:
        return (value - low) / (high - low) * SIDE

    for value in ticks(low, high):
        across = place(value)
        draw.line((LEFT + across, TOP, LEFT + across, TOP + SIDE), _GRID)
        draw.line((LEFT, TOP + SIDE - across, LEFT + SIDE, TOP + SIDE - across), _GRID)
        draw.text((LEFT + across, TOP + SIDE + 6), f"{value:g}", _INK, font, anchor="ma")
        draw.text((LEFT - 8, TOP + SIDE - across), f"{value:g}", _INK, font, anchor="rm")
    draw.line((LEFT, TOP + SIDE, LEFT + SIDE, TOP), _BAR, 1)
    cells = SIDE // 2
    counts = density(panel, low, high, cells)
    most = np.log1p(max(counts.max(), 2.0))
    filled = np.argwhere(counts > 0)
    for row, column in filled[np.argsort(counts[tuple(filled.T)], kind="stable")]:  # Darker ones last: dots overlap.
        share = np.log1p(counts[row, column]) / most
        colour = tuple(np.rint(_FEW + share * (_MANY - _FEW)).astype(int).tolist())
        x, y = LEFT + 2 * column, TOP + SIDE - 2 * row - 2
        draw.rectangle((x - 1, y - 1, x + 2, y + 2), colour)
    draw.rectangle((LEFT, TOP, LEFT + SIDE, TOP + SIDE), outline=_FAINT)
    draw.text((LEFT, 12), panel.title, _INK, ImageFont.load_default(16))
    draw.text((LEFT, 34), f"MAE {1000 * panel.mae:.3g} m{panel.unit}, {panel.truth.size} values", _FAINT, font)
    draw.text((LEFT + SIDE / 2, TOP + SIDE + 30), f"reference, {panel.unit}", _INK, font, anchor="ma")
    beside = Image.new("RGB", (SIDE, 18), _PAPER)
    ImageDraw.Draw(beside).text((SIDE / 2, 2), f"predicted, {panel.unit}", _INK, font, anchor="ma")
    image.paste(beside.rotate(90, expand=True), (4, TOP))
    return image
