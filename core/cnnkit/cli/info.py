"""``cnnkit info NAME|FILE``: explain a model, a plugin or a checkpoint. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cnnkit import plugin as plugins
from cnnkit.errors import RegistryError, unknown
from cnnkit.plugin import Plugin
from cnnkit.registry import Entry


@click.command()
@click.argument("what", metavar="NAME|FILE")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(what: str, as_json: bool) -> None:
    """Explain a model, a plugin or a checkpoint file."""
    data = _describe(what)
    if as_json:
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
        return
    from cnnkit.engine.run import summary_lines

    for line in summary_lines(_stated(data), indent=""):
        click.echo(line)


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
    from cnnkit.catalogue import titles

    figures = entry.figures
    return {
        "name": name,
        "summary": entry.summary,
        "family": entry.family,
        "paper": titles().get(entry.paper, {}).get("title", ""),
        "slug": entry.paper,
        "code": entry.target,
        "dims": list(entry.dims),
        "parameters": entry.params,
        "published": {
            "parameters (M)": figures.params_m,
            f"multiply-adds (G) at {figures.input_size}": figures.gmacs,
            "quality": figures.quality,
            "counted here, parameters (M)": figures.counted_params_m,
            "counted here, multiply-adds (G)": figures.counted_gmacs,
            "why they differ": figures.note,
        },
        "weights understood": ["cnnkit", *entry.layouts],
        "arguments": dict(entry.args),
    }
