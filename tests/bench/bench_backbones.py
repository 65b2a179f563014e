"""Time the forward pass of every backbone family against timm's: same cores, same weights, same images, batch 1 and 8.

Of each family the smallest published variant that timm has, at the input size that timm states; channels-first float32 in inference mode.
Ours is fused (``model.fuse()``); timm's is run as its users run it (``create_model(...).eval()``). The two take turns, and the minimum of
each counts. Targets: every ratio at most 1.05, the geometric mean at most 0.95; exit status 1 if one is missed::

    python tests/bench/bench_backbones.py --families resnet,convnext
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from typing import Any

import timm
import torch
from cnnkit.backbones import create_model, list_models, model_entry
from cnnkit.errors import CheckpointError, unknown
from torch import Tensor, nn

EACH, MEAN = 1.05, 0.95
BATCHES = (1, 8)
# Where timm's arithmetic is not our default.
AS_TIMM: dict[str, dict[str, Any]] = {"nasnetalarge": {"count_border": True}}
LEAST, ROUNDS = 5, 3
"""Repeats that every case gets, and how often a ratio above the target is measured again, longer."""


def pair(family: str) -> tuple[str, Any, nn.Module, tuple[int, ...]] | None:
    """Return the name of the family's smallest variant that both have, our model, timm's and the input size; ``None`` if there is none."""
    names = [name for name in list_models(family=family) if timm.is_model(name)]
    for name in sorted(names, key=lambda name: model_entry(name).params or 0):
        torch.manual_seed(0)
        theirs = timm.create_model(name, pretrained=False).eval()
        for module in theirs.modules():
            if isinstance(module, nn.Linear) and not module.weight.any():
                nn.init.normal_(module.weight, std=0.02)  # With a classifier that starts at 0, any two models would be equal.
        try:
            ours: Any = create_model(name, num_classes=theirs.num_classes, weights=theirs.state_dict(), **AS_TIMM.get(name, {})).eval()
        except CheckpointError:
            continue  # timm's is another model of this name, or one with further layers.
        side = theirs.default_cfg["input_size"][-1]
        return name, ours, theirs, ours.fixed_size or (-(-side // ours.size_multiple) * ours.size_multiple,) * 2
    return None


def same(ours: Any, theirs: Any, x: Tensor) -> bool:
    """Whether both compute the same, to 1e-4 of its scale: the logits, or the last features where timm's head is another."""
    return any(
        found.shape == expected.shape and bool((found - expected).abs().max() <= 1e-4 * expected.abs().max() > 0)
        for found, expected in ((ours(x), theirs(x)), (ours.forward_features(x), theirs.forward_features(x)))
    )


def once(model: nn.Module, x: Tensor) -> float:
    """Return the seconds of one forward pass."""
    start = time.perf_counter()
    model(x)
    return time.perf_counter() - start


def compare(ours: nn.Module, theirs: nn.Module, x: Tensor, seconds: float) -> tuple[float, float]:
    """Return the shortest time of each in seconds."""
    best = {ours: math.inf, theirs: math.inf}
    for model in best:
        model(x)  # Warm-up: the first pass allocates.
    for round_ in range(ROUNDS):
        start, repeats = time.perf_counter(), 0
        while repeats < LEAST or time.perf_counter() - start < seconds * (round_ + 1):
            # Who comes first alternates, so that neither always finds the other's data in the cache.
            for model in (ours, theirs) if repeats % 2 else (theirs, ours):
                best[model] = min(best[model], once(model, x))
            repeats += 1
        if best[ours] <= EACH * best[theirs]:
            break
    return best[ours], best[theirs]


def main() -> int:
    """Time the families and print one table of ratios; 1 if a target is missed."""
    known = sorted({model_entry(name).family for name in list_models(dims=2)} - {""})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default=known, type=lambda text: text.split(","), metavar="NAME,...", help="only these families")
    parser.add_argument("--seconds", type=float, default=1.5, help="time for each case")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    for family in set(options.families) - set(known):
        parser.error(unknown("family", family, known))
    torch.set_num_threads(options.threads)
    print(f"forward pass, float32, {torch.get_num_threads()} threads, timm {timm.__version__}; milliseconds, minimum of at least {LEAST}")
    print(f"{'family':<22} {'variant':<28} {'size':>5}" + "".join(f" {f'ours x{n}':>9} {f'timm x{n}':>9} {'ratio':>6}" for n in BATCHES))
    ratios: dict[str, list[float]] = {}
    unequal, without = [], []
    for family in options.families:
        found = pair(family)
        if found is None:
            without.append(family)
            continue
        name, ours, theirs, size = found
        x = torch.randn(max(BATCHES), 3, *size, generator=torch.Generator().manual_seed(0))
        ours.fuse()
        with torch.inference_mode():
            if not same(ours, theirs, x[:1]):
                unequal.append(name)
            pairs = [compare(ours, theirs, x[:batch], options.seconds) for batch in BATCHES]
        row = f"{family:<22} {name:<28} {size[0]:>5}"
        for mine, their in pairs:
            ratios.setdefault(family, []).append(mine / their)
            row += f" {1000 * mine:>9.1f} {1000 * their:>9.1f} {mine / their:>6.2f}"
        print(row, flush=True)
    return verdict(ratios, unequal, without)


def verdict(ratios: dict[str, list[float]], unequal: list[str], without: list[str]) -> int:
    """Print what the table amounts to, and return the exit status."""
    if without:
        print(f"timm has no model with the weights of: {', '.join(without)}")
    if unequal:
        print(f"DIFFERENT OUTPUTS: {', '.join(unequal)}")
    if not ratios:
        return 1
    flat = [ratio for row in ratios.values() for ratio in row]
    mean = math.exp(sum(map(math.log, flat)) / len(flat))
    slow = [family for family, row in ratios.items() if max(row) > EACH]
    print(
        f"geometric mean {mean:.3f} (target {MEAN}), largest {max(flat):.2f} (target {EACH})"
        + (f"; missed: {', '.join(slow)}" if slow else "")
    )
    return int(mean > MEAN or bool(slow) or bool(unequal))


if __name__ == "__main__":
    sys.exit(main())
