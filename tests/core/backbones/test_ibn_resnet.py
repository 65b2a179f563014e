"""IBN-Net against the equations of the authors' code, and what it is for: an appearance that was never seen in training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model
from cnnkit.backbones.ibn_resnet import IBNResNet
from cnnkit.backbones.resnet import ResNet
from cnnkit.count import count_params, on_meta
from cnnkit.errors import ConfigError
from cnnkit.testing.compare import image, randomise
from torch import nn

pytestmark = pytest.mark.paper("ibn-net")
NARROW = {"depths": (2, 2, 1, 1), "widths": (8, 16, 24, 32)}


def official(state: dict[str, torch.Tensor], x: torch.Tensor, depths: tuple[int, ...], groups: int = 1) -> torch.Tensor:
    """The authors' forward pass, from their weights alone: the keys say which normalisation stands where."""

    def norm(y: torch.Tensor, name: str) -> torch.Tensor:
        if f"{name}.IN.weight" in state:
            half = state[f"{name}.IN.weight"].numel()
            return torch.cat([norm(y[:, :half], f"{name}.IN"), norm(y[:, half:], f"{name}.BN")], 1)
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        if f"{name}.running_mean" not in state:
            return F.instance_norm(y, weight=weight, bias=bias)
        return F.batch_norm(y, state[f"{name}.running_mean"], state[f"{name}.running_var"], weight, bias)

    x = F.relu(norm(F.conv2d(x, state["conv1.weight"], stride=2, padding=3), "bn1"))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, depth in enumerate(depths, 1):
        for block in range(depth):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            last = 3 if f"{name}.conv3.weight" in state else 2
            y = x
            for layer in range(1, last + 1):
                weight = state[f"{name}.conv{layer}.weight"]
                strided, grouped = layer == last - 1, layer == 2 and last == 3
                y = F.conv2d(y, weight, stride=stride if strided else 1, padding=weight.shape[-1] // 2, groups=groups if grouped else 1)
                y = norm(y, f"{name}.bn{layer}")
                y = F.relu(y) if layer < last else y
            if f"{name}.se.fc.0.weight" in state:
                hidden = F.relu(y.mean((2, 3)) @ state[f"{name}.se.fc.0.weight"].T)
                y = y * torch.sigmoid(hidden @ state[f"{name}.se.fc.2.weight"].T)[..., None, None]
            if f"{name}.downsample.0.weight" in state:
                x = norm(F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride), f"{name}.downsample.1")
            y = y + x
            x = F.relu(norm(y, f"{name}.IN") if f"{name}.IN.weight" in state else y)
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


CASES = {
    "resnet18_ibn_a": NARROW,
    "resnet50_ibn_a": NARROW,
    "resnet18_ibn_b": NARROW,
    "resnet50_ibn_b": NARROW,
    "resnext50_ibn_a": NARROW | {"groups": 4},
    "seresnet50_ibn_a": NARROW,
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_equals_the_official_equations_with_official_weights(name):
    source = randomise(create_model(name, num_classes=7, **CASES[name])).double()
    state = {}
    for key, value in source.state_dict().items():  # To the authors' names; their excitation has no biases.
        if ".se." in key and key.endswith("weight"):
            state[key.replace("fc1", "fc.0").replace("fc2", "fc.2")] = value[..., 0, 0]
        elif ".se." not in key:
            state[key.replace("act_out.IN", "IN")] = value
    if name.endswith("_b"):
        assert (
            {"layer1.1.IN.weight", "layer2.1.IN.bias"} <= state.keys()
            and "layer1.0.IN.weight" not in state
            and "bn1.running_mean" not in state
        )
    else:
        assert {"layer1.0.bn1.IN.weight", "layer3.0.bn1.BN.running_var"} <= state.keys() and "layer4.0.bn1.IN.weight" not in state
    ours = create_model(name, num_classes=7, weights=state, **CASES[name]).double().eval()
    for size in ((64, 64), (75, 97)):
        x = image(*size).double()
        expected = official(state, x, NARROW["depths"], groups=CASES[name].get("groups", 1))
        torch.testing.assert_close(ours(x), expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_form_a_has_the_parameters_of_the_plain_network():
    with on_meta():
        assert count_params(create_model("resnet50_ibn_a")) == count_params(create_model("resnet50")) == 25_557_032
        assert count_params(create_model("resnext50_ibn_a")) == 25_028_904
        # Form b adds one affine map at the end of each of the first two stages.
        assert count_params(create_model("resnet50_ibn_b")) == 25_557_032 + 2 * (256 + 512)


@torch.no_grad()
def test_form_b_does_not_see_the_contrast_of_an_image():
    """The stem's convolution has no bias, and its normalisation is of the image itself; a batch-normalised stem does see it."""
    x = image(64, 64).double()
    blind, seeing = (randomise(create_model(name, num_classes=7, **NARROW)).double() for name in ("resnet50_ibn_b", "resnet50"))
    scale = torch.tensor([3.0, 0.5], dtype=torch.float64).view(2, 1, 1, 1)
    torch.testing.assert_close(blind(scale * x), blind(x), rtol=1e-3, atol=1e-3)
    assert float((seeing(scale * x) - seeing(x)).abs().max()) > 0.1


def test_words_that_do_not_fit():
    for wrong in (("a", "a"), ("a", "a", "c", "none")):
        with pytest.raises(ConfigError, match="for each of the 4 stages"):
            IBNResNet(ibn=wrong)


@pytest.mark.parametrize("dims", [1, 3])
def test_normalisations_of_other_dimensions(dims):
    model = randomise(create_model("resnet50_ibn_a", dims=dims, num_classes=5, ibn=("b", "a", "none", "none"), **NARROW)).train()
    model(image(*(40, 36, 33)[:dims])).sum().backward()
    for name in ("layer1.1.act_out.IN", "layer2.0.bn1.IN", "bn1"):
        norm = model.get_submodule(name)
        assert isinstance(norm, {1: nn.InstanceNorm1d, 3: nn.InstanceNorm3d}[dims]) and bool(norm.weight.grad.any())


def test_generalises_from_digits_to_digits_of_low_contrast():
    """Trained on white digits on black, tested on grey ones on grey: over five points better than its batch-normalised twin."""
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, labels = datasets.load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)[order] / 16
    x = x.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1)
    y = torch.tensor(labels)[order]

    def accuracies(model: nn.Module) -> tuple[float, float]:
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(4):
            for batch in torch.randperm(900).split(45):
                optimizer.zero_grad()
                F.cross_entropy(model(x[batch]), y[batch]).backward()
                optimizer.step()
        model.eval()
        with torch.no_grad():
            return tuple(float((model(seen).argmax(1) == y[900:1300]).float().mean()) for seen in (x[900:1300], 0.3 * x[900:1300] + 0.4))

    sizes = {"block": "basic", "depths": (1, 1, 1), "widths": (8, 16, 32), "num_classes": 10}
    torch.manual_seed(0)
    twin = accuracies(ResNet(**sizes))
    torch.manual_seed(0)
    ours = accuracies(IBNResNet(ibn=("b", "b", "none"), **sizes))
    assert min(twin[0], ours[0]) > 0.9
    assert ours[1] > twin[1] + 0.05
