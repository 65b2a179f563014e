"""Reading pictures, and refusing what is none. Oracles: the arrays that were stored, Pillow, tifffile, PyAV's PNG encoder, ImageCms."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from cnnkit.errors import InputError, InputWarning
from cnnkit_superres.metadata import upright
from cnnkit_superres.pictures import SUFFIXES, Picture, open_source
from drawn_pictures import discs, only, smooth
from PIL import Image, ImageCms, ImageOps

RNG = np.random.default_rng(3)


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def deep_png(path: Path, samples: np.ndarray, *, interlace: int = 0, extra: bytes = b"") -> Path:
    """Write a 16-bit PNG the plain way: no filter, or the seven passes of Adam7."""
    height, width, channels = samples.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    passes = (
        [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)] if interlace else [(0, 0, 1, 1)]
    )
    parts = [samples[y::dy, x::dx] for y, x, dy, dx in passes]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for part in parts if part.size for row in part)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, interlace)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


# Modes and depths


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "webp"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_lossless_formats_give_the_stored_samples(tmp_path, mode, suffix):
    if suffix == "bmp" and mode in ("LA", "RGBA"):
        pytest.skip("BMP without alpha")
    channels = len(mode)
    stored = noise(7, 5, channels)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(stored[:, :, 0] if channels == 1 else stored, mode).save(
        path, **({"lossless": True, "exact": True} if suffix == "webp" else {})
    )
    source = open_source(path)
    (picture,) = source.frames()
    if suffix == "webp" and channels < 3:  # WebP knows no grey.
        stored = np.concatenate([np.repeat(stored[:, :, :1], 3, axis=2), stored[:, :, 1:]], axis=2)
    np.testing.assert_array_equal(picture.samples(), stored)
    assert (picture.alpha is not None) == (mode[-1] == "A") and picture.peak == 255
    assert (source.size, source.frame_count, source.is_animation) == ((7, 5), 1, False)


@pytest.mark.parametrize("interlace", [0, 1])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_is_exact(tmp_path, channels, interlace):
    stored = noise(13, 11, channels, dtype=np.uint16)
    picture = only(deep_png(tmp_path / "a.png", stored, interlace=interlace))
    assert picture.pixels.dtype == np.uint16 and picture.peak == 65535
    np.testing.assert_array_equal(picture.samples(), stored)


def test_16_bit_png_of_another_encoder_is_exact(tmp_path):
    av = pytest.importorskip("av")
    stored = noise(13, 16, 3, dtype=np.uint16) // 7  # Not only noise: libav then uses filters.
    context = av.CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt = 16, 13, "rgb48be"
    frame = av.VideoFrame.from_ndarray(stored, format="rgb48be")
    (tmp_path / "a.png").write_bytes(b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)]))
    np.testing.assert_array_equal(only(tmp_path / "a.png").pixels, stored)


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_png_with_a_transparent_colour(tmp_path, channels):
    stored = noise(4, 5, channels, dtype=np.uint16)
    key = stored[2, 3].astype(">u2").tobytes()
    extra = struct.pack(">I", len(key)) + b"tRNS" + key + struct.pack(">I", zlib.crc32(b"tRNS" + key))
    picture = only(deep_png(tmp_path / "a.png", stored, extra=extra))
    expected = np.full((4, 5), 65535)
    expected[2, 3] = 0
    np.testing.assert_array_equal(picture.alpha, expected)
    np.testing.assert_array_equal(picture.pixels, stored)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_dark_16_bit_picture_stays_one(tmp_path, suffix):
    stored = noise(6, 8, 3, dtype=np.uint16) % 200
    path = deep_png(tmp_path / "a.png", stored) if suffix == "png" else tmp_path / "a.tif"
    if suffix == "tif":
        tifffile.imwrite(path, stored, photometric="rgb")
    picture = only(path)
    assert picture.pixels.dtype == np.uint16 and picture.peak == 65535
    np.testing.assert_array_equal(picture.pixels, stored)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.float16])
def test_deep_tiff_is_exact(tmp_path, dtype, planar, byteorder, compression):
    stored = noise(9, 7, 3, dtype=np.uint16).astype(dtype) if dtype == np.uint16 else RNG.random((9, 7, 3)).astype(dtype)
    values = stored if planar == "contig" else np.moveaxis(stored, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", planarconfig=planar, byteorder=byteorder, compression=compression)
    picture = only(tmp_path / "a.tif")
    assert picture.pixels.dtype == (np.uint16 if dtype == np.uint16 else np.float32)
    assert picture.pixels.dtype.isnative and picture.pixels.flags.c_contiguous
    np.testing.assert_array_equal(picture.pixels, stored.astype(picture.pixels.dtype))


def test_16_bit_tiff_of_a_compression_that_tifffile_lacks_is_read_by_libtiff(tmp_path, monkeypatch):
    stored = noise(9, 7, 4, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", compression="zlib", predictor=True, extrasamples=["unassalpha"])

    def refuse(*_, **__):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", refuse)
    np.testing.assert_array_equal(only(tmp_path / "a.tif").samples(), stored)
    tifffile.imwrite(tmp_path / "f.tif", stored.astype(np.float32), photometric="rgb", compression="zlib", extrasamples=["unassalpha"])
    with pytest.raises(InputError, match="pip install imagecodecs"):
        open_source(tmp_path / "f.tif")


def test_float_tiff_keeps_its_range_and_says_what_white_is(tmp_path):
    stored = (RNG.random((5, 6)) * 4000 - 5).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", stored)
    picture = only(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.pixels[:, :, 0], stored)
    assert picture.peak == pytest.approx(float(stored.max()), rel=1e-7)
    tifffile.imwrite(tmp_path / "b.tif", stored / 1e5)
    assert only(tmp_path / "b.tif").peak == 1.0


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_premultiplied_tiff_becomes_straight(tmp_path, dtype):
    white = 65535 if dtype == np.uint16 else 1
    straight, alpha = RNG.random((6, 5, 3)), 0.2 + 0.8 * RNG.random((6, 5, 1))
    alpha[0, 0], straight[0, 0] = 0, 0
    stored = np.concatenate([straight * alpha, alpha], axis=2) * white
    stored = np.rint(stored).astype(dtype) if dtype == np.uint16 else stored.astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=["assocalpha"])
    picture = only(tmp_path / "a.tif")
    np.testing.assert_allclose(picture.pixels / white, straight, atol=5e-5 if dtype == np.uint16 else 1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_of_inverted_grey(tmp_path, dtype):
    stored = noise(4, 6, dtype=dtype)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite")
    np.testing.assert_array_equal(only(tmp_path / "a.tif").pixels[:, :, 0], np.iinfo(dtype).max - stored)


@pytest.mark.parametrize("transparent", [False, True])
def test_palette_becomes_colour(tmp_path, transparent):
    image = Image.fromarray(smooth(8, 9)).quantize(16)
    image.save(tmp_path / "a.png", **({"transparency": 3} if transparent else {}))
    picture = only(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.pixels, np.asarray(image.convert("RGB")))
    if transparent:
        np.testing.assert_array_equal(picture.alpha, np.where(np.asarray(image) == 3, 0, 255))
    else:
        assert picture.alpha is None


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_1_bit_becomes_grey(tmp_path, suffix):
    stored = noise(9, 11) > 127
    Image.fromarray(stored).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(only(tmp_path / f"a.{suffix}").pixels[:, :, 0], stored * 255)


def test_transparent_colour_of_a_1_bit_png(tmp_path):
    stored = noise(9, 11) > 127
    Image.fromarray(stored).save(tmp_path / "a.png", transparency=1)
    np.testing.assert_array_equal(only(tmp_path / "a.png").alpha, np.where(stored, 0, 255))


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_without_a_profile(tmp_path, suffix):
    image = Image.fromarray(smooth(16, 16)).convert("CMYK")
    image.save(tmp_path / f"a.{suffix}", quality=100)
    with pytest.warns(InputWarning, match="CMYK"):
        picture = only(tmp_path / f"a.{suffix}")
    expected = np.asarray(Image.open(tmp_path / f"a.{suffix}").convert("RGB"))
    np.testing.assert_array_equal(picture.pixels, expected)


def printer_profile() -> bytes:
    """An ICC profile of a printer whose cyan ink is red: a table of Lab colours at the 16 corners of CMYK."""
    corners = np.full((2, 2, 2, 2, 3), (0, 128, 128), np.uint8)
    corners[0, 0, 0, 0] = (255, 128, 128)
    corners[1, 0, 0, 0] = (round(53.2 * 2.55), 128 + 80, 128 + 67)
    ramp = bytes(range(256))
    unit = struct.pack(">9i", *(65536 * (row == column) for row in range(3) for column in range(3)))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + unit + ramp * 4 + corners.tobytes() + ramp * 3
    text = b"text\0\0\0\0free\0".ljust(16, b"\0")
    name = (b"desc\0\0\0\0" + struct.pack(">I", 5) + b"inks\0" + b"\0" * 78).ljust(100, b"\0")
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    tags = {b"desc": name, b"cprt": text, b"wtpt": white, b"A2B0": table}
    directory, data = struct.pack(">I", len(tags)), b""
    for tag, content in tags.items():
        directory += tag + struct.pack(">II", 132 + 12 * len(tags) + len(data), len(content))
        data += content.ljust(-(-len(content) // 4) * 4, b"\0")
    head = struct.pack(">I4sI4s4s4s", 132 + 12 * len(tags) + len(data), b"\0" * 4, 0x02400000, b"prtr", b"CMYK", b"Lab ")
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28 + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + directory + data


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_is_converted_through_its_profile(tmp_path, suffix):
    ink = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    ink.save(tmp_path / f"a.{suffix}", icc_profile=printer_profile(), quality=100)
    with pytest.warns(InputWarning, match="converted to sRGB through its colour profile; written as RGB"):
        source = open_source(tmp_path / f"a.{suffix}")
    red = next(source.frames()).pixels.reshape(-1, 3).mean(axis=0)
    assert red[0] > 240 and max(red[1:]) < 25  # Lab 53, 80, 67 is the red of sRGB; by formula cyan is (0, 255, 255).
    assert source.metadata.icc[16:20] == b"RGB "


def test_a_damaged_profile_is_no_reason_to_refuse(tmp_path):
    image = Image.fromarray(smooth(16, 16)).convert("CMYK")
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[16:20] = b"CMYK"  # Says CMYK, holds the tables of RGB.
    image.save(tmp_path / "a.jpg", icc_profile=bytes(profile))
    with pytest.warns(InputWarning, match="profile"):
        source = open_source(tmp_path / "a.jpg")
    assert next(source.frames()).pixels.shape == (16, 16, 3)
    assert source.metadata.icc[16:20] == b"RGB "


def test_lab_tiff_becomes_srgb(tmp_path):
    colours = smooth(12, 12)
    space = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    lab = ImageCms.profileToProfile(Image.fromarray(colours), *space, outputMode="LAB")
    lab.save(tmp_path / "a.tif")
    back = only(tmp_path / "a.tif").pixels.astype(int)
    assert np.abs(back - colours).mean() < 3  # 8-bit Lab is coarse.


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "deep.tif"])
def test_orientation_is_applied(tmp_path, suffix, orientation):
    stored = smooth(6, 10)
    path = tmp_path / f"a.{suffix}"
    if suffix == "deep.tif":
        tifffile.imwrite(path, stored.astype(np.uint16) * 257, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
        expected = upright(stored.astype(np.uint16) * 257, orientation)
        oracle = Image.fromarray(stored)
        oracle.getexif()[0x0112] = orientation
        np.testing.assert_array_equal(expected // 257, np.asarray(ImageOps.exif_transpose(oracle)))
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(stored).save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
        expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    source = open_source(path)
    (picture,) = source.frames()
    np.testing.assert_array_equal(picture.pixels, expected)
    assert source.size == expected.shape[:2] == ((10, 6) if orientation > 4 else (6, 10))


# Several frames


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animation_is_composed_frame_by_frame(tmp_path, suffix):
    frames = discs()
    options = {"gif": {"disposal": 2}, "webp": {"lossless": True}, "png": {"disposal": 1}}[suffix]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], duration=[50, 120, 70, 200], loop=3, **options)
    source = open_source(tmp_path / f"a.{suffix}")
    assert (source.frame_count, source.is_animation, source.size) == (4, True, (24, 24))
    pictures = list(source.frames())
    assert len(pictures) == 4
    for picture, frame in zip(pictures, frames, strict=True):
        stored = np.asarray(frame)
        seen = stored[:, :, 3] > 0
        np.testing.assert_array_equal(picture.alpha, stored[:, :, 3])
        np.testing.assert_array_equal(picture.pixels[seen], stored[seen][:, :3])
    assert source.metadata.durations == {0: 50, 1: 120, 2: 70, 3: 200}
    assert source.metadata.plays == (4 if suffix == "gif" else 3)  # A GIF counts repetitions.


def test_the_still_of_an_apng_is_no_frame(tmp_path):
    frames = discs(4)
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], default_image=True, duration=40)
    source = open_source(tmp_path / "a.png")
    pictures = list(source.frames())
    assert source.frame_count == len(pictures) == 3
    np.testing.assert_array_equal(pictures[0].alpha, np.asarray(frames[1])[:, :, 3])


def test_pages_of_a_tiff_are_frames_but_no_animation(tmp_path):
    pages = [noise(5, 6, 3), noise(4, 9), noise(3, 2, 3, dtype=np.uint16), RNG.random((7, 7)).astype(np.float32)]
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page in pages:
            file.write(page, photometric="rgb" if page.ndim == 3 else "minisblack", contiguous=False)
        file.write(noise(2, 2), subfiletype=1, contiguous=False)  # A thumbnail.
    source = open_source(tmp_path / "a.tif")
    assert (source.frame_count, source.is_animation) == (4, False)
    for picture, page in zip(source.frames(), pages, strict=True):
        np.testing.assert_array_equal(picture.pixels, page.reshape(*page.shape[:2], -1))


def test_frames_may_be_read_again(tmp_path):
    frames = discs(3)
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=40, disposal=2)
    source = open_source(tmp_path / "a.gif")
    first, second = list(source.frames()), list(source.frames())
    assert len(first) == len(second) == 3
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.samples(), two.samples())
    assert source.metadata.alpha and source.metadata.bits == 8


# The module


def test_endings():
    assert {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"} <= set(SUFFIXES)
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in SUFFIXES)


def test_import_costs_no_decoder_and_no_torch():
    heavy = "('torch', 'PIL.Image', 'tifffile', 'av', 'cv2')"
    code = f"import sys, cnnkit_superres.pictures, cnnkit_superres.writing; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("pixels", "alpha"),
    [
        (np.zeros((3, 4), np.uint8), None),
        (np.zeros((3, 4, 2), np.uint8), None),
        (np.zeros((3, 4, 3), np.float64), None),
        (np.zeros((0, 4, 3), np.uint8), None),
        (np.zeros((3, 4, 3), np.uint8), np.zeros((4, 3), np.uint8)),
        (np.zeros((3, 4, 3), np.uint8), np.zeros((3, 4), np.uint16)),
    ],
)
def test_a_picture_checks_its_arrays(pixels, alpha):
    with pytest.raises(ValueError, match=r"pixels|alpha"):
        Picture(pixels, alpha)


def test_a_replaced_picture_keeps_its_white():
    picture = Picture(np.full((2, 2, 1), 9, np.float32))
    assert picture.peak == 9 and picture.replaced(np.zeros((4, 4, 1), np.float32)).peak == 9
