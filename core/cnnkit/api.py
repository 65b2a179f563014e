"""The Python call behind ``cnnkit run``, for application scripts."""

from __future__ import annotations

import dataclasses
import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnkit import plugin as plugins
from cnnkit.errors import CheckpointError, UsageError, unknown
from cnnkit.options import RunOptions, Shard

if TYPE_CHECKING:
    from cnnkit.engine.run import Report
    from cnnkit.plugin import Plugin


def run(
    task: str,
    inputs: str | Path | Sequence[str | Path] = (),
    *,
    output: str | Path = "out",
    checkpoint: str | Path | None = None,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    example: bool = False,
    resume: bool = False,
    shard: str = "1/1",
    device: str = "auto",
    progress: bool = True,
    **options: Any,
) -> Report:
    """Run a task over files and folders, as ``cnnkit run TASK`` does.

    Args:
        task: Name of an installed plugin, for example ``"medseg"``.
        inputs: Files and folders; a single one may stand by itself.
        output: Folder for the outputs, ``report.json`` and ``errors.csv``.
        checkpoint: A checkpoint; the plugin's built-in one if not given.
        config: Configuration for plain weights.
        overrides: ``"key=value"`` strings over the checkpoint's configuration.
        example: Run on the task's bundled example.
        resume: Skip the inputs that an earlier run in ``output`` has finished.
        shard: ``"2/8"`` takes the second of eight parts.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` ...
        progress: Show progress on stderr.
        **options: The task's own options, the fields of its ``Run``.

    Returns:
        The report; ``report.failed`` lists the inputs that failed.

    Raises:
        CnnkitError: For everything that is wrong before the first input is read.
    """
    from cnnkit.engine.run import run_batch

    if example and inputs:
        raise UsageError("an example takes no inputs")
    plugin = plugins.get(task)
    kind = plugin.load_run()
    known = {item.name for item in dataclasses.fields(kind)} - {"inputs", "output", "device", "name"}
    for name in options:
        if name not in known:
            raise UsageError(unknown(f"option of {task}", name, known))
    if not example and not inputs:
        raise UsageError("no input was given; name files or folders, or use --example")
    paths = (inputs,) if isinstance(inputs, (str, Path)) else inputs
    request = kind(inputs=tuple(Path(path) for path in paths), output=Path(output), device=device, **options)
    return run_batch(
        plugin,
        request,
        checkpoint=find_checkpoint(plugin, checkpoint, request),
        config=Path(config) if config is not None else None,
        overrides=tuple(overrides),
        example=example,
        resume=resume,
        shard=Shard.parse(shard),
        progress=progress,
    )


def find_checkpoint(plugin: Plugin, checkpoint: str | Path | None = None, request: RunOptions | None = None) -> Path:
    """Return the given checkpoint, or the one that the plugin ships; if it ships several, the one for the options in ``request``.

    Raises:
        UsageError: If none of several serves the options.
        CheckpointError: If the file does not exist, or none was given and the plugin ships none.
    """
    if checkpoint is not None:
        path = Path(checkpoint)
        if not path.is_file():
            raise CheckpointError(f"checkpoint {path} does not exist")
        return path
    if not plugin.checkpoint:
        raise CheckpointError(f"plugin {plugin.name!r} ships no checkpoint; give one with --ckpt FILE")
    package = plugin.task.partition(".")[0].partition(":")[0]
    name = plugin.checkpoint if request is None else request.builtin(plugin.checkpoint)
    path = Path(str(importlib.resources.files(package))) / name
    if not path.is_file():
        raise CheckpointError(
            f"the built-in checkpoint {path} is missing; install cnnkit-{plugin.name} again, or give one with --ckpt FILE"
        )
    return path
