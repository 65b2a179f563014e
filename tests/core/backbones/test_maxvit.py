"""MaxViT against timm and torchvision; the bias by relative position by its definition; what each attention reaches."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cnnkit.backbones import create_model, list_models
from cnnkit.backbones.maxvit import PartitionAttention
from cnnkit.count import count_params, on_meta
from cnnkit.errors import ConfigError
from cnnkit.layers.relative_bias import RelativeAttention, RelativePositionBias
from cnnkit.testing.compare import assert_near, assert_same_keys, image, randomise
from torch import nn

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
pytestmark = pytest.mark.paper("maxvit")

NARROW = {"depths": (1, 2, 1, 1), "widths": (16, 32, 32, 48), "stem_width": 16, "partition_size": 2, "head_dim": 16}


def drawn(model: nn.Module) -> nn.Module:
    return randomise(model, spread={"relative_position_bias_table": 1.0})


def of_timm(**kwargs) -> nn.Module:
    """timm's network with the numbers of ``NARROW``."""
    from timm.models.maxxvit import MaxxVit, model_cfgs

    cfg = model_cfgs["maxvit_tiny_tf"]
    attention = dataclasses.replace(cfg.transformer_cfg, dim_head=NARROW["head_dim"], window_size=(2, 2), grid_size=(2, 2))
    words = {"embed_dim": NARROW["widths"], "depths": NARROW["depths"], "stem_width": NARROW["stem_width"], "head_hidden_size": 48}
    return drawn(MaxxVit(dataclasses.replace(cfg, transformer_cfg=attention, **words), img_size=64, **kwargs))


@pytest.mark.parametrize("size", [(64, 64), (64, 128)])
@torch.no_grad()
def test_logits_and_features_equal_timm(size):
    theirs = of_timm(num_classes=7)
    ours = create_model("maxvit_tiny_tf_224", num_classes=7, weights=theirs.state_dict(), **NARROW).eval()
    x = image(*size)
    assert_near(ours(x), theirs(x))
    features = ours.forward_features(x)
    assert_near(ours.forward_head(features, pre_logits=True), theirs.forward_head(features, pre_logits=True))
    levels, expected = ours.forward_pyramid(x), theirs.forward_intermediates(x, intermediates_only=True)
    assert ours.feature_info.reduction() == [level["reduction"] for level in theirs.feature_info]
    assert_near(levels, expected)


@pytest.mark.parametrize("name", list_models(family="maxvit"))
def test_named_variants_have_the_keys_and_shapes_of_their_oracle(name):
    with on_meta():
        ours = create_model(name)
        theirs = torchvision.models.maxvit_t(weights=None) if name == "maxvit_t" else timm.create_model(name, num_classes=1000)
    state = theirs.state_dict()
    if name == "maxvit_t":
        state = ours.layouts[1].convert(state)
        assert count_params(ours) == 30_919_624
    assert_same_keys(ours, state)


@torch.no_grad()
def test_logits_and_pyramid_equal_torchvision():
    from torchvision.models.maxvit import MaxVit

    theirs = drawn(
        MaxVit(input_size=(64, 64), stem_channels=16, partition_size=2, block_channels=[16, 32, 32, 48], block_layers=[1, 2, 1, 1],
               head_dim=16, stochastic_depth_prob=0.0, num_classes=7)
    )  # fmt: skip
    ours = create_model("maxvit_t", num_classes=7, weights=theirs.state_dict(), **NARROW).eval()
    x = image(64, 64)
    assert_near(ours(x), theirs(x))
    for index, level in enumerate(ours.forward_pyramid(x)):
        x = theirs.blocks[index - 1](x) if index else theirs.stem(x)
        assert_near(level, x)


@pytest.mark.parametrize("window", [(4,), (3, 2), (2, 3, 2)])
def test_the_bias_is_read_from_the_table_at_key_minus_query(window):
    torch.manual_seed(0)
    layer = RelativePositionBias(2, window)
    places = list(torch.cartesian_prod(*(torch.arange(side) for side in window)).reshape(-1, len(window)))
    bias = layer()
    for q, query in enumerate(places):
        for k, key in enumerate(places):
            entry = (slice(None), *(key - query + torch.tensor(window) - 1))
            assert torch.equal(bias[:, q, k], layer.relative_position_bias_table[entry])


def test_the_table_is_resampled_for_another_window():
    """A table that rises linearly still does, by as much over the whole window; the window that it was made for takes it as it is."""
    layer = RelativePositionBias(1, (4,)).double()
    with torch.no_grad():
        layer.relative_position_bias_table.copy_(torch.arange(7.0)[None])
    assert torch.equal(layer((4,)), layer())
    bias = layer((7,))  # 13 entries in place of 7.
    steps = bias[0, 6, 2:6] - bias[0, 6, 1:5]  # Without the ends, where the rule of half pixels repeats the outermost entries.
    torch.testing.assert_close(steps, torch.full_like(steps, 7 / 13))
    assert bias.shape == (1, 7, 7) and bias[0, 3, 3].item() == 3.0


def test_attention_with_a_bias_is_the_formula():
    torch.manual_seed(0)
    layer = RelativeAttention(8, heads=2, window=(2, 2)).double().requires_grad_(False)
    nn.init.normal_(layer.rel_pos.relative_position_bias_table)
    x, mask = torch.randn(3, 4, 8, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)
    query, key, value = layer.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    weights = (query @ key.mT / 2 + layer.rel_pos() + mask).softmax(-1)
    expected = layer.proj((weights @ value).transpose(1, 2).flatten(-2))
    torch.testing.assert_close(layer(x, mask), expected, rtol=1e-12, atol=1e-12)
    bare = RelativeAttention(8, heads=2, window=None).double()
    bare.load_state_dict(layer.state_dict(), strict=False)
    weights = (query @ key.mT / 2).softmax(-1)
    torch.testing.assert_close(bare(x), layer.proj((weights @ value).transpose(1, 2).flatten(-2)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("grid", [False, True])
def test_attention_reaches_the_window_or_the_grid(dims, grid):
    """The gradient of one position is not zero at just those that it attends to: its block, or every third position."""
    torch.manual_seed(0)
    layer = PartitionAttention(8, size=2, grid=grid, dims=dims, head_dim=4)
    x = torch.randn(1, *(6,) * dims, 8, requires_grad=True)
    layer(x)[(0, *(3,) * dims)].sum().backward()
    reached = x.grad[0].abs().sum(-1) > 0
    expected = torch.zeros_like(reached)
    expected[(slice(0, None, 3) if grid else slice(2, 4),) * dims] = True
    assert torch.equal(reached, expected)


def test_dimensions_treat_axes_alike():
    """Transposing kernels and tables transposes the features; the window's tokens are then numbered along another axis."""
    model = drawn(create_model("maxvit_tiny_tf_224", dims=3, num_classes=0, **NARROW)).double()
    turned = create_model("maxvit_tiny_tf_224", dims=3, num_classes=0, **NARROW).double().eval()
    state = {}
    for key, value in model.state_dict().items():
        if value.ndim == 5:
            value = value.movedim(2, 4)
        elif key.endswith("relative_position_bias_table"):
            value = value.movedim(1, 3)
        state[key] = value
    turned.load_state_dict(state)
    x = image(64, 64, 128).double()[:1]
    with torch.no_grad():
        found = turned.forward_features(x.movedim(2, 4))
        torch.testing.assert_close(found, model.forward_features(x).movedim(2, 4), rtol=1e-9, atol=1e-9)


def test_faults_are_named():
    with pytest.raises(ConfigError, match="did you mean 'paper'"):
        create_model("maxvit_tiny_tf_224", conventions="papers")
    with pytest.raises(ConfigError, match="head_dim=32"):
        create_model("maxvit_tiny_tf_224", widths=(48, 96, 192, 384))
