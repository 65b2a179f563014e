"""``cnnkit medseg score``: label files against references, as a table and nnU-Net's ``summary.json``. No torch, no numpy at import."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from cnnkit.errors import ConfigError, InputError, UsageError

if TYPE_CHECKING:
    from cnnkit_medseg.metrics import FolderScores

PATH = click.Path(path_type=Path)  # type: ignore[type-var]
Classes = dict[str, int | tuple[int, ...]]

_METHODS = ("monai", "medpy", "surfel")  # As in cnnkit_medseg.surface, which imports numpy.


@click.command()
@click.argument("predictions", type=PATH)
@click.argument("references", type=PATH)
@click.option("--labels", metavar="YAML", help="Classes with their label, a list for a region: '{liver: 1, lesion: [2, 3]}'.")
@click.option("--dataset", type=PATH, metavar="FILE", help="Take the classes from a dataset.json (nnU-Net, Decathlon).")
@click.option("--ckpt", type=PATH, metavar="FILE", help="Take the classes from a checkpoint.")
@click.option("-o", "--output", type=PATH, metavar="FILE", help="Write nnU-Net's summary.json there.")
@click.option("--hd95", type=click.Choice(_METHODS), default="monai", show_default=True, help="Whose definition of HD95 and ASSD.")
@click.option("--tolerance", type=click.FloatRange(min=0), default=1.0, show_default=True, metavar="MM", help="Accepted deviation of NSD.")
@click.option("--surface/--no-surface", default=True, show_default=True, help="Compute HD95, ASSD and NSD too.")
@click.option(
    "--ignore-label", type=int, metavar="N", help="Leave out voxels whose reference has this label; the file's own if it has one."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; what is undefined or infinite is null.")
def score(
    predictions: Path,
    references: Path,
    labels: str | None,
    dataset: Path | None,
    ckpt: Path | None,
    output: Path | None,
    hd95: Any,
    tolerance: float,
    surface: bool,
    ignore_label: int | None,
    as_json: bool,
) -> int:
    """Score label files against references of the same names, in two folders.

    Prints Dice, IoU, HD95 and ASSD in mm and the normalised surface Dice (NSD) of every class as means over the cases. A case that
    cannot be scored is listed, the others count, and the exit status is 1.
    """
    classes, ignored = classes_of(labels=labels, dataset=dataset, ckpt=ckpt)
    summary = None if output is None else _summary_file(output)

    from cnnkit_medseg.metrics import SURFACES, score_folders

    scores = score_folders(
        predictions,
        references,
        classes,
        ignore_label=ignored if ignore_label is None else ignore_label,
        surface=SURFACES if surface else (),
        hd95_method=hd95,
        nsd_tolerance_mm=tolerance,
        progress=not as_json,
    )
    if summary is not None:
        from cnnkit.engine.files import write_text

        scores.files = [write_text(summary, json.dumps(scores.metric.summary(), indent=4, sort_keys=True) + "\n")]
    click.echo(json.dumps(_data(scores), indent=2, ensure_ascii=False) if as_json else _text(scores))
    for error in scores.errors.values():
        click.echo(f"error: {error}", err=True)
    return 1 if scores.errors else 0


def classes_of(*, labels: str | None = None, dataset: Path | None = None, ckpt: Path | None = None) -> tuple[Classes, int | None]:
    """Return the classes to score, without background, and the label to ignore, from the one source that is given.

    Args:
        labels: ``"{liver: 1, lesion: [2, 3]}"``.
        dataset: A ``dataset.json``; names by label (``{"1": "liver"}``) are understood too.
        ckpt: A checkpoint.

    Raises:
        UsageError: If none or several are given.
        ConfigError: If the source holds no classes.
        InputError: If the file cannot be read.
        CheckpointError: If the checkpoint is none.
    """
    given = [name for name, value in (("--labels", labels), ("--dataset", dataset), ("--ckpt", ckpt)) if value is not None]
    if len(given) != 1:
        found = f"{' and '.join(given)} were given" if given else "none was given"
        raise UsageError(f"{found}; name the classes once, by --labels '{{liver: 1}}', --dataset dataset.json or --ckpt FILE")
    if labels is not None:
        from cnnkit.config import parse_override

        return _classes(parse_override(f"labels={labels}")[1], f"--labels {labels!r}")
    if dataset is not None:
        return _classes(_read_json(dataset).get("labels"), f"labels in {dataset}")
    assert ckpt is not None

    from cnnkit.checkpoint import read_header

    config = read_header(ckpt).config
    classes, ignored = _classes(config.get("labels"), f"labels in {ckpt}")
    return classes, config.get("ignore_label", ignored)


def _classes(described: Any, source: str) -> tuple[Classes, int | None]:
    """Check names and labels, and take background and the label to ignore out of them."""
    expected = "classes with their label are expected, as in {liver: 1, lesion: [2, 3]}"
    if not isinstance(described, Mapping) or not described:
        raise ConfigError(f"{source}: {expected}, not {described!r}")
    if all(isinstance(name, str) for name in described.values()):  # {"1": "liver"}
        described = {name: int(label) if str(label).isdigit() else label for label, name in described.items()}
    classes: Classes = {}
    for name, value in described.items():
        members = value if isinstance(value, (list, tuple)) else (value,)
        if not members or not all(type(label) is int for label in members):
            raise ConfigError(f"{source}: {name} is {value!r}; {expected}")
        classes[str(name)] = tuple(members) if isinstance(value, (list, tuple)) else value
    classes.pop("background", None)
    ignored = classes.pop("ignore", None)
    if isinstance(ignored, tuple):
        raise ConfigError(f"{source}: ignore is {list(ignored)}; one label is expected")
    if not classes:
        raise ConfigError(f"{source}: nothing is left to score besides background; {expected}")
    return classes, ignored


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); give a dataset.json") from error
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds a {type(content).__name__}; a dataset.json is an object with the key 'labels'")
    return content


def _summary_file(output: Path) -> Path:
    """Return the file to write, and prove before the work that it can be written."""
    from cnnkit.engine.files import writable_folder

    path = output if output.suffix == ".json" and not output.is_dir() else output / "summary.json"
    writable_folder(path.parent)
    return path


def _shown(scores: FolderScores) -> list[str]:
    """Return the figures of the table: all but the counts of voxels."""
    return [name for name in scores.metric.figures if name not in ("FN", "FP", "TN", "TP", "n_pred", "n_ref")]


def _data(scores: FolderScores) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    means, overall = scores.metric.means(), scores.metric.compute()
    return {
        "cases": len(scores.metric.cases),
        "mean": {figure: _finite(overall[figure.lower()]) for figure in _shown(scores)},
        "classes": {name: {figure: _finite(value) for figure, value in row.items()} for name, row in means.items()},
        "errors": {case: str(error) for case, error in scores.errors.items()},
        "files": [str(path) for path in scores.files],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _text(scores: FolderScores) -> str:
    """Return the table: a row per class with the number of cases that have it, and the means; lengths in mm."""
    metric, figures = scores.metric, _shown(scores)
    means, overall = metric.means(), metric.compute()
    counts = {name: sum(not math.isnan(case.metrics[name]["Dice"]) for case in metric.cases.values()) for name in metric.labels}
    head = ["class", "label", "cases", *(f"{name} mm" if name.startswith(("HD95", "ASSD")) else name for name in figures)]
    rows = [
        [name, str(region), str(counts[name]), *(f"{means[name][figure]:.4f}" for figure in figures)]
        for name, region in metric.labels.items()
    ]
    rows.append(["mean", "", str(len(metric.cases)), *(f"{overall[figure.lower()]:.4f}" for figure in figures)])
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in (head, *rows)]
    return "\n".join([*lines, *map(str, scores.files)])
