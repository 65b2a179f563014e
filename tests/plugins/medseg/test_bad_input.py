"""Every kind of bad file beside a good one: one row in errors.csv that names file and cause, and the good one is segmented."""

from __future__ import annotations

import csv
import errno
import gzip
import json
import os
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from cnnkit.checkpoint import load_checkpoint, read_header, save_checkpoint
from cnnkit.cli import main

EYE = np.diag([2.0, 2, 2, 1])


def header_edit(path: Path, values, **fields) -> Path:
    """Save a volume whose header fields are then overwritten in the file, past what nibabel would repair."""
    image = nib.Nifti1Image(values, EYE)
    image.set_sform(EYE, 1)
    image.set_qform(EYE, 1)
    nib.save(image, path)
    content = bytearray(gzip.decompress(path.read_bytes()))
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(content)))
    return path


def truncated(path, values):
    nib.save(nib.Nifti1Image(values, EYE), path)
    path.write_bytes(path.read_bytes()[:-500])


def not_finite(path, values, bad=np.nan):
    values = values.astype(np.float32)
    values[3, 4, 5] = bad
    nib.save(nib.Nifti1Image(values, EYE), path)


def flat(path, values):
    nib.save(nib.Nifti1Image(values[:, :, 0], EYE), path)


def colour(path, values):
    nib.save(nib.Nifti1Image(np.zeros(values.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")]), EYE), path)


def sheared(path, values):
    affine = EYE.copy()
    affine[0, 2] = 0.5
    header_edit(path, values, srow_x=affine[0], qform_code=0)


def contradicting(path, values):
    header_edit(path, values, srow_x=[-2, 0, 0, 0])


BAD = {
    "truncated": (truncated, "truncated or damaged gzip file"),
    "nan": (not_finite, "1 of 6120 voxels are NaN or infinite; repair the file, or have them replaced by 0 with --nonfinite zero"),
    "infinite": (lambda path, values: not_finite(path, values, np.inf), "NaN or infinite"),
    "two dimensions": (flat, "2-D image of shape (20, 18); a 3-D volume is needed"),
    "colour": (colour, "RGB colour image"),
    "zero spacing": (lambda path, values: header_edit(path, values, sform_code=0, pixdim=[1, 0, 2, 2, 1, 0, 0, 0]), "zero spacing"),
    "sheared": (sheared, "non-orthonormal axes"),
    "contradicting": (contradicting, "sform and qform contradict each other"),
    "two channels": (
        lambda path, values: nib.save(nib.Nifti1Image(np.stack([values] * 2, -1), EYE), path),
        "2 channels; the model takes 1",
    ),
    "empty": (lambda path, values: path.write_bytes(b""), "Empty file"),
    "text": (lambda path, values: path.write_text("no volume"), "not a NIfTI file, or its header is damaged"),
    "zipped text": (lambda path, values: path.write_bytes(gzip.compress(b"no volume")), "not a NIfTI file, or its header is damaged"),
}


def rows(folder: Path) -> dict[str, dict[str, str]]:
    with open(folder / "errors.csv", newline="") as stream:
        return {row["input"]: row for row in csv.DictReader(stream)}


def command(*words, code: int, capsys) -> str:
    """Call the command line and return what it said on stderr."""
    with pytest.raises(SystemExit) as stop:
        main([*map(str, words), "--device", "cpu", "--no-overlay"])
    shown = capsys.readouterr()
    assert stop.value.code == code and "Traceback" not in shown.err, shown.err
    return shown.err


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_beside_a_good_one(kind, tiny, tmp_path, save_nifti, phantom, capsys):
    make, cause = BAD[kind]
    bad = tmp_path / "in" / "bad.nii.gz"
    save_nifti(tmp_path / "in" / "good.nii.gz")
    make(bad, phantom(20, 18, 17))
    out = tmp_path / "out"
    said = command("run", "medseg", tmp_path / "in", "--ckpt", tiny, "-o", out, code=1, capsys=capsys)
    assert list(rows(out)) == ["bad"] and rows(out)["bad"]["files"] == str(bad)
    message = rows(out)["bad"]["error"]
    assert str(bad) in message and cause in message and message in said
    assert nib.load(out / "good.nii.gz").shape == (20, 18, 17) and not (out / "bad.nii.gz").exists()
    report = json.loads((out / "report.json").read_text())
    assert report["counts"] == {"ok": 1, "resumed": 0, "error": 1} and "details" not in report["inputs"][0]


def test_what_can_be_repaired_by_an_option_is(segment_files, tmp_path, phantom):
    nan, forms = tmp_path / "nan.nii.gz", tmp_path / "forms.nii.gz"
    not_finite(nan, phantom(20, 18, 17))
    contradicting(forms, phantom(20, 18, 17))
    report = segment_files(nan, forms, nonfinite="zero", geometry="sform")
    assert not report.failed
    warned = {item.name: item.warnings for item in report.items}
    assert any("replaced by 0" in text for text in warned["nan"])


@pytest.mark.parametrize("shape", [(5, 30, 9), (1, 1, 1), (3, 40, 16)])
def test_an_image_smaller_than_the_window_is_segmented(shape, segment_files, save_nifti, phantom, tmp_path):
    report = segment_files(save_nifti(tmp_path / "small.nii.gz", phantom(40, 40, 40)[tuple(map(slice, shape))]), overlay=True)
    assert not report.failed, report.failed
    assert nib.load(tmp_path / "out" / "small.nii.gz").shape == shape


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_image_is_segmented_with_a_warning(value, segment_files, save_nifti, tmp_path):
    report = segment_files(save_nifti(tmp_path / "flat.nii.gz", np.full((20, 18, 17), value, np.int16)), overlay=True)
    assert not report.failed, report.failed
    assert any(f"constant image, every voxel is {value}" in text for text in report.items[0].warnings)


def test_a_missing_channel_file(make_checkpoint, tmp_path, save_nifti, phantom, capsys):
    two = make_checkpoint(channels=["T1", "T2"])
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("good_0000", "good_0001", "lone_0000", "gap_0000", "gap_0002"):
        save_nifti(folder / f"{name}.nii.gz")
    save_nifti(folder / "other_0000.nii.gz")
    save_nifti(folder / "other_0001.nii.gz", phantom(20, 18, 16))
    command("run", "medseg", folder, "--ckpt", two, "-o", out, code=1, capsys=capsys)
    found = {name: row["error"] for name, row in rows(out).items()}
    assert found.keys() == {"lone", "gap", "other"} and (out / "good.nii.gz").exists()
    assert "lone_0000.nii.gz: 1 channel; the model takes 2" in found["lone"] or "missing channel file" in found["lone"]
    assert "missing channel file" in found["gap"] and "gap_0001.nii.gz" in found["gap"]
    assert "do not lie on one grid" in found["other"] and "other_0001.nii.gz" in found["other"]


def test_paths_that_lead_to_nothing(tiny, tmp_path, save_nifti, capsys):
    (tmp_path / "void").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    good, out = save_nifti(tmp_path / "good.nii.gz"), tmp_path / "out"
    inputs = (tmp_path / "lost.nii.gz", tmp_path / "void", tmp_path / "notes.txt", good)
    command("run", "medseg", *inputs, "--ckpt", tiny, "-o", out, code=1, capsys=capsys)
    found = {name: row["error"] for name, row in rows(out).items()}
    assert "lost.nii.gz: no such file or folder" in found["lost"] and "void: empty folder" in found["void"]
    assert "notes.txt: not a volume that can be read" in found["notes.txt"] and (out / "good.nii.gz").exists()


def test_a_full_disk_is_the_matter_of_one_case(segment_files, save_nifti, tmp_path, monkeypatch):
    whole = nib.save

    def full(image, path):
        if "b.nii.gz" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(image, path)

    files = [save_nifti(tmp_path / "in" / f"{name}.nii.gz") for name in "abc"]
    monkeypatch.setattr(nib, "save", full)
    report = segment_files(*files)
    out = tmp_path / "out"
    assert [item.status for item in report.items] == ["ok", "error", "ok"]
    assert "b: No space left on device" in rows(out)["b"]["error"] and not list(out.glob(".part-*"))
    assert not (out / "b.nii.gz").exists()


def changed(checkpoint: Path, target: Path, **fields) -> Path:
    """Save a checkpoint again with another header."""
    import dataclasses

    header, state = load_checkpoint(checkpoint)
    return save_checkpoint(target, state, dataclasses.replace(header, **fields))


def pickled(tiny: Path, path: Path) -> str:
    path.write_bytes(pickle.dumps({"a": 1}))
    return "is a pickle, which can run any code when it is opened; cnnkit never opens one"


def other_task(tiny: Path, path: Path) -> str:
    changed(tiny, path, task="audio")
    return "is a checkpoint of task 'audio', not of 'medseg'; type: cnnkit run audio --ckpt"


def other_labels(tiny: Path, path: Path) -> str:
    changed(tiny, path, labels=("background", "a", "c"))
    return "was trained on the labels background, a, c; the configuration says background, a, b"


def other_network(tiny: Path, path: Path) -> str:
    config = dict(read_header(tiny).config)
    changed(tiny, path, config=config | {"network": {"name": "medseg/unet", "args": {"channels": [8, 16]}}})
    return path.name


def unknown_network(tiny: Path, path: Path) -> str:
    changed(tiny, path, config=dict(read_header(tiny).config) | {"network": {"name": "medseg/unte", "args": {}}})
    return "unknown model 'medseg/unte'; did you mean 'medseg/unet'"


def unknown_setting(tiny: Path, path: Path) -> str:
    changed(tiny, path, config=dict(read_header(tiny).config) | {"from_the_future": 1})
    return "unknown key 'from_the_future'"


def cut_off(tiny: Path, path: Path) -> str:
    path.write_bytes(tiny.read_bytes()[:-100])
    return "is damaged or cut off"


def cut_in_header(tiny: Path, path: Path) -> str:
    path.write_bytes(tiny.read_bytes()[:300])
    return "its header is damaged: it is cut off"


def plain(tiny: Path, path: Path) -> str:
    torch.save(load_checkpoint(tiny)[1], path)
    return "with no task, labels or preprocessing that can be trusted"


@pytest.mark.parametrize(
    "make",
    [pickled, other_task, other_labels, other_network, unknown_network, unknown_setting, cut_off, cut_in_header, plain],
    ids=lambda f: f.__name__,
)
def test_a_checkpoint_that_cannot_be_used_stops_the_run_before_it_starts(make, tiny, tmp_path, save_nifti, capsys):
    path, out = tmp_path / "model.ckpt", tmp_path / "out"
    cause = make(tiny, path)
    said = command("run", "medseg", save_nifti(tmp_path / "a.nii.gz"), "--ckpt", path, "-o", out, code=2, capsys=capsys)
    assert str(path) in said or "unknown" in said
    assert cause in said and not (out / "report.json").exists()


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["--ckpt", "lost.ckpt"], "checkpoint lost.ckpt does not exist"),
        (["--set", "labels.c=3"], "tiny.ckpt"),
        (["--set", "patch_siez=[8,8,8]"], "unknown key 'patch_siez'; did you mean 'patch_size'"),
        (["--set", "inference.overlap=much"], "inference.overlap"),
        (["--config", "lost.yaml"], "cannot read configuration"),
        (["--overlap", "1.5"], "overlap"),
        (["-o", "a.nii.gz/out"], "is not writable"),
        (["--device", "cuda:77"], "device 'cuda:77' is not available here"),
        (["--grid", "mona"], "'mona' is not one of 'nnunet', 'monai'"),
        (["--geometry", "both"], "'both' is not one of"),
    ],
)
def test_what_is_typed_wrong_stops_the_run_before_it_starts(words, cause, tiny, tmp_path, save_nifti, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_nifti(tmp_path / "a.nii.gz")
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "run",
                "medseg",
                "a.nii.gz",
                *(() if "--ckpt" in words else ("--ckpt", str(tiny))),
                *(() if "-o" in words else ("-o", "out")),
                *words,
            ]
        )
    said = capsys.readouterr().err
    assert stop.value.code == 2 and cause in said and "Traceback" not in said and not Path("out/report.json").exists()


def test_a_checkpoint_without_labels(make_checkpoint, tiny, tmp_path, save_nifti, capsys):
    config = dict(read_header(tiny).config) | {"labels": {}}
    path = changed(tiny, tmp_path / "bare.ckpt", config=config, labels=())
    said = command("run", "medseg", save_nifti(tmp_path / "a.nii.gz"), "--ckpt", path, "-o", tmp_path / "out", code=2, capsys=capsys)
    assert "labels are not set" in said or "names no labels" in said
