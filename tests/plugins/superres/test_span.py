"""SPAN and DSCF: against the straightforward code and spandrel with the same weights, merged and not, in evaluation and in training."""

from __future__ import annotations

import pytest
import torch
from cnnkit.count import count_macs, count_params, on_meta
from cnnkit.errors import CheckpointError
from cnnkit.layers.fuse import fuse
from cnnkit.testing.compare import assert_near, assert_same, assert_same_keys, image, randomise
from cnnkit.weights import load_weights
from cnnkit_superres.models.span import SPAN, TripleConv, merge_state

pytestmark = pytest.mark.paper("dsclora")

SIZES = ((9, 14), (1, 6))
DTYPES = ((torch.float32, 1e-5), (torch.float64, 1e-10))


def small(scale: int = 2, *, merged: bool = False, channels: int = 8) -> SPAN:
    """A network with random weights, of the scale at which the 0..255 input leaves the attention unsaturated."""
    model = randomise(SPAN(scale=scale, channels=channels, merged=merged))
    with torch.no_grad():
        for layer in model.conv_1.modules():
            if isinstance(layer, torch.nn.Conv2d) and layer.in_channels == 3:
                layer.weight.mul_(0.02)
    return model


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("merged", [False, True])
def test_it_is_the_straightforward_code(plain, scale, merged, dtype, tolerance):
    ours = small(scale, merged=merged).to(dtype)
    theirs = plain("span").PlainSPAN(scale, 8, merged).to(dtype).eval()
    assert_same_keys(ours, theirs)
    theirs.load_state_dict(ours.state_dict())
    for size in SIZES:
        x = image(*size).to(dtype).sigmoid()
        with torch.no_grad():
            assert_near(ours(x), theirs(x), tolerance)


def test_training_by_the_kernel_is_training_by_the_branches(plain):
    ours = small().double().train()
    theirs = plain("span").PlainSPAN(2, 8).double().train()
    theirs.load_state_dict(ours.state_dict())
    x = image(7, 10).double().sigmoid()
    for model in (ours, theirs):
        model(x).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.requires_grad}
    assert len(gradients) == len(list(ours.parameters())) == 20 * 8 + 4
    for name, parameter in ours.named_parameters():
        assert_near(parameter.grad, gradients[name], 1e-10)


@pytest.mark.parametrize("scale", [2, 4])
def test_spandrel_reads_our_files_and_we_read_its(scale):
    spandrel = pytest.importorskip("spandrel")
    ours = small(scale)
    state = ours.state_dict()
    found = spandrel.ModelLoader().load_from_state_dict(dict(state))
    assert (found.architecture.id, found.scale, found.input_channels, found.tags) == ("SPAN", scale, 3, ["8nf"])
    x = image(9, 14).sigmoid()
    with torch.no_grad():
        theirs = found.model.eval()(x)
        assert_near(ours(x), theirs)
        for again in (SPAN(scale=scale, channels=8), SPAN(scale=scale, channels=8, merged=True)):
            load_weights(again, found.model.state_dict())
            assert_near(again.eval()(x), theirs)


def test_the_state_has_the_merged_kernel_and_ignores_that_of_a_file():
    ours = small()
    state = dict(ours.state_dict())
    weight, bias = ours.block_3.c2_r.kernel()
    assert torch.equal(state["block_3.c2_r.eval_conv.weight"], weight) and torch.equal(state["block_3.c2_r.eval_conv.bias"], bias)
    state["block_3.c2_r.eval_conv.weight"] = torch.full_like(weight, 7.0)  # A file whose kernel was written before the last step.
    again = SPAN(scale=2, channels=8)
    assert load_weights(again, state) == "cnnkit"
    assert_same(dict(again.state_dict()), dict(ours.state_dict()))


@pytest.mark.parametrize("scale", [2, 4])
def test_fuse_leaves_the_merged_network(scale):
    ours, x = small(scale), image(9, 14).sigmoid()
    with torch.no_grad():
        expected = ours(x)
    loaded = SPAN(scale=scale, channels=8, merged=True).eval()
    assert load_weights(loaded, ours.state_dict()) == "official"
    fused = fuse(ours, x)
    assert not any(isinstance(module, TripleConv) for module in fused.modules())
    assert_same_keys(fused, loaded)
    with torch.no_grad():
        assert_near(fused(x), expected)
        assert_near(loaded(x), expected)


def test_branches_cannot_be_made_from_a_merged_file():
    with pytest.raises(CheckpointError, match=r"lacks conv_1\.sk\.weight"):
        load_weights(SPAN(scale=2, channels=8), small(merged=True).state_dict())


def test_the_kernel_is_exact_at_the_border():
    layer = randomise(TripleConv(3, 5)).double()
    x = image(1, 1).double()  # Nothing but border.
    with torch.no_grad():
        assert_near(layer(x), layer.conv(torch.nn.functional.pad(x, (1, 1, 1, 1))) + layer.sk(x), 1e-12)


@pytest.mark.parametrize(("scale", "channels", "thousands"), [(4, 52, 498), (4, 26, 131)])
def test_published_parameters_are_of_the_merged_network(scale, channels, thousands):
    with on_meta():
        merged, branches = (SPAN(scale=scale, channels=channels, merged=form) for form in (True, False))
    assert round(count_params(merged) / 1e3) == thousands
    assert merge_state(branches.state_dict()).keys() == merged.state_dict().keys()
    assert count_params(branches) > 4 * count_params(merged)


def test_multiply_adds_of_the_challenge():
    """8.54 G for 256 x 256, as the organisers' counter and the results of the authors' repository print."""
    with on_meta():
        assert round(count_macs(SPAN(scale=4, channels=26, merged=True), (1, 3, 256, 256)) / 1e9, 2) == 8.54


def test_luminance():
    model = SPAN(scale=2, in_chans=1, channels=8).eval()
    with torch.no_grad():
        assert model(image(5, 4, channels=1)).shape == (2, 1, 10, 8)


def test_export_with_free_sides():
    model, x = small(), image(9, 14).sigmoid()
    sides = {2: torch.export.Dim("height", min=2, max=512), 3: torch.export.Dim("width", min=2, max=512)}
    program = torch.export.export(model, (x,), dynamic_shapes=(sides,))
    other = image(12, 7).sigmoid()
    with torch.no_grad():
        assert_near(program.module()(other), model(other))
