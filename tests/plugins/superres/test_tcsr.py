"""TCSR: the equations with windows gathered one by one, the authors' parameters, and what a pixel sees."""

from __future__ import annotations

import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.count import count_params, on_meta
from cnnkit.errors import ConfigError
from cnnkit.testing.compare import assert_near, image, randomise
from cnnkit.weights import load_weights
from cnnkit_superres.models.tcsr import TCSR, NeighborhoodBlock, ShiftFeedForward

pytestmark = pytest.mark.paper("tcsr")


@pytest.mark.parametrize("scale", [2, 3, 4])
@torch.no_grad()
def test_it_is_the_equations(plain, scale):
    """To 1e-5 in single and 1e-10 in double precision, with whole blocks of queries and without."""
    theirs = randomise(plain("tcsr").PlainTCSR(scale, channels=16, depth=2, heads=2, window=5), spread={"rpb": 1.0})
    ours = TCSR(scale=scale, channels=16, depth=2, heads=2, window=5).eval()
    assert load_weights(ours, theirs.state_dict()) == "cnnkit"
    for size in ((16, 8), (5, 19)):
        x = image(*size)
        assert_near(ours.float()(x), theirs.float()(x))
        assert_near(ours.double()(x.double()), theirs.double()(x.double()), 1e-10)


@torch.no_grad()
def test_a_block_of_the_published_size_is_the_equations(plain):
    theirs = randomise(plain("tcsr").PlainBlock(64, 4, 11, 192), spread={"rpb": 1.0}).double()
    ours = NeighborhoodBlock(64, heads=4, window=11, hidden=192).double().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 18, 13, 64, dtype=torch.float64)
    assert_near(ours(x), theirs(x), 1e-10)


@pytest.mark.parametrize(("size", "params"), [("b", 681_868), ("l", 1_029_804)])
def test_parameters(plain, size, params):
    with on_meta():
        model = create_model(f"superres/tcsr_{size}_x4")
        assert count_params(model) == count_params(plain("tcsr").PlainTCSR(4, depth=len(model.blocks))) == params


def test_the_shift_has_no_parameters_and_lets_a_pixel_see_its_neighbours():
    torch.manual_seed(0)
    part = ShiftFeedForward(16, 64).double()
    assert not list(part.shift.parameters()) and not list(part.shift.buffers())
    x = torch.randn(1, 7, 6, 16, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(part(x)[0, 3, 2].sum(), x)
    seen = gradient[0].abs().sum(-1) > 0
    expected = torch.zeros(7, 6, dtype=torch.bool)
    expected[2:5, 1:4] = True
    expected[3, 2] = False  # All eight groups move.
    assert torch.equal(seen, expected)


@torch.no_grad()
def test_pictures_smaller_than_a_window_are_enlarged():
    model = TCSR(scale=3, channels=8, depth=1, heads=2).eval()
    for size in ((1, 1), (3, 30), (12, 2)):
        assert model(image(*size)).shape[-2:] == (3 * size[0], 3 * size[1])


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="has no middle"):
        TCSR(window=8)
    with pytest.raises(ConfigError, match="heads=5 must divide channels=64"):
        TCSR(heads=5)
    with pytest.raises(ConfigError, match="give 6 hidden channels to move in 8 directions"):
        TCSR(channels=2, ratio=3, heads=1)
