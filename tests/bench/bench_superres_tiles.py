"""Tiles: cnnkit's against the usual loop, which keeps a floating-point picture and cuts tiles with a fixed margin (Real-ESRGAN's way).

The loop stands below as ``plain_tiles``. Three tables:

* time, 512 x 512 pixels twice enlarged in tiles of 128: the plain loop pads by its own default of 10 pixels, and by the network's
  receptive radius, where it does the same work as ours and gives the same pixels;
* memory, 2048 x 2048 pixels and a network of two layers, so that what is measured is what is around the network: what the process holds
  at its peak, less what it held before, with the picture and after 64 x 64 pixels of it;
* a forward pass through the wrapper of a foreign network against spandrel's bare module.

Times are of the processor, on one thread, so that a busy machine disturbs them less; ways take turns and the minimum counts. Targets: not
slower than the plain loop at the same overlap, at most half of its memory, at most 1.05 of a bare forward pass.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from cnnkit_superres.foreign import recognise
from cnnkit_superres.receptive import receptive_radius
from cnnkit_superres.tiling import upscale
from torch import Tensor, nn

MAX_TIME, MAX_MEMORY, MAX_FORWARD = 1.0, 0.5, 1.05
TILE = 128


def compact() -> nn.Module:
    """SRVGGNetCompact with eight layers, which sees 10 pixels far."""
    from spandrel.architectures.Compact import Compact

    return Compact(num_feat=32, num_conv=8, upscale=2)


def span() -> nn.Module:
    """SPAN with fewer features, which sees 21 pixels far."""
    from spandrel.architectures.SPAN import SPAN

    return SPAN(num_in_ch=3, num_out_ch=3, feature_channels=24, upscale=2)


def thin() -> nn.Module:
    """A network of two layers: the least that spandrel recognises."""
    from spandrel.architectures.Compact import Compact

    return Compact(num_feat=3, num_conv=0, upscale=2)


def esrgan() -> nn.Module:
    """A small ESRGAN."""
    from spandrel.architectures.ESRGAN import ESRGAN

    return ESRGAN(num_filters=16, num_blocks=1, scale=4)


def swinir() -> nn.Module:
    """A small SwinIR."""
    from spandrel.architectures.SwinIR import SwinIR

    size = {"img_size": 64, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 2], "window_size": 8, "mlp_ratio": 2.0}
    return SwinIR(**size, upscale=2, upsampler="pixelshuffledirect")


def dat() -> nn.Module:
    """A small DAT."""
    from spandrel.architectures.DAT import DAT

    size = {"img_size": 32, "embed_dim": 32, "depth": [2], "num_heads": [2], "split_size": [4, 8]}
    return DAT(**size, expansion_factor=2.0, upscale=2, upsampler="pixelshuffledirect")


def plain_tiles(model: nn.Module, pixels: np.ndarray, scale: int, tile: int, pad: int) -> np.ndarray:
    """Enlarge tile by tile into a floating-point picture, and round it at the end, in place to be frugal."""
    picture = torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255)[None]
    height, width = picture.shape[2:]
    output = picture.new_zeros(1, 3, scale * height, scale * width)
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            bottom, right = min(top + tile, height), min(left + tile, width)
            y, x = max(top - pad, 0), max(left - pad, 0)
            with torch.no_grad():
                out = model(picture[..., y : min(bottom + pad, height), x : min(right + pad, width)])
            out = out[..., scale * (top - y) : scale * (bottom - y), scale * (left - x) : scale * (right - x)]
            output[..., scale * top : scale * bottom, scale * left : scale * right] = out
    return output[0].clamp_(0, 1).mul_(255).round_().byte().permute(1, 2, 0).numpy()


def shortest(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the minimum of the seconds of each, which take turns."""
    best = dict.fromkeys(ways, float("inf"))
    for turn in range(repeats + 1):
        for name, run in ways.items():
            begin = time.process_time()
            run()
            if turn:  # The first turn warms up.
                best[name] = min(best[name], time.process_time() - begin)
    return best


def pixels_of(side: int) -> np.ndarray:
    """Return a random picture."""
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


def compare_time(build: Callable[[], nn.Module], repeats: int) -> bool:
    """Print the row of one network; return whether the target is met."""
    torch.manual_seed(0)
    bare = build().eval()
    network = recognise(bare.state_dict())
    radius, picture = receptive_radius(network), pixels_of(512)
    assert radius is not None
    best = shortest(
        {
            "ours": lambda: upscale(network, picture, tile=TILE),
            "pad 10": lambda: plain_tiles(bare, picture, 2, TILE, 10),
            "exact": lambda: plain_tiles(bare, picture, 2, TILE, radius),
        },
        repeats,
    )
    unequal = {
        pad: float((upscale(network, picture, tile=TILE) != plain_tiles(bare, picture, 2, TILE, pad)).mean()) for pad in (10, radius)
    }
    met = best["ours"] <= MAX_TIME * best["exact"]
    columns = [f"{best[way]:8.2f} {best['ours'] / best[way]:7.2f} {unequal[pad]:9.5f}" for way, pad in (("pad 10", 10), ("exact", radius))]
    print(f"{network.architecture:20} {radius:6d} {best['ours']:8.2f} {' '.join(columns)}  {'met' if met else 'MISSED'}", flush=True)
    return met


def held(field: str) -> float:
    """Return a figure of this process's memory in MiB: ``VmRSS``, what it holds, or ``VmHWM``, the most it held."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def child(way: str, side: int) -> None:
    """Run one way once in this process and print what it added to the memory."""
    torch.manual_seed(0)
    bare = thin().eval()
    network = recognise(bare.state_dict())
    picture = pixels_of(side)
    plain_tiles(bare, picture[:64, :64], 2, TILE, 10)
    upscale(network, picture[:64, :64], tile=32)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # The peak so far, of imports, is forgotten.
    before = held("VmRSS")
    run = {"ours": lambda: upscale(network, picture, tile=TILE), "plain": lambda: plain_tiles(bare, picture, 2, TILE, 10)}[way]
    run()
    print(json.dumps(held("VmHWM") - before))


def compare_memory(side: int, repeats: int) -> bool:
    """Print what each way adds to the process; return whether the target is met."""

    def peak(way: str) -> float:
        command = [sys.executable, __file__, "--child", way, "--side", str(side)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])

    ours, plain = (min(peak(way) for _ in range(repeats)) for way in ("ours", "plain"))
    met = ours <= MAX_MEMORY * plain
    print(f"{side} x {side}: {ours:.0f} MiB, the plain loop {plain:.0f} MiB, ratio {ours / plain:.2f}  {'met' if met else 'MISSED'}")
    return met


def compare_forward(build: Callable[[], nn.Module], repeats: int) -> bool:
    """Print the row of one architecture; return whether the target is met."""
    torch.manual_seed(0)
    bare = build().eval()
    network = recognise(bare.state_dict())
    x = torch.rand(1, 3, 32, 32)

    def run(model: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        def forward() -> Tensor:
            with torch.no_grad():
                return model(x)

        return forward

    best = shortest({"ours": run(network), "bare": run(bare)}, repeats)
    ratio = best["ours"] / best["bare"]
    met = ratio <= MAX_FORWARD
    print(
        f"{network.architecture:20} {1e3 * best['ours']:8.2f} {1e3 * best['bare']:8.2f} {ratio:7.3f}  {'met' if met else 'MISSED'}",
        flush=True,
    )
    return met


def main() -> int:
    """Print the tables; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--child", choices=("ours", "plain"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.child:
        child(options.child, options.side)
        return 0
    print(f"512 x 512 to 1024 x 1024 in tiles of {TILE}; minimum of {options.repeats}; share of values that differ from ours")
    ways = " ".join(f"{name:>8} {'ratio':>7} {'differ':>9}" for name in ("pad 10 s", "radius s"))
    print(f"{'network':20} {'radius':>6} {'cnnkit s':>8} {ways}")
    met = [compare_time(build, options.repeats) for build in (compact, span)]
    print("\npeak memory beyond the picture and the network")
    met.append(compare_memory(options.side, min(options.repeats, 2)))
    print(f"\nforward pass of 32 x 32 pixels\n{'network':20} {'cnnkit ms':>8} {'bare ms':>8} {'ratio':>7}")
    met += [compare_forward(build, 20 * options.repeats) for build in (compact, span, esrgan, swinir, dat)]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
