"""The command line. One file per verb, imported when the verb is used; nothing here imports torch or numpy."""

from __future__ import annotations

import sys
from typing import Any

import click

import cnnkit
from cnnkit.cli.lazy import LazyGroup
from cnnkit.errors import CnnkitError

VERBS = {
    "run": ("cnnkit.cli.run:run", "Run a task on files: cnnkit run TASK INPUT... -o OUT."),
    "train": ("cnnkit.cli.train:train", "Train a task on your own data."),
    "eval": ("cnnkit.cli.evaluate:evaluate", "Measure a checkpoint on data with references."),
    "export": ("cnnkit.cli.export:export", "Write a network as ONNX or torch.export, with its preprocessing beside it."),
    "list": ("cnnkit.cli.list:list_", "List plugins, backbones, models and papers."),
    "info": ("cnnkit.cli.info:info", "Explain a model, a plugin or a checkpoint file."),
    "doctor": ("cnnkit.cli.doctor:doctor", "Check the installation and every plugin."),
    "new": ("cnnkit.cli.new:new", "Write the skeleton of a plugin."),
}


@click.group(cls=LazyGroup, verbs=VERBS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(cnnkit.__version__, prog_name="cnnkit")
def cli() -> None:
    """One core of convolutional building blocks, and the tasks that plug into it."""


def main(args: list[str] | None = None) -> None:
    """Run the command line; errors that cnnkit explains are printed without a traceback, with exit status 2."""
    try:
        result: Any = cli.main(args=args, prog_name="cnnkit", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except CnnkitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(result if isinstance(result, int) else 0)
