"""The audio plugin keeps the contracts of tasks and models."""

from __future__ import annotations

import pytest
from cnnkit.testing import ModelContract, SmallModel

pytest.importorskip("cnnkit_audio")

SMALL: dict[str, SmallModel] = {}
"""The small form of each network of the manifest. An audio network takes ``(B, 1, T)``: sizes = {1: (samples,)}."""


class TestModels(ModelContract):
    plugin = "audio"
    small = SMALL
