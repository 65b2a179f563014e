"""``cnnkit new plugin NAME``: write a small plugin that works, for its author to change. No torch."""

from __future__ import annotations

import importlib.resources
import keyword
import re
import string
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from cnnkit.cli.common import PATH
from cnnkit.errors import UsageError

SUFFIX = ".tmpl"
RESERVED = {"cnnkit", "core", "plugin", "plugins", "models", "test", "tests", "testing"}


@click.group()
def new() -> None:
    """Write the skeleton of a plugin."""


@new.command("plugin")
@click.argument("name")
@click.option("-o", "--output", type=PATH, default=Path("."), show_default=True, help="Folder in which cnnkit-NAME is made.")
def plugin_(name: str, output: Path) -> None:
    """Write a plugin that trains, runs and passes the contract suite, for you to change."""
    folder = write_plugin(name, output)
    click.echo(f"{folder} is a working plugin: it tells the shapes of recorded signals apart. Next:")
    for line in (f"pip install -e {folder}", f"cnnkit train {name} -o runs/{name}", f"pytest {folder}"):
        click.echo(f"  {line}")


def write_plugin(name: str, output: Path) -> Path:
    """Write a plugin into ``output/cnnkit-NAME`` and return that folder.

    Args:
        name: The word on the command line: lower-case letters, digits and underscores.
        output: Where the folder is made.

    Raises:
        UsageError: If the name cannot be used or is taken, or the folder exists or cannot be made.
    """
    check_name(name)
    folder = output / f"cnnkit-{name}"
    if folder.exists():
        raise UsageError(f"{folder} already exists; choose another name, or another place with -o")
    words = {"name": name, "class_name": "".join(part.capitalize() for part in name.split("_")) + "Task"}
    root = importlib.resources.files("cnnkit") / "templates" / "plugin"
    try:
        for parts, template in _files(root):
            target = folder.joinpath(*(f"cnnkit_{name}" if part == "package" else part for part in parts))
            target.parent.mkdir(parents=True, exist_ok=True)
            text = string.Template(template.read_text(encoding="utf-8")).substitute(words)
            target.with_name(target.name.removesuffix(SUFFIX)).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror or error}; choose another place with -o") from error
    return folder


def check_name(name: str) -> None:
    """Raise :class:`~cnnkit.errors.UsageError` if a plugin cannot have this name, saying why."""
    from cnnkit.cli import VERBS
    from cnnkit.plugin import KNOWN, discover

    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise UsageError(
            f"plugin name {name!r} cannot be used: it is made of lower-case letters, digits and single underscores, and starts "
            "with a letter; for example: bird_calls"
        )
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise UsageError(f"plugin name {name!r} is a word of Python; choose another")
    if name in VERBS or name in RESERVED:
        raise UsageError(f"plugin name {name!r} is reserved by cnnkit; choose another")
    if name in discover() or name in KNOWN:
        raise UsageError(f"plugin name {name!r} is taken by a plugin that exists; 'cnnkit list plugins' shows them")


def _files(folder: Traversable, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Traversable]]:
    """Yield the template files below a folder, each with its path in parts."""
    for item in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if item.is_dir():
            yield from _files(item, (*above, item.name))
        elif item.name.endswith(SUFFIX):
            yield (*above, item.name), item
