"""Writing animations frame by frame. Oracles: Pillow reads what was written; the stored arrays."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from cnnkit.errors import UsageError
from cnnkit_superres.gif import indexed
from cnnkit_superres.pictures import open_source
from drawn_pictures import discs, enlarge, smooth, twice
from PIL import Image

RNG = np.random.default_rng(11)


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


SAVE = {"gif": {"disposal": 2}, "webp": {"lossless": True}, "png": {"disposal": 1}}


@pytest.mark.parametrize("target", ["gif", "webp", "png"])
@pytest.mark.parametrize("origin", ["gif", "webp", "png"])
@pytest.mark.parametrize("opaque", [False, True], ids=["transparent", "opaque"])
def test_animation_keeps_frames_durations_and_plays(tmp_path, origin, target, opaque):
    frames = discs()
    if opaque:
        frames = [Image.alpha_composite(Image.new("RGBA", frame.size, (0, 60, 120, 255)), frame).convert("RGB") for frame in frames]
    durations = [50, 120, 70, 200]
    frames[0].save(tmp_path / f"a.{origin}", save_all=True, append_images=frames[1:], duration=durations, loop=3, **SAVE[origin])
    source = open_source(tmp_path / f"a.{origin}")
    plays = source.metadata.plays
    out = open_source(source.write(tmp_path / "out" / "a", map(twice, source.frames()), format=target, quality=100))
    assert (out.frame_count, out.is_animation, out.size, out.format) == (4, True, (48, 48), target)
    tolerance = 10 if target == "webp" and origin != "webp" else 0  # Lossy, with colours at half size; the others are exact.
    for picture, frame in zip(out.frames(), frames, strict=True):
        stored = np.asarray(frame.convert("RGBA"))
        seen = stored[:, :, 3] > 0
        if not opaque:
            np.testing.assert_array_equal(picture.alpha[::2, ::2], stored[:, :, 3])
        difference = picture.pixels[::2, ::2][seen].astype(int) - stored[seen][:, :3]
        assert np.abs(difference).mean() <= tolerance
    assert list(out.metadata.durations.values()) == durations
    assert out.metadata.plays == plays


@pytest.mark.parametrize("loop", [None, 0, 1, 5])
def test_plays_of_a_gif_are_bit_for_bit(tmp_path, loop):
    frames = discs(2)
    options = {} if loop is None else {"loop": loop}
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=40, disposal=2, comment=b"why", **options)
    out = Image.open(enlarge(tmp_path / "a.gif", tmp_path / "b"))
    assert out.info.get("loop") == loop and out.info["comment"] == b"why"


def test_frames_are_taken_one_at_a_time(tmp_path):
    """When frame n is asked for, all but one of those before have been written and freed."""
    frames = [Image.fromarray(noise(8, 8, 3)) for _ in range(8)]
    for suffix in ("gif", "webp", "png"):
        options = {"lossless": True} if suffix == "webp" else {}
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], duration=40, **options)
        source, alive, most = open_source(tmp_path / f"a.{suffix}"), [], 0

        def counted(source=source, alive=alive):
            nonlocal most
            for picture in source.frames():
                large = twice(picture)
                alive.append(weakref.ref(large.pixels))
                del picture
                yield large
                del large
                most = max(most, sum(reference() is not None for reference in alive))

        source.write(tmp_path / "out" / f"a.{suffix}", counted())
        assert len(alive) == 8 and most <= 3, suffix


def test_durations_are_found_if_the_frames_come_from_elsewhere(tmp_path):
    frames = discs(3)
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=[30, 60, 90], disposal=2)
    pictures = list(map(twice, open_source(tmp_path / "a.gif").frames()))
    out = open_source(open_source(tmp_path / "a.gif").write(tmp_path / "b.gif", pictures))
    list(out.frames())
    assert list(out.metadata.durations.values()) == [30, 60, 90]


def test_an_animation_that_begins_grey_keeps_its_colours(tmp_path):
    frames = [Image.new("L", (6, 6), 90), Image.new("RGB", (6, 6), (250, 10, 10))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=40)
    (_, second) = open_source(enlarge(tmp_path / "a.gif", tmp_path / "b")).frames()
    np.testing.assert_array_equal(second.pixels[3, 3], (250, 10, 10))


def test_an_animation_needs_a_format_that_moves(tmp_path):
    frames = discs(3)
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], disposal=2)
    for target in ("jpg", "tif", "avif"):
        with pytest.raises(UsageError, match="an animation of 3 frames cannot be"):
            enlarge(tmp_path / "a.gif", tmp_path / "b", format=target)
    with pytest.raises(UsageError, match="a picture is not written as mp4"):
        enlarge(tmp_path / "a.gif", tmp_path / "b", format="mp4")


def test_a_still_gif(tmp_path):
    stored = Image.fromarray(smooth()).quantize(200)
    stored.save(tmp_path / "a.gif")
    out = Image.open(enlarge(tmp_path / "a.gif", tmp_path / "b"))
    assert out.n_frames == 1 and "duration" not in out.info
    np.testing.assert_array_equal(np.asarray(out.convert("RGB"))[::2, ::2], np.asarray(stored.convert("RGB")))


def test_palettes_are_exact_up_to_256_colours_and_near_beyond():
    few = noise(16, 16, 3)
    np.testing.assert_array_equal(np.asarray(indexed(few)[0].convert("RGB")), few)
    many = smooth(64, 64)
    assert np.abs(np.asarray(indexed(many)[0].convert("RGB")).astype(int) - many).mean() < 8
    hidden = np.dstack([few, np.where(np.arange(256).reshape(16, 16) % 3, 255, 0)]).astype(np.uint8)
    image, clear = indexed(hidden)
    assert clear
    seen = hidden[:, :, 3] > 0
    np.testing.assert_array_equal(np.asarray(image) == 255, ~seen)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB"))[seen], few[seen])
