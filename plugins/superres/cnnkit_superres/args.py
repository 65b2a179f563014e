"""Options of ``cnnkit run superres``. No torch, no numpy: this is imported for ``--help``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from cnnkit.errors import UsageError
from cnnkit.options import RunOptions, option

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif")
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi")
FORMATS = ("same", "png", "jpg", "webp", "tif")
BUILTIN = {2: "weights/photo_x2.ckpt", 4: "weights/photo_x4.ckpt"}


@dataclass(frozen=True)
class Run(RunOptions):
    """Enlarge pictures and videos: PNG, JPEG, WebP, TIFF, BMP, GIF, MP4 and others, or a folder of these."""

    suffixes: ClassVar[tuple[str, ...]] = PICTURES + VIDEOS
    writes: ClassVar[str] = "NAME_x2.png (the input's format by default), and NAME_x2_compare.png if asked"

    scale: int | None = option(None, "Factor: 2 or 4 with the built-in networks; with --ckpt the one of the network.", metavar="2|3|4")
    tile: int | None = option(None, "Largest side of a tile in pixels of the input; the whole picture if memory allows.", metavar="PIXELS")
    overlap: int | None = option(
        None, "Pixels that neighbouring tiles share on each side; as many as the network sees, so that no seam can be.", metavar="PIXELS"
    )
    approximate: bool = option(False, "Allow tiles with networks that look at the whole picture: fast and small, but not the same result.")
    ensemble: bool = option(False, "Average over the eight flips and turns: eight times the work, a little better.")
    alpha: Literal["network", "bicubic"] = option("network", "How transparency is enlarged.", choices=("network", "bicubic"))
    format: Literal["same", "png", "jpg", "webp", "tif"] = option("same", "Format of the output.", choices=FORMATS)
    quality: int = option(95, "Quality of JPEG and WebP, 1 to 100.", metavar="1..100")
    compare: bool = option(False, "Write NAME_x2_compare.png too: bicubic beside the network, with zooms.")
    nonfinite: Literal["refuse", "zero"] = option("refuse", "What to do with NaN and infinite pixels.", choices=("refuse", "zero"))
    max_pixels: int = option(250_000_000, "Largest picture that is read, against files that claim absurd sizes.", metavar="PIXELS")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("scale", 1), ("tile", 1), ("overlap", 0), ("quality", 1), ("max_pixels", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"--{name.replace('_', '-')} {value} is too small; accepted: {least} or more")
        if self.quality > 100:
            raise UsageError(f"--quality {self.quality} is too large; accepted: 1 to 100")

    def builtin(self, checkpoint: str) -> str:
        """Return the built-in network for the scale."""
        if self.scale is None:
            return checkpoint
        if self.scale not in BUILTIN:
            raise UsageError(f"no built-in network enlarges by {self.scale}; accepted: --scale 2 or 4, or another network with --ckpt FILE")
        return BUILTIN[self.scale]
