"""A picture of a backbone: its stages as boxes, with their shapes and their shares of the parameters.

Boxes are drawn to the square roots of their sides and channels, so that 224 x 224 x 3 and 7 x 7 x 2048 fit one picture. What is drawn is a
list of polygons and words; it becomes an SVG by the standard library, or a PNG by Pillow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from cnnkit.engine.files import atomic_path
from cnnkit.errors import InputError, UsageError

if TYPE_CHECKING:
    from cnnkit.backbones._base import Backbone

FORMATS = (".png", ".svg")
COLUMN, GAP, MARGIN, TALLEST, WIDEST = 150, 26, 30, 190.0, 96.0
INK, GREY, PALE = "#222222", "#777777", "#dddddd"
FRONT, TOP, SIDE = "#9ecae1", "#c6dbef", "#6baed6"
ENDS = ("#e5e5e5", "#f2f2f2", "#cccccc")
"""Front, top and side of what has no parameters of its own to show: the input."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Stage:
    """One box.

    Args:
        name: The module.
        channels: Its channels.
        size: Its spatial sides; none after pooling.
        params: Its parameters, with those of all that is computed between the box before and it.
    """

    name: str
    channels: int
    size: tuple[int, ...]
    params: int = 0


@dataclass(frozen=True)
class Polygon:
    """A filled outline."""

    points: tuple[Point, ...]
    fill: str
    line: str = INK


@dataclass(frozen=True)
class Words:
    """A line of text; ``x`` is its middle, or its start if ``centred`` is false; ``y`` is its baseline."""

    x: float
    y: float
    text: str
    size: int = 12
    colour: str = INK
    bold: bool = False
    centred: bool = True


def draw_backbone(name: str, path: Path, *, dims: int | None = None, size: Sequence[int] = ()) -> Path:
    """Draw a backbone of the core and return the path of the picture; the model is built without memory or arithmetic.

    Args:
        name: Its name.
        path: The picture, ``.png`` or ``.svg``.
        dims: Number of spatial dimensions; 2 where the model has them, unless told otherwise.
        size: Sides of the input, one for all or one for each dimension; the paper's unless told otherwise.

    Raises:
        UsageError: If the suffix, the dimensions or the size are not possible, or the library for PNG is missing.
        InputError: If the model does not admit the size.
    """
    check_format(path)
    stages = stages_of(name, dims=dims, size=size)
    shapes, extent = layout(name, stages)
    write = _write_png if path.suffix.lower() == ".png" else _write_svg
    try:
        with atomic_path(path) as part:
            write(part, shapes, extent)
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror or error}); choose another place with --plot") from error
    return path


def check_format(path: Path) -> None:
    """Refuse a picture that cannot be written, before any work.

    Raises:
        UsageError: Saying which can.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path} has no known suffix; accepted: {', '.join(FORMATS)}")
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file")
    if path.suffix.lower() == ".png":
        try:
            import PIL  # noqa: F401
        except ImportError:
            raise UsageError(
                f"a PNG needs Pillow; type: pip install 'cnnkit[plot]', or draw an SVG with --plot {path.with_suffix('.svg')}"
            ) from None


def stages_of(name: str, *, dims: int | None = None, size: Sequence[int] = ()) -> list[Stage]:
    """Return what is drawn of a backbone: its input, every level of its pyramid, its head.

    Args:
        name: Name of a backbone of the core.
        dims: As for :func:`draw_backbone`.
        size: As for :func:`draw_backbone`.

    Raises:
        UsageError: If the dimensions or the number of sides are not possible.
        InputError: If the model does not admit the size.
    """
    import torch

    from cnnkit.backbones import create_model, model_entry
    from cnnkit.count import on_meta
    from cnnkit.layers.nd import tupled

    entry = model_entry(name)
    dims = dims if dims is not None else 2 if 2 in entry.dims else entry.dims[0]
    if len(size) not in (0, 1, dims):
        raise UsageError(f"--size has {len(size)} sides and the model {dims} dimensions; give one side, or one for each dimension")
    sides = tuple(size) * dims if len(size) == 1 else tuple(size)
    with on_meta():
        model: Any = create_model(name, dims=dims).eval()
        if model.fixed_size is not None and sides and sides != model.fixed_size:
            model = create_model(name, dims=dims, img_size=sides).eval()
        usual = (max(side, model.min_size) for side in tupled(entry.figures.input_size, dims))
        sides = sides or model.fixed_size or tuple(-(-side // model.size_multiple) * model.size_multiple for side in usual)
        x = torch.empty(1, model.in_chans, *sides)
        with torch.no_grad():
            try:
                shares = _shares(model, lambda: model(x))
                levels = model.forward_pyramid(x)
            except RuntimeError as error:
                raise InputError(f"input size {sides} does not fit {name}: {error}") from error
    boxes = [Stage("input", model.in_chans, sides)]
    for info, level, params in zip(model.feature_info, levels, shares[:-1], strict=True):
        boxes.append(Stage(info["module"], level.shape[1], tuple(level.shape[2:]), params))
    boxes.append(Stage("head", model.num_classes, (), shares[-1]))
    return boxes


def _shares(model: Backbone, run: Callable[[], object]) -> list[int]:
    """Return the parameters of every level, then those of the head: by the order in which one pass first uses their modules.

    The order of registration would not do: some families register the embeddings of all stages before the first stage.
    """
    names = {module: name for name, module in model.named_modules() if name}
    calls: list[str] = []
    handles = [module.register_forward_pre_hook(lambda module, args: calls.append(names[module])) for module in names]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    ends, end = [], -1
    for level in model.feature_info:
        prefix = level["module"]
        end = max([end, *(index for index, name in enumerate(calls) if name == prefix or name.startswith(prefix + "."))])
        ends.append(end)
    first = {name: index for index, name in reversed(list(enumerate(calls)))}
    shares = [0] * (len(ends) + 1)
    for name, parameter in model.named_parameters():  # A shared one comes once.
        place = _place(name.rpartition(".")[0], first)
        shares[next((index for index, end in enumerate(ends) if place <= end), len(ends))] += parameter.numel()
    return shares


def _place(name: str, first: dict[str, int]) -> int:
    """Return when a module is first used; one that is never called itself, when the module around it or a part of it is."""
    if name in first:
        return first[name]
    inside = [index for other, index in first.items() if other.startswith(name + ".")] if name else [0]
    return min(inside) if inside else _place(name.rpartition(".")[0], first)


def layout(title: str, stages: Sequence[Stage]) -> tuple[list[Polygon | Words], tuple[float, float]]:
    """Place boxes and labels; return them and the extent of the picture.

    Args:
        title: Name of the model.
        stages: What to draw, from the input to the head.
    """
    total = sum(stage.params for stage in stages) or 1
    longest = max(max(stage.size, default=1) for stage in stages)
    broadest = max(stage.channels for stage in stages if stage.size)
    floor = MARGIN + 56 + TALLEST * 1.3
    sizes = " x ".join(map(str, stages[0].size))
    shapes: list[Polygon | Words] = [
        Words(MARGIN, MARGIN + 14, title, 18, bold=True, centred=False),
        Words(MARGIN, MARGIN + 34, f"{_millions(total)} parameters; input of {stages[0].channels} x {sizes}", 12, GREY, centred=False),
    ]
    centres = [MARGIN + COLUMN / 2 + index * (COLUMN + GAP) for index in range(len(stages))]
    middle = floor - TALLEST * 0.62
    for left, right in pairwise(centres):
        shapes.append(Polygon(((left, middle), (right, middle)), "none", PALE))
    for index, (stage, centre) in enumerate(zip(stages, centres, strict=True)):
        colours = ENDS if index == 0 else (FRONT, TOP, SIDE)
        width = max(4.0, WIDEST * math.sqrt(min(stage.channels, broadest) / broadest))
        shapes += _box(centre, middle, width, [TALLEST * math.sqrt(side / longest) for side in stage.size], colours)
        lines = [
            Words(centre, floor + 30, _shortened(stage.name), 12, bold=True),
            Words(centre, floor + 48, f"{stage.channels} {'channels' if stage.size else 'outputs'}"),
            Words(centre, floor + 66, " x ".join(map(str, stage.size)) or "one vector"),
        ]
        if index:
            share = stage.params / total
            lines.append(Words(centre, floor + 84, f"{100 * share:.1f} % of parameters", colour=GREY))
            shapes += [_bar(centre, floor + 92, 1.0, PALE), _bar(centre, floor + 92, share, SIDE)]
        shapes += lines
    return shapes, (centres[-1] + COLUMN / 2 + MARGIN, floor + 98 + MARGIN)


def _box(centre: float, middle: float, width: float, sides: Sequence[float], colours: tuple[str, str, str]) -> list[Polygon | Words]:
    """Return a block as wide as its channels, as tall as its first side, as deep (drawn obliquely) as its last; signals are flat."""
    height = sides[0] if sides else 12.0
    depth = 0.35 * sides[-1] if len(sides) > 1 else 0.0
    across, up = depth * 0.75, depth * 0.55
    left, right = centre - (width + across) / 2, centre + (width - across) / 2
    top, bottom = middle - (height - up) / 2, middle + (height + up) / 2
    front = ((left, top), (right, top), (right, bottom), (left, bottom))
    if not depth:
        return [Polygon(front, colours[0])]
    above = ((left, top), (left + across, top - up), (right + across, top - up), (right, top))
    beside = ((right, top), (right + across, top - up), (right + across, bottom - up), (right, bottom))
    return [Polygon(above, colours[1]), Polygon(beside, colours[2]), Polygon(front, colours[0])]


def _bar(centre: float, y: float, share: float, colour: str) -> Polygon:
    left, length = centre - COLUMN * 0.35, COLUMN * 0.7 * share
    return Polygon(((left, y), (left + length, y), (left + length, y + 5), (left, y + 5)), colour, colour)


def _shortened(name: str, longest: int = 22) -> str:
    return name if len(name) <= longest else "..." + name[3 - longest :]


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 100_000 else f"{count:,}"


def _write_svg(path: Path, shapes: Sequence[Polygon | Words], extent: tuple[float, float]) -> None:
    width, height = map(math.ceil, extent)
    frame = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {frame} font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for shape in shapes:
        if isinstance(shape, Polygon):
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
            parts.append(f'<polygon points="{points}" fill="{shape.fill}" stroke="{shape.line}" stroke-width="1" stroke-linejoin="round"/>')
        else:
            anchor = "middle" if shape.centred else "start"
            weight = ' font-weight="bold"' if shape.bold else ""
            place = f'x="{shape.x:.1f}" y="{shape.y:.1f}" text-anchor="{anchor}"'
            parts.append(f'<text {place} font-size="{shape.size}"{weight} fill="{shape.colour}">{escape(shape.text)}</text>')
    path.write_text("\n".join([*parts, "</svg>\n"]), encoding="utf-8")


def _write_png(path: Path, shapes: Sequence[Polygon | Words], extent: tuple[float, float], scale: int = 2) -> None:
    from PIL import Image, ImageDraw, ImageFont

    fine = 2  # Drawn larger and averaged: Pillow does not smooth the edges of polygons. Words are smooth, and drawn last.
    canvas = Image.new("RGB", tuple(math.ceil(scale * fine * side) for side in extent), "white")  # type: ignore[arg-type]
    draw = ImageDraw.Draw(canvas)
    for shape in shapes:
        if isinstance(shape, Polygon):
            points = [(scale * fine * x, scale * fine * y) for x, y in shape.points]
            if shape.fill != "none":
                draw.polygon(points, fill=shape.fill)
            draw.line([*points, points[0]], fill=shape.line, width=scale * fine, joint="curve")
    canvas = canvas.resize(tuple(math.ceil(scale * side) for side in extent), Image.Resampling.BOX)  # type: ignore[arg-type]
    draw = ImageDraw.Draw(canvas)
    for shape in shapes:
        if isinstance(shape, Words):
            draw.text(
                (scale * shape.x, scale * shape.y),
                shape.text,
                fill=shape.colour,
                font=ImageFont.load_default(size=scale * shape.size),
                anchor="ms" if shape.centred else "ls",
                stroke_width=0.4 * scale if shape.bold else 0,
                stroke_fill=shape.colour,
            )
    canvas.save(path)
