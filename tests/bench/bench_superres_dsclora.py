"""What DSCLoRA trains with, against the straightforward versions: seconds, ratios, and the values, which must agree.

Same weights, one thread: a training step of SPAN, forward and backward with the branches, and the affinity loss, whose peer forms whole
matrices of similarity. Ours and the peer run in turns, the minimum of the repeats counts. Exits with 1 when ours is slower than the
target or two values differ.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
from cnnkit.backbones import create_model
from cnnkit.weights import load_weights
from cnnkit_superres.dsclora import affinity_distance
from torch import Tensor, nn
from turns import in_turns, plain

TARGET = 1.0
TOLERANCE = 1e-5

Pair = tuple[Callable[[], Tensor], Callable[[], Tensor]]


def step(size: int) -> Pair:
    """Return training steps of SPAN x4; their value is the gradient of the first convolution."""
    theirs = plain("superres", "span").PlainSPAN(4, 52, False).train()
    ours = create_model("superres/span_x4").train()
    load_weights(ours, theirs.state_dict())
    x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))

    def run(model: nn.Module) -> Tensor:
        model.zero_grad()
        model(x).square().mean().backward()
        gradient = model.get_parameter("conv_1.conv.1.weight").grad
        assert gradient is not None
        return gradient

    return lambda: run(ours), lambda: run(theirs)


def affinity(size: int) -> Pair:
    """Return the losses of two maps, each with its backward pass; a gradient of signs is no value to compare after rounding."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(1, 48, size, size, generator=generator).requires_grad_()
    teacher = torch.randn(1, 48, size, size, generator=generator)
    whole = plain("superres", "dsclora").affinity_loss

    def run(loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        value = loss(student, teacher)
        torch.autograd.grad(value, student)
        return value.detach()

    return lambda: run(affinity_distance), lambda: run(whole)


def main() -> int:
    """Run the pairs, print the table, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{args.size} x {args.size}, one thread, minimum of {args.repeats} interleaved repeats")
    print(f"{'run':24} {'ours s':>8} {'peer s':>8} {'ratio':>6}  difference of the values")
    missed = []
    for name, make in (("span_x4, training step", step), ("affinity", affinity)):
        seconds, values = in_turns(make(args.size), args.repeats, clock=time.perf_counter)
        difference = float((values[0] - values[1]).abs().max() / values[1].abs().max())
        ratio = seconds[0] / seconds[1]
        print(f"{name:24} {seconds[0]:8.3f} {seconds[1]:8.3f} {ratio:6.2f}  {difference:.1e}", flush=True)
        if ratio > TARGET:
            missed.append(f"{name}: {ratio:.2f} of the peer's time, target {TARGET:g}")
        if difference > TOLERANCE:
            missed.append(f"{name}: values differ by {difference:.1e}")
    print("\n".join(f"MISSED {line}" for line in missed) or f"every run takes at most {TARGET:g} of its peer's time, and agrees")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
