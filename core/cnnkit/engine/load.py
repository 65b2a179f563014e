"""From a checkpoint file to a task and its network with trained weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnkit.checkpoint import Header, read_header, read_state, recognise
from cnnkit.config import build, from_dict
from cnnkit.errors import CheckpointError
from cnnkit.plugin import Plugin, get

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Loaded:
    """A task that is ready to work.

    Args:
        task: The task, built from the checkpoint's configuration.
        model: Its network with the checkpoint's weights, on the CPU, in evaluation mode.
        header: What the checkpoint says of itself; only the task's name for plain weights.
        plugin: Where the task comes from.
    """

    task: Any
    model: nn.Module
    header: Header
    plugin: Plugin


def load(
    path: str | Path, *, plugin: Plugin | None = None, task: str = "", config: Path | None = None, overrides: Sequence[str] = ()
) -> Loaded:
    """Load a checkpoint together with the task that it belongs to.

    Args:
        path: A cnnkit checkpoint; or plain weights, which need a ``plugin`` or ``task``, and ``config`` unless the task recognises them.
        plugin: The plugin that the caller works with; by default the one that the checkpoint names.
        task: Name of the task that the caller expects, for a caller that has no plugin at hand.
        config: YAML file over the checkpoint's configuration.
        overrides: ``"key=value"`` strings over both.

    Raises:
        CheckpointError: If the file is of another task, needs a configuration, or does not fit the network.
        PluginError: If the task's plugin is not installed or does not load.
        ConfigError: If the stored configuration or an override is not valid.
    """
    path = Path(path)
    expected = plugin.name if plugin is not None else task
    foreign = recognise(path) != "cnnkit"
    if foreign:
        plugin = plugin or (get(expected) if expected else None)
        header, state = _foreign(plugin, path, config)
    else:
        header, state = read_header(path), None
    if expected and header.task != expected:
        raise CheckpointError(
            f"{path} is a checkpoint of task {header.task!r}, not of {expected!r}; type: cnnkit run {header.task} --ckpt {path} ..."
        )
    from cnnkit.task import FromWeights

    plugin = plugin or get(header.task)
    built = plugin.load_task()
    stored = build_config(built.Config, header.config, path, config, overrides)
    instance = built(stored)
    _check_labels(instance, header, path)
    state = read_state(path) if state is None else state
    model = instance.model_from(state) if isinstance(instance, FromWeights) else instance.model()
    _fill(instance, model, path, state, foreign=foreign)
    return Loaded(instance, model.eval(), header, plugin)


def _foreign(plugin: Plugin | None, path: Path, config: Path | None) -> tuple[Header, dict[str, Tensor] | None]:
    """Return a header for weights that carry none, with a configuration if the task recognises them, and the weights if they were read."""
    if plugin is not None and config is not None:
        return Header(task=plugin.name), None
    from cnnkit.task import Recognises

    kind = None if plugin is None else plugin.load_task()
    if plugin is None or not isinstance(kind, Recognises):
        return read_header(path), None  # Raises, saying what the file is and what it lacks.
    state = read_state(path)
    return Header(task=plugin.name, config=dict(kind.recognise(state, str(path)))), state


def build_config(kind: type, stored: Mapping[str, Any], source: Path, config: Path | None, overrides: Sequence[str]) -> Any:
    """Return the stored configuration overlaid with a file and with overrides.

    Raises:
        ConfigError: Naming the source of what is wrong; for a stored key that this version does not know, the checkpoint.
    """
    from_dict(kind, stored, source=f"the configuration in {source}")
    return build(kind, preset=stored, file=config, overrides=overrides)


def load_into(task: Any, model: nn.Module, path: str | Path) -> None:
    """Fill ``model`` with the weights of a checkpoint or of a foreign file, to start a training from them.

    Raises:
        CheckpointError: If the file cannot be read safely or does not fit.
    """
    _fill(task, model, Path(path), read_state(path), foreign=recognise(path) != "cnnkit")


def _fill(task: Any, model: nn.Module, path: Path, state: dict[str, Tensor], *, foreign: bool) -> None:
    from cnnkit.task import Adopts
    from cnnkit.weights import load_weights

    if foreign and isinstance(task, Adopts):
        task.adopt(state, model)
    else:
        load_weights(model, state, source=str(path))


def _check_labels(task: Any, header: Header, path: Path) -> None:
    from cnnkit.task import Labelled

    if not (header.labels and isinstance(task, Labelled)):
        return
    labels = tuple(task.labels())
    if labels != header.labels:
        raise CheckpointError(f"{path} was trained on the labels {', '.join(header.labels)}; the configuration says {', '.join(labels)}")
