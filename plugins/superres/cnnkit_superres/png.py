"""PNG files: 16 bits per sample and animations, which Pillow's writer rounds or holds in memory as a whole."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}  # Colour type by number of channels.
_ROWS = 64  # Rows that are filtered at once.


def write_png(
    path: Path,
    frames: Iterable[NDArray[Any]],
    options: dict[str, Any],
    *,
    duration: Callable[[int], float] | None = None,
    plays: int = 0,
) -> None:
    """Write one picture, or an animation frame by frame.

    Args:
        path: The file.
        frames: Arrays ``(H, W, 1 to 4)``, uint8 or uint16, all of one shape and type.
        options: Metadata as Pillow's writer takes them: ``icc_profile``, ``dpi``, ``exif``, ``pnginfo``.
        duration: Milliseconds of the frame of an index; None for a still picture.
        plays: How often an animation is shown; 0 is for ever.

    Raises:
        ValueError: If a frame differs in shape or type from the first.
    """
    frames = iter(frames)
    first = next(frames)
    with open(path, "wb") as stream:
        stream.write(_SIGNATURE)
        height, width, channels = first.shape
        _chunk(stream, b"IHDR", struct.pack(">IIBBBBB", width, height, first.itemsize * 8, _COLOURS[channels], 0, 0, 0))
        for kind, data in _ancillary(options):
            _chunk(stream, kind, data)
        if duration is None:
            for data in _compressed(first):
                _chunk(stream, b"IDAT", data)
        else:
            _write_frames(stream, chain([first], frames), first, duration, plays)
        _chunk(stream, b"IEND", b"")


def _write_frames(
    stream: IO[bytes], frames: Iterable[NDArray[Any]], first: NDArray[Any], duration: Callable[[int], float], plays: int
) -> None:
    """Write the frames of an animation, each whole and replacing the one before."""
    control = stream.tell()
    _chunk(stream, b"acTL", struct.pack(">II", 0, plays))  # The number of frames is known at the end.
    sequence = count = 0
    for index, frame in enumerate(frames):
        if frame.shape != first.shape or frame.dtype != first.dtype:
            raise ValueError(f"frame {index} of {frame.shape} {frame.dtype} differs from the first, {first.shape} {first.dtype}")
        delay = Fraction(max(duration(index), 0) / 1000).limit_denominator(1000)
        delay = min(delay, Fraction(65535))
        part = (sequence, frame.shape[1], frame.shape[0], 0, 0, *_ratio(delay), 0, 0)
        _chunk(stream, b"fcTL", struct.pack(">IIIIIHHBB", *part))
        sequence += 1
        for data in _compressed(frame):
            if index == 0:
                _chunk(stream, b"IDAT", data)
            else:
                _chunk(stream, b"fdAT", struct.pack(">I", sequence) + data)
                sequence += 1
        count = index + 1
    end = stream.tell()
    stream.seek(control)
    _chunk(stream, b"acTL", struct.pack(">II", count, plays))
    stream.seek(end)


def _ratio(delay: Fraction) -> tuple[int, int]:
    """Return numerator and denominator that both fit 16 bits."""
    if delay.numerator > 65535:
        return round(delay), 1
    return delay.numerator, delay.denominator


def _chunk(stream: IO[bytes], kind: bytes, data: bytes) -> None:
    stream.write(struct.pack(">I", len(data)) + kind)
    stream.write(data)
    stream.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))


def _ancillary(options: dict[str, Any]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the chunks of metadata as Pillow writes them, taken from a picture of one pixel."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG", **options)
    for kind, data in _chunks(buffer.getvalue()):
        if kind not in (b"IHDR", b"IDAT", b"IEND"):
            yield kind, data


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(_SIGNATURE)
    while place < len(png):
        (size,) = struct.unpack_from(">I", png, place)
        yield png[place + 4 : place + 8], png[place + 8 : place + 8 + size]
        place += 12 + size


def _compressed(samples: NDArray[Any]) -> Iterator[bytes]:
    """Yield the compressed rows of a picture in parts."""
    if samples.dtype == np.uint16:
        yield from _compressed_rows(samples)
        return
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(samples[:, :, 0] if samples.shape[2] == 1 else samples).save(buffer, "PNG")
    yield from (data for kind, data in _chunks(buffer.getvalue()) if kind == b"IDAT")


def _compressed_rows(samples: NDArray[np.uint16]) -> Iterator[bytes]:
    """Filter and compress 16-bit rows; each row takes the filter whose differences are smallest, as the PNG specification advises."""
    packer = zlib.compressobj(6)
    height, width, channels = samples.shape
    step = 2 * channels
    above = np.zeros((1, width * step), np.uint8)
    for start in range(0, height, _ROWS):
        rows = samples[start : start + _ROWS].astype(">u2").reshape(-1, width * channels).view(np.uint8)
        up = np.concatenate([above, rows[:-1]])
        left, corner = (np.pad(part, ((0, 0), (step, 0)))[:, :-step] for part in (rows, up))
        filtered = [rows, rows - left, rows - up, rows - _paeth(left, up, corner)]
        cost = np.stack([np.abs(part.view(np.int8).astype(np.int16)).sum(axis=1, dtype=np.int64) for part in filtered])
        best = cost.argmin(axis=0)
        chosen = np.choose(best[:, None], filtered)
        kinds = np.array([0, 1, 2, 4], np.uint8)[best]
        data = packer.compress(np.concatenate([kinds[:, None], chosen], axis=1).tobytes())
        if data:
            yield data
        above = rows[-1:]
    yield packer.flush()


def _paeth(left: NDArray[np.uint8], up: NDArray[np.uint8], corner: NDArray[np.uint8]) -> NDArray[np.uint8]:
    a, b, c = (part.astype(np.int16) for part in (left, up, corner))
    to_left, to_up, to_corner = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    return np.where((to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner))
