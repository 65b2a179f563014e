"""The classification job: what a picture, a field on the sphere or an outline shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cnnkit.engine.files import write_rows
from cnnkit.errors import UsageError
from cnnkit.options import RunOptions
from torch import Tensor, nn

from cnnkit_equivariant import args, config
from cnnkit_equivariant.classification.data import (
    DIGITS,
    Digits,
    count_channels,
    drawings,
    measuring_loader,
    present,
    read_field,
    read_labels,
    read_samples,
    stack,
    train_loader,
)
from cnnkit_equivariant.classification.files import read_array
from cnnkit_equivariant.classification.metrics import ClassMetric
from cnnkit_equivariant.models._base import Classifier
from cnnkit_equivariant.task import Batch, Equivariant

SHOWN = 8
"""Digits of ``run --example``."""


@dataclass
class Verdict:
    """What a network says of a sample.

    Args:
        probabilities: Of each class, ``(C,)``.
    """

    probabilities: np.ndarray


class Classification(Equivariant):
    """Learn what samples show, and say it of files.

    Args:
        cfg: The experiment; its section ``classification`` counts.
    """

    def __init__(self, cfg: config.Config) -> None:
        super().__init__(cfg)
        self.monitor = ("accuracy", "max")

    @property
    def domain(self) -> str:
        """What the network takes."""
        assert isinstance(self.shape, Classifier)
        return self.shape.domain

    def network_args(self) -> Mapping[str, Any]:
        """The classes and the channels of the data set."""
        return {"num_classes": len(self.labels()), "in_chans": self.cfg.classification.channels}

    def labels(self) -> Sequence[str]:
        """Return the names of the classes."""
        return read_labels(self.cfg.classification)

    def preprocess(self) -> dict[str, Any]:
        """Return how a file is presented to the network."""
        cfg = self.cfg.classification
        return {"domain": self.domain, "size": cfg.size, "channels": cfg.channels, "range": [0, 1]}

    def prepare(self, output: Path) -> config.Config:
        """Find the classes and the channels of a folder."""
        cfg = self.cfg.classification
        labels = self.labels()
        if cfg.data == "digits":
            return self.cfg
        return replace(self.cfg, classification=replace(cfg, labels=tuple(labels), channels=count_channels(cfg)))

    def export_inputs(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
        """Return samples as the network's input; their number is free, and that of an outline's segments."""
        return {"x": batch["x"]}, {"x": {0: "batch", 1: "segments"} if self.domain == "outline" else {0: "batch"}}

    # Training.

    def loader(self, split: str) -> Iterable[Batch] | None:
        """Return turned samples (``"train"``), each sample once at each size (``"val"``, ``"test"``), or eight drawings (``"example"``)."""
        cfg = self.cfg.classification
        if split == "example":
            pictures, target = drawings(8, cfg.channels, len(self.labels()))
            x = present(self.domain, pictures, cfg.size, turns="none", rng=np.random.default_rng(0))
            return [{"x": x, "target": target, "size": cfg.size, "name": [f"drawing_{number}" for number in range(len(x))]}]
        samples = read_samples(cfg, split, self.domain)
        if samples is None:
            return None
        return train_loader(cfg, samples, self.cfg.train.seed) if split == "train" else measuring_loader(cfg, samples, split)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the network's own losses, which for most are the cross-entropy."""
        assert isinstance(model, Classifier)
        return model.losses(batch["x"], batch["target"])

    def metric(self) -> ClassMetric:
        """Return accuracies."""
        return ClassMetric(self.labels(), self.cfg.classification.size)

    # Prediction.

    def predict(self, model: nn.Module, batch: Batch) -> list[Verdict]:
        """Return the probabilities of the classes, one by one."""
        return [Verdict(row) for row in model(batch["x"]).double().softmax(1).cpu().numpy()]

    def read(self, run: RunOptions) -> Iterable[Batch]:
        """Yield each file of a run."""
        cfg = self.cfg.classification
        for path in run.inputs:
            field = read_field(self.domain, read_array(path, cfg.channels), cfg.size)
            yield {"x": field[None], "size": cfg.size, "name": [run.name]}

    def write(self, predictions: Sequence[Verdict], run: RunOptions) -> list[Path]:
        """Write ``NAME.csv``: the likeliest classes and their probabilities, the likeliest first."""
        assert isinstance(run, args.Run)
        labels, rows = self.labels(), [("sample", "rank", "class", "probability")]
        for number, verdict in enumerate(predictions, start=1):
            name = run.name if len(predictions) == 1 else f"{run.name}_{number}"
            order = np.argsort(-verdict.probabilities, kind="stable")[: run.top]
            rows += [(name, str(rank), labels[i], f"{verdict.probabilities[i]:.6f}") for rank, i in enumerate(order, start=1)]
        return [write_rows(run.output / f"{run.name}.csv", rows)]

    # The example.

    def example(self, run: RunOptions) -> Iterable[Batch]:
        """Yield digits of the test, presented and turned as the test is.

        Raises:
            UsageError: If the network was not trained on digits.
        """
        cfg = self.cfg.classification
        if tuple(self.labels()) != DIGITS or cfg.channels != 1:
            raise UsageError(f"the example shows digits, and this network was trained on {', '.join(self.labels())}; name an input")
        samples, rng = Digits("test", self.domain), np.random.default_rng(0)
        x = stack([samples.sample(row, cfg.size, cfg.test_turns, rng) for row in range(SHOWN)])
        yield {"x": x, "target": torch.from_numpy(samples.targets[:SHOWN]), "size": cfg.size, "name": list(samples.names[:SHOWN])}

    def summarise(self, predictions: Sequence[Verdict], batch: Batch, run: RunOptions) -> dict[str, Any]:
        """Return what was shown and what was said."""
        labels, said = self.labels(), [int(verdict.probabilities.argmax()) for verdict in predictions]
        return {
            "shown": " ".join(labels[int(target)] for target in batch["target"]),
            "said": " ".join(labels[number] for number in said),
        }
