"""From the confidences of windows to what is heard when, and the tables that people open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cnnkit.engine.files import write_rows, write_text

COLUMNS = ("Start (s)", "End (s)", "Label", "Confidence", "File")


@dataclass(frozen=True)
class Event:
    """A label that is heard for a while.

    Args:
        start: Seconds from the start of the recording.
        end: Seconds.
        label: Its name.
        confidence: The highest of its windows.
    """

    start: float
    end: float
    label: str
    confidence: float


def find_events(
    starts: np.ndarray, ends: np.ndarray, scores: np.ndarray, labels: Sequence[str], *, threshold: float, top: int, merge: bool
) -> list[Event]:
    """Return what is heard, by start and then by falling confidence.

    Args:
        starts: Seconds at which each window starts, ``(N,)``, rising.
        ends: Seconds at which each ends, ``(N,)``.
        scores: Confidences, ``(N, C)``.
        labels: The ``C`` names.
        threshold: Least confidence.
        top: Labels of a window at most.
        merge: Join windows in a row that hold the same label.
    """
    shown = np.zeros(scores.shape, bool)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    np.put_along_axis(shown, best, np.take_along_axis(scores, best, axis=1) >= threshold, axis=1)
    events = []
    for column, label in enumerate(labels):
        rows = np.flatnonzero(shown[:, column])
        breaks = np.flatnonzero(np.diff(rows) > 1) + 1 if merge else np.arange(1, rows.size)
        for run in np.split(rows, breaks) if rows.size else ():
            span = float(starts[run[0]]), float(ends[run].max())
            events.append(Event(*span, label, float(scores[run, column].max())))
    return sorted(events, key=lambda event: (event.start, -event.confidence, event.label))


def write_csv(path: Path, events: Sequence[Event], file: Path) -> Path:
    """Write the table of events: :data:`COLUMNS`, times in seconds."""
    rows = ((f"{e.start:.3f}", f"{e.end:.3f}", e.label, f"{e.confidence:.4f}", str(file)) for e in events)
    return write_rows(path, [COLUMNS, *rows])


def write_audacity(path: Path, events: Sequence[Event]) -> Path:
    """Write a label track as Audacity imports it: start, end and text with tabs between, without a header."""
    lines = (f"{e.start:.6f}\t{e.end:.6f}\t{' '.join(e.label.split())} {e.confidence:.2f}\n" for e in events)
    return write_text(path, "".join(lines))
