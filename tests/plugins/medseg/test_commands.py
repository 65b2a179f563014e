"""``cnnkit medseg score`` from the command line to summary.json, on tiny label files with figures worked out by hand."""

from __future__ import annotations

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from cnnkit.checkpoint import Header, save_checkpoint
from cnnkit.cli import cli, main
from cnnkit.errors import CnnkitError, ConfigError, InputError, UsageError
from cnnkit_medseg.commands import _METHODS, classes_of
from cnnkit_medseg.metrics import score_folders
from cnnkit_medseg.surface import METHODS

LABELS = "{liver: 1, lesion: [2, 3]}"
SPACING = (1.0, 1.0, 2.0)


def put(path, labels):
    nib.save(nib.Nifti1Image(labels.astype(np.uint8), np.diag((*SPACING, 1))), path)


@pytest.fixture
def folders(tmp_path):
    """Case ``a``: a liver of 4x4x4 moved by one voxel of 1 mm, and no lesion; case ``b``: all as it should be."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    predictions.mkdir()
    references.mkdir()
    liver = np.zeros((10, 9, 8))
    liver[2:6, 2:6, 2:6] = 1
    lesion = liver.copy()
    lesion[7:9, 7, 3:5], lesion[7, 7, 6] = 2, 3
    put(predictions / "a.nii.gz", np.roll(liver, 1, axis=0))
    put(references / "a.nii.gz", liver)
    put(predictions / "b.nii.gz", lesion)
    put(references / "b.nii.gz", lesion)
    return predictions, references


def score(*args):
    """Call the command line in this process and return its exit status."""
    with pytest.raises(SystemExit) as done:
        main(["medseg", "score", *map(str, args)])
    return done.value.code


def test_table_and_summary(folders, tmp_path, capsys):
    summary = tmp_path / "new" / "summary.json"
    assert score(*folders, "--labels", LABELS, "-o", summary) == 0
    head, liver, lesion, mean, file = capsys.readouterr().out.splitlines()
    assert head.split() == ["class", "label", "cases", "Dice", "IoU", "HD95_monai", "mm", "ASSD", "mm", "NSD_1mm"]
    # Of 4 layers 3 overlap: Dice 2*3/8, IoU 3/5; the mean with the perfect case is (x + 1) / 2. HD95 is 1 mm: (1 + 0) / 2.
    assert liver.split()[:6] == ["liver", "1", "2", "0.8750", "0.8000", "0.5000"]
    assert lesion.split()[:7] == ["lesion", "(2,", "3)", "1", "1.0000", "1.0000", "0.0000"]
    assert mean.split()[:5] == ["mean", "2", "0.9375", "0.9000", "0.2500"]
    assert file == str(summary)
    written = json.loads(summary.read_text(encoding="utf-8"))
    assert set(written) == {"metric_per_case", "mean", "foreground_mean"}
    assert written["mean"]["1"]["Dice"] == 0.875 and written["foreground_mean"]["Dice"] == 0.9375
    first = written["metric_per_case"][0]
    assert first["metrics"]["1"]["TP"] == 48 and first["metrics"]["1"]["FP"] == first["metrics"]["1"]["FN"] == 16
    assert first["reference_file"] == str(folders[1] / "a.nii.gz")
    # The same file as the library writes.
    library = score_folders(*folders, {"liver": 1, "lesion": (2, 3)}, out=tmp_path, progress=False)
    assert library.files[0].read_text(encoding="utf-8") == summary.read_text(encoding="utf-8")


def test_options_reach_the_metric(folders, tmp_path, capsys):
    assert score(*folders, "--labels", LABELS, "--hd95", "surfel", "--tolerance", "0.25", "--json") == 0
    classes = json.loads(capsys.readouterr().out)["classes"]
    assert {"HD95_surfel", "ASSD_surfel", "NSD_0.25mm"} <= set(classes["liver"])
    expected = score_folders(
        *folders, {"liver": 1, "lesion": (2, 3)}, hd95_method="surfel", nsd_tolerance_mm=0.25, progress=False
    ).metric.means()
    assert classes["liver"] == expected["liver"]
    assert score(*folders, "--labels", LABELS, "--no-surface", "--ignore-label", "7", "-o", tmp_path) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["class", "label", "cases", "Dice", "IoU"]
    assert (tmp_path / "summary.json").is_file()  # A folder as the output takes nnU-Net's name.


def test_ignored_label_leaves_its_voxels_out(folders, capsys):
    predictions, references = folders
    missed = np.zeros((10, 9, 8))
    missed[2:6, 2:6, 2:6] = 1
    put(predictions / "b.nii.gz", missed)
    reference = missed.copy()
    reference[2] = 9
    put(references / "b.nii.gz", reference)
    args = (*folders, "--labels", "{liver: 1}", "--no-surface", "--json")
    assert score(*args) == 0
    plain = json.loads(capsys.readouterr().out)["mean"]["Dice"]
    assert score(*args, "--ignore-label", "9") == 0
    ignoring = json.loads(capsys.readouterr().out)["mean"]["Dice"]
    assert (plain, ignoring) == pytest.approx(((0.75 + 96 / 112) / 2, (0.75 + 1) / 2))


def test_bad_cases_are_listed_and_the_others_count(folders, capsys):
    predictions = folders[0]
    data = (predictions / "a.nii.gz").read_bytes()
    (predictions / "a.nii.gz").write_bytes(data[: len(data) // 2])
    put(predictions / "extra.nii.gz", np.ones((3, 3, 3)))
    assert score(*folders, "--labels", LABELS, "--json") == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["cases"] == 1 and found["classes"]["liver"]["Dice"] == 1.0
    assert set(found["errors"]) == {"a", "extra"} and str(predictions / "a.nii.gz") in found["errors"]["a"]
    assert "no reference" in err
    assert score(*folders, "--labels", LABELS) == 1
    out, err = capsys.readouterr()
    assert "1.0000" in out and err.count("error: ") == 2


def test_undefined_is_null_in_json(folders, capsys):
    assert score(*folders, "--labels", "{liver: 1, spleen: 5}", "--json") == 0
    text = capsys.readouterr().out
    assert "NaN" not in text and "Infinity" not in text
    found = json.loads(text)
    assert found["classes"]["spleen"]["Dice"] is None and found["mean"]["Dice"] == 0.875


def test_classes_from_dataset_and_checkpoint(tmp_path):
    expected = {"liver": 1, "lesion": (2, 3)}
    assert classes_of(labels=LABELS) == (expected, None)
    dataset = tmp_path / "dataset.json"
    dataset.write_text('{"labels": {"background": 0, "liver": 1, "lesion": [2, 3], "ignore": 4}}')
    assert classes_of(dataset=dataset) == (expected, 4)
    dataset.write_text('{"labels": {"0": "background", "1": "liver", "2": "lesion"}}')
    assert classes_of(dataset=dataset) == ({"liver": 1, "lesion": 2}, None)
    config = {"labels": {"background": 0, "liver": 1, "lesion": [2, 3]}, "ignore_label": 4}
    file = save_checkpoint(tmp_path / "m.ckpt", {}, Header("medseg", config=config))
    assert classes_of(ckpt=file) == (expected, 4)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, UsageError, "none was given"),
        ({"labels": LABELS, "ckpt": "x"}, UsageError, "--labels and --ckpt were given"),
        ({"labels": "liver"}, ConfigError, r"--labels 'liver': classes with their label are expected"),
        ({"labels": "{liver: big}"}, ConfigError, "big"),
        ({"labels": "{liver: true, x: 1}"}, ConfigError, "liver is True"),
        ({"labels": "{background: 0}"}, ConfigError, "nothing is left to score"),
        ({"labels": "{liver: 1"}, ConfigError, "not valid YAML"),
        ({"labels": "{liver: 1, ignore: [2, 3]}"}, ConfigError, "one label is expected"),
        ({"dataset": "none.json"}, InputError, r"none\.json cannot be read"),
        ({"dataset": "list.json"}, InputError, "holds a list"),
        ({"dataset": "broken.json"}, InputError, "not valid JSON"),
        ({"dataset": "empty.json"}, ConfigError, "labels in .*empty.json"),
        ({"ckpt": "none.ckpt"}, CnnkitError, r"none\.ckpt"),
    ],
)
def test_wrong_sources_are_explained(tmp_path, given, error, message):
    for name, text in {"list.json": "[]", "broken.json": "{", "empty.json": "{}"}.items():
        (tmp_path / name).write_text(text)
    given = {name: value if name == "labels" else tmp_path / value for name, value in given.items()}
    with pytest.raises(error, match=message):
        classes_of(**given)


def test_a_missing_folder_stops_with_a_sentence(folders, tmp_path, capsys):
    assert score(folders[0], tmp_path / "nowhere", "--labels", LABELS) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert score(*folders, "--labels", LABELS, "-o", tmp_path / "file" / "summary.json") == 2
    assert "not writable" in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom cnnkit.cli import main\ntry:\n main(['medseg', 'score', '--help'])\n"
        "except SystemExit as done:\n heavy = {'torch', 'numpy', 'monai', 'nibabel', 'scipy'} & set(sys.modules)\n"
        " print('status', done.code, 'heavy', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.rstrip().endswith("status 0 heavy []")
    for option in ("--labels", "--dataset", "--ckpt", "--hd95", "--tolerance", "--no-surface", "--ignore-label", "--json"):
        assert option in done.stdout


def test_methods_are_those_of_the_surface_module():
    assert _METHODS == METHODS


def test_its_paper_is_listed_as_built():
    rows = {row["slug"]: row for row in json.loads(CliRunner().invoke(cli, ["list", "papers", "--json"]).output)}
    assert rows["swin-unetr"]["built"] and "medseg/swin_unetr" in rows["swin-unetr"]["names"]
