"""Label scores: counts against plain masks, means by nnU-Net's conventions, folders of files."""

from __future__ import annotations

import copy
import json
import math
import pickle

import numpy as np
import pytest
from cnnkit.errors import InputError, UsageError
from cnnkit_medseg.metrics import SegmentationMetric, as_labels, confusion, score_folders
from cnnkit_medseg.surface import SurfaceDistances
from scipy import ndimage

LABELS = {"grey": 1, "white": 2, "brain": (1, 2, 3)}


def labels(seed, shape=(13, 12, 11), classes=4, dtype=np.uint8):
    fields = [ndimage.gaussian_filter(np.random.default_rng([seed, c]).normal(size=shape), 1.5) for c in range(classes)]
    return np.argmax(fields, axis=0).astype(dtype)


def by_masks(pred, ref, members, keep):
    """The eight figures written down from their definitions."""
    p, r = np.isin(pred, members) & keep, np.isin(ref, members) & keep
    tp, fp, fn, tn = (p & r).sum(), (p & ~r).sum(), (~p & r).sum(), (~p & ~r & keep).sum()
    with np.errstate(invalid="ignore"):
        dice, iou = 2 * tp / (2 * tp + fp + fn), tp / (tp + fp + fn)
    return {"Dice": dice, "IoU": iou, "FN": fn, "FP": fp, "TN": tn, "TP": tp, "n_pred": tp + fp, "n_ref": tp + fn}


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32])
@pytest.mark.parametrize("ignore", [None, 3])
@pytest.mark.parametrize("shape", [(13, 12, 11), (20, 17)])
def test_figures_equal_plain_masks(dtype, ignore, shape):
    pred, ref = labels(1, shape, dtype=dtype), labels(2, shape, dtype=dtype)
    names = {"grey": 1, "white": 2, "both": (1, 2), "background": 0}
    found = SegmentationMetric(names, ignore_label=ignore, surface=()).update(pred, ref, case="a")
    keep = np.ones(shape, bool) if ignore is None else ref != ignore
    for name, region in names.items():
        assert found[name] == pytest.approx(by_masks(pred, ref, region, keep), nan_ok=True)


@pytest.mark.parametrize("scale", [1, -300, 10**6])
def test_confusion_of_any_label_values(scale, monkeypatch):
    """Small labels, negative labels, labels too far apart for a table; more voxels than one chunk."""
    monkeypatch.setattr("cnnkit_medseg.metrics._CHUNK", 100)
    pred, ref = labels(3).astype(np.int64) * scale, labels(4).astype(np.int64) * scale
    ids = [scale, 3 * scale, 77]
    counts = confusion(pred, ref, ids, ignore=2 * scale)
    kept = ref != 2 * scale
    for row, p in enumerate((None, *ids)):
        for column, r in enumerate((None, *ids)):
            in_row = ~np.isin(pred, ids) if p is None else pred == p
            in_column = ~np.isin(ref, ids) if r is None else ref == r
            assert counts[row, column] == (in_row & in_column & kept).sum()


def test_surface_figures_come_from_the_named_variant():
    pred, ref, spacing = labels(5), labels(6), (2.0, 0.5, 0.8)
    metric = SegmentationMetric(LABELS, nsd_tolerance_mm=1.5, hd95_method="medpy")
    found = metric.update(pred, ref, spacing=spacing, case="a")
    for name, region in LABELS.items():
        both = SurfaceDistances(np.isin(pred, region), np.isin(ref, region), spacing)
        assert found[name]["HD95_medpy"] == both.hd95(method="medpy")
        assert found[name]["ASSD"] == both.assd(method="medpy")
        assert found[name]["NSD_1.5mm"] == both.nsd(tolerance=1.5)
    other = SegmentationMetric(LABELS, surface=("hd95", "nsd"), hd95_method="surfel", nsd_method="monai")
    found = other.update(pred, ref, case="a")
    assert list(found["grey"])[8:] == ["HD95_surfel", "NSD_monai_1mm"]


def test_ignored_voxels_do_not_reach_the_surface():
    ref = np.zeros((10, 10), np.uint8)
    ref[2:6, 2:6] = 1
    pred = ref.copy()
    pred[8, 8] = 1
    ref[7:, 7:] = 9
    found = SegmentationMetric({"a": 1}, ignore_label=9).update(pred, ref, case="x")["a"]
    assert (found["HD95_monai"], found["ASSD"], found["NSD_1mm"], found["Dice"], found["FP"]) == (0, 0, 1, 1, 0)


def test_absent_classes_and_means():
    """nan where a class is in neither volume; means skip it; nnU-Net's foreground mean does not."""
    ref = np.zeros((3, 8, 8), np.uint8)
    ref[0, 2:5, 2:5] = 1
    ref[1, 2:5, 2:5] = 1
    pred = ref.copy()
    pred[1] = 0
    metric = SegmentationMetric({"background": 0, "one": 1, "never": 7})
    for n in range(3):
        metric.update(pred[n], ref[n], case=f"case{n}")
    one = [metric.cases[f"case{n}"].metrics["one"] for n in range(3)]
    assert [row["Dice"] for row in one[:2]] == [1.0, 0.0]
    for figure in ("Dice", "IoU", "HD95_monai", "ASSD", "NSD_1mm"):
        assert math.isnan(one[2][figure])
        assert math.isnan(metric.cases["case0"].metrics["never"][figure])
    assert math.isnan(one[1]["HD95_monai"]) and math.isinf(one[1]["ASSD"]) and one[1]["NSD_1mm"] == 0
    scores = metric.compute()
    assert scores["dice/one"] == scores["dice"] == 0.5
    assert math.isnan(scores["dice/never"])
    assert set(scores) == {f + n for f in ("dice", "iou", "hd95_monai", "assd", "nsd_1mm") for n in ("", "/background", "/one", "/never")}
    summary = metric.summary()
    assert summary["mean"]["1"]["Dice"] == 0.5
    assert math.isnan(summary["foreground_mean"]["Dice"])
    assert summary["foreground_mean"]["TP"] == pytest.approx((9 / 3 + 0) / 2)


def test_summary_has_the_keys_of_nnunet(tmp_path):
    metric = SegmentationMetric(LABELS, surface=())
    metric.update(labels(1), labels(2), case="b", prediction_file="p/b.nii.gz", reference_file="r/b.nii.gz")
    metric.update(labels(3), labels(4), case="a")
    (path,) = metric.report(tmp_path / "scores")
    assert path.name == "summary.json" and [p.name for p in path.parent.iterdir()] == ["summary.json"]
    summary = json.loads(path.read_text())
    assert set(summary) == {"metric_per_case", "mean", "foreground_mean"}
    assert set(summary["metric_per_case"][0]) == {"metrics", "prediction_file", "reference_file"}
    assert summary["metric_per_case"][1]["reference_file"] == "r/b.nii.gz"
    figures = {"Dice", "IoU", "FN", "FP", "TN", "TP", "n_pred", "n_ref"}
    for table in (summary["metric_per_case"][0]["metrics"], summary["mean"]):
        assert set(table) == {"1", "2", "(1, 2, 3)"}
        assert all(set(row) == figures for row in table.values())
    assert set(summary["foreground_mean"]) == figures
    per_case = [row["metrics"]["(1, 2, 3)"]["Dice"] for row in summary["metric_per_case"]]
    assert summary["mean"]["(1, 2, 3)"]["Dice"] == pytest.approx(np.mean(per_case))
    assert summary["foreground_mean"]["IoU"] == pytest.approx(np.mean([row["IoU"] for row in summary["mean"].values()]))


def test_merge_equals_one_process():
    cases = {f"c{n}": (labels(n), labels(n + 50)) for n in range(5)}
    whole, parts = SegmentationMetric(LABELS), [SegmentationMetric(LABELS) for _ in range(2)]
    for n, (case, (pred, ref)) in enumerate(cases.items()):
        whole.update(pred, ref, case=case)
        parts[n % 2].update(pred, ref, case=case)
    parts[1].update(*cases["c0"], case="c0")  # a distributed sampler pads with repeated cases
    first = copy.deepcopy(parts[0])
    first.merge(pickle.loads(pickle.dumps(parts[1])))
    assert first.compute() == whole.compute() and first.summary() == whole.summary()
    with pytest.raises(UsageError, match="merged"):
        first.merge(SegmentationMetric({"other": 1}))


def test_messages():
    metric = SegmentationMetric({"a": 1})
    with pytest.raises(InputError, match=r"case x: .*\(3, 3\).*\(3, 4\)"):
        metric.update(np.zeros((3, 3), int), np.zeros((3, 4), int), case="x")
    with pytest.raises(InputError, match=r"prediction holds float64.*probabilities"):
        metric.update(np.full((3, 3), 0.5), np.zeros((3, 3), int), case="x")
    metric.update(np.eye(3, dtype=bool), np.eye(3, dtype=bool), case="x")
    with pytest.raises(UsageError, match="scored before"):
        metric.update(np.eye(3, dtype=bool), np.eye(3, dtype=bool), case="x")
    with pytest.raises(UsageError, match="did you mean 'hd95'"):
        SegmentationMetric({"a": 1}, surface=("hd59",))
    with pytest.raises(UsageError, match="ignored"):
        SegmentationMetric({"a": (1, 2)}, ignore_label=2)
    with pytest.raises(UsageError, match="no labels"):
        SegmentationMetric({})
    assert as_labels(np.array([1.0, -2.0]), "x").tolist() == [1, -2]


def save(path, array, affine):
    nibabel = pytest.importorskip("nibabel")
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def test_folders_go_on_after_bad_cases(tmp_path):
    affine = np.diag([2.0, 0.5, 0.8, 1.0])
    pred, ref = labels(8), labels(9)
    for case in ("good", "shape", "place", "only_ref"):
        save(tmp_path / "ref" / f"{case}.nii.gz", ref, affine)
    moved = affine.copy()
    moved[0, 3] = 5.0
    save(tmp_path / "pred" / "good.nii.gz", pred, affine)
    save(tmp_path / "pred" / "shape.nii.gz", pred[1:], affine)
    save(tmp_path / "pred" / "place.nii.gz", pred, moved)
    save(tmp_path / "pred" / "only_pred.nii.gz", pred, affine)
    (tmp_path / "pred" / "broken.nii.gz").write_bytes(b"no volume")
    save(tmp_path / "ref" / "broken.nii.gz", ref, affine)

    scores = score_folders(tmp_path / "pred", tmp_path / "ref", LABELS, out=tmp_path / "out", progress=False)
    assert set(scores.errors) == {"shape", "place", "only_ref", "only_pred", "broken"}
    for case, word in {"shape": "shape", "place": "5 mm apart", "only_ref": "no prediction", "only_pred": "no reference"}.items():
        assert word in str(scores.errors[case]) and f"{case}.nii.gz" in str(scores.errors[case])
    expected = SegmentationMetric(LABELS).update(pred, ref, spacing=(2.0, 0.5, 0.8), case="good")
    for name, row in scores.metric.cases["good"].metrics.items():
        assert row == pytest.approx(expected[name], rel=1e-5)
    assert scores.files == [tmp_path / "out" / "summary.json"]
    assert json.loads(scores.files[0].read_text())["metric_per_case"][0]["reference_file"].endswith("ref/good.nii.gz")


def test_folder_messages(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no such folder"):
        score_folders(tmp_path / "none", tmp_path / "empty", LABELS)
    with pytest.raises(InputError, match="no label files"):
        score_folders(tmp_path / "empty", tmp_path / "empty", LABELS)
