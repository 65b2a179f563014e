"""A task as Lightning sees it. Imported by :func:`cnnkit.engine.fit.fit` alone, because importing Lightning takes seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from cnnkit.config import dump_yaml, from_dict, read_yaml
from cnnkit.engine.config import TrainConfig
from cnnkit.engine.device import to_device
from cnnkit.engine.evaluate import figures
from cnnkit.engine.files import write_text
from cnnkit.engine.load import load_into
from cnnkit.engine.optim import build_optimizer
from cnnkit.engine.sampling import process, seed_all
from cnnkit.errors import CnnkitError, ConfigError
from cnnkit.task import Calibrates, Metric, Optimizes

T = TypeVar("T")
INIT, ORDER, TRAIN, VALIDATE = range(4)  # What a seed is for; part of each position that is mixed into one.


def gather(item: T) -> list[T]:
    """Return ``item`` of every process, in rank order, on every process."""
    world = process()[1]
    if world == 1:
        return [item]
    items: list[Any] = [None] * world
    torch.distributed.all_gather_object(items, item)
    return items


class Batches:
    """A loader that is told the epoch, and seeded by it, whenever it is iterated.

    It also hides the loader's kind: Lightning takes a list for several loaders, and replaces samplers.
    """

    def __init__(self, loader: Iterable[Any], before: Callable[[Iterable[Any]], None]) -> None:
        self.loader = loader
        self.before = before

    def __iter__(self) -> Iterator[Any]:
        self.before(self.loader)
        return iter(self.loader)

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]  # TypeError for a stream, which Lightning expects.


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell the epoch to a loader and to its sampler, batch sampler and dataset, as far as they listen.

    Raises:
        ConfigError: If the dataset listens but lives on in worker processes that would not hear it.
    """
    batch_sampler = getattr(loader, "batch_sampler", None)
    dataset = getattr(loader, "dataset", None)
    if getattr(loader, "persistent_workers", False) and hasattr(dataset, "set_epoch"):
        raise ConfigError("a training loader with persistent_workers=True cannot tell its dataset the epoch; set it to False")
    listeners = (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None), dataset)
    heard: dict[int, Any] = {id(item): item for item in listeners if hasattr(item, "set_epoch")}
    for listener in heard.values():
        listener.set_epoch(epoch)


class Means:
    """Means of named numbers, over the batches of all processes."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, int]] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """Take in one batch."""
        for name, value in values.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value, count + 1)

    def take(self) -> dict[str, float]:
        """Return the means over all processes (each of which has to call this), and start again."""
        merged: dict[str, tuple[float, int]] = {}
        for part in gather(self.sums):
            for name, (total, count) in part.items():
                before = merged.get(name, (0.0, 0))
                merged[name] = (before[0] + total, before[1] + count)
        self.sums = {}
        return {name: total / count for name, (total, count) in merged.items()}


class TaskModule(LightningModule):
    """Trains and validates a task's network.

    Args:
        task: The task.
        output: The training's folder.
        init: Weights to start from.
        resuming: Whether the training goes on from a checkpoint; data are then not looked at anew.
        monitor: Name of the figure that picks the best checkpoint. For ``"loss"`` the losses are computed on the
            validation data too.
    """

    def __init__(self, task: Any, output: Path, *, init: Path | None, resuming: bool, monitor: str) -> None:
        super().__init__()
        self.task = task
        self.train_config: TrainConfig = task.cfg.train
        self.output = output
        self.init = init
        self.resuming = resuming
        self.monitor = monitor
        self.model: Any = None
        self.batches: dict[str, Batches | None] = {}
        self.epoch_means, self.step_means, self.val_means = Means(), Means(), Means()
        self.metric: Metric | None = None
        self.validated: dict[str, float] | None = None
        self.lr = math.nan

    def prepare_data(self) -> None:
        """Let the task look at its data; Lightning calls this on one process while the others wait."""
        if isinstance(self.task, Calibrates) and not self.resuming:
            write_text(self.output / "config.yaml", dump_yaml(self.task.prepare(self.output)))

    def setup(self, stage: str) -> None:
        """Build network and loaders, on every process."""
        if isinstance(self.task, Calibrates):
            file = self.output / "config.yaml"
            kind: Any = type(self.task)
            self.task = kind(from_dict(kind.Config, read_yaml(file), source=str(file)))
        seed_all(self.train_config.seed, INIT)
        self.model = self.task.model()
        if self.init is not None and not self.resuming:
            load_into(self.task, self.model, self.init)
        self.batches = {"train": self._loader("train", self._before_training), "val": self._loader("val", self._before_validation)}
        if self.batches["train"] is None:
            raise ConfigError("the configuration names no training data")

    def _loader(self, split: str, before: Callable[[Any], None]) -> Batches | None:
        loader = self.task.loader(split)
        return None if loader is None else Batches(loader, before)

    def _before_training(self, loader: Any) -> None:
        # Unlike the trainer's own number, this one is right before the loop of a resumed training runs.
        epoch = self.trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        set_epoch(loader, epoch)
        seed_all(self.train_config.seed, ORDER, epoch, process()[0])

    def _before_validation(self, loader: Any) -> None:
        seed_all(self.train_config.seed, ORDER, 0, process()[0])

    def train_dataloader(self) -> Any:
        """Return the training batches."""
        return self.batches["train"]

    def val_dataloader(self) -> Any:
        """Return the validation batches; none if the task has none."""
        return self.batches["val"] or []

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move what is in a batch, of whatever kind the task made it."""
        return to_device(batch, device)

    def configure_optimizers(self) -> Any:
        """Return the task's own optimizer, or the configured one."""
        steps = self.total_steps()
        if isinstance(self.task, Optimizes):
            return self.task.optimizer(self.model, steps)
        return build_optimizer(self.model, self.train_config.optimizer, steps)

    def total_steps(self) -> Any:
        """Return the optimizer steps of the whole training, or ``None`` for a stream without a length."""
        try:
            batches = len(self.batches["train"])  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):
            return None
        return self.train_config.epochs * -(-batches // self.train_config.accumulate)

    def on_train_epoch_start(self) -> None:
        """Let batch normalisations keep their statistics from the configured epoch on; Lightning has set them to learn just before."""
        after = self.train_config.freeze_norms_after
        if after and self.current_epoch >= after:
            for norm in (module for module in self.model.modules() if isinstance(module, _BatchNorm)):
                norm.eval()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the sum of the task's losses for one batch."""
        seed_all(self.train_config.seed, TRAIN, self.current_epoch, batch_idx, process()[0])
        total, values = self._losses(batch, f"in batch {batch_idx + 1} of epoch {self.current_epoch + 1}")
        self.epoch_means.add(values)
        self.step_means.add(values)
        self.lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        return total

    def _losses(self, batch: Any, where: str) -> tuple[Tensor, dict[str, float]]:
        """Return the sum of the losses, and all of them as numbers."""
        losses = dict(self.task.losses(self.model, batch))
        if "loss" in losses and len(losses) > 1:
            raise CnnkitError("losses() names one of several losses 'loss', which is the name of their sum; rename it")
        total = torch.stack([value.reshape(()) for value in losses.values()]).sum() if losses else None
        if total is None:
            raise CnnkitError(f"losses() returned no loss {where}")
        numbers = torch.stack([*(value.detach().reshape(()).double() for value in losses.values())]).tolist()
        values = dict(zip(losses, numbers, strict=True))
        for name, value in values.items():
            if not math.isfinite(value):
                raise CnnkitError(
                    f"the training stopped: loss {name!r} became {value} {where}. Try a smaller train.optimizer.lr, train.clip_norm=1, or "
                    f"train.precision=32-true; the weights after the last whole epoch are in {self.output}"
                )
        return total, {"loss": sum(numbers), **values}

    def on_validation_epoch_start(self) -> None:
        """Start a fresh metric."""
        self.metric = self.task.metric()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Measure the predictions for one batch."""
        seed_all(self.train_config.seed, VALIDATE, self.current_epoch, batch_idx, process()[0])
        assert self.metric is not None
        self.metric.update(self.task.predict(self.model, batch), batch)
        if self.monitor == "loss":
            self.val_means.add(self._losses(batch, f"in validation batch {batch_idx + 1} of epoch {self.current_epoch + 1}")[1])

    def on_validation_epoch_end(self) -> None:
        """Merge the metrics of all processes in rank order, so that every process sees the same figures."""
        assert self.metric is not None
        merged, *others = gather(self.metric)
        for other in others:
            merged.merge(other)
        self.validated = {**self.val_means.take(), **figures(merged)}
