"""An exported network computes what the checkpoint's does, and states its inputs beside it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from cnnkit.cli import main
from cnnkit.engine.export import check_target, export_network
from cnnkit.errors import CheckpointError, CnnkitError, UsageError


@pytest.fixture
def onnx():
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnxruntime")


def test_onnx(onnx, toy, toy_checkpoint, tmp_path):
    result = export_network(toy_checkpoint, tmp_path / "model.onnx", plugin=toy)
    assert result.files == (tmp_path / "model.onnx", tmp_path / "model.json") and result.difference < 1e-6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.onnx"]
    session = onnx.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_inputs()] == ["x"]
    for count in (1, 2, 5):  # The free axis is free.
        x = np.arange(count, dtype=np.float32)[:, None]
        np.testing.assert_allclose(session.run(None, {"x": x})[0], 2 * x, rtol=1e-6)


def test_torch_export(toy, toy_checkpoint, tmp_path):
    result = export_network(toy_checkpoint, tmp_path / "model.pt2", plugin=toy)
    assert result.difference < 1e-6
    program = torch.export.load(tmp_path / "model.pt2").module()
    x = torch.arange(5.0)[:, None]
    torch.testing.assert_close(program(x), 2 * x)


def test_what_stands_beside_it(toy, toy_checkpoint, tmp_path):
    export_network(toy_checkpoint, tmp_path / "model.pt2", plugin=toy, overrides=["unit=mm"])
    about = json.loads((tmp_path / "model.json").read_text())
    assert about["task"] == "toy" and about["format"] == "torch.export" and about["header"]["labels"] == ["number"]
    assert about["inputs"] == {"x": {"shape": [2, 1], "dtype": "float32", "free_axes": {"0": "batch"}}}
    assert about["preprocess"] == {"unit": "mm"} and about["difference_from_torch"] < 1e-6


def test_a_network_that_exports_as_something_else_is_refused(toy, toy_checkpoint, tmp_path, monkeypatch):
    old = tmp_path / "model.pt2"
    old.write_text("old")
    for difference in (0.1, float("nan")):
        monkeypatch.setattr("cnnkit.engine.export._difference", lambda found, expected, value=difference: value)
        with pytest.raises(CnnkitError, match=r"differs from PyTorch by .* nothing was written"):
            export_network(toy_checkpoint, old, plugin=toy)
    assert old.read_text() == "old" and list(tmp_path.iterdir()) == [old]


def test_refusals(toy, toy_checkpoint, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"model\.h5 has no known suffix; accepted: \.onnx \(onnx\), \.pt2 \(torch\.export\)"):
        check_target(tmp_path / "model.h5")
    with pytest.raises(CheckpointError, match="is a checkpoint of task 'toy', not of 'other'"):
        export_network(toy_checkpoint, tmp_path / "m.pt2", plugin=type(toy)("other", 1, "s", toy.task, toy.run))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="not writable"):
        export_network(toy_checkpoint, tmp_path / "file" / "m.pt2", plugin=toy)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"ONNX needs onnx, onnxruntime, onnxscript; type: pip install 'cnnkit\[onnx\]'"):
        check_target(tmp_path / "model.onnx")


def test_a_task_without_a_network_of_its_own(toy, toy_checkpoint, tmp_path, monkeypatch):
    class Silent(toy.load_task()):
        export_inputs = None

    monkeypatch.setattr("cnnkit_toy.task.Silent", Silent, raising=False)
    with pytest.raises(UsageError, match="task 'toy' has no network that can be exported by itself"):
        export_network(toy_checkpoint, tmp_path / "m.pt2", plugin=dataclasses.replace(toy, task="cnnkit_toy.task:Silent"))


def test_the_command(toy, toy_checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["export", "toy", "--ckpt", str(toy_checkpoint), "-o", str(tmp_path / "m.pt2")])
    lines = capsys.readouterr().out.splitlines()
    assert (
        stop.value.code == 0
        and lines[0].startswith("largest difference")
        and lines[1:] == [str(tmp_path / "m.pt2"), str(tmp_path / "m.json")]
    )
