"""What travels with the pixels: EXIF with its orientation reset, XMP, colour profiles."""

from __future__ import annotations

import io
import re
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from cnnkit.errors import InputWarning
from numpy.typing import NDArray

ORIENTATION, WIDTH, HEIGHT, EXIF_IFD, GPS_IFD = 0x0112, 0xA002, 0xA003, 0x8769, 0x8825

# Tags of a TIFF that describe the picture and not how it is stored: document, make, model, software, date, artist, host, copyright.
DESCRIPTIVE = (269, 270, 271, 272, 305, 306, 315, 316, 33432)


def upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return ``(H, W, ...)`` turned and mirrored as the EXIF orientation 1 to 8 asks; other values change nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


class ExifBlock:
    """EXIF bytes that are changed in place, so that everything else (makers' notes with their offsets) stays as it was."""

    def __init__(self, raw: bytes) -> None:
        """Find the entries.

        Raises:
            ValueError, struct.error: If it is no TIFF structure.
        """
        self.data = bytearray(raw.removeprefix(b"Exif\0\0"))
        self.order = {b"II": "<", b"MM": ">"}.get(bytes(self.data[:2]), "")
        if not self.order or self._get("H", 2) != 42:
            raise ValueError("no TIFF structure")
        first = self._get("I", 4)
        self.entries = self._entries(first)
        if EXIF_IFD in self.entries:
            inner = self._get("I", self.entries[EXIF_IFD] + 8)
            self.entries = {**self._entries(inner), **self.entries}
        self._thumbnail = first + 2 + 12 * self._get("H", first)

    def get(self, tag: int) -> int | None:
        """Return the value of a tag that holds one SHORT or LONG, or None."""
        kind = self._kind(tag)
        return self._get(kind, self.entries[tag] + 8) if kind else None

    def set(self, tag: int, value: int) -> None:
        """Replace the value of a SHORT or LONG tag that exists."""
        kind = self._kind(tag)
        if kind and value < 1 << 8 * struct.calcsize(kind):
            struct.pack_into(self.order + kind, self.data, self.entries[tag] + 8, value)

    def drop_thumbnail(self) -> None:
        """Unlink the second directory: a thumbnail of the source, in the source's orientation."""
        struct.pack_into(self.order + "I", self.data, self._thumbnail, 0)

    def _kind(self, tag: int) -> str:
        if tag not in self.entries:
            return ""
        return {3: "H", 4: "I"}.get(self._get("H", self.entries[tag] + 2), "")

    def _entries(self, offset: int) -> dict[int, int]:
        places = [offset + 2 + 12 * index for index in range(self._get("H", offset))]
        return {self._get("H", place): place for place in places}

    def _get(self, kind: str, offset: int) -> int:
        return int(struct.unpack_from(self.order + kind, self.data, offset)[0])


def read_exif(raw: bytes | None, path: Path) -> tuple[bytes | None, int]:
    """Return EXIF with its orientation reset and its thumbnail unlinked, and the orientation it had (1 if none).

    Damaged EXIF is dropped with a warning: the picture is not at fault.
    """
    if not raw:
        return None, 1
    try:
        block = ExifBlock(raw)
        orientation = block.get(ORIENTATION) or 1
        block.set(ORIENTATION, 1)
        block.drop_thumbnail()
    except (ValueError, struct.error):
        warnings.warn(f"{path}: its EXIF data are damaged and left out", InputWarning, stacklevel=2)
        return None, 1
    return bytes(block.data), orientation


def resized_exif(exif: bytes, height: int, width: int) -> bytes:
    """Return EXIF with the size of the result where it states that of the source."""
    block = ExifBlock(exif)
    block.set(WIDTH, width)
    block.set(HEIGHT, height)
    return bytes(block.data)


def upright_xmp(xmp: bytes | str | None) -> bytes | None:
    """Return XMP that no longer asks for a rotation which was applied."""
    if not xmp:
        return None
    xmp = xmp.encode() if isinstance(xmp, str) else xmp
    xmp = re.sub(rb'(tiff:Orientation\s*=\s*["\'])\d', rb"\g<1>1", xmp)
    return re.sub(rb"(<tiff:Orientation>)\d", rb"\g<1>1", xmp)


def icc_channels(icc: bytes) -> int:
    """Return the number of channels that a colour profile is made for: 1 (grey), 3 (RGB), 4 (CMYK), or 0 for any other."""
    return {b"GRAY": 1, b"RGB ": 3, b"CMYK": 4}.get(icc[16:20], 0)


def srgb_profile() -> bytes:
    """Return an ICC profile of sRGB."""
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def to_srgb(image: Any, icc: bytes | None, path: Path) -> Any:
    """Convert a CMYK or Lab image to sRGB through its profile; CMYK without one by the plain formula, which is less exact."""
    from PIL import ImageCms

    target = ImageCms.createProfile("sRGB")
    try:
        if image.mode == "LAB":
            return ImageCms.profileToProfile(image, ImageCms.createProfile("LAB"), target, outputMode="RGB")
        if icc and icc_channels(icc) == 4:
            flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
            intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            warnings.warn(f"{path}: CMYK, converted to sRGB through its colour profile; written as RGB", InputWarning, stacklevel=2)
            return ImageCms.profileToProfile(image, profile, target, intent, outputMode="RGB", flags=flags)
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        warnings.warn(f"{path}: its colour profile cannot be used ({error})", InputWarning, stacklevel=2)
    if image.mode == "CMYK":
        warnings.warn(f"{path}: CMYK without a usable colour profile; its colours as RGB are approximate", InputWarning, stacklevel=2)
    return image.convert("RGB")
