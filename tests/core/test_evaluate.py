"""Evaluation, devices, and the way from a checkpoint file to a working task."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import cnnkit.plugin
import pytest
import torch
from cnnkit.checkpoint import Header, save_checkpoint
from cnnkit.config import to_dict
from cnnkit.engine.device import available_devices, pick_device, to_device
from cnnkit.engine.evaluate import evaluate, write_evaluation
from cnnkit.engine.load import load
from cnnkit.errors import CheckpointError, ConfigError, PluginError, UsageError
from cnnkit.plugin import Plugin

sys.path.insert(0, str(Path(__file__).parent))
from toy_task import Config, Toy

PLUGIN = Plugin(name="toy", api=1, summary="Tell half moons apart.", task="toy_task:Toy", run="toy_task:Run")


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(cnnkit.plugin, "discover", lambda: {"toy": PLUGIN})


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    torch.manual_seed(3)
    config = Config(hidden=6)
    header = Header(task="toy", model="mlp", config=to_dict(config), labels=("upper", "lower"))
    return save_checkpoint(tmp_path / "model.ckpt", Toy(config).model().state_dict(), header)


class Oracle(torch.nn.Module):
    """Answers right for the points above a line, so its accuracy can be counted by hand."""

    def forward(self, x):
        return torch.stack([x[:, 1] - 0.25, 0.25 - x[:, 1]], 1)


def test_evaluation_counts_every_item(tmp_path):
    figures, metric = evaluate(Toy(Config()), Oracle(), split="val", device="cpu", progress=False)
    data = Toy(Config()).loader("val").dataset
    right = sum((data.points[i][1] <= 0.25) == data.labels[i] for i in range(50))
    assert figures == {"accuracy": right / 50, "count": 50.0}
    files = write_evaluation(tmp_path / "out", {**figures, "absent": math.nan}, metric, about={"split": "val"})
    assert [path.name for path in files] == ["metrics.json", "accuracy.txt"]
    text = json.loads(files[0].read_text())
    assert text == {"split": "val", "metrics": {"accuracy": right / 50, "count": 50.0, "absent": None}}
    assert files[1].read_text() == f"{right} of 50\n"


def test_predictions_are_made_without_gradients_but_not_in_inference_mode():
    class Curious(Toy):
        def predict(self, model, batch):
            assert not torch.is_grad_enabled() and not torch.is_inference_mode_enabled() and not model.training
            with torch.enable_grad():  # As a task that needs forces does.
                x = batch["x"].clone().requires_grad_()
                model(x).sum().backward()
            assert x.grad is not None
            return super().predict(model, batch)

    assert evaluate(Curious(Config()), Oracle().train(), split="example", device="cpu", progress=False)[0]["count"] == 4


def test_a_split_without_data_is_explained():
    with pytest.raises(UsageError, match="no data for the split 'val'"):
        evaluate(Toy(Config(validate=False)), Oracle(), split="val", device="cpu", progress=False)


def test_devices():
    assert pick_device("cpu") == torch.device("cpu") and pick_device(" CPU ") == torch.device("cpu")
    assert str(pick_device("auto")) == available_devices()[0] and available_devices()[-1] == "cpu"
    for wrong in ("gpu", "cuda:99", ""):
        with pytest.raises(UsageError, match=r"available: auto, .*cpu"):
            pick_device(wrong)


def test_nested_batches_are_moved():
    @dataclasses.dataclass(frozen=True)
    class Sample:
        x: torch.Tensor
        name: str

    Pair = namedtuple("Pair", "a b")
    keep = object()
    batch = {"s": Sample(torch.zeros(1), "n"), "l": [torch.zeros(2), (keep, Pair(torch.zeros(3), 4))], "k": keep}
    moved = to_device(batch, "meta")
    assert moved["s"].x.device.type == moved["l"][0].device.type == moved["l"][1][1].a.device.type == "meta"
    assert moved["s"].name == "n" and moved["l"][1][0] is keep and moved["k"] is keep and moved["l"][1][1].b == 4
    assert batch["s"].x.device.type == "cpu"
    sample = Sample(torch.zeros(1), "n")
    assert to_device(sample, "cpu") is sample


def test_a_checkpoint_leads_to_its_task(checkpoint, installed):
    loaded = load(checkpoint)
    assert (loaded.task.cfg.hidden, loaded.header.model, loaded.plugin) == (6, "mlp", PLUGIN)
    assert not loaded.model.training
    torch.manual_seed(3)
    expected = Toy(Config(hidden=6)).model()
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name])
    assert load(checkpoint, overrides=["batch=3", "train.seed=9"]).task.cfg.train.seed == 9


def test_a_checkpoint_that_does_not_fit_is_explained(checkpoint, installed, monkeypatch):
    other = dataclasses.replace(PLUGIN, name="audio")
    with pytest.raises(CheckpointError, match=r"of task 'toy', not of 'audio'; type: cnnkit run toy --ckpt"):
        load(checkpoint, plugin=other)
    with pytest.raises(CheckpointError, match="not of 'audio'"):
        load(checkpoint, task="audio")
    with pytest.raises(CheckpointError, match=r"model.ckpt does not fit Sequential: .*0\.weight"):
        load(checkpoint, overrides=["hidden=7"])
    with pytest.raises(ConfigError, match="did you mean 'hidden'"):
        load(checkpoint, overrides=["hiden=7"])
    monkeypatch.setattr(Toy, "labels", lambda self: ["lower", "upper"])
    with pytest.raises(CheckpointError, match="trained on the labels upper, lower; the configuration says lower, upper"):
        load(checkpoint)
    monkeypatch.setattr(cnnkit.plugin, "discover", dict)
    with pytest.raises(PluginError, match="unknown plugin 'toy'"):
        load(checkpoint)


def test_a_stored_configuration_of_another_version_is_explained(tmp_path, installed):
    path = save_checkpoint(tmp_path / "old.ckpt", {"a": torch.zeros(1)}, Header(task="toy", config={"depth": 3}))
    with pytest.raises(ConfigError, match=r"the configuration in .*old.ckpt: unknown key 'depth'"):
        load(path)


def test_plain_weights_need_a_configuration(tmp_path, installed):
    path, config = tmp_path / "plain.pt", tmp_path / "c.yaml"
    torch.save(Toy(Config(hidden=5)).model().state_dict(), path)
    config.write_text("hidden: 5\n")
    with pytest.raises(CheckpointError, match="--config"):
        load(path, plugin=PLUGIN)
    loaded = load(path, plugin=PLUGIN, config=config)
    assert loaded.header == Header(task="toy") and loaded.model[0].out_features == 5


def test_a_task_may_adopt_foreign_weights(tmp_path, installed, monkeypatch):
    path, config = tmp_path / "plain.pt", tmp_path / "c.yaml"
    torch.save({"w": torch.full((16, 2), 2.0)}, path)
    config.write_text("batch: 2\n")
    monkeypatch.setattr(Toy, "adopt", lambda self, state, model: model[0].weight.data.copy_(state["w"]), raising=False)
    assert (load(path, plugin=PLUGIN, config=config).model[0].weight == 2).all()


def test_a_task_may_recognise_foreign_weights(tmp_path, installed, monkeypatch):
    path = tmp_path / "plain.pt"
    torch.save(Toy(Config(hidden=5)).model().state_dict(), path)
    sizes = classmethod(lambda cls, state, source: {"hidden": len(state["0.weight"])})
    monkeypatch.setattr(Toy, "recognise", sizes, raising=False)
    for loaded in (load(path, plugin=PLUGIN), load(path, task="toy", overrides=["batch=2"])):
        assert loaded.task.cfg.hidden == loaded.model[0].out_features == 5 and loaded.header.task == "toy"
    with pytest.raises(CheckpointError, match="no task"):
        load(path)  # Nobody said which task to ask.
    config = tmp_path / "c.yaml"
    config.write_text("hidden: 6\n")
    with pytest.raises(CheckpointError, match="does not fit"):
        load(path, plugin=PLUGIN, config=config)  # A configuration that is given counts.


def test_what_the_command_line_imports_brings_no_torch():
    names = ", ".join(f"cnnkit.engine.{name}" for name in ("config", "fit", "evaluate", "load", "resume", "device", "optim", "curves"))
    code = f"import sys, {names}; print(*{{'torch', 'lightning', 'numpy', 'yaml', 'pydantic'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True).stdout.strip() == ""
