"""``cnnkit eval TASK [--ckpt FILE] -o FOLDER``."""

from __future__ import annotations

from pathlib import Path

import click

from cnnkit.cli.common import PATH, config_options
from cnnkit.cli.lazy import TaskGroup
from cnnkit.plugin import Plugin


def _make(plugin: Plugin) -> click.Command:
    params = [
        click.Option(["-o", "--output"], type=PATH, required=True, help="Folder for metrics.json and the task's own reports."),
        click.Option(["--ckpt"], type=PATH, default=None, metavar="FILE", help="Checkpoint; the plugin's own if not given."),
        *config_options(),
        click.Option(["--split"], type=click.Choice(("val", "test", "train", "example")), default="test", show_default=True),
        click.Option(["--device"], default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print the figures to standard output as JSON."),
        click.Option(["-q", "--quiet"], is_flag=True, help="Show no progress."),
    ]

    def callback(
        output: Path,
        ckpt: Path | None,
        config: Path | None,
        overrides: tuple[str, ...],
        split: str,
        device: str,
        as_json: bool,
        quiet: bool,
    ) -> int:
        import json

        from cnnkit.api import find_checkpoint
        from cnnkit.checkpoint import digest
        from cnnkit.engine.evaluate import evaluate as measure
        from cnnkit.engine.evaluate import write_evaluation
        from cnnkit.engine.files import writable_folder
        from cnnkit.engine.load import load

        checkpoint = find_checkpoint(plugin, ckpt)
        writable_folder(output)
        loaded = load(checkpoint, plugin=plugin, config=config, overrides=overrides)
        metrics, metric = measure(loaded.task, loaded.model, split=split, device=device, progress=not quiet)
        about = {"task": plugin.name, "checkpoint": str(checkpoint), "sha256": digest(checkpoint), "split": split}
        files = write_evaluation(output, metrics, metric, about=about)
        if as_json:
            click.echo(json.dumps(metrics, indent=2))
        else:
            width = max(map(len, metrics), default=0)
            for name, value in metrics.items():
                click.echo(f"{name:<{width}}  {value:.4f}")
            for file in files:
                click.echo(file)
        return 0

    return click.Command(plugin.name, params=params, callback=callback, help="Measure a checkpoint on data with references.")


evaluate = TaskGroup("eval", make=_make, help="Measure a checkpoint on data with references.")
