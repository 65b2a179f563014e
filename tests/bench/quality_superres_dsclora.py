"""DSCLoRA against plain fine-tuning: Y-PSNR of held-out photographs after equally many steps from the same weights.

The teacher is the built-in network (SPAN with 26 features), the student SPAN with fewer, trained first by itself. From there on it is
fine-tuned with the same patches in the same order, four times: all weights by L1 alone; adapters under the teacher, which is the paper's
method; adapters without a teacher; all weights under the teacher. Exits with 1 if the paper's is not better than the first. A student that
is still far from its best gains more by plain training than by anything else: give it many steps before::

    python tests/bench/quality_superres_dsclora.py --before 6000 --steps 500
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from cnnkit.api import find_checkpoint
from cnnkit.backbones import create_model
from cnnkit.config import from_dict
from cnnkit.count import count_params
from cnnkit.engine.load import load
from cnnkit.plugin import get
from cnnkit_superres import example
from cnnkit_superres.data import train_loader
from cnnkit_superres.data_config import DataConfig
from cnnkit_superres.dsclora import Distillation, add_adapters, merge_adapters
from cnnkit_superres.dsclora_config import AdapterConfig
from quality_superres import measure, pictures
from torch.nn import functional as F

SCALE = 2
SETTINGS = AdapterConfig(rank=8, alpha=16.0, affinity_weight=0.02, output_weight=1.0)
"""The rank is the official code's for the last convolutions; the weights of the losses are not published."""
KINDS = (
    ("all weights", False, False),
    ("DSCLoRA", True, True),
    ("adapters, no teacher", True, False),
    ("all weights, teacher", False, True),
)
"""Name, whether adapters are trained in place of the weights, and whether the teacher teaches."""


def train(
    model: Any, folder: Path, options: argparse.Namespace, *, steps: int, lr: float, seed: int, teacher: torch.nn.Module | None = None
) -> None:
    """Train the parameters that may be trained, by L1 and, with a teacher, by the affinity of features."""
    data = from_dict(DataConfig, {"train": [str(folder)], "patch": options.patch, "batch_size": options.batch, "steps_per_epoch": steps})
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    weights = {"affinity_weight": SETTINGS.affinity_weight, "output_weight": SETTINGS.output_weight}
    distillation = None if teacher is None else Distillation(teacher, layers=SETTINGS.layers, **weights)
    model.train()
    for pair in train_loader(data, scale=SCALE, in_chans=model.in_chans, seed=seed, progress=False):
        optimizer.zero_grad()
        if distillation is None:
            loss = F.l1_loss(model(pair["lr"]), pair["hr"])
        else:
            loss = sum(distillation.terms(model, pair["lr"], pair["hr"]).values())
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


def report(name: str, model: Any, seconds: float) -> float:
    """Print a line of the table and return the mean Y-PSNR."""
    found = [ours for ours, _ in measure(model)]
    mean = sum(found) / len(found)
    cells = " | ".join(f"{value:.2f}" for value in found)
    print(f"| {name} | {cells} | {mean:.3f} | {count_params(model) / 1e3:.1f} | {seconds:.0f} |", flush=True)
    return mean


def main() -> int:
    """Train the student, fine-tune it in three ways, print the table, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=12, help="features of the student")
    parser.add_argument("--before", type=int, default=6000, help="steps of the student by itself")
    parser.add_argument("--steps", type=int, default=500, help="steps of each fine-tuning")
    parser.add_argument("--lr", type=float, default=5e-4, help="of the fine-tuning; the first training has 1e-3")
    parser.add_argument("--adapter-lr", type=float, default=2e-3, help="of the fine-tuning of adapters, which begin at zero")
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher = load(find_checkpoint(get("superres")), task="superres").model.eval()
    start: Any = create_model(f"superres/span_x{SCALE}", channels=options.channels, merged=True)
    print("| network | " + " | ".join(example.HELD_OUT) + " | mean dB | K parameters | s |\n|---|" + "---|" * (len(example.HELD_OUT) + 3))
    report("teacher", teacher, 0)
    with tempfile.TemporaryDirectory() as folder:
        source = pictures(Path(folder) / "pictures")
        begin = time.process_time()
        train(start, source, options, steps=options.before, lr=1e-3, seed=0)
        report("student before", start, time.process_time() - begin)
        means = {}
        for name, adapters, taught in KINDS:
            student = copy.deepcopy(start)
            if adapters:
                add_adapters(student, rank=SETTINGS.rank, alpha=SETTINGS.alpha)
            begin = time.process_time()
            lr = options.adapter_lr if adapters else options.lr
            train(student, source, options, steps=options.steps, lr=lr, seed=1, teacher=teacher if taught else None)
            merge_adapters(student)
            means[name] = report(name, student, time.process_time() - begin)
    print(f"DSCLoRA - all weights: {means['DSCLoRA'] - means['all weights']:+.3f} dB")
    return int(means["DSCLoRA"] <= means["all weights"])


if __name__ == "__main__":
    sys.exit(main())
