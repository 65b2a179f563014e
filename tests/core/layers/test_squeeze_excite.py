"""Squeeze-and-excitation: what the paper says about the block itself; its networks are in the tests of the backbones."""

from __future__ import annotations

import pytest
import torch
from cnnkit.count import count_params
from cnnkit.layers.recalibrate import get_recalibration
from cnnkit.layers.squeeze_excite import SqueezeExcite

pytestmark = pytest.mark.paper("se")
DIMS = (1, 2, 3)


def features(dims: int, channels: int = 32) -> torch.Tensor:
    return torch.randn(2, channels, *(5, 6, 7)[:dims], generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("dims", DIMS)
@torch.no_grad()
def test_is_the_papers_equation_and_its_gates_lie_between_zero_and_one(dims):
    block, x = SqueezeExcite(32, dims=dims, dtype=torch.float64), features(dims)
    w1, w2 = block.fc1.weight.flatten(1), block.fc2.weight.flatten(1)
    gates = torch.sigmoid(torch.relu(x.flatten(2).mean(2) @ w1.T + block.fc1.bias) @ w2.T + block.fc2.bias)
    assert bool((gates > 0).all() and (gates < 1).all())
    torch.testing.assert_close(block(x), x * gates.view(2, 32, *[1] * dims), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", DIMS)
def test_weights_of_one_block(dims):
    """``2 C^2 / r`` without biases, whatever the dimension."""
    for channels, reduction in ((256, 16), (512, 8)):
        assert count_params(SqueezeExcite(channels, dims=dims, reduction=reduction, bias=False)) == 2 * channels**2 // reduction


@torch.no_grad()
def test_keys_are_those_of_timm_and_so_is_the_hidden_width_by_name():
    timm = pytest.importorskip("timm")
    for channels in (32, 64, 256):
        ours, theirs = get_recalibration("se", 2, channels).double(), timm.layers.SEModule(channels).double()
        theirs.load_state_dict(ours.state_dict())
        torch.testing.assert_close(ours(features(2, channels)), theirs(features(2, channels)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", DIMS)
@torch.no_grad()
def test_open_gates_change_nothing_and_positions_do_not_matter(dims):
    block, x = SqueezeExcite(32, dims=dims, dtype=torch.float64), features(dims)
    order = torch.randperm(x[0, 0].numel(), generator=torch.Generator().manual_seed(1))
    shuffled = x.flatten(2)[..., order].view_as(x)
    torch.testing.assert_close(block(shuffled), block(x).flatten(2)[..., order].view_as(x), rtol=1e-12, atol=1e-12)
    block.fc2.weight.zero_()
    block.fc2.bias.fill_(100.0)
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)
