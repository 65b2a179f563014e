"""Scale-Fourier the straightforward way: complex spectra, and a Fourier transform there and back for every resolution.

It follows the structure and the names of the official code, at odd sizes, with the head and the shared normalisation of ours; kernels are
centred.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def crop(spectrum: Tensor, size: int) -> Tensor:
    """Return the centre of full spectra in the order of ``torch.fft``, with zeros around it where it is larger than they are."""
    centred = torch.fft.fftshift(spectrum, (-2, -1))
    margin = (size - spectrum.shape[-1]) // 2
    return torch.fft.ifftshift(F.pad(centred, (margin,) * 4), (-2, -1))


def downscale(x: Tensor, size: int) -> Tensor:
    """Return pictures of another odd size with the low frequencies of ``x``."""
    return torch.fft.ifft2(crop(torch.fft.fft2(x, norm="forward"), size), norm="forward").real


class LocalizedConv(nn.Module):
    """The product with the spectrum of a small kernel that is itself given by its spectrum."""

    def __init__(self, inputs: int, outputs: int, modes: int, local: int) -> None:
        super().__init__()
        self.modes = modes
        self.L = nn.Parameter(torch.randn(inputs, outputs, local, local, dtype=torch.complex128) / inputs**0.5)

    def forward(self, spectrum: Tensor) -> Tensor:
        taps = torch.fft.ifft2(self.L)
        reach = taps.shape[-1] // 2
        kernel = F.pad(taps, (0, self.modes - taps.shape[-1]) * 2).roll((-reach, -reach), (-2, -1))
        response = crop(torch.fft.fft2(kernel), spectrum.shape[-1])
        return torch.einsum("bixy,ioxy->boxy", spectrum, response)


class ComplexConv(nn.Module):
    """A mixture of channels with complex weights."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv_r, self.conv_i = (nn.Conv2d(inputs, outputs, 1, bias=False).double() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        real, imaginary = self.conv_r(x.real) - self.conv_i(x.imag), self.conv_r(x.imag) + self.conv_i(x.real)
        return torch.complex(real, imaginary)


class ScaleEqNonlin(nn.Module):
    """Normalise and rectify at every resolution, keep the frequencies that are new there."""

    def __init__(self, channels: int, pool: int = 1) -> None:
        super().__init__()
        self.pool = pool
        self.norm = nn.InstanceNorm2d(channels, affine=True).double()

    def at(self, x: Tensor, size: int) -> Tensor:
        small = downscale(x, size)
        if size == 1:  # The library refuses a single pixel, which is its own mean.
            return (torch.zeros_like(small) + self.norm.bias[:, None, None]).relu()
        reach = self.pool - 1
        return F.max_pool2d(F.pad(self.norm(small).relu(), (reach,) * 4, mode="circular"), 2 * self.pool - 1, stride=1)

    def forward(self, spectrum: Tensor) -> Tensor:
        x = torch.fft.ifft2(spectrum, norm="forward").real
        last = x.shape[-1] // 2 // self.pool
        result = spectrum.new_zeros(*x.shape[:2], 2 * last + 1, 2 * last + 1)
        distance = torch.fft.fftfreq(2 * last + 1, 1 / (2 * last + 1)).abs()
        distance = torch.maximum(distance[:, None], distance)
        for radius in range(last + 1):
            found = torch.fft.fft2(self.at(x, 2 * self.pool * radius + 1), norm="forward")
            result = torch.where(distance == radius, crop(found, 2 * last + 1), result)
        return result


class Network(nn.Module):
    """Convolutions and activations, and a perceptron on the means at each resolution."""

    def __init__(
        self, channels: tuple[int, ...], pools: tuple[int, ...], *, inputs: int, classes: int, modes: int, local: int, hidden: int
    ):
        super().__init__()
        self.depth = len(channels)
        for number, (before, width, pool) in enumerate(zip((inputs, *channels), channels, pools, strict=False)):
            self.add_module(f"L{number}", LocalizedConv(before, width, modes, min(local, modes)))
            self.add_module(f"conv{number}", ComplexConv(before, width))
            self.add_module(f"NL{number}", ScaleEqNonlin(width, pool))
            modes = 2 * (modes // 2 // pool) + 1
        self.res_dict = nn.Sequential(
            nn.LayerNorm(channels[-1]),
            nn.Dropout(0.0),
            nn.Linear(channels[-1], hidden),
            nn.Dropout(0.0),
            nn.LayerNorm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        ).double()

    def before(self, x: Tensor) -> Tensor:
        """Return the spectrum that the last activation takes."""
        spectrum = torch.fft.fft2(x, norm="forward")
        for number in range(self.depth):
            spectrum = self.get_submodule(f"NL{number - 1}")(spectrum) if number else spectrum
            spectrum = self.get_submodule(f"L{number}")(spectrum) + self.get_submodule(f"conv{number}")(spectrum)
        return spectrum

    def features(self, x: Tensor) -> Tensor:
        """Return the last activation's pictures."""
        return torch.fft.ifft2(self.get_submodule(f"NL{self.depth - 1}")(self.before(x)), norm="forward").real

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits at each resolution, from the smallest."""
        last, activation = torch.fft.ifft2(self.before(x), norm="forward").real, self.get_submodule(f"NL{self.depth - 1}")
        sizes = range(1, last.shape[-1] + 1, 2 * activation.pool)
        return torch.stack([self.res_dict(activation.at(last, size).mean((-2, -1))) for size in sizes])


def ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same weights under our names: of the complex ones the parts that the real result depends on."""
    found = {}
    for key, value in state.items():
        layer, _, rest = key.partition(".")
        if layer == "res_dict":
            number, _, name = rest.partition(".")
            found[f"head.{ {'0': 0, '2': 1, '4': 3, '6': 5}[number] }.{name}"] = value
        elif layer.startswith("NL"):
            found[f"acts.{layer[2:]}.{rest.removeprefix('norm.')}"] = value
        elif layer.startswith("L"):
            found[f"convs.{layer[1:]}.taps"] = torch.fft.ifft2(value).real.transpose(0, 1)
        elif rest.startswith("conv_r"):
            found[f"convs.{layer[4:]}.mixture"] = value[:, :, 0, 0]
    return found
