"""Writing pictures in the manner of their source. Oracles: Pillow, tifffile and PyAV read what was written; the stored arrays."""

from __future__ import annotations

import io
import struct
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import tifffile
from cnnkit.errors import InputError, InputWarning, UsageError
from cnnkit_superres.metadata import icc_channels, read_exif, resized_exif
from cnnkit_superres.pictures import Picture, open_source
from cnnkit_superres.png import write_png
from cnnkit_superres.writing import output_path
from drawn_pictures import enlarge, smooth, twice
from PIL import Image, ImageCms, PngImagePlugin

RNG = np.random.default_rng(11)


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


@lru_cache  # A new one holds the time it was made.
def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def camera_exif(orientation: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[271], exif[272], exif[315] = orientation, "Maker", "Model 1", "An Artist"
    exif.get_ifd(0x8769).update({0xA002: 32, 0xA003: 24, 0x829A: 0.004, 0x927C: b"private notes of the maker"})
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 8.0, 30.0)})
    return exif


# Pixels


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_samples_depth_and_mode_are_kept(tmp_path, channels, dtype, suffix):
    if suffix == "png" and dtype == np.float32:
        pytest.skip("PNG has no floats")
    stored = (RNG.random((70, 9, channels)) * 3).astype(dtype) if dtype == np.float32 else noise(70, 9, channels, dtype=dtype)
    path = tmp_path / f"a.{suffix}"
    if suffix == "png":
        write_png(path, [stored], {})
    else:
        kind = {"photometric": "rgb" if channels > 2 else "minisblack", "extrasamples": ["unassalpha"] if channels in (2, 4) else None}
        tifffile.imwrite(path, stored if channels > 1 else stored[:, :, 0], planarconfig="contig" if channels > 1 else None, **kind)
    out = enlarge(path, tmp_path / "out" / "a")
    assert out.name == path.name
    (picture,) = open_source(out).frames()
    assert picture.pixels.dtype == dtype
    np.testing.assert_array_equal(picture.samples(), stored.repeat(2, axis=0).repeat(2, axis=1))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["noise", "smooth"])
def test_16_bit_png_is_what_other_decoders_read(tmp_path, kind, channels):
    """Pillow sees the upper bytes, libav all of them; the smooth picture uses all filters of rows, the noise none."""
    av = pytest.importorskip("av")
    if kind == "noise":
        stored = noise(150, 20, channels, dtype=np.uint16)
    else:
        y, x = np.mgrid[:150, :20]
        stored = np.stack([(x * 37 + y * y + 300 * index) % 65536 for index in range(channels)], axis=2).astype(np.uint16)
    write_png(tmp_path / "a.png", [stored], {})
    with av.open(str(tmp_path / "a.png")) as container:
        frame = next(container.decode(video=0))
    name = {1: "gray16be", 2: "ya16be", 3: "rgb48be", 4: "rgba64be"}[channels]
    assert frame.format.name == name
    plane = np.frombuffer(bytes(frame.planes[0]), ">u2").reshape(150, -1)[:, : 20 * channels]
    np.testing.assert_array_equal(plane.reshape(150, 20, channels), stored)
    if channels > 2:
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), stored >> 8)


def test_filters_of_rows_make_the_file_small(tmp_path):
    stored = smooth(200, 200).astype(np.uint16) * 257
    write_png(tmp_path / "a.png", [stored], {})
    assert (tmp_path / "a.png").stat().st_size < stored.nbytes / 20


@pytest.mark.parametrize("suffix", ["jpg", "webp", "avif"])
def test_lossy_formats_are_near(tmp_path, suffix):
    Image.fromarray(smooth()).save(tmp_path / f"a.{suffix}", quality=95)
    source = open_source(tmp_path / f"a.{suffix}")
    (before,) = source.frames()
    (after,) = open_source(source.write(tmp_path / "out" / "a", [twice(before)])).frames()
    assert np.abs(after.pixels.astype(int) - twice(before).pixels).mean() < 2


def test_quality_is_heard(tmp_path):
    Image.fromarray(noise(40, 40, 3)).save(tmp_path / "a.jpg")
    sizes = [enlarge(tmp_path / "a.jpg", tmp_path / f"{quality}", quality=quality).stat().st_size for quality in (20, 60, 95)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2] / 2


def test_jpeg_keeps_full_colour_resolution(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / "a.jpg")
    assert {layer[1:3] for layer in Image.open(enlarge(tmp_path / "a.jpg", tmp_path / "b")).layer} == {(1, 1)}


def test_lossless_webp_stays_lossless(tmp_path):
    stored = noise(9, 8, 4)
    Image.fromarray(stored).save(tmp_path / "a.webp", lossless=True, exact=True)
    (picture,) = open_source(enlarge(tmp_path / "a.webp", tmp_path / "out" / "a")).frames()
    np.testing.assert_array_equal(picture.samples(), stored.repeat(2, axis=0).repeat(2, axis=1))


def test_grey_stays_grey_when_the_network_made_colours(tmp_path):
    Image.fromarray(noise(6, 6)).save(tmp_path / "a.png")
    source = open_source(tmp_path / "a.png")
    (grey,) = source.frames()
    colour = Picture(np.repeat(grey.pixels, 3, axis=2))
    out = Image.open(source.write(tmp_path / "b.png", [colour]))
    assert out.mode == "L"
    np.testing.assert_array_equal(np.asarray(out), grey.pixels[:, :, 0])


def test_floats_are_rounded_to_the_depth_of_the_source(tmp_path):
    Image.fromarray(noise(6, 6, 3)).save(tmp_path / "a.png")
    values = np.array([-0.2, 0.0, 0.1, 0.5, 1.0, 1.0], np.float32).reshape(1, 2, 3)
    out = open_source(tmp_path / "a.png").write(tmp_path / "b.png", [Picture(values)])
    np.testing.assert_array_equal(np.asarray(Image.open(out)).ravel(), [0, 0, 26, 128, 255, 255])


@pytest.mark.parametrize(("suffix", "bits"), [("png", 16), ("jpg", 8), ("webp", 8), ("bmp", 8)])
def test_depth_that_a_format_lacks_is_reduced_with_a_warning(tmp_path, suffix, bits):
    stored = np.linspace(0, 7, 120, dtype=np.float32).reshape(10, 12)
    tifffile.imwrite(tmp_path / "a.tif", stored)
    with pytest.warns(InputWarning, match=f"32 bits per sample become {bits}"):
        out = enlarge(tmp_path / "a.tif", tmp_path / "b", format=suffix)
    (picture,) = open_source(out).frames()
    assert picture.pixels.dtype.itemsize * 8 == bits
    np.testing.assert_allclose(picture.pixels[::2, ::2, 0] / picture.peak, stored / 7, atol=0.02)


# Names and formats


@pytest.mark.parametrize(
    ("name", "out", "format", "expected"),
    [
        ("a.png", "x", "same", "x.png"),
        ("a.JPG", "x", "same", "x.JPG"),
        ("a.jpeg", "x", "same", "x.jpeg"),
        ("a.png", "x.v2", "same", "x.v2.png"),
        ("a.png", "x.webp", "same", "x.webp"),
        ("a.png", "x.webp", "jpg", "x.jpg"),
        ("a.png", "x.jpeg", "jpg", "x.jpeg"),
        ("a.png", "x", "tiff", "x.tif"),
        ("a.jpg", "x", ".PNG", "x.png"),
        ("a.tif", "x", "same", "x.tif"),
    ],
)
def test_names(tmp_path, name, out, format, expected):
    Image.fromarray(smooth()).save(tmp_path / name)
    path = enlarge(tmp_path / name, tmp_path / "out" / out, format=format)
    assert path == tmp_path / "out" / expected == output_path(open_source(tmp_path / name), tmp_path / "out" / out, format)
    assert open_source(path).size == (48, 64)
    assert [file.name for file in (tmp_path / "out").iterdir()] == [expected]


def test_content_decides_the_ending(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / "a.png", "JPEG")
    with pytest.warns(InputWarning, match="JPEG"):
        assert enlarge(tmp_path / "a.png", tmp_path / "b").name == "b.jpg"


@pytest.mark.parametrize("wanted", ["jpg", "bmp"])
def test_alpha_forces_png(tmp_path, wanted):
    stored = noise(5, 6, 4)
    Image.fromarray(stored).save(tmp_path / "a.png")
    source = open_source(tmp_path / "a.png")
    assert output_path(source, tmp_path / "b", wanted).name == "b.png"
    with pytest.warns(InputWarning, match=r"transparency, which (jpeg|bmp) cannot hold; written as b\.png"):
        out = source.write(tmp_path / "b", source.frames(), format=wanted)
    assert out.name == "b.png"
    np.testing.assert_array_equal(np.asarray(Image.open(out)), stored)


def test_alpha_of_zero_everywhere_is_kept(tmp_path):
    stored = noise(5, 6, 4)
    stored[:, :, 3] = 0
    Image.fromarray(stored).save(tmp_path / "a.png")
    source = open_source(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(source.write(tmp_path / "b", source.frames()))), stored)


def test_unknown_format(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match=r"unknown format 'pgn'; did you mean 'png'"):
        enlarge(tmp_path / "a.png", tmp_path / "b", format="pgn")


def test_a_source_is_never_replaced(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(UsageError, match="would replace its source"):
        enlarge(tmp_path / "a.png", tmp_path / "a")
    assert (tmp_path / "a.png").read_bytes() == before


def test_nothing_is_left_when_a_frame_fails(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.gif").write_bytes(b"as it was")
    frames = [Image.fromarray(noise(5, 5, 3)) for _ in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    source = open_source(tmp_path / "a.gif")

    def failing():
        yield twice(next(source.frames()))
        raise InputError("damaged")

    with pytest.raises(InputError):
        source.write(tmp_path / "out" / "b.gif", failing())
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["b.gif"]
    assert (tmp_path / "out" / "b.gif").read_bytes() == b"as it was"


def test_sides_that_do_not_fit(tmp_path):
    Image.fromarray(smooth(2, 9000)).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match=r"18000 pixels a side do not fit webp, which ends at 16383; choose --format png"):
        enlarge(tmp_path / "a.png", tmp_path / "b", format="webp")


@pytest.mark.parametrize("size", [(1, 1), (3, 2000)])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp", "gif"])
def test_extreme_shapes(tmp_path, suffix, size):
    Image.new("RGB", size[::-1], (10, 200, 30)).save(tmp_path / f"a.{suffix}")
    assert open_source(enlarge(tmp_path / f"a.{suffix}", tmp_path / "b")).size == (2 * size[0], 2 * size[1])


# Metadata


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
def test_profile_exif_and_resolution_are_kept(tmp_path, suffix):
    options = {"icc_profile": srgb(), "exif": camera_exif().tobytes(), "dpi": (300, 300)}
    Image.fromarray(smooth()).save(tmp_path / f"a.{suffix}", **options)
    upright = open_source(tmp_path / f"a.{suffix}").size
    assert upright == (32, 24)  # Turned by a quarter.
    out = Image.open(enlarge(tmp_path / f"a.{suffix}", tmp_path / "b"))
    assert out.size == (48, 64)
    assert out.info["icc_profile"] == srgb()
    exif = out.getexif()
    assert (exif[271], exif[272], exif[315], exif.get(0x0112, 1)) == ("Maker", "Model 1", "An Artist", 1)
    inner = exif.get_ifd(0x8769)
    assert inner[0x829A] == pytest.approx(0.004) and inner[0x927C] == b"private notes of the maker"
    assert (inner[0xA002], inner[0xA003]) == (48, 64)
    assert exif.get_ifd(0x8825)[2] == (48.0, 8.0, 30.0)
    if suffix not in ("webp", "avif"):
        assert tuple(map(float, out.info["dpi"])) == pytest.approx((300, 300), abs=0.01)


@pytest.mark.parametrize("target", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("origin", ["jpg", "tif"])
def test_exif_goes_along_to_other_formats(tmp_path, origin, target):
    Image.fromarray(smooth()).save(tmp_path / f"a.{origin}", exif=camera_exif(1).tobytes(), icc_profile=srgb())
    exif = Image.open(enlarge(tmp_path / f"a.{origin}", tmp_path / "b", format=target)).getexif()
    assert exif[272] == "Model 1" and exif.get_ifd(0x8769)[0x829A] == pytest.approx(0.004)


def test_16_bit_results_keep_their_metadata(tmp_path):
    exif = camera_exif(1).tobytes()
    write_png(tmp_path / "a.png", [noise(24, 32, 3, dtype=np.uint16)], {"icc_profile": srgb(), "exif": exif, "dpi": (200, 200)})
    for target in ("png", "tif"):
        out = Image.open(enlarge(tmp_path / "a.png", tmp_path / "b", format=target))
        assert out.info["icc_profile"] == srgb() and out.getexif()[272] == "Model 1"
        assert float(out.info["dpi"][0]) == pytest.approx(200, abs=0.01)


def test_texts_of_png(tmp_path):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Title", "A picture")
    texts.add_text("parameters", "masterpiece, détail ☃\nSteps: 20", zip=False)
    texts.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6" dc:title="t"/>')
    Image.fromarray(smooth()).save(tmp_path / "a.png", pnginfo=texts)
    out = Image.open(enlarge(tmp_path / "a.png", tmp_path / "b"))
    assert out.text["Title"] == "A picture" and out.text["parameters"] == "masterpiece, détail ☃\nSteps: 20"
    assert out.info["xmp"] == b'<x tiff:Orientation="1" dc:title="t"/>'  # Nothing is turned twice.


def test_comment_press_data_and_progressive_of_jpeg(tmp_path):
    press = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0a\x1c\x02\x78\0\x05Hello"
    extra = b"\xff\xed" + (len(press) + 2).to_bytes(2, "big") + press
    Image.fromarray(smooth()).save(tmp_path / "a.jpg", comment=b"a comment", progressive=True, extra=extra, xmp=b"<x/>")
    out = Image.open(enlarge(tmp_path / "a.jpg", tmp_path / "b"))
    assert out.info["comment"] == b"a comment" and out.info["progressive"] and out.info["xmp"] == b"<x/>"
    assert [data for marker, data in out.applist if marker == "APP13"] == [press]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow says it too.
def test_damaged_exif_is_dropped_with_a_warning(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    with pytest.warns(InputWarning, match="EXIF data are damaged"):
        out = enlarge(tmp_path / "a.jpg", tmp_path / "b")
    assert open_source(out).metadata.exif is None


def test_too_much_exif_for_a_jpeg(tmp_path):
    exif = camera_exif(1)
    exif.get_ifd(0x8769)[0x927C] = b"x" * 70000
    Image.fromarray(smooth()).save(tmp_path / "a.png", exif=exif)
    with pytest.warns(InputWarning, match="EXIF data do not fit"):
        enlarge(tmp_path / "a.png", tmp_path / "b", format="jpg")


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_is_changed_in_place(order):
    mark = b"II" if order == "<" else b"MM"
    raw = mark + struct.pack(order + "HI", 42, 8) + struct.pack(order + "H", 2)
    raw += struct.pack(order + "HHIHH", 0x0112, 3, 1, 8, 0) + struct.pack(order + "HHII", 0x8769, 4, 1, 38)
    raw += (
        struct.pack(order + "I", 0xABCD)
        + struct.pack(order + "H", 1)
        + struct.pack(order + "HHII", 0xA002, 4, 1, 32)
        + b"the maker's notes"
    )
    exif, orientation = read_exif(b"Exif\0\0" + raw, Path("a.jpg"))
    assert orientation == 8
    changed = resized_exif(exif, 48, 64)
    expected = raw.replace(struct.pack(order + "HHIHH", 0x0112, 3, 1, 8, 0), struct.pack(order + "HHIHH", 0x0112, 3, 1, 1, 0))
    expected = expected.replace(struct.pack(order + "I", 0xABCD), b"\0" * 4)  # The thumbnail is unlinked.
    assert changed == expected.replace(struct.pack(order + "HHII", 0xA002, 4, 1, 32), struct.pack(order + "HHII", 0xA002, 4, 1, 64))


def test_a_profile_that_does_not_fit_is_left_out(tmp_path):
    Image.fromarray(noise(5, 5)).save(tmp_path / "a.png", icc_profile=srgb())  # Grey with a profile of RGB.
    with pytest.warns(InputWarning, match="colour profile does not fit 1 channels"):
        out = enlarge(tmp_path / "a.png", tmp_path / "b")
    assert "icc_profile" not in Image.open(out).info


def test_cmyk_is_written_as_srgb_with_its_profile(tmp_path):
    Image.fromarray(smooth()).convert("CMYK").save(tmp_path / "a.tif")
    with pytest.warns(InputWarning, match="CMYK"):
        out = Image.open(enlarge(tmp_path / "a.tif", tmp_path / "b"))
    assert out.mode == "RGB" and icc_channels(out.info["icc_profile"]) == 3
    assert "sRGB" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(out.info["icc_profile"])))


def test_tiff_compression_is_that_of_the_source(tmp_path):
    for name, compression in (("a", None), ("b", "zlib")):
        tifffile.imwrite(tmp_path / f"{name}.tif", smooth(), photometric="rgb", compression=compression)
        with tifffile.TiffFile(enlarge(tmp_path / f"{name}.tif", tmp_path / "out" / name)) as file:
            assert (file.pages[0].compression == 1) == (compression is None)


def test_each_page_of_a_tiff_keeps_its_mode_and_depth(tmp_path):
    pages = [noise(5, 6), noise(4, 9, 3), noise(3, 2, 3, dtype=np.uint16), RNG.random((4, 4)).astype(np.float32)]
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page in pages:
            file.write(page, photometric="rgb" if page.ndim == 3 else "minisblack", contiguous=False)
    out = enlarge(tmp_path / "a.tif", tmp_path / "b")
    with tifffile.TiffFile(out) as file:
        for page, stored in zip(file.pages, pages, strict=True):
            np.testing.assert_array_equal(page.asarray(), stored.repeat(2, axis=0).repeat(2, axis=1))
            assert page.dtype == stored.dtype
    with pytest.raises(UsageError, match="4 pages cannot be png; accepted: same, tif"):
        enlarge(tmp_path / "a.tif", tmp_path / "c", format="png")


def test_no_warning_without_a_reason(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / "a.jpg", icc_profile=srgb(), exif=camera_exif().tobytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for target in ("same", "png", "webp", "tif", "bmp"):
            if target != "bmp":
                enlarge(tmp_path / "a.jpg", tmp_path / "out" / target, format=target)
    with pytest.warns(InputWarning, match="bmp cannot hold its colour profile"):
        enlarge(tmp_path / "a.jpg", tmp_path / "out" / "b", format="bmp")
