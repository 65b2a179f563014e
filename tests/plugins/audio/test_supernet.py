"""The supernet: any sub-network is the same inside, cut out, and in the straightforward version; the space and the search."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from cnnkit.errors import ConfigError, UsageError
from cnnkit.testing.compare import assert_near, randomise
from cnnkit.weights import load_weights
from cnnkit_audio.embedding.search import Limits, Measured, Plan, Predictor, draw, evolve, pareto
from cnnkit_audio.models.efficient_tdnn_space import Space, SubNet
from cnnkit_audio.models.efficient_tdnn_supernet import EfficientTDNNSupernet, recalibrate

pytestmark = pytest.mark.paper("efficienttdnn")

LARGE = SubNet((48,) * 5, (5,) * 5, 64)
SPACE = Space.within(LARGE, widths=(0.34, 0.5, 0.75, 1.0), depths=(-3, -2, -1, 0))


def draws(count: int) -> list[SubNet]:
    rng = random.Random(0)
    return [SPACE.sample(rng) for _ in range(count)]


@pytest.fixture(scope="module")
def supernet() -> EfficientTDNNSupernet:
    return randomise(EfficientTDNNSupernet(channels=LARGE.channels, kernels=LARGE.kernels, cat=LARGE.cat)).eval()


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return 0.1 * torch.randn(2, 1, 4000, generator=torch.Generator().manual_seed(0))


def test_a_cut_out_network_is_what_it_was_inside(supernet: EfficientTDNNSupernet, clips: torch.Tensor) -> None:
    """Sub-networks of all depths, kernels and widths."""
    chosen = draws(16)
    assert {subnet.depth for subnet in chosen} == {1, 2, 3, 4}
    with torch.no_grad():
        for subnet in chosen:
            network = supernet.extract(subnet)
            assert network.subnet == subnet and not network.training
            assert_near(network(clips), supernet(clips, subnet), 1e-5)


@pytest.mark.parametrize("which", range(6))
def test_equal_to_the_straightforward_supernet(plain: Callable[[str], ModuleType], supernet: EfficientTDNNSupernet, which: int) -> None:
    """The authors' weights of a supernet, and in both the same sub-network: largest, then random ones, inside and cut out, in float64."""
    peer = randomise(plain("efficient_tdnn").DynamicTDNN(4, LARGE.channels, LARGE.kernels, LARGE.cat), which).double().eval()
    ours = EfficientTDNNSupernet(channels=LARGE.channels, kernels=LARGE.kernels, cat=LARGE.cat).double().eval()
    weights = {f"module.__S__.{key}": value for key, value in peer.state_dict().items()}
    assert load_weights(ours, weights | {"module.__L__.W": torch.zeros(192, 4)}) == "official"
    x = torch.randn(2, 1, 3000, generator=torch.Generator().manual_seed(which), dtype=torch.float64)
    features = ours.front(x)[:, 0]
    subnet = LARGE if which == 0 else draws(which)[-1]
    if which:
        peer.set(subnet.depth, subnet.channels, subnet.kernels, subnet.cat)
    with torch.no_grad():
        expected = peer(features)
        assert_near(ours(x, subnet), expected, 1e-10)
        assert_near(ours.extract(subnet).body(features), peer.clone().eval()(features), 1e-10)


def test_training_a_sub_network_moves_its_part_alone(supernet: EfficientTDNNSupernet, clips: torch.Tensor) -> None:
    """Gradients and running statistics lie where the sub-network does, and the statistics are those of its batch."""
    network = EfficientTDNNSupernet(channels=LARGE.channels, kernels=LARGE.kernels, cat=LARGE.cat).train()
    subnet = SubNet((24, 16, 32), (3, 1, 5), 40)
    network(clips, subnet).square().sum().backward()
    body = network.body
    first = body.layer1.conv.weight.grad
    assert first is not None and first[:24, :, 1:4].abs().sum() > 0 and first[24:].abs().sum() == 0 and first[:, :, [0, 4]].abs().sum() == 0
    assert body.layer1.conv.k53.grad.abs().sum() > 0  # type: ignore[union-attr]
    assert body.blocks[2].first_conv.conv.weight.grad is None
    # Inside a block the first channels of each of eight parts are taken.
    moved = body.blocks[0].first_conv.bn.running_mean.view(8, -1) != 0
    assert moved[:, :2].all() and not moved[:, 2:].any()
    both = body.bnpool.running_mean.view(2, -1) != 0
    assert both[:, :40].all() and not both[:, 40:].any()
    alone = network.extract(subnet).train()
    for module in alone.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.reset_running_stats()
    alone(clips)
    assert_near(alone.body.bnpool.running_mean, body.bnpool.running_mean.view(2, -1)[:, :40].flatten(), 1e-5)


def test_recalibration_is_the_mean_over_the_clips(supernet: EfficientTDNNSupernet) -> None:
    """After it the first normalisation has the mean of its input over all batches; weights, mode and momentum stay."""
    network = supernet.extract(SubNet((16, 16), (3, 3), 24))
    before = {name: value.clone() for name, value in network.named_parameters()}
    batches = [0.1 * torch.randn(3, 1, 3000, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    recalibrate(network, batches)
    assert not network.training and network.body.layer1.bn.momentum == 0.1
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())
    with torch.no_grad():
        inputs = [torch.relu(network.body.layer1.conv(network.front(batch)[:, 0])) for batch in batches]
    assert_near(network.body.layer1.bn.running_mean, torch.stack([x.mean((0, 2)) for x in inputs]).mean(0), 1e-5)


@pytest.mark.parametrize("text", ["5-48-48-48-48-48-48-5-5-5-5-5-5-64", "1-56-48-5-5-64", "1-48-48-5-7-64", "1-48-48-5-5-72"])
def test_what_does_not_lie_within(supernet: EfficientTDNNSupernet, clips: torch.Tensor, text: str) -> None:
    """Deeper, wider, or with a longer kernel than the largest."""
    with pytest.raises(ConfigError, match="does not lie within"):
        supernet(clips, SubNet.parse(text))


def test_mutation_and_crossing_stay_in_the_space() -> None:
    """Children have choices of the space; without mutation nothing changes; a child's choices are its parents'."""
    rng = random.Random(0)
    for one, other in zip(draws(60)[::2], draws(60)[1::2], strict=True):
        assert SPACE.mutate(one, rng, 0.0) == one
        for child in (SPACE.mutate(one, rng, 0.5), SPACE.cross(one, other, rng)):
            assert child.depth in SPACE.depths and set(child.channels) <= set(SPACE.channels)
            assert set(child.kernels) <= set(SPACE.kernels) and child.cat in SPACE.cats
        assert child.cat in (one.cat, other.cat) and child.depth in (one.depth, other.depth)


def test_encodings_tell_all_apart() -> None:
    """One choice for each of what the sub-network has: as many ones, and no two rows are equal."""
    small = Space((1, 2), (8, 16), (1, 3), (8, 24))
    rows = {tuple(small.encode(subnet)): subnet for subnet in small}
    assert len(rows) == small.size
    assert all(sum(row) == 2 + 2 * (subnet.depth + 1) for row, subnet in rows.items())


def test_limits() -> None:
    """What is drawn keeps to them; what nothing can keep to is refused, with the least that there is."""
    limits = Limits(macs=0.5 * LARGE.macs(), params=0.6 * LARGE.params(), least=0.7)
    chosen = draw(SPACE, limits, 20, random.Random(0))
    assert len(set(chosen)) == 20
    assert all(
        0.7 * 0.5 * LARGE.macs() <= subnet.macs() <= 0.5 * LARGE.macs() and subnet.params() <= 0.6 * LARGE.params() for subnet in chosen
    )
    with pytest.raises(UsageError, match="the smallest has"):
        draw(SPACE, Limits(macs=1.0), 3, random.Random(0))


def truth(subnets: list[SubNet]) -> np.ndarray:
    """A made-up EER: width helps, the first kernel should be 5, and the last block's kernel should be 1."""
    return np.array([0.3 - 0.0008 * sum(s.channels) - 0.02 * (s.kernels[0] == 5) - 0.01 * (s.kernels[-1] == 1) for s in subnets])


def test_evolution_finds_the_best_under_a_limit() -> None:
    """In a space that can be gone through, it ends at (nearly) the best of all, and better than as many random draws."""
    space = Space.within(SubNet((48,) * 3, (5,) * 3, 64), depths=(-1, 0), widths=(0.34, 0.5, 0.75, 1.0))
    limits = Limits(macs=0.5 * SubNet((48,) * 3, (5,) * 3, 64).macs())
    every = np.sort(truth([subnet for subnet in space if limits.keep(subnet)]))
    start = draw(space, limits, 20, random.Random(0))
    plan = Plan(generations=20, population=20)
    ranked = evolve(space, limits, lambda subnets: truth(list(subnets)), plan, start)
    assert all(limits.keep(subnet) for subnet in ranked)
    assert truth(ranked[:1])[0] <= every[4]
    asked = len(ranked)
    assert asked <= 20 + 20 * 20
    assert ranked == evolve(space, limits, lambda subnets: truth(list(subnets)), plan, start)


def test_the_predictor_ranks() -> None:
    """From sixty measured sub-networks it ranks two hundred others, and the same seed learns the same."""
    known, others = draws(260)[:60], draws(260)[60:]
    predictors = [Predictor(SPACE, seed=1), Predictor(SPACE, seed=1)]
    for predictor in predictors:
        predictor.fit(known, truth(known).tolist(), steps=60)
    one, other = (predictor.predict(others) for predictor in predictors)
    assert np.array_equal(one, other)
    ranks = [np.argsort(np.argsort(values)) for values in (one, truth(others))]
    assert np.corrcoef(*ranks)[0, 1] > 0.7


def test_pareto_by_hand() -> None:
    """A sub-network that costs more and is no better does not count."""
    cheap, middle, dear = (SubNet((width, width), (1, 1), 8) for width in (8, 16, 24))
    table = [Measured(cheap, 0.3, "sample"), Measured(middle, 0.3, "sample"), Measured(dear, 0.1, "found")]
    assert pareto(table) == {cheap, dear}
