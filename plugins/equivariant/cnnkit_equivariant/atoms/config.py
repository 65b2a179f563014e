"""What an experiment with atoms is made of. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AtomsConfig:
    """Structures, elements and losses.

    Args:
        elements: Symbols that the network knows; found in the training structures if there are none.
        train: Files of structures with energies and forces (extxyz, ASE db, traj); without any, synthetic ones, labelled by ASE's EMT.
        val: Files to validate on; a share of the training ones if there are none.
        test: Files to measure on.
        val_share: Share of the training structures that is kept for validation where ``val`` is empty.
        batch_size: Structures per step.
        energy_weight: Weight of the error of the energy per atom.
        forces_weight: Weight of the error of the forces.
        stress_weight: Weight of the error of the stress, where the data have it.
        workers: Processes that load.
    """

    elements: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    val_share: float = 0.1
    batch_size: int = 8
    energy_weight: float = 1.0
    forces_weight: float = 10.0
    stress_weight: float = 0.0
    workers: int = 0
