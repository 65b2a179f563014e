"""The IBN layer against its two parts, and what instance normalisation is for: the appearance of an image goes."""

from __future__ import annotations

import pytest
import torch
from cnnkit.count import count_params
from cnnkit.errors import ConfigError
from cnnkit.layers.ibn import InstanceBatchNorm

pytestmark = pytest.mark.paper("ibn-net")
DIMS = (1, 2, 3)


def features(dims: int, channels: int = 10) -> torch.Tensor:
    return torch.randn(3, channels, *(5, 6, 7)[:dims], generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def stirred(dims: int, **kwargs) -> InstanceBatchNorm:
    layer = InstanceBatchNorm(10, dims=dims, dtype=torch.float64, **kwargs)
    with torch.no_grad():
        for index, tensor in enumerate(layer.parameters()):
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(index), dtype=torch.float64))
    return layer


def normed(x: torch.Tensor, over: tuple[int, ...], weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    shape = (1, -1) + (1,) * (x.ndim - 2)
    mean, var = x.mean(over, keepdim=True), x.var(over, unbiased=False, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * weight.view(shape) + bias.view(shape)


@pytest.mark.parametrize("ratio", [0.5, 0.25])
@pytest.mark.parametrize("dims", DIMS)
@torch.no_grad()
def test_is_the_two_equations_on_its_two_parts(dims, ratio):
    layer, x = stirred(dims, ratio=ratio), features(dims)
    first = int(10 * ratio)
    spatial = tuple(range(2, 2 + dims))
    expected = torch.cat(
        [
            normed(x[:, :first], spatial, layer.IN.weight, layer.IN.bias),
            normed(x[:, first:], (0, *spatial), layer.BN.weight, layer.BN.bias),
        ],
        dim=1,
    )
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)
    # In evaluation the first part still sees the image's own statistics, the second the stored ones.
    layer.eval()
    torch.testing.assert_close(layer(x)[:, :first], expected[:, :first], rtol=1e-10, atol=1e-10)
    assert float((layer(x)[:, first:] - expected[:, first:]).abs().max()) > 0.01


@pytest.mark.parametrize("dims", DIMS)
@torch.no_grad()
def test_the_first_part_forgets_contrast_and_brightness(dims):
    layer, x = stirred(dims).eval(), features(dims)
    changed = layer(3.0 * x + 2.0)
    torch.testing.assert_close(changed[:, :5], layer(x)[:, :5], rtol=1e-4, atol=1e-4)  # The epsilon of the variance is left.
    assert bool((changed[:, 5:] - layer(x)[:, 5:]).abs().max() > 1)


def test_has_the_parameters_of_a_batch_normalisation():
    assert count_params(InstanceBatchNorm(64)) == count_params(torch.nn.BatchNorm2d(64)) == 128
    for ratio in (0.0, 1.0):
        with pytest.raises(ConfigError, match="get_norm"):
            InstanceBatchNorm(64, ratio=ratio)
