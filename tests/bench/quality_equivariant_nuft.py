"""Train NUFT-CNN on outlines of digits, and compare it with what sees pixels and with what sees vertices.

The test digits of scikit-learn, one training set for all, one thread:

* logistic regression on the raw 8 x 8 pixels, which is the dumbest method that knows more than an outline tells;
* the same convolutions on a binary picture that is filled by the same outline;
* a network that pools over segments, which depends on where an outline has many of them.

Then the test outlines are sampled otherwise: pieces in the left half are cut into eight, and all are shuffled. The shapes are the same, so
NUFT-CNN has to say the same. Exit status 1 if it is not above 95 %, or what it says of a shape changes by more than rounding::

    python tests/bench/quality_equivariant_nuft.py
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from cnnkit_equivariant.classification.data import digits, divide
from cnnkit_equivariant.classification.outlines import LEVEL, present
from cnnkit_equivariant.models.nuft_cnn import NUFTCNN
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (16, 32, 64)
SIZE = 28
LEAST, CHANGE = 0.95, 1e-3


class Segments(nn.Module):
    """Features of each segment, the mean over them, a classifier: what a set of vertices is usually given to."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of ``(B, S, 2, 2)``."""
        middle, along = x.mean(2) - 0.5, x[:, :, 1] - x[:, :, 0]
        present = (along.abs().sum(-1, keepdim=True) > 0).float()
        found = self.each(torch.cat([4 * middle, 30 * along], -1)) * present
        return self.head(found.sum(1) / present.sum(1).clamp_min(1))


def resampled(x: Tensor) -> Tensor:
    """Cut the segments that begin in the left half into eight, and shuffle all."""
    rng, rows = torch.Generator().manual_seed(0), []
    steps = torch.linspace(0, 1, 9)[:, None]
    for row in x:
        left = row[:, 0, 1] < 0.5
        places = row[left, :1] + steps * (row[left, 1:] - row[left, :1])
        pieces = torch.cat([row[~left], torch.stack([places[:, :-1], places[:, 1:]], 2).flatten(0, 1)])
        rows.append(pieces[torch.randperm(len(pieces), generator=rng)])
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def filled(pictures: Tensor) -> Tensor:
    """The pictures that the outlines were traced on, as black and white, in the same margin."""
    side = round(SIZE / 1.2)
    fine = F.interpolate(pictures, (side, side), mode="bicubic", align_corners=False)
    before = (SIZE - side) // 2
    return F.pad((fine > LEVEL).float(), (before, SIZE - side - before) * 2)


def train(model: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor, target: Tensor, *, epochs: int, lr: float) -> float:
    """Train by Adam with one cycle; return the seconds of the processor."""
    rng, batch = torch.Generator().manual_seed(0), 64
    steps = epochs * (len(x) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    start = time.process_time()
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=rng)[: len(x) // batch * batch].split(batch):
            optimizer.zero_grad()
            F.cross_entropy(forward(x[rows]), target[rows]).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    return time.process_time() - start


def main() -> int:
    """Train, measure and print; 1 if a figure is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from sklearn.linear_model import LogisticRegression

    torch.set_num_threads(1)
    pictures, targets = digits()
    parts = {split: divide(targets, split) for split in ("train", "val", "test")}
    fit, test = np.concatenate([parts["train"], parts["val"]]), parts["test"]
    target, truth = torch.from_numpy(targets[fit]), torch.from_numpy(targets[test])
    outlines = present(pictures, SIZE, turns="none", rng=np.random.default_rng(0))
    other = resampled(outlines[test])

    def share(logits: Tensor) -> float:
        return float((logits.argmax(1) == truth).float().mean())

    def network() -> NUFTCNN:
        torch.manual_seed(options.seed)
        return NUFTCNN(num_classes=10, size=SIZE, widths=WIDTHS)

    def classify(model: NUFTCNN) -> Callable[[Tensor], Tensor]:
        return lambda grids: model.head(model.drop(model.trunk(grids)))

    rows: list[tuple[str, float, float, float, float]] = []
    with torch.no_grad():
        drawn = network().draw(outlines[fit])  # It has no weights: once is enough.
    ours = network()
    seconds = train(ours, classify(ours), drawn, target, epochs=options.epochs, lr=3e-3)
    with torch.no_grad():
        logits, again = ours(outlines[test]), ours(other)
    rows.append(("NUFT-CNN, outline", share(logits), share(again), float((again - logits).abs().max()), seconds))

    binary, plain = filled(pictures), network()
    seconds = train(plain, classify(plain), binary[fit], target, epochs=options.epochs, lr=3e-3)
    with torch.no_grad():
        rows.append(("the same convolutions, filled picture", share(classify(plain)(binary[test])), float("nan"), float("nan"), seconds))

    torch.manual_seed(options.seed)
    pooled = Segments()
    seconds = train(pooled, pooled, outlines[fit], target, epochs=options.epochs, lr=3e-3)
    with torch.no_grad():
        first, second = pooled(outlines[test]), pooled(other)
    rows.append(("mean over segments, outline", share(first), share(second), float((second - first).abs().max()), seconds))

    flat = pictures.flatten(1).numpy()
    regression = LogisticRegression(max_iter=2000).fit(flat[fit], targets[fit])
    rows.append(("logistic regression, raw pixels", float(regression.score(flat[test], targets[test])), float("nan"), float("nan"), 0.0))

    print("| method | test accuracy | resampled | largest change of a logit | s |\n|---|---|---|---|---|")
    for name, accuracy, accuracy_again, change, seconds in rows:
        cells = "| | |" if np.isnan(change) else f"| {100 * accuracy_again:.1f} % | {change:.1e} |"
        print(f"| {name} | {100 * accuracy:.1f} % {cells} {seconds:.0f} |")
    _, accuracy, accuracy_again, change, _ = rows[0]
    met = accuracy > LEAST and accuracy_again > LEAST and change < CHANGE
    print(f"wanted of the first: above {100 * LEAST:g} % on both, logits within {CHANGE:g}: {'met' if met else 'missed'}")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
