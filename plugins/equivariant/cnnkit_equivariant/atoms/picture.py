"""A relaxation as a picture: energy and largest force by step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from cnnkit.engine.curves import ticks
from cnnkit.engine.files import atomic_path
from PIL import Image, ImageDraw, ImageFont

from cnnkit_equivariant.atoms.relax import Relaxation

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 640, 200, 92, 60, 28, 44
_PAPER, _INK, _FAINT, _GRID, _LINE, _GOAL = (255, 255, 255), (30, 30, 30), (130, 130, 130), (230, 230, 230), (0, 114, 178), (213, 94, 0)


def draw_relaxation(path: str | Path, relaxation: Relaxation, *, fmax: float = 0.0, title: str = "") -> Path:
    """Draw the energy below the first one and, on a logarithmic axis, the largest force over the steps.

    Args:
        path: The PNG file.
        relaxation: At least its start.
        fmax: Drawn as a line, if it is above 0, in eV/A.
        title: By default the formula.

    Returns:
        The path.
    """
    path = Path(path)
    image = Image.new("RGB", (LEFT + WIDTH + RIGHT, 2 * (TOP + HEIGHT) + BOTTOM), _PAPER)
    draw = ImageDraw.Draw(image)
    reached = f"{relaxation.steps} steps, {'relaxed' if relaxation.converged else 'not relaxed'}"
    draw.text((LEFT, 8), f"{title or relaxation.atoms.get_chemical_formula()}: {reached}", _INK, ImageFont.load_default(16))
    first = relaxation.energies[0]
    falls = [energy - first for energy in relaxation.energies]
    _panel(draw, TOP, "energy above the first, eV", falls)
    forces = [math.log10(max(force, 1e-12)) for force in relaxation.forces]
    goal = [math.log10(fmax)] if fmax > 0 else []
    _panel(draw, 2 * TOP + HEIGHT, "largest force, eV/A", forces, goal, power=True)
    draw.text((LEFT + WIDTH / 2, 2 * (TOP + HEIGHT) + 26), "step", _INK, ImageFont.load_default(13), anchor="ma")
    with atomic_path(path) as part:
        image.save(part, format="PNG")
    return path


def _panel(
    draw: ImageDraw.ImageDraw, top: int, title: str, values: Sequence[float], goal: Sequence[float] = (), *, power: bool = False
) -> None:
    """Draw one curve over 0, 1, ...; with ``power`` the values are exponents of ten."""
    font = ImageFont.load_default(13)
    low, high = min([*values, *goal]), max([*values, *goal])
    margin = 0.06 * (high - low) or 0.5
    low, high = low - margin, high + margin
    last = max(len(values) - 1, 1)

    def place(step: float, value: float) -> tuple[float, float]:
        return LEFT + step / last * WIDTH, top + (high - value) / (high - low) * HEIGHT

    draw.text((LEFT, top - 20), title, _FAINT, font)
    for value in _powers(low, high) if power else ticks(low, high):
        _, y = place(0, value)
        draw.line((LEFT, y, LEFT + WIDTH, y), _GRID)
        draw.text((LEFT - 8, y), f"{10**value:.3g}" if power else f"{value:g}", _INK, font, anchor="rm")
    for step in (value for value in ticks(0, last, 8) if value == int(value)):
        x, _ = place(step, low)
        draw.line((x, top, x, top + HEIGHT), _GRID)
        draw.text((x, top + HEIGHT + 6), f"{step:g}", _INK, font, anchor="ma")
    for value in goal:
        draw.line((place(0, value), place(last, value)), _GOAL)
    points = [place(step, value) for step, value in enumerate(values)]
    draw.line(points, _LINE, 2)
    for x, y in points if len(points) <= 60 else points[-1:]:
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), _LINE)
    draw.rectangle((LEFT, top, LEFT + WIDTH, top + HEIGHT), outline=_FAINT)


def _powers(low: float, high: float) -> list[float]:
    """Return exponents of 1, 2 and 5 times powers of ten; of the powers alone where there are many."""
    factors = (1, 2, 5) if high - low < 2.5 else (1,)
    marks = (power + math.log10(factor) for power in range(math.floor(low), math.ceil(high) + 1) for factor in factors)
    return [mark for mark in marks if low <= mark <= high]
