"""The overlay picture: what is where, in which colour."""

from __future__ import annotations

import numpy as np
import pytest
from cnnkit.errors import InputError
from cnnkit_medseg.overlay import _FIRST, _PLANES, _as_seen, _positions, _Scene, palette, write_overlay
from PIL import Image


def picture(path, labels, names, **options):
    image = np.random.default_rng(0).normal(size=labels.shape).astype(np.float32)
    return np.asarray(Image.open(write_overlay(path, image, labels, names, options.pop("spacing", (1, 1, 1)), **options))).astype(int)


def near(pixels, colour, tolerance=45):
    return (np.abs(pixels - colour).max(axis=-1) < tolerance).nonzero()


def test_right_of_the_patient_is_drawn_on_the_left(tmp_path):
    labels = np.zeros((40, 30, 20), np.uint8)
    labels[30:36, 12:18, 8:12] = 1  # In RAS order X grows to the patient's right.
    labels[4:10, 12:18, 8:12] = 2
    pixels = picture(tmp_path / "a.png", labels, {1: "right", 2: "left"})
    # The first panel of the axial row: columns 36 to 296, first rows below the heading.
    panel = pixels[122:300, 36:296]
    right, left = (near(panel, np.array(_FIRST[rank]))[1].mean() for rank in (0, 1))
    assert right < left


@pytest.mark.parametrize("plane", _PLANES, ids=lambda plane: plane.name)
def test_planes_run_as_their_letters_say(plane):
    # Indices grow to the right, front and top, so the value at a border names the direction.
    x, y, z = np.meshgrid(*(np.arange(n) for n in (4, 5, 6)), indexing="ij")
    grown = {0: (x, "L", "R"), 1: (y, "P", "A"), 2: (z, "I", "S")}
    across, low, high = grown[plane.across]
    cut = plane.cut(across, 1)
    assert (cut[0, 0] > cut[0, -1]) and (plane.left, plane.right) == (high, low)
    down, low, high = grown[plane.down]
    cut = plane.cut(down, 1)
    assert (cut[0, 0] > cut[-1, 0]) and (plane.top, plane.bottom) == (high, low)


def test_aspect_follows_the_spacing(tmp_path):
    labels = np.ones((30, 30, 10), np.uint8)
    thin, thick = (picture(tmp_path / "a.png", labels, {1: "a"}, spacing=(1, 1, z)).shape[0] for z in (1, 3))
    assert thick - thin > 300


def test_slices_go_through_the_labels():
    labels = np.zeros((40, 40, 40), bool)
    scene = _Scene(labels, labels, {}, (1, 1, 1), None, (0, 1), ((10, 20), (), (3, 3)))
    assert all(10 <= index <= 20 for index in _positions(scene, 0, 5))
    assert _positions(scene, 2, 5) == [3] * 5
    assert 5 < min(_positions(scene, 1, 5)) < max(_positions(scene, 1, 5)) < 35


@pytest.mark.parametrize(
    "labels",
    [
        np.zeros((9, 8, 7), np.int64),
        np.full((1, 9, 8), 3, np.int16),
        np.tile(np.arange(40, dtype=np.uint16) // 4, (30, 30, 1)),
        np.arange(12**3).reshape(12, 12, 12) % 111,
    ],
    ids=["empty", "one slice", "9 classes", "noise"],
)
def test_odd_volumes_are_drawn(tmp_path, labels):
    names = {label: f"a class with a long name, number {label}" * 3 for label in range(1, 111)}
    pixels = picture(tmp_path / "a.png", labels, names, title="case é", affine=np.eye(4), spacing=(0.7, 1.2, 5))
    assert pixels.shape[1:] == (1392, 3)


def test_shapes_must_agree(tmp_path):
    with pytest.raises(InputError, match="one and the same"):
        write_overlay(tmp_path / "a.png", np.zeros((3, 4, 5)), np.zeros((3, 4, 6), int), {}, (1, 1, 1))
    assert not list(tmp_path.iterdir())


def test_colours_stay_apart_for_every_kind_of_vision():
    colours = palette(110)
    assert len(set(colours)) == 110 and palette(20) == colours[:20] and colours[:7] == _FIRST
    seen = _as_seen(np.array(colours))
    for count, least in ((7, 0.07), (20, 0.06), (110, 0.025)):  # 0.02 in Oklab is a just noticeable difference.
        distance = np.linalg.norm(seen[:, :count, None] - seen[:, None, :count], axis=-1) + 9 * np.eye(count)
        assert distance.min() > least, count


def test_gray_is_gray_in_oklab():
    lightness, a, b = _as_seen(np.array([[255, 255, 255], [119, 119, 119]]))[0].T
    np.testing.assert_allclose(lightness, [1, 0.568], atol=2e-3)
    np.testing.assert_allclose([a, b], 0, atol=1e-4)
