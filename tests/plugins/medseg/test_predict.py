"""From volume to label map: the stream decides what whole logits would, without ever holding them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cnnkit.engine.load import load
from cnnkit_medseg.config import InferenceConfig
from cnnkit_medseg.geometry import Grid
from cnnkit_medseg.io import Volume
from cnnkit_medseg.predict import largest_components, prepare_volume, segment
from cnnkit_medseg.window import sliding_window


def volume(array: np.ndarray, spacing=(1.5, 1.5, 1.5)) -> Volume:
    array = array.astype(np.float32)
    array = array[None] if array.ndim == 3 else array
    grid = Grid(array.shape[1:], np.diag([*spacing, 1.0]))
    return Volume(array, spacing, grid.ras_affine, grid, (), "case")


def whole_logits(image: Volume, loaded, cfg) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """The logits of all classes on the image's grid inside the crop: windows first, then interpolation of every class."""
    prepared = prepare_volume(image, cfg)
    settings = cfg.inference
    logits = sliding_window(
        torch.from_numpy(prepared.image),
        loaded.model,
        cfg.patch_size,
        overlap=settings.overlap,
        grid=settings.grid,
        weighting=settings.weighting,
        mirror_axes=(0, 1, 2) if settings.mirror else (),
    )
    size = [part.stop - part.start for part in prepared.box]
    return F.interpolate(logits[None], size=size, mode="trilinear", align_corners=False)[0], prepared.box


@pytest.fixture(scope="module")
def loaded(tiny):
    return load(tiny)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mirror": True, "overlap": 0.0},
        {"grid": "monai"},
        {"overlap": 0.25, "batch_size": 3},
        {"weighting": "constant", "overlap": 0.0},
    ],
    ids=str,
)
@torch.no_grad()
def test_streamed_labels_are_those_of_whole_logits(settings, loaded, phantom):
    cfg = replace(loaded.task.cfg, inference=InferenceConfig(**settings))
    image = volume(phantom(45, 38, 41))
    logits, box = whole_logits(image, loaded, cfg)
    expected = np.zeros(image.array.shape[1:], np.uint8)
    expected[box] = logits.argmax(0).numpy()
    found = segment(image, loaded.model, cfg).labels
    assert len(np.unique(found)) == 3 and found.dtype == np.uint8
    assert (found == expected).mean() >= 0.9999


@torch.no_grad()
def test_probabilities_are_the_softmax_of_whole_logits_and_decide_as_the_labels_do(loaded, phantom):
    array = phantom(30, 26, 28)
    array[:4] = 0  # What is cropped away is background for certain.
    image = volume(array)
    result = segment(image, loaded.model, loaded.task.cfg, probabilities=True)
    logits, box = whole_logits(image, loaded, loaded.task.cfg)
    assert box[0].start == 4
    np.testing.assert_allclose(result.probabilities[(slice(None), *box)], logits.softmax(0).numpy(), atol=1e-5)
    np.testing.assert_allclose(result.probabilities.sum(0), 1, atol=1e-5)
    assert (result.probabilities[0, :4] == 1).all() and (result.labels[:4] == 0).all()
    np.testing.assert_array_equal(result.probabilities.argmax(0), result.labels)
    assert (result.labels == segment(image, loaded.model, loaded.task.cfg).labels).mean() >= 0.9999


@torch.no_grad()
def test_mirroring_makes_the_result_independent_of_the_sides(loaded, phantom):
    """With windows that lie symmetrically, the labels of a flipped image are the flipped labels."""
    cfg = replace(
        loaded.task.cfg,
        inference=InferenceConfig(mirror=True, weighting="constant"),
        preprocess=replace(loaded.task.cfg.preprocess, spacing=None),
    )
    array = phantom(32, 24, 16)
    straight = segment(volume(array), loaded.model, cfg).labels
    assert (segment(volume(array[::-1, :, ::-1]), loaded.model, cfg).labels[::-1, :, ::-1] == straight).mean() > 0.999
    plain = replace(cfg, inference=InferenceConfig(weighting="constant"))
    single = segment(volume(array), loaded.model, plain).labels
    assert (segment(volume(array[::-1, :, ::-1]), loaded.model, plain).labels[::-1, :, ::-1] == single).mean() < 0.999


@torch.no_grad()
def test_a_slicewise_network_sees_axial_slices(make_checkpoint, phantom):
    """Each axial slice of the volume gives what the slice alone gives."""
    flat = load(make_checkpoint(patch_size=[16, 16], preprocess={"spacing": None, "normalise": ["none"]}))
    array = phantom(24, 20, 5)
    labels = segment(volume(array), flat.model, flat.task.cfg).labels
    assert labels.shape == (24, 20, 5) and len(np.unique(labels)) > 1
    for z in range(5):
        logits = sliding_window(torch.from_numpy(array[None, :, :, z].astype(np.float32)), flat.model, (16, 16))
        assert (labels[:, :, z] == logits.argmax(0).numpy()).mean() >= 0.999


@torch.no_grad()
def test_regions_are_painted_in_their_order(make_checkpoint, phantom):
    regions = {"background": 0, "whole": [1, 2], "core": [2]}
    loaded = load(make_checkpoint(labels=regions, regions_class_order=[1, 2]))
    image = volume(phantom(30, 26, 28))
    logits, _ = whole_logits(image, loaded, loaded.task.cfg)
    expected = np.where(logits[1].numpy() > 0, 2, np.where(logits[0].numpy() > 0, 1, 0))
    result = segment(image, loaded.model, loaded.task.cfg, probabilities=True)
    assert len(np.unique(expected)) == 3 and (result.labels == expected).mean() >= 0.9999
    np.testing.assert_allclose(result.probabilities, logits.sigmoid().numpy(), atol=1e-5)
    assert (segment(image, loaded.model, loaded.task.cfg).labels == expected).mean() >= 0.9999


@torch.no_grad()
def test_voxels_outside_of_the_mask_are_background(make_checkpoint, phantom):
    loaded = load(make_checkpoint(preprocess={"spacing": None, "mask_zscore": True, "crop_nonzero": False}))
    array = phantom(24, 20, 16)
    array[:6] = 0
    labels = segment(volume(array), loaded.model, loaded.task.cfg).labels
    assert (labels[:6] == 0).all() and labels.shape == array.shape and labels.any()


def test_label_values_may_have_gaps_and_need_sixteen_bits(make_checkpoint, phantom):
    loaded = load(make_checkpoint(labels={"background": 0, "a": 7, "b": 300}))
    with torch.no_grad():
        labels = segment(volume(phantom(20, 20, 20)), loaded.model, loaded.task.cfg).labels
    assert labels.dtype == np.uint16 and set(np.unique(labels)) == {0, 7, 300}


def test_largest_components():
    from scipy import ndimage

    random = np.random.default_rng(0)
    labels = random.integers(0, 3, (9, 10, 11)).astype(np.uint8)
    kept = largest_components(labels)
    for value in (1, 2):
        parts, count = ndimage.label(labels == value)
        sizes = ndimage.sum_labels(labels == value, parts, range(1, count + 1))
        assert count > 1 and (kept == value).sum() == sizes.max() and ndimage.label(kept == value)[1] == 1
        assert ((kept == value) <= (labels == value)).all()


MEASURE = """
import sys
import numpy as np, torch
from torch import nn
from cnnkit.config import from_dict
from cnnkit_medseg.config import Config
from cnnkit_medseg.geometry import Grid
from cnnkit_medseg.io import Volume
from cnnkit_medseg.predict import segment

labels = {"background": 0, **{f"c{value}": value for value in range(1, 104)}}
settings = {"preprocess": {"spacing": [1.25] * 3, "order": 1}, "inference": {"overlap": 0.25}}
cfg = from_dict(Config, {"labels": labels, "patch_size": [32] * 3, **settings})
model = nn.Conv3d(1, 104, 1).requires_grad_(False)
def volume(size):
    grid = Grid((size,) * 3, np.eye(4))
    array = np.random.default_rng(0).random((1, size, size, size), np.float32)
    return Volume(array, (1.0,) * 3, grid.ras_affine, grid, (), "case")
def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
large = volume(80)
segment(volume(40), model, cfg)
before = peak()
segment(large, model, cfg, probabilities=sys.argv[1] == "whole")
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc: ru_maxrss starts at the peak of the parent")
def test_the_logits_of_a_volume_never_stand_in_memory():
    """104 classes: the peak stays under half of what the logits would take; with probabilities it cannot, which shows the scale."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    grown = {}
    for way in ("streamed", "whole"):
        result = subprocess.run([sys.executable, "-c", MEASURE, way], env=env, capture_output=True, text=True, timeout=200)
        assert result.returncode == 0, result.stderr
        grown[way] = int(result.stdout)
    logits = 104 * 80**3 * 4
    assert grown["whole"] > logits and grown["streamed"] < logits / 2, {way: value / logits for way, value in grown.items()}
