"""Optimizers and learning rate schedules from a configuration."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from cnnkit.engine.config import OptimizerConfig
from cnnkit.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


def build_optimizer(model: nn.Module, config: OptimizerConfig, total_steps: int | None) -> dict[str, Any]:
    """Return an optimizer and its schedule in the form that Lightning's ``configure_optimizers`` accepts.

    Args:
        model: Its parameters that require a gradient are optimised.
        config: Kind, rates and schedule.
        total_steps: Optimizer steps of the whole training; ``None`` if unknown, which only ``"constant"`` allows.

    Returns:
        ``{"optimizer": ..., "lr_scheduler": {"scheduler": ..., "interval": "step"}}``.

    Raises:
        ConfigError: If a value does not make sense, naming its key.
    """
    from torch.optim.lr_scheduler import LambdaLR

    check(config, total_steps)
    optimizer = _optimizer(parameter_groups(model, config), config)
    scheduler = LambdaLR(optimizer, lambda step: lr_factor(config, step, total_steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def lr_factor(config: OptimizerConfig, step: int, total_steps: int | None) -> float:
    """Return the learning rate of an optimizer step as a fraction of ``config.lr``: a pure function.

    Step ``s`` (from 0) of ``w`` warm-up steps has ``(s + 1) / (w + 1)``, so the peak comes right after them. From
    there ``t`` runs from 0 to 1 over the other steps: ``1`` (constant), ``(1 + cos(pi t)) / 2`` (cosine, Loshchilov
    and Hutter 2017) or ``(1 - t)^poly_power`` (poly).
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "constant" or total_steps is None:
        return 1.0
    progress = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    if config.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return (1.0 - progress) ** config.poly_power


def check(config: OptimizerConfig, total_steps: int | None) -> None:
    """Raise :class:`~cnnkit.errors.ConfigError` if the optimizer or its schedule cannot be built."""
    if config.lr <= 0:
        raise ConfigError(f"train.optimizer.lr is {config.lr}; it must be above 0")
    if total_steps is None and config.schedule != "constant":
        raise ConfigError(
            f"train.optimizer.schedule={config.schedule} needs the length of an epoch, and the training loader has no "
            "__len__; give it one, or set train.optimizer.schedule=constant"
        )
    if total_steps is not None and config.warmup_steps >= max(total_steps, 1):
        raise ConfigError(
            f"train.optimizer.warmup_steps={config.warmup_steps} leaves nothing of the training's {total_steps} optimizer steps; "
            "set fewer, or more train.epochs"
        )


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Split the trainable parameters into those with weight decay and those without.

    Without are, if ``config.decay_norms`` is false, all vectors and scalars (biases, norms, layer scales) and what
    the model names in its method ``no_weight_decay()``.

    Raises:
        ConfigError: If nothing is trainable.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise ConfigError(f"{type(model).__name__} has no parameter that requires a gradient, so there is nothing to train")
    if config.decay_norms or not config.weight_decay:
        return [{"params": [parameter for _, parameter in named], "weight_decay": config.weight_decay}]
    exempt = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    with_decay = [parameter for name, parameter in named if parameter.ndim > 1 and name not in exempt]
    without = [parameter for name, parameter in named if parameter.ndim <= 1 or name in exempt]
    groups = [{"params": with_decay, "weight_decay": config.weight_decay}, {"params": without, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> Any:
    import torch

    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr, betas=config.betas)
