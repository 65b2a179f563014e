"""Sound files that are written: whole or block by block, in the format of the name's ending, and not there until they are complete."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from cnnkit.engine.files import atomic_path
from cnnkit.errors import InputError, InputWarning, UsageError, unknown

FORMATS = {
    ".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".oga": "OGG", ".opus": "OGG", ".mp3": "MP3", ".aif": "AIFF", ".aiff": "AIFF",
    ".aifc": "AIFF", ".au": "AU", ".caf": "CAF", ".w64": "W64", ".rf64": "RF64",
}  # fmt: skip
"""Format by the ending of a file's name."""

_USUAL = {"OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}
_LONGER = {"PCM_32": "PCM_24", "FLOAT": "PCM_24", "DOUBLE": "PCM_24", "PCM_U8": "PCM_S8", "PCM_S8": "PCM_U8"}
"""What comes nearest where a format lacks a kind of samples."""
_LARGEST_WAV = 2**32 - 2**16
"""Bytes of samples that a WAV may have: its sizes are 32 bits."""
_BYTES = {"PCM_U8": 1, "PCM_S8": 1, "ULAW": 1, "ALAW": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
_AT_ONCE = 2**15
"""Frames that go to libsndfile at once: its Vorbis encoder overflows the stack for long ones."""


class SoundWriter:
    """Write a sound block by block, as a context manager.

    The file takes its name when the block ends well, and is not there if it ends by an error.

    Args:
        path: Where to; its ending names the format.
        rate: Samples per second.
        channels: Number of channels.
        subtype: Kind of samples by libsndfile's name (``"PCM_16"``, ``"PCM_24"``, ``"FLOAT"``, ``"VORBIS"`` ...); by default 16 bits, or
            what the format compresses to.
        frames: Length of the sound, if it is known: a WAV that would become too long for its 32-bit sizes is written as RF64.

    Raises:
        UsageError: If the format is not known or cannot hold such samples.

    Example:
        with SoundWriter(path, 48000, 2) as out:
            for block in blocks:  # (2, n) in [-1, 1]
                out.write(block)
    """

    def __init__(self, path: Path | str, rate: int, channels: int, subtype: str | None = None, *, frames: int | None = None) -> None:
        self.path, self.rate, self.channels = Path(path), rate, channels
        self.format = file_format(self.path)
        self.subtype = subtype or default_subtype(self.path)
        self.clipped = self.written = 0
        """Samples beyond full scale so far, and frames written so far."""
        _check(self.path, self.format, self.subtype, rate, channels)
        if self.format == "WAV" and frames is not None and frames * self._frame_bytes > _LARGEST_WAV:
            self.format = "RF64"
        self._open = ExitStack()
        self._file: Any = None

    def __enter__(self) -> SoundWriter:
        import soundfile

        part = self._open.enter_context(atomic_path(self.path))
        try:
            self._file = self._open.enter_context(
                soundfile.SoundFile(part, "w", self.rate, self.channels, self.subtype, format=self.format)
            )
        except BaseException as error:
            self._open.__exit__(type(error), error, error.__traceback__)
            if isinstance(error, soundfile.LibsndfileError):
                raise UsageError(_refusal(self.path, self.format, self.subtype, self.rate, self.channels)) from error
            raise
        return self

    def write(self, block: np.ndarray) -> None:
        """Write the next samples, ``(C, n)`` in [-1, 1].

        Raises:
            InputError: If a sample is not finite.
            UsageError: If the disk is full, or a WAV of unknown length becomes too long.
        """
        if block.ndim != 2 or len(block) != self.channels:
            raise ValueError(f"a block is (channels, n) with {self.channels} channels; got {tuple(block.shape)}")
        for first in range(0, block.shape[1], _AT_ONCE):
            self._write(np.ascontiguousarray(block[:, first : first + _AT_ONCE].T))

    def _write(self, frames: np.ndarray) -> None:
        import soundfile

        peak = float(np.abs(frames).max())
        if not np.isfinite(peak):
            raise InputError(f"{self.path.name}: the result has NaN or infinite samples near {self.written / self.rate:.2f} s; not written")
        if peak > 1 and self.subtype not in ("FLOAT", "DOUBLE"):
            self.clipped += int(np.count_nonzero(np.abs(frames) > 1))
            frames = np.clip(frames, -1, 1)
        self.written += len(frames)
        if self.format == "WAV" and self.written * self._frame_bytes > _LARGEST_WAV:
            raise UsageError(f"{self.path.name}: a WAV holds no more than 4 GiB; write {self.path.stem}.flac or {self.path.stem}.w64")
        try:
            self._file.write(frames)
        except (soundfile.LibsndfileError, OSError) as error:
            raise UsageError(f"{self.path} cannot be written ({error}); is the disk full?") from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.__exit__(kind, error, trace)
        if error is None and self.clipped:
            share = 100 * self.clipped / (self.written * self.channels)
            text = f"{self.path.name}: {self.clipped} samples ({share:.2g} %) were beyond full scale and are clipped"
            warnings.warn(text, InputWarning, stacklevel=2)

    @property
    def _frame_bytes(self) -> int:
        return self.channels * _BYTES.get(self.subtype, 1)


def write_sound(path: Path, signal: np.ndarray, rate: int, *, subtype: str | None = None) -> Path:
    """Write ``(C, T)`` in [-1, 1] as a sound file of the suffix's format, atomically.

    Args:
        path: Where to.
        signal: The samples.
        rate: Samples per second.
        subtype: Kind of samples; by default as for :class:`SoundWriter`. To keep that of a file that was read, give
            ``fitting_subtype(path, sound.header.subtype)``.
    """
    with SoundWriter(path, rate, len(signal), subtype, frames=signal.shape[1]) as out:
        out.write(signal)
    return path


def file_format(path: Path) -> str:
    """Return libsndfile's name of the format that a file's ending stands for.

    Raises:
        UsageError: If it stands for none.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(unknown("kind of sound file", path.suffix or path.name, FORMATS))
    return FORMATS[path.suffix.lower()]


def default_subtype(path: Path) -> str:
    """Return the usual kind of samples of a file of that ending: 16 bits, or what the format compresses to."""
    return "OPUS" if path.suffix.lower() == ".opus" else _USUAL.get(file_format(path), "PCM_16")


def fitting_subtype(path: Path, subtype: str) -> str:
    """Return ``subtype`` if a file of that ending can hold it, else what comes nearest."""
    import soundfile

    name = file_format(path)
    if path.suffix.lower() == ".opus":
        return "OPUS"
    for kind in (subtype, _LONGER.get(subtype, subtype)):
        plain = kind in _BYTES or kind.startswith("ALAC")
        if (plain or name in _USUAL) and soundfile.check_format(name, kind):
            return kind
    return default_subtype(path)


def _check(path: Path, name: str, subtype: str, rate: int, channels: int) -> None:
    import soundfile

    if rate != int(rate) or rate < 1 or channels < 1:
        raise ValueError(f"rate={rate}, channels={channels}: accepted are positive whole numbers")
    if subtype not in soundfile.available_subtypes(name):
        raise UsageError(f"{path.name}: {unknown(f'kind of samples of {name}', subtype, soundfile.available_subtypes(name))}")


def _refusal(path: Path, name: str, subtype: str, rate: int, channels: int) -> str:
    limits = {
        "MP3": "at most 2 channels at 8, 11.025, 12, 16, 22.05, 24, 32, 44.1 or 48 kHz",
        "FLAC": "at most 8 channels at up to 655350 Hz",
        "OPUS": "8, 12, 16, 24 or 48 kHz",
    }
    hint = limits.get(subtype, limits.get(name, "fewer channels, or another rate"))
    return f"{path.name}: {name} cannot hold {channels} channels at {rate} Hz as {subtype}; accepted: {hint}; or write {path.stem}.wav"
