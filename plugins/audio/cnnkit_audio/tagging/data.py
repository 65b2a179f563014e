"""Clips to learn tags from: crops of recordings, augmented; whole clips to measure on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from cnnkit.engine.sampling import EachOnce, EpochLoader, Position, PositionSampler, item_rng, process
from cnnkit.errors import ConfigError
from torch import Tensor
from torch.utils.data import Dataset

from cnnkit_audio.augment import augment_batch
from cnnkit_audio.data_config import AugmentConfig, DataConfig
from cnnkit_audio.datasets import Clip, ClipDataset, balanced_weights, read_dataset
from cnnkit_audio.datasets.crops import label_numbers
from cnnkit_audio.sound import open_sound
from cnnkit_audio.synth.classes import CLASSES, FOLDS, Spoiling, make


class Sounds(ABC):
    """Labelled recordings.

    Args:
        names: A name for each.
        targets: ``(N, C)`` float32: 1 where a label holds.
        folds: Fold of each, ``(N,)``.
        rate: Samples per second that :meth:`clip` gives.
    """

    def __init__(self, names: Sequence[str], targets: np.ndarray, folds: np.ndarray, rate: int) -> None:
        self.names, self.targets, self.folds, self.rate = tuple(names), targets, folds, rate

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def clip(self, index: int) -> np.ndarray:
        """Return a recording as mono float32, ``(1, T)``."""


class SyntheticSounds(Sounds):
    """Sounds of :mod:`cnnkit_audio.synth.classes`, the same ones in every run.

    Args:
        labels: Names of classes; all of :data:`~cnnkit_audio.synth.classes.CLASSES`.
        folds: Which folds.
        rate: Samples per second.
        per_fold: Recordings of each class in a fold.
        seconds: Length of one.
        spoiling: What happens to each on its way, drawn once for each.

    Raises:
        ConfigError: If a label is no class.
    """

    def __init__(
        self,
        labels: Sequence[str],
        folds: Sequence[int],
        rate: int,
        *,
        per_fold: int = 40,
        seconds: float = 2.0,
        spoiling: Spoiling | None = None,
    ) -> None:
        if strange := [label for label in labels if label not in CLASSES]:
            raise ConfigError(
                f"there is no synthetic sound {strange[0]!r}; known: {', '.join(CLASSES)}; for recordings set tagging.data.layout"
            )
        self._kinds = [(fold, label, number) for fold in folds for label in labels for number in range(per_fold)]
        targets = np.eye(len(labels), dtype=np.float32)[[labels.index(label) for _, label, _ in self._kinds]]
        names = [f"{label}_{fold}_{number:03d}" for fold, label, number in self._kinds]
        super().__init__(names, targets, np.array([fold for fold, _, _ in self._kinds]), rate)
        self._seconds, self._spoiling = seconds, spoiling
        self._made: dict[int, np.ndarray] = {}

    def clip(self, index: int) -> np.ndarray:
        """Return a sound, made when it is asked for first and kept as 16-bit samples."""
        if index not in self._made:
            fold, label, number = self._kinds[index]
            rng = np.random.default_rng((fold, list(CLASSES).index(label), number))
            sound = make(label, rng, self._seconds, self.rate)
            if self._spoiling is not None:
                sound = self._spoiling.apply(sound, rng, self.rate)
            self._made[index] = np.rint(sound * 32767).astype(np.int16)
        return self._made[index][None].astype(np.float32) / 32767


class FileSounds(Sounds):
    """Recordings of a data set.

    Args:
        clips: The recordings.
        labels: The labels in the network's order.
        rate: Samples per second.
    """

    def __init__(self, clips: Sequence[Clip], labels: Sequence[str], rate: int) -> None:
        targets = np.zeros((len(clips), len(labels)), np.float32)
        for row, numbers in enumerate(label_numbers(clips, labels)):
            targets[row, numbers] = 1
        super().__init__([str(clip.path) for clip in clips], targets, np.array([clip.fold or 0 for clip in clips]), rate)
        self._clips = tuple(clips)

    def clip(self, index: int) -> np.ndarray:
        """Return a recording, read from its file."""
        clip = self._clips[index]
        return open_sound(clip.path, start=clip.start, end=clip.end, quiet=True).read(self.rate)


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Random stretches of synthetic sounds, by :data:`~cnnkit.engine.sampling.Position`.

    Args:
        sounds: The recordings.
        samples: Length of a stretch; shorter recordings lie somewhere in silence.
        seed: Seed of the places.

    Shapes:
        An item is a waveform ``(1, samples)`` and its target ``(C,)``.
    """

    def __init__(self, sounds: SyntheticSounds, samples: int, seed: int) -> None:
        self.sounds, self.samples, self.seed = sounds, samples, seed

    def __len__(self) -> int:
        return len(self.sounds)

    def __getitem__(self, position: Position) -> tuple[Tensor, Tensor]:
        epoch, place, index = position
        rng, clip = item_rng(self.seed, epoch, place), self.sounds.clip(index)
        spare = clip.shape[1] - self.samples
        start = int(rng.integers(abs(spare) + 1))
        piece = clip[:, start : start + self.samples] if spare >= 0 else np.pad(clip, ((0, 0), (start, -spare - start)))
        return torch.from_numpy(np.ascontiguousarray(piece)), torch.from_numpy(self.sounds.targets[index])


class TrainClips:
    """The augmented batches of one epoch after another: ``{"sound": (B, 1, T), "target": (B, C)}``, rows of soft labels.

    Args:
        crops: Answers a position with a waveform and its target.
        weights: How often each clip is to come, ``(N,)``; equally often by default.
        data: Batch size, samples per epoch, workers.
        augment: What is done to a batch.
        rate: Samples per second.
        seed: Seed of everything random.
    """

    def __init__(
        self, crops: Crops | ClipDataset, weights: np.ndarray | None, data: DataConfig, augment: AugmentConfig, *, rate: int, seed: int
    ) -> None:
        self.augment, self.rate, self.seed, self.epoch = augment, rate, seed, 0
        steps = None if data.samples_per_epoch is None else max(1, data.samples_per_epoch // data.batch_size)
        sampler = PositionSampler(len(crops), batch_size=data.batch_size, seed=seed, steps=steps, weights=weights)
        self._loader = EpochLoader(crops, sampler, workers=data.workers)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) that the next iteration yields."""
        self.epoch = epoch
        self._loader.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        rank, _ = process()
        for step, (sound, target) in enumerate(self._loader):
            rng = np.random.default_rng((self.seed, self.epoch, step, rank))
            sound, target = augment_batch(sound, target, self.augment, rng, self.rate)
            yield {"sound": sound, "target": target}

    def __len__(self) -> int:
        return len(self._loader)


def whole_clips(sounds: Sounds) -> EachOnce:
    """Return recordings one by one, whole: ``{"sound": (1, 1, T), "target": (1, C), "name": [...], "fold": [...]}``."""

    def batch(index: int) -> dict[str, Any]:
        return {
            "sound": torch.from_numpy(sounds.clip(index))[None],
            "target": torch.from_numpy(sounds.targets[index])[None],
            "name": [sounds.names[index]],
            "fold": [int(sounds.folds[index])],
        }

    return EachOnce(len(sounds), batch)


def train_clips(data: DataConfig, augment: AugmentConfig, labels: Sequence[str], *, rate: int, samples: int, seed: int) -> TrainClips:
    """Return the training batches of a data set.

    Args:
        data: Which recordings, and how many at a time.
        augment: What is done to them.
        labels: The labels in the network's order.
        rate: Samples per second.
        samples: Length of a crop.
        seed: Seed of everything random.

    Raises:
        ConfigError: If the data set is not there or not laid out so.
    """
    if data.layout == "synthetic":
        sounds = SyntheticSounds(labels, _folds(data, held_out=False), rate)
        return TrainClips(Crops(sounds, samples, seed), None, data, augment, rate=rate, seed=seed)
    clips = read_dataset(data).train
    weights = balanced_weights(clips, labels) if data.balanced else None
    return TrainClips(ClipDataset(clips, labels, rate, samples, seed), weights, data, augment, rate=rate, seed=seed)


def read_sounds(data: DataConfig, labels: Sequence[str], split: str, rate: int) -> Sounds | None:
    """Return the recordings of ``"val"`` or ``"test"`` at a rate, or ``None`` if the data set has none.

    Where there are only folds, both are the fold that is held out.
    """
    if data.layout == "synthetic":
        return SyntheticSounds(labels, _folds(data, held_out=True), rate)
    clips = getattr(read_dataset(data), split)
    return FileSounds(clips, labels, rate) if clips else None


def labels_of(data: DataConfig) -> tuple[tuple[str, ...], bool]:
    """Return the labels of a data set, and whether a clip may have several."""
    if data.layout == "synthetic":
        return tuple(CLASSES), False
    clips = read_dataset(data)
    return clips.labels, clips.multilabel


def _folds(data: DataConfig, *, held_out: bool) -> list[int]:
    if not 1 <= data.fold <= FOLDS:
        raise ConfigError(f"tagging.data.fold={data.fold} is no fold of the synthetic sounds; accepted: 1 to {FOLDS}")
    return [fold for fold in range(1, FOLDS + 1) if (fold == data.fold) == held_out]
