"""HorNet against its equations written out, exact sizes of the official models, symmetries, and its figures."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model, list_models, model_entry
from cnnkit.backbones._base import FeaturePyramid
from cnnkit.backbones.hornet import GlobalLocalFilter, GnConv
from cnnkit.count import count_macs, count_params, on_meta
from cnnkit.errors import ConfigError
from cnnkit.layers.norm import LayerNormNd
from cnnkit.testing.compare import image, randomise
from torch import Tensor, nn

pytestmark = pytest.mark.paper("hornet")

SMALL = {"depths": (1, 2, 1, 1), "widths": (8, 16, 32, 64), "img_size": 64}
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def normalised(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    """Zero mean and unit variance over the channels of each position, in plain arithmetic."""
    centred = x - x.mean(1, keepdim=True)
    unit = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
    form = (-1, *[1] * (x.ndim - 2))
    return unit * state[f"{name}.weight"].view(form) + state[f"{name}.bias"].view(form)


def circular(x: Tensor, weight: Tensor) -> Tensor:
    """The circular convolution that a filter of frequencies stands for, as a sum over shifts."""
    height, width = x.shape[2:]
    kernel = torch.fft.irfft2(torch.view_as_complex(weight), s=(height, width))
    return sum(kernel[:, i, j, None, None] * x.roll((i, j), (2, 3)) for i in range(height) for j in range(width))


def gated(x: Tensor, state: dict[str, Tensor], order: int, scale: float) -> Tensor:
    """The paper's recursion, each step by itself."""
    channels = x.shape[1]
    projected = F.conv2d(x, state["proj_in.weight"], state["proj_in.bias"])
    widths = [channels // 2 ** (order - 1 - step) for step in range(order)]
    p, q = projected[:, : widths[0]], projected[:, widths[0] :]
    if "dwconv.weight" in state:
        q = F.conv2d(q, state["dwconv.weight"], state["dwconv.bias"], padding=3, groups=q.shape[1])
    else:
        q = normalised(q, state, "dwconv.pre_norm")
        half = q.shape[1] // 2
        local = F.conv2d(q[:, :half], state["dwconv.dw.weight"], padding=1, groups=half)
        whole = circular(q[:, half:], state["dwconv.complex_weight"])
        q = torch.empty_like(q)
        q[:, 0::2], q[:, 1::2] = local, whole
        q = normalised(q, state, "dwconv.post_norm")
    for step in range(order):
        if step:
            p = F.conv2d(p, state[f"pws.{step - 1}.weight"], state[f"pws.{step - 1}.bias"])
        p = p * q[:, sum(widths[:step]) : sum(widths[: step + 1])] * scale
    return F.conv2d(p, state["proj_out.weight"], state["proj_out.bias"])


def inside(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def by_the_equations(state: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """The whole network from its weights under the official names: the features of every stage, then the logits."""
    levels = []
    for stage, (depth, order) in enumerate(zip(SMALL["depths"], (2, 3, 4, 5), strict=True)):
        first, second = f"downsample_layers.{stage}.0", f"downsample_layers.{stage}.1"
        if stage:
            x = F.conv2d(normalised(x, state, first), state[f"{second}.weight"], state[f"{second}.bias"], stride=2)
        else:
            x = normalised(F.conv2d(x, state[f"{first}.weight"], state[f"{first}.bias"], stride=4), state, second)
        for index in range(depth):
            block = inside(state, f"stages.{stage}.{index}.")
            mixed = gated(normalised(x, block, "norm1"), inside(block, "gnconv."), order, 1 / 3)
            x = x + block["gamma1"].view(-1, 1, 1) * mixed
            hidden = torch.einsum("oc,bchw->bohw", block["pwconv1.weight"], normalised(x, block, "norm2"))
            hidden = F.gelu(hidden + block["pwconv1.bias"].view(-1, 1, 1))
            branch = torch.einsum("oc,bchw->bohw", block["pwconv2.weight"], hidden) + block["pwconv2.bias"].view(-1, 1, 1)
            x = x + block["gamma2"].view(-1, 1, 1) * branch
        levels.append(x)
    pooled = normalised(x.mean((2, 3)), state, "norm")
    return [*levels, pooled @ state["head.weight"].T + state["head.bias"]]


@pytest.mark.parametrize("name", ["hornet_tiny_7x7", "hornet_tiny_gf"])
@torch.no_grad()
def test_logits_and_pyramid_follow_the_equations(name):
    model = randomise(create_model(name, num_classes=5, **SMALL).double())
    for size in ((64, 64), (75, 97)) if name.endswith("7x7") else ((64, 64), (65, 67)):  # At these the filters are not interpolated.
        found = [*model.forward_pyramid(image(*size).double()), model(image(*size).double())]
        for ours, expected in zip(found, by_the_equations(model.state_dict(), image(*size).double()), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


# What the official constructors build, counted there.
OFFICIAL = {
    "hornet_tiny_7x7": 22_409_512,
    "hornet_tiny_gf": 22_991_848,
    "hornet_small_7x7": 49_528_264,
    "hornet_small_gf": 50_401_768,
    "hornet_base_7x7": 87_256_680,
    "hornet_base_gf": 88_421_352,
    "hornet_base_gf_img384": 92_099_560,
    "hornet_large_7x7": 194_542_504,
    "hornet_large_gf": 196_289_512,
    "hornet_large_gf_img384": 201_806_824,
}


@pytest.mark.parametrize("name", list_models(family="hornet"))
def test_variants_have_exactly_the_parameters_of_the_official_ones(name):
    with on_meta():
        assert count_params(create_model(name)) == OFFICIAL[name]


@pytest.mark.parametrize("dims", [1, 2, 3])
@torch.no_grad()
def test_order_one_and_two_are_gated_convolutions_written_by_hand(dims):
    torch.manual_seed(0)
    x = image(*(7, 8, 9)[:dims], channels=6).double()
    depthwise = {"padding": 3}
    one = randomise(GnConv(6, 1, dims=dims, scale=0.5).double())
    value, gate = one.proj_in(x).chunk(2, 1)
    expected = one.proj_out(value * 0.5 * CONV[dims](gate, one.dwconv.weight, one.dwconv.bias, groups=6, **depthwise))
    torch.testing.assert_close(one(x), expected, rtol=1e-12, atol=1e-12)

    two = randomise(GnConv(6, 2, dims=dims, scale=0.5).double())
    value, narrow, wide = two.proj_in(x).split((3, 3, 6), 1)
    weight, bias = two.dwconv.weight, two.dwconv.bias
    value = value * 0.5 * CONV[dims](narrow, weight[:3], bias[:3], groups=3, **depthwise)
    value = two.pws[0](value) * 0.5 * CONV[dims](wide, weight[3:], bias[3:], groups=6, **depthwise)
    torch.testing.assert_close(two(x), two.proj_out(value), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@torch.no_grad()
def test_the_degree_of_the_interactions_is_the_order_and_one(order):
    """Without biases, an input that is scaled by ``t`` comes out scaled by ``t ** (order + 1)``."""
    mixer = randomise(GnConv(16, order).double())
    for name, parameter in mixer.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    x = image(9, 8, channels=16).double()
    torch.testing.assert_close(mixer(1.5 * x), 1.5 ** (order + 1) * mixer(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dims", [1, 2, 3])
@torch.no_grad()
def test_a_filter_of_equal_factors_scales_at_every_size(dims):
    """Also where it is interpolated; and the same factor for all frequencies is a kernel of one element."""
    block = GlobalLocalFilter(6, size=(8, 6, 4)[:dims]).double()
    block.complex_weight.zero_()
    block.complex_weight[..., 0] = torch.tensor([2.0, -1.0, 0.5]).view(3, *[1] * dims)
    block.pre_norm, block.post_norm = nn.Identity(), nn.Identity()
    for size in ((8, 6, 4)[:dims], (5, 9, 7)[:dims]):
        x = image(*size, channels=6).double()
        scaled = x[:, 3:] * torch.tensor([2.0, -1.0, 0.5], dtype=x.dtype).view(3, *[1] * dims)
        torch.testing.assert_close(block(x)[:, 1::2], scaled, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_a_global_filter_commutes_with_circular_shifts_and_the_whole_map_counts():
    block = randomise(GlobalLocalFilter(6, size=(8, 6)).double())
    block.dw = nn.Identity()
    x = image(8, 6, channels=6).double()
    torch.testing.assert_close(block(x.roll((3, 2), (2, 3))), block(x).roll((3, 2), (2, 3)), rtol=1e-10, atol=1e-10)
    far = x.clone()
    far[:, :, 0, 0] += torch.randn(6, dtype=x.dtype)
    assert bool(((block(far) - block(x))[:, 1::2, 4, 3] != 0).all())


@pytest.mark.parametrize("name", ["hornet_tiny_7x7", "hornet_tiny_gf"])
@pytest.mark.parametrize("dims", [1, 2])
@torch.no_grad()
def test_a_stacked_input_equals_a_slice(name, dims):
    """With kernels centred in the new axis and filters that only pass its constant frequency."""
    flat = randomise(create_model(name, dims=dims, num_classes=5, **SMALL).double())
    deep = create_model(name, dims=dims + 1, num_classes=5, **SMALL).double().eval()
    state = flat.state_dict()
    for key, value in deep.state_dict().items():
        if value.ndim > state[key].ndim:
            wide = torch.zeros_like(value)
            if key.endswith("complex_weight"):
                wide[:, 0] = state[key]
            else:
                wide[:, :, (value.shape[2] - 1) // 2] = state[key]
            state[key] = wide
    deep.load_state_dict(state)
    x = image(*(64, 64)[:dims]).double()
    stacked = x.unsqueeze(2).expand(-1, -1, 64, *[-1] * dims)
    torch.testing.assert_close(deep(stacked), flat(x), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_half_precision_is_close_as_a_model_and_under_autocast():
    """The transforms are computed in single precision then; there are none in half."""
    model = randomise(create_model("hornet_tiny_gf", num_classes=5, **SMALL))
    x = image(64, 64)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = [model(x)]
    found.append(model.bfloat16()(x.bfloat16()))
    for half in found:
        assert half.dtype == torch.bfloat16
        assert (half.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_a_pyramid_of_fewer_levels_keeps_nothing_of_the_later_ones():
    pyramid = FeaturePyramid(create_model("hornet_tiny_gf", **SMALL), (0, 1))
    pyramid(image(64, 64))[-1].sum().backward()
    assert [key for key, parameter in pyramid.named_parameters() if parameter.grad is None] == []


def test_widths_that_do_not_suit_are_refused():
    with pytest.raises(ConfigError, match="order=4 halves 12 channels 3 times: use a multiple of 8"):
        GnConv(12, 4)
    with pytest.raises(ConfigError, match="order=0"):
        GnConv(12, 0)
    with pytest.raises(ConfigError, match="15 is odd"):
        GnConv(8, 4, filter_size=(4, 4))
    with pytest.raises(ConfigError, match="give one of each per stage"):
        create_model("hornet_tiny_7x7", orders=(2, 3))


@pytest.mark.parametrize(
    "name", ["hornet_tiny_7x7", "hornet_large_7x7", *(f"hornet_{size}_gf" for size in ("tiny", "small", "base", "large"))]
)
def test_the_reasons_given_for_the_figures_are_the_reasons(name):
    """The official counter's rules, as they are, and the classifier of the pre-training lead to the printed figures, also where ours do."""
    entry, extra = model_entry(name), []

    def normalise(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        extra.append(5 * output.numel())

    def transform(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        # Its rule is made for channels-last maps and meets channels-first ones: the logarithm is of channels times rows.
        half, (rows, columns) = output.shape[1] // 2, output.shape[2:]
        extra.append(half * rows * (columns + columns // 2 + 1) * math.ceil(math.log2(half * rows)))

    with on_meta():
        model = create_model(name, num_classes=10450 if "large" in name else 1000)
        for module in model.modules():
            # The normalisations of channels-first maps are sums and products there, which it does not count.
            if isinstance(module, nn.LayerNorm) or module is model.norm:
                module.register_forward_hook(normalise)
            if isinstance(module, GlobalLocalFilter):
                module.register_forward_hook(transform)
        size = entry.figures.input_size
        macs = count_macs(model, (1, 3, size, size)) + sum(extra)
    assert isinstance(model.norm, LayerNormNd)
    assert round(macs / 1e9, 1) == entry.figures.gmacs
    assert round(count_params(model) / 1e6) == entry.figures.params_m
