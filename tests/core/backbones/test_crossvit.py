"""CrossViT against timm, the equation of its exchange, the paper's counts, and symmetries."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model, list_models, model_entry
from cnnkit.backbones.crossvit import ClassCrossAttention, MultiScaleEncoder, resize_cubic
from cnnkit.count import count_macs, count_params, on_meta
from cnnkit.errors import ConfigError, InputError
from cnnkit.testing.compare import assert_same_keys, image, randomise, without_gradient
from cnnkit.weights import load_weights, rename_keys
from torch import nn

pytestmark = pytest.mark.paper("crossvit")

SMALL = {"widths": (8, 12), "depths": (1, 2), "encoders": 2, "heads": 2, "img_size": 48, "scale": 2 / 3}
ONLY_IN_THE_PAPER = "crossvit_18_dagger_504"


def drawn(model: nn.Module) -> nn.Module:
    return randomise(model, spread={"pos_embed": 1.0, "cls_token": 1.0})


def of_timm(**sizes) -> nn.Module:
    return pytest.importorskip("timm").models.crossvit.CrossVit(
        img_size=48,
        img_scale=(1.0, 2 / 3),
        patch_size=(12, 16),
        embed_dim=(8, 12),
        depth=((1, 2, 0), (1, 2, 0)),
        num_heads=(2, 2),
        mlp_ratio=(3, 3, 1),
        num_classes=5,
        **sizes,
    )


@pytest.mark.parametrize(("dagger", "pool"), [(False, "token"), (True, "token"), (True, "avg")])
@torch.no_grad()
def test_logits_and_levels_equal_timm(dagger, pool):
    theirs = drawn(of_timm(multi_conv=dagger, global_pool=pool).double())
    ours = create_model("crossvit_9_240", num_classes=5, conv_patches=dagger, global_pool=pool, **SMALL).double().eval()
    assert load_weights(ours, theirs.state_dict()) == "cnnkit", "timm's keys and shapes are its own"
    x = image(48, 48).double()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)
    for tokens, other in zip(ours.forward_features(x), theirs.forward_features(x), strict=True):
        torch.testing.assert_close(tokens, other, rtol=1e-10, atol=1e-10)
    logits = ours.forward_head(ours.forward_features(x), pre_logits=True)
    torch.testing.assert_close(logits, theirs.forward_head(theirs.forward_features(x), pre_logits=True), rtol=1e-10, atol=1e-10)
    levels = theirs.forward_intermediates(x, indices=(1, 3), intermediates_only=True)
    for level, other in zip(ours.forward_pyramid(x), levels, strict=True):
        torch.testing.assert_close(level, other, rtol=1e-10, atol=1e-10)
    assert [dict(level) for level in ours.feature_info] == theirs.feature_info[1::2]


@pytest.mark.parametrize("name", sorted({*list_models(family="crossvit")} - {ONLY_IN_THE_PAPER}))
def test_variants_have_the_keys_and_shapes_of_timm(name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        theirs = timm.create_model(name)
    with on_meta():
        ours = create_model(name)
    assert_same_keys(ours, theirs)
    assert ours.grids == [tuple(s // p for s, p in zip(embed.img_size, embed.patch_size, strict=True)) for embed in theirs.patch_embed]
    for encoder, other in zip(ours.blocks, theirs.blocks, strict=True):
        for branch in range(2):
            assert encoder.fusion[branch].attn.heads == other.fusion[branch].attn.num_heads
            for block, another in zip(encoder.blocks[branch], other.blocks[branch], strict=True):
                assert block.attn.heads == another.attn.num_heads


def test_all_of_timm_are_there():
    timm = pytest.importorskip("timm")
    assert sorted([*timm.list_models("crossvit*"), ONLY_IN_THE_PAPER]) == list_models(family="crossvit")


@torch.no_grad()
def test_the_official_layout_is_read():
    model = drawn(create_model("crossvit_9_240", num_classes=5, **SMALL).double())
    official = rename_keys(model.state_dict(), ((r"^(pos_embed|cls_token)_", r"\1."),))
    again = create_model("crossvit_9_240", num_classes=5, **SMALL).double().eval()
    assert load_weights(again, official) == "official"
    torch.testing.assert_close(again(image(48, 48).double()), model(image(48, 48).double()), rtol=0, atol=0)


@pytest.mark.parametrize("name", [f"crossvit_{size}_240" for size in ("tiny", "small", "base", "15")])
def test_the_reason_given_for_the_figures_is_the_reason(name):
    with on_meta():
        model = create_model(name)
    positions = sum(parameter.numel() for key, parameter in model.named_parameters() if key.startswith("pos_embed"))
    assert (count_params(model) - positions) / 1e6 == pytest.approx(model_entry(name).figures.params_m, abs=0.05, rel=0)


def test_cross_attention_is_linear_in_the_tokens():
    with on_meta():
        layer = ClassCrossAttention(24, heads=3)
    macs = [count_macs(layer, (1, 1 + tokens, 24)) for tokens in (100, 200, 300)]
    assert macs[2] - macs[1] == macs[1] - macs[0] == 100 * (2 * 24 * 24 + 2 * 24)


@torch.no_grad()
def test_the_exchange_is_its_equation():
    encoder = drawn(MultiScaleEncoder((8, 12), (1, 1), heads=2, mlp_ratio=3.0, rates=[0.0]).double())
    branches = [torch.randn(2, 1 + tokens, width, dtype=torch.float64) for tokens, width in ((9, 8), (4, 12))]
    for index, exchanged in enumerate(encoder.exchange(branches)):
        own, other, width = branches[index], branches[1 - index], (12, 8)[index]
        torch.testing.assert_close(exchanged[:, 1:], own[:, 1:], rtol=0, atol=0)
        token = encoder.projs[index](own[:, 0])
        fusion = encoder.fusion[index]
        seen = fusion.norm1(torch.cat([token[:, None], other[:, 1:]], 1))
        query, key, value = fusion.attn.wq(seen[:, 0]), fusion.attn.wk(seen), fusion.attn.wv(seen)
        answers = []
        for head in range(2):
            part = slice(head * width // 2, (head + 1) * width // 2)
            weights = torch.einsum("bc,bnc->bn", query[:, part], key[..., part]).div((width // 2) ** 0.5).softmax(-1)
            answers.append(torch.einsum("bn,bnc->bc", weights, value[..., part]))
        token = token + fusion.attn.proj(torch.cat(answers, -1))
        torch.testing.assert_close(exchanged[:, 0], encoder.revert_projs[index](token), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("size", [(24,), (20, 28), (12, 20, 16)])
def test_cubic_resampling_treats_axes_one_by_one(size):
    """A product of functions of one axis each is resampled to the product of the resampled ones."""
    lines = [torch.randn(side, dtype=torch.float64) for side in size]
    smaller = [3 * side // 4 for side in size]
    resampled = [
        F.interpolate(line.expand(1, 1, 5, -1), size=(5, side), mode="bicubic", align_corners=False)[0, 0, 2]
        for line, side in zip(lines, smaller, strict=True)
    ]

    def product(factors: list[torch.Tensor]) -> torch.Tensor:
        out = factors[0]
        for factor in factors[1:]:
            out = out.unsqueeze(-1) * factor
        return out[None, None]

    torch.testing.assert_close(resize_cubic(product(lines), smaller), product(resampled), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_positions_are_interpolated_for_other_sizes():
    native = drawn(create_model("crossvit_9_240", num_classes=5, **SMALL).double())
    other = create_model("crossvit_9_240", num_classes=5, **{**SMALL, "img_size": (72, 96)}).double().eval()
    state = native.state_dict()
    for branch, (side, grid) in enumerate(((4, (6, 8)), (2, (3, 4)))):
        token, table = state[f"pos_embed_{branch}"].split([1, side**2], dim=1)
        table = F.interpolate(table.mT.unflatten(-1, (side, side)), size=grid, mode="bilinear", align_corners=False)
        state[f"pos_embed_{branch}"] = torch.cat([token, table.flatten(2).mT], dim=1)
    other.load_state_dict(state)
    x = image(72, 96).double()
    torch.testing.assert_close(native(x), other(x), rtol=1e-10, atol=1e-10)
    assert (native(x) - native(x.flip(-1))).abs().max() > 1e-3, "positions must count"


@pytest.mark.parametrize("last", [0, 1])
def test_a_cut_pyramid_equals_the_whole_and_uses_what_it_keeps(last):
    whole = drawn(create_model("crossvit_9_dagger_240", num_classes=0, **SMALL))
    levels = tuple(range(last + 1))
    part = create_model("crossvit_9_dagger_240", features_only=True, out_indices=levels, weights=whole.state_dict(), **SMALL)
    found = part(image(48, 48))
    for level, expected in zip(found, whole.forward_pyramid(image(48, 48)), strict=False):
        torch.testing.assert_close(level, expected, rtol=1e-5, atol=1e-5)
    sum(level.square().mean() for level in found).backward()
    assert without_gradient(part) == []


def test_stochastic_depth_rises_over_the_encoders():
    model = create_model("crossvit_9_240", drop_path_rate=0.3, **SMALL)
    rates = [[block.drop_path.rate for block in encoder.blocks[1]] for encoder in model.blocks]
    assert rates == [[0.0, pytest.approx(0.1)], [pytest.approx(0.2), pytest.approx(0.3)]]
    assert [encoder.fusion[0].drop_path.rate for encoder in model.blocks] == [pytest.approx(0.1), pytest.approx(0.3)]


@torch.no_grad()
def test_axes_are_treated_alike():
    model = drawn(create_model("crossvit_9_dagger_240", num_classes=4, dims=3, **{**SMALL, "img_size": (48, 24, 36)}).double())
    turned = create_model("crossvit_9_dagger_240", num_classes=4, dims=3, **{**SMALL, "img_size": (36, 24, 48)}).double().eval()
    state = {}
    for key, value in model.state_dict().items():
        if key.startswith("pos_embed"):
            table = value[:, 1:].unflatten(1, model.grids[int(key[-1])]).transpose(1, 3).flatten(1, 3)
            value = torch.cat([value[:, :1], table], dim=1)
        state[key] = value.transpose(2, 4) if value.ndim == 5 else value
    turned.load_state_dict(state)
    x = image(48, 24, 36).double()
    torch.testing.assert_close(model(x), turned(x.transpose(2, 4)), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_model_of_one_dimension_is_one_of_two_on_a_line():
    """Embedding of an image of equal rows, whose kernels average over them."""
    flat = drawn(create_model("crossvit_9_240", num_classes=4, dims=1, **SMALL).double())
    deep = create_model("crossvit_9_240", num_classes=4, dims=2, **{**SMALL, "img_size": (24, 48)}).double().eval()
    state = dict(flat.state_dict())
    for branch, patch in enumerate((12, 16)):
        weight = state[f"patch_embed.{branch}.proj.weight"]
        state[f"patch_embed.{branch}.proj.weight"] = weight.unsqueeze(2).expand(-1, -1, patch, -1) / patch
        token, table = state[f"pos_embed_{branch}"].split([1, flat.grids[branch][0]], dim=1)
        state[f"pos_embed_{branch}"] = torch.cat([token, table.repeat(1, deep.grids[branch][0], 1)], dim=1)
    deep.load_state_dict(state)
    assert [grid[0] for grid in deep.grids] == [2, 1]
    # Twice the same row of small patches beside one class token is not one row, so only what stays within a branch is compared.
    x = image(48).double()
    stacked = x.unsqueeze(2).expand(-1, -1, 24, -1)
    for branch in range(2):
        tokens, _ = flat.embed(branch, x)
        others, grid = deep.embed(branch, stacked)
        expected = tokens[:, 1:].unsqueeze(1).expand(-1, grid[0], -1, -1).flatten(1, 2)
        torch.testing.assert_close(others, torch.cat([tokens[:, :1], expected], dim=1), rtol=1e-10, atol=1e-10)


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="among \\(12, 16\\), not \\(12, 8\\)"):
        create_model("crossvit_9_dagger_240", patch_sizes=(12, 8))
    with pytest.raises(ConfigError, match="at least 24"):
        create_model("crossvit_9_240", **{**SMALL, "img_size": 23})
    with pytest.raises(ConfigError, match="must be pooled"):
        create_model("crossvit_9_240", global_pool="none", **SMALL)
    model = create_model("crossvit_9_240", **SMALL)
    with pytest.raises(ConfigError, match="must be pooled"):
        model.reset_classifier(3, global_pool="none")
    with pytest.raises(InputError, match="at least 24"):
        model(torch.zeros(1, 3, 48, 23))
    model.reset_classifier(3, global_pool="avg")
    assert model(torch.zeros(1, 3, 48, 48)).shape == (1, 3)
