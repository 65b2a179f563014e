"""Train the built-in potential of the equivariant plugin on EMT's energies and forces, measure it, and put it in its place.

    python tools/examples/equivariant.py --work runs/emt

trains ``configs/equivariant/emt.yaml`` and the network of distances alone, ``emt_invariant.yaml``, on the same structures for the same
steps as ``cnnkit train equivariant`` does. Both are measured on the test's structures, which were not trained on, beside two that know
less: the mean energy per atom of the training's structures of the kind, and the energies of the elements, fitted and added up, both without
forces. Every adsorbate that was held out is relaxed on its slab, by the network and by EMT. The tables go to ``RESULT.md``. With
``--install`` the network becomes the plugin's own.

What a folder holds already is not trained again, so that both may be trained at once before the rest::

    python tools/examples/equivariant.py --work runs/emt --train-only emt &
    python tools/examples/equivariant.py --work runs/emt --train-only emt_invariant
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from cnnkit.checkpoint import load_checkpoint, save_checkpoint
from cnnkit.config import build
from cnnkit.count import count_params
from cnnkit.engine.files import write_json, write_text
from cnnkit.engine.fit import fit
from cnnkit.engine.load import Loaded, load
from cnnkit.plugin import get
from cnnkit_equivariant import args
from cnnkit_equivariant.atoms import emt
from cnnkit_equivariant.atoms.adsorption import FMAX, STEPS, Compared, compare, start
from cnnkit_equivariant.atoms.calculator import Calculator
from cnnkit_equivariant.atoms.data import Frames, frames, kind_of
from cnnkit_equivariant.atoms.metrics import AtomsMetric
from cnnkit_equivariant.atoms.prediction import Predicted
from cnnkit_equivariant.atoms.relax import relax
from cnnkit_equivariant.models._base import Potential

RECIPES = Path(__file__).parents[2] / "configs" / "equivariant"
PACKAGE = Path(args.__file__).parent
NETWORKS = {"eSCN": "emt", "distances alone": "emt_invariant"}
"""Recipes by what the table calls their networks."""
CHECKPOINT = get("equivariant").checkpoint
NOTE = "Trained on metals, alloys and adsorbates on slabs with energies and forces of ASE's EMT."
LONGITUDES = 19
"""Of the grid that the network is run on: training makes what a coarse one does not resolve larger."""
MEAN, SUM = "mean of the kind, no forces", "sum of the elements, no forces"

Figures = dict[str, dict[str, float]]


def train(work: Path, recipe: str, overrides: Sequence[str]) -> tuple[Path, float]:
    """Train and return the checkpoint of the last epoch, and the minutes of the processor; what is there already is kept."""
    output = work / recipe
    if not (output / "minutes.txt").exists():
        plugin = get("equivariant")
        kind: Any = plugin.load_task()
        cfg = build(kind.Config, file=RECIPES / f"{recipe}.yaml", overrides=overrides)
        started = time.process_time()
        fit(kind(cfg), output=output, plugin=plugin)
        write_text(output / "minutes.txt", f"{(time.process_time() - started) / 60:.1f}\n")
    return output / "last.ckpt", float((output / "minutes.txt").read_text(encoding="utf-8"))


def refined(checkpoint: Path) -> Path:
    """Return a checkpoint of the same network on a finer grid, written beside it; one without a grid stays as it is."""
    header, state = load_checkpoint(checkpoint)
    network = header.config["network"]
    if "resolution" not in network["args"]:
        return checkpoint
    network = {**network, "args": {**network["args"], "resolution": LONGITUDES}}
    return save_checkpoint(checkpoint.with_name("fine.ckpt"), state, replace(header, config={**header.config, "network": network}))


def measure(loaded: Loaded) -> dict[str, AtomsMetric]:
    """Return the errors on the test: of a network, of the mean of its training's structures of the kind, and of the sum of its elements."""
    task, model = loaded.task, loaded.model
    training = frames(task.cfg.atoms, "train", seed=task.cfg.train.seed)
    assert training is not None and isinstance(model, Potential)
    found = {name: AtomsMetric() for name in ("network", MEAN, SUM)}
    with torch.no_grad():
        for batch in task.loader("test"):
            graph = batch["graph"]
            counts = np.diff(graph["ptr"].numpy())
            atomic = model.references[model.species(graph["z"])]
            sums = torch.zeros(len(counts), dtype=torch.float64).index_add(0, graph["batch"], atomic).tolist()
            means = [mean_per_atom(training, kind) * count for kind, count in zip(batch["kind"], counts, strict=True)]
            found["network"].update(task.predict(model, batch), batch)
            for name, energies in ((MEAN, means), (SUM, sums)):
                found[name].update([Predicted(e, np.zeros((n, 3))) for e, n in zip(energies, counts, strict=True)], batch)
    return found


def mean_per_atom(structures: Frames, kind: str) -> float:
    """Return the mean energy per atom of the structures of a kind."""
    return float(np.mean([atoms.get_potential_energy() / len(atoms) for atoms in structures if kind_of(atoms) == kind]))


def relaxed_adsorbate(loaded: Loaded, what: emt.Adsorption) -> Compared:
    """Relax an adsorbate by the network and by EMT."""
    assert isinstance(loaded.model, Potential)
    engine = Calculator(loaded.model, device="cpu", dtype="float64")
    return compare(what, relax(start(what), engine, fmax=FMAX, steps=STEPS))


def errors_table(figures: Figures) -> str:
    """Return the errors by kind of structure as a Markdown table."""
    lines = ["| test structures | " + " | ".join(figures) + " |", "|---|" + "---|" * len(figures)]
    for kind in (*sorted(set(emt.KINDS)), "all"):
        prefix = "" if kind == "all" else f"{kind}/"
        cells = [f"{found[f'{prefix}energy_mae']:.1f} meV/atom, {found[f'{prefix}forces_mae']:.0f} meV/A" for found in figures.values()]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def relaxations_table(found: Sequence[Compared]) -> str:
    """Return where relaxations end as a Markdown table."""
    lines = ["| held out | network and EMT end apart by | energy: network, EMT | steps |", "|---|---|---|---|"]
    for one in found:
        name = f"{one.what.adsorbate} on {one.what.metal}({one.what.facet})"
        energies = f"{one.network_energy:.3f}, {one.emt_energy:.3f} eV"
        lines.append(f"| {name} | {one.apart:.3f} A | {energies} | {one.steps}, {one.emt_steps} |")
    distances = [one.apart for one in found]
    lines.append(f"| median, largest | {np.median(distances):.3f} A, {max(distances):.3f} A | | |")
    return "\n".join(lines) + "\n"


def install(checkpoint: Path, figures: dict[str, float], target: Path) -> Path:
    """Write the network to where the plugin looks for it, with its figures."""
    header, state = load_checkpoint(checkpoint)
    metrics = {name: round(value, 4) for name, value in figures.items()}
    return save_checkpoint(target, state, replace(header, metrics=metrics, note=NOTE))


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for trainings and RESULT.md.")
@click.option("--install/--no-install", "installing", default=False, help="Write the checkpoint to weights/ of the plugin.")
@click.option("--train-only", type=click.Choice(list(NETWORKS.values())), help="Train this recipe, and do nothing else.")
@click.option("--set", "overrides", multiple=True, help="KEY=VALUE over both recipes.")
def main(work: Path, installing: bool, train_only: str | None, overrides: tuple[str, ...]) -> None:
    """Train, measure and install the built-in potential."""
    if train_only:
        train(work, train_only, overrides)
        return
    figures: Figures = {}
    relaxed: list[Compared] = []
    about = []
    for title, recipe in NETWORKS.items():
        checkpoint, minutes = train(work, recipe, overrides)
        checkpoint = refined(checkpoint)
        loaded = load(checkpoint)
        found = measure(loaded)
        found["network"].report(work / recipe)
        figures |= {title: found["network"].compute()} | {name: found[name].compute() for name in (MEAN, SUM)}
        about.append(f"{title}: {count_params(loaded.model)} parameters, {checkpoint.stat().st_size / 1e6:.2f} MB, {minutes:.0f} minutes")
        if recipe == "emt":
            relaxed = [relaxed_adsorbate(loaded, what) for what in emt.adsorptions("test")]
            if installing:
                print(f"wrote {install(checkpoint, figures[title], PACKAGE / CHECKPOINT)}", file=sys.stderr)
    figures = {name: figures[name] for name in (*NETWORKS, MEAN, SUM)}
    text = "\n".join(["\n\n".join(about) + "\n", errors_table(figures), relaxations_table(relaxed)])
    click.echo(text)
    write_json(work / "figures.json", figures)
    write_text(work / "RESULT.md", text)


if __name__ == "__main__":
    main()
