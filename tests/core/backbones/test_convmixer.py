"""ConvMixer against timm, the official chain of layers, its equations and its exact sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model
from cnnkit.backbones.convmixer import ConvMixerBlock
from cnnkit.count import count_params, on_meta
from cnnkit.errors import CheckpointError, InputError
from cnnkit.testing.compare import assert_near, assert_same_keys, centred, image, randomise
from cnnkit.weights import load_weights
from torch import Tensor, nn

pytestmark = pytest.mark.paper("convmixer")

SMALL = {"width": 12, "depth": 3, "kernel_size": 5, "patch_size": 4}
SIZES = ((32, 32), (29, 43))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(("act", "kernel_size"), [("gelu", 5), ("relu", 5), ("gelu", 4)])
@torch.no_grad()
def test_logits_and_pyramid_equal_timm(act, kernel_size):
    """With either activation, and with an even kernel, which has no middle."""
    timm_convmixer = pytest.importorskip("timm.models.convmixer")
    sizes = {"depth": 3, "kernel_size": kernel_size, "patch_size": 4}
    layer = {"gelu": nn.GELU, "relu": nn.ReLU}[act]
    theirs = randomise(timm_convmixer.ConvMixer(dim=12, **sizes, num_classes=5, act_layer=layer))
    ours = create_model("convmixer_1536_20", width=12, **sizes, act=act, num_classes=5, weights=theirs.state_dict()).eval()
    for size in SIZES:
        assert_near(ours.forward_pyramid(image(*size)), theirs.forward_intermediates(image(*size))[1])
        assert_near(ours(image(*size)), theirs(image(*size)))
    assert torch.equal(ours.forward_features(image(*SIZES[0])), ours.forward_pyramid(image(*SIZES[0]))[-1])
    assert ours.feature_info.module_name() == [level["module"] for level in theirs.feature_info]
    assert ours.feature_info.reduction() == [level["reduction"] for level in theirs.feature_info]


@pytest.mark.parametrize("name", ["convmixer_1536_20", "convmixer_768_32", "convmixer_1024_20_ks9_p14"])
def test_variants_have_the_keys_shapes_and_activations_of_timm(name):
    timm = pytest.importorskip("timm")
    with on_meta():
        ours, theirs = create_model(name), timm.create_model(name)
    assert_same_keys(ours, theirs)
    assert type(ours.stem[1]) is type(theirs.stem[1])


class Plus(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(x)


def chain(width: int, depth: int, kernel_size: int, patch_size: int, classes: int) -> nn.Sequential:
    """The network as one chain of PyTorch's layers, under the official names."""

    def active(layer: nn.Module) -> list[nn.Module]:
        return [layer, nn.GELU(), nn.BatchNorm2d(width)]

    layers = active(nn.Conv2d(3, width, patch_size, patch_size))
    for _ in range(depth):
        spatial = nn.Conv2d(width, width, kernel_size, padding=kernel_size // 2, groups=width)
        layers.append(nn.Sequential(Plus(nn.Sequential(*active(spatial))), *active(nn.Conv2d(width, width, 1))))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


@torch.no_grad()
def test_the_official_chain_of_layers_computes_the_same_with_its_weights():
    theirs = randomise(chain(12, 3, 5, 4, classes=5)).double()
    ours = create_model("convmixer_1536_20", num_classes=5, **SMALL).double().eval()
    assert load_weights(ours, theirs.state_dict()) == "official"
    for size in SIZES:
        assert_near(ours(image(*size).double()), theirs(image(*size).double()), 1e-12)
    with pytest.raises(CheckpointError, match=r"head has 5 classes .* num_classes=9"):
        create_model("convmixer_1536_20", num_classes=9, weights=theirs.state_dict(), **SMALL)


@pytest.mark.parametrize(
    ("name", "classes", "params"),
    [("convmixer_256_8_ks9_p1", 10, 706_570), ("convmixer_1536_20", 1000, 51_625_960), ("convmixer_768_32", 1000, 21_110_248)],
)
def test_exact_sizes(name, classes, params):
    """By hand for ConvMixer-256/8: stem 4 * 256 + 512, a block 82 * 256 + 257 * 256 + 2 * 512, the classifier 257 * 10."""
    assert 706_570 == (4 * 256 + 512) + 8 * (82 * 256 + 257 * 256 + 2 * 512) + 257 * 10
    with on_meta():
        assert count_params(create_model(name, num_classes=classes)) == params


@pytest.mark.parametrize("dims", [1, 2, 3])
@torch.no_grad()
def test_a_block_is_its_equation(dims):
    block = randomise(ConvMixerBlock(6, kernel_size=3, dims=dims).double())
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims]
    state = block.state_dict()

    def layer(x: Tensor, prefix: str, number: int, **how: int) -> Tensor:
        y = F.gelu(convolve(x, state[f"{prefix}{number}.weight"], state[f"{prefix}{number}.bias"], **how))
        mean, var, scale, shift = (
            state[f"{prefix}{number + 2}.{key}"].view(-1, *[1] * dims) for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (y - mean) / (var + 1e-5).sqrt() * scale + shift

    x = image(*(7, 6, 5)[:dims]).double().repeat_interleave(2, 1)
    z = x + layer(x, "0.fn.", 0, padding=1, groups=6)
    torch.testing.assert_close(block(x), layer(z, "", 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [1, 2])
@torch.no_grad()
def test_a_stacked_input_equals_a_slice(dims):
    """With kernels centred in the new axis, slices never mix; and equal slices have the mean of one."""
    flat = randomise(create_model("convmixer_1536_20", dims=dims, num_classes=5, **SMALL).double())
    deep = centred(flat, create_model("convmixer_1536_20", dims=dims + 1, num_classes=5, **SMALL).double())
    x = image(*(24, 20)[:dims]).double()
    torch.testing.assert_close(deep(x.unsqueeze(-1).expand(*x.shape, 12)), flat(x), rtol=1e-10, atol=1e-10)


def test_an_input_smaller_than_a_patch_is_refused():
    with pytest.raises(InputError, match="at least 14"):
        create_model("convmixer_1024_20_ks9_p14", width=8, depth=1)(image(14, 13))
