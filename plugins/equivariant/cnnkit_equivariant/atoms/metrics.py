"""Errors of energies, forces and stresses, in the units of the field: meV/atom, meV/A, meV/A^3."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cnnkit.engine.files import write_rows, write_text

from cnnkit_equivariant.atoms.data import KIND

MILLI = 1000.0
COLUMNS = {
    "energy_mae": "energy per atom: MAE, meV/atom",
    "energy_rmse": "RMSE, meV/atom",
    "total_mae": "energy: MAE, meV",
    "forces_mae": "forces: MAE, meV/A",
    "forces_rmse": "RMSE, meV/A",
    "forces_cos": "cosine",
    "stress_mae": "stress: MAE, meV/A^3",
    "stress_rmse": "RMSE, meV/A^3",
}
"""The figures by name, as the table's heads say them."""


class AtomsMetric:
    """Collects energies, forces and stresses against references.

    A value without a reference (NaN) does not count, and figures that nothing counts for are left out. Errors of forces and stresses are
    means over their components, as is usual; the cosine is a mean over the atoms on which a force acts.
    """

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.atoms: list[int] = []
        self.energy: list[tuple[float, float]] = []
        self.forces: list[tuple[np.ndarray, np.ndarray]] = []
        self.stress: list[tuple[np.ndarray, np.ndarray]] = []

    def update(self, predictions: Sequence[Any], batch: Any) -> None:
        """Take in one prediction per structure (``energy``, ``forces``, ``stress``, of which the latter may be ``None``)."""
        graph = {
            name: value.detach().cpu().numpy() for name, value in batch["graph"].items() if name in ("energy", "forces", "stress", "ptr")
        }
        starts = graph["ptr"]
        for number, (prediction, kind) in enumerate(zip(predictions, batch[KIND], strict=True)):
            count = int(starts[number + 1] - starts[number])
            self.kinds.append(kind)
            self.atoms.append(count)
            self.energy.append((float(graph["energy"][number]), float(prediction.energy)))
            truth = graph["forces"][starts[number] : starts[number + 1]]
            self.forces.append(_pair(truth, prediction.forces, (count, 3)))
            self.stress.append(_pair(graph["stress"][number], prediction.stress, (3, 3)))

    def merge(self, other: AtomsMetric) -> None:
        """Take in the structures of another process."""
        self.kinds += other.kinds
        self.atoms += other.atoms
        self.energy += other.energy
        self.forces += other.forces
        self.stress += other.stress

    def compute(self) -> dict[str, float]:
        """Return the figures of :data:`COLUMNS`, and under ``KIND/`` those of each kind if there are several."""
        kinds = sorted({kind for kind in self.kinds if kind})
        figures = self._figures(range(len(self.kinds)))
        if len(kinds) > 1:
            for kind in kinds:
                mine = [number for number, other in enumerate(self.kinds) if other == kind]
                figures |= {f"{kind}/{name}": value for name, value in self._figures(mine).items()}
        return figures

    def pairs(self, what: str, numbers: Sequence[int] | range | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return references and predictions where both are known.

        Args:
            what: ``"energy"`` per atom, or ``"forces"`` or ``"stress"`` component by component.
            numbers: Of which structures; by default of all.
        """
        numbers = range(len(self.kinds)) if numbers is None else numbers
        if what == "energy":
            both = np.array([np.array(self.energy[number]) / self.atoms[number] for number in numbers]).reshape(-1, 2)
        else:
            parts = [np.stack([part.ravel() for part in getattr(self, what)[number]], 1) for number in numbers]
            both = np.concatenate([np.zeros((0, 2)), *parts])
        truth, found = both[np.isfinite(both).all(1)].T
        return truth, found

    def _figures(self, numbers: Sequence[int] | range) -> dict[str, float]:
        figures: dict[str, float] = {}
        for what in ("energy", "forces", "stress"):
            truth, found = self.pairs(what, numbers)
            if truth.size:
                error = found - truth
                figures[f"{what}_mae"] = MILLI * float(np.abs(error).mean())
                figures[f"{what}_rmse"] = MILLI * float(np.sqrt(np.square(error).mean()))
        totals = np.array([self.energy[number] for number in numbers]).reshape(-1, 2)
        totals = totals[np.isfinite(totals).all(1)]
        if len(totals):
            figures["total_mae"] = MILLI * float(np.abs(totals[:, 1] - totals[:, 0]).mean())
        cosines = np.concatenate([np.zeros(0), *(_cosines(*self.forces[number]) for number in numbers)])
        if cosines.size:
            figures["forces_cos"] = float(cosines.mean())
        return {name: figures[name] for name in COLUMNS if name in figures}

    def report(self, folder: Path) -> list[Path]:
        """Write the figures by kind as ``errors.csv`` and ``errors.md``, and predictions over references as ``parity.png``."""
        from cnnkit_equivariant.atoms.parity import Panel, draw_parity

        rows = self.rows()
        files = [write_rows(folder / "errors.csv", rows), write_text(folder / "errors.md", _markdown(rows))]
        units = {"energy": ("energy per atom", "eV/atom"), "forces": ("forces", "eV/A"), "stress": ("stress", "eV/A^3")}
        panels = [Panel(title, unit, *self.pairs(what)) for what, (title, unit) in units.items()]
        panels = [panel for panel in panels if panel.truth.size]
        return [*files, draw_parity(folder / "parity.png", panels)] if panels else files

    def rows(self) -> list[list[str]]:
        """Return the table: a head, a row for each kind if there are several, and one for all."""
        figures = self.compute()
        kinds = sorted({key.partition("/")[0] for key in figures if "/" in key})
        names = [name for name in COLUMNS if name in figures]
        rows = [["structures", "number", *(COLUMNS[name] for name in names)]]
        for kind in (*kinds, ""):
            number = self.kinds.count(kind) if kind else len(self.kinds)
            values = [figures.get(f"{kind}/{name}" if kind else name) for name in names]
            rows.append([kind or "all", str(number), *("" if value is None else f"{value:.4g}" for value in values)])
        return rows


def _pair(truth: np.ndarray, found: np.ndarray | None, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(truth, float).reshape(shape), np.full(shape, np.nan) if found is None else np.asarray(found, float).reshape(shape)


def _cosines(truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return the cosine between forces ``(N, 3)`` of each atom on which both act."""
    lengths = np.linalg.norm(truth, axis=1) * np.linalg.norm(found, axis=1)
    known = np.isfinite(lengths) & (lengths > 1e-12)
    return (truth[known] * found[known]).sum(1) / lengths[known]


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
