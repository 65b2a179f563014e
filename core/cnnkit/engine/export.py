"""Export a task's network, check that the file computes the same, and write its preprocessing beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnkit.engine.files import atomic_path, writable_folder, write_json
from cnnkit.errors import CnnkitError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cnnkit.plugin import Plugin

TOLERANCE = 1e-3
"""Largest accepted difference, relative to the output's scale: an exported network sums in another order, nothing more."""

FORMATS = {".onnx": "onnx", ".pt2": "torch.export"}


@dataclass(frozen=True)
class Exported:
    """What was written, and the largest difference from PyTorch relative to the output's scale."""

    files: tuple[Path, ...]
    difference: float


def check_target(output: Path) -> str:
    """Return the format that the file name asks for.

    Raises:
        UsageError: If the suffix is unknown, or a library for the format is missing.
    """
    if output.suffix not in FORMATS:
        raise UsageError(f"{output} has no known suffix; accepted: " + ", ".join(f"{suffix} ({name})" for suffix, name in FORMATS.items()))
    if output.suffix == ".onnx":
        missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            raise UsageError(f"ONNX needs {', '.join(missing)}; type: pip install 'cnnkit[onnx]'")
    return FORMATS[output.suffix]


def export_network(
    checkpoint: Path, output: Path, *, plugin: Plugin, config: Path | None = None, overrides: Sequence[str] = ()
) -> Exported:
    """Export the network of a checkpoint.

    Beside ``model.onnx`` lies ``model.json``: inputs with their shapes and free axes, labels, and the preprocessing.

    Args:
        checkpoint: The checkpoint.
        output: ``model.onnx`` or ``model.pt2``.
        plugin: The task's plugin.
        config: Configuration for plain weights.
        overrides: ``"key=value"`` strings.

    Raises:
        UsageError: If the task cannot be exported, or not to this format, or the file name is not accepted.
        CnnkitError: If the exported network computes something else.
    """
    kind = check_target(output)
    writable_folder(output.parent)

    from cnnkit.engine.load import load
    from cnnkit.task import ChecksExport, Exports, Preprocesses, WrapsExport

    loaded = load(checkpoint, plugin=plugin, config=config, overrides=overrides)
    task: Any = loaded.task
    model = loaded.model.eval()
    if isinstance(task, ChecksExport):
        task.check_export(output.suffix)
    if not isinstance(task, Exports):
        raise UsageError(f"task {plugin.name!r} has no network that can be exported by itself")
    inputs, axes = task.export_inputs(next(iter(loaded.task.loader("example"))))
    inputs = {name: _doubled(tensor, axes.get(name, {})) for name, tensor in inputs.items()}
    if isinstance(task, WrapsExport):
        model = task.export_form(model)
    with atomic_path(output) as part:
        write = _write_onnx if kind == "onnx" else _write_program
        difference = write(model, inputs, axes, part)
        if not difference <= TOLERANCE:
            raise CnnkitError(f"the exported network differs from PyTorch by {difference:.2e} of its output's scale; nothing was written")
    about = {
        "task": plugin.name,
        "format": kind,
        "inputs": {
            name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch."), "free_axes": axes.get(name, {})}
            for name, tensor in inputs.items()
        },
        "header": dataclasses.asdict(loaded.header),
        "preprocess": task.preprocess() if isinstance(task, Preprocesses) else {},
        "difference_from_torch": difference,
    }
    return Exported((output, write_json(output.with_suffix(".json"), about)), difference)


def _write_onnx(model: nn.Module, inputs: Mapping[str, Tensor], axes: Mapping[str, Mapping[int, str]], path: Path) -> float:
    import onnxruntime
    import torch

    expected = _outputs(model, inputs)
    shapes = _dynamic(inputs, axes)
    with _quiet():
        program = torch.onnx.export(
            model, tuple(inputs.values()), input_names=list(inputs), dynamic_shapes=shapes, dynamo=True, verbose=False
        )
        assert program is not None
        program.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    return max(_difference(torch.from_numpy(one), other) for one, other in zip(found, expected, strict=True))


def _write_program(model: nn.Module, inputs: Mapping[str, Tensor], axes: Mapping[str, Mapping[int, str]], path: Path) -> float:
    import torch

    expected = _outputs(model, inputs)
    with _quiet():
        # A length that the network cannot take, less than a window, is refused by the program when it meets one.
        program = torch.export.export(
            model, tuple(inputs.values()), dynamic_shapes=_dynamic(inputs, axes), prefer_deferred_runtime_asserts_over_guards=True
        )
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
    path.write_bytes(buffer.getvalue())
    with torch.no_grad(), _quiet():
        found = program.module()(*inputs.values())
    found = [found] if isinstance(found, torch.Tensor) else list(found)
    return max(_difference(one, other) for one, other in zip(found, expected, strict=True))


def _outputs(model: nn.Module, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    import torch

    with torch.no_grad():
        result = model(*inputs.values())
    return [result] if isinstance(result, torch.Tensor) else list(result)


def _dynamic(inputs: Mapping[str, Tensor], axes: Mapping[str, Mapping[int, str]]) -> tuple[Any, ...]:
    import torch

    return tuple({axis: torch.export.Dim(name) for axis, name in axes.get(key, {}).items()} or None for key in inputs)


def _doubled(tensor: Tensor, axes: Mapping[int, str]) -> Tensor:
    """Repeat a tensor along its free axes of length 1, because the exporter takes a length of 1 for a constant."""
    return tensor.repeat([2 if axis in axes and size == 1 else 1 for axis, size in enumerate(tensor.shape)])


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' notes off the terminal, for this block alone."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
