"""WAV and AU as they come out of a pipe: read from front to end, with no step back, and no more at once than was asked for.

Files are read with libsndfile. This is for what it cannot take: a pipe, a WAV whose writer was cut off before it noted the length,
integers of 64 bits, and machines without the library.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO, Protocol

import numpy as np
from cnnkit.errors import InputError

RAW_FORMATS = (
    *("u8", "s8", "s16le", "s16be", "s24le", "s24be", "s32le", "s32be", "s64le", "s64be"),
    *("f32le", "f32be", "f64le", "f64be", "mulaw", "alaw"),
)
"""Kinds of samples, by the names that ffmpeg gives them."""

LONGEST_CHUNK = 2**24
"""Bytes of a header's chunk that are skipped before the sound at most; more is no sound file."""


class Bytes(Protocol):
    """What a sound is read from: ``read`` returns fewer bytes than asked for at the end only."""

    def read(self, size: int, /) -> bytes:
        """Return the next ``size`` bytes."""


@dataclass(frozen=True)
class Container:
    """What a header says.

    Args:
        sample_rate: Samples per second.
        channels: Number of channels.
        kind: Kind of samples, one of :data:`RAW_FORMATS`.
        frames: Samples per channel; ``None`` if the writer did not know.
        offset: Bytes before the first sample.
        format: ``"WAV"``, ``"AU"`` or ``"RAW"``.
    """

    sample_rate: int
    channels: int
    kind: str
    frames: int | None
    offset: int = 0
    format: str = "WAV"

    @property
    def subtype(self) -> str:
        """The kind of samples by libsndfile's name."""
        kind = self.kind.removesuffix("le").removesuffix("be")
        names = {"u8": "PCM_U8", "s8": "PCM_S8", "f32": "FLOAT", "f64": "DOUBLE", "mulaw": "ULAW", "alaw": "ALAW"}
        return names.get(kind) or f"PCM_{kind[1:]}"

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of all channels."""
        return self.channels * _width(self.kind)


def read_header(stream: BinaryIO | Bytes, name: str) -> Container:
    """Read the header of WAV (also RF64 and big-endian RIFX) or AU, and leave the stream at the first sample.

    Args:
        stream: Where it comes from.
        name: What messages call it.

    Raises:
        InputError: If it is neither, is cut off, or holds samples of another kind.
    """
    counted = _Counted(stream, name)
    magic = counted.take(4)
    if magic == b".snd":
        return _au(counted, name)
    if magic not in (b"RIFF", b"RIFX", b"RF64"):
        raise InputError(
            f"{name}: neither WAV nor AU (it begins with {magic!r}); for raw samples say their kind, rate and channels: --raw s16le,16000,2"
        )
    counted.take(4)
    if counted.take(4) != b"WAVE":
        raise InputError(f"{name}: a RIFF file that is not WAV")
    return _wav(counted, name, ">" if magic == b"RIFX" else "<")


def read_samples(stream: BinaryIO | Bytes, container: Container, size: int) -> Iterator[np.ndarray]:
    """Yield float32 arrays ``(n, C)`` of ``size`` frames, the last one shorter, to the end of the sound."""
    left = container.frames
    while left is None or left > 0:
        wanted = size if left is None else min(size, left)
        data = _fill(stream, wanted * container.frame_bytes)
        frames = len(data) // container.frame_bytes
        if frames:
            yield to_float(data[: frames * container.frame_bytes], container.kind).reshape(frames, container.channels)
        if frames < wanted:
            return
        left = None if left is None else left - frames


def to_float(data: bytes, kind: str) -> np.ndarray:
    """Return samples of a kind of :data:`RAW_FORMATS` as float32, full scale at 1."""
    if kind in ("mulaw", "alaw"):
        return _companding(kind)[np.frombuffer(data, np.uint8)]
    order = ">" if kind.endswith("be") else "<"
    if kind in ("u8", "s8"):
        values = np.frombuffer(data, np.uint8 if kind == "u8" else np.int8).astype(np.float32)
        return (values - 128 if kind == "u8" else values) / np.float32(128)
    if kind.startswith("s24"):
        triples = np.frombuffer(data, np.uint8).reshape(-1, 3)
        padded = np.zeros((len(triples), 4), np.uint8)
        padded[:, 1:] = triples[:, ::-1] if order == ">" else triples  # The upper bytes of 32 bits, little end first.
        return padded.view("<i4")[:, 0].astype(np.float32) / np.float32(2**31)
    bits = int(kind[1:3])
    if kind[0] == "f":
        return np.frombuffer(data, f"{order}f{bits // 8}").astype(np.float32)
    return (np.frombuffer(data, f"{order}i{bits // 8}") / 2.0 ** (bits - 1)).astype(np.float32)


class _Counted:
    """A stream that knows how far it was read, and whose early end is an error."""

    def __init__(self, stream: BinaryIO | Bytes, name: str) -> None:
        self.stream, self.name, self.position = stream, name, 0

    def take(self, size: int) -> bytes:
        if size > LONGEST_CHUNK:
            raise InputError(f"{self.name}: its header holds a part of {size} bytes, which no sound file needs")
        data = _fill(self.stream, size)
        self.position += len(data)
        if len(data) < size:
            raise InputError(f"{self.name}: ends within its header, after {self.position} bytes")
        return data


def _wav(stream: _Counted, name: str, order: str) -> Container:
    layout: tuple[int, int, str, int] | None = None
    long_size = None  # Of RF64, whose 32-bit sizes are all ones.
    while True:
        chunk, size = struct.unpack(order + "4sI", stream.take(8))
        if chunk == b"data":
            if layout is None:
                raise InputError(f"{name}: its samples come before their description (no 'fmt ' chunk)")
            rate, channels, kind, frame = layout
            if long_size is not None and size == 0xFFFFFFFF:
                size, known = long_size, True
            else:
                known = 0 < size < 0x7FFFF000  # Programs that write to a pipe leave 0, all ones, or the largest they can.
            return Container(rate, channels, kind, size // frame if known else None, stream.position)
        data = stream.take(size + size % 2)
        if chunk == b"ds64" and len(data) >= 16:
            long_size = struct.unpack_from("<Q", data, 8)[0]
        elif chunk == b"fmt ":
            layout = _format_chunk(data, name, order)


def _format_chunk(data: bytes, name: str, order: str) -> tuple[int, int, str, int]:
    if len(data) < 16:
        raise InputError(f"{name}: its 'fmt ' chunk has {len(data)} bytes, not 16")
    tag, channels, rate, _, frame, _ = struct.unpack_from(order + "HHIIHH", data)
    if tag == 0xFFFE and len(data) >= 26:  # The real tag begins the GUID of the subformat.
        tag = struct.unpack_from(order + "H", data, 24)[0]
    width = frame // channels if channels else 0
    end = "le" if order == "<" else "be"
    kinds = {(1, 1): "u8", (6, 1): "alaw", (7, 1): "mulaw", (3, 4): f"f32{end}", (3, 8): f"f64{end}"}
    kinds |= {(1, size): f"s{8 * size}{end}" for size in (2, 3, 4, 8)}
    if not rate or not width or frame % channels or (tag, width) not in kinds:
        raise InputError(
            f"{name}: WAV of format {tag}, {channels} channels, {rate} Hz, {frame} bytes per frame cannot be read; accepted: "
            "PCM of 8 to 64 bits, float of 32 or 64, A-law, mu-law"
        )
    return rate, channels, kinds[tag, width], frame


def _au(stream: _Counted, name: str) -> Container:
    offset, size, encoding, rate, channels = struct.unpack(">5I", stream.take(20))
    kinds = {1: "mulaw", 2: "s8", 3: "s16be", 4: "s24be", 5: "s32be", 6: "f32be", 7: "f64be", 27: "alaw"}
    if encoding not in kinds or not rate or not 0 < channels < 2**16 or offset < 24:
        raise InputError(f"{name}: AU of encoding {encoding}, {channels} channels, {rate} Hz cannot be read")
    stream.take(offset - 24)
    kind = kinds[encoding]
    return Container(rate, channels, kind, None if size == 0xFFFFFFFF else size // (channels * _width(kind)), offset, "AU")


def _width(kind: str) -> int:
    return 1 if kind in ("u8", "s8", "mulaw", "alaw") else int(kind[1:3]) // 8


def _fill(stream: BinaryIO | Bytes, size: int) -> bytes:
    """Return ``size`` bytes, fewer at the end only, from a stream that may deliver them in pieces."""
    data = stream.read(size) or b""
    if len(data) == size or not data:
        return data
    pieces, length = [data], len(data)
    while length < size and (data := stream.read(size - length)):
        pieces.append(data)
        length += len(data)
    return b"".join(pieces)


@lru_cache
def _companding(kind: str) -> np.ndarray:
    """The 256 values of G.711, full scale of 16 bits at 1."""
    code = np.arange(256, dtype=np.int64) ^ (0xFF if kind == "mulaw" else 0x55)
    negative, exponent, mantissa = code & 0x80, (code >> 4) & 7, code & 15
    if kind == "mulaw":
        size = (((mantissa << 3) + 0x84) << exponent) - 0x84
        sign = np.where(negative, -1, 1)
    else:
        size = np.where(exponent == 0, (mantissa << 4) + 8, ((mantissa << 4) + 0x108) << np.maximum(exponent - 1, 0))
        sign = np.where(negative, 1, -1)
    return (sign * size / 32768).astype(np.float32)
