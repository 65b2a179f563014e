"""DenseNet against timm, torchvision, the paper's counts and its own checkpointing."""

from __future__ import annotations

import pytest
import torch
from cnnkit.backbones import create_model, list_models, model_entry
from cnnkit.backbones.densenet import DenseNet
from cnnkit.count import count_params, on_meta
from cnnkit.testing.compare import assert_near, assert_same_keys, centred, image, randomise
from torch import nn

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
pytestmark = pytest.mark.paper("densenet")

SMALL = {"depths": (2, 3, 2, 2), "growth_rate": 8}
TIMM = {"block_config": (2, 3, 2, 2), "growth_rate": 8}


@pytest.mark.parametrize("name", ["densenet121", "densenet264d"])
@torch.no_grad()
def test_logits_and_pyramid_equal_timm(name):
    theirs = randomise(timm.create_model(name, num_classes=5, **TIMM))
    ours = create_model(name, num_classes=5, weights=theirs.state_dict(), **SMALL).eval()
    assert ours.feature_info.channels() == [level["num_chs"] for level in theirs.feature_info]
    assert ours.feature_info.reduction() == [level["reduction"] for level in theirs.feature_info]
    for size in ((64, 64), (75, 97)):
        x = image(*size)
        assert_near(ours(x), theirs(x))
        assert_near(ours.forward_pyramid(x), theirs.forward_intermediates(x, intermediates_only=True))


@torch.no_grad()
def test_logits_equal_torchvision_also_from_its_published_names():
    theirs = randomise(torchvision.models.DenseNet(8, (2, 3, 2, 2), 16, num_classes=5))
    old = {key.replace("norm1", "norm.1").replace("norm2", "norm.2"): value for key, value in theirs.state_dict().items()}
    old = {key.replace("layer1.conv", "layer1.conv.") if "denselayer1." in key else key: value for key, value in old.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old and "features.denseblock2.denselayer1.conv.2.weight" in old
    x = image(64, 64)
    for state in (theirs.state_dict(), old):
        assert_near(create_model("densenet121", num_classes=5, weights=state, **SMALL).eval()(x), theirs(x))


@pytest.mark.parametrize("name", ["densenet121", "densenet161", "densenet169", "densenet201", "densenet264d"])
def test_variants_have_the_keys_and_shapes_of_timm(name):
    with on_meta():
        ours, theirs = create_model(name).state_dict(), timm.create_model(name).state_dict()
    renamed = {key.replace("fc.", "classifier."): value for key, value in ours.items()}
    assert_same_keys(renamed, theirs)


@pytest.mark.parametrize(
    ("name", "count"), [("densenet121", 7_978_856), ("densenet169", 14_149_480), ("densenet201", 20_013_928), ("densenet161", 28_681_000)]
)
def test_parameters_are_the_known_ones(name, count):
    assert model_entry(name).params == count
    assert torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"] == count


@pytest.mark.parametrize("name", list_models("*_cifar", family="densenet"))
def test_ten_classes_meet_the_papers_figures(name):
    with on_meta():
        model = create_model(name, num_classes=10)
    assert round(count_params(model) / 1e6, 1) == model_entry(name).figures.params_m


@pytest.mark.parametrize(("stem", "first"), [("imagenet", 24), ("cifar", 24)])
def test_channels_grow_by_the_rate_and_are_halved(stem, first):
    model = DenseNet(depths=(2, 4, 3), growth_rate=12, stem=stem)
    blocks = [first + 2 * 12]
    for depth in (4, 3):
        blocks.append(blocks[-1] // 2 + depth * 12)
    assert model.feature_info.channels()[-3:] == blocks
    assert [layer.norm1.num_features for layer in model.features.denseblock2.children()] == [24, 36, 48, 60]


def test_without_bottleneck_and_compression():
    """DenseNet without B and C: the plain equations, layer by layer."""
    model = randomise(DenseNet(depths=(2, 2), growth_rate=4, stem="cifar", stem_channels=6, bottleneck=0, compression=1.0).double())
    f, x = model.features, image(9, 8).double()
    x = f.conv0(x)
    for block in (f.denseblock1, f.denseblock2):
        for layer in block.children():
            x = torch.cat([x, layer.conv1(layer.norm1(x).relu())], 1)
        if block is f.denseblock1:
            x = nn.functional.avg_pool2d(f.transition1.conv(f.transition1.norm(x).relu()), 2)
    expected = model.fc(f.norm5(x).relu().mean((2, 3)))
    torch.testing.assert_close(model(image(9, 8).double()), expected, rtol=1e-10, atol=1e-10)


def kept_bytes(model, x):
    """Bytes of the tensors that the backward pass keeps, each storage counted once."""
    sizes = {}

    def pack(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x).sum().backward()
    return sum(size for size, _ in sizes.values())


def test_checkpointing_keeps_memory_that_grows_linearly():
    """Without it a block keeps all concatenations, and with it only what its layers add: thrice the depth is thrice the memory."""
    torch.manual_seed(0)
    x, kept = image(16, 16), {}
    for depth in (12, 36):
        model = DenseNet(depths=(depth,), growth_rate=4, stem="cifar")
        for enable in (False, True):
            model.set_grad_checkpointing(enable)
            kept[depth, enable] = kept_bytes(model, x)
    assert kept[36, True] < 0.3 * kept[36, False]
    assert kept[36, True] / kept[12, True] < 3.2 < 4.5 < kept[36, False] / kept[12, False]


def test_dropout_follows_every_convolution_but_the_first():
    model = DenseNet(depths=(1, 1), growth_rate=4, proj_drop_rate=0.2)
    assert {m.p for m in model.features.modules() if isinstance(m, nn.Dropout)} == {0.2}
    layer = model.features.denseblock1.denselayer1.train()
    nn.init.zeros_(layer.conv2.weight)
    layer.norm2.bias.data.fill_(1.0)
    assert (layer([torch.randn(2, 8, 4, 4)]) == 0).all()


@pytest.mark.parametrize("dims", [1, 2])
@torch.no_grad()
def test_a_stacked_input_gives_what_a_slice_gives(dims):
    """With kernels centred in the new axis slices never mix; the poolings see equal slices."""
    flat = randomise(create_model("densenet121", dims=dims, num_classes=5, **SMALL).double())
    deep = centred(flat, create_model("densenet121", dims=dims + 1, num_classes=5, **SMALL).double())
    x = image(*(40, 36)[:dims]).double()
    torch.testing.assert_close(deep(x.unsqueeze(-1).expand(*x.shape, 32)), flat(x), rtol=1e-10, atol=1e-10)
