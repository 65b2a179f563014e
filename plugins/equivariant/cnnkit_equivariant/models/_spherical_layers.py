"""Layers of spin-weighted spherical networks (Esteves et al., 2023, "Scaling Spherical CNNs"); the networks are in ``spherical_cnn``.

Between the layers are coefficients ``(S, M, L, B, C)`` or fields ``(S, W, H, B, C)``, both complex: spins, then orders and degrees or
longitudes and rings, then the batch and the channels, in which order the products of the transform need no copies. Spin 0 comes first.

A linear layer that treats all orders of a degree alike commutes with every rotation exactly. What acts on points commutes with rotations up
to what the grid cannot hold: the modulus of a field has higher degrees than the field.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from cnnkit.errors import ConfigError
from torch import Tensor, nn

from cnnkit_equivariant.sphere.transform import SphereTransform, ring_weights

Spins = tuple[int, ...]


def check_spins(spins: Spins) -> None:
    """Raise :class:`ConfigError` unless the spins are different and start with 0, which every pointwise layer mixes into."""
    if not spins or spins[0] != 0 or len(set(spins)) != len(spins):
        raise ConfigError(f"spins={spins} are not accepted; type different whole numbers, 0 first, for example (0, 1)")


def in_full(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which mixed precision is off for the device of a tensor: there are no complex numbers of half precision."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def complex_parameter(*shape: int, variance: float) -> nn.Parameter:
    """Return complex weights ``shape`` with a mean square modulus of ``variance``, stored as their parts ``(*shape, 2)``."""
    return nn.Parameter(torch.randn(*shape, 2) * math.sqrt(variance / 2))


class SphericalConv(nn.Module):
    """Spin-weighted spherical convolution: of each degree, a mixture of spins and channels.

    The filters are given at a few degrees, evenly spaced, and interpolated linearly: few of them make local filters.

    Args:
        in_channels: Channels of each spin.
        out_channels: Channels of each spin of the result.
        bandwidth: Degrees of the coefficients, ``0..bandwidth - 1``.
        spins_in: Spins of the coefficients.
        spins_out: Spins of the result.
        knots: Degrees at which a filter is given; no more than there are.
    """

    interpolation: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, *, bandwidth: int, spins_in: Spins = (0, 1), spins_out: Spins = (0, 1), knots: int = 6
    ) -> None:
        super().__init__()
        knots = min(knots, bandwidth)
        if knots < 1:
            raise ConfigError(f"knots={knots} at bandwidth={bandwidth} leave no filter; accepted: 1 or more of both")
        self.spins_in, self.spins_out, self.out_channels = spins_in, spins_out, out_channels
        self.weight = complex_parameter(
            knots, len(spins_in) * in_channels, len(spins_out) * out_channels, variance=1 / (len(spins_in) * in_channels)
        )
        places = torch.linspace(0, knots - 1, bandwidth)[:, None] - torch.arange(knots)
        self.register_buffer("interpolation", (1 - places.abs()).clamp_min(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map coefficients ``(S, M, L, B, C)`` to ``(S', M, L, B, C')``."""
        filters = torch.view_as_complex(torch.einsum("lk,kiop->liop", self.interpolation, self.weight))
        _, orders, degrees, batch, _ = x.shape
        mixed = x.permute(2, 1, 3, 0, 4).reshape(degrees, orders * batch, -1) @ filters
        return mixed.view(degrees, orders, batch, len(self.spins_out), self.out_channels).permute(3, 1, 0, 2, 4)


class SpectralBatchNorm(nn.Module):
    """Batch normalization of coefficients: the mean is the coefficient of degree 0, the variance the power of all others.

    Only spin 0 has a mean; to subtract one from another spin would favour a direction. Scale and bias are complex.

    Args:
        channels: Channels of each spin.
        spins: The spins.
        zero: Whether the scale starts at zero, as at the end of a residual branch.
        momentum: Weight of a batch in the running statistics (the paper's code: 0.01, for trainings of many steps).
        eps: Added to the variance.
        steady: Whether the running statistics normalise in training too. Then what is said of one sample does not depend on the others of
            the batch, without which the gradient of one atom's energy would be a force on the atoms of other structures.
    """

    mean: Tensor
    variance: Tensor

    def __init__(
        self, channels: int, *, spins: Spins = (0, 1), zero: bool = False, momentum: float = 0.1, eps: float = 1e-5, steady: bool = False
    ) -> None:
        super().__init__()
        self.momentum, self.eps, self.steady = momentum, eps, steady
        start = torch.zeros(len(spins), channels, 2)
        start[..., 0] = 0.0 if zero else 1.0
        self.scale = nn.Parameter(start)
        self.bias = nn.Parameter(torch.zeros(channels, 2))
        self.register_buffer("mean", torch.zeros(channels, 2))
        self.register_buffer("variance", torch.ones(len(spins), channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise coefficients ``(S, M, L, B, C)``."""
        middle = x.shape[1] // 2
        mean, variance = self.mean.clone(), self.variance.clone()
        if self.training and x.shape[3]:
            now = torch.view_as_real(x[0, middle, 0].mean(0))
            power = torch.view_as_real(x[:, :, 1:]).square().sum((1, 2, 5)).mean(1) / (4 * math.pi)
            with torch.no_grad():
                self.mean.lerp_(now, self.momentum)
                self.variance.lerp_(power, self.momentum)
            if not self.steady:
                mean, variance = now, power
        factor = torch.view_as_complex(self.scale) * (variance + self.eps).rsqrt()
        normal = x * factor[:, None, None, None]
        # Mean and bias are of the first coefficient, as in the paper's code: the field's own are smaller by the root of 4 pi.
        shift = torch.view_as_complex(self.bias) - torch.view_as_complex(mean) * factor[0]
        return normal.index_put(tuple(torch.tensor(at, device=x.device) for at in (0, middle, 0)), shift, accumulate=True)


class PhaseCollapse(nn.Module):
    """Mix the moduli of all spins into spin 0, linearly over the channels; the others stay (after Guth et al., 2021).

    Args:
        channels: Channels of each spin.
        spins: The spins, 0 first.
        power: Of the modulus. Its square, half of which is taken, is smooth, and has no more than twice the degrees of the field, so that
            on a grid one and a half times as fine as the field needs (``oversampling``) no error under rotations is left.
    """

    def __init__(self, channels: int, *, spins: Spins = (0, 1), power: int = 1) -> None:
        super().__init__()
        self.power = power
        self.value = complex_parameter(channels, channels, variance=1 / channels)
        self.moduli = complex_parameter(len(spins), channels, channels, variance=1 / (len(spins) * channels))
        self.bias = nn.Parameter(torch.zeros(channels, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Map fields ``(S, W, H, B, C)`` to fields of the same shape."""
        modulus = x.abs() if self.power == 1 else 0.5 * torch.view_as_real(x).square().sum(-1)
        kept = x[0] @ torch.view_as_complex(self.value)
        collapsed = (modulus.flatten(1, 3) @ self.moduli.flatten(2)).sum(0).view(*kept.shape, 2)
        mixed = 0.5 * (kept + torch.view_as_complex(collapsed)) + torch.view_as_complex(self.bias)
        return torch.cat([mixed[None], x[1:]])


class Magnitude(nn.Module):
    """Leaky ReLU on the real part of spin 0, and on other spins a threshold of the modulus that leaves the phase (Esteves et al., 2020).

    Args:
        channels: Channels of each spin.
        spins: The spins, 0 first.
    """

    def __init__(self, channels: int, *, spins: Spins = (0, 1)) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.zeros(len(spins) - 1, 1, 1, 1, channels)) if len(spins) > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Map fields ``(S, W, H, B, C)`` to fields of the same shape."""
        first = F.leaky_relu(x[:1].real).to(x.dtype)
        if self.threshold is None:
            return first
        modulus = x[1:].abs()
        return torch.cat([first, x[1:] * (F.relu(modulus + self.threshold) / (modulus + 1e-6))])


NONLINEARITIES = ("phase_collapse", "square_collapse", "magnitude")


def nonlinearity(name: str, channels: int, spins: Spins) -> nn.Module:
    """Return the layer of that name.

    Raises:
        ConfigError: If there is none.
    """
    if name not in NONLINEARITIES:
        raise ConfigError(f"nonlinearity={name!r} is not known; accepted: {', '.join(NONLINEARITIES)}")
    if name == "magnitude":
        return Magnitude(channels, spins=spins)
    return PhaseCollapse(channels, spins=spins, power=1 if name == "phase_collapse" else 2)


class Block(nn.Module):
    """Convolution, normalization, way back to the grid, nonlinearity; with a residual branch two convolutions around one more grid.

    The residual stays in the spectral domain, where it is pooled and added, so that the branch around the block costs no transform.

    Args:
        in_channels: Channels of each spin.
        out_channels: Channels of each spin of the result.
        bandwidth: Degrees of the coefficients.
        spins_in: Spins of the coefficients.
        spins_out: Spins of the result.
        knots: Degrees at which filters are given.
        residual: Whether there is a residual branch, which needs equal spins.
        kind: Name of the nonlinearity.
        oversampling: Rings of the grid, in units of the ``2 bandwidth`` that the coefficients need.
        steady: See :class:`SpectralBatchNorm`.

    Shapes:
        input: Coefficients ``(S, M, L, B, C)``.
        output: Fields ``(S', W, H, B, C')`` on the grid of :attr:`grid`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bandwidth: int,
        spins_in: Spins = (0, 1),
        spins_out: Spins = (0, 1),
        knots: int = 6,
        residual: bool = False,
        kind: str = "phase_collapse",
        oversampling: float = 1.0,
        steady: bool = False,
    ) -> None:
        super().__init__()
        if residual and spins_in != spins_out:
            raise ConfigError(f"a residual block maps spins {spins_in} to themselves, not to {spins_out}; accepted: residual=False")
        self.grid = SphereTransform(bandwidth - 1, rings=max(2, math.ceil(2 * bandwidth * oversampling)), spins=spins_out)
        shape = {"bandwidth": bandwidth, "spins_out": spins_out, "knots": knots}
        self.conv = SphericalConv(in_channels, out_channels, spins_in=spins_in, **shape)  # type: ignore[arg-type]
        self.norm = SpectralBatchNorm(out_channels, spins=spins_out, steady=steady)
        self.act = nonlinearity(kind, out_channels, spins_out)
        self.residual = residual
        if residual:
            self.conv2 = SphericalConv(out_channels, out_channels, spins_in=spins_out, **shape)  # type: ignore[arg-type]
            self.norm2 = SpectralBatchNorm(out_channels, spins=spins_out, zero=True, steady=steady)
            self.act2 = nonlinearity(kind, out_channels, spins_out)
            # One real matrix for all degrees and spins. The paper's code adds a bias to every coefficient, which no rotation commutes with.
            self.shortcut = nn.Parameter(torch.randn(in_channels, out_channels) / math.sqrt(in_channels))
            self.shortcut_norm = SpectralBatchNorm(out_channels, spins=spins_out, steady=steady)

    def forward(self, coefficients: Tensor) -> Tensor:
        """Map coefficients to fields."""
        fields = self.act(self.grid.synthesise(self.norm(self.conv(coefficients))))
        if not self.residual:
            return fields
        branch = self.norm2(self.conv2(self.grid.analyse(fields)))
        shortcut = self.shortcut_norm(coefficients @ self.shortcut.to(coefficients.dtype))
        return self.act2(self.grid.synthesise(shortcut + branch))


def invariants(fields: Tensor, grid: SphereTransform, *, power: int = 1) -> Tensor:
    """Return what no rotation changes, ``(B, S C)`` of fields ``(S, W, H, B, C)``: the mean of spin 0, mean moduli of the others.

    Args:
        fields: The fields.
        grid: The transform of their grid.
        power: Of the moduli.
    """
    weights = torch.as_tensor(ring_weights(grid.rings, poles=grid.poles) / 2, dtype=fields.real.dtype, device=fields.device)
    moduli = fields[1:].abs() if power == 1 else torch.view_as_real(fields[1:]).square().sum(-1)
    values = torch.cat([fields[:1].real, moduli]).mean(1)
    return torch.einsum("shbc,h->bsc", values, weights).flatten(1)


def resize_degrees(coefficients: Tensor, bandwidth: int) -> Tensor:
    """Return coefficients ``(S, M, L, ...)`` with so many degrees: the highest are left out, or zeros added."""
    more = bandwidth - coefficients.shape[2]
    if more <= 0:
        middle = coefficients.shape[1] // 2
        return coefficients[:, middle - bandwidth + 1 : middle + bandwidth, :bandwidth]
    return F.pad(coefficients, (0, 0) * (coefficients.dim() - 3) + (0, more, more, more))


def stack(
    before: int,
    sizes: Iterable[tuple[int, int, int]],
    *,
    spins: Spins,
    kind: str,
    oversampling: float,
    residual: bool = True,
    steady: bool = False,
) -> nn.ModuleList:
    """Return blocks one after the other; the first reads fields of the first spin and has no shortcut.

    Args:
        before: Channels of the input.
        sizes: Channels, bandwidth and knots of each block.
        spins: Of what blocks return.
        kind: The nonlinearity.
        oversampling: As for :class:`Block`.
        residual: Whether the later blocks have shortcuts.
        steady: As for :class:`Block`.
    """
    blocks = nn.ModuleList()
    before_spins = spins[:1]
    for width, bandwidth, count in sizes:
        shortcut = residual and len(blocks) > 0
        block = Block(
            before,
            width,
            bandwidth=bandwidth,
            spins_in=before_spins,
            spins_out=spins,
            knots=count,
            residual=shortcut,
            kind=kind,
            oversampling=oversampling,
            steady=steady,
        )
        blocks.append(block)
        before, before_spins = width, spins
    return blocks
