"""Sliding window to labels: cnnkit's stream of blocks against MONAI's sliding_window_inference followed by argmax.

A cheap network (one convolution, pointwise by default), so that what is measured is the machinery around the network.
Every run is a fresh process with two threads; ours and MONAI's take turns and the minimum of the times counts. Memory is the
peak of the process less that of a process which imports the same modules, holds the same image and runs the network once on
8 x 8 x 8 voxels: what is left is what inference adds.

Targets: at most 0.7 of MONAI's time and 0.5 of its memory, for every number of classes, labels equal to 99.99 %.
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

WAYS = ("cnnkit", "monai")
MAX_TIME, MAX_MEMORY, MIN_EQUAL = 0.7, 0.5, 0.9999


def child(way: str, classes: int, size: int, window: int, kernel: int, out: str) -> None:
    """Run one way once in this process and print seconds and peak memory."""
    import numpy as np
    import torch
    from cnnkit_medseg.restore import restore_labels
    from cnnkit_medseg.window import tiles
    from monai.inferers.utils import sliding_window_inference

    torch.set_num_threads(2)
    torch.manual_seed(0)
    net = torch.nn.Conv3d(1, classes, kernel, padding=kernel // 2).requires_grad_(False)
    net(torch.zeros(1, 1, 8, 8, 8))
    image = torch.randn(1, size, size, size)
    seconds = 0.0
    if way != "baseline":
        begin = time.perf_counter()
        if way == "cnnkit":
            stream = tiles(image, net, (window,) * 3, overlap=0.5, grid="monai", weighting="gaussian", recycle=True)
            labels = restore_labels(stream, image.shape[1:], image.shape[1:])
        else:
            labels = sliding_window_inference(image[None], (window,) * 3, 1, net, overlap=0.5, mode="gaussian").argmax(1)[0].numpy()
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        np.save(out, labels.astype(np.uint8))
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "mib": peak / 1024}))


def measure(way: str, classes: int, options: argparse.Namespace, out: str) -> dict[str, float]:
    """Run one way in a fresh process."""
    command = [sys.executable, __file__, "--child", way, "--classes", str(classes), "--size", str(options.size)]
    command += ["--window", str(options.window), "--kernel", str(options.kernel), "--out", out]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
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
    equal = float((np.load(files["cnnkit"]) == np.load(files["monai"])).mean())
    faster, smaller = seconds["cnnkit"] / seconds["monai"], memory["cnnkit"] / memory["monai"]
    met = faster <= MAX_TIME and smaller <= MAX_MEMORY and equal >= MIN_EQUAL
    print(
        f"{classes:8d} {seconds['cnnkit']:9.2f} {seconds['monai']:9.2f} {faster:7.2f} {memory['cnnkit']:9.0f} {memory['monai']:9.0f} "
        f"{smaller:7.2f} {equal:10.6f}  {'met' if met else 'MISSED'}",
        flush=True,
    )
    return met


def main() -> int:
    """Print the table; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 32, 104])
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--window", type=int, default=96)
    parser.add_argument("--kernel", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", choices=(*WAYS, "baseline"))
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    if options.child:
        child(options.child, options.classes[0], options.size, options.window, options.kernel, options.out)
        return 0
    print(f"sliding window and argmax, {options.size}^3, window {options.window}, overlap 0.5, Gaussian; minimum of {options.repeats}")
    print(f"{'classes':>8} {'cnnkit s':>9} {'monai s':>9} {'ratio':>7} {'cnnkit MiB':>9} {'monai MiB':>9} {'ratio':>7} {'equal':>10}")
    with tempfile.TemporaryDirectory() as folder:
        met = [compare(classes, options, Path(folder)) for classes in options.classes]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
