"""Grids on the sphere: values as e3nn has them, quadrature without an error, what a coarse grid loses."""

from __future__ import annotations

import math

import pytest
import torch
from cnnkit.errors import ConfigError
from cnnkit_equivariant.so3 import order
from cnnkit_equivariant.so3.grid import SphereGrid
from cnnkit_equivariant.so3.harmonics import spherical_harmonics
from cnnkit_equivariant.so3.wigner import block_diagonal, wigner

pytestmark = pytest.mark.paper("escn")
o3 = pytest.importorskip("e3nn.o3")


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("normalization", ["integral", "component", "norm"])
@pytest.mark.parametrize(
    ("lmax", "mmax", "resolution"), [(0, None, None), (4, None, None), (4, None, (5, 9)), (6, 2, (7, 5)), (10, 3, None)]
)
def test_back_and_forth_is_the_identity(lmax, mmax, resolution, normalization):
    grid = SphereGrid(lmax, mmax, resolution, normalization=normalization)
    x = random(2, 3, order.size(lmax, mmax), 4)
    torch.testing.assert_close(grid.from_grid(grid.to_grid(x)), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(grid.from_grid(grid.to_grid(x.float())), x.float(), rtol=0, atol=1e-5)


def test_values_are_those_of_e3nn():
    """At its own colatitudes: those of ours that are none of its are checked by the harmonics."""
    x = random(49, 1)
    theirs = o3.ToS2Grid(6, (16, 15), normalization="integral", dtype=torch.float64)
    expected = theirs(x[:, 0])
    values = (spherical_harmonics(6, theirs.grid.double(), normalization="integral") @ x)[..., 0]
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-6)
    grid = SphereGrid(6)
    torch.testing.assert_close(grid.to_grid(x)[:, 0], o3.spherical_harmonics(list(range(7)), grid.points, True, "integral") @ x[:, 0])
    torch.testing.assert_close(
        torch.atan2(grid.points[:25, 0], grid.points[:25, 2]) % (2 * math.pi), torch.arange(25) * 2 * math.pi / 25, check_dtype=False
    )


def test_weights_are_shares_of_the_area_and_integrals_exact():
    grid = SphereGrid(5)
    x, y, z = grid.points.T
    torch.testing.assert_close(grid.weights.sum(), torch.tensor(4 * math.pi, dtype=torch.float64))
    # The mean of x^2a y^2b z^2c over the sphere, of degree 20: within 4 lmax.
    for a, b, c in ((5, 0, 5), (2, 6, 2), (0, 10, 0)):
        mean = math.gamma(a + 0.5) * math.gamma(b + 0.5) * math.gamma(c + 0.5) / (2 * math.pi * math.gamma(a + b + c + 1.5))
        found = (grid.weights * x ** (2 * a) * y ** (2 * b) * z ** (2 * c)).sum() / (4 * math.pi)
        assert float(found) == pytest.approx(mean, rel=1e-12)


def test_a_third_power_is_equivariant_on_the_default_grid():
    """And no longer on the coarsest one: the error is the grid's."""
    turn = torch.linalg.qr(random(3, 3)).Q
    turn = turn * torch.linalg.det(turn)
    matrix = block_diagonal(wigner(3, turn))
    x = random(16, 5)

    def error(resolution: tuple[int, int] | None) -> float:
        grid = SphereGrid(3, None, resolution)
        return float((grid.from_grid(grid.to_grid(matrix @ x) ** 3) - matrix @ grid.from_grid(grid.to_grid(x) ** 3)).abs().max())

    assert error(None) < 1e-11
    assert error((4, 7)) > 1e-3


def test_coefficients_may_stand_by_order():
    x = random(3, 49, 2)
    by_degree, by_order = SphereGrid(6, 2), SphereGrid(6, 2, by_order=True)
    values = by_degree.to_grid(x[:, order.lm_index(6, 2)])
    torch.testing.assert_close(by_order.to_grid(x[:, order.to_m_order(6, 2)]), values)
    torch.testing.assert_close(by_order.from_grid(values)[:, order.from_m_order(6, 2)], by_degree.from_grid(values))


def test_a_network_turned_to_double_is_exact():
    grid = torch.nn.Sequential(SphereGrid(4)).to(torch.float64)[0]
    x = random(25, 1)
    torch.testing.assert_close(grid.from_grid(grid.to_grid(x)), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("resolution", [(4, 9), (5, 8)])
def test_a_grid_that_is_too_coarse_is_refused(resolution):
    with pytest.raises(ConfigError, match=r"accepted: from \(5, 9\)"):
        SphereGrid(4, None, resolution)
