"""Spherical CNN: linear layers commute with rotations exactly, the network as well as its grids allow; counts and invariance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from cnnkit.backbones import create_model
from cnnkit.config import from_dict
from cnnkit.errors import ConfigError, InputError
from cnnkit.plugin import get
from cnnkit.testing.compare import assert_figures
from scipy.spatial.transform import Rotation

pytest.importorskip("cnnkit_equivariant")

from cnnkit_equivariant.config import Config
from cnnkit_equivariant.models._spherical_layers import (
    Block,
    Magnitude,
    PhaseCollapse,
    SpectralBatchNorm,
    SphericalConv,
    invariants,
    resize_degrees,
)
from cnnkit_equivariant.models.spherical_cnn import SphericalCNN, SphericalUNet
from cnnkit_equivariant.sphere.transform import SphereTransform, harmonics, rotate
from cnnkit_equivariant.task import Equivariant
from torch import Tensor

pytestmark = pytest.mark.paper("scaling-spherical-cnn")

TURN = Rotation.random(random_state=5).as_matrix()
COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}
LINEAR = {torch.float32: 1e-3, torch.float64: 1e-8}


def coefficients(*, spins: tuple[int, ...] = (0, 1), bandwidth: int = 8, dtype: torch.dtype = torch.float64, decay: float = 0.0) -> Tensor:
    """Draw coefficients ``(S, M, L, 2, 3)``, smaller for high degrees if they decay."""
    drawn = torch.randn(len(spins), 2 * bandwidth - 1, bandwidth, 2, 3, dtype=COMPLEX[dtype], generator=torch.Generator().manual_seed(3))
    degree, order = torch.arange(bandwidth), torch.arange(1 - bandwidth, bandwidth).abs()[:, None]
    allowed = torch.stack([(order <= degree) & (degree >= spin) for spin in spins])
    return drawn * (allowed / (1.0 + degree) ** decay)[..., None, None]


def turned(x: Tensor) -> Tensor:
    """Rotate coefficients ``(S, M, L, B, C)``."""
    return rotate(x.permute(0, 3, 4, 2, 1), TURN).permute(0, 4, 3, 1, 2)


def apart(one: Tensor, other: Tensor) -> float:
    """Return the difference in units of the norm."""
    return float(((one - other).norm() / other.norm()).detach())


def stirred(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every parameter a value of its own, those that start at zero too."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model


def smooth_fields(size: int, dtype: torch.dtype = torch.float64, degrees: int = 6) -> tuple[Tensor, Tensor]:
    """Return real fields ``(2, 1, size, size)`` of few degrees, and the same rotated exactly."""
    transform = SphereTransform(degrees, rings=size, spins=(0,)).double()
    noise = torch.randn(2, 1, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = transform(noise) / (1 + torch.arange(degrees + 1.0)[:, None])
    return transform.inverse(found).real.to(dtype), transform.inverse(rotate(found, TURN)).real.to(dtype)


@pytest.mark.parametrize("dtype", LINEAR)
@pytest.mark.parametrize(("spins_in", "spins_out"), [((0,), (0, 1)), ((0, 1), (0, 1)), ((0, 1), (0,)), ((0, 1, 2), (0, -1))])
def test_convolution_commutes_with_rotations(spins_in, spins_out, dtype):
    conv = SphericalConv(3, 4, bandwidth=8, spins_in=spins_in, spins_out=spins_out, knots=5).to(dtype)
    x = coefficients(spins=spins_in, dtype=dtype)
    assert apart(conv(turned(x)), turned(conv(x))) < LINEAR[dtype]


@pytest.mark.parametrize("dtype", LINEAR)
def test_linear_layers_with_the_grid_between_commute_with_rotations(dtype):
    """Convolution, normalization, the way to a grid and back, pooling: no error but that of the arithmetic."""
    conv, norm = SphericalConv(3, 4, bandwidth=8, knots=5).to(dtype), stirred(SpectralBatchNorm(4)).to(dtype)
    grid, last = SphereTransform(7).to(dtype), SphericalConv(4, 2, bandwidth=4, knots=3).to(dtype)

    def network(x: Tensor) -> Tensor:
        return last(resize_degrees(grid.analyse(grid.synthesise(norm(conv(x)))), 4))

    x = coefficients(dtype=dtype)
    assert apart(network(turned(x)), turned(network(x))) < LINEAR[dtype]


def test_convolution_is_the_integral_against_the_rotated_filter():
    """For spin 0, ``(f * k)(x)`` is the integral of f over the sphere times a filter that is turned to x: by quadrature at a few points."""
    bandwidth = 6
    conv = SphericalConv(1, 1, bandwidth=bandwidth, spins_in=(0,), spins_out=(0,), knots=bandwidth).double()
    filters = torch.view_as_complex(conv.weight.detach())[:, 0, 0].numpy()
    x = coefficients(spins=(0,), bandwidth=bandwidth)[..., :1, :1]
    found = conv(x)[0, ..., 0, 0].detach().numpy()
    grid = SphereTransform(bandwidth - 1, rings=16, spins=(0,)).double()
    field = grid.synthesise(x)[0, ..., 0, 0].numpy()  # (W, H)
    from cnnkit_equivariant.sphere.projection import grid_directions
    from cnnkit_equivariant.sphere.transform import ring_weights

    points = grid_directions(16, 16)
    area = ring_weights(16)[:, None] * 2 * np.pi / 16
    centres = np.random.default_rng(0).normal(size=(5, 3))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    for centre in centres:
        legendre = np.stack([np.polynomial.legendre.Legendre.basis(degree)(points @ centre) for degree in range(bandwidth)], -1)
        kernel = legendre @ (filters * (2 * np.arange(bandwidth) + 1) / (4 * np.pi))
        expected = (field.T * kernel * area).sum()
        value = (harmonics(bandwidth - 1, centre[None])[0] * found.T).sum()
        assert value == pytest.approx(expected, abs=1e-12)


def test_filters_are_interpolated_between_their_knots():
    conv = SphericalConv(1, 1, bandwidth=9, spins_in=(0,), spins_out=(0,), knots=3)
    weight = conv.weight.detach()[:, 0, 0, 0].numpy()
    found = (conv.interpolation @ conv.weight.detach()[:, 0, 0, 0]).numpy()
    np.testing.assert_allclose(found, np.interp(np.linspace(0, 2, 9), np.arange(3), weight), atol=1e-6)


def test_the_norm_is_batch_norm_over_the_sphere():
    """Of fields, whose mean and variance over sphere and batch are integrals: scaled to one and the bias of the paper's code."""
    norm, x = SpectralBatchNorm(3).double().train(), coefficients()
    y, grid = norm(x), SphereTransform(7, rings=32).double()
    from cnnkit_equivariant.sphere.transform import ring_weights

    area = torch.from_numpy(ring_weights(32) / 64)[:, None, None]
    fields = grid.synthesise(y)
    mean = (fields[0] * area).sum((0, 1)).mean(0)
    power = (fields.abs().square() * area).sum((1, 2)).mean(1)
    # The mean goes over the batch, the variance over the sphere: what is left of the power of spin 0 is the spread of the means.
    spread = (y[0, 7, 0].abs().square() / (4 * np.pi)).mean(0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-12)
    torch.testing.assert_close(power[0] - spread, torch.ones(3, dtype=torch.float64), rtol=1e-3, atol=0)
    torch.testing.assert_close(power[1], torch.ones(3, dtype=torch.float64), rtol=1e-3, atol=0)
    for _ in range(100):
        norm(x)
    torch.testing.assert_close(norm.eval()(x), y, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layer", [PhaseCollapse(3), Magnitude(3), PhaseCollapse(3, power=2)], ids=["collapse", "threshold", "square"])
def test_nonlinearities_do_not_see_the_local_frame(layer):
    """Turning the frame at a point by an angle turns spin 1 there; spin 0 of the result stays, spin 1 turns."""
    layer, x = stirred(layer).double(), torch.randn(2, 5, 4, 2, 3, dtype=torch.complex128)
    phase = torch.polar(torch.ones(5, 4, 1, 1), 6 * torch.rand(5, 4, 1, 1)).to(x.dtype)
    frame = torch.stack([torch.ones_like(phase), phase])
    torch.testing.assert_close(layer(frame * x), frame * layer(x))


def test_the_collapse_is_a_mixture_of_moduli():
    layer, x = stirred(PhaseCollapse(3)).double(), torch.randn(2, 5, 4, 2, 3, dtype=torch.complex128)
    value, moduli, bias = (torch.view_as_complex(one.detach()) for one in (layer.value, layer.moduli, layer.bias))
    expected = 0.5 * (x[0] @ value + torch.einsum("swhbc,scd->whbd", x.abs().to(x.dtype), moduli)) + bias
    torch.testing.assert_close(layer(x)[0], expected)
    assert torch.equal(layer(x)[1], x[1])


def test_invariants_are_means():
    """Of a band-limited field, the mean of spin 0 is its first coefficient over the square root of 4 pi."""
    grid, x = SphereTransform(7).double(), coefficients()
    fields = grid.synthesise(x)
    found = invariants(fields, grid).view(2, 2, 3)
    torch.testing.assert_close(found[:, 0], x[0, 7, 0].real / np.sqrt(4 * np.pi))
    fine = SphereTransform(7, rings=200).double()
    torch.testing.assert_close(found[:, 1], invariants(fine.synthesise(x), fine).view(2, 2, 3)[:, 1], rtol=0.02, atol=0)


def test_features_turn_with_the_input_the_better_the_finer_the_grid():
    """The whole network with its nonlinearities: a few percent on the coarsest grids, and falling as the grids of moduli get finer."""
    x, y = smooth_fields(20)
    errors = []
    for oversampling in (1.0, 2.0, 4.0):
        torch.manual_seed(0)
        network = SphericalCNN(widths=(6, 6, 6), bandwidths=(10, 10, 5), knots=(4, 4, 3), oversampling=oversampling)
        model = stirred(network).double()
        model(x)  # Statistics of the norm.
        with torch.no_grad():
            (fields, grid), (moved, _) = model.eval().fields(x), model.fields(y)
        errors.append(apart(grid.analyse(moved), turned(grid.analyse(fields))))
    assert errors[0] < 0.1 and errors[1] < errors[0] / 2 and errors[2] < errors[1] / 2


def test_squares_of_moduli_turn_exactly():
    """The square of a field has twice its degrees, which grids of one and a half times the points still tell from what is kept."""
    x, y = smooth_fields(20)
    args = {"widths": (6, 6, 6), "bandwidths": (10, 10, 5), "knots": (4, 4, 3)}
    for oversampling, bounds in ((1.5, (0, 1e-10)), (1.0, (1e-4, 1))):
        torch.manual_seed(0)
        model = stirred(SphericalCNN(nonlinearity="square_collapse", oversampling=oversampling, **args)).double()
        model(x)
        with torch.no_grad():
            (fields, grid), (moved, _) = model.eval().fields(x), model.fields(y)
        assert bounds[0] <= apart(grid.analyse(moved, 4), turned(grid.analyse(fields, 4))) <= bounds[1]


def test_steady_norms_do_not_look_at_the_batch():
    norm, x = SpectralBatchNorm(3, steady=True).double(), coefficients()
    for _ in range(100):
        norm(x)
    both, alone = norm(x), norm(x[..., :1, :])
    torch.testing.assert_close(both[..., :1, :], alone, rtol=1e-2, atol=1e-2)
    plain = SpectralBatchNorm(3).double()
    torch.testing.assert_close(both, plain(x), rtol=1e-3, atol=1e-3)


def test_logits_do_not_change_under_rotations():
    x, y = smooth_fields(20)
    torch.manual_seed(0)
    model = stirred(SphericalCNN(widths=(6, 6), bandwidths=(10, 5), knots=(4, 3), oversampling=2.0)).double()
    model(x)
    with torch.no_grad():
        one, other = model.eval()(x), model(y)
    assert (one[0] - one[1]).abs().max() > 0.01  # They do tell fields apart.
    assert (one - other).abs().max() < 0.01 * (one[0] - one[1]).abs().max()


def test_a_turn_about_the_axis_by_a_whole_step_changes_nothing():
    """Shifting longitudes is exact for any network and any field, band-limited or not."""
    torch.manual_seed(0)
    model = stirred(SphericalCNN(widths=(6, 6), bandwidths=(8, 4), knots=(4, 3))).double().eval()
    x = torch.randn(2, 1, 16, 16, dtype=torch.float64)
    # The grid of the second block has half the points, so that steps of two are steps of it too.
    torch.testing.assert_close(model(x.roll(6, -1)), model(x), rtol=0, atol=1e-10)


def test_the_same_field_on_another_grid_gives_the_same_logits():
    coarse, fine = SphereTransform(6, rings=16, spins=(0,)).double(), SphereTransform(6, rings=33, longitudes=64, spins=(0,)).double()
    found = coarse(torch.randn(2, 1, 16, 16, dtype=torch.float64))
    torch.manual_seed(0)
    model = stirred(SphericalCNN(widths=(6, 6), bandwidths=(8, 4), knots=(4, 3))).double().eval()
    torch.testing.assert_close(model(fine.inverse(found).real), model(coarse.inverse(found).real), rtol=0, atol=1e-10)


def test_parameters_are_those_of_the_papers_code():
    """Its log prints param_count=39146, where a complex number counts once."""
    entry = get("equivariant").models["equivariant/spherical_cnn_spin"]
    model = create_model("equivariant/spherical_cnn_spin", num_classes=10, in_chans=1)
    assert_figures(entry.figures, model, dims=2, in_chans=1)
    real = {name: parameter.numel() for name, parameter in model.named_parameters()}
    complexes = sum(count // 2 for name, count in real.items() if name.startswith("blocks") and "threshold" not in name)
    assert complexes + sum(count for name, count in real.items() if "threshold" in name or "classifier" in name) == 39146


def test_a_new_residual_block_is_its_shortcut():
    """The scale of the last norm starts at zero."""
    torch.manual_seed(0)
    block, x = Block(3, 5, bandwidth=8, residual=True).double(), coefficients()
    assert block.residual and not block.norm2.scale.any()
    expected = block.act2(block.grid.synthesise(block.shortcut_norm(x @ block.shortcut.to(x.dtype))))
    torch.testing.assert_close(block(x), expected)


def test_the_network_learns():
    """Two kinds of fields that have the same power in every degree, in any orientation."""
    torch.manual_seed(0)
    model = SphericalCNN(num_classes=2, widths=(8, 8), bandwidths=(8, 4), knots=(4, 3))
    grid, degree = SphereTransform(4, rings=16, spins=(0,)), 4
    shapes = torch.zeros(2, 1, 5, 9, dtype=torch.complex64)
    shapes[0, 0, degree, 4] = 3
    shapes[1, 0, degree, [0, 8]] = 3 / 2**0.5
    turns = [Rotation.random(random_state=seed).as_matrix() for seed in range(48)]
    x = torch.stack([grid.inverse(rotate(shapes[seed % 2], matrix)).real for seed, matrix in enumerate(turns)])
    y = torch.arange(48) % 2
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(model(x[:32]), y[:32])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert (model.eval()(x[32:]).argmax(1) == y[32:]).all()


@pytest.mark.parametrize("shape", [(2, 2, 20, 20), (2, 2, 21, 40)])
def test_fields_to_fields_turn_with_the_input(shape):
    """A network from fields to fields: the rotated input gives the rotated output, on square and weather-like grids."""
    torch.manual_seed(0)
    model = stirred(SphericalUNet(in_chans=2, bandwidth=8, widths=(4, 6), knots=4, oversampling=2.0)).double()
    transform = SphereTransform(5, rings=shape[2], longitudes=shape[3], spins=(0,)).double()
    found = transform(torch.randn(2, 2, 1, *shape[2:], dtype=torch.float64))
    x, y = transform.inverse(found).real[:, :, 0], transform.inverse(rotate(found, TURN)).real[:, :, 0]
    model(x)
    with torch.no_grad():
        one, other = model.eval()(x), model(y)
    assert one.shape == (2, 1, *shape[2:])
    full = SphereTransform(7, rings=shape[2], longitudes=shape[3], spins=(0,)).double()
    change = full((one - x[:, :1])[:, :, None])
    assert apart(full((other - y[:, :1])[:, :, None]), rotate(change, TURN)) < 0.02
    assert (one - x[:, :1]).norm() > 0.1 * x[:, :1].norm()


def test_fields_to_fields_start_from_the_state_and_reach_every_parameter():
    model = stirred(SphericalUNet(in_chans=3, out_chans=2, bandwidth=8, widths=(4, 4, 4), knots=3))
    x = torch.randn(2, 3, 17, 32)
    model(x).square().mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    torch.nn.init.zeros_(model.head.weight)
    torch.testing.assert_close(model(x), x[:, :2])


def test_the_recipe_builds_its_network_and_presents_digits():
    recipe = yaml.safe_load((Path(__file__).parents[3] / "configs" / "equivariant" / "sphere.yaml").read_text(encoding="utf-8"))
    task = Equivariant(from_dict(Config, recipe))
    model, batch = task.model(), next(iter(task.loader("train")))
    assert isinstance(model, SphericalCNN)
    assert batch["x"].shape == (32, 1, 20, 20)
    assert all(torch.isfinite(loss) for loss in task.losses(model, batch).values())


def test_mixed_precision_leaves_complex_numbers_alone():
    """There are none of half precision; only the classifier is computed in it."""
    model, x = SphericalCNN(widths=(4, 4), bandwidths=(8, 4), knots=(3, 3)).eval(), torch.randn(2, 1, 16, 18)
    network = SphericalUNet(bandwidth=8, widths=(4, 4), knots=3).eval()
    with torch.autocast("cpu", torch.bfloat16):
        mixed, fields = model(x), network(x)
    torch.testing.assert_close(mixed.float(), model(x), rtol=0.02, atol=0.02)
    torch.testing.assert_close(fields, network(x))


def test_export():
    model, x = SphericalCNN(widths=(4, 4), bandwidths=(8, 4), knots=(3, 3)).eval(), torch.randn(2, 1, 16, 18)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))


@pytest.mark.parametrize("shape", [(2, 2, 16, 16), (1, 16, 16), (2, 1, 1, 16)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(InputError, match=r"accepted: \(batch, 1, rings, longitudes\)"):
        SphericalCNN()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": (4,)}, "widths=.*accepted"),
        ({"spins": (1, 0)}, "0 first"),
        ({"spins": (0, 1, 1)}, "different"),
        ({"nonlinearity": "relu"}, "phase_collapse, square_collapse, magnitude"),
        ({"knots": (6, 6, 4, 0)}, "one positive number"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        SphericalCNN(**arguments)


def test_wrong_arguments_of_fields_to_fields_are_refused():
    with pytest.raises(ConfigError, match="tendency=True adds 2 channels to 1"):
        SphericalUNet(out_chans=2)
    with pytest.raises(ConfigError, match="one positive number"):
        SphericalUNet(bandwidth=2, widths=(4, 4, 4))
    with pytest.raises(ConfigError, match="residual block"):
        Block(2, 2, bandwidth=4, spins_in=(0,), residual=True)
