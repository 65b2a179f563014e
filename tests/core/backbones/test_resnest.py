"""ResNeSt against timm, the authors' dilation, and the plain equation of split attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model, list_models, model_entry
from cnnkit.backbones.resnest import ResNeSt, SplitAttention
from cnnkit.count import count_macs, count_params, on_meta
from cnnkit.errors import ConfigError
from cnnkit.testing.compare import assert_near, assert_same_keys, centred, image, randomise
from torch import nn

pytestmark = pytest.mark.paper("resnest")

DEPTHS, WIDTHS = (1, 2, 1, 1), (8, 8, 16, 24)
NARROW = {"depths": DEPTHS, "widths": WIDTHS, "stem_width": 8}
CASES = {
    "resnest50d": {},
    "resnest101e": {},
    "resnest50d_4s2x40d": {"base_width": 64},
    "resnest50d_1s4x24d": {"base_width": 32},
}


def of_timm(name: str, **args: object) -> nn.Module:
    timm = pytest.importorskip("timm")
    return randomise(timm.create_model(name, num_classes=7, layers=DEPTHS, channels=WIDTHS, stem_width=8, **CASES[name], **args))


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits_and_pyramid_equal_timm(name):
    theirs = of_timm(name)
    ours = create_model(name, num_classes=7, weights=theirs.state_dict(), **NARROW, **CASES[name]).eval()
    for size in ((64, 64), (75, 97)):
        assert_near(ours(image(*size)), theirs(image(*size)))
        assert_near(ours.forward_pyramid(image(*size)), theirs.forward_intermediates(image(*size))[1])


@torch.no_grad()
def test_dilation_is_the_authors():
    """Where dilation is in a stride's place, a block still takes means and a shortcut does not; timm has it the other way round."""
    theirs = of_timm("resnest50d", output_stride=8)
    for stage in (theirs.layer3, theirs.layer4):
        stage[0].avd_last = nn.AvgPool2d(3, 1, padding=1)
        stage[0].downsample[0] = nn.Identity()
    ours = create_model("resnest50d", num_classes=7, output_stride=8, weights=theirs.state_dict(), **NARROW).eval()
    assert ours.feature_info.reduction() == [2, 4, 8, 8, 8]
    assert_near(ours(image(64, 48)), theirs(image(64, 48)))


@pytest.mark.parametrize("name", list_models(family="resnest"))
def test_variants_have_the_keys_and_shapes_of_timm(name):
    """Those that timm does not name are its own class with the authors' arguments."""
    timm = pytest.importorskip("timm")
    args = {}
    if not timm.is_model(name):
        known = model_entry(name).args
        args = {"base_width": known["base_width"], "cardinality": known["cardinality"]}
        args["block_args"] = {"radix": known["radix"], "avd": True, "avd_first": True}
    with on_meta():
        ours, theirs = create_model(name), timm.create_model(name if timm.is_model(name) else "resnest50d", **args)
    assert_same_keys(ours, theirs)


def test_numbers_of_parameters():
    with on_meta():
        assert count_params(create_model("resnest50d")) == 27_483_240
        assert count_params(create_model("resnest269e")) == 110_929_480


@pytest.mark.parametrize("name", ["resnest50d", "resnest50d_1s1x64d", "resnest50d_4s1x64d", "resnest50d_2s2x40d"])
def test_the_reason_given_for_the_figures_is_the_reason(name):
    normalised = 0

    def watch(module, args, out):
        nonlocal normalised
        normalised += out.numel()

    with on_meta():
        model = create_model(name).eval()
        layers = count_macs(model, (1, 3, 224, 224))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(watch)
        model(torch.empty(1, 3, 224, 224))
    assert round((layers + normalised) / 1e9, 2) == model_entry(name).figures.gmacs


@pytest.mark.parametrize(("dims", "radix", "groups"), [(1, 2, 1), (2, 1, 4), (2, 2, 2), (2, 4, 2), (3, 4, 1)])
@torch.no_grad()
def test_split_attention_is_the_equation_in_each_group_by_itself(dims, radix, groups):
    channels, each = 8, 8 // groups
    layer = randomise(SplitAttention(channels, dims=dims, radix=radix, groups=groups)).double()
    x = image(*(7, 6, 5)[:dims], channels=channels).double()
    answers = F.relu(layer.bn0(layer.conv(x))).view(2, radix, channels, -1)
    hidden = layer.fc1.out_channels // groups
    weights = layer.weights(answers.view(2, radix * channels, *x.shape[2:]))
    assert weights.shape == (2, radix, channels, *[1] * dims)
    total = torch.zeros_like(answers[:, 0])
    for group in range(groups):
        mine, inner = slice(group * each, (group + 1) * each), slice(group * hidden, (group + 1) * hidden)
        out = slice(group * radix * each, (group + 1) * radix * each)
        means = answers.sum(1).mean(2)[:, mine]
        h = means @ layer.fc1.weight[inner].flatten(1).T + layer.fc1.bias[inner]
        norm = layer.bn1
        scale = norm.weight[inner] / (norm.running_var[inner] + norm.eps).sqrt()
        h = F.relu((h - norm.running_mean[inner]) * scale + norm.bias[inner])
        scores = (h @ layer.fc2.weight[out].flatten(1).T + layer.fc2.bias[out]).view(2, radix, each)
        expected = scores.softmax(1) if radix > 1 else scores.sigmoid()
        torch.testing.assert_close(weights.flatten(2)[:, :, mine], expected, rtol=1e-10, atol=1e-10)
        total[:, mine] = (expected[..., None] * answers[:, :, mine]).sum(1)
    torch.testing.assert_close(layer(x), total.view_as(x), rtol=1e-10, atol=1e-10)
    if radix > 1:
        torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_each_answer_is_of_its_own_part_of_the_channels():
    layer = randomise(SplitAttention(8, radix=2)).double()
    x = image(5, 6, channels=8).double()
    changed = x.clone()
    changed[:, 4:] += 1
    same = (layer.conv(x) == layer.conv(changed)).flatten(2).all(2)
    assert bool(same[:, :8].all()) and not bool(same[:, 8:].any())


@pytest.mark.parametrize("dims", [1, 2])
@torch.no_grad()
def test_the_one_of_a_stacked_input_equals_the_one_of_a_slice(dims):
    """With kernels that see one position of the new axis."""
    layer = randomise(SplitAttention(8, dims=dims, groups=2)).double()
    deep = centred(layer, SplitAttention(8, dims=dims + 1, groups=2).double())
    x = image(*(7, 6)[:dims], channels=8).double()
    stacked = x.unsqueeze(-1).expand(*x.shape, 5)
    torch.testing.assert_close(deep(stacked), layer(x).unsqueeze(-1).expand_as(stacked), rtol=1e-10, atol=1e-10)


def test_impossible_numbers_are_explained():
    with pytest.raises(ConfigError, match="must divide the"):
        SplitAttention(9, groups=3)
    with pytest.raises(ConfigError, match="radix=0"):
        ResNeSt(radix=0)
