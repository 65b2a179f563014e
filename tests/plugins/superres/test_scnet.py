"""SCNet: nothing wider than 1x1, a view that grows by one pixel per block, and the paper's code with the same weights."""

from __future__ import annotations

import copy

import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.count import count_params, on_meta
from cnnkit.errors import ConfigError
from cnnkit.layers.fuse import fuse
from cnnkit.testing.compare import assert_near, assert_same_keys, image, randomise
from cnnkit.weights import load_weights
from cnnkit_superres.models.scnet import STEPS, SCNet, ShiftBlock
from torch import nn

pytestmark = pytest.mark.paper("scnet-sr")


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@torch.no_grad()
def test_it_is_the_papers_code(plain, scale, shuffle):
    """To 1e-10 in double precision and 1e-5 in single; the bilinear enlargement comes after its convolution here, and before it there."""
    theirs = randomise(plain("scnet").PlainSCNet(scale, channels=16, depth=3, shuffle=shuffle), gain=2)
    ours = SCNet(scale=scale, channels=16, depth=3, pixel_shuffle=shuffle).eval()
    assert load_weights(ours, theirs.state_dict()) == "cnnkit"  # The official names are ours.
    for size in ((9, 12), (1, 5)):
        x = image(*size)
        assert_near(ours.float()(x), theirs.float()(x))
        assert_near(ours.double()(x.double()), theirs.double()(x.double()), 1e-10)


@pytest.mark.parametrize("channels", [16, 19])
@pytest.mark.parametrize("size", [(9, 12), (1, 5), (6, 1), (1, 1)])
def test_the_merged_form_computes_the_same(channels, size):
    """In memory that is written over; with gradients, without writing over it; biases and channels that stay in place count."""
    model = randomise(SCNet(scale=2, channels=channels, depth=3, pixel_shuffle=True)).double().eval()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = model(x).detach()
    merged = fuse(copy.deepcopy(model), x)
    assert count_params(merged) == count_params(model) and len(merged.body.state_dict()) == 6
    with torch.no_grad():
        assert_near(merged(x), expected, 1e-12)
        assert_near(merged(x), expected, 1e-12)  # Nothing is left of the first pass.
    out = merged(x)
    assert_near(out.detach(), expected, 1e-12)
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in merged.parameters())
    exported = torch.export.export(merged, (x,)).module()
    assert_near(exported(x).detach(), expected, 1e-12)


def test_the_merged_form_takes_the_products_of_half_precision():
    model = fuse(SCNet(scale=2, channels=16, depth=2, pixel_shuffle=True).eval(), image(4, 4))
    with torch.no_grad():
        expected = model(image(5, 6))
        with torch.autocast("cpu", torch.bfloat16):
            assert_near(model(image(5, 6)).float(), expected, 2e-2)


@pytest.mark.parametrize(("name", "depth", "shuffle"), [("t", 16, False), ("t_ps", 16, True), ("b", 64, True)])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_names_and_shapes_are_those_of_the_official_code(plain, name, depth, shuffle, scale):
    with on_meta():
        assert_same_keys(create_model(f"superres/scnet_{name}_x{scale}"), plain("scnet").PlainSCNet(scale, depth=depth, shuffle=shuffle))


@pytest.mark.parametrize("name", ["t", "t_ps", "b", "l"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_every_convolution_is_1x1_and_the_shifts_have_no_parameter(name, scale):
    with on_meta():
        model = create_model(f"superres/scnet_{name}_x{scale}")
    holders = [module for module in model.modules() if list(module.parameters(recurse=False)) or list(module.buffers(recurse=False))]
    assert all(isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) for module in holders)


def test_parameters():
    """16 blocks of two 64 x 64 convolutions, three colours at both ends, two convolutions per enlargement."""
    mix = 64 * 64 + 64
    ends = (3 * 64 + 64) + mix + (64 * 3 + 3)
    with on_meta():
        assert count_params(create_model("superres/scnet_t_x4")) == ends + 16 * 2 * mix + 2 * 2 * mix == 154_371
        assert count_params(create_model("superres/scnet_b_x2")) == ends + 64 * 2 * mix + mix + 4 * mix == 557_891


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_view_grows_by_one_pixel_per_block(depth):
    torch.manual_seed(0)
    body = nn.Sequential(*(ShiftBlock(16) for _ in range(depth))).double()
    for block in body:
        block.relu = nn.Identity()  # It may happen to close every channel of a direction.
    x = torch.randn(1, 16, 15, 15, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(body(x)[0, :, 7, 7].sum(), x)
    seen = gradient[0].abs().sum(0) > 0
    expected = torch.zeros_like(seen)
    expected[7 - depth : 8 + depth, 7 - depth : 8 + depth] = True
    assert torch.equal(seen, expected)


def test_the_directions_are_all_eight_neighbours():
    assert sorted(STEPS) == sorted((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right)


def test_it_begins_near_the_bilinear_enlargement():
    torch.manual_seed(0)
    x = torch.rand(1, 3, 9, 7)
    start = nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
    assert_near(create_model("superres/scnet_t_x2")(x).detach(), start, 1e-3)


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="scale=5 is not among those of SCNet: 2, 3, 4, 8"):
        SCNet(scale=5)
    with pytest.raises(ConfigError, match="channels=4 cannot move in 8 directions"):
        SCNet(channels=4)
