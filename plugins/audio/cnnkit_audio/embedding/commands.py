"""``cnnkit audio verify`` and ``cnnkit audio search``. No torch at import."""

from __future__ import annotations

from pathlib import Path

import click

PATH = click.Path(path_type=Path)  # type: ignore[type-var]
_UNITS = {"k": 1e3, "M": 1e6, "G": 1e9}


@click.command()
@click.argument("one", type=PATH, metavar="A.wav")
@click.argument("other", type=PATH, metavar="B.wav")
@click.option("--ckpt", type=PATH, required=True, metavar="FILE", help="A checkpoint of an embedding network.")
@click.option("--threshold", type=float, metavar="COSINE", help="Least score of the same speaker; the checkpoint's own by default.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
def verify(one: Path, other: Path, ckpt: Path, threshold: float | None, device: str) -> None:
    """Print whether two recordings are of the same speaker: the cosine of their embeddings, and the decision."""
    from cnnkit_audio.embedding.verify import verify as decide

    verdict = decide(one, other, ckpt, threshold=threshold, device=device)
    words = "same speaker" if verdict.same else "different speakers"
    click.echo(f"{verdict.score:.4f} {words} (threshold {verdict.threshold:.4f})")


@click.command()
@click.option("--ckpt", type=PATH, required=True, metavar="FILE", help="A trained supernet.")
@click.option("-o", "--output", type=PATH, required=True, metavar="FOLDER", help="Where subnet.ckpt and search.csv are written.")
@click.option("--macs", metavar="NUMBER", help="Most multiply-adds for three seconds, as 200M or 1.4G.")
@click.option("--params", metavar="NUMBER", help="Most parameters, as 900k or 2.5M.")
@click.option("--samples", default=40, show_default=True, help="Sub-networks that are measured to learn the predictor from.")
@click.option("--finalists", default=8, show_default=True, help="Sub-networks found that are measured; the best is written.")
@click.option("--generations", default=100, show_default=True, help="Generations of the evolution.")
@click.option("--calibrate", default=1024, show_default=True, help="Clips that the statistics of a sub-network are computed from.")
@click.option("--seed", default=0, show_default=True, help="Seed of the search.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
def search(
    ckpt: Path,
    output: Path,
    macs: str | None,
    params: str | None,
    samples: int,
    finalists: int,
    generations: int,
    calibrate: int,
    seed: int,
    device: str,
) -> None:
    """Find the best sub-network of a supernet under a limit, cut it out, and write all that were measured as a table."""
    from cnnkit_audio.embedding.search import Limits, Plan, search_checkpoint

    limits = Limits(_number("--macs", macs), _number("--params", params))
    plan = Plan(samples=samples, finalists=finalists, generations=generations, calibrate=calibrate, seed=seed)
    best = search_checkpoint(ckpt, output, limits, plan, device=device, say=click.echo)
    click.echo(f"{best.subnet}: {best.subnet.macs() / 1e6:.4g} M multiply-adds, EER {100 * best.eer:.2f} %, in {output / 'subnet.ckpt'}")


def _number(option: str, text: str | None) -> float | None:
    """Read ``200M`` or ``200000000``."""
    from cnnkit.errors import UsageError

    if text is None:
        return None
    scale = _UNITS.get(text[-1:], 1.0)
    try:
        value = float(text[:-1] if text[-1:] in _UNITS else text) * scale
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UsageError(f"{option} {text!r} is no limit; accepted: a number above 0, also with k, M or G, as {option} 200M")
    return value
