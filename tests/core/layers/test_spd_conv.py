"""SPD-Conv against the paper's slices, its inverse, the strided operations that it replaces, and networks without strides."""

from __future__ import annotations

import itertools

import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.errors import ConfigError
from cnnkit.layers.nd import AVG_POOL, CONV, MAX_POOL
from cnnkit.layers.same import padded_conv
from cnnkit.layers.spd_conv import SPDConv, depth_to_space, replace_strides, space_to_depth
from cnnkit.testing.compare import image, randomise
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.paper("spd-conv")
DIMS = (1, 2, 3)


class Strides(TorchDispatchMode):
    """Note every stride that an operation is called with."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.name == "stride" and ("conv" in func._schema.name or "pool" in func._schema.name):
                self.found.update(value)
        return func(*args, **(kwargs or {}))


def strides_of(model, x):
    with torch.no_grad(), Strides() as strides:
        model(x)
    return strides.found


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("scale", [2, 3])
def test_the_slices_are_the_papers(dims, scale):
    """``x[i::s, j::s]`` for every offset, the first changing fastest: to the bit."""
    x = image(*(6, 12, 6)[:dims]).double()
    slices = []
    for offsets in itertools.product(range(scale), repeat=dims):
        slices.append(x[(..., *[slice(offset, None, scale) for offset in reversed(offsets)])])
    assert torch.equal(space_to_depth(x, scale), torch.cat(slices, 1))


def test_in_two_dimensions_the_order_is_that_of_the_authors():
    x = image(4, 6).double()
    expected = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
    assert torch.equal(space_to_depth(x), expected)


@pytest.mark.parametrize("scale", [2, 3])
def test_it_is_pixel_unshuffle_in_another_order(scale):
    x = image(6, 12).double()
    by_channel = space_to_depth(x, scale).unflatten(1, (scale, scale, 3)).permute(0, 3, 2, 1, 4, 5).flatten(1, 3)
    assert torch.equal(by_channel, F.pixel_unshuffle(x, scale))


@pytest.mark.parametrize(("size", "scale"), [((12,), 3), ((4, 6), 2), ((4, 9), (2, 3)), ((4, 6, 2), (2, 3, 1)), ((2, 4, 6), 2)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_nothing_is_lost(size, scale, groups):
    x = image(*size, channels=4).double()
    deep = space_to_depth(x, scale, groups=groups)
    assert torch.equal(depth_to_space(deep, scale, groups=groups), x)
    # A group has the slices of its own channels, and what belongs to one example stays there.
    alone = torch.cat([space_to_depth(part, scale) for part in x.chunk(groups, 1)], 1)
    assert torch.equal(deep, alone)
    assert torch.equal(deep.flatten(1).sort().values, x.flatten(1).sort().values)


def test_what_is_missing_of_a_cell_is_zero():
    x = image(5, 4).double()
    assert torch.equal(space_to_depth(x), space_to_depth(F.pad(x, (0, 0, 0, 1))))
    assert SPDConv(3, 5, dtype=torch.float64)(x).shape == (2, 5, 3, 2)


GEOMETRIES = [
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 7, "stride": 2, "padding": 3},
    {"kernel_size": 1, "stride": 2, "bias": False},
    {"kernel_size": 2, "stride": 2},
    {"kernel_size": 4, "stride": 4},
    {"kernel_size": 4, "stride": 2, "padding": 1, "groups": 2},
    {"kernel_size": 3, "stride": 3, "padding": 2, "groups": 4},
    {"kernel_size": 3, "stride": 2, "padding": 4, "dilation": 2},
    {"kernel_size": 5, "stride": 3, "dilation": 2},
]


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("words", GEOMETRIES)
@torch.no_grad()
def test_it_holds_every_strided_convolution(dims, words):
    """The same function at sizes that the stride divides and that it does not, in float64, to 1e-12, and with stride 1."""
    torch.manual_seed(0)
    plain = CONV[dims](4, 8, dtype=torch.float64, **words)
    layer = SPDConv.from_conv(plain)
    assert set(layer.conv.stride) == {1}
    for size in ((12, 12, 12), (13, 14, 11), (9, 10, 15)):
        x = image(*size[:dims], channels=4).double()
        torch.testing.assert_close(layer(x), plain(x), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_strides_may_differ_by_axis():
    plain = nn.Conv2d(4, 6, (3, 5), stride=(1, 2), padding=(1, 2), dtype=torch.float64)
    layer = SPDConv.from_conv(plain)
    assert layer.scale == (1, 2) and layer.conv.kernel_size == (3, 3)
    torch.testing.assert_close(layer(image(7, 9, channels=4).double()), plain(image(7, 9, channels=4).double()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", DIMS)
@torch.no_grad()
def test_it_holds_average_pooling_and_keeps_the_sizes_of_every_pooling(dims):
    for words in ({"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 2}, {"kernel_size": 2, "stride": 3}):
        for ceil in (False, True):
            average, largest = AVG_POOL[dims](**words, ceil_mode=ceil), MAX_POOL[dims](**words, ceil_mode=ceil)
            for size in ((12, 12, 12), (13, 11, 14), (8, 10, 7)):
                x = image(*size[:dims]).double()
                layer = SPDConv.from_pool(average, 3, like=x)
                if not ceil:
                    torch.testing.assert_close(layer(x), average(x), rtol=1e-12, atol=1e-12)
                assert layer(x).shape == average(x).shape
                assert SPDConv.from_pool(largest, 3, like=x)(x).shape == largest(x).shape


TINY = {"depths": (1, 2, 1, 1), "widths": (8, 8, 12, 16), "num_classes": 5}


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@torch.no_grad()
def test_a_network_without_strides_begins_as_the_same_function(name):
    """The paper's form for small images: no first pooling. In float64, to 1e-10."""
    plain, made = randomise(create_model(name, stem="small", **TINY)).double(), randomise(create_model(name, stem="small", **TINY)).double()
    assert strides_of(plain, image(32, 32).double()) == {1, 2}
    assert replace_strides(made, image(32, 32).double()) == 6
    for size in ((32, 32), (27, 38)):
        assert strides_of(made, image(*size).double()) == {1}
        torch.testing.assert_close(made(image(*size).double()), plain(image(*size).double()), rtol=1e-10, atol=1e-10)


def test_a_network_with_pooling_keeps_its_shapes_and_mode_and_trains():
    torch.manual_seed(0)
    model = create_model("resnet18", features_only=True, **{key: TINY[key] for key in ("depths", "widths")})
    before = {key: value.clone() for key, value in model.state_dict().items() if "running" in key}
    expected = [[level.shape for level in model(image(*size))] for size in ((64, 64), (75, 53))]
    model.load_state_dict({**model.state_dict(), **before})
    # The stem, the first pooling, and in three stages a convolution and its shortcut.
    assert replace_strides(model, image(64, 64)) == 8
    assert model.training and all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items() if "running" in key)
    assert expected == [[level.shape for level in model(image(*size))] for size in ((64, 64), (75, 53))]
    assert strides_of(model, image(64, 64)) == {1}
    model.zero_grad()
    sum(level.square().mean() for level in model(image(64, 64))).backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


def test_a_module_that_is_used_twice_is_replaced_once():
    shared = nn.Conv2d(3, 3, 3, stride=2, padding=1, dtype=torch.float64)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    expected = model(image(16, 16).double())
    assert replace_strides(model, image(16, 16).double()) == 1
    assert model[0] is model[2]
    torch.testing.assert_close(model(image(16, 16).double()), expected, rtol=1e-12, atol=1e-12)


def test_every_position_counts_alike():
    """A strided 1x1 convolution reads one position of four, one of 3x3 the even ones less often; here all are read equally often."""

    def reads(layer):
        nn.init.ones_(layer.weight if isinstance(layer, nn.Conv2d) else layer.conv.weight)
        x = torch.zeros(1, 1, 8, 8, requires_grad=True)
        layer(x).sum().backward()
        return x.grad[0, 0, 2:6, 2:6]

    assert reads(nn.Conv2d(1, 1, 1, stride=2)).unique().tolist() == [0, 1]
    assert reads(nn.Conv2d(1, 1, 3, stride=2, padding=1)).unique().tolist() == [1, 2, 4]
    assert reads(SPDConv(1, 1, 1)).unique().tolist() == [1]
    assert reads(SPDConv(1, 1, 3)).unique().tolist() == [9]


def test_it_exports_with_a_free_batch():
    model = nn.Sequential(SPDConv(3, 4), nn.ReLU(), SPDConv.from_conv(nn.Conv2d(4, 4, 2, stride=2, groups=2))).eval()
    x = image(15, 18)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},))
    torch.testing.assert_close(program.module()(x[:1]), model(x[:1]))


def test_what_cannot_be_replaced_is_refused():
    with pytest.raises(ConfigError, match="every side must be odd"):
        SPDConv(3, 4, 2)
    for layer in (
        nn.Conv2d(3, 3, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 3, 3, padding="same"),
        padded_conv(3, 3, 3, stride=2, padding="same"),
    ):
        with pytest.raises(ConfigError, match="only an ordinary convolution"):
            SPDConv.from_conv(layer)
