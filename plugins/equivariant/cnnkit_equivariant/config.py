"""The configuration of an experiment with an equivariant network. Standard library and the core's dataclasses only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cnnkit.engine.config import OptimizerConfig, TrainConfig

from cnnkit_equivariant.atoms.config import AtomsConfig
from cnnkit_equivariant.classification.config import ClassificationConfig


@dataclass(frozen=True)
class NetworkConfig:
    """The network by its registered name, for example ``equivariant/escn``, and its own arguments."""

    name: str = "equivariant/escn"
    args: Mapping[str, Any] = field(default_factory=dict)


def _training() -> TrainConfig:
    return TrainConfig(epochs=100, clip_norm=10.0, ema=0.99, optimizer=OptimizerConfig(name="adamw", lr=2e-3, schedule="cosine"))


@dataclass(frozen=True)
class Config:
    """An experiment: the network decides which job it is, and the job's section says on what data.

    Args:
        network: Which network.
        atoms: Energies and forces: structures, elements, losses.
        classification: What a field, picture or outline shows: data set, how it is turned and scaled.
        train: The schedule.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    atoms: AtomsConfig = field(default_factory=AtomsConfig)
    classification: ClassificationConfig = field(default_factory=ClassificationConfig)
    train: TrainConfig = field(default_factory=_training)
