"""The atoms job: energies, forces and stresses of structures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cnnkit.errors import ConfigError
from cnnkit.options import RunOptions
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.data import Data

from cnnkit_equivariant import config
from cnnkit_equivariant.atoms.data import Graphs, as_graph, facts, frames, known_rows, small_structures, train_loader, whole_loader
from cnnkit_equivariant.atoms.metrics import AtomsMetric
from cnnkit_equivariant.models._base import Potential
from cnnkit_equivariant.task import Batch, Equivariant


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


class Atomistic(Equivariant):
    """Energies and forces of atoms, trained on structures and measured in meV.

    Args:
        cfg: The experiment; its section ``atoms`` counts.
    """

    monitor = ("loss", "min")

    def prepare(self, output: Path) -> config.Config:
        """Complete the configuration by the elements, their reference energies and the size of the forces in the training structures."""
        cfg = self.cfg.atoms
        structures = frames(cfg, "train", seed=self.cfg.train.seed)
        if structures is None:
            raise ConfigError("atoms.train names no structures to train on")
        found = facts(structures, cfg.elements, cfg.references)
        atoms = replace(cfg, elements=found.elements, references=found.references, scale=cfg.scale or found.scale)
        return replace(self.cfg, atoms=atoms)

    def network_args(self) -> Mapping[str, Any]:
        """The elements."""
        return {"elements": self.cfg.atoms.elements} if self.cfg.atoms.elements else {}

    def model(self) -> Potential:
        """Build the network, with the references and the scale that :meth:`prepare` found."""
        model, cfg = super().model(), self.cfg.atoms
        assert isinstance(model, Potential)
        if cfg.references:
            if len(cfg.references) != len(model.elements):
                raise ConfigError(f"atoms.references has {len(cfg.references)} energies for {len(model.elements)} elements; give as many")
            model.references.copy_(torch.tensor(cfg.references, dtype=torch.float64))
        if cfg.scale:
            model.scale.fill_(cfg.scale)
        return model

    @property
    def cutoff(self) -> float:
        """Distance up to which atoms see each other, in A."""
        assert isinstance(self.shape, Potential)
        return self.shape.cutoff

    def preprocess(self) -> dict[str, Any]:
        """Return what a structure goes through before the network, and the units."""
        assert isinstance(self.shape, Potential)
        return {
            "elements": list(self.shape.elements),
            "cutoff_angstrom": self.cutoff,
            "units": {"energy": "eV", "forces": "eV/A", "stress": "eV/A^3"},
        }

    # Training.

    def loader(self, split: str) -> Iterable[Batch] | None:
        """Return batches of graphs: shuffled (``"train"``), in order (``"val"``, ``"test"``), or four small structures (``"example"``)."""
        cfg, dtype = self.cfg.atoms, torch.float64 if self.cfg.train.precision.startswith("64") else torch.float32
        if split == "example":
            graphs = Graphs(small_structures(self.elements), self.cutoff, dtype)
            return [graphs.batch(range(len(graphs)))]
        structures = frames(cfg, split, seed=self.cfg.train.seed)
        if structures is None:
            return None
        graphs = Graphs(structures, self.cutoff, dtype)
        return train_loader(graphs, cfg, seed=self.cfg.train.seed) if split == "train" else whole_loader(graphs, cfg.batch_size)

    @property
    def elements(self) -> tuple[str, ...]:
        """Symbols that the network knows."""
        assert isinstance(self.shape, Potential)
        return self.shape.elements

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted losses of the energy per atom, the forces and the stress, as far as the structures have them."""
        cfg, graph = self.cfg.atoms, as_graph(batch)
        with_forces = cfg.forces_weight > 0 and bool(known_rows(graph.forces).any())
        with_stress = cfg.stress_weight > 0 and bool(known_rows(graph.stress).any())
        found = model(graph, forces=with_forces, stress=with_stress)
        atoms = (graph.ptr[1:] - graph.ptr[:-1]).to(graph.energy)
        losses = {}
        for name, weight, wanted in (
            ("energy", cfg.energy_weight, True),
            ("forces", cfg.forces_weight, with_forces),
            ("stress", cfg.stress_weight, with_stress),
        ):
            if wanted and weight > 0:
                truth = getattr(graph, name)
                error = (found[name] - truth) / atoms if name == "energy" else found[name] - truth
                losses[name] = (weight * self._penalty(error[known_rows(truth)])).to(graph.pos.dtype)
        return losses

    def _penalty(self, error: Tensor) -> Tensor:
        """Return the mean loss of errors: of energies ``(G,)``, or of the lengths of vectors and matrices ``(N, ...)``; 0 of none."""
        if not len(error):
            return error.sum()
        cfg, size = self.cfg.atoms, error.abs() if error.ndim == 1 else torch.linalg.vector_norm(error.flatten(1), dim=1)
        if cfg.loss == "huber":
            return functional.huber_loss(size, torch.zeros_like(size), delta=cfg.delta)
        return size.square().mean() if cfg.loss == "mse" else size.mean()

    def metric(self) -> AtomsMetric:
        """Return the errors in meV/atom, meV/A and meV/A^3."""
        return AtomsMetric()

    # Prediction.

    def predict(self, model: nn.Module, batch: Batch) -> Sequence[Any]:
        """Return what the network says of each structure of a batch, or of a file."""
        assert isinstance(model, Potential)
        graph = as_graph(batch)
        stress = bool(known_rows(graph.stress).any())
        return predict_graph(model, graph, forces=True, stress=stress)


def predict_graph(model: Potential, graph: Data, *, forces: bool, stress: bool) -> list[Predicted]:
    """Return what a network says of each structure of a batched graph."""
    found = {name: value.detach().cpu().numpy() for name, value in model(graph, forces=forces, stress=stress).items()}
    starts = graph.ptr.tolist()
    return [
        Predicted(
            float(found["energy"][number]),
            found["forces"][first:last] if forces else None,
            found["stress"][number] if stress else None,
        )
        for number, (first, last) in enumerate(pairwise(starts))
    ]
