"""EfficientTDNN against the straightforward version (layers that pick their active channels by index), on one thread.

A training step of a random sub-network inside the supernet, an evaluation of the same, and the small network cut out; then how many times
faster than real time the published networks embed three seconds. The two take turns, the minimum of the repeats counts. Exits with 1
when a step inside the supernet is slower than the straightforward one::

    python tests/bench/bench_audio_tdnn.py --repeats 5
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from cnnkit.weights import load_weights
from cnnkit_audio.models.efficient_tdnn import EfficientTDNN
from cnnkit_audio.models.efficient_tdnn_space import BASE, LARGEST, MOBILE, SMALL, SubNet
from cnnkit_audio.models.efficient_tdnn_supernet import EfficientTDNNSupernet
from turns import in_turns, plain

TARGET = 1.0
RATE, SECONDS = 16000, 3


def step(model: torch.nn.Module, run: Callable[[], torch.Tensor]) -> None:
    """One step forward and back."""
    model.train()
    model.zero_grad(set_to_none=True)
    run().square().sum().backward()


def evaluate(model: torch.nn.Module, run: Callable[[], torch.Tensor]) -> None:
    """One evaluation."""
    model.eval()
    with torch.no_grad():
        run()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    code = plain("audio", "efficient_tdnn")
    peer = code.DynamicTDNN(LARGEST.depth, LARGEST.channels, LARGEST.kernels, LARGEST.cat)
    ours = EfficientTDNNSupernet()
    load_weights(ours, {f"module.__S__.{key}": value for key, value in peer.state_dict().items()})
    subnet = SubNet((384, 176, 256, 384), (5, 3, 1, 3), 768)
    peer.set(subnet.depth, subnet.channels, subnet.kernels, subnet.cat)
    features = torch.randn(args.batch, 80, 301)
    clip = 0.1 * torch.randn(args.batch, 1, RATE * SECONDS)
    front, fbanks = ours.front, code.LogMelFbanks()
    ours.front = torch.nn.Identity()  # type: ignore[assignment]  # Both from the same features.
    inside = features[:, None]
    cut, alone = ours.extract(subnet), peer.clone()
    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "training step inside": (lambda: step(ours, lambda: ours(inside, subnet)), lambda: step(peer, lambda: peer(features))),
        "evaluation inside": (lambda: evaluate(ours, lambda: ours(inside, subnet)), lambda: evaluate(peer, lambda: peer(features))),
        "evaluation cut out": (lambda: evaluate(cut, lambda: cut.body(features)), lambda: evaluate(alone, lambda: alone(features))),
        "front end": (lambda: front(clip), lambda: fbanks(clip[:, 0])),
    }
    print(f"batch {args.batch}, {SECONDS} s, sub-network {subnet}\n\n| work | ours ms | plain ms | ratio |\n| --- | --- | --- | --- |")
    ratios = {}
    for name, (mine, theirs) in pairs.items():
        (best, plains), _ = in_turns((mine, theirs), args.repeats, clock=time.perf_counter)
        ratios[name] = plains / best
        print(f"| {name} | {1e3 * best:.1f} | {1e3 * plains:.1f} | {ratios[name]:.2f} |")
    print("\n| network | ms for 3 s of sound | times real time |\n| --- | --- | --- |")
    for name, chosen in {"small": SMALL, "mobile": MOBILE, "base": BASE}.items():
        network = EfficientTDNN(channels=chosen.channels, kernels=chosen.kernels, cat=chosen.cat)
        ((best,), _) = in_turns((partial(evaluate, network, partial(network, clip[:1])),), args.repeats, clock=time.perf_counter)
        print(f"| {name} | {1e3 * best:.1f} | {SECONDS / best:.0f} |")
    return 0 if ratios["training step inside"] >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
