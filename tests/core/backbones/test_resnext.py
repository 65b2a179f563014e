"""ResNeXt against torchvision, timm, the three forms of its block and the paper's numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model, list_models
from cnnkit.backbones.resnet import Bottleneck
from cnnkit.backbones.resnext import ResNeXt
from cnnkit.count import count_params, on_meta
from cnnkit.errors import ConfigError
from cnnkit.testing.compare import assert_near, assert_same_keys, centred, image, randomise

pytestmark = pytest.mark.paper("resnext")
NARROW = {"depths": (1, 2, 1, 1), "widths": (16, 16, 32, 48), "cardinality": 4, "base_width": 16}


@pytest.mark.parametrize("stride", [32, 8])
@torch.no_grad()
def test_logits_and_pyramid_equal_timm(stride):
    timm = pytest.importorskip("timm")
    sizes = {"layers": NARROW["depths"], "channels": NARROW["widths"], "cardinality": 4, "base_width": 16, "output_stride": stride}
    theirs = randomise(timm.create_model("resnext50_32x4d", num_classes=7, **sizes))
    ours = create_model("resnext50_32x4d", num_classes=7, weights=theirs.state_dict(), output_stride=stride, **NARROW).eval()
    for size in ((64, 64), (75, 97)):
        assert_near(ours(image(*size)), theirs(image(*size)))
        assert_near(ours.forward_pyramid(image(*size)), theirs.forward_intermediates(image(*size))[1])


@pytest.mark.parametrize("name", [name for name in list_models(family="resnext") if "29" not in name])
def test_variants_have_the_keys_and_shapes_of_timm(name):
    timm = pytest.importorskip("timm")
    with on_meta():
        ours, theirs = create_model(name), timm.create_model(name)
    assert_same_keys(ours, theirs)


@torch.no_grad()
def test_full_size_logits_equal_torchvision():
    torchvision = pytest.importorskip("torchvision")
    theirs = randomise(torchvision.models.resnext50_32x4d(weights=None))
    ours = create_model("resnext50_32x4d", weights=theirs.state_dict()).eval()
    assert_near(ours(image(64, 64)), theirs(image(64, 64)))


@torch.no_grad()
def test_three_forms_of_the_block_are_one():
    """A sum of branches, branches concatenated before one 1x1 convolution, and a grouped convolution."""
    groups, width = 4, 8
    block = randomise(Bottleneck(32, width, groups=groups, inner_factor=2.0)).double()
    x = image(9, 11).repeat(1, 11, 1, 1)[:, :32].double()
    each = 2 * width // groups

    def norm(y, layer, part=slice(None)):
        return F.batch_norm(y, layer.running_mean[part], layer.running_var[part], layer.weight[part], layer.bias[part])

    summed, early = 0.0, []
    for branch in range(groups):
        part = slice(branch * each, (branch + 1) * each)
        y = F.relu(norm(F.conv2d(x, block.conv1.weight[part]), block.bn1, part))
        y = F.relu(norm(F.conv2d(y, block.conv2.weight[part], padding=1), block.bn2, part))
        early.append(y)
        summed = summed + F.conv2d(y, block.conv3.weight[:, part])
    concatenated = F.conv2d(torch.cat(early, 1), block.conv3.weight)
    for form in (summed, concatenated):
        torch.testing.assert_close(F.relu(norm(form, block.bn3) + x), block(x), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_cardinality_one_is_a_resnet():
    sizes = {"depths": (1, 1, 1, 1), "widths": (8, 8, 16, 16), "num_classes": 5}
    plain = randomise(create_model("resnet50", **sizes))
    ours = create_model("resnext50_32x4d", cardinality=1, base_width=64, weights=plain.state_dict(), **sizes).eval()
    torch.testing.assert_close(ours(image(64, 64)), plain(image(64, 64)), rtol=0, atol=0)


def test_numbers_of_parameters():
    with on_meta():
        assert count_params(create_model("resnext50_32x4d")) == 25_028_904
        for cardinality, millions in ((8, 34.43), (16, 68.16)):  # The paper's 34.4 and 68.1 for ten classes.
            small = create_model(f"resnext29_{cardinality}x64d", num_classes=10)
            assert count_params(small) / 1e6 == pytest.approx(millions, abs=0.005)
            assert small.feature_info.reduction() == [1, 1, 2, 4] and small.feature_info.channels() == [64, 256, 512, 1024]
            assert [level.shape[-1] for level in small.forward_pyramid(torch.empty(1, 3, 32, 32))] == [32, 32, 16, 8]


def test_a_branch_without_a_whole_number_of_channels_is_refused():
    with pytest.raises(ConfigError, match=r"0\.5 channels; width \* base_width must be a multiple of 64"):
        ResNeXt(widths=(8, 8, 8, 8))


@pytest.mark.parametrize("dims", [1, 2])
@torch.no_grad()
def test_the_one_of_a_stacked_input_equals_the_one_of_a_slice(dims):
    flat = randomise(create_model("resnext50_32x4d", dims=dims, num_classes=5, **NARROW).double())
    deep = centred(flat, create_model("resnext50_32x4d", dims=dims + 1, num_classes=5, **NARROW).double())
    x = image(*(40, 36)[:dims]).double()
    torch.testing.assert_close(deep(x.unsqueeze(-1).expand(*x.shape, 33)), flat(x), rtol=1e-10, atol=1e-10)
