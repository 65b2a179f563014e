"""Options of ``cnnkit run audio``. No torch, no numpy: this is imported for ``--help``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cnnkit.errors import InputError, UsageError
from cnnkit.options import RunOptions, expand, name_inputs, option

SOUNDS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".rf64")

BITS = ".esc"
"""Ending of the bit files of codecs."""

ARRAYS = ("none", "device", "session", "folder")
CHANNEL = re.compile(r"(?P<device>(?P<session>.+?)(?:_U\d+)?)[._]CH(?P<channel>\d+)", re.IGNORECASE)
"""Stem of a file with one microphone of an array, after CHiME: ``S01_U02.CH3``, ``SESSION_CH05``."""


@dataclass(frozen=True)
class Run(RunOptions):
    """Listen to recordings: WAV, FLAC, Ogg, MP3 and others, or a folder of these."""

    suffixes: ClassVar[tuple[str, ...]] = (*SOUNDS, BITS)
    writes: ClassVar[str] = "NAME.cnnkit.results.csv, NAME.txt (Audacity labels), NAME.png"

    hop: float | None = option(None, "Seconds between the starts of two windows; half a window by default.", metavar="SECONDS")
    threshold: float = option(0.25, "Least confidence of a label that is written.", metavar="0..1")
    top: int = option(3, "Labels that are written for one window at most.", metavar="N")
    merge: bool = option(True, "Join neighbouring windows with the same label into one row.")
    picture: bool = option(True, "Draw the spectrogram with the labels over time.")
    embeddings: bool = option(False, "Write NAME.npz with the vector of each window.")
    knobs: str = option("", "Settings of a modelled device, with networks of effects.", metavar="NAME=VALUE,...")
    levels: int | None = option(None, "Levels of the code, which set its rate, for networks that code speech; all by default.", metavar="N")

    array: str = option(
        "none",
        "Which files are microphones of one recording, with networks that recognise speech: those of a device (S01_U02.CH1.wav, "
        "S01_U02.CH2.wav ...), of a session (S01_U01.CH1.wav ... S01_U06.CH4.wav), or all of a folder.",
        choices=ARRAYS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels is not None and self.levels < 1:
            raise UsageError(f"--levels {self.levels} would code nothing; accepted: 1 or more")
        if self.hop is not None and not self.hop > 0:
            raise UsageError(f"--hop {self.hop} is no time; accepted: more than 0 seconds")
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"--threshold {self.threshold} is no confidence; accepted: 0 to 1")
        if self.top < 1:
            raise UsageError(f"--top {self.top} would write nothing; accepted: 1 or more")

    def group(self) -> Mapping[str, tuple[Path, ...] | InputError]:
        """Return the files of each input: one each, or those that ``array`` joins, in the order of their channels."""
        if self.array == "none":
            return super().group()
        found = expand(self.inputs, self.suffixes)
        files = dict.fromkeys(item for item in found if isinstance(item, Path))
        joined: dict[Path, list[Path]] = {}
        for path in sorted(files, key=_order):
            joined.setdefault(self._array_of(path), []).append(path)
        grouped = name_inputs([item for item in found if not isinstance(item, Path)], self.suffixes)
        names = name_inputs(list(joined))
        return {**grouped, **{name: tuple(joined[paths[0]]) for name, paths in names.items() if isinstance(paths, tuple)}}

    def _array_of(self, path: Path) -> Path:
        """Return what stands for the recording that a file is part of: a path whose last part names it."""
        if self.array == "folder":
            return path.parent.absolute()
        match = CHANNEL.fullmatch(path.stem)
        return path.with_name(match[self.array]) if match else path


def _order(path: Path) -> tuple[str, str, int]:
    match = CHANNEL.fullmatch(path.stem)
    return (str(path.parent), match["device"], int(match["channel"])) if match else (str(path.parent), path.stem, 0)
