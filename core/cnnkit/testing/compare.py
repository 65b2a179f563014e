"""Compare predictions whose form only their task knows, and stir weights so that nothing hides behind a zero."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def assert_same(one: Any, other: Any, *, rtol: float = 0.0, atol: float = 0.0, where: str = "value") -> None:
    """Fail if two nested structures differ: tensors, arrays, dataclasses, mappings, sequences and plain values.

    Args:
        one: A structure.
        other: Another one.
        rtol: Accepted relative difference of tensors and arrays.
        atol: Accepted absolute difference of tensors and arrays.
        where: What the structure is called in the message.
    """
    assert type(one) is type(other), f"{where}: {type(one).__name__} and {type(other).__name__}"
    if isinstance(one, Tensor):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol, equal_nan=True, msg=lambda text: f"{where}: {text}")
    elif hasattr(one, "__array_interface__"):
        _assert_same_arrays(one, other, rtol, atol, where)
    elif dataclasses.is_dataclass(one) and not isinstance(one, type):
        for field in dataclasses.fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name), rtol=rtol, atol=atol, where=f"{where}.{field.name}")
    elif isinstance(one, Mapping):
        assert list(one) == list(other), f"{where}: keys {list(one)} and {list(other)}"
        for key in one:
            assert_same(one[key], other[key], rtol=rtol, atol=atol, where=f"{where}[{key!r}]")
    elif isinstance(one, Sequence) and not isinstance(one, (str, bytes)):
        assert len(one) == len(other), f"{where}: {len(one)} and {len(other)} items"
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same(left, right, rtol=rtol, atol=atol, where=f"{where}[{index}]")
    elif isinstance(one, float):
        assert one == other or abs(one - other) <= atol + rtol * abs(other) or (one != one and other != other), (
            f"{where}: {one} and {other}"
        )
    elif type(one).__eq__ is object.__eq__ and hasattr(one, "__dict__"):
        assert_same(vars(one), vars(other), rtol=rtol, atol=atol, where=where)
    else:
        assert one == other, f"{where}: {one!r} and {other!r}"


def _assert_same_arrays(one: Any, other: Any, rtol: float, atol: float, where: str) -> None:
    import numpy as np

    forms = (one.dtype, one.shape), (other.dtype, other.shape)
    assert forms[0] == forms[1], f"{where}: {forms[0]} and {forms[1]}"
    if one.dtype.kind in "fc":
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol, err_msg=where)
    else:
        np.testing.assert_array_equal(one, other, err_msg=where)


def stir(model: nn.Module, seed: int = 0) -> nn.Module:
    """Move scales, shifts and weights that start at zero off their initial values, and return the model.

    Many networks start with a scale of zero on their residual branches; all gradients inside would then be zero,
    whether or not a parameter is used. Weights that are drawn at random stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2 or not parameter.any():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model


def without_gradient(model: nn.Module) -> list[str]:
    """Return the names of the trainable parameters that the last backward pass did not reach, or not with finite numbers."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and (parameter.grad is None or not bool(torch.isfinite(parameter.grad).all()) or not bool(parameter.grad.any()))
    ]


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in nested lists, tuples and mappings, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []
