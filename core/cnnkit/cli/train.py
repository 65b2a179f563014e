"""``cnnkit train TASK --config FILE -o FOLDER``."""

from __future__ import annotations

from pathlib import Path

import click

from cnnkit.cli.common import PATH, config_options, preset_of
from cnnkit.cli.lazy import TaskGroup
from cnnkit.plugin import Plugin


def _make(plugin: Plugin) -> click.Command:
    params = [
        click.Option(["-o", "--output"], type=PATH, required=True, help="Folder for checkpoints, logs and curves."),
        *config_options(),
        click.Option(["--preset"], default=None, help="A named configuration of the task, under the file."),
        click.Option(["--init"], type=PATH, default=None, metavar="FILE", help="Weights to start from."),
        click.Option(["--resume"], is_flag=True, help="Go on with the training in the output folder."),
        click.Option(["-q", "--quiet"], is_flag=True, help="Show no progress."),
    ]

    def callback(
        output: Path, config: Path | None, overrides: tuple[str, ...], preset: str | None, init: Path | None, resume: bool, quiet: bool
    ) -> int:
        from cnnkit.config import build
        from cnnkit.engine.fit import fit, global_rank

        stored = output / "config.yaml"
        if resume and config is None and preset is None and stored.is_file():
            config = stored
        kind = plugin.load_task()
        task = kind(build(kind.Config, preset=preset_of(kind, preset), file=config, overrides=overrides))
        result = fit(task, output=output, plugin=plugin, resume=resume, init=init, progress=not quiet)
        if global_rank() == 0:
            for name, value in result.metrics.items():
                click.echo(f"{name}  {value:.4f}")
            click.echo(result.best)
        return 0

    return click.Command(plugin.name, params=params, callback=callback, help=f"Train: {plugin.summary}")


train = TaskGroup("train", make=_make, help="Train a task on your own data.")
