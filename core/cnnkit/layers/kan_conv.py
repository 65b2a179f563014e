"""KAN convolution: Drokin (2024), "Kolmogorov-Arnold Convolutions: Design Principles and Empirical Studies".

An entry of the kernel is not a factor but a learnt function of one variable (Liu et al., 2024, "KAN: Kolmogorov-Arnold Networks"),
a sum of ``phi_k`` with learnt coefficients, beside a plain convolution of an activation::

    y[o, p] = sum_c,t  w[o, c, t] silu(x[c, p + t]) + sum_k v[o, c, t, k] phi_k(x[c, p + t]);    out = prelu(norm(y))

Both sums are convolutions, the second one of the functions' values. Zeros of the padding stand beside the values of the functions, not
of ``x``: what lies outside of the image adds nothing. Functions to choose from are B-splines on a grid, Gaussians, polynomials of
``tanh(x)`` (Legendre, Chebyshev, and Gram with learnt recurrence) and wavelets whose places and widths are learnt.

:class:`BottleneckKANConv` has the functions between two 1x1 convolutions, in a narrower space.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cnnkit.errors import ConfigError, unknown
from cnnkit.layers.act import get_act
from cnnkit.layers.conv import same_padding
from cnnkit.layers.nd import check_dims, conv, tupled
from cnnkit.layers.norm import get_norm
from cnnkit.registry import Entry


class Basis(nn.Module, ABC):
    """Functions of one variable that every channel is expanded by.

    Shapes:
        x: ``(B, C, *spatial)``; the result is ``(B, C * functions, *spatial)``, the functions of a channel side by side.
    """

    functions: int

    @abstractmethod
    def values(self, x: Tensor) -> list[Tensor] | Tensor:
        """Return the values of every function, each like ``x``, or all with the functions at axis 2."""

    def forward(self, x: Tensor) -> Tensor:
        """Expand the channels."""
        values = self.values(x)
        return (values if isinstance(values, Tensor) else torch.stack(values, 2)).flatten(1, 2)


class SplineBasis(Basis):
    """B-splines on an even grid, continued beyond both ends so that every place inside has all its splines.

    Args:
        grid: Cells between ``low`` and ``high``.
        order: Degree of the pieces; there are ``grid + order`` splines.
        low: Where the grid begins; some way beyond, all splines are zero.
        high: Where it ends.
    """

    def __init__(self, grid: int = 5, order: int = 3, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        self.functions = grid + order
        self.order = order
        self.step = (high - low) / grid
        self.first = low - order * self.step

    def knots(self) -> list[float]:
        """Return the knots, ``grid + 2 * order + 1`` of them."""
        return [self.first + self.step * index for index in range(self.functions + self.order + 1)]

    def values(self, x: Tensor) -> Tensor:
        """Evaluate the splines by the recurrence of Cox and de Boor."""
        cells = torch.arange(self.functions + self.order, dtype=x.dtype, device=x.device)
        past = ((x - self.first) / self.step).unsqueeze(2) - cells.view(-1, *[1] * (x.ndim - 2))  # From each knot on, in cells.
        values = ((past >= 0) & (past < 1)).to(x.dtype)
        for degree in range(1, self.order + 1):
            past = past[:, :, :-1]
            values = (past * values[:, :, :-1] + (degree + 1 - past) * values[:, :, 1:]) / degree
        return values


class GaussianBasis(Basis):
    """Gaussians with even distances, as wide as these: Li (2024), "Kolmogorov-Arnold Networks are Radial Basis Function Networks".

    Args:
        functions: Number of Gaussians.
        low: Centre of the first.
        high: Centre of the last.
    """

    def __init__(self, functions: int = 8, low: float = -2.0, high: float = 2.0) -> None:
        super().__init__()
        self.functions = functions
        self.low = low
        self.step = (high - low) / (functions - 1)

    def values(self, x: Tensor) -> Tensor:
        """Evaluate the Gaussians."""
        places = torch.arange(self.functions, dtype=x.dtype, device=x.device).view(-1, *[1] * (x.ndim - 2))
        return torch.exp(-((((x - self.low) / self.step).unsqueeze(2) - places) ** 2))


class PolynomialBasis(Basis):
    """Polynomials of ``t = tanh(x)`` by the recurrence ``p[n + 1] = a[n] t p[n] - b[n] p[n - 1]`` from ``p[0] = 1`` and ``p[1] = t``.

    The paper's code also brings ``x`` to ``[-1, 1]`` by the least and the greatest value of the batch; then a sample's output depends on
    the others, so that is not offered.

    Args:
        degree: Degree of the last polynomial; there are ``degree + 1``.
        kind: ``"legendre"``, ``"chebyshev"`` or ``"gram"``. Those of Gram have ``a = 1`` and learn ``b``, which starts where the
            polynomials are orthogonal.

    Raises:
        ConfigError: If the kind is unknown, or the degree below 1.
    """

    def __init__(self, degree: int = 3, kind: str = "legendre") -> None:
        super().__init__()
        if kind not in ("legendre", "chebyshev", "gram"):
            raise ConfigError(unknown("polynomial", kind, ("legendre", "chebyshev", "gram")))
        if degree < 1:
            raise ConfigError(f"degree={degree} leaves a constant; give 1 or more")
        self.functions = degree + 1
        self.kind = kind
        orders = torch.arange(1, degree, dtype=torch.get_default_dtype())
        self.beta = nn.Parameter(orders**2 / (4 * orders**2 - 1)) if kind == "gram" else None

    def values(self, x: Tensor) -> list[Tensor]:
        """Evaluate the polynomials."""
        x = x.tanh()
        values = [torch.ones_like(x), x]
        for n in range(1, self.functions - 1):
            now, before = values[-1], values[-2]
            if self.beta is not None:
                values.append(x * now - self.beta[n - 1] * before)
            elif self.kind == "chebyshev":
                values.append(2 * x * now - before)
            else:
                values.append(((2 * n + 1) * x * now - n * before) / (n + 1))
        return values


def mexican_hat(x: Tensor) -> Tensor:
    """Return the second derivative of a Gaussian, of unit length."""
    return 2 / (math.sqrt(3) * math.pi**0.25) * (x**2 - 1) * torch.exp(-0.5 * x**2)


def morlet(x: Tensor) -> Tensor:
    """Return a cosine of frequency 5 under a Gaussian."""
    return torch.cos(5 * x) * torch.exp(-0.5 * x**2)


def derivative_of_gaussian(x: Tensor) -> Tensor:
    """Return the first derivative of a Gaussian."""
    return -x * torch.exp(-0.5 * x**2)


def meyer(x: Tensor) -> Tensor:
    """Return a sine of ``|x|`` that ends smoothly at 1, with the auxiliary polynomial of Meyer's wavelet."""
    size = x.abs()
    t = (2 * size - 1).clamp(0, 1)
    auxiliary = t**4 * (35 - 84 * t + 70 * t**2 - 20 * t**3)
    return torch.sin(math.pi * size) * torch.cos(0.5 * math.pi * auxiliary)


def shannon(x: Tensor) -> Tensor:
    """Return the ideal band-pass filter of one octave."""
    return torch.sinc(x / 2) * torch.cos(1.5 * math.pi * x)


WAVELETS: dict[str, Callable[[Tensor], Tensor]] = {
    "mexican_hat": mexican_hat,
    "morlet": morlet,
    "dog": derivative_of_gaussian,
    "meyer": meyer,
    "shannon": shannon,
}


class WaveletBasis(Basis):
    """Wavelets whose places and widths are learnt: Bozorgasl and Chen (2024), "Wav-KAN: Wavelet Kolmogorov-Arnold Networks".

    Every input channel has some of its own, which all outputs combine. (The paper has one for every pair of channels.)

    Args:
        channels: Channels of the input.
        functions: Wavelets per channel; they start with even distances from -1 to 1.
        kind: A key of :data:`WAVELETS`.

    Raises:
        ConfigError: If the kind is unknown.
    """

    def __init__(self, channels: int, functions: int = 4, kind: str = "mexican_hat") -> None:
        super().__init__()
        if kind not in WAVELETS:
            raise ConfigError(unknown("wavelet", kind, WAVELETS))
        self.functions = functions
        self.kind = kind
        places = torch.linspace(-1, 1, functions) if functions > 1 else torch.zeros(1)
        self.place = nn.Parameter(places.repeat(channels, 1))
        self.width = nn.Parameter(torch.ones(channels, functions))

    def values(self, x: Tensor) -> Tensor:
        """Evaluate the wavelets."""
        form = (*self.place.shape, *[1] * (x.ndim - 2))
        return WAVELETS[self.kind]((x.unsqueeze(2) - self.place.view(form)) / self.width.view(form))


BASES: dict[str, Callable[[int], Basis]] = {
    "spline": lambda channels: SplineBasis(),
    "gaussian": lambda channels: GaussianBasis(),
    "legendre": lambda channels: PolynomialBasis(kind="legendre"),
    "chebyshev": lambda channels: PolynomialBasis(kind="chebyshev"),
    "gram": lambda channels: PolynomialBasis(kind="gram"),
    "mexican_hat": lambda channels: WaveletBasis(channels, kind="mexican_hat"),
    "morlet": lambda channels: WaveletBasis(channels, kind="morlet"),
    "dog": lambda channels: WaveletBasis(channels, kind="dog"),
    "meyer": lambda channels: WaveletBasis(channels, kind="meyer"),
    "shannon": lambda channels: WaveletBasis(channels, kind="shannon"),
}
"""The functions by name, with their usual numbers, for a number of channels."""


def _basis(chosen: str | Basis, channels: int) -> Basis:
    if isinstance(chosen, Basis):
        return chosen
    if chosen not in BASES:
        raise ConfigError(unknown("basis", chosen, BASES))
    return BASES[chosen](channels)


class KANConv(nn.Module):
    """A convolution whose kernel entries are learnt functions.

    Shapes:
        x: ``(B, in_channels, *spatial)``; the result is ``(B, out_channels, *spatial / stride)``, rounded up for odd kernels with the
        default padding.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: One size, or one per dimension.
        dims: Number of spatial dimensions: 1, 2 or 3.
        basis: A key of :data:`BASES`, or functions of other numbers, for example ``SplineBasis(grid=10)``.
        stride: Stride, one or one per dimension.
        dilation: Dilation, one or one per dimension.
        groups: Groups of channels that do not mix.
        padding: Zeros on each side; by default what keeps the size at stride 1.
        base_act: Activation before the plain convolution.
        norm: Normalisation of the sum, for :func:`~cnnkit.layers.norm.get_norm`.
        act: Activation at the end.

    Raises:
        ConfigError: If a name is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        *,
        dims: int = 2,
        basis: str | Basis = "spline",
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        padding: int | Sequence[int] | None = None,
        base_act: str = "silu",
        norm: str = "instance",
        act: str = "prelu",
    ) -> None:
        super().__init__()
        self.basis = _basis(basis, in_channels)
        self.base_act = get_act(base_act)
        self.base_conv = _convolution(in_channels, out_channels, kernel_size, check_dims(dims), stride, dilation, groups, padding)
        expanded = in_channels * self.basis.functions
        self.basis_conv = _convolution(expanded, out_channels, kernel_size, dims, stride, dilation, groups, padding)
        self.norm = get_norm(norm, dims, out_channels)
        self.act = get_act(act)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve the activation and the functions."""
        return self.act(self.norm(self.base_conv(self.base_act(x)) + self.basis_conv(self.basis(x))))


class BottleneckKANConv(nn.Module):
    """A convolution with learnt functions in a narrow space: squeezed before and widened after by 1x1 convolutions.

    Shapes:
        x: As for :class:`KANConv`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: One size, or one per dimension.
        dims: Number of spatial dimensions: 1, 2 or 3.
        basis: As for :class:`KANConv`, of ``inner`` channels; the paper's are polynomials of Gram.
        inner: Channels of the narrow space; by default a quarter of the wider end's, but not below 16 where both ends have as many.
        stride: Stride, one or one per dimension.
        dilation: Dilation, one or one per dimension.
        padding: Zeros on each side; by default what keeps the size at stride 1.
        base_act: Activation before the plain convolution.
        norm: Normalisation of the sum.
        act: Activation at the end.

    Raises:
        ConfigError: If a name is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        *,
        dims: int = 2,
        basis: str | Basis = "gram",
        inner: int | None = None,
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        padding: int | Sequence[int] | None = None,
        base_act: str = "silu",
        norm: str = "instance",
        act: str = "silu",
    ) -> None:
        super().__init__()
        if inner is None:
            inner = max(in_channels, out_channels) // 4
            inner = inner if inner >= 16 else min(16, in_channels, out_channels)
        self.basis = _basis(basis, inner)
        self.base_act = get_act(base_act)
        self.base_conv = _convolution(in_channels, out_channels, kernel_size, check_dims(dims), stride, dilation, 1, padding)
        self.squeeze = _convolution(in_channels, inner, 1, dims)
        self.basis_conv = _convolution(inner * self.basis.functions, inner, kernel_size, dims, stride, dilation, 1, padding)
        self.widen = _convolution(inner, out_channels, 1, dims)
        self.norm = get_norm(norm, dims, out_channels)
        self.act = get_act(act)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve the activation, and the functions of the squeezed input."""
        narrow = self.widen(self.basis_conv(self.basis(self.squeeze(x))))
        return self.act(self.norm(self.base_conv(self.base_act(x)) + narrow))


def _convolution(
    in_channels: int,
    out_channels: int,
    kernel_size: int | Sequence[int],
    dims: int,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding: int | Sequence[int] | None = None,
) -> nn.Module:
    """A convolution without bias, drawn so that the variance of its input is kept."""
    padded = same_padding(kernel_size, dilation, dims=dims) if padding is None else tupled(padding, dims)
    made = conv(dims)(
        in_channels,
        out_channels,
        tupled(kernel_size, dims),  # type: ignore[arg-type]
        stride=tupled(stride, dims),  # type: ignore[arg-type]
        padding=padded,  # type: ignore[arg-type]
        dilation=tupled(dilation, dims),  # type: ignore[arg-type]
        groups=groups,
        bias=False,
    )
    nn.init.kaiming_uniform_(made.weight, nonlinearity="linear")
    return made


LAYERS = {
    "kan_conv": Entry(
        "cnnkit.layers.kan_conv:KANConv",
        paper="kan-conv",
        summary="Convolution whose kernel entries are learnt functions of one variable (Drokin, 2024).",
        dims=(1, 2, 3),
    ),
    "kan_bottleneck": Entry(
        "cnnkit.layers.kan_conv:BottleneckKANConv",
        paper="kan-conv",
        summary="Convolution with learnt functions in a narrow space between 1x1 convolutions (Drokin, 2024).",
        dims=(1, 2, 3),
    ),
}
