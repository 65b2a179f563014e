"""Optimizers and schedules against their closed forms, and the sampling rules against counting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cnnkit.engine.config import OptimizerConfig
from cnnkit.engine.optim import build_optimizer, lr_factor, parameter_groups
from cnnkit.engine.sampling import EachOnce, EpochSampler, PositionSampler, item_rng, position_seed
from cnnkit.errors import ConfigError
from torch import nn


def network() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 1, 1, bias=False))


def rates(config: OptimizerConfig, steps: int) -> list[float]:
    """Learning rates that the optimizer really has in each step."""
    built = build_optimizer(network(), config, steps)
    assert built["lr_scheduler"]["interval"] == "step"
    seen = []
    for _ in range(steps):
        seen.append(built["optimizer"].param_groups[0]["lr"])
        built["optimizer"].step()
        built["lr_scheduler"]["scheduler"].step()
    return seen


@pytest.mark.parametrize(
    ("schedule", "form"),
    [
        ("constant", lambda t: 1.0),
        ("cosine", lambda t: math.cos(math.pi * t / 2) ** 2),  # The half-angle form of (1 + cos) / 2.
        ("poly", lambda t: math.exp(0.9 * math.log1p(-t))),
    ],
)
def test_schedules_follow_their_closed_forms(schedule, form):
    config = OptimizerConfig(lr=0.3, schedule=schedule, warmup_steps=4)
    expected = [0.3 * k / 5 for k in (1, 2, 3, 4)] + [0.3 * form((step - 4) / 16) for step in range(4, 20)]
    assert rates(config, 20) == pytest.approx(expected, rel=1e-12)


def test_schedules_end_at_zero_and_stay_there():
    for schedule in ("cosine", "poly"):
        config = OptimizerConfig(schedule=schedule)
        assert lr_factor(config, 10, 10) == pytest.approx(0.0, abs=1e-15) == lr_factor(config, 99, 10)


def test_cosine_agrees_with_torch():
    model = nn.Linear(1, 1)
    reference = torch.optim.SGD(model.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=10)
    expected = []
    for _ in range(10):
        expected.append(reference.param_groups[0]["lr"])
        reference.step()
        schedule.step()
    assert rates(OptimizerConfig(lr=0.5, schedule="cosine"), 10) == pytest.approx(expected, rel=1e-9)


def test_kinds_of_optimizer():
    sgd = build_optimizer(network(), OptimizerConfig(name="sgd", momentum=0.99, weight_decay=3e-5), 5)["optimizer"]
    assert type(sgd) is torch.optim.SGD and sgd.defaults["nesterov"] and sgd.param_groups[0]["weight_decay"] == 3e-5
    assert not build_optimizer(network(), OptimizerConfig(name="sgd", momentum=0.0), 5)["optimizer"].defaults["nesterov"]
    adam = build_optimizer(network(), OptimizerConfig(name="adam", betas=(0.8, 0.9)), 5)["optimizer"]
    assert type(adam) is torch.optim.Adam and adam.param_groups[0]["betas"] == (0.8, 0.9)
    assert type(build_optimizer(network(), OptimizerConfig(name="adamw"), 5)["optimizer"]) is torch.optim.AdamW


def test_biases_and_norms_may_go_without_decay():
    model = network()
    decayed, free = parameter_groups(model, OptimizerConfig(weight_decay=0.1, decay_norms=False))
    assert decayed["weight_decay"] == 0.1 and {id(p) for p in decayed["params"]} == {id(model[0].weight), id(model[3].weight)}
    assert free["weight_decay"] == 0.0 and {id(p) for p in free["params"]} == {id(model[0].bias), id(model[1].weight), id(model[1].bias)}
    (everything,) = parameter_groups(model, OptimizerConfig(weight_decay=0.1))
    assert len(everything["params"]) == 5
    model.no_weight_decay = lambda: {"3.weight"}
    assert len(parameter_groups(model, OptimizerConfig(weight_decay=0.1, decay_norms=False))[0]["params"]) == 1
    model[0].weight.requires_grad_(False)
    assert len(parameter_groups(model, OptimizerConfig())[0]["params"]) == 4


@pytest.mark.parametrize(
    ("config", "steps", "message"),
    [
        (OptimizerConfig(lr=0.0), 5, "lr is 0.0"),
        (OptimizerConfig(schedule="poly"), None, "schedule=constant"),
        (OptimizerConfig(warmup_steps=5), 5, "warmup_steps=5"),
    ],
)
def test_wrong_values_are_explained(config, steps, message):
    with pytest.raises(ConfigError, match=message):
        build_optimizer(network(), config, steps)
    with pytest.raises(ConfigError, match="nothing to train"):
        build_optimizer(nn.ReLU(), OptimizerConfig(), 5)


@pytest.mark.parametrize(("length", "samples", "world"), [(12, None, 3), (10, None, 4), (5, 17, 2), (7, 3, 2)])
def test_processes_share_an_epoch(length, samples, world, monkeypatch):
    """What one process sees in a batch of ``world * k`` is what ``world`` processes see in batches of ``k``."""
    sampler = EpochSampler(length, seed=3, samples=samples)
    sampler.set_epoch(2)
    whole = list(sampler)
    assert len(whole) == len(sampler) == (samples or length)
    assert np.bincount(whole, minlength=length).max() - np.bincount(whole, minlength=length).min() <= 1  # Each as often as the others.
    parts = []
    for rank in range(world):
        monkeypatch.setattr("cnnkit.engine.sampling.process", lambda rank=rank: (rank, world))
        parts.append(list(sampler))
        assert len(parts[-1]) == len(sampler) == math.ceil(len(whole) / world)
    dealt = [index for together in zip(*parts, strict=True) for index in together]
    assert dealt[: len(whole)] == whole
    assert dealt[len(whole) :] == whole[: len(dealt) - len(whole)]


def test_evaluation_sees_each_item_once(monkeypatch):
    seen = []
    for rank in range(3):
        monkeypatch.setattr("cnnkit.engine.sampling.process", lambda rank=rank: (rank, 3))
        sampler = EpochSampler(7, seed=0, shuffle=False, even=False)
        seen += list(sampler)
        assert len(list(sampler)) == len(sampler)
    assert sorted(seen) == list(range(7))


def test_order_depends_on_seed_and_epoch_alone():
    sampler, other = EpochSampler(50, seed=1), EpochSampler(50, seed=2)
    first = list(sampler)
    assert first == list(sampler) != list(other)
    sampler.set_epoch(1)
    assert sorted(list(sampler)) == sorted(first) and list(sampler) != first


@pytest.mark.parametrize("count", [0, 2, 7])
def test_batches_to_measure_on_come_once(count, monkeypatch):
    """Over all processes each one, made when it is asked for, and again in the next round."""
    seen = []
    for rank in range(3):
        monkeypatch.setattr("cnnkit.engine.sampling.process", lambda rank=rank: (rank, 3))
        made: list[int] = []
        batches = EachOnce(count, lambda number, made=made: made.append(number) or 10 * number)
        first = next(iter(batches), None)
        assert made == [rank][: count > rank] and first == (10 * rank if count > rank else None)
        assert list(batches) == list(batches) == list(range(10 * rank, 10 * count, 30)) and len(batches) == len(list(batches))
        seen += list(batches)
    assert sorted(seen) == list(range(0, 10 * count, 10))


def test_item_randomness_is_a_function_of_the_position():
    draw = item_rng(1, 2, 3).random(4)
    assert (draw == item_rng(1, 2, 3).random(4)).all()
    others = [item_rng(*position).random(4) for position in ((0, 2, 3), (1, 0, 3), (1, 3, 2), (1, 2, 4))]
    assert all((draw != other).any() for other in others)
    assert 0 <= position_seed(1, 2) < 2**63 and position_seed(1, 2) != position_seed(2, 1)


def test_processes_share_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every item comes as often, and the parts of the processes make up the batch."""
    sampler = PositionSampler(3, batch_size=6, steps=4, seed=1)
    sampler.set_epoch(2)
    whole = list(sampler)
    assert [len(batch) for batch in whole] == [6] * 4 and {epoch for batch in whole for epoch, _, _ in batch} == {2}
    assert [place for batch in whole for _, place, _ in batch] == list(range(24))
    assert np.bincount([item for batch in whole for _, _, item in batch]).tolist() == [8, 8, 8]
    shares = []
    for rank in range(3):
        monkeypatch.setattr("cnnkit.engine.sampling.process", lambda rank=rank: (rank, 3))
        shares.append(list(sampler))
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(batch) == sorted(position for part in parts for position in part) and {len(part) for part in parts} == {2}
    monkeypatch.setattr("cnnkit.engine.sampling.process", lambda: (0, 4))
    with pytest.raises(ConfigError, match=r"data\.batch_size=6"):
        list(sampler)


def test_weights_choose_how_often_an_item_comes() -> None:
    """In proportion, and anew in each epoch."""
    sampler = PositionSampler(3, batch_size=50, steps=40, seed=0, weights=(1, 0, 3))
    items = [item for batch in sampler for _, _, item in batch]
    counts = np.bincount(items, minlength=3)
    assert counts[1] == 0 and counts[2] / counts[0] == pytest.approx(3, rel=0.2)
    assert items == [item for batch in sampler for _, _, item in batch]
    sampler.set_epoch(1)
    assert items != [item for batch in sampler for _, _, item in batch]
