"""Pruning: zeros that stay, ranks against their definition, and removed channels against silenced ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cnnkit.count import count_params
from cnnkit.errors import ConfigError, UsageError
from cnnkit.testing.compare import assert_near, randomise
from cnnkit_audio.compress.chain import Swap, as_chain, links, run, shapes
from cnnkit_audio.compress.pruning import choose, floors, keep_channels, magnitudes, schedule, silenced, taylor
from cnnkit_audio.compress.sizes import Shape, measure
from cnnkit_audio.compress.sparsity import Sparsity
from cnnkit_audio.compress.training import Distillation, stream, train
from cnnkit_audio.models.acdnet import MICRO, ACDNet
from torch import nn

pytestmark = pytest.mark.paper("acdnet")

NARROW = (3, 6, 4, 5, 4, 6, 5, 7, 6, 8, 7, 5)


def clips(length: int = 4000, batch: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.rand(batch, 1, length, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def small(**words: Any) -> Any:
    """Return a network of random weights whose normalisations fit its data, so that no rectifier shuts everything off."""
    model: Any = randomise(ACDNet(**{"channels": NARROW, "length": 4000, "num_classes": 3, **words}), gain=2.0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    with torch.no_grad():
        for seed in range(20):
            model.train()(clips(batch=8, seed=seed))
    return model.eval()


def batches(count: int = 3, batch: int = 2) -> list[dict[str, torch.Tensor]]:
    targets = torch.eye(3)
    return [{"sound": clips(batch=batch, seed=seed), "target": targets[(torch.arange(batch) + seed) % 3]} for seed in range(count)]


def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(batch["sound"]), batch["target"])


def some(widths, seed: int, *, rows: int | None = None) -> list[torch.Tensor]:
    """Return some channels of each convolution; of the second, which become rows, all but if ``rows`` says how many."""
    generator = torch.Generator().manual_seed(seed)
    kept = [torch.randperm(width, generator=generator)[: max(1, 2 * width // 3)].sort().values for width in widths]
    kept[1] = torch.arange(widths[1]) if rows is None else torch.randperm(widths[1], generator=generator)[:rows].sort().values
    return kept


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("channels", [NARROW, MICRO])
def test_a_network_without_channels_computes_what_one_with_silent_channels_does(channels, seed):
    model, x = small(channels=channels), clips()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kept = some(channels, seed)
    pruned, silent = keep_channels(model, kept), silenced(model, kept)
    assert pruned.widths == tuple(len(each) for each in kept) and count_params(pruned) < count_params(model) == count_params(silent)
    with torch.no_grad():
        assert_near(pruned(x), silent(x), 1e-6)
        assert float((silent(x) - model(x)).abs().max()) > 1e-3 * float(model(x).abs().max())
        assert_near(pruned.double()(x.double()), silent.double()(x.double()), 1e-12)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_removed_row_brings_its_neighbours_together():
    """The second convolution's channels are rows of the picture: without them the picture is smaller, as in the paper."""
    channels = (3, 40, *NARROW[2:])
    model, x = small(channels=channels), clips()
    kept = some(channels, 0, rows=36)
    kept = [torch.arange(width) if index != 1 else kept[1] for index, width in enumerate(channels)]
    pruned = keep_channels(model, kept)
    with torch.no_grad():
        rows = model.sfeb(x[:, :, None])[:, kept[1]]
        assert_near(pruned(x), model.tfeb(rows.transpose(1, 2)), 1e-6)


def test_the_poolings_follow_the_rows():
    model = small(channels=(3, 40, *NARROW[2:]))
    for rows in (33, 32, 31, 9, 2, 1):
        pruned = keep_channels(model, some(model.widths, 1, rows=rows))
        assert pruned(clips()).shape == (2, 3)


def test_ranks_by_magnitude():
    model = small()
    ranks = magnitudes(model)
    assert [len(rank) for rank in ranks] == list(NARROW)
    sums = torch.tensor([float(kernel.detach().abs().sum()) for kernel in model.tfeb[4].weight])
    assert_near(ranks[3], sums / sums.square().sum().sqrt(), 1e-6)


def test_ranks_by_taylor_are_the_slope_of_the_loss_as_a_channel_fades():
    """Against gates that multiply the rectified channels, one clip at a time."""
    model, data = small(), batches(2)
    found = taylor(model, data, loss)
    conv, relu, index = model.tfeb[7], model.tfeb[9], 4  # A convolution with its rectifier.
    assert links(model)[index].layer is conv
    totals = torch.zeros(NARROW[index])
    for batch in data:
        for clip in range(2):
            gate = torch.ones(1, NARROW[index], 1, 1, requires_grad=True)
            handle = relu.register_forward_hook(lambda module, args, out, gate=gate: out * gate)
            loss(model, {key: value[clip : clip + 1] for key, value in batch.items()}).backward()
            handle.remove()
            assert gate.grad is not None
            totals += gate.grad.flatten().abs()
    assert_near(found[index], totals / totals.norm(), 1e-4)
    assert all(float(rank.norm()) == pytest.approx(1, abs=1e-5) for rank in found)


def test_ranking_leaves_the_network_as_it_was():
    model = small().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.zero_grad()
    first = taylor(model, batches(), loss)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(one, other) for one, other in zip(first, taylor(model, batches(), loss), strict=True))


def test_batch_statistics_would_hide_what_a_channel_is_worth():
    """Why ranks are taken in evaluation: behind a normalisation by the batch, activation times gradient sums to zero for every channel."""
    model = small().train()
    seen: list[torch.Tensor] = []
    handle = model.tfeb[4].register_forward_hook(lambda module, args, out: seen.append(out))
    value = loss(model, batches(1, batch=4)[0])
    handle.remove()
    (gradient,) = torch.autograd.grad(value, seen)
    products = seen[0].detach() * gradient
    assert float(products.sum((0, 2, 3)).abs().max()) < 1e-3 * float(products.abs().sum((0, 2, 3)).max())


@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
def test_the_lowest_ranks_go_until_the_size_is_reached(share):
    model = small(channels=MICRO)
    target, ranks = int(share * count_params(model)), magnitudes(model)
    least = [2] * 12
    kept = choose(model, ranks, target, least=least)
    pruned = keep_channels(model, kept)
    assert 0.93 * target < count_params(pruned) <= target
    gone = [(float(rank[channel]), layer) for layer, rank in enumerate(ranks) for channel in range(len(rank)) if channel not in kept[layer]]
    stays = [float(rank[channel]) for layer, rank in enumerate(ranks) for channel in kept[layer].tolist() if len(kept[layer]) > 2]
    assert gone and max(gone)[0] <= min(stays)
    assert min(len(each) for each in kept) >= 2


def test_every_layer_keeps_some():
    assert floors(small(channels=MICRO), 0.1) == [2, 5, 2, 2, 3, 4, 4, 5, 6, 7, 7, 5]
    assert floors(small(channels=(1, *MICRO[1:])), 0.0) == [1, 5, *[2] * 10]
    model = small(channels=MICRO)
    least = floors(model, 0.5)
    kept = choose(model, magnitudes(model), int(0.35 * count_params(model)), least=least)
    assert all(len(each) >= floor for each, floor in zip(kept, least, strict=True))


def test_what_cannot_be_reached_is_said():
    model = small()
    with pytest.raises(ConfigError, match=r"with the least channels, 2, 2, .* the network has \d+ parameters; 10 cannot be reached"):
        choose(model, magnitudes(model), 10, least=[2] * 12)
    for keep, rounds in ((0.0, 3), (1.5, 3), (0.5, 0)):
        with pytest.raises(ConfigError, match="keep="):
            schedule(1000, keep, rounds)
    assert schedule(1000, 0.125, 3) == [500, 250, 125]


@pytest.mark.parametrize("channels", [NARROW, MICRO, None])
def test_parameters_are_counted_without_building(channels):
    model = ACDNet(channels=channels, length=4000, num_classes=7) if channels else ACDNet(num_classes=5, channels=[9] * 12, length=4000)
    assert Shape.of(model).parameters(model.widths) == count_params(model) == measure(model).parameters


@pytest.mark.parametrize("regrow", [False, True])
def test_zeros_stay_while_the_rest_is_trained(regrow):
    model = small()
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    total, largest = sum(weight.numel() for weight in weights), max(float(weight.detach().abs().max()) for weight in weights)
    masks = Sparsity(model, 0.8, regrow=regrow)
    zeros = [weight == 0 for weight in weights]
    assert sum(int(zero.sum()) for zero in zeros) == round(0.8 * total)
    assert max(float(weight.detach().abs().max()) for weight in weights) == largest  # The large ones are those that stay.
    before = [weight.clone() for weight in weights]
    train(model, stream(lambda epoch: batches()), loss, steps=5, lr=0.3, after_step=masks.apply)
    assert sum(int((weight == 0).sum()) for weight in weights) == round(0.8 * total)
    assert all(not torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
    same = all(torch.equal(weight == 0, zero) for weight, zero in zip(weights, zeros, strict=True))
    assert same is not regrow
    assert measure(model).sparsity == pytest.approx(round(0.8 * total) / count_params(model), abs=0.01)


def test_equal_weights_make_no_more_zeros_than_asked_for():
    layer = nn.Linear(10, 10)
    nn.init.ones_(layer.weight)
    Sparsity(layer, 0.3)
    assert int((layer.weight == 0).sum()) == 30
    for share in (1.0, -0.1):
        with pytest.raises(ConfigError, match="accepted: 0 to below 1"):
            Sparsity(layer, share)


def test_distillation_is_its_formula():
    """With soft targets by explicit sums; nothing is left to learn from a teacher that one agrees with."""
    teacher, student, batch = small(), small(num_classes=3), batches(1)[0]
    randomise(student, seed=5, gain=2.0)
    found = Distillation(teacher, temperature=3.0, alpha=0.2)(student, batch).detach()
    with torch.no_grad():
        s, t = student(batch["sound"]).double(), teacher(batch["sound"]).double()
    p, q = torch.softmax(t / 3, 1), torch.softmax(s / 3, 1)
    soft = (p * (p / q).log()).sum(1).mean() * 9
    hard = -(batch["target"] * torch.log_softmax(s, 1)).sum(1).mean()
    assert float(found) == pytest.approx(float(0.8 * soft + 0.2 * hard), rel=1e-4)
    assert float(Distillation(teacher, alpha=0.0)(copy.deepcopy(teacher), batch).detach()) == pytest.approx(0, abs=1e-6)


def test_a_chain_is_its_network():
    model = small()
    assert torch.equal(run(model, clips()), model(clips()))
    assert [type(module) for module, _, _ in shapes(model)] == [type(module) for module in model.chain()]
    assert shapes(model)[-1][2] == (3,)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.ReLU(), nn.Conv2d(1, 2, 3)], "begins with a convolution, not with ReLU"),
        ([nn.Conv2d(2, 2, 3, groups=2)], "groups"),
        ([nn.Conv2d(1, 2, 3, padding="same")], "padding by name"),
        ([nn.Conv2d(1, 2, 3), nn.ReLU(), nn.BatchNorm2d(2)], "does not belong behind"),
        ([nn.Conv2d(1, 2, 3), nn.MaxPool2d(3, stride=2)], "overlaps or pads"),
        ([nn.Conv2d(1, 2, 3), nn.Sigmoid()], "does not belong behind"),
    ],
)
def test_what_is_no_chain_is_refused(layers, message):
    class Odd(nn.Module):
        widths, length = (2,), 100

        def chain(self) -> list[nn.Module]:
            return layers

        def resized(self, widths: Any) -> nn.Module:
            return self

    with pytest.raises(UsageError, match=message):
        links(as_chain(Odd()))
    with pytest.raises(UsageError, match="Swap cannot be compressed"):
        as_chain(Swap())
