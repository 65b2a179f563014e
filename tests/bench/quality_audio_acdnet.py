"""Train ACDNet on ten synthetic classes, compress it, and compare every network on the way with logistic regression on mean log-mel.

The recordings have a random gain (up to 6 dB) and noise at 20 dB; those that are measured were never trained on. One thread.
By default the network has three eighths of the published widths and hears half a second, to be done in minutes;
``--width 8 --length 30225`` is the paper's.

Exit status 1 if the integers lose 5 points or more against the network that was given, save less than 97 % of its bytes or parameters,
do not beat the regression, or the C source has half a megabyte::

    python tests/bench/quality_audio_acdnet.py --out report
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cnnkit.engine.sampling import item_rng
from cnnkit_audio.compress.baseline import Constant, MeanLogMel
from cnnkit_audio.compress.c_export import write_c
from cnnkit_audio.compress.pipeline import Plan, compress
from cnnkit_audio.compress.report import Report
from cnnkit_audio.compress.training import refresh_statistics, stream, train
from cnnkit_audio.models._base import Tagger
from cnnkit_audio.models.acdnet import ACDNet
from cnnkit_audio.synth.classes import CLASSES, Spoiling, make

LABELS = tuple(CLASSES)
RATE = 20_000


class Data:
    """Clips for training and for measuring.

    Args:
        length: Samples of a clip.
        each: Recordings of each class; a quarter as many more are held out.
        batch: Clips of a step.
    """

    def __init__(self, length: int, each: int, batch: int) -> None:
        spoiling = Spoiling(snr_db=20, gain_db=6)
        self.length, self.batch, self.sounds, self.labels = length, batch, [], []
        for label, kind in enumerate(LABELS):
            for number in range(each + each // 4):
                rng = np.random.default_rng((label, number))
                sound = make(kind, rng, 1.4 * length / RATE, RATE)
                self.sounds.append(spoiling.apply(sound, rng, RATE))
                self.labels.append(label)
        place = np.arange(len(self.labels)) % (each + each // 4)
        self.train, self.test = np.flatnonzero(place < each), np.flatnonzero(place >= each)

    def epoch(self, number: int) -> Iterator[dict[str, torch.Tensor]]:
        """Yield random crops of the recordings to train on, with a gain of up to 6 dB."""
        order = item_rng(0, number, 0).permutation(self.train)
        for start in range(0, len(order) - self.batch + 1, self.batch):
            rng = item_rng(0, number, start + 1)
            yield self._batch(order[start : start + self.batch], rng)

    def _batch(self, places: np.ndarray, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        pieces = []
        for place in places:
            at = int(rng.integers(len(self.sounds[place]) - self.length + 1))
            pieces.append(self.sounds[place][at : at + self.length] * 10 ** (rng.uniform(-6, 6) / 20))
        labels = torch.tensor([self.labels[place] for place in places])
        sound = torch.from_numpy(np.stack(pieces).astype(np.float32)).clamp(-1, 1)
        return {"sound": sound[:, None], "target": F.one_hot(labels, len(LABELS)).float()}

    def accuracy(self, model: Tagger) -> float:
        """Return the share of held-out recordings whose middle a network names."""
        right = 0
        with torch.no_grad():
            for places in np.array_split(self.test, max(1, len(self.test) // 25)):
                starts = [(len(self.sounds[place]) - self.length) // 2 for place in places]
                x = np.stack([self.sounds[place][at : at + self.length] for place, at in zip(places, starts, strict=True)])
                found = model(torch.from_numpy(x)[:, None]).argmax(1).numpy()
                right += int((found == np.array([self.labels[place] for place in places])).sum())
        return right / len(self.test)


def loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the cross-entropy."""
    return F.cross_entropy(model(batch["sound"]), batch["target"])


def widths(first: int) -> list[int]:
    """Return ACDNet's widths at another first width; the published one is 8."""
    return [first * factor for factor in (1, 8, 4, 8, 8, 16, 16, 32, 32, 64, 64)] + [len(LABELS)]


def main() -> int:
    """Train, compress, print; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=3)
    parser.add_argument("--length", type=int, default=10_000)
    parser.add_argument("--each", type=int, default=60, help="recordings of each class")
    parser.add_argument("--steps", type=int, default=250, help="of the first training, with 24 clips each")
    parser.add_argument("--keep", type=float, default=0.03)
    parser.add_argument("--final-steps", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    started = time.process_time()
    data = Data(options.length, options.each, 24)
    made = time.process_time()
    model = ACDNet(num_classes=len(LABELS), channels=widths(options.width), length=options.length)
    batches = stream(data.epoch)
    train(model, batches, loss, steps=options.steps, lr=3e-3)
    refresh_statistics(model, [next(batches) for _ in range(8)])
    trained = time.process_time()
    plan = Plan(
        keep=options.keep,
        rounds=options.rounds,
        sparse_steps=25,
        round_steps=12,
        rank_batches=4,
        final_steps=options.final_steps,
        distil=True,
    )
    found = compress(model, data.epoch, loss, data.accuracy, plan, say=lambda text: print(text, file=sys.stderr, flush=True))
    with tempfile.TemporaryDirectory() as folder:
        files = write_c(found.quantised, options.out or Path(folder), name="ears", labels=LABELS, sample_rate=RATE)
        size = sum(file.stat().st_size for file in files)
    regression = data.accuracy(MeanLogMel(model).fit([batch for number in range(3) for batch in data.epoch(number)]))
    often = data.accuracy(Constant(model, torch.full((len(LABELS),), 1 / len(LABELS))))
    baselines = {"logistic regression on the mean log-mel spectrum": regression, "always the same label": often}
    report = Report(found.steps, baselines, "accuracy", len(data.test), found.quantised.arena, size)
    print(report.markdown())
    if options.out:
        report.write(options.out)
    print(
        f"sounds {made - started:.0f} s, first training {trained - made:.0f} s, pipeline {time.process_time() - trained:.0f} s of one core"
    )
    given, integers = found.steps[0], next(step for step in found.steps if step.name == "8 bits")
    targets = {
        "accuracy lost, in points": (100 * (given.figure - integers.figure), "<", 5.0),
        "parameters left": (integers.size.parameters / given.size.parameters, "<=", 0.03),
        "bytes left": (integers.size.bytes / given.size.bytes, "<=", 0.03),
        "accuracy above the regression": (integers.figure - regression, ">", 0.0),
        "C source in bytes": (float(size), "<", 500_000.0),
    }
    missed = [name for name, (value, sign, bound) in targets.items() if not _holds(value, sign, bound)]
    for name, (value, sign, bound) in targets.items():
        print(f"{name}: {value:.4g} ({sign} {bound:g}){' missed' if name in missed else ''}")
    return int(bool(missed))


def _holds(value: float, sign: str, bound: float) -> bool:
    return {"<": value < bound, "<=": value <= bound, ">": value > bound}[sign]


if __name__ == "__main__":
    sys.exit(main())
