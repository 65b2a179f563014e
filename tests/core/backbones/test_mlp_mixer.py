"""MLP-Mixer against timm, the official code's layout and arithmetic, its exact sizes, and the enlargement of the appendix."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model, list_models, model_entry
from cnnkit.backbones.mlp_mixer import enlarged
from cnnkit.count import count_macs, count_params, on_meta
from cnnkit.errors import CheckpointError, ConfigError, InputError
from cnnkit.testing.compare import assert_near, assert_same_keys, image, randomise
from cnnkit.weights import load_weights
from torch import Tensor

pytestmark = pytest.mark.paper("mlp-mixer")

SMALL = {"width": 16, "depth": 3, "patch_size": 4, "img_size": 24}


@torch.no_grad()
def test_logits_and_pyramid_equal_timm():
    timm_mixer = pytest.importorskip("timm.models.mlp_mixer")
    for size in (24, 32):
        theirs = randomise(timm_mixer.MlpMixer(num_classes=5, img_size=size, patch_size=4, num_blocks=3, embed_dim=16))
        ours = create_model("mixer_s16_224", num_classes=5, weights=theirs.state_dict(), **{**SMALL, "img_size": size}).eval()
        assert_near(ours.forward_pyramid(image(size, size)), theirs.forward_intermediates(image(size, size))[1])
        assert_near(ours(image(size, size)), theirs(image(size, size)))
        assert torch.equal(ours.forward_features(image(size, size)), ours.forward_pyramid(image(size, size))[-1])
        assert ours.feature_info.module_name() == [level["module"] for level in theirs.feature_info]
        assert ours.feature_info.reduction() == [level["reduction"] for level in theirs.feature_info]


@pytest.mark.parametrize("name", [name for name in list_models(family="mlp_mixer") if "h14" not in name])
def test_variants_have_the_keys_and_shapes_of_timm(name):
    timm = pytest.importorskip("timm")
    with on_meta():
        ours, theirs = create_model(name), timm.create_model(name)
    assert_same_keys(ours, theirs)


@pytest.mark.parametrize("name", list_models(family="mlp_mixer"))
def test_the_printed_sizes_are_those_without_the_classifier(name):
    with on_meta():
        whole, classifier = count_params(create_model(name)), 1000 * (model_entry(name).args["width"] + 1)
    assert round((whole - classifier) / 1e6) == model_entry(name).figures.params_m
    assert whole == {"mixer_s16_224": 18_528_264, "mixer_b16_224": 59_880_472}.get(name, whole)


def test_multiply_adds_by_hand():
    """Of B/16: 196 tokens of 768 features; each block maps columns through 384 and rows through 3072."""
    with on_meta():
        found = count_macs(create_model("mixer_b16_224"), (1, 3, 224, 224))
    assert found == 196 * 768 * 3 * 16**2 + 12 * (2 * 768 * 196 * 384 + 2 * 196 * 768 * 3072) + 768 * 1000


def official(width: int, tokens: int, depth: int, classes: int) -> dict[str, Tensor]:
    """Random weights under the official names and in the official shapes."""
    generator = torch.Generator().manual_seed(3)
    state = {}

    def dense(name: str, inputs: int, outputs: int) -> None:
        state[f"{name}/kernel"] = torch.randn(inputs, outputs, generator=generator, dtype=torch.float64) / inputs**0.5
        state[f"{name}/bias"] = torch.randn(outputs, generator=generator, dtype=torch.float64)

    def norm(name: str) -> None:
        state[f"{name}/scale"] = 1 + 0.3 * torch.randn(width, generator=generator, dtype=torch.float64)
        state[f"{name}/bias"] = torch.randn(width, generator=generator, dtype=torch.float64)

    dense("stem", 4 * 4 * 3, width)
    state["stem/kernel"] = state["stem/kernel"].view(4, 4, 3, width)
    for index in range(depth):
        norm(f"MixerBlock_{index}/LayerNorm_0")
        norm(f"MixerBlock_{index}/LayerNorm_1")
        for mixing, outer, inner in (("token_mixing", tokens, width // 2), ("channel_mixing", width, 4 * width)):
            dense(f"MixerBlock_{index}/{mixing}/Dense_0", outer, inner)
            dense(f"MixerBlock_{index}/{mixing}/Dense_1", inner, outer)
    norm("pre_head_layer_norm")
    dense("head", width, classes)
    return state


def by_the_official_arithmetic(state: dict[str, Tensor], x: Tensor, depth: int) -> Tensor:
    """Matrices from the right, channels last, and the approximate GELU, as its framework computes by default."""

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * state[f"{name}/scale"] + state[f"{name}/bias"]

    def mlp(x: Tensor, name: str) -> Tensor:
        hidden = F.gelu(x @ state[f"{name}/Dense_0/kernel"] + state[f"{name}/Dense_0/bias"], approximate="tanh")
        return hidden @ state[f"{name}/Dense_1/kernel"] + state[f"{name}/Dense_1/bias"]

    batch, _, height, width = x.shape
    patches = x.permute(0, 2, 3, 1).reshape(batch, height // 4, 4, width // 4, 4, 3)
    x = torch.einsum("nhawbc,abco->nhwo", patches, state["stem/kernel"]).flatten(1, 2) + state["stem/bias"]
    for index in range(depth):
        block = f"MixerBlock_{index}"
        x = x + mlp(norm(x, f"{block}/LayerNorm_0").swapaxes(1, 2), f"{block}/token_mixing").swapaxes(1, 2)
        x = x + mlp(norm(x, f"{block}/LayerNorm_1"), f"{block}/channel_mixing")
    return norm(x, "pre_head_layer_norm").mean(1) @ state["head/kernel"] + state["head/bias"]


@torch.no_grad()
def test_official_weights_give_the_official_output():
    """On an oblong image, where rows and columns cannot be exchanged unnoticed."""
    state = official(16, 6 * 8, 3, classes=5)
    ours = create_model("mixer_s16_224", num_classes=5, act="gelu_tanh", **{**SMALL, "img_size": (24, 32)}).double().eval()
    assert load_weights(ours, state) == "official"
    x = image(24, 32).double()
    assert_near(ours(x), by_the_official_arithmetic(state, x, 3), 1e-12)
    with pytest.raises(CheckpointError, match=r"head has 5 classes .* num_classes=9"):
        create_model("mixer_s16_224", num_classes=9, weights=state, **{**SMALL, "img_size": (24, 32)})


@pytest.mark.parametrize("dims", [1, 2, 3])
@torch.no_grad()
def test_enlarged_weights_see_every_tile_as_the_small_model_does(dims):
    """So that the features of a larger image are those of its tiles, and the logits their mean."""
    sizes = {**SMALL, "img_size": (8, 12, 16)[:dims]}
    small = randomise(create_model("mixer_s16_224", dims=dims, num_classes=5, **sizes).double())
    tiles = 2**dims
    larger = {**sizes, "img_size": tuple(2 * side for side in sizes["img_size"]), "token_hidden": tiles * 8}
    large = create_model("mixer_s16_224", dims=dims, num_classes=5, **larger).double().eval()
    large.load_state_dict(enlarged(small.state_dict(), small.grid, 2))
    x = image(*larger["img_size"]).double()
    features, logits = torch.empty_like(large.forward_features(x)), []
    for tile in range(tiles):
        which = [tile >> axis & 1 for axis in range(dims)]
        pixels = tuple(slice(w * side, (w + 1) * side) for w, side in zip(which, sizes["img_size"], strict=True))
        tokens = tuple(slice(w * side, (w + 1) * side) for w, side in zip(which, small.grid, strict=True))
        features[(..., *tokens)] = small.forward_features(x[(..., *pixels)])
        logits.append(small(x[(..., *pixels)]))
    torch.testing.assert_close(large.forward_features(x), features, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(large(x), torch.stack(logits).mean(0), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_places_matter():
    """Exchanging two patches changes the logits; a perceptron that treats all places alike would not notice."""
    model = randomise(create_model("mixer_s16_224", num_classes=5, **SMALL))
    x = image(24, 24)
    exchanged = x.clone()
    exchanged[..., :4, :4], exchanged[..., 4:8, 8:12] = x[..., 4:8, 8:12], x[..., :4, :4]
    assert (model(exchanged) - model(x)).abs().max() > 1e-2
    for block in model.blocks:
        block.mlp_tokens.fc1.weight.copy_(block.mlp_tokens.fc1.weight[:, :1].expand_as(block.mlp_tokens.fc1.weight))
        block.mlp_tokens.fc2.weight.copy_(block.mlp_tokens.fc2.weight[:1].expand_as(block.mlp_tokens.fc2.weight))
        block.mlp_tokens.fc2.bias.fill_(0.1)
    assert_near(model(exchanged), model(x))


@pytest.mark.parametrize("dims", [1, 2])
@torch.no_grad()
def test_a_model_of_one_more_axis_with_one_patch_along_it_is_the_same(dims):
    flat = randomise(create_model("mixer_s16_224", dims=dims, num_classes=5, **SMALL).double())
    sizes = {**SMALL, "img_size": (*(24,) * dims, 4)}
    deep = create_model("mixer_s16_224", dims=dims + 1, num_classes=5, **sizes).double().eval()
    state = flat.state_dict()
    state["stem.proj.weight"] = state["stem.proj.weight"].unsqueeze(-1).expand(*state["stem.proj.weight"].shape, 4) / 4
    deep.load_state_dict(state)
    x = image(*(24,) * dims).double()
    torch.testing.assert_close(deep(x.unsqueeze(-1).expand(*x.shape, 4)), flat(x), rtol=1e-10, atol=1e-10)


def test_the_classifier_starts_at_zero_and_the_features_with_the_variance_of_the_input():
    torch.manual_seed(0)
    model = create_model("mixer_s16_224", img_size=64, patch_size=8)
    assert not model(image(64, 64)).any()
    model.reset_classifier(3)
    assert model(image(64, 64)).shape == (2, 3) and not model.head.weight.any()
    with torch.no_grad():
        assert 0.8 < model.stem(image(64, 64)).var() < 1.2


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"img_size=30 is not a multiple of patch_size=4; the nearest larger size is \(32, 32\)"):
        create_model("mixer_s16_224", patch_size=4, img_size=30)
    with pytest.raises(InputError, match=r"built for \(24, 24\)"):
        create_model("mixer_s16_224", **SMALL)(image(24, 28))
