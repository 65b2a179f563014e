"""E2GC: group sizes in layers and networks, costs by hand and by PyTorch's counter, and the recommendation in closed form."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model
from cnnkit.count import count_macs, count_params, on_meta
from cnnkit.errors import ConfigError
from cnnkit.layers.e2gc import (
    Cost,
    conv_cost,
    group_size_conv,
    group_size_costs,
    grouped_convolutions,
    machine_balance,
    match_macs,
    recommend_group_size,
    set_group_size,
    time_group_sizes,
)
from torch import Tensor, nn

pytestmark = pytest.mark.paper("e2gc")

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def features(dims: int, channels: int = 8) -> Tensor:
    return torch.randn(2, channels, *(7, 6, 5)[:dims], generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("group_size", [1, 2, 4, 8])
@torch.no_grad()
def test_every_group_is_a_convolution_of_its_own_channels(dims, group_size):
    layer = group_size_conv(8, 16, group_size=group_size, dims=dims, dtype=torch.float64)
    assert layer.weight.shape[1] == group_size
    x, parts = features(dims), []
    for index in range(8 // group_size):
        outputs = slice(2 * group_size * index, 2 * group_size * (index + 1))
        parts.append(CONV[dims](x[:, group_size * index : group_size * (index + 1)], layer.weight[outputs], layer.bias[outputs], padding=1))
    torch.testing.assert_close(layer(x), torch.cat(parts, 1), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_a_group_of_one_is_depthwise_and_of_all_is_dense():
    torch.manual_seed(1)
    ours = group_size_conv(8, 8, 5, group_size=1, stride=2, bias=False)
    torch.manual_seed(1)
    plain = nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8, bias=False)
    x = features(2).float()
    assert torch.equal(ours(x), plain(x))
    assert group_size_conv(8, 12, group_size=8).groups == 1


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="use one of 1, 2, 3, 4, 6, 12"):
        group_size_conv(12, 12, group_size=5)
    with pytest.raises(ConfigError, match="groups that divide 6; use one of 2, 4"):
        group_size_conv(4, 6, group_size=1)
    with pytest.raises(ConfigError, match="group_size=0"):
        group_size_conv(4, 4, group_size=0)


def separable(width: int = 16) -> nn.Sequential:
    """A few layers of MobileNet's form, where depthwise and pointwise convolutions take turns."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, stride=2, padding=1)]
    for channels, out_channels, stride in ((width, 2 * width, 1), (2 * width, 4 * width, 2), (4 * width, 4 * width, 1)):
        layers += [
            nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
        layers += [nn.Conv2d(channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("group_size", [1, 4, 16])
def test_a_network_gets_one_group_size_everywhere(group_size):
    model = separable()
    assert set_group_size(model, group_size) == 3
    grouped = [module for module in model if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)][1:]
    assert [module.weight.shape[1] for module in grouped] == [group_size] * 3
    assert model(torch.zeros(1, 3, 32, 32)).shape == separable()(torch.zeros(1, 3, 32, 32)).shape


def test_resnext_gets_a_constant_group_size_instead_of_a_constant_number():
    with on_meta():
        model = create_model("resnext50_32x4d")
    groups = grouped_convolutions(model).values()
    assert {module.groups for module in groups} == {32}
    assert {module.weight.shape[1] for module in groups} == {4, 8, 16, 32}
    assert set_group_size(model, 16) == 16
    groups = grouped_convolutions(model).values()
    assert {module.weight.shape[1] for module in groups} == {16}
    assert {module.groups for module in groups} == {8, 16, 32, 64}


def test_a_network_that_cannot_have_the_size_stays_as_it_was():
    model = separable()
    before = [id(module) for module in model]
    with pytest.raises(ConfigError, match=r"^1: group_size=32 does not divide 16 channels"):
        set_group_size(model, 32)
    assert [id(module) for module in model] == before
    with pytest.raises(ConfigError, match="padding_mode='circular'"):
        set_group_size(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="circular")), 2)
    with pytest.raises(ConfigError, match="itself a convolution"):
        set_group_size(nn.Conv2d(4, 4, 3, groups=4), 2)
    with pytest.raises(ConfigError, match="no grouped convolution"):
        group_size_costs(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ConfigError, match=r"none of \(3, 5\) divides every layer"):
        group_size_costs(model, torch.zeros(1, 3, 8, 8), (3, 5))


def test_costs_by_hand():
    """A 3x3 convolution of 16 to 32 channels with stride 2 on 8 x 6, in groups of 4."""
    cost = conv_cost(16, 32, (3, 3), (8, 6), (4, 3), 4)
    assert cost == Cost(macs=32 * 4 * 9 * 12, weights=32 * 4 * 9, activations=16 * 48 + 32 * 12)
    assert cost.moved == 32 * 4 * 9 + 16 * 48 + 32 * 12
    assert cost.intensity == cost.macs / cost.moved
    assert cost + cost == Cost(2 * cost.macs, 2 * cost.weights, 2 * cost.activations)


def test_costs_of_a_network_are_those_of_pytorchs_counter_and_of_its_tensors():
    model, x = separable().train(), torch.zeros(2, 3, 32, 24)
    costs = group_size_costs(model, x)
    assert list(costs) == [1, 2, 4, 8, 16] and model.training  # 32 does not divide 16 channels.
    with on_meta():
        dense = separable()
    pointwise = count_macs(dense, (1, 3, 32, 24)) - costs[1].macs
    fixed = count_params(dense) - costs[1].weights
    for size, cost in costs.items():
        set_group_size(model, size)
        assert count_macs(model, (1, 3, 32, 24)) == pointwise + cost.macs
        assert count_params(model) == fixed + cost.weights
        assert cost.activations == 2 * 16 * 16 * 12 + 32 * (16 * 12 + 8 * 6) + 2 * 64 * 8 * 6
    assert costs[8].macs == 8 * costs[1].macs
    intensities = [cost.intensity for cost in costs.values()]
    assert intensities == sorted(intensities)


@pytest.mark.parametrize("balance", [2.0, 5.0, 20.0, 40.0])
def test_the_recommendation_is_the_closed_form(balance):
    """One layer: ``G k^2 P / (2 P + G k^2) = balance`` at ``G = 2 P b / (k^2 (P - b))``, and the nearest size in ratio of intensity."""
    model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, groups=64))
    found = recommend_group_size(model, torch.zeros(1, 64, 28, 28), balance=balance, group_sizes=range(1, 65))
    positions = 28 * 28
    exact = max(2 * positions * balance / (9 * (positions - balance)), 1)

    def distance(size: int) -> float:
        return abs(math.log(size * 9 * positions / (2 * positions + size * 9) / balance))

    fitting = [size for size in range(1, 65) if 64 % size == 0]
    assert found == min(fitting, key=distance)
    assert exact / 2 <= found <= exact * 2


def test_the_recommendation_grows_with_the_price_of_movement_and_does_not_depend_on_the_own_sizes():
    with on_meta():
        model = create_model("resnext50_32x4d")
        x = torch.empty(1, 3, 224, 224)
        found = [recommend_group_size(model, x, balance=balance) for balance in (0.5, 8.0, 32.0, 128.0)]
        set_group_size(model, 8)
        assert found == [recommend_group_size(model, x, balance=balance) for balance in (0.5, 8.0, 32.0, 128.0)]
    assert found == sorted(found) and found[0] == 1 and found[-1] == 32 and len(set(found)) > 2
    with pytest.raises(ConfigError, match="balance=0 must be positive"):
        recommend_group_size(model, x, balance=0)


def test_widths_of_equal_complexity():
    """With larger groups a narrower network has as many multiply-adds."""

    def macs(width: float, group_size: int) -> int:
        with on_meta():
            model = separable(32 * max(round(width), 1))
            set_group_size(model, group_size)
            return count_macs(model, (1, 3, 32, 32))

    target = macs(8, 1)
    assert round(match_macs(lambda width: macs(width, 1), target, steps=8)) == 8
    width = match_macs(lambda width: macs(width, 32), target, steps=8)
    assert width < 8 and macs(width, 32) <= target < macs(width * 1.3, 32)
    assert match_macs(lambda width: int(1e6 * width**2), 4_000_000) == pytest.approx(2.0, rel=1e-5)
    with pytest.raises(ConfigError, match="not between those of the widths"):
        match_macs(lambda width: int(width), 100)


def test_measurements_are_positive_and_leave_the_model_alone():
    model = separable()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    seconds = time_group_sizes(model, torch.zeros(2, 3, 16, 16), (1, 4, 32), repeats=1)
    assert list(seconds) == [1, 4] and min(seconds.values()) > 0
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items()) and model.training
    assert 0 < machine_balance(side=128, repeats=2) < math.inf
