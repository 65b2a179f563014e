"""The Task protocol: what a plugin implements, and the optional capabilities that the core looks for.

A task is two dataclasses and seven functions. The core never looks inside a batch or a prediction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cnnkit.checkpoint import Header
    from cnnkit.options import RunOptions

Batch = Any
Prediction = Any


@runtime_checkable
class Metric(Protocol):
    """Collects predictions against references.

    In training over several processes the core gathers the metrics of all of them and calls
    ``merge`` on the first, so what an instance holds must survive ``copy.deepcopy`` and pickling
    between the job's own processes.
    """

    def update(self, predictions: Sequence[Prediction], batch: Batch) -> None:
        """Take in the predictions for one batch and the references that the batch holds."""

    def merge(self, other: Any) -> None:
        """Take in what another instance has collected; called in rank order on every process."""

    def compute(self) -> dict[str, float]:
        """Return the figures collected so far, by name."""


class Task(Protocol):
    """A kind of work: data in, losses to learn from, predictions out.

    Class attributes:
        Config: Dataclass of everything that defines the experiment. It has a field ``train`` of type
            :class:`cnnkit.engine.config.TrainConfig`.
        Run: Dataclass derived from :class:`cnnkit.options.RunOptions`; its fields become the options of ``run``.
        presets: Named partial configurations, ``{"name": {"train": {"lr": 0.1}}}``.
        monitor: Name of the validation figure that picks the best checkpoint, with ``"max"`` or ``"min"``.

    Attributes:
        cfg: The configuration. A training that is resumed may replace it.
    """

    Config: type
    Run: type
    cfg: Any
    presets: Mapping[str, Mapping[str, Any]] = {}
    monitor: tuple[str, str] = ("loss", "min")

    def __init__(self, cfg: Any) -> None:
        """Keep the configuration; read no file and build no model yet."""

    def model(self) -> nn.Module:
        """Build the network with fresh weights."""

    def loader(self, split: str) -> Iterable[Batch] | None:
        """Return the batches of ``"train"``, ``"val"``, ``"test"`` or ``"example"``; ``None`` if there are no data for it.

        ``"example"`` is one or two tiny batches made without a file and without a network connection.
        A training loader that has ``set_epoch(epoch)`` (or whose ``sampler`` has it) is told each epoch, and what
        it yields must depend on the configuration, the epoch and the rank alone: that is what makes a resumed
        training bit-equal.
        """

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the scalar losses by name; their sum, logged as ``loss``, is minimised and each is logged."""

    def predict(self, model: nn.Module, batch: Batch) -> Sequence[Prediction]:
        """Run the whole way from a batch to final predictions: windows, test-time augmentation, post-processing."""

    def metric(self) -> Metric:
        """Return a fresh metric."""

    def read(self, run: RunOptions) -> Iterable[Batch]:
        """Yield the batches of the inputs in ``run.inputs``. The core calls it with the files of one input at a time."""

    def write(self, predictions: Sequence[Prediction], run: RunOptions) -> list[Path]:
        """Write predictions into ``run.output``, atomically, and return the files."""


@runtime_checkable
class Labelled(Protocol):
    """A task with classes: their names are stored in the checkpoint and compared on load."""

    def labels(self) -> Sequence[str]:
        """Return the class names in the order of the network's output channels."""


@runtime_checkable
class Preprocesses(Protocol):
    """A task that can state its preprocessing as data, stored in the checkpoint and beside an exported network."""

    def preprocess(self) -> dict[str, Any]:
        """Return the preprocessing as JSON data."""


@runtime_checkable
class Exports(Protocol):
    """A task whose network can be exported by itself."""

    def export_inputs(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
        """Return the network's inputs by name for an example batch, and the names of their dynamic axes."""


@runtime_checkable
class ChecksExport(Protocol):
    """A task whose network has no form in some format."""

    def check_export(self, suffix: str) -> None:
        """Refuse a format, ``".onnx"`` or ``".pt2"``, by a :class:`~cnnkit.errors.UsageError` that names what is accepted."""


@runtime_checkable
class WrapsExport(Protocol):
    """A task that exports its network in a form of its own, for a network whose input is more than tensors."""

    def export_form(self, model: nn.Module) -> nn.Module:
        """Return the module to export, whose inputs :meth:`Exports.export_inputs` returns."""


@runtime_checkable
class Optimizes(Protocol):
    """A task that builds its own optimizer and schedule."""

    def optimizer(self, model: nn.Module, total_steps: int) -> Any:
        """Return what Lightning's ``configure_optimizers`` accepts."""


@runtime_checkable
class CustomFit(Protocol):
    """A task that is not trained by gradient steps over a loader."""

    def fit(self, model: nn.Module, output: Path) -> dict[str, float]:
        """Train ``model`` in place and return its figures."""


@runtime_checkable
class Adopts(Protocol):
    """A task that can run foreign weights."""

    def adopt(self, state: Mapping[str, Tensor], model: nn.Module) -> None:
        """Load a foreign state dict into ``model``, or raise :class:`cnnkit.errors.CheckpointError`."""


@runtime_checkable
class Recognises(Protocol):
    """A task whose class can tell from foreign weights alone which network they are, so that a bare file of weights runs."""

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor], source: str) -> Mapping[str, Any]:
        """Return the configuration for the weights, or raise :class:`cnnkit.errors.CheckpointError` naming what is understood."""


@runtime_checkable
class FromWeights(Protocol):
    """A task with networks whose architecture is told by their weights alone, and by no configuration."""

    def model_from(self, state: Mapping[str, Tensor]) -> nn.Module:
        """Build the network that the weights belong to; where the configuration tells it, as :meth:`Task.model` does."""


@runtime_checkable
class Calibrates(Protocol):
    """A task that must look at its training data before the first step (fingerprints, plans, reference values)."""

    def prepare(self, output: Path) -> Any:
        """Look at the data and return the completed configuration, from which every process builds the task anew."""


@runtime_checkable
class Restores(Protocol):
    """A task that checks a checkpoint's header against what it is about to do."""

    def check(self, header: Header, run: RunOptions) -> None:
        """Raise :class:`cnnkit.errors.CheckpointError` if the checkpoint does not fit."""


@runtime_checkable
class Examples(Protocol):
    """A task that ships a real example for ``run --example``."""

    def example(self, run: RunOptions) -> Iterable[Batch]:
        """Yield the batches of the bundled example."""

    def summarise(self, predictions: Sequence[Prediction], batch: Batch, run: RunOptions) -> dict[str, Any]:
        """Return figures and texts about the example for the report; shown to people as a table."""


@runtime_checkable
class Reports(Protocol):
    """A metric that writes its own files."""

    def report(self, folder: Path) -> list[Path]:
        """Write the report files into ``folder`` and return them."""
