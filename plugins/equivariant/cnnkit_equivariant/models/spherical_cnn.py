"""Spherical CNNs (Esteves, Slotine and Makadia, 2023, "Scaling Spherical CNNs").

Features are functions on the sphere of spin 0 (scalars) and spin 1 (tangent vectors, as complex numbers against the local north). A
convolution mixes the harmonic coefficients of each degree over spins and channels, with filters that are given at a few degrees; that
commutes with every rotation, and through spin 1 its filters need not be symmetric about an axis:

    ``f -> coefficients -> [conv -> norm -> grid -> phase collapse -> coefficients -> conv -> norm] + shortcut -> grid -> phase collapse``

What the paper adds to spin-weighted networks (Esteves et al., 2020) is here as in its code: transforms as products with tables, residual
blocks whose shortcut stays spectral, batch normalization and pooling in the spectral domain, and the phase collapse. Networks work at their
own bandwidth: a field on any grid is brought to it through its harmonics, and so are grids of climate models.

The layers are in ``_spherical_layers``. Complex products have no counterpart in ONNX; ``torch.export`` works.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import ClassVar

import torch
from cnnkit.errors import ConfigError, InputError
from torch import Tensor, nn

from cnnkit_equivariant.models._base import Classifier
from cnnkit_equivariant.models._spherical_layers import Block, SphericalConv, Spins, check_spins, in_full, invariants, resize_degrees, stack
from cnnkit_equivariant.sphere.transform import SphereTransform


@lru_cache(maxsize=16)
def _cached_grid(lmax: int, rings: int, longitudes: int, poles: bool, dtype: torch.dtype, device: torch.device) -> SphereTransform:
    return _grid(lmax, rings, longitudes, poles, dtype, device)


def _grid(lmax: int, rings: int, longitudes: int, poles: bool, dtype: torch.dtype, device: torch.device) -> SphereTransform:
    return SphereTransform(lmax, rings=rings, longitudes=longitudes, spins=(0,), poles=poles).to(device, dtype)


def field_grid(x: Tensor, bandwidth: int, in_chans: int, *, poles: bool = True) -> SphereTransform:
    """Return the transform of real fields ``(B, C, H, W)`` up to the degrees that both their grid and a bandwidth hold.

    Raises:
        InputError: If they are not fields of ``in_chans`` channels on a grid.
    """
    if x.dim() != 4 or x.shape[1] != in_chans or min(x.shape[2:]) < 2:
        raise InputError(
            f"the input is {tuple(x.shape)}; accepted: (batch, {in_chans}, rings, longitudes), from the north pole down, longitude eastward"
        )
    rings, longitudes = x.shape[2:]
    lmax = min(bandwidth - 1, (rings - 1) // 2, (longitudes - 1) // 2)
    # A trace must hold its own tables, and a cache none of a trace's.
    build = _grid if torch.compiler.is_compiling() else _cached_grid
    return build(lmax, rings, longitudes, poles, x.dtype, x.device)


def lift(x: Tensor, grid: SphereTransform, bandwidth: int) -> Tensor:
    """Return the coefficients ``(1, M, L, B, C)`` of real fields ``(B, C, H, W)``."""
    return resize_degrees(grid.analyse(x.permute(3, 2, 0, 1)[None]), bandwidth)


def _same_length(**plans: Sequence[int]) -> None:
    if len({len(plan) for plan in plans.values()}) != 1 or not next(iter(plans.values())) or min(map(min, plans.values())) < 1:
        said = ", ".join(f"{name}={tuple(plan)}" for name, plan in plans.items())
        raise ConfigError(f"{said}; accepted: one positive number of each for every block")


class SphericalCNN(Classifier):
    """Classifies fields on the sphere, whichever way they are turned.

    Args:
        num_classes: What it tells apart.
        in_chans: Channels of the field.
        widths: Channels of each spin after each block.
        bandwidths: Degrees after each block; fewer than before are spectral pooling.
        knots: Degrees at which the filters of each block are given.
        spins: Spins of the features, 0 first; ``(0,)`` leaves zonal filters, the spherical CNN of Esteves et al. (2018).
        residual: Whether blocks after the first are residual.
        nonlinearity: ``"phase_collapse"``, ``"square_collapse"`` (squares of the moduli) or ``"magnitude"``.
        oversampling: Points of the grids on which nonlinearities act, per direction, in units of what the bandwidth needs: 2 costs four
            times as much, and the error under rotations falls; of squares there is none from 1.5 on, but for the classifier's moduli.
        poles: Whether the first and last ring of the input are the poles.
        drop_rate: Dropout before the classifier.

    Shapes:
        x: ``(B, in_chans, H, W)``, real: colatitude from the north pole, longitude eastward; any grid. The result is ``(B, num_classes)``.
    """

    domain = "sphere"
    not_exported: ClassVar[Mapping[str, str]] = {".onnx": "its features are complex numbers, which ONNX does not multiply"}

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_chans: int = 1,
        widths: tuple[int, ...] = (16, 16, 32, 32),
        bandwidths: tuple[int, ...] = (14, 14, 7, 7),
        knots: tuple[int, ...] = (6, 6, 4, 4),
        spins: Spins = (0, 1),
        residual: bool = True,
        nonlinearity: str = "phase_collapse",
        oversampling: float = 1.0,
        poles: bool = True,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes=num_classes, in_chans=in_chans)
        _same_length(widths=widths, bandwidths=bandwidths, knots=knots)
        check_spins(spins)
        self.bandwidth, self.poles = bandwidths[0], poles
        sizes = zip(widths, bandwidths, knots, strict=True)
        self.blocks = stack(in_chans, sizes, spins=spins, residual=residual, kind=nonlinearity, oversampling=oversampling)
        before = widths[-1]
        self.drop = nn.Dropout(drop_rate)
        self.classifier = nn.Linear(len(spins) * before, num_classes)

    def fields(self, x: Tensor) -> tuple[Tensor, SphereTransform]:
        """Return the last features, fields ``(S, W, H, B, C)``, which turn with the input, and the transform of their grid."""
        with in_full(x):
            coefficients = lift(x, field_grid(x, self.bandwidth, self.in_chans, poles=self.poles), self.bandwidth)
            return run_blocks(self.blocks, coefficients)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)`` for fields ``(B, C, H, W)``."""
        return self.classifier(self.drop(invariants(*self.fields(x))))


def run_blocks(blocks: nn.ModuleList, coefficients: Tensor) -> tuple[Tensor, SphereTransform]:
    """Return the fields after the last of some blocks, and their grid; each block pools to its own degrees."""
    fields = grid = None
    for block in blocks:
        assert isinstance(block, Block)
        if fields is not None and grid is not None:
            coefficients = resize_degrees(grid.analyse(fields, min(grid.lmax, block.grid.lmax)), block.grid.lmax + 1)
        fields, grid = block(coefficients), block.grid
    assert fields is not None and grid is not None
    return fields, grid


class SphericalUNet(nn.Module):
    """Maps fields on the sphere to fields, as the paper's networks for weather: turn the input, and the output turns.

    Each level has half the degrees of the one before; on the way up, coefficients are padded with zeros and joined to those of the way
    down. What is fixed to the globe, such as the height of the ground, goes in as further channels; the network then still commutes with
    turning all channels together.

    Args:
        in_chans: Channels of the input.
        out_chans: Channels of the output.
        bandwidth: Degrees of the first level.
        widths: Channels of each spin at each level.
        knots: Degrees at which filters are given.
        spins: Spins of the features, 0 first.
        tendency: Whether the output is added to the first ``out_chans`` channels of the input, as a change of a state in time.
        oversampling: See :class:`SphericalCNN`.
        poles: Whether the first and last ring of the input are the poles.

    Shapes:
        x: ``(B, in_chans, H, W)`` on any grid. The result is ``(B, out_chans, H, W)`` on the same, of degrees below the bandwidth.
    """

    def __init__(
        self,
        *,
        in_chans: int = 1,
        out_chans: int = 1,
        bandwidth: int = 16,
        widths: tuple[int, ...] = (16, 32),
        knots: int = 8,
        spins: Spins = (0, 1),
        tendency: bool = True,
        oversampling: float = 1.0,
        poles: bool = True,
    ) -> None:
        super().__init__()
        _same_length(widths=widths, bandwidths=[bandwidth >> level for level in range(len(widths))])
        check_spins(spins)
        if tendency and out_chans > in_chans:
            raise ConfigError(f"tendency=True adds {out_chans} channels to {in_chans}; accepted: out_chans of in_chans at most")
        self.in_chans, self.out_chans, self.bandwidth, self.tendency, self.poles = in_chans, out_chans, bandwidth, tendency, poles

        def block(before: int, after: int, level: int, spins_in: Spins) -> Block:
            return Block(
                before,
                after,
                bandwidth=bandwidth >> level,
                spins_in=spins_in,
                spins_out=spins,
                knots=knots,
                residual=spins_in == spins,
                oversampling=oversampling,
            )

        self.stem = block(in_chans, widths[0], 0, (0,))
        self.down = nn.ModuleList(block(widths[level - 1], widths[level], level, spins) for level in range(1, len(widths)))
        self.up = nn.ModuleList(block(widths[level] + widths[level + 1], widths[level], level, spins) for level in range(len(widths) - 1))
        self.head = SphericalConv(widths[0], out_chans, bandwidth=bandwidth, spins_in=spins, spins_out=(0,), knots=knots)

    def forward(self, x: Tensor) -> Tensor:
        """Return fields ``(B, out_chans, H, W)`` for fields ``(B, in_chans, H, W)``."""
        with in_full(x):
            return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        outer = field_grid(x, self.bandwidth, self.in_chans, poles=self.poles)
        fields, grid = self.stem(lift(x, outer, self.bandwidth)), self.stem.grid
        skips = []
        for block in self.down:
            assert isinstance(block, Block)
            skips.append(grid.analyse(fields))
            fields, grid = block(resize_degrees(skips[-1], block.grid.lmax + 1)), block.grid
        for block, skip in zip(reversed(self.up), reversed(skips), strict=True):
            assert isinstance(block, Block)
            padded = resize_degrees(grid.analyse(fields), block.grid.lmax + 1)
            fields, grid = block(torch.cat([skip, padded], -1)), block.grid
        found = resize_degrees(self.head(grid.analyse(fields)), outer.lmax + 1)
        y = outer.synthesise(found)[0].real.permute(2, 3, 1, 0)
        return x[:, : self.out_chans] + y if self.tendency else y
