"""The configuration of an experiment with sound. Standard library and the core's dataclasses only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cnnkit.engine.config import OptimizerConfig, TrainConfig

from cnnkit_audio.codec.config import CodecConfig
from cnnkit_audio.effect.config import EffectConfig
from cnnkit_audio.embedding.config import EmbeddingConfig
from cnnkit_audio.recognition.config import RecognitionConfig
from cnnkit_audio.tagging.config import TaggingConfig


@dataclass(frozen=True)
class NetworkConfig:
    """The network by its registered name, for example ``audio/aclnet``, and its own arguments."""

    name: str = "audio/aclnet"
    args: Mapping[str, Any] = field(default_factory=dict)


def _training() -> TrainConfig:
    return TrainConfig(epochs=100, optimizer=OptimizerConfig(name="adamw", lr=1e-3, weight_decay=1e-2, schedule="cosine"))


@dataclass(frozen=True)
class Config:
    """An experiment with sound: the network decides which job it is, and the job's section says on what data.

    Args:
        network: Which network.
        tagging: What is heard: labels, data, augmentation, windows.
        embedding: Whose voice it is: speakers, trials, loss, stages of a supernet.
        codec: How sound becomes few bits: speech, losses, stages.
        effect: Which device: pairs of dry and wet sound, losses.
        recognition: What is said: units, sessions of microphone arrays, losses, search.
        train: The schedule.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    tagging: TaggingConfig = field(default_factory=TaggingConfig)
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    effect: EffectConfig = field(default_factory=EffectConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    recognition: RecognitionConfig = field(default_factory=RecognitionConfig)
    train: TrainConfig = field(default_factory=_training)
