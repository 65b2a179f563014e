"""CvT against transformers, the equation of its attention, and symmetries."""

from __future__ import annotations

import pytest
import torch
from cnnkit.backbones import create_model, list_models
from cnnkit.backbones.cvt import ConvAttention
from cnnkit.count import on_meta
from cnnkit.errors import ConfigError
from cnnkit.testing.compare import assert_same_keys, centred, image, randomise, stir, without_gradient
from cnnkit.weights import load_weights
from torch import nn

pytestmark = pytest.mark.paper("cvt")

VARIANTS = {
    "cvt_13": {"depth": (1, 2, 10)},
    "cvt_21": {"depth": (1, 4, 16)},
    "cvt_w24": {"depth": (2, 2, 20), "embed_dim": (192, 768, 1024), "num_heads": (3, 12, 16)},
}
SMALL = {"depths": (1, 2, 3), "widths": (8, 16, 24), "heads": (1, 2, 3)}


def drawn(model: nn.Module) -> nn.Module:
    return randomise(model, spread={"cls_token": 1.0})


def of_transformers(**sizes) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    return transformers.CvtForImageClassification(transformers.CvtConfig(**sizes))


@torch.no_grad()
def test_logits_and_levels_equal_transformers():
    """With its activation; the paper's own code has the quick one."""
    theirs = of_transformers(depth=SMALL["depths"], embed_dim=SMALL["widths"], num_heads=SMALL["heads"], num_labels=5)
    drawn(theirs.double())
    ours = create_model("cvt_13", num_classes=5, act="gelu", **SMALL).double()
    assert load_weights(ours, theirs.state_dict()) == "transformers"
    ours.eval()
    for size in ((64, 64), (75, 97)):
        x = image(*size).double()
        expected = theirs(x, output_hidden_states=True)
        torch.testing.assert_close(ours(x), expected.logits, rtol=1e-10, atol=1e-10)
        for level, other in zip(ours.forward_pyramid(x), expected.hidden_states, strict=True):
            torch.testing.assert_close(level, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_have_the_keys_and_shapes_of_transformers(name):
    with torch.device("meta"):
        theirs = of_transformers(num_labels=1000, **VARIANTS[name])
    with on_meta():
        ours = create_model(name)
    converted = ours.layouts[1].convert(theirs.state_dict())
    assert_same_keys(converted, ours)


def test_all_variants_are_covered():
    assert sorted(VARIANTS) == list_models(family="cvt")


@torch.no_grad()
def test_the_perceptrons_have_the_quick_approximation():
    act = create_model("cvt_13", **SMALL).stage0.blocks[0].mlp.act
    x = torch.linspace(-4, 4, 9, dtype=torch.float64)
    torch.testing.assert_close(act(x), x / (1 + torch.exp(-1.702 * x)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("grid", [(9,), (4, 6), (4, 3, 6)])
@torch.no_grad()
def test_attention_is_its_equation(grid, before):
    dims, width, heads = len(grid), 6, 2
    layer = drawn(ConvAttention(width, heads=heads, dims=dims).double())
    positions = int(torch.Size(grid).numel())
    x = torch.randn(2, before + positions, width, dtype=torch.float64)
    image = x[:, before:].mT.reshape(2, width, *grid)
    parts, lengths = {}, {}
    for name, stride in (("q", 1), ("k", 2), ("v", 2)):
        conv, norm = getattr(layer, f"conv_proj_{name}")
        assert conv.stride == (stride,) * dims and conv.groups == width
        # A strided convolution with symmetric zeros is the unstrided one, taken at every other position.
        conv.stride = (1,) * dims
        y = norm(conv(image))[(..., *[slice(None, None, stride)] * dims)]
        conv.stride = (stride,) * dims
        tokens = torch.cat([x[:, :before], y.flatten(2).mT], dim=1)
        lengths[name] = tokens.shape[1] - before
        parts[name] = getattr(layer, f"proj_{name}")(tokens).unflatten(-1, (heads, width // heads))
    logits = torch.einsum("bnhd,bmhd->bhnm", parts["q"], parts["k"]) / width**0.5
    expected = layer.proj(torch.einsum("bhnm,bmhd->bnhd", logits.softmax(-1), parts["v"]).flatten(2))
    torch.testing.assert_close(layer(x, grid), expected, rtol=1e-12, atol=1e-12)
    assert lengths["q"] == positions and lengths["k"] == lengths["v"] == torch.Size(-(-side // 2) for side in grid).numel()


def test_keys_are_a_quarter_of_the_queries():
    with on_meta():
        model, seen = create_model("cvt_13"), []
        for module in model.modules():
            if isinstance(module, ConvAttention):
                for name in ("q", "k"):
                    hook = lambda _, __, out, name=name: seen.append((name, out.shape[2:].numel()))  # noqa: E731
                    getattr(module, f"conv_proj_{name}").register_forward_hook(hook)
        model(torch.empty(1, 3, 224, 224))
    queries, keys = ([count for name, count in seen if name == wanted] for wanted in "qk")
    assert [4 * count for count in keys] == [*queries[:3], *[196] * 10] and queries == [3136, *[784] * 2, *[196] * 10]


@pytest.mark.parametrize("side", [160, 384])
def test_other_input_sizes_are_admitted_without_change(side):
    with on_meta():
        model = create_model("cvt_13")
        shapes = [tuple(level.shape[2:]) for level in model.forward_pyramid(torch.empty(1, 3, side, side))]
        assert model(torch.empty(1, 3, side, side)).shape == (1, 1000)
    assert shapes == [(side // step,) * 2 for step in (4, 8, 16)]


def test_only_the_last_convolution_of_queries_is_without_a_part_in_the_class_token():
    x = image(64, 64)
    unused = [f"stage2.blocks.2.attn.conv_proj_q.{name}" for name in ("conv.weight", "bn.weight", "bn.bias")]
    for pool, expected in (("token", unused), ("avg", [])):
        torch.manual_seed(0)
        model = stir(create_model("cvt_13", num_classes=3, global_pool=pool, **SMALL))
        model(x).square().sum().backward()
        assert without_gradient(model) == expected


@pytest.mark.parametrize("pool", ["token", "avg", "max"])
@torch.no_grad()
def test_pooling(pool):
    model = drawn(create_model("cvt_13", num_classes=0, global_pool=pool, **SMALL))
    tokens = model.forward_features(image(64, 64))
    expected = {"token": tokens[:, 0], "avg": tokens[:, 1:].mean(1), "max": tokens[:, 1:].amax(1)}[pool]
    torch.testing.assert_close(model.forward_head(tokens), expected)


@torch.no_grad()
def test_axes_are_treated_alike():
    model = drawn(create_model("cvt_13", num_classes=4, dims=3, **SMALL).double())
    turned = create_model("cvt_13", num_classes=4, dims=3, **SMALL).double().eval()
    turned.load_state_dict({k: v.transpose(2, 4) if v.ndim == 5 else v for k, v in model.state_dict().items()})
    x = image(32, 16, 48).double()
    torch.testing.assert_close(model(x), turned(x.transpose(2, 4)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dims", [1, 2])
@torch.no_grad()
def test_the_pyramid_of_a_stacked_input_equals_the_one_of_a_slice(dims):
    """Kernels at the centre of the new axis; every key then stands equally often, which changes no softmax without a class token."""
    flat = drawn(create_model("cvt_13", num_classes=0, dims=dims, **SMALL).double())
    deep = centred(flat, create_model("cvt_13", num_classes=0, dims=dims + 1, **SMALL).double())
    for model in (flat, deep):
        model.stage2.cls_token = None
    x = image(32, 48).double()[(..., 0)[: 3 - dims]]
    for level, other in zip(flat.forward_pyramid(x), deep.forward_pyramid(x.unsqueeze(-1).expand(*x.shape, 32)), strict=True):
        torch.testing.assert_close(level.unsqueeze(-1).expand_as(other), other, rtol=1e-9, atol=1e-9)


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="equally many"):
        create_model("cvt_13", depths=(1, 2))
