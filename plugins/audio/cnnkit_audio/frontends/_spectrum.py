"""Energies of the short-time Fourier transform: by the FFT, and by real products where a program is exported."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from cnnkit.errors import ConfigError
from torch import Tensor, nn

from cnnkit_audio.frontends._base import Framing, Window, exported, table, window_function

PIECE = 256
"""Frames that are transformed at once on a processor."""


class Spectrum(nn.Module):
    """Energies or magnitudes of frames.

    Everything that happens to a frame before the transform is linear, so that an exported program does all of it, transform
    included, in one convolution with real kernels: no complex numbers, and any length of clip.

    Args:
        framing: Where the frames lie.
        n_fft: Length of the transform. Shorter frames get zeros behind them; of frames of several times that length the parts are added
            up, which samples the spectrum of the longer frame.
        window: The frame's window, by its name or its values.
        power: 2 for energies, 1 for magnitudes.
        remove_dc: Subtract each frame's mean first.
        preemphasis: Subtract this share of the sample before from each sample of a frame (the first: of itself), as Kaldi does.

    Shapes:
        x: ``(B, T)``; the result is ``(B, frames, n_fft // 2 + 1)``.
    """

    window: Tensor

    def __init__(
        self,
        *,
        framing: Framing,
        n_fft: int,
        window: Window | np.ndarray = "hann",
        power: float = 2.0,
        remove_dc: bool = False,
        preemphasis: float = 0.0,
    ) -> None:
        super().__init__()
        if framing.length > n_fft and framing.length % n_fft:
            raise ConfigError(f"frames of {framing.length} samples are neither shorter than n_fft={n_fft} nor a multiple of it")
        if power <= 0:
            raise ConfigError(f"power={power} is not positive; accepted: 2 for energies, 1 for magnitudes, any other above 0")
        self.framing, self.n_fft, self.power = framing, n_fft, power
        self.remove_dc, self.preemphasis = remove_dc, preemphasis
        self.shape = window_function(window, framing.length) if isinstance(window, str) else window
        self.register_buffer("window", table(np.pad(self.shape, (0, max(0, n_fft - framing.length)))), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the energies (or another power of the magnitudes)."""
        if torch.compiler.is_exporting():
            return self._magnitudes(*self._convolved(x)).transpose(1, 2)
        return self.of_frames(*self.cut(x))

    def cut(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return frames of clips ``(B, T)`` as wide as the transform, pre-emphasised, and what :meth:`of_frames` needs beside them.

        Pre-emphasis of the whole clip is that of each frame but for its first sample, which is the third result where the window has
        it. The second is the mean to remove. Both are ``(B, frames, 1)``.
        """
        padded, framing = self.framing.pad(x), self.framing
        mean = padded.unfold(-1, framing.length, framing.hop).mean(-1, keepdim=True) if self.remove_dc else None
        first, behind = None, max(0, self.n_fft - framing.length)
        if self.preemphasis:
            if self.shape[0] != 0:
                first = padded.unfold(-1, framing.length, framing.hop)[..., :1]
            wide = F.pad(torch.sub(padded[:, 1:], padded[:, :-1], alpha=self.preemphasis), (1, behind))
        else:
            wide = F.pad(padded, (0, behind)) if behind else padded
        return wide.unfold(-1, max(self.n_fft, framing.length), framing.hop), mean, first

    def of_frames(self, frames: Tensor, mean: Tensor | None = None, first: Tensor | None = None) -> Tensor:
        """Return the energies ``(B, n, n_fft // 2 + 1)`` of frames that were cut by :meth:`cut`."""
        spectrum = self._transformed(frames, mean, first)
        return self._magnitudes(spectrum.real, spectrum.imag)

    def squares_of_frames(self, frames: Tensor, mean: Tensor | None = None, first: Tensor | None = None) -> Tensor:
        """Return the squares ``(B, n, 2 (n_fft // 2 + 1))`` of the real and the imaginary part of each bin, as they lie in memory."""
        return torch.view_as_real(self._transformed(frames, mean, first)).flatten(-2).square()

    def _transformed(self, frames: Tensor, mean: Tensor | None, first: Tensor | None) -> Tensor:
        """Return the spectra; large tensors are changed in place, as to fetch fresh memory costs more than to compute."""
        window, share = self.window.to(frames.dtype), 1 - self.preemphasis
        windowed = frames * window
        if first is not None:
            windowed[..., :1] = first * (share * window[0])
        if mean is not None:
            windowed.addcmul_(mean, window, value=-share)
        if self.framing.length > self.n_fft:
            windowed = windowed.unflatten(-1, (-1, self.n_fft)).sum(-2)
        return torch.fft.rfft(windowed)

    def _magnitudes(self, real: Tensor, imag: Tensor) -> Tensor:
        energy = real.square().addcmul_(imag, imag)
        if self.power == 2.0:
            return energy
        if self.power == 1.0:
            return energy.clamp_min(1e-30).sqrt()  # The slope of the root at zero is infinite.
        return energy.clamp_min(1e-30).pow(self.power / 2)

    def _convolved(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kernels = exported(self.kernels(), x)
        product = F.conv1d(self.framing.pad(x)[:, None], kernels, stride=self.framing.hop)
        return product.chunk(2, 1)  # type: ignore[return-value]

    def kernels(self) -> np.ndarray:
        """Return the real and imaginary kernels ``(2 * (n_fft // 2 + 1), 1, length)`` that do the same as preparation and FFT."""
        length = self.framing.length
        prepare = np.eye(length)
        if self.remove_dc:
            prepare -= 1 / length
        if self.preemphasis:
            prepare = prepare - self.preemphasis * prepare[np.maximum(np.arange(length) - 1, 0)]
        prepare *= self.shape[:, None]
        if length > self.n_fft:
            prepare = prepare.reshape(-1, self.n_fft, length).sum(0)
        waves = np.fft.rfft(prepare, self.n_fft, axis=0)
        return np.concatenate((waves.real, waves.imag))[:, None]


class Bank(nn.Module):
    """Weighted sums of bins, the same as a product with ``banks``.

    Bands are narrow, so that most of the matrix is zero: groups of neighbouring bands take only the bins that one of them uses.

    Args:
        banks: Weights ``(bands, bins)``.

    Shapes:
        energies: ``(B, frames, bins)``; the result is ``(B, bands, frames)``.
    """

    GROUPS = 4
    banks: Tensor
    pairs: Tensor

    def __init__(self, banks: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("banks", table(banks.T), persistent=False)
        self.register_buffer("pairs", table(banks.T.repeat(2, 0)), persistent=False)
        edges = np.linspace(0, len(banks), min(self.GROUPS, len(banks)) + 1).astype(int).tolist()
        self.groups = [(first, last, *_used(banks[first:last])) for first, last in pairwise(edges)]

    def forward(self, energies: Tensor) -> Tensor:
        """Return the energies of the bands."""
        banks = self.banks.to(energies.dtype)
        if torch.compiler.is_exporting():
            return F.conv1d(energies.transpose(1, 2), banks.T[..., None])
        if energies.device.type != "cpu":
            return (energies @ banks).transpose(1, 2)
        sums = [energies[..., low:high] @ banks[low:high, first:last] for first, last, low, high in self.groups]
        return torch.cat(sums, -1).transpose(1, 2)

    def of_squares(self, squares: Tensor) -> Tensor:
        """Do the same for :meth:`Spectrum.squares_of_frames`; the product adds each pair, which is faster than a pass over them."""
        pairs = self.pairs.to(squares.dtype)
        sums = [squares[..., 2 * low : 2 * high] @ pairs[2 * low : 2 * high, first:last] for first, last, low, high in self.groups]
        return torch.cat(sums, -1).transpose(1, 2)


def band_energies(spectrum: Spectrum, bank: Bank, x: Tensor) -> Tensor:
    """Return ``bank(spectrum(x))``; on a processor some frames at a time, so that what lies between stays in its cache."""
    if torch.compiler.is_exporting() or x.device.type != "cpu":
        return bank(spectrum(x))
    frames, *more = spectrum.cut(x)
    size, energies = max(1, PIECE // max(1, len(x))), []
    transform, add = (spectrum.squares_of_frames, bank.of_squares) if spectrum.power == 2.0 else (spectrum.of_frames, bank)
    for begin in range(0, frames.shape[1], size):
        rest = [None if one is None else one[:, begin : begin + size] for one in more]
        energies.append(add(transform(frames[:, begin : begin + size], *rest)))
    return torch.cat(energies, -1)


def _used(rows: np.ndarray) -> tuple[int, int]:
    bins = np.flatnonzero(np.abs(rows).sum(0))
    return (int(bins[0]), int(bins[-1]) + 1) if len(bins) else (0, 1)
