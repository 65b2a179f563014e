"""The whole way: sparse weights, fewer channels round by round, training, 8 bits; with every network measured on the same data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from cnnkit.count import count_params
from cnnkit.errors import ConfigError

from cnnkit_audio.compress.chain import as_chain
from cnnkit_audio.compress.pruning import Rank, choose, floors, keep_channels, magnitudes, schedule, taylor
from cnnkit_audio.compress.quantize import Quantised, quantise
from cnnkit_audio.compress.report import Step
from cnnkit_audio.compress.sizes import measure, measure_quantised
from cnnkit_audio.compress.sparsity import Sparsity
from cnnkit_audio.compress.tagger import QuantisedTagger
from cnnkit_audio.compress.training import Batch, Batches, Distillation, Loss, refresh_statistics, stream, train
from cnnkit_audio.models._base import Tagger

Evaluate = Callable[[Tagger], float]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How a network is compressed.

    Args:
        keep: Share of the parameters that stays.
        sparsity: Share of single weights that the first step sets to zero; 0 leaves the step out.
        rank: How channels are compared: ``"taylor"`` or ``"magnitude"``.
        floor: Share of its channels that every layer keeps; of those that become rows a quarter stays.
        rounds: Prunings of channels, with training after each.
        sparse_steps: Steps of training with the masks of the first step.
        round_steps: Steps of training after each round.
        final_steps: Steps of training at the end.
        lr: Largest learning rate of the last training; the others have a third of it.
        rank_batches: Batches that the ranks are taken on.
        calibration: Batches that the statistics of normalisations and the ranges of activations are taken on.
        distil: Also train a network of the same widths and fresh weights under the large one, to compare.
        temperature: Of that.
    """

    keep: float = 0.03
    sparsity: float = 0.5
    rank: Rank = "taylor"
    floor: float = 0.1
    rounds: int = 20
    sparse_steps: int = 200
    round_steps: int = 50
    final_steps: int = 1000
    lr: float = 3e-3
    rank_batches: int = 8
    calibration: int = 8
    distil: bool = False
    temperature: float = 4.0

    def __post_init__(self) -> None:
        schedule(1, self.keep, self.rounds)
        if not (0 <= self.sparsity < 1 and 0 <= self.floor <= 1):
            raise ConfigError(f"sparsity={self.sparsity}, floor={self.floor}: accepted are shares, 0 to below 1 and 0 to 1")
        if min(self.sparse_steps, self.round_steps, self.final_steps) < 0 or min(self.rank_batches, self.calibration) < 1:
            raise ConfigError("steps are 0 or more, and ranks and calibration need one batch or more")


@dataclass(frozen=True)
class Compressed:
    """What comes out.

    Args:
        model: The pruned network, in 32 bits.
        quantised: The same in integers.
        steps: The networks on the way, measured.
    """

    model: Tagger
    quantised: Quantised
    steps: tuple[Step, ...]


def compress(
    model: Tagger, batches: Batches, loss: Loss, evaluate: Evaluate, plan: Plan | None = None, *, say: Say = lambda text: None
) -> Compressed:
    """Compress a trained network.

    Args:
        model: A network whose layers are a chain; it is left as it was.
        batches: The batches of an epoch of its training data.
        loss: What it was trained with.
        evaluate: Returns how good a network is, on other data.
        plan: How.
        say: Told what happens.

    Raises:
        UsageError: If the network is no chain, or there are no data.
        ConfigError: If so few parameters cannot be reached.
    """
    plan = plan or Plan()
    as_chain(model)
    data = stream(batches)
    steps: list[Step] = []

    def note(name: str, network: Tagger) -> None:
        steps.append(Step(name, measure(network), evaluate(network.eval())))
        say(f"{name}: {steps[-1].size.parameters:,} parameters, {steps[-1].figure:.1%}")

    note("as given", model)
    small = _sparse(model, data, loss, plan)
    if plan.sparsity:
        note("sparse", small)
    small = _narrow(small, data, loss, plan, say)
    note("pruned", small)
    train(small, data, loss, steps=plan.final_steps, lr=plan.lr)
    refresh_statistics(small, islice(data, plan.calibration))
    note("pruned, trained", small)
    quantised = quantise(small, (batch["sound"] for batch in islice(data, plan.calibration)))
    steps.append(Step("8 bits", measure_quantised(quantised, as_chain(small)), evaluate(QuantisedTagger(quantised, small).eval())))
    say(f"8 bits: {quantised.bytes:,} bytes, {steps[-1].figure:.1%}")
    if plan.distil:
        note("distilled (to compare)", distilled(model, as_chain(small).widths, data, plan))
    return Compressed(small, quantised, tuple(steps))


def _sparse(model: Tagger, data: Iterator[Batch], loss: Loss, plan: Plan) -> Tagger:
    """Return a copy with most weights at zero, trained so."""
    copied: Tagger = keep_channels(model, [torch.arange(width) for width in as_chain(model).widths])
    if plan.sparsity:
        masks = Sparsity(copied, plan.sparsity)
        train(copied, data, loss, steps=plan.sparse_steps, lr=plan.lr / 3, after_step=masks.apply)
    return copied


def _narrow(model: Tagger, data: Iterator[Batch], loss: Loss, plan: Plan, say: Say) -> Tagger:
    """Return the network with few channels, pruned and trained round by round."""
    least = floors(model, plan.floor)
    for number, parameters in enumerate(schedule(count_params(model), plan.keep, plan.rounds), start=1):
        ranks = magnitudes(model) if plan.rank == "magnitude" else taylor(model, islice(data, plan.rank_batches), loss)
        model = keep_channels(model, choose(model, ranks, parameters, least=least))
        # After the last round the long training follows.
        if number < plan.rounds:
            train(model, data, loss, steps=plan.round_steps, lr=plan.lr / 3)
        refresh_statistics(model, islice(data, plan.calibration))
        say(f"round {number} of {plan.rounds}: {count_params(model):,} parameters")
    return model


def distilled(teacher: Tagger, widths: tuple[int, ...], data: Iterator[Batch], plan: Plan) -> Tagger:
    """Return a network of given widths that learnt from the large one, in as many steps as pruning took altogether."""
    student = as_chain(teacher).resized(widths).to(next(teacher.parameters()).device)
    assert isinstance(student, Tagger)
    steps = plan.final_steps + (plan.rounds - 1) * plan.round_steps + (plan.sparse_steps if plan.sparsity else 0)
    train(student, data, Distillation(teacher, temperature=plan.temperature), steps=steps, lr=plan.lr)
    refresh_statistics(student, islice(data, plan.calibration))
    return student
