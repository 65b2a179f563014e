"""NUFT-CNN: an outline or a mesh, its exact spectrum, a grid, a usual convolutional network (Jiang et al., 2019).

The paper is "Convolutional Neural Networks on non-uniform geometrical signals using Euclidean spectral transformation". Its layer has no
weights: it computes the Fourier coefficients of line segments, triangles or tetrahedra in closed form and transforms them back
(:mod:`cnnkit_equivariant.simplex`). What the network sees depends on the shape and on nothing else: not on how many vertices it was drawn
with, nor on their order. The network behind it is free; the paper takes standard ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from cnnkit.errors import ConfigError, InputError
from cnnkit.layers import ConvNormAct, global_pool
from cnnkit.layers.nd import max_pool
from torch import Tensor, nn
from torch.nn import functional as F

from cnnkit_equivariant.models._base import Classifier
from cnnkit_equivariant.simplex import SimplexRaster, corners_of

SIGNALS = ("solid", "boundary")


class Trunk(nn.Sequential):
    """Two 3 x 3 convolutions a stage, each normalised and rectified, and halvings in between. Shapes: ``(B, C, *size)`` to ``(B, C')``."""

    def __init__(self, in_chans: int, widths: Sequence[int], dims: int) -> None:
        if not widths:
            raise ConfigError("widths=() makes no stage; give the channels of one or more")
        layers: list[nn.Module] = []
        before = in_chans
        for number, width in enumerate(widths):
            layers += [max_pool(dims)(2, ceil_mode=True)] * (number > 0)
            layers += [ConvNormAct(before, width, dims=dims), ConvNormAct(width, width, dims=dims)]
            before = width
        super().__init__(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return pooled features."""
        return global_pool(super().forward(x))


def _signal(signal: str) -> bool:
    if signal not in SIGNALS:
        raise ConfigError(f"signal={signal!r} is unknown; accepted: {', '.join(SIGNALS)}")
    return signal == "solid"


class NUFTCNN(Classifier):
    """Classify what closed outlines enclose.

    Shapes:
        x: ``(B, S, 2, 2)`` segments as (row, column) of start and end, in the unit square, in any order, filled up with segments of no
            length; with several channels ``(B, S, C, 2, 2)``. The result is ``(B, num_classes)``.

    Args:
        num_classes: What it tells apart.
        in_chans: Outlines of one sample, each a channel of the grid.
        size: Side of the grid.
        widths: Channels of each stage of the network.
        margin: Free space about the unit square, against its copies on the other side.
        smoothing: Deviation of the Gaussian against ringing, in samples of the grid.
        signal: ``"solid"`` fills outlines, as closed ones that turn counter-clockwise in (row, column); ``"boundary"`` draws the lines.
        drop: Dropout before the classifier.
    """

    domain: ClassVar[str] = "outline"

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_chans: int = 1,
        size: int = 28,
        widths: Sequence[int] = (32, 64, 128),
        margin: float = 0.1,
        smoothing: float = 2 / math.pi,
        signal: str = "solid",
        drop: float = 0.2,
    ) -> None:
        super().__init__(num_classes=num_classes, in_chans=in_chans)
        if not margin >= 0:
            raise ConfigError(f"margin={margin} cuts the square; accepted: 0 or more")
        solid = _signal(signal)
        self.raster = SimplexRaster(size=(size, size), period=1 + 2 * margin, origin=-margin, smoothing=smoothing, solid=solid)
        # A line has no density of its own: one of a length of a sample, in its width, has 1.
        self.scale = 1.0 if solid else (1 + 2 * margin) / size
        self.trunk = Trunk(in_chans, widths, 2)
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(widths[-1], num_classes)

    def draw(self, x: Tensor) -> Tensor:
        """Return the grids ``(B, C, size, size)`` that the network sees.

        Raises:
            InputError: If the shape is none of the accepted.
        """
        if (
            x.ndim not in (4, 5)
            or x.shape[-2:] != (2, 2)
            or (x.ndim == 4 and self.in_chans != 1)
            or (x.ndim == 5 and x.shape[2] != self.in_chans)
        ):
            wanted = "(B, S, 2, 2)" if self.in_chans == 1 else f"(B, S, {self.in_chans}, 2, 2)"
            raise InputError(f"outlines {tuple(x.shape)}: this network takes segments {wanted}, each (row, column) of start and end")
        segments = x[:, None] if x.ndim == 4 else x.transpose(1, 2)
        return self.scale * self.raster.draw(segments)[:, :, 0]

    def features(self, x: Tensor) -> Tensor:
        """Return pooled features ``(B, widths[-1])``."""
        return self.trunk(self.draw(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.drop(self.features(x)))


class NUFTMeshEncoder(nn.Module):
    """Embed triangle meshes so that alike shapes are near each other, for retrieval.

    A mesh is moved and scaled into the cell by its bounding box, filled (or drawn as a surface), and embedded by convolutions in space.

    Shapes:
        vertices: ``(B, V, 3)``; spare ones repeat one that is used.
        faces: Indices ``(F, 3)`` or ``(B, F, 3)``, counter-clockwise from outside; spare ones name one vertex three times.
        The result is ``(B, embedding)``, of length 1.

    Args:
        embedding: Length of the vector.
        size: Side of the grid.
        widths: Channels of each stage.
        margin: Free space about the bounding box, over its longest side.
        smoothing: Deviation of the Gaussian against ringing, in samples of the grid.
        signal: ``"solid"`` for watertight meshes, ``"boundary"`` for any surface.
    """

    def __init__(
        self,
        *,
        embedding: int = 64,
        size: int = 32,
        widths: Sequence[int] = (16, 32, 64, 128),
        margin: float = 0.1,
        smoothing: float = 2 / math.pi,
        signal: str = "solid",
    ) -> None:
        super().__init__()
        solid = _signal(signal)
        self.raster = SimplexRaster(size=(size,) * 3, period=1 + 2 * margin, origin=-margin, smoothing=smoothing, solid=solid)
        self.scale = 1.0 if solid else (1 + 2 * margin) / size
        self.trunk = Trunk(1, widths, 3)
        self.head = nn.Linear(widths[-1], embedding)

    def draw(self, vertices: Tensor, faces: Tensor) -> Tensor:
        """Return the volumes ``(B, 1, size, size, size)``.

        Raises:
            InputError: If shapes or indices do not fit, or a mesh has no extent.
        """
        low, high = vertices.amin(1, keepdim=True), vertices.amax(1, keepdim=True)
        longest = (high - low).amax(-1, keepdim=True)
        if not bool((longest > 0).all()) or not bool(torch.isfinite(longest).all()):
            raise InputError("a mesh has no extent, or a vertex is not finite (NaN or infinite)")
        fitted = (vertices - 0.5 * (low + high)) / longest + 0.5
        return self.scale * self.raster.draw(corners_of(fitted, faces))

    def forward(self, vertices: Tensor, faces: Tensor) -> Tensor:
        """Return embeddings of length 1."""
        return F.normalize(self.head(self.trunk(self.draw(vertices, faces))), dim=-1)
