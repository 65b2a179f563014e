"""Train AclNet, PANNs, ConvNeXt and WaveMsNet at sizes of minutes on synthetic sounds, beside logistic regression on the mean log-mel.

Recordings have a random gain (up to 6 dB) and noise at 20 dB; those that are measured were never trained on. One thread. The tasks:

* ``aclnet``: ten classes: accuracy on what is held out.
* ``mixup``: AclNet on few clips, with and without mixup: the loss on what is held out.
* ``cnn10``, ``cnn10_dsc``, ``convnext``: mixtures of one to three of the ten, two seconds long, all to be named: mean average precision.
  Those of training are drawn anew for every step from 300 sounds of each class.
* ``wavemsnet``: ten classes by the waveform alone, then phase 2, which starts from phase 1 with its filters frozen: accuracy of both.

Exit status 1 if a network does not beat the regression, mixup does not lower the loss, or phase 2 is below phase 1 by more than one clip
in fifty::

    python tests/bench/quality_audio_taggers.py --tasks aclnet,wavemsnet
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
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


def stacked(pairs: Iterable[tuple[np.ndarray, Sequence[int]]]) -> Clips:
    """Return waveforms and the classes that each holds in one piece."""
    sounds, kinds = zip(*pairs, strict=True)
    targets = np.zeros((len(sounds), len(LABELS)), np.float32)
    for row, found in zip(targets, kinds, strict=True):
        row[list(found)] = 1
    return Clips(torch.from_numpy(np.stack(sounds))[:, None], torch.from_numpy(targets))


def spoiled(parts: Iterable[np.ndarray], rng: np.random.Generator, rate: int) -> np.ndarray:
    """Return the sum of sounds, each at its own level, with gain and noise."""
    return SPOILING.apply(np.sum([part * 10 ** (rng.uniform(-6, 0) / 20) for part in parts], 0), rng, rate)


def clips(count: int, seconds: float, rate: int, *, seed: int, most: int = 1) -> Clips:
    """Return sounds of one to ``most`` classes at once."""

    def one(number: int) -> tuple[np.ndarray, Sequence[int]]:
        rng = np.random.default_rng((seed, number))
        kinds = [number % len(LABELS)] if most == 1 else rng.choice(len(LABELS), rng.integers(1, most + 1), replace=False).tolist()
        return spoiled([make(LABELS[kind], rng, seconds, rate) for kind in kinds], rng, rate), kinds

    return stacked(one(number) for number in range(count))


@dataclass(frozen=True)
class Mixer:
    """Single sounds ``(10, N, T)`` of each class, from which mixtures of one to ``most`` classes are drawn."""

    bank: np.ndarray
    rate: int
    most: int

    @classmethod
    def of(cls, per_class: int, seconds: float, rate: int, *, seed: int, most: int) -> Mixer:
        """Make the sounds."""
        rngs = [[np.random.default_rng((seed, kind, number)) for number in range(per_class)] for kind in range(len(LABELS))]
        bank = [[make(label, rng, seconds, rate) for rng in row] for label, row in zip(LABELS, rngs, strict=True)]
        return cls(np.asarray(bank, np.float32), rate, most)

    def draw(self, count: int, rng: np.random.Generator) -> Clips:
        """Return mixtures, each part of which begins anywhere."""

        def one() -> tuple[np.ndarray, Sequence[int]]:
            kinds = rng.choice(len(LABELS), rng.integers(1, self.most + 1), replace=False).tolist()
            parts = [np.roll(self.bank[kind, rng.integers(self.bank.shape[1])], rng.integers(self.bank.shape[2])) for kind in kinds]
            return spoiled(parts, rng, self.rate), kinds

        return stacked(one() for _ in range(count))


def drawn(data: Clips, count: int, rng: np.random.Generator) -> Clips:
    """Return some of the clips, all begun elsewhere."""
    rows = torch.from_numpy(rng.integers(len(data.sound), size=count))
    return Clips(data.sound[rows].roll(int(rng.integers(data.sound.shape[-1])), -1), data.target[rows])


def train(model: Any, data: Clips | Mixer, *, steps: int, lr: float, batch: int = 16, mix: float = 0.0) -> float:
    """Train in place by AdamW with a one-cycle rate; mixtures by binary cross-entropy. Returns the seconds of the processor."""
    start = time.process_time()
    several, rng = isinstance(data, Mixer), np.random.default_rng(0)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    model.train()
    for _ in range(steps):
        found = data.draw(batch, rng) if isinstance(data, Mixer) else drawn(data, batch, rng)
        x, target = found.sound, found.target
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
    fit, held = clips(40, 1.28, ACLNET_RATE, seed=0), clips(300, 1.28, ACLNET_RATE, seed=1)
    print("mixup: the same classes, few clips", flush=True)
    plain, mixed = (aclnet_on(fit, held, steps=round(600 * scale), mix=mix)[1] for mix in (0.0, 0.3))
    return mixed < plain


def mixtures(name: str, args: dict[str, Any], steps: int, least: float = 0.0) -> Callable[[float], bool]:
    """Return a task: a network names all sounds of mixtures, with a mean average precision above ``least``."""

    def task(scale: float) -> bool:
        rate, window, most = 32_000, 2.0, 3
        fit, held = Mixer.of(300, window, rate, seed=0, most=most), clips(300, window, rate, seed=1, most=most)
        base = mean_precision(regression(fit.draw(2000, np.random.default_rng(1)), held, rate), held)
        torch.manual_seed(0)
        model = create_model(f"audio/{name}", dims=1, num_classes=len(LABELS), **args)
        seconds = train(model, fit, steps=round(steps * scale), lr=3e-3)
        found = mean_precision(logits_of(model, held), held)
        print(f"{name}: mixtures of one to three, 2 s; mAP {found:.3f}, regression {base:.3f} ({seconds:.0f} s)", flush=True)
        return found > max(base, least)

    return task


def wavemsnet(scale: float) -> bool:
    """A third of WaveMsNet's filters at 16 kHz, both phases."""
    rate, window = 16_000, 1.5
    fit, held = clips(1000, window, rate, seed=0), clips(300, window, rate, seed=1)
    base = accuracy(regression(fit, held, rate), held)
    print(f"wavemsnet: ten classes, 1.5 s at 16 kHz; regression {base:.1f} %", flush=True)
    args: dict[str, Any] = {"filters": 8, "widths": (32, 48, 64, 64), "hidden": 128, "sample_rate": rate, "window": window}
    found, state = [], None
    for phase, steps in ((1, 640), (2, 320)):
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
    "cnn10": mixtures("panns_cnn10", {"widths": (16, 32, 48, 64)}, 2000),
    "cnn10_dsc": mixtures("panns_cnn10_dsc", {"widths": (16, 32, 48, 64)}, 2000),
    "convnext": mixtures("convnext_tiny", {"depths": (1, 1, 2, 1), "widths": (24, 48, 96, 192), "drop_path_rate": 0.0}, 6000, least=0.9),
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
