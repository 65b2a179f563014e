"""``cnnkit list plugins|backbones|layers|models|papers``. No torch."""

from __future__ import annotations

import json
from typing import Any

import click

from cnnkit.cli.lazy import NearestGroup


def _show(rows: list[dict[str, Any]], columns: tuple[str, ...], as_json: bool) -> None:
    """Print rows as JSON, or as aligned columns."""
    if as_json:
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    cells = [[_text(row.get(column)) for column in columns] for row in rows]
    widths = [max(map(len, column), default=0) for column in zip(columns, *cells, strict=True)]
    for line in ([column.upper() for column in columns], *cells):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else "" if value is None else str(value)


JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON: a list of objects.")


@click.group("list", cls=NearestGroup)
def list_() -> None:
    """List plugins, backbones, layers, models and papers."""


@list_.command()
@JSON
def plugins(as_json: bool) -> None:
    """List the installed plugins, and the known ones that are not."""
    from cnnkit.plugin import KNOWN, Plugin, discover
    from cnnkit.versions import version_of

    found = discover()
    rows: list[dict[str, Any]] = []
    for name in sorted({*found, *KNOWN}):
        item = found.get(name)
        state = "ready" if isinstance(item, Plugin) else "not installed" if item is None else f"broken: {item.reason}"
        summary = item.summary if isinstance(item, Plugin) else KNOWN.get(name, "")
        rows.append({"name": name, "version": version_of(f"cnnkit-{name}"), "state": state, "summary": summary})
    _show(rows, ("name", "version", "state", "summary"), as_json)


@list_.command()
@JSON
@click.option("--dims", type=click.Choice(("1", "2", "3")), default=None, help="Only those that work in this many dimensions.")
@click.option("--papers", is_flag=True, help="Show the papers' titles.")
def backbones(as_json: bool, dims: str | None, papers: bool) -> None:
    """List the backbones of the core."""
    from cnnkit.backbones import list_models, model_entry
    from cnnkit.catalogue import titles

    rows: list[dict[str, Any]] = []
    for name in list_models(dims=int(dims) if dims else None):
        entry = model_entry(name)
        row = {"name": name, "family": entry.family, "paper": entry.paper, "dims": list(entry.dims), "params": entry.params}
        if papers:
            row["title"] = titles().get(entry.paper, {}).get("title", "")
        rows.append(row)
    _show(rows, ("name", "family", "paper", "dims", "params", *(("title",) if papers else ())), as_json)


@list_.command()
@JSON
def layers(as_json: bool) -> None:
    """List the layers of the core that stand for a paper."""
    from cnnkit import catalogue

    rows = [
        {"name": name, "paper": entry.paper, "dims": list(entry.dims), "code": entry.target, "summary": entry.summary}
        for name, entry in catalogue.layers().items()
    ]
    _show(rows, ("name", "paper", "dims", "code", "summary"), as_json)


@list_.command()
@JSON
def models(as_json: bool) -> None:
    """List the models of the installed plugins."""
    from cnnkit.plugin import models as plugin_models

    rows = [
        {"name": name, "paper": entry.paper, "dims": list(entry.dims), "layouts": list(entry.layouts), "summary": entry.summary}
        for name, entry in sorted(plugin_models().items())
    ]
    _show(rows, ("name", "paper", "dims", "layouts", "summary"), as_json)


@list_.command()
@JSON
@click.option("--built/--all", default=False, help="Only those that are built here.")
def papers(as_json: bool, built: bool) -> None:
    """List the papers that cnnkit answers for, and under which names they are built."""
    from cnnkit.catalogue import papers as all_papers

    rows = [paper.to_json() for paper in all_papers() if paper.names or not built]
    _show(rows, ("slug", "built", "home", "names", "title"), as_json)
