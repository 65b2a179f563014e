"""VOLO against timm, outlook attention against explicit loops and a mean filter, token labelling, and symmetries."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model, list_models
from cnnkit.backbones.volo import OutlookAttention
from cnnkit.count import on_meta
from cnnkit.errors import ConfigError, InputError, UsageError
from cnnkit.testing.compare import assert_same_keys, image, randomise, without_gradient
from cnnkit.weights import load_weights
from torch import nn

pytestmark = pytest.mark.paper("volo")

SMALL = {"depths": (2, 1, 2, 1), "width": 8, "heads": (2, 4), "stem_width": 6, "img_size": 64}


def drawn(model: nn.Module) -> nn.Module:
    randomise(model, spread={"pos_embed": 1.0, "cls_token": 1.0})
    for name, tensor in model.named_parameters():
        if name.endswith("attn.attn.weight"):
            tensor.data *= 3  # Attention that is far from even.
    return model


def of_timm(**sizes) -> nn.Module:
    arguments = {"img_size": 64, "embed_dims": (8, 16, 16, 16), "num_heads": (2, 4, 4, 4), "stem_hidden_dim": 6, "num_classes": 5}
    return pytest.importorskip("timm").models.volo.VOLO((2, 1, 2, 1), **{**arguments, **sizes})


@pytest.mark.parametrize(("size", "pool"), [((64, 64), "token"), ((64, 96), "token"), ((64, 64), "avg")])
@torch.no_grad()
def test_logits_and_levels_equal_timm(size, pool):
    theirs = drawn(of_timm(img_size=size).double())
    ours = create_model("volo_d1_224", num_classes=5, **{**SMALL, "img_size": size}).double().eval()
    assert load_weights(ours, theirs.state_dict()) == "cnnkit", "timm's keys and shapes are its own"
    x = image(*size).double()
    torch.testing.assert_close(ours.forward_features(x), theirs.forward_features(x), rtol=1e-10, atol=1e-10)
    for level, other in zip(ours.forward_pyramid(x), theirs.forward_intermediates(x, intermediates_only=True), strict=True):
        torch.testing.assert_close(level, other, rtol=1e-10, atol=1e-10)
    if pool == "token":  # timm's mean has the class token in it.
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)
    assert [dict(level) for level in ours.feature_info] == theirs.feature_info


@torch.no_grad()
def test_a_grid_of_odd_sides_equals_timm():
    """The last neighbourhood then reaches over the border, and the mean in its middle is of fewer tokens."""
    theirs = drawn(of_timm(img_size=(72, 88)).double())
    ours = create_model("volo_d1_224", num_classes=5, **{**SMALL, "img_size": (72, 88)}).double().eval()
    load_weights(ours, theirs.state_dict())
    torch.testing.assert_close(ours(image(72, 88).double()), theirs(image(72, 88).double()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", list_models(family="volo"))
def test_variants_have_the_keys_and_shapes_of_timm(name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        theirs = timm.create_model(name)
    with on_meta():
        ours = create_model(name)
    assert_same_keys(ours, theirs)
    for stage, other in zip(ours.network, theirs.network, strict=True):
        for block, another in zip(*(part if isinstance(part, nn.Sequential) else () for part in (stage, other)), strict=True):
            assert block.attn.heads == another.attn.num_heads


def test_all_of_timm_are_there():
    assert pytest.importorskip("timm").list_models("volo*") == list_models(family="volo")


@pytest.mark.parametrize(("grid", "stride"), [((5,), 1), ((5,), 2), ((4, 3), 1), ((3, 4), 2), ((2, 3, 2), 1), ((3, 2, 3), 2)])
@torch.no_grad()
def test_outlook_attention_is_its_equation(grid, stride):
    """An explicit loop over neighbourhoods and their places."""
    dims, heads, width = len(grid), 2, 4
    layer = drawn(OutlookAttention(width, heads=heads, stride=stride, dims=dims).double())
    x = torch.randn(2, *grid, width, dtype=torch.float64)
    values, offsets = layer.v(x), list(itertools.product((-1, 0, 1), repeat=dims))
    summed = torch.zeros_like(x)
    inside = lambda point: all(0 <= p < side for p, side in zip(point, grid, strict=True))  # noqa: E731
    for middle in itertools.product(*(range(0, side, stride) for side in grid)):
        cell = (slice(None), *(slice(p, p + stride) for p in middle))
        logits = layer.attn(x[cell].flatten(1, -2).mean(1)).view(2, heads, 3**dims, 3**dims)
        weights = (logits / (width / heads) ** 0.5).softmax(-1)
        for i, to in enumerate(offsets):
            target = tuple(p + o for p, o in zip(middle, to, strict=True))
            for j, source in enumerate(offsets):
                seen = tuple(p + o for p, o in zip(middle, source, strict=True))
                if inside(target) and inside(seen):
                    share = weights[:, :, i, j].repeat_interleave(width // heads, dim=1)
                    summed[(slice(None), *target)] += share * values[(slice(None), *seen)]
    torch.testing.assert_close(layer(x), layer.proj(summed), rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_uniform_weights_are_a_mean_filter():
    """Unfold, mean, fold: the mean of every neighbourhood, summed over the neighbourhoods that a token is in."""
    layer = OutlookAttention(6, heads=3).double()
    nn.init.zeros_(layer.attn.weight)
    nn.init.constant_(layer.attn.bias, 0.7)
    nn.init.eye_(layer.v.weight)
    nn.init.eye_(layer.proj.weight)
    x = torch.randn(2, 5, 7, 6, dtype=torch.float64)
    mean = F.avg_pool2d(x.movedim(-1, 1), 3, stride=1, padding=1)
    expected = 9 * F.avg_pool2d(mean, 3, stride=1, padding=1)
    torch.testing.assert_close(layer(x), expected.movedim(1, -1) + layer.proj.bias, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_logits_are_those_of_token_labelling():
    model = drawn(create_model("volo_d1_224", num_classes=5, **SMALL).double())
    token, dense = model.forward_dense(image(64, 64).double())
    assert token.shape == (2, 5) and dense.shape == (2, 5, 4, 4)
    torch.testing.assert_close(model(image(64, 64).double()), token + 0.5 * dense.amax((2, 3)), rtol=1e-12, atol=1e-12)


def test_mixed_tokens_equal_timm(monkeypatch):
    """timm draws the box and returns it; its forward for training leaves the class token without its classifier."""
    theirs = drawn(of_timm(use_mix_token=True).double()).train()
    ours = create_model("volo_d1_224", num_classes=5, **SMALL).double().train()
    load_weights(ours, theirs.state_dict())
    x = image(64, 64, batch=4).double()
    monkeypatch.setattr("timm.models.volo.rand_bbox", lambda *_, **__: (1, 0, 3, 2))
    token, dense, (top, left, bottom, right) = theirs.forward_train(x)
    found_token, found_dense = ours.forward_dense(x, (slice(top, bottom), slice(left, right)))
    torch.testing.assert_close(found_token, theirs.head(token), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found_dense.flatten(2).mT, dense, rtol=1e-9, atol=1e-9)
    (found_token.square().sum() + found_dense.square().sum()).backward()
    assert without_gradient(ours) == []


@torch.no_grad()
def test_positions_are_interpolated_for_other_sizes():
    native = drawn(create_model("volo_d1_224", num_classes=5, **SMALL).double())
    other = create_model("volo_d1_224", num_classes=5, **{**SMALL, "img_size": (96, 128)}).double().eval()
    state = native.state_dict()
    table = F.interpolate(state["pos_embed"].movedim(-1, 1), size=(6, 8), mode="bilinear", align_corners=False)
    state["pos_embed"] = table.movedim(1, -1)
    other.load_state_dict(state)
    torch.testing.assert_close(native(image(96, 128).double()), other(image(96, 128).double()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("last", [0, 1, 3])
def test_a_cut_pyramid_equals_the_whole_and_uses_what_it_keeps(last):
    whole = drawn(create_model("volo_d1_224", num_classes=0, **SMALL))
    part = create_model("volo_d1_224", features_only=True, out_indices=(last,), weights=whole.state_dict(), **SMALL).eval()
    (level,) = part(image(64, 64))
    torch.testing.assert_close(level, whole.forward_pyramid(image(64, 64))[last], rtol=1e-5, atol=1e-5)
    level.square().mean().backward()
    assert without_gradient(part) == []


@torch.no_grad()
def test_axes_are_treated_alike():
    """Kernels and tables turned; the places of a neighbourhood in the new order."""
    model = drawn(create_model("volo_d1_224", num_classes=4, dims=3, **{**SMALL, "img_size": (48, 16, 32)}).double())
    turned = create_model("volo_d1_224", num_classes=4, dims=3, **{**SMALL, "img_size": (32, 16, 48)}).double().eval()
    places = torch.arange(27).view(3, 3, 3).transpose(0, 2).flatten()
    state = {}
    for key, value in model.state_dict().items():
        if key == "pos_embed":
            value = value.transpose(1, 3)
        if ".attn.attn." in key:
            value = value.unflatten(0, (-1, 27, 27))[:, places][:, :, places].flatten(0, 2)
        state[key] = value.transpose(2, 4) if value.ndim == 5 and key != "pos_embed" else value
    turned.load_state_dict(state)
    x = image(48, 16, 32).double()
    torch.testing.assert_close(model(x), turned(x.transpose(2, 4)), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_layer_of_two_dimensions_on_a_line_is_one_of_one():
    """In an image of one row, only the middle row of a neighbourhood holds tokens, and only what stays in it is kept."""
    flat = drawn(OutlookAttention(4, heads=2, dims=1).double())
    deep = OutlookAttention(4, heads=2, dims=2).double()
    for name in ("v.weight", "proj.weight", "proj.bias"):
        deep.get_parameter(name).copy_(flat.get_parameter(name))
    for kind in ("weight", "bias"):
        value = flat.attn.get_parameter(kind).unflatten(0, (2, 3, 3))
        # Places outside of the row get no weight.
        wide = torch.full((2, 9, 9, *value.shape[3:]), -1e4 if kind == "bias" else 0.0, dtype=torch.float64)
        wide[:, 3:6, 3:6] = value
        deep.attn.get_parameter(kind).copy_(wide.flatten(0, 2))
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    torch.testing.assert_close(deep(x.unsqueeze(1)).squeeze(1), flat(x), rtol=1e-11, atol=1e-11)


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="give four depths"):
        create_model("volo_d1_224", depths=(4, 4))
    with pytest.raises(ConfigError, match="use 8"):
        create_model("volo_d1_224", patch_size=7)
    with pytest.raises(ConfigError, match="at least 16"):
        create_model("volo_d1_224", **{**SMALL, "img_size": (64, 15)})
    model = create_model("volo_d1_224", num_classes=0, **SMALL)
    with pytest.raises(InputError, match="at least 16"):
        model(torch.zeros(1, 3, 64, 15))
    with pytest.raises(UsageError, match="reset_classifier"):
        model.forward_dense(torch.zeros(1, 3, 64, 64))
    model.reset_classifier(3, global_pool="avg")
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3) and model.aux_head.out_features == 3
