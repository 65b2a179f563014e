"""Decide whether two recordings are of the same speaker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from cnnkit.engine.device import pick_device
from cnnkit.engine.load import load
from cnnkit.errors import UsageError

from cnnkit_audio.embedding.metrics import cosines
from cnnkit_audio.embedding.task import Embedding
from cnnkit_audio.sound import open_sound


@dataclass(frozen=True)
class Verdict:
    """A decision.

    Args:
        score: Cosine of the embeddings.
        threshold: Least score of the same speaker.
    """

    score: float
    threshold: float

    @property
    def same(self) -> bool:
        """Whether it is the same speaker."""
        return self.score >= self.threshold


def verify(one: Path, other: Path, ckpt: Path, *, threshold: float | None = None, device: str = "auto") -> Verdict:
    """Compare two recordings.

    Args:
        one: A sound file.
        other: Another.
        ckpt: Checkpoint of an embedding network.
        threshold: Least cosine of the same speaker; by default the one at which the checkpoint's validation had equal errors.
        device: Where it is computed.

    Raises:
        UsageError: If the checkpoint is of another job, or has no threshold and none is given.
        InputError: If a recording cannot be read.
    """
    loaded = load(ckpt, task="audio")
    if not isinstance(loaded.task, Embedding):
        raise UsageError(f"{ckpt} holds {loaded.header.model}, which does not embed voices")
    threshold = loaded.header.metrics.get("threshold") if threshold is None else threshold
    if threshold is None:
        raise UsageError(f"{ckpt} was never validated, so it has no threshold; type --threshold COSINE, for example --threshold 0.3")
    model = loaded.model.to(pick_device(device))
    with torch.no_grad():
        (first,), (second,) = (loaded.task.predict(model, {"sound": open_sound(path)}) for path in (one, other))
    return Verdict(float(cosines(first.vector[None], second.vector[None])[0, 0]), float(threshold))
