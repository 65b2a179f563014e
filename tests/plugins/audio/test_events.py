"""From confidences to tables: what is joined, what is left out, and the formats that other programs read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cnnkit_audio.tagging.events import Event, find_events, write_audacity, write_csv

STARTS = np.arange(0.0, 3.0, 0.5)
ENDS = STARTS + 1
SCORES = np.array([[0.9, 0.1], [0.8, 0.3], [0.1, 0.6], [0.7, 0.2], [0.1, 0.2], [0.2, 0.95]])
LABELS = ("dog", "cat")


def test_neighbours_are_joined() -> None:
    """Windows in a row give one event from the start of the first to the end of the last, as sure as the surest."""
    events = find_events(STARTS, ENDS, SCORES, LABELS, threshold=0.25, top=2, merge=True)
    assert events == [
        Event(0.0, 1.5, "dog", 0.9),
        Event(0.5, 2.0, "cat", 0.6),
        Event(1.5, 2.5, "dog", 0.7),
        Event(2.5, 3.5, "cat", 0.95),
    ]


def test_each_window_by_itself_and_only_its_best() -> None:
    """Without merging and with one label for a window."""
    events = find_events(STARTS, ENDS, SCORES, LABELS, threshold=0.25, top=1, merge=False)
    assert [(event.start, event.label) for event in events] == [(0.0, "dog"), (0.5, "dog"), (1.0, "cat"), (1.5, "dog"), (2.5, "cat")]
    assert find_events(STARTS, ENDS, SCORES, LABELS, threshold=0.99, top=2, merge=True) == []


def test_tables(tmp_path: Path) -> None:
    """The columns that users of BirdNET know, and Audacity's label track; an empty answer keeps its header."""
    events = [Event(0.0, 1.5, "a, b", 0.9), Event(2.0, 3.0, "c\td", 0.25)]
    text = write_csv(tmp_path / "a.csv", events, Path("dir/sound.wav")).read_text(encoding="utf-8")
    assert text.splitlines() == [
        "Start (s),End (s),Label,Confidence,File",
        '0.000,1.500,"a, b",0.9000,dir/sound.wav',
        "2.000,3.000,c\td,0.2500,dir/sound.wav",
    ]
    track = write_audacity(tmp_path / "a.txt", events).read_text(encoding="utf-8").splitlines()
    assert track == ["0.000000\t1.500000\ta, b 0.90", "2.000000\t3.000000\tc d 0.25"]
    assert write_csv(tmp_path / "b.csv", [], Path("x.wav")).read_text(encoding="utf-8").count("\n") == 1
