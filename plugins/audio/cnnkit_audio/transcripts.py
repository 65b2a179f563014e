"""Transcripts with speakers and sessions as CHiME-7 lays them out: read, checked and written. No torch at import.

A file is a list of utterances::

    [{"session_id": "S02", "speaker": "P05", "start_time": "11.000", "end_time": "11.370", "words": "so um"}, ...]
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnkit.engine.files import write_json
from cnnkit.errors import InputError, InputWarning

KEYS = "session_id, speaker, start_time, end_time, words"


@dataclass(frozen=True)
class Segment:
    """A stretch of a session in which one speaker says something.

    Args:
        session: Name of the recording.
        speaker: Who; the names of the hypothesis need not be those of the reference.
        start: Seconds.
        end: Seconds.
        words: Transcript.
    """

    session: str
    speaker: str
    start: float
    end: float
    words: str


def read_transcript(file: Path) -> list[Segment]:
    """Return the utterances of a file in its order; without ``session_id`` the file's name is the session.

    An utterance that ends before it starts, of which CHiME-6 has one, is turned round with a warning.

    Raises:
        InputError: If the file cannot be read or an utterance is wrong, naming it.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as json: {error}") from error
    if not isinstance(entries, list):
        raise InputError(f"{file} is not a list of utterances ({KEYS})")
    return [_segment(entry, f"{file} entry {number}", file.stem) for number, entry in enumerate(entries, start=1)]


def write_transcript(file: Path, segments: Iterable[Segment]) -> Path:
    """Write utterances as :func:`read_transcript` reads them, and return the path."""
    return write_json(
        file,
        [
            {
                "session_id": item.session,
                "speaker": item.speaker,
                "start_time": f"{item.start:.3f}",
                "end_time": f"{item.end:.3f}",
                "words": item.words,
            }
            for item in segments
        ],
    )


def _segment(entry: Any, where: str, name: str) -> Segment:
    if not isinstance(entry, dict):
        raise InputError(f"{where}: not an utterance ({KEYS})")
    session, speaker = (_name(entry.get(key, default), f"{where}: {key}") for key, default in (("session_id", name), ("speaker", None)))
    words = entry.get("words")
    if not isinstance(words, str):
        raise InputError(f"{where}: words={words!r} is no text; an utterance needs {KEYS}")
    start, end = (_seconds(entry.get(key), f"{where}: {key}") for key in ("start_time", "end_time"))
    if end < start:
        warnings.warn(f"{where}: ends at {end} s, before it starts at {start} s; both are exchanged", InputWarning, stacklevel=4)
        start, end = end, start
    return Segment(session, speaker, start, end, words)


def _name(value: Any, where: str) -> str:
    """Return a name, which may be a number."""
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise InputError(f"{where}={value!r} is no name; an utterance needs {KEYS}")
    return str(value)


def _seconds(value: Any, where: str) -> float:
    """Return the seconds of ``11.37`` or, as CHiME-6 has it, ``0:00:11.37``."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0 and math.isfinite(value):
        return float(value)
    if not isinstance(value, str) or re.fullmatch(r"(\d+:)?(\d+:)?\d+(\.\d*)?", value) is None:
        raise InputError(f"{where}={value!r} is no time; accepted: seconds or H:MM:SS")
    seconds = 0.0
    for part in value.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds
