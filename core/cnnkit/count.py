"""Count parameters and multiply-adds of a model without running it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

_FILL = ("uniform_", "normal_", "trunc_normal_", "erfinv_", "mul_", "add_", "div_", "sub_", "clamp_", "fill_", "zero_", "copy_")
_FILLS = frozenset(getattr(torch.Tensor, name) for name in _FILL if hasattr(torch.Tensor, name))
_INITS = frozenset((nn.init.uniform_, nn.init.normal_, nn.init.constant_, nn.init.kaiming_uniform_))
"""Initialisers that torch hands to a mode as a whole, by the name ``tensor``: what they do inside, the mode does not see."""


class _SkipFilling(TorchFunctionMode):
    """Leave out the in-place arithmetic of initialisers on tensors that hold no values."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FILLS and args[0].is_meta:
            return args[0]
        if func in _INITS and kwargs["tensor"].is_meta:
            return kwargs["tensor"]
        return func(*args, **kwargs)


def _added_product(total: Sequence[int], one: Sequence[int], other: Sequence[int], **_: Any) -> int:
    """Return the operations of ``total.addmm_(one, other)`` by shapes; torch's counter knows the one that writes elsewhere alone."""
    return 2 * one[0] * one[1] * other[1]


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Build models on the ``meta`` device: all shapes, no values, no memory; several times faster than the device alone."""
    with torch.device("meta"), _SkipFilling():
        yield


def count_params(model: nn.Module, *, trainable: bool = False) -> int:
    """Return the number of parameters; with ``trainable`` only of those that require a gradient."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def count_macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Return the multiply-adds of one forward pass, as papers print them (often under the name FLOPs).

    Convolutions, linear layers, matrix products and attention count; biases, normalisations, activations and
    pooling do not. A model on the ``meta`` device is counted without memory or arithmetic.

    Args:
        model: Any model of one input tensor; it is counted in evaluation mode and left in the mode that it had.
        input_shape: Shape of the input with the batch, ``(B, C, *spatial)``.
    """
    some = next(model.parameters(), torch.empty(0))
    mode = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _added_product}) as counter:
            model(torch.empty(tuple(input_shape), device=some.device, dtype=some.dtype))
    finally:
        for module, training in mode.items():
            module.training = training
    return counter.get_total_flops() // 2
