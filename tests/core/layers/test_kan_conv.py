"""KAN convolutions against SciPy's functions, the sum that they stand for, finite differences and digits."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from cnnkit.errors import ConfigError
from cnnkit.layers.kan_conv import (
    BASES,
    WAVELETS,
    BottleneckKANConv,
    GaussianBasis,
    KANConv,
    PolynomialBasis,
    SplineBasis,
    WaveletBasis,
)
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.paper("kan-conv")
DIMS = (1, 2, 3)
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
PLAIN = {"norm": "none", "act": "none"}
PLACES = np.linspace(-2.5, 2.5, 301)


def image(dims: int, channels: int = 4) -> torch.Tensor:
    return torch.randn(2, channels, *(7, 6, 5)[:dims], generator=torch.Generator().manual_seed(dims), dtype=torch.float64)


def values(basis: nn.Module, places: np.ndarray = PLACES) -> np.ndarray:
    """Values at places, (functions, places)."""
    with torch.no_grad():
        return basis.double()(torch.from_numpy(places).view(1, 1, -1))[0].numpy()


def stirred(layer: nn.Module) -> nn.Module:
    """Move learnt recurrences, places and widths off their start."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in layer.double().named_parameters():
        if name.startswith("basis."):
            parameter.data += 0.1 * torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
    return layer


@pytest.mark.parametrize(("grid", "order", "low", "high"), [(5, 3, -1, 1), (8, 2, -2, 1), (4, 1, 0, 1), (3, 4, -1, 1)])
def test_splines_are_those_of_scipy(grid, order, low, high):
    """Inside and outside of the grid, also beyond all splines."""
    interpolate = pytest.importorskip("scipy.interpolate")
    basis = SplineBasis(grid, order, low, high)
    knots = basis.knots()
    assert len(knots) == grid + 2 * order + 1 and knots[order] == pytest.approx(low) and knots[-1 - order] == pytest.approx(high)
    elements = (interpolate.BSpline.basis_element(knots[i : i + order + 2], extrapolate=False) for i in range(basis.functions))
    expected = np.stack([np.nan_to_num(element(PLACES)) for element in elements])
    np.testing.assert_allclose(values(basis), expected, rtol=0, atol=1e-12)
    inside = (low <= PLACES) & (high > PLACES)
    np.testing.assert_allclose(values(basis)[:, inside].sum(0), 1.0, rtol=1e-12)  # Everywhere inside, they add up to one.


def test_gaussians_are_as_wide_as_their_distances():
    centres = np.linspace(-2, 2, 8)
    expected = np.exp(-(((PLACES - centres[:, None]) / (4 / 7)) ** 2))
    np.testing.assert_allclose(values(GaussianBasis()), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("degree", [1, 3, 7])
def test_polynomials_are_those_of_scipy(degree):
    special = pytest.importorskip("scipy.special")
    t, orders = np.tanh(PLACES), np.arange(degree + 1)[:, None]
    legendre = special.eval_legendre(orders, t)
    np.testing.assert_allclose(values(PolynomialBasis(degree, "legendre")), legendre, rtol=0, atol=1e-12)
    np.testing.assert_allclose(values(PolynomialBasis(degree, "chebyshev")), special.eval_chebyt(orders, t), rtol=0, atol=1e-12)
    # With the recurrence that Gram's begin with, they are Legendre's with a leading coefficient of one.
    leading = special.factorial(2 * orders) / (2.0**orders * special.factorial(orders) ** 2)
    np.testing.assert_allclose(values(PolynomialBasis(degree, "gram")), legendre / leading, rtol=0, atol=1e-6)


def test_gram_polynomials_of_equidistant_points_are_orthogonal_there():
    """With the coefficients of m points, ``n^2 (m^2 - n^2) / (m^2 (4 n^2 - 1))``."""
    m, orders = 9, np.arange(1, 5)
    basis = PolynomialBasis(5, "gram").double()
    basis.beta.data = torch.from_numpy(orders**2 * (m**2 - orders**2) / (m**2 * (4 * orders**2 - 1)))
    points = (2 * np.arange(m) - m + 1) / m
    products = values(basis, np.arctanh(points))
    products = products @ products.T
    assert np.abs(products - np.diag(np.diag(products))).max() < 1e-12


def test_wavelets_are_their_closed_forms():
    x = torch.from_numpy(PLACES).requires_grad_()
    gaussian = torch.exp(-0.5 * x**2)
    (first,) = torch.autograd.grad(gaussian.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    at = np.where(PLACES == 0, 1e-300, PLACES)
    expected = {
        "dog": first.detach().numpy(),
        "mexican_hat": 2 / (math.sqrt(3) * math.pi**0.25) * second.numpy(),
        "morlet": (np.exp(5j * PLACES) * np.exp(-(PLACES**2) / 2)).real,
        "shannon": (np.sin(2 * math.pi * at) - np.sin(math.pi * at)) / (math.pi * at),
    }
    for kind, wanted in expected.items():
        np.testing.assert_allclose(WAVELETS[kind](torch.from_numpy(PLACES)).numpy(), wanted, rtol=0, atol=1e-12)
    fine = torch.linspace(-30, 30, 60001, dtype=torch.float64)
    assert WAVELETS["mexican_hat"](fine).square().mean() * 60 == pytest.approx(1.0, abs=1e-3)
    half = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 1.5], dtype=torch.float64)  # The auxiliary polynomial is 1/2 in the middle of [1/2, 1].
    wanted = [0.0, math.sin(math.pi / 4), 1.0, math.sin(0.75 * math.pi) * math.cos(math.pi / 4), 0.0, 0.0]
    torch.testing.assert_close(WAVELETS["meyer"](half), torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(WAVELETS["meyer"](-half), WAVELETS["meyer"](half))


@torch.no_grad()
def test_wavelets_have_their_own_places_and_widths_in_every_channel():
    basis = stirred(nn.ModuleDict({"basis": WaveletBasis(3, 2, "morlet")})).basis
    x = image(2, 3)
    expanded = basis(x)
    for channel in range(3):
        for number in range(2):
            moved = (x[:, channel] - basis.place[channel, number]) / basis.width[channel, number]
            torch.testing.assert_close(expanded[:, 2 * channel + number], WAVELETS["morlet"](moved))


@pytest.mark.parametrize("dims", DIMS)
@torch.no_grad()
def test_a_given_spline_is_reproduced(dims):
    """With its coefficients as weights, for every place inside; SciPy's own evaluation to 1e-12."""
    interpolate = pytest.importorskip("scipy.interpolate")
    layer = KANConv(1, 1, 1, dims=dims, **PLAIN).double()
    coefficients = np.random.default_rng(0).normal(size=8)
    layer.base_conv.weight.zero_()
    layer.basis_conv.weight.copy_(torch.from_numpy(coefficients).view(1, 8, *[1] * dims))
    x = 2 * torch.rand(2, 1, *(9,) * dims, dtype=torch.float64) - 1
    expected = interpolate.BSpline(layer.basis.knots(), coefficients, 3)(x.numpy())
    np.testing.assert_allclose(layer(x).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("basis", BASES)
@torch.no_grad()
def test_the_layer_is_its_sum(basis):
    """Entry by entry of the kernel; what lies outside of the image adds nothing."""
    layer = stirred(KANConv(2, 3, 3, dims=1, basis=basis, stride=2, **PLAIN))
    x = image(1, 2)
    expanded = layer.basis(x).unflatten(1, (2, -1))
    kernel = layer.basis_conv.weight.unflatten(1, (2, -1))
    expected = torch.zeros(2, 3, 4, dtype=torch.float64)
    for place in range(4):
        for tap in range(3):
            source = 2 * place + tap - 1
            if 0 <= source < 7:
                expected[..., place] += torch.einsum("oc,bc->bo", layer.base_conv.weight[..., tap], F.silu(x[..., source]))
                expected[..., place] += torch.einsum("ock,bck->bo", kernel[..., tap], expanded[..., source])
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("kind", [KANConv, BottleneckKANConv])
@torch.no_grad()
def test_without_functions_it_is_the_base_branch(kind, dims):
    layer = kind(4, 6, (3, 5, 1)[:dims], dims=dims, stride=2).double()
    layer.basis_conv.weight.zero_()
    x = image(dims)
    branch = CONV[dims](F.silu(x), layer.base_conv.weight, stride=2, padding=(1, 2, 0)[:dims])
    torch.testing.assert_close(layer(x), layer.act(layer.norm(branch)), rtol=1e-12, atol=1e-12)
    assert layer(x).shape == (2, 6, *[-(-side // 2) for side in x.shape[2:]])


@pytest.mark.parametrize("dims", DIMS)
@torch.no_grad()
def test_groups_do_not_mix(dims):
    layer = KANConv(4, 6, dims=dims, groups=2, **PLAIN).double()
    x = image(dims)
    parts = []
    for group, part in enumerate(x.chunk(2, 1)):
        single = KANConv(2, 3, dims=dims, **PLAIN).double()
        single.base_conv.weight.copy_(layer.base_conv.weight.chunk(2)[group])
        single.basis_conv.weight.copy_(layer.basis_conv.weight.chunk(2)[group])
        parts.append(single(part))
    torch.testing.assert_close(layer(x), torch.cat(parts, 1), rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_the_bottleneck_is_its_formula():
    layer = stirred(BottleneckKANConv(8, 12, dims=2, inner=3, **PLAIN))
    x = image(2, 8)
    narrow = F.conv2d(layer.basis(F.conv2d(x, layer.squeeze.weight)), layer.basis_conv.weight, padding=1)
    expected = F.conv2d(F.silu(x), layer.base_conv.weight, padding=1) + F.conv2d(narrow, layer.widen.weight)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)
    assert layer.basis_conv.weight.shape == (3, 3 * 4, 3, 3)
    inner = [BottleneckKANConv(a, b).squeeze.out_channels for a, b in ((8, 32), (32, 32), (128, 64))]
    assert inner == [8, 16, 32]


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("basis", BASES)
def test_gradients_are_those_of_finite_differences(basis, dims):
    """Of the input and of every parameter, recurrences, places and widths too."""
    layer = stirred(KANConv(1, 2, 2, dims=dims, basis=basis, padding=0, norm="none", act="tanh"))
    x = (0.9 * torch.rand(1, 1, *(3, 2, 2)[:dims], dtype=torch.float64, generator=torch.Generator().manual_seed(4))).requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def output(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(output, (x, *(parameter.detach().requires_grad_() for parameter in layer.parameters())))


@pytest.mark.parametrize("basis", ["spline", "gaussian", "gram", "meyer"])
def test_it_exports(basis):
    layer = KANConv(3, 4, basis=basis).eval()
    x = torch.randn(2, 3, 6, 6)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},))
    torch.testing.assert_close(program.module()(x[:1]), layer(x[:1]))


def test_eight_layers_learn_digits():
    """In place of plain convolutions, with batch normalisation: the mean over an image of what its own statistics normalise is constant."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    torch.manual_seed(0)
    images, labels = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1, torch.tensor(digits.target)
    order = torch.randperm(len(images))
    seen, unseen = order[:1300], order[1300:]
    layers: list[nn.Module] = []
    widths = (1, 8, 8, 12, 12, 16, 16, 24, 24)
    for index, (before, width) in enumerate(itertools.pairwise(widths)):
        layers.append(KANConv(before, width, basis="legendre", stride=2 if index in (1, 4) else 1, norm="batch"))
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))
    optimizer = torch.optim.AdamW(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=150)
    for _ in range(150):
        batch = seen[torch.randint(len(seen), (64,))]
        optimizer.zero_grad()
        F.cross_entropy(net(images[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        assert (net.eval()(images[unseen]).argmax(1) == labels[unseen]).float().mean() >= 0.97


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'spline'"):
        KANConv(3, 4, basis="splin")
    with pytest.raises(ConfigError, match="degree=0"):
        PolynomialBasis(0)
    with pytest.raises(ConfigError, match="wavelet"):
        WaveletBasis(3, kind="haar")
    with pytest.raises(ConfigError, match="polynomial"):
        PolynomialBasis(3, kind="hermite")
