from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cnnkit.config import dump_yaml, from_dict, to_dict
from cnnkit.errors import ConfigError
from cnnkit_medseg import plan as P
from cnnkit_medseg.config import Config, Intensity, NetworkConfig, PreprocessConfig
from cnnkit_medseg.dataset import Dataset

CT = Intensity(mean=80, std=40, median=82, min=-900, max=1500, percentile_00_5=-50, percentile_99_5=240)


def dataset(**changes) -> Dataset:
    fields = {"channels": ("CT",), "labels": {"background": 0, "liver": 1, "tumour": 2}, "regions_class_order": (), "ignore_label": None}
    return Dataset(name="d", root=Path("d"), training=(), test=(), **(fields | changes))


def fingerprint(spacing=(1.0, 1.0, 1.0), shape=(36, 50, 35), cases=260, kept=1.0) -> P.Fingerprint:
    return P.Fingerprint((tuple(spacing),) * cases, (tuple(shape),) * cases, (kept,) * cases, (CT,))


# Printed in the supplement of the nnU-Net paper (Nature Methods 18, 2021), 3d_fullres: target spacing, median shape, cases,
# outputs -> patch size, batch size. Axes are in the order of the table, slices first.
PUBLISHED = {
    "BrainTumour": ((1, 1, 1), (138, 169, 138), 484, 4, (128, 128, 128), 2),
    "Heart": ((1.37, 1.25, 1.25), (115, 320, 232), 20, 2, (80, 192, 160), 2),
    "Liver": ((1, 0.767, 0.767), (482, 512, 512), 131, 3, (128, 128, 128), 2),
    "Hippocampus": ((1, 1, 1), (36, 50, 35), 260, 3, (40, 56, 40), 9),
    "Prostate": ((3.6, 0.62, 0.62), (20, 320, 319), 32, 3, (20, 320, 256), 2),
    "HepaticVessel": ((1.5, 0.8, 0.8), (150, 494, 494), 303, 3, (64, 192, 192), 2),
    "Spleen": ((1.6, 0.79, 0.79), (187, 512, 512), 41, 2, (64, 192, 160), 2),
    "ACDC": ((5, 1.56, 1.56), (18, 246, 213), 200, 4, (20, 256, 224), 4),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_patches_are_those_of_nnunet(name):
    spacing, shape, cases, outputs, patch, batch = PUBLISHED[name]
    stages, found = P.plan_patch(spacing, shape, cases=cases, outputs=outputs)
    assert (stages.patch_size, found) == (patch, batch)


def test_a_slicewise_patch_is_that_of_nnunet():
    stages, batch = P.plan_patch((1.0, 1.0), (50, 35), cases=260 * 36, outputs=3)
    assert (stages.patch_size, batch) == ((56, 40), 366) and stages.channels == (32, 64, 128, 256)


def test_stages_of_an_anisotropic_volume():
    """nnU-Net's published plan of the prostate data."""
    stages = P.topology((3.6, 0.62, 0.62), (20, 320, 256))
    assert stages.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2))
    assert stages.kernel_sizes == ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))
    assert stages.channels == (32, 64, 128, 256, 320, 320, 320) and stages.divisor == (4, 64, 64)


@pytest.mark.parametrize("seed", range(20))
def test_stages_keep_their_promises(seed):
    rng = np.random.default_rng(seed)
    dims = int(rng.integers(2, 4))
    spacing, patch = np.exp(rng.uniform(-1, 2, dims)).tolist(), rng.integers(4, 200, dims).tolist()
    stages = P.topology(spacing, patch)
    assert len(stages.strides) == len(stages.kernel_sizes) and stages.strides[0] == (1,) * dims
    for size, step, asked in zip(stages.patch_size, stages.divisor, patch, strict=True):
        assert size % step == 0 and 0 <= size - asked < step and size // step >= 4
    order = rng.permutation(dims)  # The rules know no axis by its number.
    turned = P.topology([spacing[axis] for axis in order], [patch[axis] for axis in order])
    assert turned.strides == tuple(tuple(stage[axis] for axis in order) for stage in stages.strides)


def test_feature_voxels_count_the_real_network():
    """The oracle counts what the convolutions of the plugin's own network put out."""
    import torch
    from cnnkit_medseg.models.unet import UNet

    stages = P.topology((2.0, 1.0, 1.0), (8, 32, 16))
    small = tuple(width // 32 for width in stages.channels)
    network = UNet(in_chans=1, num_classes=3, dims=3, **(stages.network_args() | {"channels": small})).eval()
    counted = []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d | torch.nn.ConvTranspose3d):
            module.register_forward_hook(lambda module, args, output: counted.append((output[0].numel(), output.shape[1])))
    with torch.no_grad():
        network(torch.zeros(1, 1, *stages.patch_size))
    heads = sum(count for count, width in counted if width == 3)
    scaled = sum(count for count, width in counted if width != 3) * 32
    finest = 3 * int(np.prod(stages.patch_size))
    assert scaled + min(heads, finest) == P.feature_voxels(stages, 3)  # nnU-Net counts the finest head alone.


def test_target_spacing():
    isotropic = P.target_spacing([(1, 1, 1), (2, 1, 1), (3, 1, 1)], [(100, 100, 100)] * 3)
    assert isotropic == (2, 1, 1)
    spacings = [(1.5, 1.5, z) for z in range(5, 16)]
    assert P.target_spacing(spacings, [(200, 200, 10)] * 11) == (1.5, 1.5, 6)  # The 10th percentile of 5 to 15.
    assert P.target_spacing(spacings, [(200, 200, 100)] * 11) == (1.5, 1.5, 10)  # Coarse, but with many voxels.
    assert P.target_spacing([(1, 1, 0.5), *[(1, 1, 9)] * 5], [(200, 200, 9)] * 6)[2] > 1  # Not finer than the other axes.


def test_open_fields_are_filled_and_no_others():
    cfg = P.complete(Config(), dataset(), fingerprint())
    assert cfg.labels == {"background": 0, "liver": 1, "tumour": 2} and cfg.channels == ("CT",)
    assert cfg.preprocess == PreprocessConfig(spacing=(1, 1, 1), normalise=("ct",), intensity=(CT,))
    assert cfg.patch_size == (40, 56, 40) and cfg.data.batch_size == 9
    assert cfg.network.args["channels"] == [32, 64, 128, 256] and cfg.network.args["strides"][0] == [1, 1, 1]
    assert from_dict(Config, to_dict(cfg)) == cfg and "liver" in dump_yaml(cfg)
    assert P.complete(cfg, dataset(), fingerprint(shape=(100, 100, 100))) == cfg

    mine = Config(
        labels={"background": 0, "organ": 1},
        patch_size=(32, 32, 32),
        preprocess=PreprocessConfig(spacing=(2, 2, 2), normalise=("rescale01",)),
        network=NetworkConfig(args={"channels": [8, 16], "strides": [[1, 1, 1], [2, 2, 2]], "kernel_sizes": [[3, 3, 3]] * 2}),
    )
    assert P.complete(mine, dataset(), fingerprint()) == replace(mine, channels=("CT",))


def test_channels_decide_normalisation():
    names = ("CT", "noNorm", "rescale_to_0_1", "rgb_to_0_1", "zscore", "T1")
    assert P.schemes(names) == ("ct", "none", "rescale01", "rgb01", "zscore", "zscore")
    two = P.complete(Config(), dataset(channels=("CT", "PET")))
    assert two.preprocess.normalise == ("ct", "zscore") and two.preprocess.spacing is None and two.network.args == {}


def test_mask_where_the_crop_took_much_away():
    mr = dataset(channels=("T1",))
    assert P.complete(Config(), mr, fingerprint(kept=0.5)).preprocess.mask_zscore
    assert not P.complete(Config(), mr, fingerprint(kept=0.8)).preprocess.mask_zscore
    assert not P.complete(Config(), dataset(), fingerprint(kept=0.5)).preprocess.mask_zscore


def test_regions_and_ignore_label_come_along():
    regions = dataset(labels={"background": 0, "whole": (1, 2), "core": (2,)}, regions_class_order=(1, 2), ignore_label=3)
    cfg = P.complete(Config(), regions, fingerprint())
    assert cfg.has_regions and cfg.ignore_label == 3 and cfg.output_values == (1, 2)


def test_a_given_patch_must_fit_the_network():
    cfg = P.complete(Config(patch_size=(48, 48, 48)), dataset(), fingerprint())
    assert cfg.patch_size == (48, 48, 48) and len(cfg.network.args["strides"]) == 4
    with pytest.raises(ConfigError, match=r"patch_size=\[50, 48, 48\].*\[56, 48, 48\]"):
        P.complete(Config(patch_size=(50, 48, 48)), dataset(), fingerprint())


def test_other_networks_keep_their_patch():
    cfg = P.complete(Config(network=NetworkConfig("medseg/swin_unetr")), dataset(), fingerprint())
    assert cfg.patch_size == (96, 96, 96) and cfg.network.args == {}


def test_no_labels_anywhere():
    with pytest.raises(ConfigError, match="no 'labels'"):
        P.complete(Config(), dataset(labels={}))


def test_less_memory_smaller_patch():
    sizes = [np.prod(P.plan_patch((1, 1, 1), (300, 300, 300), cases=100, outputs=2, memory_gb=gb)[0].patch_size) for gb in (1, 4, 8, 24)]
    assert sizes == sorted(sizes) and len(set(sizes)) == 4
