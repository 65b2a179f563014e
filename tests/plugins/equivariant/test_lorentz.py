"""The Lorentz model: against geoopt, whose ``k`` is one over ours, and against what defines each map."""

from __future__ import annotations

import math

import pytest
import torch
from cnnkit.errors import ConfigError
from torch import Tensor

pytest.importorskip("cnnkit_equivariant")

from cnnkit_equivariant.lorentz import FAR, Lorentz, asinhc, inner, sinhc

pytestmark = pytest.mark.paper("hcnn")

CURVATURES = (0.25, 1.0, 3.0)
DTYPES = [(torch.float64, 1e-11), (torch.float32, 2e-5)]


def points(manifold: Lorentz, count: int = 20, dims: int = 5, *, spread: float = 1.0, seed: int = 0, dtype=torch.float64) -> Tensor:
    """Return points whose distance from the origin is of the order of ``spread``."""
    generator = torch.Generator().manual_seed(seed)
    return manifold.point(spread * torch.randn(count, dims, generator=generator, dtype=torch.float64).to(dtype))


def tangents(manifold: Lorentz, x: Tensor, seed: int = 9) -> Tensor:
    """Return tangent vectors at points."""
    generator = torch.Generator().manual_seed(seed)
    return manifold.project_tangent(x, torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x))


def off_manifold(manifold: Lorentz, x: Tensor) -> float:
    """Return the largest violation of ``<x, x> = -1/k``, in units of ``t**2``."""
    return float(((inner(x, x) + 1 / manifold.k) / x[..., :1].square()).abs().max())


@pytest.mark.parametrize("curvature", CURVATURES)
class TestGeoopt:
    """An independent library with the same maps."""

    @pytest.fixture
    def both(self, curvature: float):
        geoopt = pytest.importorskip("geoopt")
        ours = Lorentz(curvature).double()
        return ours, geoopt.Lorentz(k=1 / ours.k)

    def test_distance_and_maps(self, both) -> None:
        ours, theirs = both
        x, y = points(ours), points(ours, seed=1)
        v = tangents(ours, x)
        for mine, other in (
            (ours.distance(x, y), theirs.dist(x, y)),
            (ours.exp(x, v), theirs.expmap(x, v)),
            (ours.log(x, y), theirs.logmap(x, y)),
            (ours.transport(x, y, v), theirs.transp(x, y, v)),
            (ours.project(x + 0.1), theirs.projx(x + 0.1)),
            (ours.project_tangent(x, y), theirs.proju(x, y)),
        ):
            torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-8)

    def test_maps_at_the_origin(self, both) -> None:
        ours, theirs = both
        x = points(ours)
        v = torch.nn.functional.pad(x[:, 1:], (1, 0))
        torch.testing.assert_close(ours.point(ours.exp0(v[:, 1:])), theirs.expmap0(v), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours.log0(x[:, 1:]), theirs.logmap0(x)[:, 1:], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("curvature", CURVATURES)
class TestDefinitions:
    def test_everything_lies_on_the_manifold(self, curvature: float, dtype: torch.dtype, tolerance: float) -> None:
        manifold = Lorentz(curvature).to(dtype)
        x, y = (points(manifold, seed=seed, spread=3.0, dtype=dtype) for seed in (0, 1))
        v = tangents(manifold, x)
        bound = 1e-5 if dtype is torch.float32 else 1e-14
        boosted = manifold.point(manifold.boost(x[:, 1:], y[:, 1:]))
        centroid = manifold.point(manifold.centroid(x[:, 1:], (0,)))
        for found in (x, manifold.exp(x, v), manifold.exp(x, 20 * v), manifold.point(manifold.exp0(v[:, 1:])), boosted, centroid):
            assert off_manifold(manifold, found) < bound

    def test_log_undoes_exp(self, curvature: float, dtype: torch.dtype, tolerance: float) -> None:
        manifold = Lorentz(curvature).to(dtype)
        x = points(manifold, dtype=dtype, spread=0.5)
        v = 0.5 * tangents(manifold, x)
        y = manifold.exp(x, v)
        longest = float(v.abs().max()) if dtype is torch.float32 else 1.0  # Far out, cosh cancels to a few digits.
        torch.testing.assert_close(manifold.log(x, y), v, rtol=0, atol=50 * tolerance * longest)
        torch.testing.assert_close(manifold.distance(x, y), inner(v, v).squeeze(-1).sqrt(), rtol=50 * tolerance, atol=0)
        torch.testing.assert_close(manifold.log0(manifold.exp0(v)), v, rtol=tolerance, atol=tolerance)

    def test_transport_keeps_angles_and_comes_back(self, curvature: float, dtype: torch.dtype, tolerance: float) -> None:
        manifold = Lorentz(curvature).to(dtype)
        x, y = (points(manifold, seed=seed, dtype=dtype) for seed in (0, 1))
        v, w = tangents(manifold, x), tangents(manifold, x, seed=4)
        there, other = manifold.transport(x, y, v), manifold.transport(x, y, w)
        scale = float(there.abs().max() * y.abs().max())
        assert float(inner(y, there).abs().max()) < 10 * tolerance * scale
        torch.testing.assert_close(inner(there, other), inner(v, w), rtol=0, atol=20 * tolerance * float(inner(v, v).max()))
        torch.testing.assert_close(manifold.transport(y, x, there), v, rtol=0, atol=20 * tolerance * scale)

    def test_a_boost_is_transport_from_the_origin(self, curvature: float, dtype: torch.dtype, tolerance: float) -> None:
        """It keeps distances, and carries tangent vectors of the origin as parallel transport does."""
        manifold = Lorentz(curvature).to(dtype)
        x, y = (points(manifold, seed=seed, dtype=dtype) for seed in (0, 1))
        to = points(manifold, 1, seed=2, dtype=dtype)
        moved = [manifold.point(manifold.boost(p[:, 1:], to[:, 1:])) for p in (x, y)]
        torch.testing.assert_close(manifold.distance(*moved), manifold.distance(x, y), rtol=50 * tolerance, atol=0)
        torch.testing.assert_close(manifold.boost(moved[0][:, 1:], -to[:, 1:]), x[:, 1:], rtol=0, atol=50 * tolerance)
        origin = manifold.point(torch.zeros_like(to[:, 1:]))
        carried = manifold.transport(origin, to, torch.nn.functional.pad(manifold.log0(x[:, 1:]), (1, 0)))
        torch.testing.assert_close(manifold.exp(to, carried), moved[0], rtol=0, atol=100 * tolerance * float(moved[0].max()))


class TestClosedForms:
    def test_distance_on_a_line(self) -> None:
        """Points ``(cosh a, sinh a)`` are ``|a - b|`` apart, and in single precision this holds where they meet."""
        manifold = Lorentz()
        for dtype, bound in ((torch.float64, 1e-13), (torch.float32, 2e-5)):
            a = torch.tensor([0.0, 0.3, 2.0, -1.0, 3.0, 0.0], dtype=torch.float64)
            b = a + torch.tensor([1e-3, 1e-4, 1e-3, 2.0, 1e-2, 0.0], dtype=torch.float64)
            x, y = (manifold.to(dtype).point(v.sinh()[:, None].to(dtype)) for v in (a, b))
            exact = (y[:, 1].double().asinh() - x[:, 1].double().asinh()).abs()  # Of the rounded points.
            torch.testing.assert_close(manifold.distance(x, y).double(), exact, rtol=bound, atol=1e-14)

    def test_triangles_of_the_hyperbolic_plane(self) -> None:
        """The law of cosines: cosh c = cosh a cosh b - sinh a sinh b cos(angle), times sqrt(k)."""
        for curvature in CURVATURES:
            manifold = Lorentz(curvature).double()
            a, b, angle = 0.7, 1.9, 2.1
            tangent = torch.tensor([[a, 0.0], [b * math.cos(angle), b * math.sin(angle)]], dtype=torch.float64)
            x, y = manifold.point(manifold.exp0(tangent))
            root = math.sqrt(manifold.k)
            cosh = math.cosh(root * a) * math.cosh(root * b) - math.sinh(root * a) * math.sinh(root * b) * math.cos(angle)
            assert float(manifold.distance(x, y)) == pytest.approx(math.acosh(cosh) / root, rel=1e-12)

    def test_flat_space_is_the_limit(self) -> None:
        manifold = Lorentz(1e-8).double()
        s, r = (torch.randn(7, 3, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (0, 1))
        x, y = manifold.point(s), manifold.point(r)
        torch.testing.assert_close(manifold.distance(x, y), (s - r).norm(dim=-1), rtol=1e-6, atol=0)
        torch.testing.assert_close(manifold.log(x, y)[:, 1:], r - s, rtol=0, atol=1e-6)
        torch.testing.assert_close(manifold.boost(s, r), s + r, rtol=0, atol=1e-6)
        torch.testing.assert_close(manifold.centroid(s, (0,))[0], s.mean(0), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("curvature", CURVATURES)
    def test_the_centroid_has_the_least_squared_distance(self, curvature: float) -> None:
        """A numerical search over all points finds the same."""
        from scipy.optimize import minimize

        manifold = Lorentz(curvature).double()
        x = points(manifold, 12, 3, spread=2.0)

        def cost(space) -> tuple[float, object]:
            space = torch.tensor(space, dtype=torch.float64, requires_grad=True)
            total = manifold.squared_distance(manifold.point(space), x).sum()
            return total.item(), torch.autograd.grad(total, space)[0].numpy()

        found = minimize(cost, [0.3, -0.2, 0.5], jac=True, options={"gtol": 1e-10})
        torch.testing.assert_close(manifold.centroid(x[:, 1:], (0,))[0], torch.from_numpy(found.x), rtol=0, atol=1e-7)

    def test_the_centroid_does_not_depend_on_where_it_all_lies(self) -> None:
        """An isometry carries the centroid along."""
        manifold = Lorentz(0.7).double()
        x, to = points(manifold)[:, 1:], points(manifold, 1, seed=5, spread=3.0)[:, 1:]
        moved = manifold.centroid(manifold.boost(x, to), (0,))
        torch.testing.assert_close(moved, manifold.boost(manifold.centroid(x, (0,)), to), rtol=1e-10, atol=1e-10)


class TestNumerics:
    def test_functions_of_squares(self) -> None:
        x = torch.cat([torch.logspace(-8, 1, 300, dtype=torch.float64), torch.tensor([0.03162, 0.1732])])
        for function, exact in ((sinhc, x.sinh() / x), (asinhc, x.asinh() / x)):
            torch.testing.assert_close(function(x**2), exact, rtol=1e-13, atol=0)
            torch.testing.assert_close(function((x**2).float()).double(), exact, rtol=2e-6, atol=0)
            assert float(function(torch.zeros(1))) == 1.0

    @pytest.mark.parametrize("at", ["apart", "equal"])
    def test_gradients(self, at: str) -> None:
        """Against finite differences apart, and finite where two points meet."""
        manifold = Lorentz(0.6, learnable=True).double()
        s = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        r = (s.detach().clone() if at == "equal" else s.detach().flip(0) + 0.2).requires_grad_()

        def compute(s: Tensor, r: Tensor) -> Tensor:
            x, y = manifold.point(s), manifold.point(r)
            v = manifold.log(x, y)
            parts = [manifold.log0(s), manifold.exp0(r), v, manifold.exp(y, manifold.transport(x, y, v)), manifold.boost(s, r)]
            return torch.cat([*parts, manifold.squared_distance(x, y)[:, None]], -1)

        if at == "apart":
            assert torch.autograd.gradcheck(compute, (s, r))
        x, y = manifold.point(s), manifold.point(r)
        total = compute(s, r).square().sum() + manifold.distance(x, y).sum() + manifold.centroid(s, (0,)).sum()
        total.backward()
        for gradient in (s.grad, r.grad, manifold.log_curvature.grad):
            assert gradient is not None and bool(torch.isfinite(gradient).all()) and bool(gradient.any())

    def test_nothing_overflows_in_single_precision(self) -> None:
        manifold = Lorentz()
        v = torch.tensor([[1.0, 2.0], [50.0, 1.0], [1e4, -1e4], [0.0, 0.0]], requires_grad=True)
        x = manifold.point(manifold.exp0(v))
        assert bool(torch.isfinite(x).all()) and bool(torch.isfinite(manifold.log0(x[:, 1:])).all())
        (gradient,) = torch.autograd.grad(manifold.log0(x[:, 1:]).sum(), v)
        assert bool(torch.isfinite(gradient).all())
        near = manifold.exp0(torch.tensor([[0.9 * FAR, 0.0]]))
        assert float(manifold.log0(near)[0, 0]) == pytest.approx(0.9 * FAR, rel=1e-5)

    @pytest.mark.parametrize("curvature", [0.0, -1.0, math.nan, math.inf])
    def test_a_curvature_that_is_none(self, curvature: float) -> None:
        with pytest.raises(ConfigError, match="more than 0"):
            Lorentz(curvature)
