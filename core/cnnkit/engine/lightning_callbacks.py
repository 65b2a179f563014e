"""What happens around the steps of a training: averaging, book-keeping, saving, progress."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import Tensor

from cnnkit.engine.lightning_io import AVERAGE
from cnnkit.engine.lightning_module import TaskModule
from cnnkit.engine.tables import EventFiles, Table
from cnnkit.errors import ConfigError, unknown


def ema_decay(decay: float, updates: int) -> float:
    """Return the decay of the update number ``updates`` (from 1): it grows to ``decay``, so that early weights are soon forgotten."""
    return min(decay, (1 + updates) / (10 + updates))


class Average(Callback):
    """Exponential moving average of the weights, validated and stored in place of the raw ones.

    Parameters and floating-point buffers (running statistics) are averaged, counters are copied. Lightning's own
    callback would average counters too and hold a second copy of the task with all its data.

    Args:
        decay: Share of the average that stays at each optimizer step, once :func:`ema_decay` has grown to it.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average: dict[str, Tensor] = {}
        self._live: dict[str, Tensor] = {}
        self._loaded: dict[str, Tensor] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: TaskModule) -> None:  # type: ignore[override]
        """Start from the network's weights, or from the stored average."""
        self._live = dict(pl_module.model.state_dict())
        self.average = {name: tensor.clone() for name, tensor in self._live.items()}
        for name, tensor in (self._loaded or {}).items():
            self.average[name].copy_(tensor)
        self._loaded = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take in the new weights if the optimizer made a step."""
        if trainer.global_step > self.updates:
            self.updates = trainer.global_step
            self._update(ema_decay(self.decay, self.updates))

    @torch.no_grad()
    def _update(self, decay: float) -> None:
        moving = [name for name, tensor in self._live.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.average[name] for name in moving], [self._live[name] for name in moving], 1.0 - decay)
        for name in self._live.keys() - moving:
            self.average[name].copy_(self._live[name])

    @torch.no_grad()
    def _swap(self) -> None:
        for name, live in self._live.items():
            kept = live.clone()
            live.copy_(self.average[name])
            self.average[name].copy_(kept)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Validate the average."""
        self._swap()

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Go on with the raw weights."""
        self._swap()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Hand over the average."""
        checkpoint[AVERAGE] = self.average

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Take the average back; without one it starts from the weights as they are."""
        self._loaded = checkpoint.get(AVERAGE)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates."""
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the number of updates back."""
        self.updates = state_dict["updates"]


class Watch(Callback):
    """Progress on stderr: a bar per epoch on a terminal, and one line at the end of each epoch."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Open the bar."""
        if trainer.is_global_zero and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("training")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Start the epoch's bar."""
        if self._bar is not None:
            batches = trainer.num_training_batches
            total = None if math.isinf(batches) else batches
            self._bar.reset(self._task, total=total, description=f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Advance it."""
        if self._bar is not None:
            self._bar.advance(self._task)

    def say(self, row: dict[str, float], epochs: int, seconds: float, better: bool) -> None:
        """Print one line with the epoch's figures."""
        shown = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if "/" in name)
        text = f"epoch {row['epoch']}/{epochs}  {shown}  {seconds:.1f} s{'  best' if better else ''}"
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Keeper(Checkpoint):
    """Writes the tables and the checkpoints of each epoch, and ends a training that gets no better.

    Args:
        output: The training's folder.
        monitor: Name of the validation figure that picks the best checkpoint.
        mode: ``"max"`` or ``"min"``.
        watch: Told each epoch's figures.
    """

    def __init__(self, output: Path, monitor: str, mode: str, *, watch: Watch | None = None) -> None:
        self.output, self.monitor, self.mode, self.watch = output, monitor, mode, watch
        self.best: float | None = None
        self.best_epoch = 0
        self.waited = 0
        self._epochs: Table | None = None
        self._steps: Table | None = None
        self._events: EventFiles | None = None
        self._logged_step = 0
        self._started = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: TaskModule) -> None:  # type: ignore[override]
        """Open the tables, without the rows of an epoch that a kill cut short."""
        config = pl_module.train_config
        self._logged_step = trainer.global_step
        if trainer.is_global_zero and config.csv:
            self._epochs = Table(self.output / "metrics.csv", key="epoch", upto=trainer.current_epoch)
            self._steps = Table(self.output / "steps.csv", key="step", upto=trainer.global_step)
        if trainer.is_global_zero and config.tensorboard:
            self._events = EventFiles(self.output / "tensorboard", after=trainer.global_step)
        if config.patience and self.waited >= config.patience:
            trainer.should_stop = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: TaskModule) -> None:  # type: ignore[override]
        """Start the clock."""
        self._started = time.monotonic()
        pl_module.validated = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: TaskModule, outputs: Any, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        """Write a row of the step table every ``log_every`` optimizer steps."""
        step = trainer.global_step
        if step == self._logged_step or step % pl_module.train_config.log_every:
            return
        self._logged_step = step
        values = {f"train/{name}": value for name, value in pl_module.step_means.take().items()}
        if self._steps is not None:
            self._steps.add({"step": step, "epoch": trainer.current_epoch + 1, "lr": pl_module.lr, **values})
        if self._events is not None:
            self._events.add({"lr": pl_module.lr, **values}, step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: TaskModule) -> None:  # type: ignore[override]
        """Write the epoch's row and checkpoints, on the figures that all processes share."""
        if trainer.fit_loop.restarting:  # Lightning passes through the end of the epoch that it resumes from once more.
            return
        config = pl_module.train_config
        train = {f"train/{name}": value for name, value in pl_module.epoch_means.take().items()}
        pl_module.step_means = type(pl_module.step_means)()  # The step table starts anew with each epoch, resumed or not.
        figures = pl_module.validated
        better = self._judge(trainer.current_epoch + 1, figures)
        if config.patience and self.waited >= config.patience:
            trainer.should_stop = True
        val = {f"val/{name}": value for name, value in (figures or {}).items()}
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "lr": pl_module.lr, **train, **val}
        seconds = time.monotonic() - self._started
        if self._epochs is not None:
            self._epochs.add({**row, "seconds": round(seconds, 3)})
        if self._events is not None:
            self._events.add({**{f"epoch/{name}": value for name, value in train.items()}, **val}, trainer.global_step)
        options = {"metrics": figures or {}, "best": self.output / "best.ckpt" if better else None}
        trainer.save_checkpoint(self.output / "last.ckpt", storage_options=options)
        if self.watch is not None and trainer.is_global_zero:
            self.watch.say(row, config.epochs, seconds, better)

    def _judge(self, epoch: int, figures: dict[str, float] | None) -> bool:
        """Tell whether this epoch is the best so far; without validation the last one is."""
        if figures is None:
            return self.best is None
        if self.monitor not in figures:
            raise ConfigError(unknown("figure in train.monitor", self.monitor, figures))
        value = figures[self.monitor]
        improved = self.best is None or (value > self.best if self.mode == "max" else value < self.best)
        if improved and not math.isnan(value):
            self.best, self.best_epoch, self.waited = value, epoch, 0
            return True
        self.waited += 1
        return self.best is None

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Close the event files."""
        if self._events is not None:
            self._events.close()

    def state_dict(self) -> dict[str, Any]:
        """Return what the best figure was, and how long ago."""
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take that back."""
        self.best, self.best_epoch, self.waited = (state_dict[name] for name in ("best", "best_epoch", "waited"))
