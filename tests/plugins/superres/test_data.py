"""Folders in the field's layouts, pairs that fit, and patches that depend on the seed, the epoch and their position alone."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cnnkit.errors import ConfigError, InputError, InputWarning
from cnnkit.testing.compare import assert_same
from cnnkit_superres import cache
from cnnkit_superres.cache import PictureCache, read_pair
from cnnkit_superres.data import EvalPictures, PatchDataset, PatchLoader, to_tensor, train_loader
from cnnkit_superres.data_config import DataConfig, DegradeConfig, InformativeConfig, StageConfig
from cnnkit_superres.folders import Pair, find_pairs
from cnnkit_superres.resize import imresize
from PIL import Image

SMALL = DataConfig(patch=8, batch_size=4, steps_per_epoch=3)


def pixels(seed: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(path)
    return path


def pictures(folder: Path, names: str, height: int = 24, width: int = 36) -> None:
    for seed, name in enumerate(names.split()):
        write(folder / name, pixels(seed, height, width))


def coded(scale: int, height: int = 20, width: int = 30) -> Pair:
    """A pair whose LR pixels say where they are, and whose HR pixels say which LR pixel they belong to."""
    lr = np.stack([*np.mgrid[:height, :width], np.zeros((height, width))], axis=2).astype(np.uint8)
    return Pair("coded", lr.repeat(scale, axis=0).repeat(scale, axis=1), lr)


@pytest.mark.parametrize(
    ("folder", "hr", "lr", "dataset"),
    [
        ("DIV2K/DIV2K_train_HR", "DIV2K/DIV2K_train_HR/0001.png", "DIV2K/DIV2K_train_LR_bicubic/X4/0001x4.png", "DIV2K_train_HR"),
        ("DIV2K", "DIV2K/DIV2K_train_HR/0001.png", "DIV2K/DIV2K_train_LR_bicubic/X4/0001x4.png", "DIV2K_train_HR"),
        ("D/A_HR_sub", "D/A_HR_sub/0001.png", "D/A_LR_bicubic/X4_sub/0001.png", "A_HR_sub"),
        ("Set5", "Set5/GTmod4/0001.png", "Set5/LRbicx4/0001.png", "Set5"),
        ("Set5", "Set5/GTmod12/0001.png", "Set5/LRbicx4/0001x4.png", "Set5"),
        ("Set5/GTmod12", "Set5/GTmod12/0001.png", "Set5/LRbicx4/0001.png", "Set5"),
        ("Set5", "Set5/HR/0001.png", "Set5/LR_bicubic/X4/0001x4.png", "Set5"),
        ("Set5", "Set5/original/0001.png", "Set5/LRbicx4/0001.png", "Set5"),
        ("Set5", "Set5/image_SRF_4/0001_SRF_4_HR.png", "Set5/image_SRF_4/0001_SRF_4_LR.png", "Set5"),
        ("mine", "mine/0001.JPG", None, "mine"),
    ],
)
def test_the_fields_layouts_are_known(tmp_path, folder, hr, lr, dataset):
    pictures(tmp_path / Path(hr).parent, f"{Path(hr).name} {Path(hr).name.replace('0001', '0002')}")
    if lr:
        pictures(tmp_path / Path(lr).parent, f"{Path(lr).name} {Path(lr).name.replace('0001', '0002')}", 6, 9)
    (tmp_path / folder / ".DS_Store").write_bytes(b"")
    (tmp_path / folder / "clip.mp4").write_bytes(b"")
    first, second = find_pairs(tmp_path / folder, 4)
    assert (first.name, second.name) == ("0001", "0002")
    assert (first.hr, first.lr, first.dataset) == (tmp_path / hr, tmp_path / lr if lr else None, dataset)


def test_lr_pictures_are_taken_from_the_folder_that_is_named(tmp_path):
    pictures(tmp_path / "hr", "a.png b.png")
    pictures(tmp_path / "lr" / "X3", "a_x3.png bx3.webp")
    assert [pair.lr.name for pair in find_pairs(tmp_path / "hr", 3, lr_folder=tmp_path / "lr")] == ["a_x3.png", "bx3.webp"]
    with pytest.raises(InputError, match="X2"):
        find_pairs(tmp_path / "hr", 2, lr_folder=tmp_path / "lr")
    with pytest.raises(ConfigError, match="not a folder"):
        find_pairs(tmp_path / "hr", 2, lr_folder=tmp_path / "nothing")
    (tmp_path / "lr" / "X3" / "a_x3.png").unlink()
    with pytest.raises(InputError, match="no LR picture") as error:
        find_pairs(tmp_path / "hr", 3, lr_folder=tmp_path / "lr")
    assert "a.png" in str(error.value) and "b.png" not in str(error.value)


def test_a_folder_that_says_nothing_is_answered_with_what_it_holds(tmp_path):
    with pytest.raises(ConfigError, match="not a folder"):
        find_pairs(tmp_path / "nothing", 2)
    pictures(tmp_path / "photos" / "summer", "a.png")
    with pytest.raises(InputError, match="summer"):
        find_pairs(tmp_path / "photos", 2)
    pictures(tmp_path / "DIV2K" / "A_HR", "a.png")
    pictures(tmp_path / "DIV2K" / "B_HR", "a.png")
    with pytest.raises(ConfigError, match=r"A_HR.*B_HR"):
        find_pairs(tmp_path / "DIV2K", 2)


def test_a_list_names_pictures_their_sizes_and_pairs(tmp_path):
    pictures(tmp_path, "a.png")
    pictures(tmp_path / "sub", "b.png")
    pictures(tmp_path / "low" / "sub", "bx2.png", 12, 18)
    pictures(tmp_path / "low", "a.png", 12, 18)
    (tmp_path / "meta_info.txt").write_text("a.png (24,36,3)\n\nsub/b.png (24, 36, 3) 1\n")
    first, second = find_pairs(tmp_path, 2)
    assert (first.hr, first.lr, first.size) == (tmp_path / "a.png", None, (24, 36))
    assert (second.hr, second.name) == (tmp_path / "sub" / "b.png", "b")
    assert [pair.lr for pair in find_pairs(tmp_path, 2, lr_folder=tmp_path / "low")] == [
        tmp_path / "low" / "a.png",
        tmp_path / "low" / "sub" / "bx2.png",
    ]
    (tmp_path / "pairs.txt").write_text("a.png, low/a.png\n")
    (pair,) = find_pairs(tmp_path / "pairs.txt", 2)
    assert (pair.hr, pair.lr, pair.size) == (tmp_path / "a.png", tmp_path / "low" / "a.png", None)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("../outside.png (24,36,3)", "leaves"),
        ("sub/../../outside.png (24,36,3)", "leaves"),
        ("{outside} (24,36,3)", "leaves"),
        ("a.png, ../outside.png", "leaves"),
        (". (24,36,3)", "leaves"),
        ("a.png, b.png, c.png", "neither"),
        ("a.png,", "neither"),
        ("gone.png (24,36,3)", "do not exist"),
        ("", "empty list"),
    ],
)
def test_a_list_may_not_leave_its_folder_or_name_what_is_not_there(tmp_path, line, told):
    outside = write(tmp_path / "outside.png", pixels(0, 24, 36))
    pictures(tmp_path / "inside", "a.png")
    (tmp_path / "inside" / "meta_info.txt").write_text(line.format(outside=outside) + "\n")
    with pytest.raises((ConfigError, InputError), match=told) as error:
        find_pairs(tmp_path / "inside", 2)
    assert "meta_info.txt" in str(error.value)


def test_a_list_of_the_wrong_size_is_told(tmp_path):
    pictures(tmp_path, "a.png")
    (tmp_path / "meta_info.txt").write_text("a.png (36,24,3)\n")
    with pytest.raises(InputError, match=r"a\.png: 36 x 24 pixels, but its list says 24 x 36"):
        read_pair(find_pairs(tmp_path, 2)[0], 2)


@pytest.mark.parametrize(("scale", "channels"), [(2, 3), (3, 1), (4, 3)])
def test_lr_is_made_by_matlabs_reduction_after_modcrop(tmp_path, scale, channels):
    array = pixels(0, 29, 35, channels)
    hr, lr = read_pair(Pair("a", write(tmp_path / "a.png", array)), scale)
    height, width = 29 // scale, 35 // scale
    assert np.array_equal(hr, array[: height * scale, : width * scale]) and hr.dtype == np.uint8
    assert np.array_equal(lr, imresize(hr, 1 / scale)) and lr.shape == (height, width, channels)


def test_hr_is_cropped_to_what_lr_covers():
    hr = pixels(0, 31, 41)
    for height, width in ((15, 20), (12, 18)):  # Of multiples of 2, and of 12 as in BasicSR's benchmarks.
        covered, lr = read_pair(Pair("a", hr, pixels(1, height, width)), 2)
        assert np.array_equal(covered, hr[: 2 * height, : 2 * width]) and lr.shape == (height, width, 3)


@pytest.mark.parametrize("size", [(15, 19), (16, 21), (14, 20), (31, 41), (12, 20), (0, 0)])
def test_an_lr_picture_of_the_wrong_size_is_told_with_both_files(tmp_path, size):
    hr = write(tmp_path / "hr.png", pixels(0, 31, 41))
    lr = write(tmp_path / "lr.png", pixels(1, *size)) if all(size) else np.zeros((0, 0, 3), np.uint8)
    with pytest.raises(InputError, match="20 x 15 are expected") as error:
        read_pair(Pair("a", hr, lr), 2)
    assert "hr.png" in str(error.value) and (not all(size) or "lr.png" in str(error.value))


def test_a_grey_and_a_coloured_picture_make_a_coloured_pair():
    hr, lr = read_pair(Pair("a", pixels(0, 16, 16), pixels(1, 8, 8, 1)), 2)
    assert hr.shape[2] == lr.shape[2] == 3 and np.array_equal(lr[..., 0], lr[..., 2])


def test_deep_pictures_are_rounded_to_8_bits(tmp_path):
    import tifffile

    deep = np.random.default_rng(0).integers(0, 65536, (12, 12, 3), np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb")
    hr, _ = read_pair(Pair("a", tmp_path / "deep.tif"), 2)
    assert np.array_equal(hr, np.rint(deep / 257).astype(np.uint8))


@pytest.mark.parametrize("scale", [2, 3])
def test_both_patches_of_a_pair_show_the_same_place_in_the_same_turn(scale):
    dataset = PatchDataset([coded(scale)], SMALL, scale=scale)
    turns = set()
    for index in range(60):
        item = dataset[(0, index, 0)]
        lr, hr = (item[name] * 255 for name in ("lr", "hr"))
        assert lr.shape == (3, 8, 8) and hr.shape == (3, 8 * scale, 8 * scale)
        assert torch.equal(lr, hr[:, ::scale, ::scale]) and torch.equal(lr, hr[:, scale - 1 :: scale, scale - 1 :: scale])
        turns.add(tuple((lr[:2, 0, 1] - lr[:2, 0, 0]).round().tolist() + (lr[:2, 1, 0] - lr[:2, 0, 0]).round().tolist()))
    assert len(turns) == 8
    straight = PatchDataset([coded(scale)], replace(SMALL, augment=False), scale=scale)
    corners = {tuple((straight[(0, index, 0)]["lr"][:2, 0, 0] * 255).round().int().tolist()) for index in range(2000)}
    assert corners == {(row, column) for row in range(13) for column in range(23)}  # Every place that fits, and no other.


def test_a_patch_is_a_function_of_seed_epoch_and_position():
    pairs = [Pair(str(seed), pixels(seed, 40, 44)) for seed in range(3)]
    dataset, again = (PatchDataset(pairs, SMALL, scale=2, seed=5) for _ in range(2))
    assert_same(dataset[(1, 2, 0)], again[(1, 2, 0)])
    others = [dataset[(2, 2, 0)], dataset[(1, 3, 0)], PatchDataset(pairs, SMALL, scale=2, seed=6)[(1, 2, 0)]]
    assert not any(torch.equal(dataset[(1, 2, 0)]["hr"], other["hr"]) for other in others)


def batches(loader: PatchLoader, epoch: int) -> list[dict[str, torch.Tensor]]:
    loader.set_epoch(epoch)
    return list(loader)


@pytest.mark.parametrize("kind", ["bicubic", "blur_noise_jpeg"])
def test_batches_are_the_same_with_workers_and_when_resumed(tmp_path, kind):
    for seed in range(3):
        write(tmp_path / f"{seed}.png", pixels(seed, 40, 44))
    data, cfg = replace(SMALL, train=(tmp_path,)), DegradeConfig(kind=kind)
    loader = train_loader(data, cfg, scale=2, seed=3, progress=False)
    first, second = batches(loader, 0), batches(loader, 1)
    assert len(first) == len(loader) == 3
    assert first[0]["lr"].shape == (4, 3, 8, 8) and first[0]["hr"].shape == (4, 3, 16, 16) and first[0]["lr"].dtype == torch.float32
    assert not torch.equal(first[0]["hr"], second[0]["hr"])
    workers = train_loader(replace(data, workers=2), cfg, scale=2, seed=3)
    torch.manual_seed(7)
    assert_same(batches(workers, 1), second)
    assert_same(batches(workers, 0), first)


def test_pictures_are_decoded_once_as_long_as_they_fit(tmp_path, monkeypatch):
    files = [write(tmp_path / f"{seed}.png", pixels(seed, 600, 700)) for seed in range(3)]  # 1.5 MB each with LR.
    opened = []
    original = cache.open_source
    monkeypatch.setattr(cache, "open_source", lambda path: (opened.append(path), original(path))[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = PatchDataset(find_pairs(tmp_path, 2), replace(SMALL, cache_mb=5), scale=2)
    kept = [whole[(0, index, index % 3)] for index in range(6)]
    assert sorted(opened) == files
    with pytest.warns(InputWarning, match=r"2 of 3 pictures do not fit into data.cache_mb=2 .*cache_mb=5"):
        tight = PatchDataset(find_pairs(tmp_path, 2), replace(SMALL, cache_mb=2), scale=2)
    opened.clear()
    assert_same([tight[(0, index, index % 3)] for index in range(6)], kept)
    assert opened == [files[1], files[2]] * 2


def test_every_picture_that_cannot_be_trained_on_is_named(tmp_path):
    pictures(tmp_path, "good.png")
    write(tmp_path / "small.png", pixels(0, 15, 40))
    (tmp_path / "broken.png").write_bytes((tmp_path / "good.png").read_bytes()[:300])
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match="3 of 4 pictures") as error:
        train_loader(replace(SMALL, train=(tmp_path,)), scale=2)
    message = str(error.value)
    assert all(name in message for name in ("small.png", "broken.png", "text.png")) and "good.png" not in message
    assert "data.patch=7" in message
    with pytest.raises(InputError, match="tiny: a picture of 9x3 is smaller than the factor 4"):
        read_pair(Pair("tiny", pixels(0, 3, 9)), 4)
    with pytest.raises(ConfigError, match="no picture"):
        PictureCache([], scale=2, megabytes=1)


def test_settings_that_contradict_are_told(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.train"):
        train_loader(SMALL, scale=2)
    data = replace(SMALL, train=(tmp_path,), lr_folders=(tmp_path,))
    with pytest.raises(ConfigError, match=r"degrade\.kind=real_esrgan"):
        train_loader(data, DegradeConfig(kind="real_esrgan"), scale=2)


def test_luminance_is_matlabs_and_grey_is_a_colour():
    from skimage.color import rgb2ycbcr

    array = pixels(0, 9, 7)
    np.testing.assert_allclose(to_tensor(array, 1)[0].numpy(), rgb2ycbcr(array)[..., 0] / 255, atol=1e-6)
    assert torch.equal(to_tensor(array, 3), torch.from_numpy(array).permute(2, 0, 1) / 255)
    grey = array[..., :1]
    assert torch.equal(to_tensor(grey, 3), torch.from_numpy(grey).permute(2, 0, 1).expand(3, -1, -1) / 255)
    assert torch.equal(to_tensor(grey, 1), to_tensor(grey.repeat(3, axis=2), 1))
    item = PatchDataset([Pair("a", pixels(1, 40, 40))], SMALL, scale=2, in_chans=1)[(0, 0, 0)]
    assert item["lr"].shape == (1, 8, 8) and item["hr"].shape == (1, 16, 16)


@pytest.mark.paper("samplingaug")
@pytest.mark.parametrize("choice", ["top", "nms", "darts", "rank"])
def test_one_option_draws_patches_from_the_texture(choice):
    hr = np.full((64, 128, 3), 90, np.uint8)
    hr[:, 64:] = pixels(0, 64, 64)
    data = replace(SMALL, sampler="informative", informative=InformativeConfig(choice=choice, portion=0.2, darts=150), augment=False)
    uniform = replace(data, sampler="uniform")
    detail = {
        name: np.mean([PatchDataset([Pair("a", hr)], cfg, scale=2)[(0, index, 0)]["hr"].std().item() > 0.1 for index in range(80)])
        for name, cfg in (("informative", data), ("uniform", uniform))
    }
    assert detail["uniform"] < 0.75
    assert detail["informative"] > (0.7 if choice == "rank" else 0.999)


def test_informative_patches_are_the_same_when_resumed():
    data = replace(SMALL, sampler="informative", informative=InformativeConfig(choice="darts", darts=50))
    pairs = [Pair("a", pixels(0, 64, 64)), Pair("b", pixels(1, 64, 48, 1))]
    one, two = (PatchLoader(PatchDataset(pairs, data, scale=2, seed=9), data) for _ in range(2))
    assert_same(batches(one, 4), batches(two, 4))


@pytest.mark.parametrize("margin", [0, 5])
def test_a_blind_patch_lies_where_its_hr_patch_lies_up_to_the_border(margin):
    still = StageConfig(blur=0.0, resize=(0.0, 0.0, 1.0), noise=0.0, jpeg=0.0)
    cfg = DegradeConfig(kind="blur_noise_jpeg", stages=(still,), margin=margin)
    dataset = PatchDataset([coded(2)], SMALL, cfg, scale=2)
    for index in range(150):
        item = dataset[(0, index, 0)]
        assert item["lr"].shape == (3, 8, 8) and item["hr"].shape == (3, 16, 16)
        # Each of the three kernels gives back a ramp; bicubic interpolation bends it by less than a step at the border.
        assert (item["lr"] - item["hr"][:, ::2, ::2]).abs().max() * 255 < 1.01


@pytest.mark.parametrize("kind", ["blur_noise_jpeg", "real_esrgan"])
def test_blind_patches_are_different_every_time(kind):
    dataset = PatchDataset([Pair("a", pixels(0, 16, 16))], replace(SMALL, augment=False), DegradeConfig(kind=kind), scale=2)
    items = [dataset[(epoch, index, 0)] for epoch in range(2) for index in range(3)]
    assert all(torch.equal(item["hr"], items[0]["hr"]) for item in items)  # The picture is one patch.
    assert len({item["lr"].sum().item() for item in items}) == 6


def test_eval_pictures_are_whole_pairs_of_several_datasets(tmp_path, monkeypatch):
    pictures(tmp_path / "Set5" / "GTmod12", "a.png b.png", 24, 36)
    pictures(tmp_path / "Set5" / "LRbicx2", "a.png b.png", 12, 18)
    write(tmp_path / "mine" / "grey.png", pixels(3, 13, 11, 1))
    found = EvalPictures([tmp_path / "Set5", tmp_path / "mine"], scale=2)
    items = list(found)
    assert [(item["dataset"], item["name"]) for item in items] == [("Set5", "a"), ("Set5", "b"), ("mine", "grey")]
    assert [item["pixels"].shape for item in items] == [(12, 18, 3), (12, 18, 3), (6, 5, 1)]
    assert [item["reference"].shape for item in items] == [(24, 36, 3), (24, 36, 3), (12, 10, 1)]
    assert all(item[key].dtype == np.uint8 for item in items for key in ("pixels", "reference"))
    monkeypatch.setattr("cnnkit.engine.sampling.process", lambda: (1, 2))
    assert [item["name"] for item in found] == ["b"] and len(found) == 1
    pair = Pair("memory", pixels(0, 8, 8), dataset="arrays")
    monkeypatch.setattr("cnnkit.engine.sampling.process", lambda: (0, 1))
    (item,) = EvalPictures([pair], scale=2)
    assert item["dataset"] == "arrays" and np.array_equal(item["reference"], pair.hr)
