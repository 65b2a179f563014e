from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cnnkit.errors import ConfigError, InputError
from cnnkit_medseg import dataset as D
from cnnkit_medseg.config import DataConfig


def empty_file(path: Path) -> None:
    """Descriptions are read without opening an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def make_nnunet(root: Path, cases: int = 5, channels: int = 1, **changes) -> Path:
    for number in range(cases):
        for channel in range(channels):
            empty_file(root / "imagesTr" / f"case_{number:02d}_{channel:04d}.nii.gz")
        empty_file(root / "labelsTr" / f"case_{number:02d}.nii.gz")
    described = {
        "channel_names": {str(channel): f"T{channel + 1}" for channel in range(channels)},
        "labels": {"background": 0, "organ": 1, "lesion": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(described | changes))
    return root


def test_nnunet_folder(tmp_path):
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    root = make_nnunet(tmp_path / "Dataset001_Boxes", channels=2, labels=labels, regions_class_order=[1, 2])
    empty_file(root / "imagesTs" / "new_0000.nii.gz")
    empty_file(root / "imagesTs" / "new_0001.nii.gz")
    empty_file(root / "imagesTr" / "._case_00_0000.nii.gz")
    found = D.read_dataset(DataConfig(root=root))
    assert found.name == "Dataset001_Boxes" and found.channels == ("T1", "T2")
    assert found.labels == {"background": 0, "whole": (1, 2), "core": (2,)}
    assert (found.regions_class_order, found.ignore_label) == ((1, 2), 3)
    assert [case.name for case in found.training] == [f"case_{n:02d}" for n in range(5)]
    assert [path.name for path in found.training[0].images] == ["case_00_0000.nii.gz", "case_00_0001.nii.gz"]
    assert found.training[0].label.name == "case_00.nii.gz"
    assert [(case.name, len(case.images), case.label) for case in found.test] == [("new", 2, None)]


def test_nnunet_explicit_files(tmp_path):
    root = make_nnunet(tmp_path / "d", cases=2)
    described = json.loads((root / "dataset.json").read_text())
    described["dataset"] = {"b": {"images": ["./imagesTr/case_01_0000.nii.gz"], "label": "labelsTr/case_01.nii.gz"}}
    with pytest.warns(UserWarning, match="numTraining is 2, but there are 1"):
        (root / "dataset.json").write_text(json.dumps(described))
        assert [case.name for case in D.read_dataset(DataConfig(root=root)).training] == ["b"]


def test_decathlon_folder(tmp_path):
    root = tmp_path / "Task01"
    entries = []
    for number in range(3):
        empty_file(root / "imagesTr" / f"la_{number}.nii.gz")
        empty_file(root / "labelsTr" / f"la_{number}.nii.gz")
        entries.append({"image": f"./imagesTr/la_{number}.nii.gz", "label": f"./labelsTr/la_{number}.nii.gz"})
    described = {
        "name": "Heart", "modality": {"0": "FLAIR", "1": "T1w"}, "labels": {"0": "background", "1": "atrium"}, "numTraining": 3,
        "training": entries[::-1], "test": ["./imagesTr/la_0.nii.gz"],
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(described))
    found = D.read_dataset(DataConfig(root=root))
    assert (found.name, found.channels, found.labels) == ("Heart", ("FLAIR", "T1w"), {"background": 0, "atrium": 1})
    assert [case.name for case in found.training] == ["la_0", "la_1", "la_2"] and [case.name for case in found.test] == ["la_0"]


def datalist(tmp_path: Path, **lists) -> DataConfig:
    for number in range(4):
        for name in ("flair", "t1", "seg"):
            empty_file(tmp_path / f"s{number}" / f"{name}.nii.gz")
    (tmp_path / "folds.json").write_text(json.dumps(lists))
    return DataConfig(root=tmp_path, datalist="folds.json")


def entry(number: int, **more) -> dict:
    return {"image": [f"s{number}/flair.nii.gz", f"s{number}/t1.nii.gz"], "label": f"s{number}/seg.nii.gz", **more}


def test_monai_folds_and_validation_lists(tmp_path):
    data = datalist(tmp_path, training=[entry(n, fold=n % 2) for n in range(4)])
    found = D.read_dataset(data)
    assert [case.name for case in found.training] == [f"s{n}_seg" for n in range(4)]  # All references are named seg.
    assert [path.name for path in found.training[1].images] == ["flair.nii.gz", "t1.nii.gz"]
    assert D.find_split(found, replace(data, fold=1))[0] == D.Split(("s0_seg", "s2_seg"), ("s1_seg", "s3_seg"))
    data = datalist(tmp_path, training=[entry(n) for n in range(3)], validation=[entry(3)], testing=[{"image": "s0/t1.nii.gz"}])
    found = D.read_dataset(data)
    assert D.find_split(found, data)[0] == D.Split(("s0_seg", "s1_seg", "s2_seg"), ("s3_seg",)) and len(found.test) == 1
    with pytest.raises(ConfigError, match=r"fold=1 does not exist.*folds 0 to 0"):
        D.find_split(found, replace(data, fold=1))


@pytest.mark.parametrize("path", ["../secret.nii.gz", "/etc/hostname", "s0/../../secret.nii.gz", ".", ""])
def test_paths_stay_in_the_folder(tmp_path, path):
    empty_file(tmp_path / "secret.nii.gz")
    (tmp_path / "d").mkdir()
    with pytest.raises(ConfigError, match=r"training\[1\].label"):
        D.read_dataset(datalist(tmp_path / "d", training=[entry(0), entry(1) | {"label": path}]))


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"training": []}, "'training' is empty"),
        ({"training": [{"label": "s0/seg.nii.gz"}]}, r'training\[0\] must be an object {"image"'),
        ({"training": [entry(0), entry(0)]}, "stands more than once"),
        ({"training": [entry(0, fold=0), entry(1)]}, "has no 'fold'"),
        ({"training": [entry(0, fold=0), entry(1, fold=2)]}, "without gaps"),
        ({"training": [entry(0) | {"label": "s0/none.nii.gz"}]}, "no such file"),
        ({"training": [entry(0)], "labels": {"1": "organ"}}, "'background' with the value 0"),
        ({"training": [entry(0)], "modality": {"1": "CT"}}, "must number the channels from 0"),
        ({"trainings": []}, "neither nnU-Net's .* nor a datalist"),
    ],
)
def test_datalists_that_do_not_hold_together(tmp_path, lists, message):
    with pytest.raises((ConfigError, InputError), match=message):
        D.read_dataset(datalist(tmp_path, **lists))


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"data.root is not set"):
        D.read_dataset(DataConfig())
    with pytest.raises(ConfigError, match="is not a folder"):
        D.read_dataset(DataConfig(root=tmp_path / "none"))
    (tmp_path / "folds.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"dataset.json does not exist.*folds.json: name it with --set data.datalist"):
        D.read_dataset(DataConfig(root=tmp_path))
    root = make_nnunet(tmp_path / "d", channels=2)
    (root / "imagesTr" / "case_03_0001.nii.gz").unlink()
    with pytest.raises(InputError, match=r"'case_03' lacks .*case_03_0001.nii.gz.*2 channels"):
        D.read_dataset(DataConfig(root=root))
    root = make_nnunet(tmp_path / "e")
    (root / "imagesTr" / "case_03_0000.nii.gz").unlink()
    (root / "labelsTr" / "case_01.nii.gz").unlink()
    with pytest.raises(InputError, match=r"(?s)case_03.nii.gz has no image.*case_01_0000.nii.gz has no label"):
        D.read_dataset(DataConfig(root=root))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"background": 0, "organ": "x"}}, "labels.organ is 'x'"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, "regions_class_order"),
        ({"labels": {"background": 1}}, "'background' with the value 0"),
        ({"labels": {"background": 0, "ignore": [2]}}, "labels.ignore"),
        ({"file_ending": ".mha"}, "holds no file CASE_0000.mha"),
        ({"file_ending": 3}, "file_ending must be"),
    ],
)
def test_descriptions_that_do_not_hold_together(tmp_path, changes, message):
    with pytest.raises((ConfigError, InputError), match=message):
        D.read_dataset(DataConfig(root=make_nnunet(tmp_path / "d", cases=1, **changes)))


def test_a_wrong_key_is_met_with_the_nearest(tmp_path):
    root = make_nnunet(tmp_path / "d", cases=1)
    described = json.loads((root / "dataset.json").read_text())
    described["channel_name"] = described.pop("channel_names")
    (root / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(ConfigError, match="lacks the key 'channel_names'; did you mean it by 'channel_name'"):
        D.read_dataset(DataConfig(root=root))


@pytest.mark.parametrize(("cases", "folds"), [(5, 5), (17, 5), (100, 5), (7, 3), (2, 2)])
def test_folds_are_those_of_scikit_learn(cases, folds):
    from sklearn.model_selection import KFold

    names = [f"c{n:03d}" for n in range(cases)]
    oracle = KFold(n_splits=folds, shuffle=True, random_state=12345).split(names)
    assert D.kfold(names, folds) == [D.Split(tuple(names[i] for i in train), tuple(names[i] for i in val)) for train, val in oracle]


def test_which_split_is_taken(tmp_path):
    root = make_nnunet(tmp_path / "d", cases=4)
    data = DataConfig(root=root, folds=2)
    found = D.read_dataset(data)
    names = tuple(case.name for case in found.training)
    split, splits = D.find_split(found, data)
    assert splits == tuple(D.kfold(names, 2)) and split == splits[0]
    D.write_splits([D.Split(names[:1], names[1:])], tmp_path / "cache")
    assert json.loads((tmp_path / "cache" / "splits_final.json").read_text()) == [{"train": [names[0]], "val": list(names[1:])}]
    assert D.find_split(found, data, folders=[tmp_path / "cache"])[0] == D.Split(names[:1], names[1:])
    assert D.find_split(found, replace(data, fold=-1))[0] == D.Split(names, names)
    D.write_splits([D.Split(names[1:], names[:1])], root)  # Beside the data: comes first.
    assert D.find_split(found, data, folders=[tmp_path / "cache"])[0].val == names[:1]
    wrong = {'[{"train": ["x"], "val": ["case_00"]}]': "does not have: x", "[]": "must be a list", "{": "not valid JSON"}
    for text, message in wrong.items():
        (root / "splits_final.json").write_text(text)
        with pytest.raises(ConfigError, match=message):
            D.find_split(found, data)


def test_folds_that_do_not_exist(tmp_path):
    data = DataConfig(root=make_nnunet(tmp_path / "d", cases=3))
    found = D.read_dataset(data)
    with pytest.raises(ConfigError, match=r"data.folds=5 does not fit the 3 training cases.*data.folds=3, or --set data.fold=-1"):
        D.find_split(found, data)
    with pytest.raises(ConfigError, match=r"data.fold=3 does not exist.*folds 0 to 2"):
        D.find_split(found, replace(data, folds=3, fold=3))
    single = replace(found, training=found.training[:1])
    with pytest.raises(ConfigError, match="at least 2 cases"):
        D.find_split(single, data)
    assert D.find_split(single, replace(data, fold=-1))[0] == D.Split(("case_00",), ("case_00",))
