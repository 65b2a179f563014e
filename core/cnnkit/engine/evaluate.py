"""Evaluation: predictions against references, in figures and in files."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnkit.engine.files import writable_folder, write_json
from cnnkit.errors import UsageError
from cnnkit.task import Metric, Reports

if TYPE_CHECKING:
    from torch import nn


def evaluate(
    task: Any, model: nn.Module, *, split: str = "test", device: str = "auto", progress: bool = True
) -> tuple[dict[str, float], Metric]:
    """Predict every batch of a split and measure the predictions.

    The model is left on ``device`` in evaluation mode. Predictions are made under ``torch.no_grad()``.

    Args:
        task: The task.
        model: Its network.
        split: ``"train"``, ``"val"``, ``"test"`` or ``"example"``.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
        progress: Show progress on stderr, if that is a terminal.

    Returns:
        The figures by name, and the metric that they come from.

    Raises:
        UsageError: If there is no such device, or the task has no data for the split.
    """
    import torch

    from cnnkit.engine.device import pick_device, to_device

    place = pick_device(device)
    batches = task.loader(split)
    if batches is None:
        raise UsageError(f"this task's configuration names no data for the split {split!r}")
    model.to(place).eval()
    metric = task.metric()
    empty = True
    with torch.no_grad():
        for batch in _shown(batches, f"evaluating {split}", enabled=progress):
            empty = False
            moved = to_device(batch, place)
            metric.update(task.predict(model, moved), moved)
    if empty:
        raise UsageError(f"the split {split!r} holds no data, so there is nothing to evaluate")
    return figures(metric), metric


def figures(metric: Metric) -> dict[str, float]:
    """Return a metric's figures as plain numbers of Python."""
    return {str(name): float(value) for name, value in metric.compute().items()}


def write_evaluation(folder: Path, metrics: Mapping[str, float], metric: Metric, *, about: Mapping[str, Any] | None = None) -> list[Path]:
    """Write ``metrics.json`` and the metric's own report files, and return all of them.

    Args:
        folder: Where to; created if needed.
        metrics: Figures by name. One that is not finite (no such class in the data) is written as ``null``.
        metric: Asked for its report if it can make one (:class:`cnnkit.task.Reports`).
        about: What else the file should say (checkpoint, split, versions); stands beside ``"metrics"``.

    Raises:
        UsageError: If the folder is not writable.
    """
    folder = writable_folder(folder)
    plain = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    files = [write_json(folder / "metrics.json", {**(about or {}), "metrics": plain})]
    return files + (metric.report(folder) if isinstance(metric, Reports) else [])


def _shown(batches: Iterable[Any], title: str, *, enabled: bool) -> Iterable[Any]:
    """Pass the batches on under a progress bar, if people are watching."""
    if not (enabled and sys.stderr.isatty()):
        return batches
    from rich.console import Console
    from rich.progress import track

    return track(batches, description=title, console=Console(stderr=True), total=_length(batches))


def _length(batches: Any) -> float | None:
    try:
        return len(batches)
    except TypeError:  # A stream has no length; the bar then only shows that something moves.
        return None
