"""What energies and forces of every potential owe to symmetry and to each other, at the start and after training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from cnnkit.errors import InputError
from cnnkit_equivariant.models._base import Potential
from cnnkit_equivariant.models.escn import ESCN
from cnnkit_equivariant.models.invariant import Invariant
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch_geometric.data import Batch, Data

pytestmark = pytest.mark.paper("escn")

_SMALL: dict[str, Any] = {"sphere_channels": 6, "hidden_channels": 8, "edge_channels": 8, "num_layers": 2, "gaussians": 8}
_PAPER: dict[str, Any] = {"message_act": "sphere", "mirror": False}
KINDS: dict[str, Callable[..., Potential]] = {
    "gates": lambda **args: ESCN(**{**_SMALL, "resolution": 21, **args}),
    "sphere": lambda **args: ESCN(**{**_SMALL, **_PAPER, "resolution": 25, **args}),
    "l3_m1": lambda **args: ESCN(**{**_SMALL, "lmax": 3, "mmax": 1, "mirror": False, "resolution": 31, **args}),
    "direct": lambda **args: ESCN(**{**_SMALL, "direct": True, "resolution": 21, **args}),
    "invariant": lambda **args: Invariant(channels=8, layers=2, gaussians=8, **args),
}
CONSERVATIVE = [name for name in KINDS if name != "direct"]
CUTOFF = 4.0
QUARTERS = [
    torch.tensor([[sign * (axis == column) for column in range(3)] for sign, axis in zip(signs, axes, strict=True)], dtype=torch.float64)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
QUARTERS = [turn for turn in QUARTERS if float(torch.linalg.det(turn)) > 0]
CHIRAL = torch.tensor([[0, 0, 0], [0, 0, 1.1], [1.3, 0, -0.4], [-0.7, 1.5, -0.5], [-0.8, -1.6, -0.6]], dtype=torch.float64)
CHIRAL_Z = torch.tensor([6, 1, 8, 29, 7])


Graph = Callable[..., Data]


def build(kind: str, dtype: torch.dtype = torch.float64, **args: Any) -> Potential:
    torch.manual_seed(1)
    return KINDS[kind](elements=["H", "C", "N", "O", "Cu"], cutoff=CUTOFF, **args).to(dtype).eval()


def cluster(atoms: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Positions and numbers of atoms that are not too near each other."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.tensor(list(itertools.product(range(2), repeat=3)), dtype=torch.float64)[:atoms]
    positions = 1.8 * grid + 0.5 * torch.rand(atoms, 3, generator=generator, dtype=torch.float64)
    return positions, torch.tensor([29, 8, 1, 6])[torch.arange(atoms) % 4]


def rotations(count: int) -> list[Tensor]:
    return list(torch.from_numpy(Rotation.random(count, random_state=0).as_matrix()))


@pytest.fixture(scope="module")
def graph(plain: Callable[[str], ModuleType]) -> Callable[..., Data]:
    """Makes a graph of positions, numbers and a cell by brute force."""

    edges = plain("edges")

    def make(positions: Tensor, numbers: Tensor, cell: Tensor | None = None) -> Data:
        found: Data = edges.graph(positions, numbers, CUTOFF, cell)
        return found

    return make


def errors(model: Potential, graph: Graph, positions: Tensor, numbers: Tensor, turns: list[Tensor]) -> tuple[float, float]:
    """Largest error of energies (of 1 eV) and forces (of the largest force) over rotations."""
    turned = torch.stack([torch.eye(3, dtype=torch.float64), *turns])
    places = (positions @ turned.mT).to(model.dtype)
    found = {
        name: value.detach().double() for name, value in model(Batch.from_data_list([graph(each, numbers) for each in places])).items()
    }
    forces = found["forces"].view(len(turned), -1, 3) @ turned  # Turned back.
    apart = (forces[1:] - forces[0]).abs().max() / forces[0].abs().max()
    return float((found["energy"][1:] - found["energy"][0]).abs().max()), float(apart)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "of_energy", "of_forces"), [(torch.float64, 1e-8, 1e-7), (torch.float32, 2e-5, 2e-4)])
def test_energies_do_not_turn_and_forces_do(graph: Graph, kind: str, dtype: torch.dtype, of_energy: float, of_forces: float) -> None:
    energy, forces = errors(build(kind, dtype), graph, *cluster(), [*rotations(12), *QUARTERS])
    assert energy < of_energy and forces < of_forces


@pytest.mark.parametrize("kind", ["gates", "sphere", "direct"])
def test_the_error_of_rotations_falls_as_the_grid_is_refined(graph: Graph, kind: str) -> None:
    """Exponentially: each step gains more than the last would by a power law."""
    found = [max(errors(build(kind, resolution=size), graph, *cluster(), rotations(6))) for size in (7, 11, 15, 21)]
    assert found[0] < 0.05 and all(fine < 0.2 * coarse for coarse, fine in itertools.pairwise(found)) and found[-1] < 1e-6, found


@pytest.mark.parametrize("kind", KINDS)
def test_reflections_change_only_what_is_made_for_rotations_alone(graph: Graph, kind: str) -> None:
    """Networks with imaginary weights tell a molecule from its mirror image: SO(3). Without them, and for distances, it is O(3)."""
    model = build(kind)
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)) @ rotations(1)[0]
    given = graph(CHIRAL, CHIRAL_Z), graph(CHIRAL @ mirror.t(), CHIRAL_Z)
    one, other = ({name: value.detach() for name, value in model(each).items()} for each in given)
    apart = float((one["energy"] - other["energy"]).abs())
    if kind in ("sphere", "l3_m1"):
        assert apart > 1e-5
    else:
        assert apart < 1e-8 and float((one["forces"] @ mirror.t() - other["forces"]).abs().max()) < 2e-6


@pytest.mark.parametrize("kind", KINDS)
def test_translations_and_permutations(graph: Graph, kind: str) -> None:
    model, (positions, numbers) = build(kind), cluster()
    was = model(graph(positions, numbers))
    moved = model(graph(positions + torch.tensor([11.0, -7.0, 3.0], dtype=torch.float64), numbers))
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(0))
    renamed = model(graph(positions[order], numbers[order]))
    for now, forces in ((moved, was["forces"]), (renamed, was["forces"][order])):
        torch.testing.assert_close(now["energy"], was["energy"], rtol=0, atol=1e-11)
        torch.testing.assert_close(now["forces"], forces, rtol=0, atol=1e-11)


def slopes(value: Callable[[Tensor], Tensor], at: Tensor, step: float) -> Tensor:
    """Central differences of fourth order."""
    found = torch.zeros_like(at)
    for place in range(at.numel()):
        change = torch.zeros(at.numel(), dtype=at.dtype)
        change[place] = step
        change = change.view_as(at)
        far, near = value(at + 2 * change) - value(at - 2 * change), value(at + change) - value(at - change)
        found.view(-1)[place] = float(8 * near - far) / (12 * step)
    return found


ALONG_Y = torch.tensor([[0, 0, 0], [0, 1.2, 0], [0, -1.1, 0]], dtype=torch.float64)


@pytest.mark.parametrize("kind", CONSERVATIVE)
@pytest.mark.parametrize("shape", ["cluster", "along y"])
def test_forces_are_the_energys_derivatives(graph: Graph, kind: str, shape: str) -> None:
    """Of a linear molecule along y, whose edges point exactly along the polar axis, too."""
    model = build(kind)
    positions, numbers = cluster(5) if shape == "cluster" else (ALONG_Y, torch.tensor([6, 8, 29]))
    given = graph(positions, numbers)

    def energy(places: Tensor) -> Tensor:
        moved = given.clone()
        moved.pos = places
        with torch.no_grad():
            return model(moved, forces=False)["energy"]

    numeric = -slopes(energy, positions, 1e-3)
    assert float((model(given)["forces"] - numeric).abs().max()) < 1e-6


@pytest.mark.parametrize("kind", CONSERVATIVE)
def test_stress_is_the_energys_derivative_by_a_strain(graph: Graph, kind: str) -> None:
    """In a skewed cell smaller than the cutoff, where an atom neighbours its own images."""
    model, numbers = build(kind), torch.tensor([29, 8])
    cell = torch.tensor([[3.1, 0, 0], [0.7, 2.9, 0.1], [-0.3, 0.5, 3.3]], dtype=torch.float64)
    positions = torch.tensor([[0.1, 0, 0], [1.4, 1.7, 1.5]], dtype=torch.float64)
    given = graph(positions, numbers, cell)

    def energy(strain: Tensor) -> Tensor:
        moved, deform = given.clone(), torch.eye(3, dtype=torch.float64) + 0.5 * (strain + strain.t())
        moved.pos, moved.cell = positions @ deform, (cell @ deform)[None]
        with torch.no_grad():
            return model(moved, forces=False)["energy"]

    numeric = slopes(energy, torch.zeros(3, 3, dtype=torch.float64), 1e-3) / torch.linalg.det(cell)
    found = model(given, stress=True)
    assert float((found["stress"][0] - numeric).abs().max()) < 1e-7 and float(numeric.abs().max()) > 1e-4
    assert torch.equal(found["stress"], found["stress"].mT)


@pytest.mark.parametrize("kind", KINDS)
def test_energies_are_extensive(graph: Graph, kind: str) -> None:
    """Twice the cell in every direction has eight times the energy, and in every copy the same forces."""
    model, numbers = build(kind), torch.tensor([29, 29, 8])
    cell = torch.tensor([[4.0, 0, 0], [0.5, 3.8, 0], [0, 0.4, 4.2]], dtype=torch.float64)
    positions = torch.tensor([[0, 0, 0], [1.9, 2.0, 0.3], [0.4, 1.8, 2.2]], dtype=torch.float64)
    copies = torch.tensor(list(itertools.product(range(2), repeat=3)), dtype=torch.float64) @ cell
    many = (positions[None] + copies[:, None]).reshape(-1, 3)
    small, large = model(graph(positions, numbers, cell)), model(graph(many, numbers.repeat(8), 2 * cell))
    torch.testing.assert_close(large["energy"], 8 * small["energy"], rtol=0, atol=1e-10)
    torch.testing.assert_close(large["forces"], small["forces"].repeat(8, 1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_structure_does_not_see_its_batch(graph: Graph, kind: str) -> None:
    """Of a cluster, a single atom and a crystal in one batch: energies, forces and stresses are those of each alone."""
    model = build(kind)
    lone = graph(torch.zeros(1, 3, dtype=torch.float64), torch.tensor([8]))
    crystal = graph(torch.zeros(1, 3, dtype=torch.float64), torch.tensor([29]), 2.6 * torch.eye(3, dtype=torch.float64))
    each = [graph(*cluster()), lone, crystal]
    together = model(Batch.from_data_list(each), stress=True)
    alone = [model(one, stress=True) for one in each]
    for name, found in together.items():
        torch.testing.assert_close(found, torch.cat([one[name] for one in alone]), rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", CONSERVATIVE)
def test_energies_are_smooth_across_the_cutoff(graph: Graph, kind: str) -> None:
    """An atom that comes in over the cutoff: no jump of the energy, of the force, or of its slope."""
    model, numbers = build(kind), torch.tensor([29, 8, 6])

    def force(distance: float) -> tuple[float, float]:
        positions = torch.tensor([[0, 0, 0], [0.5, 1.6, 0.2], [0, 0, distance]], dtype=torch.float64)
        found = model(graph(positions, numbers))
        return float(found["energy"]), float(found["forces"][2, 2])

    step = 1e-4
    before, just, beyond = force(CUTOFF - step), force(CUTOFF - 1e-9), force(CUTOFF + 1e-9)
    scale = abs(force(CUTOFF - 1.0)[1])
    assert scale > 1e-4 and abs(just[0] - beyond[0]) < 1e-12 and abs(just[1] - beyond[1]) < 1e-9
    assert abs(before[1] - just[1]) < 1e-3 * scale


def test_without_a_taper_there_is_a_jump(graph: Graph) -> None:
    """As the paper has it; so the test above sees one."""
    model, numbers = build("sphere", taper=None), torch.tensor([29, 8])
    energies = [
        float(model(graph(torch.tensor([[0, 0, 0], [0, 0, CUTOFF + off]], dtype=torch.float64), numbers))["energy"])
        for off in (-1e-9, 1e-9)
    ]
    assert abs(energies[0] - energies[1]) > 1e-3


@pytest.mark.parametrize("kind", CONSERVATIVE)
def test_forces_and_torques_sum_to_nothing(graph: Graph, kind: str) -> None:
    """Torques up to the grid's error, forces exactly."""
    positions, numbers = cluster()
    forces = build(kind)(graph(positions, numbers))["forces"]
    assert float(forces.sum(0).abs().max()) < 1e-12 * len(numbers)
    assert float(torch.linalg.cross(positions, forces).sum(0).abs().max()) < 1e-7


@pytest.mark.parametrize("kind", KINDS)
def test_a_linear_molecule_along_the_polar_axis(graph: Graph, kind: str) -> None:
    """Its energy is that of the molecule in any other direction, also next to the axis; its forces lie along it."""
    model, numbers = build(kind), torch.tensor([6, 8, 29])
    was = {name: value.detach() for name, value in model(graph(ALONG_Y, numbers)).items()}
    assert float(was["forces"][:, [0, 2]].abs().max()) < 1e-9 and float(was["forces"][:, 1].abs().max()) > 1e-3
    tilts = [Rotation.from_euler("x", angle).as_matrix() for angle in (math.pi, 1e-12, 1e-7, 1e-3, math.pi - 1e-7)]
    energy, forces = errors(model, graph, ALONG_Y, numbers, [torch.from_numpy(tilt) for tilt in tilts] + QUARTERS)
    assert energy < 1e-8 and forces < 5e-7


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_where_the_frame_of_an_edge_changes(graph: Graph, kind: str) -> None:
    """Frames jump where an edge passes from up to down; nothing of it is seen."""
    model, numbers = build(kind), torch.tensor([6, 8])
    energies = []
    for height in (-1e-9, 0.0, 1e-9):
        positions = torch.tensor([[0, 0, 0], [1.3, height, 0.4]], dtype=torch.float64)
        energies.append(float(model(graph(positions, numbers), forces=False)["energy"]))
    assert max(energies) - min(energies) < 1e-8


@pytest.mark.parametrize("kind", KINDS)
def test_atoms_alone_and_atoms_at_one_place(graph: Graph, kind: str) -> None:
    """Finite energies, forces and gradients; what lies at one place gives no force on itself."""
    model = build(kind)
    lone = model(graph(torch.zeros(1, 3, dtype=torch.float64), torch.tensor([8])), stress=True)
    assert torch.isfinite(lone["energy"]).all() and not lone["forces"].abs().max() > 1e-9 and not lone["stress"].any()
    twice = graph(torch.tensor([[0, 0, 0], [0, 0, 0], [1.0, 0.5, 0.2]], dtype=torch.float64), torch.tensor([8, 8, 6]))
    found = model.train()(twice, stress=True)
    assert all(bool(torch.isfinite(value).all()) for value in found.values())
    sum(value.square().sum() for value in found.values()).backward()
    assert all(bool(torch.isfinite(each.grad).all()) for each in model.parameters() if each.grad is not None)


@pytest.mark.parametrize(("kind", "of_energy", "of_forces"), [("gates", 1e-5, 1e-4), ("sphere", 3e-4, 1e-2), ("direct", 1e-5, 1e-4)])
def test_symmetries_hold_after_training(graph: Graph, kind: str, of_energy: float, of_forces: float) -> None:
    """Weights that have grown make sharper functions on the sphere, which a grid resolves less well: most so SiLU in the frames."""
    model = build(kind).train()
    batches = [graph(*cluster(5, seed)) for seed in range(3)]
    generator = torch.Generator().manual_seed(0)
    wanted = [torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in batches]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    losses = []
    for _ in range(12):
        loss = sum((model(one)["forces"] - forces).square().mean() for one, forces in zip(batches, wanted, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.98 * losses[0]
    energy, forces = errors(model.eval(), graph, *cluster(), [*rotations(8), *QUARTERS[:6]])
    assert energy < of_energy and forces < of_forces


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_a_force_loss_are_right(graph: Graph, kind: str) -> None:
    """The derivative of forces by a weight, which goes through the whole network twice, against differences."""
    model = build(kind).train()
    given, weight = graph(*cluster(4)), next(p for name, p in model.named_parameters() if "embedding" in name)

    def loss() -> Tensor:
        found = model(given, stress=True)
        return found["forces"].square().sum() + found["energy"].square().sum()

    loss().backward()
    assert weight.grad is not None
    place = int(weight.grad.abs().argmax())
    values = []
    for change in (1e-4, -2e-4):
        with torch.no_grad():
            weight.view(-1)[place] += change
        values.append(float(loss().detach()))
    assert (values[0] - values[1]) / 2e-4 == pytest.approx(float(weight.grad.view(-1)[place]), rel=1e-5)


def test_what_can_be_differentiated_and_what_not(graph: Graph) -> None:
    model, given = build("gates"), graph(*cluster(4))
    assert not any(value.requires_grad for value in model(given).values())
    assert model(given, forces=False)["energy"].requires_grad
    with torch.no_grad():
        alone, both = model(given, forces=False), model(given, stress=True)
    assert set(alone) == {"energy"} and set(both) == {"energy", "forces", "stress"}
    assert not any(value.requires_grad for value in (alone | both).values())
    assert all(value.requires_grad for value in model.train()(given).values())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    lone = graph(torch.zeros(1, 3, dtype=torch.float64), torch.tensor([8]))
    assert not model(lone, stress=True)["forces"].any()


def test_precision_of_positions_weights_and_references(graph: Graph) -> None:
    """A single network takes double positions, far from the origin, and keeps double references."""
    model = build("gates")
    model.references += torch.tensor([-13.6, -1030.123456789, -1486.0, -2043.2, -47000.987654321], dtype=torch.float64)
    exact = model(graph(*cluster()))
    positions, numbers = cluster()
    single = model.float()(graph(positions + 1e5, numbers))
    assert single["energy"].dtype == torch.float64 and single["forces"].dtype == torch.float64 and model.references.dtype == torch.float64
    assert float((single["energy"] - exact["energy"]).abs()) < 2e-5
    assert float((single["forces"] - exact["forces"]).abs().max()) < 1e-4


def test_elements_that_are_not_known(graph: Graph) -> None:
    with pytest.raises(InputError, match=r"Au: not among the elements .* \(H, C, N, O, Cu\)"):
        build("gates")(graph(torch.zeros(1, 3, dtype=torch.float64), torch.tensor([79])))
