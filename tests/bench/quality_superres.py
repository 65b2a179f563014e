"""Train every kind of network of superres for a few minutes, and compare it with bicubic interpolation on photographs that it never saw.

One recipe for all: patches (32 x 32) of scikit-image's photographs, Adam with a cosine schedule, L1, one thread. The table shows Y-PSNR
on each held-out photograph beside MATLAB's bicubic interpolation, a network of several scales at each of them after a training on all. Exit
status 1 if a mean does not beat bicubic's by the network's margin::

    python tests/bench/quality_superres.py --networks espcn_x3,cfsr_x2 --steps 800
    python tests/bench/quality_superres.py --networks carn_x2 --patch 24 --batch 4
    python tests/bench/quality_superres.py --networks espcn_x2,a2n_x2 --equal --steps 400
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from cnnkit.backbones import create_model
from cnnkit.config import from_dict
from cnnkit_superres import example
from cnnkit_superres.data import train_loader
from cnnkit_superres.data_config import DataConfig
from cnnkit_superres.metrics import modcrop, psnr
from cnnkit_superres.pictures import Picture
from cnnkit_superres.predict import enlarge
from cnnkit_superres.resize import imresize
from torch.nn import functional as F

# Networks at a size that minutes of training show something of, the factor on the steps for those that nothing is added to (a network
# that refines an interpolated picture starts from it), and the decibels by which they have to beat bicubic.
NETWORKS: dict[str, tuple[dict[str, Any], int, float]] = {
    "espcn_x2": ({}, 12, 0.0),
    "espcn_x3": ({}, 12, 0.5),
    "carn_x2": ({"width": 32}, 8, 0.0),
    "imdn_x2": ({}, 2, 0.0),
    "a2n_x2": ({"depth": 6}, 1, 1.0),
    "scnet_t_x2": ({}, 1, 0.0),
    "tcsr_b_x2": ({"depth": 3}, 1, 0.0),
    "cfsr_x2": ({}, 2, 0.0),
    "span_x2": ({"channels": 26}, 6, 0.0),
}
TRAINER = Path(__file__).parents[2] / "tools" / "examples" / "superres.py"


def pictures(folder: Path) -> Path:
    """Write the pictures that the built-in networks are trained on."""
    spec = importlib.util.spec_from_file_location("superres_example", TRAINER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["superres_example"] = module
    spec.loader.exec_module(module)
    return module.write_pictures(folder)


def train(name: str, folder: Path, *, steps: int, patch: int, batch: int, lr: float) -> tuple[torch.nn.Module, float]:
    """Train a network and return it with the seconds of the processor."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model: Any = create_model(f"superres/{name}", **NETWORKS[name][0]).train()
    sizes = {"patch": patch, "batch_size": batch, "steps_per_epoch": steps, "scales": model.scales}
    data = from_dict(DataConfig, {"train": [str(folder)], **sizes})
    optimizer = torch.optim.Adam(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    start = time.process_time()
    for pair in train_loader(data, scale=model.scale, in_chans=model.in_chans, progress=False):
        optimizer.zero_grad()
        with model.at_scale(pair["hr"].shape[-1] // pair["lr"].shape[-1]):
            F.l1_loss(model(pair["lr"]), pair["hr"]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval(), time.process_time() - start


def measure(model: Any) -> list[tuple[float, float]]:
    """Return Y-PSNR of the network and of bicubic interpolation on every held-out photograph."""
    found = []
    for name in example.HELD_OUT:
        large = modcrop(example.photograph(name), model.scale)
        small = imresize(large, 1 / model.scale)
        with torch.no_grad():
            ours = enlarge(model, Picture(small)).pixels
        found.append((psnr(ours, large, crop=model.scale), psnr(imresize(small, model.scale), large, crop=model.scale)))
    return found


def main() -> int:
    """Train, measure and print; 1 if a network misses its margin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=list(NETWORKS), type=lambda text: text.split(","), metavar="NAME,...")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--patch", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--equal", action="store_true", help="take --steps for every network, without its own factor")
    options = parser.parse_args()
    missed = []
    print("| network | " + " | ".join(example.HELD_OUT) + " | mean gain in dB | s |\n|---|" + "---|" * (len(example.HELD_OUT) + 2))
    with tempfile.TemporaryDirectory() as folder:
        source = pictures(Path(folder) / "pictures")
        for name in options.networks:
            _, factor, margin = NETWORKS[name]
            steps = options.steps if options.equal else factor * options.steps
            model, seconds = train(name, source, steps=steps, patch=options.patch, batch=options.batch, lr=options.lr)
            for scale in model.scales:
                with model.at_scale(scale):
                    found = measure(model)
                gain = sum(ours - theirs for ours, theirs in found) / len(found)
                cells = " | ".join(f"{ours:.2f} ({theirs:.2f})" for ours, theirs in found)
                if gain <= margin:
                    missed.append(name)
                where = f" at x{scale}" if len(model.scales) > 1 else ""
                print(f"| {name}{where} | {cells} | {gain:+.2f}{'' if gain > margin else ' missed'} | {seconds:.0f} |", flush=True)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
