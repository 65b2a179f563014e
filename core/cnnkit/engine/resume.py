"""Two files that belong together: the weights to use, and everything else that a training needs to go on.

``last.ckpt`` is a checkpoint like any other. ``last.ckpt.state`` holds optimizer, schedule, counters and, with a moving
average, the raw weights; it states the digest of the checkpoint that it belongs to. Both are first written whole under
other names (``*.next``); then the state takes its name, then the checkpoint. A process that is killed at any point
leaves either the old pair, the new pair, or a new state beside the new checkpoint under its ``.next`` name, and
:func:`recover` finishes what was begun.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnkit.checkpoint import Header, digest, save_checkpoint
from cnnkit.engine.files import atomic_path
from cnnkit.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

DIGEST = "checkpoint_sha256"


def state_path(checkpoint: Path) -> Path:
    """Return the name of the file with the state that belongs to a checkpoint."""
    return checkpoint.with_name(checkpoint.name + ".state")


def _next(path: Path) -> Path:
    return path.with_name(path.name + ".next")


def save_pair(
    checkpoint: Path, weights: Mapping[str, Tensor], header: Header, state: Mapping[str, Any], *, best: Path | None = None
) -> None:
    """Replace a checkpoint and its state so that a kill at any point leaves a pair to resume from.

    Args:
        checkpoint: Where the weights go.
        weights: The weights to use.
        header: The checkpoint's header.
        state: Plain data and tensors (see :func:`plain`).
        best: If given, this file becomes a copy of the new checkpoint, before the pair does: the epoch that a
            resumed training would repeat then writes it again.

    Raises:
        CheckpointError: If the state holds an object that could not be read back safely.
    """
    import torch

    upcoming = _next(checkpoint)
    content = plain(state)
    save_checkpoint(upcoming, weights, header)
    with atomic_path(_next(state_path(checkpoint))) as part:
        torch.save({**content, DIGEST: digest(upcoming)}, part)
    if best is not None:
        copy_file(upcoming, best)
    os.replace(_next(state_path(checkpoint)), state_path(checkpoint))
    os.replace(upcoming, checkpoint)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file atomically."""
    with atomic_path(target) as part:
        shutil.copyfile(source, part)


def recover(checkpoint: Path) -> bool:
    """Bring a pair into order after a kill; tell whether there is one to resume from.

    Raises:
        CheckpointError: If state and checkpoint do not belong together, or one is damaged.
    """
    if not state_path(checkpoint).exists():
        return False
    expected = read_resume_state(checkpoint)[DIGEST]
    if checkpoint.exists() and digest(checkpoint) == expected:
        _next(checkpoint).unlink(missing_ok=True)
        _next(state_path(checkpoint)).unlink(missing_ok=True)
        return True
    if _next(checkpoint).exists() and digest(_next(checkpoint)) == expected:
        os.replace(_next(checkpoint), checkpoint)
        return True
    raise CheckpointError(
        f"{state_path(checkpoint)} does not belong to {checkpoint}, which was replaced or changed since; put the original "
        "file back, or start a new training from the weights with --init"
    )


def read_resume_state(checkpoint: Path) -> dict[str, Any]:
    """Read the state beside a checkpoint, as data only.

    Raises:
        CheckpointError: If it holds objects that would run code, is damaged, or is no such state.
    """
    import pickle

    import torch

    path = state_path(checkpoint)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} was refused: it holds objects that would run code ({_first_line(error)})") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged or cut off: {_first_line(error)}") from error
    if not isinstance(state, dict) or DIGEST not in state:
        raise CheckpointError(f"{path} is not the state of a cnnkit training")
    return state


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def plain(value: Any, where: str = "state") -> Any:
    """Return nested state as dicts, lists, tuples, numbers, strings and tensors, which load without running code.

    Raises:
        CheckpointError: If something else is in it, naming its place.
    """
    import numpy as np
    import torch

    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, Mapping):
        return {plain(key, where): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, (bool, int, float, str)):  # Enumerations and other subclasses become their value.
        base = next(kind for kind in (bool, int, float, str) if isinstance(value, kind))
        return base(value)
    raise CheckpointError(f"the state of this training holds a {type(value).__name__} at {where}; only data and tensors can be stored")
