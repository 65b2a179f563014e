"""Search in a trained supernet: a predictor of the EER, and an evolution under limits.

A few sub-networks are measured, a small network learns their EER from their choices, an evolution asks it thousands of times, and what it
finds is measured again. The same number of random sub-networks of the same cost is the baseline to compare with.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cnnkit.checkpoint import save_checkpoint
from cnnkit.config import from_dict
from cnnkit.engine.device import pick_device
from cnnkit.engine.evaluate import evaluate
from cnnkit.engine.files import writable_folder, write_rows
from cnnkit.engine.load import load
from cnnkit.errors import UsageError
from torch import Tensor, nn

from cnnkit_audio.embedding.data import stage_space
from cnnkit_audio.embedding.task import Embedding
from cnnkit_audio.models.efficient_tdnn import EfficientTDNN
from cnnkit_audio.models.efficient_tdnn_space import Space, SubNet
from cnnkit_audio.models.efficient_tdnn_supernet import EfficientTDNNSupernet, recalibrate

NAME = "audio/efficient_tdnn"
TRIES = 2000
"""Draws after which a limit counts as one that nothing keeps to."""


@dataclass(frozen=True)
class Limits:
    """What a sub-network may cost at most.

    Args:
        macs: Multiply-adds for three seconds.
        params: Parameters.
        least: Share of the multiply-adds that it must have, to compare networks of the same cost.
    """

    macs: float | None = None
    params: float | None = None
    least: float = 0.0

    def keep(self, subnet: SubNet) -> bool:
        """Tell whether a sub-network keeps to them."""
        fits = self.macs is None or self.least * self.macs <= subnet.macs() <= self.macs
        return fits and (self.params is None or subnet.params() <= self.params)


@dataclass(frozen=True)
class Plan:
    """How long a search is.

    Args:
        samples: Sub-networks that are measured to learn from.
        finalists: Found ones that are measured.
        generations: Generations of the evolution.
        population: Sub-networks in a generation.
        mutation: Chance of each choice to change.
        calibrate: Clips that statistics are computed from.
        seed: Seed.
    """

    samples: int = 40
    finalists: int = 8
    generations: int = 100
    population: int = 50
    mutation: float = 0.1
    calibrate: int = 1024
    seed: int = 0


@dataclass(frozen=True)
class Measured:
    """A sub-network and how well it does.

    Args:
        subnet: The sub-network.
        eer: Its equal error rate in the validation.
        how: ``"sample"`` or ``"found"``.
        predicted: What the predictor said; none for samples.
    """

    subnet: SubNet
    eer: float
    how: str
    predicted: float | None = None


class Predictor:
    """A small network that learns the EER of sub-networks from their choices, as several that are averaged.

    Args:
        space: What is chosen from.
        seed: Seed of the weights.
        members: How many are averaged.
    """

    def __init__(self, space: Space, *, seed: int = 0, members: int = 4) -> None:
        self.space = space
        width = len(space.encode(next(iter(space))))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.members = [
                nn.Sequential(nn.Linear(width + 1, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)) for _ in range(members)
            ]
        self.mean, self.std = 0.0, 1.0

    def fit(self, subnets: Sequence[SubNet], rates: Sequence[float], *, steps: int = 200) -> None:
        """Learn from measured sub-networks."""
        inputs, target = self._inputs(subnets), torch.tensor(rates, dtype=torch.float32)
        self.mean, self.std = float(target.mean()), max(float(target.std(correction=0)), 1e-6)
        target = (target - self.mean) / self.std
        for member in self.members:
            optimizer = torch.optim.AdamW(member.parameters(), lr=5e-3, weight_decay=0.3)
            for _ in range(steps):
                loss = (member(inputs)[:, 0] - target).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    @torch.no_grad()
    def predict(self, subnets: Sequence[SubNet]) -> np.ndarray:
        """Return the EER of sub-networks, ``(N,)``."""
        inputs = self._inputs(subnets)
        outputs = torch.stack([member(inputs)[:, 0] for member in self.members]).mean(0)
        return (outputs * self.std + self.mean).numpy()

    def _inputs(self, subnets: Sequence[SubNet]) -> Tensor:
        # Beside the choices, what they cost together: the strongest single hint.
        return torch.tensor([[*self.space.encode(subnet), np.log(subnet.macs()) - 18] for subnet in subnets], dtype=torch.float32)


def draw(space: Space, limits: Limits, count: int, rng: random.Random) -> list[SubNet]:
    """Draw different sub-networks that keep to limits; fewer if there are no more.

    Raises:
        UsageError: If none keeps to them.
    """
    found: dict[SubNet, None] = {}
    for _ in range(TRIES + 50 * count):
        subnet = space.sample(rng)
        if limits.keep(subnet):
            found[subnet] = None
        if len(found) == count:
            break
    if not found:
        cheapest = SubNet((space.channels[0],) * (space.depths[0] + 1), (space.kernels[0],) * (space.depths[0] + 1), space.cats[0])
        raise UsageError(
            f"no sub-network keeps to the limits; the smallest has {cheapest.macs() / 1e6:.4g} M multiply-adds "
            f"and {cheapest.params() / 1e6:.4g} M parameters"
        )
    return list(found)


def evolve(
    space: Space, limits: Limits, score: Callable[[Sequence[SubNet]], np.ndarray], plan: Plan, start: Sequence[SubNet]
) -> list[SubNet]:
    """Return the sub-networks with the least scores that an evolution meets, best first.

    In each generation the better half has children: of two parents, mutated; those that break a limit are not born.

    Args:
        space: What is chosen from.
        limits: What all must keep to.
        score: Returns the scores of sub-networks.
        plan: How long.
        start: First sub-networks, which keep to the limits.
    """
    rng = random.Random(plan.seed)
    scores = dict(zip(start, score(start).tolist(), strict=True))
    for _ in range(plan.generations):
        parents = sorted(scores, key=lambda subnet: scores[subnet])[: max(2, plan.population // 2)]
        children: dict[SubNet, None] = {}
        for _ in range(10 * plan.population):
            one, other = rng.choice(parents), rng.choice(parents)
            child = space.mutate(space.cross(one, other, rng), rng, plan.mutation)
            if child not in scores and limits.keep(child):
                children[child] = None
            if len(children) == plan.population:
                break
        if not children:
            break
        scores |= dict(zip(children, score(list(children)).tolist(), strict=True))
    return sorted(scores, key=lambda subnet: scores[subnet])


class Bench:
    """Measures sub-networks: cut out, recalibrated on training clips, and validated.

    Args:
        task: The supernet's task.
        model: The supernet.
        calibrate: Clips for the statistics.
        device: Where it is computed.
    """

    def __init__(self, task: Embedding, model: EfficientTDNNSupernet, *, calibrate: int, device: str = "auto") -> None:
        self.task, self.device = task, device
        self.model = model.to(pick_device(device)).eval()
        self.clips: list[Tensor] = []
        batches: Any = task.loader("train")
        for batch in batches:
            self.clips.append(batch["clip"].to(pick_device(device)))
            if sum(map(len, self.clips)) >= calibrate:
                break
        self._held: dict[str, list[Any]] = {}

    def cut(self, subnet: SubNet) -> EfficientTDNN:
        """Return a sub-network with statistics of its own."""
        network = self.model.extract(subnet)
        recalibrate(network, self.clips)
        return network.eval()

    def figures(self, network: EfficientTDNN, split: str = "val") -> dict[str, float]:
        """Return the figures of a network on the trials of a split."""
        if split not in self._held:
            batches = self.task.loader(split)
            if batches is None:
                raise UsageError(f"the supernet's configuration names no data for {split}; give embedding.folder and embedding.held_out")
            self._held[split] = list(batches)
        held = self._held[split]

        class Kept:
            """The task with batches that are kept in memory."""

            loader, predict, metric = staticmethod(lambda _: held), self.task.predict, self.task.metric

        return evaluate(Kept, network, split=split, device=self.device, progress=False)[0]


def search(bench: Bench, space: Space, limits: Limits, plan: Plan, say: Callable[[str], object] = lambda _: None) -> list[Measured]:
    """Search, and return every sub-network that was measured; those that were found come last.

    Args:
        bench: Measures.
        space: What is chosen from.
        limits: What the result may cost.
        plan: How long.
        say: Told how it goes.
    """
    rng = random.Random(plan.seed)
    measured = []
    samples = draw(space, limits, plan.samples, rng)
    for index, subnet in enumerate(samples, 1):
        measured.append(Measured(subnet, bench.figures(bench.cut(subnet))["eer"], "sample"))
        say(f"sample {index}/{len(samples)}: {subnet} {subnet.macs() / 1e6:.4g} M EER {100 * measured[-1].eer:.2f} %")
    predictor = Predictor(space, seed=plan.seed)
    predictor.fit([item.subnet for item in measured], [item.eer for item in measured])
    ranked = evolve(space, limits, predictor.predict, plan, samples)
    finalists = ranked[: plan.finalists]
    known = {item.subnet: item.eer for item in measured}
    for subnet, predicted in zip(finalists, predictor.predict(finalists).tolist(), strict=True):
        rate = known[subnet] if subnet in known else bench.figures(bench.cut(subnet))["eer"]
        measured.append(Measured(subnet, rate, "found", predicted))
        say(f"found: {subnet} {subnet.macs() / 1e6:.4g} M EER {100 * rate:.2f} % (predicted {100 * predicted:.2f} %)")
    return measured


def pareto(measured: Sequence[Measured]) -> set[SubNet]:
    """Return the sub-networks than which none is both cheaper and better."""
    best, chosen = float("inf"), set()
    for item in sorted(measured, key=lambda item: (item.subnet.macs(), item.eer)):
        if item.eer < best:
            best = item.eer
            chosen.add(item.subnet)
    return chosen


def write_table(path: Path, measured: Sequence[Measured]) -> Path:
    """Write every measured sub-network as a row of a csv file."""
    front = pareto(measured)
    rows: list[list[object]] = [["subnet", "macs", "params", "eer", "predicted_eer", "how", "pareto"]]
    for item in measured:
        predicted = "" if item.predicted is None else f"{item.predicted:.6f}"
        subnet = item.subnet
        rows.append([subnet, subnet.macs(), subnet.params(), f"{item.eer:.6f}", predicted, item.how, int(subnet in front)])
    return write_rows(path, rows)


def search_checkpoint(
    ckpt: Path, output: Path, limits: Limits, plan: Plan, *, device: str = "auto", say: Callable[[str], object] = lambda _: None
) -> Measured:
    """Search in a trained supernet, and write ``subnet.ckpt`` and ``search.csv``.

    Returns:
        The best sub-network that was measured.

    Raises:
        UsageError: If the checkpoint is no supernet, nothing keeps to the limits, or there are no data to validate on.
    """
    loaded = load(ckpt, task="audio")
    if not isinstance(loaded.model, EfficientTDNNSupernet):
        raise UsageError(
            f"{ckpt} holds {loaded.header.model}, in which nothing can be searched; give a trained audio/efficient_tdnn_supernet"
        )
    writable_folder(output)
    stages = loaded.task.cfg.embedding.stages
    largest = loaded.model.subnet
    space = stage_space(stages[-1], largest) if stages else Space.within(largest)
    bench = Bench(loaded.task, loaded.model, calibrate=plan.calibrate, device=device)
    measured = search(bench, space, limits, plan, say)
    best = min(measured, key=lambda item: (item.eer, item.subnet.macs()))
    network = bench.cut(best.subnet)
    subnet = best.subnet
    network_config = {"name": NAME, "args": {"channels": list(subnet.channels), "kernels": list(subnet.kernels), "cat": subnet.cat}}
    stored = dict(loaded.header.config)
    stored |= {"network": network_config, "embedding": {**stored["embedding"], "speakers": 0, "stages": []}}
    from_dict(type(loaded.task).Config, stored, source="the extracted configuration")
    header = replace(loaded.header, model=NAME, config=stored, metrics=bench.figures(network), note=f"cut out of a supernet: {subnet}")
    save_checkpoint(output / "subnet.ckpt", network.state_dict(), header)
    write_table(output / "search.csv", measured)
    return best
