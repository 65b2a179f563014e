"""Spectra of simplices: closed forms of box and disc, quadrature of the tetrahedron, symmetries, derivatives, and what coincides."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from cnnkit.errors import ConfigError, InputError
from cnnkit_equivariant.mean_exponential import mean_exponential
from cnnkit_equivariant.simplex import SimplexRaster, cone, content, corners_of, signed_content, spectrum, wave_vectors
from torch import Tensor

pytestmark = pytest.mark.paper("nuft-cnn")

F64 = torch.float64
CORNERS = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=F64)
# The faces of a tetrahedron with positive volume, counter-clockwise from outside.
FACES = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def waves(size: tuple[int, ...], period: float = 1.0) -> Tensor:
    return wave_vectors(size, (period,) * len(size), dtype=F64)


def box(low: Tensor, high: Tensor, k: Tensor) -> Tensor:
    """The transform of a box: a product of sines over the axes."""
    half = 0.5 * (high - low)
    return (2 * half * torch.sinc(k * half / torch.pi)).prod(-1) * torch.polar(
        torch.ones_like(k[..., 0]), -(k * 0.5 * (low + high)).sum(-1)
    )


def rectangle(low: Tensor, high: Tensor) -> Tensor:
    """The four corners, counter-clockwise."""
    return torch.stack([low, torch.stack([high[0], low[1]]), high, torch.stack([low[0], high[1]])])


def polygon(points: Tensor) -> Tensor:
    """The sides of a polygon, ``(V, 2, 2)``."""
    return torch.stack([points, points.roll(-1, 0)], 1)


def circle(sides: int, radius: float) -> Tensor:
    angle = 2 * torch.pi * torch.arange(sides, dtype=F64) / sides
    return 0.5 + radius * torch.stack([angle.cos(), angle.sin()], 1)


def subdivided(corners: Tensor) -> Tensor:
    """Cut each triangle ``(E, 3, n)`` into four."""
    a, b, c = corners.unbind(1)
    ab, bc, ca = (a + b) / 2, (b + c) / 2, (c + a) / 2
    return torch.cat([torch.stack(part, 1) for part in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    assert float((ours - theirs).abs().max()) <= tolerance * max(1.0, float(theirs.abs().max()))


class TestMeanExponential:
    def exact(self, nodes: list[float]) -> complex:
        """The divided difference by sixty digits: a corner of the exponential of a matrix with the nodes on its diagonal."""
        mpmath = pytest.importorskip("mpmath")
        with mpmath.workdps(60):
            matrix = mpmath.matrix(len(nodes), len(nodes))
            for at, node in enumerate(nodes):
                matrix[at, at] = -1j * mpmath.mpf(node)
                if at:
                    matrix[at - 1, at] = 1
            return complex(mpmath.expm(matrix)[0, len(nodes) - 1])

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 2e-14), (torch.float32, 1e-5)])
    @pytest.mark.parametrize("order", [1, 2, 3, 4])
    def test_it_is_exact_wherever_nodes_fall(self, order: int, dtype: torch.dtype, tolerance: float) -> None:
        """Spread apart, close, equal in part or all, closer than rounding: beside sixty digits."""
        for number, scale in enumerate((0.0, 1e-12, 1e-6, 1e-3, 0.5, 0.99, 1.01, 3.0, 30.0)):
            nodes = random(3, order + 1, seed=number) * scale + torch.tensor([[0.0], [3.0], [-20.0]], dtype=F64)
            nodes[1, 0] = nodes[1, -1]
            nodes[2] = torch.nextafter(nodes[2], nodes[2, 0])
            nodes = nodes.to(dtype)
            exact = torch.tensor([self.exact(row) for row in nodes.tolist()], dtype=torch.complex128)
            assert float((mean_exponential(nodes) - exact).abs().max()) * math.factorial(order) < tolerance, scale

    @pytest.mark.parametrize("order", [0, 1, 2, 3])
    def test_derivatives_where_nodes_coincide(self, order: int) -> None:
        """First and second derivatives, at equal nodes too."""
        nodes = torch.tensor([[0.3, 2.4, -1.7, 5.0], [0.7, 0.7, 0.7, 0.7], [1.2, 1.2, 3.0, 3.0], [0.1, 0.1001, 0.3, 0.2]], dtype=F64)
        nodes = nodes[:, : order + 1].clone().requires_grad_()
        assert torch.autograd.gradcheck(mean_exponential, (nodes,), atol=1e-7, fast_mode=order > 2)
        assert torch.autograd.gradgradcheck(mean_exponential, (nodes,), atol=1e-6, fast_mode=True)


class TestContent:
    @pytest.mark.parametrize(("order", "dims"), [(0, 2), (1, 2), (2, 2), (0, 3), (1, 3), (2, 3), (3, 3)])
    def test_it_is_cayley_and_mengers(self, plain: Callable[[str], ModuleType], order: int, dims: int) -> None:
        corners = random(5, order + 1, dims)
        expected = [plain("simplex").content(corner.numpy()) for corner in corners]
        assert content(corners).tolist() == pytest.approx(expected, rel=1e-9)

    def test_degenerate_simplices_have_none_and_no_gradient(self) -> None:
        for order, dims in ((1, 2), (2, 2), (1, 3), (2, 3), (3, 3)):
            corners = torch.ones(1, order + 1, dims, dtype=F64, requires_grad=True)
            measure = content(corners)
            measure.sum().backward()
            assert measure.tolist() == [0.0] and corners.grad is not None and not corners.grad.any()


class TestClosedForms:
    @pytest.mark.parametrize("solid", [False, True])
    def test_box_in_the_plane(self, solid: bool) -> None:
        low, high, size = torch.tensor([0.2, 0.3], dtype=F64), torch.tensor([0.7, 0.45], dtype=F64), (12, 15)
        points = rectangle(low, high)
        corners = polygon(points) if solid else points[torch.tensor([[0, 1, 2], [0, 2, 3]])]
        close(spectrum(corners, size=size, solid=solid)[0], box(low, high, waves(size)), 1e-13)

    def test_box_in_space_by_tetrahedra_and_by_its_surface(self) -> None:
        """Each permutation of the axes is a path from one corner of a cube to the opposite, and the paths' tetrahedra fill the cube."""
        low, high, size = torch.tensor([0.2, 0.3, 0.1], dtype=F64), torch.tensor([0.7, 0.45, 0.9], dtype=F64), (6, 7, 8)
        paths = [[0, 0, 0]], [[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 1, 0], [0, 1, 1], [1, 0, 1]], [[1, 1, 1]]
        tetrahedra = torch.tensor(
            [[a, b, c, d] for a in paths[0] for b in paths[1] for c in paths[2] for d in paths[3] if min(np.subtract(c, b)) >= 0]
        )
        corners = low + tetrahedra.to(F64) * (high - low)
        expected = box(low, high, waves(size))
        close(spectrum(corners, size=size)[0], expected, 1e-13)
        turned = torch.where((signed_content(corners) < 0)[:, None, None], corners[:, [1, 0, 2, 3]], corners)
        close(spectrum(turned[:, FACES].flatten(0, 1), size=size, solid=True)[0], expected, 1e-13)

    def test_disc(self) -> None:
        """A polygon of many sides has the disc's Bessel function; the error falls with the square of the sides."""
        from scipy.special import j1

        radius, size = 0.3, (16, 16)
        k = waves(size).square().sum(-1).sqrt().numpy()
        bessel = np.where(k > 0, 2 * np.pi * radius * j1(k * radius) / np.where(k > 0, k, 1), np.pi * radius**2)
        shift = torch.polar(torch.ones(16, 9, dtype=F64), -0.5 * waves(size).sum(-1))
        errors = []
        for sides in (100, 200, 4000):
            found = spectrum(polygon(circle(sides, radius)), size=size, solid=True)[0]
            errors.append(float((found - shift * torch.from_numpy(bessel)).abs().max()))
        assert errors[2] < 1e-6 and errors[0] / errors[1] == pytest.approx(4.0, rel=0.02)

    @pytest.mark.parametrize("solid", [False, True])
    def test_tetrahedron_by_quadrature(self, solid: bool) -> None:
        """Gauss's points of a cube, mapped to the simplex, integrate the exponential."""
        corners, size = random(4, 3), (5, 6, 7)
        corners = corners if signed_content(corners) > 0 else corners[[1, 0, 2, 3]]
        x, w = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(24))
        u, v, t = torch.meshgrid(*[0.5 * (x + 1)] * 3, indexing="ij")
        weights = torch.einsum("i,j,k->ijk", w, w, w) / 8 * (1 - u) ** 2 * (1 - v)
        edges = corners[1:] - corners[0]
        places = corners[0] + torch.stack([u, (1 - u) * v, (1 - u) * (1 - v) * t], -1) @ edges
        k = waves(size)
        phase = torch.einsum("ijkd,abcd->abcijk", places, k)
        expected = torch.linalg.det(edges) * (weights * torch.polar(torch.ones_like(phase), -phase)).sum((-3, -2, -1))
        found = spectrum(corners[FACES] if solid else corners[None], size=size, solid=solid)[0]
        close(found, expected, 1e-12)

    @pytest.mark.parametrize(
        ("order", "size"), [(0, (6, 7)), (1, (6, 7)), (2, (6, 7)), (0, (4, 5, 4)), (1, (4, 5, 4)), (2, (4, 5, 4)), (3, (4, 5, 4))]
    )
    def test_the_formula_as_printed(self, plain: Callable[[str], ModuleType], order: int, size: tuple[int, ...]) -> None:
        """In general position, where no two ``s`` coincide, the plain sum says the same."""
        corners, values = random(4, order + 1, len(size), seed=order), random(4, seed=9) - 0.5
        expected = plain("simplex").spectrum(corners.numpy(), values.tolist(), size)
        close(spectrum(corners, values, size=size)[0], torch.from_numpy(expected), 1e-9)

    def test_single_precision(self) -> None:
        """Float32 on a grid of side 32: within 1e-5 of float64, of the largest value."""
        for order, dims in ((0, 2), (1, 2), (2, 2), (2, 3), (3, 3)):
            corners = random(6, order + 1, dims)
            exact = spectrum(corners, size=(32,) * dims)
            error = float((spectrum(corners.float(), size=(32,) * dims) - exact).abs().max() / exact.abs().max())
            assert error < 1e-5, (order, dims, error)
        sides = polygon(circle(50, 0.3))
        exact = spectrum(sides, size=(32, 32), solid=True)
        assert float((spectrum(sides.float(), size=(32, 32), solid=True) - exact).abs().max() / exact.abs().max()) < 1e-5


class TestSymmetries:
    @pytest.mark.parametrize(("order", "dims"), [(1, 2), (2, 2), (2, 3), (3, 3)])
    def test_order_of_simplices_and_vertices(self, order: int, dims: int) -> None:
        corners, values, size = random(6, order + 1, dims), random(6, 2), (7, 6, 5)[:dims]
        rows, columns = torch.randperm(6), torch.randperm(order + 1)
        close(spectrum(corners[rows][:, columns], values[rows], size=size), spectrum(corners, values, size=size), 1e-13)

    def test_subdivision(self) -> None:
        """Triangles cut into four, sides cut in two, a closed surface cut into four: the signal is the same, and so is its spectrum."""
        flat, surface = random(3, 3, 2), random(4, 3)[FACES]
        close(spectrum(subdivided(flat), size=(8, 9)), spectrum(flat, size=(8, 9)), 1e-13)
        close(spectrum(subdivided(surface), size=(6, 5, 4), solid=True), spectrum(surface, size=(6, 5, 4), solid=True), 1e-13)
        sides = polygon(random(7, 2))
        halves = torch.cat([torch.stack([sides[:, 0], sides.mean(1)], 1), torch.stack([sides.mean(1), sides[:, 1]], 1)])
        for solid in (False, True):
            close(spectrum(halves, size=(8, 9), solid=solid), spectrum(sides, size=(8, 9), solid=solid), 1e-13)

    @pytest.mark.parametrize(("order", "dims", "solid"), [(0, 2, False), (1, 2, True), (2, 2, False), (3, 3, False), (2, 3, True)])
    def test_translation_is_a_phase(self, order: int, dims: int, solid: bool) -> None:
        corners, shift, size = random(5, order + 1, dims), torch.tensor([0.11, -0.3, 0.27], dtype=F64)[:dims], (6, 7, 8)[:dims]
        if solid:
            corners = polygon(corners[:, 0]) if dims == 2 else corners[0].new_tensor(CORNERS.tolist())[FACES]
        phase = torch.polar(torch.ones((), dtype=F64), -(waves(size) * shift).sum(-1))
        close(spectrum(corners + shift, size=size, solid=solid), phase * spectrum(corners, size=size, solid=solid), 1e-13)

    def test_a_quarter_turn_turns_the_picture(self) -> None:
        raster = SimplexRaster(size=(12, 12)).double()
        corners = random(3, 3, 2)
        turned = torch.stack([1 - corners[..., 1], corners[..., 0]], -1)
        close(raster.draw(turned)[0], raster.draw(corners)[0].rot90(), 1e-12)

    @pytest.mark.parametrize("dims", [2, 3])
    def test_a_solid_is_the_sum_of_its_cones(self, dims: int) -> None:
        """Faces joined to an auxiliary vertex, with the sign of the orientation, wherever the origin lies."""
        faces = polygon(random(7, 2)) if dims == 2 else random(4, 3)[FACES]
        size = (6, 7, 8)[:dims]
        for shift in (0.0, 2.0):
            joined, signs = cone(faces + shift)
            close(spectrum(joined, signs, size=size), spectrum(faces + shift, size=size, solid=True), 1e-11)

    def test_a_hole_is_a_contour_the_other_way(self) -> None:
        outer, inner = polygon(circle(20, 0.4)), polygon(circle(12, 0.2))
        both = spectrum(torch.cat([outer, inner.flip(1)]), size=(9, 9), solid=True)
        close(both, spectrum(outer, size=(9, 9), solid=True) - spectrum(inner, size=(9, 9), solid=True), 1e-13)


class TestDerivatives:
    @pytest.mark.parametrize(
        ("order", "dims", "solid"), [(0, 2, False), (1, 2, False), (2, 2, False), (1, 2, True), (2, 3, True), (3, 3, False), (1, 3, False)]
    )
    def test_by_vertices_and_values(self, order: int, dims: int, solid: bool) -> None:
        """Through spectrum and grid, in chunks that are computed again."""
        raster = SimplexRaster(size=(3, 4, 3)[:dims], solid=solid, chunk=40).double()
        corners, values = random(3, order + 1, dims).requires_grad_(), random(3, 2, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(raster.draw, (corners, values), atol=1e-6, fast_mode=True)

    def test_second_derivatives(self) -> None:
        raster = SimplexRaster(size=(3, 4), chunk=5).double()
        assert torch.autograd.gradgradcheck(raster.draw, (random(2, 3, 2).requires_grad_(),), atol=1e-5, fast_mode=True)

    def test_degenerate_simplices_have_finite_gradients(self) -> None:
        corners = random(4, 3, 2)
        corners[0, 1], corners[1] = corners[0, 0], corners[1, 0].clone()
        corners[2, 2] = corners[2, :2].mean(0)
        corners.requires_grad_()
        spectrum(corners, size=(8, 8)).abs().square().sum().backward()
        assert corners.grad is not None and bool(torch.isfinite(corners.grad).all())

    def test_a_shape_follows_a_picture(self) -> None:
        """Gradients move a square onto a disc: what differentiable drawing is for."""
        raster = SimplexRaster(size=(16, 16), solid=True).double()
        goal = raster.draw(polygon(circle(40, 0.3)))
        points = circle(40, 0.15).requires_grad_()
        optimizer = torch.optim.Adam([points], 0.01)
        losses = []
        for _ in range(60):
            loss = (raster.draw(polygon(points)) - goal).square().mean()
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert losses[-1] < 0.01 * losses[0]
        assert signed_content(cone(polygon(points))[0]).sum().item() == pytest.approx(torch.pi * 0.09, rel=0.03)


class TestRaster:
    @pytest.mark.parametrize("size", [(8, 9), (7, 6), (4, 5, 6), (5, 4, 7)])
    def test_it_is_the_fast_inverse_transform(self, size: tuple[int, ...]) -> None:
        """Of a spectrum without half the sampling rate, moved by half a sample, with the density of the cell."""
        picture = random(*size)
        found = torch.fft.rfftn(picture)
        for axis, side in enumerate(size):
            if side % 2 == 0:
                found.select(axis, side // 2).zero_()
        half = (waves(size) * 0.5 / torch.tensor(size, dtype=F64)).sum(-1)
        moved = found / picture.numel() * torch.polar(torch.ones_like(half), -half)
        close(SimplexRaster(size=size, smoothing=0).double().to_grid(moved), torch.fft.irfftn(found, s=size), 1e-12)

    def test_density_and_mass(self) -> None:
        """A solid has its density inside and nothing outside, a curve its length as the sum; ringing falls with smoothing."""
        solid = SimplexRaster(size=(32, 32), solid=True, smoothing=1.0).double().draw(polygon(circle(60, 0.3)), torch.full((60,), 2.0))[0]
        assert float(solid[16, 16]) == pytest.approx(2.0, abs=1e-3) and abs(float(solid[0, 0])) < 1e-3
        line = SimplexRaster(size=(32, 32)).double().draw(polygon(circle(60, 0.3)))[0]
        assert float(line.sum()) / 32**2 == pytest.approx(60 * 2 * 0.3 * math.sin(math.pi / 60), rel=1e-12)
        sharp = SimplexRaster(size=(32, 32), solid=True, smoothing=0).double().draw(polygon(circle(60, 0.3)))[0]
        assert float(sharp.max()) > 1.05 > 1.0005 > float(solid.max()) / 2

    def test_samples_stand_at_the_middle_of_their_cells(self) -> None:
        """A smooth point at a sample's place is symmetric about it; origin and period move the cell."""
        raster = SimplexRaster(size=(8, 10), period=(4.0, 5.0), origin=(-2.0, 1.0), smoothing=1.0).double()
        picture = raster.draw(torch.tensor([[[-2 + 3.5 * 0.5, 1 + 4.5 * 0.5]]], dtype=F64))[0]
        assert tuple(divmod(int(picture.argmax()), 10)) == (3, 4)
        close(picture[2], picture[4], 1e-12)
        close(picture[:, 3], picture[:, 5], 1e-12)

    def test_mixed_topologies_add_up(self) -> None:
        vertices, size = random(6, 3), (6, 6, 6)
        parts = [torch.tensor([[0], [5]]), torch.tensor([[1, 2]]), torch.tensor([[0, 1, 2]]), torch.tensor([[2, 3, 4, 5]])]
        values = [random(len(part), 2, seed=at) for at, part in enumerate(parts)]
        raster = SimplexRaster(size=size).double()
        apart = [raster(vertices, part, value) for part, value in zip(parts, values, strict=True)]
        close(raster(vertices, parts, values), torch.stack(apart).sum(0), 1e-12)

    def test_batches_and_chunks_change_nothing(self) -> None:
        vertices, simplices = random(3, 8, 2), torch.stack([torch.arange(8), torch.arange(8).roll(1)], 1)
        whole = SimplexRaster(size=(8, 8), chunk=0).double()(vertices, simplices)
        for chunk in (1, 7, 100, 300):
            close(SimplexRaster(size=(8, 8), chunk=chunk).double()(vertices, simplices), whole, 1e-12)
        one = SimplexRaster(size=(8, 8)).double()
        close(torch.stack([one(points, simplices) for points in vertices]), whole, 1e-12)
        close(one(vertices, simplices.expand(3, 8, 2)), whole, 1e-12)

    def test_wrong_input_is_explained(self) -> None:
        raster = SimplexRaster(size=(8, 8))
        points = torch.rand(4, 2)
        for vertices, simplices, message in (
            (points, torch.tensor([[0, 4]]), "vertex 4"),
            (points, torch.tensor([[-1, 2]]), "-1"),
            (points, torch.tensor([[0.0, 1.0]]), "whole numbers"),
            (points, torch.tensor([0, 1]), "accepted"),
            (points * float("nan"), torch.tensor([[0, 1]]), "not finite"),
            (torch.rand(4, 3), torch.tensor([[0, 1]]), "accepted"),
            (points, torch.tensor([[0, 1, 2, 3]]), "accepted"),
        ):
            with pytest.raises(InputError, match=message):
                raster(vertices, simplices)
        with pytest.raises(InputError, match="parts"):
            raster(points, [torch.tensor([[0]])], [torch.ones(1), torch.ones(1)])
        with pytest.raises(InputError, match="values"):
            raster(points, torch.tensor([[0, 1]]), torch.ones(3))
        with pytest.raises(InputError, match=r"\(\.\.\., E, 2, 2\)"):
            SimplexRaster(size=(8, 8), solid=True)(points, torch.tensor([[0, 1, 2]]))
        for arguments in (
            {"size": (8,)},
            {"size": (8, 8), "period": 0.0},
            {"size": (8, 8), "origin": (1.0,)},
            {"size": (8, 8), "smoothing": -1.0},
        ):
            with pytest.raises(ConfigError):
                SimplexRaster(**arguments)

    def test_no_simplices_are_an_empty_picture(self) -> None:
        raster = SimplexRaster(size=(8, 8))
        assert not raster(torch.rand(3, 2), torch.zeros(0, 2, dtype=torch.long)).any()
        assert corners_of(torch.rand(3, 2), torch.zeros(0, 2, dtype=torch.long)).shape == (0, 2, 2)
