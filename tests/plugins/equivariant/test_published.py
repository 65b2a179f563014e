"""The networks have the parameters that their papers print."""

from __future__ import annotations

import pytest
from cnnkit.backbones import create_model
from cnnkit.count import on_meta
from cnnkit.plugin import get
from cnnkit.testing.compare import assert_figures

MODELS = {name: entry for name, entry in get("equivariant").models.items() if entry.figures.params_m or entry.figures.gmacs}
CLASSES = {"equivariant/spherical_cnn_spin": 10}
"""Classes that the network was counted with, where not 1000."""


@pytest.mark.parametrize("name", MODELS)
def test_published_figures(name: str) -> None:
    """To the precision of the paper; where that cannot be met, our own count, with the reason beside it."""
    dims = MODELS[name].dims[0]
    with on_meta():
        model = create_model(name, dims=dims, num_classes=CLASSES.get(name, 1000))
    assert_figures(MODELS[name].figures, model, dims=dims, in_chans=1)
