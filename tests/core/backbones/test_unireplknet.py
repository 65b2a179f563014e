"""UniRepLKNet against its equations with the keys of the paper's code, merged against its branches, and data of five kinds."""

from __future__ import annotations

import math

import pytest
import torch
from cnnkit.backbones import create_model, create_small, list_models, model_entry
from cnnkit.backbones.unireplknet import BRANCHES, DilatedReparamConv, draw_points, fold_series, tile_frames
from cnnkit.count import count_macs, count_params, on_meta
from cnnkit.errors import ConfigError, InputError
from cnnkit.layers.fuse import fuse, merge_branches
from cnnkit.layers.grn import GlobalResponseNorm
from cnnkit.testing.compare import image, randomise
from cnnkit.weights import load_weights
from torch import Tensor, nn
from torch.nn import functional as F

pytestmark = pytest.mark.paper("unireplknet")

# Width and depths of the paper's code, and the kernels of its third stage by the number of blocks there.
OFFICIAL = {
    "unireplknet_a": (40, (2, 2, 6, 2)),
    "unireplknet_f": (48, (2, 2, 6, 2)),
    "unireplknet_p": (64, (2, 2, 6, 2)),
    "unireplknet_n": (80, (2, 2, 8, 2)),
    "unireplknet_t": (80, (3, 3, 18, 3)),
    "unireplknet_s": (96, (3, 3, 27, 3)),
    "unireplknet_b": (128, (3, 3, 27, 3)),
    "unireplknet_l": (192, (3, 3, 27, 3)),
    "unireplknet_xl": (256, (3, 3, 27, 3)),
}
THIRD = {6: (13,) * 6, 8: (13,) * 8, 18: (13, 3) * 9, 27: (13, 3, 3) * 9}
PUBLISHED = {  # Parameters and multiply-adds as the paper prints them.
    "unireplknet_a": (4.4, 0.6),
    "unireplknet_f": (6.2, 0.9),
    "unireplknet_p": (10.7, 1.6),
    "unireplknet_n": (18.3, 2.8),
    "unireplknet_t": (31, 4.9),
    "unireplknet_s": (55.6, 9.1),
    "unireplknet_b": (98, 47.2),
    "unireplknet_l": (218, 105.4),
    "unireplknet_xl": (386, 187),
}
SMALL = {"depths": (1, 1, 2, 1), "widths": (8, 8, 12, 16), "kernels": ((3,), (9,), (13, 3), (7,))}
SIZES = {1: (75,), 2: (64, 75), 3: (32, 24, 16)}
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def official_shapes(width: int, depths, kernels, *, merged: bool, dims: int = 2) -> dict[str, tuple[int, ...]]:
    """What a file of the paper's own code holds, in the form for training or in that for inference."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *form: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = form
        if bias:
            shapes[f"{name}.bias"] = form[:1]

    def batch_norm(name: str, width: int) -> None:
        layer(name, width)
        shapes[f"{name}.running_mean"] = shapes[f"{name}.running_var"] = (width,)
        shapes[f"{name}.num_batches_tracked"] = ()

    widths = [width * 2**stage for stage in range(4)] if isinstance(width, int) else width
    for stage, (depth, wide) in enumerate(zip(depths, widths, strict=True)):
        name = f"downsample_layers.{stage}"
        if stage == 0:
            layer(f"{name}.0", wide // 2, 3, *[3] * dims)
            layer(f"{name}.1", wide // 2)
            layer(f"{name}.3", wide, wide // 2, *[3] * dims)
            layer(f"{name}.4", wide)
        else:
            layer(f"{name}.0", wide, widths[stage - 1], *[3] * dims)
            layer(f"{name}.1", wide)
        for index in range(depth):
            block, size = f"stages.{stage}.{index}", kernels[stage][index]
            if size < 7:
                layer(f"{block}.dwconv", wide, 1, *[size] * dims, bias=merged)
            else:
                layer(f"{block}.dwconv.lk_origin", wide, 1, *[size] * dims, bias=merged)
            if not merged:
                if size >= 7:
                    batch_norm(f"{block}.dwconv.origin_bn", wide)
                    for small, dilation in BRANCHES[size]:
                        layer(f"{block}.dwconv.dil_conv_k{small}_{dilation}", wide, 1, *[small] * dims, bias=False)
                        batch_norm(f"{block}.dwconv.dil_bn_k{small}_{dilation}", wide)
                batch_norm(f"{block}.norm", wide)
                batch_norm(f"{block}.pwconv2.2", wide)
                shapes[f"{block}.act.1.beta"] = (*[1] * (dims + 1), 4 * wide)
                shapes[f"{block}.gamma"] = (wide,)
            layer(f"{block}.se.down", wide // 4, wide, *[1] * dims)
            layer(f"{block}.se.up", wide, wide // 4, *[1] * dims)
            layer(f"{block}.pwconv1.1", 4 * wide, wide)
            shapes[f"{block}.act.1.gamma"] = (*[1] * (dims + 1), 4 * wide)
            layer(f"{block}.pwconv2.0", wide, 4 * wide, bias=merged)
    layer("norm", widths[-1])
    layer("head", 1000, widths[-1])
    return shapes


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("name", OFFICIAL)
def test_files_of_the_official_code_have_the_keys_and_shapes_of_the_variants(name, merged):
    width, depths = OFFICIAL[name]
    kernels = ((3,) * 3, (13,) * 3, THIRD[depths[2]], (13,) * 3)
    with on_meta():
        ours = create_model(name)
        state = {key: torch.empty(shape) for key, shape in official_shapes(width, depths, kernels, merged=merged).items()}
        layout = ours.layouts[0 if merged else 1]
        assert layout.matches(state.keys()) and ours.layouts[0].matches(state.keys()) is merged
        converted = {key: value.shape for key, value in layout.convert(state).items()}
    expected = {key: value.shape for key, value in ours.state_dict().items()}
    if merged:  # Whether a counter is there does not matter, and a model for inference has none.
        expected = {key: shape for key, shape in expected.items() if not key.endswith("num_batches_tracked")}
    assert converted == expected


def test_all_variants_are_covered():
    assert sorted(OFFICIAL) == sorted(PUBLISHED) == list_models(family="unireplknet")


@pytest.mark.parametrize("name", PUBLISHED)
def test_merged_models_have_the_published_figures(name):
    """To the precision that is printed; the XL's 386.58 million parameters are cut off to 386 in print, and the S's 55.67 to 55.6."""
    with on_meta():
        model = create_model(name).eval()
        merge_branches(model)
        side = model_entry(name).figures.input_size
        counts = count_params(model) / 1e6, count_macs(model, (1, 3, side, side)) / 1e9
    for count, printed in zip(counts, PUBLISHED[name], strict=True):
        unit = 1.0 if isinstance(printed, int) else 0.1
        assert printed - unit / 2 <= count < printed + unit


def plain(state: dict[str, Tensor], x: Tensor, *, depths, kernels) -> tuple[list[Tensor], Tensor]:
    """The model in elementary operations on the official keys, for training or for inference; returns the levels and the logits."""
    dims = x.ndim - 2

    def per_channel(value: Tensor) -> Tensor:
        return value.flatten().view(1, -1, *[1] * dims)

    def batch_norm(x: Tensor, name: str) -> Tensor:
        if f"{name}.weight" not in state:
            return x
        mean, var, weight, bias = (per_channel(state[f"{name}.{key}"]) for key in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def layer_norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        y = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return y * state[f"{name}.weight"].view(1, -1, *[1] * (x.ndim - 2)) + state[f"{name}.bias"].view(1, -1, *[1] * (x.ndim - 2))

    def convolve(x: Tensor, name: str, **options) -> Tensor:
        return CONV[dims](x, state[f"{name}.weight"], state.get(f"{name}.bias"), **options)

    def linear(x: Tensor, name: str) -> Tensor:
        return convolve_1x1(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def convolve_1x1(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = torch.einsum("oi,bi...->bo...", weight.flatten(1), x)
        return y if bias is None else y + bias.view(1, -1, *[1] * (x.ndim - 2))

    levels = []
    for stage, depth in enumerate(depths):
        name = f"downsample_layers.{stage}"
        x = layer_norm(convolve(x, f"{name}.0", stride=2, padding=1), f"{name}.1")
        if stage == 0:
            x = layer_norm(convolve(F.gelu(x), f"{name}.3", stride=2, padding=1), f"{name}.4")
        for index in range(depth):
            block, size, width = f"stages.{stage}.{index}", kernels[stage][index % len(kernels[stage])], x.shape[1]
            large = f"{block}.dwconv.lk_origin" if size >= 7 else f"{block}.dwconv"
            y = batch_norm(convolve(x, large, padding=size // 2, groups=width), f"{block}.dwconv.origin_bn")
            if f"{block}.dwconv.origin_bn.weight" in state:
                for small, dilation in BRANCHES[size]:
                    key = f"k{small}_{dilation}"
                    padding = dilation * (small - 1) // 2
                    part = convolve(x, f"{block}.dwconv.dil_conv_{key}", padding=padding, dilation=dilation, groups=width)
                    y = y + batch_norm(part, f"{block}.dwconv.dil_bn_{key}")
            y = batch_norm(y, f"{block}.norm")
            means = y.flatten(2).mean(-1)
            y = y * per_pixel(linear(linear(means, f"{block}.se.down").relu(), f"{block}.se.up").sigmoid(), dims)
            y = F.gelu(linear(y, f"{block}.pwconv1.1"))
            response = y.flatten(2).square().sum(-1).sqrt()
            share = response / (response.mean(1, keepdim=True) + 1e-6)
            y = y * (1 + per_channel(state[f"{block}.act.1.gamma"]) * per_pixel(share, dims))
            if f"{block}.act.1.beta" in state:
                y = y + per_channel(state[f"{block}.act.1.beta"])
            y = batch_norm(linear(y, f"{block}.pwconv2.0"), f"{block}.pwconv2.2")
            x = x + y * (per_channel(state[f"{block}.gamma"]) if f"{block}.gamma" in state else 1)
        levels.append(x)
    return levels, linear(layer_norm(x.flatten(2).mean(-1), "norm"), "head")


def per_pixel(x: Tensor, dims: int) -> Tensor:
    return x[(..., *[None] * dims)]


def official_state(dims: int, *, merged: bool) -> dict[str, Tensor]:
    kernels = [[pattern[i % len(pattern)] for i in range(depth)] for pattern, depth in zip(SMALL["kernels"], SMALL["depths"], strict=True)]
    shapes = official_shapes(SMALL["widths"], SMALL["depths"], kernels, merged=merged, dims=dims)
    return randomise({key: torch.zeros(shape, dtype=torch.float64) for key, shape in shapes.items()})


@pytest.mark.parametrize("dims", SIZES)
@pytest.mark.parametrize("merged", [False, True])
@torch.no_grad()
def test_files_of_both_layouts_give_the_equations(merged, dims):
    """Logits and levels; a file for inference too makes a model that can be trained, and that merges back."""
    state = official_state(dims, merged=merged)
    ours = create_model("unireplknet_t", dims=dims, **SMALL).double()
    assert load_weights(ours, state) == ("official merged" if merged else "official")
    ours.eval()
    x = image(*SIZES[dims]).double()
    levels, logits = plain(state, x, depths=SMALL["depths"], kernels=SMALL["kernels"])
    torch.testing.assert_close(ours(x), logits, rtol=1e-9, atol=1e-10)
    for level, expected in zip(ours.forward_pyramid(x), levels, strict=True):
        torch.testing.assert_close(level, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(ours.fuse()(x), logits, rtol=1e-9, atol=1e-10)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in ours.modules())


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("size", BRANCHES)
@torch.no_grad()
def test_the_merged_kernel_equals_the_sum_of_the_branches(size, dims):
    layer = randomise(DilatedReparamConv(3, size, dims=dims).double())
    x = torch.randn(2, 3, *(19, 8, 7)[:dims], dtype=torch.float64)
    whole = layer.merged()
    assert type(whole) is type(layer.lk_origin) and whole.kernel_size == (size,) * dims
    torch.testing.assert_close(whole(x), layer(x), rtol=1e-10, atol=1e-10)
    assert all(dilation * (small - 1) < size for small, dilation in BRANCHES[size])


@torch.no_grad()
def test_fusing_leaves_bare_blocks():
    """In float32 to 1e-5; the block of a large kernel is then one depthwise convolution."""
    model = randomise(create_model("unireplknet_t", num_classes=5, **SMALL))
    expected = model(image(64, 64))
    fuse(model, torch.zeros(1, 3, 64, 64))
    assert (model(image(64, 64)) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert type(model.stages[2][0].dwconv) is nn.Conv2d and type(model.stages[2][0].norm) is nn.Identity
    assert model.stages[2][0].grn.bias is None and model.stages[2][0].gamma is None


@pytest.mark.parametrize("grid", [(7,), (4, 5), (3, 4, 2)])
@torch.no_grad()
def test_responses_against_timm(grid):
    timm_layers = pytest.importorskip("timm.layers.grn")
    ours, theirs = GlobalResponseNorm(6).double(), timm_layers.GlobalResponseNorm(6, channels_last=True).double()
    randomise(ours)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, *grid, 6, dtype=torch.float64)
    flat = x if len(grid) == 2 else x.reshape(2, -1, 1, 6)  # timm has two dimensions; the response does not know the places.
    torch.testing.assert_close(ours(x), theirs(flat).view_as(x), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_axes_are_treated_alike():
    model = randomise(create_model("unireplknet_t", num_classes=4, dims=3, **SMALL).double())
    turned = create_model("unireplknet_t", num_classes=4, dims=3, **SMALL).double().eval()
    turned.load_state_dict({key: value.transpose(2, 4) if value.ndim == 5 else value for key, value in model.state_dict().items()})
    x = image(32, 24, 40).double()
    torch.testing.assert_close(model(x), turned(x.transpose(2, 4)), rtol=1e-10, atol=1e-10)


def test_frames_are_laid_side_by_side():
    clip = torch.arange(6.0).view(1, 1, 6, 1, 1) + torch.tensor([[0.0, 0.1], [0.2, 0.3]])
    tiled = tile_frames(clip)
    assert tiled.shape == (1, 1, 4, 6)  # Two rows of three.
    torch.testing.assert_close(tiled[0, 0, 0], torch.tensor([0.0, 0.1, 1.0, 1.1, 2.0, 2.1]))
    torch.testing.assert_close(tiled[0, 0, 3], torch.tensor([3.2, 3.3, 4.2, 4.3, 5.2, 5.3]))
    assert tile_frames(clip, columns=6).shape == (1, 1, 2, 12) and tile_frames(clip[:, :, :5]).shape == (1, 1, 2, 10)
    with pytest.raises(InputError, match="do not fill rows of 4"):
        tile_frames(clip, columns=4)


def test_a_series_is_written_in_lines():
    folded = fold_series(torch.arange(12.0).view(1, 1, 12), 4)
    assert folded[0, 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(InputError, match="cut it to 10"):
        fold_series(torch.zeros(1, 1, 12), 5)


def test_points_are_drawn_from_three_sides():
    points = torch.tensor([[[0.0, 0.0, 0.0], [4.0, 4.0, 4.0], [4.0, 4.0, 4.0], [1.0, 2.0, 3.0]]])
    drawn = draw_points(points, 4)
    assert drawn.shape == (1, 3, 4, 4)
    for view, (row, column) in enumerate(((2, 3), (1, 3), (1, 2))):
        expected = torch.zeros(4, 4)
        expected[0, 0] = expected[row, column] = 0.5
        expected[3, 3] = 1.0
        torch.testing.assert_close(drawn[0, view], expected)
    torch.testing.assert_close(draw_points(3 * points - 7, 4), drawn)  # Where a cloud is, and how large, does not matter.
    torch.testing.assert_close(draw_points(torch.ones(1, 5, 3), 4).sum(), torch.tensor(3.0))


@torch.no_grad()
def test_data_of_five_kinds_run_through_one_backbone():
    model = create_small("unireplknet", num_classes=4).eval()
    generator = torch.Generator().manual_seed(0)
    wave = torch.sin(torch.arange(4096.0) / 7).expand(2, -1)
    spectrogram = torch.stft(wave, 126, window=torch.hann_window(126), return_complex=True).abs().unsqueeze(1).expand(-1, 3, -1, -1)
    inputs = {
        "image": torch.randn(2, 3, 64, 64, generator=generator),
        "spectrogram": spectrogram,
        "series": fold_series(torch.randn(2, 3, 1024, generator=generator), 32),
        "clip": tile_frames(torch.randn(2, 3, 8, 32, 32, generator=generator)),
        "points": draw_points(torch.randn(2, 256, 3, generator=generator), 64),
    }
    for name, x in inputs.items():
        assert model(x).isfinite().all(), name


def test_it_forecasts_a_noisy_sinusoid_better_than_persistence():
    """The next 4 values of a wave of period 16 from 8 periods; persistence repeats the last value."""
    torch.manual_seed(0)

    def batch(number: int) -> tuple[Tensor, Tensor]:
        steps = torch.arange(132.0) + 16 * torch.rand(number, 1)
        series = torch.sin(2 * math.pi * steps / 16) + 0.1 * torch.randn(number, 132)
        return fold_series(series[:, None, :128], 16).repeat_interleave(2, 2), series[:, 128:]

    model = create_small("unireplknet", in_chans=1, num_classes=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(40):
        x, wanted = batch(16)
        optimizer.zero_grad()
        F.mse_loss(model(x), wanted).backward()
        optimizer.step()
    x, wanted = batch(128)
    with torch.no_grad():
        found = F.mse_loss(model.eval()(x), wanted)
    persistence = F.mse_loss(x[:, 0, -1, -1:].expand_as(wanted), wanted)
    assert found < 0.5 * persistence


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="equally many"):
        create_model("unireplknet_a", depths=(1, 2))
    with pytest.raises(ConfigError, match="kernel_size=19 has no small kernels beside it; use one of 5, 7"):
        create_model("unireplknet_a", kernels=((3,), (19,), (13,), (13,)))
