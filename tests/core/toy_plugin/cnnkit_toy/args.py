"""Options of ``cnnkit run toy``."""

from __future__ import annotations

from dataclasses import dataclass

import click
from cnnkit.options import RunOptions, option


@dataclass(frozen=True)
class Run(RunOptions):
    """Multiply numbers.

    Not shown in the help.
    """

    suffixes = (".txt",)
    writes = "NAME.out"

    shift: float = option(0.0, "Added to every number.")
    sign: str = option("plus", "Which sign the results have.", choices=("plus", "minus"))
    digits: int | None = option(None, "Digits after the point.")
    loud: bool | None = option(None, "Write in capital letters.")
    delay: float = option(0.0, "Seconds to wait in the middle of writing.")


@click.command()
@click.argument("name")
def hello(name: str) -> None:
    """Greet somebody."""
    click.echo(f"hello {name}")
