"""What the tests of medseg's whole way share: small checkpoints with random weights, and volumes to segment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory) -> Callable[..., Path]:
    """Return a function that saves a small random network; its arguments change the configuration."""
    import torch
    from cnnkit import plugin
    from cnnkit.checkpoint import save_checkpoint
    from cnnkit.config import from_dict
    from cnnkit.engine.fit import header_for
    from cnnkit_medseg.config import Config
    from cnnkit_medseg.task import MedSeg

    def make(**changes: Any) -> Path:
        settings: dict[str, Any] = {
            "labels": {"background": 0, "a": 1, "b": 2},
            "patch_size": [16, 16, 16],
            "deep_supervision": False,
            "network": {"name": "medseg/unet", "args": {"channels": [4, 8]}},
            "preprocess": {"spacing": [2.0, 2.0, 2.0]},
        }
        task = MedSeg(from_dict(Config, settings | changes))
        torch.manual_seed(1)
        model = task.model()
        return save_checkpoint(
            tmp_path_factory.mktemp("tiny") / "tiny.ckpt", model.state_dict(), header_for(task, model, plugin.get("medseg"), {})
        )

    return make


@pytest.fixture(scope="session")
def tiny(make_checkpoint) -> Path:
    """Three classes, one channel, windows of 16 voxels at 2 mm."""
    return make_checkpoint()


@pytest.fixture(scope="session")
def oblique() -> np.ndarray:
    """An affine that turns, permutes and flips the axes, with odd spacing, as float32 holds it."""
    cos, sin = np.cos(0.2), np.sin(0.2)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    axes = turn[:, [2, 0, 1]] * [-1, 1, -1]
    affine = np.eye(4)
    affine[:3, :3] = axes * [2.7, 1.3, 1.9]
    affine[:3, 3] = [-31.25, 17.5, 99.125]
    return affine.astype(np.float32).astype(np.float64)


@pytest.fixture(scope="session")
def phantom() -> Callable[..., np.ndarray]:
    """Return a function that makes smooth noise of a shape, int16 as scanners write it."""
    from scipy.ndimage import gaussian_filter

    def make(*shape: int, seed: int = 0) -> np.ndarray:
        noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
        return (1000 * noise / noise.std() + 200).astype(np.int16)

    return make


@pytest.fixture(scope="session")
def save_nifti(phantom) -> Callable[..., Path]:
    """Return a function that saves a volume, with sform and qform that agree."""
    import nibabel as nib

    def save(path: Path, values: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(phantom(20, 18, 17) if values is None else values, np.diag([2.0, 2, 2, 1]) if affine is None else affine)
        image.set_sform(image.affine, 1)
        image.set_qform(image.affine, 1)
        nib.save(image, path)
        return path

    return save


@pytest.fixture
def segment_files(tiny, tmp_path) -> Callable[..., Any]:
    """Run the task in this process as the command line does, into ``tmp_path/out``."""
    from cnnkit import api

    def run(*inputs: Path, **options: Any) -> Any:
        options = {"checkpoint": tiny, "output": tmp_path / "out", "progress": False, "device": "cpu", "overlay": False} | options
        return api.run("medseg", inputs, **options)

    return run
