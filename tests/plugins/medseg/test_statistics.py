"""Statistics. Oracle: numpy on the masked voxels, class by class."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cnnkit.errors import InputError
from cnnkit_medseg.statistics import count_labels, statistics, write_statistics

RNG = np.random.default_rng(5)
LABELS = RNG.integers(0, 4, (37, 9, 8)).astype(np.uint8) * (RNG.random((37, 9, 8)) < 0.3)
ARRAY = (RNG.normal(size=(2, 37, 9, 8)) + 5000).astype(np.float32)
NAMES = {0: "background", 1: "liver", 2: "spleen", 9: "gallbladder"}
AFFINE = np.array([[0, -0.8, 0, 10], [0.7, 0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1.0]])


def test_every_class_against_masks():
    result = statistics(ARRAY, LABELS, NAMES, affine=AFFINE)
    assert result["voxel_volume_ml"] == pytest.approx(0.7 * 0.8 * 3 / 1000)
    assert list(result["classes"]) == ["liver", "spleen", "label_3", "gallbladder"]
    for label, name in ((1, "liver"), (2, "spleen"), (3, "label_3")):
        row, where = result["classes"][name], label == LABELS
        assert row["label"] == label and row["voxels"] == where.sum()
        assert row["volume_ml"] == pytest.approx(where.sum() * 0.00168)
        values = ARRAY[:, where].astype(np.float64)
        np.testing.assert_allclose(row["mean"], values.mean(axis=1), rtol=1e-12)
        np.testing.assert_allclose(row["std"], values.std(axis=1), rtol=1e-9)
        places = np.argwhere(where)
        np.testing.assert_array_equal(row["bounding_box"], [places.min(axis=0), places.max(axis=0)])
        np.testing.assert_allclose(row["centre"], places.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(row["centre_mm"], AFFINE[:3, :3] @ places.mean(axis=0) + AFFINE[:3, 3], rtol=1e-12)
    assert result["classes"]["gallbladder"]["voxels"] == 0 and result["classes"]["gallbladder"]["mean"] is None


def test_bounding_box_in_mm_has_the_volume_of_a_full_box():
    labels = np.zeros((6, 7, 8), np.int16)
    labels[1:3, 2:6, 4:5] = 1
    low, high = statistics(np.ones((1, 6, 7, 8)), labels, {1: "a"}, affine=AFFINE)["classes"]["a"]["bounding_box_mm"]
    np.testing.assert_allclose(np.subtract(high, low), [4 * 0.8, 2 * 0.7, 3.0])


def test_spacing_instead_of_affine_and_json(tmp_path):
    path = write_statistics(tmp_path / "a.json", ARRAY, LABELS, NAMES, spacing=(0.7, 0.8, 3.0))
    read = json.loads(path.read_text())
    assert read == statistics(ARRAY, LABELS, NAMES, spacing=(0.7, 0.8, 3.0))
    assert "centre_mm" not in read["classes"]["liver"]


def test_constant_class_has_no_spread_and_empty_volume_no_voxels():
    bright = np.full((1, 4, 4, 4), 1e6, np.float32)
    assert statistics(bright, np.ones((4, 4, 4), int), {1: "a"}, spacing=(1, 1, 1))["classes"]["a"]["std"] == [0]
    assert statistics(np.ones((1, 4, 4, 4)), np.zeros((4, 4, 4), int), {1: "a"}, spacing=(1, 1, 1))["classes"]["a"]["volume_ml"] == 0


def test_counts_are_those_of_bincount():
    np.testing.assert_array_equal(count_labels(LABELS), np.bincount(LABELS.ravel()))


def test_wrong_arguments():
    with pytest.raises(InputError, match="one shape"):
        statistics(ARRAY, LABELS[1:], NAMES, spacing=(1, 1, 1))
    with pytest.raises(InputError, match="spacing or the affine"):
        statistics(ARRAY, LABELS, NAMES)
