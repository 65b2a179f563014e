"""The built-in example: its reference against nibabel, its baselines against scikit-image, its checkpoint against its goals."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from cnnkit.engine.load import load
from cnnkit.errors import InputError
from cnnkit.plugin import get
from cnnkit_medseg import example
from cnnkit_medseg.models.unet import UNet
from skimage.filters import threshold_multiotsu


@pytest.fixture(scope="module")
def whole():
    return example.example_volume()


@pytest.fixture(scope="module")
def heldout(whole):
    return whole.cut(example.heldout_part(whole.volume))


@pytest.fixture(scope="module")
def thresholds(whole):
    part = whole.cut(example.training_part(whole.volume))
    return example.fit_thresholds(part.volume.array[0], part.labels)


@pytest.fixture(scope="module")
def shipped():
    plugin = get("medseg")
    return load(Path(example.__file__).parent / plugin.checkpoint, plugin=plugin)


def template(kind):
    folder = Path(importlib.util.find_spec("nilearn").origin).parent / "datasets/data"
    return nibabel.load(folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")


def test_reference_is_the_most_probable_tissue(whole):
    grey, white = (np.asarray(template(kind).dataobj).astype(int) for kind in ("gm", "wm"))
    expected = np.stack([np.maximum(255 - grey - white, 0), grey, white]).argmax(axis=0)
    # Where two probabilities are equal, float32 may round them apart.
    top = np.sort(np.stack([255 - grey - white, grey, white]), axis=0)
    clear = top[2] > top[1]
    assert clear.mean() > 0.999
    np.testing.assert_array_equal(whole.labels[clear], expected[clear])
    np.testing.assert_array_equal(whole.volume.array[0], np.asarray(template("t1").dataobj))
    np.testing.assert_array_equal(whole.volume.affine, template("t1").affine)


def test_parts_lie_apart_in_the_world_and_keep_their_place(whole):
    front, back = (whole.cut(part(whole.volume)) for part in (example.heldout_part, example.training_part))
    planes = back.labels.shape[1]
    assert back.volume.affine[1, 3] + planes - 1 == example.TRAIN_BEHIND_MM - 1
    assert front.volume.affine[1, 3] == example.HELDOUT_FROM_MM
    assert front.volume.grid.ras_shape == front.labels.shape == front.volume.array.shape[1:]
    np.testing.assert_array_equal(front.labels, whole.labels[:, -front.labels.shape[1] :])
    for part in (front, back):
        assert {0, 1, 2} == set(np.unique(part.labels))


def test_gap_is_as_wide_as_the_networks_convolutions_reach(shipped):
    arguments = {**shipped.header.config["network"]["args"], "channels": (2, 2, 2, 2), "norm": "none", "deep_supervision": False}
    network = UNet(1, 3, 3, **arguments).double().eval()  # In use the normalisation is a scale and an offset per channel.
    for parameter in network.parameters():
        torch.nn.init.ones_(parameter)  # No weight and no activation hides a voxel.
    reach = 0
    for position in range(32, 40):  # All places with respect to the coarsest grid.
        image = torch.ones(1, 1, 72, 8, 8, dtype=torch.float64, requires_grad=True)
        network(image)[0, :, position, 4, 4].sum().backward()
        touched = image.grad[0, 0].abs().sum(dim=(1, 2)).nonzero().flatten()
        reach = max(reach, position - int(touched[0]), int(touched[-1]) - position)
    assert 8 < reach <= example.HELDOUT_FROM_MM - example.TRAIN_BEHIND_MM


def test_otsu_equals_scikit_image(heldout):
    image = heldout.volume.array[0]
    ours = example.otsu_thresholds(image)
    theirs = threshold_multiotsu(image[image > 0].astype(np.uint8), 3)  # The last level of the lower class.
    np.testing.assert_allclose(ours, np.asarray(theirs) + 0.5, atol=1e-4)


def test_fitted_thresholds_are_the_best_of_all():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (6, 7, 8))
    image = np.clip(np.rint(labels * 60 + 40 + rng.normal(0, 25, labels.shape)), 1, 255).astype(np.float32)
    image.flat[0] = 255  # So that levels are intensities.

    def score(pair):
        return example.dice(example.threshold_baseline(image, pair), labels)["mean"]

    best = max(score((low - 0.5, high - 0.5)) for low in range(1, 255, 1) for high in range(low + 1, 256, 1) if high - low < 120)
    assert score(example.fit_thresholds(image, labels)) == pytest.approx(best, abs=1e-12)


def test_dice_of_counted_voxels():
    predicted, labels = np.array([1, 1, 1, 2, 2, 0]), np.array([1, 1, 0, 2, 1, 2])
    assert example.dice(predicted, labels) == pytest.approx({"grey_matter": 4 / 6, "white_matter": 2 / 4, "mean": (4 / 6 + 2 / 4) / 2})


def test_corruptions_are_what_they_say(heldout):
    image = heldout.volume.array[0]
    inside = image > 0
    spoilt = {name: example.corrupt(name, image, np.random.default_rng(3)) for name in example.CORRUPTIONS}
    for name in example.CORRUPTIONS:
        np.testing.assert_array_equal(spoilt[name], example.corrupt(name, image, np.random.default_rng(3)))
        assert spoilt[name].dtype == np.float32
    field = spoilt["bias"][inside] / image[inside]
    assert (field.min(), field.max()) == pytest.approx((0.6, 1.4), abs=1e-5)
    assert np.abs(np.diff(spoilt["bias"] / np.maximum(image, 1), axis=2))[inside[:, :, 1:] & inside[:, :, :-1]].max() < 0.05
    noise = (spoilt["noise"] - image)[image > 100]
    assert (noise.mean(), noise.std()) == pytest.approx((0, 0.05 * 255), abs=0.05)
    for power in (0.7, 1.5):
        np.testing.assert_allclose(np.log(spoilt[f"gamma{power}"][inside] / 255), power * np.log(image[inside] / 255), atol=1e-5)
    for name in ("bias", "noise", "gamma0.7", "gamma1.5"):
        assert not spoilt[name][~inside].any()
        assert (spoilt[name][inside] > 0).all()
    with pytest.raises(InputError, match=r"gamma1\.5"):
        example.corrupt("gamma0.8", image, np.random.default_rng(0))


def test_thick_slices_lie_where_the_thin_ones_did(heldout):
    thick = example.corrupted(heldout, "slices2mm", np.random.default_rng(0))
    assert thick.volume.spacing == (1.0, 1.0, 2.0)
    assert thick.labels.shape == thick.volume.array.shape[1:] == (*heldout.labels.shape[:2], heldout.labels.shape[2] // 2)
    np.testing.assert_array_equal(
        thick.volume.array[0, :, :, 7], (heldout.volume.array[0, :, :, 14] + heldout.volume.array[0, :, :, 15]) / 2
    )
    centre = thick.volume.affine @ [3, 4, 7, 1]
    np.testing.assert_allclose(centre, heldout.volume.affine @ [3, 4, 14.5, 1])


def test_thresholds_reach_what_the_recipe_states(heldout, thresholds):
    image, labels = heldout.volume.array[0], heldout.labels
    assert thresholds == pytest.approx((120.03, 194.31), abs=0.6)
    fitted = example.dice(example.threshold_baseline(image, thresholds), labels)["mean"]
    otsu = example.dice(example.threshold_baseline(image, example.otsu_thresholds(image)), labels)["mean"]
    assert (fitted, otsu) == pytest.approx((0.969, 0.943), abs=0.002)


GOALS = {"clean": 0.965, **dict.fromkeys(example.CORRUPTIONS, 0.90)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clean", "bias", "noise"])  # The hardest; the checkpoint's header states all.
def test_shipped_network_reaches_its_goals_and_beats_thresholds(shipped, whole, thresholds, name):
    head = whole if name == "clean" else example.corrupted(whole, name, np.random.default_rng(1))
    with torch.no_grad():
        (prediction,) = shipped.task.predict(shipped.model, {"name": name, "volume": head.volume})
    held = example.heldout_part(head.volume)
    ours = example.dice(prediction.labels[held], head.labels[held])["mean"]
    theirs = example.dice(example.threshold_baseline(head.volume.array[0][held], thresholds), head.labels[held])["mean"]
    assert ours >= GOALS[name]
    assert ours > theirs
    assert ours == pytest.approx(shipped.header.metrics[f"{name}/mean"], abs=5e-4)


def test_shipped_checkpoint_is_small_and_says_what_it_is(shipped):
    path = Path(example.__file__).parent / shipped.plugin.checkpoint
    assert path.stat().st_size <= 2_000_000
    assert shipped.header.labels == tuple(example.LABELS)
    assert shipped.header.config["labels"] == example.LABELS
    assert f"y = {example.TRAIN_BEHIND_MM:g} mm" in shipped.header.note
    assert f"y = {example.HELDOUT_FROM_MM:g} mm" in shipped.header.note
    assert {f"{name}/mean" for name in GOALS} <= set(shipped.header.metrics)
    assert all(shipped.header.metrics[f"{name}/mean"] >= goal for name, goal in GOALS.items())
    assert shipped.header.config["data"]["root"] is shipped.header.config["data"]["cache"] is None
