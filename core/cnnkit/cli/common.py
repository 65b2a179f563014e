"""What several verbs share. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cnnkit.errors import ConfigError, unknown

PATH = click.Path(path_type=Path)  # type: ignore[type-var]


def config_options() -> list[click.Parameter]:
    """Return ``--config`` and ``--set``."""
    return [
        click.Option(["--config"], type=PATH, default=None, metavar="YAML", help="Configuration file; it may extend another one."),
        click.Option(["--set", "overrides"], multiple=True, metavar="KEY=VALUE", help="Change one value, for example train.epochs=10."),
    ]


def preset_of(task: type[Any], name: str | None) -> Any:
    """Return a task's preset by name.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name is None:
        return None
    presets = getattr(task, "presets", {})
    if name not in presets:
        raise ConfigError(unknown("preset", name, presets))
    return presets[name]
