"""The torch classes of one operation by number of spatial dimensions.

Everything in the core that claims ``dims`` 1, 2 and 3 takes its operators from here, so a block is
written once for sound, images and volumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

ConvType = type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]
ConvTransposeType = type[nn.ConvTranspose1d] | type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]
BatchNormType = type[nn.BatchNorm1d] | type[nn.BatchNorm2d] | type[nn.BatchNorm3d]
InstanceNormType = type[nn.InstanceNorm1d] | type[nn.InstanceNorm2d] | type[nn.InstanceNorm3d]
MaxPoolType = type[nn.MaxPool1d] | type[nn.MaxPool2d] | type[nn.MaxPool3d]
AvgPoolType = type[nn.AvgPool1d] | type[nn.AvgPool2d] | type[nn.AvgPool3d]

CONV: dict[int, ConvType] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE: dict[int, ConvTransposeType] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM: dict[int, BatchNormType] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORM: dict[int, InstanceNormType] = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
MAX_POOL: dict[int, MaxPoolType] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVG_POOL: dict[int, AvgPoolType] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
ADAPTIVE_AVG_POOL = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
DROPOUT = {1: nn.Dropout1d, 2: nn.Dropout2d, 3: nn.Dropout3d}
LINEAR_MODE = {1: "linear", 2: "bilinear", 3: "trilinear"}

T = TypeVar("T")


def conv(dims: int) -> ConvType:
    """Return the convolution class of ``dims`` spatial dimensions."""
    return CONV[check_dims(dims)]


def conv_transpose(dims: int) -> ConvTransposeType:
    """Return the transposed convolution class of ``dims`` spatial dimensions."""
    return CONV_TRANSPOSE[check_dims(dims)]


def batch_norm(dims: int) -> BatchNormType:
    """Return the batch normalisation class of ``dims`` spatial dimensions."""
    return BATCH_NORM[check_dims(dims)]


def instance_norm(dims: int) -> InstanceNormType:
    """Return the instance normalisation class of ``dims`` spatial dimensions."""
    return INSTANCE_NORM[check_dims(dims)]


def max_pool(dims: int) -> MaxPoolType:
    """Return the max pooling class of ``dims`` spatial dimensions."""
    return MAX_POOL[check_dims(dims)]


def avg_pool(dims: int) -> AvgPoolType:
    """Return the average pooling class of ``dims`` spatial dimensions."""
    return AVG_POOL[check_dims(dims)]


def check_dims(dims: int, supported: Sequence[int] = (1, 2, 3)) -> int:
    """Return ``dims`` if it is supported.

    Raises:
        ValueError: If it is not, naming the supported ones.
    """
    if dims not in supported:
        raise ValueError(f"dims={dims!r} is not supported here; use one of {tuple(supported)}")
    return dims


def tupled(value: T | Sequence[T], dims: int) -> tuple[T, ...]:
    """Return ``value`` once per dimension: a scalar repeated, a sequence checked for its length.

    Raises:
        ValueError: If a sequence has another length than ``dims``.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != dims:
            raise ValueError(f"expected one value or {dims}, got {len(value)}: {tuple(value)!r}")
        return tuple(value)
    return (value,) * dims


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resample linearly to a spatial size, with the corners of the outer voxels aligned (half-pixel rule).

    Shapes:
        x: ``(B, C, *spatial)``; the result is ``(B, C, *size)``.
    """
    size = tuple(size)
    if tuple(x.shape[2:]) == size:
        return x
    return F.interpolate(x, size=size, mode=LINEAR_MODE[check_dims(x.ndim - 2)], align_corners=False)
