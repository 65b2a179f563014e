"""UniFormer against its equations with the keys of the paper's code, and clips against images."""

from __future__ import annotations

import itertools

import pytest
import torch
from cnnkit.backbones import create_model, list_models
from cnnkit.backbones.uniformer import inflate
from cnnkit.count import on_meta
from cnnkit.errors import ConfigError, InputError
from cnnkit.testing.compare import image, randomise
from cnnkit.weights import load_weights
from torch import Tensor
from torch.nn import functional as F

pytestmark = pytest.mark.paper("uniformer")

WIDTHS = (64, 128, 320, 512)
# Depths, widths, overlapping embeddings, stages with a scale, a head of tokens: from the paper's code.
OFFICIAL = {
    "uniformer_small": ((3, 4, 8, 3), WIDTHS, False, (), False),
    "uniformer_small_plus": ((3, 5, 9, 3), WIDTHS, True, (), False),
    "uniformer_base": ((5, 8, 20, 7), WIDTHS, False, (), False),
    "uniformer_base_ls": ((5, 8, 20, 7), WIDTHS, False, (3, 4), False),
    "uniformer_large_ls": ((5, 10, 24, 7), (128, 192, 448, 640), False, (1, 2, 3, 4), True),
}
SMALL = {"depths": (1, 2, 2, 1), "widths": (8, 12, 16, 24), "head_dim": 8}
FORMS = {
    "patches": {},
    "convolutions": {"conv_embed": True},
    "scaled": {"layer_scale": (1.0, None, 1.0, None)},
    "tokens": {"token_head": True, "layer_scale": (1.0,) * 4},
}
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def official_shapes(depths, widths, conv_embed, scaled, token_head) -> dict[str, tuple[int, ...]]:
    """What a file of the paper's own code holds."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *form: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = form, form[:1]

    def batch_norm(name: str, width: int) -> None:
        layer(name, width)
        shapes[f"{name}.running_mean"] = shapes[f"{name}.running_var"] = (width,)
        shapes[f"{name}.num_batches_tracked"] = ()

    before = 3
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
        embed = f"patch_embed{stage}"
        if not conv_embed:
            side = 4 if stage == 1 else 2
            layer(f"{embed}.proj", width, before, side, side)
            layer(f"{embed}.norm", width)
        elif stage == 1:
            layer(f"{embed}.proj.0", width // 2, before, 3, 3)
            batch_norm(f"{embed}.proj.1", width // 2)
            layer(f"{embed}.proj.3", width, width // 2, 3, 3)
            batch_norm(f"{embed}.proj.4", width)
        else:
            layer(f"{embed}.proj.0", width, before, 3, 3)
            batch_norm(f"{embed}.proj.1", width)
        for index in range(depth):
            block = f"blocks{stage}.{index}"
            layer(f"{block}.pos_embed", width, 1, 3, 3)
            tail = (1, 1) if stage < 3 else ()
            layer(f"{block}.mlp.fc1", 4 * width, width, *tail)
            layer(f"{block}.mlp.fc2", width, 4 * width, *tail)
            for norm in ("norm1", "norm2"):
                (batch_norm if stage < 3 else layer)(f"{block}.{norm}", width)
            if stage < 3:
                layer(f"{block}.conv1", width, width, 1, 1)
                layer(f"{block}.conv2", width, width, 1, 1)
                layer(f"{block}.attn", width, 1, 5, 5)
            else:
                layer(f"{block}.attn.qkv", 3 * width, width)
                layer(f"{block}.attn.proj", width, width)
            if stage in scaled:
                for name in ("gamma_1", "gamma_2"):
                    shapes[f"{block}.{name}"] = (1, width, 1, 1) if stage < 3 else (width,)
        before = width
    batch_norm("norm", before)
    layer("head", 1000, before)
    if token_head:
        layer("aux_head", 1000, before)
    return shapes


@pytest.mark.parametrize("name", OFFICIAL)
def test_variants_have_the_keys_and_shapes_of_the_official_code(name):
    with on_meta():
        ours = create_model(name)
    assert {key: tuple(value.shape) for key, value in ours.state_dict().items()} == official_shapes(*OFFICIAL[name])


def test_all_variants_are_covered():
    assert sorted(OFFICIAL) == list_models(family="uniformer")


def test_heads_of_attention():
    """No parameter shows them: 64 channels each, 32 in the variant with convolutions."""
    for name in OFFICIAL:
        with on_meta():
            model = create_model(name)
        head_dims = {blocks[0].attn.qkv.in_features // blocks[0].attn.heads for blocks in (model.blocks3, model.blocks4)}
        assert head_dims == {32 if name == "uniformer_small_plus" else 64}


def plain(
    state: dict[str, Tensor], x: Tensor, *, depths, head_dim: int, window: int = 0, global_every: int = 1
) -> tuple[list[Tensor], Tensor]:
    """The model in elementary operations on the paper's keys; returns the levels and the logits."""
    dims = x.ndim - 2
    conv = CONV[dims]

    def per_channel(value: Tensor) -> Tensor:
        return value.flatten().view(1, -1, *[1] * dims)

    def batch_norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (per_channel(state[f"{name}.{key}"]) for key in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def layer_norm(x: Tensor, name: str, eps: float) -> Tensor:  # Of (..., channels).
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    def convolve(x: Tensor, name: str, **options) -> Tensor:
        return conv(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].flatten(1).T + state[f"{name}.bias"]

    def scale(branch: Tensor, name: str) -> Tensor:
        return branch if name not in state else branch * (per_channel(state[name]) if state[name].ndim > 1 else state[name])

    levels = []
    for stage, depth in enumerate(depths, start=1):
        embed = f"patch_embed{stage}"
        if f"{embed}.norm.weight" in state:
            x = convolve(x, f"{embed}.proj", stride=2 if stage > 1 else 4)
            x = layer_norm(x.movedim(1, -1), f"{embed}.norm", 1e-5).movedim(-1, 1)
        else:
            x = batch_norm(convolve(x, f"{embed}.proj.0", stride=2, padding=1), f"{embed}.proj.1")
            if stage == 1:
                x = batch_norm(convolve(F.gelu(x), f"{embed}.proj.3", stride=2, padding=1), f"{embed}.proj.4")
        for index in range(depth):
            name = f"blocks{stage}.{index}"
            width = x.shape[1]
            x = x + convolve(x, f"{name}.pos_embed", padding=1, groups=width)
            if stage < 3:
                y = convolve(convolve(batch_norm(x, f"{name}.norm1"), f"{name}.conv1"), f"{name}.attn", padding=2, groups=width)
                x = x + scale(convolve(y, f"{name}.conv2"), f"{name}.gamma_1")
                y = convolve(F.gelu(convolve(batch_norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
                x = x + scale(y, f"{name}.gamma_2")
            else:
                grid, tokens = x.shape[2:], x.flatten(2).transpose(1, 2)
                mixed = layer_norm(tokens, f"{name}.norm1", 1e-6)
                windows = [(slice(None),) * dims]
                if stage == 3 and not (global_every and (index + 1) % global_every == 0):
                    windows = list(itertools.product(*([slice(at, at + window) for at in range(0, side, window)] for side in grid)))
                y = torch.zeros_like(mixed).unflatten(1, grid)
                for part in windows:
                    inside = mixed.unflatten(1, grid)[(slice(None), *part)]
                    size = inside.shape[1:-1]
                    if len(windows) > 1:  # Full of zeros at the far ends.
                        inside = F.pad(inside, (0, 0, *(n for side in reversed(size) for n in (0, window - side))))
                    filled = inside.shape[1:-1]
                    made = linear(inside.flatten(1, -2), f"{name}.attn.qkv")
                    query, key, value = made.view(*made.shape[:2], 3, -1, head_dim).unbind(2)
                    affinity = (torch.einsum("bnhd,bmhd->bhnm", query, key) / head_dim**0.5).softmax(-1)
                    summed = torch.einsum("bhnm,bmhd->bnhd", affinity, value).flatten(2).unflatten(1, filled)
                    y[(slice(None), *part)] = summed[(slice(None), *(slice(side) for side in size))]
                y = y.flatten(1, -2)
                tokens = tokens + scale(linear(y, f"{name}.attn.proj"), f"{name}.gamma_1")
                y = linear(F.gelu(linear(layer_norm(tokens, f"{name}.norm2", 1e-6), f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
                x = (tokens + scale(y, f"{name}.gamma_2")).transpose(1, 2).view(x.shape[0], width, *grid)
        levels.append(x)
    tokens = batch_norm(x, "norm").flatten(2).transpose(1, 2)
    logits = linear(tokens.mean(1), "head")
    if "aux_head.weight" in state:
        logits = logits + 0.5 * linear(tokens, "aux_head").max(1)[0]
    return levels, logits


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(64,), (64, 96), (75, 97), (32, 64, 40)])
@torch.no_grad()
def test_logits_and_levels_equal_the_equations(form, size):
    """At other sizes than a multiple of the patches too, where the last rows are left out."""
    arguments = {"num_classes": 5, "dims": len(size), **SMALL, **FORMS[form]}
    state = randomise(create_model("uniformer_small", **arguments).double()).state_dict()
    ours = create_model("uniformer_small", **arguments).double()
    assert load_weights(ours, state) == "cnnkit"
    ours.eval()
    x = image(*size).double()
    levels, logits = plain(state, x, depths=SMALL["depths"], head_dim=8)
    torch.testing.assert_close(ours(x), logits, rtol=1e-10, atol=1e-10)
    for level, expected in zip(ours.forward_pyramid(x), levels, strict=True):
        torch.testing.assert_close(level, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("global_every", [0, 2])
@pytest.mark.parametrize("size", [(150,), (96, 130), (48, 64, 48)])
@torch.no_grad()
def test_windows_in_the_third_stage(size, global_every):
    """With the weights of the model without them; in the last windows zeros are keys too."""
    arguments = {"num_classes": 5, "dims": len(size), **SMALL}
    state = randomise(create_model("uniformer_small", **arguments).double()).state_dict()
    ours = create_model("uniformer_small", global_every=global_every, window_size=3, **arguments).double().eval()
    ours.load_state_dict(state)
    x = image(*size).double()
    levels, logits = plain(state, x, depths=SMALL["depths"], head_dim=8, window=3, global_every=global_every)
    torch.testing.assert_close(ours(x), logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.forward_pyramid(x)[2], levels[2], rtol=1e-10, atol=1e-10)
    assert (plain(state, x, depths=SMALL["depths"], head_dim=8)[1] - logits).abs().max() > 1e-6


def test_the_hybrid_form_has_three_blocks_of_windows_to_one_of_all_tokens():
    with on_meta():
        model = create_model("uniformer_base", global_every=4)
        spared = create_model("uniformer_base", global_every=0)
    assert [block.window is None for block in model.blocks3] == [False, False, False, True] * 5
    assert all(block.window is None for block in model.blocks4) and {block.window for block in spared.blocks3} == {(14, 14)}


@torch.no_grad()
def test_scores_of_tokens():
    model = randomise(create_model("uniformer_small", num_classes=5, **SMALL, token_head=True).double())
    features = model.forward_features(image(64, 96).double())
    tokens = model.forward_tokens(features)
    assert tokens.shape == (2, 6, 5)
    torch.testing.assert_close(model.forward_head(features) - model.head(features.mean((2, 3))), 0.5 * tokens.amax(1))
    model.reset_classifier(7)
    assert model(image(64, 64).double()).shape == (2, 7) and model.forward_tokens(features).shape == (2, 6, 7)
    model.reset_classifier(0)
    assert model(image(64, 64).double()).shape == (2, 24)


def clips_and_images(*, centre: bool):
    flat = randomise(create_model("uniformer_small", num_classes=5, **SMALL).double())
    deep = create_model("uniformer_small", num_classes=5, dims=3, video=True, **SMALL).double().eval()
    load_weights(deep, inflate(flat.state_dict(), deep, centre=centre))
    return flat, deep


@pytest.mark.parametrize("frames", [1, 2, 7])
@torch.no_grad()
def test_a_clip_of_one_frame_repeated_gives_what_the_frame_gives(frames):
    """With centred kernels exactly; attention sees every token equally often, which changes no softmax."""
    flat, deep = clips_and_images(centre=True)
    x = image(64, 96).double()
    clip = x.unsqueeze(2).expand(-1, -1, frames, -1, -1)
    torch.testing.assert_close(deep(clip), flat(x), rtol=1e-10, atol=1e-10)
    for level, still in zip(deep.forward_pyramid(clip), flat.forward_pyramid(x), strict=True):
        assert level.shape[2] == (frames + 1) // 2
        torch.testing.assert_close(level, still.unsqueeze(2).expand_as(level), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_spread_kernels_do_so_away_from_the_ends_of_the_clip():
    flat, deep = clips_and_images(centre=False)
    x = image(32, 32).double()
    level = deep.forward_pyramid(x.unsqueeze(2).expand(-1, -1, 24, -1, -1))[0]
    still = flat.forward_pyramid(x)[0].unsqueeze(2)
    inner = level[:, :, 4:-4]  # One frame of the embedding, one of the positions and two of the local affinities.
    torch.testing.assert_close(inner, still.expand_as(inner), rtol=1e-10, atol=1e-10)
    assert (level[:, :, 0] - still[:, :, 0]).abs().max() > 1e-2


def test_video_has_the_shapes_of_the_official_code():
    """Time is convolved by three frames at a step of two in the first embedding, and left alone by the others."""
    with on_meta():
        model = create_model("uniformer_small", dims=3, video=True, num_classes=400)
        kernels = [getattr(model, f"patch_embed{stage}").proj for stage in (1, 2, 3, 4)]
        assert [tuple(proj.kernel_size) for proj in kernels] == [(3, 4, 4), (1, 2, 2), (1, 2, 2), (1, 2, 2)]
        assert [tuple(proj.stride) for proj in kernels] == [(2, 4, 4), (1, 2, 2), (1, 2, 2), (1, 2, 2)]
        assert tuple(model.blocks1[0].attn.weight.shape) == (64, 1, 5, 5, 5)
        levels = model.forward_pyramid(torch.empty(1, 3, 16, 224, 224))
    assert [tuple(level.shape[2:]) for level in levels] == [(8, side, side) for side in (56, 28, 14, 7)]


@torch.no_grad()
def test_axes_are_treated_alike():
    model = randomise(create_model("uniformer_small", num_classes=4, dims=3, **SMALL).double())
    turned = create_model("uniformer_small", num_classes=4, dims=3, **SMALL).double().eval()
    turned.load_state_dict({key: value.transpose(2, 4) if value.ndim == 5 else value for key, value in model.state_dict().items()})
    x = image(64, 32, 96).double()
    torch.testing.assert_close(model(x), turned(x.transpose(2, 4)), rtol=1e-10, atol=1e-10)


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="four numbers"):
        create_model("uniformer_small", depths=(1, 2, 3))
    with pytest.raises(ConfigError, match="head_dim=48 does not divide"):
        create_model("uniformer_small", head_dim=48)
    for arguments in ({"dims": 2}, {"dims": 3, "conv_embed": True}):
        with pytest.raises(ConfigError, match="use dims=3 and conv_embed=False"):
            create_model("uniformer_small", video=True, **arguments)
    model = create_model("uniformer_small", dims=3, video=True, **SMALL)
    with pytest.raises(InputError, match="at least 32"):
        model(torch.zeros(1, 3, 4, 31, 64))
    assert model.eval()(torch.zeros(1, 3, 1, 32, 32)).shape == (1, 1000)
