"""Training: it learns, averages, accumulates, stops, saves, and goes on bit for bit after a kill."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cnnkit.checkpoint import load_checkpoint, read_header
from cnnkit.config import from_dict, read_yaml
from cnnkit.engine.config import OptimizerConfig, TrainConfig
from cnnkit.engine.fit import fit
from cnnkit.errors import CheckpointError, CnnkitError, ConfigError, UsageError

pytest.importorskip("lightning")
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from toy_task import Config, Toy  # noqa: E402


def toy(train: dict | None = None, **fields) -> Toy:
    config = dataclasses.replace(Config(), **fields)
    return Toy(dataclasses.replace(config, train=dataclasses.replace(config.train, **(train or {}))))


def rows(path: Path, *, drop: tuple[str, ...] = ("seconds",)) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return [{key: value for key, value in row.items() if key not in drop} for row in csv.DictReader(stream)]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path)[1]


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One plain training of four epochs, in a folder that is not the current one."""
    folder = tmp_path_factory.mktemp("trained")
    return fit(toy({"epochs": 12}), output=folder, progress=False), folder


def test_loss_falls_and_the_folder_is_complete(trained):
    folder = trained[1]
    table = rows(folder / "metrics.csv")
    assert [row["epoch"] for row in table] == [str(epoch) for epoch in range(1, 13)]
    assert float(table[-1]["train/loss"]) < 0.6 * float(table[0]["train/loss"])
    for row in table:
        assert float(row["train/loss"]) == pytest.approx(float(row["train/entropy"]) + float(row["train/size"]), rel=1e-12)
    assert float(table[-1]["val/accuracy"]) > 0.75
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.ckpt", "config.yaml", "curves.svg", "last.ckpt", "last.ckpt.state", "metrics.csv", "steps.csv"
    ]  # fmt: skip
    assert len(rows(folder / "steps.csv")) == 48
    assert not Path("lightning_logs").exists()


def test_checkpoints_are_for_use(trained):
    result, folder = trained
    header = read_header(result.best)
    table = rows(folder / "metrics.csv")
    assert header.metrics["accuracy"] == max(float(row["val/accuracy"]) for row in table) == result.metrics["accuracy"]
    assert header.metrics["count"] == 50
    assert header.labels == ("upper", "lower")
    assert header.preprocess == {"mean": [0.5, 0.25]}
    config = from_dict(Config, header.config)
    assert config == from_dict(Config, read_yaml(folder / "config.yaml"))
    Toy(config).model().load_state_dict(weights(result.last))


def test_curves_are_an_svg_with_a_line_per_column(trained):
    import xml.etree.ElementTree as ElementTree

    root = ElementTree.parse(trained[1] / "curves.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}polyline")) == 5
    texts = [item.text for item in root.findall(f"{space}text")]
    assert {"Loss", "Validation", "train/loss", "train/entropy", "val/accuracy", "epoch"} <= set(texts)


def test_a_taken_folder_is_refused_and_kept(trained):
    result, folder = trained
    before = result.last.read_bytes()
    with pytest.raises(UsageError, match="--resume"):
        fit(toy(), output=folder, progress=False)
    assert result.last.read_bytes() == before


def test_resuming_another_experiment_is_refused(trained):
    with pytest.raises(UsageError, match=r"different: hidden"):
        fit(toy({"epochs": 13}, hidden=8), output=trained[1], resume=True, progress=False)


def test_resume_of_nothing_is_a_start_and_of_a_finished_training_changes_nothing(tmp_path):
    task = toy({"epochs": 2})
    first = fit(task, output=tmp_path, resume=True, progress=False)
    before, table = weights(first.last), rows(tmp_path / "metrics.csv")
    again = fit(task, output=tmp_path, resume=True, progress=False)
    assert_equal(before, weights(again.last))
    assert rows(tmp_path / "metrics.csv") == table


KILLED = '''
import dataclasses, os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from pathlib import Path
from cnnkit.engine.fit import fit
from toy_task import Config, Toy

class Dying(Toy):
    """Kills its own process in the third epoch; the step counter is the test's, not the engine's."""
    calls = 0

    def losses(self, model, batch):
        Dying.calls += 1
        if Dying.calls == 11:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().losses(model, batch)

def run(name, ema, kind, patch=None):
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        print(name, os.WTERMSIG(status) if os.WIFSIGNALED(status) else "exit %d" % os.WEXITSTATUS(status), flush=True)
        return
    cfg = Config()
    task = kind(dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, ema=ema)))
    if patch:
        patch()
    fit(task, output=Path(sys.argv[2]) / name, progress=False)
    os._exit(0)

def between_the_renames():
    real, seen = os.replace, []
    def replace(source, target):
        if Path(source).name == "last.ckpt.next":
            seen.append(source)
            if len(seen) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(source, target)
    os.replace = replace

def before_the_renames():
    real, seen = os.replace, []
    def replace(source, target):
        if Path(source).name == "last.ckpt.state.next":
            seen.append(source)
            if len(seen) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(source, target)
    os.replace = replace

import cnnkit.engine.lightning_callbacks  # Once, for all forks.
run("mid", 0.0, Dying)
run("mid_ema", 0.9, Dying)
run("between", 0.9, Toy, between_the_renames)
run("before", 0.9, Toy, before_the_renames)
'''


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Trainings that were killed by SIGKILL: in the middle of an epoch, and between the files of a checkpoint."""
    folder = tmp_path_factory.mktemp("killed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    script = folder / "killed.py"
    script.write_text(KILLED)
    done = subprocess.run(
        [sys.executable, script, HERE, folder], env=environment, capture_output=True, encoding="utf-8", timeout=100, check=False
    )
    assert done.stdout.split() == ["mid", "9", "mid_ema", "9", "between", "9", "before", "9"], done.stderr
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same trainings without a kill, without and with a moving average."""
    folder = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    return {ema: fit(toy({"ema": ema}), output=folder / str(ema), progress=False) for ema in (0.0, 0.9)}


@pytest.mark.parametrize(("name", "ema"), [("mid", 0.0), ("mid_ema", 0.9), ("between", 0.9), ("before", 0.9)])
def test_a_killed_training_goes_on_bit_for_bit(name, ema, killed, whole):
    folder = killed / name
    assert len(rows(folder / "metrics.csv")) == 2 if name.startswith("mid") else 3
    assert read_header(folder / "last.ckpt").metrics  # Usable as it was left.
    result = fit(toy({"ema": ema}), output=folder, resume=True, progress=False)
    expected = whole[ema]
    assert_equal(weights(result.last), weights(expected.last))
    assert_equal(weights(result.best), weights(expected.best))
    assert result.metrics == expected.metrics
    for table in ("metrics.csv", "steps.csv"):
        assert rows(folder / table) == rows(expected.last.parent / table)
    assert not list(folder.glob("*.next"))


def test_a_replaced_checkpoint_is_not_resumed_silently(tmp_path, trained):
    result = fit(toy({"epochs": 1}), output=tmp_path, progress=False)
    result.last.write_bytes(trained[0].last.read_bytes())
    with pytest.raises(CheckpointError, match="does not belong"):
        fit(toy({"epochs": 2}), output=tmp_path, resume=True, progress=False)


class Dangerous:
    def __reduce__(self):
        return os.mkdir, (str(Path(os.environ["CNNKIT_TEST_TRAP"])),)


def test_a_state_with_objects_is_refused_and_not_run(tmp_path, monkeypatch):
    result = fit(toy({"epochs": 1}), output=tmp_path, progress=False)
    trap = tmp_path / "trap"
    monkeypatch.setenv("CNNKIT_TEST_TRAP", str(trap))
    torch.save({"checkpoint_sha256": "", "extra": Dangerous()}, tmp_path / "last.ckpt.state")
    with pytest.raises(CheckpointError, match="would run code"):
        fit(toy({"epochs": 2}), output=tmp_path, resume=True, progress=False)
    assert not trap.exists()
    assert result.best.exists()


def test_moving_average_follows_its_recursion(tmp_path):
    """The stored weights are the closed form over the raw weights of every step, in float64; tolerance of float32."""
    seen: list[np.ndarray] = []

    class Watched(Toy):
        def losses(self, model, batch):
            seen.append(model[0].weight.detach().double().numpy().copy())
            return super().losses(model, batch)

    task = toy({"ema": 0.8, "epochs": 3})
    result = fit(Watched(task.cfg), output=tmp_path, progress=False)
    state = torch.load(tmp_path / "last.ckpt.state", weights_only=True)
    raw = [*seen, state["raw_weights"]["0.weight"].double().numpy()]  # seen[k] is what step k + 1 starts from.
    decays = [min(0.8, (1 + step) / (10 + step)) for step in range(1, len(raw))]
    shares = [(1 - decays[i]) * np.prod(decays[i + 1 :]) for i in range(len(decays))]
    expected = np.prod(decays) * raw[0] + sum(share * value for share, value in zip(shares, raw[1:], strict=True))
    stored = weights(result.last)
    np.testing.assert_allclose(stored["0.weight"].numpy(), expected, rtol=0, atol=2e-6)
    assert not np.allclose(stored["0.weight"].numpy(), raw[-1], atol=1e-4)
    assert stored["1.num_batches_tracked"] == len(seen)
    assert stored["1.running_mean"].dtype == torch.float32


def test_the_average_is_what_is_validated(tmp_path):
    from cnnkit.engine.evaluate import evaluate

    result = fit(toy({"ema": 0.8, "epochs": 3}), output=tmp_path, progress=False)
    task = toy()
    model = task.model()
    model.load_state_dict(weights(result.last))
    assert evaluate(task, model, split="val", device="cpu", progress=False)[0] == dict(read_header(result.last).metrics)


def test_accumulation_equals_a_larger_batch(tmp_path):
    """Four batches of 8 and one of 32 make the same mean gradient; float32 sums differ in order only."""
    plain = {"dropout": 0.0, "batch_norm": False}
    optimizer = OptimizerConfig(name="sgd", lr=0.1)
    small = fit(toy({"accumulate": 4, "optimizer": optimizer}, batch=8, **plain), output=tmp_path / "a", progress=False)
    large = fit(toy({"optimizer": optimizer}, batch=32, **plain), output=tmp_path / "b", progress=False)
    assert [row["step"] for row in rows(tmp_path / "a/metrics.csv")] == ["2", "4", "6", "8"]
    left, right = weights(small.last), weights(large.last)
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=1e-6)


def test_frozen_norms_keep_their_statistics_and_the_rest_learns(tmp_path):
    """After two epochs of four, statistics stand still and are what the network is trained with, through validations and a resume."""
    first = fit(toy({"freeze_norms_after": 2, "epochs": 2}), output=tmp_path, progress=False)
    early = weights(first.last)
    late = weights(fit(toy({"freeze_norms_after": 2, "epochs": 4}), output=tmp_path, resume=True, progress=False).last)
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(late[name], early[name]), name
    for name in ("0.weight", "1.weight", "4.bias"):
        assert not torch.equal(late[name], early[name]), name
    modes: list[tuple[bool, bool]] = []

    class Watched(Toy):
        def losses(self, model, batch):
            modes.append((model[1].training, model[3].training))
            return super().losses(model, batch)

    fit(Watched(toy({"freeze_norms_after": 2}).cfg), output=tmp_path / "whole", progress=False)
    assert modes == [(True, True)] * 8 + [(False, True)] * 8


def test_patience_stops_and_stays_stopped(tmp_path):
    """With a vanishing learning rate no epoch is better than the first, so three more are made, and none on resume."""
    train = {"epochs": 50, "patience": 3, "optimizer": OptimizerConfig(lr=1e-30, schedule="constant")}
    task = toy(train, batch_norm=False)
    result = fit(task, output=tmp_path, progress=False)
    assert len(rows(tmp_path / "metrics.csv")) == 4
    fit(task, output=tmp_path, resume=True, progress=False)
    assert len(rows(tmp_path / "metrics.csv")) == 4
    assert read_header(result.best).metrics == read_header(result.last).metrics


def test_bf16_runs_and_stores_float32(tmp_path):
    result = fit(toy({"precision": "bf16-mixed", "clip_norm": 1.0}), output=tmp_path, progress=False)
    table = rows(tmp_path / "metrics.csv")
    assert float(table[-1]["train/loss"]) < float(table[0]["train/loss"])
    assert {tensor.dtype for tensor in weights(result.last).values()} == {torch.float32, torch.int64}


def test_workers_change_nothing(tmp_path):
    alone = fit(toy({"epochs": 2}), output=tmp_path / "0", progress=False)
    workers = fit(toy({"epochs": 2}, workers=2), output=tmp_path / "2", progress=False)
    assert_equal(weights(alone.last), weights(workers.last))


def test_a_loss_that_is_no_number_stops(tmp_path):
    class Broken(Toy):
        def losses(self, model, batch):
            losses = super().losses(model, batch)
            steps = self.steps = getattr(self, "steps", 0) + 1
            return {**losses, "size": losses["size"] * float("nan")} if steps == 7 else losses

    with pytest.raises(CnnkitError, match=r"loss 'size' became nan in batch 3 of epoch 2"):
        fit(Broken(toy().cfg), output=tmp_path, progress=False)
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "last.ckpt").values())
    assert len(rows(tmp_path / "metrics.csv")) == 1


def test_without_validation_the_last_is_the_best(tmp_path):
    result = fit(toy({"epochs": 2}, validate=False), output=tmp_path, progress=False)
    assert_equal(weights(result.best), weights(result.last))
    assert result.metrics == {}


def test_loss_as_monitor_is_measured_on_the_validation_data(tmp_path):
    result = fit(toy({"monitor": "loss", "mode": "min"}), output=tmp_path, progress=False)
    table = rows(tmp_path / "metrics.csv")
    assert result.metrics["loss"] == min(float(row["val/loss"]) for row in table)
    with pytest.raises(ConfigError, match=r"unknown figure in train.monitor 'acuracy'; did you mean 'accuracy'"):
        fit(toy({"monitor": "acuracy", "mode": "max"}), output=tmp_path / "typo", progress=False)


def test_initial_weights_are_taken(tmp_path, trained):
    still = {"epochs": 1, "optimizer": OptimizerConfig(lr=1e-30, schedule="constant")}
    result = fit(toy(still), output=tmp_path, init=trained[0].last, progress=False)
    assert torch.equal(weights(result.last)["0.weight"], weights(trained[0].last)["0.weight"])


def test_a_calibrating_task_looks_at_its_data_once(tmp_path):
    looked = []

    class Calibrating(Toy):
        def prepare(self, output):
            looked.append(output)
            return dataclasses.replace(self.cfg, hidden=5)

    result = fit(Calibrating(toy({"epochs": 1}).cfg), output=tmp_path, progress=False)
    fit(Calibrating(toy({"epochs": 2}).cfg), output=tmp_path, resume=True, progress=False)
    assert looked == [tmp_path]
    assert weights(result.last)["0.weight"].shape == (5, 2)
    assert read_header(result.last).config["hidden"] == read_yaml(tmp_path / "config.yaml")["hidden"] == 5


def test_a_task_may_bring_its_own_optimizer_with_an_epoch_schedule(tmp_path):
    class Own(Toy):
        def optimizer(self, model, total_steps):
            assert total_steps == 4 * self.cfg.train.epochs
            optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
            return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)}

    def rates(folder):
        return [float(row["lr"]) for row in rows(folder / "metrics.csv")]

    fit(Own(toy({"epochs": 4}).cfg), output=tmp_path / "a", progress=False)
    fit(Own(toy({"epochs": 2}).cfg), output=tmp_path / "b", progress=False)
    fit(Own(toy({"epochs": 4}).cfg), output=tmp_path / "b", resume=True, progress=False)
    assert rates(tmp_path / "a") == rates(tmp_path / "b") == [1.0, 0.5, 0.25, 0.125]
    assert_equal(weights(tmp_path / "a/last.ckpt"), weights(tmp_path / "b/last.ckpt"))


def test_a_task_may_train_itself(tmp_path):
    class Custom(Toy):
        def fit(self, model, output):
            torch.nn.init.constant_(model[0].weight, 3.0)
            return {"score": np.float32(0.5)}

    result = fit(Custom(toy().cfg), output=tmp_path, progress=False)
    assert result.metrics == read_header(result.best).metrics == {"score": 0.5}
    assert (weights(result.best)["0.weight"] == 3).all()


def test_one_line_per_epoch_on_stderr_and_no_noise(tmp_path, capfd):
    fit(toy({"epochs": 2}), output=tmp_path)
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) == 2, err
    assert lines[1].startswith("epoch 2/2  train/loss ")


def test_event_files_are_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(toy({"epochs": 2, "tensorboard": True}), output=tmp_path, progress=False)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 9))
    table = rows(tmp_path / "metrics.csv")
    assert [event.value for event in events.Scalars("val/accuracy")] == pytest.approx([float(row["val/accuracy"]) for row in table])


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"epochs": 0}, "train.epochs is 0"),
        ({"strategy": "fsdp"}, "train.strategy is 'fsdp'"),
        ({"precision": "8-bit"}, "cannot be set up here"),
        ({"ema": 1.0}, "train.ema"),
        ({"freeze_norms_after": -1}, "train.freeze_norms_after is -1"),
        ({"optimizer": OptimizerConfig(warmup_steps=16)}, "warmup_steps=16 leaves nothing"),
        ({"monitor": "count"}, "needs train.mode"),
    ],
)
def test_wrong_configurations_are_explained(train, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        fit(toy(train), output=tmp_path, progress=False)


def test_the_config_is_plain_json():
    from cnnkit.config import to_dict

    assert json.loads(json.dumps(to_dict(TrainConfig())))["optimizer"]["betas"] == [0.9, 0.999]
