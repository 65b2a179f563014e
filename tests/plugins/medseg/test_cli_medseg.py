"""``cnnkit run medseg`` from file to file: every format in, label maps on the same grid out."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner
from cnnkit import api
from cnnkit.cli import cli, main
from cnnkit.engine.load import load
from cnnkit_medseg.io import read_volume
from cnnkit_medseg.predict import segment


def command(*words, capsys) -> str:
    """Call the command line, which must succeed, and return what it printed."""
    with pytest.raises(SystemExit) as stop:
        main([*map(str, words), "--device", "cpu"])
    shown = capsys.readouterr()
    assert stop.value.code == 0, shown.err
    return shown.out


def raw_header(path) -> dict[str, bytes]:
    header = nib.load(path).header
    return {
        key: header[key].tobytes() for key in ("srow_x", "srow_y", "srow_z", "sform_code", "qform_code", "quatern_b", "pixdim", "qoffset_x")
    }


def test_an_oblique_flipped_volume_keeps_its_grid_bit_for_bit(tiny, oblique, phantom, save_nifti, tmp_path, capsys):
    source = save_nifti(tmp_path / "in" / "case.nii.gz", phantom(21, 26, 19), oblique)
    out = tmp_path / "out"
    shown = command("run", "medseg", source, "--ckpt", tiny, "-o", out, "-q", capsys=capsys)
    result = nib.load(out / "case.nii.gz")
    assert result.shape == (21, 26, 19) and result.get_data_dtype() == np.uint8 and shown == ""
    assert result.affine.tobytes() == nib.load(source).affine.tobytes() and raw_header(out / "case.nii.gz") == raw_header(source)
    assert set(np.unique(result.dataobj)) == {0, 1, 2}
    assert sorted(path.name for path in out.iterdir()) == [
        ".cnnkit",
        "case.nii.gz",
        "case_overlay.png",
        "case_statistics.json",
        "report.json",
    ]
    with (out / "case_overlay.png").open("rb") as stream:
        assert stream.read(8) == b"\x89PNG\r\n\x1a\n"


def test_labels_lie_where_the_image_is(tiny, oblique, phantom, save_nifti, tmp_path, segment_files):
    """Axis order is no part of the result: a volume stored in RAS and in another order gives the same labels in space."""
    values = phantom(21, 26, 19)
    turned = save_nifti(tmp_path / "turned.nii.gz", values, oblique)
    straight = nib.as_closest_canonical(nib.load(turned))
    nib.save(straight, tmp_path / "straight.nii.gz")
    assert not segment_files(turned, tmp_path / "straight.nii.gz").failed
    back = nib.as_closest_canonical(nib.load(tmp_path / "out" / "turned.nii.gz"))
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(nib.load(tmp_path / "out" / "straight.nii.gz").dataobj))


def test_statistics_are_those_of_the_label_map(tiny, oblique, save_nifti, segment_files, phantom, tmp_path):
    source = save_nifti(tmp_path / "case.nii.gz", phantom(21, 26, 19), oblique)
    segment_files(source)
    stored = json.loads((tmp_path / "out" / "case_statistics.json").read_text())
    labels, image = np.asarray(nib.load(tmp_path / "out" / "case.nii.gz").dataobj), np.asarray(nib.load(source).dataobj)
    voxel = abs(np.linalg.det(nib.load(source).affine[:3, :3])) / 1000
    assert stored["voxel_volume_ml"] == pytest.approx(voxel, rel=1e-6) and list(stored["classes"]) == ["a", "b"]
    for name, value in (("a", 1), ("b", 2)):
        row, inside = stored["classes"][name], labels == value
        assert row["voxels"] == int(inside.sum()) > 0 and row["volume_ml"] == pytest.approx(inside.sum() * voxel, rel=1e-6)
        assert row["mean"] == [pytest.approx(image[inside].mean(), rel=1e-5)]
        # The centre in mm is a property of space, whatever the axis order: here by the file's own indices and affine.
        centre = nib.affines.apply_affine(nib.load(source).affine, np.argwhere(inside).mean(0))
        np.testing.assert_allclose(row["centre_mm"], centre, atol=1e-3)


def test_the_label_map_is_what_the_task_decides(tiny, save_nifti, phantom, segment_files, tmp_path):
    source = save_nifti(tmp_path / "case.nii.gz", phantom(30, 26, 28))
    segment_files(source)
    loaded = load(tiny)
    import torch

    with torch.no_grad():
        expected = segment(read_volume([source]), loaded.model, loaded.task.cfg).labels
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "out" / "case.nii.gz").dataobj), expected)


def test_channels_in_one_file_and_in_files_of_their_own(make_checkpoint, phantom, save_nifti, segment_files, tmp_path):
    two = make_checkpoint(channels=["T1", "T2"])
    first, second = phantom(20, 18, 17), phantom(20, 18, 17, seed=1)
    save_nifti(tmp_path / "in" / "split_0000.nii.gz", first)
    save_nifti(tmp_path / "in" / "split_0001.nii.gz", second)
    save_nifti(tmp_path / "in" / "joined.nii.gz", np.stack([first, second], -1))
    save_nifti(tmp_path / "in" / "swapped.nii.gz", np.stack([second, first], -1))
    report = segment_files(tmp_path / "in", checkpoint=two)
    assert [item.status for item in report.items] == ["ok"] * 3
    result = {name: np.asarray(nib.load(tmp_path / "out" / f"{name}.nii.gz").dataobj) for name in ("split", "joined", "swapped")}
    np.testing.assert_array_equal(result["split"], result["joined"])
    assert (result["split"] != result["swapped"]).any()


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii"])
def test_other_formats_give_the_same_labels(suffix, phantom, save_nifti, segment_files, tmp_path):
    source = save_nifti(tmp_path / "in" / "reference.nii.gz")
    other = tmp_path / "in" / f"other{suffix}"
    sitk.WriteImage(sitk.ReadImage(str(source)), str(other))
    assert not segment_files(source, other).failed
    a, b = (nib.load(tmp_path / "out" / f"{name}.nii.gz") for name in ("reference", "other"))
    np.testing.assert_array_equal(np.asarray(a.dataobj), np.asarray(b.dataobj))
    np.testing.assert_allclose(a.affine, b.affine, atol=1e-5)


def test_a_folder_of_dicom_slices(phantom, save_nifti, segment_files, tmp_path):
    """Oracle: the same volume, written as NIfTI by SimpleITK's own reader of the series."""
    folder = tmp_path / "in" / "thorax"
    folder.mkdir(parents=True)
    values = phantom(20, 18, 9)
    for z in range(9):
        image = sitk.GetImageFromArray(values[:, :, z].T[None])
        image.SetSpacing((1.5, 1.5, 2.5))
        tags = {"0008|0060": "CT", "0020|000e": "1.2.826.0.1.3680043.2.1125.1", "0020|0013": str(z), "0020|0032": f"-10\\5\\{2.5 * z}"}
        tags["0020|0037"] = "1\\0\\0\\0\\1\\0"
        for tag, text in tags.items():
            image.SetMetaData(tag, text)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{8 - z}.dcm"))
        image.SetOrigin((-10.0, 5.0, 2.5 * z))
        writer.Execute(image)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    sitk.WriteImage(reader.Execute(), str(tmp_path / "in" / "oracle.nii.gz"))
    report = segment_files(tmp_path / "in")
    assert {item.name: item.status for item in report.items} == {"oracle": "ok", "thorax": "ok"}, [item.error for item in report.failed]
    a, b = (nib.as_closest_canonical(nib.load(tmp_path / "out" / f"{name}.nii.gz")) for name in ("oracle", "thorax"))
    np.testing.assert_array_equal(np.asarray(a.dataobj), np.asarray(b.dataobj))
    np.testing.assert_allclose(a.affine, b.affine, atol=1e-4)


def test_a_slicewise_network(make_checkpoint, phantom, save_nifti, segment_files, tmp_path):
    flat = make_checkpoint(patch_size=[16, 16], preprocess={"spacing": None})
    report = segment_files(save_nifti(tmp_path / "case.nii.gz", phantom(24, 20, 5)), checkpoint=flat, overlay=True)
    assert not report.failed, report.items
    assert len(np.unique(nib.load(tmp_path / "out" / "case.nii.gz").dataobj)) == 3


def test_regions(make_checkpoint, save_nifti, segment_files, tmp_path):
    regions = make_checkpoint(labels={"background": 0, "whole": [1, 2], "core": [2]}, regions_class_order=[1, 2])
    report = segment_files(save_nifti(tmp_path / "case.nii.gz"), checkpoint=regions, save_probabilities=True)
    assert not report.failed, report.items
    labels = np.asarray(nib.load(tmp_path / "out" / "case.nii.gz").dataobj)
    soft = np.asarray(nib.load(tmp_path / "out" / "case_probabilities.nii.gz").dataobj)
    assert soft.shape == (20, 18, 17, 2)
    np.testing.assert_array_equal(labels, np.where(soft[..., 1] > 0.5, 2, np.where(soft[..., 0] > 0.5, 1, 0)))


def test_saved_probabilities_decide_as_the_labels_do(oblique, phantom, save_nifti, segment_files, tmp_path):
    source = save_nifti(tmp_path / "case.nii.gz", phantom(21, 26, 19), oblique)
    report = segment_files(source, save_probabilities=True)
    assert [path.name for path in report.items[0].outputs] == ["case.nii.gz", "case_statistics.json", "case_probabilities.nii.gz"]
    labels, soft = nib.load(tmp_path / "out" / "case.nii.gz"), nib.load(tmp_path / "out" / "case_probabilities.nii.gz")
    assert soft.shape == (21, 26, 19, 3) and soft.affine.tobytes() == labels.affine.tobytes()
    np.testing.assert_array_equal(np.asarray(soft.dataobj).argmax(-1), np.asarray(labels.dataobj))
    np.testing.assert_allclose(np.asarray(soft.dataobj).sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        (["--mirror"], {"mirror": True}),
        (["--grid", "monai"], {"grid": "monai"}),
        (["--overlap", "0.1"], {"overlap": 0.1}),
        (["--largest-component"], {"largest_component": True}),
        (["--set", "inference.weighting=constant"], {}),
    ],
)
def test_options_reach_the_prediction(words, setting, tiny, save_nifti, tmp_path, capsys, monkeypatch):
    seen = []

    def spy(volume, model, cfg, **options):
        seen.append(cfg.inference)
        return segment(volume, model, cfg, **options)

    monkeypatch.setattr("cnnkit_medseg.task.segment", spy)
    source = save_nifti(tmp_path / "case.nii.gz")
    command("run", "medseg", source, "--ckpt", tiny, "-o", tmp_path / "out", "--no-overlay", *words, capsys=capsys)
    (used,) = seen
    stored = load(tiny).task.cfg.inference
    changed = {name for name in vars(used) if getattr(used, name) != getattr(stored, name)}
    assert changed == (set(setting) or {"weighting"}) and all(getattr(used, name) == value for name, value in setting.items())


def test_what_is_printed(tiny, save_nifti, tmp_path, capsys):
    source, out = save_nifti(tmp_path / "case.nii.gz"), tmp_path / "out"
    lines = command("run", "medseg", source, "--ckpt", tiny, "-o", out, "--no-overlay", "--no-statistics", capsys=capsys).splitlines()
    assert lines == [str(out / "case.nii.gz"), str(out / "report.json")]
    data = json.loads(command("run", "medseg", source, "--ckpt", tiny, "-o", out, "--json", "--resume", "--no-overlay", capsys=capsys))
    assert data["labels"] == ["background", "a", "b"] and data["model"] and data["counts"] == {"ok": 1, "resumed": 0, "error": 0}
    again = command("run", "medseg", source, "--ckpt", tiny, "-o", out, "--json", "--resume", "--no-overlay", capsys=capsys)
    assert json.loads(again)["counts"] == {"ok": 0, "resumed": 1, "error": 0}


def test_labels_out_of_alphabetical_order_reach_the_file_under_their_own_names(make_checkpoint, save_nifti, segment_files, tmp_path):
    """The order of the labels is the order of the outputs: a checkpoint must not sort them."""
    straight = make_checkpoint(labels={"background": 0, "a": 1, "b": 2})
    turned = make_checkpoint(labels={"spleen": 1, "liver": 2, "background": 0})
    source = save_nifti(tmp_path / "case.nii.gz")
    for name, checkpoint in (("one", straight), ("two", turned)):
        assert not segment_files(source, checkpoint=checkpoint, output=tmp_path / name).failed
    one, two = (nib.load(tmp_path / name / "case.nii.gz") for name in ("one", "two"))
    np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(two.dataobj))
    from cnnkit_medseg.io import read_label_names

    assert read_label_names(tmp_path / "two" / "case.nii.gz") == {1: "spleen", 2: "liver"}


def test_cases_of_one_name_and_a_folder_with_parts(tiny, save_nifti, segment_files, tmp_path):
    for folder in ("x", "y"):
        save_nifti(tmp_path / folder / "scan.nii.gz")
    report = segment_files(tmp_path / "x", tmp_path / "y", statistics=False)
    assert [item.name for item in report.items] == ["x_scan", "y_scan"] and not report.failed
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["x_scan.nii.gz", "y_scan.nii.gz"]
    parts = [segment_files(tmp_path / "x", tmp_path / "y", shard=f"{part}/2", output=tmp_path / "parts").items for part in (1, 2)]
    assert [[item.name for item in part] for part in parts] == [["x_scan"], ["y_scan"]]


def test_help_names_the_formats_and_the_options():
    shown = CliRunner().invoke(cli, ["run", "medseg", "--help"], terminal_width=160).output
    for text in (
        "NIfTI, NRRD, MHA, a DICOM series folder",
        "CASE.nii.gz",
        "--save-probabilities",
        "--nonfinite",
        "[refuse|zero]",
        "--mirror / --no-mirror",
    ):
        assert text in shown


def test_eval_and_export_and_info(tiny, tmp_path, capsys):
    from cnnkit.plugin import get

    assert get("medseg").missing() == []
    with pytest.raises(SystemExit) as stop:
        main(["eval", "medseg", "--ckpt", str(tiny), "-o", str(tmp_path / "eval"), "--split", "example", "--json", "-q", "--device", "cpu"])
    figures = json.loads(capsys.readouterr().out)
    assert stop.value.code == 0 and any("dice" in name.lower() for name in figures)
    with pytest.raises(SystemExit) as stop:
        main(["export", "medseg", "--ckpt", str(tiny), "-o", str(tmp_path / "net.pt2")])
    about = json.loads((tmp_path / "net.json").read_text())
    assert (
        stop.value.code == 0
        and about["preprocess"]["inference"]["patch_size"] == [16, 16, 16]
        and about["header"]["labels"] == ["background", "a", "b"]
    )
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["info", str(tiny), "--json"])
    assert json.loads(capsys.readouterr().out)["labels"] == ["background", "a", "b"]


def test_the_example_is_only_for_its_checkpoint(tiny, tmp_path):
    from cnnkit.errors import CheckpointError

    with pytest.raises(CheckpointError, match="the example is for the built-in checkpoint"):
        api.run("medseg", example=True, checkpoint=tiny, output=tmp_path / "out", progress=False, device="cpu")
