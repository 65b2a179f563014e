"""SamplingAug's scores by integral image against one mean per patch, on a picture of one megapixel: seconds, ratio, largest difference.

Both score every patch that begins at an LR pixel, on the same error map. The peer is the loop that the paper's integral image replaces;
a mean over numpy's sliding windows, the loop without Python, is shown for comparison. For scale, the times of what surrounds the
scores are shown: the error map (bicubic enlargement included), and the ranking. The minimum of the repeats counts.
Exits with 1 when the ratio is under the target or two scores differ by more than 1e-5 of the largest.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

TARGET = 50.0
TOLERANCE = 1e-5


def loop(errors: np.ndarray, patch: int, stride: int) -> np.ndarray:
    """One mean per patch."""
    rows, columns = range(0, errors.shape[0] - patch + 1, stride), range(0, errors.shape[1] - patch + 1, stride)
    return np.array([[errors[y : y + patch, x : x + patch].mean() for x in columns] for y in rows])


def windows(errors: np.ndarray, patch: int, stride: int) -> np.ndarray:
    """The same without a Python loop."""
    return np.lib.stride_tricks.sliding_window_view(errors, (patch, patch))[::stride, ::stride].mean((2, 3))


def photograph(height: int, width: int) -> np.ndarray:
    """scikit-image's astronaut beside its coffee, repeated to the size."""
    from skimage import data

    pair = np.concatenate([data.astronaut()[:400], data.coffee()[:400, :560]], axis=1)
    return np.tile(pair, (-(-height // pair.shape[0]), -(-width // pair.shape[1]), 1))[:height, :width]


def seconds(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Return the least time of the repeats, and the result."""
    times, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - start)
    return min(times), result


def main() -> int:
    """Run, print the table, return the exit status."""
    from cnnkit_superres.resize import imresize
    from cnnkit_superres.sampling import best, error_map, patch_scores

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patch", type=int, default=96, help="side in HR pixels")
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1, help="of the slow peers; ours is repeated five times as often")
    args = parser.parse_args()
    patch, scale, ours = args.patch, args.scale, 5 * args.repeats
    hr = photograph(800 // scale * scale, 1250 // scale * scale)
    lr = imresize(hr, (hr.shape[0] // scale, hr.shape[1] // scale))
    mapping, errors = seconds(lambda: error_map(hr, lr), ours)
    integral, scores = seconds(lambda: patch_scores(errors, patch, stride=scale), ours)
    ranking, _ = seconds(lambda: best(scores, scores.size // 10), ours)
    print(f"{errors.shape[0]} x {errors.shape[1]} pixels, {scores.size} patches of {patch}, one at every LR pixel of x{scale}")
    print(f"{'integral image':32} {integral:9.4f} s")
    failed = False
    for name, peer, target in (("one mean per patch", loop, TARGET), ("numpy's sliding windows", windows, 0.0)):
        needed, theirs = seconds(lambda peer=peer: peer(errors, patch, scale), args.repeats)
        ratio, difference = needed / integral, float(np.abs(scores - theirs).max() / theirs.max())
        print(f"{name:32} {needed:9.4f} s  {ratio:7.0f}x  largest difference {difference:.1e}", flush=True)
        if ratio < target or not difference <= TOLERANCE:
            print(f"MISSED {name}: {ratio:.0f}x (target {target:g}x), {difference:.1e} (target {TOLERANCE:g})")
            failed = True
    print(f"{'(error map)':32} {mapping:9.4f} s\n{'(ranking of the best tenth)':32} {ranking:9.4f} s")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
