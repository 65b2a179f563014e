"""Options of ``cnnkit run audio``. No torch, no numpy: this is imported for ``--help``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

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
    writes: ClassVar[str] = "NAME.cnnkit.results.csv, NAME.txt (Audacity labels), NAME.png; of codecs NAME.esc and NAME.decoded.wav"

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

    nonfinite: Literal["refuse", "zero"] = option("refuse", "What to do with NaN and infinite samples.", choices=("refuse", "zero"))
    stream: bool = option(False, "Listen while sound is still made: the input is - for standard input, or mic; Ctrl-C ends it.")
    raw: str = option("", "What comes in by --stream - where it has no header, for example s16le,16000 or s16le,48000,2.", metavar="KIND")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stream and [str(path) for path in self.inputs] not in ([], ["-"], ["mic"]):
            raise UsageError("--stream listens to one input: type - for standard input, or mic")
        if self.raw and not self.stream:
            raise UsageError("--raw tells what comes in by --stream; add it, or leave --raw out")
        if self.levels is not None and self.levels < 1:
            raise UsageError(f"--levels {self.levels} would code nothing; accepted: 1 or more")
        if self.hop is not None and not self.hop > 0:
            raise UsageError(f"--hop {self.hop} is no time; accepted: more than 0 seconds")
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"--threshold {self.threshold} is no confidence; accepted: 0 to 1")
        if self.top < 1:
            raise UsageError(f"--top {self.top} would write nothing; accepted: 1 or more")

    def group(self) -> Mapping[str, tuple[Path, ...] | InputError]:
        """Return the files of each input: one each, or those that ``array`` joins, in the order of their channels; or the stream."""
        if self.stream:
            return {"stream": self.inputs}
        if self.array == "none":
            return super().group()
        found = expand(self.inputs, self.suffixes)
        files = dict.fromkeys(item for item in found if isinstance(item, Path))
        joined: dict[Path, list[Path]] = {}
        for path in sorted(files, key=_order):
            joined.setdefault(self._array_of(path), []).append(path)
        errors = [item for item in found if not isinstance(item, Path)]
        named = name_inputs([*errors, *joined], self.suffixes)
        return {name: item if isinstance(item, InputError) else tuple(joined[item[0]]) for name, item in named.items()}

    def raw_samples(self) -> dict[str, Any]:
        """Return format, rate and channels of what has no header, for :func:`cnnkit_audio.stream.open_stream`."""
        if not self.raw:
            return {}
        kind, *numbers = self.raw.split(",")
        try:
            rate, channels = (*map(int, numbers), 1)[:2]
        except ValueError:
            raise UsageError(f"--raw {self.raw} is not of the form FORMAT,RATE or FORMAT,RATE,CHANNELS; type s16le,16000") from None
        return {"format": kind, "rate": rate, "channels": channels}

    def _array_of(self, path: Path) -> Path:
        """Return what stands for the recording that a file is part of: a path whose last part names it."""
        if self.array == "folder":
            return path.parent.absolute()
        match = CHANNEL.fullmatch(path.stem)
        return path.with_name(match[self.array]) if match else path


def _order(path: Path) -> tuple[str, str, int]:
    match = CHANNEL.fullmatch(path.stem)
    return (str(path.parent), match["device"], int(match["channel"])) if match else (str(path.parent), path.stem, 0)
