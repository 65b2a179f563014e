"""Run a task over many inputs: each on its own, so that a bad one is a row in ``errors.csv`` and the others go on."""

from __future__ import annotations

import dataclasses
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnkit.engine.files import remove_stale_parts, writable_folder, write_json, write_rows
from cnnkit.engine.journal import Journal
from cnnkit.errors import CnnkitError, InputError, InputWarning, UsageError
from cnnkit.options import RunOptions, Shard

if TYPE_CHECKING:
    from cnnkit.engine.load import Loaded
    from cnnkit.engine.progress import Progress
    from cnnkit.plugin import Plugin


@dataclass
class Item:
    """What became of one input.

    Args:
        name: Its unique name.
        files: What it was read from.
        status: ``"ok"``, ``"error"``, or ``"resumed"`` when an earlier run had finished it.
        outputs: Files that were written.
        seconds: Time of reading, predicting and writing.
        warnings: What a person should know about it.
        error: The message, if it failed.
        details: The traceback of a failure that is not the input's fault.
        summary: Figures that the task states about an example.
    """

    name: str
    files: tuple[Path, ...] = ()
    status: str = "ok"
    outputs: list[Path] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    error: str = ""
    details: str = ""
    summary: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the item as JSON data without its empty fields."""
        data = dataclasses.asdict(self)
        data["files"] = [str(path) for path in self.files]
        data["outputs"] = [str(path) for path in self.outputs]
        data["seconds"] = {key: round(value, 4) for key, value in self.seconds.items()}
        return {key: value for key, value in data.items() if value or key in ("files", "outputs")}


@dataclass
class Report:
    """What a run did: written as ``report.json``, and printed by ``--json``."""

    data: dict[str, Any]
    items: list[Item]
    path: Path | None = None

    @property
    def failed(self) -> list[Item]:
        """The inputs that failed."""
        return [item for item in self.items if item.status == "error"]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON data."""
        counts = {status: sum(item.status == status for item in self.items) for status in ("ok", "resumed", "error")}
        return {**self.data, "counts": counts, "inputs": [item.to_json() for item in self.items]}


def inputs_of(run: RunOptions, shard: Shard) -> dict[str, tuple[Path, ...] | InputError]:
    """Return this part's inputs by name.

    Raises:
        UsageError: If nothing was given at all.
    """
    if not run.inputs:
        raise UsageError("no input was given; name files or folders, or use --example")
    grouped = run.group()
    return {name: files for position, (name, files) in enumerate(grouped.items()) if shard.takes(position)}


def run_batch(
    plugin: Plugin,
    run: RunOptions,
    *,
    checkpoint: Path,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    example: bool = False,
    resume: bool = False,
    shard: Shard | None = None,
    progress: bool = True,
) -> Report:
    """Run a plugin's task over the inputs of ``run`` and write outputs, ``report.json`` and ``errors.csv``.

    Args:
        plugin: The task's plugin.
        run: Options and inputs.
        checkpoint: A cnnkit checkpoint, or plain weights together with ``config``.
        config: Configuration of the task for weights that carry none.
        overrides: ``"key=value"`` strings over the checkpoint's configuration.
        example: Run on the task's bundled example instead of inputs.
        resume: Skip inputs that an earlier run in the same folder finished from the same files in the same way.
        shard: The part of the inputs that this process takes.
        progress: Show progress on stderr.

    Raises:
        CnnkitError: For everything that is wrong before the first input is read. Later problems are items of the report.
    """
    shard = shard or Shard()
    grouped = {} if example else inputs_of(run, shard)
    output = writable_folder(run.output)

    import torch

    from cnnkit.checkpoint import digest
    from cnnkit.config import to_dict
    from cnnkit.engine.device import pick_device
    from cnnkit.engine.load import load
    from cnnkit.engine.progress import Progress
    from cnnkit.task import Examples, Restores

    started = time.time()
    device = pick_device(run.device)
    loaded = load(checkpoint, plugin=plugin, config=config, overrides=overrides)
    task = loaded.task
    if isinstance(task, Restores):
        task.check(loaded.header, run)
    if example and not isinstance(task, Examples):
        raise UsageError(f"task {plugin.name!r} ships no example; name an input")
    loaded.model.to(device).eval()
    fingerprint = {"checkpoint": digest(checkpoint), "overrides": list(overrides), "options": _options(run), "versions": _versions(plugin)}
    # The configuration as it was resolved: a file of --config may extend another one.
    journal = Journal(output, {**fingerprint, "config": to_dict(task.cfg) if hasattr(task, "cfg") else {}})
    if resume:
        remove_stale_parts(output)
        remove_stale_parts(journal.folder)

    items: list[Item] = []
    report = Report({}, items)
    try:
        with Progress(len(grouped) or 1, plugin.name, enabled=progress) as bar, torch.no_grad():
            if example:
                items.append(_run_example(loaded, run, bar))
            for name, files in grouped.items():
                item = _run_one(loaded, dataclasses.replace(run, name=name), name, files, journal, resume)
                items.append(item)
                bar.advance(item)
    finally:  # An interrupted batch still says what it did.
        report.data = {
            **_environment(plugin, loaded, device, started),
            **fingerprint,
            "checkpoint_file": str(checkpoint),
            "complete": len(items) == (1 if example else len(grouped)),
        }
        report.path = _write_report(report, output, shard)
    return report


def _run_one(loaded: Loaded, run: RunOptions, name: str, files: tuple[Path, ...] | InputError, journal: Journal, resume: bool) -> Item:
    if isinstance(files, InputError):
        return Item(name, status="error", error=str(files))
    run = dataclasses.replace(run, inputs=files)
    item = Item(name, files)
    try:
        if resume and (outputs := journal.finished(name, files)) is not None:
            item.status, item.outputs = "resumed", outputs
            return item
        journal.forget(name)
        _process(loaded, run, item, loaded.task.read(run))
        journal.finish(name, files, item.outputs)
    except Exception as error:  # Any failure of one input is its own; the batch goes on.
        _record(item, error)
    return item


def _run_example(loaded: Loaded, run: RunOptions, bar: Progress) -> Item:
    item = Item("example")
    _process(loaded, dataclasses.replace(run, name="example"), item, loaded.task.example(run), summarise=True)
    bar.advance(item)
    return item


def _process(loaded: Loaded, run: RunOptions, item: Item, batches: Iterable[Any], *, summarise: bool = False) -> None:
    """Read, predict and write batch by batch, noting times, outputs and warnings in ``item``."""
    from cnnkit.engine.device import to_device

    clock = _Clock(item.seconds)
    device = next((parameter.device for parameter in loaded.model.parameters()), "cpu")
    empty = True
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", InputWarning)
        try:
            iterator = iter(batches)
            while (batch := clock("read", next, iterator, None)) is not None:
                empty = False
                batch = to_device(batch, device)
                predictions = clock("predict", loaded.task.predict, loaded.model, batch)
                item.outputs += clock("write", loaded.task.write, predictions, run)
                if summarise:
                    item.summary |= loaded.task.summarise(predictions, batch, run)
        finally:
            item.warnings += [str(entry.message) for entry in caught]
    if empty:
        raise InputError(f"{item.name}: nothing was found to work on")


class _Clock:
    """Adds up the time spent in named steps."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds

    def __call__(self, step: str, function: Any, *args: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args)
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start


def _record(item: Item, error: Exception) -> None:
    item.status = "error"
    if isinstance(error, CnnkitError):
        item.error = str(error)
    elif isinstance(error, OSError):
        place = f" ({error.filename})" if error.filename else ""
        item.error = f"{item.name}: {error.strerror or error}{place}"
    elif isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        item.error = f"{item.name}: not enough memory ({error}); use a smaller batch of windows or tiles, or --device cpu"
    else:
        item.error = f"{item.name}: {type(error).__name__}: {error}"
        item.details = "".join(traceback.format_exception(error))


def _options(run: RunOptions) -> dict[str, Any]:
    """Return the task's own options: what was read, where it goes and on which device does not change the result."""
    common = {entry.name for entry in dataclasses.fields(RunOptions)}
    return {entry.name: getattr(run, entry.name) for entry in dataclasses.fields(run) if entry.name not in common}


def _versions(plugin: Plugin) -> dict[str, str]:
    """Return the versions of what computes: an input is done again after any of them changed."""
    import torch

    import cnnkit
    from cnnkit.versions import version_of

    return {
        "python": platform.python_version(),
        "cnnkit": cnnkit.__version__,
        f"cnnkit-{plugin.name}": version_of(f"cnnkit-{plugin.name}"),
        "torch": str(torch.__version__),
    }


def _environment(plugin: Plugin, loaded: Loaded, device: Any, started: float) -> dict[str, Any]:
    import torch

    now = time.time()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "task": plugin.name,
        "model": loaded.header.model,
        "labels": list(loaded.header.labels),
        "device": {"type": str(device), "name": name, "threads": torch.get_num_threads()},
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(now)),
        "seconds": round(now - started, 3),
    }


def _write_report(report: Report, output: Path, shard: Shard) -> Path | None:
    """Write ``report.json`` and ``errors.csv``; on a full disk say so and keep the results that are there."""
    path, errors = output / f"report{shard.suffix}.json", output / f"errors{shard.suffix}.csv"
    try:
        if report.failed:  # The shorter file first: where room is scarce, it says what to do again.
            write_rows(errors, _error_rows(report.failed))
        else:
            errors.unlink(missing_ok=True)
        return write_json(path, report.to_json())
    except OSError as error:
        print(f"error: the report could not be written to {output}: {error.strerror or error}", file=sys.stderr)
        return None


def _error_rows(failed: Sequence[Item]) -> list[Sequence[object]]:
    return [("input", "files", "error"), *((item.name, ";".join(map(str, item.files)), item.error) for item in failed)]


def summary_lines(summary: Mapping[str, Any], indent: str = "  ") -> list[str]:
    """Return nested figures as aligned lines for people."""
    width = max((len(str(key)) for key in summary), default=0)
    lines = []
    for key, value in summary.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{key}", *summary_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key:<{width}}  {_shown(value)}")
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
