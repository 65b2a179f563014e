"""What a sound file holds, and its samples from front to end: libsndfile, and this package's own reader where that cannot."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cnnkit.errors import InputError

from cnnkit_audio.containers import Container, read_header, read_samples
from cnnkit_audio.mpeg import Untold, count

try:
    import soundfile
except OSError:  # The Python package is there, and the C library is not: WAV and AU can be read all the same.
    soundfile = None

HIGHEST_RATE = 10_000_000
SALVAGE = 4096
"""Frames that are read at once where a file is damaged; about what FLAC packs into one."""
MPEG_DELAY = 2304
"""Samples that an MP3 decoder swallows at the beginning at most."""
UNKNOWN = 2**62
"""Frames from which libsndfile means that it does not know."""

_ACCEPTED = "accepted: WAV, FLAC, Ogg (Vorbis, Opus), MP3, AIFF, AU, CAF, W64, RF64 and what else libsndfile reads"
_FOREIGN = {
    b"ftyp": (4, "MPEG-4 (m4a, mp4)"),
    b"\x30\x26\xb2\x75": (0, "Windows Media"),
    b"\x1a\x45\xdf\xa3": (0, "Matroska or WebM"),
    b"#!AMR": (0, "AMR"),
    b"DSD ": (0, "DSD"),
    b"MAC ": (0, "Monkey's Audio"),
    b"wvpk": (0, "WavPack"),
}


@dataclass(frozen=True)
class Header:
    """What the beginning of a file says.

    Args:
        sample_rate: Samples per second.
        channels: Number of channels.
        frames: Samples per channel, as far as is known before they are decoded.
        format: Format by libsndfile's name, for example ``"FLAC"``.
        subtype: Kind of samples by libsndfile's name, for example ``"PCM_24"``.
        remark: What is wrong with the file and does not keep it from being read.
        container: How this package reads it by itself, where libsndfile does not.
        untold: Its length where an MP3 file does not tell it.
    """

    sample_rate: int
    channels: int
    frames: int | None
    format: str
    subtype: str
    remark: str = ""
    container: Container | None = None
    untold: Untold | None = None


def look(path: Path) -> Header:
    """Return what a file holds.

    Raises:
        InputError: If it is not there, is no sound file, or holds no samples.
    """
    magic, size = _begin(path)
    try:
        header = _by_libsndfile(path)
    except _Unreadable as error:
        if magic[:4] not in (b"RIFF", b"RIFX", b"RF64", b".snd"):
            raise InputError(_explain(path, magic, str(error))) from error
        header = _by_ourselves(path, size)
    if not header.frames and header.format == "WAV" and header.container is None:
        own = _by_ourselves(path, size)  # A length of 0, left by a recorder that was cut off.
        header = own if own.frames else header
    if header.frames == 0:
        raise InputError(f"{path.name}: holds no samples")
    if not 0 < header.sample_rate <= HIGHEST_RATE:
        raise InputError(f"{path.name}: claims {header.sample_rate} samples per second, which no recorder takes; its header is damaged")
    return header


def decode(
    path: Path, header: Header, size: int, *, start: int = 0, stop: int | None = None, tell: Callable[[str], Any]
) -> Iterator[np.ndarray]:
    """Yield float32 arrays ``(n, C)`` of ``size`` frames, the last one shorter, from ``start`` up to ``stop``.

    A damaged or shortened file gives what is there.

    Args:
        path: The file.
        header: What :func:`look` said.
        size: Frames at once.
        start: First frame.
        stop: Frame after the last; the end of the file by default.
        tell: Is called with what a person should know about the file's end.

    Raises:
        InputError: If the file went away or gives no samples at all.
    """
    last = header.frames if stop is None else stop
    wanted = None if last is None else last - start
    got = 0
    problem = ""
    pieces = _own_pieces if header.container is not None else _pieces
    try:
        for block in pieces(path, header, size, start, wanted):
            got += len(block)
            yield block
    except _Unreadable as error:
        problem = str(error)
    except OSError as error:
        raise InputError(f"{path.name}: could be opened before, and cannot be read now: {error.strerror or error}") from error
    seconds = (start + got) / header.sample_rate
    if not got and not path.exists():
        raise InputError(f"{path} went away after it was opened")
    if not got:
        raise InputError(f"{path.name}: none of its samples can be read" + (f" ({problem})" if problem else ""))
    if problem:
        tell(f"damaged after {seconds:.2f} s ({problem}); what follows is left out")
    elif wanted is not None and wanted - got > max(0.05 * header.sample_rate, MPEG_DELAY if header.untold else 0):
        tell(f"ends after {seconds:.2f} s of the {(start + wanted) / header.sample_rate:.2f} s that its header claims")


class _Unreadable(Exception):
    """Libsndfile could not open a file or read on."""


def _begin(path: Path) -> tuple[bytes, int]:
    """Return the first bytes and the length of a file."""
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder, not a sound file")
        with open(path, "rb") as stream:
            magic, size = stream.read(16), os.fstat(stream.fileno()).st_size
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if not magic:
        raise InputError(f"{path.name}: an empty file")
    return magic, size


@contextmanager
def _open(path: Path, untold: Untold | None = None) -> Iterator[Any]:
    if soundfile is None:
        raise _Unreadable("libsndfile is missing")
    with ExitStack() as opened:
        source = opened.enter_context(untold.open(path)) if untold is not None else None
        yield opened.enter_context(_libsndfile(path, source))


def _libsndfile(path: Path, source: Any) -> Any:
    try:
        if source is not None:
            return soundfile.SoundFile(source)
        return soundfile.SoundFile(os.fsencode(path) if os.name == "posix" else str(path))  # Bytes: names in no encoding exist.
    except (soundfile.LibsndfileError, TypeError) as error:
        raise _Unreadable(_reason(error)) from error


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).strip(" .") or "error of the decoder"


def _by_libsndfile(path: Path) -> Header:
    with _open(path) as file:
        frames = None if file.frames >= UNKNOWN else file.frames
        header = Header(file.samplerate, file.channels, frames, file.format, file.subtype, _shortened(file.extra_info))
    if header.subtype == "MPEG_LAYER_III" and (untold := count(path)) is not None and untold.frames > 1.01 * (frames or 0):
        return dataclasses.replace(header, frames=untold.frames, untold=untold)
    return header


def _shortened(log: str) -> str:
    """Return a remark if libsndfile's log says that the header claims more than the file holds."""
    claims = [(int(a), int(b)) for a, b in re.findall(r"(?m)^\s*(?:data|Data Size|SSND)\s*: (\d+) \(should be (\d+)\)", log)]
    claims += [
        (int(b), int(a)) for a, b in re.findall(r"Calculated frame count (\d+) does not match value from 'ds64' chunk of (\d+)", log)
    ]
    if length := re.search(r"(?m)^Length : (\d+)", log):
        claims += [(int(data), int(length[1])) for data in re.findall(r"(?m)^ ?data : (\d+)$", log)]  # Of W64.
    for claimed, there in claims:
        if 0x7FFFF000 <= claimed <= 0xFFFFFFFF:  # Written to a pipe: its length was not known.
            continue
        if claimed > there + 64:
            return f"its header claims more than there is: {100 * there / claimed:.3g} % of it is read"
    if "Last page lacks an end-of-stream bit" in log:
        return "its end is missing; read up to there"
    return ""


def _by_ourselves(path: Path, size: int) -> Header:
    with open(path, "rb") as stream:
        container = read_header(stream, path.name)
    there = max(0, size - container.offset) // container.frame_bytes
    remark = ""
    if container.frames is None:
        remark = "its header does not say how long it is, as after a recorder was cut off; read to its end"
    elif container.frames > there:
        remark = f"its header claims more than there is: {100 * there / container.frames:.3g} % of it is read"
    frames = there if container.frames is None else min(there, container.frames)
    return Header(container.sample_rate, container.channels, frames, container.format, container.subtype, remark, container)


def _own_pieces(path: Path, header: Header, size: int, start: int, wanted: int | None) -> Iterator[np.ndarray]:
    container = header.container
    assert container is not None
    with open(path, "rb") as stream:
        stream.seek(container.offset + start * container.frame_bytes)
        yield from read_samples(stream, Container(container.sample_rate, container.channels, container.kind, wanted), size)


def _pieces(path: Path, header: Header, size: int, start: int, wanted: int | None) -> Iterator[np.ndarray]:
    got = 0
    failure = None
    with _open(path, header.untold) as file:
        if (file.samplerate, file.channels) != (header.sample_rate, header.channels):
            raise _Unreadable("another file took its place")
        try:
            if start:
                file.seek(start)
            while wanted is None or got < wanted:
                block = file.read(size if wanted is None else min(size, wanted - got), dtype="float32", always_2d=True)
                if not len(block):
                    return
                got += len(block)
                yield block
        except soundfile.LibsndfileError as error:
            failure = error
    if failure is not None:
        yield from _salvage(path, header, start + got, size)
        raise _Unreadable(_reason(failure)) from failure


def _salvage(path: Path, header: Header, position: int, size: int) -> Iterator[np.ndarray]:
    """Yield in small pieces what can be read after ``position`` of the ``size`` frames that could not be read at once."""
    with _open(path, header.untold) as file:
        try:
            file.seek(position)
            for _ in range(-(-size // SALVAGE)):
                block = file.read(SALVAGE, dtype="float32", always_2d=True)
                if not len(block):
                    return
                yield block
        except soundfile.LibsndfileError:
            return


def _explain(path: Path, magic: bytes, reason: str) -> str:
    for mark, (place, kind) in _FOREIGN.items():
        if magic[place : place + len(mark)] == mark:
            return f"{path.name} is {kind}, which is not read here; convert it, for example: ffmpeg -i {path.name} {path.stem}.wav"
    if soundfile is None:
        return f"{path.name}: only WAV and AU can be read without the library libsndfile; install it (libsndfile1)"
    if path.suffix.lower() == ".raw":
        return f"{path.name}: raw samples have no header that says their rate and format; {_ACCEPTED}"
    return f"{path.name} is not a sound file that can be read ({reason}); {_ACCEPTED}"
