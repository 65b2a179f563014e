"""What a network says of structures: of a batch of graphs, of the frames of a file, and of those that it relaxes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from ase.stress import voigt_6_to_full_3x3_stress
from cnnkit.engine.files import write_rows
from cnnkit.errors import InputWarning
from torch_geometric.data import Batch, Data

from cnnkit_equivariant.args import Run
from cnnkit_equivariant.atoms import data
from cnnkit_equivariant.atoms.calculator import Calculator
from cnnkit_equivariant.atoms.files import Frame, write_structures, write_table
from cnnkit_equivariant.atoms.picture import draw_relaxation
from cnnkit_equivariant.atoms.relax import Relaxation, relax
from cnnkit_equivariant.atoms.structures import bare_graph
from cnnkit_equivariant.models._base import Potential

GROUP = 32
"""Structures that go through the network at once."""
PICTURES = 20
"""Relaxations of one file that are drawn at most."""


@dataclass
class Predicted:
    """What a network says of a structure.

    Args:
        energy: In eV.
        forces: ``(N, 3)`` in eV/A, if they were asked for.
        stress: ``(3, 3)`` in eV/A^3, if it was asked for.
    """

    energy: float
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None


@dataclass
class Labelled:
    """The structures of a file and what a network says of them."""

    frames: Sequence[Frame]
    predictions: Sequence[Predicted]

    def write(self, folder: Path, name: str) -> list[Path]:
        """Write ``NAME.extxyz`` and ``NAME.csv``, and return them."""
        structures, numbers = [frame.atoms for frame in self.frames], [frame.number for frame in self.frames]
        return [
            write_structures(folder / f"{name}.extxyz", structures, self.predictions),
            write_table(folder / f"{name}.csv", structures, self.predictions, numbers),
        ]


@dataclass
class Relaxed:
    """The structures of a file and where a network's forces move them.

    Args:
        frames: Where they start.
        relaxations: Of each.
        fmax: Largest force at which they were to end, in eV/A.
    """

    frames: Sequence[Frame]
    relaxations: Sequence[Relaxation]
    fmax: float

    def write(self, folder: Path, name: str) -> list[Path]:
        """Write ``NAME.relaxed.extxyz``, ``NAME.csv``, and ``NAME.png`` or a picture for each of the first frames, and return them."""
        ends = [one.atoms.copy() for one in self.relaxations]
        found = [_last(one) for one in self.relaxations]
        files = [write_structures(folder / f"{name}.relaxed.extxyz", ends, found), write_rows(folder / f"{name}.csv", self._table())]
        for frame, one in list(zip(self.frames, self.relaxations, strict=True))[:PICTURES]:
            picture = folder / (f"{name}.png" if len(self.frames) == 1 else f"{name}.{frame.number}.png")
            files.append(draw_relaxation(picture, one, fmax=self.fmax))
        return files

    def _table(self) -> list[list[object]]:
        table: list[list[object]] = [
            ["Frame", "Formula", "Atoms", "Energy at the start (eV)", "Energy (eV)", "Largest force (eV/A)", "Steps", "Relaxed"]
        ]
        for frame, one in zip(self.frames, self.relaxations, strict=True):
            atoms, figures = frame.atoms, (one.energies[0], one.energies[-1], one.forces[-1])
            shown = [f"{value:.6f}" for value in figures]
            table.append([frame.number, atoms.get_chemical_formula(), len(atoms), *shown, one.steps, "yes" if one.converged else "no"])
        return table


def _last(one: Relaxation) -> Predicted:
    """Return what the network says of the end of a relaxation."""
    results = one.atoms.calc.results
    stress = results.get("stress")
    return Predicted(one.energies[-1], results["forces"], None if stress is None else voigt_6_to_full_3x3_stress(stress))


def predict_graph(model: Potential, graph: Data, *, forces: bool, stress: bool) -> list[Predicted]:
    """Return what a network says of each structure of a batch."""
    found = {name: value.detach().cpu().double().numpy() for name, value in model(graph, forces=forces, stress=stress).items()}
    return [
        Predicted(
            float(found["energy"][number]),
            found["forces"][first:last] if forces else None,
            found["stress"][number] if stress else None,
        )
        for number, (first, last) in enumerate(pairwise(graph.ptr.tolist()))
    ]


def predict_frames(model: Potential, frames: Sequence[Frame], *, forces: bool, stress: bool) -> list[Predicted]:
    """Return what a network says of structures, in their order, batch by batch; in the precision of its weights."""
    place = next(model.parameters()).device
    said: list[Predicted] = []
    for group in _groups(model, frames):
        batch = Batch.from_data_list(group).to(place)
        said += predict_graph(model, batch, forces=forces, stress=stress)
    return said


def _groups(model: Potential, frames: Sequence[Frame]) -> Iterator[list[Data]]:
    """Make graphs, and yield them in groups of bounded numbers of structures and edges."""
    graphs = (bare_graph(frame.atoms, model.cutoff, dtype=model.dtype) for frame in frames)
    return data.bounded(graphs, lambda graph: graph.edge_index.shape[1], GROUP, data.MOST_EDGES)


def known_frames(model: Potential, frames: Sequence[Frame], source: str) -> list[Frame]:
    """Return the frames whose elements a network knows, and warn of the others.

    Raises:
        InputError: If there is none.
    """
    good = []
    for frame in frames:
        strange = sorted(set(frame.atoms.get_chemical_symbols()) - set(model.elements))
        if strange:
            message = f"{source}: frame {frame.number} is left out: {', '.join(strange)}: not among the elements that the network knows"
            warnings.warn(message, InputWarning, stacklevel=2)
        else:
            good.append(frame)
    if not good:
        model.species(torch.from_numpy(frames[0].atoms.numbers).to(model.element_index.device))
    return good


def label_frames(model: Potential, frames: Sequence[Frame], run: Run) -> Labelled:
    """Return what a network says of the structures of a file, as the options say."""
    return Labelled(frames, predict_frames(model, frames, forces=run.forces, stress=run.stress))


def relax_frames(model: Potential, frames: Sequence[Frame], run: Run) -> Relaxed:
    """Relax the structures of a file one after the other, as the options say."""
    engine = Calculator(model, device=str(next(model.parameters()).device))
    done = [relax(frame.atoms, engine, cell=run.cell, fmax=run.fmax, steps=run.steps) for frame in frames]
    return Relaxed(frames, done, run.fmax)
