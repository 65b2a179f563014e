"""Time AclNet, PANNs, ConvNeXt and WaveMsNet against the straightforward versions of their papers' code: same weights, one thread.

Ours is as it infers: in evaluation, merged by :func:`cnnkit.layers.fuse.fuse`. The peers are those of ``tests/plugins/audio/plain``, in
evaluation, front ends included (theirs is the official one, a Fourier transform by convolutions). The two take turns, who comes first
alternates, and the medians count. Exits with 1 when a ratio is above the target or two outputs differ::

    python tests/bench/bench_audio_taggers.py --only aclnet,cnn10
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from cnnkit.backbones import create_model
from cnnkit.layers.fuse import fuse
from cnnkit.testing.compare import randomise
from cnnkit.weights import load_weights
from torch import Tensor, nn
from turns import plain

TARGET = 1.0
TOLERANCE = 1e-4
FRONT = ("spectrogram_extractor", "logmel_extractor")


def _panns(kind: str, code: Any) -> nn.Module:
    return code.create(kind)


PEERS: dict[str, tuple[str, Callable[[Any], nn.Module], float]] = {
    "aclnet": ("aclnet", lambda code: code.PlainAclNet(), 1.28),
    "aclnet_small": ("aclnet", lambda code: code.PlainAclNet(width=0.5, separable=True), 5.0),
    "convnext_tiny": ("convnext_audio", lambda code: code.create(), 5.0),
    **{f"panns_{kind}": ("panns", partial(_panns, kind), 5.0) for kind in ("cnn6", "cnn6_dsc", "cnn10", "cnn10_dsc", "cnn14", "cnn14_dsc")},
    "wavemsnet": ("wavemsnet", lambda code: code.PlainWaveMsNet(), 1.5),
}
"""File of the straightforward version, how it is built, and the seconds of the clip, by our names."""


def by_order(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return weights under the keys of a model that has the same layers in the same order under other names."""
    own = model.state_dict()
    return {key: value.reshape(own[key].shape) for key, value in zip(own, state.values(), strict=True)}


def pair(name: str) -> tuple[Any, nn.Module, float]:
    """Return our network, merged, the peer with the same weights, and the seconds of the clip."""
    file, build, seconds = PEERS[name]
    theirs = build(plain("audio", file)).eval()
    learned = {key: value.clone() for key, value in theirs.state_dict().items() if not key.startswith(FRONT)}
    theirs.load_state_dict({**theirs.state_dict(), **randomise(learned, gain=2.0 if "convnext" not in name else 1.0)})
    classes = 527 if file in ("panns", "convnext_audio") else 50
    ours: Any = create_model(f"audio/{name}", dims=1, num_classes=classes).eval()
    load_weights(ours, by_order(theirs.state_dict(), ours) if file == "aclnet" else theirs.state_dict())
    return fuse(ours, torch.randn(1, 1, ours.least)), theirs, seconds


def turns(ours: nn.Module, theirs: nn.Module, x: Tensor, given: Tensor, repeats: int) -> tuple[float, float, float]:
    """Return the median seconds of each, and the greatest difference of their outputs in parts of the output's scale."""
    runs = ((ours, x), (theirs, given))
    outputs = [model(clip) for model, clip in runs]  # Warm-up: the first pass allocates.
    difference = float((outputs[0] - outputs[1]).abs().max() / outputs[1].abs().max())
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats):
        for which in (0, 1) if repeat % 2 else (1, 0):
            model, clip = runs[which]
            start = time.perf_counter()
            model(clip)
            seconds[which].append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1]), difference


def main() -> int:
    """Time the networks and print one table of ratios; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default=[""], type=lambda text: text.split(","), metavar="NAME,...", help="parts of the names to run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for name in PEERS if any(word in name for word in options.only)]
    if not names:
        parser.error(f"--only names no network; there are: {', '.join(PEERS)}")
    print(f"one clip, float32, one thread; seconds, medians of {options.repeats} interleaved repeats")
    print(f"{'network':16} {'clip':>6} {'ours':>8} {'peer':>8} {'ratio':>6}  difference of the outputs")
    ratios: dict[str, float] = {}
    unequal = []
    for name in names:
        ours, theirs, seconds = pair(name)
        x = 0.3 * torch.randn(1, 1, round(seconds * ours.sample_rate), generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            mine, their, difference = turns(ours, theirs, x, x if ours.front is None else x[:, 0], options.repeats)
        ratios[name] = mine / their
        print(f"{name:16} {f'{seconds:g} s':>6} {mine:8.3f} {their:8.3f} {ratios[name]:6.2f}  {difference:.1e}", flush=True)
        if not difference <= TOLERANCE:
            unequal.append(name)
    if unequal:
        print(f"DIFFERENT OUTPUTS: {', '.join(unequal)}")
    slow = [name for name, ratio in ratios.items() if ratio > TARGET]
    mean = math.exp(statistics.fmean(map(math.log, ratios.values())))
    print(
        f"geometric mean {mean:.3f}, largest {max(ratios.values()):.2f} (target {TARGET})"
        + (f"; missed: {', '.join(slow)}" if slow else "")
    )
    return int(bool(slow or unequal))


if __name__ == "__main__":
    sys.exit(main())
