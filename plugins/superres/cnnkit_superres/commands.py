"""``cnnkit superres cost`` and ``cnnkit superres merge``. No torch at import."""

from __future__ import annotations

from pathlib import Path

import click

PATH = click.Path(path_type=Path)  # type: ignore[type-var]


@click.command()
@click.argument("networks", nargs=-1, required=True, metavar="NAME|FILE...")
@click.option("--output-size", default="1280x720", show_default=True, metavar="WxH", help="Size of the enlarged picture.")
@click.option("--measure", is_flag=True, help="Run each network once and show time and memory too.")
def cost(networks: tuple[str, ...], output_size: str, measure: bool) -> None:
    """Print what networks cost, merged as they infer: parameters, multiply-adds, activations, convolutions.

    NAME is a registered network (superres/imdn_x4), FILE a checkpoint or weights that are recognised.
    """
    from cnnkit.errors import UsageError

    from cnnkit_superres.cost import Cost
    from cnnkit_superres.cost import cost as count

    width, separator, height = output_size.lower().partition("x")
    if not (separator and width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise UsageError(f"--output-size {output_size!r} is not a size; type for example --output-size 1280x720")
    click.echo(Cost.HEADER)
    for network in networks:
        click.echo(count(_network(network), output=(int(height), int(width)), measure=measure).markdown(network))


def _network(word: str):  # type: ignore[no-untyped-def]
    """Return the network of a file, or of a registered name."""
    if Path(word).is_file():
        from cnnkit.engine.load import load

        return load(word, task="superres").model
    from cnnkit.backbones import create_model
    from cnnkit.errors import UsageError

    from cnnkit_superres.models._base import SuperResolver

    model = create_model(word).eval()
    if not isinstance(model, SuperResolver):
        raise UsageError(f"{word} does not enlarge pictures; type cnnkit list to see the networks of superres")
    return model


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, metavar="FILE", help="The merged checkpoint.")
def merge(checkpoint: Path, output: Path) -> None:
    """Make low-rank adapters part of the network that they were trained on: the same pictures, at the network's own cost."""
    from dataclasses import replace

    from cnnkit.checkpoint import save_checkpoint
    from cnnkit.engine.load import load
    from cnnkit.errors import UsageError

    from cnnkit_superres.dsclora import merge_adapters

    loaded = load(checkpoint, task="superres")
    count = merge_adapters(loaded.model)
    if not count:
        raise UsageError(f"{checkpoint} has no adapters; there is nothing to merge")
    header = replace(loaded.header, config={**loaded.header.config, "adapters": None})
    save_checkpoint(output, loaded.model.state_dict(), header)
    click.echo(f"merged {count} adapters into {output}")
