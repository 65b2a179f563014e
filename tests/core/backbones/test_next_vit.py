"""Next-ViT against timm, its equations in every dimension, and itself with merged normalisations."""

from __future__ import annotations

import pytest
import torch
from cnnkit.backbones import create_model, list_models
from cnnkit.backbones.next_vit import ConvBlock, TransformerBlock
from cnnkit.count import on_meta
from cnnkit.errors import ConfigError, InputError
from cnnkit.layers.fuse import fold_batch_norm_before
from cnnkit.layers.nd import batch_norm, conv
from cnnkit.testing.compare import assert_same_keys, image, randomise
from cnnkit.weights import load_weights
from torch import Tensor, nn
from torch.nn import functional as F

pytestmark = pytest.mark.paper("next-vit")
SMALL = {
    "depths": (1, 2, 4, 2),
    "repeats": (0, 1, 2, 1),
    "widths": (8, 16, 16, 24),
    "mix_widths": (0, 16, 24, 32),
    "stem_widths": (8, 4, 8),
    "head_dim": 4,
}
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@torch.no_grad()
def test_logits_and_levels_equal_timm():
    timm = pytest.importorskip("timm")
    theirs = randomise(timm.create_model("nextvit_small", depths=(1, 2, 5, 2), num_classes=5).double())
    ours = create_model("nextvit_small", depths=(1, 2, 5, 2), repeats=(0, 1, 1, 1), num_classes=5).double()
    load_weights(ours, theirs.state_dict())
    ours.eval()
    for size in ((64, 64), (75, 97)):
        x = image(*size).double()
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)
        expected = theirs.forward_intermediates(x, intermediates_only=True)
        for level, other in zip(ours.forward_pyramid(x), expected, strict=True):
            torch.testing.assert_close(level, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["nextvit_small", "nextvit_base", "nextvit_large"])
def test_variants_have_the_keys_and_shapes_of_timm(name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        theirs = timm.create_model(name)
    with on_meta():
        ours = create_model(name)
    assert_same_keys(ours, theirs)
    assert ours.feature_info.reduction() == [4, 8, 16, 32] and ours.feature_info.channels() == [96, 256, 512, 1024]


def test_all_variants_are_covered():
    assert list_models(family="next_vit") == ["nextvit_base", "nextvit_large", "nextvit_small"]


def test_the_hybrid_strategy():
    """A transformer block ends every group: four convolution blocks before it in the third stage."""
    with on_meta():
        model = create_model("nextvit_base")
    kinds = ["".join("T" if isinstance(block, TransformerBlock) else "C" for block in stage[0]) for stage in model.stages]
    assert kinds == ["CCC", "CCCT", "CCCCT" * 4, "CCT"]


@torch.no_grad()
def test_the_layout_of_the_official_code():
    """Its blocks stand in one list; a stage is told by the width of its convolution blocks, which differs in all of the paper's models."""
    wide = {**SMALL, "widths": (8, 16, 20, 24)}
    ours = randomise(create_model("nextvit_small", num_classes=5, **wide))
    blocks = [f"stages.{stage}.blocks.{index}." for stage, depth in enumerate(SMALL["depths"]) for index in range(depth)]
    official = {}
    for key, value in ours.state_dict().items():
        for number, block in enumerate(blocks):
            key = key.replace(block, f"features.{number}.")
        official[key.replace(".mlp.fc", ".mlp.conv").replace("head.fc.", "proj_head.0.")] = value
    assert {key.split(".")[0] for key in official} == {"stem", "features", "norm", "proj_head"}
    fresh = create_model("nextvit_small", num_classes=5, **wide).eval()
    assert load_weights(fresh, official) == "official"
    x = image(64, 64)
    torch.testing.assert_close(fresh(x), ours(x), rtol=0, atol=0)


def plain(state: dict[str, Tensor], x: Tensor, *, depths, head_dim: int, ratios) -> tuple[list[Tensor], Tensor]:
    """The model in elementary operations on timm's keys; returns the levels and the logits."""
    dims = x.ndim - 2

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{key}"].view(1, -1, *[1] * (x.ndim - 2)) for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def convolve(x: Tensor, name: str, **options) -> Tensor:
        return CONV[dims](x, state[f"{name}.weight"], state.get(f"{name}.bias"), **options)

    def embed(x: Tensor, name: str, halve: bool) -> Tensor:
        if halve:
            x = POOL[dims](x, 2, 2, ceil_mode=True, count_include_pad=False)
        return norm(convolve(x, f"{name}.conv"), f"{name}.norm") if f"{name}.conv.weight" in state else x

    def mix(x: Tensor, name: str) -> Tensor:
        y = convolve(x, f"{name}.group_conv3x3", padding=1, groups=x.shape[1] // head_dim)
        return convolve(norm(y, f"{name}.norm").relu(), f"{name}.projection")

    def mlp(x: Tensor, name: str, before: str) -> Tensor:
        return convolve(convolve(norm(x, before), f"{name}.fc1").relu(), f"{name}.fc2")

    def attention(x: Tensor, name: str, run: int) -> Tensor:
        tokens = x.flatten(2)
        kept = tokens
        if run > 1:
            kept = torch.stack([tokens[..., i * run : (i + 1) * run].mean(-1) for i in range(tokens.shape[-1] // run)], -1)
            kept = norm(kept, f"{name}.norm")
        parts = []
        for part, source in (("q", tokens), ("k", kept), ("v", kept)):
            made = source.transpose(1, 2) @ state[f"{name}.{part}.weight"].T + state[f"{name}.{part}.bias"]
            parts.append(made.unflatten(-1, (-1, head_dim)))
        affinity = (torch.einsum("bnhd,bmhd->bhnm", parts[0], parts[1]) / head_dim**0.5).softmax(-1)
        y = torch.einsum("bhnm,bmhd->bnhd", affinity, parts[2]).flatten(2)
        return (y @ state[f"{name}.proj.weight"].T + state[f"{name}.proj.bias"]).transpose(1, 2).unflatten(2, x.shape[2:])

    for index, stride in enumerate((2, 1, 1, 2)):
        x = norm(convolve(x, f"stem.{index}.conv", stride=stride, padding=1), f"stem.{index}.norm").relu()
    levels = []
    for stage, depth in enumerate(depths):
        for index in range(depth):
            name = f"stages.{stage}.blocks.{index}"
            x = embed(x, f"{name}.patch_embed", halve=stage > 0 and index == 0)
            if f"{name}.norm.weight" in state:
                x = x + mix(x, f"{name}.mhca")
                x = x + mlp(x, f"{name}.mlp", f"{name}.norm")
            else:
                x = x + attention(norm(x, f"{name}.norm1"), f"{name}.e_mhsa", ratios[stage] ** dims)
                high = embed(x, f"{name}.projection", halve=False)
                x = torch.cat([x, high + mix(high, f"{name}.mhca")], 1)
                x = x + mlp(x, f"{name}.mlp", f"{name}.norm2")
        levels.append(x)
    pooled = norm(x, "norm").flatten(2).mean(-1)
    return levels, pooled @ state["head.fc.weight"].T + state["head.fc.bias"]


@pytest.mark.parametrize("size", [(75,), (64, 96), (75, 41), (32, 40, 33)])
@torch.no_grad()
def test_logits_and_levels_equal_the_equations(size):
    model = randomise(create_model("nextvit_small", num_classes=5, dims=len(size), **SMALL).double())
    x = image(*size).double()
    levels, logits = plain(model.state_dict(), x, depths=SMALL["depths"], head_dim=4, ratios=(8, 4, 2, 1))
    torch.testing.assert_close(model(x), logits, rtol=1e-10, atol=1e-10)
    for level, expected in zip(model.forward_pyramid(x), levels, strict=True):
        torch.testing.assert_close(level, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dims", [1, 2, 3])
@torch.no_grad()
def test_normalisations_merge_into_what_follows_them(dims):
    """All but the last of all, which follows a sum and stands before pooling."""
    model = randomise(create_model("nextvit_small", num_classes=5, dims=dims, **SMALL).double())
    x = image(*(32, 48, 40)[:dims]).double()
    expected = model(x)
    block = next(module for module in model.modules() if isinstance(module, TransformerBlock))
    y = torch.randn(2, block.patch_embed.conv.in_channels, *(8,) * dims, dtype=torch.float64)
    before = block(y)
    for made in (block.merged().eval(), block.merged().eval()):  # Twice: the block itself stays as it was.
        torch.testing.assert_close(made(y), before, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.fuse()(x), expected, rtol=1e-10, atol=1e-10)
    left = [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert left == ["norm"]
    assert not any(isinstance(module, (ConvBlock, TransformerBlock)) for module in model.modules())


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", ["tokens", 1, 2, 3])
@torch.no_grad()
def test_a_normalisation_before_a_layer_is_the_closed_form(form, bias, affine):
    dims = 1 if form == "tokens" else form
    norm = randomise(batch_norm(dims)(4, affine=affine).double())
    layer = (nn.Linear(4, 6, bias=bias) if form == "tokens" else conv(dims)(4, 6, 2, bias=bias)).double()
    x = torch.randn(2, 4, *(5,) * dims, dtype=torch.float64)
    expected = layer(norm(x).mT) if form == "tokens" else layer(norm(x))
    weight, shift = fold_batch_norm_before(norm, layer)
    found = F.linear(x.mT, weight, shift) if form == "tokens" else CONV[dims](x, weight, shift)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_smallest_size_has_one_mean():
    model = create_model("nextvit_small", **SMALL).eval()
    assert model(torch.zeros(1, 3, 25, 25)).shape == (1, 1000)
    with pytest.raises(InputError, match="at least 25"):
        model(torch.zeros(1, 3, 24, 64))


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="equally many"):
        create_model("nextvit_small", depths=(1, 2))
    with pytest.raises(ConfigError, match="repeats=3 groups do not divide a stage of 10"):
        create_model("nextvit_small", repeats=(0, 1, 3, 1))
    with pytest.raises(ConfigError, match="head_dim=36 does not divide"):
        create_model("nextvit_small", head_dim=36)
