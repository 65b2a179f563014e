"""Surface measures against medpy and MONAI on a 256^3 volume: seconds, ratios, and the values, which must agree.

Two overlapping brain-sized masks with rough surfaces. The peers and ours run in turns, the minimum of the repeats counts.
Exits with 1 when a ratio is under the target or two values differ.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
from scipy import ndimage
from turns import in_turns

TARGET = 3.0
SPACING = (1.0, 0.9, 0.9)
TOLERANCE_MM = 2.0


def brain(size: int, seed: int) -> np.ndarray:
    """An ellipsoid of about 0.3 of the volume's width with smooth bumps of a few voxels."""
    grid = np.meshgrid(*[np.arange(size, dtype=np.float32) - size / 2] * 3, indexing="ij", sparse=True)
    radius = np.sqrt(sum((g / (size * r)) ** 2 for g, r in zip(grid, (0.35, 0.29, 0.31), strict=True)))
    bumps = ndimage.zoom(np.random.default_rng(seed).normal(size=(16,) * 3).astype(np.float32), size / 16, order=3)
    return radius + 0.06 * bumps < 1


def pairings(pred: np.ndarray, ref: np.ndarray) -> dict[str, tuple[Callable[[], list[float]], Callable[[], list[float]]]]:
    """Return by name what ours and the peer do for the same values."""
    import torch
    from cnnkit_medseg.surface import SurfaceDistances
    from medpy.metric import binary
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    y_pred, y = (torch.from_numpy(mask).float()[None, None] for mask in (pred, ref))
    common = {"include_background": True, "spacing": SPACING}

    def ours() -> SurfaceDistances:
        return SurfaceDistances(pred, ref, SPACING)

    def ours_both() -> list[float]:
        distances = ours()
        return [distances.hd95(), distances.nsd(tolerance=TOLERANCE_MM, method="monai")]

    def monai_hd95() -> list[float]:
        return [float(compute_hausdorff_distance(y_pred, y, percentile=95, **common))]

    def monai_nsd(subvoxels: bool) -> list[float]:
        return [float(compute_surface_dice(y_pred, y, [TOLERANCE_MM], use_subvoxels=subvoxels, **common))]

    return {
        "HD95, medpy": (lambda: [ours().hd95(method="medpy")], lambda: [float(binary.hd95(pred, ref, voxelspacing=SPACING))]),
        "HD95, MONAI": (lambda: [ours().hd95()], monai_hd95),
        "NSD, MONAI voxels": (lambda: [ours().nsd(tolerance=TOLERANCE_MM, method="monai")], lambda: monai_nsd(False)),
        "NSD, MONAI subvoxels": (lambda: [ours().nsd(tolerance=TOLERANCE_MM)], lambda: monai_nsd(True)),
        "HD95 + NSD, MONAI voxels": (ours_both, lambda: monai_hd95() + monai_nsd(False)),
    }


def main() -> int:
    """Run the pairings, print the table, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    pred, ref = brain(args.size, 1), brain(args.size, 2)
    print(f"{args.size}^3, {pred.sum()} and {ref.sum()} voxels, spacing {SPACING} mm; minimum of {args.repeats} interleaved repeats")
    print(f"{'pairing':26} {'ours s':>8} {'peer s':>8} {'ratio':>6}  values (ours | peer)")
    missed = []
    for name, runs in pairings(pred, ref).items():
        seconds, values = in_turns(runs, args.repeats, clock=time.perf_counter)
        ratio = seconds[1] / seconds[0]
        shown = " | ".join(" ".join(f"{v:.7g}" for v in side) for side in values)
        print(f"{name:26} {seconds[0]:8.3f} {seconds[1]:8.3f} {ratio:6.1f}  {shown}", flush=True)
        if ratio < TARGET:
            missed.append(f"{name}: {ratio:.2f}x, target {TARGET:g}x")
        if not np.allclose(*values, rtol=2e-6, atol=0):
            missed.append(f"{name}: values differ")
    print("\n".join(f"MISSED {line}" for line in missed) or f"every pairing is at least {TARGET:g}x faster, and equal")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
