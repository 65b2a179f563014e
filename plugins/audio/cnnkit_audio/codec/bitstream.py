"""Bit files: a header of 48 bytes, and then the codes without a gap.

===== ===== ===========================================================
Bytes Type  Meaning (numbers are big-endian)
===== ===== ===========================================================
4     text  ``CNKB``
1     u8    version of the format, 1
1     u8    levels
1     u8    groups, numbers per level and code frame
1     u8    bits of a number
4     u32   samples per second
4     u32   samples of a code frame
8     u64   samples of the sound
16    bytes digest of the network that the codes belong to
4     u32   CRC-32 of the codes
4     u32   CRC-32 of the header before it
===== ===== ===========================================================

Code frames follow one another; in each, levels from coarse to fine, in each level its groups, each number with its highest bit first.
Only the last byte may be filled up, with zeros.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from cnnkit.engine.files import atomic_path
from cnnkit.errors import InputError
from torch import nn

MAGIC = b"CNKB"
VERSION = 1
_FIELDS = struct.Struct(">4sBBBBIIQ16sI")
_CHECK = struct.Struct(">I")
HEADER_BYTES = _FIELDS.size + _CHECK.size
_AT_ONCE = 8 * 512
"""Code frames that are read at once: so many take whole bytes, however wide a number is."""


@dataclass(frozen=True)
class BitHeader:
    """What a bit file says of itself.

    Args:
        levels: Levels of the code.
        groups: Numbers per level and code frame.
        bits: Bits of a number.
        rate: Samples per second.
        frame: Samples of a code frame.
        network: Digest of the network (:func:`network_digest`).
        samples: Samples of the sound.
        check: CRC-32 of the codes.
    """

    levels: int
    groups: int
    bits: int
    rate: int
    frame: int
    network: bytes
    samples: int = 0
    check: int = 0

    @property
    def frames(self) -> int:
        """Number of code frames."""
        return -(-self.samples // self.frame)

    @property
    def frame_bits(self) -> int:
        """Bits of a code frame."""
        return self.levels * self.groups * self.bits

    @property
    def payload_bytes(self) -> int:
        """Bytes behind the header."""
        return -(-self.frames * self.frame_bits // 8)

    @property
    def bits_per_second(self) -> float:
        """The rate of the codes."""
        return self.frame_bits * self.rate / self.frame

    def to_bytes(self) -> bytes:
        """Return the header of the file."""
        fields = (self.levels, self.groups, self.bits, self.rate, self.frame, self.samples, self.network, self.check)
        packed = _FIELDS.pack(MAGIC, VERSION, *fields)
        return packed + _CHECK.pack(zlib.crc32(packed))

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> BitHeader:
        """Read a header.

        Raises:
            InputError: If it is none, is damaged, or of another version.
        """
        if data[: len(MAGIC)] != MAGIC:
            raise InputError(f"{name} is no bit file of this codec: it does not begin with {MAGIC.decode()}")
        if len(data) < HEADER_BYTES:
            raise InputError(f"{name} is cut off in its header: {len(data)} of {HEADER_BYTES} bytes are there; copy or code it again")
        packed = data[: _FIELDS.size]
        _, version, levels, groups, bits, rate, frame, samples, network, check = _FIELDS.unpack(packed)
        if version != VERSION:
            raise InputError(f"{name} is a bit file of version {version}, and this program reads {VERSION}; install a newer cnnkit-audio")
        if _CHECK.unpack(data[_FIELDS.size : HEADER_BYTES])[0] != zlib.crc32(packed) or not all((levels, groups, bits, rate, frame)):
            raise InputError(f"{name} is damaged: its header does not fit its checksum; copy or code it again")
        return cls(levels, groups, bits, rate, frame, network, samples, check)


def network_digest(model: nn.Module) -> bytes:
    """Return 16 bytes that tell a network by the names, shapes and values of its weights."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.digest()[:16]


def to_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return the bits of codes ``(levels, groups, code frames)`` in the order of the file, uint8 of zeros and ones."""
    numbers = codes.transpose(2, 0, 1).reshape(-1, 1)
    return ((numbers >> np.arange(bits - 1, -1, -1)) & 1).astype(np.uint8).reshape(-1)


def pack(codes: np.ndarray, bits: int) -> bytes:
    """Return codes ``(levels, groups, code frames)`` as the bytes of a file behind its header."""
    return np.packbits(to_bits(codes, bits)).tobytes()


def unpack(data: bytes, *, frames: int, levels: int, groups: int, bits: int) -> np.ndarray:
    """Return the codes ``(levels, groups, frames)`` int64 at the beginning of ``data``, :func:`pack` backwards."""
    found = np.unpackbits(np.frombuffer(data, np.uint8), count=frames * levels * groups * bits).reshape(-1, bits)
    numbers = found @ (1 << np.arange(bits - 1, -1, -1))
    return numbers.reshape(frames, levels, groups).transpose(1, 2, 0)


class BitWriter:
    """Write a bit file block by block, as a context manager; it takes its name when all is written.

    Args:
        path: Where to.
        header: What it says of itself; the number of samples and the checksum are put in at the end.
    """

    def __init__(self, path: Path, header: BitHeader) -> None:
        self.path, self.header = path, header
        self._left = np.zeros(0, np.uint8)
        self._frames = self._check = 0
        self._open = ExitStack()
        self._file: BinaryIO

    def __enter__(self) -> BitWriter:
        part = self._open.enter_context(atomic_path(self.path))
        self._file = self._open.enter_context(open(part, "wb"))
        self._file.write(bytes(HEADER_BYTES))
        return self

    def write(self, codes: np.ndarray) -> None:
        """Write the next codes, ``(levels, groups, n)``."""
        assert codes.shape[:2] == (self.header.levels, self.header.groups)
        self._frames += codes.shape[2]
        found = np.concatenate([self._left, to_bits(codes, self.header.bits)])
        whole = len(found) // 8 * 8
        self._left = found[whole:]
        self._put(np.packbits(found[:whole]).tobytes())

    def finish(self, samples: int) -> BitHeader:
        """Write the last byte and the header, and return it.

        Args:
            samples: Samples of the sound.
        """
        self._put(np.packbits(self._left).tobytes())
        self.header = replace(self.header, samples=samples, check=self._check)
        assert self.header.frames == self._frames, f"{self._frames} code frames are no {samples} samples"
        self._file.seek(0)
        self._file.write(self.header.to_bytes())
        return self.header

    def _put(self, data: bytes) -> None:
        self._check = zlib.crc32(data, self._check)
        self._file.write(data)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.__exit__(kind, error, trace)


@dataclass(frozen=True)
class BitFile:
    """An opened bit file, whose length and checksums are right."""

    path: Path
    header: BitHeader

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the codes in order, ``(levels, groups, n)`` int64."""
        header = self.header
        with open(self.path, "rb") as stream:
            stream.seek(HEADER_BYTES)
            for first in range(0, header.frames, _AT_ONCE):
                frames = min(_AT_ONCE, header.frames - first)
                data = stream.read(-(-frames * header.frame_bits // 8))
                yield unpack(data, frames=frames, levels=header.levels, groups=header.groups, bits=header.bits)


def open_bits(path: Path) -> BitFile:
    """Open a bit file and check it to its end.

    Raises:
        InputError: If it is no bit file, cut off, too long or damaged.
    """
    try:
        with open(path, "rb") as stream:
            header = BitHeader.from_bytes(stream.read(HEADER_BYTES), path.name)
            size, check = 0, 0
            while data := stream.read(1 << 20):
                size, check = size + len(data), zlib.crc32(data, check)
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror}") from error
    if size != header.payload_bytes:
        seconds = header.samples / header.rate
        what = "cut off" if size < header.payload_bytes else "too long"
        raise InputError(
            f"{path.name} is {what}: {seconds:.2f} s of sound at {header.bits_per_second / 1000:g} kbit/s take {header.payload_bytes} "
            f"bytes behind the header, and {size} are there; copy or code it again"
        )
    if check != header.check:
        raise InputError(f"{path.name} is damaged: its codes do not fit their checksum; copy or code it again")
    return BitFile(path, header)
