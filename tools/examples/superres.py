"""Train the built-in checkpoints of the superres plugin, measure them against bicubic interpolation, and put them in their place.

    python tools/examples/superres.py --work runs/photo

writes scikit-image's and scikit-learn's photographs, without those that are held out, as a folder of pictures, trains
``configs/superres/photo_x2.yaml`` and ``photo_x4.yaml`` on it as ``cnnkit train superres`` does, measures Y-PSNR and SSIM on each held-out
photograph, and writes the table to ``RESULT.md``. With ``--install`` the merged networks become the plugin's own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from cnnkit.checkpoint import load_checkpoint, save_checkpoint
from cnnkit.config import build
from cnnkit.engine.files import write_text
from cnnkit.engine.fit import fit
from cnnkit.engine.load import Loaded, load
from cnnkit.plugin import get
from cnnkit_superres import args, example
from cnnkit_superres.metrics import modcrop, psnr, ssim
from cnnkit_superres.models.span import merge_state
from cnnkit_superres.resize import imresize
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_images

RECIPES = Path(__file__).parents[2] / "configs" / "superres"
PACKAGE = Path(example.__file__).parent
NOTE = f"Trained on the photographs of scikit-image and scikit-learn without {', '.join(example.HELD_OUT)}, which it was measured on."


@dataclass(frozen=True)
class Row:
    """Y-PSNR in dB and SSIM of one held-out photograph at one scale, by the network and by bicubic interpolation."""

    name: str
    scale: int
    network: tuple[float, float]
    bicubic: tuple[float, float]


def pictures() -> Iterable[tuple[str, np.ndarray]]:
    """Yield every picture to train on, and its half where that leaves enough of it: a JPEG's blocks shrink away."""
    for name in example.TRAINED:
        yield name, example.photograph(name)
    right = data.stereo_motorcycle()[1]
    yield "motorcycle_right", right
    bunch = load_sample_images()
    yield from ((Path(file).stem, image) for file, image in zip(bunch.filenames, bunch.images, strict=True))


def write_pictures(folder: Path) -> Path:
    """Write the pictures to train on as PNG files and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in pictures():
        for suffix, pixels in (("", image), ("_half", imresize(image, 0.5))):
            if min(pixels.shape[:2]) >= 200:
                Image.fromarray(pixels.squeeze()).save(folder / f"{name}{suffix}.png")
    return folder


def train(work: Path, scale: int, folder: Path, init: Path | None, overrides: tuple[str, ...]) -> Path:
    """Train one scale and return the checkpoint of the last epoch."""
    plugin = get("superres")
    kind: Any = plugin.load_task()
    cfg = build(kind.Config, file=RECIPES / f"photo_x{scale}.yaml", overrides=(f"data.train=[{folder}]", *overrides))
    return fit(kind(cfg), output=work / f"x{scale}", plugin=plugin, init=init).last


def first_weights(trained: Path, work: Path) -> Path:
    """Return the weights of x2 with the four maps of each colour's last convolution repeated four times, as a start for x4."""
    header, state = load_checkpoint(trained)
    for key in ("upsampler.0.weight", "upsampler.0.bias"):
        maps = state[key].unflatten(0, (3, 2, 2))
        state[key] = maps.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(0, 2).contiguous()
    network = {**header.config["network"], "name": "superres/span_x4"}
    return save_checkpoint(work / "start_x4.ckpt", state, replace(header, config={**header.config, "network": network}))


def measure(loaded: Loaded) -> list[Row]:
    """Reduce each held-out photograph, enlarge it again, and compare."""
    rows = []
    for name in example.HELD_OUT:
        scale = loaded.task.scale
        large = modcrop(example.photograph(name), scale)
        small = imresize(large, 1 / scale)
        with torch.no_grad():
            (prediction,) = loaded.task.predict(loaded.model, {"name": name, "pixels": small})
        found = (next(iter(prediction.frames)).pixels, imresize(small, scale))
        ours, theirs = ((psnr(pixels, large, crop=scale), ssim(pixels, large, crop=scale)) for pixels in found)
        rows.append(Row(name, scale, ours, theirs))
    return rows


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| held-out photograph | scale | network: Y-PSNR, SSIM | bicubic | gain |", "|---|---|---|---|---|"]
    for row in rows:
        ours, theirs = (f"{values[0]:.2f} dB, {values[1]:.4f}" for values in (row.network, row.bicubic))
        lines.append(f"| {row.name} | {row.scale} | {ours} | {theirs} | {row.network[0] - row.bicubic[0]:+.2f} dB |")
    return "\n".join(lines) + "\n"


def install(checkpoint: Path, rows: list[Row], target: Path) -> Path:
    """Write the network, merged, to where the plugin looks for it, with its figures and without the paths of this machine."""
    header, state = load_checkpoint(checkpoint)
    network = {**header.config["network"], "args": {**header.config["network"]["args"], "merged": True}}
    settings = {**header.config, "network": network, "data": {**header.config["data"], "train": []}}
    metrics = {f"{row.name}/psnr": round(row.network[0], 3) for row in rows}
    return save_checkpoint(target, merge_state(state), replace(header, config=settings, metrics=metrics, note=NOTE))


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for pictures, trainings and RESULT.md.")
@click.option("--measure-only", is_flag=True, help="Measure and install what --work holds, and train nothing.")
@click.option("--install/--no-install", "installing", default=False, help="Write the checkpoints to weights/ of the plugin.")
@click.option("--set", "overrides", multiple=True, help="KEY=VALUE over the recipes.")
def main(work: Path, measure_only: bool, installing: bool, overrides: tuple[str, ...]) -> None:
    """Train, measure and install the built-in checkpoints of superres."""
    rows: list[Row] = []
    init = None
    folder = work / "pictures" if measure_only else write_pictures(work / "pictures")
    for scale, target in sorted(args.BUILTIN.items()):
        trained = work / f"x{scale}" / "last.ckpt" if measure_only else train(work, scale, folder, init, overrides)
        found = measure(load(trained))
        if installing:
            print(f"wrote {install(trained, found, PACKAGE / target)}", file=sys.stderr)
        rows += found
        if scale == 2:
            init = first_weights(trained, work)
    click.echo(table(rows))
    write_text(work / "RESULT.md", table(rows))


if __name__ == "__main__":
    main()
