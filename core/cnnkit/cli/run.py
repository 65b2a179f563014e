"""``cnnkit run TASK INPUT... -o OUT``."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any

import click

from cnnkit.cli.lazy import TaskGroup
from cnnkit.options import RunOptions, Shard
from cnnkit.plugin import Plugin


def _make(plugin: Plugin) -> click.Command:
    kind = plugin.load_run()
    writes = getattr(kind, "writes", "")
    help_text = "\n\n".join(filter(None, (_first_paragraph(kind), f"Writes {writes}, and report.json." if writes else "")))
    params: list[click.Parameter] = [
        click.Argument(["inputs"], nargs=-1, type=click.Path(path_type=Path), metavar="[INPUT]..."),
        click.Option(
            ["-o", "--output"], type=click.Path(path_type=Path), default=Path("out"), show_default=True, help="Folder for outputs."
        ),
        click.Option(
            ["--ckpt"], type=click.Path(path_type=Path), default=None, metavar="FILE", help="Checkpoint; the plugin's own if not given."
        ),
        click.Option(["--config"], type=click.Path(path_type=Path), default=None, metavar="YAML", help="Configuration for plain weights."),
        click.Option(["--set"], multiple=True, metavar="KEY=VALUE", help="Change a value of the checkpoint's configuration."),
        click.Option(["--example"], is_flag=True, help="Run on the bundled example instead of inputs."),
        click.Option(["--device"], default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps."),
        *(_option(item, kind) for item in own_fields(kind)),
        click.Option(["--resume"], is_flag=True, help="Skip inputs that an earlier run in the same folder has finished."),
        click.Option(["--shard"], default="1/1", metavar="I/N", help="Take part I of N, to share a batch among machines."),
        click.Option(["--json"], is_flag=True, help="Print the report to standard output as JSON."),
        click.Option(["-q", "--quiet"], is_flag=True, help="Show errors only."),
    ]

    def callback(**values: Any) -> int:
        return _run(plugin, kind, values)

    return click.Command(plugin.name, params=params, callback=callback, help=help_text)


def own_fields(kind: type) -> list[dataclasses.Field[Any]]:
    """Return the fields that a task adds to the options that every ``run`` has."""
    common = {item.name for item in dataclasses.fields(RunOptions)}
    return [item for item in dataclasses.fields(kind) if item.name not in common]


def _option(item: dataclasses.Field[Any], kind: type) -> click.Option:
    name = item.name.replace("_", "-")
    wanted = _plain_type(typing.get_type_hints(kind)[item.name])
    choices = item.metadata.get("choices", ())
    common: dict[str, Any] = {"help": item.metadata.get("help", ""), "default": item.default, "show_default": item.default is not None}
    if wanted is bool:
        return click.Option([f"--{name}/--no-{name}", item.name], **common)
    return click.Option(
        [f"--{name}", item.name],
        type=click.Choice(choices) if choices else click.Path(path_type=Path) if wanted is Path else wanted,
        metavar=item.metadata.get("metavar") or None,
        **common,
    )


def _plain_type(hint: Any) -> Any:
    """Return the type behind ``X | None``."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


def _first_paragraph(kind: type) -> str:
    return (kind.__doc__ or "").strip().split("\n\n")[0]


def _run(plugin: Plugin, kind: type, values: dict[str, Any]) -> int:
    import json

    from cnnkit.api import find_checkpoint

    inputs, quiet = values.pop("inputs"), values.pop("quiet")
    as_json, example = values.pop("json"), values.pop("example")
    if example and inputs:
        raise click.UsageError("--example takes no inputs")
    if not example and not inputs:
        raise click.UsageError(f"no input was given; type: cnnkit run {plugin.name} FILE, or cnnkit run {plugin.name} --example")
    shard = Shard.parse(values.pop("shard"))
    checkpoint = values.pop("ckpt")
    settings = {"config": values.pop("config"), "overrides": values.pop("set"), "resume": values.pop("resume")}
    request = kind(inputs=inputs, **values)
    settings["checkpoint"] = find_checkpoint(plugin, checkpoint, request)

    from cnnkit.engine.run import run_batch, summary_lines

    report = run_batch(plugin, request, example=example, shard=shard, progress=not quiet, **settings)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    elif not quiet:
        for item in report.items:
            for line in summary_lines(item.summary, indent=""):
                click.echo(line)
            for path in item.outputs:
                click.echo(path)
        if report.path is not None:
            click.echo(report.path)
    return 1 if report.failed or report.path is None else 0


run = TaskGroup("run", make=_make, help="Run a task on files and folders.")
