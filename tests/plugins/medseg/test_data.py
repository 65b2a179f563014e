from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cnnkit.errors import ConfigError, InputError
from cnnkit_medseg import dataset as D
from cnnkit_medseg.config import AugmentConfig, Config, DataConfig, NetworkConfig, PreprocessConfig

STILL = AugmentConfig(
    rotate=0, scale=0, noise=0, blur=0, brightness=0, contrast=0, low_resolution=0, gamma_inverted=0, gamma=0, mirror=False, bias_field=0
)
SHAPE = (24, 20, 16)


def write_nifti(path: Path, array: np.ndarray, spacing=(1.0, 1.0, 1.0), shift=0.0) -> Path:
    import nibabel

    affine = np.diag([*spacing, 1.0])
    affine[0, 3] = shift
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(array, affine).to_filename(path)
    return path


def subject(seed: int, shape=SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Return a noisy volume with a box of label 1 and a smaller one of label 2."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    corner = [int(rng.integers(2, size - 10)) for size in shape]
    label[tuple(slice(c, c + 8) for c in corner)] = 1
    label[tuple(slice(c + 3, c + 5) for c in corner)] = 2
    image = rng.normal(100, 10, shape) + 60 * label
    return image.astype(np.float32), label


def make_nnunet(root: Path, cases=5, channels=1, spacing=(1.0, 1.0, 1.0), shape=SHAPE, **changes) -> Path:
    for number in range(cases):
        image, label = subject(number, shape)
        for channel in range(channels):
            write_nifti(root / "imagesTr" / f"case_{number:02d}_{channel:04d}.nii.gz", image + channel, spacing)
        write_nifti(root / "labelsTr" / f"case_{number:02d}.nii.gz", label, spacing)
    described = {
        "channel_names": {str(channel): f"T{channel + 1}" for channel in range(channels)},
        "labels": {"background": 0, "organ": 1, "lesion": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(described | changes))
    return root


def experiment(root: Path, **changes) -> Config:
    data = DataConfig(root=root, cache=root.parent / "cache", batch_size=4, steps_per_epoch=3, foreground=0.5)
    cfg = Config(
        labels={"background": 0, "organ": 1, "lesion": 2},
        channels=("T1",),
        patch_size=(12, 12, 12),
        preprocess=PreprocessConfig(spacing=(1.0, 1.0, 1.0)),
        network=NetworkConfig(args={"channels": [4, 8]}),
        data=data,
        augment=STILL,
    )
    return replace(cfg, **changes)


# --- Cache ------------------------------------------------------------------------------------------------------------


def test_cache_is_what_preprocessing_gives_and_is_built_once(tmp_path, monkeypatch):
    from cnnkit_medseg import cache as C

    root = make_nnunet(tmp_path / "d", cases=2)
    cfg, found = experiment(root), D.read_dataset(DataConfig(root=root))
    first = C.prepare_cases(cfg, found.training, tmp_path / "cache")
    assert [case.name for case in first] == ["case_00", "case_01"]
    image, label = subject(1)
    assert first[1].image.dtype == np.float32 and first[1].image.shape == (1, *SHAPE) and isinstance(first[1].image, np.memmap)
    np.testing.assert_allclose(first[1].image[0], (image - image.mean()) / image.std(), atol=1e-4)
    assert first[1].label.dtype == np.int16 and np.array_equal(first[1].label, label)
    for value, name in ((1, "organ"), (2, "lesion")):
        places = first[1].locations(name)
        assert len(places) == (label == value).sum() and (label[tuple(places.T)] == value).all()

    monkeypatch.setattr(C, "check_pair", lambda *args: pytest.fail("a case was read again"))
    assert [case.folder for case in C.prepare_cases(cfg, found.training, tmp_path / "cache")] == [case.folder for case in first]
    monkeypatch.undo()
    file = found.training[0].label
    os.utime(file, (1, 1))
    touched = C.prepare_cases(cfg, found.training, tmp_path / "cache")
    assert touched[0].folder != first[0].folder and touched[1].folder == first[1].folder
    other = C.prepare_cases(replace(cfg, preprocess=replace(cfg.preprocess, normalise=("none",))), found.training, tmp_path / "cache")
    np.testing.assert_array_equal(other[1].image[0], image)
    assert not list((tmp_path / "cache").glob(".part-*"))


def test_cache_resamples_to_the_spacing(tmp_path):
    from cnnkit_medseg import cache as C

    root = make_nnunet(tmp_path / "d", cases=1, spacing=(2.0, 1.0, 1.0))
    cfg = experiment(root, preprocess=PreprocessConfig(spacing=(1.0, 2.0, 1.0)))
    (case,) = C.prepare_cases(cfg, D.read_dataset(cfg.data).training, tmp_path / "cache")
    assert case.shape == (48, 10, 16) == case.label.shape == case.image.shape[1:]
    assert set(np.unique(case.label)) == {0, 1, 2}
    before = subject(0)[1]
    assert abs((case.label > 0).sum() / (before > 0).sum() - 1) < 0.2


def test_cache_crops_and_masks(tmp_path):
    from cnnkit_medseg import cache as C

    root = make_nnunet(tmp_path / "d", cases=1)
    image, label = subject(0)
    head = np.zeros(SHAPE, bool)
    head[1:-1, 1:-1, 1:-1] = True
    head[1:4, 1:4, :] = False
    write_nifti(root / "imagesTr" / "case_00_0000.nii.gz", np.where(head, image, 0).astype(np.float32))
    write_nifti(root / "labelsTr" / "case_00.nii.gz", np.where(head, label, 0).astype(np.uint8))
    cfg = experiment(root, preprocess=PreprocessConfig(spacing=(1.0, 1.0, 1.0), mask_zscore=True))
    (case,) = C.prepare_cases(cfg, D.read_dataset(cfg.data).training, tmp_path / "cache")
    inside = head[1:-1, 1:-1, 1:-1]
    assert case.shape == inside.shape
    assert np.array_equal(case.label == D.OUTSIDE, ~inside) and (case.image[0][~inside] == 0).all()


def test_workers_give_the_same_cache(tmp_path):
    from cnnkit_medseg import cache as C

    root = make_nnunet(tmp_path / "d", cases=2)
    cfg, cases = experiment(root), D.read_dataset(DataConfig(root=root)).training
    alone = C.prepare_cases(cfg, cases, tmp_path / "one")
    together = C.prepare_cases(replace(cfg, data=replace(cfg.data, workers=2)), cases, tmp_path / "two")
    for one, two in zip(alone, together, strict=True):
        assert np.array_equal(one.image, two.image) and np.array_equal(one.label, two.label) and one.offsets == two.offsets


def test_every_bad_case_is_named_and_none_left_out(tmp_path):
    from cnnkit_medseg import cache as C

    root = make_nnunet(tmp_path / "d", cases=6)
    label = subject(0)[1]
    write_nifti(root / "labelsTr" / "case_01.nii.gz", np.where(label == 2, 6, label).astype(np.uint8))
    write_nifti(root / "labelsTr" / "case_02.nii.gz", label[:-1])
    write_nifti(root / "labelsTr" / "case_03.nii.gz", label, shift=3.0)
    (root / "imagesTr" / "case_04_0000.nii.gz").write_bytes(b"no image")
    cfg, cases = experiment(root), D.read_dataset(DataConfig(root=root)).training
    for work in (C.prepare_cases, C.fingerprint):
        with pytest.raises(InputError) as caught:
            work(cfg, cases, tmp_path / "cache")
        text = str(caught.value)
        assert text.startswith("4 of 6 cases cannot be used")
        assert r"case_01.nii.gz: labels [6] are not among those of dataset.json, [0, 1, 2]" in text
        assert "case_02.nii.gz: shape (23, 20, 16)" in text and "case_03.nii.gz lies up to 3 mm away" in text
        assert "case_04_0000.nii.gz" in text and "case_00" not in text and "case_05" not in text
    assert not list((tmp_path / "cache").glob("fingerprint*"))


def test_a_reference_in_another_axis_order_fits(tmp_path):
    import nibabel
    from cnnkit_medseg import cache as C

    root = make_nnunet(tmp_path / "d", cases=1)
    file = root / "labelsTr" / "case_00.nii.gz"
    turned = nibabel.load(file).as_reoriented(nibabel.orientations.axcodes2ornt("PIL"))
    nibabel.Nifti1Image(np.asarray(turned.dataobj), turned.affine).to_filename(file)
    _, labels = C.check_pair(D.read_dataset(DataConfig(root=root)).training[0], 1, frozenset({0, 1, 2}))
    assert np.array_equal(labels, subject(0)[1])


def test_locations_are_few_seeded_and_right():
    from cnnkit_medseg import cache as C

    label = subject(3)[1]
    organ, both, none = C.sample_locations(label, [(1,), (1, 2), (7,)], limit=50)
    assert organ.shape == both.shape == (50, 3) and none.shape == (0, 3)
    assert (label[tuple(organ.T)] == 1).all() and (label[tuple(both.T)] > 0).all() and len(np.unique(organ, axis=0)) == 50
    assert np.array_equal(organ, C.sample_locations(label, [(1,)], limit=50)[0])


def test_fingerprint_measures_and_is_kept(tmp_path, monkeypatch):
    from cnnkit_medseg import cache as C

    root = make_nnunet(tmp_path / "d", cases=3, spacing=(1.0, 1.0, 2.0))
    cfg, cases = experiment(root), D.read_dataset(DataConfig(root=root)).training
    found = C.fingerprint(cfg, cases, tmp_path / "cache")
    assert found.spacings == ((1.0, 1.0, 2.0),) * 3 and found.shapes == (SHAPE,) * 3 and found.relative_sizes == (1.0,) * 3
    voxels = np.concatenate([image[label > 0] for image, label in map(subject, range(3))])
    (channel,) = found.intensity
    assert channel.mean == pytest.approx(voxels.mean(), rel=2e-3) and channel.std == pytest.approx(voxels.std(), rel=0.02)
    assert channel.percentile_00_5 == pytest.approx(np.percentile(voxels, 0.5), rel=0.01) and channel.max <= voxels.max()
    monkeypatch.setattr(C, "check_pair", lambda *args: pytest.fail("a case was read again"))
    assert C.fingerprint(cfg, cases, tmp_path / "cache") == found


# --- Patches ----------------------------------------------------------------------------------------------------------


def loader(cfg: Config, **data):
    from cnnkit_medseg.data import train_loader

    cfg = replace(cfg, data=replace(cfg.data, **data))
    return train_loader(cfg, D.read_dataset(cfg.data).training)


@pytest.fixture(scope="module")
def boxes(tmp_path_factory) -> Path:
    return make_nnunet(tmp_path_factory.mktemp("boxes") / "d", cases=3)


def equal(one, two) -> bool:
    return all(torch.equal(a[key], b[key]) for a, b in zip(one, two, strict=True) for key in ("image", "label"))


def test_batches_have_shape_and_type(boxes):
    batches = list(loader(experiment(boxes)))
    assert len(batches) == 3 == len(loader(experiment(boxes)))
    assert batches[0]["image"].shape == (4, 1, 12, 12, 12) and batches[0]["image"].dtype == torch.float32
    assert batches[0]["label"].shape == (4, 1, 12, 12, 12) and batches[0]["label"].dtype == torch.int16
    for batch in batches:
        assert all((batch["label"][item] > 0).any() for item in (2, 3))  # The forced half.


def test_batches_depend_on_seed_and_epoch_alone(boxes):
    cfg = experiment(boxes, augment=AugmentConfig(bias_field=0.3))
    patches = loader(cfg)
    first, again = list(patches), list(patches)
    patches.set_epoch(1)
    second = list(patches)
    state = torch.get_rng_state()
    np.random.seed(1)
    patches.set_epoch(0)
    assert equal(first, again) and equal(first, list(patches)) and not equal(first, second)
    assert torch.equal(state, torch.get_rng_state())  # Dropout's generator is left alone.
    other = loader(replace(cfg, train=replace(cfg.train, seed=1)))
    assert not equal(first, list(other))


def test_workers_change_nothing(boxes):
    cfg = experiment(boxes, augment=AugmentConfig())
    alone, together = loader(cfg), loader(cfg, workers=2)
    for epoch in (0, 1):
        alone.set_epoch(epoch)
        together.set_epoch(epoch)
        assert equal(list(alone), list(together))


def test_two_processes_see_the_batches_of_one(boxes, monkeypatch):
    from cnnkit_medseg import data as L

    cfg = experiment(boxes, augment=AugmentConfig())
    whole = list(loader(cfg))
    halves = []
    for rank in (0, 1):
        monkeypatch.setattr(L, "process", lambda rank=rank: (rank, 2))
        halves.append(list(loader(cfg)))
    for batch, first, second in zip(whole, *halves, strict=True):
        for key in ("image", "label"):
            assert torch.equal(batch[key], torch.stack([first[key], second[key]], dim=1).flatten(0, 1))
    with pytest.raises(ConfigError, match=r"batch_size=3.*does not divide among 2"):
        list(loader(cfg, batch_size=3))


def test_a_still_patch_is_a_piece_of_the_case(boxes):
    """Without augmentation each patch is found, voxel by voxel, where its label says."""
    patches = loader(experiment(boxes), foreground=1.0)
    cases = {case.name: (np.asarray(case.image[0]), np.asarray(case.label)) for case in patches.dataset.cases}
    for batch in patches:
        for image, label in zip(batch["image"][:, 0].numpy(), batch["label"][:, 0].numpy(), strict=True):
            found = False
            for whole, truth in cases.values():
                for place in zip(*np.where(np.isclose(whole[:13, :9, :5], image[0, 0, 0], atol=0)), strict=True):
                    box = tuple(slice(p, p + 12) for p in place)
                    found |= np.array_equal(whole[box], image) and np.array_equal(truth[box], label)
            assert found


def test_small_volumes_are_centred_in_the_patch(boxes):
    patches = loader(experiment(boxes, patch_size=(32, 12, 20)))
    for batch in patches:
        assert (batch["image"][:, :, :4] == 0).all() and (batch["image"][:, :, -4:] == 0).all()
        assert (batch["image"][..., :2] == 0).all() and (batch["label"] >= 0).all()
        assert (batch["image"][:, :, 4:-4, :, 2:-2] != 0).float().mean() > 0.99


def test_classes_are_equally_likely_and_voxels_central(boxes):
    cfg = experiment(boxes, patch_size=(5, 5, 5))
    patches = loader(cfg, foreground=1.0, batch_size=64, steps_per_epoch=2)
    centres = torch.cat([batch["label"][:, 0, 2, 2, 2] for batch in patches])
    assert 0.3 < (centres == 2).float().mean() < 0.7 and ((centres > 0).float().mean() > 0.95)  # 8 voxels are as likely as 504.


def test_slices(boxes):
    cfg = experiment(boxes, patch_size=(16, 12), augment=AugmentConfig(rotate=1, scale=1))
    batch = next(iter(loader(cfg, foreground=1.0)))
    assert batch["image"].shape == (4, 1, 16, 12) and batch["label"].shape == (4, 1, 16, 12)
    still = loader(experiment(boxes, patch_size=(24, 20)), foreground=1.0)
    slices = [whole for case in still.dataset.cases for whole in np.moveaxis(np.asarray(case.image[0]), 2, 0)]
    for image in next(iter(still))["image"][:, 0].numpy():
        assert any(np.array_equal(image, whole) for whole in slices)


def test_sparse_annotations_are_where_patches_lie(tmp_path):
    root = make_nnunet(tmp_path / "d", cases=1, labels={"background": 0, "organ": 1, "lesion": 2, "ignore": 3})
    label = np.full(SHAPE, 3, np.uint8)
    label[6:9, 6:9, 8] = 0
    write_nifti(root / "labelsTr" / "case_00.nii.gz", label)
    cfg = experiment(root, ignore_label=3, patch_size=(7, 7, 7))
    labels = torch.cat([batch["label"] for batch in loader(cfg)])
    assert all((item == 0).any() for item in labels) and set(labels.unique().tolist()) == {0, 3}


def test_masked_images_stay_zero_outside(tmp_path):
    root = make_nnunet(tmp_path / "d", cases=1)
    image, label = subject(0)
    image[:, :, :3] = 0
    image[5:, 5:, -1] = 0
    write_nifti(root / "imagesTr" / "case_00_0000.nii.gz", image)
    write_nifti(root / "labelsTr" / "case_00.nii.gz", label)
    preprocess = PreprocessConfig(spacing=(1.0, 1.0, 1.0), mask_zscore=True)
    cfg = experiment(root, preprocess=preprocess, augment=replace(STILL, noise=1.0, brightness=1.0), patch_size=(24, 20, 16))
    batch = next(iter(loader(cfg)))
    assert (batch["image"][:, :, 5:, 5:, -2] == 0).all()  # The last of 13 slices, of which the first is the patch's third.
    assert (batch["image"][:, :, :, :, [0, 1, -1]] == 0).all()
    assert (batch["image"] != 0).float().mean() > 0.6 and (batch["label"] >= 0).all()


def test_boxes_beyond_the_border():
    from cnnkit_medseg.data import read_box

    array = np.arange(2 * 4 * 5).reshape(2, 4, 5)
    padded = np.pad(array, ((0, 0), (9, 9), (9, 9)), constant_values=-1)
    for start, size in (((0, 0), (4, 5)), ((-2, 1), (3, 9)), ((3, -4), (4, 5)), ((1, 2), (2, 2)), ((6, 0), (2, 2)), ((-5, -5), (3, 2))):
        box = tuple(slice(s + 9, s + 9 + n) for s, n in zip(start, size, strict=True))
        assert np.array_equal(read_box(array, start, size, fill=-1), padded[(slice(None), *box)])


def test_settings_that_make_no_batch(boxes):
    for change in ({"batch_size": 0}, {"steps_per_epoch": 0}, {"foreground": 1.5}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            loader(experiment(boxes), **change)
    with pytest.raises(ConfigError, match=r"data.cache is not set"):
        loader(experiment(boxes), cache=None)


# --- The whole way ----------------------------------------------------------------------------------------------------


def test_prepare_fills_the_configuration_and_the_loaders_follow(tmp_path):
    from cnnkit_medseg.data import prepare, train_loader, val_loader

    root = make_nnunet(tmp_path / "d", cases=5, channel_names={"0": "CT"})
    before = Config(data=DataConfig(root=root, steps_per_epoch=1), augment=STILL)
    cfg = prepare(before, tmp_path / "run")
    assert cfg.labels == {"background": 0, "organ": 1, "lesion": 2} and cfg.channels == ("CT",)
    assert cfg.preprocess.normalise == ("ct",) and len(cfg.preprocess.intensity) == 1 and cfg.preprocess.spacing == (1.0, 1.0, 1.0)
    assert cfg.patch_size == (24, 20, 16) and cfg.network.args["channels"] == [32, 64, 128]
    assert cfg.data.cache == tmp_path / "run" / "cache"
    splits = json.loads((tmp_path / "run" / "splits_final.json").read_text())
    assert len(splits) == 5 and len(splits[0]["val"]) == 1
    assert prepare(cfg, tmp_path / "run") == cfg

    patches = train_loader(cfg)
    assert [case.name for case in patches.dataset.cases] == splits[0]["train"]
    assert next(iter(patches))["image"].shape == (cfg.data.batch_size, 1, 24, 20, 16)
    (held_out,) = val_loader(cfg)
    assert held_out["name"] == splits[0]["val"][0] and held_out["reference_file"].name == f"{held_out['name']}.nii.gz"
    image, label = subject(int(held_out["name"][-2:]))
    assert np.array_equal(held_out["reference"], label) and np.array_equal(held_out["volume"].array[0], image)


def test_validation_cases_are_dealt_out(boxes, monkeypatch):
    from cnnkit_medseg.data import val_loader

    cfg, cases = experiment(boxes), D.read_dataset(DataConfig(root=boxes)).training
    dealt = []
    for rank in (0, 1):
        monkeypatch.setattr("cnnkit.engine.sampling.process", lambda rank=rank: (rank, 2))
        share = val_loader(cfg, cases)
        names = [item["name"] for item in share]
        assert len(share) == len(names)
        dealt += names
    assert sorted(dealt) == [case.name for case in cases]


def test_no_warning_on_a_sound_dataset(boxes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        D.read_dataset(DataConfig(root=boxes))
        list(loader(experiment(boxes)))


def test_the_cache_needs_no_torch():
    code = "import sys, cnnkit_medseg.cache; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
