"""cSE, sSE and scSE against the equations of the paper, with the shapes of the authors' package."""

from __future__ import annotations

import pytest
import torch
from cnnkit.count import count_params
from cnnkit.errors import ConfigError
from cnnkit.layers.recalibrate import get_recalibration
from cnnkit.layers.scse import JOINS, SpatialChannelSqueezeExcite, SpatialSqueezeExcite
from torch import nn

pytestmark = pytest.mark.paper("scse")
DIMS = (1, 2, 3)


def features(dims: int, channels: int = 8) -> torch.Tensor:
    return torch.randn(2, channels, *(5, 6, 7)[:dims], generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Official(nn.Module):
    """What the authors' package computes: linear layers on the means, a convolution to one channel, the maximum of both."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, channels // 2), nn.Linear(channels // 2, channels)
        self.conv = nn.Conv2d(channels, 1, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights = torch.sigmoid(self.fc2(torch.relu(self.fc1(x.flatten(2).mean(2)))))
        return x * weights[..., None, None], x * torch.sigmoid(self.conv(x))


@pytest.mark.parametrize("join", JOINS)
@torch.no_grad()
def test_equals_the_official_equations_with_the_same_weights(join):
    theirs = Official(8).double()
    ours = SpatialChannelSqueezeExcite(8, join=join, dtype=torch.float64)
    ours.load_state_dict(
        {
            "cse.fc1.weight": theirs.fc1.weight[..., None, None],
            "cse.fc1.bias": theirs.fc1.bias,
            "cse.fc2.weight": theirs.fc2.weight[..., None, None],
            "cse.fc2.bias": theirs.fc2.bias,
            "sse.conv.weight": theirs.conv.weight,
            "sse.conv.bias": theirs.conv.bias,
        }
    )
    by_channel, by_position = theirs(features(2))
    joined = {
        "max": torch.max(by_channel, by_position),
        "add": by_channel + by_position,
        "mul": by_channel * by_position,
        "concat": torch.cat([by_channel, by_position], 1),
    }
    torch.testing.assert_close(ours(features(2)), joined[join], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", DIMS)
def test_numbers_of_parameters(dims):
    """C^2 + 1.5 C for the channel part and C + 1 for the spatial one, biases included."""
    for channels in (8, 64):
        both = SpatialChannelSqueezeExcite(channels, dims=dims)
        assert count_params(both.cse) == channels**2 + 1.5 * channels
        assert count_params(both.sse) == channels + 1


@pytest.mark.parametrize("dims", (2, 3))
def test_more_dimensions_compute_the_same_on_a_stacked_input(dims):
    flat = SpatialChannelSqueezeExcite(8, dims=dims - 1, dtype=torch.float64)
    deep = SpatialChannelSqueezeExcite(8, dims=dims, dtype=torch.float64)
    deep.load_state_dict({key: value.unsqueeze(-1) if value.ndim > 1 else value for key, value in flat.state_dict().items()})
    x = features(dims - 1)
    stacked = x.unsqueeze(-1).expand(*x.shape, 4)
    torch.testing.assert_close(deep(stacked), flat(x).unsqueeze(-1).expand(*x.shape, 4), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", DIMS)
def test_spatial_part_commutes_with_any_permutation_of_positions(dims):
    """Its weight depends on the position's own channels only, unlike that of the channel part, which it does not see."""
    block = SpatialSqueezeExcite(8, dims=dims, dtype=torch.float64)
    x = features(dims)
    order = torch.randperm(x[0, 0].numel(), generator=torch.Generator().manual_seed(1))

    def shuffled(y):
        return y.flatten(2)[..., order].view_as(y)

    torch.testing.assert_close(block(shuffled(x)), shuffled(block(x)), rtol=1e-12, atol=1e-12)
    assert bool((block(x).abs() < x.abs()).all())


def test_by_name_and_unknown_names():
    assert isinstance(get_recalibration("scse", 3, 8), SpatialChannelSqueezeExcite)
    for name in ("none", "se", "eca", "cse", "sse", "scse"):
        assert get_recalibration(name, 2, 8).double()(features(2)).shape == features(2).shape
    with pytest.raises(ConfigError, match="scse"):
        get_recalibration("csse", 2, 8)
    with pytest.raises(ConfigError, match="concat"):
        SpatialChannelSqueezeExcite(8, join="cat")
