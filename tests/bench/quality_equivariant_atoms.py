"""Train potentials on EMT's energies and forces for minutes, and compare them with dumber ones on structures that they never saw.

The eSCN and a network of distances alone of its size learn from the same structures for the same steps; beside them what the example
measures too: means of each kind, and energies of the elements added up, without forces. Exit status 1 if, on the adsorbates that were
held out, the eSCN's energies are not 5 times as good as the mean, or its forces not 3 times::

    python tests/bench/quality_equivariant_atoms.py --structures 400 --epochs 12
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from cnnkit.config import build
from cnnkit.count import count_params
from cnnkit.engine.fit import fit
from cnnkit.engine.load import load
from cnnkit.plugin import get

RECIPES = Path(__file__).parents[2] / "configs" / "equivariant"
TRAINER = Path(__file__).parents[2] / "tools" / "examples" / "equivariant.py"
ENERGIES, FORCES = 5.0, 3.0
"""How much smaller the errors of the eSCN have to be than those of the mean."""


def example() -> ModuleType:
    """Import what trains the built-in potential, for its way to measure."""
    spec = importlib.util.spec_from_file_location("equivariant_example", TRAINER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["equivariant_example"] = module
    spec.loader.exec_module(module)
    return module


def train(recipe: str, output: Path, *, structures: int, epochs: int) -> tuple[Any, float]:
    """Train a recipe on few structures, and return what was loaded and the minutes of the processor."""
    plugin = get("equivariant")
    kind: Any = plugin.load_task()
    overrides = [f"atoms.emt.train={structures}", "atoms.emt.val=20", "atoms.emt.test=100", f"train.epochs={epochs}"]
    cfg = build(kind.Config, file=RECIPES / f"{recipe}.yaml", overrides=overrides)
    started = time.process_time()
    last = fit(kind(cfg), output=output, plugin=plugin, progress=False).last
    return load(last), (time.process_time() - started) / 60


def row(name: str, figures: dict[str, float], about: str) -> str:
    """Return a row of the table."""
    cells = [f"{figures[f'{kind}{what}']:.{digits}f}" for kind in ("slab/", "") for what, digits in (("energy_mae", 1), ("forces_mae", 0))]
    return f"| {name} | {' | '.join(cells)} | {about} |"


def main() -> int:
    """Train, measure and print; 1 if the eSCN misses its factor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tool = example()
    print("| unseen structures | slabs: meV/atom | meV/A | all: meV/atom | meV/A | |\n|---|---|---|---|---|---|")
    figures: dict[str, dict[str, float]] = {}
    for title, recipe in tool.NETWORKS.items():
        with tempfile.TemporaryDirectory() as folder:
            loaded, minutes = train(recipe, Path(folder), structures=options.structures, epochs=options.epochs)
        found = {name: metric.compute() for name, metric in tool.measure(loaded).items()}
        figures |= {title: found["network"], tool.MEAN: found[tool.MEAN], tool.SUM: found[tool.SUM]}
        print(row(title, found["network"], f"{count_params(loaded.model)} parameters, {minutes:.1f} minutes"), flush=True)
    for name in (tool.SUM, tool.MEAN):
        print(row(name, figures[name], ""))
    ours, mean = figures["eSCN"], figures[tool.MEAN]
    energies, forces = (mean[f"slab/{what}_mae"] / ours[f"slab/{what}_mae"] for what in ("energy", "forces"))
    missed = energies < ENERGIES or forces < FORCES
    print(f"\neSCN against the mean: energies {energies:.1f} times as good (target {ENERGIES:g}), forces {forces:.1f} (target {FORCES:g})")
    print("missed" if missed else "met")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
