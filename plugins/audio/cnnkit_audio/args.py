"""Options of ``cnnkit run audio``. No torch, no numpy: this is imported for ``--help``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cnnkit.errors import UsageError
from cnnkit.options import RunOptions, option

SOUNDS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".rf64")

BITS = ".esc"
"""Ending of the bit files of codecs."""


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
