"""Export: logits of C x 128^3 to labels on 256^3, cnnkit's stream against nnU-Net's way.

nnU-Net's way is one skimage.transform.resize of order 1 per class in float64, then argmax over all classes. Here it is
given a float32 array to collect in, which spares it the copies of its own code. Every run is a fresh process with two
threads; the ways take turns, the minimum of the times counts. Memory is the peak of the process less that of one which
imports the same modules and holds the same logits: what is left is what the export adds.

Targets: at least 10 times faster, labels equal to 99.99 %, and at most 0.2 of the memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYS = ("cnnkit", "nnunet")
MIN_SPEEDUP, MAX_MEMORY, MIN_EQUAL = 10.0, 0.2, 0.9999


def child(way: str, classes: int, size: int, slab: int, out: str) -> None:
    """Run one way once in this process and print seconds and peak memory."""
    import numpy as np
    import torch
    from cnnkit_medseg.restore import restore_labels
    from skimage.transform import resize

    torch.set_num_threads(2)
    coarse = torch.randn(classes, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    logits = torch.empty(classes, size, size, size)
    for source, target in zip(coarse, logits, strict=True):
        target.copy_(torch.nn.functional.interpolate(source[None, None], size=(size,) * 3, mode="trilinear")[0, 0])
    new = (2 * size,) * 3
    begin = time.perf_counter()
    if way == "cnnkit":
        labels = restore_labels(((x, logits[:, x : x + slab]) for x in range(0, size, slab)), (size,) * 3, new)
    elif way == "nnunet":
        restored = np.empty((classes, *new), np.float32)
        for channel, target in zip(logits.numpy(), restored, strict=True):
            target[...] = resize(channel.astype(float), new, order=1, mode="edge", anti_aliasing=False)
        labels = restored.argmax(0)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if way != "baseline":
        np.save(out, labels.astype(np.uint8))
    print(json.dumps({"seconds": seconds, "mib": peak / 1024}))


def measure(way: str, classes: int, options: argparse.Namespace, out: str) -> dict[str, float]:
    """Run one way in a fresh process."""
    command = [sys.executable, __file__, "--child", way, "--classes", str(classes), "--size", str(options.size)]
    result = subprocess.run([*command, "--slab", str(options.slab), "--out", out], check=True, capture_output=True, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def compare(classes: int, options: argparse.Namespace, folder: Path) -> bool:
    """Print the row of one number of classes; return whether the targets are met."""
    import numpy as np

    files = {way: str(folder / f"{way}.npy") for way in WAYS}
    base = measure("baseline", classes, options, "")["mib"]
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        for way in WAYS:
            runs[way].append(measure(way, classes, options, files[way]))
    seconds = {way: min(run["seconds"] for run in runs[way]) for way in WAYS}
    memory = {way: min(run["mib"] for run in runs[way]) - base for way in WAYS}
    equal = float((np.load(files["cnnkit"]) == np.load(files["nnunet"])).mean())
    speedup, smaller = seconds["nnunet"] / seconds["cnnkit"], memory["cnnkit"] / memory["nnunet"]
    met = speedup >= MIN_SPEEDUP and smaller <= MAX_MEMORY and equal >= MIN_EQUAL
    print(
        f"{classes:8d} {seconds['cnnkit']:10.2f} {seconds['nnunet']:10.2f} {speedup:8.1f} "
        f"{memory['cnnkit']:10.0f} {memory['nnunet']:10.0f} {smaller:7.3f} {equal:10.6f}  {'met' if met else 'MISSED'}",
        flush=True,
    )
    return met


def main() -> int:
    """Print the table; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 32])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--slab", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", choices=(*WAYS, "baseline"))
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    if options.child:
        child(options.child, options.classes[0], options.size, options.slab, options.out)
        return 0
    print(f"logits on {options.size}^3 to labels on {2 * options.size}^3; minimum of {options.repeats}")
    print(f"{'classes':>8} {'cnnkit s':>10} {'nnunet s':>10} {'speedup':>8} {'cnnkit MB':>10} {'nnunet MB':>10} {'ratio':>7} {'equal':>10}")
    with tempfile.TemporaryDirectory() as folder:
        met = [compare(classes, options, Path(folder)) for classes in options.classes]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
