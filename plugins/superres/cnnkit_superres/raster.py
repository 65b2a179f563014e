"""PNG, JPEG, WebP, BMP, GIF and AVIF through Pillow's decoders, called by name and never by trial."""

from __future__ import annotations

import importlib
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from cnnkit.errors import InputError, InputWarning
from numpy.typing import NDArray

from cnnkit_superres.deep import deep_arrays, is_deep, split_alpha
from cnnkit_superres.metadata import read_exif, srgb_profile, to_srgb, upright, upright_xmp
from cnnkit_superres.pictures import Metadata, Picture, Source, refusing

_DECODERS = {
    "png": ("PngImagePlugin", "PngImageFile"),
    "jpeg": ("JpegImagePlugin", "JpegImageFile"),
    "webp": ("WebPImagePlugin", "WebPImageFile"),
    "tiff": ("TiffImagePlugin", "TiffImageFile"),
    "bmp": ("BmpImagePlugin", "BmpImageFile"),
    "gif": ("GifImagePlugin", "GifImageFile"),
    "avif": ("AvifImagePlugin", "AvifImageFile"),
}


_LOCK = threading.Lock()
_limits: list[int | None] = []  # One item for each run of a decoder; the first is the limit to restore.


class Raster(Source):
    """A still picture or an animation that Pillow decodes."""

    def _decode(self) -> Iterator[Picture]:
        with open_stream(self.path) as stream:
            with decoding(self.path):
                if self.format == "webp":  # Its decoder takes memory for the canvas when it is made.
                    self.check_size(*webp_size(stream.read(30)))
                    stream.seek(0)
                image = decoder(self.format, stream)
                self.check_size(image.height, image.width)
                last = int(getattr(image, "n_frames", 1)) - 1
                # The picture that an APNG shows to viewers without animations is no part of the animation.
                start = 1 if last > 0 and getattr(image, "default_image", False) else 0
                self.frame_count = last + 1 - start
                self.is_animation = self.frame_count > 1
            for index in range(start, last):
                yield self._frame(stream, image, index, start)
            frame = self._frame(stream, image, last, start)
        yield frame  # With the file closed: a still picture that waits to be taken holds no handle.

    def _frame(self, stream: Any, image: Any, index: int, start: int) -> Picture:
        with decoding(self.path):
            if index:
                image.seek(index)
                self.check_size(image.height, image.width)
            deep = self.format == "png" and is_deep(image)
            if deep and self.is_animation:
                warnings.warn(f"{self.path}: an animation of 16 bits per sample; read with 8", InputWarning, stacklevel=2)
                deep = False
            pixels, alpha = deep_arrays(image, lambda: _again(stream)) if deep else to_arrays(image, self.path)
            if index == start:  # Only now: a PNG may hold some of it behind its pixels.
                metadata, self._orientation = _metadata(self, image)
                if not self.opened:
                    self.metadata = metadata
            if self.is_animation:
                self.metadata.durations[index - start] = float(image.info.get("duration", 0))
            return Picture(upright(pixels, self._orientation), None if alpha is None else upright(alpha, self._orientation))


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Run Pillow on a file: errors name it, and the only limit of size is the caller's.

    Pillow's limit is one number for the process, below what a large scan has, and some decoders ask it whatever was checked before.
    It is lifted while any of ours runs.
    """
    from PIL import Image

    with _LOCK:
        if not _limits:
            _limits.append(Image.MAX_IMAGE_PIXELS)
            Image.MAX_IMAGE_PIXELS = None
        else:
            _limits.append(None)
    try:
        with refusing(path):
            yield
    finally:
        with _LOCK:
            if len(_limits) == 1:
                Image.MAX_IMAGE_PIXELS = _limits[0]
            _limits.pop()


def open_stream(path: Path) -> Any:
    """Open a file for reading, with the system's refusals as ``InputError``."""
    with refusing(path):
        return open(path, "rb")  # The caller closes it.


def decoder(name: str, stream: Any) -> Any:
    """Return the opened image of Pillow for a stream that is known to be of that format; nothing is decoded yet.

    The decoder is made directly: ``Image.open`` would try others, and applies one limit of size for the whole process.
    """
    module, kind = _DECODERS[name]
    return getattr(importlib.import_module(f"PIL.{module}"), kind)(stream)


def _again(stream: Any) -> Any:
    stream.seek(0)
    return decoder("png", stream)


def to_arrays(image: Any, path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return the pixels ``(H, W, 1 or 3)`` and the alpha of the current frame of a Pillow image, of any mode."""
    transparent = "transparency" in image.info
    mode = image.mode
    if mode == "1":
        grey = np.asarray(image.convert("L"))
        return grey[:, :, None], np.where(grey == 255 * bool(image.info["transparency"]), 0, 255).astype(np.uint8) if transparent else None
    if mode in ("I", "F"):
        raise InputError(f"{path}: 32-bit samples; accepted are 8 and 16 bits, and float32 in TIFF")
    if mode in ("CMYK", "LAB"):
        image = to_srgb(image, image.info.get("icc_profile"), path)
    elif mode in ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr", "HSV"):
        image = image.convert("RGBA" if transparent or mode in ("PA", "RGBA", "RGBa") else "RGB")
    elif mode in ("L", "LA", "La"):
        image = image.convert("LA" if transparent or mode != "L" else "L")
    else:
        raise InputError(f"{path}: pictures of mode {mode} are not supported; convert it to RGB")
    return split_alpha(np.asarray(image))


def _metadata(source: Source, image: Any) -> tuple[Metadata, int]:
    """Collect what Pillow found in the header, and the orientation that is to be applied."""
    info, path = image.info, source.path
    exif, orientation = read_exif(info.get("exif"), path)
    options = {"progressive"} if info.get("progressive") else set()
    if source.format == "webp" and is_lossless_webp(path):
        options.add("lossless")
    icc = srgb_profile() if image.mode in ("CMYK", "LAB") else info.get("icc_profile") or None
    comment = info.get("comment")
    dpi = info.get("dpi")
    return Metadata(
        icc=icc,
        exif=exif,
        xmp=upright_xmp(info.get("xmp")),
        dpi=(float(dpi[0]), float(dpi[1])) if dpi else None,
        texts=_texts(info) if source.format == "png" else (),
        comment=comment.encode("latin-1", "replace") if isinstance(comment, str) else comment,
        segments=tuple(data for marker, data in getattr(image, "applist", ()) if marker == "APP13"),
        options=frozenset(options),
        plays=_plays(source.format, info.get("loop")),
    ), orientation


def _plays(name: str, loop: int | None) -> int:
    """Return how often an animation is shown, 0 for ever. A GIF counts the repetitions, the other formats the showings."""
    if name == "gif":
        return 1 if loop is None else int(loop) + (loop > 0)
    return int(loop or 0)


def _texts(info: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return the text chunks of a PNG, which are what Pillow keeps as strings."""
    # The profiles of ImageMagick repeat EXIF as it was before the rotation.
    return tuple((key, str(text)) for key, text in info.items() if isinstance(text, str) and not key.startswith("Raw profile"))


def webp_size(head: bytes) -> tuple[int, int]:
    """Return the height and width that the first 30 bytes of a WebP file claim."""
    kind = head[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(head[place : place + 3], "little") + 1 for place in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (int.from_bytes(head[place : place + 2], "little") & 0x3FFF for place in (26, 28))
    return height, width


def is_lossless_webp(path: Path) -> bool:
    """Walk the chunks of a WebP file to the first that holds pixels, and say whether it is lossless."""
    with open(path, "rb") as stream:
        stream.seek(12)
        while len(head := stream.read(8)) == 8:
            kind, size = head[:4], int.from_bytes(head[4:], "little")
            if kind in (b"VP8L", b"VP8 "):
                return kind == b"VP8L"
            if kind == b"ANMF":
                stream.seek(16, 1)  # The frame's own header; its chunks follow.
            else:
                stream.seek(size + size % 2, 1)
    return False
