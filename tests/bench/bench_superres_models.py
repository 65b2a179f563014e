"""Time every network of the superres plugin against the straightforward version of its paper's code: same weights, one thread.

Ours is as it infers: in evaluation, merged by :func:`cnnkit.layers.fuse.fuse`. The peers are those of ``tests/plugins/superres/plain``, in
evaluation, each as its code infers. The two take turns, who comes first alternates, and the medians count. Exits with 1 when a
ratio is above the target or two outputs differ; a network without a peer is listed::

    python tests/bench/bench_superres_models.py --only imdn --scale 2
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from cnnkit.backbones import create_model
from cnnkit.layers.fuse import fuse
from cnnkit.plugin import get
from cnnkit.weights import load_weights
from torch import Tensor, nn
from turns import plain

TARGET = 1.0
TOLERANCE = 1e-5
PEERS: dict[str, tuple[str, Callable[[Any, int], nn.Module]]] = {
    "a2n": ("a2n", lambda code, scale: code.PlainA2N(scale)),
    "a2n_m": ("a2n", lambda code, scale: code.PlainA2N(scale, 1)),
    "carn": ("carn", lambda code, scale: code.create(f"carn_x{scale}")),
    "carn_m": ("carn", lambda code, scale: code.create(f"carn_m_x{scale}")),
    "cfsr": ("cfsr", lambda code, scale: code.PlainCFSR(scale).merge()),
    "dscf": ("span", lambda code, scale: code.PlainSPAN(scale, 26, True)),
    "espcn": ("espcn", lambda code, scale: code.PlainESPCN(scale)),
    "imdn": ("imdn", lambda code, scale: code.create(f"imdn_x{scale}")),
    "imdn_as": ("imdn", lambda code, scale: code.create(f"imdn_as_x{scale}")),
    "scnet_b": ("scnet", lambda code, scale: code.PlainSCNet(scale, depth=64, shuffle=True)),
    "scnet_l": ("scnet", lambda code, scale: code.PlainSCNet(scale, depth=128, shuffle=True)),
    "scnet_t": ("scnet", lambda code, scale: code.PlainSCNet(scale)),
    "scnet_t_ps": ("scnet", lambda code, scale: code.PlainSCNet(scale, shuffle=True)),
    "span": ("span", lambda code, scale: code.PlainSPAN(scale, 52)),
    "span_s": ("span", lambda code, scale: code.PlainSPAN(scale, 48)),
    "tcsr_b": ("tcsr", lambda code, scale: code.PlainTCSR(scale)),
    "tcsr_l": ("tcsr", lambda code, scale: code.PlainTCSR(scale, depth=23)),
}
"""File of the straightforward version, and how it is built for a scale, by our names."""
UNITS = {"a2n": 255.0, "a2n_m": 255.0}
"""White in the colours that a peer works with, where it is not 1."""
DIVISORS = {"tcsr_b": 2, "tcsr_l": 2}
"""How many times smaller the sides are for a peer that is slow: TCSR's gathers the 121 neighbours of each pixel."""


def chosen(scale: int, only: list[str]) -> tuple[list[str], list[str]]:
    """Return the networks with that scale whose name holds one of the words: those that have a peer, and the others."""
    ending = f"_x{scale}"
    names = sorted(name.partition("/")[2].removesuffix(ending) for name in get("superres").models if name.endswith(ending))
    names = [name for name in names if any(word in name for word in only)]
    return [name for name in names if name in PEERS], [name for name in names if name not in PEERS]


def pair(name: str, scale: int) -> tuple[Any, nn.Module]:
    """Return our network, merged, and the peer, with the same weights."""
    file, build = PEERS[name]
    torch.manual_seed(0)
    theirs = build(plain("superres", file), scale).eval()
    ours: Any = create_model(f"superres/{name}_x{scale}").eval()
    load_weights(ours, theirs.state_dict())
    return fuse(ours, torch.rand(1, ours.in_chans, 8, 8)), theirs


def turns(ours: nn.Module, theirs: nn.Module, x: Tensor, unit: float, repeats: int) -> tuple[float, float, float]:
    """Return the median seconds of each, and the greatest difference of their outputs in parts of the output's scale."""
    runs = ((ours, x), (theirs, x * unit))
    outputs = [model(given) for model, given in runs]  # Warm-up: the first pass allocates.
    expected = outputs[1] / unit
    difference = float((outputs[0] - expected).abs().max() / expected.abs().max())
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats):
        for which in (0, 1) if repeat % 2 else (1, 0):
            model, given = runs[which]
            start = time.perf_counter()
            model(given)
            seconds[which].append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1]), difference


def main() -> int:
    """Time the networks and print one table of ratios; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="sides of the small picture")
    parser.add_argument("--scale", type=int, default=4, choices=(2, 3, 4))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default=[""], type=lambda text: text.split(","), metavar="NAME,...", help="parts of the names to run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names, without = chosen(options.scale, options.only)
    print(f"x{options.scale}, float32, one thread; seconds, medians of {options.repeats} interleaved repeats")
    print(f"{'network':12} {'LR':>9} {'ours':>8} {'peer':>8} {'ratio':>6}  difference of the outputs")
    ratios: dict[str, float] = {}
    unequal = []
    for name in names:
        ours, theirs = pair(name, options.scale)
        side = options.size // DIVISORS.get(name, 1)
        x = torch.rand(1, ours.in_chans, side, side, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            mine, their, difference = turns(ours, theirs, x, UNITS.get(name, 1.0), options.repeats)
        ratios[name] = mine / their
        print(f"{name:12} {f'{side}x{side}':>9} {mine:8.3f} {their:8.3f} {ratios[name]:6.2f}  {difference:.1e}", flush=True)
        if not difference <= TOLERANCE:
            unequal.append(name)
    if without:
        print(f"without a straightforward version: {', '.join(without)}")
    if unequal:
        print(f"DIFFERENT OUTPUTS: {', '.join(unequal)}")
    if not ratios:
        return 1
    slow = [name for name, ratio in ratios.items() if ratio > TARGET]
    mean = math.exp(statistics.fmean(map(math.log, ratios.values())))
    print(
        f"geometric mean {mean:.3f}, largest {max(ratios.values()):.2f} (target {TARGET})"
        + (f"; missed: {', '.join(slow)}" if slow else "")
    )
    return int(bool(slow or unequal))


if __name__ == "__main__":
    sys.exit(main())
