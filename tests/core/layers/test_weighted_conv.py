"""Weighted convolution against PyTorch's, its closed form, and the view of it as learning rates."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model
from cnnkit.count import count_macs, count_params
from cnnkit.errors import ConfigError
from cnnkit.layers.fuse import fuse
from cnnkit.layers.nd import conv
from cnnkit.layers.weighted_conv import WeightedConv, density, search_profile, weigh_convolutions
from torch import Tensor, nn

pytestmark = pytest.mark.paper("weighted-conv")

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def features(dims: int, channels: int = 4) -> Tensor:
    return torch.randn(2, channels, *(9, 8, 7)[:dims], generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_density_is_symmetric_separable_and_one_at_the_centre():
    phi = density((0.2, 0.8))
    expected = [[a * b for b in (0.2, 0.8, 1, 0.8, 0.2)] for a in (0.2, 0.8, 1, 0.8, 0.2)]
    torch.testing.assert_close(phi, torch.tensor(expected))
    assert torch.equal(phi, phi.flip(0, 1)) and torch.equal(phi, phi.mT) and phi[2, 2] == 1
    assert torch.linalg.matrix_rank(phi) == 1
    torch.testing.assert_close(density((0.5,), 3)[0], 0.5 * density((0.5,)))
    assert density((), 2).shape == (1, 1) and density((0.3, 0.2, 0.1), 1).shape == (7,)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("how", [{}, {"stride": 2, "bias": False}, {"groups": 2, "dilation": 2}, {"padding": 0}, {"padding": "same"}])
@torch.no_grad()
def test_a_density_of_one_is_the_ordinary_convolution(dims, how):
    """From the same seed with the same weights, and the same result to the last bit."""
    torch.manual_seed(3)
    ours = WeightedConv(4, 6, (1.0, 1.0), dims=dims, dtype=torch.float64, **how)
    torch.manual_seed(3)
    padding = how.get("padding", 2 * how.get("dilation", 1))
    plain = conv(dims)(4, 6, 5, dtype=torch.float64, **{**how, "padding": padding})
    assert torch.equal(ours(features(dims)), plain(features(dims)))
    assert count_params(ours) == count_params(plain)


@pytest.mark.parametrize("dims", [1, 2, 3])
@torch.no_grad()
def test_the_kernel_is_the_product_and_merging_keeps_it(dims):
    ours = WeightedConv(4, 6, (0.3, 0.7), dims=dims, dtype=torch.float64).eval()
    x = features(dims)
    distance = torch.stack(torch.meshgrid(*[torch.arange(5) - 2] * dims, indexing="ij")).abs()
    phi = torch.tensor([1.0, 0.7, 0.3], dtype=torch.float64)[distance].prod(0)
    expected = CONV[dims](x, ours.weight * phi, ours.bias, padding=2)
    torch.testing.assert_close(ours(x), expected, rtol=1e-12, atol=1e-12)
    network = nn.Sequential(ours, nn.ReLU()).eval()
    before = network(x)
    torch.testing.assert_close(fuse(network, x)(x), before, rtol=1e-12, atol=1e-12)
    assert type(network[0]) is conv(dims)


def test_it_is_an_ordinary_convolution_with_other_learning_rates_and_another_start():
    """Ten steps of gradient descent, with a rate of ``phi ** 2`` for each place and a start of ``w * phi``."""
    torch.manual_seed(0)
    ours = WeightedConv(4, 3, (0.6,), dtype=torch.float64)
    plain = ours.merged()
    x, target = features(2), torch.randn(2, 3, 9, 8, dtype=torch.float64)
    for _ in range(10):
        for layer, rate in ((ours, 0.5), (plain, 0.5 * ours.phi.square())):
            layer.zero_grad()
            F.mse_loss(layer(x), target).backward()
            with torch.no_grad():
                layer.weight -= rate * layer.weight.grad
                layer.bias -= 0.5 * layer.bias.grad
    torch.testing.assert_close(ours.weight * ours.phi, plain.weight, rtol=1e-10, atol=1e-10)
    assert (ours.weight - plain.weight).abs().max() > 0.01


NETWORKS = [
    ("resnet18", {"widths": (4, 4, 8, 8)}, {3: 16, 7: 1}),
    ("vgg11", {"widths": (4, 4, 8, 8, 8), "head_width": 8, "head_size": 1}, {3: 8}),
]


@pytest.mark.parametrize(("name", "arch", "sides"), NETWORKS)
@torch.no_grad()
def test_a_network_takes_it_by_one_call(name, arch, sides):
    """With as many parameters and multiply-adds; with ones it is the same function, and otherwise another one."""
    torch.manual_seed(0)
    plain = create_model(name, num_classes=3, **arch).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = plain(x)
    profiles = {3: (0.5,), 7: (1.0, 1.0, 1.0)}
    ones = copy.deepcopy(plain)
    counts = {side: weigh_convolutions(ones, {side: [1.0] * (side // 2)}) for side in sides}
    assert counts == sides
    assert torch.equal(ones(x), expected)
    weighted = copy.deepcopy(plain)
    assert weigh_convolutions(weighted, profiles) == sum(sides.values())
    assert count_params(weighted) == count_params(plain)
    assert count_macs(weighted, x.shape) == count_macs(plain, x.shape)
    found = weighted(x)
    assert (found - expected).abs().max() > 1e-4 * expected.abs().max()
    other = copy.deepcopy(ones)
    other.load_state_dict(weighted.state_dict())
    assert torch.equal(other(x), found), "the density belongs to the weights"


def test_what_cannot_be_weighted_is_refused_or_left():
    with pytest.raises(ConfigError, match=r"a profile of 2 values is for kernels of side 5, not 3"):
        weigh_convolutions(nn.Sequential(nn.Conv2d(2, 2, 3)), {3: (0.2, 0.8)})
    with pytest.raises(ConfigError, match=r"this one has \(3, 5\)"):
        WeightedConv.of(nn.Conv2d(2, 2, (3, 5)), (0.8,))
    with pytest.raises(ConfigError, match="padding_mode='reflect'"):
        weigh_convolutions(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")), {3: (0.8,)})
    assert weigh_convolutions(nn.Sequential(nn.Conv2d(2, 2, (3, 5)), nn.Conv2d(2, 2, 1), nn.Linear(2, 2)), {3: (0.8,)}) == 0


def test_the_search_finds_a_maximum_and_asks_once_for_each_profile():
    asked = []

    def score(profile: tuple[float, ...]) -> float:
        asked.append(profile)
        return -((profile[0] - 0.35) ** 2) - (profile[1] - 1.2) ** 2 - 0.3 * (profile[0] - 0.35) * (profile[1] - 1.2)

    best, tried = search_profile(score, (1.0, 1.0), least=0.01)
    assert best == pytest.approx((0.35, 1.2), abs=0.02)
    assert len(asked) == len(set(asked)) == len(tried) and max(tried, key=tried.get) == best
    assert search_profile(lambda profile: 0.0, (1.0,))[0] == (1.0,), "nothing is gained, nothing is changed"
    assert search_profile(lambda profile: -profile[0], (1.0,))[0] == (0.05,), "not below the bound"
    assert search_profile(lambda profile: 1.0, ()) == ((), {(): 1.0})
