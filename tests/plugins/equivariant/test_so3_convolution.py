"""Maps order by order: the full tensor product in another basis, rolls and rotations, and what else a layer must do."""

from __future__ import annotations

import pytest
import torch
from cnnkit.errors import ConfigError
from cnnkit_equivariant.so3 import order
from cnnkit_equivariant.so3.convolution import SO2Linear
from cnnkit_equivariant.so3.tensor_product import clebsch_gordan, paths, so2_weights_from_tensor_product, tensor_product_weights
from cnnkit_equivariant.so3.wigner import edge_rotation, wigner_matrix

pytestmark = pytest.mark.paper("escn")
o3 = pytest.importorskip("e3nn.o3")


@pytest.fixture(autouse=True)
def double_by_default():
    """e3nn makes its constants in the default precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def edges(count: int = 6) -> torch.Tensor:
    """Random ones, the six half-axes, and ones beside the poles."""
    axes = torch.cat([torch.eye(3), -torch.eye(3)])
    near = torch.tensor([[1e-8, 1.0, 0.0], [0.0, -3.0, 1e-8]])
    return torch.cat([random(count, 3, seed=9), axes, near])


def whole_path(layer, x: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Into the frame of each edge, through the layer, and back."""
    turn = wigner_matrix(layer.lmax, edge_rotation(vectors), mmax=layer.mmax, by_order=True)
    return turn.mT @ layer(turn @ x)


def in_basis(weights, lmax: int, channels: tuple[int, int]) -> SO2Linear:
    layer = SO2Linear(*channels, lmax, bias=False)
    weight, outer = so2_weights_from_tensor_product(weights, lmax)
    layer.load_state_dict({"weight": weight, **{f"weights.{at}": each for at, each in enumerate(outer)}})
    return layer


def random_weights(lmax: int, filter_lmax: int | None, channels: tuple[int, int]) -> dict:
    return {path: random(*channels, seed=at) for at, path in enumerate(paths(lmax, filter_lmax))}


@pytest.mark.parametrize("degrees", [(l1, l2, l3) for l1 in range(5) for l2 in range(5) for l3 in range(abs(l1 - l2), min(l1 + l2, 6) + 1)])
def test_couplings_are_those_of_e3nn(degrees):
    torch.testing.assert_close(clebsch_gordan(*degrees), o3.wigner_3j(*degrees), rtol=0, atol=1e-12)


def test_couplings_of_high_degrees_and_of_none():
    torch.testing.assert_close(clebsch_gordan(6, 5, 7), o3.wigner_3j(6, 5, 7), rtol=0, atol=1e-10)
    norm = clebsch_gordan(20, 20, 20).square().sum((0, 1))
    torch.testing.assert_close(norm, torch.full((41,), 1 / 41), rtol=0, atol=1e-12)
    with pytest.raises(ConfigError, match=r"accepted: \|l1 - l2\| <= l3"):
        clebsch_gordan(1, 1, 3)


@pytest.mark.parametrize("lmax", [0, 1, 2, 3, 4])
def test_it_is_the_full_tensor_product(lmax):
    """With every degree of the harmonics that couples, by the coefficients of e3nn: 1e-10 in double precision."""
    weights, vectors = random_weights(lmax, None, (3, 2)), edges()
    x = random(len(vectors), order.size(lmax), 3)
    harmonics = o3.spherical_harmonics(list(range(2 * lmax + 1)), vectors, True, "component")
    expected = torch.zeros(len(vectors), order.size(lmax), 2)
    for (l1, l2, l3), weight in weights.items():
        one, two = x[:, l1 * l1 : (l1 + 1) ** 2], harmonics[:, l2 * l2 : (l2 + 1) ** 2]
        expected[:, l3 * l3 : (l3 + 1) ** 2] += torch.einsum("ijk,eiu,ej,uw->ekw", o3.wigner_3j(l1, l2, l3), one, two, weight)
    found = whole_path(in_basis(weights, lmax, (3, 2)), x, vectors)
    assert (found - expected).abs().max() < 1e-10


def test_it_is_the_fully_connected_tensor_product_of_e3nn():
    """Its module, with its own factors of the paths; even parity throughout, so that odd sums of degrees are paths, too."""
    lmax, channels, vectors = 2, 2, edges()
    irreps, filters = f"{channels}x0e + {channels}x1e + {channels}x2e", "0e + 1e + 2e + 3e + 4e"
    module = o3.FullyConnectedTensorProduct(irreps, filters, irreps)
    x = random(len(vectors), order.size(lmax), channels)
    flat = torch.cat([x[:, degree**2 : (degree + 1) ** 2].mT.flatten(1) for degree in range(lmax + 1)], 1)
    result = module(flat, o3.spherical_harmonics(list(range(5)), vectors, True, "component"))
    parts = result.split([channels * (2 * degree + 1) for degree in range(lmax + 1)], 1)
    expected = torch.cat([part.unflatten(1, (channels, -1)).mT for part in parts], 1)
    weights = {
        (each.i_in1, each.i_in2, each.i_out): weight[:, 0].detach() * each.path_weight
        for each, weight in zip(module.instructions, module.weight_views(), strict=True)
    }
    assert set(weights) == set(paths(lmax))
    found = whole_path(in_basis(weights, lmax, (channels, channels)), x, vectors)
    assert (found - expected).abs().max() < 1e-10


def test_fewer_degrees_of_harmonics_are_fewer_paths():
    assert {l2 for _, l2, _ in paths(3, 2)} == {0, 1, 2}
    layer = in_basis(random_weights(3, 2, (1, 1)), 3, (1, 1))
    back = tensor_product_weights(layer)
    assert all(weight.abs().max() < 1e-12 for (_, l2, _), weight in back.items() if l2 > 2)


@pytest.mark.parametrize("lmax", [0, 1, 3])
def test_either_set_of_weights_is_the_other(lmax):
    layer = SO2Linear(2, 3, lmax, bias=False)
    back = in_basis(tensor_product_weights(layer), lmax, (2, 3))
    for name, expected in layer.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], expected, rtol=0, atol=1e-12)
    weights = random_weights(lmax, None, (2, 3))
    for path, found in tensor_product_weights(in_basis(weights, lmax, (2, 3))).items():
        torch.testing.assert_close(found, weights[path], rtol=0, atol=1e-11)


@pytest.mark.parametrize("layer", [{"mmax": 1}, {"bias": True}, {"extra_scalars": 1}, {"edge_channels": 2}])
def test_only_a_bare_linear_map_is_a_tensor_product(layer):
    with pytest.raises(ConfigError, match="mmax = lmax"):
        tensor_product_weights(SO2Linear(1, 1, 2, **{"bias": False} | layer))
    with pytest.raises(ConfigError, match=r"\(3, 0, 3\)"):
        so2_weights_from_tensor_product({(3, 0, 3): torch.ones(1, 1)}, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("lmax", "mmax"), [(0, None), (2, None), (4, 4), (6, 2), (3, 0)])
def test_the_whole_path_commutes_with_rotations(lmax, mmax, dtype):
    """Gates, bias and extra scalars included; whatever is dropped above mmax is dropped in every frame."""
    layer = SO2Linear(3, 4, lmax, mmax, extra_scalars=2, edge_channels=5).to(dtype)
    with torch.no_grad():
        layer.bias.copy_(random(len(layer.bias)))
    vectors = edges().to(dtype)
    numbers = random(len(vectors), 5).to(dtype)
    x = random(len(vectors), order.size(lmax), 3).to(dtype)

    def path(x, vectors):
        turn = wigner_matrix(lmax, edge_rotation(vectors), mmax=mmax, by_order=True)
        y, extra = layer(turn @ x, numbers)
        return turn.mT @ y, extra

    result, extra = path(x, vectors)
    for turn in (*o3.rand_matrix(3), o3.matrix_x(torch.tensor(torch.pi / 2)), o3.matrix_z(torch.tensor(torch.pi))):
        whole = wigner_matrix(lmax, turn).to(dtype)
        turned, same = path(whole @ x, vectors @ turn.to(dtype).T)
        tolerance = 1e-11 if dtype == torch.float64 else 2e-5
        torch.testing.assert_close(turned, whole @ result, rtol=0, atol=tolerance)
        torch.testing.assert_close(same, extra, rtol=0, atol=tolerance)


def test_the_formula_of_the_paper():
    layer = SO2Linear(2, 3, 2, bias=False)
    y = layer(x := random(4, 9, 2))
    parts, results = x.split([3, 2, 2, 1, 1], 1), y.split([3, 2, 2, 1, 1], 1)
    torch.testing.assert_close(results[0].flatten(1), parts[0].flatten(1) @ layer.weight.T)
    for m in (1, 2):
        real, imaginary = layer.weights[m - 1]
        plus, minus = parts[2 * m - 1].flatten(1), parts[2 * m].flatten(1)
        torch.testing.assert_close(results[2 * m - 1].flatten(1), plus @ real.T - minus @ imaginary.T)
        torch.testing.assert_close(results[2 * m].flatten(1), plus @ imaginary.T + minus @ real.T)


@pytest.mark.parametrize("extra", [0, 2])
def test_gradients_to_second_order(extra):
    layer = SO2Linear(2, 1, 1, extra_scalars=extra, edge_channels=2)
    names = [name for name, _ in layer.named_parameters()]

    def run(x, edges, *values):
        found = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x, edges))
        return found if extra else (found,)

    inputs = [random(2, 4, 2), random(2, 2), *(value.detach().clone() for _, value in layer.named_parameters())]
    inputs = [value.requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_every_parameter_has_a_gradient_and_variance_is_kept():
    layer = SO2Linear(32, 32, 4, 2, extra_scalars=3, edge_channels=4)
    y, extra = layer(random(200, order.size(4, 2), 32), random(200, 4))
    (y.square().sum() + extra.square().sum()).backward()
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in layer.parameters())
    plain = SO2Linear(32, 32, 4)
    assert plain(random(200, 25, 32)).var((0, 2)).sub(1).abs().max() < 0.3


def test_a_layer_can_be_exported():
    layer = SO2Linear(3, 2, 2, 1, extra_scalars=2, edge_channels=3)
    x, numbers = random(5, 7, 3), random(5, 3)
    rows = torch.export.Dim("edges", min=2)
    program = torch.export.export(layer, (x, numbers), dynamic_shapes=({0: rows}, {0: rows}))
    more = (random(9, 7, 3), random(9, 3))
    for ours, theirs in zip(program.module()(*more), layer(*more), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_no_edges_are_no_trouble():
    layer = SO2Linear(2, 3, 2)
    assert layer(torch.zeros(0, 9, 2)).shape == (0, 9, 3)
    assert wigner_matrix(2, edge_rotation(torch.zeros(0, 3))).shape == (0, 9, 9)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="mmax=3"):
        SO2Linear(1, 1, 2, 3)
    with pytest.raises(ConfigError, match="at least one channel"):
        SO2Linear(0, 1, 2)
    with pytest.raises(ConfigError, match="edge_channels=2"):
        SO2Linear(1, 1, 1, edge_channels=2)(random(3, 4, 1))
