"""Layers and a network that commute with down-scaling, at every size and after training, beside a plain CNN that does not."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.errors import ConfigError, InputError
from cnnkit.testing.compare import stir, without_gradient
from scipy import signal
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("cnnkit_equivariant")

from cnnkit_equivariant.classification.pictures import resample
from cnnkit_equivariant.models.scale_fourier import ScaleFourier
from cnnkit_equivariant.scale import (
    FourierConv,
    FrequencyMixer,
    ShellActivation,
    equivariance_error,
    from_spectrum,
    ideal_downscale,
    to_spectrum,
)

pytestmark = pytest.mark.paper("scale-fourier")
SIDE = 15
SIZES = range(1, SIDE + 1, 2)
SMALL = {"channels": (6, 5), "kernel_size": 3, "reference": 11, "hidden": 8, "drop": 0.0}


def pictures(side: int = SIDE, channels: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(side), dtype=torch.float64).to(dtype)


def network(**args: object) -> ScaleFourier:
    torch.manual_seed(0)
    return stir(ScaleFourier(**{"num_classes": 4, "in_chans": 3, **SMALL, **args})).double().eval()


def commuted(layer: Callable[[Tensor], Tensor], x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The layer after down-scaling, and before."""
    with torch.no_grad():
        after = layer(ideal_downscale(x, size))
        return after, ideal_downscale(layer(x), after.shape[-1])


# Scaling down.


@pytest.mark.parametrize("size", SIZES)
def test_down_scaling_is_scipys_and_the_crop_of_the_spectrum(size: int) -> None:
    x = pictures()
    found = ideal_downscale(x, size).numpy()
    np.testing.assert_allclose(found, signal.resample(signal.resample(x.numpy(), size, axis=-1), size, axis=-2), atol=1e-12)
    first, last = (SIDE - size) // 2, (SIDE + size) // 2
    centred = np.fft.fftshift(np.fft.fft2(x.numpy(), norm="forward"), (-2, -1))[..., first:last, first:last]
    np.testing.assert_allclose(found, np.fft.ifft2(np.fft.ifftshift(centred, (-2, -1)), norm="forward").real, atol=1e-12)


def test_down_scaling_in_two_steps_is_down_scaling() -> None:
    x = pictures()
    torch.testing.assert_close(ideal_downscale(ideal_downscale(x, 11), 5), ideal_downscale(x, 5), atol=1e-12, rtol=0)
    torch.testing.assert_close(ideal_downscale(x, 1)[..., 0, 0], x.mean((-2, -1)), atol=1e-12, rtol=0)


def test_spectra_lead_back_and_their_leading_part_is_the_smaller_picture() -> None:
    x = pictures()
    spectrum = to_spectrum(x)
    torch.testing.assert_close(from_spectrum(spectrum), x, atol=1e-12, rtol=0)
    torch.testing.assert_close(from_spectrum(spectrum[:8, :8]), ideal_downscale(x, 7), atol=1e-12, rtol=0)
    assert spectrum[1].abs().max() == spectrum[:, 1].abs().max() == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ideal_downscale(torch.zeros(1, 1, 8, 8), 5), "8 x 8 pixels has a Nyquist .* resample it to 7 or 9"),
        (lambda: ideal_downscale(torch.zeros(1, 1, 9, 9), 4), "4 x 4 pixels has a Nyquist"),
        (lambda: ideal_downscale(torch.zeros(1, 1, 9, 9), 11), "cannot be scaled down to 11; accepted: odd sizes from 1 to 9"),
        (lambda: FourierConv(1, 1)(torch.zeros(1, 1, 28, 28)), "resample it to 27 or 29"),
        (lambda: ShellActivation(1)(torch.zeros(1, 1, 7, 9)), "7 x 9 pixels is not square"),
        (lambda: ShellActivation(1, least=9)(torch.zeros(1, 1, 7, 7)), "smaller than the network's least, 9"),
        (lambda: network()(torch.zeros(1, 3, 8, 8)), "Nyquist"),
        (lambda: network()(torch.zeros(1, 1, 9, 9)), r"takes pictures \(B, 3, N, N\), not \(1, 1, 9, 9\)"),
    ],
)
def test_pictures_that_have_no_exact_smaller_one_are_refused(call, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: FourierConv(1, 1, kernel_size=4), "kernel_size=4"),
        (lambda: FourierConv(1, 1, kernel_size=5, reference=3), "reference=3"),
        (lambda: FrequencyMixer(1, size=6), "size=6 must be odd"),
        (lambda: ShellActivation(1, norm="batch"), "accepted: instance, none"),
        (lambda: ShellActivation(1, least=4), "least=4"),
        (lambda: network(pools=(2,)), "one factor for each convolution"),
        (lambda: network(least_scored=4), "least_scored=4"),
    ],
)
def test_arguments_that_would_not_commute_are_refused(call, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        call()


# The layers.

LAYERS = {
    "conv below its reference": lambda: FourierConv(3, 4, reference=27),
    "conv at its reference": lambda: FourierConv(3, 4, reference=SIDE),
    "conv above its reference": lambda: FourierConv(3, 4, reference=7, kernel_size=3),
    "mixer": lambda: FrequencyMixer(3, size=SIDE),
    "mixer of more": lambda: FrequencyMixer(3, size=19),
    "mixer of fewer": lambda: FrequencyMixer(3, size=7),
    "relu": lambda: ShellActivation(3, norm="none"),
    "gelu": lambda: ShellActivation(3, act="gelu", norm="none"),
    "normalised": lambda: ShellActivation(3),
    "pooled by 2": lambda: ShellActivation(3, pool=2),
    "pooled by 3": lambda: ShellActivation(3, pool=3, norm="none"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_commutes_with_down_scaling_to_every_size(name: str) -> None:
    torch.manual_seed(0)
    layer, x = stir(LAYERS[name]()).double(), pictures()
    for size in SIZES:
        torch.testing.assert_close(*commuted(layer, x, size), atol=1e-10, rtol=0)


@pytest.mark.parametrize("norm", ["instance", "none"])
@pytest.mark.parametrize("pools", [(1, 1), (2, 1), (1, 2)])
def test_the_network_commutes_with_down_scaling_to_every_size(norm: str, pools: tuple[int, ...]) -> None:
    model, x = network(norm=norm, pools=pools), pictures()
    with torch.no_grad():
        inside = dict(zip(model.sizes(SIDE), model.resolutions(x), strict=True))
    for size in SIZES:
        after, before = commuted(model.forward_features, x, size)
        torch.testing.assert_close(after, before, atol=1e-10, rtol=0)
        seen = max(known for known in inside if known <= size)
        torch.testing.assert_close(model(ideal_downscale(x, size)), inside[seen], atol=1e-10, rtol=0)


def test_it_commutes_after_training_and_learns() -> None:
    model, x = network().train(), pictures()
    target, optimizer, entropies = torch.tensor([0, 3]), torch.optim.Adam(model.parameters(), 0.02), []
    for _ in range(15):
        losses = model.losses(x, target)
        entropies.append(float(losses["cross_entropy"].detach()))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert entropies[-1] < 0.2 * entropies[0]
    assert torch.equal(model(x).argmax(1), target)
    for size in SIZES:
        torch.testing.assert_close(*commuted(model.forward_features, x, size), atol=1e-10, rtol=0)


def test_ordinary_convolutions_and_activations_fail_by_orders_of_magnitude() -> None:
    torch.manual_seed(0)
    convs = [nn.Conv2d(before, 6, 3, padding=1, padding_mode="circular") for before in (3, 6)]
    cnn, x, sizes = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU()).double(), pictures(), list(SIZES)[2:-1]
    assert equivariance_error(cnn, x, sizes) > 0.05
    assert equivariance_error(torch.relu, x, sizes) > 0.01
    assert equivariance_error(network().forward_features, x, sizes) < 1e-20


def test_shells_of_several_frequencies_commute_to_the_sizes_between_them_alone() -> None:
    torch.manual_seed(0)
    layer, x = ShellActivation(3, least=5, step=2, norm="none"), pictures()
    for size in (5, 9, 13, 15):
        torch.testing.assert_close(*commuted(layer, x, size), atol=1e-10, rtol=0)
    for size in (7, 11):
        after, before = commuted(layer, x, size)
        assert (after - before).abs().max() > 1e-3
    model = network(least=5, step=2)
    assert model.sizes(SIDE) == [5, 9, 13, 15]


def test_a_shell_is_that_of_the_activated_smaller_picture() -> None:
    layer, x = ShellActivation(3, act="gelu", norm="none"), pictures()
    found = to_spectrum(layer(x))
    for size in SIZES:
        alone = to_spectrum(F.gelu(ideal_downscale(x, size)))
        torch.testing.assert_close(found[size - 1 : size + 1, : size + 1], alone[size - 1 :], atol=1e-12, rtol=0)
        torch.testing.assert_close(found[: size + 1, size - 1 : size + 1], alone[:, size - 1 :], atol=1e-12, rtol=0)


@pytest.mark.parametrize("make", [lambda: FrequencyMixer(1, size=7), lambda: ShellActivation(1, act="gelu")], ids=["mixer", "activation"])
def test_no_frequency_depends_on_a_higher_one(make) -> None:
    torch.manual_seed(0)
    layer = stir(make()).double()
    spectrum = to_spectrum(pictures(7, 1)[:1])
    slopes = torch.autograd.functional.jacobian(lambda s: layer.spectral(s[..., None, None])[..., 0, 0], spectrum[..., 0, 0])
    level = torch.arange(8) // 2
    level = torch.maximum(level[:, None], level)
    higher = level[None, None] > level[:, :, None, None]
    assert slopes[higher].abs().max() < 1e-14
    assert slopes[~higher].abs().max() > 0.1
    if isinstance(layer, FrequencyMixer):
        assert all(slopes[level == top][:, level == low].abs().max() > 1e-4 for top in range(4) for low in range(top + 1))


def test_the_convolution_is_circular_on_the_reference_and_the_same_below() -> None:
    torch.manual_seed(0)
    layer = FourierConv(3, 4, reference=SIDE).double()
    kernel = layer.taps.flip(-2, -1).clone()
    kernel[:, :, 2, 2] += layer.mixture
    nn.init.normal_(layer.bias)

    def circular(x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (2,) * 4, mode="circular"), kernel, layer.bias)

    with torch.no_grad():
        torch.testing.assert_close(layer(pictures()), circular(pictures()), atol=1e-12, rtol=0)
        small = pictures(9)
        torch.testing.assert_close(layer(small), ideal_downscale(circular(resample(small, SIDE)), 9), atol=1e-12, rtol=0)
        # Above the reference its taps see the lower frequencies, the mixture all.
        large, mixed = pictures(21), torch.einsum("oi,bihw->bohw", layer.mixture, pictures(21))
        kernel[:, :, 2, 2] -= layer.mixture
        wanted = mixed + resample(circular(ideal_downscale(large, SIDE)), 21)
        torch.testing.assert_close(layer(large), wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_are_those_of_finite_differences(name: str) -> None:
    torch.manual_seed(0)
    layer = stir(LAYERS[name]()).double()
    assert torch.autograd.gradcheck(layer, pictures(5)[:1].requires_grad_(), fast_mode=True)
    layer(pictures().requires_grad_()).square().mean().backward()
    assert without_gradient(layer) == []


# The network.


@pytest.mark.parametrize("side", [1, 9, 11, 15])
@pytest.mark.parametrize("pools", [(1, 1), (2, 1), (1, 3)])
def test_the_network_is_the_straightforward_one(plain, side: int, pools: tuple[int, ...]) -> None:
    theirs = plain("scale_fourier")
    torch.manual_seed(0)
    peer = stir(theirs.Network((6, 5), pools, inputs=3, classes=4, modes=11, local=3, hidden=8)).eval()
    model = network(pools=pools)
    model.load_state_dict(theirs.ours(peer.state_dict()))
    x = pictures(side).requires_grad_()
    logits = peer(x)
    torch.testing.assert_close(model.forward_features(x), peer.features(x), atol=1e-10, rtol=0)
    torch.testing.assert_close(model.resolutions(x), logits, atol=1e-9, rtol=0)
    torch.testing.assert_close(model(x), logits[-1], atol=1e-9, rtol=0)
    if side > 1:  # Normalised, a single pixel says nothing of itself.
        (slope,) = torch.autograd.grad(logits.square().sum(), x)
        torch.testing.assert_close(torch.autograd.grad(model.resolutions(x).square().sum(), x)[0], slope, atol=1e-8, rtol=1e-8)


def test_single_precision_keeps_the_symmetry_to_1e4() -> None:
    model, x = network().float(), pictures(dtype=torch.float32)
    for size in SIZES:
        torch.testing.assert_close(*commuted(model.forward_features, x, size), atol=1e-4, rtol=0)
    torch.testing.assert_close(model(x).double(), network()(x.double()), atol=1e-4, rtol=0)


def test_a_batch_is_its_samples_one_by_one() -> None:
    model, x = network(), pictures()
    torch.testing.assert_close(model(x), torch.cat([model(one[None]) for one in x]), atol=1e-12, rtol=0)


def test_blank_pictures_and_single_pixels_have_finite_results() -> None:
    model = network().train()
    for x in (torch.zeros(2, 3, 9, 9), torch.full((2, 3, 9, 9), 0.7), torch.rand(2, 3, 1, 1)):
        x = x.double().requires_grad_()
        losses = model.losses(x, torch.tensor([1, 2]))
        (slope,) = torch.autograd.grad(sum(losses.values()), x)
        assert all(bool(torch.isfinite(value).all()) for value in (*losses.values(), slope))


def test_losses_score_the_sizes_from_the_least_scored_and_what_grows_worse() -> None:
    model, x, target = network(least_scored=9, consistency=0.5), pictures(), torch.tensor([1, 2])
    assert model.sizes(SIDE) == list(SIZES)
    with torch.no_grad():
        alone = [float(F.cross_entropy(model(ideal_downscale(x, size)), target)) for size in (9, 11, 13, 15)]
        found = model.losses(x, target)
        small, said = model.losses(pictures(5), target), F.cross_entropy(model(pictures(5)), target)
    worse = sum(max(after - before, 0.0) for before, after in pairwise(alone))
    assert float(found["cross_entropy"]) == pytest.approx(sum(alone) / 4, abs=1e-10)
    assert float(found["consistency"]) == pytest.approx(0.5 * worse, abs=1e-10)
    assert worse > 0.01
    assert float(small["cross_entropy"]) == pytest.approx(float(said), abs=1e-10)
    assert float(small["consistency"]) == 0


def test_it_is_registered_and_every_parameter_gets_a_gradient() -> None:
    for norm in ("instance", "none"):
        model = stir(create_model("equivariant/scale_fourier", in_chans=1, num_classes=10, channels=(4, 4), norm=norm)).train()
        sum(model.losses(torch.rand(2, 1, 9, 9), torch.tensor([0, 1])).values()).backward()
        assert without_gradient(model) == []


def test_it_is_exported_for_any_number_of_pictures() -> None:
    model, x = network(channels=(4,)).float(), pictures(3, dtype=torch.float32)
    shapes = {"x": {0: torch.export.Dim("batch")}}
    program = torch.export.export(model, (x,), dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=True)
    more = torch.cat([x, -x])
    torch.testing.assert_close(program.module()(more), model(more), atol=1e-5, rtol=0)
