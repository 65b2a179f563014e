"""The merged copy of a network computes the same, leaves the network alone, and follows its weights."""

from __future__ import annotations

import torch
from cnnkit.layers.merged import MergedCopy, merged
from cnnkit.testing.compare import stir
from torch import nn


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return stir(nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())).eval()


def copies() -> tuple[MergedCopy[nn.Sequential], list[nn.Sequential]]:
    """A keeper of copies, and the copies that it has made."""
    made: list[nn.Sequential] = []

    def make(model: nn.Sequential) -> nn.Sequential:
        made.append(merged(model, torch.zeros(1, 2, 6, 6, dtype=model[0].weight.dtype)))
        return made[-1]

    return MergedCopy(make), made


def test_a_merged_copy_computes_the_same_and_leaves_the_network_alone() -> None:
    """In training mode too, which the copy leaves; and made in inference mode it still serves a pass with gradients."""
    model, x = network(), torch.randn(1, 2, 6, 6)
    expected = model(x)
    model.train()
    with torch.inference_mode():
        copied = merged(model, x)
    assert model.training and isinstance(model[1], nn.BatchNorm2d) and not copied.training and isinstance(copied[1], nn.Identity)
    asked = x.clone().requires_grad_()
    out = copied(asked)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert asked.grad is not None and model[1].num_batches_tracked == 0


def test_a_copy_is_kept_until_the_weights_or_the_network_change() -> None:
    """Changes behind autograd's back count as well, and statistics as much as weights."""
    model, x = network(), torch.randn(1, 2, 6, 6)
    keeper, made = copies()
    assert keeper.of(model) is keeper.of(model) and len(made) == 1
    model[0].weight.data *= 2
    torch.testing.assert_close(keeper.of(model)(x), model(x))
    model[1].running_mean += 1
    torch.testing.assert_close(keeper.of(model)(x), model(x))
    assert len(made) == 3
    keeper.of(network())
    assert keeper.of(model) is made[-1] and len(made) == 5
    keeper.of(model.double())
    assert len(made) == 6 and made[-1][0].weight.dtype == torch.float64


def test_a_copy_may_depend_on_more_than_weights_and_may_be_the_network() -> None:
    made: list[nn.Module] = []
    model, setting = network(), [1]
    keeper = MergedCopy(lambda model: made.append(model) or merged(model, torch.zeros(1, 2, 6, 6)), setting=lambda _: setting[0])
    assert keeper.of(model) is keeper.of(model)
    setting[0] = 2
    assert keeper.of(model) is not model and len(made) == 2
    assert MergedCopy(lambda model: model).of(model) is model


def test_what_a_task_alone_can_merge_goes_first() -> None:
    copied = merged(network(), torch.zeros(1, 2, 6, 6), before=lambda model: model.append(nn.Flatten()))
    assert isinstance(copied[-1], nn.Flatten) and len(network()) == 3
