"""``cnnkit export TASK [--ckpt FILE] -o model.onnx``."""

from __future__ import annotations

from pathlib import Path

import click

from cnnkit.cli.common import PATH, config_options
from cnnkit.cli.lazy import TaskGroup
from cnnkit.plugin import Plugin


def _make(plugin: Plugin) -> click.Command:
    params = [
        click.Option(["-o", "--output"], type=PATH, required=True, metavar="FILE", help="model.onnx, or model.pt2 for torch.export."),
        click.Option(["--ckpt"], type=PATH, default=None, metavar="FILE", help="Checkpoint; the plugin's own if not given."),
        *config_options(),
    ]

    def callback(output: Path, ckpt: Path | None, config: Path | None, overrides: tuple[str, ...]) -> int:
        from cnnkit.api import find_checkpoint
        from cnnkit.engine.export import check_target, export_network

        check_target(output)
        result = export_network(find_checkpoint(plugin, ckpt), output, plugin=plugin, config=config, overrides=overrides)
        click.echo(f"largest difference from PyTorch  {result.difference:.2e}")
        for file in result.files:
            click.echo(file)
        return 0

    return click.Command(plugin.name, params=params, callback=callback, help="Write the network and, beside it, its preprocessing as JSON.")


export = TaskGroup("export", make=_make, help="Write a network as ONNX or torch.export, with its preprocessing beside it.")
