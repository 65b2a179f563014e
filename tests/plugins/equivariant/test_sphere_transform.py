"""Transforms of the sphere: closed forms, other libraries, exact quadrature, rotations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cnnkit.errors import ConfigError, InputError
from scipy.spatial.transform import Rotation
from scipy.special import sph_harm_y

pytest.importorskip("cnnkit_equivariant")

from cnnkit_equivariant.sphere.projection import grid_directions
from cnnkit_equivariant.sphere.transform import (
    SphereTransform,
    harmonics,
    ring_angles,
    ring_weights,
    rotate,
    rotation_matrices,
    wigner_d,
)

pytestmark = pytest.mark.paper("scaling-spherical-cnn")

EXACT = {torch.float32: 1e-5, torch.float64: 1e-12}
COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}
TURNS = {
    "any": Rotation.random(random_state=1),
    "another": Rotation.random(random_state=2),
    "about the axis": Rotation.from_euler("z", 0.7),
    "quarter": Rotation.from_euler("x", 90, degrees=True),
    "half about x": Rotation.from_euler("x", 180, degrees=True),
    "half about y": Rotation.from_euler("y", 180, degrees=True),
    "poles swapped and turned": Rotation.from_euler("zx", [40, 180], degrees=True),
    "none": Rotation.identity(),
}


def random_coefficients(*shape: int, lmax: int, spins: tuple[int, ...], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Draw coefficients ``(*shape, S, L, M)`` that functions of the spins can have."""
    drawn = torch.randn(*shape, len(spins), lmax + 1, 2 * lmax + 1, dtype=COMPLEX[dtype], generator=torch.Generator().manual_seed(3))
    degree, order = torch.arange(lmax + 1)[:, None], torch.arange(-lmax, lmax + 1).abs()
    allowed = torch.stack([(order <= degree) & (degree >= abs(spin)) for spin in spins])
    return drawn * allowed


def angular_momentum(degree: int) -> np.ndarray:
    """Return the matrix of J_y on a degree."""
    m = np.arange(-degree, degree)
    raising = np.diag(np.sqrt(degree * (degree + 1) - m * (m + 1)), -1)
    return (raising - raising.T) / 2j


def test_wigner_d_is_the_exponential_of_angular_momentum():
    from scipy.linalg import expm

    lmax, angles = 8, np.array([0.0, 0.3, 1.1, 2.9, np.pi])
    orders = np.arange(-lmax, lmax + 1)
    first, second = (pair.ravel() for pair in np.meshgrid(orders, orders, indexing="ij"))
    found = wigner_d(lmax, angles, first, second).reshape(lmax + 1, len(orders), len(orders), len(angles))
    for degree in range(lmax + 1):
        inside = slice(lmax - degree, lmax + degree + 1)
        for place, angle in enumerate(angles):
            np.testing.assert_allclose(found[degree, inside, inside, place], expm(-1j * angle * angular_momentum(degree)), atol=1e-12)
        outside = found[degree].copy()
        outside[inside, inside] = 0
        assert not outside.any()


def test_high_degrees_stay_orthonormal():
    """At degree 255 the recurrence has not lost its precision: rows of the table are orthonormal under the quadrature."""
    lmax = 255
    weights = ring_weights(2 * lmax + 2)
    for order, spin in ((0, 0), (3, 1), (200, 0)):
        table = wigner_d(lmax, ring_angles(2 * lmax + 2), np.array([order]), np.array([-spin]))[:, 0]
        table *= np.sqrt(np.arange(lmax + 1) + 0.5)[:, None]
        products = (table * weights) @ table.T
        expected = np.diag((np.arange(lmax + 1) >= max(order, abs(spin))).astype(float))
        np.testing.assert_allclose(products, expected, atol=1e-11)


def test_spin_zero_are_scipys_harmonics():
    lmax, points = 12, np.random.default_rng(0).normal(size=(40, 3))
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    theta, phi = np.arccos(unit[:, 2]), np.arctan2(unit[:, 1], unit[:, 0])
    found = harmonics(lmax, points)
    for degree in range(lmax + 1):
        for order in range(-degree, degree + 1):
            np.testing.assert_allclose(found[:, degree, lmax + order], sph_harm_y(degree, order, theta, phi), atol=1e-12)


def test_spin_zero_are_e3nns_harmonics_with_the_axes_renamed():
    """Real from complex as usual; e3nn's (z, x, y) are our (x, y, z)."""
    o3 = pytest.importorskip("e3nn.o3")
    lmax, points = 5, torch.randn(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = harmonics(lmax, points[:, [2, 0, 1]].numpy())
    for degree in range(lmax + 1):
        theirs = o3.spherical_harmonics(degree, points, normalize=True, normalization="integral").numpy()
        for order in range(-degree, degree + 1):
            value = found[:, degree, lmax + abs(order)] * (-1) ** order
            ours = value.real if order == 0 else np.sqrt(2) * (value.real if order > 0 else value.imag)
            np.testing.assert_allclose(ours, theirs[:, degree + order], atol=1e-12)


def test_spin_one_has_its_closed_forms():
    points = np.random.default_rng(0).normal(size=(40, 3))
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    theta, phi = np.arccos(unit[:, 2]), np.arctan2(unit[:, 1], unit[:, 0])
    found = harmonics(1, points, spin=1)[:, 1]
    np.testing.assert_allclose(found[:, 1], np.sqrt(3 / (8 * np.pi)) * np.sin(theta), atol=1e-14)
    for order, sign in ((1, -1), (-1, 1)):
        form = -np.sqrt(3 / (16 * np.pi)) * (1 + sign * np.cos(theta)) * np.exp(1j * order * phi)
        np.testing.assert_allclose(found[:, 1 + order], form, atol=1e-14)


def test_spin_one_is_the_slope_of_spin_zero():
    """The spin-raising operator, ``-(d/dtheta + i/sin d/dphi)``, maps harmonics of spin 0 to ``sqrt(l (l + 1))`` times those of spin 1."""
    lmax, step = 6, 1e-5
    theta, phi = np.random.default_rng(0).uniform(0.3, 2.8, 20), np.random.default_rng(1).uniform(0, 6, 20)

    def at(theta, phi):
        return harmonics(lmax, np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], 1))

    south = (at(theta + step, phi) - at(theta - step, phi)) / (2 * step)
    east = (at(theta, phi + step) - at(theta, phi - step)) / (2 * step) / np.sin(theta)[:, None, None]
    degrees = np.arange(lmax + 1)[:, None]
    points = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], 1)
    np.testing.assert_allclose(-(south + 1j * east), np.sqrt(degrees * (degrees + 1)) * harmonics(lmax, points, spin=1), atol=1e-8)


@pytest.mark.parametrize("poles", [True, False])
@pytest.mark.parametrize("rings", [2, 7, 8, 33])
def test_weights_integrate_polynomials(rings, poles):
    nodes, weights = np.cos(ring_angles(rings, poles=poles)), ring_weights(rings, poles=poles)
    for power in range(rings):
        assert weights @ nodes**power == pytest.approx((1 + (-1) ** power) / (power + 1), abs=1e-13)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize(
    ("rings", "longitudes", "poles"), [(24, 24, True), (23, 23, True), (23, 40, False), (24, 48, False), (31, 25, True)]
)
def test_round_trip(rings, longitudes, poles, dtype):
    """Coefficients come back from the coarsest grids that hold them, and finer ones."""
    lmax, spins = 11, (0, 1, -1, 2)
    transform = SphereTransform(lmax, rings=rings, longitudes=longitudes, spins=spins, poles=poles).to(dtype)
    coefficients = random_coefficients(3, 2, lmax=lmax, spins=spins, dtype=dtype)
    fields = transform.inverse(coefficients)
    assert fields.shape == (3, 2, 4, rings, longitudes)
    torch.testing.assert_close(transform(fields), coefficients, rtol=0, atol=EXACT[dtype])
    torch.testing.assert_close(transform.inverse(transform(fields)), fields, rtol=0, atol=10 * EXACT[dtype])


def test_fields_are_sums_of_harmonics():
    lmax, spins = 6, (0, 1)
    transform = SphereTransform(lmax, rings=15, longitudes=18, spins=spins, poles=False).double()
    coefficients = random_coefficients(lmax=lmax, spins=spins)
    fields = transform.inverse(coefficients).numpy()
    directions = grid_directions(15, 18, poles=False).reshape(-1, 3)
    for place, spin in enumerate(spins):
        expected = np.einsum("plm,lm->p", harmonics(lmax, directions, spin=spin), coefficients[place].numpy())
        np.testing.assert_allclose(fields[place].ravel(), expected, atol=1e-12)


@pytest.mark.parametrize("lmax", [None, 4])
def test_real_fields_take_half_the_work_and_agree(lmax):
    transform = SphereTransform(9, spins=(0,)).double()
    x = torch.randn(1, 20, 20, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(transform.analyse(x, lmax), transform.analyse(x.to(torch.complex128), lmax), rtol=0, atol=1e-13)


def test_leaving_out_degrees_is_truncation():
    transform = SphereTransform(9, spins=(0, 1)).double()
    x = torch.randn(2, 20, 20, 3, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(transform.analyse(x, 4), transform.analyse(x)[:, 5:14, :5])


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
def test_rotated_coefficients_are_the_rotated_function(turn):
    lmax, matrix = 7, turn.as_matrix()
    coefficients = random_coefficients(lmax=lmax, spins=(0,))[0]
    points = np.random.default_rng(0).normal(size=(30, 3))
    turned = np.einsum("plm,lm->p", harmonics(lmax, points), rotate(coefficients, matrix).numpy())
    np.testing.assert_allclose(turned, np.einsum("plm,lm->p", harmonics(lmax, points @ matrix), coefficients.numpy()), atol=1e-12)


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
def test_a_rotated_slope_is_the_slope_of_the_rotated(turn):
    """Coefficients of spin 1 turn as those of spin 0: their moduli, lengths of tangent vectors, move with the points."""
    lmax, matrix = 5, turn.as_matrix()
    coefficients = random_coefficients(lmax=lmax, spins=(1,))[0]
    points = np.random.default_rng(0).normal(size=(30, 3))
    turned = np.einsum("plm,lm->p", harmonics(lmax, points, spin=1), rotate(coefficients, matrix).numpy())
    before = np.einsum("plm,lm->p", harmonics(lmax, points @ matrix, spin=1), coefficients.numpy())
    np.testing.assert_allclose(abs(turned), abs(before), atol=1e-12)


def test_rotations_are_a_group():
    one, other = TURNS["any"], TURNS["another"]
    product = rotation_matrices(6, one.as_matrix()) @ rotation_matrices(6, other.as_matrix())
    np.testing.assert_allclose(product, rotation_matrices(6, (one * other).as_matrix()), atol=1e-12)


def test_float64_tables_are_not_rounded_float32_ones():
    """A module that has been float32 is as good in float64 as one that has not."""
    there = SphereTransform(6).float().double()
    torch.testing.assert_close(there.analysis, SphereTransform(6).double().analysis, rtol=0, atol=0)


def test_gradients():
    transform = SphereTransform(1, rings=4, longitudes=3, spins=(0, 1)).double()
    x = torch.randn(2, 3, 4, 1, dtype=torch.complex128, generator=torch.Generator().manual_seed(0), requires_grad=True)
    torch.autograd.gradcheck(transform.analyse, x)
    torch.autograd.gradcheck(lambda x: transform.synthesise(transform.analyse(x)), x)


@pytest.mark.parametrize("arguments", [{"rings": 22}, {"longitudes": 22}, {"rings": 1}])
def test_coarse_grids_are_refused(arguments):
    with pytest.raises(ConfigError, match="accepted: 23 rings"):
        SphereTransform(11, **arguments)


def test_wrong_inputs_are_refused():
    transform = SphereTransform(3, spins=(0, 1))
    with pytest.raises(InputError, match=r"accepted: \(\.\.\., 2, 8, 8\)"):
        transform(torch.zeros(1, 8, 8))
    with pytest.raises(ConfigError, match="spin 0"):
        transform.analyse(torch.zeros(2, 8, 8, 1))
