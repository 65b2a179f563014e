"""The super-resolution plugin keeps the contracts of tasks and models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cnnkit.plugin import get
from cnnkit.testing import ModelContract, SmallModel, TaskContract
from torch import Tensor

pytest.importorskip("cnnkit_superres")

SMALL = {
    "espcn": SmallModel({"widths": (8, 6)}, in_chans=1),
    "cfsr": SmallModel({"channels": 8, "depths": (1, 1)}, in_chans=3),
    "a2n": SmallModel({"channels": 8, "tail_channels": 6, "depth": 2}, in_chans=3),
    "a2n_m": SmallModel({"channels": 8, "tail_channels": 6, "depth": 2}, in_chans=3),
    "span": SmallModel({"channels": 8}, in_chans=3),
    "span_s": SmallModel({"channels": 6}, in_chans=1),
    "dscf": SmallModel({"channels": 8}, in_chans=3),
    # Of several scales only the branch of the current one gets a gradient.
    "carn": SmallModel({"width": 8, "scales": ()}, in_chans=3),
    "carn_m": SmallModel({"width": 8, "scales": ()}, in_chans=3),
    "imdn": SmallModel({"width": 16, "reduction": 2}, in_chans=3),
    "imdn_as": SmallModel({"width": 16, "reduction": 2}, in_chans=3),
    "scnet_t": SmallModel({"channels": 16, "depth": 2}, in_chans=3),
    "scnet_t_ps": SmallModel({"channels": 16, "depth": 2}, in_chans=3),
    "scnet_b": SmallModel({"channels": 16, "depth": 2}, in_chans=3),
    "scnet_l": SmallModel({"channels": 16, "depth": 2}, in_chans=3),
    "tcsr_b": SmallModel({"channels": 8, "depth": 1, "heads": 2, "window": 3}, in_chans=3),
    "tcsr_l": SmallModel({"channels": 8, "depth": 1, "heads": 2, "window": 3}, in_chans=3),
}
"""The small form of each network, by its name without the scale."""


class TestModels(ModelContract):
    plugin = "superres"
    small = {name: SMALL[name.removeprefix("superres/").rpartition("_x")[0]] for name in get("superres").models}

    def check_output(self, small: SmallModel, x: Tensor, outputs: list[Tensor]) -> None:
        """Colours stay, sides grow by the scale."""
        batch, colours, *sides = outputs[0].shape
        assert (batch, colours) == (small.batch, small.in_chans)
        assert sides[0] / x.shape[2] == sides[1] / x.shape[3] in (2, 3, 4)


class TestTask(TaskContract):
    plugin = "superres"
    config = {"network": {"name": "superres/span_x2", "args": {"channels": 8, "merged": True}}}

    def example_input(self, folder: Path) -> Path:
        from PIL import Image

        path = folder / "photo.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(path)
        return path
