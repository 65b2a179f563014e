"""Pictures out: in the mode, depth and manner of their source, whole or not at all."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from cnnkit.engine.files import atomic_path
from cnnkit.errors import InputWarning, UsageError, unknown
from numpy.typing import NDArray

from cnnkit_superres.metadata import icc_channels, resized_exif
from cnnkit_superres.pictures import FORMATS, VIDEO_FORMATS, Picture, Source

_DEPTH = {"png": 16, "tiff": 32}  # Bits per sample at most; 8 elsewhere.
_OPAQUE = ("jpeg", "bmp")  # Formats without alpha that every reader understands.
_ANIMATED = ("gif", "webp", "png")
_NO_PROFILE = ("gif", "bmp")
_SIDE = {"jpeg": 65500, "webp": 16383, "gif": 65535, "avif": 65536, "bmp": 2**31 - 1, "png": 2**31 - 1}
_SEGMENT = 65533  # Bytes that fit a segment of a JPEG file.


def output_path(source: Source, path: Path | str, format: str = "same", *, alpha: bool | None = None) -> Path:
    """Return the path that :func:`write` will write, for example to see in time that two inputs would take one name.

    ``format`` decides if it is not ``"same"``, else the ending of ``path`` if it is one of a known format, else the source's format.
    What has alpha is written as PNG where JPEG or BMP was asked for.

    Args:
        source: What was opened.
        path: With an ending, or without.
        format: ``"same"``, or a format or ending: ``png``, ``jpg``, ``tif`` and so on.
        alpha: Whether there is alpha to write; that of the source if not given.

    Raises:
        UsageError: If the format is unknown, or cannot hold what the source is.
    """
    path = Path(path)
    name = _wanted(source, path, format)
    if name in _OPAQUE and (source.metadata.alpha if alpha is None else alpha):
        name = "png"
    ending = path.suffix if _format_of(path.suffix) else ""
    if ending.lower() in FORMATS[name]:
        return path
    own = source.path.suffix
    suffix = own if name == source.format and own.lower() in FORMATS[name] else FORMATS[name][0]
    return path.with_name(path.name.removesuffix(ending) + suffix)


def write(source: Source, path: Path | str, frames: Iterable[Picture], *, format: str = "same", quality: int = 95) -> Path:
    """Write the frames that were made of a source's frames, one at a time and atomically.

    Mode and depth are the source's where the format holds them; profile, EXIF, XMP, resolution, texts, durations and number of plays
    are kept. The size is that of the frames.

    Args:
        source: What the frames were made of.
        path: With an ending, or without; see :func:`output_path`.
        frames: Pictures, in the source's order; those of an animation or video all of one size.
        format: ``"same"``, or a format or ending.
        quality: 0 to 100, for JPEG, lossy WebP, AVIF and video.

    Returns:
        The path that was written: with another ending than asked for if alpha forced PNG.

    Raises:
        UsageError: If the format cannot hold the result, or the result would replace its source.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"{path}: no frame to write")
    target = output_path(source, path, format, alpha=first.alpha is not None)
    name = _format_of(target.suffix)
    if target.exists() and source.path.exists() and target.samefile(source.path):
        raise UsageError(f"{target}: the result would replace its source; choose another folder with -o")
    _check_side(target, name, first)
    frames = chain([first], frames)
    if name in VIDEO_FORMATS:
        from cnnkit_superres.video import Video, write_video

        assert isinstance(source, Video)
        with atomic_path(target) as part:
            deep = 16 if source.metadata.bits > 8 else 8
            write_video(source, part, (_fitted(picture, source, deep) for picture in frames), quality=quality)
        return target
    if name != (wanted := _wanted(source, Path(path), format)):
        warnings.warn(f"{source.path}: has transparency, which {wanted} cannot hold; written as {target.name}", InputWarning, stacklevel=2)
    bits = min(source.metadata.bits, _DEPTH.get(name, 8))
    if bits < source.metadata.bits:
        text = f"{source.path}: {source.metadata.bits} bits per sample become {bits} in {target.name}; png keeps 16, tif also floats"
        warnings.warn(text, InputWarning, stacklevel=2)
    if source.frame_count == 1 or source.is_animation:  # Else pages, of which each has a mode and depth of its own.
        frames = (_fitted(picture, source, bits) for picture in frames)
    with atomic_path(target) as part:
        _WRITERS[name](source, part, iter(frames), quality)
    return target


def _format_of(suffix: str) -> str:
    return next((name for name, suffixes in FORMATS.items() if suffix.lower() in suffixes), "")


def _wanted(source: Source, path: Path, format: str) -> str:
    """Return the format that was asked for, if it can hold what the source is."""
    suffix = path.suffix if format == "same" else f".{format.removeprefix('.')}"
    name = _format_of(suffix) or (source.format if format == "same" else format.lower())
    if name not in FORMATS:
        raise UsageError(unknown("format", format, ["same", *FORMATS, "jpg", "tif"]))
    _check_kind(source, name)
    return name


def _check_kind(source: Source, name: str) -> None:
    video, several = source.format in VIDEO_FORMATS, source.frame_count != 1
    if video != (name in VIDEO_FORMATS):
        accepted = ", ".join(VIDEO_FORMATS) if video else "same, png, jpg, webp, tif, bmp, gif"
        raise UsageError(f"{source.path}: a {'video' if video else 'picture'} is not written as {name}; accepted: {accepted}")
    if not video and several and source.is_animation and name not in _ANIMATED:
        raise UsageError(f"{source.path}: an animation of {source.frame_count} frames cannot be {name}; accepted: {', '.join(_ANIMATED)}")
    if several and not source.is_animation and name != "tiff":
        raise UsageError(f"{source.path}: {source.frame_count} pages cannot be {name}; accepted: same, tif")


def _check_side(target: Path, name: str, first: Picture) -> None:
    side, limit = max(first.size), _SIDE.get(name, math.inf)
    if side > limit:
        raise UsageError(f"{target}: {side} pixels a side do not fit {name}, which ends at {limit}; choose --format png")


def _fitted(picture: Picture, source: Source, bits: int) -> Picture:
    """Return a picture with the channels of the source and ``bits`` per sample."""
    pixels = picture.pixels
    if (
        source.metadata.channels == 1 and pixels.shape[2] == 3 and not source.is_animation
    ):  # A network of three channels made it of a grey picture.
        pixels = pixels.astype(np.float32) @ np.array([[0.299], [0.587], [0.114]], np.float32)
        pixels = pixels if picture.pixels.dtype == np.float32 else np.rint(pixels).astype(picture.pixels.dtype)
    alpha = None if picture.alpha is None else _with_bits(picture.alpha, picture.opaque, bits)
    return Picture(_with_bits(pixels, picture.peak, bits), alpha)


def _with_bits(values: NDArray[Any], peak: float, bits: int) -> NDArray[Any]:
    if values.dtype.itemsize * 8 == bits:
        return values
    unit = values.astype(np.float32) / np.float32(peak)
    if bits == 32:
        return unit
    white, kind = (255, np.uint8) if bits == 8 else (65535, np.uint16)
    return np.rint(np.clip(unit, 0, 1) * np.float32(white)).astype(kind)


def _image(picture: Picture) -> Any:
    from PIL import Image

    samples = picture.samples()
    return Image.fromarray(np.ascontiguousarray(samples[:, :, 0] if samples.shape[2] == 1 else samples))


def _duration(source: Source) -> Callable[[int], float]:
    """Return the milliseconds of a frame by its index; read from the file if its frames were not."""
    known = source.metadata.durations

    def of(index: int) -> float:
        if index not in known:
            for _ in source.frames():
                pass
        return known.get(index, 0.0)

    return of


def _options(source: Source, name: str, picture: Picture) -> dict[str, Any]:
    """Return the metadata as keyword arguments of Pillow's writers, without what does not fit the result."""
    metadata, options = source.metadata, dict[str, Any]()
    channels = 3 if name in ("webp", "avif") else picture.pixels.shape[2]
    if metadata.icc:
        if name in _NO_PROFILE and name != source.format:
            warnings.warn(f"{source.path}: {name} cannot hold its colour profile; colours may look different", InputWarning, stacklevel=2)
        elif icc_channels(metadata.icc) == channels:
            options["icc_profile"] = metadata.icc
        else:
            warnings.warn(f"{source.path}: its colour profile does not fit {channels} channels and is left out", InputWarning, stacklevel=2)
    if metadata.exif:
        options["exif"] = b"Exif\0\0" + resized_exif(metadata.exif, *picture.size)
    if metadata.xmp:
        options["xmp"] = metadata.xmp
    if metadata.dpi and all(math.isfinite(value) and 0.5 <= value < 65536 for value in metadata.dpi):
        options["dpi"] = metadata.dpi
    return options


def _write_png(source: Source, path: Path, frames: Iterator[Picture], quality: int) -> None:
    from PIL.PngImagePlugin import PngInfo

    from cnnkit_superres.png import write_png

    first = next(frames)
    options = _options(source, "png", first)
    texts = PngInfo()
    for key, text in source.metadata.texts:
        texts.add_text(key, text)
    if xmp := options.pop("xmp", None):
        texts.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
    options["pnginfo"] = texts
    duration = _duration(source) if source.is_animation else None
    write_png(
        path,
        (picture.samples() for picture in _alike(chain([first], frames), duration is not None)),
        options,
        duration=duration,
        plays=source.metadata.plays,
    )


def _alike(frames: Iterator[Picture], animated: bool) -> Iterator[Picture]:
    """Give all frames of an animation alpha and three channels: one frame may need them, and a PNG has one mode for all."""
    for picture in frames:
        if not animated:
            yield picture
            continue
        pixels = np.repeat(picture.pixels, 3, axis=2) if picture.pixels.shape[2] == 1 else picture.pixels
        yield Picture(pixels, np.full(picture.size, 255, np.uint8) if picture.alpha is None else picture.alpha)


def _write_jpeg(source: Source, path: Path, frames: Iterator[Picture], quality: int) -> None:
    picture = next(frames)
    options = _options(source, "jpeg", picture)
    for key, room in (("exif", _SEGMENT), ("xmp", _SEGMENT - 29)):
        if len(options.get(key, b"")) > room:
            warnings.warn(f"{source.path}: its {key.upper()} data do not fit a JPEG file and are left out", InputWarning, stacklevel=2)
            del options[key]
    metadata = source.metadata
    if metadata.comment:
        options["comment"] = metadata.comment
    options["extra"] = b"".join(b"\xff\xed" + (len(data) + 2).to_bytes(2, "big") + data for data in metadata.segments)
    # Full colour resolution: what was enlarged is not to be halved again.
    _image(picture).save(path, "JPEG", quality=quality, subsampling=0, progressive="progressive" in metadata.options, **options)


def _write_webp(source: Source, path: Path, frames: Iterator[Picture], quality: int) -> None:
    first = next(frames)
    options = _options(source, "webp", first) | {"quality": quality, "lossless": "lossless" in source.metadata.options, "exact": True}
    options.pop("dpi", None)
    if not source.is_animation:
        _image(first).save(path, "WEBP", **options)
        return
    count = source.frame_count or 1
    image = _film(chain([first], frames), count)
    image.save(path, "WEBP", save_all=True, duration=_Durations(count, _duration(source)), loop=source.metadata.plays, **options)


def _write_avif(source: Source, path: Path, frames: Iterator[Picture], quality: int) -> None:
    picture = next(frames)
    options = _options(source, "avif", picture)
    options.pop("dpi", None)
    _image(picture).save(path, "AVIF", quality=quality, subsampling="4:4:4", **options)


def _write_bmp(source: Source, path: Path, frames: Iterator[Picture], quality: int) -> None:
    picture = next(frames)
    options = _options(source, "bmp", picture)
    _image(picture).save(path, "BMP", **{key: options[key] for key in ("dpi",) if key in options})


def _write_gif(source: Source, path: Path, frames: Iterator[Picture], quality: int) -> None:
    from cnnkit_superres.gif import write_gif

    first = next(frames)
    _options(source, "gif", first)  # For its warnings: a GIF holds none of it.
    duration = _duration(source) if source.is_animation else None
    comment = source.metadata.comment
    write_gif(
        path, (picture.samples() for picture in chain([first], frames)), duration=duration, plays=source.metadata.plays, comment=comment
    )


def _write_tiff(source: Source, path: Path, frames: Iterator[Picture], quality: int) -> None:
    from cnnkit_superres.tiff import write_tiff

    first = next(frames)
    compressed = "compressed" in source.metadata.options or source.format != "tiff"
    write_tiff(path, chain([first], frames), _options(source, "tiff", first), compressed=compressed, pages=source.frame_count or 1)


_WRITERS: dict[str, Callable[[Source, Path, Iterator[Picture], int], None]] = {
    "png": _write_png,
    "jpeg": _write_jpeg,
    "webp": _write_webp,
    "avif": _write_avif,
    "bmp": _write_bmp,
    "gif": _write_gif,
    "tiff": _write_tiff,
}


class _Durations(list[float]):
    """A list whose items are found when they are asked for: a frame's duration is known once the frame was read."""

    def __init__(self, count: int, of: Callable[[int], float]) -> None:
        super().__init__([0.0] * count)
        self._of = of

    def __getitem__(self, index: Any) -> Any:
        return self._of(index)


def _film(frames: Iterator[Picture], count: int) -> Any:
    """Return a Pillow image of ``count`` frames that takes each from ``frames`` when a writer seeks to it."""
    from PIL import Image

    class Film(Image.Image):
        n_frames = count
        is_animated = True

        def __init__(self) -> None:
            super().__init__()
            self._position = -1
            self.seek(0)

        def tell(self) -> int:
            return self._position

        def seek(self, frame: int) -> None:
            if frame <= self._position:
                return
            picture = next(frames, None)
            if picture is None:
                raise ValueError(f"{frame} frames were given where {count} are announced")
            image = _image(picture)
            self.im, self._mode, self._size, self._position = image.im, image.mode, image.size, frame

    return Film()
