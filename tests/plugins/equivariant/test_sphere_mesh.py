"""Fields on meshes: areas, coefficients and back, and a real cortex."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from cnnkit.errors import ConfigError, InputError
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation

pytest.importorskip("cnnkit_equivariant")

from cnnkit_equivariant.models.spherical_cnn import SphericalCNN
from cnnkit_equivariant.sphere.mesh import SphereMesh
from cnnkit_equivariant.sphere.transform import SphereTransform, harmonics, rotate

pytestmark = pytest.mark.paper("scaling-spherical-cnn")

METHODS = {"least_squares": 1e-10, "quadrature": 0.05}


@pytest.fixture(scope="module")
def mesh() -> SphereMesh:
    """An even mesh of 1500 points on a spiral, radius 100."""
    count = 1500
    height = 1 - (2 * np.arange(count) + 1) / count
    angle = np.arange(count) * np.pi * (3 - np.sqrt(5))
    points = np.stack([np.sqrt(1 - height**2) * np.cos(angle), np.sqrt(1 - height**2) * np.sin(angle), height], 1)
    return SphereMesh(100 * points, ConvexHull(points).simplices)


def drawn(lmax: int, channels: int = 2) -> torch.Tensor:
    """Coefficients of real functions."""
    grid = SphereTransform(lmax, spins=(0,)).double()
    noise = torch.randn(channels, 1, grid.rings, grid.longitudes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return grid(noise)[:, 0]


def test_areas_cover_the_sphere(mesh):
    assert mesh.areas.sum() == pytest.approx(4 * np.pi)
    assert mesh.areas.min() > 0.5 * 4 * np.pi / 1500


def test_areas_of_an_octahedron_are_equal():
    vertices = np.concatenate([np.eye(3), -np.eye(3)])
    octahedron = SphereMesh(vertices, ConvexHull(vertices).simplices)
    np.testing.assert_allclose(octahedron.areas, 4 * np.pi / 6)


def test_values_are_sums_of_harmonics(mesh):
    coefficients = drawn(6)
    expected = np.einsum("plm,clm->pc", harmonics(6, mesh.directions), coefficients.numpy())
    assert abs(expected.imag).max() < 1e-12
    np.testing.assert_allclose(mesh.values(coefficients), expected.real, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_functions_of_few_degrees_come_back(mesh, method):
    coefficients = drawn(8)
    found = mesh.coefficients(mesh.values(coefficients), 8, method=method)
    assert (found - coefficients).norm() < METHODS[method] * coefficients.norm()
    assert found.shape == (2, 9, 17)


def test_gaps_are_left_out(mesh):
    coefficients = drawn(8)
    values = mesh.values(coefficients)
    values[mesh.directions[:, 2] > 0.95] = np.nan
    found = mesh.coefficients(values, 8)
    assert (found - coefficients).norm() < 1e-6 * coefficients.norm()
    with pytest.raises(InputError, match="least_squares"):
        mesh.coefficients(values, 8, method="quadrature")


def test_a_turned_mesh_gives_turned_coefficients(mesh):
    turn, values = Rotation.random(random_state=3).as_matrix(), np.random.default_rng(0).normal(size=1500)
    moved = SphereMesh(mesh.directions @ turn.T, ConvexHull(mesh.directions).simplices)
    torch.testing.assert_close(moved.coefficients(values, 7), rotate(mesh.coefficients(values, 7), turn), rtol=0, atol=1e-10)


def test_a_field_on_the_grid_is_the_function(mesh):
    coefficients = drawn(6, channels=1)
    field = mesh.field(mesh.values(coefficients)[:, 0], rings=16)
    expected = SphereTransform(6, rings=16, spins=(0,)).double().inverse(coefficients[:, None]).real[:, 0]
    torch.testing.assert_close(field, expected.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, f: (v * [1, 1, 2], f), "no sphere"),
        (lambda v, f: (v, f[:1000]), "of the sphere; accepted"),
        (lambda v, f: (v, f + 1), "beyond its 1500 vertices"),
        (lambda v, f: (np.where(v > 0.99, np.nan, v), f), "not finite"),
        (lambda v, f: (v[:, :2], f), "no mesh"),
        (lambda v, f: (v + np.array([0.5, 0, 0]), f), "no sphere"),
    ],
)
def test_what_is_no_sphere_is_refused(mesh, change, message):
    with pytest.raises(InputError, match=message):
        SphereMesh(*change(mesh.directions, ConvexHull(mesh.directions).simplices))


def test_wrong_values_are_refused(mesh):
    with pytest.raises(InputError, match="4 values do not belong to a mesh of 1500"):
        mesh.coefficients(np.zeros(4), 3)
    with pytest.raises(InputError, match="lmax=37 or less"):
        mesh.coefficients(np.zeros(1500), 40)
    with pytest.raises(ConfigError, match="least_squares, quadrature"):
        mesh.coefficients(np.zeros(1500), 4, method="mean")
    half = np.where(mesh.directions[:, 2] > 0, np.nan, 1.0)
    with pytest.raises(InputError, match="lower lmax"):
        mesh.coefficients(half, 20)


def test_a_real_cortex():
    """The folds of fsaverage5, as nilearn ships them: the more degrees, the less is left, and a network takes the field."""
    nibabel, nilearn = pytest.importorskip("nibabel"), importlib.util.find_spec("nilearn")
    if nilearn is None or nilearn.origin is None:
        pytest.skip("nilearn is not installed")
    folder = Path(nilearn.origin).parent / "datasets" / "data" / "fsaverage5"  # To import nilearn takes many times the test.
    points, triangles = (one.data for one in nibabel.load(folder / "sphere_left.gii.gz").darrays)
    cortex, depth = SphereMesh(points, triangles), nibabel.load(folder / "sulc_left.gii.gz").darrays[0].data.astype(float)
    assert len(cortex.directions) == 10242
    left = []
    for lmax in (5, 10, 20):
        found = cortex.values(cortex.coefficients(depth, lmax))[:, 0]
        residual = depth - found
        left.append(np.sqrt((cortex.areas * residual**2).sum() / (cortex.areas * (depth - depth.mean()) ** 2).sum()))
    assert left[0] > left[1] > left[2]
    assert left[2] < 0.4
    # A smooth part of it comes back exactly.
    smooth = cortex.coefficients(depth, 20)
    assert (cortex.coefficients(cortex.values(smooth), 20) - smooth).norm() < 1e-10 * smooth.norm()
    field = cortex.field(depth, rings=32, lmax=13)
    model = SphericalCNN(widths=(4, 4), bandwidths=(14, 7), knots=(4, 4), num_classes=2).eval()
    assert torch.isfinite(model(field[None] / field.std())).all()
