"""Networks that are one chain of plain layers: what can be pruned, quantised and written as C without knowing the paper.

A network takes part if it has the four members of :class:`Chain`. The layers may be two-dimensional convolutions without groups and
dilation, batch normalisations after them, ReLU, max pooling, one average pooling, dropout, :class:`Swap`, flatten and linear layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from cnnkit.errors import UsageError
from torch import Tensor, nn

CONVS = (nn.Conv2d, nn.Linear)


class Swap(nn.Module):
    """Exchange channels and height, so that filters of a bank become rows of a picture: ``(B, C, H, W)`` to ``(B, H, C, W)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the view."""
        return x.transpose(1, 2)


@runtime_checkable
class Chain(Protocol):
    """A network that states itself as a chain of layers."""

    def chain(self) -> Sequence[nn.Module]:
        """Return the layers, which applied one after the other to ``(B, 1, 1, T)`` give logits ``(B, num_classes)``."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Output channels of each convolution, in the order of the chain."""

    @property
    def length(self) -> int:
        """Samples ``T`` of the input that the chain is made for."""

    def resized(self, widths: Sequence[int]) -> nn.Module:
        """Return a fresh network of the same kind with other widths."""


@dataclass(frozen=True)
class Link:
    """A layer with weights, and what follows it until the next.

    Args:
        layer: The convolution, or the linear layer at the end.
        norm: The batch normalisation after it.
        relu: Whether a rectifier follows.
        pool: Window of the max pooling after that; ``(1, 1)`` for none.
        mean: Window of the average pooling after that; ``(1, 1)`` for none.
        swapped: Whether channels were exchanged for rows just before the layer.
    """

    layer: nn.Conv2d | nn.Linear
    norm: nn.BatchNorm2d | None = None
    relu: bool = False
    pool: tuple[int, int] = (1, 1)
    mean: tuple[int, int] = (1, 1)
    swapped: bool = False


def as_chain(model: nn.Module) -> Chain:
    """Return the network as a chain.

    Raises:
        UsageError: If it is none.
    """
    if not isinstance(model, Chain):
        raise UsageError(
            f"{type(model).__name__} cannot be compressed: its layers are no single chain (class cnnkit_audio.compress.chain.Chain); "
            "of the networks here those named audio/acdnet* are"
        )
    return model


def links(model: Chain) -> list[Link]:
    """Return the layers with weights, each with what follows it.

    Raises:
        UsageError: If the chain holds a layer that is not understood, or in an order that is not.
    """
    found: list[dict] = []
    swapped = False
    for module in model.chain():
        if isinstance(module, CONVS):
            _check_layer(module)
            found.append({"layer": module, "swapped": swapped})
            swapped = False
        elif isinstance(module, Swap):
            swapped = True
        elif not isinstance(module, (nn.Dropout, nn.Flatten)):
            if not found:
                raise UsageError(f"a chain begins with a convolution, not with {type(module).__name__}")
            _follow(found[-1], module)
    return [Link(**words) for words in found]


def _check_layer(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d) and (layer.groups != 1 or set(layer.dilation) != {1} or isinstance(layer.padding, str)):
        raise UsageError(f"{layer} has groups, a dilation or a padding by name; a chain is made of convolutions without these")


def _follow(link: dict, module: nn.Module) -> None:
    """Note what a module does to the output of a layer, and refuse an order that cannot be computed in one pass."""
    if isinstance(module, nn.BatchNorm2d) and not set(link) & {"norm", "relu", "pool", "mean"}:
        link["norm"] = module
    elif isinstance(module, nn.ReLU) and not set(link) & {"relu", "mean"}:
        link["relu"] = True
    elif isinstance(module, nn.MaxPool2d) and "mean" not in link and "pool" not in link and not module.ceil_mode:
        link["pool"] = _window(module)
    elif isinstance(module, nn.AvgPool2d) and "mean" not in link and not module.ceil_mode:
        link["mean"] = _window(module)
    else:
        raise UsageError(f"{module} does not belong behind {link['layer']} in a chain: a convolution, then norm, ReLU and pooling")


def _window(pool: nn.MaxPool2d | nn.AvgPool2d) -> tuple[int, int]:
    size, stride, padding = (
        (value, value) if isinstance(value, int) else tuple(value) for value in (pool.kernel_size, pool.stride, pool.padding)
    )
    if size != stride or set(padding) != {0}:
        raise UsageError(f"{pool} overlaps or pads; a chain's windows stand side by side")
    return size  # type: ignore[return-value]


def run(model: Chain, x: Tensor, until: nn.Module | None = None) -> Tensor:
    """Apply the layers to ``(B, 1, T)``, to the end or up to and with one of them."""
    x = x[:, :, None]
    for module in model.chain():
        x = module(x)
        if module is until:
            break
    return x


def shapes(model: Chain) -> list[tuple[nn.Module, tuple[int, ...], tuple[int, ...]]]:
    """Return every layer with the shapes of its input and output for one clip, without the batch and without arithmetic."""
    found = []
    state = torch.empty(1, 1, 1, model.length, device="meta")
    with torch.no_grad():
        for module in model.chain():
            before = tuple(state.shape[1:])
            state = _on_meta(module, state)
            found.append((module, before, tuple(state.shape[1:])))
    return found


def _on_meta(module: nn.Module, x: Tensor) -> Tensor:
    """Return the shape of a layer's output: its weights stay where they are."""
    if not any(True for _ in module.parameters()):
        return module(x)
    if isinstance(module, nn.BatchNorm2d):
        return x
    return torch.func.functional_call(module, {name: value.to("meta") for name, value in module.named_parameters()}, (x,))
