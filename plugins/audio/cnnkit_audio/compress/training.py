"""Training as the pipeline needs it: some steps over a task's batches, again and again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from typing import Any

import torch
import torch.nn.functional as F
from cnnkit.errors import UsageError
from torch import Tensor, nn

Batch = dict[str, Any]
Batches = Callable[[int], Iterable[Batch]]
"""The batches of an epoch, ``{"sound": (B, 1, T), "target": (B, C), ...}``."""
Loss = Callable[[nn.Module, Batch], Tensor]


def stream(batches: Batches, first: int = 0) -> Iterator[Batch]:
    """Yield the batches of one epoch after another without end.

    Raises:
        UsageError: If an epoch has none.
    """
    for epoch in count(first):
        empty = True
        for batch in batches(epoch):
            empty = False
            yield batch
        if empty:
            raise UsageError("there are no training data; set tagging.data so that the folder holds recordings to train on")


def train(
    model: nn.Module, batches: Iterator[Batch], loss: Loss, *, steps: int, lr: float, after_step: Callable[[], None] | None = None
) -> nn.Module:
    """Train for some steps with Adam and a learning rate that rises for a tenth of them and then falls along a cosine.

    Args:
        model: It is trained in place, and returned in evaluation mode.
        batches: Where they come from; as many as ``steps`` are taken.
        loss: What is minimised.
        steps: How many.
        lr: Largest learning rate.
        after_step: Called after each step, as to keep weights zero.
    """
    if steps < 1:
        return model.eval()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _height(step, steps))
    for batch in islice(batches, steps):
        optimizer.zero_grad()
        loss(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if after_step is not None:
            after_step()
    return model.eval()


def _height(step: int, steps: int) -> float:
    """Return the share of the largest learning rate at a step."""
    warm = max(1, steps // 10)
    progress = max(step - warm, 0) / max(1, steps - warm)
    return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


@torch.no_grad()
def refresh_statistics(model: nn.Module, batches: Iterable[Batch]) -> nn.Module:
    """Take the statistics of all batch normalisations anew, as the mean over some batches, and return the network in evaluation mode.

    A running mean lags behind: after channels went, or a training of few steps, it is that of another network.
    """
    norms = [module for module in model.eval().modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # The mean over all that is seen.
        norm.train()
    for batch in batches:
        model(batch["sound"])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


class Distillation:
    """The compared alternative: a small network of fresh weights learns what a large one says (Hinton et al., 2015).

    With logits ``s`` and ``t``: ``(1 - alpha) T^2 KL(softmax(t / T) | softmax(s / T)) + alpha KL(target | softmax(s))``.

    Args:
        teacher: The large network.
        temperature: ``T``.
        alpha: Weight of the data's own labels; 0.1 in the official code.
    """

    def __init__(self, teacher: nn.Module, *, temperature: float = 4.0, alpha: float = 0.1) -> None:
        self.teacher, self.temperature, self.alpha = teacher.eval(), temperature, alpha

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        with torch.no_grad():
            taught = self.teacher(batch["sound"])
        logits, heat = model(batch["sound"]), self.temperature
        soft = F.kl_div((logits / heat).log_softmax(1), (taught / heat).softmax(1), reduction="batchmean") * heat**2
        hard = F.kl_div(logits.log_softmax(1), batch["target"], reduction="batchmean")
        return (1 - self.alpha) * soft + self.alpha * hard
