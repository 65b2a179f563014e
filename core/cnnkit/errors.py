"""The errors that a user is meant to read: what was wrong, what is accepted, what to type.

Standard library only, so that the command line can raise and print them before any heavy import.
"""

from __future__ import annotations

from collections.abc import Iterable


class CnnkitError(Exception):
    """Base of every error that cnnkit explains in one message instead of a traceback."""


class UsageError(CnnkitError):
    """The command or call cannot be carried out as it was typed."""


class InputError(CnnkitError):
    """An input file cannot be used. The message names the file and the cause."""


class ConfigError(CnnkitError):
    """A configuration key or value is wrong. The message names the key and its source."""


class CheckpointError(CnnkitError):
    """A checkpoint cannot be read, or does not fit the task or model that it was given to."""


class PluginError(CnnkitError):
    """A plugin is missing, does not load, or speaks another version of the interface."""


class InputWarning(UserWarning):
    """Something about an input that a person should know; ``run`` prints it and keeps it in the report."""


class RegistryError(CnnkitError, KeyError):
    """A name is not registered, or registered twice."""

    def __str__(self) -> str:  # KeyError would show the repr of the message.
        return str(self.args[0]) if self.args else ""


def nearest(word: str, known: Iterable[str], *, limit: int = 3) -> list[str]:
    """Return the known words closest in spelling to ``word``, best first."""
    import difflib  # On use: it adds to the start of every command, and only errors need it.

    return difflib.get_close_matches(word, list(known), n=limit, cutoff=0.5)


def unknown(kind: str, word: str, known: Iterable[str], *, more: str = "") -> str:
    """Compose the message for an unknown name: what was asked for, the nearest, what exists.

    Args:
        kind: What the name stands for, for example ``"model"``.
        word: The name that was asked for.
        known: All accepted names.
        more: A closing sentence, for example which command lists them all.
    """
    known = sorted(known)
    close = nearest(word, known)
    message = f"unknown {kind} {word!r}"
    if close:
        message += "; did you mean " + " or ".join(repr(name) for name in close) + "?"
    elif 0 < len(known) <= 12:
        message += "; known: " + ", ".join(known)
    elif not known:
        message += f"; no {kind} is known here"
    return f"{message} {more}".rstrip() if more else message
