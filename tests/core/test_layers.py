"""The layers against closed forms, other implementations and each other across dimensions."""

from __future__ import annotations

import pytest
import torch
from cnnkit import layers
from cnnkit.errors import ConfigError
from torch import nn

DIMS = (1, 2, 3)


def features(dims: int, channels: int = 8, size: int = 6, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(dims)
    return torch.randn(2, channels, *range(size, size + dims), generator=generator, dtype=dtype)


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("norm", ["batch", "instance", "group", "layer", "none"])
def test_conv_norm_act_keeps_the_size_and_every_parameter_learns(dims, norm):
    block = layers.ConvNormAct(8, 12, 3, dims=dims, norm=norm, dtype=torch.float64)
    x = features(dims)
    y = block(x)
    assert y.shape == (2, 12, *x.shape[2:])
    (y * torch.randn_like(y)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters() if p is not block.conv.bias)
    assert (block.conv.bias is not None) == (norm == "none")


@pytest.mark.parametrize("order", ["cna", "can", "nac", "acn"])
def test_conv_norm_act_follows_its_order(order):
    block = layers.ConvNormAct(8, 12, 3, norm="layer", act="gelu", order=order, dtype=torch.float64)
    x = features(2)
    expected = x
    for letter in order:
        expected = {"c": block.conv, "n": block.norm, "a": block.act}[letter](expected)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=0)
    assert block.norm.channels == (12 if order.index("n") > order.index("c") else 8)
    with pytest.raises(ConfigError, match="permutation"):
        layers.ConvNormAct(8, 8, order="cn")


def test_conv_norm_act_pads_dilated_and_anisotropic_kernels():
    x = features(3)
    assert layers.ConvNormAct(8, 8, (1, 3, 5), dims=3, dilation=(1, 2, 3), groups=8, dtype=torch.float64)(x).shape == x.shape
    strided = layers.ConvNormAct(8, 8, 3, dims=3, stride=(1, 2, 2), dtype=torch.float64)(x)
    assert strided.shape == (2, 8, 6, 4, 4)


def test_a_centred_3d_kernel_acts_slicewise_like_the_2d_one():
    flat = layers.ConvNormAct(8, 4, 3, dims=2, norm="layer", dtype=torch.float64)
    deep = layers.ConvNormAct(8, 4, 3, dims=3, norm="layer", dtype=torch.float64)
    nn.init.zeros_(deep.conv.weight)
    deep.conv.weight.data[:, :, 1] = flat.conv.weight.data
    x = features(3)
    slices = torch.stack([flat(x[:, :, i]) for i in range(x.shape[2])], dim=2)
    torch.testing.assert_close(deep(x), slices, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", (0, *DIMS))
def test_layer_norm_is_the_closed_form_over_channels(dims):
    norm = layers.LayerNormNd(8, eps=1e-3, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = features(dims)
    shape = (1, 8) + (1,) * dims
    centred = x - x.mean(1, keepdim=True)
    expected = centred / (centred.square().mean(1, keepdim=True) + 1e-3).sqrt() * norm.weight.view(shape) + norm.bias.view(shape)
    torch.testing.assert_close(norm(x), expected, rtol=1e-10, atol=1e-10)


def test_norms_by_name():
    assert layers.get_norm("group", 2, 48).num_groups == 16
    assert layers.get_norm("instance", 3, 4).affine
    with pytest.raises(ConfigError, match="did you mean 'batch'"):
        layers.get_norm("bach", 2, 4)
    with pytest.raises(ValueError, match="dims=4"):
        layers.get_norm("batch", 4, 4)


def test_acts_by_name():
    x = torch.linspace(-3, 3, 13)
    for name in layers.act.ACTS:
        assert layers.get_act(name)(x).shape == x.shape
    torch.testing.assert_close(layers.get_act("leaky_relu", negative_slope=0.2)(x), torch.where(x > 0, x, 0.2 * x))
    assert layers.get_act("relu", inplace=True).inplace
    with pytest.raises(ConfigError, match="did you mean 'gelu'"):
        layers.get_act("gello")


@pytest.mark.parametrize("dims", DIMS)
def test_global_pool(dims):
    x = features(dims)
    flat = x.flatten(2)
    torch.testing.assert_close(layers.global_pool(x), flat.mean(2))
    torch.testing.assert_close(layers.GlobalPool("max")(x), flat.max(2).values)
    torch.testing.assert_close(layers.GlobalPool("avgmax")(x), (flat.mean(2) + flat.max(2).values) / 2)
    assert layers.GlobalPool("avg", keepdim=True)(x).shape == (2, 8) + (1,) * dims
    with pytest.raises(ConfigError):
        layers.GlobalPool("mean")


def test_blur_pool_equals_timm_in_2d():
    timm = pytest.importorskip("timm")
    x = features(2, size=9, dtype=torch.float32)
    torch.testing.assert_close(layers.BlurPool(8)(x), timm.layers.BlurPool2d(8)(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("taps", [2, 3, 4])
def test_blur_pool_keeps_constants_and_halves(dims, taps):
    x = torch.full((1, 3) + (7,) * dims, 2.5)
    y = layers.BlurPool(3, dims=dims, taps=taps)(x)
    assert y.shape == (1, 3) + (4,) * dims
    torch.testing.assert_close(y, torch.full_like(y, 2.5))


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("name", ["linear", "nearest", "transposed"])
def test_upsample_by_name(dims, name):
    x = features(dims)
    y = layers.get_upsample(name, dims, 8, 4, scale=2, dtype=torch.float64)(x)
    assert y.shape == (2, 4, *(2 * n for n in x.shape[2:]))


def test_upsample_interpolates_along_each_axis():
    ramp = torch.arange(4.0).expand(1, 1, 3, 4)
    enlarged = layers.Interpolate((1, 2))(ramp)
    assert enlarged.shape == (1, 1, 3, 8)
    torch.testing.assert_close(enlarged[0, 0, 0], torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]))
    torch.testing.assert_close(layers.Interpolate(2, mode="nearest")(ramp), ramp.repeat_interleave(2, 2).repeat_interleave(2, 3))
    with pytest.raises(ConfigError):
        layers.get_upsample("cubic", 2, 4, 4)


def test_drop_path_drops_whole_samples_and_keeps_the_expectation():
    torch.manual_seed(0)
    x = torch.ones(20000, 2, 2)
    y = layers.DropPath(0.25)(x)
    per_sample = y.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()
    assert set(per_sample.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    # Standard error of the mean is sqrt(p / (1 - p) / n) = 0.004; five of them.
    assert abs(y.mean().item() - 1) < 0.021
    assert layers.DropPath(0.25).eval()(x) is x
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        layers.DropPath(1.0)


def test_drop_path_rates_rise_linearly():
    rates = layers.drop_path_rates(0.3, (1, 2, 1))
    assert [len(stage) for stage in rates] == [1, 2, 1]
    torch.testing.assert_close(torch.tensor([rate for stage in rates for rate in stage]), torch.linspace(0, 0.3, 4))
    assert layers.drop_path_rates(0.3, (1,)) == [[0.0]]


def test_squeeze_excite_equals_timm_in_2d():
    timm = pytest.importorskip("timm")
    ours, theirs = layers.SqueezeExcite(16, reduction=4), timm.layers.SEModule(16, rd_ratio=1 / 4, rd_divisor=1)
    theirs.load_state_dict(ours.state_dict())
    x = features(2, channels=16, dtype=torch.float32)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dims", DIMS)
def test_squeeze_excite_is_the_papers_equation(dims):
    block = layers.SqueezeExcite(8, dims=dims, reduction=2, dtype=torch.float64)
    x = features(dims)
    means = x.flatten(2).mean(2)
    hidden = torch.relu(means @ block.fc1.weight.flatten(1).T + block.fc1.bias)
    weights = torch.sigmoid(hidden @ block.fc2.weight.flatten(1).T + block.fc2.bias)
    torch.testing.assert_close(block(x), x * weights.view(2, 8, *[1] * dims), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", DIMS)
def test_constructors_take_device_and_dtype(dims):
    kw = {"device": "meta", "dtype": torch.float16}
    built = [
        layers.ConvNormAct(4, 4, dims=dims, **kw),
        layers.LayerNormNd(4, **kw),
        layers.BlurPool(4, dims=dims, **kw),
        layers.get_upsample("transposed", dims, 4, 4, **kw),
        layers.SqueezeExcite(4, dims=dims, **kw),
        *(layers.get_norm(name, dims, 4, **kw) for name in layers.norm.NORMS),
    ]
    for module in built:
        for tensor in (*module.parameters(), *module.buffers()):
            assert tensor.is_meta
            assert tensor.dtype in (torch.float16, torch.int64)
