"""VGG against timm, torchvision, the fully connected net on every window, and the paper's counts."""

from __future__ import annotations

import pytest
import torch
from cnnkit.backbones import create_model, create_small, model_entry
from cnnkit.count import count_params, on_meta
from cnnkit.errors import ConfigError, InputError
from cnnkit.testing.compare import assert_near, assert_same_keys, centred, image, randomise
from torch import nn

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
pytestmark = pytest.mark.paper("vgg")

WIDTHS = (4, 6, 8, 8, 12)
HEAD = 24
DEPTHS = {"vgg11": (1, 1, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg16_bn": (2, 2, 3, 3, 3)}


def pattern(name: str) -> list:
    """The scaled-down network as timm and torchvision write it."""
    return [item for depth, width in zip(DEPTHS[name], WIDTHS, strict=True) for item in [*[width] * depth, "M"]]


def of_timm(name: str) -> nn.Module:
    # timm's width of the fully connected layers is fixed where it leaves them: narrow both afterwards.
    norm = nn.BatchNorm2d if name.endswith("bn") else None
    theirs = timm.models.vgg.VGG(pattern(name), num_classes=5, norm_layer=norm, mlp_ratio=HEAD / 4096)
    theirs.pre_logits.fc2 = nn.Conv2d(HEAD, HEAD, 1)
    theirs.head.fc = nn.Linear(HEAD, 5)
    return randomise(theirs, gain=2.0)


@pytest.mark.parametrize("name", DEPTHS)
@torch.no_grad()
def test_logits_and_levels_equal_timm(name):
    """At a size whose features are stretched to 7 positions, at one that gives many, and at an odd one."""
    theirs = of_timm(name)
    ours = create_model(name, widths=WIDTHS, head_width=HEAD, num_classes=5, weights=theirs.state_dict()).eval()
    for size in ((64, 64), (256, 288), (75, 97)):
        assert_near(ours(image(*size)), theirs(image(*size)))
    assert [dict(level) for level in ours.feature_info] == [dict(level) for level in theirs.feature_info]
    expected = theirs.forward_intermediates(image(75, 97), intermediates_only=True)
    assert_near(ours.forward_pyramid(image(75, 97)), expected)


@pytest.mark.parametrize("name", DEPTHS)
@torch.no_grad()
def test_logits_equal_torchvision(name):
    """On 224 the convolutional head is the fully connected net."""
    theirs = torchvision.models.VGG(torchvision.models.vgg.make_layers(pattern(name), name.endswith("bn")), init_weights=False)
    relu, drop = nn.ReLU(), nn.Dropout()
    theirs.classifier = nn.Sequential(nn.Linear(49 * WIDTHS[-1], HEAD), relu, drop, nn.Linear(HEAD, HEAD), relu, drop, nn.Linear(HEAD, 5))
    randomise(theirs, gain=2.0)
    ours = create_model(name, widths=WIDTHS, head_width=HEAD, num_classes=5, weights=theirs.state_dict()).eval()
    for size in (224, 64):
        assert_near(ours(image(size, size)), theirs(image(size, size)))
    bare = create_model(name, widths=WIDTHS, num_classes=0, weights=theirs.state_dict()).eval()
    assert_near(bare(image(64, 64)), theirs.features(image(64, 64)).mean((2, 3)))


@torch.no_grad()
def test_dense_evaluation_is_the_mean_over_all_windows():
    """The paper's test on larger images: the net with fully connected layers, on every window of 7x7 features."""
    model = randomise(create_model("vgg11", widths=WIDTHS, head_width=HEAD, num_classes=5), gain=2.0).double()
    features = model.forward_features(image(288, 256).double())
    assert features.shape[2:] == (9, 8)
    windows = [model.forward_head(features[:, :, i : i + 7, j : j + 7]) for i in range(3) for j in range(2)]
    torch.testing.assert_close(model.forward_head(features), torch.stack(windows).mean(0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"])
def test_keys_and_shapes_equal_timm(name):
    with torch.device("meta"):
        theirs = timm.create_model(name).state_dict()
    with on_meta():
        ours = create_model(name).state_dict()
    assert_same_keys(ours, theirs)


def test_counts_of_the_paper():
    """Configurations A, B, D and E to the last parameter; C has a 1x1 kernel in place of a 3x3 one three times."""
    counts = {name: model_entry(name).params for name in ("vgg11", "vgg11_lrn", "vgg13", "vgg16", "vgg19")}
    assert list(counts.values()) == [132_863_336, 132_863_336, 133_047_848, 138_357_544, 143_667_240]
    assert counts["vgg16"] - model_entry("vgg16_pointwise").params == 8 * (256**2 + 2 * 512**2)
    with on_meta():
        layers = [m for m in create_model("vgg16_pointwise").features if isinstance(m, nn.Conv2d)]
    assert [layer.kernel_size[0] for layer in layers] == [3] * 4 + [3, 3, 1] * 3


@torch.no_grad()
def test_local_response_normalisation_follows_its_equation():
    model = randomise(create_model("vgg11_lrn", widths=(9, 4, 4, 4, 4), num_classes=0), gain=2.0).double()
    x = 30 * image(32, 32).double()
    a = model.features[0](x).relu()
    padded = torch.cat([torch.zeros(2, 2, 32, 32), a.square(), torch.zeros(2, 2, 32, 32)], 1)
    total = sum(padded[:, shift : shift + 9] for shift in range(5))
    expected = a / (2 + 1e-4 * total) ** 0.75
    assert (total * 1e-4).max() > 0.1
    torch.testing.assert_close(model.forward_pyramid(x)[0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dims", [1, 2])
@torch.no_grad()
def test_a_stacked_input_gives_the_logits_of_a_slice(dims):
    """With kernels centred in the new axis, slices never mix."""
    flat = randomise(create_small("vgg", dims=dims, num_classes=5).double(), gain=2.0)
    deep = centred(flat, create_small("vgg", dims=dims + 1, num_classes=5).double())
    x = image(*(64, 96)[:dims]).double()
    torch.testing.assert_close(deep(x.unsqueeze(-1).expand(*x.shape, 64)), flat(x), rtol=1e-10, atol=1e-10)


def test_the_head_goes_and_comes_back():
    model = create_small("vgg", num_classes=3).double()
    whole = count_params(model)
    model.reset_classifier(0)
    assert model(image(32, 32).double()).shape == (2, model.num_features)
    model.reset_classifier(3, global_pool="max")
    assert count_params(model) == whole
    assert model(image(64, 96).double()).shape == (2, 3)
    assert model.forward_head(model.forward_features(image(64, 96).double()), pre_logits=True).shape == (2, 64)


def test_dropout_reaches_both_layers():
    model = create_small("vgg", num_classes=3, drop_rate=0.5)
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.5, 0.5]


def test_wrong_arguments_and_sizes_are_explained():
    with pytest.raises(ConfigError, match="did you mean 'batch'"):
        create_model("vgg11", norm="bacth")
    with pytest.raises(ConfigError, match="2 groups and widths 5"):
        create_model("vgg11", depths=(1, 1))
    with pytest.raises(InputError, match=r"at least 32; resize or pad to \(32, 64\)"):
        create_small("vgg")(image(31, 64))
