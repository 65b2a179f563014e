"""The configuration of a super-resolution experiment. Standard library and the core's dataclasses only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cnnkit.engine.config import OptimizerConfig, TrainConfig

from cnnkit_superres.data_config import DataConfig, DegradeConfig, LossConfig
from cnnkit_superres.dsclora_config import AdapterConfig

FOREIGN = "superres/foreign"


@dataclass(frozen=True)
class NetworkConfig:
    """The network by its registered name, for example ``superres/span_x2``, and its own arguments.

    ``superres/foreign`` is any network that spandrel knows, told by its weights; to train one, name them: ``args: {file: WEIGHTS}``.
    """

    name: str = "superres/span_x2"
    args: Mapping[str, Any] = field(default_factory=dict)


def _training() -> TrainConfig:
    """Return the schedule that light networks are usually trained by: Adam from 5e-4, cosine, the averaged weights kept."""
    return TrainConfig(epochs=300, optimizer=OptimizerConfig(name="adam", lr=5e-4, betas=(0.9, 0.99), schedule="cosine"), ema=0.999)


@dataclass(frozen=True)
class Config:
    """A super-resolution experiment.

    Args:
        network: Which network, and with it the scale and whether it sees RGB or luminance.
        data: Pictures to train and to measure on.
        degrade: How the small pictures are made.
        loss: Weights of the losses.
        adapters: Train low-rank adapters alone, under a teacher, from the weights of ``--init`` (DSCLoRA).
        train: The schedule.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    degrade: DegradeConfig = field(default_factory=DegradeConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    adapters: AdapterConfig | None = None
    train: TrainConfig = field(default_factory=_training)
