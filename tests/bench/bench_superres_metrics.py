"""Resizing and scores of pictures against plain loops and scikit-image: milliseconds, ratios, and the values, which must agree.

imresize from 1024 to 256 pixels a side against the same arithmetic as a loop over the rows and the columns of the output (as
BasicSR has it) and, on one channel, over its pixels (as other ports of the MATLAB code have it); PSNR and SSIM of a picture of
2048 x 1080 against scikit-image. One thread each; the peers and ours run in turns, the minimum of the repeats of the processor time counts.
Exits with 1 when a ratio is under the target or two values differ.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402 (after the number of threads is set)
from turns import in_turns, plain  # noqa: E402

RESIZE_TARGET, SCORE_TARGET = 50.0, 5.0

Pairing = tuple[str, float, float, Callable[[], Any], Callable[[], Any]]


def by_pixels(image: np.ndarray, loop: Any) -> np.ndarray:
    """Resize one channel to a quarter, pixel by pixel of the output."""
    side = len(image)
    rows = loop.taps(side, side // 4, 0.25, True)
    tall = np.empty((side // 4, side), image.dtype)
    for k, (places, weights) in enumerate(rows):
        for j in range(side):
            tall[k, j] = weights @ image[places, j]
    out = np.empty((side // 4, side // 4), image.dtype)
    for k, (places, weights) in enumerate(rows):
        for j in range(side // 4):
            out[j, k] = weights @ tall[j, places]
    return out


def resizing(side: int) -> list[Pairing]:
    """Return the pairings of imresize."""
    from cnnkit_superres.resize import imresize

    loop, x = plain("superres", "imresize"), np.random.default_rng(0).random((side, side, 3)).astype(np.float32)
    grey, deep, small = np.ascontiguousarray(x[..., 0]), (x * 255).astype(np.uint8), np.ascontiguousarray(x[: side // 4, : side // 4])
    return [
        ("imresize 1/4, float32, rows", RESIZE_TARGET, 1e-5, lambda: imresize(x, 0.25), lambda: loop.imresize(x, 0.25)),
        ("imresize 1/4, float32, pixels", RESIZE_TARGET, 1e-5, lambda: imresize(grey, 0.25), lambda: by_pixels(grey, loop)),
        ("imresize 1/4, uint8, rows", 0, 0, lambda: imresize(deep, 0.25), lambda: loop.imresize(deep, 0.25)),
        ("imresize 4, float32, rows", 0, 1e-5, lambda: imresize(small, 4), lambda: loop.imresize(small, 4)),
    ]


def scores(height: int, width: int) -> list[Pairing]:
    """Return the pairings of PSNR and SSIM."""
    from cnnkit_superres.metrics import score
    from skimage.color import rgb2ycbcr
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    b = (a + rng.normal(0, 8, a.shape)).clip(0, 255).astype(np.uint8)
    ga, gb = (np.ascontiguousarray(x[..., 0]) for x in (a, b))

    def ours(a: np.ndarray, b: np.ndarray, luminance: bool) -> list[float]:
        found = score(a, b, luminance=luminance)
        return [found.psnr, found.ssim]

    def theirs(a: np.ndarray, b: np.ndarray, axis: int | None = None) -> list[float]:
        settings: Any = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": axis}
        return [peak_signal_noise_ratio(a, b, data_range=255), structural_similarity(a, b, data_range=255, **settings)]

    return [
        ("PSNR + SSIM, Y of RGB", SCORE_TARGET, 1e-9, lambda: ours(a, b, True), lambda: theirs(rgb2ycbcr(a)[..., 0], rgb2ycbcr(b)[..., 0])),
        ("PSNR + SSIM, RGB", SCORE_TARGET, 1e-9, lambda: ours(a, b, False), lambda: theirs(a, b, -1)),
        ("PSNR + SSIM, grey", SCORE_TARGET, 1e-9, lambda: ours(ga, gb, True), lambda: theirs(ga, gb)),
    ]


def main() -> int:
    """Run the pairings, print the table, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=1024, help="pixels of the picture that is made smaller")
    parser.add_argument("--size", type=int, nargs=2, default=(1080, 2048), metavar=("H", "W"), help="picture that is scored")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(f"{'pairing':30} {'ours ms':>9} {'peer ms':>9} {'ratio':>7} {'apart':>8}")
    missed = []
    for name, target, tolerance, *runs in resizing(args.side) + scores(*args.size):
        seconds, results = in_turns(runs, args.repeats)
        ours, peer = (1e3 * least for least in seconds)
        values = [np.asarray(result, np.float64) for result in results]
        apart = float(np.abs(values[0] - values[1]).max())
        print(f"{name:30} {ours:9.2f} {peer:9.2f} {peer / ours:7.1f} {apart:8.1e}", flush=True)
        if peer / ours < target:
            missed.append(f"{name}: {peer / ours:.1f}x, target {target:g}x")
        if apart > tolerance:
            missed.append(f"{name}: values differ by {apart:.2e}")
    print("\n".join(f"MISSED {line}" for line in missed) or "every target is met, and all values agree")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
