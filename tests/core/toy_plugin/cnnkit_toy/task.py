"""The task: files with numbers in, files with their multiples out."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from cnnkit.engine.config import TrainConfig
from cnnkit.engine.files import atomic_path
from cnnkit.errors import InputError, InputWarning
from torch import nn

from cnnkit_toy.args import Run


@dataclass(frozen=True)
class Config:
    names: tuple[str, ...] = ("number",)
    unit: str = ""
    train: TrainConfig = field(default_factory=TrainConfig)


class Mean:
    def __init__(self) -> None:
        self.values: list[float] = []

    def update(self, predictions: Sequence[Any], batch: Any) -> None:
        self.values += [float(value) for value in batch["x"].flatten()]

    def merge(self, other: Mean) -> None:
        self.values += other.values

    def compute(self) -> dict[str, float]:
        return {"mean": sum(self.values) / len(self.values)}


class Toy:
    Config, Run = Config, Run

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg

    def model(self) -> nn.Module:
        return nn.Linear(1, 1, bias=False)

    def labels(self) -> list[str]:
        return list(self.cfg.names)

    def loader(self, split: str) -> Any:
        return [{"x": torch.tensor([[1.0], [3.0]])}]

    def losses(self, model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        return {"square": model(batch["x"]).square().mean()}

    def predict(self, model: nn.Module, batch: Any) -> list[Any]:
        return [(batch.get("name"), model(batch["x"]).flatten().tolist())]

    def metric(self) -> Mean:
        return Mean()

    def preprocess(self) -> dict[str, Any]:
        return {"unit": self.cfg.unit}

    def export_inputs(self, batch: Any) -> tuple[dict[str, torch.Tensor], dict[str, dict[int, str]]]:
        return {"x": batch["x"]}, {"x": {0: "batch"}}

    def read(self, run: Run) -> Iterable[Any]:
        for path in run.inputs:
            words = path.read_text().split()
            if "bug" in words:
                raise ZeroDivisionError("a fault of the task")
            if "stop" in words:
                raise KeyboardInterrupt
            try:
                numbers = [float(word) for word in words]
            except ValueError as error:
                raise InputError(f"{path}: not a number ({error})") from error
            if any(number < 0 for number in numbers):
                warnings.warn(f"{path.name}: negative numbers", InputWarning, stacklevel=1)
                warnings.warn("of no interest to people", RuntimeWarning, stacklevel=1)
            if numbers:
                yield {"name": run.name, "x": torch.tensor(numbers)[:, None]}

    def write(self, predictions: Sequence[Any], run: Run) -> list[Path]:
        sign = -1 if run.sign == "minus" else 1
        path = run.output / f"{run.name}.out"
        for _, numbers in predictions:
            text = " ".join(str(sign * number + run.shift) for number in numbers) + self.cfg.unit
            with atomic_path(path) as part, part.open("w") as stream:
                stream.write(text[: len(text) // 2])
                stream.flush()
                time.sleep(run.delay)
                stream.write(text[len(text) // 2 :])
        return [path]

    def example(self, run: Run) -> Iterable[Any]:
        yield {"name": "example", "x": torch.tensor([[5.0]])}

    def summarise(self, predictions: Sequence[Any], batch: Any, run: Run) -> dict[str, Any]:
        return {"largest": max(predictions[0][1])}
