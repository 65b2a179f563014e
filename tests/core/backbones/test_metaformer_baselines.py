"""IdentityFormer, RandFormer, PoolFormerV2, ConvFormer and CAFormer against timm, the official layout and their equations."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model, list_models
from cnnkit.backbones._base import rename_keys
from cnnkit.backbones._metaformer import RandomMixing
from cnnkit.count import on_meta
from cnnkit.errors import CheckpointError, InputError
from cnnkit.layers.act import StarReLU, get_act
from cnnkit.testing.compare import assert_near, assert_same_keys, centred, image, randomise
from torch import nn

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.paper("metaformer-baselines")

SMALL = {"depths": (1, 2, 2, 1), "widths": (8, 16, 32, 64)}
SIZES = ((64, 64), (75, 97))
NAMES = ["poolformerv2_s12", "convformer_s18", "caformer_s18"]


def of_timm(name: str) -> nn.Module:
    from timm.models import metaformer

    words = {
        "poolformerv2_s12": {"norm_layers": metaformer.GroupNorm1NoBias, "use_mlp_head": False},
        "convformer_s18": {"token_mixers": metaformer.SepConv},
        "caformer_s18": {
            "token_mixers": [metaformer.SepConv] * 2 + [metaformer.Attention] * 2,
            "norm_layers": [metaformer.LayerNorm2dNoBias] * 2 + [metaformer.LayerNormNoBias] * 2,
        },
    }[name]
    model = randomise(metaformer.MetaFormer(depths=SMALL["depths"], dims=SMALL["widths"], num_classes=5, **words))
    if name != "poolformerv2_s12":
        model.head.fc.norm.eps = 1e-5  # The official code's; timm has 1e-6.
    return model


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_logits_and_pyramid_equal_timm(name):
    theirs = of_timm(name)
    ours = create_model(name, num_classes=5, weights=theirs.state_dict(), **SMALL).eval()
    for size in SIZES:
        x = image(*size)
        assert_near(ours.forward_pyramid(x), theirs.forward_intermediates(x)[1])
        assert_near(ours(x), theirs(x))
        features = ours.forward_features(x)
        assert_near(ours.forward_head(features, pre_logits=True), theirs.forward_head(features, pre_logits=True))


@pytest.mark.parametrize("name", [name for name in list_models(family="metaformer_baselines") if not re.match("identity|rand", name)])
def test_variants_have_the_keys_and_shapes_of_timm(name):
    with on_meta():
        ours, theirs = create_model(name), timm.create_model(name)
    assert_same_keys(ours, theirs)


def official(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The official keys and shapes of timm's weights."""
    flat = {k: v.flatten(1) if re.search(r"mlp\.fc|pwconv", k) and v.ndim == 4 else v for k, v in state.items()}
    return rename_keys(
        flat,
        (
            (r"^stages\.(\d)\.downsample\.norm", r"downsample_layers.\1.pre_norm"),
            (r"^stages\.(\d)\.downsample\.conv", r"downsample_layers.\1.conv"),
            (r"^stem\.norm", "downsample_layers.0.post_norm"),
            (r"^stem\.conv", "downsample_layers.0.conv"),
            (r"\.blocks\.", "."),
            (r"^head\.norm\.", "norm."),
            (r"^head\.fc\.", "head."),
        ),
    )


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_official_layout_is_read(name):
    """timm renames the official keys by its own rules; ours must bring them to the same place."""
    from timm.models.metaformer import checkpoint_filter_fn

    theirs = of_timm(name)
    state = official(theirs.state_dict())
    assert {"downsample_layers.0.post_norm.weight", "downsample_layers.3.pre_norm.weight", "stages.1.1.mlp.fc1.weight"} <= state.keys()
    assert state["stages.1.1.mlp.fc1.weight"].ndim == 2
    back = checkpoint_filter_fn(dict(state), theirs)
    assert back.keys() == theirs.state_dict().keys(), "the layout made here is not the one that timm knows as official"
    ours = create_model(name, num_classes=5, weights=state, **SMALL).state_dict()
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours[key], value), key


def test_another_number_of_classes_is_explained():
    state = create_model("convformer_s18", num_classes=4, **SMALL).state_dict()
    with pytest.raises(CheckpointError, match=r"head has 4 classes .* num_classes=9"):
        create_model("convformer_s18", num_classes=9, weights=state, **SMALL)
    bare = create_model("convformer_s18", num_classes=0, weights=state, **SMALL)
    assert bare(image(64, 64)).shape == (2, 64)
    bare.reset_classifier(3)
    assert bare(image(64, 64)).shape == (2, 3)
    assert bare.head.fc.fc1.weight.shape == (256, 64)


def test_star_relu_keeps_mean_and_variance_of_a_normal():
    """By quadrature: E[f(x)] = 0 and E[f(x)^2] = 1 for a standard normal x."""
    x = torch.linspace(-12, 12, 200001, dtype=torch.float64)
    density = torch.exp(-x.square() / 2) / (2 * torch.pi) ** 0.5
    y = StarReLU().double()(x).detach()
    assert abs(float(torch.trapezoid(y * density, x))) < 1e-6
    assert abs(float(torch.trapezoid(y.square() * density, x)) - 1) < 1e-6
    assert sum(p.numel() for p in get_act("star_relu").parameters()) == 2
    torch.testing.assert_close(get_act("squared_relu")(x), x.clamp(min=0) ** 2)


def test_the_random_matrix_is_frozen_and_stochastic():
    torch.manual_seed(0)
    mixer = RandomMixing(12)
    assert list(mixer.parameters()) == [] and list(mixer.state_dict()) == ["random_matrix"]
    assert bool((mixer.random_matrix > 0).all())
    torch.testing.assert_close(mixer.random_matrix.sum(-1), torch.ones(12))
    x = torch.randn(2, 5, 3, 4)
    expected = torch.einsum("mn,bcn->bcm", mixer.random_matrix, x.flatten(2)).view(x.shape)
    torch.testing.assert_close(mixer(x), expected)


@torch.no_grad()
def test_randformer_is_its_equations():
    """Written out for one block per stage, in float64."""
    arch = {"depths": (1, 1, 1, 1), "widths": (4, 6, 8, 10), "img_size": (64, 96)}
    model = randomise(create_model("randformer_s12", num_classes=5, **arch).double())
    state = model.state_dict()

    def norm(x, weight, axes):
        centred = x - x.mean(axes, keepdim=True)
        return centred / (centred.square().mean(axes, keepdim=True) + 1e-6).sqrt() * weight.view(-1, 1, 1)

    def part(prefix):
        return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

    x = F.conv2d(image(64, 96).double(), state["stem.conv.weight"], state["stem.conv.bias"], stride=4, padding=2)
    x = norm(x, state["stem.norm.weight"], (1,))
    for stage in range(4):
        if stage:
            w = part(f"stages.{stage}.downsample.")
            x = F.conv2d(norm(x, w["norm.weight"], (1,)), w["conv.weight"], w["conv.bias"], stride=2, padding=1)
        w = part(f"stages.{stage}.blocks.0.")
        branch = norm(x, w["norm1.weight"], (1, 2, 3))
        if stage > 1:
            mixed = w["token_mixer.random_matrix"] @ branch.flatten(2).mT
            branch, x = mixed.mT.reshape(branch.shape), x * w["res_scale1.scale"].view(-1, 1, 1)
        x = x + branch
        hidden = F.conv2d(norm(x, w["norm2.weight"], (1, 2, 3)), w["mlp.fc1.weight"])
        hidden = w["mlp.act.scale"] * hidden.clamp(min=0) ** 2 + w["mlp.act.bias"]
        x = (x * w["res_scale2.scale"].view(-1, 1, 1) if stage > 1 else x) + F.conv2d(hidden, w["mlp.fc2.weight"])
    pooled = F.layer_norm(x.mean((2, 3)), (10,), state["head.norm.weight"], state["head.norm.bias"], 1e-6)
    expected = pooled @ state["head.fc.weight"].T + state["head.fc.bias"]
    torch.testing.assert_close(model(image(64, 96).double()), expected, rtol=1e-10, atol=1e-10)


def test_randformer_has_the_matrices_that_the_paper_counts_apart():
    """0.2, 0.5, 0.7, 0.7 and 0.9 million frozen numbers; another size is another model."""
    for size, millions in (("s12", 0.2), ("s24", 0.5), ("s36", 0.7), ("m36", 0.7), ("m48", 0.9)):
        with on_meta():
            model = create_model(f"randformer_{size}")
        assert round(sum(buffer.numel() for buffer in model.buffers()) / 1e6, 1) == millions
    small = create_model("randformer_s12", img_size=64, num_classes=3, **SMALL)
    with pytest.raises(InputError, match=r"built for \(64, 64\); resize, or build it with img_size=\(96, 64\)"):
        small(torch.zeros(1, 3, 96, 64))


@pytest.mark.parametrize("name", ["identityformer_s12", "poolformerv2_s12", "convformer_s18", "caformer_s18"])
@pytest.mark.parametrize("dims", [1, 2])
@torch.no_grad()
def test_a_stacked_input_equals_a_slice(name, dims):
    """With kernels centred in the new axis, slices mix only where a mean or attention sees equal ones."""
    flat = randomise(create_model(name, dims=dims, num_classes=5, **SMALL).double())
    deep = centred(flat, create_model(name, dims=dims + 1, num_classes=5, **SMALL).double())
    x = image(*(40, 36)[:dims]).double()
    torch.testing.assert_close(deep(x.unsqueeze(-1).expand(*x.shape, 33)), flat(x), rtol=1e-9, atol=1e-9)
