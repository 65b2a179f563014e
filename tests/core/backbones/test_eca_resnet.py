"""ECA-Net against timm, the authors' layout of weights and the paper's numbers."""

from __future__ import annotations

import pytest
import torch
from cnnkit.backbones import create_model, list_models
from cnnkit.count import count_params, on_meta
from cnnkit.errors import ConfigError
from cnnkit.testing.compare import assert_near, assert_same_keys, centred, image, randomise
from torch import nn

pytestmark = pytest.mark.paper("eca")
timm = pytest.importorskip("timm")

NARROW = {"depths": (1, 2, 1, 1), "widths": (8, 16, 24, 32)}
OF_TIMM = [name for name in list_models(family="eca_resnet") if name.endswith(("d", "light"))]


@pytest.mark.parametrize("name", ["ecaresnetlight", "ecaresnet50d"])
@torch.no_grad()
def test_logits_and_pyramid_equal_timm(name):
    theirs = randomise(timm.create_model(name, num_classes=7, layers=NARROW["depths"], channels=NARROW["widths"]))
    ours = create_model(name, num_classes=7, weights=theirs.state_dict(), **NARROW).eval()
    for size in ((64, 64), (75, 97)):
        assert_near(ours(image(*size)), theirs(image(*size)))
        assert_near(ours.forward_pyramid(image(*size)), theirs.forward_intermediates(image(*size))[1])


@pytest.mark.parametrize("name", OF_TIMM)
def test_variants_have_the_keys_and_shapes_of_timm(name):
    with on_meta():
        ours, theirs = create_model(name), timm.create_model(name)
    assert_same_keys(ours, theirs)


class OfficialAttention(nn.Module):
    """What the authors' layer computes: a convolution along the channels of the pooled features."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=(kernel_size - 1) // 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.conv(means.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1))


@pytest.mark.parametrize("name", ["ecaresnet18", "ecaresnet50"])
@torch.no_grad()
def test_reads_the_official_layout_with_a_kernel_size_for_each_stage(name):
    """torchvision's network is the authors', but for the attention in front of the addition."""
    torchvision = pytest.importorskip("torchvision")
    sizes = (3, 5, 5, 7)
    theirs = (
        torchvision.models.resnet18(weights=None, num_classes=7) if name == "ecaresnet18" else torchvision.models.resnet50(num_classes=7)
    )
    last = "bn2" if name == "ecaresnet18" else "bn3"
    for stage, size in enumerate(sizes, 1):
        for block in getattr(theirs, f"layer{stage}"):
            block.set_submodule(last, nn.Sequential(getattr(block, last), OfficialAttention(size)))
    randomise(theirs)
    official = {
        key.replace(f"{last}.0.", f"{last}.").replace(f"{last}.1.conv", "eca.conv"): value for key, value in theirs.state_dict().items()
    }
    assert "layer2.1.eca.conv.weight" in official
    ours = create_model(name, num_classes=7, kernel_sizes=sizes, weights=official).eval()
    assert_near(ours(image(64, 64)), theirs(image(64, 64)))


def test_extra_parameters_are_the_papers_eighty():
    """86 with the size from the channels, 80 with those of the released model; 24.37 "M" is in units of 2^20."""
    with on_meta():
        plain = count_params(create_model("resnet50"))
        assert count_params(create_model("ecaresnet50")) - plain == 80
        assert count_params(create_model("ecaresnet50", kernel_sizes=(5, 5, 5, 5))) - plain == 80
        assert count_params(create_model("ecaresnet50", kernel_sizes=None)) - plain == 86
        for name, printed in (("ecaresnet50", 24.37), ("ecaresnet101", 42.49), ("ecaresnet152", 57.41)):
            assert count_params(create_model(name)) / 2**20 == pytest.approx(printed, abs=0.006)


def test_one_kernel_size_for_each_stage():
    with pytest.raises(ConfigError, match="2 entries and the network 4 stages"):
        create_model("ecaresnet50", kernel_sizes=(3, 5))


@torch.no_grad()
def test_more_dimensions():
    """A volume that repeats a slice along its last axis, with kernels that see one of its positions, gives the slice's features."""
    sizes = NARROW | {"num_classes": 5, "depths": (1, 1, 1, 1)}
    flat = randomise(create_model("ecaresnet50", dims=2, **sizes).double())
    deep = centred(flat, create_model("ecaresnet50", dims=3, **sizes).double())
    x = image(40, 36).double()
    torch.testing.assert_close(deep(x.unsqueeze(-1).expand(*x.shape, 33)), flat(x), rtol=1e-10, atol=1e-10)
