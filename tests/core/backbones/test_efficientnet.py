"""EfficientNet against timm and torchvision; the rule of compound scaling; padding as TensorFlow has it, by hand."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from cnnkit.backbones import create_model, model_entry
from cnnkit.backbones.efficientnet import FAMILY, compound_scaling, scale_arguments, scale_depth, scale_width
from cnnkit.count import count_params, on_meta
from cnnkit.errors import ConfigError
from cnnkit.layers.same import pad_same, padded_conv
from cnnkit.testing.compare import assert_near, assert_same_keys, centred, image, randomise
from torch import nn

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
pytestmark = pytest.mark.paper("efficientnet")

SMALL = {"width": 0.25, "depth": 0.5}
TF = {"padding": "same", "norm_eps": 1e-3}


def of_timm(tf: bool, **kwargs) -> nn.Module:
    """timm's network at the scale of ``SMALL``, from the function that makes its named ones."""
    from timm.models.efficientnet import _gen_efficientnet

    words = {"pad_type": "same", "bn_eps": 1e-3} if tf else {}
    return randomise(_gen_efficientnet("efficientnet_b0", SMALL["width"], SMALL["depth"], **words, **kwargs))


@pytest.mark.parametrize("size", [(64, 64), (75, 97)])
@pytest.mark.parametrize("tf", [False, True])
@torch.no_grad()
def test_logits_and_features_equal_timm(tf, size):
    theirs = of_timm(tf, num_classes=7)
    ours = create_model("efficientnet_b0", num_classes=7, weights=theirs.state_dict(), **SMALL, **(TF if tf else {})).eval()
    assert_near(ours(image(*size)), theirs(image(*size)))
    assert_near(ours.forward_features(image(*size)), theirs.forward_features(image(*size)))


@pytest.mark.parametrize("out_indices", [None, (1, 3), (-1,)])
@torch.no_grad()
def test_pyramid_equals_timm(out_indices):
    whole = of_timm(True)
    theirs = of_timm(True, features_only=True, out_indices=out_indices or (0, 1, 2, 3, 4))
    theirs.load_state_dict(whole.state_dict(), strict=False)
    ours = create_model("efficientnet_b0", features_only=True, out_indices=out_indices, weights=whole.state_dict(), **SMALL, **TF).eval()
    assert ours.channels == theirs.feature_info.channels() and ours.reductions == theirs.feature_info.reduction()
    assert count_params(ours) <= count_params(theirs)  # timm keeps the stages after the last level that was asked for.
    assert_near(ours(image(75, 97)), theirs(image(75, 97)))


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_b1", "tf_efficientnet_b3", "efficientnet_b7"])
def test_named_variants_read_timms_files(name):
    """The same shapes under the converted names, and the same padding and epsilon."""
    with torch.device("meta"):
        theirs = timm.create_model(name)
    with on_meta():
        ours = create_model(name)
    converted = ours.layouts[0].convert(theirs.state_dict())
    assert_same_keys(converted, ours)
    assert ours.bn1.eps == theirs.bn1.eps and [c.stride for c in convolutions(ours)] == [c.stride for c in convolutions(theirs)]
    assert [c.padding for c in convolutions(ours)] == [c.padding for c in convolutions(theirs)]


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


@torch.no_grad()
def test_logits_equal_torchvision():
    from torchvision.models.efficientnet import EfficientNet, _efficientnet_conf

    settings, _ = _efficientnet_conf("efficientnet_b0", width_mult=SMALL["width"], depth_mult=SMALL["depth"])
    theirs = randomise(EfficientNet(settings, 0.0, num_classes=7, last_channel=320))
    ours = create_model("efficientnet_b0", num_classes=7, weights=theirs.state_dict(), **SMALL).eval()
    for size in ((64, 64), (75, 97)):
        assert_near(ours(image(*size)), theirs(image(*size)))


@pytest.mark.parametrize("phi", [0, 2])
def test_parameters_equal_torchvision(phi):
    with on_meta():
        theirs = getattr(torchvision.models, f"efficientnet_b{phi}")(weights=None)
    assert count_params(theirs) == model_entry(f"efficientnet_b{phi}").params
    assert phi or count_params(theirs) == 5_288_548


def test_each_step_about_doubles_the_cost():
    """The paper's rule gives 1.92; rounding to whole blocks and eights spreads it."""
    figures = [FAMILY.variants[f"efficientnet_b{phi}"].figures for phi in range(8)]  # The contract holds them against the models.
    macs = [figure.counted_gmacs or figure.gmacs for figure in figures]
    ratios = [after / before for before, after in itertools.pairwise(macs)]
    assert all(1.4 < ratio < 2.5 for ratio in ratios), ratios
    assert (macs[-1] / macs[0]) ** (1 / 7) == pytest.approx(1.92, rel=0.02)
    depth, width, resolution = compound_scaling(1)
    assert depth * width**2 * resolution**2 == pytest.approx(1.92, abs=0.005)


def test_rounding_of_widths_and_depths():
    """To eights, up to the next where more than a tenth would be lost; depths up."""
    assert [scale_width(32, factor) for factor in (1.0, 1.1, 1.2, 1.4, 2.0, 0.1)] == [32, 32, 40, 48, 64, 8]
    assert scale_width(16, 1.2) == 24  # 19.2 rounds to 16, which is below 90 %.
    assert [scale_depth(4, factor) for factor in (1.0, 1.1, 3.1, 0.2)] == [4, 5, 13, 1]


def test_other_families_can_be_scaled():
    args = {"block": "basic", "depths": (3, 4, 6, 3), "widths": (64, 128, 256, 512)}
    scaled = scale_arguments(args, depth=1.2, width=1.1)
    assert scaled == {"block": "basic", "depths": (4, 5, 8, 4), "widths": (72, 144, 280, 560)}
    with on_meta():
        assert count_params(create_model("resnet34", **scaled)) > 1.2 * count_params(create_model("resnet34"))
    assert scale_arguments(args) == args
    with pytest.raises(ConfigError, match="no widths to scale; they have depths"):
        scale_arguments({"depths": (1, 2)}, width=2.0)


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2), (3, 3), (1, 2)])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_same_padding_by_its_definition(dims, kernel, stride, size):
    """As many outputs as strides begin inside the input, centred, with the odd position at the end; only then the sum is this one."""
    layer = padded_conv(1, 1, kernel, dims=dims, stride=stride, padding="same")
    nn.init.ones_(layer.weight)
    row = torch.arange(1.0, size + 1)
    outputs = -(-size // stride)
    before = max((outputs - 1) * stride + kernel - size, 0) // 2
    starts = [i * stride - before for i in range(outputs)]
    sums = torch.tensor([sum(float(row[j]) for j in range(start, start + kernel) if 0 <= j < size) for start in starts])
    expected = functools.reduce(lambda left, right: left[..., None] * right, [sums] * dims)
    x = functools.reduce(lambda left, right: left[..., None] * right, [row] * dims)
    torch.testing.assert_close(layer(x[None, None])[0, 0], expected)


def test_padding_is_refused_by_name_and_left_out_where_none_is_due():
    with pytest.raises(ConfigError, match="did you mean 'same'"):
        padded_conv(1, 1, 3, padding="sam")
    x = torch.ones(1, 1, 4, 4)
    assert pad_same(x, (2, 2), (2, 2), (1, 1)) is x


@pytest.mark.parametrize("dims", [1, 2])
@torch.no_grad()
def test_a_stacked_input_equals_a_slice(dims):
    """With kernels centred in the new axis, slices never mix; the stride takes some of them."""
    flat = randomise(create_model("efficientnet_b0", dims=dims, num_classes=5, **SMALL).double())
    deep = centred(flat, create_model("efficientnet_b0", dims=dims + 1, num_classes=5, **SMALL).double())
    x = image(*(40, 36)[:dims]).double()
    torch.testing.assert_close(deep(x.unsqueeze(-1).expand(*x.shape, 33)), flat(x), rtol=1e-10, atol=1e-10)


def test_levels_that_are_not_asked_for_cost_nothing():
    model = create_model("efficientnet_b0", features_only=True, out_indices=(1,), **SMALL)
    levels = model(image(32, 32))
    levels[0].square().mean().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []
    assert not any(key.startswith(("backbone.blocks.2", "backbone.conv_head")) for key in model.state_dict())
