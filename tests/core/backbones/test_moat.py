"""MOAT against the equations of the paper's TensorFlow code on variables of its names, timm's blocks, and symmetries."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model, list_models
from cnnkit.backbones.moat import MOATBlock
from cnnkit.count import on_meta
from cnnkit.errors import ConfigError
from cnnkit.testing.compare import image
from cnnkit.weights import load_weights
from torch import Tensor

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.paper("moat")

DEPTHS, WIDTHS, STEM, HEAD = (1, 2, 2, 1), (8, 12, 16, 24), 6, 8
WORDS = {"depths": DEPTHS, "widths": WIDTHS, "stem_width": STEM, "head_dim": HEAD}
SIZES = [(64, 64), (75, 97)]


def variables(seed: int = 0, positions: bool = True) -> dict[str, Tensor]:
    """Random weights under the names, and in the shapes, of the paper's code: kernels as ``(height, width, in, out)``."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def draw(name: str, *shape: int, fan: int = 1) -> None:
        state[f"moat/{name}"] = torch.randn(shape, generator=generator, dtype=torch.float64) / fan**0.5

    def conv(name: str, size: int, before: int, after: int, bias: bool = True) -> None:
        draw(f"{name}/kernel", size, size, before, after, fan=size * size * before)
        if bias:
            draw(f"{name}/bias", after)

    def norm(name: str, width: int, batch: bool = True) -> None:
        for leaf in ("gamma", "beta", "moving_mean", "moving_variance")[: 4 if batch else 2]:
            draw(f"{name}/{leaf}", width)
        if batch:
            state[f"moat/{name}/moving_variance"].abs_().add_(0.5)

    conv("stem/conv_0", 3, 3, STEM)
    norm("stem/norm_0", STEM)
    conv("stem/conv_1", 3, STEM, STEM)
    before = STEM
    for stage, (depth, width) in enumerate(zip(DEPTHS, WIDTHS, strict=True)):
        for index in range(depth):
            block = f"block_{stage:02d}_{index:02d}"
            if before != width:
                conv(f"{block}/shortcut_conv", 1, before, width)
            norm(f"{block}/pre_norm", before)
            conv(f"{block}/expand_conv", 1, before, 4 * width, bias=False)
            norm(f"{block}/expand_norm", 4 * width)
            draw(f"{block}/depthwise_conv/depthwise_kernel", 3, 3, 4 * width, 1, fan=9)
            norm(f"{block}/depthwise_norm", 4 * width)
            conv(f"{block}/shrink_conv", 1, 4 * width, width)
            if stage < 2:
                conv(f"{block}/se/reduce_conv2d", 1, 4 * width, width // 4)
                conv(f"{block}/se/expand_conv2d", 1, width // 4, 4 * width)
            else:
                norm(f"{block}/attention_norm", width, batch=False)
                heads = width // HEAD
                for part in "qkv":
                    draw(f"{block}/attention/{part}/weight", width, heads, HEAD, fan=width)
                    draw(f"{block}/attention/{part}/bias", heads, HEAD)
                draw(f"{block}/attention/o/weight", heads, HEAD, width, fan=width)
                draw(f"{block}/attention/o/bias", width)
                if positions:
                    draw(f"{block}/attention/relative_position_embedding", heads, *(2 * (14, 7)[stage - 2] - 1,) * 2)
            before = width
    norm("final_layer_norm", before, batch=False)
    conv("logits_head", 1, before, 7)
    return state


def pads(x: Tensor, size: int, stride: int) -> tuple[int, int, int, int]:
    """TensorFlow's padding called same: left, right, top, bottom."""
    totals = [max((-(-side // stride) - 1) * stride + size - side, 0) for side in x.shape[-2:]]
    return totals[1] // 2, totals[1] - totals[1] // 2, totals[0] // 2, totals[0] - totals[0] // 2


def reference(state: dict[str, Tensor], x: Tensor) -> tuple[list[Tensor], Tensor]:
    """What the paper's code computes, on channels-first tensors: the levels and the logits."""

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = state[f"moat/{name}/kernel"]
        x = F.pad(x, pads(x, kernel.shape[0], stride))
        return F.conv2d(x, kernel.permute(3, 2, 0, 1), state.get(f"moat/{name}/bias"), stride)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance, gamma, beta = (
            state[f"moat/{name}/{leaf}"].view(-1, 1, 1) for leaf in ("moving_mean", "moving_variance", "gamma", "beta")
        )
        return (x - mean) / (variance + 1e-3).sqrt() * gamma + beta

    def layer_norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"moat/{name}/gamma"], state[f"moat/{name}/beta"], 1e-5)

    def attention(x: Tensor, name: str, height: int, width: int) -> Tensor:
        def project(part: str) -> Tensor:
            return torch.einsum("bnc,chd->bnhd", x, state[f"moat/{name}/{part}/weight"]) + state[f"moat/{name}/{part}/bias"]

        logits = torch.einsum("bshd,bthd->bhst", project("q") * HEAD**-0.5, project("k"))
        table = state.get(f"moat/{name}/relative_position_embedding")
        if table is not None:
            table = F.interpolate(table[None], (2 * height - 1, 2 * width - 1), mode="bilinear", align_corners=False)[0]
            rows, columns = (torch.arange(side)[None, :] - torch.arange(side)[:, None] + side - 1 for side in (height, width))
            found = table[:, rows[:, None, :, None], columns[None, :, None, :]]  # (heads, row, column, row of the key, column of the key)
            logits = logits + found.flatten(3).flatten(1, 2)
        mixed = torch.einsum("bhst,bthd->bshd", logits.softmax(-1), project("v"))
        return torch.einsum("bshd,hdc->bsc", mixed, state[f"moat/{name}/o/weight"]) + state[f"moat/{name}/o/bias"]

    x = conv(F.gelu(norm(conv(x, "stem/conv_0", 2), "stem/norm_0")), "stem/conv_1")
    levels = [x]
    for stage, depth in enumerate(DEPTHS):
        for index in range(depth):
            block, stride = f"block_{stage:02d}_{index:02d}", 1 if index else 2
            shortcut = x
            if stride == 2:  # A mean over the positions that exist.
                ones = F.pad(torch.ones_like(x), pads(x, 2, 2))
                shortcut = F.avg_pool2d(F.pad(x, pads(x, 2, 2)), 2) / F.avg_pool2d(ones, 2)
            if f"moat/{block}/shortcut_conv/kernel" in state:
                shortcut = conv(shortcut, f"{block}/shortcut_conv")
            branch = F.gelu(norm(conv(norm(x, f"{block}/pre_norm"), f"{block}/expand_conv"), f"{block}/expand_norm"))
            kernel = state[f"moat/{block}/depthwise_conv/depthwise_kernel"].permute(2, 3, 0, 1)
            branch = F.conv2d(F.pad(branch, pads(branch, 3, stride)), kernel, None, stride, groups=kernel.shape[0])
            branch = F.gelu(norm(branch, f"{block}/depthwise_norm"))
            if stage < 2:
                squeezed = F.silu(conv(branch.mean((2, 3), keepdim=True), f"{block}/se/reduce_conv2d"))
                branch = branch * conv(squeezed, f"{block}/se/expand_conv2d").sigmoid()
            x = shortcut + conv(branch, f"{block}/shrink_conv")
            if stage >= 2:
                height, width = x.shape[2:]
                tokens = x.flatten(2).mT
                tokens = tokens + attention(layer_norm(tokens, f"{block}/attention_norm"), f"{block}/attention", height, width)
                x = tokens.mT.unflatten(2, (height, width))
        levels.append(x)
    pooled = layer_norm(x.mean((2, 3)), "final_layer_norm")
    return levels, conv(pooled[..., None, None], "logits_head").flatten(1)


def ours(state: dict[str, Tensor], **words):
    model = create_model("tiny_moat_0", num_classes=7, **{**WORDS, **words}).double().eval()
    assert load_weights(model, state) == "official"
    return model


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("positions", [(14, 7), (0, 0)])
@torch.no_grad()
def test_logits_and_levels_equal_the_equations(size, positions):
    state = variables(positions=any(positions))
    model, x = ours(state, positions=positions), image(*size).double()
    levels, logits = reference(state, x)
    for found, expected in zip(model.forward_pyramid(x), levels, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model(x), logits, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_files_with_averages_and_the_optimisers_variables_are_read():
    state = variables()
    file = {f"{key}:0": torch.zeros_like(value) for key, value in state.items()}
    file |= {f"{key}/ExponentialMovingAverage": value for key, value in state.items()}
    file |= {f"{key}/Momentum": value for key, value in state.items()} | {"global_step": torch.tensor(3)}
    x = image(64, 64).double()
    assert torch.equal(ours(file)(x), ours(state)(x))


@torch.no_grad()
def test_a_block_equals_the_parts_of_timms():
    """The bottleneck of its MaxViT without squeeze-and-excitation, and its attention with TensorFlow's tables."""
    from timm.layers import RelPosBiasTf
    from timm.models.maxxvit import AttentionCl, MaxxVitConvCfg, MbConvBlock

    torch.manual_seed(0)
    cfg = MaxxVitConvCfg(norm_eps=1e-3, act_layer="gelu", padding="same", attn_layer="", attn_ratio=0.0)
    bottleneck = MbConvBlock(8, 16, stride=2, cfg=cfg).double().eval()
    attention = AttentionCl(16, dim_head=8, head_first=False, rel_pos_cls=functools.partial(RelPosBiasTf, (4, 4))).double()
    block = MOATBlock(8, 16, stride=2, head_dim=8, positions=4).double().eval()
    block.conv.load_state_dict(bottleneck.state_dict())
    block.attn.load_state_dict(attention.state_dict())
    x = image(8, 8).double()[:, :1].repeat(1, 8, 1, 1) * torch.arange(1.0, 9.0).view(-1, 1, 1)
    expected = bottleneck(x).movedim(1, -1)
    expected = expected + attention(block.norm(expected))
    torch.testing.assert_close(block(x), expected.movedim(-1, 1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dims", [1, 2, 3])
@torch.no_grad()
def test_windows_that_cover_the_map_are_global_attention(dims):
    torch.manual_seed(0)
    size, channels = (6, 5, 4)[:dims], 8
    blocks = [MOATBlock(channels, channels, dims=dims, head_dim=4, positions=3, window=window).double().eval() for window in (0, 6, 2)]
    for block in blocks[1:]:
        block.load_state_dict(blocks[0].state_dict())
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    torch.testing.assert_close(blocks[1](x), blocks[0](x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(blocks[2](x), blocks[0](x))


def test_tokens_attend_within_their_window():
    """Without the bottleneck's neighbours, a change reaches just the window."""
    torch.manual_seed(0)
    block = MOATBlock(8, 8, head_dim=4, positions=2, window=2).double().eval()
    block.conv.conv2_kxk.weight.data.zero_()
    x = torch.randn(1, 8, 6, 6, dtype=torch.float64, requires_grad=True)
    block(x)[0, :, 3, 2].sum().backward()
    reached = x.grad[0].abs().sum(0) > 0
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[2:4, 2:4] = True
    assert torch.equal(reached, expected)


@pytest.mark.parametrize("dims", [1, 2])
@torch.no_grad()
def test_a_stacked_input_equals_a_slice(dims):
    """With kernels centred in the new axis and tables constant along it, equal slices stay equal, and attention has copies of each."""
    words = {"depths": (1, 1, 1, 1), "widths": (8, 12, 16, 24), "stem_width": 6, "head_dim": 8, "num_classes": 5}
    flat = create_model("tiny_moat_0", dims=dims, **words).double().eval()
    deep = create_model("tiny_moat_0", dims=dims + 1, **words).double().eval()
    generator = torch.Generator().manual_seed(2)
    for tensor in flat.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.3 * torch.rand(tensor.shape, generator=generator, dtype=torch.float64))
    state = dict(flat.state_dict())
    for key, tensor in deep.state_dict().items():
        if key.endswith("relative_position_bias_table"):
            state[key] = state[key][..., None].expand(tensor.shape)
        elif tensor.ndim > state[key].ndim:
            wide = torch.zeros_like(tensor)
            wide[..., tensor.shape[-1] // 2] = state[key]
            state[key] = wide
    deep.load_state_dict(state)
    x = image(*(64, 32)[:dims]).double()
    torch.testing.assert_close(deep(x.unsqueeze(-1).expand(*x.shape, 32)), flat(x), rtol=1e-9, atol=1e-9)


def test_named_variants_have_the_papers_tables():
    """A head has 32 channels and a table for 224 pixels, whatever the size of the training."""
    for name in list_models(family="moat"):
        with on_meta():
            model = create_model(name)
        for stage, side in ((2, 27), (3, 13)):
            width = model.feature_info.channels()[stage + 1]
            assert model.stages[stage][0].attn.rel_pos.relative_position_bias_table.shape == (width // 32, side, side)


def test_faults_are_named():
    with pytest.raises(ConfigError, match="four depths and widths"):
        create_model("moat_0", depths=(2, 3))
    with pytest.raises(ConfigError, match="head_dim=32 does not divide"):
        create_model("moat_0", widths=(8, 12, 16, 24))
