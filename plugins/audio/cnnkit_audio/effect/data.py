"""Pairs of dry and wet sound: in files of SignalTrain's layout, or from a simulated compressor."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cnnkit.engine.sampling import EachOnce, EpochLoader, Position, PositionSampler, item_rng
from cnnkit.errors import ConfigError, InputError
from torch import Tensor
from torch.utils.data import Dataset

from cnnkit_audio.effect.config import EffectConfig
from cnnkit_audio.sound import open_sound
from cnnkit_audio.synth.dynamics import compress, drums

FOLDERS = {"train": "Train", "val": "Val", "test": "Test"}
_TARGET = re.compile(r"target_(\d+)_.*?__(.+)\.wav", re.IGNORECASE)


class Pairs(ABC):
    """Recordings of what went into a device and what came out.

    Args:
        names: A name for each.
        knobs: Settings of the device, ``(N, K)``.
    """

    def __init__(self, names: Sequence[str], knobs: np.ndarray) -> None:
        self.names, self.knobs = tuple(names), knobs.astype(np.float32)

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def pair(self, index: int) -> np.ndarray:
        """Return dry and wet, ``(2, T)`` float32."""


class SimulatedPairs(Pairs):
    """Drums through :func:`~cnnkit_audio.synth.dynamics.compress`, the same ones in every run.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``; they share no sound and no setting.
        rate: Samples per second.
        count: Number of pairs.
        seconds: Length of each.
    """

    def __init__(self, split: str, rate: int, *, count: int = 24, seconds: float = 3.0) -> None:
        rng = np.random.default_rng((11, list(FOLDERS).index(split)))
        limit, reduction = rng.integers(0, 2, count).astype(float), rng.uniform(0.2, 0.9, count)
        super().__init__([f"{split}_{number:03d}" for number in range(count)], np.stack([limit, reduction], axis=1))
        dry = np.stack([drums(rng, seconds, rate) for _ in range(count)])
        self._pairs = np.stack([dry, compress(dry, limit, reduction, rate).astype(np.float32)], axis=1)

    def pair(self, index: int) -> np.ndarray:
        """Return a pair."""
        return self._pairs[index]


class FilePairs(Pairs):
    """Files ``input_N_.wav`` and ``target_N_DEVICE__KNOB__KNOB.wav`` of a folder.

    Args:
        folder: The folder.
        rate: Samples per second that :meth:`pair` gives.
        scales: What the knobs of the names are divided by.

    Raises:
        ConfigError: If the folder has no pairs, or names and scales differ in the number of knobs.
    """

    def __init__(self, folder: Path, rate: int, scales: Sequence[float]) -> None:
        targets = sorted(path for path in folder.glob("target_*") if _TARGET.fullmatch(path.name))
        if not targets:
            raise ConfigError(f"{folder} holds no pairs; expected are files like input_137_.wav and target_137_LA2A_3c__1__60.wav")
        knobs = []
        self._files: list[tuple[Path, Path]] = []
        for target in targets:
            number, settings = _TARGET.fullmatch(target.name).groups()  # type: ignore[union-attr]
            dry = folder / f"input_{number}_.wav"
            if not dry.is_file():
                raise ConfigError(f"{target} has no {dry.name} beside it")
            try:
                knobs.append([float(value) for value in settings.split("__")])
            except ValueError:
                raise ConfigError(f"{target.name}: {settings!r} are no settings; expected are numbers with __ between them") from None
            if len(knobs[-1]) != len(scales):
                raise ConfigError(f"{target.name} has {len(knobs[-1])} knobs and effect.scales {len(scales)}; they must be as many")
            self._files.append((dry, target))
        super().__init__([target.stem for target in targets], np.array(knobs) / np.asarray(scales))
        self._rate = rate
        self._read = lru_cache(maxsize=16)(self._open)

    def _open(self, index: int) -> np.ndarray:
        dry, wet = (open_sound(path).read(self._rate)[0] for path in self._files[index])
        if dry.size != wet.size:
            names = " and ".join(path.name for path in self._files[index])
            raise InputError(f"{names} have {dry.size} and {wet.size} samples; what went in and what came out must be as long")
        return np.stack([dry, wet])

    def pair(self, index: int) -> np.ndarray:
        """Return a pair, read from its files; the last few are kept."""
        return self._read(index)


class PairCrops(Dataset[dict[str, Tensor]]):
    """Random stretches of pairs by :data:`~cnnkit.engine.sampling.Position`, turned upside down half of the time.

    Args:
        pairs: The pairs.
        samples: Length of a stretch, the network's context included.
        seed: Seed of everything random.

    Shapes:
        An item is ``{"dry": (1, samples), "wet": (1, samples), "knobs": (K,)}``.
    """

    def __init__(self, pairs: Pairs, samples: int, seed: int) -> None:
        self.pairs, self.samples, self.seed = pairs, samples, seed

    def __getitem__(self, position: Position) -> dict[str, Tensor]:
        epoch, place, index = position
        rng, pair = item_rng(self.seed, epoch, place), self.pairs.pair(index)
        if pair.shape[1] < self.samples:
            raise InputError(
                f"{self.pairs.names[index]} has {pair.shape[1]} samples, fewer than the {self.samples} of effect.samples and the network's "
                "context; type --set effect.samples=N for a smaller N"
            )
        start = int(rng.integers(pair.shape[1] - self.samples + 1))
        piece = torch.from_numpy(pair[:, start : start + self.samples] * np.float32(rng.choice((-1.0, 1.0))))
        return {"dry": piece[:1], "wet": piece[1:], "knobs": torch.from_numpy(self.pairs.knobs[index])}


def whole_pairs(pairs: Pairs) -> EachOnce:
    """Return pairs one by one, as :func:`whole` makes them."""
    return EachOnce(len(pairs), lambda index: whole(pairs, index))


def whole(pairs: Pairs, index: int) -> dict[str, Any]:
    """Return one pair as a batch: ``{"dry": (1, 1, T), "wet": (1, 1, T), "knobs": (1, K), "name": [...]}``."""
    dry, wet = torch.from_numpy(pairs.pair(index))[:, None, None]
    return {"dry": dry, "wet": wet, "knobs": torch.from_numpy(pairs.knobs[index])[None], "name": [pairs.names[index]]}


def read_pairs(cfg: EffectConfig, split: str, rate: int) -> Pairs | None:
    """Return the pairs of a split, or ``None`` if its folder does not exist.

    Raises:
        ConfigError: If there is no folder to train on, or nothing to simulate.
    """
    if not cfg.folder:
        if cfg.simulated < 1:
            raise ConfigError(f"effect.simulated={cfg.simulated} leaves nothing to train on; accepted: 1 or more")
        return SimulatedPairs(split, rate, count=cfg.simulated if split == "train" else 6)
    folder = Path(cfg.folder) / FOLDERS[split]
    if not folder.is_dir():
        if split == "train":
            raise ConfigError(f"effect.folder={cfg.folder} has no folder {FOLDERS[split]}; expected are {', '.join(FOLDERS.values())}")
        return None
    return FilePairs(folder, rate, cfg.scales)


def crop_loader(pairs: Pairs, cfg: EffectConfig, *, context: int, seed: int) -> EpochLoader:
    """Return the batches of random stretches: ``cfg.samples`` and the network's context."""
    sampler = PositionSampler(len(pairs), batch_size=cfg.batch_size, seed=seed, steps=cfg.steps_per_epoch)
    return EpochLoader(PairCrops(pairs, cfg.samples + context, seed), sampler, workers=cfg.workers)
