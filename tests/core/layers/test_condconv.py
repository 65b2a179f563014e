"""CondConv against sums of separate convolutions, timm's layer and block, and the paper's counts."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.count import count_macs, count_params, on_meta
from cnnkit.errors import ConfigError, UsageError
from cnnkit.layers.condconv import FORMS, CondConv, CondInvertedResidual, Routing
from cnnkit.layers.mbconv import InvertedResidual
from cnnkit.layers.same import padded_conv
from cnnkit.testing.onnx_program import through_onnx
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.paper("condconv")
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
GEOMETRIES = [
    {"kernel_size": 3, "groups": 1},
    {"kernel_size": 3, "groups": 2, "stride": 2, "bias": True},
    {"kernel_size": 5, "groups": 4, "dilation": 2, "bias": True},
    {"kernel_size": 1, "groups": 1},
]


def image(dims, channels=4, batch=3):
    size = (9, 8, 7)[:dims]
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def separately(layer, x, routing):
    """The definition: every expert convolves by itself, and each example sums the results by its weights."""
    total = 0
    for expert in range(layer.experts):
        bias = None if layer.bias is None else layer.bias[expert]
        words = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "groups": layer.groups}
        total = total + routing[:, expert].view(-1, *[1] * (x.ndim - 1)) * CONV[x.ndim - 2](x, layer.weight[expert], bias, **words)
    return total


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_it_is_the_routed_sum_of_separate_convolutions(dims, form, geometry):
    """In float64, to 1e-12, with gradients of input, experts and routing."""
    torch.manual_seed(0)
    layer = CondConv(4, 8, experts=3, dims=dims, form=form, dtype=torch.float64, **geometry)
    x = image(dims).requires_grad_()
    routing = layer.routing_fn(x)
    means = x.flatten(2).mean(-1)
    torch.testing.assert_close(routing, 1 / (1 + (-(means @ layer.routing_fn.weight.T) - layer.routing_fn.bias).exp()))
    y, expected = layer(x), separately(layer, x, routing)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    wanted = [x, *layer.parameters()]
    probe = torch.randn_like(y)
    for found, grad in zip(torch.autograd.grad(y, wanted, probe), torch.autograd.grad(expected, wanted, probe), strict=True):
        assert grad.any()
        torch.testing.assert_close(found, grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_a_batch_changes_no_example(form):
    torch.manual_seed(0)
    layer = CondConv(4, 6, form=form, groups=2, dtype=torch.float64)
    x = image(2, batch=5)
    torch.testing.assert_close(layer(x), torch.cat([layer(one) for one in x.split(1)]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dims", [1, 2, 3])
@torch.no_grad()
def test_one_expert_of_weight_one_is_a_convolution(dims, form):
    plain = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims](4, 6, 3, stride=2, padding=2, dilation=2, groups=2, dtype=torch.float64)
    layer = CondConv.like(plain, experts=1, route=False, form=form)
    layer.weight[0], layer.bias[0] = plain.weight, plain.bias
    x = image(dims)
    torch.testing.assert_close(layer(x, torch.ones(3, 1, dtype=x.dtype)), plain(x), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_like_takes_tensorflows_padding_over():
    plain = padded_conv(4, 6, 5, stride=2, padding="same").double()
    layer = CondConv.like(plain, experts=2, route=False)
    for expert in (0, 1):
        layer.weight[expert] = plain.weight
    for x in (image(2), image(2)[..., 1:, :]):
        torch.testing.assert_close(layer(x, torch.full((3, 2), 0.5, dtype=x.dtype)), plain(x), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_it_equals_timm():
    layers = pytest.importorskip("timm.layers")
    theirs = layers.CondConv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=True, num_experts=3).double()
    ours = CondConv(4, 6, 3, experts=3, stride=2, groups=2, bias=True, route=False, dtype=torch.float64)
    ours.load_state_dict({"weight": theirs.weight.view_as(ours.weight), "bias": theirs.bias})
    routing = torch.rand(3, 3, dtype=torch.float64)
    for form in FORMS:
        ours.form = form
        torch.testing.assert_close(ours(image(2), routing), theirs(image(2), routing), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("stride", "out"), [(1, 8), (2, 12)])
@torch.no_grad()
def test_an_inverted_bottleneck_equals_timm(form, stride, out):
    """One routing for its three convolutions; with squeeze-and-excitation, with a shortcut and without."""
    blocks = pytest.importorskip("timm.models._efficientnet_blocks")
    torch.manual_seed(0)
    se = functools.partial(blocks.SqueezeExcite, rd_channels=2)
    theirs = blocks.CondConvResidual(8, out, 3, stride=stride, exp_ratio=6, act_layer=nn.SiLU, se_layer=se, num_experts=4).double().eval()
    for tensor in theirs.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5)
    ours = CondInvertedResidual(InvertedResidual(8, out, stride=stride, se_channels=2), experts=4, form=form).double().eval()
    shapes = ours.state_dict()
    state = {key.replace("conv_reduce", "fc1").replace("conv_expand", "fc2"): value for key, value in theirs.state_dict().items()}
    ours.load_state_dict({key: value.view_as(shapes[key]) for key, value in state.items()})
    torch.testing.assert_close(ours(image(2, 8)), theirs(image(2, 8)), rtol=1e-10, atol=1e-10)


def conditional_efficientnet(name, experts):
    """The paper's network: experts in the last three stages of an EfficientNet."""
    model = create_model(name)
    for stage in model.blocks[4:]:
        for index, block in enumerate(stage):
            stage[index] = CondInvertedResidual(block, experts=experts)
    return model


@pytest.mark.parametrize(
    ("name", "experts", "millions", "oracle"),
    [
        ("efficientnet_b0", 4, 13.31, "efficientnet_cc_b0_4e"),
        ("efficientnet_b0", 8, 24.01, "efficientnet_cc_b0_8e"),
        ("efficientnet_b1", 8, 39.72, "efficientnet_cc_b1_8e"),
    ],
)
def test_a_conditional_efficientnet_has_the_known_parameters(name, experts, millions, oracle):
    timm = pytest.importorskip("timm")
    with on_meta():
        assert count_params(conditional_efficientnet(name, experts)) == count_params(timm.create_model(oracle))
        assert round(count_params(conditional_efficientnet(name, experts)) / 1e6, 2) == millions


def test_a_conditional_b0_costs_what_the_paper_says():
    """413 million multiply-adds within 2 % (the paper does not say what it counts); the experts add one for each of their weights."""
    with on_meta():
        model, plain = conditional_efficientnet("efficientnet_b0", 8), create_model("efficientnet_b0")
        macs, before = count_macs(model, (1, 3, 224, 224)), count_macs(plain, (1, 3, 224, 224))
    experts = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, (CondConv, Routing)))
    assert macs - before == experts
    assert abs(macs / 413e6 - 1) < 0.02


def test_examples_can_be_treated_in_opposite_ways():
    """The target is a convolution with the sign of an example's mean: no one kernel is better than none, and two experts learn it."""
    torch.manual_seed(0)
    sign = torch.tensor([-1.0, 1.0]).repeat(32).view(-1, 1, 1, 1)
    x = torch.randn(64, 2, 6, 6) + sign
    y = sign * F.conv2d(x - sign, torch.randn(1, 2, 3, 3) / 3, padding=1)
    losses = []
    for model in (nn.Conv2d(2, 1, 3, padding=1), CondConv(2, 1, experts=2, bias=True, form="outputs")):
        optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(150):
            loss = F.mse_loss(model(x), y) / y.square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 0.8 and losses[1] < 0.2


def test_routing_is_between_0_and_1_and_of_the_means_alone():
    routing = Routing(4, 3).double()
    x = image(2)
    shuffled = x.flatten(2)[..., torch.randperm(72)].view_as(x)
    torch.testing.assert_close(routing(shuffled), routing(x), rtol=1e-12, atol=1e-12)
    assert ((routing(100 * x) >= 0) & (routing(100 * x) <= 1)).all()


def test_it_exports_with_a_free_batch():
    torch.manual_seed(0)
    model = nn.Sequential(CondConv(4, 6, form="outputs"), nn.ReLU(), CondConv(6, 6, groups=6, form="outputs", bias=True)).eval()
    x = image(2).float()
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},))
    torch.testing.assert_close(program.module()(x[:1]), model(x[:1]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(through_onnx(program)(x[:2]), model(x[:2]), rtol=1e-4, atol=1e-5)


def test_channels_last_changes_nothing():
    layer = CondConv(4, 6, dtype=torch.float64)
    x = image(2)
    for form in FORMS:
        changed = copy.deepcopy(layer)
        changed.form = form
        torch.testing.assert_close(changed(x.to(memory_format=torch.channels_last)), layer(x), rtol=1e-12, atol=1e-12)


def test_wrong_use_is_refused():
    with pytest.raises(ConfigError, match="unknown form 'kernel'; did you mean 'kernels'"):
        CondConv(4, 4, form="kernel")
    with pytest.raises(ConfigError, match="groups=3 does not divide"):
        CondConv(4, 4, groups=3)
    with pytest.raises(ConfigError, match="unknown padding 'valid'"):
        CondConv(4, 4, padding="valid")
    with pytest.raises(UsageError, match=r"call it as layer\(x, routing\)"):
        CondConv(4, 4, route=False)(image(2))
