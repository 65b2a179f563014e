"""Digits on the sphere: trained without (NR) and with (R) rotations, tested on both, beside a plain CNN of equal size.

The digits of scikit-learn lie on the sphere as the plugin presents them; the plain network sees the same picture of rings and longitudes.
Both networks see the same batches. One thread, a few minutes of the processor. Exit status 1 if the spherical network that never saw a
rotation loses more than a few percent under them, or does not beat the plain one there by a wide margin::

    python tests/bench/quality_equivariant_sphere.py
    python tests/bench/quality_equivariant_sphere.py --weather
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from cnnkit.count import count_params
from cnnkit_equivariant.classification.data import digits, divide
from cnnkit_equivariant.models.spherical_cnn import SphericalCNN, SphericalUNet
from cnnkit_equivariant.sphere.projection import Turns, grid_directions, present, turn
from cnnkit_equivariant.sphere.transform import SphereTransform
from torch import Tensor, nn

SIZE = 20
LOST = 0.03
"""Accuracy that the spherical network may lose from NR/NR to NR/R."""
BEATEN = 0.3
"""By how much it has to beat the plain network at NR/R."""
SKILL = 0.5
"""Share of persistence's error that the network from fields to fields may have."""


def spherical() -> nn.Module:
    """The network of the paper with three blocks."""
    return SphericalCNN(widths=(8, 16, 24), bandwidths=(10, 10, 5), knots=(5, 5, 4))


def planar(widths: tuple[int, ...] = (24, 48, 104)) -> nn.Module:
    """The plain network of the paper's code: 3x3 convolutions, normalization, ReLU, means over 2x2, with about as many parameters."""
    layers: list[nn.Module] = []
    before = 1
    for index, width in enumerate(widths):
        pool = [nn.AvgPool2d(2)] if index else []
        layers += [*pool, nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


def batches(x: Tensor, y: Tensor, turns: Turns, epochs: int, seed: int, batch: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield fields and classes; the turns are new in every epoch."""
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        for rows in rng.permutation(len(x))[: len(x) // batch * batch].reshape(-1, batch):
            yield present(x[rows], SIZE, turns=turns, rng=rng), y[rows]


def train(model: nn.Module, x: Tensor, y: Tensor, turns: Turns, epochs: int) -> nn.Module:
    """Train by AdamW with a one-cycle rate."""
    steps = epochs * (len(x) // 32)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    model.train()
    for fields, targets in batches(x, y, turns, epochs, seed=0):
        optimizer.zero_grad()
        F.cross_entropy(model(fields), targets).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor, turns: Turns) -> float:
    """Return the share of right answers, rotated digits each in two ways."""
    rng, right = np.random.default_rng(1), []
    for _ in range(2 if turns == "any" else 1):
        fields = present(x, SIZE, turns=turns, rng=rng)
        right.append((torch.cat([model(part) for part in fields.split(64)]).argmax(1) == y).double().mean().item())
    return float(np.mean(right))


def digits_table(epochs: int) -> bool:
    """Print the NR/R table; return whether the margins were met."""
    pictures, classes = digits()
    rows = {split: divide(classes, split) for split in ("train", "test")}
    x, y = pictures[rows["train"]], torch.from_numpy(classes[rows["train"]])
    x_test, y_test = pictures[rows["test"]], torch.from_numpy(classes[rows["test"]])
    found: dict[str, dict[str, float]] = {}
    print(f"{len(x)} digits to train on, {len(x_test)} to test, {SIZE} rings, {epochs} epochs\n")
    print("| network | parameters | NR/NR | NR/R | R/NR | R/R | s |\n|---|---|---|---|---|---|---|")
    for name, build in (("spherical", spherical), ("plain", planar)):
        found[name], start = {}, time.process_time()
        for trained, turns in (("NR", "none"), ("R", "any")):
            torch.manual_seed(0)
            model = train(build(), x, y, turns, epochs)  # type: ignore[arg-type]
            for tested, test_turns in (("NR", "none"), ("R", "any")):
                found[name][f"{trained}/{tested}"] = accuracy(model, x_test, y_test, test_turns)  # type: ignore[arg-type]
        cells = " | ".join(f"{100 * value:.1f}" for value in found[name].values())
        print(f"| {name} | {count_params(build())} | {cells} | {time.process_time() - start:.0f} |", flush=True)
    ours, theirs = found["spherical"], found["plain"]
    return ours["NR/NR"] - ours["NR/R"] <= LOST and ours["NR/R"] - theirs["NR/R"] >= BEATEN


def advected(count: int, rng: np.random.Generator, lmax: int = 8, rings: int = 20) -> tuple[Tensor, Tensor]:
    """Return states and what becomes of them: fields that a wind around a random axis carries along, fastest at its equator.

    The input has the field and the stream function of the wind, which says where the axis is; the output has the field a step later.
    """
    grid = SphereTransform(lmax, rings=rings, longitudes=2 * rings, spins=(0,), poles=False).double()
    directions = grid_directions(rings, 2 * rings, poles=False).reshape(-1, 3)
    noise = torch.from_numpy(rng.normal(size=(count, 1, rings, 2 * rings)))
    smooth = torch.exp(-(torch.arange(lmax + 1.0)[:, None] ** 2) / 16)
    coefficients = grid(noise) * smooth
    coefficients = coefficients / coefficients.abs().square().sum((1, 2, 3), keepdim=True).sqrt() * (4 * np.pi) ** 0.5
    state, axes = grid.inverse(coefficients).real, turn("any", count, rng)[:, :, 2]
    streams, later = [], []
    for axis, found in zip(axes, coefficients[:, 0].numpy(), strict=True):
        height = directions @ axis
        angle = 0.6 * (1 - 0.5 * height**2)
        # Where the air came from: turned backwards about the axis (Rodrigues' formula).
        along, across = height[:, None] * axis, np.cross(axis, directions)
        origin = along + np.cos(angle)[:, None] * (directions - along) - np.sin(angle)[:, None] * across
        later.append(evaluate(found, origin).reshape(rings, -1))
        streams.append(height.reshape(rings, -1))
    x = torch.stack([state[:, 0], torch.from_numpy(np.stack(streams))], 1)
    return x.float(), torch.from_numpy(np.stack(later))[:, None].float()


def evaluate(coefficients: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return a real function of spin 0 at points."""
    from cnnkit_equivariant.sphere.transform import harmonics

    return np.einsum("plm,lm->p", harmonics(len(coefficients) - 1, points), coefficients, optimize=True).real


def weather_table(steps: int) -> bool:
    """Print the errors of a step of advection; return whether the margin over persistence was met."""
    rng = np.random.default_rng(0)
    (x, y), (x_test, y_test) = advected(256, rng), advected(64, rng)
    torch.manual_seed(0)
    model = SphericalUNet(in_chans=2, bandwidth=10, widths=(12, 16), knots=5, poles=False)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    start = time.process_time()
    for _ in range(steps):
        rows = torch.from_numpy(rng.integers(len(x), size=8))
        optimizer.zero_grad()
        F.mse_loss(model(x[rows]), y[rows]).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    area = torch.from_numpy(np.sin((np.arange(x.shape[2]) + 0.5) * np.pi / x.shape[2])).float()[:, None]
    with torch.no_grad():
        ours = ((model(x_test) - y_test).square() * area).mean().sqrt().item()
    still = ((x_test[:, :1] - y_test).square() * area).mean().sqrt().item()
    mean = (y_test.square() * area).mean().sqrt().item()
    print(f"\n| advected fields, error of a step | rmse |\n|---|---|\n| zero | {mean:.3f} |\n| persistence | {still:.3f} |")
    print(f"| SphericalUNet, {count_params(model)} parameters, {time.process_time() - start:.0f} s | {ours:.3f} |", flush=True)
    return ours <= SKILL * still


def main() -> int:
    """Train, measure and print; 1 if a margin is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=250, help="of the network from fields to fields")
    parser.add_argument("--weather", action="store_true", help="the fields that a wind carries, alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    met = [] if options.weather else [digits_table(options.epochs)]
    met.append(weather_table(options.steps))
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())
