"""Recordings of a data set, whatever its layout: one item for all, and how tables and folders are read without trusting them."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cnnkit.errors import ConfigError, InputError

from cnnkit_audio.args import SOUNDS


@dataclass(frozen=True)
class Clip:
    """A recording, or a part of one, and what is known of it.

    Args:
        path: The file.
        labels: What is heard; several where the data set names several.
        fold: Fold of a data set that is divided into folds, from 1.
        split: ``"train"``, ``"val"`` or ``"test"`` of a data set that is divided by lists.
        start: Second from which the file is meant.
        end: Second up to which it is meant; its end if absent.
        channels: Files of one microphone each that were recorded together, ``path`` among them; empty if ``path`` is all there is.
        speaker: Who speaks.
        text: What is said.
        session: Recording session.
        scenario: Part of a collection of data sets that it belongs to.
    """

    path: Path
    labels: tuple[str, ...] = ()
    fold: int | None = None
    split: str = ""
    start: float = 0.0
    end: float | None = None
    channels: tuple[Path, ...] = ()
    speaker: str = ""
    text: str = ""
    session: str = ""
    scenario: str = ""


@dataclass(frozen=True)
class Clips:
    """A data set divided for an experiment.

    Args:
        train: Clips to train on.
        val: Clips to watch the training with. Where a data set has folds alone, these are those of ``test``: choosing the best epoch on
            them would flatter the result, so take the last one.
        test: Clips to measure on.
        labels: All labels, in the order of the data set where it has one.
        multilabel: Whether a clip may have several.
    """

    train: tuple[Clip, ...]
    val: tuple[Clip, ...]
    test: tuple[Clip, ...]
    labels: tuple[str, ...]
    multilabel: bool = False


def read_rows(table: Path, columns: Sequence[str], *, expected: str, header: bool = True) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a csv file with their line numbers.

    Args:
        table: The file.
        columns: Columns that are needed; with ``header=False`` the names of the columns in order.
        expected: The layout, for messages.
        header: Whether the first row names the columns. Lines that begin with ``#`` are skipped otherwise.

    Raises:
        ConfigError: If the file is not there.
        InputError: If it is no such table, naming the row.
    """
    try:
        with open(table, encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, skipinitialspace=True)
            names = next(reader, []) if header else list(columns)
            if lacking := [name for name in columns if name not in names]:
                raise InputError(f"{table} lacks the columns {', '.join(lacking)}; expected {expected}")
            for values in reader:
                if not values or (not header and values[0].startswith("#")):
                    continue
                if len(values) < len(names):
                    raise InputError(f"{table} row {reader.line_num}: {len(values)} values for {len(names)} columns")
                yield reader.line_num, dict(zip(names, values, strict=False))
    except FileNotFoundError:
        raise ConfigError(f"{table} does not exist; expected {expected}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table} cannot be read as a table: {error}") from error


class Files:
    """Files that a table names, checked: that they lie in the data set's folder, and that they are there.

    Folders are listed once, which for a million files is a thousand times faster than to ask for each.

    Args:
        root: The data set's folder.
        expected: Its layout, for messages.
    """

    def __init__(self, root: Path, *, expected: str) -> None:
        self.root, self.expected = root, expected
        self._listed: dict[Path, frozenset[str]] = {}
        self._missing: list[str] = []

    def inside(self, name: str, where: str, *, folder: str = "") -> Path:
        """Return the path of a file that a row names, relative to ``folder`` of the data set.

        Raises:
            InputError: If it leads out of the data set's folder.
        """
        base = self.root / folder
        path = Path(os.path.normpath(base / PurePosixPath(name)))
        # By name, not resolved: parts of a data set are often links to another disk.
        if not name.strip() or "\0" in name or not path.is_relative_to(Path(os.path.normpath(base))):
            raise InputError(f"{where}: {name!r} leads out of {base}; accepted are files in it")
        return path

    def require(self, path: Path, where: str) -> Path:
        """Return the path, and note it if there is no such file; :meth:`check` raises then."""
        if path.name not in self.names(path.parent):
            self._missing.append(f"{where}: {_shown(path, self.root)} does not exist")
        return path

    def names(self, folder: Path) -> frozenset[str]:
        """Return the names of what is in a folder; none if it is not there."""
        if folder not in self._listed:
            try:
                self._listed[folder] = frozenset(os.listdir(folder))
            except (FileNotFoundError, NotADirectoryError):
                self._listed[folder] = frozenset()
            except OSError as error:
                raise InputError(f"{folder} cannot be listed: {error.strerror}") from error
        return self._listed[folder]

    def check(self) -> None:
        """Raise an :class:`~cnnkit.errors.InputError` if a required file was missing, naming the first with its row."""
        if self._missing:
            more = f" (and {len(self._missing) - 1} more files are missing)" if len(self._missing) > 1 else ""
            raise InputError(f"{self._missing[0]}{more}; expected {self.expected}")


def sounds_in(folder: Path) -> list[Path]:
    """Return the sound files in a folder by name, hidden ones aside; none if it is not there."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SOUNDS and not path.name.startswith("."))


def folders_in(folder: Path, *, expected: str) -> list[Path]:
    """Return the folders in a folder by name, without hidden ones and those whose name begins with ``_``.

    Raises:
        ConfigError: If the folder is not there.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; expected {expected}")
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._")


def whole_number(row: dict[str, str], column: str, where: str, *, least: int = 0) -> int:
    """Return a row's whole number.

    Raises:
        InputError: If it is none, or less than ``least``.
    """
    try:
        number = int(row[column])
    except ValueError:
        number = least - 1
    if number < least:
        raise InputError(f"{where}: {column}={row[column]!r} is not a whole number from {least}")
    return number


def ordered(numbers: dict[str, int], where: Path) -> tuple[str, ...]:
    """Return labels in the order of their numbers.

    Raises:
        InputError: If two have the same.
    """
    if len(set(numbers.values())) < len(numbers):
        raise InputError(f"{where}: two classes have the same number")
    return tuple(sorted(numbers, key=numbers.__getitem__))


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
