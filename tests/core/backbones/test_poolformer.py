"""PoolFormer against timm, transformers, the official layout, its equations and symmetries."""

from __future__ import annotations

import pytest
import torch
from cnnkit.backbones import create_model, list_models, model_entry
from cnnkit.backbones._base import rename_keys
from cnnkit.backbones._metaformer import MIXERS, Pooling, new_mixer
from cnnkit.count import count_macs, on_meta
from cnnkit.errors import CheckpointError, ConfigError
from cnnkit.testing.compare import assert_near, assert_same_keys, centred, image, randomise, without_gradient
from torch import nn

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.paper("poolformer")

SMALL = {"depths": (1, 2, 1, 1), "widths": (8, 16, 24, 32)}
SIZES = ((64, 64), (75, 97))


def of_timm(**kwargs) -> nn.Module:
    from timm.layers import GroupNorm1
    from timm.models.metaformer import MetaFormer

    words = {"norm_layers": GroupNorm1, "downsample_norm": None, "mlp_act": nn.GELU, "mlp_bias": True, "use_mlp_head": False}
    scales = {"layer_scale_init_values": 1e-5, "res_scale_init_values": None}
    return randomise(MetaFormer(depths=SMALL["depths"], dims=SMALL["widths"], **words, **scales, **kwargs))


@torch.no_grad()
def test_pyramid_equals_timm():
    theirs = of_timm(num_classes=5)
    ours = create_model("poolformer_s12", num_classes=5, weights=theirs.state_dict(), **SMALL).eval()
    for size in SIZES:
        assert_near(ours.forward_pyramid(image(*size)), theirs.forward_intermediates(image(*size))[1])
    assert ours.feature_info.reduction() == [level["reduction"] for level in theirs.feature_info]


@torch.no_grad()
def test_logits_are_those_of_the_paper_and_timm_differs_in_the_head_alone():
    """timm pools before it normalises; with the paper's order and normalisation in its head, it computes the same."""
    theirs = of_timm(num_classes=5)
    ours = create_model("poolformer_s12", num_classes=5, weights=theirs.state_dict(), **SMALL).eval()
    x = image(75, 97)
    assert (ours(x) - theirs(x)).abs().max() > 1e-3
    norm = nn.GroupNorm(1, 32)
    norm.load_state_dict(theirs.head.norm.state_dict())
    assert_near(ours(x), theirs.head.fc(norm(theirs.forward_features(x)).mean((2, 3))))


@pytest.mark.parametrize("name", list_models(family="poolformer"))
def test_variants_have_the_keys_and_shapes_of_timm(name):
    with on_meta():
        ours, theirs = create_model(name), timm.create_model(name)
    assert_same_keys(ours, theirs)


@torch.no_grad()
def test_logits_equal_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.PoolFormerConfig(depths=list(SMALL["depths"]), hidden_sizes=list(SMALL["widths"]), mlp_ratio=4.0, num_labels=5)
    theirs = randomise(transformers.PoolFormerForImageClassification(config))
    ours = create_model("poolformer_s12", num_classes=5, weights=theirs.state_dict(), **SMALL).eval()
    for size in SIZES:
        assert_near(ours(image(*size)), theirs(image(*size)).logits)


@torch.no_grad()
def test_the_official_layout_is_read():
    """timm renames the official keys by its own rules; ours must bring them to the same place."""
    from timm.models.metaformer import checkpoint_filter_fn

    theirs = of_timm(num_classes=5)
    official = rename_keys(
        theirs.state_dict(),
        (
            *((rf"^stages\.{i}\.downsample\.conv\.", f"network.{2 * i - 1}.proj.") for i in (1, 2, 3)),
            *((rf"^stages\.{i}\.blocks\.", f"network.{2 * i}.") for i in range(4)),
            (r"^stem\.conv\.", "patch_embed.proj."),
            (r"\.layer_scale(\d)\.scale$", r".layer_scale_\1"),
            (r"^head\.fc\.", "head."),
            (r"^head\.norm\.", "norm."),
        ),
    )
    assert {"network.1.proj.weight", "network.4.0.layer_scale_1", "network.2.1.mlp.fc1.bias", "norm.weight", "head.bias"} <= official.keys()
    back = checkpoint_filter_fn(dict(official), theirs)
    assert back.keys() == theirs.state_dict().keys(), "the layout made here is not the one that timm knows as official"
    ours = create_model("poolformer_s12", num_classes=5, weights=official, **SMALL).state_dict()
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours[key], value), key
    with pytest.raises(CheckpointError, match=r"head has 5 classes .* num_classes=9"):
        create_model("poolformer_s12", num_classes=9, weights=official, **SMALL)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_mixer_of_a_constant_map_is_exactly_zero(dims):
    """Because positions outside of the map do not count."""
    x = torch.full((2, 4, *(5, 6, 7)[:dims]), 1.375)
    assert not Pooling(dims=dims)(x).any()


def test_the_mixer_is_the_local_mean_less_the_value():
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    y = Pooling()(x)
    for i, j in ((0, 0), (2, 3), (4, 5), (0, 4)):
        window = x[:, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
        torch.testing.assert_close(y[:, :, i, j], window.mean((2, 3)) - x[:, :, i, j], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_any_mixer_can_be_swapped_in(mixer, dims):
    """As in the paper's ablations; every parameter still gets a gradient."""
    arch = {**SMALL, "depths": (1, 1, 1, 1), "layer_scale": 1.0, "img_size": 64}
    model = create_model("poolformer_s12", dims=dims, num_classes=3, mixers=("pool", "pool", "pool", mixer), **arch)
    randomise(model).train()
    model(torch.randn(2, 3, *(64,) * dims)).square().sum().backward()
    assert without_gradient(model) == []


def test_a_mixer_without_a_name_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'pool'"):
        new_mixer("pol", 4, (8, 8))
    with pytest.raises(ConfigError, match="give one of each per stage"):
        create_model("poolformer_s12", depths=(1, 1))


@torch.no_grad()
def test_the_mixer_of_a_volume_is_pytorchs():
    x = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    expected = nn.AvgPool3d(3, stride=1, padding=1, count_include_pad=False)(x) - x
    torch.testing.assert_close(Pooling(dims=3)(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [1, 2])
@torch.no_grad()
def test_a_stacked_input_equals_a_slice(dims):
    """With kernels centred in the new axis, slices never mix; and equal slices have the mean of one."""
    flat = randomise(create_model("poolformer_s12", dims=dims, num_classes=5, **SMALL).double())
    deep = centred(flat, create_model("poolformer_s12", dims=dims + 1, num_classes=5, **SMALL).double())
    x = image(*(40, 36)[:dims]).double()
    torch.testing.assert_close(deep(x.unsqueeze(-1).expand(*x.shape, 33)), flat(x), rtol=1e-10, atol=1e-10)


def test_the_reason_given_for_the_figure_is_the_reason():
    """Five operations per normalised value lead to the printed 11.6."""
    with on_meta():
        model = create_model("poolformer_m48")
        values = []
        for module in model.modules():
            if isinstance(module, nn.GroupNorm):
                module.register_forward_hook(lambda module, args, output: values.append(output.numel()))
        macs = count_macs(model, (1, 3, 224, 224))
    assert round((macs + 5 * sum(values)) / 1e9, 1) == model_entry("poolformer_m48").figures.gmacs
