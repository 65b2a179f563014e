"""The embedding job: whose voice it is."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cnnkit.engine.files import atomic_path
from cnnkit.engine.sampling import EachOnce
from cnnkit.errors import ConfigError, InputWarning
from cnnkit.options import RunOptions
from torch import Tensor, nn

from cnnkit_audio import args, config
from cnnkit_audio.embedding.data import TrainClips, at_least, loader, read_recordings, record
from cnnkit_audio.embedding.losses import AAMSoftmax
from cnnkit_audio.embedding.metrics import VerificationMetric
from cnnkit_audio.models._base import Embedder
from cnnkit_audio.models.efficient_tdnn_space import SubNet
from cnnkit_audio.models.efficient_tdnn_supernet import EfficientTDNNSupernet
from cnnkit_audio.task import Audio, Batch

PIECE = 20.0
"""Seconds that are embedded at once; longer recordings are the mean of such pieces."""
SHORTEST = 0.5
"""Seconds below which a recording is repeated."""


@dataclass
class Voiceprint:
    """What a network makes of a voice.

    Args:
        vector: The direction of the mean of its pieces' directions, ``(D,)``; of a clip in memory, the network's own vector.
        pieces: The vector of each piece, ``(N, D)``.
        seconds: Length of each piece, ``(N,)``.
    """

    vector: np.ndarray
    pieces: np.ndarray
    seconds: np.ndarray


class Embedding(Audio):
    """Vectors of voices, trained to tell speakers apart and measured on trials.

    Args:
        cfg: The experiment; its section ``embedding`` counts.
    """

    monitor = ("eer", "min")

    def network_args(self) -> Mapping[str, Any]:
        """The speakers of the training and the loss."""
        cfg = self.cfg.embedding
        return {"speakers": cfg.speakers, "margin": cfg.margin, "scale": cfg.scale}

    def preprocess(self) -> dict[str, Any]:
        """Return what a recording goes through before the network."""
        return {"sample_rate": self.shape.sample_rate, "channels": "mean", "range": [-1, 1], "piece_seconds": PIECE}

    def prepare(self, output: Path) -> config.Config:
        """Count the speakers of the training."""
        found = read_recordings(self.cfg.embedding, "train", self.shape.sample_rate)
        assert found is not None
        return replace(self.cfg, embedding=replace(self.cfg.embedding, speakers=max(found[0].speakers) + 1))

    def export_inputs(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
        """Return clips as the network's input; their number and their length are free."""
        return {"sound": batch["clip"]}, {"sound": {0: "batch", 2: "samples"}}

    # Training.

    def loader(self, split: str) -> Iterable[Batch] | None:
        """Return crops (``"train"``), recordings with their trials (``"val"``, ``"test"``), or four clips of two voices (``"example"``)."""
        if split == "example":
            return [self._synthetic()]
        return self._loader(split)

    def _loader(self, split: str) -> TrainClips | EachOnce | None:
        shape = self.shape
        largest = shape.subnet if isinstance(shape, EfficientTDNNSupernet) else None
        if self.cfg.embedding.stages and largest is None:
            raise ConfigError(f"embedding.stages train a supernet, which {self.cfg.network.name} is not; use audio/efficient_tdnn_supernet")
        return loader(self.cfg.embedding, split, shape.sample_rate, largest=largest, seed=self.cfg.train.seed)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the softmax with an angular margin, of the sub-network that the batch names."""
        head = getattr(model, "head", None)
        if not isinstance(head, AAMSoftmax):
            raise ConfigError("a training needs embedding.speakers, which counts the speakers; cnnkit train sets it by itself")
        subnet = batch.get("subnet")
        vectors = model(batch["clip"], SubNet.parse(subnet)) if subnet else model(batch["clip"])
        return {"aam": head(vectors, batch["speaker"])}

    def metric(self) -> VerificationMetric:
        """Return EER and minDCF over the trials."""
        return VerificationMetric(self.cfg.embedding.top)

    # Prediction.

    def predict(self, model: nn.Module, batch: Batch) -> list[Voiceprint]:
        """Embed clips, or a recording of any length piece by piece."""
        assert isinstance(model, Embedder)
        if "sound" not in batch:
            vectors = model(batch["clip"]).float().cpu().numpy()
            return [Voiceprint(vector, vector[None], np.array([batch["clip"].shape[-1] / model.sample_rate])) for vector in vectors]
        sound, rate = batch["sound"], model.sample_rate
        vectors, seconds = [], []
        place = next(model.parameters()).device
        for piece in pieces(sound.blocks(rate), round(PIECE * rate)):
            if len(piece) < SHORTEST * rate:
                warnings.warn(f"{sound.path.name} is only {len(piece) / rate:.3g} s long; it is repeated", InputWarning, stacklevel=2)
            clip = at_least(piece, round(SHORTEST * rate))
            vectors.append(model(torch.from_numpy(clip)[None, None].to(place)).float().cpu().numpy()[0])
            seconds.append(len(piece) / rate)
        return [_mean(np.stack(vectors), np.array(seconds))]

    def write(self, predictions: Sequence[Voiceprint], run: RunOptions) -> list[Path]:
        """Write ``NAME.npz``: the embedding, and that of each piece with its length."""
        assert isinstance(run, args.Run)
        files = []
        for voice in predictions:
            path = run.output / f"{run.name}.npz"
            with atomic_path(path) as part, open(part, "wb") as stream:
                np.savez(stream, embedding=voice.vector, pieces=voice.pieces, seconds=voice.seconds)
            files.append(path)
        return files

    def _synthetic(self) -> Batch:
        """Return two clips of each of two voices, with their trials."""
        from cnnkit_audio.synth.voices import Speaker, speech

        rate, clips = self.shape.sample_rate, []
        for index in range(4):
            speaker = Speaker.draw(np.random.default_rng((9, index // 2)))
            rng = np.random.default_rng((10, index))
            clips.append(record(speech(rng, 1.0, rate, speaker), rng, channel_db=6.0, noise_db=20.0))
        names = ["anna/1", "anna/2", "bert/1", "bert/2"]
        trials = [(int(one[:4] == two[:4]), one, two) for one in names for two in names if one < two]
        speakers = torch.tensor([0, 0, 1, 1]).clamp_max(max(self.cfg.embedding.speakers - 1, 0))
        return {"clip": torch.from_numpy(np.stack(clips))[:, None], "speaker": speakers, "name": names, "trials": trials}


def pieces(blocks: Iterable[np.ndarray], samples: int) -> Iterator[np.ndarray]:
    """Cut a recording into pieces ``(n,)`` of at least so many samples, the last of less than twice as many.

    Args:
        blocks: Its blocks in order, ``(1, n)``.
        samples: Length of a piece.
    """
    pending = np.zeros(0, np.float32)
    for block in blocks:
        pending = np.concatenate([pending, block[0]])
        while len(pending) >= 2 * samples:
            yield pending[:samples]
            pending = pending[samples:]
    if len(pending):
        yield pending


def _mean(vectors: np.ndarray, seconds: np.ndarray) -> Voiceprint:
    """Return the direction of the mean of directions, longer pieces counting more."""
    directions = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    mean = (seconds[:, None] * directions).sum(0)
    return Voiceprint((mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32), vectors, seconds)
