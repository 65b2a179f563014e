"""Clusters of copper and gold, labelled by ASE's EMT: the spherical network for atoms, a network of distances of its size, the mean.

Clusters of four to eight atoms, random and rattled; those that are measured were never trained on. Energies and forces are trained
together, the same batches for both networks; one thread, some minutes of the processor. Exit status 1 if the spherical network does not
beat the fit of an energy per element by its margin in energies and the zero in forces, or changes its energies under rotations::

    python tests/bench/quality_equivariant_molecules.py
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from ase.calculators.emt import EMT
from cnnkit.count import count_params
from cnnkit_equivariant.atoms.data import facts
from cnnkit_equivariant.atoms.emt import label
from cnnkit_equivariant.atoms.structures import to_graph
from cnnkit_equivariant.models._base import Potential
from cnnkit_equivariant.models.invariant import Invariant
from cnnkit_equivariant.models.spherical_molecule import SphericalMolecule
from cnnkit_equivariant.sphere.projection import turn
from torch_geometric.data import Batch

ELEMENTS = ("Cu", "Au")
CUTOFF = 4.5
NEAR = 2.2
"""Atoms are at least this far apart when a cluster is drawn, in A, before it relaxes for a few steps."""
MARGIN = 0.25
"""Share of the error of the mean predictor that the network may have."""
INVARIANT = 1e-4
"""Largest change of an energy under a rotation, in eV."""


def cluster(rng: np.random.Generator) -> Atoms:
    """Draw a cluster: each atom touches one that is there, then all follow the forces for a little while and are rattled."""
    places = [np.zeros(3)]
    count = int(rng.integers(4, 9))
    while len(places) < count:
        step = rng.normal(size=3)
        place = places[rng.integers(len(places))] + step / np.linalg.norm(step) * rng.uniform(2.4, 2.9)
        if min(np.linalg.norm(place - other) for other in places) > NEAR:
            places.append(place)
    atoms = Atoms(rng.choice(ELEMENTS, count), places)
    atoms.calc = EMT()
    for _ in range(int(rng.integers(0, 12))):
        forces = atoms.get_forces()
        atoms.positions += 0.05 * forces / max(1.0, abs(forces).max())
    atoms.positions += rng.normal(0, 0.08, (count, 3))
    return label(atoms)


def train(model: Potential, structures: Sequence[Atoms], *, steps: int, batch: int = 8) -> float:
    """Train on energies per atom and forces; return the seconds of the processor."""
    found = facts(structures, ELEMENTS)
    model.references.copy_(torch.tensor(found.references))
    model.scale.fill_(found.scale)
    graphs = [to_graph(atoms, CUTOFF) for atoms in structures]
    rng, start = np.random.default_rng(0), time.process_time()
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    model.train()
    for _ in range(steps):
        graph = Batch.from_data_list([graphs[row] for row in rng.integers(len(graphs), size=batch)])
        sizes = graph.batch.bincount()
        said = model(graph)
        energy = ((said["energy"] - graph.energy) / sizes).abs().mean()
        loss = energy + (said["forces"] - graph.forces).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    model.eval()
    return time.process_time() - start


@torch.no_grad()
def measure(model: Potential, structures: Sequence[Atoms]) -> tuple[float, float, float]:
    """Return the mean absolute errors in meV/atom and meV/A, and the largest change of an energy under a rotation in eV."""
    graph = Batch.from_data_list([to_graph(atoms, CUTOFF) for atoms in structures])
    said, changes = model(graph), []
    for matrix in turn("any", 3, np.random.default_rng(0)):
        turned = graph.clone()
        turned.pos = graph.pos @ torch.from_numpy(matrix.T).float()
        changes.append((model(turned, forces=False)["energy"] - said["energy"]).abs().max().item())
    energy = ((said["energy"] - graph.energy) / graph.batch.bincount()).abs().mean().item()
    return 1e3 * energy, 1e3 * (said["forces"] - graph.forces).abs().mean().item(), max(changes)


def dumbest(structures: Sequence[Atoms], test: Sequence[Atoms]) -> tuple[float, float]:
    """Return the errors of an energy per element and of no force, in meV/atom and meV/A."""
    references = dict(zip(ELEMENTS, facts(structures, ELEMENTS).references, strict=True))
    energies = [abs(atoms.get_potential_energy() - sum(references[symbol] for symbol in atoms.symbols)) / len(atoms) for atoms in test]
    return 1e3 * float(np.mean(energies)), 1e3 * float(np.mean(np.concatenate([abs(atoms.get_forces()).ravel() for atoms in test])))


def main() -> int:
    """Train, measure and print; 1 if a margin is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=250, help="clusters to train on")
    parser.add_argument("--steps", type=int, default=250)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    structures = [cluster(rng) for _ in range(options.count)]
    test = [cluster(rng) for _ in range(100)]
    print("| | parameters | energy, meV/atom | forces, meV/A | change under rotations, eV | s |\n|---|---|---|---|---|---|")
    mean = dumbest(structures, test)
    print(f"| energy per element, no forces | 2 | {mean[0]:.1f} | {mean[1]:.0f} | | |", flush=True)
    torch.manual_seed(0)
    sphere = SphericalMolecule(
        elements=ELEMENTS, cutoff=CUTOFF, types=3, widths=(12, 16), bandwidths=(5, 4), knots=(4, 3), hidden=48, angle=50.0
    )
    flat = Invariant(elements=ELEMENTS, cutoff=CUTOFF, channels=46, layers=2, gaussians=20)
    found = {}
    for name, model in (("spherical", sphere), ("distances", flat)):
        seconds = train(model, structures, steps=options.steps)
        found[name] = measure(model, test)
        energy, forces, change = found[name]
        print(f"| {name} | {count_params(model)} | {energy:.1f} | {forces:.0f} | {change:.1e} | {seconds:.0f} |", flush=True)
    energy, forces, change = found["spherical"]
    return int(energy > MARGIN * mean[0] or forces > MARGIN * mean[1] or change > INVARIANT)


if __name__ == "__main__":
    sys.exit(main())
