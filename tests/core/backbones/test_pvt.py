"""PVT against transformers with the paper's epsilons, the equations of attention and of interpolated positions, and symmetries."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model, list_models
from cnnkit.backbones.pvt import SpatialReductionAttention
from cnnkit.count import on_meta
from cnnkit.errors import ConfigError, InputError
from cnnkit.layers.attention import Attention
from cnnkit.testing.compare import assert_same_keys, image, randomise, without_gradient
from cnnkit.weights import load_weights
from torch import nn

pytestmark = pytest.mark.paper("pvt")

DEPTHS = {"pvt_tiny": (2, 2, 2, 2), "pvt_small": (3, 4, 6, 3), "pvt_medium": (3, 4, 18, 3), "pvt_large": (3, 8, 27, 3)}
SMALL = {"depths": (1, 2, 1, 2), "widths": (8, 16, 24, 32), "heads": (1, 2, 3, 4), "mlp_ratios": (4, 4, 2, 2)}


def drawn(model: nn.Module) -> nn.Module:
    return randomise(model, spread={"pos_embed": 1.0, "position_embeddings": 1.0, "cls_token": 1.0})


def of_transformers(**sizes) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    model = transformers.PvtForImageClassification(transformers.PvtConfig(**sizes))
    for name, module in model.named_modules():
        # The paper's code has PyTorch's own epsilon in these two places.
        if isinstance(module, nn.LayerNorm) and ("patch_embeddings" in name or "self.layer_norm" in name):
            module.eps = 1e-5
    return model


@torch.no_grad()
def test_logits_equal_transformers():
    theirs = of_transformers(
        depths=SMALL["depths"],
        hidden_sizes=SMALL["widths"],
        num_attention_heads=SMALL["heads"],
        mlp_ratios=SMALL["mlp_ratios"],
        image_size=64,
        num_labels=5,
    )
    drawn(theirs.double())
    ours = create_model("pvt_small", num_classes=5, img_size=64, **SMALL).double()
    assert load_weights(ours, theirs.state_dict()) == "transformers"
    x = image(64, 64).double()
    torch.testing.assert_close(ours.eval()(x), theirs(x).logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", DEPTHS)
def test_variants_have_the_keys_and_shapes_of_transformers(name):
    with torch.device("meta"):
        theirs = of_transformers(depths=DEPTHS[name])
    with on_meta():
        ours = create_model(name)
    converted = ours.layouts[1].convert(theirs.state_dict())
    assert_same_keys(converted, ours)


def test_all_variants_are_covered():
    assert sorted(DEPTHS) == list_models(family="pvt")


@torch.no_grad()
def test_without_reduction_it_is_ordinary_attention():
    reduced = drawn(SpatialReductionAttention(12, heads=3).double())
    plain = Attention(12, heads=3).double()
    state = reduced.state_dict()
    for kind in ("weight", "bias"):
        state[f"qkv.{kind}"] = torch.cat([state.pop(f"q.{kind}"), state.pop(f"kv.{kind}")])
    plain.load_state_dict(state)
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(reduced(x), plain(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(8,), (4, 6), (4, 2, 6)])
@torch.no_grad()
def test_reduced_attention_is_its_equation(size):
    dims, width, heads, reduction = len(size), 6, 2, 2
    layer = drawn(SpatialReductionAttention(width, heads=heads, reduction=reduction, dims=dims).double())
    x = torch.randn(2, *size, width, dtype=torch.float64)
    # A patch as one vector, by unfolding every axis: then the convolution is a matrix.
    patches = x
    for axis in range(1, dims + 1):
        patches = patches.unfold(axis, reduction, reduction)
    coarse = patches.flatten(dims + 1).flatten(1, dims) @ layer.sr.weight.flatten(1).T + layer.sr.bias
    coarse = F.layer_norm(coarse, (width,), layer.norm.weight, layer.norm.bias)
    query, both = layer.q(x.flatten(1, -2)), layer.kv(coarse)
    out = []
    for head in range(heads):
        part = slice(3 * head, 3 * head + 3)
        key, value = both[..., :width][..., part], both[..., width:][..., part]
        out.append((query[..., part] @ key.mT / 3**0.5).softmax(-1) @ value)
    torch.testing.assert_close(layer(x), layer.proj(torch.cat(out, -1)).view(x.shape), rtol=1e-12, atol=1e-12)
    assert coarse.shape[1] * reduction**dims == query.shape[1]


@torch.no_grad()
def test_positions_are_interpolated_for_other_sizes():
    """A model whose table was interpolated by hand, and one that does it by itself, agree at the other size."""
    native = drawn(create_model("pvt_small", num_classes=5, img_size=64, **SMALL).double())
    other = create_model("pvt_small", num_classes=5, img_size=(96, 128), **SMALL).double().eval()
    state = native.state_dict()
    for stage, side in enumerate((16, 8, 4, 2), 1):
        table = state[f"pos_embed{stage}"]
        token, table = table[:, : stage == 4], table[:, int(stage == 4) :]
        grid = table.mT.unflatten(-1, (side, side))
        grid = F.interpolate(grid, size=(3 * side // 2, 2 * side), mode="bilinear", align_corners=False)
        state[f"pos_embed{stage}"] = torch.cat([token, grid.flatten(2).mT], dim=1)
    other.load_state_dict(state)
    x = image(96, 128).double()
    torch.testing.assert_close(native(x), other(x), rtol=1e-10, atol=1e-10)
    assert (native(x) - native(x.flip(-1))).abs().max() > 1e-3, "positions must count"


@torch.no_grad()
def test_the_pyramid_is_computed_without_the_class_token():
    model = drawn(create_model("pvt_small", num_classes=5, img_size=64, **SMALL).double())
    levels = model.forward_pyramid(image(75, 97).double())
    assert [level.shape[1:] for level in levels] == [(8, 18, 24), (16, 9, 12), (24, 4, 6), (32, 2, 3)]
    for name in ("cls_token", "norm.weight", "head.weight"):
        model.get_parameter(name).add_(1.0)
    for level, again in zip(levels, model.forward_pyramid(image(75, 97).double()), strict=True):
        torch.testing.assert_close(level, again, rtol=0, atol=0)
    pyramid = create_model("pvt_small", features_only=True, img_size=64, weights=model.float().state_dict(), **SMALL).double()
    for level, again in zip(levels, pyramid(image(75, 97).double()), strict=True):
        torch.testing.assert_close(level, again, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("last", [0, 2, 3])
def test_a_cut_pyramid_equals_the_whole_and_uses_what_it_keeps(last):
    whole = drawn(create_model("pvt_small", num_classes=0, img_size=64, **SMALL))
    part = create_model("pvt_small", features_only=True, out_indices=(last,), img_size=64, weights=whole.state_dict(), **SMALL)
    x = image(64, 64)
    (level,) = part(x)
    torch.testing.assert_close(level, whole.forward_pyramid(x)[last], rtol=1e-5, atol=1e-5)
    level.square().mean().backward()
    assert without_gradient(part) == []
    kept = {key.removeprefix("backbone.").split(".")[0] for key in part.state_dict()}
    assert kept == {f"{kind}{stage}" for stage in range(1, last + 2) for kind in ("patch_embed", "pos_embed", "block")}


@pytest.mark.parametrize("pool", ["token", "avg", "max", "none"])
@torch.no_grad()
def test_pooling(pool):
    model = drawn(create_model("pvt_small", num_classes=0, global_pool=pool, img_size=64, **SMALL))
    tokens = model.forward_features(image(64, 64))
    expected = {"token": tokens[:, 0], "avg": tokens[:, 1:].mean(1), "max": tokens[:, 1:].amax(1), "none": tokens}[pool]
    torch.testing.assert_close(model.forward_head(tokens), expected)
    model.reset_classifier(7, global_pool="avg")
    assert model(image(64, 64)).shape == (2, 7) and model.global_pool.kind == "avg"


@torch.no_grad()
def test_axes_are_treated_alike():
    """Turning kernels and tables turns the features."""
    model = drawn(create_model("pvt_small", num_classes=0, dims=3, img_size=(64, 32, 96), **SMALL).double())
    turned = create_model("pvt_small", num_classes=0, dims=3, img_size=(96, 32, 64), **SMALL).double().eval()
    state = {}
    for key, value in model.state_dict().items():
        if key.startswith("pos_embed"):
            first = int(key.endswith("4"))
            grid = value[:, first:].unflatten(1, model.grids[int(key[-1]) - 1]).transpose(1, 3)
            value = torch.cat([value[:, :first], grid.flatten(1, 3)], dim=1)
        state[key] = value.transpose(2, 4) if value.ndim == 5 else value
    turned.load_state_dict(state)
    x = image(64, 32, 96).double()
    for level, other in zip(model.forward_pyramid(x), turned.forward_pyramid(x.transpose(2, 4)), strict=True):
        torch.testing.assert_close(level.transpose(2, 4), other, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model(x), turned(x.transpose(2, 4)), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_sound_of_one_sample_height():
    """In one dimension: kernels of a 1-D model, laid into the rows of a 2-D one whose input repeats along the new axis."""
    flat = drawn(create_model("pvt_small", num_classes=5, dims=1, img_size=64, **SMALL).double())
    deep = create_model("pvt_small", num_classes=5, dims=2, img_size=64, **SMALL).double().eval()
    state = {}
    for key, value in flat.state_dict().items():
        if value.ndim == 3 and not key.startswith(("pos_embed", "cls_token")):
            value = value.unsqueeze(-1).repeat(1, 1, 1, value.shape[-1]) / value.shape[-1]
        if key.startswith("pos_embed"):
            first = int(key.endswith("4"))
            side = flat.grids[int(key[-1]) - 1][0]
            value = torch.cat([value[:, :first], value[:, first:].repeat_interleave(side, dim=1)], dim=1)
        state[key] = value
    deep.load_state_dict(state)
    x = image(64).double()
    # Equal rows: each key stands as often as any other, except beside the class token, so only the pyramid is the same.
    for level, other in zip(flat.forward_pyramid(x), deep.forward_pyramid(x.unsqueeze(-1).expand(-1, -1, -1, 64)), strict=True):
        torch.testing.assert_close(level.unsqueeze(-1).expand_as(other), other, rtol=1e-9, atol=1e-9)


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="last must be 1"):
        create_model("pvt_tiny", reductions=(8, 4, 2, 2))
    with pytest.raises(ConfigError, match="equally many"):
        create_model("pvt_tiny", depths=(1, 1, 1))
    with pytest.raises(ConfigError, match="at least 32"):
        create_model("pvt_tiny", img_size=(64, 16))
    with pytest.raises(ConfigError, match="token"):
        create_model("pvt_tiny", global_pool="tokens", **SMALL)
    with pytest.raises(InputError, match="at least 32"):
        create_model("pvt_tiny", img_size=64, **SMALL)(torch.zeros(1, 3, 64, 31))
