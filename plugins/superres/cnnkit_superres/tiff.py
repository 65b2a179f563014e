"""TIFF: pages as frames, 8 and 16 bits and float32, in and out with their tags."""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from cnnkit.errors import InputError, InputWarning
from numpy.typing import NDArray

from cnnkit_superres.deep import deep_arrays, is_deep, split_alpha
from cnnkit_superres.metadata import DESCRIPTIVE, EXIF_IFD, GPS_IFD, ORIENTATION, icc_channels, srgb_profile, upright, upright_xmp
from cnnkit_superres.pictures import Metadata, Nonfinite, Picture, Source, refusing
from cnnkit_superres.raster import decoder, decoding, open_stream, to_arrays

# Photometric interpretations: white is zero, black is zero, RGB, palette, CMYK, YCbCr, Lab.
_WHITE_IS_ZERO, _PHOTOMETRIC = 0, (0, 1, 2, 3, 5, 6, 8)
_XMP, _ICC, _RESOLUTION, _INTEROPERABILITY, _PREMULTIPLIED = 700, 34675, (282, 283, 296), 0xA005, 1


class Tiff(Source):
    """The full-size pages of a TIFF file; thumbnails and pyramid levels beside them are passed over."""

    def __init__(self, path: Path, name: str, *, nonfinite: Nonfinite, max_pixels: int) -> None:
        self.nonfinite = nonfinite
        super().__init__(path, name, max_pixels=max_pixels)

    def _decode(self) -> Iterator[Picture]:
        import tifffile

        with open_stream(self.path) as stream:
            with refusing(self.path):
                pages = [
                    (index, page) for index, page in enumerate(tifffile.TiffFile(stream).pages) if not getattr(page, "is_reduced", False)
                ]
                self.frame_count = len(pages)
            for index, page in pages[:-1]:
                yield self._frame(stream, index, page)
            frame = self._frame(stream, *pages[-1]) if pages else None
        if frame is not None:
            yield frame

    def _frame(self, stream: Any, index: int, page: Any) -> Picture:
        with decoding(self.path):
            self._check(stream, page)
            if page.bitspersample in (16, 32):
                pixels, alpha = self._deep(stream, index, page)
            else:  # Pillow's libtiff knows every compression, palettes and colour spaces, and turns the picture upright.
                pixels, alpha = to_arrays(_page_image(stream, index), self.path)
            if not self.opened:
                self.metadata = _metadata(stream, page)
            return Picture(pixels, alpha)

    def _check(self, stream: Any, page: Any) -> None:
        """Refuse what is no picture of one of the accepted kinds, and what the file is too short for."""
        self.check_size(page.imagelength, page.imagewidth)
        samples, kind = page.samplesperpixel, page.dtype
        if page.photometric not in _PHOTOMETRIC:
            name = getattr(page.photometric, "name", page.photometric)
            raise InputError(f"{self.path}: TIFF of kind {name} (raw sensor data?); develop it and save it as RGB")
        if samples > 4 + (page.photometric == 5) or page.imagedepth > 1:
            raise InputError(f"{self.path}: TIFF of {samples} channels; accepted are grey or RGB, each with or without alpha")
        if kind not in (np.bool_, np.uint8, np.uint16, np.float16, np.float32) or page.bitspersample not in (1, 2, 4, 8, 16, 32):
            raise InputError(
                f"{self.path}: TIFF of {page.bitspersample}-bit samples ({kind}); accepted are 1 to 8 bits, 16 bits unsigned, and float32; "
                "convert it to one of these"
            )
        end = max((offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)), default=0)
        size = stream.seek(0, 2)
        if end > size:
            raise InputError(f"{self.path}: truncated: its header promises {end:,} bytes, the file has {size:,}; copy or download it again")

    def _deep(self, stream: Any, index: int, page: Any) -> tuple[NDArray[Any], NDArray[Any] | None]:
        if page.photometric not in (0, 1, 2):
            raise InputError(f"{self.path}: 16-bit {page.photometric.name} TIFF; accepted with 16 bits are grey and RGB; convert it to RGB")
        needed = math.prod(page.chunked)
        if len(page.dataoffsets) < needed:  # tifffile would leave the others black.
            raise InputError(f"{self.path}: damaged: names {len(page.dataoffsets)} of the {needed} parts that it must have")
        try:
            samples = page.asarray()
        except (ValueError, KeyError, ImportError) as error:  # tifffile's own codecs are few; imagecodecs brings the others.
            if "imagecodecs" not in str(error):
                raise
            pixels, alpha = self._by_libtiff(stream, index, page)
        else:
            if page.planarconfig == 2 and samples.ndim == 3:
                samples = np.moveaxis(samples, 0, -1)
            if samples.dtype.kind == "f":
                samples = self._finite(samples.astype(np.float32))
            tag = page.tags.get(ORIENTATION)
            samples = upright(samples.astype(samples.dtype.newbyteorder("="), copy=False), int(tag.value) if tag else 1)
            pixels, alpha = split_alpha(samples)
        if page.photometric == _WHITE_IS_ZERO:
            pixels = (65535 if pixels.dtype == np.uint16 else 1) - pixels
        if alpha is not None and tuple(page.extrasamples)[:1] == (_PREMULTIPLIED,):
            pixels = _straight(pixels, alpha)
        return pixels, alpha

    def _by_libtiff(self, stream: Any, index: int, page: Any) -> tuple[NDArray[Any], NDArray[Any] | None]:
        image = _page_image(stream, index) if page.dtype == np.uint16 and page.planarconfig != 2 else None
        if image is None or not is_deep(image):
            name = getattr(page.compression, "name", page.compression)
            raise InputError(
                f"{self.path}: {page.dtype} TIFF compressed by {name}, which needs another library; pip install imagecodecs, or save it "
                "without compression"
            )
        return deep_arrays(image, lambda: _page_image(stream, index))

    def _finite(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        bad = samples.size - int(np.isfinite(samples).sum())
        if bad and self.nonfinite == "refuse":
            raise InputError(
                f"{self.path}: {bad} of {samples.size} values are NaN or infinite; repair the file, or have them replaced by 0 with "
                "--nonfinite zero"
            )
        if bad:
            warnings.warn(f"{self.path}: {bad} of {samples.size} values are NaN or infinite; replaced by 0", InputWarning, stacklevel=2)
            np.nan_to_num(samples, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        return samples


def _page_image(stream: Any, index: int) -> Any:
    stream.seek(0)
    image = decoder("tiff", stream)
    if index:
        image.seek(index)
    return image


def _straight(pixels: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    """Divide colours that were stored multiplied by alpha."""
    peak = 65535 if pixels.dtype == np.uint16 else 1
    share = alpha[:, :, None].astype(np.float32) / peak
    straight = pixels / np.where(share > 0, share, 1)
    return np.rint(np.minimum(straight, peak)).astype(pixels.dtype) if pixels.dtype == np.uint16 else straight.astype(pixels.dtype)


def _metadata(stream: Any, page: Any) -> Metadata:
    icc, xmp = (page.tags.get(tag) for tag in (_ICC, _XMP))
    value = xmp.value if xmp else None
    return Metadata(
        icc=srgb_profile() if page.photometric in (5, 8) else bytes(icc.value) if icc else None,
        exif=_exif(stream, page),
        xmp=upright_xmp(bytes(value) if isinstance(value, tuple) else value),
        dpi=_dpi(page),
        options=frozenset({"compressed"} if page.compression != 1 else ()),
    )


def _exif(stream: Any, page: Any) -> bytes | None:
    """Return what the page's tags say about the picture, its camera and its place, as EXIF."""
    from PIL import Image

    stream.seek(0)
    header = stream.read(16 if page.parent.is_bigtiff else 8)
    tags = _directory(stream, header, page.offset)
    exif = Image.Exif()
    for tag in DESCRIPTIVE:
        if tag in tags:
            exif[tag] = tags[tag]
    for tag in (EXIF_IFD, GPS_IFD):
        if isinstance(tags.get(tag), int):
            exif.get_ifd(tag).update(_directory(stream, header, tags[tag]))
    return exif.tobytes().removeprefix(b"Exif\0\0") if exif else None


def _directory(stream: Any, header: bytes, offset: int) -> dict[int, Any]:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    directory = ImageFileDirectory_v2(header)
    stream.seek(offset)
    directory.load(stream)
    return {tag: directory[tag] for tag in directory if tag != _INTEROPERABILITY}


def _dpi(page: Any) -> tuple[float, float] | None:
    x, y, unit = (page.tags.get(tag) for tag in _RESOLUTION)
    scale = {2: 1.0, 3: 2.54}.get(int(unit.value) if unit else 2)
    if not (x and y and scale and x.value[1] and y.value[1]):
        return None
    return x.value[0] / x.value[1] * scale, y.value[0] / y.value[1] * scale


def write_tiff(path: Path, pictures: Iterable[Picture], options: dict[str, Any], *, compressed: bool, pages: int) -> None:
    """Write pictures as the pages of a TIFF file, one at a time.

    Args:
        path: The file. Beyond 4 GB it becomes a BigTIFF, which has no EXIF directories here.
        pictures: At least one.
        options: ``icc_profile``, ``exif``, ``xmp`` and ``dpi``, as Pillow's writers take them.
        compressed: Deflate, integers with a predictor.
        pages: How many pictures there are, about.
    """
    import tifffile

    exif = _loaded(options["exif"]) if "exif" in options else None
    dpi, icc = options.get("dpi"), options.get("icc_profile")
    pictures = iter(pictures)
    first = next(pictures)
    big = (first.pixels.nbytes + (0 if first.alpha is None else first.alpha.nbytes)) * pages > 3_900_000_000
    with tifffile.TiffWriter(path, bigtiff=big, byteorder="<") as file:
        for index, picture in enumerate(chain([first], pictures)):
            samples = picture.samples()
            file.write(
                samples[:, :, 0] if samples.shape[2] == 1 else samples,
                photometric="rgb" if samples.shape[2] > 2 else "minisblack",
                planarconfig="contig" if samples.shape[2] > 1 else None,
                extrasamples=None if picture.alpha is None else ["unassalpha"],
                compression="zlib" if compressed else None,
                predictor=compressed and samples.dtype != np.float32,
                iccprofile=icc if icc and icc_channels(icc) == picture.pixels.shape[2] else None,
                resolution=dpi,
                resolutionunit="INCH" if dpi else None,
                extratags=_extratags(options.get("xmp"), exif if index == 0 else None),
                metadata=None,
                software=False,
                contiguous=False,
            )
    if exif and not big:
        _append_directories(path, exif)


def _loaded(raw: bytes) -> Any:
    from PIL import Image

    exif = Image.Exif()
    exif.load(raw)
    return exif


def _extratags(xmp: bytes | None, exif: Any) -> list[tuple[int, str, int, Any, bool]]:
    tags: list[tuple[int, str, int, Any, bool]] = []
    if xmp:
        tags.append((_XMP, "B", len(xmp), xmp, True))
    if exif is None:
        return tags
    for tag in DESCRIPTIVE:
        if isinstance(exif.get(tag), str):
            text = exif[tag].encode("utf-8", "replace") + b"\0"
            tags.append((tag, "s", len(text), text, True))
    return tags


def _append_directories(path: Path, exif: Any) -> None:
    """Append the directories of camera and place to a classic little-endian TIFF, and a first directory that leads to them.

    Values stay where they are: the entries of the first directory hold offsets from the beginning of the file.
    """
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    with open(path, "r+b") as stream:
        stream.seek(4)
        (first,) = struct.unpack("<I", stream.read(4))
        stream.seek(first)
        (count,) = struct.unpack("<H", stream.read(2))
        entries = [stream.read(12) for _ in range(count)]
        following = stream.read(4)
        for tag in (EXIF_IFD, GPS_IFD):
            directory = ImageFileDirectory_v2()
            for key, value in exif.get_ifd(tag).items():
                if key != _INTEROPERABILITY and value is not None:
                    directory[key] = value
            if len(directory):
                offset = _even_end(stream)
                stream.write(directory.tobytes(offset))
                entries.append(struct.pack("<HHII", tag, 4, 1, offset))
        entries.sort(key=lambda entry: struct.unpack("<H", entry[:2]))
        offset = _even_end(stream)
        stream.write(struct.pack("<H", len(entries)) + b"".join(entries) + following)
        stream.seek(4)
        stream.write(struct.pack("<I", offset))


def _even_end(stream: Any) -> int:
    """Go to the end of a file, padded to an even offset, where TIFF directories begin."""
    end = stream.seek(0, 2)
    return int(end + stream.write(b"\0" * (end % 2)))
