"""CFSR and A2N against the straightforward versions of their papers' code: seconds of a forward pass, ratios, and whether they agree.

Same weights, one thread, evaluation; ours as :func:`cnnkit.layers.fuse.fuse` leaves it, the peer with its own merging done.
They run in turns, the minimum of the repeats counts. Exits with 1 when ours is slower than the target or two outputs differ.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType

import torch
from cnnkit.backbones import create_model
from cnnkit.layers.fuse import fuse
from cnnkit.weights import load_weights
from torch import nn

TARGET = 1.0
TOLERANCE = 1e-5
PLAIN = Path(__file__).parent.parent / "plugins" / "superres" / "plain"


def plain(name: str) -> ModuleType:
    """Import a straightforward version."""
    spec = importlib.util.spec_from_file_location(f"plain_{name}", PLAIN / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def peers() -> dict[str, tuple[nn.Module, float]]:
    """Return by our names the peer of each network and the largest value of the colours that it works with."""
    cfsr, a2n = plain("cfsr"), plain("a2n")
    found: dict[str, tuple[nn.Module, float]] = {}
    for scale in (2, 3, 4):
        found[f"cfsr_x{scale}"] = cfsr.PlainCFSR(scale).merge().eval(), 1.0
        found[f"a2n_x{scale}"] = a2n.PlainA2N(scale).eval(), 255.0
        found[f"a2n_m_x{scale}"] = a2n.PlainA2N(scale, 1).eval(), 255.0
    return found


def main() -> int:
    """Run the pairs, print the table, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="a part of the names to run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.rand(1, 3, args.size, args.size, generator=torch.Generator().manual_seed(0))
    print(f"LR {args.size} x {args.size}, one thread, minimum of {args.repeats} interleaved repeats")
    print(f"{'network':12} {'ours s':>8} {'peer s':>8} {'ratio':>6}  difference of the outputs")
    missed = []
    for name, (theirs, top) in peers().items():
        if args.only not in name:
            continue
        ours = create_model(f"superres/{name}").eval()
        load_weights(ours, theirs.state_dict())
        fuse(ours, x[..., :8, :8])
        seconds, outputs = [float("inf")] * 2, [x, x]
        with torch.inference_mode():
            for _ in range(args.repeats):
                for which, (model, unit) in enumerate(((ours, 1.0), (theirs, top))):
                    start = time.perf_counter()
                    outputs[which] = model(x * unit) / unit
                    seconds[which] = min(seconds[which], time.perf_counter() - start)
        difference = float((outputs[0] - outputs[1]).abs().max() / outputs[1].abs().max())
        ratio = seconds[0] / seconds[1]
        print(f"{name:12} {seconds[0]:8.3f} {seconds[1]:8.3f} {ratio:6.2f}  {difference:.1e}", flush=True)
        if ratio > TARGET:
            missed.append(f"{name}: {ratio:.2f}x the time, target {TARGET:g}x")
        if difference > TOLERANCE:
            missed.append(f"{name}: the outputs differ by {difference:.1e}")
    print("\n".join(f"MISSED {line}" for line in missed) or f"every network takes at most {TARGET:g}x the time of its peer, and agrees")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
