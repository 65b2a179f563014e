"""Train potentials on EMT's energies and forces for minutes, and compare them with dumber ones on structures that they never saw.

The eSCN and a network of distances alone of about its size learn from the same structures for the same steps; beside them the mean energy
per atom without forces, and energies of the elements added up. Exit status 1 if the eSCN's energies are not 5 times as good as the mean's,
or its forces not 3 times::

    python tests/bench/quality_equivariant_atoms.py --structures 300 --epochs 12
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cnnkit.config import build
from cnnkit.count import count_params
from cnnkit.engine.fit import fit
from cnnkit.engine.load import load
from cnnkit.plugin import get
from cnnkit_equivariant.atoms.data import frames
from cnnkit_equivariant.atoms.metrics import AtomsMetric
from cnnkit_equivariant.atoms.prediction import Predicted

RECIPES = Path(__file__).parents[2] / "configs" / "equivariant"
NETWORKS = {"eSCN": "emt", "distances alone": "emt_invariant"}
ENERGIES, FORCES = 5.0, 3.0
"""How much smaller the errors of the eSCN have to be than those of the mean."""


def train(recipe: str, output: Path, *, structures: int, epochs: int) -> tuple[Any, float]:
    """Train a recipe on few structures, and return what was loaded and the minutes of the processor."""
    plugin = get("equivariant")
    kind: Any = plugin.load_task()
    overrides = [f"atoms.emt.train={structures}", "atoms.emt.val=20", "atoms.emt.test=100", f"train.epochs={epochs}"]
    cfg = build(kind.Config, file=RECIPES / f"{recipe}.yaml", overrides=overrides)
    started = time.process_time()
    last = fit(kind(cfg), output=output, plugin=plugin, progress=False).last
    return load(last), (time.process_time() - started) / 60


def measure(loaded: Any) -> dict[str, dict[str, float]]:
    """Return the errors of a network on the test, and those of what knows less."""
    task = loaded.task
    training = frames(task.cfg.atoms, "train", seed=task.cfg.train.seed)
    assert training is not None
    per_atom = float(np.mean([atoms.get_potential_energy() / len(atoms) for atoms in training]))
    found = {"network": AtomsMetric(), "mean": AtomsMetric(), "sum of elements": AtomsMetric()}
    with torch.no_grad():
        for batch in task.loader("test"):
            counts = np.diff(batch["graph"]["ptr"].numpy())
            elements = loaded.model.references[loaded.model.species(batch["graph"]["z"])]
            sums = torch.zeros(len(counts), dtype=torch.float64).index_add(0, batch["graph"]["batch"], elements).tolist()
            found["network"].update(task.predict(loaded.model, batch), batch)
            found["mean"].update([Predicted(per_atom * count, np.zeros((count, 3))) for count in counts], batch)
            found["sum of elements"].update([Predicted(e, np.zeros((n, 3))) for e, n in zip(sums, counts, strict=True)], batch)
    return {name: metric.compute() for name, metric in found.items()}


def row(name: str, figures: dict[str, float], about: str) -> str:
    """Return a row of the table."""
    return f"| {name} | {figures['energy_mae']:.1f} | {figures['forces_mae']:.0f} | {figures.get('forces_cos', 0):.3f} | {about} |"


def main() -> int:
    """Train, measure and print; 1 if the eSCN misses its factor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| test structures of EMT | meV/atom | meV/A | cosine | |\n|---|---|---|---|---|")
    found: dict[str, dict[str, dict[str, float]]] = {}
    for title, recipe in NETWORKS.items():
        with tempfile.TemporaryDirectory() as folder:
            loaded, minutes = train(recipe, Path(folder), structures=options.structures, epochs=options.epochs)
        found[title] = measure(loaded)
        print(row(title, found[title]["network"], f"{count_params(loaded.model)} parameters, {minutes:.1f} minutes"), flush=True)
    ours = found["eSCN"]
    print(row("sum of elements", ours["sum of elements"], "least squares"))
    print(row("mean energy per atom", ours["mean"], "no forces"))
    energies = ours["mean"]["energy_mae"] / ours["network"]["energy_mae"]
    forces = ours["mean"]["forces_mae"] / ours["network"]["forces_mae"]
    missed = energies < ENERGIES or forces < FORCES
    print(f"\neSCN against the mean: energies {energies:.1f} times as good (target {ENERGIES:g}), forces {forces:.1f} (target {FORCES:g})")
    print("missed" if missed else "met")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
