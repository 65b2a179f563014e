"""Train the built-in checkpoint of the medseg plugin, measure it against thresholds, and put it in its place.

    python tools/examples/medseg.py --work runs/mni_tissue

writes the training part of the MNI152 template as an nnU-Net dataset, trains ``configs/medseg/mni_tissue.yaml`` on it as
``cnnkit train medseg`` does, measures grey and white matter on the held-out part, clean and spoilt, and writes the table to
``RESULT.md``. With ``--install`` the checkpoint becomes the plugin's own. ``--checkpoint FILE`` measures a file and trains nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import click
import nibabel
import numpy as np
import torch
from cnnkit.checkpoint import load_checkpoint, save_checkpoint
from cnnkit.config import build
from cnnkit.engine.files import write_json, write_text
from cnnkit.engine.fit import fit
from cnnkit.engine.load import Loaded, load
from cnnkit.plugin import get
from cnnkit_medseg import example
from cnnkit_medseg.example import Example
from cnnkit_medseg.preprocess import crop_to_nonzero

RECIPE = Path(__file__).parents[2] / "configs" / "medseg" / "mni_tissue.yaml"
INSTALLED = Path(example.__file__).parent / "weights" / "mni_tissue.ckpt"
NOTE = (
    "Trained on the ICBM 152 non-linear symmetric template 2009a (Fonov et al., NeuroImage 54, 2011) behind MNI y = "
    f"{example.TRAIN_BEHIND_MM:g} mm; metrics measured before y = {example.HELDOUT_FROM_MM:g} mm. "
    "The voxels of the head outside of the brain must be 0. Not for clinical use."
)
METHODS = ("network", "thresholds", "otsu")
Scores = Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """Dice coefficients on one kind of image: per method those of the tissues and their mean; seconds that the network took."""

    image: str
    scores: Mapping[str, Scores]
    seconds: float


def write_dataset(part: Example, root: Path) -> Path:
    """Write the box around the brain of a part as a dataset of one case in nnU-Net's layout, and return its folder."""
    _, box, _ = crop_to_nonzero(part.volume.array)
    case = part.cut((box[0], box[1], box[2]))
    for folder, ending, array in (("imagesTr", "_0000", case.volume.array[0]), ("labelsTr", "", case.labels)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, case.volume.affine), root / folder / f"mni152{ending}.nii.gz")
    description = {
        "channel_names": {"0": "T1"},
        "labels": example.LABELS,
        "numTraining": 1,
        "file_ending": ".nii.gz",
        "name": "MNI152 tissue",
    }
    write_json(root / "dataset.json", description)
    return root


def train(work: Path, overrides: tuple[str, ...]) -> Path:
    """Train on the training part and return the checkpoint of the last epoch."""
    whole = example.example_volume()
    root = write_dataset(whole.cut(example.training_part(whole.volume)), work / "dataset")
    plugin = get("medseg")
    kind = plugin.load_task()
    cfg = build(kind.Config, file=RECIPE, overrides=(f"data.root={root}", *overrides))
    return fit(kind(cfg), output=work / "run", plugin=plugin).last


def measure(loaded: Loaded, *, seed: int = 1) -> list[Row]:
    """Segment the whole head, clean and spoilt in every way, and score network and thresholds on the held-out part."""
    whole = example.example_volume()
    taught = whole.cut(example.training_part(whole.volume))
    fitted = example.fit_thresholds(taught.volume.array[0], taught.labels)
    rows = []
    for name in ("clean", *example.CORRUPTIONS):
        head = whole if name == "clean" else example.corrupted(whole, name, np.random.default_rng(seed))
        held, image = example.heldout_part(head.volume), head.volume.array[0]
        start = time.perf_counter()
        with torch.no_grad():
            (prediction,) = loaded.task.predict(loaded.model, {"name": name, "volume": head.volume})
        seconds = time.perf_counter() - start
        found = (
            prediction.labels,
            example.threshold_baseline(image, fitted),
            example.threshold_baseline(image, example.otsu_thresholds(image[held])),
        )
        scores = {method: example.dice(labels[held], head.labels[held]) for method, labels in zip(METHODS, found, strict=True)}
        rows.append(Row(name, scores, seconds))
    return rows


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| held-out part | network: mean (grey, white) | thresholds fitted on the training part | Otsu's thresholds of this part | s |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (f"{s['mean']:.4f} ({s['grey_matter']:.4f}, {s['white_matter']:.4f})" for s in (row.scores[method] for method in METHODS))
        lines.append(f"| {row.image} | {' | '.join(cells)} | {row.seconds:.1f} |")
    return "\n".join(lines) + "\n"


def install(checkpoint: Path, rows: list[Row], target: Path) -> Path:
    """Write the checkpoint to where the plugin looks for it, with its figures and without the paths of this machine."""
    header, state = load_checkpoint(checkpoint)
    data = {**header.config["data"], "root": None, "cache": None}
    metrics = {f"{row.image}/{name}": round(value, 4) for row in rows for name, value in row.scores["network"].items()}
    header = replace(header, config={**header.config, "data": data}, metrics=metrics, note=NOTE)
    return save_checkpoint(target, state, header)


@click.command()
@click.option("--work", type=click.Path(path_type=Path), help="Folder for dataset, training and RESULT.md.")
@click.option("--checkpoint", type=click.Path(path_type=Path, exists=True), help="Measure this file and train nothing.")
@click.option(
    "--install/--no-install", "installing", default=False, help=f"Write the checkpoint to weights/{INSTALLED.name} of the plugin."
)
@click.option("--set", "overrides", multiple=True, help="KEY=VALUE over the recipe.")
def main(work: Path | None, checkpoint: Path | None, installing: bool, overrides: tuple[str, ...]) -> None:
    """Train, measure and install the built-in checkpoint of medseg."""
    if (work is None) == (checkpoint is None):
        raise click.UsageError("give either --work FOLDER to train, or --checkpoint FILE to measure")
    trained = checkpoint if checkpoint is not None else train(Path(work or "."), overrides)
    rows = measure(load(trained))
    result = table(rows)
    click.echo(result)
    if work is not None:
        write_text(work / "RESULT.md", result)
    if installing:
        print(f"wrote {install(trained, rows, INSTALLED)}", file=sys.stderr)


if __name__ == "__main__":
    main()
