"""SCNet, TCSR and the spatial shift against the straightforward versions: seconds of a forward pass, ratios, and whether they agree.

Same weights, one thread, evaluation; there is nothing to merge. The shift is measured against the fixed depthwise convolution that it
equals, and against the padded copy and slices of the official code. TCSR has three blocks here, for its peer gathers every window by
itself. They run in turns, the minimum of the repeats counts. Exits with 1 when ours is slower than the target or two outputs differ.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from cnnkit.layers.spatial_shift import SpatialShift
from cnnkit.weights import load_weights
from cnnkit_superres.models.scnet import STEPS, SCNet
from cnnkit_superres.models.tcsr import TCSR
from torch import Tensor, nn

TARGET = 1.0
TOLERANCE = 1e-5
PLAIN = Path(__file__).parent.parent / "plugins" / "superres" / "plain"

Pair = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], tuple[int, ...]]


def plain(name: str) -> ModuleType:
    """Import a straightforward version."""
    spec = importlib.util.spec_from_file_location(f"plain_{name}", PLAIN / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def depthwise(channels: int) -> nn.Module:
    """Return the depthwise convolution with a single one in each kernel that the shift equals."""
    layer = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        for index, (down, right) in enumerate(STEPS):
            part = slice(index * channels // 8, (index + 1) * channels // 8)
            layer.weight[part, 0, 1 - down, 1 - right] = 1
    return layer


def pairs(size: int) -> dict[str, Pair]:
    """Return by name ours, the peer and the shape of the input."""
    scnet, tcsr = plain("scnet"), plain("tcsr")
    picture, features = (1, 3, size, size), (1, 64, size, size)
    found: dict[str, Pair] = {
        "shift, depthwise": (SpatialShift(STEPS), depthwise(64), features),
        "shift, padded copy": (SpatialShift(STEPS), scnet.PlainShift(), features),
    }
    for scale in (2, 3, 4):
        for shuffle in (False, True):
            peer, ours = scnet.PlainSCNet(scale, shuffle=shuffle).eval(), SCNet(scale=scale, pixel_shuffle=shuffle).eval()
            load_weights(ours, peer.state_dict())
            found[f"scnet_t{'_ps' if shuffle else ''}_x{scale}"] = ours, peer, picture
    peer, network = tcsr.PlainTCSR(2, depth=3).eval(), TCSR(scale=2, depth=3).eval()
    load_weights(network, peer.state_dict())
    found["tcsr_x2, 3 blocks"] = network, peer, (1, 3, size // 2, size // 2)
    return found


def main() -> int:
    """Run the pairs, print the table, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="a part of the names to run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"one thread, minimum of {args.repeats} interleaved repeats")
    print(f"{'pair':20} {'input':>17} {'ours s':>8} {'peer s':>8} {'ratio':>6}  difference of the outputs")
    missed = []
    for name, (ours, theirs, shape) in pairs(args.size).items():
        if args.only not in name:
            continue
        x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        seconds, outputs = [float("inf")] * 2, [x, x]
        with torch.inference_mode():
            for _ in range(args.repeats):
                for which, run in enumerate((ours, theirs)):
                    start = time.perf_counter()
                    outputs[which] = run(x)
                    seconds[which] = min(seconds[which], time.perf_counter() - start)
        difference = float((outputs[0] - outputs[1]).abs().max() / outputs[1].abs().max())
        ratio = seconds[0] / seconds[1]
        print(f"{name:20} {'x'.join(map(str, shape)):>17} {seconds[0]:8.4f} {seconds[1]:8.4f} {ratio:6.2f}  {difference:.1e}", flush=True)
        if ratio > TARGET:
            missed.append(f"{name}: {ratio:.2f}x the time, target {TARGET:g}x")
        if difference > TOLERANCE:
            missed.append(f"{name}: the outputs differ by {difference:.1e}")
    print("\n".join(f"MISSED {line}" for line in missed) or f"everything takes at most {TARGET:g}x the time of its peer, and agrees")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
