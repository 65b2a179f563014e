"""Efficient channel attention against timm, its closed form and the numbers of the paper."""

from __future__ import annotations

import pytest
import torch
from cnnkit.count import count_params
from cnnkit.errors import ConfigError
from cnnkit.layers.eca import EfficientChannelAttention, adaptive_kernel_size

pytestmark = pytest.mark.paper("eca")


def features(dims: int, channels: int = 16) -> torch.Tensor:
    return torch.randn(2, channels, *(5, 6, 7)[:dims], generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("channels", [8, 64, 256, 2048])
@torch.no_grad()
def test_equals_timm(channels):
    timm = pytest.importorskip("timm")
    ours, theirs = EfficientChannelAttention(channels, dtype=torch.float64), timm.layers.EcaModule(channels).double()
    theirs.load_state_dict(ours.state_dict())
    x = features(2, channels)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [1, 2, 3])
@torch.no_grad()
def test_is_the_papers_sum_over_neighbouring_channels(dims):
    block = EfficientChannelAttention(16, kernel_size=5, dtype=torch.float64)
    x = features(dims)
    means, kernel = x.flatten(2).mean(2), block.conv.weight.flatten()
    for channel in (0, 1, 7, 15):
        near = [(channel + shift - 2, shift) for shift in range(5) if 0 <= channel + shift - 2 < 16]
        weight = torch.sigmoid(sum(kernel[shift] * means[:, other] for other, shift in near))
        torch.testing.assert_close(block(x)[:, channel], x[:, channel] * weight.view(2, *[1] * dims), rtol=1e-12, atol=1e-12)


def test_kernel_sizes_of_the_paper():
    assert [adaptive_kernel_size(channels) for channels in (256, 512, 1024, 2048)] == [5, 5, 5, 7]
    assert adaptive_kernel_size(8) == 3
    assert count_params(EfficientChannelAttention(512)) == 5
    with pytest.raises(ConfigError, match="for example 5"):
        EfficientChannelAttention(64, kernel_size=4)


def test_a_zero_kernel_halves_and_the_weights_are_between_zero_and_one():
    block = EfficientChannelAttention(16, dtype=torch.float64)
    x = features(2)
    ratio = block(x) / x
    assert bool((ratio > 0).all()) and bool((ratio < 1).all())
    torch.nn.init.zeros_(block.conv.weight)
    torch.testing.assert_close(block(x), x / 2)
