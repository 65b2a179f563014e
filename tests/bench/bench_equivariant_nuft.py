"""Spectra of simplices beside the formula as it is printed: in a loop, and at once in complex arithmetic, as the follow-up's code does it.

One thread, processor time, the minimum of the repeats; ours and the peer run in turns on the same simplices in general position, and must
agree. The peer is wrong where two ``s`` coincide; that costs us time, not it. Memory is the peak of a fresh process, above what it held
before the call, under Linux. Exits with 1 when a ratio is under its target or two
results differ::

    python tests/bench/bench_equivariant_nuft.py
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from cnnkit_equivariant.simplex import cone, content, spectrum, wave_vectors
from torch import Tensor
from turns import in_turns, plain

LOOP, MEMORY, SOLID = 50.0, 5.0, 2.0
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Case:
    """Simplices and a grid.

    Args:
        name: What they are.
        count: How many.
        order: Vertices of one, less one.
        size: Sides of the grid.
        extent: How far the vertices of one lie from each other at most.
        target: Least ratio of the time at once to ours.
    """

    name: str
    count: int
    order: int
    size: tuple[int, ...]
    extent: float
    target: float = 2.0

    def corners(self, count: int | None = None) -> Tensor:
        """Return the simplices, at random places."""
        rng, dims = torch.Generator().manual_seed(0), len(self.size)
        shape = (count or self.count, self.order + 1, dims)
        middle = torch.rand(shape[0], 1, dims, dtype=torch.float64, generator=rng)
        return middle + self.extent * (torch.rand(shape, dtype=torch.float64, generator=rng) - 0.5)


CASES = (
    Case("segments 1000, 32 x 32", 1000, 1, (32, 32), 0.1),
    Case("triangles 1000, 32 x 32", 1000, 2, (32, 32), 0.1),
    Case("triangles 300 in space, 20 cubed", 300, 2, (20, 20, 20), 0.2),
    Case("tetrahedra 300, 20 cubed", 300, 3, (20, 20, 20), 0.2, 1.5),
)


def at_once(corners: Tensor, size: tuple[int, ...]) -> Tensor:
    """The formula for all simplices and frequencies together; where two ``s`` coincide it divides by zero, and 0 stands there."""
    order, dims = corners.shape[1] - 1, corners.shape[2]
    waves = wave_vectors(size, (1.0,) * dims, dtype=corners.dtype).reshape(-1, dims)
    phases = corners @ waves.T
    total = torch.zeros_like(phases[:, 0], dtype=torch.complex128)
    for here in range(order + 1):
        product = torch.ones_like(phases[:, 0])
        for there in range(order + 1):
            if there != here:
                product = product * (phases[:, here] - phases[:, there])
        total = total + torch.exp(-1j * phases[:, here]) / torch.where(product == 0, math.inf, product)
    measure = content(corners)
    total = 1j**order * math.factorial(order) * measure[:, None] * total
    total[:, 0] = measure
    return total.sum(0).reshape(*size[:-1], -1)


def timed(runs: tuple[Callable[[], Tensor], Callable[[], Tensor]], repeats: int) -> tuple[list[float], float]:
    """Return the seconds of both, and how far their results are apart, of the largest value."""
    seconds, results = in_turns(runs, repeats)
    return seconds, float((results[0] - results[1]).abs().max() / results[1].abs().max())


def show(name: str, runs: tuple[Callable[[], Tensor], Callable[[], Tensor]], target: float, repeats: int) -> bool:
    """Print one line; return whether target and agreement were met."""
    seconds, apart = timed(runs, repeats)
    ratio = seconds[1] / seconds[0]
    wanted = f">= {target:g}" if target else ""
    print(f"{name:58} {seconds[0] * 1e3:9.1f} {seconds[1] * 1e3:9.1f} {ratio:8.1f} {wanted:7} {apart:.1e}", flush=True)
    return ratio >= target and apart < TOLERANCE


def peak(which: str, case: int) -> float:
    """Return the MiB that a call needs in a process of its own."""
    found = subprocess.run([sys.executable, __file__, "--memory", which, str(case)], capture_output=True, text=True, check=True)
    return float(found.stdout)


def memory(which: str, case: Case) -> None:
    """Print by how many MiB a call, or a call with its gradient, exceeds what the process held."""

    def status(field: str) -> float:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(field)) / 1024

    torch.set_num_threads(1)
    corners = case.corners().requires_grad_(which.endswith("gradient"))
    small = case.corners(200).requires_grad_(which.endswith("gradient"))

    def run(some: Tensor) -> None:
        found = at_once(some, case.size) if which.startswith("peer") else spectrum(some, size=case.size)[0]
        if found.requires_grad:
            found.abs().square().sum().backward()

    run(small)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # The peak starts again from here.
    run(corners)
    print(status("VmHWM") - before)


def slope(draw: Callable[[Tensor], Tensor], corners: Tensor) -> Callable[[], Tensor]:
    """Return a function that computes the derivative of a spectrum's energy by the vertices."""

    def run() -> Tensor:
        leaf = corners.clone().requires_grad_()
        (found,) = torch.autograd.grad(draw(leaf).abs().square().sum(), leaf)
        return found

    return run


def main() -> int:
    """Run the pairings, print the tables, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", nargs=2, metavar=("WHICH", "CASE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        memory(options.memory[0], CASES[int(options.memory[1])])
        return 0
    torch.set_num_threads(1)
    loop = plain("equivariant", "simplex")
    met = []
    print(f"{'float64':58} {'ours ms':>9} {'peer ms':>9} {'ratio':>8} {'target':7} largest difference, of the largest value")
    for case in (CASES[1], CASES[3]):
        few, sides = case.corners(100), (16, 16) if len(case.size) == 2 else (8, 8, 8)

        def ours(few: Tensor = few, sides: tuple[int, ...] = sides) -> Tensor:
            return spectrum(few, size=sides)[0]

        def peer(few: Tensor = few, sides: tuple[int, ...] = sides) -> Tensor:
            return torch.from_numpy(loop.spectrum(few.numpy(), [1.0] * len(few), sides))

        ours()
        met.append(show(f"100 {case.name.split()[0]}, {' x '.join(map(str, sides))}: a loop", (ours, peer), LOOP, 1))
    for case in CASES:
        corners, size = case.corners(), case.size

        def draw(some: Tensor, size: tuple[int, ...] = size) -> Tensor:
            return spectrum(some, size=size)[0]

        def peer_draw(some: Tensor, size: tuple[int, ...] = size) -> Tensor:
            return at_once(some, size)

        pair = (partial(draw, corners), partial(peer_draw, corners))
        met.append(show(f"{case.name}: at once", pair, case.target, options.repeats))
        show(f"{case.name}: float32, and float64", (partial(draw, corners.float()), pair[0]), 0.0, options.repeats)
        show(f"{case.name}: gradient", (slope(draw, corners), slope(peer_draw, corners)), 0.0, 2)
    angle = 2 * torch.pi * torch.arange(1000, dtype=torch.float64) / 1000
    points = 0.5 + 0.3 * torch.stack([angle.cos(), angle.sin()], 1)
    outline = torch.stack([points, points.roll(-1, 0)], 1)
    joined, signs = cone(outline)
    solid = (lambda: spectrum(outline, size=(32, 32), solid=True)[0], lambda: spectrum(joined, signs, size=(32, 32))[0])
    met.append(show("polygon of 1000 sides, 32 x 32: an auxiliary vertex", solid, SOLID, options.repeats))
    print(f"\n{'MiB':58} {'ours':>9} {'at once':>9} {'ratio':>8} target")
    for number, case in ((1, CASES[1]), (3, CASES[3])):
        for which in ("", " gradient"):
            mine, theirs = peak(f"ours{which}", number), peak(f"peer{which}", number)
            print(f"{case.name + which:58} {mine:9.0f} {theirs:9.0f} {theirs / max(mine, 0.1):8.1f} >= {MEMORY:g}", flush=True)
            met.append(theirs / max(mine, 0.1) >= MEMORY)
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())
