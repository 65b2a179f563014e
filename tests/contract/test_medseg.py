"""The medical segmentation plugin keeps the contracts of tasks and models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cnnkit.testing import ModelContract, SmallModel, TaskContract

pytest.importorskip("cnnkit_medseg")
nibabel = pytest.importorskip("nibabel")
pytest.importorskip("monai")

SWIN = SmallModel({"feature_size": 12, "window_size": 2, "depths": (1, 1, 1, 1)}, batch=1, sizes={2: (64, 64), 3: (64, 32, 32)})


class TestModels(ModelContract):
    plugin = "medseg"
    small = {
        "medseg/unet": SmallModel({"channels": (4, 6, 8)}),
        "medseg/dynunet": SmallModel({"channels": (4, 6, 8)}),
        "medseg/segresnet": SmallModel({"init_channels": 8, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)}),
        "medseg/swin_unetr": SWIN,
        "medseg/swin_unetr_brats21": SWIN,
    }


class TestTask(TaskContract):
    plugin = "medseg"
    config = {
        "labels": {"background": 0, "a": 1, "b": 2},
        "patch_size": [16, 16, 16],
        "network": {"args": {"channels": [4, 8]}},
    }

    def example_input(self, folder: Path) -> Path:
        path = folder / "scan.nii.gz"
        noise = np.random.default_rng(0).normal(100, 20, (20, 18, 16)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(noise, np.diag((1.0, 1.0, 2.0, 1.0))), path)
        return path
