"""A small micro-TCN on a simulated compressor, beside static waveshapers: the error to signal on drums and settings never heard.

The recipe is ``configs/audio/micro_tcn.yaml``, through the same training as ``cnnkit train``. A waveshaper is a curve without memory,
learnt from the same pairs; the one to beat by 10 dB knows the knobs. Beside it stand one that maps a sample to a sample, and an oracle,
the mean output for each of 512 amplitudes of the test recording itself. Exit status 1 if the target is missed::

    python tests/bench/quality_audio_effect.py
    python tests/bench/quality_audio_effect.py --ckpt runs/compressor/best.ckpt
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cnnkit.config import build
from cnnkit.engine.fit import fit
from cnnkit.engine.load import load
from cnnkit.plugin import get
from cnnkit_audio.config import Config
from cnnkit_audio.effect.data import SimulatedPairs, whole
from cnnkit_audio.effect.metrics import error_to_signal
from cnnkit_audio.models._base import Effect
from cnnkit_audio.task import Audio
from torch import Tensor, nn

RECIPE = Path(__file__).parents[2] / "configs" / "audio" / "micro_tcn.yaml"
TARGET_DB = 10.0
TOLD = "one that knows the knobs"
SAMPLES = 50_000
"""Samples that a waveshaper learns from."""


def best_static_curve(dry: np.ndarray, wet: np.ndarray, levels: int = 512) -> np.ndarray:
    """Return what a waveshaper that knew the recording would make of it."""
    places = np.clip(((dry + 1) / 2 * levels).astype(int), 0, levels - 1)
    sums = np.bincount(places, wet, levels)
    return (sums / np.maximum(np.bincount(places, minlength=levels), 1))[places]


def waveshaper(pairs: SimulatedPairs, *, told: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a static curve ``(1, 1, T)``, learnt from pairs by full-batch L-BFGS on a sample of them.

    Args:
        pairs: What it learns from.
        told: Whether it sees the knobs ``(1, K)``; a curve that does not replaces them by zeros.
    """
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    sound = np.stack([pairs.pair(index) for index in range(len(pairs))])
    rows, times = rng.integers(len(pairs), size=SAMPLES), rng.integers(sound.shape[2], size=SAMPLES)
    dry, wet = torch.from_numpy(sound[rows, :, times]).unbind(1)
    knobs = torch.from_numpy(pairs.knobs[rows])
    net = nn.Sequential(nn.Linear(1 + knobs.shape[1], 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=400, line_search_fn="strong_wolfe")

    def answer(samples: Tensor, setting: Tensor) -> Tensor:
        return net(torch.cat([samples[:, None], setting if told else torch.zeros_like(setting)], 1))[:, 0]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (answer(dry, knobs) - wet).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)

    def shape(x: Tensor, setting: Tensor) -> Tensor:
        with torch.no_grad():
            samples = x.flatten()
            return answer(samples, setting.expand(len(samples), -1)).reshape(x.shape)

    return shape


def train(recipe: Path, folder: Path, epochs: int) -> Path:
    """Train by a recipe, and return the last checkpoint."""
    started = time.process_time()
    cfg = build(Config, file=recipe, overrides=[f"train.epochs={epochs}"] if epochs else [])
    result = fit(Audio(cfg), output=folder, plugin=get("audio"))
    print(f"trained in {time.process_time() - started:.0f} s of the processor", file=sys.stderr)
    return result.last


def measure(task: Any, model: Effect) -> dict[str, float]:
    """Return the mean error to signal in dB over the test's pairs, of the network and of what stands beside it."""
    cfg, rate = task.cfg.effect, model.sample_rate
    plain, told = (waveshaper(SimulatedPairs("train", rate, count=cfg.simulated), told=told) for told in (False, True))
    pairs = SimulatedPairs("test", rate, count=6)
    rows = []
    for index in range(len(pairs)):
        batch = whole(pairs, index)
        dry, wet, knobs = (batch[name] for name in ("dry", "wet", "knobs"))
        with torch.no_grad():
            (output,) = task.predict(model, batch)
        oracle = best_static_curve(dry[0, 0].numpy(), wet[0, 0].numpy())
        signals = {
            "network": torch.from_numpy(output.signal)[None],
            "static curve, learnt from the same pairs": plain(dry, knobs),
            TOLD: told(dry, knobs),
            "best static curve for each test recording itself": torch.from_numpy(oracle)[None, None].float(),
            "nothing done": dry,
        }
        rows.append({name: 10 * error_to_signal(signal, wet).log10().item() for name, signal in signals.items()})
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def main() -> int:
    """Train, print the table, and return 1 if the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--epochs", type=int, default=0, help="of 100 steps; by default the recipe's")
    parser.add_argument("--ckpt", type=Path, help="measure this network in place of training one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(options.ckpt or train(options.recipe, Path(folder), options.epochs))
    model = loaded.model.eval()
    assert isinstance(model, Effect)
    figures = measure(loaded.task, model)
    print(f"{loaded.header.model}, {sum(p.numel() for p in model.parameters())} parameters\n")
    print("| error to signal on test drums | dB |\n|---|---|\n" + "\n".join(f"| {name} | {value:.2f} |" for name, value in figures.items()))
    ours, told = figures["network"], figures[TOLD]
    print(f"\n{told - ours:.2f} dB better than the curve that knows the knobs (target {TARGET_DB:.0f})")
    return int(told - ours < TARGET_DB)


if __name__ == "__main__":
    sys.exit(main())
