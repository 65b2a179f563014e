"""Compare predictions whose form only their task knows, a model with another implementation, and draw the weights for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from cnnkit.count import count_macs, count_params
from cnnkit.layers.nd import tupled
from cnnkit.registry import Figures

Drawn = TypeVar("Drawn", nn.Module, dict[str, Tensor])


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
            if field.compare:  # A time that was taken says nothing about the rest.
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


def assert_near(ours: Tensor | Sequence[Tensor], theirs: Tensor | Sequence[Tensor], tolerance: float = 1e-5) -> None:
    """Fail if two tensors have other shapes, or differ by more than a part of the largest magnitude in ``theirs``.

    Args:
        ours: A tensor, or several, as the levels of a pyramid.
        theirs: As many from the other implementation; each is compared at its own scale.
        tolerance: The accepted part.
    """
    if not isinstance(ours, Tensor) and not isinstance(theirs, Tensor):
        for one, other in zip(ours, theirs, strict=True):
            assert_near(one, other, tolerance)
        return
    assert isinstance(ours, Tensor) and isinstance(theirs, Tensor), f"{type(ours).__name__} and {type(theirs).__name__}"
    assert ours.shape == theirs.shape, f"shapes {tuple(ours.shape)} and {tuple(theirs.shape)}"
    difference, scale = float((ours - theirs).abs().max()), float(theirs.abs().max())
    assert difference <= tolerance * scale, f"they differ by {difference:.3g} at a scale of {scale:.3g}; {tolerance:g} of it is accepted"


def assert_same_keys(ours: nn.Module | Mapping[str, Tensor], theirs: nn.Module | Mapping[str, Tensor]) -> None:
    """Fail if two models, or states of models, have other keys or other shapes under them; the meta device is enough."""
    one, other = (
        {key: tuple(value.shape) for key, value in (side.state_dict() if isinstance(side, nn.Module) else side).items()}
        for side in (ours, theirs)
    )
    odd = {key: (one.get(key), other.get(key)) for key in one | other if one.get(key) != other.get(key)}
    assert not odd, f"{len(odd)} keys differ in their shapes (None: absent), among them {dict(list(odd.items())[:5])}"


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


def randomise(model: Drawn, seed: int = 0, *, gain: float = 1.0, spread: Mapping[str, float] | None = None) -> Drawn:
    """Draw everything that a forward pass reads, so that no error hides behind a 0 or a 1, and return the model in evaluation.

    Matrices and kernels keep the variance of what they weigh, one-dimensional weights and the scales of branches
    (``gamma``, ``scale``) are drawn around 1, shifts and running means around 0, running variances at 0.5 or more.
    What is no floating-point number stays, as the counts of batches do.

    Args:
        model: A model, or a state alone; its weights and buffers are overwritten.
        seed: Of the draw, which does not touch the global generator.
        gain: The variance that matrices and kernels give to an input of variance 1; a long chain of rectified layers wants 2.
        spread: Standard deviations for what has no fan-in, by a part of the name: ``{"pos_embed": 1.0}``.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (model.state_dict() if isinstance(model, nn.Module) else model).items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            leaf = name.rpartition(".")[2]
            given = [deviation for part, deviation in (spread or {}).items() if part in name]
            if given:
                noise = given[0] * noise
            elif leaf == "running_var":
                noise = 0.5 + noise.abs()
            elif "gamma" in leaf or "scale" in leaf or (tensor.ndim < 2 and leaf.endswith("weight")):
                noise = 1 + 0.3 * noise
            elif tensor.ndim < 2:
                noise = 0.3 * noise
            else:
                noise = noise * (gain / math.prod(tensor.shape[1:])) ** 0.5
            tensor.copy_(noise)
    return model.eval() if isinstance(model, nn.Module) else model


def filled(build: Callable[[], nn.Module], seed: int = 0, *, gain: float = 1.0) -> nn.Module:
    """Build a model without its costly initialisation, and draw its weights as :func:`randomise` does."""
    with torch.device("meta"):
        model = build()
    return randomise(model.to_empty(device="cpu"), seed, gain=gain)


def image(*size: int, channels: int = 3, batch: int = 2, seed: int = 1) -> Tensor:
    """Return standard normal images ``(batch, channels, *size)`` in single precision, the same for the same arguments."""
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


def centred(flat: nn.Module, deep: nn.Module) -> nn.Module:
    """Fill a model of one more dimension with the flat one's kernels at the centre of the new last axis, and return it in evaluation.

    Slices along that axis then never mix, and the model of stacked equal slices answers as the flat one of a slice.
    """
    state = dict(flat.state_dict())
    for key, tensor in deep.state_dict().items():
        if tensor.ndim > state[key].ndim:
            wide = torch.zeros_like(tensor)
            wide[..., (tensor.shape[-1] - 1) // 2] = state[key]
            state[key] = wide
    deep.load_state_dict(state)
    return deep.eval()


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


def assert_figures(figures: Figures, model: nn.Module, dims: int, in_chans: int = 3) -> None:
    """Hold a model's parameters and multiply-adds against the paper's figures, to the precision that it printed.

    Args:
        figures: What the paper printed, and our own counts where that cannot be met.
        model: The model, on the ``meta`` device to be quick.
        dims: Its spatial dimensions.
        in_chans: Channels of the input.

    Raises:
        AssertionError: If they differ, or a figure that cannot be met has no reason beside it.
    """
    stated = figures.params_m if figures.counted_params_m is None else figures.counted_params_m
    if stated is not None:
        assert count_params(model) / 1e6 == pytest.approx(stated, abs=last_decimal(stated), rel=0)
    stated = figures.gmacs if figures.counted_gmacs is None else figures.counted_gmacs
    if stated is not None:
        macs = count_macs(model, (1, in_chans, *tupled(figures.input_size, dims)))
        assert macs / 1e9 == pytest.approx(stated, abs=last_decimal(stated), rel=0)
    if figures.counted_params_m is not None or figures.counted_gmacs is not None:
        assert figures.note, "a figure that cannot be met needs its reason"


def last_decimal(figure: float) -> float:
    """Return half a unit of the last decimal that was printed: the precision of a published figure."""
    return 0.5 * 10.0 ** int(Decimal(repr(figure)).as_tuple().exponent)
