"""RedNet against an independent one in the layout of the paper's code, and the reason given for its figures."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model, list_models, model_entry
from cnnkit.backbones.rednet import RedNet
from cnnkit.count import count_macs, on_meta
from cnnkit.layers.involution import Involution
from cnnkit.testing.compare import assert_near, assert_same_keys, image, randomise
from cnnkit.weights import load_weights
from torch import nn

pytestmark = pytest.mark.paper("involution")


class Module(nn.Module):
    """Named parts, put together by whoever calls."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


class Unit(nn.Module):
    """Convolution, normalisation and activation under the names of the official code's toolkit."""

    def __init__(self, cin, cout, size=1, stride=1, plain=False):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, size, stride, size // 2, bias=plain)
        if not plain:
            self.bn = nn.BatchNorm2d(cout)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x))) if hasattr(self, "bn") else self.conv(x)


class Unfolding(nn.Module):
    """Involution by unfolding, with 16 channels for each kernel."""

    def __init__(self, channels, size, stride=1):
        super().__init__()
        self.size, self.stride = size, stride
        self.conv1 = Unit(channels, channels // 4)
        self.conv2 = Unit(channels // 4, channels // 16 * size**2, plain=True)

    def forward(self, x):
        kernels = self.conv2(self.conv1(F.avg_pool2d(x, self.stride)))
        n, _, h, w = kernels.shape
        columns = F.unfold(x, self.size, padding=self.size // 2, stride=self.stride)
        columns = columns.view(n, -1, 16, self.size**2, h, w)
        return (kernels.view(n, -1, 1, self.size**2, h, w) * columns).sum(3).reshape(n, x.shape[1], h, w)


class Official(nn.Module):
    """RedNet with the keys of the paper's code, written anew and straight."""

    def __init__(self, depths, widths, classes):
        super().__init__()
        stem = [Unit(3, 32, 3, 2), Unfolding(32, 3), nn.BatchNorm2d(32), nn.ReLU(), Unit(32, 64, 3)]
        stages, cin = {}, 64
        for number, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = []
            for index in range(depth):
                stride = 2 if number and index == 0 else 1
                parts = {
                    "conv1": nn.Conv2d(cin, width, 1, bias=False),
                    "bn1": nn.BatchNorm2d(width),
                    "conv2": Unfolding(width, 7, stride),
                    "bn2": nn.BatchNorm2d(width),
                    "conv3": nn.Conv2d(width, 4 * width, 1, bias=False),
                    "bn3": nn.BatchNorm2d(4 * width),
                }
                if index == 0:
                    parts["downsample"] = nn.Sequential(nn.Conv2d(cin, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))
                blocks.append(Module(**parts))
                cin = 4 * width
            stages[f"layer{number + 1}"] = nn.Sequential(*blocks)
        self.backbone = Module(stem=nn.Sequential(*stem), **stages)
        self.head = Module(fc=nn.Linear(cin, classes))

    def forward(self, x):
        x = F.max_pool2d(self.backbone.stem(x), 3, 2, 1)
        for number in range(1, 5):
            for block in getattr(self.backbone, f"layer{number}"):
                branch = F.relu(block.bn1(block.conv1(x)))
                branch = F.relu(block.bn2(block.conv2(branch)))
                branch = block.bn3(block.conv3(branch))
                x = F.relu(branch + (block.downsample(x) if hasattr(block, "downsample") else x))
        return self.head.fc(x.mean((2, 3)))


@torch.no_grad()
def test_the_official_layout_computes_the_same():
    sizes = {"depths": (1, 2, 1, 1), "widths": (32, 16, 32, 32)}
    theirs = randomise(Official(sizes["depths"], sizes["widths"], 5).double())
    ours = create_model("rednet50", num_classes=5, **sizes).double()
    assert load_weights(ours, theirs.state_dict()) == "official"
    ours.eval()
    for size in ((64, 64), (96, 32)):
        x = image(*size).double()
        assert_near(ours(x), theirs(x), 1e-12)


@pytest.mark.parametrize("name", list_models(family="rednet"))
def test_every_variant_has_the_official_keys_and_shapes(name):
    with on_meta():
        ours, theirs = create_model(name), Official(model_entry(name).args["depths"], (64, 128, 256, 512), 1000)
    converted = RedNet.layouts[0].convert(theirs.state_dict())
    assert_same_keys(ours, converted)


@pytest.mark.parametrize("name", ["rednet26", "rednet101"])
def test_the_reason_given_for_the_figures_is_the_reason(name):
    """With every value that normalisation, activation, pooling and involution touch, the count is the paper's to 1.2 %."""
    others = 0

    def watch(module, args, out):
        nonlocal others
        if isinstance(module, Involution):
            others += out.numel() * module.kernel_size**2
        elif isinstance(module, nn.BatchNorm2d):
            others += 2 * out.numel()
        elif isinstance(module, nn.ReLU):
            others += out.numel()

    with on_meta():
        model = create_model(name)
        layers = count_macs(model, (1, 3, 224, 224))
        for module in model.modules():
            module.register_forward_hook(watch)
        model.eval()(torch.empty(1, 3, 224, 224))
    figure = model_entry(name).figures.gmacs
    assert layers / 1e9 < 0.97 * figure
    assert (layers + others) / 1e9 == pytest.approx(figure, rel=0.015)


@torch.no_grad()
def test_dilation_in_place_of_stride_keeps_the_weights():
    sizes = {"depths": (1, 1, 1, 2), "widths": (16, 16, 32, 48), "kernel_size": 3, "num_classes": 2}
    model = create_model("rednet26", **sizes)
    wide = create_model("rednet26", output_stride=8, weights=model.state_dict(), **sizes).eval()
    assert wide.feature_info.reduction() == [2, 4, 8, 8, 8]
    assert [level.shape[-1] for level in wide.forward_pyramid(torch.zeros(1, 3, 64, 64))] == [32, 16, 8, 8, 8]
    assert [block.conv2.dilation for block in wide.layer4] == [2, 4]
