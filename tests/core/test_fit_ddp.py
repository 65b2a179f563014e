"""Training on two processes equals training on one, started the way a console script starts it."""

from __future__ import annotations

import csv
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cnnkit.checkpoint import load_checkpoint, read_header
from cnnkit.engine.config import OptimizerConfig
from cnnkit.engine.fit import fit

pytest.importorskip("lightning")
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from toy_task import Config, Toy  # noqa: E402

SCRIPT = '''
import dataclasses, os, sys
sys.path.insert(0, os.environ["CNNKIT_TEST_TASK"])
from pathlib import Path
import click
import torch
from test_fit_ddp import configured
from toy_task import Toy
from cnnkit.engine.fit import fit

class Calibrating(Toy):
    def prepare(self, output):
        with open(output / "prepared", "a") as stream:
            stream.write("once")
        return dataclasses.replace(self.cfg, hidden=9)

@click.group()
def main():
    pass

@main.command()
@click.option("--devices", type=int)
@click.option("-o", "--output", type=Path)
def train(devices, output):
    """Two trainings in one program: the second goes on with the first."""
    torch.set_num_threads(1)
    fit(Calibrating(configured(2, devices)), output=output)
    result = fit(Calibrating(configured(3, devices)), output=output, resume=True)
    print("done", sorted(result.metrics.items()), flush=True)

if __name__ == "__main__":
    main()
'''


def configured(epochs: int, devices: int) -> Config:
    """A training without anything that depends on the local batch."""
    cfg = Config(dropout=0.0, batch_norm=False, hidden=9)
    optimizer = OptimizerConfig(lr=0.02, schedule="constant", weight_decay=0.01)
    strategy = "ddp" if devices > 1 else "auto"
    return dataclasses.replace(
        cfg, train=dataclasses.replace(cfg.train, epochs=epochs, devices=devices, strategy=strategy, optimizer=optimizer, ema=0.9)
    )


def rows(path: Path) -> list[dict[str, float]]:
    with open(path, newline="") as stream:
        return [{key: float(value) for key, value in row.items() if key != "seconds"} for row in csv.DictReader(stream)]


def test_two_processes_equal_one(tmp_path):
    """The curve agrees to 1e-6 (float32, sums in another order) in every step; figures of all data are the same."""
    script = tmp_path / "toytrain"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CNNKIT_TEST_TASK": str(HERE), "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, script, "train", "--devices", "2", "-o", tmp_path / "two"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done") == 2  # Each process comes to the end.
    assert len([line for line in done.stderr.splitlines() if line.startswith("epoch ")]) == 3, done.stderr
    assert (tmp_path / "two/prepared").read_text() == "once"
    assert not (tmp_path / "lightning_logs").exists()

    one = fit(Toy(configured(3, 1)), output=tmp_path / "one", progress=False)
    for table in ("steps.csv", "metrics.csv"):
        left, right = rows(tmp_path / "two" / table), rows(tmp_path / "one" / table)
        assert len(left) == len(right) == (12 if table == "steps.csv" else 3)
        for a, b in zip(left, right, strict=True):
            assert a == pytest.approx(b, rel=0, abs=1e-6)
    assert read_header(tmp_path / "two/last.ckpt").metrics["count"] == 50
    left, right = load_checkpoint(tmp_path / "two/last.ckpt")[1], load_checkpoint(one.last)[1]
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=1e-5)
