"""``cnnkit audio compress``. No torch at import."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cnnkit_audio.compress.pipeline import Compressed, Plan
    from cnnkit_audio.compress.report import Report
    from cnnkit_audio.models._base import Tagger

PATH = click.Path(path_type=Path)  # type: ignore[type-var]


@click.command()
@click.option("--ckpt", type=PATH, required=True, metavar="FILE", help="Checkpoint of a trained audio/acdnet network.")
@click.option("--keep", type=float, default=0.03, show_default=True, metavar="SHARE", help="Share of the parameters that stays.")
@click.option("-o", "--output", type=PATH, required=True, metavar="FOLDER", help="Where the results go.")
@click.option("--rank", type=click.Choice(["taylor", "magnitude"]), default="taylor", show_default=True, help="How channels are compared.")
@click.option("--sparsity", type=float, default=0.5, show_default=True, metavar="SHARE", help="Single weights that become zero first.")
@click.option("--floor", type=float, default=0.1, show_default=True, metavar="SHARE", help="Share of its channels that every layer keeps.")
@click.option("--rounds", type=int, default=20, show_default=True, help="Prunings of channels, with training after each.")
@click.option("--sparse-epochs", type=float, default=2.0, show_default=True, help="Epochs with the sparse weights.")
@click.option("--round-epochs", type=float, default=0.5, show_default=True, help="Epochs after each round.")
@click.option("--epochs", type=float, default=20.0, show_default=True, help="Epochs at the end.")
@click.option("--lr", type=float, default=3e-3, show_default=True, help="Largest learning rate.")
@click.option("--distil", is_flag=True, help="Also train the small network from scratch under the large one, to compare.")
@click.option("--name", default="model", show_default=True, help="Prefix of the C code.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the checkpoint's configuration.")
def compress(ckpt: Path, output: Path, name: str, device: str, overrides: tuple[str, ...], **options: Any) -> None:
    """Make a trained network fit a microcontroller: prune it, train it again on its own data, quantise it, and write it as C.

    FOLDER gets NAME.c and NAME.h, the pruned network as small.ckpt, and report.md and report.json with sizes, operations and quality
    before and after, beside trivial methods.
    """
    from cnnkit.engine.device import pick_device
    from cnnkit.engine.files import writable_folder
    from cnnkit.engine.load import load

    from cnnkit_audio.compress.c_export import check_name
    from cnnkit_audio.compress.chain import as_chain
    from cnnkit_audio.compress.pipeline import compress as run

    check_name(name)
    where, folder = pick_device(device), writable_folder(output)
    loaded = load(ckpt, task="audio", overrides=overrides)
    as_chain(loaded.model)
    job = Job(loaded.task, where)
    plan = job.plan(**options)
    model: Any = loaded.model.to(where)
    found = run(model, job.batches, job.loss, job.evaluate, plan, say=lambda text: click.echo(text, err=True))
    report = write(found, job, folder, name, loaded.header)
    click.echo(report.markdown())


class Job:
    """A tagging task as the pipeline wants it: batches, a loss, and one figure.

    Args:
        task: The task of the checkpoint.
        device: Where it is computed.

    Raises:
        UsageError: If the task has no data to train or to measure on.
    """

    def __init__(self, task: Any, device: Any) -> None:
        from cnnkit.errors import UsageError

        self.task, self.device = task, device
        self.training = task.loader("train")
        self.held_out = task.loader("test") or task.loader("val")
        if not self.training or not self.held_out:
            raise UsageError("the checkpoint's configuration names no data; give them, as in --set tagging.data.folder=ESC-50")
        self.metric: str = task.monitor[0]

    def plan(self, *, sparse_epochs: float, round_epochs: float, epochs: float, **options: Any) -> Plan:
        """Return the plan in steps."""
        from cnnkit_audio.compress.pipeline import Plan

        steps = [round(value * len(self.training)) for value in (sparse_epochs, round_epochs, epochs)]
        return Plan(sparse_steps=steps[0], round_steps=steps[1], final_steps=steps[2], **options)

    def batches(self, epoch: int) -> Iterable[dict[str, Any]]:
        """Yield the training batches of an epoch."""
        from cnnkit.engine.device import to_device

        self.training.set_epoch(epoch)
        return (to_device(batch, self.device) for batch in self.training)

    def loss(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Return the task's loss."""
        return sum(self.task.losses(model, batch).values())  # type: ignore[return-value]

    def evaluate(self, model: Tagger) -> float:
        """Return the task's figure on the held-out clips."""
        import torch

        metric = self.task.metric()
        model.to(self.device).eval()
        with torch.no_grad():
            for batch in self.held_out:
                metric.update(self.task.predict(model, batch), batch)
        return float(metric.compute()[self.metric])

    def baselines(self, model: Tagger) -> dict[str, float]:
        """Return the figures of trivial methods that were fitted on an epoch of the training data."""
        import torch

        from cnnkit_audio.compress.baseline import Constant, MeanLogMel

        data = [{key: batch[key].cpu() for key in ("sound", "target")} for batch in self.batches(0)]
        often = torch.cat([batch["target"] for batch in data]).mean(0)
        regression = MeanLogMel(model, multilabel=self.task.cfg.tagging.multilabel).fit(data)
        return {
            "logistic regression on the mean log-mel spectrum": self.evaluate(regression),
            "always the most frequent label": self.evaluate(Constant(model, often)),
        }


def write(found: Compressed, job: Job, folder: Path, name: str, header: Any) -> Report:
    """Write the C code, the checkpoint and the report, and return the latter."""
    from dataclasses import replace

    from cnnkit.checkpoint import save_checkpoint

    from cnnkit_audio.compress.c_export import write_c
    from cnnkit_audio.compress.chain import as_chain
    from cnnkit_audio.compress.report import Report

    files = write_c(found.quantised, folder, name=name, labels=job.task.labels(), sample_rate=found.model.sample_rate)
    network = job.task.cfg.network
    args = {**network.args, "channels": list(as_chain(found.model).widths)}
    config = {**header.config, "network": {"name": network.name, "args": args}}
    figures = {job.metric: next(step.figure for step in found.steps if step.name == "pruned, trained")}
    save_checkpoint(folder / "small.ckpt", found.model.state_dict(), replace(header, config=config, metrics=figures))
    source = sum(file.stat().st_size for file in files)
    report = Report(found.steps, job.baselines(found.model), job.metric, len(job.held_out), found.quantised.arena, source)
    report.write(folder)
    return report
