"""TResNet against timm, the authors' layout of weights, and what its stem and its filters are for."""

from __future__ import annotations

import re

import pytest
import torch
from cnnkit.backbones import create_model, list_models
from cnnkit.backbones.tresnet import ConvUnit, SpaceToDepth, TResNet
from cnnkit.count import count_params, on_meta
from cnnkit.errors import ConfigError, InputError
from cnnkit.testing.compare import assert_near, assert_same_keys, image, randomise
from torch import nn

pytestmark = pytest.mark.paper("tresnet")
timm = pytest.importorskip("timm")

DEPTHS = (1, 2, 1, 2)
NARROW = {"depths": DEPTHS, "widths": (8, 16, 32, 64)}


def of_timm(v2: bool) -> nn.Module:
    model = randomise(timm.models.tresnet.TResNet(layers=DEPTHS, num_classes=7, width_factor=8 / 64, v2=v2))
    for module in model.modules() if v2 else ():
        if isinstance(module, nn.LeakyReLU):  # timm keeps the first version's slopes; the authors' second one has these.
            module.negative_slope = 1e-6
    return model


@pytest.mark.parametrize("name", ["tresnet_m", "tresnet_v2_l"])
@torch.no_grad()
def test_logits_and_pyramid_equal_timm(name):
    theirs = of_timm(v2="v2" in name)
    ours = create_model(name, num_classes=7, weights=theirs.state_dict(), **NARROW).eval()
    for size in ((64, 64), (76, 20)):
        assert_near(ours(image(*size)), theirs(image(*size)))
        # timm's first entry is the stem, at the same reduction as the first stage.
        assert_near(ours.forward_pyramid(image(*size)), theirs.forward_intermediates(image(*size))[1][1:])


@pytest.mark.parametrize("name", list_models(family="tresnet"))
def test_variants_have_the_keys_and_shapes_of_timm(name):
    with on_meta():
        ours = create_model(name)
    with torch.device("meta"):
        theirs = timm.create_model(name)
    assert_same_keys(ours, theirs)


def test_numbers_of_parameters():
    with on_meta():
        assert [count_params(create_model(f"tresnet_{size}")) for size in ("m", "l", "xl")] == [31_389_032, 55_989_256, 78_436_244]


@torch.no_grad()
def test_reads_the_official_layout():
    """timm brings the authors' keys and scales to its own by its rules; ours must do the same to them."""
    official = {"body.layer2.0.conv1.1.op.filt": torch.zeros(16, 1, 3, 3)}
    for key, value in of_timm(v2=False).state_dict().items():
        inner = ".0" if re.search(r"layer2\.0\.conv1\.|layer[34]\.0\.conv2\.", key) else ""  # Where a blur follows.
        sign = -1 if key.endswith(".bn.weight") else 1
        official[key.replace(".conv.", f".0{inner}.").replace(".bn.", f"{inner}.1.")] = sign * value
    assert {"body.conv1.0.weight", "body.layer2.0.conv1.0.1.weight", "body.layer3.0.conv2.0.0.weight"} <= set(official)
    assert {"body.layer3.0.conv1.0.weight", "body.layer2.0.downsample.1.1.bias", "head.fc.bias"} <= set(official)
    theirs = of_timm(v2=False)
    theirs.load_state_dict(
        timm.models.tresnet.checkpoint_filter_fn({key: value for key, value in official.items() if not key.endswith("filt")}, theirs)
    )
    ours = create_model("tresnet_m", num_classes=7, weights=official, **NARROW).eval()
    assert_near(ours(image(64, 64)), theirs(image(64, 64)))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_stem_loses_nothing(dims):
    """Back again by the inverse of the formula: offset by offset, each channel's positions at that offset."""
    x = image(*(16, 12, 8)[:dims])
    moved = SpaceToDepth(4)(x)
    assert moved.shape == (2, 3 * 4**dims, *(side // 4 for side in x.shape[2:]))
    back = torch.empty_like(x)
    for number in range(4**dims):
        offsets = [number // 4 ** (dims - 1 - axis) % 4 for axis in range(dims)]
        back[(slice(None), slice(None), *(slice(offset, None, 4) for offset in offsets))] = moved[:, 3 * number : 3 * number + 3]
    assert torch.equal(back, x)


@torch.no_grad()
def test_filters_make_a_shift_of_one_position_matter_less():
    """The mean features of noise and of the same noise one position further: with the filter, and by taking every second position."""
    torch.manual_seed(0)
    unit = ConvUnit(3, 8, 3, stride=2, slope=1e-3).eval()
    x = torch.randn(4, 3, 32, 32)

    def drift(features):
        return float((features(x) - features(x.roll((1, 1), (2, 3)))).abs().mean())

    filtered = drift(lambda y: unit(y).mean((2, 3)))
    skipping = drift(lambda y: unit.act(unit.bn(unit.conv(y)))[..., ::2, ::2].mean((2, 3)))
    assert filtered < 0.5 * skipping


def test_what_does_not_fit_is_explained():
    with pytest.raises(ConfigError, match="4, 3 and 4 entries"):
        TResNet(widths=(8, 8, 8))
    with pytest.raises(ConfigError, match="bottleneck"):
        TResNet(blocks=("basic", "basic", "basic", "narrow"))
    with pytest.raises(InputError, match="at least 20"), on_meta():
        create_model("tresnet_m", **NARROW)(torch.empty(1, 3, 16, 16))


@torch.no_grad()
def test_axes_of_a_volume_are_treated_alike():
    sizes = {**NARROW, "depths": (1, 1, 1, 1), "num_classes": 5, "dims": 3}
    model, turned = (randomise(create_model("tresnet_m", **sizes)).double() for _ in range(2))
    state = dict(model.state_dict())
    for key, value in state.items():
        if key.endswith("conv.weight"):
            if key.startswith("body.conv1."):  # The channels of the stem are offsets, which turn too.
                value = value.unflatten(1, (4, 4, 4, 3)).transpose(1, 3).flatten(1, 4)
            state[key] = value.transpose(2, 4)
    turned.load_state_dict(state)
    x = torch.randn(1, 3, 20, 24, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(turned(x.transpose(2, 4)), model(x), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_a_line_that_repeats_along_a_second_axis_is_the_line():
    """With kernels that see one position of that axis; at the stem, the sum over its offsets is the one of the line."""
    sizes = {**NARROW, "depths": (1, 1, 1, 1), "num_classes": 5}
    flat = randomise(create_model("tresnet_m", dims=1, **sizes)).double()
    deep = create_model("tresnet_m", dims=2, **sizes).double().eval()
    state = {}
    for key, value in deep.state_dict().items():
        state[key] = flat.state_dict()[key]
        if value.ndim > state[key].ndim:
            state[key] = torch.zeros_like(value)
            line = flat.state_dict()[key]
            if key.startswith("body.conv1."):  # Channels are (offset of the line, offset of the new axis, colour).
                line = line.unflatten(1, (4, 1, 3)).expand(-1, -1, 4, -1, -1).flatten(1, 3) / 4
            state[key][..., value.shape[-1] // 2] = line
    deep.load_state_dict(state)
    x = image(24).double()
    torch.testing.assert_close(deep(x.unsqueeze(-1).expand(*x.shape, 20)), flat(x), rtol=1e-10, atol=1e-10)
