"""InceptionNeXt against timm, a depthwise convolution written with whole kernels, and its figures."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model, list_models, model_entry
from cnnkit.backbones.inceptionnext import InceptionDepthwise
from cnnkit.count import count_macs, on_meta
from cnnkit.errors import CheckpointError, ConfigError
from cnnkit.testing.compare import assert_near, assert_same_keys, image, randomise
from torch import nn

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.paper("inceptionnext")

SMALL = {"depths": (1, 2, 1, 1), "widths": (8, 16, 24, 32)}
SIZES = ((64, 64), (75, 97))


def of_timm() -> nn.Module:
    from timm.models.inception_next import MetaNeXt

    return randomise(MetaNeXt(depths=SMALL["depths"], dims=SMALL["widths"], num_classes=5))


@torch.no_grad()
def test_logits_and_pyramid_equal_timm():
    theirs = of_timm()
    ours = create_model("inception_next_tiny", num_classes=5, weights=theirs.state_dict(), **SMALL).eval()
    for size in SIZES:
        assert_near(ours.forward_pyramid(image(*size)), theirs.forward_intermediates(image(*size))[1])
        assert_near(ours(image(*size)), theirs(image(*size)))
    assert ours.feature_info.reduction() == [level["reduction"] for level in theirs.feature_info]


@pytest.mark.parametrize("name", list_models(family="inceptionnext"))
def test_variants_have_the_keys_and_shapes_of_timm(name):
    with on_meta():
        ours, theirs = create_model(name), timm.create_model(name)
    assert_same_keys(ours, theirs)


@pytest.mark.parametrize("dims", [1, 2, 3])
@torch.no_grad()
def test_the_mixer_is_a_depthwise_convolution_with_mostly_empty_kernels(dims):
    """One kernel of 5 positions along every axis holds the impulse, the cube and the lines; the first channels pass bit by bit."""
    torch.manual_seed(0)
    mixer = InceptionDepthwise(16, dims=dims, band_kernel=5).double()
    kernel, bias = torch.zeros(16, 1, *(5,) * dims, dtype=torch.float64), torch.zeros(16, dtype=torch.float64)
    first = 16 - 2 * (1 + dims)
    kernel[(slice(0, first), 0, *(2,) * dims)] = 1
    for branch, name in enumerate(("hw", "w", "h", "d")[: 1 + dims]):
        channels = slice(first + 2 * branch, first + 2 * branch + 2)
        layer = mixer.get_submodule(f"dwconv_{name}")
        where = [slice(1, 4)] * dims if name == "hw" else [slice(2, 3)] * dims
        if name != "hw":
            where[-branch] = slice(None)
        kernel[(channels, slice(None), *where)] = layer.weight
        bias[channels] = layer.bias
    x = torch.randn(2, 16, *(7, 8, 9)[:dims], dtype=torch.float64)
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims]
    torch.testing.assert_close(mixer(x), convolve(x, kernel, bias, padding=2, groups=16), rtol=1e-12, atol=1e-12)
    assert torch.equal(mixer(x)[:, :first], x[:, :first])


def test_branches_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="4 branches of 4 channels do not fit into 12"):
        InceptionDepthwise(12, dims=3, branch_ratio=0.34)
    with pytest.raises(ConfigError, match="branches of 0 channels"):
        InceptionDepthwise(4)
    with pytest.raises(ConfigError, match="give one number of each per stage"):
        create_model("inception_next_tiny", depths=(1, 1))


def test_the_classifier_has_a_hidden_layer():
    state = create_model("inception_next_tiny", num_classes=4, **SMALL).state_dict()
    assert state["head.fc1.weight"].shape == (96, 32) and state["head.fc2.weight"].shape == (4, 96)
    with pytest.raises(CheckpointError, match=r"head has 4 classes .* num_classes=9"):
        create_model("inception_next_tiny", num_classes=9, weights=state, **SMALL)
    bare = create_model("inception_next_tiny", num_classes=0, weights=state, **SMALL)
    assert bare(image(64, 64)).shape == (2, 32)
    bare.reset_classifier(3, global_pool="max")
    assert bare(image(64, 64)).shape == (2, 3)


@pytest.mark.parametrize("dims", [1, 2])
@torch.no_grad()
def test_axes_are_treated_alike(dims):
    """A volume whose last axes are turned, by kernels turned in the same way, gives turned features."""
    model = randomise(create_model("inception_next_tiny", dims=dims + 1, num_classes=0, **SMALL).double())
    turned = create_model("inception_next_tiny", dims=dims + 1, num_classes=0, **SMALL).double().eval()
    state = {key: value.transpose(-1, -2) if value.ndim > 3 else value for key, value in model.state_dict().items()}
    swapped = {key.replace("_w.", "_?.").replace("_h.", "_w.").replace("_?.", "_h."): value for key, value in state.items()}
    turned.load_state_dict(swapped)
    # The two lines work on different channels, so exchange those as well.
    for mine, other in zip(model.modules(), turned.modules(), strict=True):
        if isinstance(mine, InceptionDepthwise):
            before, part = mine.parts[0] + mine.parts[1], mine.parts[1]
            order = torch.arange(sum(mine.parts))
            order[before : before + part], order[before + part : before + 2 * part] = (
                order[before + part : before + 2 * part].clone(),
                order[before : before + part].clone(),
            )
            other.register_forward_pre_hook(lambda module, args, order=order: (args[0][:, order],))
            other.register_forward_hook(lambda module, args, output, order=order: output[:, order])
    x = image(*(33, 40, 48)[-dims - 1 :]).double()
    expected = model.forward_features(x).transpose(-1, -2)
    torch.testing.assert_close(turned.forward_features(x.transpose(-1, -2)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", list_models(family="inceptionnext"))
def test_the_reason_given_for_the_figures_is_the_reason(name):
    """Five operations per normalised value lead to all four printed figures."""
    with on_meta():
        model = create_model(name)
        values = []
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(lambda module, args, output: values.append(output.numel()))
        macs = (count_macs(model, (1, 3, 224, 224)) + 5 * sum(values)) / 1e9
    figure = model_entry(name).figures.gmacs
    assert round(macs, 2 if figure < 1 else 1) == figure
