"""The super-resolution plugin keeps the contracts of tasks and models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cnnkit.errors import ConfigError
from cnnkit.plugin import get
from cnnkit.testing import ModelContract, SmallModel, TaskContract
from cnnkit.testing.compare import randomise
from torch import Tensor

pytest.importorskip("cnnkit_superres")

from cnnkit_superres.merging import merged
from cnnkit_superres.receptive import reach
from cnnkit_superres.tiling import upscale

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


@pytest.mark.parametrize("name", sorted(TestModels.small))
def test_tiles_equal_the_whole_picture(name: str) -> None:
    """To 1e-9 of the largest value, in float64, for every network as it infers, merged; one that sees the whole picture refuses to be cut.

    In float32, libraries choose another algorithm for another size, which alone is up to 1e-4 apart.
    """
    small = TestModels.small[name]
    model = merged(randomise(small.build(name, 2))).double()
    found, tile = reach(model), 8
    # Both ends of the range are exceeded, so that nothing of the result is cut off.
    width = 2 * tile + 5 + (found.halo if found else 0)
    pixels = 2 * np.random.default_rng(0).random((tile + 3, width, small.in_chans)) - 0.5
    assert (found is None) == name.removeprefix("superres/").startswith(("a2n", "imdn"))  # Attention to the mean, or the contrast, of all.
    if found is None:
        with pytest.raises(ConfigError, match="sees the whole picture at once"):
            upscale(model, pixels, tile=tile)
        return
    tiles: list[int] = []
    whole = upscale(model, pixels)
    tiled = upscale(model, pixels, tile=tile, progress=lambda done, total: tiles.append(total))
    assert whole.std() > 0.05
    assert tiles[0] == len(tiles) >= 6  # No window has the whole width.
    assert np.abs(tiled - whole).max() <= 1e-9 * np.abs(whole).max()


class TestTask(TaskContract):
    plugin = "superres"
    config = {"network": {"name": "superres/span_x2", "args": {"channels": 8, "merged": True}}}

    def example_input(self, folder: Path) -> Path:
        from PIL import Image

        path = folder / "photo.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(path)
        return path
