"""Spherical CNN for atoms: symmetries of energies and forces, the pictures of the neighbours, and learning from EMT."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

pytest.importorskip("cnnkit_equivariant")

from ase import Atoms
from ase.build import bulk, molecule
from cnnkit.errors import ConfigError
from cnnkit_equivariant.atoms.structures import to_graph
from cnnkit_equivariant.models.spherical_molecule import SphericalMolecule, spot
from cnnkit_equivariant.sphere.projection import grid_directions
from cnnkit_equivariant.sphere.transform import SphereTransform
from torch_geometric.data import Batch, Data

pytestmark = pytest.mark.paper("scaling-spherical-cnn")

SMALL = {
    "elements": ("H", "C", "O", "Cu"),
    "cutoff": 4.0,
    "types": 3,
    "widths": (4, 6),
    "bandwidths": (5, 3),
    "knots": (4, 3),
    "hidden": 16,
}
TURNS = [Rotation.random(random_state=seed).as_matrix() for seed in range(3)] + [
    Rotation.from_euler(axis, 90, degrees=True).as_matrix() for axis in "xyz"
]


def network(**args: object) -> SphericalMolecule:
    """Build one in float64 whose parameters all matter and whose statistics have seen atoms."""
    torch.manual_seed(0)
    model = SphericalMolecule(**{**SMALL, **args}).double()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)
    seen = graph(*ATOMS.values())
    with torch.no_grad():
        for _ in range(10):
            model.train()(seen, forces=False)
    return model.eval()


def rattled(atoms: Atoms, seed: int = 0) -> Atoms:
    """Move every atom a little."""
    atoms = atoms.copy()
    atoms.rattle(0.1, seed=seed)
    return atoms


ATOMS = {
    "ethanol": rattled(molecule("CH3CH2OH")),
    "copper": rattled(bulk("Cu", cubic=True)),
    "skew": rattled(bulk("Cu")),
    "along y": Atoms("OCO", [[0, -1.2, 0], [0, 0, 0], [0, 1.2, 0]]),
    "along z": Atoms("OCO", [[0, 0, -1.2], [0, 0, 0], [0, 0, 1.2]]),
    "alone": Atoms("Cu", [[0, 0, 0]]),
}


def graph(*structures: Atoms, cutoff: float = 4.0, dtype: torch.dtype = torch.float64) -> Batch:
    """Return a batch."""
    return Batch.from_data_list([to_graph(atoms, cutoff, dtype=dtype) for atoms in structures])


def turned(atoms: Atoms, matrix: np.ndarray) -> Atoms:
    """Rotate atoms and cell."""
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell @ matrix.T)
    atoms.positions = atoms.positions @ matrix.T
    return atoms


@pytest.fixture(scope="module")
def model() -> SphericalMolecule:
    return network()


@pytest.mark.parametrize("name", ATOMS)
def test_energies_do_not_turn_and_forces_do(model, name):
    atoms = ATOMS[name]
    still = model(graph(atoms), stress=True)
    for matrix in TURNS:
        moved, matrix = model(graph(turned(atoms, matrix)), stress=True), torch.from_numpy(matrix)
        torch.testing.assert_close(moved["energy"], still["energy"], rtol=0, atol=1e-10)
        torch.testing.assert_close(moved["forces"], still["forces"] @ matrix.mT, rtol=0, atol=1e-9)
        torch.testing.assert_close(moved["stress"], matrix @ still["stress"] @ matrix.mT, rtol=0, atol=1e-9)


def test_in_single_precision(model):
    single = copy.deepcopy(model).float()
    still, moved = (single(graph(atoms, dtype=torch.float32)) for atoms in (ATOMS["ethanol"], turned(ATOMS["ethanol"], TURNS[0])))
    assert still["forces"].dtype == torch.float32
    torch.testing.assert_close(moved["energy"], still["energy"], rtol=0, atol=1e-3)
    size = still["forces"].abs().max()
    torch.testing.assert_close(moved["forces"] / size, still["forces"] @ torch.from_numpy(TURNS[0]).float().mT / size, rtol=0, atol=1e-3)


def test_the_papers_modulus_turns_as_well_as_its_grid():
    """Its error is stated, and falls with the grid."""
    errors = []
    for oversampling in (1.0, 2.5):
        other = network(nonlinearity="phase_collapse", oversampling=oversampling)
        with torch.no_grad():
            energies = other(graph(*(turned(ATOMS["ethanol"], matrix) for matrix in TURNS)), forces=False)["energy"]
        errors.append(energies.std().item() / 9)
    assert errors[0] < 0.01 and errors[1] < errors[0] / 5


def test_permutation_translation_and_wrapping(model):
    atoms = ATOMS["copper"]
    energy = model(graph(atoms), forces=False)["energy"]
    other = atoms[[2, 0, 3, 1]]
    other.translate([0.3, 7.0, -2.0])
    other.wrap()
    torch.testing.assert_close(model(graph(other), forces=False)["energy"], energy, rtol=0, atol=1e-10)


def test_energies_are_extensive(model):
    atoms = ATOMS["skew"]
    one, eight = (model(graph(part), forces=False)["energy"] for part in (atoms, atoms.repeat(2)))
    torch.testing.assert_close(8 * one, eight, rtol=0, atol=1e-9)
    far = ATOMS["ethanol"].copy()
    far.translate([50, 0, 0])
    both, single = (model(graph(part), forces=False)["energy"] for part in (ATOMS["ethanol"] + far, ATOMS["ethanol"]))
    torch.testing.assert_close(both, 2 * single, rtol=0, atol=1e-9)


def test_others_of_the_batch_do_not_matter(model):
    together = model(graph(ATOMS["ethanol"], ATOMS["copper"]), forces=False)["energy"]
    torch.testing.assert_close(together[:1], model(graph(ATOMS["ethanol"]), forces=False)["energy"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["ethanol", "copper", "along y"])
def test_forces_are_the_slope_of_the_energy(model, name):
    atoms, step = ATOMS[name], 1e-4
    forces = model(graph(atoms))["forces"].numpy()
    np.testing.assert_allclose(forces.sum(0), 0, atol=1e-9)
    for atom, axis in ((0, 0), (1, 1), (2, 2)):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            energies.append(model(graph(moved), forces=False)["energy"].item())
        assert forces[atom, axis] == pytest.approx(-(energies[0] - energies[1]) / (2 * step), abs=1e-5 * max(1, abs(forces).max()))


def test_no_torque_on_molecules(model):
    atoms = ATOMS["ethanol"]
    forces = model(graph(atoms))["forces"].numpy()
    np.testing.assert_allclose(np.cross(atoms.positions, forces).sum(0), 0, atol=1e-9)


def test_nothing_happens_at_the_cutoff(model):
    """A neighbour fades out: energy and force are continuous."""
    found = [model(graph(Atoms("CuO", [[0, 0, 0], [4.0 + shift, 0, 0]]))) for shift in (-1e-4, 1e-4)]
    assert abs(found[0]["energy"] - found[1]["energy"]) < 1e-8
    assert (found[0]["forces"] - found[1]["forces"]).abs().max() < 1e-5


def test_atoms_without_neighbours_or_at_one_place(model):
    alone = model(graph(ATOMS["alone"]))
    assert torch.isfinite(alone["energy"]).all() and not alone["forces"].any()
    touching = Data(
        **{key: value for key, value in graph(Atoms("CuO", [[0, 0, 0], [1.0, 0, 0]])).to_dict().items() if key not in ("batch", "ptr")}
    )
    touching.pos = torch.zeros(2, 3, dtype=torch.float64)
    found = model(touching)
    assert torch.isfinite(found["energy"]).all() and torch.isfinite(found["forces"]).all()


def test_pictures_are_spots_in_the_directions_of_neighbours():
    """What goes into the network, summed on a grid, against the formula; the axes (x, y, z) of the sphere are e3nn's (z, x, y)."""
    wide = SphericalMolecule(**{**SMALL, "widths": (2,), "bandwidths": (32,), "knots": (4,), "angle": 60.0}).double()  # type: ignore[arg-type]
    vectors = torch.tensor([[1.5, 0.2, -0.4], [0.3, -2.0, 0.9]], dtype=torch.float64)
    edges, species = torch.tensor([[1, 2], [0, 0]]), torch.tensor([0, 1, 3])
    coefficients = wide.spheres(species, vectors, edges).detach()
    fields = SphereTransform(31, rings=64, spins=(0,)).double().synthesise(coefficients)[0].permute(2, 3, 1, 0)  # (N, C, H, W)
    points = grid_directions(64, 64)
    expected = np.zeros((6, 64, 64))
    width = (1 - np.cos(np.radians(60))) ** 2 / np.log(20)
    for vector, which in zip(vectors.numpy(), (1, 3), strict=True):
        length = np.linalg.norm(vector)
        inside = points @ (vector / length)[[2, 0, 1]]
        x = length / 4.0
        fall = 1 - 21 * x**5 + 35 * x**6 - 15 * x**7
        colour = wide.paint.weight[which].detach().numpy()
        bright = np.concatenate([colour * (length / 2) ** -power for power in (2, 6)])
        expected += fall * bright[:, None, None] * np.exp(-((inside - 1) ** 2) / width)
    np.testing.assert_allclose(fields[0].real, expected, atol=1e-4 * abs(expected).max())
    assert fields.imag.abs().max() < 1e-12
    assert not fields[1:].abs().any()


def test_a_spot_has_faded_at_its_angle():
    factors = spot(64, np.radians(60))
    along = np.polynomial.legendre.legval(np.cos(np.radians([0, 60])), factors * (2 * np.arange(64) + 1) / (4 * np.pi))
    np.testing.assert_allclose(along, [1, 0.05], atol=1e-3)


def test_it_learns_emt_and_stays_invariant():
    """Energies and forces of copper clusters: after training the loss is a fraction, and rotations still change nothing."""
    from ase.calculators.emt import EMT

    torch.manual_seed(0)
    model = SphericalMolecule(**{**SMALL, "elements": ("Cu",)}).double()
    structures = []
    for seed in range(6):
        atoms = rattled(Atoms("Cu4", 2.5 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])), seed)
        atoms.calc = EMT()
        structures.append(atoms)
    batch = graph(*structures)
    energies = torch.tensor([atoms.get_potential_energy() for atoms in structures])
    forces = torch.from_numpy(np.concatenate([atoms.get_forces() for atoms in structures]))
    model.references += energies.mean() / 4
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(30):
        found = model.train()(batch)
        loss = (found["energy"] - energies).square().mean() + (found["forces"] - forces).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    model.eval()
    still, moved = (model(graph(atoms), forces=False)["energy"] for atoms in (structures[0], turned(structures[0], TURNS[0])))
    torch.testing.assert_close(still, moved, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": (4,)}, "one positive number"),
        ({"angle": 0.0}, "up to 180 degrees"),
        ({"spins": (1,)}, "0 first"),
        ({"powers": ()}, "one power"),
        ({"nonlinearity": "relu"}, "square_collapse"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        SphericalMolecule(**{**SMALL, **arguments})
