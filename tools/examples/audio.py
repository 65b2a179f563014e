"""Train the built-in checkpoint of the audio plugin over five folds, measure it beside logistic regression, and put it in its place.

    python tools/examples/audio.py --work runs/sounds

trains ``configs/audio/sounds.yaml`` with each fold of the synthetic sounds held out in turn, as ``cnnkit train audio`` does, measures
accuracy on the held-out fold, clean and spoiled, and writes the table to ``RESULT.md``. The baseline sees the mean log-mel spectrum of the
same augmented clips. With ``--install`` the network of the first fold becomes the plugin's own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from cnnkit.checkpoint import load_checkpoint, save_checkpoint
from cnnkit.config import build
from cnnkit.engine.files import write_json, write_text
from cnnkit.engine.fit import fit
from cnnkit.engine.load import Loaded, load
from cnnkit.plugin import get
from cnnkit_audio import args
from cnnkit_audio.frontends import LogMel
from cnnkit_audio.synth.classes import FOLDS, Spoiling
from cnnkit_audio.tagging.data import SyntheticSounds, whole_clips
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

RECIPE = Path(__file__).parents[2] / "configs" / "audio" / "sounds.yaml"
PACKAGE = Path(args.__file__).parent
CONDITIONS = {
    "clean": Spoiling(),
    "20 dB": Spoiling(snr_db=20),
    "10 dB": Spoiling(snr_db=10),
    "0 dB": Spoiling(snr_db=0),
    "-5 dB": Spoiling(snr_db=-5),
    "gain +-12 dB, filter, room, 20 dB": Spoiling(20, 12, True, True),
    "gain +-12 dB, filter, room, 0 dB": Spoiling(0, 12, True, True),
}
"""What the held-out recordings undergo; a ratio is that of the sound's energy to added coloured noise."""
BASELINE_EPOCHS = 3

Figures = dict[str, dict[str, float]]


def train(work: Path, fold: int, overrides: Sequence[str]) -> Path:
    """Train with a fold held out and return the checkpoint of the last epoch; one that is there already is kept."""
    output = work / f"fold{fold}"
    if (output / "done").exists():
        return output / "last.ckpt"
    plugin = get("audio")
    kind: Any = plugin.load_task()
    cfg = build(kind.Config, file=RECIPE, overrides=(f"tagging.data.fold={fold}", *overrides))
    last = fit(kind(cfg), output=output, plugin=plugin).last
    (output / "done").touch()
    return last


def mean_spectra(clips: torch.Tensor, front: LogMel) -> np.ndarray:
    """Return the mean log-mel spectrum of clips ``(B, 1, T)``: ``(B, bands)``."""
    with torch.no_grad():
        return front(clips).mean(3)[:, 0].numpy()


def fit_baseline(loaded: Loaded, front: LogMel) -> Any:
    """Fit logistic regression on the mean spectra of a few epochs of the network's own training batches."""
    loader = loaded.task.loader("train")
    features, truth = [], []
    for epoch in range(BASELINE_EPOCHS):
        loader.set_epoch(epoch)
        for batch in loader:
            features.append(mean_spectra(batch["sound"], front))
            truth.append(batch["target"].argmax(1).numpy())
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000)).fit(np.concatenate(features), np.concatenate(truth))


def measure(loaded: Loaded) -> Figures:
    """Return the accuracy of the network and of the baseline on the held-out fold, by condition."""
    task, rate = loaded.task, loaded.model.sample_rate
    labels, fold = tuple(task.labels()), task.cfg.tagging.data.fold
    front = LogMel(sample_rate=rate, n_mels=64)
    baseline, figures = fit_baseline(loaded, front), {}
    for name, spoiling in CONDITIONS.items():
        sounds = SyntheticSounds(labels, [fold], rate, spoiling=spoiling)
        metric = task.metric()
        with torch.no_grad():
            for batch in whole_clips(sounds):
                metric.update(task.predict(loaded.model, batch), batch)
        clips = torch.from_numpy(np.stack([sounds.clip(index) for index in range(len(sounds))]))
        right = baseline.predict(mean_spectra(clips, front)) == sounds.targets.argmax(1)
        figures[name] = {"network": metric.compute()["accuracy"], "baseline": float(right.mean())}
    return figures


def table(folds: Sequence[Figures]) -> str:
    """Return means and spreads over the folds as a Markdown table."""
    lines = ["| held-out recordings | network | logistic regression on the mean log-mel spectrum |", "|---|---|---|"]
    for name in CONDITIONS:
        cells = []
        for who in ("network", "baseline"):
            values = 100 * np.array([figures[name][who] for figures in folds])
            cells.append(f"{values.mean():.1f} % ({values.min():.1f} to {values.max():.1f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def install(checkpoint: Path, figures: Figures, target: Path) -> Path:
    """Write the network to where the plugin looks for it, with its figures."""
    header, state = load_checkpoint(checkpoint)
    metrics = {f"accuracy/{name}": round(values["network"], 4) for name, values in figures.items()}
    note = "Trained on ten classes of synthetic sound, folds 2 to 5; measured on fold 1."
    return save_checkpoint(target, state, replace(header, metrics=metrics, note=note))


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for trainings and RESULT.md.")
@click.option("--folds", type=click.IntRange(1, FOLDS), default=FOLDS, show_default=True, help="How many folds are held out in turn.")
@click.option("--install/--no-install", "installing", default=False, help="Write the checkpoint of fold 1 to weights/ of the plugin.")
@click.option("--set", "overrides", multiple=True, help="KEY=VALUE over the recipe.")
def main(work: Path, folds: int, installing: bool, overrides: tuple[str, ...]) -> None:
    """Train, measure and install the built-in checkpoint of audio."""
    found: list[Figures] = []
    for fold in range(1, folds + 1):
        checkpoint = train(work, fold, overrides)
        found.append(measure(load(checkpoint)))
        write_json(work / f"fold{fold}.json", found[-1])
        if installing and fold == 1:
            print(f"wrote {install(checkpoint, found[0], PACKAGE / get('audio').checkpoint)}", file=sys.stderr)
        print(table(found), file=sys.stderr)
    click.echo(table(found))
    write_text(work / "RESULT.md", table(found))


if __name__ == "__main__":
    main()
