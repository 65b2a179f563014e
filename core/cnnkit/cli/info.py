"""``cnnkit info NAME|FILE``: explain a model, a plugin or a checkpoint. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from cnnkit import plugin as plugins
from cnnkit.cli.common import PATH
from cnnkit.errors import RegistryError, UsageError, unknown
from cnnkit.plugin import Plugin
from cnnkit.registry import Entry


@click.command()
@click.argument("what", metavar="NAME|FILE")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--plot", type=PATH, default=None, metavar="PICTURE", help="Draw the stages of a backbone with their shapes: .png or .svg.")
@click.option("--size", default=None, metavar="N[,N...]", help="With --plot: sides of the input; the paper's by default.")
@click.option("--dims", type=click.Choice(("1", "2", "3")), default=None, help="With --plot: spatial dimensions; 2 by default.")
def info(what: str, as_json: bool, plot: Path | None, size: str | None, dims: str | None) -> None:
    """Explain a model, a plugin or a checkpoint file."""
    data = _describe(what)
    if plot is not None:
        if "family" not in data or not data["family"]:
            raise UsageError(f"--plot draws backbones, and {what} is none; 'cnnkit list backbones' shows them all")
        from cnnkit.engine.diagram import draw_backbone

        data["picture"] = str(draw_backbone(what, plot, dims=int(dims) if dims else None, size=_sides(size)))
    elif size or dims:
        raise UsageError("--size and --dims are of the picture; add --plot out.png")
    if as_json:
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
        return
    from cnnkit.engine.run import summary_lines

    idea = data.pop("idea", "")
    for line in summary_lines(_stated(data), indent=""):
        click.echo(line)
    if idea:
        click.echo(f"\n{idea}")


def _sides(text: str | None) -> tuple[int, ...]:
    """Read ``"224"`` or ``"64,64,32"``."""
    try:
        sides = tuple(int(word) for word in (text or "").replace("x", ",").split(",")) if text else ()
    except ValueError:
        sides = (0,)
    if any(side < 1 for side in sides):
        raise UsageError(f"--size {text!r} is not a size; type a side or one for each dimension, for example 224 or 96,96,64")
    return sides


def _stated(data: dict[str, Any]) -> dict[str, Any]:
    """Drop what is empty, at every level."""
    inner = {key: _stated(value) if isinstance(value, dict) else value for key, value in data.items()}
    return {key: value for key, value in inner.items() if value not in ("", None, [], {})}


def _describe(what: str) -> dict[str, Any]:
    from cnnkit.catalogue import entries

    path = Path(what)
    if path.is_file():
        return _checkpoint(path)
    found = plugins.discover()
    if what in found:
        return _plugin(found[what])
    known = entries()
    if what in known:
        return _model(what, known[what])
    if (path.suffix and "/" in what) or path.suffix in (".ckpt", ".pt", ".pth", ".safetensors"):
        raise RegistryError(f"{what} does not exist, and no model has this name")
    raise RegistryError(unknown("name", what, [*known, *found], more="'cnnkit list backbones' and 'cnnkit list models' show them all."))


def _checkpoint(path: Path) -> dict[str, Any]:
    import dataclasses

    from cnnkit.checkpoint import digest, read_header

    header = dataclasses.asdict(read_header(path))
    config = {"config": header.pop("config")}
    return {"file": str(path), "bytes": path.stat().st_size, "sha256": digest(path), **header, "labels": list(header["labels"]), **config}


def _plugin(item: Plugin | plugins.Broken) -> dict[str, Any]:
    if not isinstance(item, Plugin):
        return {"plugin": item.name, "state": f"cannot be used: {item.reason}", "source": item.source}
    return {
        "plugin": item.name,
        "summary": item.summary,
        "task": item.task,
        "requires": list(item.requires),
        "missing": item.missing(),
        "models": {name: entry.summary for name, entry in item.models.items()},
        "commands": [f"cnnkit {item.name} {name}" for name in item.commands],
        "checkpoint": item.checkpoint,
    }


def _model(name: str, entry: Entry) -> dict[str, Any]:
    from cnnkit.backbones import family_module
    from cnnkit.catalogue import titles

    figures = entry.figures
    reference, idea = _docstring(family_module(entry.family) if entry.family else entry.target)
    sides = figures.input_size if isinstance(figures.input_size, int) else " x ".join(map(str, figures.input_size))
    multiply_adds = f"multiply-adds (G) at {sides}"
    return {
        "name": name,
        "summary": entry.summary,
        "family": entry.family,
        "paper": titles().get(entry.paper, {}).get("title", ""),
        "slug": entry.paper,
        "reference": reference,
        "code": entry.target,
        "dims": list(entry.dims),
        "sizes": _sizes(entry.sizes) if entry.family else "",
        "published": {"parameters (M)": figures.params_m, multiply_adds: figures.gmacs, "quality": figures.quality},
        "counted here": {
            "parameters": entry.params,
            # Where no other count is stated, a test holds that the published one is met to its last decimal.
            multiply_adds: figures.gmacs if figures.counted_gmacs is None else figures.counted_gmacs,
            "why they differ": figures.note,
        },
        "weights understood": ["cnnkit", *entry.layouts],
        "arguments": dict(entry.args),
        "idea": idea,
    }


def _sizes(sizes: Mapping[str, Any]) -> str:
    """Say which input sizes a backbone admits."""
    if "fixed" in sizes:
        return f"{' x '.join(map(str, sizes['fixed']))} only; img_size=... builds it for another"
    multiple, least = sizes.get("multiple"), sizes.get("least")
    words = [f"every side a multiple of {multiple}" if multiple else "", f"every side at least {least}" if least else ""]
    return ", ".join(filter(None, words)) or "any"


def _docstring(target: str) -> tuple[str, str]:
    """Return the reference and the idea that a module's docstring states, from its source, which is not imported.

    The reference is the first paragraph of the module of ``"module"`` or ``"module:attribute"``, the idea the rest.
    """
    import ast
    import importlib.util

    package, *parts = target.partition(":")[0].split(".")
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(folder, *parts).with_suffix(".py")
        if parts and file.is_file():
            text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            reference, _, idea = text.partition("\n\n")
            return " ".join(reference.split()), idea
    return "", ""
