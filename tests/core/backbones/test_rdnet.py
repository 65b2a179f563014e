"""RDNet against timm, the paper's counts and the arithmetic of its channels."""

from __future__ import annotations

import pytest
import torch
from cnnkit.backbones import create_model, list_models, model_entry
from cnnkit.backbones.rdnet import FeatureMixer, RDNet
from cnnkit.count import on_meta
from cnnkit.errors import CheckpointError, ConfigError, InputError
from cnnkit.testing.compare import assert_near, assert_same_keys, centred, image, randomise
from cnnkit.weights import load_weights
from torch import nn

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.paper("rdnet")

SMALL = {"stem_channels": 16, "growth_rates": (8, 12, 8, 16, 8), "depths": (2, 1, 2, 1, 2), "downsample": (False, True, False, True, True)}
TIMM = {
    "num_init_features": 16,
    "growth_rates": (8, 12, 8, 16, 8),
    "num_blocks_list": (2, 1, 2, 1, 2),
    "is_downsample_block": (None, True, False, True, True),
    "block_type": ("Block", "Block", *["BlockESE"] * 3),
}


@torch.no_grad()
def test_logits_and_pyramid_equal_timm():
    theirs = randomise(timm.create_model("rdnet_tiny", num_classes=5, **TIMM))
    ours = create_model("rdnet_tiny", num_classes=5, weights=theirs.state_dict(), **SMALL).eval()
    assert ours.feature_info.channels() == [level["num_chs"] for level in theirs.feature_info]
    assert ours.feature_info.reduction() == [level["reduction"] for level in theirs.feature_info] == [4, 8, 16, 32]
    for size in ((64, 64), (75, 97)):
        x = image(*size)
        assert_near(ours(x), theirs(x))
        features = theirs.forward_features(x)
        assert_near(ours.forward_head(features, pre_logits=True), theirs.forward_head(features, pre_logits=True))
        assert_near(ours.forward_pyramid(x), theirs.forward_intermediates(x, intermediates_only=True))


@torch.no_grad()
def test_the_official_layout_loads():
    """timm brings the official keys to its own; ours must come to the same place."""
    from timm.models.rdnet import checkpoint_filter_fn

    theirs = randomise(timm.create_model("rdnet_tiny", num_classes=5, **TIMM))
    official = {key.replace("stem.", "stem.stem."): value for key, value in theirs.state_dict().items()}
    assert checkpoint_filter_fn(dict(official), theirs).keys() == theirs.state_dict().keys()
    ours = RDNet(num_classes=5, **SMALL).eval()
    assert load_weights(ours, official) == "official"
    assert_near(ours(image(64, 64)), theirs(image(64, 64)))
    with pytest.raises(CheckpointError, match="in no layout"):
        load_weights(ours, {"trunk.weight": torch.ones(1)})


@pytest.mark.parametrize("name", list_models(family="rdnet"))
def test_variants_have_the_keys_and_shapes_of_timm(name):
    with on_meta():
        ours, theirs = create_model(name), timm.create_model(name)
    assert_same_keys(ours, theirs)
    assert ours.feature_info.channels() == [level["num_chs"] for level in theirs.feature_info]


@pytest.mark.parametrize(("name", "millions"), [("rdnet_tiny", 23.9), ("rdnet_small", 50.4), ("rdnet_base", 87.5), ("rdnet_large", 186.3)])
def test_parameters_are_the_papers(name, millions):
    assert round(model_entry(name).params / 1e6, 1) == millions


def test_concatenation_is_what_widens():
    """Every mixer adds its growth rate to what it got, a transition halves, and the features that came in stay as they were."""
    model = RDNet(**SMALL)
    stages = [stage[-1] for stage in model.dense_stages]
    widths = [[mixer.layers.layers[0].in_channels for mixer in stage.children()] for stage in stages]
    assert widths == [[16, 24], [16], [8, 16], [8], [8, 16]]  # 32 / 2; (16 + 12) / 2 = 14, rounded down to 8; 24 / 2 to 8; 24 / 2 to 8.
    x = image(6, 5, channels=16)
    assert torch.equal(stages[0](x)[:, :16], x)


def test_the_hidden_width_follows_the_input_not_the_growth():
    for channels, growth in ((24, 8), (24, 16), (40, 8)):
        assert FeatureMixer(channels, growth).layers.layers[2].out_channels == 4 * channels


@torch.no_grad()
def test_a_mixer_is_its_equation():
    """In float64, to 1e-12: with squeeze-and-excitation and the scale."""
    mixer = randomise(FeatureMixer(8, 6, squeeze=True).double())
    x = 2 * image(7, 9, channels=8).double()
    depthwise, norm, widen, _, narrow, squeeze = mixer.layers.layers
    y = nn.functional.conv2d(x, depthwise.weight, depthwise.bias, padding=3, groups=8)
    y = (y - y.mean(1, keepdim=True)) / (y.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    y = y * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
    y = torch.einsum("bchw,oc->bohw", y, widen.weight[..., 0, 0]) + widen.bias.view(1, -1, 1, 1)
    y = y * (1 + torch.erf(y / 2**0.5)) / 2
    y = torch.einsum("bchw,oc->bohw", y, narrow.weight[..., 0, 0]) + narrow.bias.view(1, -1, 1, 1)
    gate = ((y.mean((2, 3)) @ squeeze.fc.weight[..., 0, 0].T + squeeze.fc.bias + 3) / 6).clamp(0, 1)
    assert ((gate > 0) & (gate < 1)).any()
    y = y * gate[..., None, None] * mixer.gamma.view(1, -1, 1, 1)
    torch.testing.assert_close(mixer(x), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("out_indices", [None, (0,), (1, 2)])
def test_every_parameter_of_a_pyramid_gets_a_gradient(out_indices):
    model = create_model("rdnet_tiny", features_only=True, out_indices=out_indices, layer_scale=1.0, **SMALL)
    sum(level.square().mean() for level in model(image(64, 64))).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("dims", [1, 2])
@torch.no_grad()
def test_a_stacked_input_gives_what_a_slice_gives(dims):
    """With kernels centred in the new axis slices never mix; down-sampling takes some of them."""
    flat = randomise(create_model("rdnet_tiny", dims=dims, num_classes=5, **SMALL).double())
    deep = centred(flat, create_model("rdnet_tiny", dims=dims + 1, num_classes=5, **SMALL).double())
    x = image(*(64, 32)[:dims]).double()
    torch.testing.assert_close(deep(x.unsqueeze(-1).expand(*x.shape, 32)), flat(x), rtol=1e-10, atol=1e-10)


def test_stochastic_depth_rises_and_drops_only_new_features():
    model = RDNet(drop_path_rate=0.5, **SMALL)
    rates = [module.drop_path.rate for module in model.modules() if isinstance(module, FeatureMixer)]
    assert rates == sorted(rates) and (rates[0], rates[-1]) == (0, 0.5)
    stage = model.dense_stages[0][-1].train()
    for mixer in stage.children():
        mixer.drop_path.rate = 1 - 1e-9
    x = image(4, 4, channels=16)
    out = stage(x)
    assert torch.equal(out[:, :16], x) and not out[:, 16:].any()


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="depths 5 and downsample 4"):
        RDNet(**{**SMALL, "downsample": (False, True, True, True)})
    with pytest.raises(ConfigError, match="begin downsample with False"):
        RDNet(**{**SMALL, "downsample": (True,) * 5})
    with pytest.raises(InputError, match="at least 32"):
        RDNet(**SMALL)(image(31, 40))
