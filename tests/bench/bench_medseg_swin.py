"""Time of Swin UNETR's forward pass against MONAI's class with the same weights, interleaved; the minimum counts.

Prints one row per case and exits with 1 if ours is slower in any.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from cnnkit_medseg.models.swin_unetr import SwinUNETR
from monai.networks.nets.swin_unetr import SwinUNETR as Monai


def seconds(model: torch.nn.Module, x: torch.Tensor, training: bool) -> float:
    """Return the time of one forward pass, in training with the backward pass."""
    start = time.perf_counter()
    with torch.set_grad_enabled(training):
        y = model(x)
        if training:
            y.sum().backward()
    return time.perf_counter() - start


def main() -> int:
    """Print the table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--feature-size", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    slower = False
    print(f"{'case':<28}{'MONAI s':>10}{'cnnkit s':>10}{'MONAI / cnnkit':>16}")
    for side, training in ((64, False), (96, False), (64, True)):
        theirs = Monai(in_channels=1, out_channels=3, feature_size=options.feature_size).train(training)
        ours = SwinUNETR(1, 3, 3, feature_size=options.feature_size).train(training)
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(1, 1, side, side, side)
        times: dict[str, list[float]] = {"theirs": [], "ours": []}
        for _ in range(options.repeats):
            times["theirs"].append(seconds(theirs, x, training))
            times["ours"].append(seconds(ours, x, training))
        best = {name: min(values) for name, values in times.items()}
        slower |= best["ours"] > best["theirs"]
        case = f"{side}^3 {'training' if training else 'inference'}"
        print(f"{case:<28}{best['theirs']:>10.3f}{best['ours']:>10.3f}{best['theirs'] / best['ours']:>16.2f}", flush=True)
    return int(slower)


if __name__ == "__main__":
    sys.exit(main())
