"""SamplingAug against uniform sampling: Y-PSNR of held-out photographs after equally many steps, averaged over seeds.

ESPCN x2 is trained on bundled photographs of scikit-image, from the same weights and in the same order of pictures; the samplers
differ in the places of the patches alone. The share of patches is the paper's, a tenth, unless told otherwise.
Exits with 1 when the mean over seeds and photographs is lower with SamplingAug.
"""

from __future__ import annotations

import argparse
import math
import sys
import time

import numpy as np
import torch
from torch import nn

SCALE = 2
TRAIN = ("astronaut", "cat", "rocket", "immunohistochemistry", "retina")
HELD_OUT = ("coffee", "camera", "coins")


def photograph(name: str) -> np.ndarray:
    """Return a bundled photograph, grey ones with a channel of their own, and large ones at half the size."""
    from skimage import data

    pixels = np.atleast_3d(getattr(data, name)())[..., :3]
    return np.ascontiguousarray(pixels[::2, ::2] if min(pixels.shape[:2]) > 1000 else pixels)


def train(sampler: str, seed: int, steps: int, portion: float) -> nn.Module:
    """Return ESPCN after ``steps`` steps of Adam."""
    from cnnkit.backbones import create_model
    from cnnkit_superres.data import PatchDataset, PatchLoader
    from cnnkit_superres.data_config import DataConfig, InformativeConfig
    from cnnkit_superres.folders import Pair
    from cnnkit_superres.losses import SuperResolutionLoss

    data = DataConfig(
        patch=24,
        batch_size=8,
        steps_per_epoch=steps,
        sampler=sampler,
        informative=InformativeConfig(portion=portion),  # type: ignore[arg-type]
    )
    pairs = [Pair(name, photograph(name)) for name in TRAIN]
    torch.manual_seed(seed)
    model = create_model(f"superres/espcn_x{SCALE}").train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss = SuperResolutionLoss()
    for batch in PatchLoader(PatchDataset(pairs, data, scale=SCALE, in_chans=1, seed=seed), data):
        optimizer.zero_grad()
        loss(model(batch["lr"]), batch["hr"]).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def measure(model: nn.Module) -> list[float]:
    """Return the Y-PSNR of every held-out photograph, without a border of ``SCALE`` pixels."""
    from cnnkit_superres.data import EvalPictures, to_tensor
    from cnnkit_superres.folders import Pair

    values = []
    for item in EvalPictures([Pair(name, photograph(name)) for name in HELD_OUT], scale=SCALE):
        output = model(to_tensor(item["pixels"], 1)[None])[0].clamp(0, 1)
        error = (output - to_tensor(item["reference"], 1))[:, SCALE:-SCALE, SCALE:-SCALE]
        values.append(-10 * math.log10(error.square().mean().item()))
    return values


def main() -> int:
    """Train and measure both samplers with every seed, print the table, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--portion", type=float, default=0.1)
    args = parser.parse_args()
    print(f"ESPCN x{SCALE}, {args.steps} steps, trained on {', '.join(TRAIN)}; Y-PSNR in dB of {', '.join(HELD_OUT)}")
    means: dict[str, list[float]] = {"uniform": [], "informative": []}
    for seed in range(args.seeds):
        for sampler, found in means.items():
            start = time.perf_counter()
            values = measure(train(sampler, seed, args.steps, args.portion))
            found.append(float(np.mean(values)))
            shown = " ".join(f"{value:6.2f}" for value in values)
            print(f"seed {seed} {sampler:12} {shown}  mean {found[-1]:.3f}  ({time.perf_counter() - start:.0f} s)", flush=True)
    gain = float(np.mean(means["informative"]) - np.mean(means["uniform"]))
    print(f"SamplingAug - uniform: {gain:+.3f} dB")
    return int(gain < 0)


if __name__ == "__main__":
    sys.exit(main())
