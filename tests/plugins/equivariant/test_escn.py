"""eSCN against the straightforward version of its authors' code on e3nn, against Clebsch-Gordan products, and its sizes."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

import pytest
import torch
from cnnkit.backbones import create_model
from cnnkit.count import count_params, on_meta
from cnnkit.errors import CheckpointError, ConfigError
from cnnkit.plugin import get
from cnnkit.testing.compare import assert_near, assert_same_keys, without_gradient
from cnnkit.weights import load_weights
from cnnkit_equivariant.models._so2_block import Gate, SphereAct
from cnnkit_equivariant.models.escn import ESCN, LayerBlock
from torch import Tensor

pytestmark = pytest.mark.paper("escn")

ELEMENTS = ("H", "He", "Li", "Be")
SIZE: dict[str, Any] = {"num_layers": 3, "sphere_channels": 5, "hidden_channels": 7, "edge_channels": 6, "cutoff": 4.0}
FINE = (36, 37)
"""Colatitudes and longitudes at which e3nn's grid and ours have both converged."""
PAPER: dict[str, Any] = {"taper": None, "neighbors": 1.0, "message_act": "sphere", "mirror": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": PAPER,
    "paper, l3 m1": {**PAPER, "lmax": 3, "mmax": 1},
    "gates": {"taper": 5, "neighbors": 12.0, "message_act": "gate", "mirror": False},
    "ours": {"taper": 5, "neighbors": 12.0, "message_act": "gate", "mirror": True},
}


def edges(atoms: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Species, vectors and edges of atoms at random places."""
    generator = torch.Generator().manual_seed(2)
    positions = 3 * torch.rand(atoms, 3, generator=generator, dtype=torch.float64)
    edge_index = torch.nonzero(~torch.eye(atoms, dtype=torch.bool)).t()
    return torch.arange(atoms) % len(ELEMENTS), positions[edge_index[0]] - positions[edge_index[1]], edge_index


def pair(plain: Callable[[str], ModuleType], **args: Any) -> tuple[ESCN, Any]:
    """Our network and the straightforward one with the same weights, both in double precision."""
    args = {"lmax": 2, "mmax": 2, **SIZE, **args}
    module = plain("escn")
    torch.manual_seed(0)
    ours = ESCN(**args, elements=ELEMENTS, direct=True, gaussians=9, basis_width=2.0, resolution=FINE[1]).double()
    theirs = module.PlainESCN(
        **args, num_gaussians=9, basis_width_scalar=2.0, max_num_elements=len(ELEMENTS) + 1, grid=module.e3nn_grid(args["lmax"], FINE)
    ).double()
    # Weights of the size that ours start with, in the places of theirs; what has no place here is random.
    state = theirs.state_dict()
    with torch.no_grad():
        ours.sphere_embedding.weight.mul_(0.1)  # The larger the functions, the finer the grid that SiLU of them needs.
    for key, value in ours.state_dict().items():
        if key in state:
            state[key].normal_()
            place = (
                state[key][1:] if key.endswith("embedding.weight") else state[key][:, : value.shape[1]] if value.ndim > 1 else state[key]
            )
            place.copy_(value)
    state["energy_block.fc3.weight"].mul_(1000)
    assert load_weights(ours, theirs.state_dict()) == "official"
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_straightforward_version(plain: Callable[[str], ModuleType], variant: str) -> None:
    """Energies and direct forces, with frames that are turned at random about their edges; in the limit of fine grids."""
    ours, theirs = pair(plain, **VARIANTS[variant])
    species, vectors, edge_index = edges()
    with torch.no_grad():
        found = ours.atomwise(species, vectors, edge_index)
        energy, forces = theirs(species + 1, vectors, edge_index)
    assert found.forces is not None
    assert_near(found.energy, energy, 2e-5)
    assert_near(found.forces, forces, 2e-5)


def test_official_weights(plain: Callable[[str], ModuleType]) -> None:
    """As the authors' trainer saves them; other sizes are refused."""
    ours, theirs = pair(plain, **PAPER)
    state = {f"module.module.{key}": value for key, value in theirs.state_dict().items()}
    state["module.module.distance_expansion.offset"] = torch.zeros(9)
    state["module.module.layer_blocks.0.message_block.edge_block.distance_expansion.offset"] = torch.zeros(9)
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    assert load_weights(ours, state) == "official"
    for key, value in ours.state_dict().items():
        assert torch.equal(value, before[key])
    with pytest.raises(CheckpointError, match="sphere_embedding"):
        load_weights(ESCN(elements=ELEMENTS[:3], direct=True, gaussians=9, lmax=2, **SIZE, **PAPER), state)


@pytest.mark.parametrize("mirror", [False, True])
def test_a_message_is_a_tensor_product_with_the_harmonics_of_the_edge(mirror: bool) -> None:
    """Without its activation, and with all orders: for one edge length it is in the span of Clebsch-Gordan products, exactly.

    The weights of the products are found on some directions, and tried on others; without imaginary weights only products of even
    parity are needed.
    """
    from e3nn import o3

    lmax, channels, count = 3, 1, 400
    torch.manual_seed(0)
    model = ESCN(elements=("H",), lmax=lmax, sphere_channels=channels, hidden_channels=6, num_layers=2, mirror=mirror).double()
    block = cast(LayerBlock, model.layer_blocks[1]).message_block
    vectors = torch.nn.functional.normalize(torch.randn(count, 3, dtype=torch.float64), dim=1)
    x = torch.randn(count, (lmax + 1) ** 2, channels, dtype=torch.float64)
    zero = torch.zeros(count, dtype=torch.long)
    with torch.no_grad():
        turn = model._turn(vectors)
        edge = block.edge_block(model.distance_expansion(torch.full((count,), 2.0, dtype=torch.float64)), zero, zero)
        parts, _ = block._mix([turn @ x, turn @ x], edge)
        found = (turn.mT @ torch.cat(parts, 1)[..., None])[..., 0]
    harmonics = o3.spherical_harmonics(list(range(2 * lmax + 1)), vectors, True)
    for out in range(lmax + 1):
        products = []
        for degree in range(lmax + 1):
            for middle in range(abs(out - degree), out + degree + 1):
                if mirror and (out + degree + middle) % 2:
                    continue
                table = o3.wigner_3j(degree, middle, out, dtype=torch.float64)
                given, around = x[:, degree**2 : (degree + 1) ** 2, 0], harmonics[:, middle**2 : (middle + 1) ** 2]
                products.append(torch.einsum("abc,na,nb->nc", table, given, around))
        columns, wanted = torch.stack(products, -1), found[:, out**2 : (out + 1) ** 2]
        half = count // 2
        weights = torch.linalg.lstsq(columns[:half].flatten(0, 1), wanted[:half].reshape(-1, 1)).solution
        assert_near(columns[half:] @ weights[:, 0], wanted[half:], 1e-10)


def test_every_parameter_gets_a_gradient_of_energies_and_of_direct_forces() -> None:
    """No weight is there for orders that the first layer cannot have."""
    for args in VARIANTS.values():
        model = ESCN(elements=ELEMENTS, direct=True, gaussians=9, **{**SIZE, **args})
        species, vectors, edge_index = edges(8)
        found = model.atomwise(species, vectors.float(), edge_index)
        assert found.forces is not None
        (found.energy.square().sum() + found.forces.square().sum()).backward()
        assert [name for name in without_gradient(model) if "embedding" not in name] == []


def test_gates_are_equivariant_and_the_grid_is_not_quite() -> None:
    """About a roll of the frame, which is nothing but the choice of it."""
    from cnnkit_equivariant.so3 import order
    from cnnkit_equivariant.so3.wigner import block_diagonal, wigner

    lmax, channels, turn = 2, 4, torch.tensor(0.7, dtype=torch.float64)
    roll = torch.stack([turn.cos(), turn * 0, turn.sin(), turn * 0, turn * 0 + 1, turn * 0, -turn.sin(), turn * 0, turn.cos()]).view(
        1, 3, 3
    )
    places = order.to_m_order(lmax)
    matrix = block_diagonal(wigner(lmax, roll))[0][places][:, places]
    x = 2 * torch.randn(10, 9, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    extra, weights = torch.randn(10, lmax * channels, dtype=torch.float64), torch.ones(10, 1, dtype=torch.float64)

    def error(act: Any, extra: Tensor) -> float:
        def apply(x: Tensor) -> Tensor:
            found: Tensor = act(x.flatten(1).split([rows * channels for rows in (3, 2, 2, 1, 1)], 1), extra, weights)
            return found

        return float((apply(matrix @ x) - matrix @ apply(x)).abs().max())

    assert error(Gate(channels, lmax), extra) < 1e-14
    coarse, fine = (error(SphereAct(channels, lmax, lmax, (size // 2 + 1, size)), extra[:, :0]) for size in (7, 25))
    assert 1e-3 < coarse < 0.3 and fine < 1e-3 * coarse


@pytest.mark.parametrize(("name", "millions"), [("escn_l4_m2", 36.1), ("escn_l6_m2", 51.8), ("escn_l6_m3", 200.2)])
def test_published_sizes_take_the_weights_of_the_authors_code(plain: Callable[[str], ModuleType], name: str, millions: float) -> None:
    """Of its configurations for OC20; the first layer has less here, by what is always multiplied by zero there."""
    args = dict(get("equivariant").models[f"equivariant/{name}"].args)
    names = ("lmax", "mmax", "num_layers", "sphere_channels", "hidden_channels", "edge_channels", "cutoff")
    with on_meta():
        ours = create_model(f"equivariant/{name}", dims=3)
        theirs = plain("escn").PlainESCN(
            **{key: args[key] for key in names},
            num_gaussians=600,
            basis_width_scalar=2.0,
            max_num_elements=90,
            grid=(),
            regress_forces=True,
        )
    (layout,) = ESCN.layouts
    assert layout.matches is not None and layout.convert is not None and layout.matches(theirs.state_dict().keys())
    assert_same_keys(ours, layout.convert(theirs.state_dict()))
    assert sum(each.numel() for each in theirs.parameters() if each.requires_grad) / 1e6 == pytest.approx(millions, abs=0.05)
    assert (args["gaussians"], args["basis_width"], args["direct"], args["taper"], args["neighbors"]) == (600, 2.0, True, None, 1.0)


def test_the_default_is_small() -> None:
    """At most 2 MB of weights."""
    with on_meta():
        model = create_model("equivariant/escn", dims=3, elements=("H", "C", "N", "O", "Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au"))
    assert 2e5 < count_params(model) < 4e5


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"lmax": 0}, "lmax=0 must be 1 or more"),
        ({"lmax": 2, "mmax": 3}, "mmax=3"),
        ({"num_layers": 0}, "num_layers=0 must be 1 or more"),
        ({"taper": 1}, "taper=1 must be 2 or more, or None"),
        ({"neighbors": 0}, "neighbors=0 must be more than 0"),
        ({"message_act": "relu"}, "message_act=relu must be gate or sphere"),
        ({"resolution": 6}, "resolution=6 must be 7 or more for lmax=2"),
        ({"gaussians": 1}, "1 Gaussians"),
        ({"cutoff": 0}, "cutoff=0 is no distance"),
        ({"elements": ["Cu", "Cu"]}, "must be different chemical symbols"),
    ],
)
def test_arguments_that_make_no_network(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ESCN(**args)
