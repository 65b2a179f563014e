"""Speech to learn coding from, and to measure it on: any recordings, or synthetic voices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cnnkit.engine.sampling import EachOnce, EpochLoader, Position, PositionSampler, item_rng
from cnnkit.errors import ConfigError
from cnnkit.options import has_suffix
from torch.utils.data import Dataset

from cnnkit_audio.args import SOUNDS
from cnnkit_audio.codec.config import CodecConfig, CodecDataConfig
from cnnkit_audio.sound import open_sound
from cnnkit_audio.synth.voices import speech

SYNTHETIC_CLIPS = 1000
"""Synthetic clips of an epoch."""
_SPLITS = {"val": 1, "test": 2}


def find_sounds(folders: Sequence[str], key: str) -> list[Path]:
    """Return the sound files in folders and all folders inside, in a stable order.

    Raises:
        ConfigError: If a folder is not there or holds none; the message names the key ``codec.data.<key>``.
    """
    found: list[Path] = []
    for folder in map(Path, folders):
        inside = sorted(path for path in folder.rglob("*") if path.is_file() and has_suffix(path, SOUNDS) and path.name[0] != ".")
        if not inside:
            state = "holds no sound files" if folder.is_dir() else "is no folder"
            raise ConfigError(f"codec.data.{key}: {folder} {state}; accepted: folders with {', '.join(SOUNDS)}")
        found += inside
    return found


class SpeechClips(Dataset[dict[str, Any]]):
    """Clips to train on, by :data:`~cnnkit.engine.sampling.Position`.

    Args:
        files: The recordings; none for synthetic voices.
        cfg: Length of a clip, and how often the number of levels is drawn.
        levels: Levels of the codec.
        rate: Samples per second.
        seed: Seed of everything random.

    Shapes:
        An item is ``{"wave": (1, T), "levels": int, "epoch": int}``; a recording that is shorter lies somewhere in silence.
    """

    def __init__(self, files: Sequence[Path], cfg: CodecConfig, *, levels: int, rate: int, seed: int) -> None:
        self.files, self.cfg, self.levels, self.rate, self.seed = files, cfg, levels, rate, seed

    def __getitem__(self, position: Position) -> dict[str, Any]:
        epoch, place, index = position
        rng = item_rng(self.seed, epoch, place)
        drawn = rng.random() < self.cfg.level_dropout
        levels = int(rng.integers(1, self.levels + 1)) if drawn else self.levels
        seconds = self.cfg.data.seconds
        wave = crop(self.files[index], seconds, self.rate, rng) if self.files else speech(rng, seconds, self.rate)[None]
        return {"wave": torch.from_numpy(np.ascontiguousarray(wave)), "levels": levels, "epoch": epoch}


def crop(path: Path, seconds: float, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random stretch of a recording as mono ``(1, round(seconds * rate))``; only that stretch is decoded."""
    samples = round(seconds * rate)
    sound = open_sound(path, quiet=True, nonfinite="zero")
    length = None if sound.frames is None else sound.frames / sound.sample_rate
    if length is not None and length > seconds:
        start = float(rng.uniform(0, length - seconds))
        sound = open_sound(path, start=start, end=start + seconds, quiet=True, nonfinite="zero")
    wave = sound.read(rate)[:, :samples]
    before = int(rng.integers(samples - wave.shape[1] + 1))
    return np.pad(wave, ((0, 0), (before, samples - wave.shape[1] - before)))


def train_loader(cfg: CodecConfig, *, levels: int, rate: int, seed: int) -> EpochLoader:
    """Return the batches of one epoch after another: ``{"wave": (B, 1, T), "levels": (B,), "epoch": (B,)}``.

    Raises:
        ConfigError: If a folder holds no sounds, clips have no length, or codebooks are to be refitted before they were fitted.
    """
    data = cfg.data
    if early := [epoch for epoch in cfg.refit_epochs if epoch <= cfg.pretrain_epochs]:
        raise ConfigError(f"codec.refit_epochs has {early[0]}; accepted: epochs after codec.pretrain_epochs={cfg.pretrain_epochs}")
    if not data.seconds * rate >= 1:
        raise ConfigError(f"codec.data.seconds={data.seconds} is no time; accepted: more than 0")
    files = find_sounds(data.train, "train")
    clips = data.clips_per_epoch or (len(files) or SYNTHETIC_CLIPS)
    sampler = PositionSampler(len(files) or clips, batch_size=data.batch_size, seed=seed, steps=max(1, clips // data.batch_size))
    return EpochLoader(SpeechClips(files, cfg, levels=levels, rate=rate, seed=seed), sampler, workers=data.workers)


def whole_speech(data: CodecDataConfig, split: str, *, rate: int) -> EachOnce:
    """Return recordings one by one: ``{"wave": (1, 1, T), "name": [...]}``.

    Synthetic ones are the same in every run, and no clip of a training.

    Args:
        data: Folders, or how many voices.
        split: ``"val"`` or ``"test"``.
        rate: Samples per second.

    Raises:
        ConfigError: If a folder holds no sounds.
    """
    files = find_sounds(data.val if split == "val" else data.test, split)

    def batch(index: int) -> dict[str, Any]:
        if files:
            wave = open_sound(files[index], quiet=True).read(rate)
        else:  # A seed of two numbers meets none of the training, whose have three.
            wave = speech(np.random.default_rng((_SPLITS[split], index)), data.seconds, rate)[None]
        return {"wave": torch.from_numpy(wave)[None], "name": [files[index].name if files else f"voice_{index:03d}"]}

    return EachOnce(len(files) or data.voices, batch)
