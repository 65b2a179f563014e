"""The complex short-time Fourier transform as real channels, and its exact inverse."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from cnnkit.errors import ConfigError, InputError
from torch import Tensor, nn

from cnnkit_audio.frontends._base import Framing, Window, exported, full_precision, table, window_function


class _Transform(nn.Module):
    window: Tensor

    def __init__(self, *, n_fft: int, hop: int, win_length: int | None = None, window: Window = "hann") -> None:
        super().__init__()
        length = win_length or n_fft
        self.framing = Framing.centred(n_fft, length, hop, "reflect")
        self.n_fft, self.hop, self.bins, self.least = n_fft, hop, n_fft // 2 + 1, n_fft // 2 + 1
        if n_fft % 2 or hop > length:
            raise ConfigError(f"n_fft={n_fft}, win_length={length}, hop={hop}: accepted are an even n_fft and hop <= win_length")
        before = (n_fft - length) // 2
        self.whole = np.pad(window_function(window, length), (before, n_fft - length - before))
        self.register_buffer("window", table(self.whole), persistent=False)

    def frames(self, samples: int) -> int:
        """Return how many frames so many samples give."""
        return samples // self.hop + 1


class Stft(_Transform):
    """Complex spectra of frames around the multiples of ``hop``, as ``torch.stft`` gives them, real parts before imaginary ones.

    Computed in float32 at least; an exported program does it by one convolution with real kernels.

    Args:
        n_fft: Length of the transform, even.
        hop: Samples between two frames.
        win_length: Length of the window; ``n_fft`` by default.
        window: Its shape.

    Shapes:
        x: ``(B, C, T)`` of more than ``n_fft / 2`` samples; the result is ``(B, 2 C, n_fft // 2 + 1, T // hop + 1)``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the spectra."""
        batch, channels, samples = x.shape
        if not torch.compiler.is_exporting() and samples < self.least:
            raise InputError(f"a clip of {samples} samples is too short for n_fft={self.n_fft}; pad it with silence to {self.least}")
        with full_precision(x):
            wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            padded = F.pad(wide, (self.n_fft // 2, self.n_fft // 2), mode="reflect").flatten(0, 1)
            if torch.compiler.is_exporting():
                parts = F.conv1d(padded[:, None], exported(self.kernels(), padded), stride=self.hop).unflatten(1, (2, self.bins))
            else:
                frames = padded.unfold(-1, self.n_fft, self.hop) * self.window.to(padded.dtype)
                parts = torch.view_as_real(torch.fft.rfft(frames)).permute(0, 3, 2, 1)
            parts = parts.reshape(batch, channels, 2, self.bins, -1).transpose(1, 2)
            return parts.reshape(batch, 2 * channels, self.bins, -1).to(x.dtype)

    def kernels(self) -> np.ndarray:
        """Return the kernels ``(2 * bins, 1, n_fft)`` of the windowed transform, real parts first."""
        waves = np.fft.rfft(np.diag(self.whole), axis=0)
        return np.concatenate((waves.real, waves.imag))[:, None]


class InverseStft(_Transform):
    """The waveform of which :class:`Stft` with the same arguments gives these spectra (the nearest, if none does).

    ``InverseStft(...)(Stft(...)(x), length=T)`` is ``x``. Frames are transformed back, windowed again, added up, and divided by the sum
    of the squared windows.

    Shapes:
        z: ``(B, 2 C, n_fft // 2 + 1, frames)``; the result is ``(B, C, length)``.

    Raises:
        ConfigError: If window and hop leave samples that no frame sees.
    """

    def __init__(self, *, n_fft: int, hop: int, win_length: int | None = None, window: Window = "hann") -> None:
        super().__init__(n_fft=n_fft, hop=hop, win_length=win_length, window=window)
        squares = np.resize(np.pad(self.whole**2, (0, -n_fft % hop)), (-(-n_fft // hop), hop)).sum(0)
        if squares.min() < 1e-8:
            raise ConfigError(f"hop={hop} leaves samples that no window sees; accepted are hops up to half of win_length")

    def forward(self, z: Tensor, length: int | None = None) -> Tensor:
        """Return the waveforms.

        Args:
            z: Spectra, real parts of all channels before the imaginary ones.
            length: Samples of the result; ``(frames - 1) * hop`` by default.
        """
        batch, parts, _, frames = z.shape
        length = (frames - 1) * self.hop if length is None else length
        with full_precision(z):
            wide = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
            pairs = wide.unflatten(1, (2, parts // 2)).transpose(1, 2).flatten(0, 1)
            added = self._added(pairs, frames)
            half = self.n_fft // 2
            added = added[:, half : half + length]
            if not torch.compiler.is_exporting():  # A length behind the last frame is silent there.
                added = F.pad(added, (0, length - added.shape[-1]))
            return added.unflatten(0, (batch, parts // 2)).to(z.dtype)

    def _added(self, pairs: Tensor, frames: int) -> Tensor:
        """Overlap and add ``(B, 2, bins, frames)``, divided by the sum of the squared windows."""
        squares = (self.window.to(pairs.dtype) ** 2)[None, None]
        envelope = F.conv_transpose1d(pairs.new_ones(1, 1, frames), squares, stride=self.hop)[0]
        if torch.compiler.is_exporting():
            added = F.conv_transpose1d(pairs.flatten(1, 2), exported(self.kernels(), pairs), stride=self.hop)[:, 0]
        else:
            spectra = torch.complex(pairs[:, 0], pairs[:, 1]).transpose(1, 2)
            frames_back = torch.fft.irfft(spectra, self.n_fft) * self.window.to(pairs.dtype)
            span = (frames - 1) * self.hop + self.n_fft
            added = F.fold(frames_back.transpose(1, 2), (1, span), (1, self.n_fft), stride=(1, self.hop))[:, 0, 0]
        return added / envelope.clamp_min(1e-8)

    def kernels(self) -> np.ndarray:
        """Return the kernels ``(2 * bins, 1, n_fft)`` of the windowed inverse, those of the real parts first."""
        unit = np.eye(self.bins)
        real, imag = np.fft.irfft(unit, self.n_fft), np.fft.irfft(1j * unit, self.n_fft)
        return (np.concatenate((real, imag)) * self.whole)[:, None]
