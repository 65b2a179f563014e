"""SimpleNet against the sequence of layers that its authors publish, in their layout of weights, and the counts of the paper."""

from __future__ import annotations

import pytest
import torch
from cnnkit.backbones import create_model, create_small, list_models, model_entry
from cnnkit.count import count_params, on_meta
from cnnkit.errors import ConfigError, InputError
from cnnkit.testing.compare import centred, image, randomise
from cnnkit.weights import load_weights
from torch import Tensor, nn

pytestmark = pytest.mark.paper("simplenet")

# Width and kernel of the authors' layers; "p" is a pooling. In the networks for CIFAR no dropout stands between a layer and a pooling.
CIFAR = [64, 128, 128, 128, "p", 128, 128, 256, "p", 256, 256, "p", 512, (2048, 1), (256, 1), "p", 256]
EXTRA = [*CIFAR[:13], "p", *CIFAR[13:]]
SLIM = [64, 32, 32, 32, "p", 32, 32, 64, "p", 64, 64, "p", 128, (256, 1), (64, 1), "p", 64]
SMALL = [32, 32, 32, 64, "p", 64, 64, 64, "p", 64, 64, "p", 96, (96, 1), (96, 1), "p", 100]
IMAGENET = [64, 128, 128, 128, 128, 128, "p", 256, 256, 256, 512, "p", (2048, 1), (256, 1), 256]
WIDE = [128, 192, 192, 192, 192, 192, "p", 320, 320, 320, 640, "p", (2560, 1), (320, 1), 320]
M1, M2 = [2, 2, 2], [2, 2, 1, 2]
VARIANTS = {
    "simplenet_cifar_310k": (SLIM, [], 1.0),
    "simplenet_cifar_460k": (SMALL, [], 1.0),
    "simplenet_cifar_5m": (CIFAR, [], 1.0),
    "simplenet_cifar_5m_extra_pool": (EXTRA, [], 1.0),
    "simplenetv1_small_m1_05": (IMAGENET, M1, 0.5),
    "simplenetv1_small_m2_05": (IMAGENET, M2, 0.5),
    "simplenetv1_small_m1_075": (IMAGENET, M1, 0.75),
    "simplenetv1_small_m2_075": (IMAGENET, M2, 0.75),
    "simplenetv1_5m_m1": (IMAGENET, M1, 1.0),
    "simplenetv1_5m_m2": (IMAGENET, M2, 1.0),
    "simplenetv1_9m_m1": (WIDE, M1, 1.0),
    "simplenetv1_9m_m2": (WIDE, M2, 1.0),
}


class Published(nn.Module):
    """The authors' network, with the modules of their sequence at their places, so that its keys are theirs."""

    def __init__(self, name: str, width: float = 1.0, classes: int = 5) -> None:
        super().__init__()
        layers, strides, own_width = VARIANTS[name]
        everywhere = "cifar" not in name
        sequence: list[nn.Module] = []
        channels, padded = 3, name.endswith("extra_pool")
        for place, layer in enumerate(layers):
            if layer == "p":
                sequence += [nn.MaxPool2d(2), nn.Dropout2d(0.0)]
                continue
            wide, kernel = layer if isinstance(layer, tuple) else (layer, 3)
            wide = round(wide * own_width * width)
            stride = strides[place] if place < len(strides) else 1
            padding = 1 if kernel == 3 or padded else 0
            sequence += [nn.Conv2d(channels, wide, kernel, stride, padding), nn.BatchNorm2d(wide), nn.ReLU()]
            # Its place in the sequence counts, though it drops nothing.
            if everywhere or (place + 1 < len(layers) and (layers[place + 1] != "p" or wide == round(512 * width))):
                sequence.append(nn.Dropout2d(0.0))
            channels = wide
        self.features = nn.Sequential(*sequence)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).amax((2, 3)))


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_logits_equal_those_of_the_published_layers(name):
    """In the authors' own layout of weights, at two sizes."""
    theirs = randomise(Published(name, width=0.1), gain=2.0).double()
    ours = create_model(name, width=0.1 * VARIANTS[name][2], num_classes=5).double().eval()
    assert load_weights(ours, theirs.state_dict()) == "official"
    for size in ((32, 32), (67, 75)):
        torch.testing.assert_close(ours(image(*size).double()), theirs(image(*size).double()), rtol=1e-10, atol=1e-10)
    bare = create_model(name, width=0.1 * VARIANTS[name][2], num_classes=0, weights=theirs.state_dict()).double().eval()
    torch.testing.assert_close(bare(image(67, 75)[:1].double()), theirs.features(image(67, 75)[:1].double()).amax((2, 3)))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_published_file_fits_the_whole_network(name):
    with torch.device("meta"):
        theirs = Published(name, classes=1000)
    with on_meta():
        ours = create_model(name)
        assert load_weights(ours, theirs.state_dict()) == "official"
    assert count_params(ours) == count_params(theirs) == model_entry(name).params


def test_counts_of_the_paper():
    """5,484,736 weights of convolutions and classifier with ten classes, less than half of ResNet-18's; the slim one has 310 thousand."""
    weights = {}
    with on_meta():
        for name in ("simplenet_cifar_5m", "simplenet_cifar_310k"):
            weights[name] = sum(tensor.numel() for tensor in create_model(name, num_classes=10).parameters() if tensor.ndim > 1)
    assert weights == {"simplenet_cifar_5m": 5_484_736, "simplenet_cifar_310k": 309_568}
    assert 2 * model_entry("simplenet_cifar_5m").params < model_entry("resnet18").params
    assert set(list_models(family="simplenet")) == set(VARIANTS)


def test_thirteen_layers_and_their_levels():
    with on_meta():
        for name in VARIANTS:
            model = create_model(name).eval()
            assert len(model.layers) == 13
            side = 32 if "cifar" in name else 224
            sides = [level.shape[2] for level in model.forward_pyramid(torch.empty(1, 3, side, side))]
            reductions = model.feature_info.reduction()
            if name.endswith("extra_pool"):
                # 2 positions become 4 and 6 by the padding of the 1x1 convolutions, and 3 by the last pooling.
                assert sides == [32, 16, 8, 4, 6, 3]
            else:
                assert sides == [side // reduction for reduction in reductions]
                assert reductions == ([1, 2, 4, 8, 16] if "cifar" in name else [2, 4, 8, 16, 32])


def test_dropout_follows_each_layer_or_its_pooling():
    """Once per layer but the last, of whole channels."""
    model = create_small("simplenet", layer_drop_rate=0.2, drop_rate=0.3)
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout2d)]
    assert sum(rate == 0.2 for rate in rates) == 12
    assert [pool.drop.p for pool in model.pools] == [0.2] * 4
    assert model.layers[3].drop.p == model.layers[12].drop.p == 0.0
    assert model.head_drop.p == 0.3
    torch.manual_seed(0)
    dropped = model.layers[0].train()(torch.rand(4, 3, 8, 8)).flatten(2)
    assert bool((dropped == 0).all(2).any())


@pytest.mark.parametrize("dims", [1, 2])
@torch.no_grad()
def test_a_stacked_input_gives_the_logits_of_a_slice(dims):
    """With kernels centred in the new axis, slices never mix."""
    flat = randomise(create_small("simplenet", dims=dims, num_classes=5), gain=2.0).double()
    deep = centred(flat, create_small("simplenet", dims=dims + 1, num_classes=5).double())
    x = image(*(32, 48)[:dims]).double()
    torch.testing.assert_close(deep(x.unsqueeze(-1).expand(*x.shape, 16)), flat(x), rtol=1e-10, atol=1e-10)


def test_wrong_arguments_and_sizes_are_explained():
    with pytest.raises(ConfigError, match="at least one layer per group"):
        create_model("simplenet_cifar_5m", groups=((8,), ()))
    with pytest.raises(InputError, match="at least 16"):
        create_small("simplenet")(torch.zeros(1, 3, 15, 32))
