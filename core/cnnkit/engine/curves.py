"""Curves of a training as an SVG picture, drawn from ``metrics.csv`` with the standard library alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from cnnkit.engine.files import write_text
from cnnkit.engine.tables import read_table

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 300, 70, 34, 170, 46
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#8c564b")  # Okabe-Ito: told apart by all eyes.
SHOWN = len(COLOURS)

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One pair of axes: its title and its curves by name."""

    title: str
    curves: dict[str, Points]


def draw_curves(table: Path, picture: Path) -> Path | None:
    """Draw losses and validation figures over the epochs; return the picture, or ``None`` if there is nothing to draw."""
    if not table.exists():
        return None
    panels = [panel for panel in panels_of(read_table(table)) if panel.curves]
    if not panels:
        return None
    body = "".join(_panel(panel, index * HEIGHT) for index, panel in enumerate(panels))
    size = f'width="{WIDTH}" height="{HEIGHT * len(panels)}" viewBox="0 0 {WIDTH} {HEIGHT * len(panels)}"'
    style = 'font-family="sans-serif" font-size="12" fill="#222"'
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    return write_text(picture, f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n{ground}\n{body}</svg>\n')


def panels_of(rows: Sequence[dict[str, str]]) -> list[Panel]:
    """Sort the columns into losses and validation figures; points that are not finite are left out."""
    curves: dict[str, Points] = {}
    for name in dict.fromkeys(name for row in rows for name in row if name.startswith(("train/", "val/"))):
        values = ((float(row["epoch"]), float(row[name])) for row in rows if row.get(name))
        points = [(x, y) for x, y in values if math.isfinite(y)]
        if points:
            curves[name] = points
    losses = {name: points for name, points in curves.items() if name.startswith("train/") or name == "val/loss"}
    if losses.get("train/loss") and len(losses) == 2 + ("val/loss" in losses):  # One loss is its own sum: one curve says it.
        losses = {name: points for name, points in losses.items() if name in ("train/loss", "val/loss")}
    return [Panel("Loss", losses), Panel("Validation", {name: points for name, points in curves.items() if name not in losses})]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers between ``low`` and ``high``, about ``count`` of them, a step of 1, 2 or 5 times a power of ten apart."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _panel(panel: Panel, offset: int) -> str:
    xs = [x for points in panel.curves.values() for x, _ in points]
    ys = [y for points in panel.curves.values() for _, y in points]
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)
    margin = 0.05 * (max(ys) - min(ys)) or 0.05 * abs(max(ys)) or 1.0
    y_low, y_high = min(ys) - margin, max(ys) + margin
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) * inner_width
        return LEFT + across, offset + TOP + (1 - (y - y_low) / (y_high - y_low)) * inner_height

    parts = [f'<text x="{LEFT}" y="{offset + 22}" font-size="14" font-weight="bold">{escape(panel.title)}</text>\n']
    for value in ticks(y_low, y_high):
        _, y = place(x_low, value)
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + inner_width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>\n')
    floor = offset + TOP + inner_height
    for value in (value for value in ticks(x_low, x_high, 8) if value == int(value)):
        x, _ = place(value, y_low)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{floor}" y2="{floor + 4}" stroke="#222"/>')
        parts.append(f'<text x="{x:.1f}" y="{floor + 18}" text-anchor="middle">{value:g}</text>\n')
    parts.append(f'<line x1="{LEFT}" x2="{LEFT + inner_width}" y1="{floor}" y2="{floor}" stroke="#222"/>')
    parts.append(f'<text x="{LEFT + inner_width / 2}" y="{floor + 36}" text-anchor="middle">epoch</text>\n')
    for index, (name, points) in enumerate(list(panel.curves.items())[:SHOWN]):
        placed = [place(x, y) for x, y in points]
        colour = COLOURS[index]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2" fill="{colour}"/>' for x, y in placed if len(placed) <= 30]
        row, side = offset + TOP + 12 + 18 * index, WIDTH - RIGHT + 14
        parts.append(f'<line x1="{side}" x2="{side + 18}" y1="{row - 4}" y2="{row - 4}" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{side + 24}" y="{row}">{escape(name)}</text>\n')
    if len(panel.curves) > SHOWN:
        row = offset + TOP + 12 + 18 * SHOWN
        parts.append(f'<text x="{WIDTH - RIGHT + 14}" y="{row}">and {len(panel.curves) - SHOWN} more: metrics.csv</text>\n')
    return "".join(parts)
