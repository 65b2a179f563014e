"""DCLS against dilated convolutions, the closed form of its kernel, finite differences and planted positions."""

from __future__ import annotations

import itertools

import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.count import count_params, on_meta
from cnnkit.errors import ConfigError
from cnnkit.layers.dcls import LearnableSpacingConv, position_groups, spread
from cnnkit.layers.fuse import fuse
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.paper("dcls")
DIMS = (1, 2, 3)
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def layer(dims: int, **arguments) -> LearnableSpacingConv:
    torch.manual_seed(dims)
    arguments = {"kernel_size": (5, 7, 4)[:dims], "elements": 4, "dims": dims, "groups": 2, "padding": (2, 3, 1)[:dims], **arguments}
    made = LearnableSpacingConv(4, 6, dtype=torch.float64, **arguments)
    nn.init.uniform_(made.positions, -1.4, 1.4)
    return made


def image(dims: int, channels: int = 4) -> torch.Tensor:
    return torch.randn(2, channels, *(9, 11, 8)[:dims], generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@pytest.mark.parametrize("dims", DIMS)
def test_positions_on_a_regular_grid_are_a_dilated_convolution(dims):
    """To the bit of the kernel; the output to 1e-12."""
    made = LearnableSpacingConv(4, 6, 5, elements=3**dims, dims=dims, groups=2, dtype=torch.float64)
    grid = torch.tensor(list(itertools.product((-2.0, 0.0, 2.0), repeat=dims)), dtype=torch.float64).T
    made.positions.data.copy_(grid[:, None, None].expand_as(made.positions))
    expected = CONV[dims](image(dims), made.weight.unflatten(-1, (3,) * dims), made.bias, padding=2, dilation=2, groups=2)
    assert torch.equal(made.kernel()[(..., *(slice(None, None, 2),) * dims)].flatten(2), made.weight)
    torch.testing.assert_close(made(image(dims)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", DIMS)
def test_the_kernel_is_the_closed_form(dims):
    made = layer(dims)
    size = made.kernel_size
    cells = torch.stack(torch.meshgrid(*(torch.arange(side, dtype=torch.float64) - (side - 1) / 2 for side in size), indexing="ij"))
    distance = (cells[:, None, None, None] - made.positions[(..., *(None,) * dims)]).abs()
    expected = (made.weight[(..., *(None,) * dims)] * (1 - distance).relu().prod(0)).sum(2)
    torch.testing.assert_close(made.kernel(), expected, rtol=1e-12, atol=1e-14)
    # No weight is lost: the shares of an element add up to one.
    torch.testing.assert_close(made.kernel().flatten(2).sum(-1), made.weight.sum(-1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", DIMS)
def test_gradients_are_those_of_finite_differences(dims):
    """Of weights and positions, for the kernel, and through a convolution also of the input."""
    made = LearnableSpacingConv(2, 1, (3, 4, 2)[:dims], elements=2, dims=dims, padding=1, dtype=torch.float64)
    nn.init.uniform_(made.positions, -0.4, 0.4, generator=torch.Generator().manual_seed(dims))
    assert torch.autograd.gradcheck(lambda *given: spread(*given, made.kernel_size), (made.weight, made.positions))
    x = image(dims, 2)[(slice(1), slice(None), *(slice(3),) * dims)].clone().requires_grad_()

    def output(x, weight, positions, bias):
        return CONV[dims](x, spread(weight, positions, made.kernel_size), bias, padding=1)

    assert torch.autograd.gradcheck(output, (x, made.weight, made.positions, made.bias))


def test_an_element_at_the_border_can_return():
    """Outside of the grid it is moved to the border, and there its gradient is that of the step inwards."""
    made = LearnableSpacingConv(1, 1, 5, elements=2, dims=1, bias=False, dtype=torch.float64)
    made.positions.data.copy_(torch.tensor([-9.0, 9.0]).view(1, 1, 1, 2))
    wanted = torch.randn(5, dtype=torch.float64)
    made(torch.zeros(1, 1, 8, dtype=torch.float64))
    assert made.positions.flatten().tolist() == [-2.0, 2.0]
    (made.kernel().flatten() * wanted).sum().backward()
    slopes = torch.stack([wanted[1] - wanted[0], wanted[4] - wanted[3]]) * made.weight.detach().flatten()
    torch.testing.assert_close(made.positions.grad.flatten(), slopes)


def test_planted_positions_are_recovered():
    """From pairs of input and output and the layer's own start, first blurred, so that a place is felt from afar; to 0.01 of a pixel."""
    torch.manual_seed(0)
    target = torch.tensor([[-3.3, 2.6, 0.3], [1.7, -2.2, -0.4]])
    weight = torch.tensor([1.0, -0.8, 1.3])
    x = torch.randn(4, 1, 24, 24)
    y = F.conv2d(x, spread(weight.view(1, 1, 3), target.view(2, 1, 1, 3), (9, 9)), padding=4)
    made = LearnableSpacingConv(1, 1, 9, elements=3, bias=False)
    made.weight.data.copy_(0.5 * weight.sign().view(1, 1, 3))
    for blurs in (2, 1, 0):
        seen, wanted = x, y
        for _ in range(blurs):
            seen, wanted = (F.avg_pool2d(part, 5, stride=1, padding=2) for part in (seen, wanted))
        wanted, seen = wanted / seen.std(), seen / seen.std()
        optimizer = torch.optim.Adam(position_groups(made, lr=0.02))
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=60)
        for _ in range(60):
            optimizer.zero_grad()
            F.mse_loss(made(seen)[..., 8:-8, 8:-8], wanted[..., 8:-8, 8:-8]).backward()
            optimizer.step()
            schedule.step()
    order = made.positions.detach()[0].flatten().argsort()
    wanted_order = target[0].argsort()
    torch.testing.assert_close(made.positions.detach().view(2, 3)[:, order], target[:, wanted_order], rtol=0, atol=0.01)
    torch.testing.assert_close(made.weight.detach().flatten()[order], weight[wanted_order], rtol=0, atol=0.01)


def test_a_convnext_with_shared_positions_keeps_its_parameters():
    """The paper's ConvNeXt-T: 34 elements in 17 x 17 cells, positions shared within a stage; "iso-parameters", about 29 M."""
    with on_meta():
        model = create_model("convnext_tiny")
        before = count_params(model)
        for stage in model.stages:
            first = None
            for block in stage.blocks:
                channels = block.conv_dw.in_channels
                block.conv_dw = LearnableSpacingConv(channels, channels, 17, elements=34, groups=channels)
                first = first or block.conv_dw
                block.conv_dw.positions = first.positions
        assert model(torch.empty(1, 3, 64, 64)).shape == (1, 1000)
    assert round(count_params(model) / 1e6) == 29 and abs(count_params(model) / before - 1) < 1e-3


def test_groups_for_an_optimizer():
    model = nn.Sequential(layer(2), nn.ReLU(), layer(2, bias=False), nn.Linear(3, 3))
    model[2].positions = model[0].positions
    fast, slow = position_groups(model, lr=0.1, weight_decay=0.05)
    assert [id(parameter) for parameter in fast["params"]] == [id(model[0].positions)]
    assert (fast["lr"], fast["weight_decay"], slow["lr"], slow["weight_decay"]) == (0.5, 0.0, 0.1, 0.05)
    assert len(slow["params"]) == 5
    assert len(position_groups(nn.Linear(2, 2), lr=0.1)) == 1


@pytest.mark.parametrize("dims", DIMS)
def test_merged_it_is_an_ordinary_convolution(dims):
    model = nn.Sequential(layer(dims, stride=2), nn.ReLU()).eval()
    with torch.no_grad():
        expected = model(image(dims))
        fuse(model, image(dims))
        assert type(model[0]).__name__ == f"Conv{dims}d"
        torch.testing.assert_close(model(image(dims)), expected, rtol=1e-12, atol=1e-12)


def test_it_exports_and_two_passes_have_one_backward():
    made = layer(2).float()
    program = torch.export.export(made.eval(), (image(2).float(),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},))
    torch.testing.assert_close(program.module()(image(2)[:1].float()), made(image(2)[:1].float()))
    made.train()
    (made(image(2).float()) + made(image(2).float() + 1)).sum().backward()
    assert made.positions.grad.abs().min() > 0


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="at least 2"):
        LearnableSpacingConv(4, 4, (1, 5))
    with pytest.raises(ConfigError, match="groups=3 does not divide"):
        LearnableSpacingConv(4, 4, groups=3)
