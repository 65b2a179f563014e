"""Structures of an experiment as batches of graphs, whose neighbours are found once and kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from cnnkit.engine.sampling import EachOnce, EpochLoader, PositionSampler, item_rng
from cnnkit.errors import ConfigError, InputError
from torch import Tensor
from torch_geometric.data import Batch, Data

from cnnkit_equivariant.atoms.batches import BoundedSampler
from cnnkit_equivariant.atoms.config import AtomsConfig
from cnnkit_equivariant.atoms.references import fit_references, force_scale
from cnnkit_equivariant.atoms.structures import references as references_of
from cnnkit_equivariant.atoms.structures import to_graph

KIND = "kind"
"""Key of a structure's ``info`` by which errors are told apart; ``config_type`` as well."""

Frames = Sequence[Atoms]
Item = TypeVar("Item")


def frames(cfg: AtomsConfig, split: str, *, seed: int) -> Frames | None:
    """Return the structures of ``"train"``, ``"val"`` or ``"test"``, or ``None`` if the configuration names none.

    Without files they are synthetic. Where no file is for validation, a share of the training's structures is, drawn by the seed.

    Raises:
        ConfigError: If a number or share leaves nothing to train on.
        InputError: If a file cannot be read.
    """
    if split == "test":
        files, synthetic = cfg.test, not (cfg.test or cfg.train)
    else:
        files, synthetic = (cfg.val if split == "val" else cfg.train), not cfg.train and not (split == "val" and cfg.val)
    if synthetic:
        return _synthetic(cfg, split)
    if split == "test" or (split == "val" and cfg.val):
        return _read(files, cfg.frames) if files else None
    every = _read(cfg.train, cfg.frames)
    return every if cfg.val else _share(every, cfg.val_share, split, seed)


def _synthetic(cfg: AtomsConfig, split: str) -> Frames | None:
    from cnnkit_equivariant.atoms.emt import structures

    count = getattr(cfg.emt, split)
    if count < (split == "train"):
        raise ConfigError(f"atoms.emt.{split}={count} leaves no structure to train on; accepted: 1 or more")
    return structures(split, count, seed=cfg.emt.seed) if count > 0 else None  # type: ignore[arg-type]


@lru_cache(maxsize=4)
def _read(files: tuple[str, ...], which: str) -> Frames:
    from cnnkit_equivariant.atoms.files import read_structures

    return [atoms for file in files for atoms in read_structures(file, which)]


def _share(every: Frames, share: float, split: str, seed: int) -> Frames | None:
    if not 0 <= share < 1:
        raise ConfigError(f"atoms.val_share={share} is no share; accepted: 0 to below 1")
    held_out = min(round(share * len(every)), len(every) - 1)
    order = item_rng(seed, 0, 0).permutation(len(every))
    chosen = sorted(order[:held_out] if split == "val" else order[held_out:])
    return [every[index] for index in chosen] or None


@dataclass(frozen=True)
class Facts:
    """What training structures say before the first step.

    Args:
        elements: Symbols by atomic number.
        references: Energy of an atom of each, in eV.
        scale: Root mean square of the forces, in eV/A.
    """

    elements: tuple[str, ...]
    references: tuple[float, ...]
    scale: float


def facts(structures: Frames, elements: Sequence[str] = (), references: Sequence[float] = ()) -> Facts:
    """Look at training structures.

    Args:
        structures: With energies, and forces if there are any.
        elements: In the order of the result; by default those that occur, by atomic number.
        references: Fitted by default.

    Raises:
        ConfigError: If elements are named and others occur, or references are not as many as elements.
        InputError: If no structure has an energy.
    """
    found = Counter(int(number) for atoms in structures for number in set(atoms.numbers.tolist()))
    symbols = tuple(elements) or tuple(chemical_symbols[number] for number in sorted(found))
    if strange := [chemical_symbols[number] for number in sorted(found) if chemical_symbols[number] not in symbols]:
        raise ConfigError(f"the training structures hold {', '.join(strange)}, which atoms.elements={list(symbols)} lacks; add them")
    if references and len(references) != len(symbols):
        raise ConfigError(
            f"atoms.references has {len(references)} energies for {len(symbols)} elements ({', '.join(symbols)}); give as many"
        )
    numbers = [atomic_numbers[symbol] for symbol in symbols]
    counts = np.array([[int((atoms.numbers == number).sum()) for number in numbers] for atoms in structures], float)
    known = [references_of(atoms) for atoms in structures]
    energies = np.array([one.energy for one in known])
    if not np.isfinite(energies).any():
        raise InputError(f"none of the {len(structures)} training structures has an energy; extxyz files need energy= in their second line")
    fitted = np.array(references, float) if references else fit_references(counts, energies)
    rest = (energies - counts @ fitted) / counts.sum(1)
    scale = force_scale([one.forces for one in known], rest)
    return Facts(symbols, tuple(fitted.tolist()), scale)


# Batches.


def collate(graphs: Sequence[Data], kinds: Sequence[str]) -> dict[str, Any]:
    """Return a batch: the tensors of one graph made of several, under ``"graph"``, and what kind each structure is, under ``"kind"``."""
    return {"graph": dict(Batch.from_data_list(list(graphs)).to_dict()), KIND: list(kinds)}


def as_graph(batch: Mapping[str, Any]) -> Data:
    """Return the graph of a batch; the core moves tensors between devices, and does not know graphs."""
    return Data(**batch["graph"])


def kind_of(atoms: Atoms) -> str:
    """Return what kind a structure says it is, or ``""``."""
    return str(atoms.info.get(KIND) or atoms.info.get("config_type") or "")


class Graphs(torch.utils.data.Dataset[tuple[Data, str]]):
    """Graphs of structures, in memory: neighbours are found when the data set is made.

    Args:
        structures: With targets.
        cutoff: Distance up to which atoms see each other, in A.
        dtype: Of positions, forces and stresses.
    """

    def __init__(self, structures: Frames, cutoff: float, dtype: torch.dtype) -> None:
        self.graphs = [to_graph(atoms, cutoff, dtype=dtype) for atoms in structures]
        self.kinds = [kind_of(atoms) for atoms in structures]

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, position: tuple[int, int, int]) -> tuple[Data, str]:
        index = position[2]
        return self.graphs[index], self.kinds[index]

    def batch(self, indices: Iterable[int]) -> dict[str, Any]:
        """Return a batch of structures by their numbers."""
        chosen = list(indices)
        return collate([self.graphs[index] for index in chosen], [self.kinds[index] for index in chosen])


def train_loader(graphs: Graphs, cfg: AtomsConfig, *, seed: int) -> EpochLoader:
    """Return the batches of one epoch after another, each structure once an epoch."""
    if cfg.batch_size < 1:
        raise ConfigError(f"atoms.batch_size={cfg.batch_size} is no batch; accepted: 1 or more")
    if cfg.max_edges < 0:
        raise ConfigError(f"atoms.max_edges={cfg.max_edges} is no bound; accepted: 1 or more, or 0 for none")
    if cfg.max_edges:
        sizes = [graph.edge_index.shape[1] for graph in graphs.graphs]
        sampler: BoundedSampler | PositionSampler = BoundedSampler(sizes, batch_size=cfg.batch_size, most=cfg.max_edges, seed=seed)
    else:
        sampler = PositionSampler(len(graphs), batch_size=min(cfg.batch_size, len(graphs)), seed=seed)
    return EpochLoader(graphs, sampler, workers=cfg.workers, collate=_joined)


def _joined(items: Sequence[tuple[Data, str]]) -> dict[str, Any]:
    return collate([graph for graph, _ in items], [kind for _, kind in items])


MOST_EDGES = 40_000
"""Edges in a batch that is measured, at most, unless one structure alone has more."""


def whole_loader(graphs: Graphs, batch_size: int, max_edges: int = 0) -> EachOnce:
    """Return batches of all structures in their order, of bounded numbers of structures and edges; ``max_edges`` lowers the bound."""
    most = min(max_edges or MOST_EDGES, MOST_EDGES)
    groups = list(bounded(range(len(graphs)), lambda number: graphs.graphs[number].edge_index.shape[1], batch_size, most))
    return EachOnce(len(groups), lambda number: graphs.batch(groups[number]))


def bounded(items: Iterable[Item], size: Callable[[Item], int], count: int, total: int) -> Iterator[list[Item]]:
    """Yield runs of consecutive items, ``count`` of them at most, whose sizes add up to ``total`` at most unless it is one alone."""
    group: list[Item] = []
    filled = 0
    for item in items:
        own = size(item)
        if group and (len(group) == count or filled + own > total):
            yield group
            group, filled = [], 0
        group.append(item)
        filled += own
    if group:
        yield group


def known_rows(values: Tensor) -> Tensor:
    """Return where all of a structure's or an atom's values are known, ``(N,)``."""
    return torch.isfinite(values.flatten(1) if values.ndim > 1 else values[:, None]).all(1)


def small_structures(elements: Sequence[str]) -> Frames:
    """Return three small cells and a molecule of some of the elements, with energies and forces of Morse's pair potential."""
    from ase.calculators.morse import MorsePotential

    rng, made = np.random.default_rng(0), []
    for number in range(4):
        corners = np.array([(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)], float)
        symbols = [elements[(number + index) % len(elements)] for index in range(4)]
        atoms = Atoms(symbols, 1.9 * corners + rng.normal(0, 0.12, (4, 3)), cell=3.8 * np.eye(3), pbc=number < 3)
        atoms.calc = MorsePotential(epsilon=0.4, r0=2.7, rho0=4.0, rcut1=3.4, rcut2=4.4)
        atoms.get_forces()
        made.append(atoms)
    return made
