"""MP3 files that do not say how long they are.

A file of varying bit rate tells its length in a first frame that holds no sound (the Xing header). Without it, as in what was recorded
from a stream or cut out of a longer file, libsndfile guesses from the bit rate at the beginning, and ends there: of a recording that
begins loud it may read a fifth. So the frames are counted here, and the header that is missing is put before them.
"""

from __future__ import annotations

import io
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_KBITS = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44100, 48000, 32000)
_LONGEST_SEARCH = 2**20
"""Bytes after which what is between two frames is taken for the end of the sound."""


@dataclass(frozen=True)
class Untold:
    """An MP3 file whose length was counted.

    Args:
        offset: Place of its first frame.
        frames: Samples per channel.
        prefix: The frame that should have told so, to be read before the others.
    """

    offset: int
    frames: int
    prefix: bytes

    def open(self, path: Path) -> io.BufferedIOBase:
        """Return the file as a stream that begins with the missing frame."""
        return _Prefixed(path, self)


class _Frame(NamedTuple):
    version: int
    rate: int
    length: int
    samples: int
    mono: bool


def count(path: Path) -> Untold | None:
    """Count the frames of an MP3 file that does not tell its length.

    Returns:
        What was found; ``None`` if the file tells its length, or its frames cannot be followed.
    """
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        first = _next_frame(data, _after_id3(data), None)
        if first is None:
            return None
        place, frame = first
        told = data[place : place + frame.length]
        if any(tag in told for tag in (b"Xing", b"Info", b"VBRI")):
            return None
        number, offset = 0, place
        while found := _next_frame(data, offset, frame):
            number += 1
            offset = found[0] + found[1].length
        return Untold(place, number * frame.samples, _xing(data[place : place + 4], frame, number))


def _after_id3(data: mmap.mmap) -> int:
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    a, b, c, d = (byte & 0x7F for byte in data[6:10])
    return 10 + (a << 21 | b << 14 | c << 7 | d)


def _next_frame(data: mmap.mmap, place: int, like: _Frame | None) -> tuple[int, _Frame] | None:
    """Return the frame at ``place``, or the next one that another frame of its kind (or the end) follows."""
    frame = _parse(data[place : place + 4], like)
    if frame is not None and like is not None:
        return place, frame
    end = min(len(data), place + _LONGEST_SEARCH)
    while (place := data.find(b"\xff", place, end)) >= 0:
        frame = _parse(data[place : place + 4], like)
        if frame is not None and (
            place + frame.length == len(data) or _parse(data[place + frame.length : place + frame.length + 4], frame)
        ):
            return place, frame
        place += 1
    return None


def _parse(head: bytes, like: _Frame | None) -> _Frame | None:
    """Return what four bytes say, if they begin a frame of layer III (of the version and rate of ``like``)."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0 or head[1] >> 1 & 3 != 1:
        return None
    version, bits, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or rate == 3 or bits in (0, 15):
        return None
    hertz = _RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    samples = 1152 if version == 3 else 576
    if like is not None and (version, hertz) != (like.version, like.rate):
        return None
    kbits = _KBITS[3 if version == 3 else 2][bits]
    return _Frame(version, hertz, samples // 8 * 1000 * kbits // hertz + (head[2] >> 1 & 1), samples, head[3] >> 6 == 3)


def _xing(head: bytes, frame: _Frame, number: int) -> bytes:
    """Return a frame without sound that says how many follow."""
    largest = bytes((0xFF, head[1] | 1, 0xE0 | head[2] & 0x0C, head[3]))  # The highest bit rate, so that the tag has room; no checksum.
    parsed = _parse(largest, None)
    assert parsed is not None
    side = {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}[frame.version == 3, frame.mono]
    tag = largest + bytes(side) + b"Xing" + (1).to_bytes(4, "big") + number.to_bytes(4, "big")
    return tag + bytes(parsed.length - len(tag))


class _Prefixed(io.BufferedIOBase):
    """A file from a place on, after some bytes of ours; as far as libsndfile wants it."""

    def __init__(self, path: Path, untold: Untold) -> None:
        self._file = open(path, "rb")  # noqa: SIM115  Closed with this stream.
        self._untold, self._place = untold, 0
        self._size = len(untold.prefix) + self._file.seek(0, io.SEEK_END) - untold.offset

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next ``size`` bytes."""
        prefix, place = self._untold.prefix, self._place
        left = self._size - place if size is None or size < 0 else size
        data = prefix[place : place + left]
        if len(data) < left:
            self._file.seek(self._untold.offset + max(0, place - len(prefix)))
            data += self._file.read(left - len(data))
        self._place += len(data)
        return data

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        """Fill a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a place."""
        self._place = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence])
        return self._place

    def tell(self) -> int:
        """Return the place."""
        return self._place

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()
