"""Merge layers for inference: batch normalisation into the layer before it, parallel branches into one convolution.

In evaluation mode a batch normalisation is an affine map per channel, and so part of a linear layer before it::

    g (W x + b - m) / sqrt(v + eps) + h  =  (s W) x + (s (b - m) + h),    s = g / sqrt(v + eps)

A module that can state itself as a cheaper one has a method ``merged() -> nn.Module``
(Ding et al., 2021, "RepVGG: Making VGG-style ConvNets Great Again").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_LINEAR = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batch_norm(linear: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the layer that equals ``norm(linear(x))`` in evaluation mode.

    Args:
        linear: A convolution or linear layer, with or without bias; its first axis of weights is that of the output.
        norm: The batch normalisation after it.
    """
    weight: Any = linear.weight
    affine: Any = norm
    scale = (affine.running_var + affine.eps).rsqrt()
    if affine.weight is not None:
        scale = scale * affine.weight
    bias: Any = -affine.running_mean if linear.bias is None else linear.bias - affine.running_mean
    bias = bias * scale
    if affine.bias is not None:
        bias = bias + affine.bias
    return weight * scale.view(-1, *[1] * (weight.ndim - 1)), bias


def fold_batch_norm_before(norm: nn.Module, linear: nn.Module) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the layer that equals ``linear(norm(x))`` in evaluation mode.

    With ``s`` and ``t`` the scale and shift of the normalisation, ``W (s x + t) + b = (W s) x + (W t + b)``.

    Args:
        norm: The batch normalisation before the layer.
        linear: A linear layer, or a convolution of one group without padding: zeros at a border would come after the normalisation.
    """
    weight: Any = linear.weight
    affine: Any = norm
    scale = (affine.running_var + affine.eps).rsqrt()
    if affine.weight is not None:
        scale = scale * affine.weight
    shift = -affine.running_mean * scale
    if affine.bias is not None:
        shift = shift + affine.bias
    bias: Any = weight.flatten(2).sum(-1) @ shift if weight.ndim > 2 else weight @ shift
    if linear.bias is not None:
        bias = bias + linear.bias
    return weight * scale.view(1, -1, *[1] * (weight.ndim - 2)), bias


def merge_branches(model: nn.Module) -> int:
    """Replace every module that has a method ``merged`` by what it returns, and return how many there were."""
    number = 0
    for name, module in list(model.named_modules()):
        if name and hasattr(module, "merged"):
            model.set_submodule(name, module.merged().train(module.training))
            number += 1
    return number


class _Consumers(TorchFunctionMode):
    """Count how many functions read each tensor of interest; it keeps them alive, so that their identities stay unique."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[int, tuple[Tensor, int]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for argument in (*args, *(kwargs or {}).values()):
            for tensor in argument if isinstance(argument, (list, tuple)) else (argument,):
                # Questions about the form of a tensor (its shape, its number of axes) read no values.
                if id(tensor) in self.of and getattr(func, "__name__", "") not in ("__get__", "dim", "size"):
                    kept, count = self.of[id(tensor)]
                    self.of[id(tensor)] = (kept, count + 1)
        return func(*args, **(kwargs or {}))


def foldable_pairs(model: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Return the names of (layer, batch normalisation) where the normalisation alone reads what the layer returns.

    The order of registration says nothing certain about the order of use, so one pass over an example is watched.

    Args:
        model: A model in evaluation mode.
        example: An input that it accepts.
    """
    names = {module: name for name, module in model.named_modules()}
    calls: dict[nn.Module, int] = {}
    producer: dict[int, nn.Module] = {}
    found: list[tuple[nn.Module, nn.Module, int]] = []
    consumers = _Consumers()

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if isinstance(module, _LINEAR):
            consumers.of[id(output)] = (output, 0)
            producer[id(output)] = module

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, _NORM) and args and id(args[0]) in producer and module.track_running_stats:
            linear = producer[id(args[0])]
            if not isinstance(linear, nn.Linear) or args[0].ndim == 2:  # Else the normalised axis is not the layer's output.
                found.append((linear, module, id(args[0])))

    leaves = [module for module in names if isinstance(module, (*_LINEAR, *_NORM))]
    handles = [module.register_forward_hook(leave) for module in leaves]
    handles += [module.register_forward_pre_hook(enter) for module in leaves]
    try:
        with torch.no_grad(), consumers:
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return [(names[linear], names[norm]) for linear, norm, key in found if consumers.of[key][1] == 1 and calls[linear] == calls[norm] == 1]


def fuse(model: nn.Module, example: Tensor) -> nn.Module:
    """Merge branches and fold batch normalisations in place, for inference, and return the model.

    Weights of 2-D convolutions become channels-last in memory, and with them every map that follows: the kernels for processors then need
    no copies into and out of blocked layouts, which takes up to half of the time. Shapes and values stay the same.

    Args:
        model: A model; it must be in evaluation mode.
        example: An input that it accepts; a batch of one is enough.

    Raises:
        ValueError: If the model is in training mode, where the batch's own statistics count.
    """
    if model.training:
        raise ValueError("merging is for inference: call model.eval() first")
    merge_branches(model)
    for linear_name, norm_name in foldable_pairs(model, example):
        linear = model.get_submodule(linear_name)
        with torch.no_grad():
            weight, bias = fold_batch_norm(linear, model.get_submodule(norm_name))
        linear.weight = nn.Parameter(weight)
        linear.bias = nn.Parameter(bias)
        model.set_submodule(norm_name, nn.Identity())
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model
