"""Layers that commute exactly with the down-scaling of pictures.

Rahman and Yeh (2023), "Truly Scale-Equivariant Deep Nets with Fourier Layers". Down-scaling without aliases keeps the centre of a
picture's spectrum, ``X[k]`` with ``|k| <= rho``, where ``|k|`` is the larger of the two frequencies. A map commutes with it for every
``rho`` if ``Y[k]`` is made of ``X[j]`` with ``|j| <= |k|`` alone. Three kinds of layers are of that form: products with the spectrum of a
kernel (:class:`FourierConv`), triangular mixtures of frequencies (:class:`FrequencyMixer`), and any function of a picture that is applied
at every resolution, if each shell ``|k| = rho`` of the result is taken from the resolution that ends there (:class:`ShellActivation`).
Sides are odd: the Nyquist frequency of an even one has no sign, and no place in a smaller picture.

Spectra are real here: ``(N + 1, N + 1, B, C)`` coefficients of a picture ``(B, C, N, N)`` by products of ``1, 0, cos 1, sin 1, cos 2,
...``, so that down-scaling is a leading slice, and everything is products of matrices, which for these sizes beat Fourier transforms
severalfold.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from cnnkit.errors import ConfigError, InputError
from cnnkit.layers import get_act
from torch import Tensor, nn

from cnnkit_equivariant.classification.pictures import resample


def check_odd(height: int, width: int) -> int:
    """Return the side of a square picture whose side is odd.

    Raises:
        InputError: If it is no such picture.
    """
    if height != width or height < 1:
        raise InputError(
            f"a picture of {height} x {width} pixels is not square; accepted: squares of an odd side; pad it to a square first"
        )
    if height % 2 == 0:
        raise InputError(
            f"a picture of {height} x {width} pixels has a Nyquist frequency, which no smaller picture can hold exactly; accepted: squares "
            f"of an odd side: resample it to {height - 1} or {height + 1} (classification.size={height - 1} when training)"
        )
    return height


def ideal_downscale(pictures: Tensor, size: int) -> Tensor:
    """Return pictures ``(B, C, size, size)`` from ``(B, C, N, N)`` by cropping the centred spectrum; both sides are odd.

    Raises:
        InputError: If a side is even, or ``size`` is larger than the pictures.
    """
    side = check_odd(*pictures.shape[-2:])
    if check_odd(size, size) > side:
        raise InputError(f"pictures of side {side} cannot be scaled down to {size}; accepted: odd sizes from 1 to {side}")
    return resample(pictures, size)


def equivariance_error(layer: Callable[[Tensor], Tensor], pictures: Tensor, sizes: Sequence[int]) -> float:
    """Return how far a layer is from commuting with :func:`ideal_downscale`, as the paper measures it; 0 means that it does.

    It is ``|D(f(x)) - f(D(x))|^2 / |D(f(x))|^2`` of each channel, averaged over channels, pictures and sizes.

    Args:
        layer: From pictures ``(B, C, N, N)`` to pictures.
        pictures: ``x``.
        sizes: To which ``x`` is scaled down.
    """
    with torch.no_grad():
        whole, errors = layer(pictures), []
        for size in sizes:
            other = layer(ideal_downscale(pictures, size))
            wanted = ideal_downscale(whole, other.shape[-1])
            error, norm = (part.square().sum((-2, -1)) for part in (wanted - other, wanted))
            errors.append(float((error / norm.clamp_min(1e-12)).mean()))
    return sum(errors) / len(errors)


@lru_cache(maxsize=512)
def _basis(size: int, dtype: type[np.floating]) -> np.ndarray:
    angles = 2 * np.pi * np.outer(np.arange(size), np.arange((size + 1) // 2)) / size
    waves = math.sqrt(2) * np.stack([np.cos(angles), np.sin(angles)], -1)
    waves[:, 0] = [1, 0]
    return np.ascontiguousarray(waves.reshape(size, size + 1).astype(dtype))


def basis(size: int, like: Tensor) -> Tensor:
    """Return the matrix ``(size, size + 1)`` from coefficients to samples; its transpose over ``size`` leads back.

    Args:
        size: Odd number of samples.
        like: Of what type, and where.
    """
    # Cached as an array: a tensor that is made while a network is traced would not be one later.
    return torch.from_numpy(_basis(size, np.float64 if like.dtype == torch.float64 else np.float32)).to(like)


def _apply(rows: Tensor, fields: Tensor, columns: Tensor) -> Tensor:
    """Return ``rows @ field @ columns.T`` of each of ``fields (R, Q, B, C)``, the shorter side first."""
    first, second, *rest = fields.shape
    flat = fields.flatten(2)
    if len(rows) < first:
        flat, first = (rows @ flat.reshape(first, -1)).view(len(rows), second, -1), len(rows)
        return torch.bmm(columns.expand(first, -1, -1), flat).view(first, len(columns), *rest)
    flat = torch.bmm(columns.expand(first, -1, -1), flat)
    return (rows @ flat.flatten(1)).view(len(rows), len(columns), *rest)


def to_spectrum(pictures: Tensor) -> Tensor:
    """Return the coefficients ``(N + 1, N + 1, B, C)`` of pictures ``(B, C, N, N)``; the rows and columns 1 are zero.

    Raises:
        InputError: If the pictures are not square or their side is even.
    """
    size = check_odd(*pictures.shape[-2:])
    back = basis(size, pictures).mT / size
    return _apply(back, pictures.permute(2, 3, 0, 1).contiguous(), back)


def from_spectrum(spectrum: Tensor) -> Tensor:
    """Return pictures ``(B, C, N, N)`` from their coefficients ``(N + 1, N + 1, B, C)``."""
    waves = basis(len(spectrum) - 1, spectrum)
    return _apply(waves, spectrum, waves).permute(2, 3, 0, 1).contiguous()


class SpectralLayer(nn.Module, ABC):
    """A layer that maps pictures, and says how by what it does to their spectra; layers in a row need no pictures in between."""

    @abstractmethod
    def spectral(self, spectrum: Tensor) -> Tensor:
        """Return the spectrum of the result, ``(M + 1, M + 1, B, D)``, from that of the input, ``(N + 1, N + 1, B, C)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return pictures ``(B, D, M, M)`` from pictures ``(B, C, N, N)`` of an odd side."""
        return from_spectrum(self.spectral(to_spectrum(x)))


def _split(spectrum: Tensor) -> tuple[Tensor, Tensor]:
    """Return real and negated imaginary parts ``(2, P, P, ...)`` of the frequencies ``(p, q)`` and ``(p, -q)`` from ``(2 P, 2 P, ...)``."""
    cosines, sines = spectrum[::2], spectrum[1::2]
    cc, cs, sc, ss = cosines[:, ::2], cosines[:, 1::2], sines[:, ::2], sines[:, 1::2]
    return torch.stack([cc - ss, cc + ss]), torch.stack([sc + cs, sc - cs])


def _join(real: Tensor, imaginary: Tensor) -> Tensor:
    """Return twice the spectrum ``(2 P, 2 P, ...)`` that :func:`_split` takes apart."""
    (plus, minus), (up, down) = real, imaginary
    parts = torch.stack([plus + minus, up - down, up + down, minus - plus]).unflatten(0, (2, 2))
    return parts.movedim((2, 0, 3, 1), (0, 1, 2, 3)).flatten(2, 3).flatten(0, 1)


class FourierConv(SpectralLayer):
    """A convolution whose kernel keeps its extent relative to the picture: the spectrum is multiplied by the kernel's.

    The taps lie ``1 / reference`` of the picture's side apart, at any resolution, where their spectrum is that of the kernel on the
    grid of ``reference`` pixels, interpolated and, as in the official code, zero beyond that grid's frequencies; a mixture of the
    channels at every frequency is added. On pictures of ``reference`` pixels it is a circular convolution. (The official weights are
    complex; of their result the real part is kept, to which the real parts of taps and mixture contribute alone.)

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Taps along a side, an odd number.
        reference: Side of the pictures, in pixels, that the taps are counted in; odd.
        bias: Add a constant to each channel.

    Raises:
        ConfigError: If a size is even, or the kernel is larger than the reference.
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int = 5, reference: int = 27, bias: bool = True) -> None:
        super().__init__()
        if kernel_size % 2 == 0 or reference % 2 == 0 or not 0 < kernel_size <= reference:
            raise ConfigError(f"kernel_size={kernel_size}, reference={reference}: accepted are odd numbers, the reference not the smaller")
        self.reference = reference
        self.taps = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size) / (kernel_size * in_channels**0.5))
        self.mixture = nn.Parameter(torch.randn(out_channels, in_channels) / in_channels**0.5)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def response(self, radius: int) -> tuple[Tensor, Tensor]:
        """Return the kernel's spectrum ``2 x (2, radius + 1, radius + 1, I, O)``, as :func:`_split` gives it."""
        reach = self.taps.shape[-1] // 2
        offsets = torch.arange(-reach, reach + 1, device=self.taps.device)
        frequencies = torch.arange(radius + 1, device=self.taps.device)
        angles = (frequencies[:, None] * offsets).to(self.taps) * (2 * math.pi / self.reference)
        waves = torch.stack([angles.cos(), angles.sin()], 1) * (2 * frequencies < self.reference)[:, None, None]
        waves = waves.flatten(0, 1)
        real, imaginary = _split(_apply(waves, self.taps.permute(2, 3, 1, 0).contiguous(), waves))
        return real + self.mixture.mT, imaginary

    def spectral(self, spectrum: Tensor) -> Tensor:
        """Multiply by the response, as matrices over the channels."""
        real, imaginary = (0.5 * part for part in self.response(len(spectrum) // 2 - 1))
        weight = torch.cat([torch.cat([real, imaginary], -1), torch.cat([-imaginary, real], -1)], -2)
        result = torch.matmul(torch.cat(_split(spectrum), -1), weight)
        result = _join(*result.chunk(2, -1))
        if self.bias is None:
            return result
        constant = torch.zeros(len(result), device=result.device, dtype=result.dtype).index_fill(0, result.new_zeros(1).long(), 1)
        return result + torch.outer(constant, constant)[..., None, None] * self.bias

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        out, inner, kernel, _ = self.taps.shape
        return f"{inner}, {out}, kernel_size={kernel}, reference={self.reference}, bias={self.bias is not None}"


class FrequencyMixer(SpectralLayer):
    """A mixture of frequencies: each is made of those not above it, along rows and along columns, in every channel by itself.

    It sees where things are in the picture, as a convolution does not. It starts near the identity; frequencies above those of a
    picture of ``size`` pixels pass.

    Args:
        channels: Channels of the input and the output.
        size: Side of the pictures, odd, whose frequencies are mixed.

    Raises:
        ConfigError: If the size is even.
    """

    mask: Tensor
    real: Tensor

    def __init__(self, channels: int, *, size: int) -> None:
        super().__init__()
        if size % 2 == 0 or size < 1:
            raise ConfigError(f"size={size} must be odd, such as {abs(size) + 1}")
        noise = 0.1 / size**0.5
        self.rows = nn.Parameter(torch.eye(size + 1) + noise * torch.randn(channels, size + 1, size + 1))
        self.columns = nn.Parameter(torch.eye(size + 1) + noise * torch.randn(channels, size + 1, size + 1))
        self.constant = nn.Parameter(torch.zeros(size + 1, size + 1, channels))
        level, real = torch.arange(size + 1) // 2, torch.arange(size + 1) != 1
        allowed = (level[:, None] >= level) & real[:, None] & real
        self.register_buffer("mask", allowed, persistent=False)
        self.register_buffer("real", real[:, None] & real, persistent=False)

    def spectral(self, spectrum: Tensor) -> Tensor:
        """Mix the leading frequencies, and leave the others."""
        length = min(len(spectrum), len(self.mask))
        rows, columns = ((part * self.mask)[:, :length, :length] for part in (self.rows, self.columns))
        mixed = torch.einsum("cij,jkbc->ikbc", rows, spectrum[:length, :length])
        mixed = torch.einsum("clk,ikbc->ilbc", columns, mixed) + (self.constant * self.real[..., None])[:length, :length, None]
        return torch.cat([torch.cat([mixed, spectrum[:length, length:]], 1), spectrum[length:]], 0)


class ShellActivation(SpectralLayer):
    """An activation at every resolution, after a normalisation there if wanted; each shell of the result is of its own resolution.

    The shell ``|k| = rho`` of the result is that of ``act(D(x))``, where ``D`` scales ``x`` down to the frequencies up to ``rho``. The
    normalisation takes each picture's and channel's mean and deviation at that resolution; its scale and shift belong to the channel,
    so that pictures of any size can follow (the official code learns them for each size that it was told of).

    With ``pool`` the side shrinks by that factor: the largest value of ``2 pool - 1`` neighbours is taken after the activation, and of
    frequencies ``|k| <= pool rho`` the shell ``rho`` is made. (The official code takes the low-pass first and the maximum then.)

    Args:
        channels: Channels.
        act: Name of the activation.
        norm: ``"instance"`` or ``"none"``.
        pool: Factor by which the radius of the spectrum shrinks.
        least: Side of the smallest picture, odd, that down-scaling commutes with; the frequencies below are made together, from one
            picture of this size. At 1 it commutes at all sizes.
        step: Frequencies that a shell spans. At more than 1 it is faster, and down-scaling commutes to ``least + 2 step n`` alone.
        eps: Added to the variance.

    Raises:
        ConfigError: If an argument is not one of these.
    """

    def __init__(
        self,
        channels: int,
        *,
        act: str = "relu",
        norm: str = "instance",
        pool: int = 1,
        least: int = 1,
        step: int = 1,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if norm not in ("instance", "none"):
            raise ConfigError(f"norm={norm!r} is not known to shells; accepted: instance, none")
        if least % 2 == 0 or min(least, step, pool) < 1:
            raise ConfigError(f"least={least}, step={step}, pool={pool}: accepted are 1 or more, and odd numbers for least")
        self.act = get_act(act)
        self.weight = nn.Parameter(torch.ones(channels)) if norm == "instance" else None
        self.bias = nn.Parameter(torch.zeros(channels)) if norm == "instance" else None
        self.pool, self.least, self.step, self.eps = pool, least, step, eps

    def radii(self, size: int) -> list[int]:
        """Return the largest frequency of each shell of the result, for pictures of this side.

        Raises:
            InputError: If the pictures are smaller than the least.
        """
        if size < self.least:
            raise InputError(f"pictures of side {size} are smaller than the network's least, {self.least}; accepted: odd sides from there")
        first, last = (side // 2 // self.pool for side in (self.least, size))
        return [*range(first, last, self.step), last]

    def pictures(self, spectrum: Tensor, radii: Sequence[int]) -> Iterator[Tensor]:
        """Yield the activated pictures ``(n, n, B, C)`` of which the shells that end at ``radii`` are made."""
        scales: Tensor | None = None
        if self.weight is not None:
            level = torch.arange(len(spectrum), device=spectrum.device) // 2
            level = torch.maximum(level[:, None], level)
            spectrum = spectrum * (level > 0)[..., None, None]
            within = torch.stack([level <= self.pool * radius for radius in radii]).to(spectrum).flatten(1)
            variance = (within @ spectrum.square().flatten(2).flatten(0, 1)).view(len(radii), *spectrum.shape[2:])
            scales = self.weight * (variance + self.eps).rsqrt()
        sizes = [2 * self.pool * radius + 1 for radius in radii]
        for number, (size, part) in enumerate(zip(sizes, _leading(spectrum, sizes), strict=True)):
            waves = basis(size, spectrum)
            picture = _apply(waves, part, waves)
            if scales is not None and self.bias is not None:
                picture = torch.addcmul(self.bias, picture, scales[number])
            yield _largest(self.act(picture), self.pool - 1)

    def spectral(self, spectrum: Tensor) -> Tensor:
        """Put the shells together."""
        radii = self.radii(len(spectrum) - 1)
        whole, known = spectrum[:0, :0], 0
        for radius, picture in zip(radii, self.pictures(spectrum, radii), strict=True):
            back = basis(len(picture), picture).mT[: 2 * radius + 2] / len(picture)
            rows = _apply(back[known:], picture, back)
            if known:
                columns = _apply(back[:known], picture, back[known:])
                rows = torch.cat([torch.cat([whole, columns], 1), rows])
            whole, known = rows, len(back)
        return whole

    def averages(self, spectrum: Tensor, radii: Sequence[int]) -> Tensor:
        """Return the mean over the pixels at each of these resolutions, ``(len(radii), B, C)``."""
        return torch.stack([picture.mean((0, 1)) for picture in self.pictures(spectrum, radii)])


def _leading(spectrum: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Return the spectra of the smaller pictures, each cut from the next: a gradient then passes through small tensors alone."""
    parts = [spectrum]
    for size in reversed(sizes):
        parts.append(parts[-1][: size + 1, : size + 1])
    return parts[:0:-1]


def _largest(pictures: Tensor, reach: int) -> Tensor:
    """Return the largest value among neighbours up to ``reach`` away, around the edges, of ``(n, n, B, C)``."""
    for axis in (0, 1):
        pictures = torch.stack([pictures.roll(shift, axis) for shift in range(-reach, reach + 1)]).amax(0) if reach else pictures
    return pictures
