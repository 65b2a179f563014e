"""Neighbourhood attention against dense attention that a mask of windows and a bias, both written position by position, limit."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from cnnkit.errors import ConfigError
from cnnkit.layers import neighborhood_attention
from cnnkit.layers.attention import join_heads, split_heads
from cnnkit.layers.neighborhood_attention import NeighborhoodAttention
from cnnkit.layers.relative_bias import RelativePositionBias
from cnnkit.testing.compare import assert_near, without_gradient
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CASES = [
    (1, (150,), 5),
    (1, (65,), 3),
    (1, (7,), 9),
    (1, (70,), 131),
    (2, (17, 12), 5),
    (2, (8, 16), 3),
    (2, (3, 20), 7),
    (2, (19, 9), (11, 1)),
    (2, (1, 1), 7),
    (3, (5, 9, 4), 3),
    (3, (3, 2, 9), (5, 3, 3)),
]
"""Dimensions, size and window: with whole blocks and without, longer and shorter than a block and than the window."""


def layer(dims: int, window, heads: int = 2, channels: int = 8) -> NeighborhoodAttention:
    torch.manual_seed(dims)
    made = NeighborhoodAttention(channels, heads=heads, window=window, dims=dims).double()
    torch.nn.init.normal_(made.rpb)
    return made


def tokens(size, channels: int = 8, batch: int = 2) -> Tensor:
    return torch.randn(batch, *size, channels, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def window_of(position: int, side: int, window: int) -> range:
    """The window is centred, then shifted inside."""
    first = position - window // 2
    while first + window > side:
        first -= 1
    first = max(first, 0)
    return range(first, min(first + window, side))


def dense(made: NeighborhoodAttention, x: Tensor) -> Tensor:
    """Attention among all positions whose logits are minus infinity outside of each query's window."""
    size = x.shape[1:-1]
    places = list(itertools.product(*map(range, size)))
    entries = []
    for query in places:
        for key in places:
            near = all(k in window_of(q, side, w) for q, k, side, w in zip(query, key, size, made.window, strict=True))
            entries.append(tuple(k - q + w - 1 if near else -1 for q, k, w in zip(query, key, made.window, strict=True)))
    index = torch.tensor(entries)
    inside = (index >= 0).all(-1)
    picked = made.rpb[(slice(None), *index.clamp(min=0).unbind(-1))]
    bias = picked.masked_fill(~inside, -math.inf).unflatten(1, (len(places), len(places)))
    query, key, value = (split_heads(part, made.heads) for part in made.qkv(x.flatten(1, -2)).chunk(3, -1))
    weights = (query @ key.mT / query.shape[-1] ** 0.5 + bias).softmax(-1)
    return made.proj(join_heads(weights @ value)).unflatten(1, size)


@pytest.mark.parametrize(("dims", "size", "window"), CASES)
def test_it_is_dense_attention_with_a_mask_of_windows(dims, size, window):
    """Without and with the graph of a backward pass, which take different kernels; in single precision to 1e-5."""
    made, x = layer(dims, window), tokens(size)
    expected = dense(made, x).detach()
    assert_near(made(x).detach(), expected, 1e-12)
    with torch.no_grad():
        assert_near(made(x), expected, 1e-12)
        assert_near(made.float()(x.float()), expected.float(), 1e-5)


@pytest.mark.parametrize(("size", "window"), [((9, 13), 13), ((9, 12), (17, 13)), ((31,), 31)])
@torch.no_grad()
def test_a_window_that_covers_the_map_is_global_attention(size, window):
    """With the relative bias that the core's window attention has, whose table is of the same form."""
    made, x = layer(len(size), window), tokens(size)
    shared = RelativePositionBias(2, size).double()
    middle = tuple(slice(w - side, w + side - 1) for w, side in zip(made.window, size, strict=True))
    shared.relative_position_bias_table.copy_(made.rpb[(slice(None), *middle)])
    query, key, value = (split_heads(part, 2) for part in made.qkv(x.flatten(1, -2)).chunk(3, -1))
    everywhere = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=shared())
    assert_near(made(x), made.proj(join_heads(everywhere)).unflatten(1, size), 1e-12)


@pytest.mark.parametrize(("dims", "size"), [(1, (70,)), (2, (11, 9)), (3, (5, 4, 6))])
def test_gradients_are_those_of_dense_attention(dims, size):
    made, x = layer(dims, 3), tokens(size).requires_grad_()
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(4), dtype=x.dtype)
    found, expected = (torch.autograd.grad((weight * y).sum(), [x, *made.parameters()]) for y in (made(x), dense(made, x)))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    made(x).square().sum().backward()
    assert without_gradient(made) == []


def test_a_position_sees_its_window_and_no_more():
    made, size = layer(2, 5), (14, 11)
    x = tokens(size, batch=1).requires_grad_()
    for position in [(0, 0), (1, 10), (7, 5), (13, 4)]:
        (gradient,) = torch.autograd.grad(made(x)[(0, *position)].sum(), x)
        seen = gradient[0].abs().sum(-1) > 0
        expected = torch.zeros(size, dtype=torch.bool)
        rows, columns = (window_of(at, side, 5) for at, side in zip(position, size, strict=True))
        expected[rows.start : rows.stop, columns.start : columns.stop] = True
        assert torch.equal(seen, expected)


class Largest(TorchDispatchMode):
    """Remember how many elements the largest tensor has."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (list, tuple)) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("bound", [1, 1 << 17])
def test_memory_is_bounded(monkeypatch, bound):
    """Results do not depend on the bound, and no tensor is as large as all pairs or all windows are."""
    made, size = layer(2, 7), (40, 24)
    x = tokens(size, batch=1)
    expected = made(x).detach()
    monkeypatch.setattr(neighborhood_attention, "LOGITS", bound)
    with Largest() as largest:
        found = made(x)
    assert_near(found.detach(), expected, 1e-12)
    positions, row = math.prod(size), 3 * made.heads * made.index.numel()
    assert largest.elements <= max(row, 3 * x.numel()) < positions * made.heads * 7**2 < positions**2


@torch.no_grad()
def test_it_exports_with_any_size_from_two_blocks_on():
    made = layer(2, 5).float().eval()
    free = {0: torch.export.Dim("batch", min=1, max=8), 1: torch.export.Dim("height", min=9), 2: torch.export.Dim("width", min=9)}
    program = torch.export.export(made, (tokens((11, 19)).float(),), dynamic_shapes=(free,))
    for size in ((11, 19), (24, 9)):
        x = tokens(size, batch=1).float()
        assert_near(program.module()(x), made(x))


def test_without_a_bias_and_with_dropout():
    made = NeighborhoodAttention(8, heads=2, window=3, qkv_bias=False, relative_bias=False, attn_drop=0.5)
    assert set(made.state_dict()) == {"qkv.weight", "proj.weight", "proj.bias"}
    x = tokens((9, 4)).float()
    assert not torch.equal(made(x), made(x))
    assert torch.equal(made.eval()(x), made(x))
    assert set(NeighborhoodAttention(8, heads=2, window=3).state_dict()) == {"qkv.weight", "qkv.bias", "rpb", "proj.weight", "proj.bias"}


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match=r"a window of \(6, 6\) has no middle; its sides must be odd, for example 7"):
        NeighborhoodAttention(8, heads=2, window=6)
    with pytest.raises(ConfigError, match="heads=3 must divide channels=8"):
        NeighborhoodAttention(8, heads=3, window=5)
