"""The contract of a task, from its manifest to ``cnnkit run``."""

from __future__ import annotations

import copy
import csv
import importlib.util
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from cnnkit.checkpoint import read_header, save_checkpoint
from cnnkit.cli import main
from cnnkit.cli.run import own_fields
from cnnkit.config import dump_yaml, from_dict, read_yaml
from cnnkit.engine.export import TOLERANCE, export_network
from cnnkit.engine.fit import header_for
from cnnkit.engine.load import load
from cnnkit.errors import ConfigError, UsageError
from cnnkit.options import RunOptions
from cnnkit.plugin import API, Plugin, get
from cnnkit.task import ChecksExport, Exports, Labelled, Metric, Preprocesses
from cnnkit.testing.compare import assert_same, stir, without_gradient
from cnnkit.testing.interpreter import HEAVY, assert_no_heavy_imports, fresh_interpreter, watch_outside


class TaskContract:
    """Everything that the core expects of a task.

    A subclass names the plugin, gives a small configuration, and writes an input file.

    Attributes:
        plugin: Name of the plugin; it is installed, or on the path with its entry point.
        config: Values over the defaults of the task's ``Config`` that make the network and its input small.
        steps: Optimizer steps on the example batch, after which the loss must have fallen.
        lr: Learning rate of these steps, with Adam.
        fall: Largest share of the first loss that may be left.
        run_options: Options of ``cnnkit run`` as words, for example ``("--no-overlay",)``.
    """

    plugin: ClassVar[str] = ""
    config: ClassVar[Mapping[str, Any]] = {}
    steps: ClassVar[int] = 20
    lr: ClassVar[float] = 1e-2
    fall: ClassVar[float] = 0.9
    run_options: ClassVar[Sequence[str]] = ()

    def example_input(self, folder: Path) -> Path | None:
        """Write a small input of ``cnnkit run`` into ``folder`` and return it; without one, ``run`` is not tested."""
        return None

    def bad_input(self, good: Path) -> Path:
        """Write an input that cannot be read beside a good one; by default text under the good one's suffixes."""
        bad = good.with_name("bad" + good.name[len(good.name.split(".")[0]) :])
        bad.write_text("this is not what the suffix says\n", encoding="utf-8")
        return bad

    @pytest.fixture
    def manifest(self) -> Plugin:
        """The plugin's manifest."""
        return get(self.plugin)

    @pytest.fixture
    def task(self, manifest: Plugin) -> Any:
        """The task with the small configuration."""
        kind: Any = manifest.load_task()
        return kind(from_dict(kind.Config, self.config))

    @pytest.fixture
    def model(self, task: Any) -> nn.Module:
        """The task's network, with weights that do not depend on what ran before."""
        torch.manual_seed(0)
        return task.model()

    @pytest.fixture
    def batch(self, task: Any) -> Any:
        """The first batch of the example."""
        return next(iter(task.loader("example")))

    @pytest.fixture
    def checkpoint(self, task: Any, manifest: Plugin, model: nn.Module, tmp_path: Path) -> Path:
        """A checkpoint of the untrained network."""
        return save_checkpoint(tmp_path / "model.ckpt", stir(model).state_dict(), header_for(task, model, manifest, {}))

    # What is declared.

    def test_manifest_and_options_import_nothing_heavy(self, manifest: Plugin) -> None:
        """The manifest, the options and the help are read without torch and without the plugin's own libraries."""
        heavy = {*HEAVY, *manifest.requires}
        fresh = fresh_interpreter(f"from cnnkit.plugin import get; get({self.plugin!r}).load_run()")
        assert fresh.status == 0, fresh.errors
        assert_no_heavy_imports(fresh.modules, heavy)
        fresh = fresh_interpreter(f"from cnnkit.cli import main; main(['run', {self.plugin!r}, '--help'])")
        assert fresh.status == 0, fresh.errors
        assert_no_heavy_imports(fresh.modules, heavy)
        for option in own_fields(manifest.load_run()):
            assert f"--{option.name.replace('_', '-')}" in fresh.output

    def test_manifest_is_whole(self, manifest: Plugin, task: Any) -> None:
        """Every target of the manifest leads somewhere, and the task has the parts that the core calls."""
        assert manifest.api == API and manifest.summary
        assert issubclass(manifest.load_run(), RunOptions) and task.Run is manifest.load_run()
        for entry in manifest.models.values():
            assert callable(entry.load())
        for name in manifest.commands:
            assert callable(manifest.load_command(name))
        for part in ("model", "loader", "losses", "predict", "metric", "read", "write"):
            assert callable(getattr(task, part)), f"the task has no {part}()"

    def test_configuration_survives_yaml(self, task: Any, tmp_path: Path) -> None:
        """The resolved configuration is written beside every run; reading it gives the same experiment."""
        file = tmp_path / "config.yaml"
        file.write_text(dump_yaml(task.cfg), encoding="utf-8")
        assert from_dict(type(task.cfg), read_yaml(file)) == task.cfg
        assert task.cfg.train.epochs >= 1

    def test_configuration_refuses_a_typing_error(self, task: Any) -> None:
        """An unknown key is an error, and the message names it; every preset is valid."""
        with pytest.raises(ConfigError, match="no_such_key"):
            from_dict(task.Config, {**self.config, "no_such_key": 1})
        for name, preset in getattr(task, "presets", {}).items():
            from_dict(task.Config, preset, source=f"preset {name}")

    # What is learned.

    def test_example_needs_no_file_and_no_network(self, task: Any) -> None:
        """It is what exports, benchmarks and ``doctor --deep`` run on."""
        list(task.loader("example"))  # What this imports is not what the example reads.
        with watch_outside() as touched:
            batches = list(task.loader("example"))
        assert 1 <= len(batches) <= 2
        assert touched == []

    def test_every_parameter_gets_a_gradient(self, task: Any, model: nn.Module, batch: Any) -> None:
        """Of the losses; a parameter without a gradient is not used, and breaks training over several processes."""
        losses = task.losses(stir(model).train(), batch)
        for name, loss in losses.items():
            assert isinstance(name, str) and isinstance(loss, Tensor) and loss.ndim == 0, f"loss {name!r} is not a scalar"
        sum(losses.values()).backward()
        assert without_gradient(model) == []

    def test_losses_fall(self, task: Any, model: nn.Module, batch: Any) -> None:
        """Each step's losses are finite, and on the one batch their sum falls."""
        model.train()
        optimizer = torch.optim.Adam(model.parameters(), lr=self.lr)
        totals: list[float] = []
        for _ in range(self.steps):
            losses = task.losses(model, batch)
            assert all(math.isfinite(loss.item()) for loss in losses.values()), losses
            total = torch.stack(list(losses.values())).sum()
            totals.append(total.item())
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        assert totals[-1] <= self.fall * totals[0], f"from {totals[0]:.4g} to {totals[-1]:.4g} in {self.steps} steps"

    def test_metric_measures_predictions(self, task: Any, model: nn.Module, batch: Any) -> None:
        """A metric takes predictions, survives a copy, and merges with one from another process."""
        with torch.no_grad():
            predictions = task.predict(model.eval(), batch)
        metric = task.metric()
        assert isinstance(metric, Metric)
        metric.update(predictions, batch)
        figures = metric.compute()
        assert figures and all(isinstance(key, str) and isinstance(value, float) for key, value in figures.items()), figures
        other = copy.deepcopy(metric)
        other.merge(metric)
        assert set(other.compute()) == set(figures)
        assert_same(metric.compute(), figures)
        monitor, mode = getattr(task, "monitor", ("loss", "min"))
        assert mode in ("min", "max") and monitor in {"loss", *figures}, f"monitor {monitor!r} is none of {sorted(figures)}"

    # What is predicted.

    def test_predictions_are_deterministic(self, task: Any, model: nn.Module, batch: Any) -> None:
        """In evaluation, twice the same."""
        with torch.no_grad():
            first = task.predict(stir(model).eval(), batch)
            assert len(first) >= 1
            assert_same(task.predict(model, batch), first, where="prediction")

    def test_checkpoint_gives_the_same_predictions(
        self, task: Any, manifest: Plugin, model: nn.Module, batch: Any, checkpoint: Path
    ) -> None:
        """A file holds all that is needed to run the network the way it was trained."""
        loaded = load(checkpoint, plugin=manifest)
        assert loaded.task.cfg == task.cfg
        header = read_header(checkpoint)
        if isinstance(task, Labelled):
            assert header.labels == tuple(task.labels())
        if isinstance(task, Preprocesses):
            assert header.preprocess == json.loads(json.dumps(task.preprocess()))
        with torch.no_grad():
            assert_same(loaded.task.predict(loaded.model, batch), task.predict(model.eval(), batch), where="prediction")

    def test_run_survives_a_bad_input_and_resumes(self, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A good input is written; a bad one is a row in ``errors.csv`` and status 1; with ``--resume`` the good one is skipped."""
        inputs = tmp_path / "inputs"
        inputs.mkdir()
        good = self.example_input(inputs)
        if good is None:
            pytest.skip("no example_input in this contract")
        bad, output = self.bad_input(good), tmp_path / "out"
        assert self.run_status(bad, good, output=output, checkpoint=checkpoint) == 1
        report = json.loads((output / "report.json").read_text(encoding="utf-8"))
        items = {item["status"]: item for item in report["inputs"]}
        assert report["counts"] == {"ok": 1, "resumed": 0, "error": 1}, report["inputs"]
        assert items["ok"]["outputs"] and all(Path(path).stat().st_size > 0 for path in items["ok"]["outputs"])
        assert "details" not in items["error"], f"explain a bad file by an InputError: {items['error']['details']}"
        with open(output / "errors.csv", encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert [Path(row["files"]).name for row in rows] == [bad.name] and bad.name in rows[0]["error"]
        assert self.run_status(good, output=output, checkpoint=checkpoint, more=("--resume",)) == 0
        again = json.loads((output / "report.json").read_text(encoding="utf-8"))
        assert again["counts"] == {"ok": 0, "resumed": 1, "error": 0}
        assert again["inputs"][0]["outputs"] == items["ok"]["outputs"]

    def run_status(self, *inputs: Path, output: Path, checkpoint: Path, more: Sequence[str] = ()) -> Any:
        """Return the exit status of ``cnnkit run``."""
        words = ["run", self.plugin, *map(str, inputs), "-o", str(output), "--ckpt", str(checkpoint), "--device", "cpu", "-q"]
        with pytest.raises(SystemExit) as stopped:
            main([*words, *self.run_options, *more])
        return stopped.value.code

    @pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
    def test_export(self, task: Any, manifest: Plugin, checkpoint: Path, tmp_path: Path, suffix: str) -> None:
        """The exported network computes the same, if the task has one to export."""
        if not isinstance(task, Exports):
            pytest.skip("the task exports no network")
        if suffix == ".onnx" and any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")):
            pytest.skip("ONNX is not installed")
        if isinstance(task, ChecksExport):
            try:
                task.check_export(suffix)
            except UsageError as refusal:  # The command says so, too, and leaves nothing behind.
                with pytest.raises(UsageError, match=re.escape(str(refusal))):
                    export_network(checkpoint, tmp_path / f"network{suffix}", plugin=manifest)
                assert not list(tmp_path.glob("network*")) and "accepted" in str(refusal)
                return
        exported = export_network(checkpoint, tmp_path / f"network{suffix}", plugin=manifest)
        assert exported.difference <= TOLERANCE
        about = json.loads((tmp_path / "network.json").read_text(encoding="utf-8"))
        assert about["task"] == self.plugin and about["inputs"]
