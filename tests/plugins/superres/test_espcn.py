"""ESPCN: the paper's parameters, the shuffle and its inverse, and the equations in float64."""

from __future__ import annotations

import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.count import count_params
from cnnkit.errors import ConfigError
from cnnkit.testing.compare import assert_near, image, randomise
from torch.nn import functional as F

pytestmark = pytest.mark.paper("espcn")


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_it_is_three_convolutions_and_a_shuffle(plain, scale):
    ours = randomise(create_model(f"superres/espcn_x{scale}")).double().eval()
    theirs = plain("espcn").PlainESPCN(scale).double()
    theirs.load_state_dict(ours.state_dict())
    for size in ((12, 9), (1, 5)):
        x = image(*size, channels=1).double()
        assert_near(ours(x).detach(), theirs(x).detach(), 1e-12)
        assert ours(x).shape[-2:] == (scale * size[0], scale * size[1])


@pytest.mark.parametrize(("scale", "params"), [(2, 21_284), (3, 22_729), (4, 24_752)])
def test_parameters(scale, params):
    assert count_params(create_model(f"superres/espcn_x{scale}")) == params


def test_the_shuffle_lays_channels_out_as_pixels_and_loses_nothing():
    model = create_model("superres/espcn_x3")
    maps = torch.randn(2, 9, 4, 5)
    out = model.shuffle(maps)
    for i in range(3):
        for j in range(3):
            assert torch.equal(out[:, 0, i::3, j::3], maps[:, 3 * i + j])
    assert torch.equal(F.pixel_unshuffle(out, 3), maps)


def test_an_unknown_activation_is_answered_with_the_known():
    with pytest.raises(ConfigError, match="relu"):
        create_model("superres/espcn_x2", activation="rleu")
