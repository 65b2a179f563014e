"""The networks have the parameters and multiply-adds that their papers print, the latter for an output of 1280 x 720."""

from __future__ import annotations

import pytest
from cnnkit.backbones import create_model
from cnnkit.count import on_meta
from cnnkit.plugin import get
from cnnkit.testing.compare import assert_figures

MODELS = get("superres").models


@pytest.mark.parametrize("name", MODELS)
def test_published_figures(name: str) -> None:
    """To the precision of the paper; where that cannot be met, our own count, with the reason beside it."""
    with on_meta():
        model = create_model(name)
    assert_figures(MODELS[name].figures, model, dims=2, in_chans=model.in_chans)
