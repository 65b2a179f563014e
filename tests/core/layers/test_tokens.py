"""Windows, attention and the two-layer perceptron against their definitions."""

from __future__ import annotations

import pytest
import torch
from cnnkit.layers.attention import Attention, attend, join_heads, split_heads
from cnnkit.layers.mlp import Mlp
from cnnkit.layers.window import partition, partition_grid, relative_position_index, unpartition, unpartition_grid, wrapped_pairs
from torch import nn

WINDOWS = [(4,), (4, 2), (2, 3, 4)]


def grid(window):
    """Numbers that tell every token apart, ``(2, *spatial, 3)``."""
    size = [3 * side for side in window]
    return torch.arange(2 * 3 * torch.tensor(size).prod()).view(2, *size, 3)


@pytest.mark.parametrize("window", WINDOWS)
def test_partitions_are_inverted(window):
    x = grid(window)
    assert torch.equal(unpartition(partition(x, window), window), x)
    assert torch.equal(unpartition_grid(partition_grid(x, window), window), x)


@pytest.mark.parametrize("window", WINDOWS)
def test_a_window_is_a_block_and_a_grid_set_is_strided(window):
    x = grid(window)
    block = (slice(None), *(slice(side, 2 * side) for side in window))
    torch.testing.assert_close(partition(x, window)[(slice(None), *(1,) * len(window))], x[block].flatten(1, -2))
    strided = (slice(None), *(slice(1, None, 3) for _ in window))
    torch.testing.assert_close(partition_grid(x, window)[(slice(None), *(1,) * len(window))], x[strided].flatten(1, -2))


@pytest.mark.parametrize("window", WINDOWS)
def test_pairs_at_the_same_offset_share_a_number(window):
    places = torch.stack(torch.meshgrid(*(torch.arange(side) for side in window), indexing="ij")).flatten(1).T
    offsets = (places[:, None] - places[None]).flatten(0, 1).tolist()
    numbers = relative_position_index(window).flatten().tolist()
    assert len(set(map(tuple, offsets))) == len(set(numbers)) == len(set(zip(map(tuple, offsets), numbers, strict=True)))
    assert min(numbers) == 0 and max(numbers) == torch.tensor([2 * side - 1 for side in window]).prod() - 1


def test_a_shift_wraps_the_end_of_the_last_window():
    wrapped = wrapped_pairs((4,), (2,), (True,), torch.device("cpu"))
    assert wrapped.tolist() == [[(i >= 2) != (j >= 2) for j in range(4)] for i in range(4)]
    assert not wrapped_pairs((4,), (2,), (False,), torch.device("cpu")).any()


@pytest.mark.parametrize("learned", [False, True])
def test_attention_is_the_formula(learned):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 4, dtype=torch.float64) for _ in range(3))
    bias = torch.randn(3, 5, 5, dtype=torch.float64, requires_grad=learned)
    expected = torch.softmax(query @ key.mT / 2 + bias, -1) @ value
    torch.testing.assert_close(attend(query, key, value, bias), expected, rtol=1e-12, atol=1e-12)


def test_attention_equals_pytorchs_module():
    torch.manual_seed(0)
    ours, theirs = Attention(12, heads=3).double(), nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.proj.weight,
            "out_proj.bias": ours.proj.bias,
        }
    )
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0], rtol=1e-10, atol=1e-10)
    assert torch.equal(join_heads(split_heads(x, 4)), x)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_perceptron_of_maps_equals_that_of_tokens(dims):
    maps, tokens = Mlp(4, 8, 6, dims=dims, act="silu").double(), Mlp(4, 8, 6, act="silu").double()
    tokens.load_state_dict({name: value.flatten(1) if value.ndim > 1 else value for name, value in maps.state_dict().items()})
    x = torch.randn(2, 4, *(3,) * dims, dtype=torch.float64)
    torch.testing.assert_close(maps(x), tokens(x.movedim(1, -1)).movedim(-1, 1), rtol=1e-12, atol=1e-12)
