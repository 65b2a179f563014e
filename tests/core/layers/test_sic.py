"""SIC layers against masked dense projections, the closed formulas of their cost, and a dense network on digits."""

from __future__ import annotations

import math

import pytest
import torch
from cnnkit.count import count_macs, count_params, on_meta
from cnnkit.errors import ConfigError
from cnnkit.layers.conv import ConvNormAct
from cnnkit.layers.fuse import fuse
from cnnkit.layers.sic import SIC, SICStack, SpatialBottleneck, SubdividedProjection
from cnnkit.testing.compare import stir
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.paper("sic-layer")
DIMS = (1, 2, 3)
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
GRIDS = [((12,), (5,)), ((4, 6), (2, 3)), ((4, 6), (4, 6)), ((2, 3, 4), (1, 3, 2)), ((3, 3, 2), (2, 2, 2))]


def image(dims: int, channels: int) -> torch.Tensor:
    return torch.randn(2, channels, *(7, 6, 5)[:dims], generator=torch.Generator().manual_seed(dims), dtype=torch.float64)


def per_position(dims: int, in_place: nn.Module, channels: int) -> float:
    """Multiply-adds per position, counted on a map that every stride divides."""
    size = (12,) * dims
    return count_macs(in_place, (1, channels, *size)) / math.prod(size)


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize(("grid", "reach"), GRIDS)
@torch.no_grad()
def test_a_subdivided_projection_is_a_dense_one_under_the_mask(grid, reach, dims):
    """The mask from the definition: along every axis, the way around the ring from the output's place to the input's is short enough."""
    layer = SubdividedProjection(grid, reach, dims=dims).double()
    channels = math.prod(grid)
    places = torch.cartesian_prod(*map(torch.arange, grid)).view(channels, -1)
    way = (places[None] - places[:, None] + torch.tensor(reach) // 2) % torch.tensor(grid)
    mask = (way < torch.tensor(reach)).all(-1)
    assert bool((mask.sum(1) == math.prod(reach)).all()) and bool((mask.sum(0) == math.prod(reach)).all())
    matrix = layer.matrix()
    assert torch.equal(matrix != 0, mask)
    order = way[mask] @ torch.tensor([math.prod(reach[axis + 1 :]) for axis in range(len(reach))])
    torch.testing.assert_close(matrix[mask].view(channels, -1), layer.links.weight.flatten(1).gather(1, order.view(channels, -1)))
    x = image(dims, channels)
    torch.testing.assert_close(layer(x), torch.einsum("oi,bi...->bo...", matrix, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", DIMS)
def test_cost_and_weights_are_the_closed_formulas(dims):
    k, n, grid, reach = 3, 24, (4, 6), (2, 3)
    taps, links = k**dims, math.prod(reach)
    with on_meta():
        dense = ConvNormAct(n, n, k, dims=dims, norm="none", act="none", bias=False)
        layers = {
            "sic": SIC(n, n, k, dims=dims, norm="none"),
            "subdivided": SIC(n, n, k, dims=dims, grid=grid, reach=reach, norm="none"),
            "bottleneck": SpatialBottleneck(n, k, dims=dims, norm="none"),
            "both": SpatialBottleneck(n, k, dims=dims, grid=grid, reach=reach, norm="none"),
        }
        assert (per_position(dims, dense, n), count_params(dense)) == (taps * n**2, taps * n**2)
        costs = {name: (per_position(dims, layer, n), count_params(layer)) for name, layer in layers.items()}
    assert costs == {
        "sic": ((taps + n) * n, (taps + n) * n),
        "subdivided": ((taps + links) * n, (taps + links) * n),
        "bottleneck": (pytest.approx((2 + n / taps) * n), (2 * taps + n) * n),
        "both": (pytest.approx((2 + links / taps) * n), (2 * taps + links) * n),
    }


@pytest.mark.parametrize("dims", DIMS)
@torch.no_grad()
def test_a_sic_layer_is_a_convolution_with_separable_kernels(dims):
    """Dense kernels ``P[o, i] K[i]``; with a shortcut where the shape is kept."""
    for out, stride in ((6, 1), (6, 2), (9, 1)):
        layer = stir(SIC(6, out, 3, dims=dims, stride=stride)).double()
        layer.norm.running_mean.normal_()
        kernel = torch.einsum("oi,i...->oi...", layer.project.weight.flatten(1), layer.filter.weight[:, 0])
        x = image(dims, 6)
        expected = layer.eval().norm(CONV[dims](x, kernel, padding=1, stride=stride)).relu()
        torch.testing.assert_close(layer(x), expected + x if (out, stride) == (6, 1) else expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("k", [2, 3])
@torch.no_grad()
def test_a_bottleneck_acts_cell_by_cell(k, dims):
    """On sides that ``k`` does not divide too: zeros complete the last cells."""
    layer = SpatialBottleneck(4, k, dims=dims, norm="none", act="none").double()
    x = image(dims, 4)
    expected = x.clone()
    shrink, grow = (each.weight[:, 0].flatten(1) for each in (layer.shrink, layer.grow))
    counts = [-(-side // k) for side in x.shape[2:]]
    for cell in torch.cartesian_prod(*map(torch.arange, counts)).view(-1, dims).tolist():
        window = (slice(None), slice(None), *(slice(k * at, k * at + k) for at in cell))
        inside = x[window]
        whole = torch.zeros(2, 4, *[k] * dims, dtype=torch.float64)
        place = (slice(None), slice(None), *(slice(side) for side in inside.shape[2:]))
        whole[place] = inside
        mixed = torch.einsum("oi,bi->bo", layer.project.weight.flatten(1), (whole.flatten(2) * shrink).sum(-1))
        expected[window] += (mixed[..., None] * grow).unflatten(2, (k,) * dims)[place]
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)
    assert layer(x).shape == x.shape


@pytest.mark.parametrize("dims", DIMS)
@torch.no_grad()
def test_a_stack_takes_the_place_of_a_convolution(dims):
    stack = SICStack(4, 6, 3, repeats=3, dims=dims, stride=2, grid=(2, 3), reach=(1, 2)).eval()
    dense = ConvNormAct(4, 6, 3, dims=dims, stride=2).eval()
    x = image(dims, 4).float()
    assert stack(x).shape == dense(x).shape
    assert [type(layer.project) is SubdividedProjection for layer in stack] == [False, True, True]
    assert [layer.has_shortcut for layer in stack] == [False, True, True]


@torch.no_grad()
def test_normalisations_fold():
    model = stir(nn.Sequential(SICStack(6, 6, grid=(2, 3), reach=(2, 2)), SICStack(6, 8))).double()
    x = image(2, 6)
    model.train()(x)
    expected = model.eval()(x)
    torch.testing.assert_close(fuse(model, x)(x), expected, rtol=1e-10, atol=1e-10)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("layer", [SICStack(6, 6, grid=(2, 3), reach=(2, 2)), SpatialBottleneck(6, 2)])
def test_it_exports_and_every_weight_learns(layer):
    x = image(2, 6).float()
    layer.train()(x).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in layer.parameters())
    layer.eval()
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},))
    torch.testing.assert_close(program.module()(x[:1]), layer(x[:1]))


def test_a_network_of_them_keeps_up_with_a_dense_one_at_a_fifth_of_the_cost():
    """On digits, within a hundredth of the accuracy."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1, torch.tensor(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    seen, unseen = order[:1300], order[1300:]

    def network(dense: bool) -> nn.Module:
        torch.manual_seed(0)
        layers: list[nn.Module] = [ConvNormAct(1, 32)]
        for stride, repeats in ((1, 1), (2, 1), (1, 2), (2, 2)):
            layers.append(ConvNormAct(32, 32, 3, stride=stride) if dense else SICStack(32, 32, 3, stride=stride, repeats=repeats))
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))

    costs, scores = [], []
    for dense in (True, False):
        net = network(dense)
        costs.append(count_macs(net, (1, 1, 8, 8)))
        optimizer = torch.optim.AdamW(net.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, total_steps=180)
        for _ in range(180):
            batch = seen[torch.randint(len(seen), (64,))]
            optimizer.zero_grad()
            F.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            scores.append(float((net.eval()(images[unseen]).argmax(1) == labels[unseen]).float().mean()))
    assert costs[1] < 0.2 * costs[0]
    assert scores[0] > 0.97 and scores[1] >= scores[0] - 0.01


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match=r"neighbourhood of \(3, 4\) does not fit"):
        SubdividedProjection((4, 3), (3, 4))
    with pytest.raises(ConfigError, match="give both or none"):
        SIC(6, 6, grid=(2, 3))
    with pytest.raises(ConfigError, match="holds 6 channels, and the layer has 6 and 8"):
        SIC(6, 8, grid=(2, 3), reach=(1, 1))
    with pytest.raises(ConfigError, match="repeats=0"):
        SICStack(6, 6, repeats=0)
