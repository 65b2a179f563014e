"""Resizing as MATLAB's ``imresize`` does it, by which the benchmarks of super-resolution make their low-resolution pictures.

With the scale ``s``, output pixel ``k`` (counted from 1) lies at ``u = k / s + (1 - 1 / s) / 2`` of the input, and is the mean of
the pixels ``i`` around it with the weights ``h(u - i)``, divided by their sum. ``h`` is Keys' cubic kernel with ``a = -0.5``; for
a picture that shrinks it is widened to ``s h(s x)``, so that nothing aliases (the step that other libraries leave out). Beyond
its border the picture goes on as in a mirror that repeats the outermost pixel.

A row of the matrix of weights has few entries, side by side. A few rows at a time are multiplied as a small dense matrix, which
costs some wasted products and runs at the speed of a matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
from cnnkit.errors import ConfigError, InputError, unknown
from numpy.typing import NDArray

Image = TypeVar("Image")  # numpy array or torch tensor
Weights = NDArray[np.float64]

_SMALL = 1_000_000  # Products of matrix sizes up to which BLAS multiplies without rearranging its inputs first.
_HALF = 0.5 + 1e-9  # Halves are frequent and round up, whatever the order of summation made of them.
_TORCH_BLOCK = 4  # A call into torch costs more than one into numpy: fewer, larger blocks.


def _cubic(x: Weights) -> Weights:
    x = np.abs(x)
    return np.where(x <= 1, (1.5 * x - 2.5) * x**2 + 1, np.where(x <= 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0.0))


def _linear(x: Weights) -> Weights:
    return np.maximum(1 - np.abs(x), 0)


def _box(x: Weights) -> Weights:
    return ((x >= -0.5) & (x < 0.5)).astype(np.float64)


def _lanczos(lobes: int) -> Callable[[Weights], Weights]:
    return lambda x: np.where(np.abs(x) < lobes, np.sinc(x) * np.sinc(x / lobes), 0.0)


KERNELS: dict[str, tuple[Callable[[Weights], Weights], float]] = {
    "bicubic": (_cubic, 4.0),
    "bilinear": (_linear, 2.0),
    "box": (_box, 1.0),
    "lanczos2": (_lanczos(2), 4.0),
    "lanczos3": (_lanczos(3), 6.0),
    "nearest": (_box, 1.0),
}
"""The kernels by MATLAB's names, with their widths; ``nearest`` is a box that is never widened."""


class Block(NamedTuple):
    """Output pixels that are computed together: ``matrix``, ``(outputs, last - first)`` or transposed, times the inputs between."""

    first: int
    last: int
    matrix: Any


class _Axis(NamedTuple):
    """How one side changes; what the matrices of its weights depend on."""

    inputs: int
    outputs: int
    scale: float
    kernel: str
    antialias: bool


def imresize(image: Image, scale_or_size: float | Sequence[int], *, kernel: str = "bicubic", antialias: bool = True) -> Image:
    """Resize a picture with the result of MATLAB's ``imresize``.

    Args:
        image: numpy array ``(H, W)`` or ``(H, W, C)``, or torch tensor ``(..., H, W)`` on any device. Whole numbers (uint8, uint16)
            are computed in float64 and, as in MATLAB, rounded and clipped after each of the two axes. Floats stay as they are, may
            leave the range that they had, and let gradients through.
        scale_or_size: Factor, by which the sides become ``ceil(H * factor)`` and ``ceil(W * factor)``; or ``(rows, columns)``.
        kernel: One of :data:`KERNELS`.
        antialias: Widen the kernel along an axis that shrinks.

    Returns:
        A picture of the same library, number type and layout.

    Raises:
        InputError: The picture has another number type or layout, or no pixels.
        ConfigError: No such kernel, or no such scale or size.
    """
    if kernel not in KERNELS:
        raise ConfigError(unknown("kernel", kernel, KERNELS))
    in_numpy = isinstance(image, np.ndarray)
    picture: Any = image
    _check(picture, in_numpy)
    sides = tuple(map(int, picture.shape[:2] if in_numpy else picture.shape[-2:]))
    sizes, scales = _sizes_and_scales(sides, scale_or_size)
    antialias = antialias and kernel != "nearest"
    rows, columns = (_Axis(*ends, kernel, antialias) for ends in zip(sides, sizes, scales, strict=True))
    resize: Any = _resize_array if in_numpy else _resize_tensor
    return resize(picture, rows, columns)


def contributions(inputs: int, outputs: int, scale: float, kernel: str, antialias: bool) -> tuple[Weights, NDArray[np.intp]]:
    """Return for every output pixel of one axis the weights and the indices of the input pixels that it is made of.

    Args:
        inputs: Pixels of the input.
        outputs: Pixels of the output.
        scale: Factor; apart from the sizes, because MATLAB rounds the output's size up and keeps the factor.
        kernel: One of :data:`KERNELS`.
        antialias: Widen the kernel if ``scale`` is below 1.

    Returns:
        Both ``(outputs, taps)``. Rows of weights sum to 1, and no column is all zero. Indices count from 0 and are mirrored into the
        input, so that one may occur twice.
    """
    function, width = KERNELS[kernel]
    shrink = min(scale, 1.0) if antialias else 1.0
    width /= shrink
    centres = np.arange(1, outputs + 1) / scale + 0.5 * (1 - 1 / scale)
    indices = np.floor(centres - width / 2)[:, None] + np.arange(math.ceil(width) + 2)
    weights = shrink * function(shrink * (centres[:, None] - indices))
    weights /= weights.sum(1, keepdims=True)
    used = weights.any(0)
    mirrored = (indices[:, used].astype(np.intp) - 1) % (2 * inputs)
    return weights[:, used], np.minimum(mirrored, 2 * inputs - 1 - mirrored)


def _check(image: Any, in_numpy: bool) -> None:
    """Raise :class:`InputError` for what is no picture."""
    if in_numpy:
        if image.ndim not in (2, 3):
            raise InputError(f"a picture has the shape (H, W) or (H, W, C), not {image.shape}")
        known = image.dtype in (np.uint8, np.uint16) or image.dtype.kind == "f"
    else:
        import torch

        if not isinstance(image, torch.Tensor) or image.ndim < 2:
            raise InputError(f"a picture is a numpy array (H, W, C) or a tensor (..., H, W), not {getattr(image, 'shape', type(image))}")
        known = image.dtype in (torch.uint8, torch.uint16) or image.dtype.is_floating_point
    if not known:
        raise InputError(f"pictures of {image.dtype} are not resized; convert to uint8, uint16 or a float type first")
    if 0 in image.shape:
        raise InputError(f"a picture of the shape {tuple(image.shape)} has no pixels to resize")


def _sizes_and_scales(sides: tuple[int, ...], scale_or_size: float | Sequence[int]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return height and width of the output, and their factors."""
    if isinstance(scale_or_size, Sequence):
        if len(scale_or_size) != 2 or any(int(side) != side or side < 1 for side in scale_or_size):
            raise ConfigError(f"the size must be two whole numbers (rows, columns) from 1, not {tuple(scale_or_size)}")
        sizes = tuple(int(side) for side in scale_or_size)
        return sizes, tuple(after / before for after, before in zip(sizes, sides, strict=True))
    if not 0 < scale_or_size < math.inf:
        raise ConfigError(f"the scale must be a positive number, not {scale_or_size}")
    return tuple(math.ceil(side * scale_or_size) for side in sides), (float(scale_or_size),) * 2


def _resize_array(image: NDArray[Any], rows: _Axis, columns: _Axis) -> NDArray[Any]:
    channels = image.shape[2] if image.ndim == 3 else 1
    whole = image.dtype.kind == "u"
    work = np.dtype(np.float64) if whole else np.promote_types(image.dtype, np.float32)
    x = image.reshape(rows.inputs, -1)  # (H, W * C): the pass over columns keeps the channels apart.
    if not whole:
        x = x.astype(work, copy=False)
    for axis in _order(rows, columns, whole):
        x = _rows(x, _blocks(rows, 1, work)) if axis == 0 else _columns(x, _blocks(columns, channels, work, across=True))
    return x.reshape(rows.outputs, columns.outputs, *image.shape[2:]).astype(image.dtype, copy=False)


def _resize_tensor(image: Any, rows: _Axis, columns: _Axis) -> Any:
    import torch

    whole = not image.dtype.is_floating_point
    x = image.to(torch.float64 if whole else torch.promote_types(image.dtype, torch.float32))
    for axis in _order(rows, columns, whole):
        blocks = _tensor_blocks(rows if axis == 0 else columns, x.dtype, x.device)
        if axis == 0:
            x = torch.cat([block.matrix @ x[..., block.first : block.last, :] for block in blocks], dim=-2)
        else:
            x = torch.cat([x[..., block.first : block.last] @ block.matrix.mT for block in blocks], dim=-1)
        if whole:
            x = (x.clamp(0, torch.iinfo(image.dtype).max) + _HALF).floor()
    return x.to(image.dtype)


def _order(rows: _Axis, columns: _Axis, whole: bool) -> tuple[int, int]:
    """Return the axes in the order of work: MATLAB's, which whole numbers depend on, takes the smaller factor first."""
    if not whole and rows.scale == columns.scale > 1:
        return 1, 0  # Columns cost more, so they come while there are few rows.
    return (0, 1) if rows.scale <= columns.scale else (1, 0)


def _rows(x: NDArray[Any], blocks: Sequence[Block]) -> NDArray[Any]:
    """Resize along the first axis of ``(H, N)``."""
    out = np.empty((sum(len(block.matrix) for block in blocks), x.shape[1]), x.dtype)
    start = 0
    for first, last, matrix in blocks:
        stop, step = start + len(matrix), max(64, _SMALL // matrix.size)
        for left in range(0, x.shape[1], step):
            part = x[first:last, left : left + step].astype(matrix.dtype, copy=False)
            _multiply(matrix, part, out[start:stop, left : left + step])
        start = stop
    return out


def _columns(x: NDArray[Any], blocks: Sequence[Block]) -> NDArray[Any]:
    """Resize along the second axis of ``(H, W * C)``."""
    out = np.empty((len(x), sum(block.matrix.shape[1] for block in blocks)), x.dtype)
    step = max(4, _SMALL // max(block.matrix.size for block in blocks))
    for top in range(0, len(x), step):
        part = x[top : top + step].astype(blocks[0].matrix.dtype, copy=False)
        start = 0
        for first, last, matrix in blocks:
            stop = start + matrix.shape[1]
            _multiply(part[:, first:last], matrix, out[top : top + step, start:stop])
            start = stop
    return out


def _multiply(a: NDArray[Any], b: NDArray[Any], out: NDArray[Any]) -> None:
    """Write the matrix product into ``out``, clipped and with halves rounded up if it holds whole numbers."""
    if out.dtype.kind == "f":
        np.matmul(a, b, out=out)
        return
    product = a @ b
    np.clip(product, 0, np.iinfo(out.dtype).max, out=product)
    product += _HALF
    out[...] = product  # The cast cuts off the fraction.


@lru_cache(maxsize=64)
def _blocks(axis: _Axis, channels: int, dtype: np.dtype[Any], larger: int = 1, *, across: bool = False) -> tuple[Block, ...]:
    """Return the matrix of weights in dense pieces along its diagonal; with channels and transposed for columns of ``(W * C)``."""
    weights, indices = contributions(*axis)
    height = larger * max(4, math.ceil(weights.shape[1] * axis.scale))  # A piece about twice as wide as one row's own weights.
    blocks = []
    for start in range(0, axis.outputs, height):
        near = indices[start : start + height]
        first, last = int(near.min()), int(near.max()) + 1
        matrix = np.zeros((len(near), last - first))
        np.add.at(matrix, (np.arange(len(near))[:, None], near - first), weights[start : start + height])
        matrix = np.kron(matrix, np.eye(channels)).astype(dtype)
        matrix = np.ascontiguousarray(matrix.T) if across else matrix
        blocks.append(Block(first * channels, last * channels, matrix))
    return tuple(blocks)


@lru_cache(maxsize=64)
def _tensor_blocks(axis: _Axis, dtype: Any, device: Any) -> tuple[Block, ...]:
    import torch

    blocks = _blocks(axis, 1, np.dtype(np.float64), _TORCH_BLOCK)
    with torch.inference_mode(False):  # What is kept from a call in inference mode must serve training too.
        return tuple(Block(b.first, b.last, torch.from_numpy(b.matrix).to(device=device, dtype=dtype)) for b in blocks)
