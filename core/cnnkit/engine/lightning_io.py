"""Lightning's checkpoints as cnnkit's: weights to use in one file, the rest of the training in a second one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO

from cnnkit.checkpoint import Header, read_state
from cnnkit.engine.resume import read_resume_state, save_pair

PREFIX = "model."  # The network's place inside the LightningModule.
RAW, AVERAGE = "raw_weights", "average"


class PairIO(CheckpointIO):
    """Writes ``last.ckpt`` and ``last.ckpt.state`` (see :mod:`cnnkit.engine.resume`), and reads them to go on.

    Args:
        header: Returns the header for validation figures.
    """

    def __init__(self, header: Callable[[Mapping[str, float]], Header]) -> None:
        self.header = header

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None) -> None:
        """Write the pair.

        Args:
            checkpoint: What Lightning collected; the moving average, if there is one, under ``"average"``.
            path: The checkpoint's file.
            storage_options: ``{"metrics": figures, "best": path or None}``.
        """
        options = storage_options or {}
        state = dict(checkpoint)
        raw = {name.removeprefix(PREFIX): tensor for name, tensor in state.pop("state_dict").items()}
        average = state.pop(AVERAGE, None)
        if average is not None:
            state[RAW] = raw
        weights = raw if average is None else average
        save_pair(Path(path), weights, self.header(options.get("metrics", {})), state, best=options.get("best"))

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the pair back into Lightning's form. Both files are read as data only, whatever ``weights_only`` says."""
        state = read_resume_state(Path(path))
        weights = read_state(path)
        raw = state.pop(RAW, None)
        if raw is not None:
            state[AVERAGE] = weights
        return {**state, "state_dict": {PREFIX + name: tensor for name, tensor in (weights if raw is None else raw).items()}}

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)
