"""What a network costs: parameters, bytes, multiply-adds, and operations as the paper counts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from cnnkit.count import count_params
from torch import nn

from cnnkit_audio.compress.chain import Chain, as_chain, links, shapes
from cnnkit_audio.compress.quantize import Quantised


@dataclass(frozen=True)
class Size:
    """What a network costs.

    Args:
        parameters: Numbers that were trained; of a quantised network those that are left after folding.
        nonzero: Of these, how many are not zero.
        bytes: Bytes of its constants, stored densely.
        macs: Multiply-adds of convolutions and linear layers for one clip.
        operations: The paper's count, under the name FLOPs: multiply-adds, and one for each value that is compared, averaged or rectified.
        widths: Output channels of its convolutions.
    """

    parameters: int
    nonzero: int
    bytes: int
    macs: int
    operations: int
    widths: tuple[int, ...]

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return 1 - self.nonzero / self.parameters


def measure(model: nn.Module) -> Size:
    """Return what a chain of 32-bit numbers costs for one clip."""
    chain = as_chain(model)
    macs, extra = operations(chain)
    nonzero = sum(int(parameter.count_nonzero()) for parameter in model.parameters())
    parameters = count_params(model)
    return Size(parameters, nonzero, 4 * parameters, macs, macs + extra, tuple(chain.widths))


def measure_quantised(network: Quantised, chain: Chain) -> Size:
    """Return what a network of integers costs; ``chain`` is the one that it was made from."""
    layers = [layer for layer in network.layers if layer.weights is not None]
    arrays = [array for layer in layers for array in (layer.weights, layer.bias) if array is not None]
    parameters = sum(array.size for array in arrays)
    zeros = parameters - sum(int(np.count_nonzero(array)) for array in arrays)
    macs = sum(layer.macs for layer in layers)
    return Size(parameters, parameters - zeros, network.bytes, macs, macs + operations(chain)[1], tuple(chain.widths))


def operations(chain: Chain) -> tuple[int, int]:
    """Return the multiply-adds, and what the paper counts beside them: biases, pooling windows, rectifiers and the softmax."""
    macs = extra = 0
    for module, before, after in shapes(chain):
        size = prod(after)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            macs += size * prod(module.weight.shape[1:])
            extra += size * (module.bias is not None)
        elif isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
            window = module.kernel_size
            extra += size * (window**2 if isinstance(window, int) else prod(window))
        elif isinstance(module, nn.ReLU):
            extra += prod(before)
    return macs, extra + prod(after)


@dataclass(frozen=True)
class Shape:
    """What the parameters of a chain of convolutions with normalisations and one linear layer at the end are made of.

    Args:
        taps: Numbers in one kernel of each layer.
        fixed: Whether a layer's input does not follow the layer before: the first's, and one's behind a swap.
        per_channel: Further parameters of each output.
        classes: Outputs of the last layer.
    """

    taps: tuple[int, ...]
    fixed: tuple[bool, ...]
    per_channel: tuple[int, ...]
    classes: int

    @classmethod
    def of(cls, chain: Chain) -> Shape:
        """Read it off a chain."""
        found = links(chain)
        taps = tuple(prod(link.layer.weight.shape[2:]) for link in found)
        fixed = tuple(not index or link.swapped for index, link in enumerate(found))
        per_channel = tuple((link.layer.bias is not None) + (2 if link.norm is not None else 0) for link in found)
        return cls(taps, fixed, per_channel, len(found[-1].layer.weight))

    def parameters(self, widths: Sequence[int]) -> int:
        """Return how many parameters the chain has with other widths."""
        outputs = (*widths, self.classes)
        inputs = [1 if fixed else before for fixed, before in zip(self.fixed, (1, *widths), strict=True)]
        return sum(
            after * (before * taps + more) for after, before, taps, more in zip(outputs, inputs, self.taps, self.per_channel, strict=True)
        )
