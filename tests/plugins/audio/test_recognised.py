"""Bare weights in the layouts of the papers run without a configuration."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.count import on_meta
from cnnkit.engine.load import load
from cnnkit.errors import CheckpointError, InputWarning
from cnnkit.testing.compare import assert_near, stir
from cnnkit_audio.published import recognise


def saved(path: Path, name: str, **args: object) -> tuple[Path, torch.nn.Module]:
    torch.manual_seed(0)
    model = stir(create_model(name, dims=1, **args)).eval()
    torch.save({"model": model.state_dict()}, path)
    return path, model


@pytest.mark.parametrize(("name", "classes"), [("audio/acdnet_micro", 50), ("audio/panns_cnn6", 527), ("audio/aclnet_small", 10)])
def test_taggers(tmp_path: Path, name: str, classes: int) -> None:
    """By keys and shapes; labels that nobody names are numbered, which is said."""
    path, model = saved(tmp_path / "weights.pth", name, num_classes=classes)
    with pytest.warns(InputWarning, match=f"{classes} labels"):
        loaded = load(path, task="audio")
    assert loaded.task.cfg.network.name == name and len(loaded.task.labels()) == classes
    assert loaded.task.cfg.tagging.multilabel == (classes == 527)
    x = torch.from_numpy(np.random.default_rng(0).uniform(-0.1, 0.1, (1, 1, 60000)).astype(np.float32))
    x = x[..., :30225] if "acdnet" in name else x
    with torch.no_grad():
        assert_near(loaded.model(x), model(x), 1e-6)


def test_labels_of_audioset(tmp_path: Path) -> None:
    """Are read from their table beside the weights."""
    path, _ = saved(tmp_path / "Cnn6.pth", "audio/panns_cnn6", num_classes=527)
    rows = "".join(f'{index},/m/{index},"Sound, {index}"\n' for index in range(527))
    (tmp_path / "class_labels_indices.csv").write_text("index,mid,display_name\n" + rows, encoding="utf-8")
    assert load(path, task="audio").task.labels()[3] == "Sound, 3"


def test_networks_that_only_compute_otherwise(tmp_path: Path) -> None:
    """The weights of a causal network and of one that is not have the same shapes: the choice is said."""
    path, _ = saved(tmp_path / "tcn.pth", "audio/micro_tcn_300_n")
    with pytest.warns(InputWarning, match=r"tcn\.pth fits audio/micro_tcn_300_c and audio/micro_tcn_300_n alike; .* network\.name"):
        assert load(path, task="audio").task.cfg.network.name == "audio/micro_tcn_300_c"


@pytest.mark.parametrize("name", ["audio/esc_large", "audio/efficient_tdnn"])
def test_other_jobs(name: str) -> None:
    """By their shapes alone, without a word."""
    with on_meta():
        state = create_model(name, dims=1).state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        assert recognise(state, "weights.pth") == {"network": {"name": name}}


def test_what_fits_nothing_is_refused(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.zeros(3, 4), "a.bias": torch.zeros(3)}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match="fits no network of audio"):
        load(tmp_path / "odd.pth", task="audio")
