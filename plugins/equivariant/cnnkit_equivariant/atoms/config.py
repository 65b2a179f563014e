"""What an experiment with atoms is made of. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class EMTConfig:
    """Synthetic structures, labelled by ASE's effective medium theory; see :mod:`cnnkit_equivariant.atoms.emt`.

    Args:
        train: How many to train on.
        val: How many to validate on.
        test: How many to measure on.
        seed: Of what is random about them.
    """

    train: int = 1500
    val: int = 60
    test: int = 300
    seed: int = 0


@dataclass(frozen=True)
class AtomsConfig:
    """Structures, elements and losses.

    Args:
        elements: Symbols that the network knows; found in the training structures if there are none.
        references: Energy of an atom of each element in eV, which the network's energies are added to; fitted to the training structures
            if there are none.
        scale: Unit of the network's energies in eV; the root mean square of the training's forces, in eV/A, if it is 0.
        train: Files of structures with energies and forces (extxyz, ASE db, traj); without any, synthetic ones, labelled by ASE's EMT.
        val: Files to validate on; a share of the training ones if there are none.
        test: Files to measure on.
        val_share: Share of the training structures that is kept for validation where ``val`` is empty.
        frames: Which structures of each file, as ASE counts them: ``:`` for all.
        emt: The synthetic structures.
        batch_size: Structures per step.
        max_edges: Edges in a batch of one process, at most, so that large cells do not exhaust the memory; a structure that has more is a
            batch of its own. Batches then hold fewer structures where these are large, and every structure comes once an epoch. 0 is no
            bound in training.
        loss: Of the error of the energy per atom, of the length of a force's error, and of that of the stress: its mean (``"mae"``), the
            mean of its square (``"mse"``), or the square below ``delta`` and straight above (``"huber"``).
        delta: Error, in eV, eV/A and eV/A^3, where Huber's loss becomes straight.
        energy_weight: Weight of the error of the energy per atom.
        forces_weight: Weight of the error of the forces.
        stress_weight: Weight of the error of the stress, where the data have it.
        workers: Processes that load.
    """

    elements: tuple[str, ...] = ()
    references: tuple[float, ...] = ()
    scale: float = 0.0
    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    val_share: float = 0.1
    frames: str = ":"
    emt: EMTConfig = field(default_factory=EMTConfig)
    batch_size: int = 8
    max_edges: int = 0
    loss: Literal["mae", "huber", "mse"] = "mae"
    delta: float = 0.01
    energy_weight: float = 1.0
    forces_weight: float = 10.0
    stress_weight: float = 0.0
    workers: int = 0
