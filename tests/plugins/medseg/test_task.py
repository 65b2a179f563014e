"""The task by itself: configuration to network, labels to channels, and the small example."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from cnnkit.checkpoint import Header
from cnnkit.config import from_dict
from cnnkit.errors import CheckpointError, ConfigError
from cnnkit.task import Calibrates, Examples, Exports, Labelled, Preprocesses, Restores
from cnnkit_medseg.args import Run
from cnnkit_medseg.config import Config
from cnnkit_medseg.task import MedSeg

SMALL = {
    "patch_size": [16, 16, 16],
    "network": {"name": "medseg/unet", "args": {"channels": [4, 8]}},
    "labels": {"background": 0, "a": 1, "b": 2},
}
KINDS = {
    "volume": {},
    "deep supervision": {"deep_supervision": True},
    "slices": {"patch_size": [16, 16]},
    "two channels": {"channels": ["CT", "PET"]},
    "regions": {"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]},
    "gaps": {"labels": {"background": 0, "a": 4, "b": 9}},
}


def task_of(**changes) -> MedSeg:
    return MedSeg(from_dict(Config, SMALL | {"deep_supervision": False} | changes))


def test_it_has_the_capabilities_that_the_core_looks_for():
    task = task_of()
    assert all(isinstance(task, kind) for kind in (Calibrates, Examples, Exports, Labelled, Preprocesses, Restores))


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_batch_goes_the_whole_way(kind):
    task = task_of(**KINDS[kind])
    torch.manual_seed(0)
    model = task.model()
    (batch,) = task.loader("example")
    dims, classes = task.cfg.dims, len(task.labels())
    assert batch["image"].shape == (1, len(task.cfg.channels), *[16] * dims) and batch["label"].shape == (1, 1, *[16] * dims)
    losses = task.losses(model.train(), batch)
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total) and all(parameter.grad is not None for parameter in model.parameters())
    inputs, axes = task.export_inputs(batch)
    with torch.no_grad():
        logits = model.eval()(inputs["image"])
        (prediction,) = task.predict(model, batch)
    assert logits.shape == (1, classes, *[16] * dims) and axes == {"image": {0: "batch"}}
    assert prediction.labels.shape == batch["volume"].array.shape[1:]
    allowed = {0, *task.cfg.output_values}
    assert set(np.unique(prediction.labels)) <= allowed and set(np.unique(batch["reference"])) <= {0, 1, 2, 4, 9}
    metric = task.metric()
    metric.update([replace(prediction, labels=np.asarray(batch["reference"]))], batch)
    assert metric.compute()["dice"] == pytest.approx(1.0)  # The reference against itself.
    json.dumps(task.preprocess())


def test_losses_do_not_depend_on_the_label_values():
    plain, gaps = task_of(), task_of(**KINDS["gaps"])
    torch.manual_seed(0)
    model = plain.model()
    (batch,), (other,) = plain.loader("example"), gaps.loader("example")
    with torch.no_grad():
        first, second = plain.losses(model, batch), gaps.losses(model, {**other, "image": batch["image"]})
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert set(other["label"].unique().tolist()) == {0, 4, 9}


def test_labels_stand_in_the_order_of_the_outputs():
    assert task_of(labels={"spleen": 2, "background": 0, "liver": 1}).labels() == ["background", "spleen", "liver"]
    regions = task_of(**KINDS["regions"])
    assert regions.labels() == ["whole", "core"] and regions.preprocess()["outputs"] == {"values": [1, 2], "activation": "sigmoid"}


@pytest.mark.parametrize("preset", sorted(MedSeg.presets))
def test_presets_are_valid(preset):
    cfg = from_dict(Config, MedSeg.presets[preset])
    assert cfg.patch_size and MedSeg(cfg).cfg is cfg


def test_what_is_refused_before_a_case_is_read(tmp_path):
    header = Header(task="medseg")
    bare = MedSeg(Config())
    with pytest.raises(ConfigError, match="labels are not set"):
        bare.model()
    with pytest.raises(CheckpointError, match=r"names no labels.*--set 'labels="):
        bare.check(header, Run())
    for overlap in (1.0, -0.1, 1.5):
        with pytest.raises(ConfigError, match="is not a share of the window"):
            task_of().check(header, Run(overlap=overlap))
    with pytest.raises(ConfigError, match=r"inference\.batch_size 0"):
        task_of(inference={"batch_size": 0}).check(header, Run())
    task_of().check(header, Run(overlap=0.0))
    with pytest.raises(ConfigError, match=r"data\.root is not set"):
        bare.prepare(tmp_path)
    assert bare.loader("train") is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"patch_size": [16]},
        {"labels": {"background": 1, "a": 0}},
        {"regions_class_order": [1]},
        {"channels": ["a", "b", "c"], "preprocess": {"normalise": ["ct", "none"]}},
    ],
    ids=str,
)
def test_configurations_that_contradict_themselves(wrong):
    with pytest.raises(ConfigError, match="is not valid"):
        from_dict(Config, SMALL | wrong)


def test_metrics_of_two_processes_are_one():
    task = task_of()
    (batch,) = task.loader("example")
    model = task.model().eval()
    with torch.no_grad():
        predictions = task.predict(model, batch)
    left, right, both = task.metric(), task.metric(), task.metric()
    left.update(predictions, batch)
    right.update(predictions, {**batch, "name": "second"})
    both.update(predictions, batch)
    both.update(predictions, {**batch, "name": "second"})
    left.merge(right)
    assert left.compute() == both.compute()


def test_files_of_a_case_are_as_asked_for(tmp_path):
    task = task_of()
    (batch,) = task.loader("example")
    with torch.no_grad():
        predictions = task.predict(task.model().eval(), {**batch, "run": Run(save_probabilities=True)})
    names = [path.name for path in task.write(predictions, Run(output=tmp_path, overlay=True, statistics=True))]
    assert names == ["example.nii.gz", "example_overlay.png", "example_statistics.json", "example_probabilities.nii.gz"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    bare = [replace(predictions[0], probabilities=None)]
    assert [path.name for path in task.write(bare, Run(output=tmp_path / "b", overlay=False, statistics=False))] == ["example.nii.gz"]
