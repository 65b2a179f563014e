"""Checkpoints: recognised by their bytes, read without torch, and never unpickled."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from cnnkit.checkpoint import Header, load_checkpoint, read_header, read_state, recognise, save_checkpoint, unwrap
from cnnkit.errors import CheckpointError

HEADER = Header(task="toy", config={"a": [1, 2]}, labels=("x", "ü"), metrics={"dice": 0.5}, note="for tests")
STATE = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.int64), "h": torch.ones(2, dtype=torch.bfloat16)}


class Evil:
    """Unpickling this makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def raw(metadata: dict) -> bytes:
    text = json.dumps({"__metadata__": metadata}).encode()
    return struct.pack("<Q", len(text)) + text


def same(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors", "model.pt", "model", "model.onnx"])
def test_round_trip_under_any_suffix(name, tmp_path):
    path = save_checkpoint(tmp_path / name, STATE, HEADER)
    assert recognise(path) == "cnnkit"
    header, state = load_checkpoint(path)
    assert same(state, STATE) and state["h"].dtype == torch.bfloat16
    assert (
        header.torch == torch.__version__ and header.labels == ("x", "ü") and header.config == {"a": [1, 2]} and header.note == "for tests"
    )


def test_the_order_of_keys_is_kept(tmp_path):
    header = Header(task="toy", config={"labels": {"spleen": 1, "liver": 2, "aorta": 3}})
    assert list(read_header(save_checkpoint(tmp_path / "a", STATE, header)).config["labels"]) == ["spleen", "liver", "aorta"]


def test_shared_and_strided_tensors_are_stored(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    path = save_checkpoint(tmp_path / "a", {"one": weight, "two": weight, "turned": weight.T}, HEADER)
    assert same(read_state(path), {"one": weight, "two": weight, "turned": weight.T})


def test_the_header_is_read_without_torch(tmp_path, fresh):
    path = save_checkpoint(tmp_path / "model.pt", STATE, HEADER)
    code = "import sys; from cnnkit.checkpoint import read_header; print(read_header(sys.argv[1]).labels[0], 'torch' in sys.modules)"
    assert fresh(str(path), code=code).stdout.split() == ["x", "False"]


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 20, 100, -1])
def test_a_cut_off_file_is_refused(keep, tmp_path):
    whole = save_checkpoint(tmp_path / "whole", STATE, HEADER).read_bytes()
    path = tmp_path / "cut.ckpt"
    path.write_bytes(whole[:keep])
    with pytest.raises(CheckpointError, match=r"cut\.ckpt"):
        load_checkpoint(path)
    if keep in (20, 100, -1):
        with pytest.raises(CheckpointError, match=r"cut off|damaged"):
            load_checkpoint(path)


@pytest.mark.parametrize(
    ("metadata", "cause"),
    [
        ({"cnnkit.format": "1", "cnnkit.task": "toy", "cnnkit.config": "{"}, "cnnkit.config' is damaged"),
        ({"cnnkit.format": "1", "cnnkit.task": "toy", "cnnkit.labels": "3"}, "cnnkit.labels' is damaged"),
        ({"cnnkit.format": "1", "cnnkit.task": "toy", "cnnkit.config": "[]"}, "cnnkit.config' is damaged"),
        ({"cnnkit.format": "1", "cnnkit.task": "toy", "cnnkit.config": 3}, "cnnkit.config' is damaged"),
        ({"cnnkit.format": "1", "cnnkit.task": "toy", "cnnkit.config": "[" * 100_000}, "cnnkit.config' is damaged"),
        ({"cnnkit.format": "1"}, "names no task"),
        ({"cnnkit.format": "2", "cnnkit.task": "toy"}, "format 2; this cnnkit reads format 1: install a newer cnnkit"),
        ({"format": "pt"}, "plain weights, with no task, labels or preprocessing. Give its task's configuration with --config"),
    ],
)
def test_headers_that_cannot_be_used(metadata, cause, tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(raw(metadata))
    with pytest.raises(CheckpointError) as error:
        read_header(path)
    assert cause in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 40, "hdf5"),
        (b"\x08\x08\x12\x07pytorch" + b"\0" * 40, "onnx"),
        (b"some text, no weights", "unknown"),
        (b"\xff", "unknown"),
        (pickle.dumps({"a": 1}, 2), "pickle"),
        (pickle.dumps({"a": 1}, 4), "pickle"),
        (b"\x80", "unknown"),
    ],
)
def test_files_of_other_kinds_are_named(content, kind, tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    assert recognise(path) == kind
    for read in (read_header, read_state):
        with pytest.raises(CheckpointError, match="pickle, which can run any code" if kind == "pickle" else f"{kind} file"):
            read(path)


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "lost", tmp_path):
        with pytest.raises(CheckpointError, match="cannot read checkpoint"):
            read_header(path)


def test_a_pickle_is_not_opened(tmp_path):
    mark, path = tmp_path / "ran", tmp_path / "model.ckpt"
    path.write_bytes(pickle.dumps(Evil(mark)))
    for read in (read_header, read_state):
        with pytest.raises(CheckpointError, match="pickle, which can run any code"):
            read(path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())  # The file is a weapon indeed.
    assert mark.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_save_are_read_safely(zipped, tmp_path):
    path = tmp_path / "weights.pth"
    content = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in STATE.items()}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert recognise(path) == "torch" and same(read_state(path), STATE)
    with pytest.raises(CheckpointError, match=r"torch\.save: plain weights at best"):
        read_header(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_of_torch_save_is_refused_by_name(zipped, tmp_path):
    mark, path = tmp_path / "ran", tmp_path / "weights.pth"
    torch.save({"state_dict": STATE, "extra": Evil(mark)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"was refused.*\((posix|nt)\.mkdir\)") as error:
        read_state(path)
    assert "torch.save(model.state_dict()" in str(error.value) and "weights_only" not in str(error.value) and not mark.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_cut_off_file_of_torch_save_is_refused(zipped, share, tmp_path):
    buffer = io.BytesIO()
    torch.save(STATE, buffer, _use_new_zipfile_serialization=zipped)
    path = tmp_path / "cut.pth"
    path.write_bytes(buffer.getvalue()[: int(share * len(buffer.getvalue()))])
    with pytest.raises(CheckpointError, match=r"cut\.pth is .*damaged or cut off"):
        read_state(path)


def test_damaged_bytes_never_raise_anything_else(tmp_path):
    """Every single byte of a legacy file's head turned over: either the weights are read, or the refusal is explained."""
    path = tmp_path / "a.pth"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    whole = bytearray(path.read_bytes())
    for position in range(16, len(whole), 3):
        damaged = whole.copy()
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            refused = str(path) if read_state(path) else ""
        except CheckpointError as error:
            refused = str(error)
        assert str(path) in refused and "weights_only" not in refused  # torch advises to load it unsafely; cnnkit does not.


def test_a_zip_that_is_no_checkpoint(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="holds no weights that cnnkit reads"):
        read_state(path)


@pytest.mark.parametrize("wrapper", ["state_dict", "network_weights", "params_ema", "params-ema", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_and_prefixes_are_taken_off(wrapper, prefix):
    content = {"epoch": 1, wrapper: {f"{prefix}{key}": value for key, value in STATE.items()}}
    assert same(unwrap(content), STATE) and same(unwrap({"state_dict": content}), STATE)


def test_a_prefix_of_some_keys_stays():
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert unwrap(state).keys() == state.keys()


@pytest.mark.parametrize("content", [3, [torch.ones(1)], {}, {"state_dict": {}}, {"epoch": 1, "config": {"a": 2}}])
def test_content_without_weights(content):
    with pytest.raises(CheckpointError, match="holds no state dict; found: "):
        unwrap(content, source="a.pth")
