"""Whole channels are removed: ranked over all layers together, a few at a time, with training in between.

A channel's rank is normalised by the length of its layer's vector of ranks, so that layers can be compared (Molchanov et al., ICLR 2017).

* ``"taylor"``: how much the loss changes, to first order, if the channel is silent: ``|mean over positions of activation x gradient|``,
  averaged over clips. It is taken behind the rectifier, since that is what removal silences, and in evaluation mode: a batch normalisation
  that follows its batch forgets the scale of its input, and all such products would sum to zero.
* ``"magnitude"``: the sum of the kernel's absolute weights.

A removed channel goes with its normalisation and with the next layer's weights for it. The network then computes what it did with that
channel silenced, exactly. The one exception are channels that become rows (:class:`~cnnkit_audio.compress.chain.Swap`): a row that is
gone brings its neighbours together, as in the paper.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar

import torch
from cnnkit.errors import ConfigError
from torch import Tensor, nn

from cnnkit_audio.compress.chain import Chain, Link, as_chain, links
from cnnkit_audio.compress.sizes import Shape
from cnnkit_audio.compress.training import Batch, Loss

Model = TypeVar("Model", bound=nn.Module)
Rank = Literal["taylor", "magnitude"]


def magnitudes(model: nn.Module) -> list[Tensor]:
    """Return the rank of each channel of each convolution by the size of its weights, ``(width,)`` for each."""
    sums = [link.layer.weight.detach().abs().flatten(1).sum(1) for link in links(as_chain(model))[:-1]]
    return [_normalised(ranks) for ranks in sums]


def taylor(model: nn.Module, batches: Iterable[Batch], loss: Loss) -> list[Tensor]:
    """Return the rank of each channel of each convolution by its influence on the loss, ``(width,)`` for each.

    Args:
        model: The chain; its weights and statistics stay as they are.
        batches: A few batches.
        loss: The loss that it is trained with.
    """
    chain = as_chain(model)
    found = links(chain)[:-1]
    totals = [link.layer.weight.new_zeros(len(link.layer.weight)) for link in found]
    outputs: list[tuple[int, Tensor]] = []
    handles = [
        _last(chain, link).register_forward_hook(lambda module, args, out, at=index: outputs.append((at, out)))
        for index, link in enumerate(found)
    ]
    training = model.training
    model.eval()
    try:
        for batch in batches:
            outputs.clear()
            value = loss(model, batch)
            gradients = torch.autograd.grad(value, [out for _, out in outputs])
            for (index, out), gradient in zip(outputs, gradients, strict=True):
                totals[index] += (out.detach() * gradient).mean((2, 3)).abs().mean(0)
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    return [_normalised(ranks) for ranks in totals]


def _last(chain: Chain, link: Link) -> nn.Module:
    """Return the module whose output a removed channel would have had: the rectifier if there is one."""
    modules = list(chain.chain())
    at = modules.index(link.layer)
    ends = [module for module in modules[at : at + 3] if module in (link.layer, link.norm) or (link.relu and isinstance(module, nn.ReLU))]
    return ends[-1]


def _normalised(ranks: Tensor) -> Tensor:
    return ranks / ranks.norm().clamp_min(torch.finfo(ranks.dtype).tiny)


def floors(model: nn.Module, share: float = 0.1) -> list[int]:
    """Return how many channels each convolution must keep: a share of them and two at least; of rows, a quarter.

    Without a floor a layer may become a bottleneck that no training repairs. Micro-ACDNet keeps 13 % and more, and 31 % of the rows.
    """
    found = links(as_chain(model))
    rows = [index - 1 for index, link in enumerate(found) if link.swapped]
    widths = as_chain(model).widths
    return [min(width, max(2, math.ceil(width * (0.25 if index in rows else share)))) for index, width in enumerate(widths)]


def choose(model: nn.Module, ranks: Sequence[Tensor], parameters: int, *, least: Sequence[int]) -> list[Tensor]:
    """Return the channels of each convolution that stay, so that a network of them has at most so many parameters.

    The lowest ranks over all layers go first.

    Args:
        model: The chain.
        ranks: Of each channel of each convolution.
        parameters: What the network is to come down to.
        least: Channels that each layer keeps (see :func:`floors`).

    Returns:
        Positions in rising order, one tensor for each convolution.

    Raises:
        ConfigError: If that is not possible.
    """
    chain = as_chain(model)
    shape, widths = Shape.of(chain), list(chain.widths)
    order = sorted((rank, layer, channel) for layer, values in enumerate(ranks) for channel, rank in enumerate(values.tolist()))
    stays = [torch.ones(width, dtype=torch.bool) for width in widths]
    queue = iter(order)
    while shape.parameters(widths) > parameters:
        _, layer, channel = next(queue, (0.0, -1, -1))
        if layer < 0:
            raise ConfigError(
                f"with the least channels, {', '.join(map(str, least))}, the network has {shape.parameters(widths)} parameters; "
                f"{parameters} cannot be reached"
            )
        if widths[layer] > least[layer]:
            stays[layer][channel] = False
            widths[layer] -= 1
    return [mask.nonzero().flatten() for mask in stays]


def keep_channels(model: Model, kept: Sequence[Tensor]) -> Model:
    """Return a smaller network with the weights of the channels that stay; ``model`` is left as it was.

    Args:
        model: The chain.
        kept: Positions of the channels that stay, in order, one tensor for each convolution.
    """
    chain = as_chain(model)
    device = next(model.parameters()).device
    small = chain.resized([len(channels) for channels in kept]).to(device)
    everything = torch.arange(len(links(chain)[-1].layer.weight))
    inputs: Tensor | None = None
    with torch.no_grad():
        for old, new, outputs in zip(links(chain), links(as_chain(small)), (*kept, everything), strict=True):
            weight = old.layer.weight[outputs.to(device)]
            if inputs is not None and not old.swapped:
                weight = weight[:, inputs.to(device)]
            new.layer.weight.copy_(weight)
            if old.layer.bias is not None and new.layer.bias is not None:
                new.layer.bias.copy_(old.layer.bias[outputs.to(device)])
            _copy_norm(old, new, outputs.to(device))
            inputs = outputs
    return small.train(model.training)  # type: ignore[return-value]


def _copy_norm(old: Link, new: Link, outputs: Tensor) -> None:
    if old.norm is None or new.norm is None:
        return
    for (_, source), (_, target) in zip(old.norm.state_dict().items(), new.norm.state_dict().items(), strict=True):
        target.copy_(source[outputs] if source.ndim else source)


def silenced(model: Model, kept: Sequence[Tensor]) -> Model:
    """Return a copy of the same size in which the channels that would go give zero: what a network without them computes."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for link, channels in zip(links(as_chain(copied))[:-1], kept, strict=True):
            gone = torch.ones(len(link.layer.weight), dtype=torch.bool)
            gone[channels] = False
            for layer in (link.layer, link.norm):
                for parameter in () if layer is None else layer.parameters():
                    parameter[gone] = 0
    return copied


def schedule(parameters: int, keep: float, rounds: int) -> list[int]:
    """Return how many parameters are left after each round: the same share goes every time.

    Raises:
        ConfigError: If the share that stays is not between 0 and 1, or there is no round.
    """
    if not 0 < keep <= 1 or rounds < 1:
        raise ConfigError(f"keep={keep}, rounds={rounds}: accepted are a share above 0 and at most 1, and one round or more")
    return [int(parameters * keep ** ((index + 1) / rounds)) for index in range(rounds)]
