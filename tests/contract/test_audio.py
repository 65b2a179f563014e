"""The audio plugin keeps the contracts of tasks and models."""

from __future__ import annotations

import pytest
from cnnkit.testing import ModelContract, SmallModel

pytest.importorskip("cnnkit_audio")

_ACDNET = {"channels": (3, 6, 4, 5, 4, 6, 5, 7, 6, 8, 7, 5), "length": 4000}
SMALL: dict[str, SmallModel] = {
    "audio/acdnet": SmallModel(_ACDNET, in_chans=1, batch=4, sizes={1: (4000,)}),
    "audio/acdnet_micro": SmallModel(_ACDNET, in_chans=1, batch=4, sizes={1: (4000,)}),
    "audio/aclnet": SmallModel({"width": 0.25}, in_chans=1, sizes={1: (9000,)}),
    "audio/aclnet_small": SmallModel({"width": 0.25}, in_chans=1, sizes={1: (9000,)}),
}
"""The small form of each network of the manifest. An audio network takes ``(B, 1, T)``: sizes = {1: (samples,)}."""


class TestModels(ModelContract):
    plugin = "audio"
    small = SMALL
