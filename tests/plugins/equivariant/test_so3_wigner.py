"""Orders, harmonics and Wigner matrices: beside e3nn, and by the laws that they obey."""

from __future__ import annotations

import math

import pytest
import torch
from cnnkit.errors import ConfigError
from cnnkit_equivariant.so3 import harmonics, order, wigner

pytestmark = pytest.mark.paper("escn")
o3 = pytest.importorskip("e3nn.o3")

DOUBLE = torch.float64
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


@pytest.fixture(autouse=True)
def double_by_default():
    """e3nn makes its constants in the default precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(DOUBLE)
    yield
    torch.set_default_dtype(before)


def angles() -> torch.Tensor:
    """About y, x and y: random ones, and turns about each axis by tiny angles and by right ones, ``(3, N)``."""
    random = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) * 2 * math.pi
    turns = torch.tensor([0.0, 1e-9, 1e-4, 0.3, math.pi / 2, math.pi, -math.pi / 2, 2.0])
    none, right = torch.zeros(8), torch.full((8,), math.pi / 2)
    about = [torch.stack(three, -1) for three in ((turns, none, none), (none, turns, none), (right, turns, -right))]
    return torch.cat([random, *about]).T


def rotations() -> torch.Tensor:
    """Those by :func:`angles`."""
    return o3.angles_to_matrix(*angles())


def directions() -> torch.Tensor:
    """Random vectors, the six half-axes, and ones that miss the poles by little."""
    axes = torch.cat([torch.eye(3), -torch.eye(3)])
    near = torch.tensor([[1e-9, 1.0, 0.0], [0.0, -1.0, 1e-9], [1e-4, -2.0, 1e-4], [1.0, 1e-12, 0.0], [1.0, -1e-12, 0.0]])
    return torch.cat([torch.randn(30, 3, generator=torch.Generator().manual_seed(1)), axes, 5 * axes, near])


@pytest.mark.parametrize(("lmax", "mmax"), [(0, None), (1, None), (3, 0), (4, 2), (6, 6)])
def test_orders_are_a_permutation_of_degrees(lmax, mmax):
    by_degree, by_order = order.lm_index(lmax, mmax), order.to_m_order(lmax, mmax)
    assert len(by_degree) == len(by_order) == order.size(lmax, mmax) == sum(order.order_sizes(lmax, mmax))
    assert torch.equal(by_order[order.from_m_order(lmax, mmax)], by_degree)
    top = lmax if mmax is None else mmax
    expected = [degree**2 + degree + m for degree in range(lmax + 1) for m in range(-degree, degree + 1) if abs(m) <= top]
    assert by_degree.tolist() == expected
    for by, places in ((False, by_degree), (True, by_order)):
        assert order.degrees(lmax, mmax, by_order=by).tolist() == [math.isqrt(place) for place in places.tolist()]


def test_by_order_plus_stands_before_minus():
    # l, m:                                 0,0 1,0 2,0 1,1 2,1 1,-1 2,-1
    assert order.to_m_order(2, 1).tolist() == [0, 2, 6, 3, 7, 1, 5]


@pytest.mark.parametrize(("lmax", "mmax", "says"), [(-1, None, "lmax=-1"), (2, 3, "mmax=3"), (2, -1, "mmax=-1")])
def test_impossible_orders_are_refused(lmax, mmax, says):
    with pytest.raises(ConfigError, match=says):
        order.size(lmax, mmax)


@pytest.mark.parametrize("normalization", ["component", "norm", "integral"])
@pytest.mark.parametrize("normalize", [True, False])
def test_harmonics_are_those_of_e3nn(normalization, normalize):
    vectors = directions()
    ours = harmonics.spherical_harmonics(10, vectors, normalize=normalize, normalization=normalization)
    theirs = o3.spherical_harmonics(list(range(11)), vectors, normalize, normalization)
    assert ((ours - theirs).abs() / theirs.abs().clamp_min(1)).max() < 1e-12


def test_harmonics_take_any_leading_shape_and_precision():
    vectors = directions()[:12]
    expected = harmonics.spherical_harmonics(4, vectors)
    torch.testing.assert_close(harmonics.spherical_harmonics(4, vectors.view(3, 4, 3)).view(12, 25), expected)
    torch.testing.assert_close(harmonics.spherical_harmonics(4, vectors[0]), expected[0])
    single = harmonics.spherical_harmonics(4, vectors.float() * 1e-30)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="accepted: component, norm, integral"):
        harmonics.spherical_harmonics(1, vectors, normalization="unit")


@pytest.mark.parametrize("normalize", [True, False])
def test_gradients_of_harmonics(normalize):
    vectors = directions()[::4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: harmonics.spherical_harmonics(4, v, normalize=normalize), vectors, fast_mode=True)
    few = directions()[:3].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda v: harmonics.spherical_harmonics(2, v, normalize=normalize), few, fast_mode=True)


def test_the_zero_vector_has_no_direction_and_no_gradient():
    vectors = torch.zeros(1, 3, requires_grad=True)
    found = harmonics.spherical_harmonics(5, vectors)
    (slope,) = torch.autograd.grad(found.sum(), vectors, create_graph=True)
    assert found[0, 0] == 1
    assert not found[0, 1:].any()
    assert not slope.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("lmax", "mmax"), [(0, None), (1, None), (6, None), (10, None), (4, 0), (6, 2)])
def test_matrices_are_those_of_e3nn(dtype, lmax, mmax):
    turns = rotations()
    for degree, block in enumerate(wigner.wigner(lmax, turns.to(dtype), mmax=mmax)):
        kept = min(degree, lmax if mmax is None else mmax)
        theirs = o3.wigner_D(degree, *angles())[:, degree - kept : degree + kept + 1]
        assert block.dtype == dtype
        assert (block.double() - theirs).abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_matrices_rotate_harmonics_and_compose(dtype):
    turns, vectors = rotations().to(dtype), directions().to(dtype)
    whole = wigner.block_diagonal(wigner.wigner(8, turns))
    values = harmonics.spherical_harmonics(8, vectors, normalization="norm")
    turned = harmonics.spherical_harmonics(8, vectors @ turns[:, None].mT.squeeze(1), normalization="norm")
    torch.testing.assert_close(torch.einsum("rij,vj->rvi", whole, values), turned, rtol=0, atol=TOLERANCE[dtype])
    other = turns.flip(0)
    product = wigner.block_diagonal(wigner.wigner(8, turns @ other))
    torch.testing.assert_close(whole @ wigner.block_diagonal(wigner.wigner(8, other)), product, rtol=0, atol=TOLERANCE[dtype])
    torch.testing.assert_close(whole @ whole.mT, torch.eye(81, dtype=dtype).expand_as(whole), rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize(("lmax", "mmax"), [(0, None), (3, None), (4, 2), (3, 0)])
def test_one_matrix_holds_all_blocks(lmax, mmax):
    turns = rotations().view(4, 11, 3, 3)
    blocks = wigner.wigner(lmax, turns, mmax=mmax)
    whole = wigner.wigner_matrix(lmax, turns, mmax=mmax)
    assert torch.equal(whole, wigner.block_diagonal(blocks))
    by_order = wigner.wigner_matrix(lmax, turns, mmax=mmax, by_order=True)
    assert torch.equal(by_order[..., order.from_m_order(lmax, mmax), :], whole)
    one = turns[0, 0].clone().requires_grad_()
    weights = torch.randn(by_order.shape[-2:])
    assert torch.autograd.gradcheck(
        lambda r: (wigner.wigner_matrix(lmax, r, mmax=mmax, by_order=True) * weights).sum(), one, fast_mode=True
    )


def test_the_first_degree_is_the_rotation_itself():
    turns = rotations().view(4, 11, 3, 3)
    zero, one = wigner.wigner(1, turns)
    torch.testing.assert_close(one, turns)
    torch.testing.assert_close(zero, torch.ones(4, 11, 1, 1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_edges_are_turned_to_the_polar_axis(dtype):
    vectors = directions().to(dtype)
    turns = wigner.edge_rotation(vectors)
    up = torch.tensor([0.0, 1.0, 0.0], dtype=dtype).expand_as(vectors)
    torch.testing.assert_close((turns @ harmonics.normalized(vectors)[..., None]).squeeze(-1), up, rtol=0, atol=1e-6)
    torch.testing.assert_close(turns @ turns.mT, torch.eye(3, dtype=dtype).expand_as(turns), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.linalg.det(turns), torch.ones(len(vectors), dtype=dtype), rtol=0, atol=1e-6)


def test_a_zero_vector_is_not_turned():
    vectors = torch.zeros(2, 3, requires_grad=True)
    turns = wigner.edge_rotation(vectors)
    (slope,) = torch.autograd.grad(sum(block.sum() for block in wigner.wigner(3, turns)), vectors)
    assert torch.equal(turns, torch.eye(3).expand(2, 3, 3))
    assert not slope.any()


def test_gradients_of_matrices():
    """By the entries of any matrix, and by edges wherever the chart does not change: at +-y, too."""
    turns = rotations()[[0, 1, 20, 22, 25, 33]].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda r: wigner.wigner(6, r), turns, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda r: wigner.wigner(2, r), turns[:2].detach().requires_grad_(), fast_mode=True)
    vectors = directions()
    vectors = vectors[(vectors[:, 1] / vectors.norm(dim=-1)).abs() > 1e-3][::2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: wigner.wigner(4, wigner.edge_rotation(v)), vectors, fast_mode=True)
    poles = torch.tensor([[0.0, 2.0, 0.0], [0.0, -1.0, 0.0]], requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: wigner.wigner(6, wigner.edge_rotation(v)), poles, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_are_finite_everywhere(dtype):
    vectors = directions().to(dtype).requires_grad_()
    blocks = wigner.wigner(6, wigner.edge_rotation(vectors))
    (slope,) = torch.autograd.grad(sum(block.square().sum() * (degree + 1) for degree, block in enumerate(blocks)), vectors)
    assert slope.isfinite().all()
    # A rotation's matrix keeps its norm, whatever the edge.
    assert slope.abs().max() < (1e-8 if dtype == torch.float64 else 1e-2)


def test_matrices_can_be_exported():
    class Blocks(torch.nn.Module):
        def forward(self, vectors):
            return wigner.wigner_matrix(3, wigner.edge_rotation(vectors), mmax=2)

    vectors = directions()
    assert torch.equal(Blocks()(vectors), wigner.block_diagonal(wigner.wigner(3, wigner.edge_rotation(vectors), mmax=2)))
    program = torch.export.export(Blocks(), (vectors[:5],), dynamic_shapes=({0: torch.export.Dim("edges", min=2)},))
    torch.testing.assert_close(program.module()(vectors), Blocks()(vectors))
