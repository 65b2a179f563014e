"""A tiny honest task for the tests of the engine: tell two interleaved half moons apart from their coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cnnkit.engine.config import OptimizerConfig, TrainConfig
from cnnkit.engine.sampling import EpochSampler, item_rng, process
from cnnkit.options import RunOptions
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


@dataclass(frozen=True)
class Config:
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=4, seed=7, accelerator="cpu", devices=1, log_every=1, tensorboard=False, optimizer=OptimizerConfig(lr=0.02)
        )
    )
    batch: int = 16
    items: int = 64
    hidden: int = 16
    dropout: float = 0.2
    batch_norm: bool = True
    noise: float = 0.05
    validate: bool = True
    workers: int = 0


@dataclass(frozen=True)
class Run(RunOptions):
    suffixes = (".txt",)


def moons(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of two half circles, alternately: coordinates ``(count, 2)`` and classes ``(count,)``."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 2
    angle = rng.uniform(0, np.pi, count)
    x = np.where(label == 0, np.cos(angle), 1 - np.cos(angle))
    y = np.where(label == 0, np.sin(angle), 0.5 - np.sin(angle))
    return np.stack([x, y], 1).astype(np.float32), label


class Moons(Dataset):
    """Points, each shifted by noise of its own in every epoch."""

    def __init__(self, cfg: Config, count: int, seed: int, noise: float) -> None:
        self.points, self.labels = moons(count, seed)
        self.cfg, self.noise, self.epoch = cfg, noise, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        shift = item_rng(self.cfg.train.seed, self.epoch, index).normal(0, self.noise, 2).astype(np.float32) if self.noise else 0.0
        return {"x": torch.from_numpy(self.points[index] + shift), "y": torch.tensor(self.labels[index])}


class Accuracy:
    def __init__(self) -> None:
        self.right = self.total = 0

    def update(self, predictions: Sequence[int], batch: dict[str, Tensor]) -> None:
        self.right += sum(p == y for p, y in zip(predictions, batch["y"].tolist(), strict=True))
        self.total += len(predictions)

    def merge(self, other: Accuracy) -> None:
        self.right += other.right
        self.total += other.total

    def compute(self) -> dict[str, float]:
        return {"accuracy": self.right / self.total, "count": float(self.total)}

    def report(self, folder: Path) -> list[Path]:
        path = folder / "accuracy.txt"
        path.write_text(f"{self.right} of {self.total}\n")
        return [path]


class Toy:
    Config, Run = Config, Run
    presets: dict[str, Any] = {}
    monitor = ("accuracy", "max")

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg

    def model(self) -> nn.Module:
        norm = nn.BatchNorm1d(self.cfg.hidden) if self.cfg.batch_norm else nn.Identity()
        return nn.Sequential(nn.Linear(2, self.cfg.hidden), norm, nn.ReLU(), nn.Dropout(self.cfg.dropout), nn.Linear(self.cfg.hidden, 2))

    def loader(self, split: str) -> Any:
        cfg = self.cfg
        if split == "example":
            points, labels = moons(4, 0)
            return [{"x": torch.from_numpy(points), "y": torch.from_numpy(labels)}]
        if split == "val" and not cfg.validate:
            return None
        if split == "train":
            data = Moons(cfg, cfg.items, 1, cfg.noise)
            sampler = EpochSampler(len(data), seed=cfg.train.seed)
            return DataLoader(data, cfg.batch // process()[1], sampler=sampler, num_workers=cfg.workers)
        data = Moons(cfg, 50, 2, 0.0)
        return DataLoader(data, 8, sampler=EpochSampler(len(data), seed=0, shuffle=False, even=False))

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = model(batch["x"])
        return {"entropy": F.cross_entropy(logits, batch["y"]), "size": 1e-3 * logits.square().mean()}

    def predict(self, model: nn.Module, batch: dict[str, Tensor]) -> list[int]:
        return model(batch["x"]).argmax(1).tolist()

    def metric(self) -> Accuracy:
        return Accuracy()

    def labels(self) -> list[str]:
        return ["upper", "lower"]

    def preprocess(self) -> dict[str, Any]:
        return {"mean": [0.5, 0.25]}

    def read(self, run: RunOptions) -> Any:
        for path in run.inputs:
            yield {"x": torch.tensor([[float(word) for word in path.read_text().split()]])}

    def write(self, predictions: Sequence[int], run: RunOptions) -> list[Path]:
        path = run.output / f"{run.name}.txt"
        path.write_text(" ".join(self.labels()[p] for p in predictions))
        return [path]
