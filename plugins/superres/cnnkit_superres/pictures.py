"""Pictures in: what a file is, what it claims, and its frames, one at a time; clear refusals of what cannot be used.

Reading never guesses from values: the depth is the file's, and a dark 16-bit picture stays one. What a file is, its first
bytes say, not its name; only the decoders of the accepted formats are ever called (no format that runs programs).
"""

from __future__ import annotations

import importlib.util
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from cnnkit.errors import CnnkitError, InputError, InputWarning
from numpy.typing import NDArray

__all__ = ["FORMATS", "PEAKS", "SUFFIXES", "Metadata", "Picture", "Source", "open_source"]

Nonfinite = Literal["refuse", "zero"]

VIDEO_FORMATS = ("mp4", "mov", "mkv", "webm", "avi")

# The endings of each format; the first is written.
FORMATS: dict[str, tuple[str, ...]] = {
    "png": (".png",),
    "jpeg": (".jpg", ".jpeg"),
    "webp": (".webp",),
    "tiff": (".tif", ".tiff"),
    "bmp": (".bmp",),
    "gif": (".gif",),
    "avif": (".avif",),
    **{name: (f".{name}",) for name in VIDEO_FORMATS},
}


def _readable(name: str) -> bool:
    """Whether the library behind a format is installed; nothing heavy is imported to know."""
    if name in VIDEO_FORMATS:
        return importlib.util.find_spec("av") is not None
    return name != "avif" or importlib.util.find_spec("PIL._avif") is not None


SUFFIXES: tuple[str, ...] = tuple(suffix for name, suffixes in FORMATS.items() if _readable(name) for suffix in suffixes)
"""The file endings that are accepted here, in lower case, with the dot."""

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    *((head, "tiff") for head in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
)
_REFUSED: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript program"),
    (b"8BPS", "a Photoshop document"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML document"),
)
PEAKS: dict[np.dtype[Any], float] = {
    np.dtype(np.uint8): 255.0,
    np.dtype(np.uint16): 65535.0,
    np.dtype(np.float32): 1.0,
    np.dtype(np.float64): 1.0,
}
"""Types of pixels that are enlarged, and the value of white in each; files are read as all but the last."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One frame.

    Args:
        pixels: ``(H, W, C)``, C = 1 (grey) or 3 (RGB); uint8, uint16 or float32.
        alpha: ``(H, W)`` of the same type, or None: opacity, straight (colours are not premultiplied by it).
        peak: The value of white, by which the pixels are divided to lie in [0, 1]: 255, 65535, or for float32 the greatest
            value if that exceeds 1, else 1. Found from ``pixels`` if it is not given.
    """

    pixels: NDArray[Any]
    alpha: NDArray[Any] | None = None
    peak: float = 0.0

    def __post_init__(self) -> None:
        pixels, alpha = self.pixels, self.alpha
        if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
            raise ValueError(f"pixels have the shape (H, W, 1) or (H, W, 3), not {pixels.shape}")
        if pixels.dtype not in (np.uint8, np.uint16, np.float32):
            raise ValueError(f"pixels are uint8, uint16 or float32, not {pixels.dtype}")
        if alpha is not None and (alpha.shape != pixels.shape[:2] or alpha.dtype != pixels.dtype):
            raise ValueError(f"alpha {alpha.shape} {alpha.dtype} does not fit pixels {pixels.shape} {pixels.dtype}")
        if not self.peak:
            white = PEAKS[pixels.dtype]
            object.__setattr__(self, "peak", max(white, float(pixels.max())) if pixels.dtype.kind == "f" else white)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def opaque(self) -> float:
        """The value of full opacity: 255, 65535, or 1 for float32, however bright the colours are."""
        return PEAKS[self.pixels.dtype]

    def samples(self) -> NDArray[Any]:
        """Return colours and alpha as one array ``(H, W, 1 to 4)``."""
        return self.pixels if self.alpha is None else np.concatenate([self.pixels, self.alpha[:, :, None]], axis=2)

    def replaced(self, pixels: NDArray[Any], alpha: NDArray[Any] | None = None) -> Picture:
        """Return a picture of other pixels and alpha with the same white."""
        return Picture(pixels, alpha, self.peak)


@dataclass
class Metadata:
    """What a file holds besides its pixels, in the form in which it is written again.

    Args:
        bits: Per sample: 8, 16, or 32 for floats.
        channels: 1 or 3, of the pictures that were read.
        alpha: Whether the first picture has opacity.
        icc: The colour profile of the pictures that were read.
        exif: A TIFF structure without the ``Exif`` prefix; its orientation is already applied and reset.
        xmp: XML.
        dpi: Pixels per inch, horizontal and vertical.
        texts: Keyword and text of PNG chunks.
        comment: Of a JPEG or GIF file.
        segments: Raw APP13 segments of a JPEG file (captions and keywords of the press).
        options: How it was compressed: ``progressive``, ``lossless``, ``compressed``.
        plays: How often an animation is shown; 0 is for ever.
        durations: Milliseconds of each frame that was read so far.
    """

    bits: int = 8
    channels: int = 3
    alpha: bool = False
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    texts: tuple[tuple[str, str], ...] = ()
    comment: bytes | None = None
    segments: tuple[bytes, ...] = ()
    options: frozenset[str] = frozenset()
    plays: int = 1
    durations: dict[int, float] = field(default_factory=dict)


class Source(ABC):
    """An opened file: a still picture, the pages of a TIFF, an animation, or a video.

    The first frame is decoded when the file is opened, so that a damaged file is refused before any work; it is kept until
    :meth:`frames` hands it over. Open one source at a time.

    Attributes:
        path: The file.
        format: A key of ``FORMATS``: what the file's content is, whatever its name.
        size: Height and width of the first frame, as it is seen (orientation applied).
        frame_count: Number of frames, None if a video does not say.
        is_animation: Whether frames follow each other in time. The pages of a TIFF do not.
        metadata: What is written again with the result.
    """

    path: Path
    format: str
    size: tuple[int, int]
    frame_count: int | None = 1
    is_animation: bool = False
    metadata: Metadata
    opened = False

    def __init__(self, path: Path, name: str, *, max_pixels: int) -> None:
        self.path, self.format, self.max_pixels = path, name, max_pixels
        self.metadata = Metadata()
        frames = self._decode()
        first = next(frames, None)
        if first is None:
            raise InputError(f"{path}: no picture can be found in it; damaged or truncated? copy or download it again")
        self.size = first.size
        self.metadata.bits = {1: 8, 2: 16, 4: 32}[first.pixels.dtype.itemsize]
        self.metadata.channels, self.metadata.alpha = first.pixels.shape[2], first.alpha is not None
        self._pending: Iterator[Picture] | None = chain([first], frames)
        self.opened = True  # From here on, reading again leaves ``metadata`` as it is.

    def frames(self) -> Iterator[Picture]:
        """Yield the frames in order, decoding one at a time; may be called again, and then reads the file anew.

        Raises:
            InputError: If a later frame is damaged, or the file is gone.
        """
        pending, self._pending = self._pending, None
        return self._decode() if pending is None else pending

    def write(self, path: Path | str, frames: Iterable[Picture], *, format: str = "same", quality: int = 95) -> Path:
        """Write frames in the manner of this source; see :func:`cnnkit_superres.writing.write`."""
        from cnnkit_superres.writing import write

        return write(self, path, frames, format=format, quality=quality)

    def check_size(self, height: int, width: int) -> None:
        """Refuse a frame that claims too many pixels, before anything of it is decoded."""
        if height < 1 or width < 1:
            raise InputError(f"{self.path}: a picture of {width} x {height} pixels is empty")
        if height * width > self.max_pixels:
            raise InputError(
                f"{self.path}: claims {width} x {height} pixels, more than the {self.max_pixels:,} that are accepted (a small file that "
                "unpacks to so much may be an attack); if it is genuine, raise max_pixels or cut it into parts"
            )

    @abstractmethod
    def _decode(self) -> Iterator[Picture]:
        """Open the file, fill in ``metadata`` and the attributes, and yield its frames."""


def open_source(path: Path | str, *, nonfinite: Nonfinite = "refuse", max_pixels: int = 250_000_000) -> Source:
    """Open a picture, an animation, a TIFF of several pages, or a video.

    Args:
        path: The file. Its content decides how it is read; a wrong ending is a warning.
        nonfinite: ``"refuse"`` a float TIFF with NaN or infinite values, or replace them by ``"zero"`` with a warning.
        max_pixels: A frame whose header claims more is refused before it is decoded.

    Raises:
        InputError: If the file is missing, no picture, damaged, truncated, too large, or of a kind that is not supported;
            the message names the file, the cause and the remedy.
    """
    path = Path(path)
    name = _identify(path)
    suffix = path.suffix.lower()
    if any(suffix in suffixes for suffixes in FORMATS.values()) and suffix not in FORMATS[name]:
        kind = {"jpeg": "JPEG", "webp": "WebP"}.get(name, name.upper())
        warnings.warn(f"{path}: its content is {kind} in spite of its name; read and written as {kind}", InputWarning, stacklevel=2)
    if name in VIDEO_FORMATS:
        from cnnkit_superres.video import Video

        return Video(path, name, max_pixels=max_pixels)
    if name == "tiff":
        from cnnkit_superres.tiff import Tiff

        return Tiff(path, name, nonfinite=nonfinite, max_pixels=max_pixels)
    from cnnkit_superres.raster import Raster

    return Raster(path, name, max_pixels=max_pixels)


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn whatever a decoder stumbles over into one message that names the file.

    Decoders answer damaged data with exceptions of almost any class, so all are caught; running out of memory is not the file's fault.
    """
    try:
        yield
    except (CnnkitError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; was it moved or deleted?") from error
    except PermissionError as error:
        raise InputError(f"{path}: may not be read ({error.strerror}); check its permissions") from error
    except Exception as error:
        raise InputError(f"{path}: damaged or truncated ({error or type(error).__name__}); copy or download it again") from error


def _identify(path: Path) -> str:
    """Return the format by the first bytes of a file."""
    if path.is_dir():
        raise InputError(f"{path}: a folder, not a picture; give the folder itself as an input to run over the pictures in it")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: not a regular file; save its content to one")
    with refusing(path), open(path, "rb") as stream:
        head = stream.read(64)
    if not head:
        raise InputError(f"{path}: empty file (0 bytes); copy or download it again")
    name = next((name for magic, name in _MAGIC if head.startswith(magic)), None) or _identify_container(head)
    if name is None:
        kind = next((kind for magic, kind in _REFUSED if head.lstrip().startswith(magic)), "")
        if head[4:8] == b"ftyp":
            kind = "an HEIF picture"
        accepted = ", ".join(suffix.removeprefix(".") for suffix in SUFFIXES)
        what = f"{kind}, which is not supported; convert it, for example to PNG" if kind else "not a picture that can be read"
        raise InputError(f"{path}: {what}; accepted: {accepted}")
    if name == "avif" and not _readable(name):
        raise InputError(f"{path}: an AVIF picture, which this Pillow cannot read; pip install --upgrade pillow, or convert it to PNG")
    return name


def _identify_container(head: bytes) -> str | None:
    """Tell apart the formats that share their first bytes: RIFF, ISO media (``ftyp``) and Matroska."""
    brand = head[8:12]
    if head.startswith(b"RIFF"):
        return {b"WEBP": "webp", b"AVI ": "avi"}.get(brand)
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "webm" if b"webm" in head else "mkv"
    if head[4:8] == b"ftyp":
        if brand in (b"avif", b"avis") or (brand in (b"mif1", b"msf1") and b"avif" in head):
            return "avif"
        if brand in (b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1", b"crx "):
            return None
        return "mov" if brand == b"qt  " else "mp4"
    return "mov" if head[4:8] in (b"moov", b"mdat", b"wide") else None
