"""Inception-ResNet against timm, the network of faces in plain equations, its counts, and its scaled residuals."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model, create_small
from cnnkit.backbones.inception_resnet import InceptionResNetV1, ResidualMixed
from cnnkit.count import count_params, on_meta
from cnnkit.errors import ConfigError
from cnnkit.testing.compare import assert_near, assert_same_keys, filled, image
from cnnkit.weights import load_weights
from torch import Tensor, nn

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.paper("inception-v4")


def drawn(build, seed: int = 0) -> nn.Module:
    return filled(build, seed, gain=2.0)


@torch.no_grad()
def test_levels_and_logits_equal_timm():
    """With fewer of the equal blocks; keys and shapes of the whole network are compared below."""

    def shortened() -> nn.Module:
        theirs = timm.create_model("inception_resnet_v2", num_classes=5)
        theirs.repeat, theirs.repeat_1, theirs.repeat_2 = theirs.repeat[:2], theirs.repeat_1[:1], theirs.repeat_2[:2]
        return theirs

    theirs = drawn(shortened)
    ours = drawn(lambda: create_model("inception_resnet_v2", depths=(2, 1, 3), num_classes=5), seed=1)
    assert load_weights(ours, theirs.state_dict()) == "cnnkit"
    for size in ((75, 75), (97, 110)):
        last, levels = theirs.forward_intermediates(image(*size))
        found = ours.forward_pyramid(image(*size))
        assert_near(found, levels)
        assert_near(ours.forward_head(found[-1]), theirs.forward_head(last))


def test_keys_shapes_and_counts_of_the_released_network():
    """Those of timm, 55.84 million parameters; older files name the last layer otherwise."""
    with torch.device("meta"):
        theirs = timm.create_model("inception_resnet_v2")
    with on_meta():
        ours = create_model("inception_resnet_v2").eval()
        assert count_params(ours) == 55_843_464
        assert_same_keys(ours, theirs)
        assert [dict(level) for level in ours.feature_info] == theirs.feature_info
        shapes = [tuple(level.shape[1:]) for level in ours.forward_pyramid(torch.empty(1, 3, 299, 299))]
        assert shapes == [(64, 147, 147), (192, 71, 71), (320, 35, 35), (1088, 17, 17), (1536, 8, 8)]
    small = create_model("inception_resnet_v2", depths=(1, 1, 2), width=0.05, num_classes=4)
    state = {key.replace("classif.", "last_linear."): value for key, value in small.state_dict().items()}
    assert load_weights(small, state) == "pretrained-models"


def test_the_networks_of_the_paper():
    """Figures 10 to 19: 5, 10 and 5 blocks; the widths are what the reductions concatenate."""
    with on_meta():
        for name, channels in (("inception_resnet_v1", [256, 896, 1792]), ("inception_resnet_v2_paper", [384, 1152, 2144])):
            model = create_model(name).eval()
            levels = model.forward_pyramid(torch.empty(1, 3, 299, 299))[2:]
            assert [tuple(level.shape[1:]) for level in levels] == [(c, n, n) for c, n in zip(channels, (35, 17, 8), strict=True)]
            blocks = [module for module in model.modules() if isinstance(module, ResidualMixed)]
            assert [block.scale for block in blocks] == [0.17] * 5 + [0.10] * 10 + [0.20] * 5
            assert all(isinstance(block.act, nn.ReLU) for block in blocks)
        # The stem is that of Inception-v4.
        stem, other = model.state_dict(), create_model("inception_v4").state_dict()
        names = ["conv2d_1a", "conv2d_2a", "conv2d_2b", "mixed_3a", "mixed_4a", "mixed_5a"]
        ours = [value.shape for key, value in stem.items() if key.split(".")[0] in names]
        assert ours == [value.shape for key, value in other.items() if key.startswith("features.") and int(key.split(".")[1]) < 6]


CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class Faces:
    """Inception-ResNet-v1 as it is used for faces, in plain equations on weights with its published names; counts what it read."""

    def __init__(self, state: Mapping[str, Tensor], dims: int) -> None:
        self.state, self.dims, self.read = state, dims, set()

    def take(self, name: str) -> Tensor:
        self.read.add(name)
        return self.state[name]

    def unit(self, name: str, x: Tensor, *, stride: int = 1, padded: bool = True) -> Tensor:
        weight = self.take(f"{name}.conv.weight")
        padding = [side // 2 if padded else 0 for side in weight.shape[2:]]
        x = CONV[self.dims](x, weight, stride=stride, padding=padding)
        statistics = [self.take(f"{name}.bn.{part}") for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *statistics, eps=1e-3).relu()

    def units(self, name: str, x: Tensor, count: int, *, stride: int = 1) -> Tensor:
        for index in range(count):
            last = index == count - 1 and stride > 1
            x = self.unit(f"{name}.{index}", x, stride=stride if last else 1, padded=not last)
        return x

    def block(self, name: str, x: Tensor, counts: tuple[int, ...], scale: float, act: bool = True) -> Tensor:
        branches = [self.unit(f"{name}.branch0", x), *(self.units(f"{name}.branch{i}", x, count) for i, count in enumerate(counts, 1))]
        x = x + scale * CONV[self.dims](torch.cat(branches, 1), self.take(f"{name}.conv2d.weight"), self.take(f"{name}.conv2d.bias"))
        return x.relu() if act else x

    def embedding(self, x: Tensor, depths: tuple[int, ...]) -> Tensor:
        pool, chain = MAX_POOL[self.dims], 1 + self.dims  # A 1x1 convolution and one along each axis.
        x = self.unit("conv2d_2a", self.unit("conv2d_1a", x, stride=2, padded=False), padded=False)
        x = pool(self.unit("conv2d_2b", x), 3, stride=2)
        x = self.unit("conv2d_4a", self.unit("conv2d_3b", x), padded=False)
        x = self.unit("conv2d_4b", x, stride=2, padded=False)
        for index in range(depths[0]):
            x = self.block(f"repeat_1.{index}", x, (2, 3), 0.17)
        strided = self.unit("mixed_6a.branch0", x, stride=2, padded=False)
        x = torch.cat([strided, self.units("mixed_6a.branch1", x, 3, stride=2), pool(x, 3, stride=2)], 1)
        for index in range(depths[1]):
            x = self.block(f"repeat_2.{index}", x, (chain,), 0.10)
        branches = [self.units(f"mixed_7a.branch{index}", x, count, stride=2) for index, count in enumerate((2, 2, 3))]
        x = torch.cat([*branches, pool(x, 3, stride=2)], 1)
        for index in range(depths[2] - 1):
            x = self.block(f"repeat_3.{index}", x, (chain,), 0.20)
        x = self.block("block8", x, (chain,), 1.0, act=False)
        x = x.flatten(2).mean(2) @ self.take("last_linear.weight").T
        statistics = [self.take(f"last_bn.{part}") for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *statistics, eps=1e-3)

    def logits(self, x: Tensor) -> Tensor:
        return F.linear(x, self.take("logits.weight"), self.take("logits.bias"))


@pytest.mark.parametrize(("dims", "size"), [(1, (91,)), (2, (75, 91)), (3, (75, 77, 75))])
@torch.no_grad()
def test_the_network_of_faces_follows_its_equations(dims, size):
    depths = (2, 1, 2)
    model = drawn(lambda: create_model("inception_resnet_v1_facenet", dims=dims, depths=depths, width=0.05, num_classes=5)).double()
    x = image(*size).double()[: 1 if dims == 3 else 2]
    reference = Faces(model.state_dict(), dims)
    expected = reference.embedding(x, depths)
    torch.testing.assert_close(model.forward_head(model.forward_features(x), pre_logits=True), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model(x), reference.logits(expected), rtol=1e-9, atol=1e-9)
    assert reference.read == {key for key in model.state_dict() if not key.endswith("num_batches_tracked")}


def test_the_network_of_faces_is_that_of_the_published_weights():
    """23,482,624 parameters up to the embedding of 512, and a layer of 8631 people for the larger set."""
    with on_meta():
        model = create_model("inception_resnet_v1_facenet", num_classes=8631)
        assert count_params(model) == 23_482_624 + 513 * 8631
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes["last_linear.weight"] == (512, 1792)
    assert shapes["logits.weight"] == (8631, 512)
    assert shapes["block8.branch1.1.conv.weight"] == (192, 192, 1, 3)
    assert shapes["repeat_2.9.branch1.2.conv.weight"] == (128, 128, 7, 1)


@torch.no_grad()
def test_a_scale_of_zero_makes_a_block_the_identity():
    """On what a block sees, rectified features; any other scale adds in proportion."""
    model = drawn(lambda: create_small("inception_resnet", num_classes=3)).double()
    x = image(32, 32).double()
    for block in (model.repeat[0], model.repeat_1[0], model.repeat_2[0]):
        features = x[:, :1].expand(2, block.out_channels, 32, 32).relu()
        block.act = nn.Identity()
        added = block(features) - features
        assert added.abs().max() > 0.01
        block.scale *= 2
        torch.testing.assert_close(block(features) - features, 2 * added, rtol=1e-9, atol=1e-9)
        block.scale, block.act = 0.0, nn.ReLU()
        assert torch.equal(block(features), features)


def test_stochastic_depth_drops_the_addition():
    model = create_small("inception_resnet", num_classes=3, depths=(2, 2, 3), drop_path_rate=0.6)
    rates = [block.drop_path.rate for block in model.modules() if isinstance(block, ResidualMixed)]
    assert rates == pytest.approx([0.6 * index / 6 for index in range(7)])
    model.repeat[1].drop_path.rate = 0.999999
    x = torch.rand(2, model.repeat[1].out_channels, 8, 8)
    assert torch.equal(model.repeat[1](x), x)


def test_the_embedding_goes_and_comes_back():
    model = create_model("inception_resnet_v1_facenet", depths=(1, 1, 2), width=0.05, aligned=True, num_classes=3)
    assert isinstance(model, InceptionResNetV1)
    whole = count_params(model)
    model.reset_classifier(0)
    assert model.eval()(image(64, 64)).shape == (2, model.num_features)
    model.reset_classifier(4)
    assert count_params(model) == whole + model.embedding + 1
    assert model(image(64, 64)).shape == (2, 4)
    model.double().reset_classifier(5, global_pool="max")
    assert model.forward_head(model.forward_features(image(64, 64).double()), pre_logits=True).shape == (2, model.embedding)


def test_wrong_arguments_are_explained():
    with pytest.raises(ConfigError, match="did you mean 'plain'"):
        create_model("inception_resnet_v2", stem="plane")
    with pytest.raises(ConfigError, match="at least one block per grid, and two on the last"):
        create_model("inception_resnet_v2", depths=(1, 1, 1))
    with pytest.raises(ConfigError, match="give three of each, at least one block per grid"):
        create_model("inception_resnet_v1", depths=(1, 0, 1))
