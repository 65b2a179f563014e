"""The drawing for people: where the detail is, and what a reader of the file sees."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cnnkit_superres.compare import MARGIN, WIDTH, detailed_places, write_comparison
from cnnkit_superres.pictures import Picture
from PIL import Image

CELL = (WIDTH - 7 * MARGIN) // 6


def flat(height: int, width: int, value: int = 128) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def textured(height: int = 160, width: int = 240) -> np.ndarray:
    pixels = flat(height, width)
    pixels[64:80, 96:112] = np.random.default_rng(0).integers(0, 256, (16, 16, 3))
    return pixels


def test_the_textured_square_is_found_first():
    (first, *_) = detailed_places(textured(), 16, 3)
    assert first == (64, 96)


@pytest.mark.parametrize("side", [8, 16, 31])
def test_places_do_not_overlap_and_lie_inside(side):
    pixels = np.random.default_rng(1).integers(0, 256, (100, 140, 3)).astype(np.uint8)
    places = detailed_places(pixels, side, 3)
    assert len(places) == 3
    for (y, x), (v, u) in itertools.combinations(places, 2):
        assert abs(y - v) >= side or abs(x - u) >= side
    assert all(0 <= y <= 100 - side and 0 <= x <= 140 - side for y, x in places)


def test_small_pictures_have_fewer_places():
    assert len(detailed_places(flat(8, 20), 8, 3)) == 2
    assert detailed_places(flat(7, 200), 8, 3) == []


def read(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG" and image.mode == "RGB"
        return np.asarray(image)


def test_the_drawing_shows_the_whole_and_pairs_of_zooms(tmp_path):
    new, old = textured(), flat(160, 240, 60)
    path = write_comparison(tmp_path / "drawing.png", Picture(old), Picture(new))
    assert path == tmp_path / "drawing.png" and [item.name for item in tmp_path.iterdir()] == ["drawing.png"]
    sheet = read(path)
    assert sheet.shape == (160 + CELL + 3 * MARGIN + 24, WIDTH, 3)
    top, left = MARGIN, (WIDTH - 240) // 2
    assert (sheet[top + 5, left + 5] == 128).all() and (sheet[top + 5, left - 5] == 255).all()
    zooms = sheet[160 + 2 * MARGIN : 160 + 2 * MARGIN + CELL]
    before, after = zooms[:, MARGIN : MARGIN + CELL], zooms[:, 2 * MARGIN + CELL : 2 * (MARGIN + CELL)]
    assert (before == 60).all()  # The old picture's, and nothing but it.
    # The squares are 20 pixels a side here: the network's zoom is that part of the new picture, pixel by pixel.
    assert np.array_equal(after, Image.fromarray(new[60:80, 100:120]).resize((CELL, CELL), Image.Resampling.NEAREST))
    assert after.std() > 30
    outline = (sheet[top : top + 160, left : left + 240] == (235, 90, 40)).all(2)
    assert outline.sum() > 3 * 4 * 15
    number = sheet[top + 60 : top + 79, left + 100 : left + 115]
    assert (number == 255).all(2).any()  # White on the corner of its square, whatever the picture's colours are.


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (6, 4000), (400, 2), (9, 30)])
def test_any_size_is_drawn(tmp_path, size):
    sheet = read(write_comparison(tmp_path / "drawing.png", Picture(flat(*size)), Picture(flat(*size, 10))))
    assert sheet.shape[1] == WIDTH and sheet.shape[0] <= WIDTH + CELL + 3 * MARGIN + 24
    zoom = sheet[-24 - MARGIN - CELL // 2, 2 * MARGIN + CELL + CELL // 2]
    assert (zoom == 10).all()


@pytest.mark.parametrize(("dtype", "bright"), [(np.uint8, 1), (np.uint16, 1), (np.float32, 1), (np.float32, 3)])
def test_alpha_is_shown_on_white(tmp_path, dtype, bright):
    opaque = {np.uint8: 255, np.uint16: 65535, np.float32: 1}[dtype]
    pixels = np.zeros((32, 32, 1), dtype)
    pixels[31, 31] = bright * opaque
    alpha = np.full((32, 32), opaque, dtype)
    alpha[:, 16:] = 0
    picture = Picture(pixels, alpha)
    sheet = read(write_comparison(tmp_path / "drawing.png", picture, picture))
    left = (WIDTH - 32) // 2
    assert (sheet[MARGIN + 10, left + 26] == 255).all()
    whole = sheet[MARGIN : MARGIN + 32, left : left + 16]
    assert (whole == 0).all(2).mean() > 0.3


def test_labels_are_drawn(tmp_path):
    args = (Picture(flat(64, 64)), Picture(flat(64, 64)))
    one = read(write_comparison(tmp_path / "one.png", *args))
    other = read(write_comparison(tmp_path / "other.png", *args, labels=("EDSR", "ours")))
    rows = slice(one.shape[0] - 24 - MARGIN, None)
    assert not np.array_equal(one[rows], other[rows]) and np.array_equal(one[: rows.start], other[: rows.start])
