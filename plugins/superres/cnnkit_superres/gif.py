"""GIF files, frame by frame: Pillow's own writer holds all frames in memory."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_TRANSPARENT = 255  # The palette entry of pixels that are not seen.
_KEEP, _CLEAR = 1, 2  # What happens to a frame before the next: it stays, or its place becomes transparent.


def write_gif(
    path: Path,
    frames: Iterable[NDArray[np.uint8]],
    *,
    duration: Callable[[int], float] | None = None,
    plays: int = 0,
    comment: bytes | None = None,
) -> None:
    """Write one picture, or an animation frame by frame, each whole and with a palette of its own.

    Args:
        path: The file.
        frames: Arrays ``(H, W, 1 to 4)``. More than 256 colours are reduced with dithering; alpha becomes seen or not seen.
        duration: Milliseconds of the frame of an index (a GIF stores hundredths of a second); None for a still picture.
        plays: How often an animation is shown; 0 is for ever.
        comment: Text in the file.
    """
    from PIL import GifImagePlugin

    with open(path, "wb") as stream:
        for index, samples in enumerate(frames):
            if index == 0:
                _write_head(stream, samples.shape[0], samples.shape[1], None if duration is None else plays, comment)
            image, clear = indexed(samples)
            params: dict[str, Any] = {"include_color_table": True, "duration": 0 if duration is None else max(0.0, duration(index))}
            if clear:
                params |= {"transparency": _TRANSPARENT, "disposal": _CLEAR}
            elif duration is not None:
                # A frame that covers all before it may stay: the next one, if it has holes, must not show it through them.
                params["disposal"] = _CLEAR if samples.shape[2] in (2, 4) else _KEEP
            for part in GifImagePlugin.getdata(image, (0, 0), **params):
                stream.write(part)
        stream.write(b";")


def _write_head(stream: IO[bytes], height: int, width: int, plays: int | None, comment: bytes | None) -> None:
    stream.write(b"GIF89a" + struct.pack("<HHBBB", width, height, 0x70, 0, 0))  # Eight bits per colour, no palette for all frames.
    if plays is not None and plays != 1:  # Without this block an animation is shown once; a count is that of the repetitions.
        stream.write(b"!\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<H", min(plays - 1, 65535) if plays else 0) + b"\0")
    if comment:
        blocks = (comment[start : start + 255] for start in range(0, len(comment), 255))
        stream.write(b"!\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0")


def indexed(samples: NDArray[np.uint8]) -> tuple[Any, bool]:
    """Return a Pillow image of at most 256 colours, and whether one of them is transparent."""
    from PIL import Image

    colours = samples[:, :, : 1 if samples.shape[2] < 3 else 3]
    hidden = samples[:, :, -1] < 128 if samples.shape[2] in (2, 4) else np.zeros(samples.shape[:2], np.bool_)
    clear = bool(hidden.any())
    if clear and not hidden.all():  # A colour that nobody sees takes no place in the palette.
        colours = np.where(hidden[:, :, None], colours[~hidden][0], colours)
    if colours.shape[2] == 1 and not clear:
        return Image.fromarray(colours[:, :, 0]), False
    image = Image.fromarray(np.broadcast_to(colours, (*colours.shape[:2], 3)) if colours.shape[2] == 1 else np.ascontiguousarray(colours))
    room = _TRANSPARENT if clear else 256
    result = _exact(image, room) or _reduced(image, room)
    if clear:
        indices = np.asarray(result).copy()
        indices[hidden] = _TRANSPARENT
        entries = (result.getpalette() or [])[: 3 * _TRANSPARENT]
        result = Image.fromarray(indices, "P")
        result.putpalette(entries + [0] * (768 - len(entries)))
    return result, clear


def _exact(image: Any, room: int) -> Any:
    """Return an image of the very colours if they fit a palette, else None. Pillow's own search takes near ones for the same."""
    from PIL import Image

    counted = image.getcolors(room)
    if counted is None:
        return None
    entries = sorted(colour for _, colour in counted)
    keys = np.array([red << 16 | green << 8 | blue for red, green, blue in entries])
    samples = np.asarray(image).astype(np.int32)
    packed = samples[:, :, 0] << 16 | samples[:, :, 1] << 8 | samples[:, :, 2]
    result = Image.fromarray(np.searchsorted(keys, packed).astype(np.uint8), "P")
    result.putpalette([value for colour in entries for value in colour])
    return result


def _reduced(image: Any, room: int) -> Any:
    from PIL import Image

    palette = image.quantize(room, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    return image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
