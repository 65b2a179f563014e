"""Training: ``fit`` runs a task's training on Lightning and leaves checkpoints, tables and curves in one folder.

The folder afterwards: ``best.ckpt`` and ``last.ckpt`` (for use), ``last.ckpt.state`` (to go on), ``config.yaml``,
``metrics.csv`` (a row per epoch), ``steps.csv`` (a row per ``log_every`` optimizer steps), ``curves.svg``, ``tensorboard/``.

Several processes: Lightning starts them by running the program's command line again, or finds that torchrun or Slurm
has. Each of them calls :func:`fit`; the first does what is done once. A task deals its training data out with
:class:`cnnkit.engine.sampling.EpochSampler`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnkit.checkpoint import Header, read_header
from cnnkit.config import dump_yaml, from_dict, read_yaml, to_dict
from cnnkit.engine.config import TrainConfig
from cnnkit.engine.files import remove_stale_parts, writable_folder, write_text
from cnnkit.errors import ConfigError, PluginError, UsageError
from cnnkit.task import Calibrates, CustomFit, Labelled, Preprocesses
from cnnkit.versions import version_of

if TYPE_CHECKING:
    from torch import nn

    from cnnkit.plugin import Plugin


@dataclass(frozen=True)
class FitResult:
    """What a training left behind.

    Args:
        best: Checkpoint of the epoch with the best validation figure.
        last: Checkpoint of the last epoch.
        metrics: Validation figures of ``best``.
    """

    best: Path
    last: Path
    metrics: Mapping[str, float]


def fit(
    task: Any, *, output: Path, plugin: Plugin | None = None, resume: bool = False, init: Path | None = None, progress: bool = True
) -> FitResult:
    """Train a task and return its checkpoints.

    Args:
        task: The task; its configuration ``task.cfg`` has a field ``train`` (:class:`~cnnkit.engine.config.TrainConfig`).
        output: Folder for everything that the training writes.
        plugin: Where the task comes from; named in the checkpoints, so that ``cnnkit run`` finds it.
        resume: Go on with the training in ``output``; without one there, start it.
        init: Weights to start from; of no effect on a training that is resumed.
        progress: Show progress on stderr.

    Raises:
        UsageError: If the folder holds a training and ``resume`` is false, or is not writable.
        ConfigError: If the configuration cannot be trained.
        CheckpointError: If a checkpoint to resume or start from cannot be used.
        CnnkitError: If a loss becomes infinite or not a number.
    """
    output = Path(output)
    config: TrainConfig = task.cfg.train
    check_train_config(config)
    first = global_rank() == 0
    resuming = _open_folder(output, task, resume, first=first)
    if isinstance(task, CustomFit):
        return _custom_fit(task, output, plugin, init)
    if not _installed("lightning"):
        raise PluginError("training needs Lightning, which is not installed; type: pip install 'cnnkit[train]'")
    with _quiet():
        _run(task, output, plugin, resuming=resuming, init=init, progress=progress)
    if first and config.csv:
        from cnnkit.engine.curves import draw_curves

        draw_curves(output / "metrics.csv", output / "curves.svg")
    best, last = output / "best.ckpt", output / "last.ckpt"
    return FitResult(best, last, read_header(best).metrics)


def check_train_config(config: TrainConfig) -> None:
    """Raise :class:`~cnnkit.errors.ConfigError` for values that make no sense, naming the key and what is accepted."""
    for name, least in (("epochs", 1), ("accumulate", 1), ("nodes", 1), ("validate_every", 1), ("log_every", 1)):
        if getattr(config, name) < least:
            raise ConfigError(f"train.{name} is {getattr(config, name)}; it must be at least {least}")
    for name in ("devices", "clip_norm", "patience", "seed", "freeze_norms_after"):
        if getattr(config, name) < 0:
            raise ConfigError(f"train.{name} is {getattr(config, name)}; it must not be negative")
    if not 0.0 <= config.ema < 1.0:
        raise ConfigError(f"train.ema is {config.ema}; it is a decay such as 0.999, or 0 for none")
    if config.strategy != "auto" and not config.strategy.startswith("ddp"):
        raise ConfigError(
            f"train.strategy is {config.strategy!r}; accepted: auto, ddp, ddp_find_unused_parameters_true and Lightning's other ddp "
            "strategies, because checkpoints here hold whole weights"
        )
    if config.tensorboard and not _installed("tensorboard"):
        raise ConfigError("train.tensorboard is on without TensorBoard; type: pip install tensorboard, or set train.tensorboard=false")


def global_rank() -> int:
    """Return this process's rank as its launcher states it, before any process group exists."""
    for name in ("RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    # Lightning's own launcher states node and local rank; any number but 0 will do for "not the first".
    return int(os.environ.get("NODE_RANK", "0") or 0) + int(os.environ.get("LOCAL_RANK", "0") or 0)


def resumed_config(kind: type, output: Path) -> Any:
    """Return the configuration of the training in a folder, to resume it under.

    Raises:
        ConfigError: If the folder holds none, or it is not valid.
    """
    file = Path(output) / "config.yaml"
    return from_dict(kind, read_yaml(file), source=str(file))


def _open_folder(output: Path, task: Any, resume: bool, *, first: bool) -> bool:
    """Prepare the folder, save the configuration, and tell whether there is a training to resume."""
    from cnnkit.engine.resume import recover, state_path

    last = output / "last.ckpt"
    if not first:
        return resume and state_path(last).exists()
    writable_folder(output)
    taken = [name for name in ("last.ckpt", "last.ckpt.state", "best.ckpt") if (output / name).exists()]
    if taken and not resume:
        raise UsageError(f"folder {output} already holds a training ({taken[0]}); add --resume to go on with it, or choose another -o")
    if resume:
        remove_stale_parts(output)
    resuming = resume and recover(last)
    if resuming:
        task.cfg = _continued(task, output)
    write_text(output / "config.yaml", dump_yaml(task.cfg))
    return resuming


def _continued(task: Any, output: Path) -> Any:
    """Return the configuration to resume under: only ``train`` may differ from the stored one.

    A task that calibrates keeps what it found out in the stored one, so there the stored one counts.

    Raises:
        UsageError: If the experiment is another one, naming the keys.
    """
    file = output / "config.yaml"
    if not file.exists():
        return task.cfg
    given = task.cfg
    stored: Any = from_dict(type(given), read_yaml(file), source=str(file))
    if isinstance(task, Calibrates):
        return dataclasses.replace(stored, train=given.train)
    old, new = to_dict(stored), to_dict(given)
    changed = sorted(key for key in new if key != "train" and old.get(key) != new[key])
    if changed:
        raise UsageError(
            f"the training in {output} has another configuration (different: {', '.join(changed)}); resume it with its own "
            f"--config {file}, or start another training with another -o"
        )
    return given


def header_for(task: Any, model: nn.Module, plugin: Plugin | None, metrics: Mapping[str, float]) -> Header:
    """Return the header of a checkpoint of this task and network."""
    chosen = getattr(task.cfg, "model", None) or getattr(task.cfg, "network", "")
    name = chosen if isinstance(chosen, str) else getattr(chosen, "name", "")
    distribution = f"cnnkit-{plugin.name}" if plugin is not None else ""
    return Header(
        task=plugin.name if plugin is not None else type(task).__name__,
        plugin=distribution,
        plugin_version=version_of(distribution) if distribution else "",
        model=name or type(model).__name__,
        config=to_dict(task.cfg),
        labels=tuple(task.labels()) if isinstance(task, Labelled) else (),
        preprocess=task.preprocess() if isinstance(task, Preprocesses) else {},
        metrics=dict(metrics),
    )


def _custom_fit(task: Any, output: Path, plugin: Plugin | None, init: Path | None) -> FitResult:
    """Let the task train itself, in this one process."""
    from cnnkit.checkpoint import save_checkpoint
    from cnnkit.engine.load import load_into
    from cnnkit.engine.resume import copy_file
    from cnnkit.engine.sampling import seed_all

    if isinstance(task, Calibrates):
        kind: Any = type(task)
        task = kind(task.prepare(output))
        write_text(output / "config.yaml", dump_yaml(task.cfg))
    seed_all(task.cfg.train.seed)
    model = task.model()
    if init is not None:
        load_into(task, model, init)
    metrics = {str(name): float(value) for name, value in task.fit(model, output).items()}
    last = save_checkpoint(output / "last.ckpt", model.state_dict(), header_for(task, model, plugin, metrics))
    copy_file(last, output / "best.ckpt")
    return FitResult(output / "best.ckpt", last, metrics)


def _run(task: Any, output: Path, plugin: Plugin | None, *, resuming: bool, init: Path | None, progress: bool) -> None:
    """Hand the task to Lightning's Trainer."""
    import torch

    from cnnkit.engine.lightning_callbacks import Average, Keeper, Watch
    from cnnkit.engine.lightning_io import PairIO
    from cnnkit.engine.lightning_module import TaskModule

    config: TrainConfig = task.cfg.train
    monitor, mode = _monitor(task)
    module = TaskModule(task, output, init=init, resuming=resuming, monitor=monitor)
    watch = Watch() if progress else None
    callbacks: list[Any] = [Average(config.ema)] if config.ema else []
    callbacks += [watch] if watch is not None else []
    callbacks.append(Keeper(output, monitor, mode, watch=watch))
    checkpoint_io = PairIO(lambda metrics: header_for(module.task, module.model, plugin, metrics))
    joined_before = torch.distributed.is_available() and torch.distributed.is_initialized()
    trainer = _trainer(config, output, callbacks, checkpoint_io)
    try:
        trainer.fit(module, ckpt_path=str(output / "last.ckpt") if resuming else None, weights_only=True)
    finally:
        if not joined_before and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _monitor(task: Any) -> tuple[str, str]:
    """Return the figure that picks the best checkpoint, and whether ``"max"`` or ``"min"`` of it is best."""
    config: TrainConfig = task.cfg.train
    name, mode = getattr(task, "monitor", ("loss", "min"))
    if config.monitor and config.monitor.removeprefix("val/") != name and not config.mode:
        raise ConfigError(f"train.monitor={config.monitor} needs train.mode=max or train.mode=min, which the task does not state for it")
    return config.monitor.removeprefix("val/") or name, config.mode or mode


def _trainer(config: TrainConfig, output: Path, callbacks: list[Any], checkpoint_io: Any) -> Any:
    from lightning.pytorch import Trainer
    from lightning.pytorch.plugins.environments import SLURMEnvironment
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    plugins: list[Any] = [checkpoint_io]
    if SLURMEnvironment.detect():  # Requeueing would save in the middle of an epoch and resume from there.
        plugins.append(SLURMEnvironment(auto_requeue=False))
    try:
        return Trainer(
            default_root_dir=output,
            max_epochs=config.epochs,
            accelerator=config.accelerator,
            devices=config.devices or "auto",
            num_nodes=config.nodes,
            strategy=config.strategy,
            precision=config.precision,  # type: ignore[arg-type]
            accumulate_grad_batches=config.accumulate,
            gradient_clip_val=config.clip_norm or None,
            sync_batchnorm=config.sync_batchnorm,
            deterministic=config.deterministic or None,
            check_val_every_n_epoch=config.validate_every,
            callbacks=callbacks,
            plugins=plugins,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            inference_mode=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"this training cannot be set up here: {error}") from error


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's tips and banners while it runs; errors stay."""
    import lightning.pytorch  # noqa: F401  # Sets the levels of its loggers at import, so it has to come first.

    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_utilities")]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning(\.|$)")
            warnings.filterwarnings("ignore", module=r"pytorch_lightning(\.|$)")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
