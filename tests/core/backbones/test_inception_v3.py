"""Inception-v3 against timm and torchvision, its counts, and its factorised kernels in other dimensions."""

from __future__ import annotations

import pytest
import torch
from cnnkit.backbones import create_model, create_small
from cnnkit.backbones._inception import Conv, Parts, Smooth
from cnnkit.backbones.inception_v3 import inception_a, inception_b, inception_c, reduction_b
from cnnkit.count import count_params, on_meta
from cnnkit.errors import CheckpointError, InputError, UsageError
from cnnkit.testing.compare import assert_near, filled, image, randomise
from cnnkit.weights import load_weights
from torch import nn

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
pytestmark = pytest.mark.paper("inception-v3")


def drawn(build, seed: int = 0) -> nn.Module:
    return filled(build, seed, gain=2.0)


@pytest.fixture(scope="module")
def of_torchvision() -> nn.Module:
    build = torchvision.models.inception_v3
    return drawn(lambda: build(weights=None, aux_logits=True, init_weights=False, num_classes=5, transform_input=False))


@torch.no_grad()
def test_levels_and_logits_equal_timm():
    theirs = drawn(lambda: timm.create_model("inception_v3", num_classes=5))
    ours = drawn(lambda: create_model("inception_v3", num_classes=5))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [dict(level) for level in ours.feature_info] == theirs.feature_info
    for size in ((75, 75), (97, 110)):
        last, levels = theirs.forward_intermediates(image(*size)[:1])
        found = ours.forward_pyramid(image(*size)[:1])
        assert_near(found, levels)
        assert_near(ours.forward_head(found[-1]), theirs.forward_head(last))


@torch.no_grad()
def test_logits_equal_torchvision_with_and_without_the_auxiliary_head(of_torchvision):
    """The auxiliary logits too; a file with that head fits a model without it."""
    theirs, x = of_torchvision, image(299, 299)[:1]
    with on_meta():
        model = create_model("inception_v3", num_classes=5, aux_logits=True)
    ours = model.eval()
    ours.load_state_dict(theirs.state_dict(), assign=True)
    logits, aux = ours.forward_with_aux(x)
    # Its forward returns the auxiliary logits in training mode alone: with the norms still in evaluation, they are comparable.
    theirs.training = True
    theirs.dropout.eval()
    expected = theirs(x)
    theirs.training = False
    assert_near(logits, expected.logits)
    assert_near(aux, expected.aux_logits)
    plain = drawn(lambda: create_model("inception_v3", num_classes=5), seed=1)
    assert load_weights(plain, theirs.state_dict()) == "torchvision"
    assert_near(plain(x[:, :, :99, :99]), theirs(x[:, :, :99, :99]))


def test_counts_and_shapes():
    """Parameters with and without the auxiliary head; levels of 299 pixels, and with padding everywhere."""
    with on_meta():
        model = create_model("inception_v3").eval()
        assert count_params(model) == 23_834_568
        assert count_params(create_model("inception_v3", aux_logits=True)) == 27_161_264
        x = torch.empty(1, 3, 299, 299)
        assert [tuple(level.shape[1:]) for level in model.forward_pyramid(x)] == [
            (64, 147, 147),
            (192, 71, 71),
            (288, 35, 35),
            (768, 17, 17),
            (2048, 8, 8),
        ]
        aligned = create_model("inception_v3", aligned=True).eval()
        assert [level.shape[2] for level in aligned.forward_pyramid(torch.empty(1, 3, 320, 320))] == [160, 80, 40, 20, 10]
        assert list(aligned.state_dict()) == list(model.state_dict())
        features = [create_model("inception_v3", dims=dims).num_features for dims in (1, 2, 3)]
        assert features == [320 + 2 * 384 * dims + 192 for dims in (1, 2, 3)]


@torch.no_grad()
def test_padding_everywhere_changes_the_border_alone():
    """Where no zero is seen, aligned features are those of the paper's network."""
    torch.manual_seed(0)
    ours = create_model("inception_v3", width=0.05, num_classes=0).double().eval()
    aligned = create_model("inception_v3", width=0.05, num_classes=0, aligned=True).double().eval()
    aligned.load_state_dict(ours.state_dict())
    stem = ours.chain[:3]
    x = y = image(41, 41).double()
    for name in stem:
        x, y = ours.get_submodule(name)(x), aligned.get_submodule(name)(y)
    assert (x.shape[2], y.shape[2]) == (18, 21)
    # Without padding, the first strided kernel is centred at pixel 1, with padding at pixel 0: take an input that starts one later.
    z = image(41, 41).double()[:, :, 1:, 1:]
    for name in stem:
        z = aligned.get_submodule(name)(z)
    torch.testing.assert_close(z[:, :, 3:-3, 3:-3], x[:, :, 2:-2, 2:-2][:, :, : z.shape[2] - 6, : z.shape[3] - 6], rtol=1e-10, atol=1e-12)


def identity(unit: nn.Module) -> None:
    """Make a unit pass non-negative features on."""
    channels = unit.out_channels
    weight = torch.zeros_like(unit.conv.weight)
    middle = tuple(size // 2 for size in weight.shape[2:])
    weight[(range(channels), range(channels), *middle)] = 1.0
    unit.conv.weight.data = weight
    unit.bn.running_var.fill_(1.0)
    unit.bn.weight.data.fill_((1 + unit.bn.eps) ** 0.5)
    unit.bn.running_mean.zero_()
    unit.bn.bias.data.zero_()


def widened(weight: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Put a kernel at the centre of the new last axis."""
    wide = torch.zeros_like(like)
    if wide.ndim == weight.ndim:
        return weight
    wide[..., (like.shape[-1] - 1) // 2] = weight
    return wide


BLOCKS = {
    "a": (lambda parts: inception_a(parts, 8, 4), {}, ()),
    # The units of the new axis: first in "forth" (the last axis comes first), third and sixth in "twice" (axes 0, 1, 2, 0, 1, 2).
    "b": (
        lambda parts: inception_b(parts, 192, 192),
        {"branch7x7": [1, None, 2, 3], "branch7x7dbl": [1, 2, 3, None, 4, 5, None]},
        (),
    ),
    "reduction_b": (lambda parts: reduction_b(parts, 8), {"branch7x7x3": [1, None, 2, 3, 4]}, ()),
    "c": (
        lambda parts: inception_c(parts, 8),
        {"branch3x3": [1, 2], "branch3x3dbl": [1, 2, 3]},
        ("branch3x3_2", "branch3x3dbl_3"),
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
@torch.no_grad()
def test_a_block_of_a_volume_of_equal_slices_is_that_of_a_slice(name):
    """Three-dimensional blocks whose new convolutions are identities contain the two-dimensional ones."""
    build, chains, fans = BLOCKS[name]
    flat, deep = build(Parts(2, 0.05)), build(Parts(3, 0.05))
    channels = 8
    if name == "b":
        flat, deep = inception_b(Parts(2), 8, 192), inception_b(Parts(3), 8, 192)
    randomise(flat, gain=2.0).double()
    deep.double().eval()
    sources: dict[str, str | None] = {}
    for key in deep.state_dict():
        unit = key.split(".")[0]
        branch, _, place = unit.rpartition("_")
        if branch in chains and place.isdigit():
            number = chains[branch][int(place) - 1]
            sources[unit] = None if number is None else f"{branch}_{number}"
        else:
            sources[unit] = unit
    for fan in fans:  # Letters follow the axes from the last: the new axis is "a", and "b" and "c" were "a" and "b".
        sources.update({f"{fan}a": "", f"{fan}b": f"{fan}a", f"{fan}c": f"{fan}b"})
    state = flat.state_dict()
    for unit, source in sources.items():
        module = deep.get_submodule(unit)
        if source is None:
            identity(module)
        elif source:
            module.load_state_dict(
                {key: widened(state[f"{source}.{key}"], value) for key, value in module.state_dict().items()}, assign=True
            )
    x = image(9, 10).double()[:, :1].expand(2, channels, 9, 10).relu()
    expected, found = flat(x), deep(x.unsqueeze(-1).expand(*x.shape, 7))[..., 1]
    if fans:
        new = deep.get_submodule(f"{fans[0]}a").out_channels
        one = deep.branch1x1.out_channels
        parts = found.split([one, new, 2 * new, new, 2 * new, found.shape[1] - one - 6 * new], 1)
        found = torch.cat([parts[0], parts[2], parts[4], parts[5]], 1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_factorised_kernels_have_one_convolution_per_axis(dims):
    parts = Parts(dims)
    kernels = [unit.conv.kernel_size for unit in parts.units(4, *parts.per_axis(7, 6, 8))]
    assert kernels == [tuple(7 if own == axis else 1 for own in range(dims)) for axis in reversed(range(dims))]
    assert parts.unit(4, Conv(6, 5)).conv.kernel_size == (5,) * dims


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("include_pad", [False, True])
def test_average_pooling_is_the_mean_of_each_neighbourhood(dims, include_pad):
    x = image(*(2, 4, 1)[:dims]).double()
    found = Smooth(dims=dims, include_pad=include_pad)(x)
    for place in torch.cartesian_prod(*(torch.arange(side) for side in x.shape[2:])).view(-1, dims).tolist():
        block = x[(slice(None), slice(None), *(slice(max(i - 1, 0), i + 2) for i in place))].flatten(2)
        expected = block.sum(2) / (3**dims if include_pad else block.shape[2])
        torch.testing.assert_close(found[(slice(None), slice(None), *place)], expected, rtol=1e-12, atol=1e-12)


def test_the_auxiliary_head_follows_the_classifier():
    model = create_model("inception_v3", width=0.05, aux_logits=True, num_classes=3)
    whole = count_params(model)
    model.reset_classifier(0)
    with pytest.raises(UsageError, match="aux_logits=True"):
        model.forward_with_aux(image(75, 75))
    model.reset_classifier(4)
    assert count_params(model) == whole + sum(layer.in_features + 1 for layer in (model.fc, model.AuxLogits.fc))
    with pytest.raises(InputError, match="at least 17 positions"):
        model.forward_with_aux(image(99, 99))
    logits, aux = model.forward_with_aux(image(299, 299))
    assert logits.shape == aux.shape == (2, 4)
    (logits.square().mean() + 0.3 * aux.square().mean()).backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


def test_what_does_not_fit_is_explained(of_torchvision):
    with pytest.raises(InputError, match="at least 75"):
        create_model("inception_v3", width=0.05)(image(74, 80))
    assert create_small("inception_v3", num_classes=3).eval()(image(32, 33)).shape == (2, 3)
    with on_meta(), pytest.raises(CheckpointError, match="5 classes and the model was built with num_classes=4"):
        create_model("inception_v3", num_classes=4, weights=of_torchvision.state_dict())
