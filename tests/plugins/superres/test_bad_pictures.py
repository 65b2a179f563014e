"""Files that are no pictures, or damaged, or too much: one clear refusal each, before any work."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from cnnkit.errors import InputError, InputWarning
from cnnkit_superres.pictures import open_source
from cnnkit_superres.raster import webp_size
from drawn_pictures import discs, only, smooth
from PIL import Image

RNG = np.random.default_rng(3)


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def accepted(path: Path) -> bytes:
    Image.fromarray(smooth(40, 60)).save(path)
    return path.read_bytes()


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        open_source(tmp_path / "a.png")


def test_a_folder_with_the_name_of_a_picture(tmp_path):
    (tmp_path / "x.png").mkdir()
    with pytest.raises(InputError, match="a folder"):
        open_source(tmp_path / "x.png")


def test_an_empty_file(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match="empty file"):
        open_source(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"just some text, for no reason at all", "not a picture"),
        (b"%PDF-1.7 and so on", "a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript program"),
        (b"\x80\x04\x95pickled", "not a picture"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIF"),
        (b"BM is how this text begins, and it is no bitmap", "damaged or truncated"),
        (b"#EXTM3U\nhttp://example.com/a.ts\n", "not a picture"),
        (b"\0" * 100, "not a picture"),
    ],
)
def test_what_is_no_picture(tmp_path, content, message):
    (tmp_path / "a.png").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        with pytest.raises(InputError, match=message) as caught:
            open_source(tmp_path / "a.png")
    assert "a.png" in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp", "gif"])
def test_a_truncated_file_is_refused_when_it_is_opened(tmp_path, suffix):
    content = accepted(tmp_path / f"whole.{suffix}")
    for share in (0.3, 0.6, 0.9):
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(InputError, match=r"truncated|damaged"):
            open_source(path)


def test_a_truncated_deep_tiff(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(30, 30, 3, dtype=np.uint16), photometric="rgb")
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[:-1000])
    with pytest.raises(InputError, match="truncated"):
        open_source(tmp_path / "a.tif")


def test_a_tiff_whose_tags_contradict_each_other(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(9, 8, 3, dtype=np.uint16), photometric="rgb")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        file.pages[0].tags["PlanarConfiguration"].overwrite(2)
    with pytest.raises(InputError, match=r"a\.tif"):
        open_source(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp", "gif"])
def test_random_damage_is_read_or_refused_but_nothing_else(tmp_path, suffix):
    content = accepted(tmp_path / f"whole.{suffix}")
    rng = np.random.default_rng(5)
    refused = 0
    for _ in range(60):
        damaged = bytearray(content)
        for place in rng.integers(0, min(len(damaged), 400), 4):
            damaged[place] = rng.integers(256)
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                picture = only(path, max_pixels=1_000_000)
            except InputError:
                refused += 1
            else:
                assert picture.pixels.dtype in (np.uint8, np.uint16, np.float32)
    assert refused  # The damage does reach the decoder.


def bomb(suffix: str, path: Path) -> None:
    """A small file whose header claims 50000 x 40000 pixels."""
    small = io.BytesIO()
    if suffix == "tif":
        tifffile.imwrite(small, np.zeros((4, 4), np.uint8))
        content = small.getvalue()
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            places = [file.pages[0].tags[tag].valueoffset for tag in (256, 257)]
        data = bytearray(content)
        for place, value in zip(places, (50000, 40000), strict=True):
            data[place : place + 4] = struct.pack("<I", value)[: 4 if file.pages[0].tags[256].dtype == 4 else 2].ljust(4, b"\0")
    else:
        Image.new("RGB", (4, 4)).save(small, {"jpg": "JPEG"}.get(suffix, suffix.upper()))
        data = bytearray(small.getvalue())
        if suffix == "png":
            data[16:24] = struct.pack(">II", 50000, 40000)
            data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
        elif suffix == "gif":
            data[6:10] = struct.pack("<HH", 50000, 40000)
        elif suffix == "bmp":
            data[18:26] = struct.pack("<ii", 50000, 40000)
        else:
            place = data.index(b"\xff\xc0")
            data[place + 5 : place + 9] = struct.pack(">HH", 40000, 50000)
    path.write_bytes(data)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tif"])
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, suffix):
    bomb(suffix, tmp_path / f"a.{suffix}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=r"claims 50000 x 40000 pixels.*max_pixels"):
            open_source(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}])
def test_size_of_a_webp_by_its_header(tmp_path, options):
    Image.fromarray(smooth(37, 301)).save(tmp_path / "a.webp", **options)
    assert webp_size((tmp_path / "a.webp").read_bytes()[:30]) == (37, 301)


def test_a_webp_bomb_is_refused_before_its_decoder_is_made(tmp_path, monkeypatch):
    frames = discs(2)
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    data = bytearray((tmp_path / "a.webp").read_bytes())
    assert data[12:16] == b"VP8X"
    data[24:30] = b"\xfe\x3f\0" * 2  # The largest canvas there is.
    (tmp_path / "a.webp").write_bytes(data)
    monkeypatch.setattr("PIL._webp.WebPAnimDecoder", None)
    with pytest.raises(InputError, match="claims 16383 x 16383 pixels"):
        open_source(tmp_path / "a.webp")


def test_the_limit_of_pixels_is_the_callers(tmp_path, monkeypatch):
    accepted(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"60 x 40 pixels, more than the 2,399"):
        open_source(tmp_path / "a.png", max_pixels=2399)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow's own limit, one for the whole process, has no say.
    for suffix in ("png", "tif", "webp", "gif", "jpg", "bmp"):
        accepted(tmp_path / f"a.{suffix}")
        assert open_source(tmp_path / f"a.{suffix}", max_pixels=2400).size == (40, 60)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_values_that_are_not_finite(tmp_path):
    stored = RNG.random((4, 5, 3)).astype(np.float32)
    stored[1, 2, 0], stored[3, 3, 1] = np.nan, np.inf
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb")
    with pytest.raises(InputError, match=r"2 of 60 values are NaN or infinite.*--nonfinite zero"):
        open_source(tmp_path / "a.tif")
    with pytest.warns(InputWarning, match="replaced by 0"):
        picture = only(tmp_path / "a.tif", nonfinite="zero")
    np.testing.assert_array_equal(picture.pixels, np.where(np.isfinite(stored), stored, 0))
    assert picture.peak == 1


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.zeros((6, 5, 5), np.uint8), {"photometric": "rgb", "planarconfig": "contig"}, "5 channels"),
        (np.zeros((6, 5, 5), np.uint16), {"photometric": "rgb", "planarconfig": "contig"}, "5 channels"),
        (np.zeros((6, 5), np.float64), {}, "64-bit"),
        (np.zeros((6, 5), np.uint64), {}, "64-bit"),
        (np.zeros((6, 5), np.int32), {}, "32-bit samples"),
        (np.zeros((6, 5), np.int16), {}, "16-bit samples"),
        (np.zeros((6, 5), np.complex64), {}, "complex64"),
        (np.zeros((6, 5, 4), np.uint16), {"photometric": "separated"}, "convert it to RGB"),
        (np.zeros((6, 5), np.uint16), {"photometric": "cfa"}, "raw sensor"),
    ],
)
def test_tiff_kinds_that_are_refused(tmp_path, values, options, message):
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    with pytest.raises(InputError, match=message):
        open_source(tmp_path / "a.tif")


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 3), (1, 7)])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "gif"])
def test_extreme_shapes_are_read(tmp_path, suffix, size):
    Image.fromarray(smooth(*size)).save(tmp_path / f"a.{suffix}")
    source = open_source(tmp_path / f"a.{suffix}")
    assert source.size == next(source.frames()).size == size


def test_alpha_of_zero_everywhere_is_read(tmp_path):
    stored = noise(5, 5, 4)
    stored[:, :, 3] = 0
    Image.fromarray(stored).save(tmp_path / "a.png")
    np.testing.assert_array_equal(only(tmp_path / "a.png").samples(), stored)


def test_a_file_that_vanishes(tmp_path):
    accepted(tmp_path / "a.png")
    source = open_source(tmp_path / "a.png")
    (tmp_path / "a.png").unlink()
    assert len(list(source.frames())) == 1  # Was decoded when it was opened.
    with pytest.raises(InputError, match="no such file; was it moved or deleted"):
        list(source.frames())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(InputError, match="not a regular file"):
        open_source(tmp_path / "a.png")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_file_that_may_not_be_read(tmp_path):
    accepted(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(InputError, match="may not be read"):
        open_source(tmp_path / "a.png")


def test_content_wins_over_the_name(tmp_path):
    Image.fromarray(smooth(5, 6)).save(tmp_path / "a.png", "JPEG")
    with pytest.warns(InputWarning, match="content is JPEG in spite of its name"):
        source = open_source(tmp_path / "a.png")
    assert source.format == "jpeg"
    (tmp_path / "a.png").rename(tmp_path / "noending")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_source(tmp_path / "noending").size == (5, 6)


def test_the_names_of_one_stem_are_two_pictures(tmp_path):
    Image.new("L", (3, 4), 10).save(tmp_path / "a.png")
    Image.new("L", (3, 4), 200).save(tmp_path / "a.jpg")
    assert [only(tmp_path / name).pixels[0, 0, 0] for name in ("a.png", "a.jpg")] == [10, 200]


def test_damage_in_a_later_frame_is_found_there(tmp_path):
    frames = discs(4)
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], duration=40)
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: content.rindex(b"fdAT") + 12])
    taken = []
    with pytest.raises(InputError, match=r"a\.png: damaged or truncated"):
        taken.extend(open_source(tmp_path / "a.png").frames())
