"""How a training runs: the part of a task's configuration that belongs to the core. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule.

    Args:
        name: ``"sgd"`` (Nesterov when momentum is set), ``"adamw"`` or ``"adam"``.
        lr: Peak learning rate.
        weight_decay: Applied to weights; not to biases and norms when ``decay_norms`` is false.
        momentum: For SGD.
        betas: For Adam and AdamW.
        schedule: Shape of the learning rate over the training, stepped once per optimizer step.
        warmup_steps: Linear warm-up at the start, in optimizer steps.
        poly_power: Exponent of the ``"poly"`` schedule, ``lr * (1 - t)^power``.
        decay_norms: Whether weight decay reaches biases and norms too.
    """

    name: Literal["sgd", "adamw", "adam"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["constant", "cosine", "poly"] = "cosine"
    warmup_steps: int = 0
    poly_power: float = 0.9
    decay_norms: bool = True


@dataclass(frozen=True)
class TrainConfig:
    """Length, hardware, precision and bookkeeping of a training.

    Args:
        epochs: Number of epochs.
        optimizer: The optimizer and its schedule.
        accumulate: Batches whose gradients are averaged for one step. At the end of an epoch a step may take fewer; it
            is then smaller by that share.
        clip_norm: Largest gradient norm; 0 for none.
        precision: As Lightning names it.
        accelerator: As Lightning names it: ``"auto"``, ``"cpu"``, ``"gpu"`` ...
        devices: Devices per node; 0 for all there are.
        nodes: Machines.
        strategy: As Lightning names it: ``"auto"``, ``"ddp"``, ``"ddp_find_unused_parameters_true"`` ...
        sync_batchnorm: Share batch statistics over devices.
        freeze_norms_after: Epochs after which batch normalisations keep their statistics, so that the rest is learnt with those
            that the network will be used with; 0 for never. Small batches of differing items need it.
        ema: Decay of the moving average of the weights (for example 0.999); 0 for none. After ``n`` steps it is
            ``min(ema, (1 + n) / (10 + n))``. The average is what is validated and stored for use.
        validate_every: Epochs between validations.
        patience: Validations without a better figure before the training stops; 0 for never.
        monitor: Validation figure that picks the best checkpoint; empty for the task's own. ``"loss"`` is measured on
            the validation data.
        mode: Whether a larger or smaller figure is better; empty for the task's own.
        seed: Seed of weights, data order, augmentation and dropout.
        deterministic: Ask torch for deterministic algorithms.
        log_every: Optimizer steps between two rows of ``steps.csv``, which hold the means since the row before.
        csv: Write ``metrics.csv`` (a row per epoch) and ``steps.csv``.
        tensorboard: Write TensorBoard event files.
    """

    epochs: int = 100
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    accumulate: int = 1
    clip_norm: float = 0.0
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: int = 0
    nodes: int = 1
    strategy: str = "auto"
    sync_batchnorm: bool = False
    freeze_norms_after: int = 0
    ema: float = 0.0
    validate_every: int = 1
    patience: int = 0
    monitor: str = ""
    mode: Literal["", "min", "max"] = ""
    seed: int = 12345
    deterministic: bool = False
    log_every: int = 50
    csv: bool = True
    tensorboard: bool = True
