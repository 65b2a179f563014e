"""click groups whose commands are imported when they are used, so that ``--help`` stays fast and survives broken plugins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from cnnkit import plugin as plugins
from cnnkit.errors import unknown
from cnnkit.plugin import Broken, Plugin
from cnnkit.registry import resolve


class NearestGroup(click.Group):
    """A group that answers an unknown word with the nearest command."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the nearest."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(unknown("command", args[0], self.list_commands(ctx)), ctx)
        return super().resolve_command(ctx, args)


class LazyGroup(NearestGroup):
    """The top-level group: verbs by target string, and plugins that bring commands of their own.

    Args:
        verbs: ``name -> ("module:attribute", one-line help)``.
    """

    def __init__(self, *args: Any, verbs: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in their declared order."""
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a verb, or the group of a plugin's own commands."""
        if cmd_name in self.verbs:
            return resolve(self.verbs[cmd_name][0])
        if cmd_name not in {*plugins.discover(), *plugins.KNOWN}:
            return None
        found = plugins.get(cmd_name)  # Raises for one that is broken or not installed, saying what to type.
        if not found.commands:
            raise click.UsageError(f"{cmd_name!r} is a task and has no commands of its own; type: cnnkit run {cmd_name} ...", ctx)
        return PluginCommands(found)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them, and the plugins that bring commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.verbs.items()])
        own = [found for found in plugins.discover().values() if isinstance(found, Plugin) and found.commands]
        if own:
            with formatter.section("Commands of plugins"):
                formatter.write_dl([(found.name, ", ".join(found.commands)) for found in own])


class PluginCommands(NearestGroup):
    """The commands that a plugin brings itself: ``cnnkit medseg score``."""

    def __init__(self, plugin: Plugin) -> None:
        super().__init__(plugin.name, help=plugin.summary)
        self.plugin = plugin

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the plugin's commands."""
        return sorted(self.plugin.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one of the plugin's commands."""
        return self.plugin.load_command(cmd_name) if cmd_name in self.plugin.commands else None


class TaskGroup(click.Group):
    """A verb that takes a task: one subcommand per plugin, made when it is asked for.

    A plugin that is broken or not installed is a subcommand that says so, because the verb must live on.

    Args:
        make: Builds the command of a usable plugin.
    """

    def __init__(self, *args: Any, make: Callable[[Plugin], click.Command], **kwargs: Any) -> None:
        kwargs.setdefault("subcommand_metavar", "TASK [ARGS]...")
        super().__init__(*args, **kwargs)
        self.make = make

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the installed plugins."""
        return list(plugins.discover())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the plugin's command; for one that cannot be used, the error that explains it."""
        return self.make(plugins.get(cmd_name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the tasks by their manifests alone."""
        found = plugins.discover()
        rows = [(name, _summary(item)) for name, item in found.items()]
        with formatter.section("Tasks"):
            formatter.write_dl(rows or [("(none)", "no plugin is installed; for example: pip install cnnkit cnnkit-medseg")])


def _summary(item: Plugin | Broken) -> str:
    return item.summary if isinstance(item, Plugin) else f"cannot be used: {item.reason}"
