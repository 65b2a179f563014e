"""The atoms job: energies, forces and stresses of structures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cnnkit.errors import ConfigError, UsageError
from cnnkit.options import RunOptions
from torch import Tensor, nn
from torch.nn import functional

from cnnkit_equivariant import args, config
from cnnkit_equivariant.atoms.adsorption import EXAMPLE, FMAX, compare, start
from cnnkit_equivariant.atoms.data import Graphs, as_graph, facts, frames, known_rows, small_structures, train_loader, whole_loader
from cnnkit_equivariant.atoms.export import EnergyOfTensors
from cnnkit_equivariant.atoms.files import Frame, read_frames
from cnnkit_equivariant.atoms.metrics import AtomsMetric
from cnnkit_equivariant.atoms.prediction import Labelled, Relaxed, known_frames, label_frames, predict_graph, relax_frames
from cnnkit_equivariant.models._base import Potential
from cnnkit_equivariant.task import Batch, Equivariant


class Atomistic(Equivariant):
    """Energies and forces of atoms, trained on structures and measured in meV.

    Args:
        cfg: The experiment; its section ``atoms`` counts.
    """

    monitor = ("loss", "min")

    def prepare(self, output: Path) -> config.Config:
        """Complete the configuration by the elements, their reference energies and the size of the forces in the training structures.

        Raises:
            ConfigError: If there is nothing to train on, or the precision is too low for it.
        """
        cfg = self.cfg.atoms
        if self.cfg.train.precision.endswith("16-true"):
            raise ConfigError(f"train.precision={self.cfg.train.precision} loses energies; accepted: 32-true, 64-true, and mixed ones")
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
        return model.to(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The precision that the network is trained in."""
        return torch.float64 if self.cfg.train.precision.startswith("64") else torch.float32

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

    def export_form(self, model: nn.Module) -> nn.Module:
        """Return the network as a function of tensors."""
        assert isinstance(model, Potential)
        return EnergyOfTensors(model)

    def export_inputs(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
        """Return structures as the inputs of :class:`EnergyOfTensors`; the numbers of atoms, edges and structures are free."""
        graph = as_graph(batch)
        inputs = (graph.pos, graph.z, graph.edge_index, graph.shifts, graph.cell.view(-1, 3, 3), graph.batch)
        axes = {0: "atoms"}, {0: "atoms"}, {1: "edges"}, {0: "edges"}, {0: "structures"}, {0: "atoms"}
        return dict(zip(EnergyOfTensors.INPUTS, inputs, strict=True)), dict(zip(EnergyOfTensors.INPUTS, axes, strict=True))

    # Training.

    def loader(self, split: str) -> Iterable[Batch] | None:
        """Return batches of graphs: shuffled (``"train"``), in order (``"val"``, ``"test"``), or four small structures (``"example"``)."""
        cfg = self.cfg.atoms
        if split == "example":
            graphs = Graphs(small_structures(self.elements), self.cutoff, self.dtype)
            return [graphs.batch(range(len(graphs)))]
        structures = frames(cfg, split, seed=self.cfg.train.seed)
        if structures is None:
            return None
        graphs = Graphs(structures, self.cutoff, self.dtype)
        if split == "train":
            return train_loader(graphs, cfg, seed=self.cfg.train.seed)
        return whole_loader(graphs, cfg.batch_size, cfg.max_edges)

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
        """Return what the network says of each structure of a batch of graphs; of a file, one :class:`Labelled` or :class:`Relaxed`."""
        assert isinstance(model, Potential)
        if "frames" not in batch:
            graph = as_graph(batch)
            return predict_graph(model, graph, forces=True, stress=bool(known_rows(graph.stress).any()))
        run = batch["run"]
        model.to(torch.float64 if run.dtype == "float64" else torch.float32)
        chosen = known_frames(model, batch["frames"], run.name)
        return [relax_frames(model, chosen, run) if run.relax else label_frames(model, chosen, run)]

    def read(self, run: RunOptions) -> Iterable[Batch]:
        """Yield the structures of each file."""
        assert isinstance(run, args.Run)
        for path in run.inputs:
            yield {"frames": read_frames(path, run.frames), "run": run}

    def write(self, predictions: Sequence[Labelled | Relaxed], run: RunOptions) -> list[Path]:
        """Write ``NAME.extxyz`` and ``NAME.csv``; of relaxations ``NAME.relaxed.extxyz``, ``NAME.csv`` and ``NAME.png``."""
        return [path for found in predictions for path in found.write(run.output, run.name)]

    # The example.

    def example(self, run: RunOptions) -> Iterable[Batch]:
        """Yield an adsorbate on a slab that was not trained on, off its site, to be relaxed.

        Raises:
            UsageError: If the network does not know its elements.
        """
        assert isinstance(run, args.Run)
        missing = sorted({EXAMPLE.metal, *EXAMPLE.adsorbate} - set(self.elements))
        if missing:
            raise UsageError(f"the example holds {', '.join(missing)}, which this network was not trained on; name an input")
        # Ends are compared to hundredths of an A, which looser forces would not pin down.
        run = replace(run, relax=True, forces=True, fmax=min(run.fmax, FMAX))
        yield {"frames": [Frame(0, start(EXAMPLE))], "run": run}

    def summarise(self, predictions: Sequence[Relaxed], batch: Batch, run: RunOptions) -> dict[str, Any]:
        """Return where the network's relaxation and that of EMT end."""
        own = batch["run"]
        return compare(EXAMPLE, predictions[0].relaxations[0], fmax=own.fmax, steps=own.steps).summary()
