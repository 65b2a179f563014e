"""The spatial shift against the depthwise convolution with a single one in each kernel, exactly."""

from __future__ import annotations

import pytest
import torch
from cnnkit.errors import ConfigError
from cnnkit.layers.spatial_shift import SpatialShift, axis_steps, neighbour_steps, spatial_shift
from cnnkit.testing.onnx_program import through_onnx
from torch.nn import functional as F

DIMS = (1, 2, 3)
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
SIZES = {1: (11,), 2: (5, 7), 3: (4, 3, 5)}
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def maps(dims: int, channels: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, channels, *SIZES[dims], generator=torch.Generator().manual_seed(dims), dtype=dtype)


def one_hot_conv(x: torch.Tensor, steps) -> torch.Tensor:
    """The same by a depthwise convolution, which reads at ``p + tap - centre``, so from where the step comes."""
    dims, group = x.ndim - 2, x.shape[1] // len(steps)
    reach = max(abs(distance) for step in steps for distance in step)
    kernels = torch.zeros(x.shape[1], 1, *(2 * reach + 1,) * dims, dtype=x.dtype)
    for channel in range(x.shape[1]):
        step = steps[channel // group] if channel < group * len(steps) else (0,) * dims
        kernels[(channel, 0, *(reach - distance for distance in step))] = 1
    return CONV[dims](x, kernels, padding=reach, groups=x.shape[1])


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("distance", [1, 2])
@pytest.mark.parametrize("pattern", [neighbour_steps, axis_steps])
@pytest.mark.parametrize("with_gradient", [False, True])
def test_it_is_a_fixed_depthwise_convolution(dims, distance, pattern, with_gradient):
    """Bit for bit, without and with the graph of a backward pass, and with channels that are left over."""
    steps = pattern(dims, distance)
    x = maps(dims, 2 * len(steps) + 1).requires_grad_(with_gradient)
    moved, expected = spatial_shift(x, steps), one_hot_conv(x, steps)
    assert torch.equal(moved, expected) and moved.requires_grad == with_gradient
    assert torch.equal(moved[:, -1], x[:, -1])
    if dims in CHANNELS_LAST:
        assert torch.equal(spatial_shift(x.to(memory_format=CHANNELS_LAST[dims]), steps), expected)


@pytest.mark.parametrize("dims", DIMS)
def test_the_gradient_is_the_opposite_shift(dims):
    steps = neighbour_steps(dims)
    x = maps(dims, 2 * len(steps), torch.float64).requires_grad_()
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(9), dtype=x.dtype)
    (gradient,) = torch.autograd.grad((weight * spatial_shift(x, steps)).sum(), x)
    assert torch.equal(gradient, spatial_shift(weight, [tuple(-distance for distance in step) for step in steps]))


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 3)])
def test_a_step_longer_than_the_map_leaves_zeros(size, with_gradient):
    x = (torch.rand(1, 4, *size) + 1).requires_grad_(with_gradient)
    moved = spatial_shift(x, [(7, 0), (0, -7), (-7, 7), (0, 0)])
    assert not moved[:, :3].any() and torch.equal(moved[:, 3], x[:, 3])


def test_patterns_and_their_order():
    assert [len(neighbour_steps(dims)) for dims in DIMS] == [2, 8, 26]
    assert [len(axis_steps(dims)) for dims in DIMS] == [2, 4, 6]
    assert axis_steps(2, 3) == ((-3, 0), (0, -3), (0, 3), (3, 0))
    ramp = torch.arange(5.0).expand(1, 2, 5)
    assert spatial_shift(ramp, [(1,), (-2,)])[0].tolist() == [[0, 0, 1, 2, 3], [2, 3, 4, 0, 0]]


def test_the_layer_has_no_parameter_and_exports_with_any_size():
    layer = SpatialShift()
    assert not list(layer.parameters()) and not layer.state_dict()
    sides = {2: torch.export.Dim("height", min=2, max=64), 3: torch.export.Dim("width", min=2, max=64)}
    program = torch.export.export(layer, (maps(2, 16),), dynamic_shapes=(sides,))
    for size in ((5, 7), (9, 4)):
        x = torch.randn(2, 16, *size)
        assert torch.equal(program.module()(x), layer(x))
    assert torch.equal(through_onnx(program)(x), layer(x))


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match=r"steps of dims=2 have 2 distances each; the step \(1,\) has 1"):
        SpatialShift([(0, 1), (1,)])
    with pytest.raises(ConfigError, match="there is none"):
        SpatialShift([])
    with pytest.raises(ConfigError, match="7 channels cannot be split into 8 groups"):
        SpatialShift()(torch.zeros(1, 7, 3, 3))
