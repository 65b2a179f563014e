"""The audio plugin keeps the contracts of tasks and models."""

from __future__ import annotations

import pytest
import torch
from cnnkit.testing import ModelContract, SmallModel
from torch import Tensor, nn

pytest.importorskip("cnnkit_audio")

from cnnkit_audio.models._base import Effect

_ACDNET = {"channels": (3, 6, 4, 5, 4, 6, 5, 7, 6, 8, 7, 5), "length": 4000}
_TCN = SmallModel({"channels": 4, "blocks": 3, "kernel": 3, "growth": 3}, in_chans=1)
SMALL: dict[str, SmallModel] = {
    "audio/acdnet": SmallModel(_ACDNET, in_chans=1, batch=4, sizes={1: (4000,)}),
    "audio/acdnet_micro": SmallModel(_ACDNET, in_chans=1, batch=4, sizes={1: (4000,)}),
    "audio/aclnet": SmallModel({"width": 0.25}, in_chans=1, sizes={1: (9000,)}),
    "audio/aclnet_small": SmallModel({"width": 0.25}, in_chans=1, sizes={1: (9000,)}),
    **{name: _TCN for name in (*(f"audio/micro_tcn_{size}_{how}" for size in (100, 300, 1000) for how in "cn"), "audio/tcn_300_n")},
    "audio/lstm_32": SmallModel({"hidden": 4}, in_chans=1),
}
"""The small form of each network of the manifest. An audio network takes ``(B, 1, T)``: sizes = {1: (samples,)}."""


class TestModels(ModelContract):
    plugin = "audio"
    small = SMALL

    def forward(self, model: nn.Module, x: Tensor) -> list[Tensor]:
        """An effect has knobs beside its input."""
        return [model(x, torch.full((len(x), len(model.knobs)), 0.5))] if isinstance(model, Effect) else super().forward(model, x)

    def check_output(self, small: SmallModel, x: Tensor, outputs: list[Tensor]) -> None:
        """A tagger has scores for classes, an effect one channel of sound."""
        batch, channels, *time = outputs[0].shape
        assert batch == small.batch and (channels == small.num_classes if not time else channels == 1 and time[0] > 0)
