"""Recordings of speakers, real or synthetic; crops to train on, and trials to measure on."""

from __future__ import annotations

import os
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cnnkit.engine.sampling import EachOnce, EpochLoader, Position, PositionSampler, item_rng, process
from cnnkit.errors import ConfigError
from torch import Tensor
from torch.utils.data import Dataset

from cnnkit_audio.data_config import AugmentConfig
from cnnkit_audio.datasets.speech import read_trials, voxceleb, voxceleb_root
from cnnkit_audio.embedding.config import EmbeddingConfig, StageConfig, VoicesConfig
from cnnkit_audio.models.efficient_tdnn_space import Space, SubNet
from cnnkit_audio.sound import open_sound
from cnnkit_audio.synth.voices import Speaker, speech

Trial = tuple[int, str, str]
"""1 for the same speaker and 0 for different ones, and the names of two recordings."""
GROUPS = {"train": 1, "val": 2, "test": 3}
LONGEST = 10
"""Recordings of one held-out speaker that make trials at most: pairs grow with their square."""


class Recordings(ABC):
    """Recordings with their speakers.

    Args:
        names: A name for each.
        speakers: The number of its speaker, from 0, for each.
        rate: Samples per second that :meth:`clip` gives.
    """

    def __init__(self, names: Sequence[str], speakers: Sequence[int], rate: int) -> None:
        self.names, self.speakers, self.rate = tuple(names), tuple(speakers), rate

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def clip(self, index: int) -> np.ndarray:
        """Return a recording as mono float32, ``(T,)``."""

    def heard(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """Return a recording as it sounds this time in the training; by default as it is."""
        return self.clip(index)

    def trials(self) -> list[Trial]:
        """Return all pairs of recordings."""
        return [(int(self.speakers[one] == self.speakers[other]), self.names[one], self.names[other]) for one, other in self._pairs()]

    def _pairs(self) -> Iterator[tuple[int, int]]:
        return combinations(range(len(self)), 2)


class Voices(Recordings):
    """Synthetic speakers, each recorded a few times; every recording has a channel and noise of its own.

    Args:
        cfg: How many, and how well they are recorded.
        group: ``"train"``, ``"val"`` or ``"test"``: other people in each.
        rate: Samples per second.
    """

    def __init__(self, cfg: VoicesConfig, group: str, rate: int) -> None:
        self.cfg, self.group = cfg, GROUPS[group]
        count = cfg.speakers if group == "train" else cfg.held_out
        takes = [(speaker, take) for speaker in range(count) for take in range(cfg.takes)]
        names = [f"{group}{speaker:04d}/{take}" for speaker, take in takes]
        super().__init__(names, [speaker for speaker, _ in takes], rate)
        self._spoken: dict[int, np.ndarray] = {}

    def clip(self, index: int) -> np.ndarray:
        """Return a recording, the same in every run."""
        return self.heard(index, np.random.default_rng((self.group, 1, index)))

    def heard(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """Return what was said, through a channel and with noise that ``rng`` draws."""
        return record(self._speech(index), rng, channel_db=self.cfg.channel_db, noise_db=self.cfg.noise_db)

    def _speech(self, index: int) -> np.ndarray:
        """Say it when it is asked for first, and keep 16-bit samples."""
        if index not in self._spoken:
            speaker = Speaker.draw(np.random.default_rng((self.group, 2, self.speakers[index])))
            said = speech(np.random.default_rng((self.group, 3, index)), self.cfg.seconds, self.rate, speaker)
            self._spoken[index] = np.rint(said * 32767).astype(np.int16)
        return self._spoken[index].astype(np.float32) / 32767


def record(signal: np.ndarray, rng: np.random.Generator, *, channel_db: float, noise_db: float) -> np.ndarray:
    """Send a signal ``(T,)`` through a random channel: smooth gains over frequency, and white noise.

    Args:
        signal: What was said.
        rng: Draws the channel and the noise.
        channel_db: Largest gain or loss.
        noise_db: Least signal-to-noise ratio; it is up to 20 dB better.
    """
    spectrum = np.fft.rfft(signal)
    points = np.interp(np.linspace(0, 7, len(spectrum)), np.arange(8), rng.uniform(-channel_db, channel_db, 8))
    heard = np.fft.irfft(spectrum * 10 ** (points / 20), len(signal))
    ratio = 10 ** (-(noise_db + rng.uniform(0, 20)) / 20)
    heard = heard + rng.standard_normal(len(heard)) * np.sqrt(np.mean(heard**2)) * ratio
    return (heard / max(1.0, float(np.abs(heard).max()))).astype(np.float32)


class Files(Recordings):
    """Recordings in VoxCeleb's layout; their names are paths below the folder of the speakers, as trial lists have them.

    Args:
        files: The recordings.
        root: The folder of the speakers.
        rate: Samples per second.
    """

    def __init__(self, files: Sequence[Path], root: Path, rate: int) -> None:
        self.files, self.root = tuple(files), root
        names = [self.name(file) for file in files]
        owners = [name.split("/")[0] for name in names]
        numbers = {owner: number for number, owner in enumerate(sorted(set(owners)))}
        super().__init__(names, [numbers[owner] for owner in owners], rate)

    def name(self, file: Path) -> str:
        """Return what a trial list calls a file."""
        return Path(os.path.relpath(file, self.root)).as_posix()

    def clip(self, index: int) -> np.ndarray:
        """Read a file."""
        return open_sound(self.files[index], quiet=True).read(self.rate)[0]

    def _pairs(self) -> Iterator[tuple[int, int]]:
        seen: dict[int, list[int]] = {}
        for index, speaker in enumerate(self.speakers):
            seen.setdefault(speaker, []).append(index)
        return combinations([index for mine in seen.values() for index in mine[:LONGEST]], 2)


def read_recordings(cfg: EmbeddingConfig, split: str, rate: int) -> tuple[Recordings, list[Trial]] | None:
    """Return the recordings of a split and the trials on them (none in the training), or ``None`` if there are none for it.

    Raises:
        ConfigError: If they are not laid out as VoxCeleb is, or nobody is left to train on.
        InputError: If a trial is wrong or names a file that is missing.
    """
    if not cfg.folder:
        voices = Voices(cfg.voices, split, rate)
        return voices, [] if split == "train" else voices.trials()
    if split == "test":
        return _listed(cfg, rate) if cfg.trials else None
    if split == "val" and not cfg.held_out:
        return None
    folder = Path(cfg.folder)
    clips = voxceleb(folder)
    people = sorted({clip.speaker for clip in clips})
    if cfg.held_out >= len(people):
        raise ConfigError(
            f"{folder} has {len(people)} speakers, of whom embedding.held_out={cfg.held_out} leaves nobody to train on; set fewer"
        )
    held_out = set(people[len(people) - cfg.held_out :])
    files = Files([clip.path for clip in clips if (clip.speaker in held_out) == (split == "val")], voxceleb_root(folder), rate)
    return files, [] if split == "train" else files.trials()


def _listed(cfg: EmbeddingConfig, rate: int) -> tuple[Recordings, list[Trial]]:
    """Return the recordings that a trial list names, and its trials."""
    folder = Path(cfg.test_folder or cfg.folder)
    trials = read_trials(Path(cfg.trials), folder)
    files = Files(list(dict.fromkeys(file for trial in trials for file in trial[1:])), voxceleb_root(folder), rate)
    return files, [(int(trial.same), files.name(trial.first), files.name(trial.second)) for trial in trials]


class Crops(Dataset[dict[str, Any]]):
    """Random stretches of recordings, by :data:`~cnnkit.engine.sampling.Position`.

    Args:
        recordings: The recordings.
        samples: Length of a stretch; shorter recordings are repeated.
        seed: Seed of the places.

    Shapes:
        An item is ``{"clip": (1, samples), "speaker": its number}``.
    """

    def __init__(self, recordings: Recordings, samples: int, seed: int) -> None:
        self.recordings, self.samples, self.seed = recordings, samples, seed

    def __getitem__(self, position: Position) -> dict[str, Any]:
        epoch, place, index = position
        rng = item_rng(self.seed, epoch, place)
        clip = at_least(self.recordings.heard(index, rng), self.samples)
        start = int(rng.integers(len(clip) - self.samples + 1))
        piece = np.ascontiguousarray(clip[start : start + self.samples])
        return {"clip": torch.from_numpy(piece)[None], "speaker": self.recordings.speakers[index]}


def at_least(clip: np.ndarray, samples: int) -> np.ndarray:
    """Return a clip ``(T,)``, repeated until it is long enough."""
    return np.tile(clip, -(-samples // len(clip))) if len(clip) < samples else clip


def stage_space(stage: StageConfig, largest: SubNet) -> Space:
    """Return what a stage draws from, under a largest network."""
    kernels = stage.kernels or (max(largest.kernels),)
    return Space.within(largest, depths=stage.depths or (0,), kernels=kernels, widths=stage.widths or (1.0,))


class TrainClips:
    """The batches of one epoch after another: ``{"clip": (B, 1, T), "speaker": (B,), "subnet": text}``.

    Args:
        recordings: The recordings.
        cfg: Lengths, batch size, stages.
        largest: The network; sub-networks of it are drawn in stages, and named in the batch.
        seed: Seed of everything random.

    Raises:
        ConfigError: If the augmentation would mix clips or mask features.
    """

    def __init__(self, recordings: Recordings, cfg: EmbeddingConfig, largest: SubNet | None, seed: int) -> None:
        if cfg.augment.mix != "none" or cfg.augment.freq_mask or cfg.augment.time_mask:
            raise ConfigError("embedding.augment cannot mix clips or mask features; accepted: mix=none, freq_mask=0, time_mask=0")
        self.cfg, self.largest, self.seed, self.epoch = cfg, largest, seed, 0
        self.rate = recordings.rate
        steps = None if cfg.samples_per_epoch is None else max(1, cfg.samples_per_epoch // cfg.batch_size)
        sampler = PositionSampler(len(recordings), batch_size=cfg.batch_size, seed=seed, steps=steps)
        self._loader = EpochLoader(Crops(recordings, round(cfg.seconds * recordings.rate), seed), sampler, workers=cfg.workers)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) that the next iteration yields."""
        self.epoch = epoch
        self._loader.set_epoch(epoch)

    def stage(self) -> StageConfig | None:
        """Return the stage that the epoch falls into."""
        left = self.epoch
        for stage in self.cfg.stages:
            left -= stage.epochs
            if left < 0:
                return stage
        return self.cfg.stages[-1] if self.cfg.stages else None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        stage = self.stage()
        space = None if stage is None or self.largest is None else stage_space(stage, self.largest)
        # Every process draws the same: their gradients are averaged, and they should be of the same weights.
        rng = random.Random(f"{self.seed}/{self.epoch}")
        for step, batch in enumerate(self._loader):
            clip = self._augmented(batch["clip"], step)
            yield {**batch, "clip": clip, "subnet": "" if space is None else str(space.sample(rng))}

    def _augmented(self, clips: Tensor, step: int) -> Tensor:
        if self.cfg.augment == AugmentConfig():
            return clips
        from cnnkit_audio.augment import augment_batch

        rng = np.random.default_rng((self.seed, self.epoch, step, process()[0]))
        return augment_batch(clips, clips.new_zeros(len(clips), 0), self.cfg.augment, rng, self.rate)[0]

    def __len__(self) -> int:
        return len(self._loader)


def trial_clips(recordings: Recordings, trials: list[Trial], cohort: tuple[Recordings, Sequence[int]] | None = None) -> EachOnce:
    """Return whole recordings one by one: those of the cohort first, then those of the trials, which the first of them brings along.

    Args:
        recordings: Those of the trials.
        trials: The trials.
        cohort: Recordings that scores are normalised by.
    """
    source, chosen = cohort or (recordings, ())

    def batch(number: int) -> dict[str, Any]:
        if number < len(chosen):
            return _whole(source, chosen[number]) | {"cohort": True, "trials": []}
        index = number - len(chosen)
        return _whole(recordings, index) | {"cohort": False, "trials": [] if index else trials}

    return EachOnce(len(chosen) + len(recordings), batch)


def _whole(source: Recordings, index: int) -> dict[str, Any]:
    clip = torch.from_numpy(source.clip(index))[None, None]
    return {"clip": clip, "speaker": torch.tensor([source.speakers[index]]), "name": [source.names[index]]}


def loader(cfg: EmbeddingConfig, split: str, rate: int, *, largest: SubNet | None, seed: int) -> TrainClips | EachOnce | None:
    """Return the batches of a split, or ``None`` if there are no recordings for it."""
    found = read_recordings(cfg, split, rate)
    if found is None:
        return None
    recordings, trials = found
    if split == "train":
        return TrainClips(recordings, cfg, largest, seed)
    if not cfg.cohort:
        return trial_clips(recordings, trials)
    train = read_recordings(cfg, "train", rate)
    assert train is not None
    spread = np.linspace(0, len(train[0]) - 1, min(cfg.cohort, len(train[0]))).round().astype(int)
    return trial_clips(recordings, trials, (train[0], spread.tolist()))
