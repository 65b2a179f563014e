"""SE-ResNet, SE-ResNeXt and SENet-154 against timm and the paper's numbers."""

from __future__ import annotations

import pytest
import torch
from cnnkit.backbones import create_model, list_models, model_entry
from cnnkit.backbones.resnet import Bottleneck
from cnnkit.count import count_macs, count_params, on_meta
from cnnkit.testing.compare import assert_near, assert_same_keys, centred, image, randomise

pytestmark = pytest.mark.paper("se")
timm = pytest.importorskip("timm")

NARROW = {"depths": (1, 2, 1, 1), "widths": (16, 16, 32, 64)}
GROUPED = {"cardinality": 4, "base_width": 16}
OURS = {
    "seresnet18": NARROW,
    "seresnet50": NARROW,
    "seresnet152d": NARROW,
    "seresnext50_32x4d": NARROW | GROUPED,
    "senet154": NARROW | GROUPED,
}


@pytest.mark.parametrize("name", OURS)
@torch.no_grad()
def test_logits_and_pyramid_equal_timm(name):
    sizes = {{"depths": "layers", "widths": "channels"}.get(word, word): value for word, value in OURS[name].items()}
    theirs = randomise(timm.create_model(name, num_classes=7, **sizes))
    ours = create_model(name, num_classes=7, weights=theirs.state_dict(), **OURS[name]).eval()
    for size in ((64, 64), (75, 97)):
        assert_near(ours(image(*size)), theirs(image(*size)))
        assert_near(ours.forward_pyramid(image(*size)), theirs.forward_intermediates(image(*size))[1])


@torch.no_grad()
def test_dilated_senet_equals_timm():
    """Its 3x3 shortcuts stay 3x3 where dilation takes the stride's place, so that the same weights fit."""
    sizes = OURS["senet154"]
    theirs = randomise(
        timm.create_model("senet154", output_stride=8, num_classes=7, **{"layers": (1, 2, 1, 1), "channels": sizes["widths"]}, **GROUPED)
    )
    ours = create_model("senet154", output_stride=8, num_classes=7, weights=theirs.state_dict(), **sizes).eval()
    assert_near(ours(image(64, 48)), theirs(image(64, 48)))
    create_model("senet154", num_classes=7, weights=theirs.state_dict(), **sizes)


@pytest.mark.parametrize("name", list_models(family="se_resnet"))
def test_variants_have_the_keys_and_shapes_of_timm(name):
    with on_meta():
        ours, theirs = create_model(name), timm.create_model(name)
    assert_same_keys(ours, theirs)


@pytest.mark.parametrize("name", ["seresnet50", "seresnet101", "seresnet152", "seresnext50_32x4d"])
def test_extra_weights_are_the_papers_formula(name):
    """``2 / r * sum_s N_s C_s^2`` without biases, which add ``C + C / r`` for each block."""
    args = dict(model_entry(name).args) | {"attention": "none"}
    with on_meta():
        with_se = create_model(name)
        plain = model_entry(name).load()(**args)
    blocks = [(count, 256 * 2**stage) for stage, count in enumerate(args["depths"])]
    weights = 2 / 16 * sum(count * channels**2 for count, channels in blocks)
    biases = sum(count * (channels + channels // 16) for count, channels in blocks)
    assert count_params(with_se) - count_params(plain) == weights + biases


def test_the_reason_given_for_the_multiply_adds_is_the_reason():
    """With the stride where the paper has it, the count is the paper's 3.87."""
    with on_meta():
        model = create_model("seresnet50")
    for block in model.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    assert abs(count_macs(model, (1, 3, 224, 224)) / 1e9 - model_entry("seresnet50").figures.gmacs) < 0.01


@torch.no_grad()
def test_open_gates_are_the_plain_network_and_gates_lie_between_zero_and_one():
    model = randomise(create_model("seresnet50", num_classes=5, **NARROW))
    gates = []
    hooks = [
        block.se.gate.register_forward_hook(lambda module, args, out: gates.append(out))
        for block in model.modules()
        if hasattr(block, "se")
    ]
    model(image(64, 64))
    assert len(gates) == 5 and all(bool((gate > 0).all() and (gate < 1).all()) for gate in gates)
    for hook in hooks:
        hook.remove()
    for block in model.modules():
        if isinstance(block, Bottleneck):
            block.se.fc2.weight.zero_()
            block.se.fc2.bias.fill_(100.0)  # The sigmoid is then 1 to the last bit.
    state = {key: value for key, value in model.state_dict().items() if ".se." not in key}
    plain = create_model("resnet50", num_classes=5, weights=state, **NARROW).eval()
    torch.testing.assert_close(model(image(64, 64)), plain(image(64, 64)), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["seresnet50", "senet154"])
@torch.no_grad()
def test_the_one_of_a_stacked_input_equals_the_one_of_a_slice(name):
    sizes = OURS[name] | {"depths": (1, 1, 1, 1), "num_classes": 5}
    flat = randomise(create_model(name, dims=1, **sizes).double())
    deep = centred(flat, create_model(name, dims=2, **sizes).double())
    x = image(40).double()
    torch.testing.assert_close(deep(x.unsqueeze(-1).expand(*x.shape, 33)), flat(x), rtol=1e-10, atol=1e-10)


def test_senet_drops_a_fifth_before_its_classifier():
    with on_meta():
        assert create_model("senet154", **NARROW, **GROUPED).head_drop.p == 0.2
