"""``cnnkit audio ensemble`` and ``cnnkit audio fuse``. No torch at import."""

from __future__ import annotations

from pathlib import Path

import click

PATH = click.Path(path_type=Path)  # type: ignore[type-var]


@click.command()
@click.option("--config", "file", type=PATH, required=True, metavar="FILE", help="YAML file that declares the members.")
@click.option("-o", "--output", type=PATH, required=True, metavar="FOLDER", help="Where trainings, scores and results go.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the file, as --set base.train.epochs=30.")
@click.option("--device", default="auto", show_default=True, help="Where members listen: auto, cpu, cuda, cuda:1 ...")
@click.option("--progress/--no-progress", default=True, help="Show the progress of each training.")
def ensemble(file: Path, output: Path, overrides: tuple[str, ...], device: str, progress: bool) -> None:
    """Train the networks that a file declares, fuse them by the sum rule, and compare the ensemble with its members.

    The file names representations, augmentations, backbones and seeds; each combination is a member. Members are trained one at a time;
    type the same again to go on after a stop: what is finished is not done again. FOLDER gets ensemble.ckpt for cnnkit run audio,
    ensemble.md and ensemble.csv with the figures on held-out clips, and a folder for each member.
    """
    from cnnkit.config import build
    from cnnkit.engine.files import writable_folder

    from cnnkit_audio.ensemble import EnsembleConfig, run_ensemble

    declared = build(EnsembleConfig, file=file, overrides=overrides)
    declared.members()
    folder = writable_folder(output)
    result = run_ensemble(declared, folder, device=device, progress=progress, say=lambda text: click.echo(text, err=True))
    click.echo(result.markdown(), nl=False)


@click.command()
@click.argument("ckpts", type=PATH, nargs=-1, required=True, metavar="A.ckpt B.ckpt ...")
@click.option("-o", "--output", type=PATH, required=True, metavar="FILE", help="The checkpoint of the ensemble.")
def fuse(ckpts: tuple[Path, ...], output: Path) -> None:
    """Join trained networks for the same labels into one checkpoint, which answers with the mean of their confidences."""
    from cnnkit.errors import UsageError

    from cnnkit_audio.ensemble import fuse_checkpoints

    if len(ckpts) < 2:
        raise UsageError("an ensemble needs two checkpoints or more; type: cnnkit audio fuse A.ckpt B.ckpt -o ensemble.ckpt")
    if output.resolve() in {path.resolve() for path in ckpts}:
        raise UsageError(f"-o {output} is one of the networks to fuse; choose another file")
    fuse_checkpoints(ckpts, output)
    click.echo(f"{len(ckpts)} networks in {output}")
