"""LSNet against its equations on weights under the official names; LS convolution by a loop; merging and symmetries."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model
from cnnkit.backbones.lsnet import DistanceAttention, RepDepthwise
from cnnkit.count import count_params, on_meta
from cnnkit.errors import ConfigError
from cnnkit.layers.ls_conv import LSConv, aggregate
from cnnkit.testing.compare import image, randomise
from cnnkit.weights import load_weights
from torch import Tensor, nn

pytestmark = pytest.mark.paper("lsnet")

WORDS = {"depths": (0, 2, 3, 4), "widths": (32, 32, 64, 48), "heads": 3, "key_dim": 8, "positions": 2}


def drawn(model: nn.Module) -> nn.Module:
    return randomise(model, spread={"attention_biases": 0.5}).double()


def reference(state: dict[str, Tensor], x: Tensor) -> tuple[list[Tensor], Tensor]:
    """What the paper's code computes from weights under its names, at the size that the tables of distances fit."""

    def norm(x: Tensor, name: str) -> Tensor:
        shape = (1, -1, *(1,) * (x.ndim - 2))
        mean, variance, scale, shift = (state[f"{name}.{leaf}"].view(shape) for leaf in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = state[f"{name}.c.weight"]
        groups = x.shape[1] // kernel.shape[1]
        return norm(F.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2, 1, groups), f"{name}.bn")

    def ls_conv(x: Tensor, name: str) -> Tensor:
        seen = conv(x, f"{name}.lkp.cv1").relu()
        seen = conv(conv(seen, f"{name}.lkp.cv2"), f"{name}.lkp.cv3").relu()
        weights = F.conv2d(seen, state[f"{name}.lkp.cv4.weight"], state[f"{name}.lkp.cv4.bias"])
        kernels = weights.shape[1] // 9
        weights = F.group_norm(weights, kernels, state[f"{name}.lkp.norm.weight"], state[f"{name}.lkp.norm.bias"])
        # Unfolded: every position with its nine neighbours; the channels c, c + G, c + 2 G, ... share a kernel.
        around = F.unfold(x, 3, padding=1).view(x.shape[0], -1, kernels, 9, *x.shape[2:])
        mixed = torch.einsum("bgkhw,bsgkhw->bsghw", weights.unflatten(1, (kernels, 9)), around).flatten(1, 2)
        return x + norm(mixed, f"{name}.bn")

    def attention(x: Tensor, name: str) -> Tensor:
        side, heads, width = x.shape[-1], WORDS["heads"], WORDS["key_dim"] * WORDS["heads"]
        both = conv(x, f"{name}.qkv")
        query, key, value = conv(both[:, :width], f"{name}.dw"), both[:, width : 2 * width], both[:, 2 * width :]
        query, key, value = (part.view(x.shape[0], heads, -1, side * side) for part in (query, key, value))
        logits = torch.einsum("bhcn,bhcm->bhnm", query, key) * WORDS["key_dim"] ** -0.5
        places = list(itertools.product(range(side), repeat=2))
        for n, m in itertools.product(range(side * side), repeat=2):
            (row, column), (to_row, to_column) = places[n], places[m]
            logits[:, :, n, m] += state[f"{name}.attention_biases"][:, abs(row - to_row) * side + abs(column - to_column)]
        mixed = torch.einsum("bhnm,bhcm->bhcn", logits.softmax(-1), value).reshape(x.shape)
        return conv(mixed.relu(), f"{name}.proj.1")

    x = conv(conv(conv(x, "patch_embed.0", 2).relu(), "patch_embed.2", 2).relu(), "patch_embed.4", 2)
    levels = []
    for stage, depth in enumerate(WORDS["depths"]):
        name = f"blocks{stage + 1}"
        if stage:
            x = conv(conv(x, f"{name}.0", 2), f"{name}.1")
        for block in range(depth):
            here = f"{name}.{block + 2 * (stage > 0)}"
            if block % 2 == 0:
                x = conv(x, f"{here}.mixer.conv") + conv(x, f"{here}.mixer.conv1") + x
                gate = F.conv2d(x.mean((2, 3), keepdim=True), state[f"{here}.se.fc1.weight"], state[f"{here}.se.fc1.bias"]).relu()
                x = x * F.conv2d(gate, state[f"{here}.se.fc2.weight"], state[f"{here}.se.fc2.bias"]).sigmoid()
            elif stage < 3:
                x = ls_conv(x, f"{here}.mixer")
            else:
                x = x + attention(x, f"{here}.mixer.m")
            x = x + conv(conv(x, f"{here}.ffn.m.pw1").relu(), f"{here}.ffn.m.pw2")
        levels.append(x)
    pooled = x.mean((2, 3))
    heads = [head for head in ("head", "head_dist") if f"{head}.l.weight" in state]
    logits = [F.linear(norm(pooled, f"{head}.bn"), state[f"{head}.l.weight"], state[f"{head}.l.bias"]) for head in heads]
    return levels, sum(logits) / len(logits)


def official() -> dict[str, Tensor]:
    """Weights under the official names, with the buffers that follow from the size."""
    state = drawn(create_model("lsnet_t", num_classes=7, **WORDS)).state_dict()
    places = torch.zeros(4, 4, dtype=torch.long)
    return dict(state) | {key.replace("biases", "bias_idxs"): places for key in state if key.endswith("attention_biases")}


@pytest.mark.parametrize("distilled", [False, True])
@torch.no_grad()
def test_logits_and_levels_equal_the_equations(distilled):
    state = official()
    if distilled:
        generator = torch.Generator().manual_seed(3)
        second = {key.replace("head.", "head_dist."): value for key, value in state.items() if key.startswith("head.")}
        state |= {key: value + torch.rand(value.shape, generator=generator) if value.ndim else value for key, value in second.items()}
    model = create_model("lsnet_t", num_classes=7, **WORDS).double().eval()
    assert load_weights(model, state) == "official"
    x = image(128, 128).double()
    levels, logits = reference(state, x)
    for found, expected in zip(model.forward_pyramid(x), levels, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model(x), logits, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(3,), (4, 3), (2, 3, 2)])
def test_aggregation_equals_a_loop(size):
    torch.manual_seed(0)
    dims, channels, kernels = len(size), 6, 2
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    weights = torch.randn(2, kernels, 3**dims, *size, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for place in itertools.product(*(range(side) for side in size)):
        for number, step in enumerate(itertools.product((-1, 0, 1), repeat=dims)):
            to = tuple(a + b for a, b in zip(place, step, strict=True))
            if all(0 <= at < side for at, side in zip(to, size, strict=True)):
                for channel in range(channels):
                    weight = weights[(slice(None), channel % kernels, number, *place)]
                    expected[(slice(None), channel, *place)] += weight * x[(slice(None), channel, *to)]
    torch.testing.assert_close(aggregate(x, weights), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(3,), (2, 3), (2, 2, 2)])
def test_aggregation_has_the_right_gradient(size):
    torch.manual_seed(0)
    x = torch.randn(1, 2, *size, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(1, 1, 3 ** len(size), *size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(aggregate, (x, weights))


@pytest.mark.parametrize("kernel", [1, 5])
def test_aggregation_with_one_kernel_for_all_is_a_convolution(kernel):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 6, 7, dtype=torch.float64), torch.randn(2, kernel**2, dtype=torch.float64)
    found = aggregate(x, weight[None, :, :, None, None].expand(2, -1, -1, 6, 7))
    expected = F.conv2d(x, weight.view(2, 1, kernel, kernel).repeat(2, 1, 1, 1), padding=kernel // 2, groups=4)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_large_kernel_sees_seven_positions_and_the_small_one_moves_three(dims):
    """With the normalisation over space left out, one output depends on the seven positions around it."""
    layer = drawn(LSConv(8, dims=dims))
    layer.lkp.norm = nn.Identity()
    x = image(*(11,) * dims, channels=8).double()[:1].requires_grad_()
    layer(x)[(0, slice(None), *(5,) * dims)].sum().backward()
    reached = (x.grad[0].abs().sum(0) > 0).nonzero()
    assert reached.amin(0).tolist() == [2] * dims and reached.amax(0).tolist() == [8] * dims
    with pytest.raises(ConfigError, match="multiple of groups=8"):
        LSConv(12, dims=dims)


@pytest.mark.parametrize("dims", [1, 2, 3])
@torch.no_grad()
def test_merged_depthwise_convolution_is_the_same(dims):
    block = drawn(RepDepthwise(4, dims=dims))
    merged, x = block.merged(), image(*(5,) * dims, channels=4).double()
    torch.testing.assert_close(merged(x), block(x), rtol=1e-12, atol=1e-12)
    assert count_params(merged) == 4 * 3**dims + 4


@torch.no_grad()
def test_tables_of_distances_are_resampled():
    """A map of the training's size reads the table as it is; all values of a larger one lie between the table's."""
    layer = drawn(DistanceAttention(8, heads=2, key_dim=4, positions=3))
    assert torch.equal(layer.bias((3, 3))[:, 0], layer.attention_biases)
    assert torch.equal(layer.bias((3, 3))[:, 4, 8], layer.attention_biases[:, 4])
    large = layer.bias((5, 4))
    assert large.shape == (2, 20, 20) and torch.equal(large, large.mT)
    low, high = layer.attention_biases.amin(1)[:, None, None], layer.attention_biases.amax(1)[:, None, None]
    assert bool(((low <= large) & (large <= high)).all())


@pytest.mark.parametrize(("name", "published"), [("lsnet_t", 11.4), ("lsnet_s", 16.1), ("lsnet_b", 23.2)])
def test_the_paper_counts_the_merged_network(name, published):
    with on_meta():
        model = create_model(name)
    merged = count_params(model) - model.num_features
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):  # Scale and shift become a bias; the head has one already.
            merged -= module.num_features
        elif isinstance(module, RepDepthwise):  # And of two kernels and biases one is left.
            merged -= 2 * module.conv.c.in_channels
        elif isinstance(module, LSConv):  # No convolution is before its normalisation.
            merged += module.bn.num_features
    if name == "lsnet_t":
        fused = create_model(name).eval().fuse()
        assert count_params(fused) - 2 * model.num_features == merged
    assert merged / 1e6 == pytest.approx(published, abs=0.05)


@pytest.mark.parametrize("dims", [1, 2])
@torch.no_grad()
def test_a_stacked_input_equals_a_slice(dims):
    """With kernels centred in the new axis, slices never mix; the strides take some of them, attention has copies of each."""
    words = {"depths": (0, 2, 2), "widths": (16, 16, 16), "heads": 2, "key_dim": 4, "positions": 2, "num_classes": 5}
    flat = drawn(create_model("lsnet_t", dims=dims, **words))
    deep = create_model("lsnet_t", dims=dims + 1, **words).double().eval()
    state = dict(flat.state_dict())
    for key, tensor in deep.state_dict().items():
        given = state[key]
        if key.endswith("attention_biases"):
            state[key] = given.repeat_interleave(2, 1)
        elif ".lkp." in key and (".cv4." in key or ".norm." in key):
            # Of the small kernel's weights in the new axis, only the middle ones are not zero.
            wide = torch.zeros_like(tensor).view(-1, 3, *tensor.shape[1:])
            wide[:, 1] = given.view(-1, *tensor.shape[1:])
            state[key] = wide.view(tensor.shape)
        elif tensor.ndim > given.ndim:
            wide = torch.zeros_like(tensor)
            wide[..., tensor.shape[-1] // 2] = given
            state[key] = wide
    deep.load_state_dict(state)
    for model in (flat, deep):  # A normalisation over the small kernel's weights would count the zeros.
        for module in model.modules():
            if isinstance(module, LSConv):
                module.lkp.norm = nn.Identity()
    x = image(*(64, 32)[:dims]).double()
    torch.testing.assert_close(deep(x.unsqueeze(-1).expand(*x.shape, 33)), flat(x), rtol=1e-9, atol=1e-9)


def test_faults_are_named():
    with pytest.raises(ConfigError, match="2 stages and widths 4"):
        create_model("lsnet_t", depths=(1, 2))
    with pytest.raises(ConfigError, match="multiples of 8"):
        create_model("lsnet_t", widths=(16, 20, 32, 48))
