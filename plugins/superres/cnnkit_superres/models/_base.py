"""What every super-resolution network has in common: a factor, colours in [0, 1], and any size of picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch.nn.functional as F
from cnnkit.errors import ConfigError, UsageError
from cnnkit.weights import Layout
from torch import Tensor, nn

LUMINANCE, RGB = 1, 3


class SuperResolver(nn.Module, ABC):
    """A network that enlarges pictures by a whole factor.

    Values are in [0, 1] at the input and, not clipped, at the output; a network whose published weights expect another range
    or a mean of zero converts inside.

    Args:
        scale: Factor that it works at.
        scales: Factors that the same weights serve, for a network that has several; by default ``scale`` alone.
        in_chans: 3 for RGB, 1 for luminance (Y of YCbCr with MATLAB's range, divided by 255).
        size_multiple: Sides are enlarged up to a multiple by reflection, and the result is cropped.

    Shapes:
        x: ``(B, in_chans, H, W)``, ``H`` and ``W`` from 1; the result is ``(B, in_chans, scale * H, scale * W)``.

    Raises:
        ConfigError: If ``scale`` is none of ``scales``.
    """

    layouts: ClassVar[tuple[Layout, ...]] = ()

    def __init__(self, *, scale: int, scales: Sequence[int] = (), in_chans: int = RGB, size_multiple: int = 1) -> None:
        super().__init__()
        self.scales = tuple(scales) or (scale,)
        if scale not in self.scales:
            raise ConfigError(f"scale {scale} is not served by {type(self).__name__}; accepted: {', '.join(map(str, self.scales))}")
        self.scale = scale
        self.in_chans = in_chans
        self.size_multiple = size_multiple

    def set_scale(self, scale: int) -> None:
        """Work at another of :attr:`scales` from now on.

        Raises:
            UsageError: If the weights do not serve it.
        """
        if scale not in self.scales:
            raise UsageError(f"this network enlarges by {' or '.join(map(str, self.scales))}, not by {scale}")
        self.scale = scale

    @contextmanager
    def at_scale(self, scale: int) -> Iterator[None]:
        """Work at another of :attr:`scales` for a while.

        Raises:
            UsageError: If the weights do not serve it.
        """
        before = self.scale
        if scale != before:
            self.set_scale(scale)
        try:
            yield
        finally:
            if scale != before:
                self.set_scale(before)

    def forward(self, x: Tensor) -> Tensor:
        """Return the enlarged picture."""
        height, width = x.shape[-2:]
        x = self.enlarge(reflect_to_multiple(x, self.size_multiple))
        if self.size_multiple == 1:
            return x
        return x[..., : height * self.scale, : width * self.scale]

    @abstractmethod
    def enlarge(self, x: Tensor) -> Tensor:
        """Enlarge a picture whose sides are multiples of :attr:`size_multiple`."""


def reflect_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Extend height and width at their ends to a multiple, by reflection, and by repetition where a side is too short to reflect.

    Shapes:
        x: ``(B, C, H, W)``.
    """
    if multiple == 1:
        return x
    for axis, side in ((3, x.shape[3]), (2, x.shape[2])):
        missing = -side % multiple
        while missing:
            step = min(missing, x.shape[axis] - 1)
            mode, step = ("reflect", step) if step else ("replicate", missing)
            x = F.pad(x, (0, step, 0, 0) if axis == 3 else (0, 0, 0, step), mode=mode)
            missing -= step
    return x
