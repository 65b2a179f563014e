"""Videos in and out. Oracles: PyAV reads what was written; flat colours are known in closed form."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from cnnkit.errors import InputError, InputWarning, UsageError
from cnnkit_superres.pictures import SUFFIXES, Picture, open_source
from drawn_pictures import enlarge, twice

av = pytest.importorskip("av")

RATE = Fraction(30000, 1001)
COLOURS = [(200, 40, 40), (40, 180, 60), (50, 60, 190), (230, 230, 230), (128, 128, 128)]


def clip(
    path: Path,
    codec: str = "libx264",
    *,
    pixel_format: str = "yuv420p",
    full: bool = False,
    matrix: int | None = 5,
    sound: str | None = None,
    size: tuple[int, int] = (16, 16),
    times: tuple[int, ...] = (0, 1, 2, 3, 4),
    rotation: int = 0,
    pictures: list[np.ndarray] | None = None,
    index_first: bool = False,
) -> Path:
    """Write five frames of one colour each (or the pictures) at the given multiples of the frame's duration."""
    with av.open(str(path), "w", options={"movflags": "faststart"} if index_first else {}) as out:
        try:
            video = out.add_stream(codec, rate=RATE)
        except ValueError:
            pytest.skip(f"this PyAV has no {codec}")
        video.height, video.width = size
        video.pix_fmt = pixel_format
        context = video.codec_context
        context.color_range = 2 if full else 1
        if matrix:
            context.colorspace = matrix
        if codec.startswith("lib"):
            context.options = {"crf": "4"} | ({"x265-params": "log-level=error"} if codec == "libx265" else {})
        if rotation:
            video.set_display_rotation(rotation)
        if sound:
            audio = out.add_stream(sound, rate=48000, layout="mono")
        for index, time in enumerate(times):
            pixels = pictures[index] if pictures else np.full((*size, 3), COLOURS[index], np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(
                format=pixel_format,
                src_colorspace=matrix or 5,
                dst_colorspace=matrix or 5,
                src_color_range=2,
                dst_color_range=2 if full else 1,
            )
            frame.pts, frame.time_base = time, 1 / RATE
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if sound:
            for index in range(9):
                tone = (np.sin(np.arange(960) / 20 + index) * 0.3).astype(np.float32)[None]
                block = av.AudioFrame.from_ndarray(tone, format="flt" if sound == "libopus" else "fltp", layout="mono")
                block.sample_rate, block.pts, block.time_base = 48000, index * 960, Fraction(1, 48000)
                out.mux(audio.encode(block))
            out.mux(audio.encode(None))
    return path


def sound_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def test_endings_of_videos_are_accepted():
    assert {".mp4", ".mov", ".mkv", ".webm", ".avi"} <= set(SUFFIXES)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mov", "mpeg4"),
        ("a.mkv", "libx265"),
        ("a.webm", "libvpx-vp9"),
        ("a.webm", "libvpx"),
        ("a.avi", "mpeg4"),
        ("a.avi", "mjpeg"),
    ],
)
def test_codec_rate_times_and_colours_are_kept(tmp_path, name, codec):
    path = clip(tmp_path / name, codec, pixel_format="yuvj420p" if codec == "mjpeg" else "yuv420p", size=(64, 96))
    source = open_source(path)
    assert (source.size, source.is_animation) == ((64, 96), True)
    pictures = list(source.frames())
    assert len(pictures) == 5
    for picture, colour in zip(pictures, COLOURS, strict=True):
        assert picture.pixels.dtype == np.uint8 and picture.alpha is None
        assert np.abs(picture.pixels.reshape(-1, 3).mean(axis=0) - colour).max() < 6
    out = open_source(source.write(tmp_path / "out" / "b", map(twice, pictures)))
    assert out.path.name == f"b{path.suffix}" and out.size == (128, 192)
    assert (out.codec, out.rate, out.matrix, out.full_range) == (source.codec, RATE, source.matrix, source.full_range)
    for picture, before in zip(out.frames(), pictures, strict=True):
        assert np.abs(picture.pixels[::2, ::2].astype(int) - before.pixels).mean() < 4
    shown = [source.times[index] * source.time_base for index in range(5)]
    assert [out.times[index] * out.time_base for index in range(5)] == pytest.approx(shown, abs=1e-3)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [1, 5])
def test_range_and_matrix_are_respected(tmp_path, matrix, full):
    """A wrong range is off by up to 16 levels, a wrong matrix by as many in saturated colours."""
    source = open_source(clip(tmp_path / "a.mp4", matrix=matrix, full=full))
    out = open_source(source.write(tmp_path / "b", map(twice, source.frames()), quality=100))
    assert (source.matrix, source.full_range) == (out.matrix, out.full_range) == (matrix, full)
    for opened in (source, out):
        for picture, colour in zip(opened.frames(), COLOURS, strict=True):
            assert np.abs(picture.pixels.reshape(-1, 3).astype(int) - colour).max() <= 5


def test_an_enlarged_video_says_which_matrix_the_small_one_meant(tmp_path):
    source = open_source(clip(tmp_path / "a.mp4", matrix=None, size=(400, 64)))
    out = open_source(source.write(tmp_path / "b", map(twice, source.frames())))
    with av.open(str(out.path)) as container:  # 800 lines, which players would take for BT.709.
        assert int(next(container.decode(video=0)).colorspace) == source.matrix == 5


def test_frames_at_uneven_times(tmp_path):
    times = (0, 1, 2, 6, 7)
    out = open_source(enlarge(clip(tmp_path / "a.mp4", times=times), tmp_path / "b"))
    list(out.frames())
    assert [out.times[index] * out.time_base for index in range(5)] == [time / RATE for time in times]


@pytest.mark.parametrize(
    ("name", "codec", "sound"), [("a.mp4", "libx264", "aac"), ("a.mkv", "libx264", "aac"), ("a.webm", "libvpx-vp9", "libopus")]
)
def test_sound_is_copied_packet_by_packet(tmp_path, name, codec, sound):
    path = clip(tmp_path / name, codec, sound=sound)
    packets = sound_of(path)
    assert len(packets) >= 9
    assert sound_of(enlarge(path, tmp_path / "b")) == packets


def test_sound_that_a_container_cannot_hold_is_left_out_with_a_warning(tmp_path):
    path = clip(tmp_path / "a.mp4", sound="aac")
    with pytest.warns(InputWarning, match="webm") as caught:
        out = enlarge(path, tmp_path / "b", format="webm")
    assert {"written as vp9", "aac sound, left out"} <= {
        part for part in ("written as vp9", "aac sound, left out") for item in caught if part in str(item.message)
    }
    with av.open(str(out)) as container:
        assert not container.streams.audio and container.streams.video[0].codec_context.name in ("vp9", "libvpx-vp9")


def test_ten_bits_stay_ten_bits(tmp_path):
    source = open_source(clip(tmp_path / "a.mp4", "libx265", pixel_format="yuv420p10le", size=(64, 64)))
    pictures = list(source.frames())
    assert pictures[0].pixels.dtype == np.uint16 and pictures[0].peak == 65535
    assert np.abs(pictures[0].pixels.reshape(-1, 3).mean(axis=0) / 257 - COLOURS[0]).max() < 5
    out = open_source(source.write(tmp_path / "b", map(twice, pictures)))
    assert (out.codec, out.pixel_format) == ("hevc", "yuv420p10le")


def test_small_frames_keep_clear_of_an_encoder_that_fails_on_them(tmp_path):
    source = open_source(clip(tmp_path / "a.mp4", "libx265", size=(64, 64)))
    with pytest.warns(InputWarning, match="hevc cannot be written to mp4 here; written as h264"):
        out = source.write(tmp_path / "b", (Picture(picture.pixels[:32, :40]) for picture in source.frames()))
    assert open_source(out).size == (32, 40)


def test_odd_sizes_are_not_cut(tmp_path):
    source = open_source(clip(tmp_path / "a.mp4"))
    odd = [Picture(picture.pixels[:15, :13]) for picture in source.frames()]
    out = open_source(source.write(tmp_path / "b", odd))
    assert out.size == (15, 13) and np.abs(next(out.frames()).pixels.reshape(-1, 3).mean(axis=0) - COLOURS[0]).max() < 6


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_rotation_of_phones_is_applied(tmp_path, rotation):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :16] = 220  # The upper left is bright.
    source = open_source(clip(tmp_path / "a.mp4", size=(16, 32), pictures=[pixels] * 5, rotation=rotation))
    (first, *_) = source.frames()
    with av.open(str(tmp_path / "a.mp4")) as container:
        shown = next(container.decode(video=0)).rotation
    assert abs(shown) == abs(rotation)
    expected = np.rot90(pixels, shown // 90)
    assert source.size == expected.shape[:2] and np.abs(first.pixels.astype(int) - expected).mean() < 6
    out = open_source(source.write(tmp_path / "b", map(twice, source.frames())))
    assert out.size == (2 * expected.shape[0], 2 * expected.shape[1])
    assert np.abs(next(out.frames()).pixels[::2, ::2].astype(int) - expected).mean() < 8


def test_frames_are_decoded_when_they_are_asked_for(tmp_path):
    source = open_source(clip(tmp_path / "a.mkv"))
    frames = source.frames()
    next(frames)
    assert len(source.times) == 1
    assert len(list(frames)) == 4 and len(source.times) == 5


# Bad input


def test_without_pyav_the_remedy_is_named(tmp_path, monkeypatch):
    path = clip(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"pip install 'cnnkit-superres\[video\]'"):
        open_source(path)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_a_truncated_video_is_refused_or_its_loss_is_said(tmp_path, name):
    path = clip(tmp_path / name, "mpeg4" if name == "a.avi" else "libx264", size=(64, 64))
    content = path.read_bytes()
    path.write_bytes(content[:200])
    with pytest.raises(InputError, match=name):
        open_source(path)


def test_missing_frames_are_counted(tmp_path):
    noise = list(np.random.default_rng(2).integers(0, 256, (5, 64, 64, 3)).astype(np.uint8))
    path = clip(tmp_path / "a.mp4", "mjpeg", pixel_format="yuvj420p", size=(64, 64), pictures=noise, index_first=True)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 5])
    source = open_source(path)
    with pytest.warns(InputWarning, match=r"announces 5 frames, of which [1-4] could be read"):
        assert 1 <= len(list(source.frames())) < 5


def test_a_video_without_pictures(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        audio = out.add_stream("aac", rate=48000, layout="mono")
        block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        block.sample_rate, block.pts = 48000, 0
        out.mux([*audio.encode(block), *audio.encode(None)])
    with pytest.raises(InputError, match="no video in it"):
        open_source(tmp_path / "a.mp4")


def test_a_frame_that_claims_too_much(tmp_path):
    with pytest.raises(InputError, match="claims 16 x 16 pixels"):
        open_source(clip(tmp_path / "a.mp4"), max_pixels=200)


def test_a_playlist_cannot_open_other_files(tmp_path):
    secret = clip(tmp_path / "secret.mp4")
    (tmp_path / "a.mp4").write_text(f"ffconcat version 1.0\nfile {secret}\n")
    with pytest.raises(InputError, match="not a picture"):
        open_source(tmp_path / "a.mp4")


def test_a_video_is_not_written_as_a_picture(tmp_path):
    source = open_source(clip(tmp_path / "a.mp4"))
    with pytest.raises(UsageError, match="a video is not written as png; accepted: mp4, mov, mkv, webm, avi"):
        source.write(tmp_path / "b", source.frames(), format="png")


def test_frames_of_another_size_leave_nothing(tmp_path):
    source = open_source(clip(tmp_path / "a.mp4"))
    frames = list(source.frames())
    with pytest.raises(ValueError, match="differs from the first"):
        source.write(tmp_path / "out" / "b", [frames[0], twice(frames[1])])
    assert list((tmp_path / "out").iterdir()) == []
