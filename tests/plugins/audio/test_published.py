"""The networks have the parameters and multiply-adds that their papers print."""

from __future__ import annotations

import pytest
from cnnkit.backbones import create_model
from cnnkit.count import on_meta
from cnnkit.plugin import get
from cnnkit.testing.compare import assert_figures

MODELS = {name: entry for name, entry in get("audio").models.items() if entry.figures.params_m or entry.figures.gmacs}


CLASSES = {
    "audio/acdnet": 50,
    "audio/acdnet_micro": 50,
    "audio/aclnet_small": 50,
    "audio/convnext_tiny": 527,
    "audio/panns_cnn6": 527,
    "audio/panns_cnn10": 527,
    "audio/panns_cnn14": 527,
}
"""Sounds that the network was counted with, where not 1000."""


@pytest.mark.parametrize("name", MODELS)
def test_published_figures(name: str) -> None:
    """To the precision of the paper; where that cannot be met, our own count, with the reason beside it."""
    with on_meta():
        model = create_model(name, dims=1, num_classes=CLASSES.get(name, 1000))
    assert_figures(MODELS[name].figures, model, dims=1, in_chans=1)
