"""Train four small networks, one on each image, on noisy synthetic sounds; beside them their sum, and regression on the mean log-mel.

Ten classes, one second at 8 kHz, each sound with a random gain (up to 6 dB) in noise, 0 dB by default. Clips that are measured were never
trained on; each of three seeds draws sounds, weights and batches anew. One thread. Exit status 1 if the mean accuracy of the sum is below
that of the best member, or does not beat the regression::

    python tests/bench/quality_audio_ensemble.py
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from cnnkit_audio.ensemble import Heard, compare
from cnnkit_audio.frontends import LogMel
from cnnkit_audio.models.image_cnn import IMAGES, ImageCNN
from cnnkit_audio.synth.classes import CLASSES, Spoiling, make
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

LABELS = tuple(CLASSES)
RATE = 8000
ARGS = {
    "mel": {"n_mels": 64, "n_fft": 512, "hop": 128},
    "gammatone": {"n_bands": 64, "n_fft": 512, "hop": 128},
    "constant_q": {"n_bins": 60, "f_min": 110.0, "hop": 128},
    "gabor": {"channels": 256, "hop": 128},
}
SMALL = {"backbone": "resnet18", "backbone_args": {"widths": (12, 24, 36, 48)}, "size": 64}


def clips(count: int, seed: int, snr_db: float) -> tuple[Tensor, Tensor]:
    """Return sounds ``(N, 1, T)`` and their classes ``(N,)``, as many of each."""
    spoiling, sounds = Spoiling(snr_db=snr_db, gain_db=6), []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        sounds.append(spoiling.apply(make(LABELS[number % len(LABELS)], rng, 1.0, RATE), rng, RATE))
    return torch.from_numpy(np.stack(sounds))[:, None], torch.arange(count) % len(LABELS)


def train(model: ImageCNN, x: Tensor, y: Tensor, *, steps: int, seed: int, batch: int = 16) -> None:
    """Train in place by AdamW with a one-cycle rate, on sounds that are turned in a circle."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    model.train()
    for _ in range(steps):
        rows = torch.from_numpy(rng.integers(len(x), size=batch))
        loss = F.cross_entropy(model(x[rows].roll(int(rng.integers(RATE)), -1)), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


def heard(scores: Tensor | np.ndarray, y: Tensor) -> Heard:
    """Return what was said of clips."""
    return Heard(np.asarray(scores), np.eye(len(LABELS))[y.numpy()], LABELS, False)


def regression(fit: tuple[Tensor, Tensor], x: Tensor) -> np.ndarray:
    """Return the confidences of logistic regression on the mean of each log-mel band."""
    front = LogMel(sample_rate=RATE, n_mels=64, n_fft=512, hop=128)
    means = [torch.cat([front(part).mean((1, 3)) for part in sound.split(100)]).numpy() for sound in (fit[0], x)]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(means[0], fit[1].numpy())
    return model.predict_proba(means[1])


def main() -> int:
    """Run the seeds; 1 if the sum misses its mark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--snr", type=float, default=0.0, help="ratio of sound to noise in decibels")
    options = parser.parse_args()
    torch.set_num_threads(1)
    trials: dict[str, dict[str, Heard]] = {}
    bases, start = [], time.process_time()
    for seed in range(options.seeds):
        fit, (x, y) = clips(600, 2 * seed, options.snr), clips(400, 2 * seed + 1, options.snr)
        bases.append(heard(regression(fit, x), y).figure)
        said: dict[str, Heard] = {}
        for image in IMAGES:
            torch.manual_seed(seed)
            model = ImageCNN(num_classes=len(LABELS), image=image, image_args=ARGS[image], sample_rate=RATE, window=1.0, **SMALL)  # type: ignore[arg-type]
            train(model, *fit, steps=options.steps, seed=seed)
            with torch.no_grad():
                said[image] = heard(torch.cat([model(part).softmax(1) for part in x.split(100)]), y)
        trials[f"seed{seed}"] = said
        line = ", ".join(f"{name} {100 * item.figure:.2f}" for name, item in said.items())
        fused = compare({"only": said}, clips=1).fused[0]
        print(
            f"seed {seed}: {line}; sum {100 * fused:.2f}; regression {100 * bases[-1]:.2f} % ({time.process_time() - start:.0f} s)",
            flush=True,
        )
    result = compare(trials, clips=options.seeds)
    best, fused, base = (float(np.mean(values)) for values in (result.members[result.best], result.fused, bases))
    print(f"mean accuracy: best member ({result.best}) {100 * best:.2f} %, sum {100 * fused:.2f} %, regression {100 * base:.2f} %")
    print(result.markdown())
    return int(not (fused >= best and fused > base))


if __name__ == "__main__":
    sys.exit(main())
