"""Involution against a loop over places, against depthwise convolution, and its symmetries."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from cnnkit.errors import ConfigError
from cnnkit.layers.involution import Involution

pytestmark = pytest.mark.paper("involution")
SIZES = {1: (9,), 2: (5, 8), 3: (4, 5, 6)}


def layer(channels=8, kernel_size=3, **args):
    torch.manual_seed(0)
    module = Involution(channels, kernel_size, group_channels=4, **args).double()
    torch.nn.init.normal_(module.conv2.bias)
    module.bn1.running_mean.normal_()
    module.bn1.running_var.uniform_(0.5, 2)
    return module.eval()


def by_loops(module, x):
    """The paper's equation, place by place, offset by offset and channel by channel."""
    kernels = module.kernels(x)
    out = x.new_zeros(*x.shape[:2], *kernels.shape[3:])
    for sample in range(x.shape[0]):
        for place in itertools.product(*(range(side) for side in kernels.shape[3:])):
            for number, offset in enumerate(itertools.product(range(module.kernel_size), repeat=module.dims)):
                there = [module.stride * p + module.dilation * (o - module.kernel_size // 2) for p, o in zip(place, offset, strict=True)]
                if all(0 <= t < side for t, side in zip(there, x.shape[2:], strict=True)):
                    for channel in range(x.shape[1]):
                        weight = kernels[(sample, channel // 4, number, *place)]
                        out[(sample, channel, *place)] += weight * x[(sample, channel, *there)]
    return out


@pytest.mark.parametrize(
    ("dims", "kernel_size", "stride", "dilation"), [(1, 5, 1, 1), (1, 3, 2, 1), (2, 3, 1, 1), (2, 3, 2, 1), (2, 3, 1, 2), (3, 3, 2, 1)]
)
@torch.no_grad()
def test_it_is_the_papers_sum(dims, kernel_size, stride, dilation):
    module = layer(kernel_size=kernel_size, dims=dims, stride=stride, dilation=dilation)
    x = torch.randn(2, 8, *SIZES[dims], dtype=torch.float64)
    out = module(x)
    assert out.shape == (2, 8, *(-(-side // stride) for side in SIZES[dims]))
    torch.testing.assert_close(out, by_loops(module, x), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_kernels_follow_the_equation():
    """Means over the stride, a map to fewer channels, normalisation, rectification, a map to one kernel for each group."""
    module = layer(stride=2)
    x = torch.randn(2, 8, 6, 4, dtype=torch.float64)
    means = x.view(2, 8, 3, 2, 2, 2).mean((3, 5))
    hidden = torch.einsum("bcyx,hc->bhyx", means, module.conv1.weight[..., 0, 0])
    norm = module.bn1
    hidden = (hidden - norm.running_mean.view(-1, 1, 1)) / (norm.running_var + norm.eps).sqrt().view(-1, 1, 1)
    hidden = (hidden * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)).clamp(min=0)
    expected = torch.einsum("bhyx,kh->bkyx", hidden, module.conv2.weight[..., 0, 0]) + module.conv2.bias.view(-1, 1, 1)
    torch.testing.assert_close(module.kernels(x), expected.view(2, 2, 9, 3, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_equal_kernels_everywhere_are_a_depthwise_convolution(stride):
    """Whose weights are tied within a group of channels."""
    module = layer(kernel_size=5, stride=stride)
    torch.nn.init.zeros_(module.conv2.weight)
    tied = module.conv2.bias.view(2, 1, 1, 5, 5).repeat_interleave(4, 0)
    x = torch.randn(2, 8, 8, 6, dtype=torch.float64)
    expected = F.conv2d(x, tied.flatten(0, 1), padding=2, stride=stride, groups=8)
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_axes_are_treated_alike():
    module = layer(dims=3)
    turned = layer(dims=3)
    turned.conv2.weight.copy_(module.conv2.weight.unflatten(0, (2, 3, 3, 3)).transpose(1, 3).flatten(0, 3))
    turned.conv2.bias.copy_(module.conv2.bias.view(2, 3, 3, 3).transpose(1, 3).flatten())
    x = torch.randn(1, 8, 4, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(turned(x.transpose(2, 4)), module(x).transpose(2, 4), rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_sum():
    module = layer().train()
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,))


def test_impossible_sizes_are_explained():
    with pytest.raises(ConfigError, match="does not divide 24 channels"):
        Involution(24, 3, group_channels=16)
    with pytest.raises(ConfigError, match="no centre"):
        Involution(16, 4)
