"""Potentials in ASE's hands: a pair potential against ASE's own, relaxations, dynamics, and which checkpoints are refused."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS, FIRE
from cnnkit.backbones import create_model, model_entry
from cnnkit.checkpoint import Header, save_checkpoint
from cnnkit.errors import CheckpointError, CnnkitError, InputError, InputWarning, UsageError
from cnnkit_equivariant import Calculator
from cnnkit_equivariant.atoms.calculator import Neighbors
from cnnkit_equivariant.atoms.picture import draw_relaxation
from cnnkit_equivariant.atoms.relax import Relaxation, relax
from cnnkit_equivariant.atoms.structures import to_graph
from cnnkit_equivariant.models._base import AtomicOutput, Potential
from PIL import Image

pytestmark = pytest.mark.paper("escn")

SIGMA, CUTOFF, INNER = 2.3, 5.0, 3.3


class PairPotential(Potential):
    """Lennard-Jones, which fades out smoothly between two distances: ASE's ``LennardJones(smooth=True)`` is its closed form."""

    def __init__(self, elements=("Cu", "O", "H"), *, direct=False):
        super().__init__(elements=elements, cutoff=CUTOFF, direct=direct)
        self.depth = torch.nn.Parameter(torch.tensor(0.2))
        self.calls: list[dict[str, bool]] = []

    def forward(self, graph, *, forces=True, stress=False, energies=False):
        self.calls.append({"forces": forces, "stress": stress})
        return super().forward(graph, forces=forces, stress=stress, energies=energies)

    def atomwise(self, species, vectors, edge_index):
        square = vectors.square().sum(1)
        power = (SIGMA**2 / square) ** 3
        outer, inner = CUTOFF**2, INNER**2
        fade = (square - outer) ** 2 * (outer + 2 * square - 3 * inner) / (outer - inner) ** 3
        each = 2 * self.depth * (power**2 - power) * torch.where(square < inner, 1.0, fade)
        energy = torch.zeros(len(species), dtype=each.dtype).index_add(0, edge_index[1], each)
        return AtomicOutput(energy, torch.zeros(len(species), 3, dtype=each.dtype) if self.direct else None)


def exact(**options):
    return Calculator(PairPotential().double(), device="cpu", **options)


def oracle():
    return LennardJones(sigma=SIGMA, epsilon=float(np.float32(0.2)), rc=CUTOFF, ro=INNER, smooth=True)


def structures():
    """A crystal, a cell much smaller than the cutoff, a slab, a molecule, an oblique cell with atoms outside."""
    rng = np.random.default_rng(0)
    crystal = bulk("Cu", "fcc", 3.6, cubic=True).repeat(2)
    slab = fcc111("Cu", (3, 2, 3), vacuum=6.0)
    cluster = Atoms("CuOCuO2", rng.normal(0, 2.5, (5, 3)) + 3 * np.eye(5, 3))
    oblique = Atoms("Cu3", [(0, 0, 0), (9, 1, 4), (-3, 2.2, 7)], cell=[[4, 0, 0], [1.5, 4.5, 0], [-1, 2, 5]], pbc=[1, 0, 1])
    made = [crystal, bulk("Cu", "fcc", 3.6), slab, cluster, oblique]
    for seed, atoms in enumerate(made):
        atoms.rattle(0.05, seed=seed)
    return made


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("skin", [0.0, 0.7])
def test_energy_forces_and_stress_of_a_pair_potential(index, skin):
    """The closed form, to rounding."""
    atoms, twin = structures()[index], structures()[index]
    atoms.calc, twin.calc = exact(skin=skin), oracle()
    for step in range(3):
        assert np.isclose(atoms.get_potential_energy(), twin.get_potential_energy(), rtol=1e-11, atol=1e-11)
        assert np.allclose(atoms.get_potential_energies(), twin.get_potential_energies(), rtol=1e-11, atol=1e-11)
        assert np.allclose(atoms.get_forces(), twin.get_forces(), rtol=1e-9, atol=1e-11)
        if atoms.cell.rank == 3:
            assert np.allclose(atoms.get_stress(), twin.get_stress(), rtol=1e-9, atol=1e-13)
        for each in (atoms, twin):
            each.rattle(0.1, seed=step)
    assert atoms.calc.results["free_energy"] == atoms.calc.results["energy"]


def test_single_precision_is_that_of_the_network_alone():
    """Distances are taken in float64: a structure far away is as good as one at the origin."""
    atoms = structures()[0]
    atoms.calc = oracle()
    expected = atoms.get_forces()
    for far in (0.0, 1e6):
        atoms.positions += far
        atoms.calc = Calculator(PairPotential(), device="cpu", dtype="float32")
        assert np.allclose(atoms.get_forces(), expected, atol=2e-6)
        assert atoms.get_forces().dtype == np.float64


def test_an_energy_alone_takes_no_derivative():
    atoms = structures()[0]
    atoms.calc = exact()
    atoms.get_potential_energy()
    assert atoms.calc.model.calls == [{"forces": False, "stress": False}]
    assert set(atoms.calc.results) == {"energy", "free_energy", "energies"}
    atoms.get_forces(), atoms.get_stress(), atoms.get_potential_energy()
    assert atoms.calc.model.calls[1:] == [{"forces": True, "stress": True}], "one evaluation gives all three"
    molecule_ = structures()[3]
    molecule_.calc = exact()
    molecule_.get_forces()
    assert molecule_.calc.model.calls == [{"forces": True, "stress": False}]
    direct = structures()[0]
    direct.calc = Calculator(PairPotential(direct=True).double(), device="cpu")
    assert not direct.get_forces().any() and direct.calc.model.calls == [{"forces": True, "stress": False}]
    assert direct.get_stress().any() and direct.calc.model.calls[1]["stress"]


@pytest.mark.parametrize("network", ["equivariant/invariant", "equivariant/escn"])
def test_energies_of_atoms_add_up(network):
    """To the energy, with the references; a supercell has each as often as it has cells, two distant clusters have those of both."""
    arguments: Any = {"layers": 1, "channels": 6} if network.endswith("invariant") else {"num_layers": 1, "sphere_channels": 4}
    if network.endswith("escn"):
        arguments |= {"lmax": 2, "mmax": 2, "hidden_channels": 6, "edge_channels": 5}
    torch.manual_seed(0)
    model: Any = create_model(network, dims=3, elements=("Cu", "O"), cutoff=4.0, gaussians=6, **arguments).double().eval()
    model.references.copy_(torch.tensor([-1234.5, -432.1]))
    model.scale.fill_(2.0)
    cell, slab, cluster = structures()[1:4]
    other = cluster.copy()
    other.positions += 100.0
    for atoms, more in ((cell, cell.repeat((2, 1, 3))), (slab, slab.repeat((2, 1, 1))), (cluster, cluster + other)):
        atoms.calc, more.calc = Calculator(model, device="cpu"), Calculator(model, device="cpu")
        found, times = atoms.get_potential_energies(), len(more) // len(atoms)
        assert found.shape == (len(atoms),) and found.dtype == np.float64
        assert np.ptp(found) > 0 or len(atoms) == 1
        assert abs(found.sum() - atoms.get_potential_energy()) < 1e-10
        np.testing.assert_allclose(more.get_potential_energies(), np.tile(found, times), rtol=0, atol=1e-10)
        assert abs(more.get_potential_energy() - times * atoms.get_potential_energy()) < 1e-9


def test_a_stress_needs_a_cell():
    atoms = structures()[3]
    atoms.calc = exact()
    with pytest.raises(PropertyNotImplementedError, match="three vectors"):
        atoms.get_stress()


def test_neighbours_are_kept_and_never_miss_one():
    """Moved again and again, the edges are those of a fresh search, and are found anew only where they must be."""
    rng = np.random.default_rng(0)
    for atoms in structures():
        neighbors, steps = Neighbors(CUTOFF, 0.6), 25
        for _ in range(steps):
            atoms.positions += rng.normal(0, 0.02, (len(atoms), 3))
            kept, fresh = neighbors.graph(atoms), to_graph(atoms, CUTOFF, dtype=torch.float64)
            listed = [_vectors(graph) for graph in (kept, fresh)]
            assert listed[0].shape == listed[1].shape and np.allclose(listed[0], listed[1], atol=1e-9)
        assert neighbors.built < steps / 2


def _vectors(graph):
    """Centre, neighbour and vector of every edge, in an order of their own."""
    neighbor, center = graph.edge_index
    vectors = graph.pos[neighbor] - graph.pos[center] + graph.shifts @ graph.cell[0]
    rows = torch.cat([center[:, None], neighbor[:, None], vectors], 1).numpy()
    return rows[np.lexsort(np.round(rows, 6).T[::-1])]


def test_what_makes_neighbours_be_found_anew():
    atoms = structures()[0]
    neighbors = Neighbors(CUTOFF, 0.6)
    for change, expected in (
        (lambda: None, 1),
        (lambda: None, 1),
        (lambda: atoms.positions.__setitem__((0, 0), atoms.positions[0, 0] + 0.29), 1),
        (lambda: atoms.positions.__setitem__((0, 0), atoms.positions[0, 0] + 0.02), 2),
        (lambda: atoms.set_cell(1.001 * atoms.cell), 3),
        (lambda: atoms.set_pbc((True, True, False)), 4),
        (lambda: atoms.numbers.__setitem__(0, 8), 5),
        (lambda: atoms.append("Cu"), 6),
    ):
        change()
        if expected == 6:
            atoms.positions[-1] = atoms.positions[0] + (0, 0, 1.0)
        neighbors.graph(atoms)
        assert neighbors.built == expected


def test_what_cannot_be_computed_is_said_and_forgotten():
    """Also between two searches for neighbours; the next good structure is computed again."""
    atoms = structures()[0]
    atoms.calc = exact(skin=3.0)
    energy, good = atoms.get_potential_energy(), atoms.positions.copy()
    atoms.positions[3, 1] = np.nan
    with pytest.raises(InputError, match=r"atom 3 \(Cu\) has a position that is not a finite number"):
        atoms.get_forces()
    atoms.positions[:] = good
    atoms.positions[1] = good[1] + 0.45 * (good[0] - good[1])
    atoms.positions[0] = good[0] + 0.55 * (good[1] - good[0])
    with pytest.raises(InputError, match=r"atoms 0 \(Cu\) and 1 \(Cu\) are .* A apart"):
        atoms.get_forces()
    atoms.positions[:] = good
    assert np.isclose(atoms.get_potential_energy(), energy, rtol=1e-13)
    for symbol in ("Fe", "X"):
        strange = Atoms(["Cu", symbol], [(0, 0, 0), (0, 0, 2)], calculator=atoms.calc)
        with pytest.raises(InputError, match=f"{symbol}: not among the elements"):
            strange.get_potential_energy()
    with pytest.raises(InputError, match="no atoms"):
        Atoms(calculator=exact()).get_potential_energy()
    broken = PairPotential()
    torch.nn.init.constant_(broken.depth, torch.nan)
    atoms.calc = Calculator(broken, device="cpu")
    with pytest.raises(CnnkitError, match="network's energy, free_energy, energies of Cu32 are not finite"):
        atoms.get_potential_energy()


def test_a_network_is_used_as_it_is():
    """Its mode and its place stay; another precision is a copy's."""
    network = PairPotential().train()
    atoms = structures()[0]
    atoms.calc = Calculator(network, device="cpu")
    before = atoms.get_potential_energy()
    assert network.training and atoms.calc.model is network
    with torch.no_grad():
        network.depth *= 2
    atoms.calc.reset()
    assert np.isclose(atoms.get_potential_energy(), 2 * before)
    double = Calculator(network, device="cpu", dtype="float64").model
    assert double is not network and double.depth.dtype == torch.float64 and network.depth.dtype == torch.float32


@pytest.mark.parametrize(("options", "told"), [({"dtype": "half"}, "float32, float64"), ({"skin": -1}, "skin"), ({"device": "tpu"}, "tpu")])
def test_options_that_there_are_not(options, told):
    with pytest.raises(UsageError, match=told):
        Calculator(PairPotential(), **{"device": "cpu"} | options)


# With ASE's tools.


def test_relaxation_ends_where_the_closed_form_does():
    """Atoms alone by two optimizers, and a cell with its atoms; from the same start to the same end."""
    for optimizer, filtered in ((FIRE, False), (BFGS, True)):
        ends = []
        for calculator in (exact(), oracle()):
            atoms = bulk("Cu", "fcc", 3.7, cubic=True)
            atoms.rattle(0.1, seed=4)
            atoms.calc = calculator
            target = FrechetCellFilter(atoms) if filtered else atoms
            assert optimizer(target, logfile=None).run(fmax=1e-3, steps=300)
            ends.append(atoms)
        assert np.allclose(ends[0].positions, ends[1].positions, atol=1e-6)
        assert np.allclose(ends[0].cell, ends[1].cell, atol=1e-6)


def test_dynamics_keep_the_energy():
    """200 steps of 2 fs at 300 K in float64: the total energy swings by less than a thousandth of the kinetic one, without a drift."""
    atoms = bulk("Cu", "fcc", 3.4, cubic=True)
    atoms.calc = exact()
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(0))
    Stationary(atoms)
    kinetic = atoms.get_kinetic_energy()
    totals = []
    dynamics = VelocityVerlet(atoms, timestep=2 * units.fs)
    dynamics.attach(lambda: totals.append(atoms.get_total_energy()))
    dynamics.run(200)
    assert np.ptp(totals) < 2e-2 * kinetic
    drift = np.polyfit(np.arange(len(totals)), totals, 1)[0] * len(totals)
    assert abs(drift) < 2e-3 * kinetic
    assert 1 <= atoms.calc.neighbors.built < 50
    assert np.abs(atoms.get_momenta().sum(0)).max() < 1e-9


def test_relax(tmp_path):
    """An adsorbate over a slab whose lowest layer is fixed, as EMT relaxes it."""
    slab = fcc111("Cu", (2, 2, 3), vacuum=7.0)
    slab += Atoms("O", [slab.positions[-1] + (0.3, 0.2, 2.0)])
    slab.set_constraint(FixAtoms(indices=range(4)))
    start = slab.positions.copy()
    result = relax(slab, EMT(), fmax=0.02, steps=300)
    assert np.array_equal(slab.positions, start) and slab.calc is None
    assert result.converged and result.forces[-1] < 0.02 < result.forces[0] and result.energies[-1] < result.energies[0]
    assert len(result.energies) == len(result.forces) == result.steps + 1
    assert np.array_equal(result.atoms.positions[:4], start[:4]) and not np.array_equal(result.atoms.positions, start)
    assert result.atoms.get_potential_energy() == result.energies[-1]
    twin = slab.copy()
    twin.calc = EMT()
    BFGS(twin, logfile=None).run(fmax=0.02, steps=300)
    assert np.isclose(twin.get_potential_energy(), result.energies[-1], atol=2e-3)
    path = draw_relaxation(tmp_path / "a.png", result, fmax=0.02)
    with Image.open(path) as picture:
        assert picture.size[0] > 600 and len(picture.getcolors(1 << 20)) > 4


@pytest.mark.parametrize("optimizer", ["lbfgs", "bfgs"])
def test_relax_a_cell(optimizer):
    """A strained crystal goes back to the lattice constant at which EMT has no stress; a slab keeps its vacuum."""
    atoms = bulk("Cu", cubic=True)
    atoms.set_cell(atoms.cell @ np.diag([1.04, 0.98, 1.01]), scale_atoms=True)
    result = relax(atoms, EMT(), cell=True, fmax=2e-3, optimizer=optimizer)
    assert (
        result.converged and np.allclose(result.atoms.cell.lengths(), 3.5899, atol=2e-3) and np.abs(result.atoms.get_stress()).max() < 2e-4
    )
    slab = fcc111("Cu", (1, 1, 3), a=3.7, vacuum=7.0)
    relaxed = relax(slab, EMT(), cell=True, fmax=0.05, optimizer=optimizer).atoms
    assert np.allclose(relaxed.cell[2], slab.cell[2], atol=1e-9) and relaxed.cell.lengths()[0] < slab.cell.lengths()[0] - 0.02


def test_relaxations_that_do_not_end_well():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.2, seed=0)
    with pytest.warns(InputWarning, match="Cu4 was not relaxed after 2 steps: its largest force is .* instead of 0.001"):
        result = relax(atoms, EMT(), fmax=0.001, steps=2)
    assert result.steps == 2 and not result.converged
    with pytest.raises(InputError, match="no periodic cell"):
        relax(molecule("H2O"), EMT(), cell=True)

    class Astray(EMT):
        def calculate(self, *args):
            super().calculate(*args)
            self.results["forces"] = self.results["forces"] * np.nan

    with pytest.raises(CnnkitError, match="astray at step 0"):
        relax(atoms, Astray())


def test_the_picture_of_one_step(tmp_path):
    """A structure that was relaxed at the start, and forces of zero."""
    draw_relaxation(tmp_path / "a.png", Relaxation(molecule("H2O"), [1.0], [0.0], True), title="water")
    assert (tmp_path / "a.png").stat().st_size > 1000


# Checkpoints.


def test_checkpoints_that_are_no_potential(tmp_path):
    """Whole pickled modules as MACE's and torch.save's, pickles, nothing, and networks of another kind."""
    import pickle

    torch.save(torch.nn.Linear(2, 2), tmp_path / "mace.model")
    (tmp_path / "old.model").write_bytes(pickle.dumps({"a": 1}))
    for name, told in (("mace.model", r"torch\.save|refused"), ("old.model", "pickle"), ("none.ckpt", "does not exist")):
        with pytest.raises(CheckpointError, match=told):
            Calculator(tmp_path / name, device="cpu")


def saved(path, name, arguments):
    """A checkpoint of an untrained network."""
    model = create_model(name, dims=model_entry(name).dims[0], **arguments)
    return save_checkpoint(path, model.state_dict(), Header(task="equivariant", config={"network": {"name": name, "args": arguments}}))


def test_a_checkpoint_is_run_the_way_it_was_trained(tmp_path):
    """With its own elements and cutoff, and in the precision that is asked for; a network that tells classes is refused."""
    for cutoff in (3.0, 4.5):
        arguments = {"elements": ["O", "Cu"], "cutoff": cutoff, "channels": 6, "layers": 1, "gaussians": 6}
        path = saved(tmp_path / "a.ckpt", "equivariant/invariant", arguments)
        atoms = structures()[0]
        found = {}
        for dtype in ("float32", "float64"):
            atoms.calc = Calculator(path, device="cpu", dtype=dtype)
            assert atoms.calc.model.cutoff == atoms.calc.neighbors.cutoff == cutoff and atoms.calc.model.elements == ("O", "Cu")
            found[dtype] = atoms.get_forces()
        assert np.abs(found["float64"]).max() > 0 and np.allclose(found["float32"], found["float64"], atol=1e-5)
        with pytest.raises(InputError, match=r"H: not among the elements that the network was trained on \(O, Cu\)"):
            Atoms("H", calculator=atoms.calc).get_potential_energy()
    path = saved(tmp_path / "b.ckpt", "equivariant/lorentz_resnet_small", {"depths": [1], "widths": [4], "num_classes": 10, "in_chans": 1})
    with pytest.raises(CheckpointError, match="HyperbolicResNet, which knows no energies"):
        Calculator(path, device="cpu")


def test_importing_the_manifest_imports_neither_torch_nor_ase():
    code = "import sys, cnnkit_equivariant as it; assert not {'torch', 'ase', 'numpy'} & set(sys.modules); assert not hasattr(it, 'Relax')"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert Calculator.__module__ == "cnnkit_equivariant.atoms.calculator"
