"""Multi-sample dropout against PyTorch's, its closed form, its cost and its purpose."""

from __future__ import annotations

import statistics

import pytest
import torch
import torch.nn.functional as F
from cnnkit.backbones import create_model
from cnnkit.errors import ConfigError, UsageError
from cnnkit.layers.multi_sample_dropout import MultiSampleDropout, MultiSampleLoss
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

pytestmark = pytest.mark.paper("multi-sample-dropout")


def batch(size: int = 5, features: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, features, generator=generator, dtype=torch.float64), torch.randint(3, (size,), generator=generator)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5])
def test_one_sample_is_ordinary_dropout_under_the_same_seed(rate):
    x, target = batch()
    torch.manual_seed(7)
    expected = nn.Dropout(rate)(x)
    torch.manual_seed(7)
    found = MultiSampleDropout(rate, samples=1)(x)
    assert torch.equal(found, expected)
    head = nn.Linear(12, 3).double()
    assert torch.equal(MultiSampleLoss(F.cross_entropy)(head(found), target), F.cross_entropy(head(expected), target))


def test_samples_are_one_batch_after_the_other_each_with_its_own_mask():
    x = torch.ones(6, 4, 3, 3)
    torch.manual_seed(0)
    copies = MultiSampleDropout(0.25, samples=8)(x).unflatten(0, (8, 6))
    assert copies.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert len({tuple(copy.flatten().tolist()) for copy in copies}) == 8
    assert abs(float(copies.mean()) - 1) < 0.05
    shown = MultiSampleDropout(0.0, samples=3)(torch.arange(6.0).view(2, 3))
    assert torch.equal(shown, torch.arange(6.0).view(2, 3).repeat(3, 1))


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum", label_smoothing=0.1), nn.MultiMarginLoss()])
def test_loss_and_gradient_are_the_means_of_those_of_single_masks(loss):
    x, target = batch()
    x.requires_grad_()
    head = nn.Linear(12, 3).double()
    layer = MultiSampleDropout(0.4, samples=6)
    torch.manual_seed(1)
    found = MultiSampleLoss(loss)(head(layer(x)), target)
    gradients = torch.autograd.grad(found, (x, head.weight, head.bias))
    torch.manual_seed(1)
    masks = layer(torch.ones_like(x)).chunk(6)
    losses = [loss(head(x * mask), target) for mask in masks]
    torch.testing.assert_close(found, torch.stack(losses).mean(), rtol=1e-12, atol=1e-12)
    singles = [torch.autograd.grad(loss(head(x * mask), target), (x, head.weight, head.bias)) for mask in masks]
    for gradient, parts in zip(gradients, zip(*singles, strict=True), strict=True):
        torch.testing.assert_close(gradient, torch.stack(parts).mean(0), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_losses_are_averaged_and_not_predictions():
    """The mean of losses is above the loss of the mean prediction, by Jensen's inequality for the convex cross-entropy."""
    x, target = batch(64)
    head = nn.Linear(12, 3).double()
    predictions = head(MultiSampleDropout(0.5, samples=16)(x))
    of_mean = F.cross_entropy(predictions.unflatten(0, (16, 64)).mean(0), target)
    assert MultiSampleLoss(F.cross_entropy)(predictions, target) > of_mean + 1e-3


@torch.no_grad()
def test_evaluation_knows_of_no_samples():
    x, target = batch()
    assert MultiSampleDropout(0.9, samples=64).eval()(x) is x
    assert torch.equal(MultiSampleLoss(F.cross_entropy)(x, target), F.cross_entropy(x, target))


def flops(model: nn.Module, x: Tensor) -> dict[str, int]:
    with FlopCounterMode(display=False) as counter:
        model(x)
    return {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}


def test_only_the_head_costs_more():
    """In a backbone it takes the place of the dropout before the classifier; keys and shapes of the weights stay."""
    model = create_model("resnet18", num_classes=10, widths=(4, 4, 8, 8)).train()
    x = torch.randn(2, 3, 32, 32)
    keys, before = list(model.state_dict()), flops(model, x)
    model.head_drop = MultiSampleDropout(0.5, samples=8)
    after = flops(model, x)
    assert list(model.state_dict()) == keys
    assert model(x).shape == (16, 10) and model.eval()(x).shape == (2, 10)
    assert after.pop("ResNet.fc") == 8 * before.pop("ResNet.fc")
    assert after.pop("Global") - before.pop("Global") == 7 * 2 * 2 * 8 * 10 == after.pop("ResNet") - before.pop("ResNet")
    assert after == before and any("layer1" in name for name in after)


def epochs_to(goal: float, samples: int, seed: int, limit: int = 10) -> int:
    """Train a perceptron on digits; return the first epoch with this accuracy on unseen images, or one more than the limit."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = torch.from_numpy(data.images).float().flatten(1) / 16, torch.from_numpy(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    seen, unseen = order[:1347], order[1347:]
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), MultiSampleDropout(0.7, samples=samples), nn.Linear(64, 10))
    loss, optimizer = MultiSampleLoss(nn.CrossEntropyLoss()), torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for epoch in range(1, limit + 1):
        model.train()
        for rows in seen[torch.randperm(len(seen))].split(64):
            optimizer.zero_grad()
            loss(model(images[rows]), labels[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            if (model.eval()(images[unseen]).argmax(1) == labels[unseen]).float().mean() >= goal:
                return epoch
    return limit + 1


def test_digits_are_learnt_in_fewer_epochs():
    """The median over seeds of the epochs to 95 % of unseen digits."""
    pytest.importorskip("sklearn")
    one, many = (statistics.median(epochs_to(0.95, samples, seed) for seed in range(3)) for samples in (1, 8))
    assert many < one, f"{many} epochs with 8 samples, {one} with one"


def test_wrong_settings_are_refused():
    with pytest.raises(ConfigError, match=r"rate=1.0 must be in \[0, 1\)"):
        MultiSampleDropout(1.0)
    with pytest.raises(ConfigError, match="samples=0 must be at least 1"):
        MultiSampleDropout(0.5, samples=0)
    with pytest.raises(UsageError, match="7 predictions for 5 targets"):
        MultiSampleLoss(F.cross_entropy)(torch.zeros(7, 3), torch.zeros(5, dtype=torch.long))
    with pytest.raises(UsageError, match="3 predictions for 5 targets"):
        MultiSampleLoss(F.cross_entropy)(torch.zeros(3, 3), torch.zeros(5, dtype=torch.long))
