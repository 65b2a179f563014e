"""micro-TCN on one core: how much faster than real time it runs in blocks, and as a whole beside the straightforward code.

The real-time factor is seconds of sound per second of work; above 1 a device can be played through. Exits with 1 if a causal network of
the paper falls below 1 in blocks of 512 samples, or is slower than the straightforward version of its code.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from cnnkit.backbones import create_model
from cnnkit.testing.compare import stir
from cnnkit_audio.models._base import Effect
from turns import plain

RATE = 44100
SIZES = {"100": {"blocks": 4, "kernel": 5}, "300": {"blocks": 4, "kernel": 13}, "1000": {"blocks": 5, "kernel": 5}}
BLOCKS = (128, 512, 2048)


def fastest(run: Callable[[], object], repeats: int = 3) -> float:
    """Return the least processor time of a call in seconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def in_blocks(model: Effect, x: torch.Tensor, knobs: torch.Tensor, size: int) -> None:
    """Run sound through a device block by block, once it has heard its context."""
    stream = model.stream(knobs)
    stream.push(torch.zeros(1, 1, model.context))
    for first in range(0, x.shape[2], size):
        stream.push(x[..., first : first + size])


def measure(name: str) -> tuple[list[float], float, float]:
    """Return the real-time factors in blocks, and the seconds that a second of sound takes as a whole: ours and the plain code's."""
    theirs = stir(plain("audio", "micro_tcn").MicroTCN(**SIZES[name])).eval()
    model = create_model(f"audio/micro_tcn_{name}_c", dims=1)
    assert isinstance(model, Effect)
    model.load_state_dict(theirs.state_dict())
    model.eval()
    x, knobs = torch.rand(1, 1, RATE) - 0.5, torch.rand(1, 2)
    padded = torch.nn.functional.pad(x, (model.context, 0))
    torch.testing.assert_close(model.stream(knobs).push(padded), theirs(padded, knobs[:, None]), atol=1e-5, rtol=1e-5)
    factors = [1 / fastest(partial(in_blocks, model, x, knobs, size)) for size in BLOCKS]
    ours, peer = fastest(lambda: model.stream(knobs).push(padded), 5), fastest(lambda: theirs(padded, knobs[:, None]), 5)
    return factors, ours, peer


@torch.no_grad()
def main() -> int:
    """Print the table and return 1 if a target is missed."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    missed = False
    print("| network | " + " | ".join(f"blocks of {size}" for size in BLOCKS) + " | whole | whole, plain | time, ours / plain |")
    print("|---" * (len(BLOCKS) + 4) + "|")
    for name in SIZES:
        factors, ours, peer = measure(name)
        missed |= factors[1] < 1 or ours / peer > 1.02
        cells = [f"{factor:.1f}x" for factor in (*factors, 1 / ours, 1 / peer)]
        print(f"| micro_tcn_{name}_c | " + " | ".join(cells) + f" | {ours / peer:.2f} |")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
