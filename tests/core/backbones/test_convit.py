"""ConViT against timm, the equations of its attention, the convolution that it starts as, and symmetries."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model, create_small, list_models, model_entry
from cnnkit.backbones.convit import GatedPositionalAttention
from cnnkit.count import count_macs, count_params, on_meta
from cnnkit.errors import ConfigError, InputError
from cnnkit.testing.compare import assert_same_keys, image, randomise, without_gradient
from cnnkit.weights import load_weights
from torch import nn

pytestmark = pytest.mark.paper("convit")

SMALL = {"heads": 4, "head_width": 6, "depth": 4, "local_layers": 2, "patch_size": 8, "img_size": 32}
OF_TIMM = {"convit_tiny": "convit_tiny", "convit_small": "convit_small", "convit_base": "convit_base"}
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def drawn(model: nn.Module) -> nn.Module:
    return randomise(model, spread={"pos_embed": 1.0, "cls_token": 1.0, "pos_proj.weight": 0.3})


def of_timm(**sizes) -> nn.Module:
    return pytest.importorskip("timm").models.convit.ConVit(
        img_size=32, patch_size=8, embed_dim=6, num_heads=4, depth=4, local_up_to_layer=2, num_classes=5, **sizes
    )


@pytest.mark.parametrize("pool", ["token", "avg"])
@torch.no_grad()
def test_logits_and_levels_equal_timm(pool):
    theirs = drawn(of_timm(global_pool=pool).double())
    ours = create_model("convit_tiny", num_classes=5, global_pool=pool, **SMALL).double().eval()
    assert load_weights(ours, theirs.state_dict()) == "timm"
    x = image(32, 32).double()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.forward_features(x), theirs.forward_features(x), rtol=1e-10, atol=1e-10)
    for level, other in zip(ours.forward_pyramid(x), theirs.forward_intermediates(x, intermediates_only=True), strict=True):
        torch.testing.assert_close(level, other, rtol=1e-10, atol=1e-10)
    assert [dict(level) for level in ours.feature_info] == theirs.feature_info


@pytest.mark.parametrize("name", OF_TIMM)
def test_variants_have_the_keys_and_shapes_of_timm(name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        theirs = timm.create_model(name)
    with on_meta():
        ours = create_model(name)
    converted = ours.layouts[0].convert(theirs.state_dict())
    assert_same_keys(converted, ours)
    dropped = theirs.state_dict().keys() - converted.keys()
    assert dropped == {f"blocks.{index}.attn.pos_proj.bias" for index in range(10)}


def test_all_variants_are_covered():
    assert sorted([*OF_TIMM, *(f"{name}_plus" for name in OF_TIMM)]) == list_models(family="convit")


def test_initial_values_are_those_of_timm():
    """What is not drawn at random: identities, gates, and the offsets of the heads."""
    theirs, ours = of_timm(), create_model("convit_tiny", **SMALL)
    for one, other in zip(ours.blocks[:2], theirs.blocks[:2], strict=True):
        for name in ("v.weight", "pos_proj.weight", "gating_param"):
            torch.testing.assert_close(one.attn.get_parameter(name), other.attn.get_parameter(name), rtol=0, atol=0)


@pytest.mark.parametrize("name", list_models(family="convit"))
def test_the_reasons_given_for_the_figures_are_the_reasons(name):
    figures = model_entry(name).figures
    with on_meta():
        model = create_model(name)
    assert round((count_params(model) - count_params(model.head)) / 1e6) == figures.params_m
    if figures.counted_gmacs is None:
        return
    # Query and key, weight and value: two products of every token with every other in each of 12 blocks. The paper's own code
    # maps 3 numbers of every pair of tokens to the heads besides, in 10 blocks.
    products, positions = 12 * 2 * 196**2 * model.num_features, 10 * 196**2 * 3 * model.blocks[0].attn.heads
    separable = sum(196 * 14 * 2 * model.num_features for block in model.blocks if isinstance(block.attn, GatedPositionalAttention))
    macs = count_macs(model, (1, 3, 224, 224)) - products - separable + positions
    unit = 0.1 if name == "convit_small" else 1.0
    # What normalisations take, which some count and some do not, is 0.01 at the most.
    assert macs / 1e9 == pytest.approx(figures.gmacs, abs=unit / 2 + 0.01, rel=0)


def offsets(dims: int, side: int) -> torch.Tensor:
    """Offsets of the heads, first axis first; the first axis is the fastest, as in the paper's code."""
    steps = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    return torch.stack(torch.meshgrid(*[steps] * dims, indexing="ij"), -1).flatten(0, -2).flip(-1)


@pytest.mark.parametrize(("grid", "heads"), [((9,), 3), ((5, 7), 9), ((4, 5, 3), 27)])
@torch.no_grad()
def test_it_starts_as_a_convolution(grid, heads):
    """With strong locality and open gates: every head copies its neighbour, and the last map mixes them, as a 3^dims kernel does."""
    dims, width = len(grid), 2 * heads
    layer = GatedPositionalAttention(width, heads=heads, locality=40.0, dims=dims).double()
    layer.gating_param.fill_(50.0)
    nn.init.normal_(layer.proj.bias)
    kernel = torch.zeros(width, width, *[3] * dims, dtype=torch.float64)
    for head, offset in enumerate(offsets(dims, 3)):
        channels = slice(2 * head, 2 * head + 2)
        kernel[(slice(None), channels, *(int(step) + 1 for step in offset))] = layer.proj.weight[:, channels]
    x = torch.randn(2, *grid, width, dtype=torch.float64)
    # Where the kernel would look beyond the border, the nearest token is that of the border.
    padded = F.pad(x.movedim(-1, 1), (1, 1) * dims, mode="replicate")
    expected = CONVOLVE[dims](padded, kernel, layer.proj.bias).movedim(1, -1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("grid", [(6,), (4, 5), (2, 4, 3)])
@torch.no_grad()
def test_attention_is_its_equation(grid):
    """The whole maps of content and position, mixed by the gate and normalised again, as the paper writes them."""
    dims, heads, width = len(grid), 3, 12
    layer = drawn(GatedPositionalAttention(width, heads=heads, dims=dims).double())
    x = torch.randn(2, *grid, width, dtype=torch.float64)
    tokens = x.flatten(1, -2)
    points = torch.stack(torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij"), -1).flatten(0, -2)
    away = points[None] - points[:, None]
    relative = torch.cat([away.flip(-1), away.square().sum(-1, keepdim=True)], dim=-1)
    position = (relative @ layer.pos_proj.weight.T).movedim(-1, 0).softmax(-1)
    query, key = (part.unflatten(-1, (heads, 4)).transpose(1, 2) for part in layer.qk(tokens).chunk(2, -1))
    content = (query @ key.mT / 2).softmax(-1)
    gate = layer.gating_param.sigmoid()[:, None, None]
    weights = (1 - gate) * content + gate * position
    weights = weights / weights.sum(-1, keepdim=True)
    value = layer.v(tokens).unflatten(-1, (heads, 4)).transpose(1, 2)
    expected = layer.proj((weights @ value).transpose(1, 2).flatten(-2)).view(x.shape)
    torch.testing.assert_close(layer(x), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("heads", "dims", "side"), [(4, 2, 2), (16, 2, 4), (9, 3, 2), (5, 1, 5), (64, 3, 4), (3, 2, 1)])
def test_heads_that_make_no_whole_kernel_are_left_over(heads, dims, side):
    layer = GatedPositionalAttention(heads, heads=heads, dims=dims)
    weight, kernel = layer.pos_proj.weight.double(), side**dims
    torch.testing.assert_close(weight[:kernel, :-1], 2 * offsets(dims, side).flip(-1), rtol=0, atol=0)
    assert (weight[:kernel, -1] == -1).all() and not (weight[kernel:, -1] == -1).any()


@torch.no_grad()
def test_positions_are_interpolated_for_other_sizes():
    native = drawn(create_model("convit_tiny", num_classes=5, **SMALL).double())
    other = create_model("convit_tiny", num_classes=5, **{**SMALL, "img_size": (48, 64)}).double().eval()
    state = native.state_dict()
    table = state["pos_embed"].mT.unflatten(-1, (4, 4))
    state["pos_embed"] = F.interpolate(table, size=(6, 8), mode="bilinear", align_corners=False).flatten(2).mT
    other.load_state_dict(state)
    x = image(48, 64).double()
    torch.testing.assert_close(native(x), other(x), rtol=1e-10, atol=1e-10)


def test_the_class_token_joins_after_the_local_layers():
    model = drawn(create_model("convit_tiny", num_classes=5, **SMALL).double())
    with torch.no_grad():
        levels = model.forward_pyramid(image(32, 32).double())
        model.cls_token.add_(1.0)
        again = model.forward_pyramid(image(32, 32).double())
    assert [torch.equal(one, other) for one, other in zip(levels, again, strict=True)] == [True, True, False, False]


@pytest.mark.parametrize("last", [0, 1, 2, 3])
def test_a_cut_pyramid_equals_the_whole_and_uses_what_it_keeps(last):
    whole = drawn(create_model("convit_tiny", num_classes=0, **SMALL))
    part = create_model("convit_tiny", features_only=True, out_indices=(last,), weights=whole.state_dict(), **SMALL)
    x = image(32, 32)
    (level,) = part(x)
    torch.testing.assert_close(level, whole.forward_pyramid(x)[last], rtol=1e-5, atol=1e-5)
    level.square().mean().backward()
    assert without_gradient(part) == []
    assert (part.backbone.cls_token is None) == (last < 2)


def test_gates_move_in_training():
    """On scikit-learn's digits; they start at 1."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    x = F.interpolate(torch.tensor(digits.images[:128], dtype=torch.float32)[:, None] / 16, size=(32, 32))
    torch.manual_seed(0)
    model = create_small("convit", in_chans=1, num_classes=10)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(12):
        part = slice(32 * (step % 4), 32 * (step % 4) + 32)
        loss = F.cross_entropy(model(x[part]), torch.tensor(digits.target[part]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    gates = torch.cat([block.attn.gating_param for block in model.blocks[:2]])
    assert (gates - 1).abs().min() > 1e-3 and losses[-1] < losses[0]


@torch.no_grad()
def test_axes_are_treated_alike():
    sizes = {**SMALL, "heads": 8, "img_size": (32, 16, 24)}
    model = drawn(create_model("convit_tiny", num_classes=4, dims=3, **sizes).double())
    turned = create_model("convit_tiny", num_classes=4, dims=3, **{**sizes, "img_size": (24, 16, 32)}).double().eval()
    state = {}
    for key, value in model.state_dict().items():
        if key == "pos_embed":
            value = value.unflatten(1, model.grid).transpose(1, 3).flatten(1, 3)
        if key.endswith("pos_proj.weight"):
            value = value[:, [2, 1, 0, 3]]
        state[key] = value.transpose(2, 4) if value.ndim == 5 else value
    turned.load_state_dict(state)
    x = image(32, 16, 24).double()
    torch.testing.assert_close(model(x), turned(x.transpose(2, 4)), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_model_of_one_dimension_is_one_of_two_on_a_line():
    """An image of one row of patches: the positional attention along the other axis has one place to look at."""
    flat = drawn(create_model("convit_tiny", num_classes=4, dims=1, **SMALL).double())
    deep = create_model("convit_tiny", num_classes=4, dims=2, **{**SMALL, "img_size": (8, 32)}).double().eval()
    state = dict(flat.state_dict())
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].unsqueeze(2).expand(-1, -1, 8, -1) / 8
    for index in range(2):
        weight = state[f"blocks.{index}.attn.pos_proj.weight"]
        state[f"blocks.{index}.attn.pos_proj.weight"] = torch.stack([weight[:, 0], torch.randn(4).double(), weight[:, 1]], dim=1)
    deep.load_state_dict(state)
    x = image(32).double()
    torch.testing.assert_close(flat(x), deep(x.unsqueeze(2).expand(-1, -1, 8, -1)), rtol=1e-10, atol=1e-10)


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="less than depth=4"):
        create_model("convit_tiny", **{**SMALL, "local_layers": 4})
    with pytest.raises(ConfigError, match="at least a patch of 8"):
        create_model("convit_tiny", **{**SMALL, "img_size": (32, 7)})
    with pytest.raises(InputError, match="at least 8"):
        create_model("convit_tiny", **SMALL)(torch.zeros(1, 3, 32, 7))
