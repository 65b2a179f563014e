"""AudioSet, and data sets that are described as it is: tables of segments, or lists of files and labels in json."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cnnkit.errors import ConfigError, InputError, InputWarning

from cnnkit_audio.args import SOUNDS
from cnnkit_audio.datasets.clips import Clip, Files, ordered, read_rows, whole_number

AUDIOSET = (
    "AudioSet: class_labels_indices.csv (index, mid, display_name), and NAME.csv (YTID, start_seconds, end_seconds, positive_labels) with "
    'YYTID.wav or YTID.wav in audios/NAME, NAME, audio or audios; or NAME.json {"data": [{"wav": FILE, "labels": "MID,MID"}]}'
)
TRAIN, TEST = "balanced_train_segments.csv", "eval_segments.csv"


def audioset(folder: Path, lists: str, *, split: str = "") -> list[Clip]:
    """Return the clips that a table of segments or a json file names; labels by their display names.

    Files of a table of segments are the segments themselves, cut out of the videos, as everybody keeps them. Videos vanish, so
    segments without a file are left out, and how many is an :class:`~cnnkit.errors.InputWarning`. A json file is made for the files
    that are there, so one that is missing is an error.

    Args:
        folder: Root of the data set, with ``class_labels_indices.csv``.
        lists: The table or json file, relative to ``folder``.
        split: What the clips are for.

    Raises:
        ConfigError: If there is no such data set.
        InputError: If a row is wrong, or no segment has a file.
    """
    files = Files(folder, expected=AUDIOSET)
    names = _names(folder)
    table = files.inside(lists, "list")
    entries = _json(table, files) if table.suffix.lower() == ".json" else _segments(table, files)
    clips = []
    for where, path, mids in entries:
        if unknown := [mid for mid in mids if mid not in names]:
            raise InputError(f"{where}: label {unknown[0]!r} is not in class_labels_indices.csv")
        clips.append(Clip(path, tuple(names[mid] for mid in mids), split=split))
    files.check()
    return clips


def audioset_labels(folder: Path) -> tuple[str, ...]:
    """Return the display names in the order of ``class_labels_indices.csv``."""
    return tuple(_names(folder).values())


def _names(folder: Path) -> dict[str, str]:
    table = folder / "class_labels_indices.csv"
    rows = list(read_rows(table, ("index", "mid", "display_name"), expected=AUDIOSET))
    order = ordered({row["mid"]: whole_number(row, "index", f"{table} row {line}") for line, row in rows}, table)
    names = {row["mid"]: row["display_name"] for _, row in rows}
    return {mid: names[mid] for mid in order}


def _segments(table: Path, files: Files) -> Iterator[tuple[str, Path, list[str]]]:
    rows = list(read_rows(table, ("YTID", "start_seconds", "end_seconds", "positive_labels"), expected=AUDIOSET, header=False))
    folders = [files.root / place for place in (f"audios/{table.stem}", f"audio/{table.stem}", table.stem, "audio", "audios")]
    found = {Path(name).stem: folder / name for folder in reversed(folders) for name in sorted(files.names(folder)) if _is_sound(name)}
    lost = []
    for line, row in rows:
        video = row["YTID"]
        try:
            start = float(row["start_seconds"])
        except ValueError:
            raise InputError(f"{table} row {line}: start_seconds={row['start_seconds']!r} is not a number") from None
        names = (f"Y{video}", video, f"{video}_{start:.0f}", f"{video}_{1000 * start:.0f}")  # As the known downloaders call them.
        path = next((found[name] for name in names if name in found), None)
        if path is None:
            lost.append(f"row {line}, {video}")
        else:
            yield f"{table} row {line}", path, row["positive_labels"].split(",")
    if len(lost) == len(rows):
        raise InputError(f"{table}: none of its {len(rows)} segments has a file; expected {AUDIOSET}")
    if lost:
        text = f"{table.name}: {len(lost)} of {len(rows)} segments have no file and are left out, the first: {lost[0]}"
        warnings.warn(text, InputWarning, stacklevel=2)


def _is_sound(name: str) -> bool:
    return name.lower().endswith(SOUNDS)


def _json(table: Path, files: Files) -> Iterator[tuple[str, Path, list[str]]]:
    for number, entry in enumerate(_entries(table), start=1):
        where = f"{table} entry {number}"
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("wav", "labels")):
            raise InputError(f'{where}: not {{"wav": FILE, "labels": "MID,MID"}}')
        path = files.require(files.inside(entry["wav"], where), where)
        yield where, path, [mid.strip() for mid in entry["labels"].split(",") if mid.strip()]


def _entries(table: Path) -> list[Any]:
    try:
        data = json.loads(table.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{table} does not exist; expected {AUDIOSET}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{table} cannot be read as json: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("data"), list):
        raise InputError(f'{table} has no list "data"; expected {AUDIOSET}')
    return data["data"]
