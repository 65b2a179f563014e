"""Videos through PyAV (optional): frame by frame, in the codec, rate and colours of the source, with its sound."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from cnnkit.errors import InputError, InputWarning, UsageError
from numpy.typing import NDArray

from cnnkit_superres.pictures import Metadata, Picture, Source, refusing
from cnnkit_superres.raster import open_stream

# Named, so that a file cannot ask for a demuxer that opens others (playlists do).
_DEMUXERS = {"mp4": "mov", "mov": "mov", "mkv": "matroska", "webm": "matroska", "avi": "avi"}
_MUXERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".avi": "avi"}
_ENCODERS = {
    "h264": ("libx264", "libopenh264"),
    "hevc": ("libx265",),
    "vp8": ("libvpx",),
    "vp9": ("libvpx-vp9",),
    "av1": ("libsvtav1", "libaom-av1"),
    "mpeg4": ("mpeg4",),
    "mjpeg": ("mjpeg",),
    "ffv1": ("ffv1",),
}
_FALLBACKS = ("libx264", "libopenh264", "libvpx-vp9", "libvpx", "mpeg4")
_X265_SIDE = 64  # Below a coding tree unit, libx265 4.2 damages the heap when it is closed.
_FULL, _BT709, _BT601, _UNSPECIFIED = 2, 1, 5, 2
_MATRICES = (1, 4, 5, 6, 7, 9)  # Those that PyAV converts; 6 is another name for 5.


class Video(Source):
    """The first video stream of a file.

    Attributes:
        codec: Its codec, for example ``h264``.
        rate: Frames per second, on average.
        time_base: Seconds of one unit of ``times``.
        times: When each frame that was read so far is shown.
    """

    def __init__(self, path: Path, name: str, *, max_pixels: int) -> None:
        self.times: dict[int, int] = {}
        super().__init__(path, name, max_pixels=max_pixels)

    def _decode(self) -> Iterator[Picture]:
        av = _library(self.path)
        with open_stream(self.path) as stream, refusing(self.path), av.open(stream, format=_DEMUXERS[self.format]) as container:
            video = self._video_stream(container)
            frames = container.decode(video)
            index = 0
            while (frame := next(frames, None)) is not None:
                self.check_size(frame.height, frame.width)
                if index == 0 and not self.opened:
                    self._describe(video, frame)
                if frame.pts is not None:
                    self.times[index] = frame.pts
                yield Picture(self._pixels(frame))
                index += 1
            if index < video.frames and self.opened:
                text = f"{self.path}: announces {video.frames} frames, of which {index} could be read; it may be truncated"
                warnings.warn(text, InputWarning, stacklevel=2)

    def _video_stream(self, container: Any) -> Any:
        video = next((stream for stream in container.streams.video if "attached_pic" not in str(stream.disposition)), None)
        if video is None:
            raise InputError(f"{self.path}: no video in it, perhaps only sound")
        self.check_size(video.codec_context.height, video.codec_context.width)
        return video

    def _describe(self, video: Any, frame: Any) -> None:
        self.metadata = Metadata()
        self.frame_count, self.is_animation = video.frames or None, True
        self.codec = video.codec_context.codec.canonical_name
        self.rate, self.time_base = Fraction(video.average_rate or video.guessed_rate or 25), Fraction(video.time_base)
        self.pixel_format = frame.format.name
        self.full_range = int(frame.color_range) == _FULL or self.pixel_format.startswith("yuvj") or frame.format.is_rgb
        matrix = int(frame.colorspace)
        # Players take BT.709 for a large video that does not say; an enlarged one must say what the small one meant.
        self.matrix = matrix if matrix in _MATRICES else _BT709 if frame.height >= 720 else _BT601
        self.primaries = int(getattr(frame, "color_primaries", _UNSPECIFIED))
        self.transfer = int(getattr(frame, "color_trc", _UNSPECIFIED))

    def _pixels(self, frame: Any) -> NDArray[Any]:
        """Return RGB, upright: 8 bits, or 16 of which the video fills the upper ones."""
        name = "rgb48le" if frame.format.components[0].bits > 8 else "rgb24"
        matrix = _BT601 if self.matrix == 6 else self.matrix
        rgb = frame.reformat(
            format=name,
            src_colorspace=matrix,
            dst_colorspace=matrix,
            src_color_range=_FULL if self.full_range else 1,
            dst_color_range=_FULL,
            interpolation="BICUBIC",
        )
        turns = round(getattr(frame, "rotation", 0) / 90)  # Counter-clockwise, as phones store it.
        return np.ascontiguousarray(np.rot90(rgb.to_ndarray(), turns))


def _library(path: Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise InputError(f"{path}: videos need PyAV, which is not installed; pip install 'cnnkit-superres[video]'") from error
    return av


def write_video(source: Video, path: Path, frames: Iterable[Picture], *, quality: int) -> None:
    """Write frames as a video like the source, and copy its sound packet by packet where the container takes it.

    Args:
        source: Where the frames come from. Their times are taken from it.
        path: Its ending chooses the container.
        frames: All of one size; 8 or 16 bits.
        quality: 0 to 100.

    Raises:
        UsageError: If no installed encoder fits the container.
    """
    av = _library(source.path)
    frames = iter(frames)
    first = next(frames)
    with (
        av.open(str(path), "w", format=_MUXERS[path.suffix.lower()]) as out,
        open_stream(source.path) as stream,
        av.open(stream, format=_DEMUXERS[source.format]) as origin,
    ):
        video = _add_video(av, out, source, first, quality)
        sound = _Sound(source, origin, out)
        brands = ("major_brand", "minor_version", "compatible_brands", "encoder")
        out.metadata.update({key: value for key, value in origin.metadata.items() if key.lower() not in brands})
        out.start_encoding()
        clock = _Clock(source, constant=video.codec_context.time_base == 1 / source.rate)
        for index, picture in enumerate(chain([first], frames)):
            if picture.size != first.size:
                raise ValueError(f"frame {index} of {picture.size} differs from the first, {first.size}")
            frame = _frame(av, picture, video.codec_context.pix_fmt, source)
            frame.pts, frame.time_base = clock.time(index)
            sound.copy_until(frame.pts * frame.time_base)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        sound.copy_until(None)


def _add_video(av: Any, out: Any, source: Video, first: Picture, quality: int) -> Any:
    """Add the encoder: the source's codec if it is installed and the container takes it, else the nearest."""
    name = _encoder(av, out, source, first.size)
    video = out.add_stream(name, rate=source.rate)
    context = video.codec_context
    context.height, context.width = first.size
    context.pix_fmt = _pixel_format(av, name, source, first)
    # These count in steps of one frame; the others keep the source's times, also where the rate varies.
    constant = name == "mpeg4" or out.format.name == "avi"
    context.time_base = 1 / source.rate if constant else source.time_base
    context.color_range, context.colorspace = _FULL if source.full_range else 1, source.matrix
    context.color_primaries, context.color_trc = source.primaries, source.transfer
    if name.startswith("lib"):
        if "vpx" in name:
            context.bit_rate = 0  # Constant quality.
        context.options = {"crf": str(min(51, 14 + round((100 - quality) * 0.4)))}
        if name == "libx265":
            context.options |= {"x265-params": "log-level=error"}
    elif name != "ffv1":
        context.bit_rate = int(first.size[0] * first.size[1] * source.rate * max(quality, 5) / 250)
    return video


def _encoder(av: Any, out: Any, source: Video, size: tuple[int, int]) -> str:
    family = _ENCODERS.get(source.codec, ())
    for name in (*family, *_FALLBACKS):
        if name == "libx265" and min(size) < _X265_SIDE:
            continue
        try:
            codec = av.Codec(name, "w")
        except ValueError:  # Not in this build of PyAV.
            continue
        if codec.canonical_name in out.supported_codecs:
            if name not in family:
                text = f"{source.path}: {source.codec} cannot be written to {out.format.name} here; written as {codec.canonical_name}"
                warnings.warn(text, InputWarning, stacklevel=2)
            return name
    raise UsageError(f"{source.path}: this PyAV has no encoder for {out.format.name}; choose --format mkv")


def _pixel_format(av: Any, encoder: str, source: Video, first: Picture) -> str:
    """Return the source's pixel format if the encoder has it, else the nearest; chroma at full size for odd sizes."""
    known = [item.name for item in av.Codec(encoder, "w").video_formats or ()]
    deep = first.pixels.dtype == np.uint16
    wanted = ["yuv444p10le", "yuv444p"] if deep else ["yuv444p"]
    if not (first.size[0] % 2 or first.size[1] % 2):
        wanted = [source.pixel_format.replace("yuvj", "yuv"), *(["yuv420p10le"] if deep else []), "yuv420p", *wanted]
    wanted = [name for name in wanted if name.startswith("yuv") and not name.startswith("yuva")]
    return next((name for name in wanted if name in known), known[0])


def _frame(av: Any, picture: Picture, pixel_format: str, source: Video) -> Any:
    pixels = np.repeat(picture.pixels, 3, axis=2) if picture.pixels.shape[2] == 1 else picture.pixels
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb48le" if pixels.dtype == np.uint16 else "rgb24")
    matrix = _BT601 if source.matrix == 6 else source.matrix
    return frame.reformat(
        format=pixel_format,
        src_colorspace=matrix,
        dst_colorspace=matrix,
        src_color_range=_FULL,
        dst_color_range=_FULL if source.full_range else 1,
        interpolation="BICUBIC",
    )


class _Clock:
    """When each frame is shown: as in the source, or in even steps where container or codec need them."""

    def __init__(self, source: Video, *, constant: bool) -> None:
        self.source, self.constant, self.last = source, constant, -1

    def time(self, index: int) -> tuple[int, Fraction]:
        source, step = self.source, 1 / self.source.rate
        start = source.times.get(0, 0) * source.time_base
        if not self.constant and index in source.times:
            return source.times[index], source.time_base
        seconds = source.times[index] * source.time_base if index in source.times else start + index * step
        self.last = max(self.last + 1, round(seconds / step))
        return self.last, step


class _Sound:
    """The sound packets of a file on their way into another, in step with the frames."""

    def __init__(self, source: Video, origin: Any, out: Any) -> None:
        self._copies = {}
        for stream in origin.streams.audio:
            name = stream.codec_context.codec.canonical_name
            if name in out.supported_codecs:
                self._copies[stream.index] = out.add_stream_from_template(stream)
            else:
                warnings.warn(f"{source.path}: {out.format.name} cannot hold its {name} sound, left out", InputWarning, stacklevel=2)
        wanted = [stream for stream in origin.streams.audio if stream.index in self._copies]
        self._packets = iter(origin.demux(wanted)) if wanted else iter(())
        self._next, self._out = next(self._packets, None), out

    def copy_until(self, seconds: Fraction | None) -> None:
        """Copy the packets up to a time, or all that are left."""
        while self._next is not None:
            packet = self._next
            if packet.dts is not None:
                if seconds is not None and packet.dts * packet.time_base > seconds:
                    return
                packet.stream = self._copies[packet.stream.index]
                self._out.mux(packet)
            self._next = next(self._packets, None)
