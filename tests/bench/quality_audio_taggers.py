"""Train AclNet, PANNs, ConvNeXt and WaveMsNet at sizes of minutes on synthetic sounds, beside logistic regression on the mean log-mel.

Recordings have a random gain (up to 6 dB) and noise at 20 dB; those that are measured were never trained on. One thread. The tasks:

* ``aclnet``: ten classes: accuracy on what is held out.
* ``mixup``: AclNet on few clips, with and without mixup: the loss on what is held out.
* ``cnn10``, ``cnn10_dsc``, ``convnext``: mixtures of one to three of the ten, all to be named: mean average precision.
* ``wavemsnet``: ten classes by the waveform alone, then phase 2, which starts from phase 1 with its filters frozen: accuracy of both.

Exit status 1 if a network does not beat the regression, mixup does not lower the loss, or phase 2 is below phase 1 by more than one clip
in fifty::

    python tests/bench/quality_audio_taggers.py --tasks aclnet,wavemsnet
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model
from cnnkit_audio.augment import mixup
from cnnkit_audio.frontends import panns
from cnnkit_audio.synth.classes import CLASSES, Spoiling, make
from cnnkit_audio.tagging.metrics import average_precision
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

LABELS = tuple(CLASSES)
SPOILING = Spoiling(snr_db=20, gain_db=6)
ACLNET_RATE = 16_000


@dataclass(frozen=True)
class Clips:
    """Waveforms ``(N, 1, T)`` and shares of labels ``(N, 10)``."""

    sound: Tensor
    target: Tensor

    def features(self, rate: int) -> np.ndarray:
        """Return the mean of each log-mel band, which is all that the regression sees."""
        front = panns(sample_rate=rate)
        return torch.cat([front(part).mean((1, 3)) for part in self.sound.split(64)]).numpy()


def clips(count: int, seconds: float, rate: int, *, seed: int, most: int = 1) -> Clips:
    """Return sounds of one to ``most`` classes at once, each at its own level."""
    sounds, targets = [], np.zeros((count, len(LABELS)), np.float32)
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        kinds = [number % len(LABELS)] if most == 1 else rng.choice(len(LABELS), rng.integers(1, most + 1), replace=False)
        targets[number, kinds] = 1
        mixture = sum(make(LABELS[kind], rng, seconds, rate) * 10 ** (rng.uniform(-6, 0) / 20) for kind in kinds)
        sounds.append(SPOILING.apply(np.asarray(mixture), rng, rate))
    return Clips(torch.from_numpy(np.stack(sounds))[:, None], torch.from_numpy(targets))


def train(model: Any, data: Clips, *, steps: int, lr: float, batch: int = 16, mix: float = 0.0) -> float:
    """Train in place by AdamW with a one-cycle rate; several labels by binary cross-entropy. Returns the seconds of the processor."""
    start = time.process_time()
    several, rng = bool((data.target.sum(1) > 1).any()), np.random.default_rng(0)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    model.train()
    for _ in range(steps):
        rows = torch.from_numpy(rng.integers(len(data.sound), size=batch))
        x, target = data.sound[rows], data.target[rows]
        x = x.roll(int(rng.integers(x.shape[-1])), -1)
        if mix:
            x, target = mixup(x, target, rng, alpha=mix)
        logits = model(x)
        loss = F.binary_cross_entropy_with_logits(logits, target) if several else F.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    return time.process_time() - start


@torch.no_grad()
def logits_of(model: nn.Module, data: Clips) -> Tensor:
    """Return the logits of all clips."""
    return torch.cat([model(part) for part in data.sound.split(25)])


def accuracy(scores: np.ndarray | Tensor, data: Clips) -> float:
    """Return the percentage of clips whose class is named."""
    return 100 * float((torch.as_tensor(scores).argmax(1) == data.target.argmax(1)).float().mean())


def mean_precision(scores: np.ndarray | Tensor, data: Clips) -> float:
    """Return the mean over labels of the average precision."""
    scores = np.asarray(scores)
    return float(np.mean([average_precision(scores[:, label], data.target[:, label].numpy()) for label in range(len(LABELS))]))


def regression(fit: Clips, held: Clips, rate: int) -> np.ndarray:
    """Return the scores of logistic regression on the mean log-mel, one against the rest."""
    model = make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression(max_iter=2000)))
    model.fit(fit.features(rate), fit.target.numpy().astype(int))
    return model.predict_proba(held.features(rate))


def aclnet_on(fit: Clips, held: Clips, *, steps: int, mix: float = 0.0) -> tuple[float, float]:
    """Train AclNet of 155 thousand parameters, and return its accuracy and its loss on what is held out."""
    torch.manual_seed(0)
    model = create_model("audio/aclnet_small", dims=1, num_classes=len(LABELS), sample_rate=ACLNET_RATE, strides=(2, 4), stem_pool=True)
    seconds = train(model, fit, steps=steps, lr=5e-3, mix=mix)
    logits = logits_of(model, held)
    found, loss = accuracy(logits, held), float(F.cross_entropy(logits, held.target.argmax(1)))
    print(f"  {len(fit.sound)} clips, mixup {mix:g}: accuracy {found:.1f} %, held-out loss {loss:.3f} ({seconds:.0f} s)", flush=True)
    return found, loss


def aclnet(scale: float) -> bool:
    """AclNet on ten classes."""
    fit, held = clips(1000, 1.28, ACLNET_RATE, seed=0), clips(300, 1.28, ACLNET_RATE, seed=1)
    base = accuracy(regression(fit, held, ACLNET_RATE), held)
    print(f"aclnet: ten classes, 1.28 s at 16 kHz; regression {base:.1f} %", flush=True)
    return aclnet_on(fit, held, steps=round(500 * scale))[0] > base


def mixup_lowers(scale: float) -> bool:
    """AclNet on so few clips that it learns them by heart, unless they are mixed."""
    fit, held = clips(100, 1.28, ACLNET_RATE, seed=0), clips(300, 1.28, ACLNET_RATE, seed=1)
    print("mixup: the same classes, few clips", flush=True)
    plain, mixed = (aclnet_on(fit, held, steps=round(400 * scale), mix=mix)[1] for mix in (0.0, 0.3))
    return mixed < plain


def mixtures(name: str, args: dict[str, Any], lr: float) -> Callable[[float], bool]:
    """Return a task: a network names all sounds of mixtures."""

    def task(scale: float) -> bool:
        rate = 32_000
        fit, held = clips(800, 1.0, rate, seed=0, most=3), clips(300, 1.0, rate, seed=1, most=3)
        base = mean_precision(regression(fit, held, rate), held)
        torch.manual_seed(0)
        model = create_model(f"audio/{name}", dims=1, num_classes=len(LABELS), **args)
        seconds = train(model, fit, steps=round(500 * scale), lr=lr)
        found = mean_precision(logits_of(model, held), held)
        print(f"{name}: mixtures of one to three, 1 s; mAP {found:.3f}, regression {base:.3f} ({seconds:.0f} s)", flush=True)
        return found > base

    return task


def wavemsnet(scale: float) -> bool:
    """A third of WaveMsNet's filters at 16 kHz, both phases."""
    rate, window = 16_000, 1.5
    fit, held = clips(600, window, rate, seed=0), clips(300, window, rate, seed=1)
    base = accuracy(regression(fit, held, rate), held)
    print(f"wavemsnet: ten classes, 1.5 s at 16 kHz; regression {base:.1f} %", flush=True)
    args: dict[str, Any] = {"filters": 8, "widths": (32, 48, 64, 64), "hidden": 128, "sample_rate": rate, "window": window}
    found, state = [], None
    for phase, steps in ((1, 400), (2, 200)):
        torch.manual_seed(0)
        model = create_model("audio/wavemsnet", dims=1, num_classes=len(LABELS), phase=phase, weights=state, **args)
        seconds = train(model, fit, steps=round(steps * scale), lr=3e-3)
        state = model.state_dict()
        found.append(accuracy(logits_of(model, held), held))
        print(f"  phase {phase}: accuracy {found[-1]:.1f} % ({seconds:.0f} s)", flush=True)
    return found[1] > base and found[1] >= found[0] - 2


TASKS: dict[str, Callable[[float], bool]] = {
    "aclnet": aclnet,
    "mixup": mixup_lowers,
    "cnn10": mixtures("panns_cnn10", {"widths": (16, 32, 48, 64)}, 3e-3),
    "cnn10_dsc": mixtures("panns_cnn10_dsc", {"widths": (16, 32, 48, 64)}, 3e-3),
    "convnext": mixtures("convnext_tiny", {"depths": (1, 1, 2, 1), "widths": (24, 48, 96, 192)}, 2e-3),
    "wavemsnet": wavemsnet,
}


def main() -> int:
    """Run the tasks; 1 if one misses its mark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS), help="names, by commas")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the steps")
    options = parser.parse_args()
    names = options.tasks.split(",")
    if strange := [name for name in names if name not in TASKS]:
        parser.error(f"there is no task {strange[0]!r}; accepted: {', '.join(TASKS)}")
    torch.set_num_threads(1)
    return int(not all([TASKS[name](options.scale) for name in names]))


if __name__ == "__main__":
    sys.exit(main())
