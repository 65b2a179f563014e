"""HaloNet against timm and against attention of every single query, the paper's parameters, and symmetries."""

from __future__ import annotations

import itertools

import pytest
import torch
from cnnkit.backbones import create_model, list_models
from cnnkit.backbones.halonet import HaloAttention, RelativePositions
from cnnkit.count import on_meta
from cnnkit.errors import ConfigError
from cnnkit.testing.compare import assert_same_keys, randomise
from cnnkit.weights import load_weights
from torch import nn

pytestmark = pytest.mark.paper("halonet")

TIMM = ("halonet26t", "halonet50ts")


def features(channels: int, *size: int) -> torch.Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_attention_equals_timm(stride):
    """timm counts relative positions of strided queries by the queries' own index."""
    halo_attn = pytest.importorskip("timm.layers.halo_attn")
    theirs = halo_attn.HaloAttn(24, stride=stride, num_heads=3, block_size=4, halo_size=1)
    ours = HaloAttention(24, 24, heads=3, block_size=4, halo_size=1, stride=stride, strided_positions=False)
    randomise(theirs.double())
    ours.double().load_state_dict(theirs.state_dict())
    x = features(24, 8, 12)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("stem", "act"), [("tiered", "relu"), ("7x7", "silu")])
@torch.no_grad()
def test_logits_and_levels_equal_timm(stem, act):
    byob = pytest.importorskip("timm.models.byobnet")
    kinds = (("bottle",) * 2, ("bottle", "self_attn"), ("self_attn",) * 2)
    blocks = tuple(
        tuple(
            byob.ByoBlockCfg(type=kind, d=1, c=width, s=stride if first else 1, gs=0, br=0.25)
            for kind, first in zip(stage, (True, False), strict=True)
        )
        for stage, width, stride in zip(kinds, (32, 64, 96), (1, 2, 2), strict=True)
    )
    settings = {"block_size": 4, "halo_size": 1, "num_heads": 4}
    config = byob.ByoModelCfg(
        blocks=blocks, stem_chs=16, stem_type=stem, stem_pool="maxpool", act_layer=act, self_attn_layer="halo", self_attn_kwargs=settings
    )
    theirs = randomise(byob.ByobNet(config, num_classes=5).double())
    ours = create_model(
        "halonet26t",
        stages=("cc", "ca", "aa"),
        inner=(8, 16, 24),
        widths=(32, 64, 96),
        heads=(4, 4, 4),
        block_size=4,
        halo_size=1,
        stem="conv" if stem == "7x7" else stem,
        stem_width=16,
        act=act,
        num_classes=5,
    )
    ours = ours.double().eval()
    assert load_weights(ours, theirs.state_dict()) == "cnnkit", "timm's keys and shapes are its own"
    x = features(3, 64, 128)
    outputs: dict[int, torch.Tensor] = {}
    for index, stage in enumerate(theirs.stages):
        stage.register_forward_hook(lambda _, __, out, index=index: outputs.update({index: out}))
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)
    for index, level in enumerate(ours.forward_pyramid(x)[1:]):
        torch.testing.assert_close(level, outputs[index], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", TIMM)
def test_variants_have_the_keys_shapes_and_settings_of_timm(name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        theirs = timm.create_model(name)
    with on_meta():
        ours = create_model(name)
    assert_same_keys(ours, theirs)
    for stage, other in zip(ours.stages, theirs.stages, strict=True):
        for block, another in zip(stage, other, strict=True):
            if block.attends:
                one, two = block.self_attn, another.self_attn
                found = (one.heads, one.block_size, one.halo_size, one.stride, one.pos_embed.step)
                assert found == (two.num_heads, two.block_size, two.halo_size, two.block_stride, 1)
            assert type(block.act) is type(another.act)
    assert [(level["num_chs"], level["reduction"]) for level in ours.feature_info] == [
        (level["num_chs"], level["reduction"]) for level in theirs.feature_info
    ]


def test_h1_has_the_keys_and_shapes_of_timm():
    """timm's has eight heads in the first stage too; nothing else of H0 to H7 is there."""
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        theirs = timm.create_model("halonet_h1")
    with on_meta():
        ours = create_model("halonet_h1", heads=(8, 8, 8, 8))
    assert_same_keys(ours, theirs)


def test_the_variants_are_those_of_the_papers_table_and_timms():
    assert list_models(family="halonet") == sorted([*(f"halonet_h{size}" for size in range(8)), *TIMM])


def reference(layer: HaloAttention, x: torch.Tensor, *, steps: int) -> torch.Tensor:
    """Attention of every query by itself over its block and halo; positions beyond the border are zeros, and count."""
    dims, (size, heads) = x.ndim - 2, (x.shape[2:], layer.heads)
    reach = range(-layer.halo_size, layer.block_size + layer.halo_size)
    weight = layer.kv.weight.flatten(1).unflatten(0, (heads, -1))
    queries = torch.einsum("oc,bc...->bo...", layer.q.weight.flatten(1), x).unflatten(1, (heads, -1))
    both = torch.einsum("hoc,bc...->bho...", weight, x)
    out = torch.zeros(2, heads, weight.shape[1] - layer.key_width, *[-(-side // layer.stride) for side in size], dtype=x.dtype)
    for place in itertools.product(*(range(side) for side in out.shape[3:])):
        middle = [layer.stride * p for p in place]
        corner = [p // layer.block_size * layer.block_size for p in middle]
        query, keys, values, bias = queries[(..., *middle)], [], [], []
        for offset in itertools.product(reach, repeat=dims):
            seen = [c + o for c, o in zip(corner, offset, strict=True)]
            inside = all(0 <= p < side for p, side in zip(seen, size, strict=True))
            token = both[(..., *seen)] if inside else torch.zeros_like(both[(..., *[0] * dims)])
            keys.append(token[..., : layer.key_width])
            values.append(token[..., layer.key_width :])
            vectors = 0
            for name, own, c, o in zip(layer.pos_embed.names, middle, corner, offset, strict=True):
                # The table's middle is an offset of 0 from a query at the corner of the window of keys.
                index = layer.pos_embed.window - 1 + o + layer.halo_size - (own - c) // layer.stride * steps
                vectors = vectors + layer.pos_embed.get_parameter(name)[index]
            bias.append((query * vectors).sum(-1))
        logits = torch.einsum("bhd,nbhd->bhn", query, torch.stack(keys)) / layer.key_width**0.5 + torch.stack(bias, -1)
        out[(..., *place)] = torch.einsum("bhn,nbhd->bhd", logits.softmax(-1), torch.stack(values))
    return out.flatten(1, 2)


@pytest.mark.parametrize(
    ("size", "block", "halo", "stride", "strided"),
    [
        ((7,), 4, 2, 1, True),
        ((9,), 4, 1, 2, True),
        ((4, 6), 2, 1, 1, True),
        ((5, 7), 4, 1, 2, True),
        ((5, 6), 4, 1, 2, False),
        ((4, 4), 2, 0, 1, True),
        ((3, 4, 5), 2, 1, 2, True),
    ],
)
@torch.no_grad()
def test_attention_is_that_of_every_query_by_itself(size, block, halo, stride, strided):
    dims = len(size)
    layer = HaloAttention(4, 8, heads=2, block_size=block, halo_size=halo, stride=stride, strided_positions=strided, dims=dims)
    randomise(layer.double())
    x = features(4, *size)
    torch.testing.assert_close(layer(x), reference(layer, x, steps=stride if strided else 1), rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_without_halo_blocks_do_not_see_each_other():
    layer = randomise(HaloAttention(4, 4, heads=2, block_size=4, halo_size=0).double())
    x = features(4, 8, 8)
    other = x.clone()
    other[..., 4:, :] += 1.0
    changed = (layer(x) - layer(other)).abs().amax((0, 1)) > 1e-12
    assert changed[4:].all() and not changed[:4].any()


@torch.no_grad()
def test_an_impulse_is_seen_from_the_blocks_whose_halo_it_is_in():
    layer = randomise(HaloAttention(4, 4, heads=1, block_size=4, halo_size=1).double())
    x = torch.zeros(1, 4, 12, 12, dtype=torch.float64)
    x[..., 4, 6] = 1.0  # The first row of the middle block: within the halo of the block above, and of no other.
    seen = layer(x)[0].abs().amax(0) > 0
    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[:8, 4:8] = True
    assert torch.equal(seen, expected)


@torch.no_grad()
def test_shifting_by_a_block_shifts_the_output():
    """Within the image: attention in blocks keeps shifts by whole blocks."""
    layer = randomise(HaloAttention(4, 4, heads=2, block_size=4, halo_size=2).double())
    x = torch.nn.functional.pad(features(4, 4, 4), (8, 8, 8, 8))
    torch.testing.assert_close(layer(x.roll((4, -4), (2, 3))), layer(x).roll((4, -4), (2, 3)), rtol=1e-12, atol=1e-12)


def test_relative_positions_share_offsets():
    """The logit of a query and a key depends on how far apart they are, for strided queries too."""
    layer = RelativePositions(3, window=8, step=2)
    nn.init.normal_(layer.height_rel)
    nn.init.normal_(layer.width_rel)
    same = torch.randn(3).expand(1, 2, 2, 3)
    logits = layer(same).view(2, 2, 8, 8)
    torch.testing.assert_close(logits[0, 0, :6, :6], logits[1, 1, 2:, 2:])
    torch.testing.assert_close(logits[0, 0, 2:, :6], logits[0, 1, 2:, 2:])


@torch.no_grad()
def test_sizes_that_no_block_divides_keep_the_shapes_of_a_resnet():
    model = create_model(
        "halonet_h3", inner=(8, 8, 8, 8), widths=(8, 8, 8, 8), heads=(2, 2, 2, 2), stages=("a",) * 4, stem_width=8, num_classes=4
    ).eval()
    shapes = [tuple(level.shape[2:]) for level in model.forward_pyramid(torch.zeros(1, 3, 75, 97))]
    assert shapes == [(38, 49), (19, 25), (10, 13), (5, 7), (3, 4)]


SMALL = {
    "stages": ("a", "ca", "a"),
    "inner": (8, 8, 8),
    "widths": (8, 12, 16),
    "heads": (2, 2, 4),
    "block_size": 4,
    "halo_size": 1,
    "stem_width": 8,
    "final_width": 12,
    "num_classes": 4,
}


@torch.no_grad()
def test_axes_are_treated_alike():
    model = randomise(create_model("halonet_h4", dims=3, **SMALL).double())
    turned = create_model("halonet_h4", dims=3, **SMALL).double().eval()
    state = {}
    for key, value in model.state_dict().items():
        names = {"depth_rel": "width_rel", "width_rel": "depth_rel"}
        *path, last = key.split(".")
        state[".".join([*path, names.get(last, last)])] = value.transpose(2, 4) if value.ndim == 5 else value
    turned.load_state_dict(state)
    x = features(3, 32, 16, 24)
    torch.testing.assert_close(model(x), turned(x.transpose(2, 4)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dims", [1, 2])
@torch.no_grad()
def test_attention_of_a_stacked_input_equals_that_of_a_slice(dims):
    """Where the whole new axis is one block without a halo and without positions, every key stands there equally often."""
    flat = randomise(HaloAttention(4, 4, heads=2, block_size=4, halo_size=0, dims=dims).double())
    deep = HaloAttention(4, 4, heads=2, block_size=4, halo_size=0, dims=dims + 1).double()
    state = {key: value.unsqueeze(-1) if value.ndim > 2 else value for key, value in flat.state_dict().items()}
    names = ("depth_rel", "height_rel", "width_rel")
    tables = {f"pos_embed.{new}": state[f"pos_embed.{old}"] for new, old in zip(names[-1 - dims :], names[-dims:], strict=False)}
    state.update({**tables, "pos_embed.width_rel": torch.zeros(7, 2)})
    deep.load_state_dict(state)
    x = features(4, *(8, 4)[:dims])
    found = deep(x.unsqueeze(-1).expand(*x.shape, 4))
    torch.testing.assert_close(found, flat(x).unsqueeze(-1).expand_as(found), rtol=1e-11, atol=1e-11)


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="equally many"):
        create_model("halonet_h0", heads=(4, 8))
    with pytest.raises(ConfigError, match="tiered"):
        create_model("halonet_h0", stem="deep")
    with pytest.raises(ConfigError, match="kind of block"):
        create_model("halonet_h0", stages=("ab", "a", "a", "a"))
    with pytest.raises(ConfigError, match="multiple of the stride 2"):
        create_model("halonet_h0", block_size=7)
    with pytest.raises(ConfigError, match="heads=5 must divide"):
        create_model("halonet_h0", heads=(5, 8, 8, 8))
