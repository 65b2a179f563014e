"""Swin V2 against timm, torchvision and transformers; continuous positions, shifted windows and masked images by their definitions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model, list_models, model_entry
from cnnkit.backbones.swin_v2 import FAMILY, SwinV2
from cnnkit.count import count_params, on_meta
from cnnkit.errors import ConfigError, InputError
from cnnkit.layers.cosine_attention import CosineAttention, log_offsets
from cnnkit.layers.simmim import SimMIM
from cnnkit.layers.window import in_windows, map_by_mask, pad_to_multiple, wrapped_pairs
from cnnkit.testing.compare import assert_near, assert_same_keys, image, randomise
from torch import nn

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.paper("swin-v2")

NARROW = {"depths": (2, 2, 2, 1), "width": 16, "heads": (1, 2, 4, 8)}


def drawn(model: nn.Module) -> nn.Module:
    """Draw what is learnt, and not the tables of places, which torchvision keeps among the weights."""
    learnt = dict(model.named_parameters())
    randomise(learnt, spread={"logit_scale": 1.0})
    for name, tensor in learnt.items():
        if name.endswith("logit_scale"):
            tensor.data += 4  # Some heads are beyond the limit of the scale.
    return model.double().eval()


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """To what the tables of positions allow, which all hold in single precision."""
    assert_near(ours, theirs, 1e-6)


def of_timm(size, window: int, trained=(0, 0, 0, 0), **kwargs) -> nn.Module:
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    words = {"depths": NARROW["depths"], "embed_dim": NARROW["width"], "num_heads": NARROW["heads"]}
    return drawn(SwinTransformerV2(img_size=size, window_size=window, pretrained_window_sizes=trained, **words, **kwargs))


@pytest.mark.parametrize(
    ("size", "window", "windows", "trained"),
    [((64, 64), 4, (4, 4, 4, 2), None), ((64, 128), 2, (2, 2, 2, 2), None), ((64, 64), 8, (8, 8, 4, 2), (4, 4, 4, 2))],
)
@torch.no_grad()
def test_logits_and_features_equal_timm(size, window, windows, trained):
    theirs = of_timm(size, window, trained or (0, 0, 0, 0), num_classes=7)
    words = {**NARROW, "windows": windows, "trained_windows": trained}
    ours = create_model("swinv2_tiny_window8_256", num_classes=7, weights=theirs.state_dict(), **words).double().eval()
    x = image(*size).double()
    assert_same(ours(x), theirs(x))
    assert_same(ours.forward_features(x), theirs.forward_features(x).movedim(-1, 1))
    levels, expected = ours.forward_pyramid(x), theirs.forward_intermediates(x, intermediates_only=True)
    assert ours.feature_info.reduction() == [level["reduction"] for level in theirs.feature_info]
    for found, level in zip(levels, expected, strict=True):
        assert_same(found, level)


@pytest.mark.parametrize("name", [name for name in list_models(family="swin_v2") if "huge" not in name and "giant" not in name])
def test_named_variants_have_the_keys_shapes_and_windows_of_timm(name):
    with on_meta():
        ours, theirs = create_model(name), timm.create_model(name, num_classes=1000)
    assert_same_keys(ours, theirs)
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        assert mine.blocks[0].attn.window == tuple(other.blocks[0].attn.window_size)
        assert mine.blocks[0].attn.trained in (other.blocks[0].attn.pretrained_window_size[0], other.blocks[0].attn.window_size[0])
        assert [block.shifted for block in mine.blocks] == [index % 2 == 1 for index in range(len(other.blocks))]


@pytest.mark.parametrize("size", [(64, 64), (75, 97)])
@torch.no_grad()
def test_logits_equal_torchvision(size):
    """Also where neither patches nor windows divide the image."""
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    theirs = SwinTransformer(
        patch_size=[4, 4], embed_dim=16, depths=[2, 2, 2, 1], num_heads=[1, 2, 4, 8], window_size=[2, 2], num_classes=7,
        stochastic_depth_prob=0.0, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2,
    )  # fmt: skip
    state = drawn(theirs).state_dict()
    ours = create_model("swinv2_tiny_window8_256", num_classes=7, weights=state, windows=(2,) * 4, **NARROW).double().eval()
    x = image(*size).double()
    # torchvision drops an incomplete patch, this model and transformers fill it up.
    assert_same(ours(F.pad(x[..., : size[0] // 4 * 4, : size[1] // 4 * 4], (0, 0))), theirs(x))


def test_full_size_equals_torchvision_in_parameters():
    """But for the bias of the keys, which torchvision keeps and sets to zero."""
    with on_meta():
        theirs = torchvision.models.swin_v2_t(weights=None)
        ours = create_model("swinv2_tiny_window8_256")
        converted = ours.layouts[2].convert(theirs.state_dict())
    assert_same_keys(ours, converted)
    assert count_params(theirs) == 28_351_570 == count_params(ours) + 2 * (96 + 192 + 3 * 384 + 768)


def of_transformers(cls, **kwargs) -> nn.Module:
    words = {"depths": [2, 2, 2, 1], "embed_dim": 16, "num_heads": [1, 2, 4, 8], "window_size": 2, "drop_path_rate": 0.0}
    return drawn(cls(transformers.Swinv2Config(image_size=64, attn_implementation="eager", **words, **kwargs)))


@pytest.mark.parametrize("size", [(64, 64), (75, 97)])
@torch.no_grad()
def test_logits_equal_transformers(size):
    theirs = of_transformers(transformers.Swinv2ForImageClassification, num_labels=7)
    ours = create_model("swinv2_tiny_window8_256", num_classes=7, weights=theirs.state_dict(), windows=(2,) * 4, **NARROW).double().eval()
    assert_same(ours(image(*size).double()), theirs(image(*size).double()).logits)


@torch.no_grad()
def test_official_layout_is_read():
    """Merging is at the end of a stage there, and tables that follow from the window's side are in the file."""
    theirs = of_timm((64, 64), 4, num_classes=7)
    official = {}
    for key, value in theirs.state_dict().items():
        parts = key.split(".")
        if parts[2:3] == ["downsample"]:
            parts[1] = str(int(parts[1]) - 1)
        official[".".join(parts).replace("head.fc", "head")] = value
    official["layers.0.blocks.0.attn.relative_coords_table"] = torch.zeros(1, 7, 7, 2)
    ours = create_model("swinv2_tiny_window8_256", num_classes=7, weights=official, **NARROW, windows=(4, 4, 4, 2)).double().eval()
    assert_same(ours(image(64, 64).double()), theirs(image(64, 64).double()))


def test_offsets_are_the_papers():
    """sign(d) log2(1 + 8 |d|) / log2(8), with d of 1 at the far end of the trained window; a smaller one shares its values."""
    found = log_offsets((8,), 8)[:, 0]
    for offset, value in zip(range(-7, 8), found.tolist(), strict=True):
        expected = math.copysign(math.log2(1 + abs(8 * offset / 7)) / math.log2(8), offset)
        assert value == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(log_offsets((4,), 8), log_offsets((8,), 8)[4:-4])
    assert log_offsets((2, 3), 3).tolist()[1][0] == pytest.approx(-math.log2(5) / 3)  # The first axis is the slow one.


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_biases_at_shared_distances_survive_another_window(dims):
    torch.manual_seed(0)
    layer = CosineAttention(8, heads=2, window=3, trained=3, dims=dims)
    before = layer.bias((3,) * dims)
    layer.resize_window(5)
    after = layer.bias((5,) * dims).unflatten(1, (5,) * dims).unflatten(-1, (5,) * dims)
    part = (slice(None), *(slice(1, 4),) * (2 * dims))
    torch.testing.assert_close(after[part].flatten(1, dims).flatten(2), before)
    assert not layer.bias((4,) * dims).isnan().any() and layer.bias((4,) * dims).shape == (2, 4**dims, 4**dims)


def test_windows_of_a_model_are_resized():
    model = create_model("swinv2_tiny_window8_256", windows=(2,) * 4, **NARROW, num_classes=3).double().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.resize_window((4, 4, 4, 2))
    assert [stage.blocks[0].attn.window for stage in model.layers] == [(4, 4), (4, 4), (4, 4), (2, 2)]
    other = create_model("swinv2_tiny_window8_256", windows=(4, 4, 4, 2), trained_windows=(2,) * 4, weights=before, **NARROW, num_classes=3)
    with torch.no_grad():
        assert torch.equal(model(image(64, 64).double()), other.double().eval()(image(64, 64).double()))
    with pytest.raises(ConfigError, match="2 sides and the model 4 stages"):
        model.resize_window((2, 2))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_attention_is_the_formula(dims):
    torch.manual_seed(0)
    layer = CosineAttention(8, heads=2, window=2, trained=2, dims=dims).double().requires_grad_(False)
    nn.init.normal_(layer.q_bias)
    nn.init.normal_(layer.v_bias)
    layer.logit_scale.copy_(torch.tensor([2.0, 9.0])[:, None, None])
    x = torch.randn(3, *(1,) * dims, 2**dims, 8, dtype=torch.float64)
    query, key, value = F.linear(x, layer.qkv.weight).flatten(0, dims).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    query, value = query + layer.q_bias.view(2, 1, 4), value + layer.v_bias.view(2, 1, 4)
    cosine = (query[..., :, None, :] * key[..., None, :, :]).sum(-1) / (query.norm(dim=-1)[..., None] * key.norm(dim=-1)[..., None, :])
    tau = torch.tensor([math.exp(-2.0), 0.01], dtype=torch.float64).view(2, 1, 1)
    weights = (cosine / tau + layer.bias((2,) * dims)).softmax(-1)
    expected = layer.proj((weights @ value).transpose(1, 2).flatten(-2)).view(x.shape)
    torch.testing.assert_close(layer(x, (2,) * dims, (0,) * dims), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(7,), (6, 5), (4, 5, 3)])
def test_shifted_windows_see_their_own_neighbours_only(size):
    """Each token averages over those that it may see: a window that begins half a window earlier, cut at the image's ends."""
    window = (4, 2, 2)[: len(size)]
    x = torch.arange(1.0, 1 + math.prod(size)).view(1, *size, 1)

    def mean(windows, window, shift):
        def of_group(group, last):
            seen = ~wrapped_pairs(window, shift, last, group.device)
            seen = seen & (group[..., 0] > 0)[..., None, :]  # Not what fills the last windows up.
            return (seen.to(group) @ group) / seen.sum(-1, keepdim=True).clamp(min=1)

        return map_by_mask(windows, shift, of_group)

    found = in_windows(x, window, True, mean)[0, ..., 0]
    padded = [-(-side // w) * w for side, w in zip(size, window, strict=True)]
    for place in torch.cartesian_prod(*(torch.arange(side) for side in size)).reshape(-1, len(size)).tolist():
        part = []
        for at, side, w, whole in zip(place, size, window, padded, strict=True):
            shift = w // 2 if side > w else 0
            start = (at - shift) // w * w + shift
            part.append(slice(max(start, 0), min(start + w, whole)))
        assert found[tuple(place)] == pytest.approx(float(x[0, ..., 0][tuple(part)].mean()))


def test_padding_is_at_the_far_ends():
    x = torch.ones(1, 3, 4, 5)
    padded = pad_to_multiple(x, (2, 3), first=1)
    assert padded.shape == (1, 4, 6, 5) and torch.equal(padded[:, :3, :4], x) and padded.sum() == x.sum()
    assert pad_to_multiple(x, (3, 4), first=1) is x


def test_axes_are_treated_alike():
    """Transposing kernels, the perceptron of positions and the order of merged neighbours transposes the features."""
    words = {"depths": (1, 2), "width": 8, "heads": (2, 2), "windows": (2, 3), "dims": 3, "num_classes": 0}
    model = drawn(create_model("swinv2_tiny_window8_256", **words))
    turned = create_model("swinv2_tiny_window8_256", **words).double().eval()
    state = {}
    for key, value in model.state_dict().items():
        if value.ndim == 5:
            value = value.movedim(2, 4)
        elif key.endswith("cpb_mlp.0.weight"):
            value = value[:, [1, 2, 0]]
        elif key.endswith("reduction.weight"):  # The neighbours' last axis counts slowest.
            value = value.unflatten(1, (2, 2, 2, -1)).movedim(3, 1).flatten(1)
        state[key] = value
    turned.load_state_dict(state)
    x = image(32, 40, 28).double()
    with torch.no_grad():
        found, expected = turned.forward_features(x.movedim(2, 4)), model.forward_features(x).movedim(2, 4)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_largest_models_normalise_their_sums():
    with on_meta():
        model = create_model("swinv2_giant_window12_192")
    norms = [[isinstance(block.norm3, nn.LayerNorm) for block in stage.blocks] for stage in model.layers]
    assert norms[2] == [index % 6 == 5 for index in range(42)] and not any(norms[3])
    assert model_entry("swinv2_huge_window12_192").args["extra_norm_every"] == 6
    small = create_model(FAMILY.small[0], **FAMILY.small[1], num_classes=0).double()
    with torch.no_grad():
        for block in small.layers[1].blocks:  # Else the branches start at zero, and the sums are as merging normalised them.
            nn.init.ones_(block.norm1.weight)
        grid = small.run_stages(small.patch_embed(image(32, 32).double()))[1]
        small.layers[1].blocks[1].norm3 = nn.Identity()
        plain = small.run_stages(small.patch_embed(image(32, 32).double()))[1]
    torch.testing.assert_close(grid.var(-1, correction=0), torch.ones(2, 4, 4, dtype=torch.float64), rtol=0, atol=1e-2)
    assert float(plain.var(-1, correction=0).mean()) > 1.5


def test_faults_are_named():
    with pytest.raises(ConfigError, match="one number per stage"):
        create_model("swinv2_tiny_window8_256", depths=(2, 2))
    backbone = create_model("swinv2_tiny_window8_256", windows=(2,) * 4, **NARROW)
    with pytest.raises(InputError, match="multiple of 32"):
        SimMIM(backbone)(torch.zeros(1, 3, 40, 32))


@torch.no_grad()
def test_masked_images_are_painted_as_by_transformers():
    theirs = of_transformers(transformers.Swinv2ForMaskedImageModeling, encoder_stride=32)
    state = theirs.state_dict()
    backbone = create_model("swinv2_tiny_window8_256", windows=(2,) * 4, **NARROW, num_classes=0)
    weights = {key: value for key, value in state.items() if key.startswith("swinv2.") and not key.endswith("mask_token")}
    backbone.load_state_dict(backbone.layouts[3].convert(weights))
    ours = SimMIM(backbone).double().eval()
    ours.mask_token.copy_(state["swinv2.embeddings.mask_token"].flatten())
    ours.decoder.weight.copy_(state["decoder.0.weight"].flatten(1))
    ours.decoder.bias.copy_(state["decoder.0.bias"])
    x, mask = image(64, 64).double(), torch.tensor([[[True, False], [False, True]], [[True, True], [False, False]]])
    theirs_of = theirs(x, bool_masked_pos=mask.repeat_interleave(8, 1).repeat_interleave(8, 2).flatten(1))
    assert_same(ours.reconstruct(x, mask), theirs_of.reconstruction)
    assert float(ours(x, mask)) == pytest.approx(float(theirs_of.loss), rel=1e-5)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_masks_hide_the_share_asked_for(dims):
    size = (64, 32, 16)[:dims]
    model = SimMIM(SwinV2(dims=dims, in_chans=1, num_classes=0, depths=(1, 1), width=8, heads=(1, 1), windows=(2, 2)), ratio=0.6)
    mask = model.draw_mask(torch.zeros(3, 1, *size))
    number = math.prod(side // 8 for side in size)
    assert mask.shape == (3, *(side // 8 for side in size)) and mask.flatten(1).sum(1).tolist() == [math.ceil(0.6 * number)] * 3
    model(torch.zeros(3, 1, *size)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_pretraining_learns():
    """The error on grey images falls well below the 1 of painting the mean of all."""
    torch.manual_seed(0)
    model = SimMIM(SwinV2(in_chans=1, num_classes=0, depths=(1, 2), width=16, heads=(1, 2), windows=(4, 4)))
    x = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1).expand(2, 1, 64, 32)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = model(x)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 0.9 and sum(losses[-10:]) / 10 < 0.7
