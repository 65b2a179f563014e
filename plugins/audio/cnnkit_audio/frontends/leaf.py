"""A front end that is learned: Gabor filters, Gaussian averages and per-channel energy normalisation."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from cnnkit.errors import ConfigError
from torch import Tensor, nn

from cnnkit_audio.frontends._banks import mel_banks
from cnnkit_audio.frontends._base import FrontEnd

_EXPORTED_DOUBLINGS = 14
"""An exported program looks back 2**14 frames at most."""


class Pcen(nn.Module):
    """Per-channel energy normalisation (Wang et al. 2017): each band divided by its own recent average, then a root.

    ``(x / (floor + m)^alpha + delta)^root - delta^root``, where ``m[t] = (1 - smooth) m[t-1] + smooth x[t]`` starts at ``x[0]``.

    Args:
        bands: Number of bands.
        alpha: How much of the average is divided out; at most 1.
        smooth: Share of the newest frame in the average.
        delta: Offset before the root.
        root: Exponent; at most 1.
        floor: Added to the average.
        learned: Whether the four are parameters, one per band; else they are fixed.

    Shapes:
        x: ``(B, bands, frames)``, not negative; the result has the same shape.
    """

    alpha: Tensor
    smooth: Tensor
    delta: Tensor
    root: Tensor

    def __init__(
        self,
        *,
        bands: int,
        alpha: float = 0.96,
        smooth: float = 0.04,
        delta: float = 2.0,
        root: float = 0.5,
        floor: float = 1e-12,
        learned: bool = True,
    ) -> None:
        super().__init__()
        self.floor = floor
        for name, value in (("alpha", alpha), ("smooth", smooth), ("delta", delta), ("root", root)):
            values = torch.full((bands,), float(value))
            if learned:
                self.register_parameter(name, nn.Parameter(values))
            else:
                self.register_buffer(name, values, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised energies."""
        alpha, delta, root = (values.to(x.dtype)[:, None] for values in (self.alpha, self.delta, self.root))
        alpha, root, delta = alpha.clamp_max(1.0), root.clamp(1e-3, 1.0), delta.clamp_min(1e-6)
        gain = (-alpha * (self.floor + self.average(x)).log()).exp()
        return (x * gain + delta).pow(root) - delta.pow(root)

    def average(self, x: Tensor) -> Tensor:
        """Return the running averages, in as many steps as the number of frames has binary digits."""
        smooth = self.smooth.to(x.dtype).clamp(0.0, 1.0)[:, None]
        total = torch.cat((x[..., :1], smooth * x[..., 1:]), -1)
        decay, frames = 1 - smooth, x.shape[-1]
        doublings = _EXPORTED_DOUBLINGS if torch.compiler.is_exporting() else (frames - 1).bit_length()
        for step in range(doublings):  # Each sum holds 2^step frames, and takes the sum of as many before them.
            before = F.pad(total, (2**step, 0))[..., :frames]
            total = total + decay * before
            decay = decay * decay
        return total


class Leaf(FrontEnd):
    """LEAF (Zeghidour et al. 2021): a bank of Gabor filters, squared, averaged by Gaussian windows, and normalised; all of it learned.

    Filters start on the mel scale. With ``pcen=False`` the energies' natural logarithm is returned.

    Args:
        sample_rate: Samples per second.
        n_filters: Bands.
        window_ms: Length of filters and averages in milliseconds.
        hop_ms: Milliseconds between two frames.
        f_min: Lower edge of the lowest filter at the start.
        f_max: Upper edge of the highest at the start; 0.4875 of the rate (7800 Hz of 16 kHz) by default.
        pcen: Normalise each band by its own recent energy.
    """

    FLOOR = 1e-5

    def __init__(
        self,
        *,
        sample_rate: int = 16_000,
        n_filters: int = 40,
        window_ms: float = 25.0,
        hop_ms: float = 10.0,
        f_min: float = 60.0,
        f_max: float | None = None,
        pcen: bool = True,
    ) -> None:
        half, hop = int(sample_rate * window_ms / 1000) // 2, int(sample_rate * hop_ms / 1000)
        if half < 2 or hop < 1:
            raise ConfigError(f"window_ms={window_ms}, hop_ms={hop_ms}: accepted are windows of 4 samples and hops of 1, or more")
        super().__init__(sample_rate=sample_rate, bands=n_filters, hop=hop, left=2 * half, right=2 * half + 1)
        self.side = half
        start = _mel_start(n_filters, sample_rate, f_min, 0.4875 * sample_rate if f_max is None else f_max)
        self.centre = nn.Parameter(torch.as_tensor(start[0], dtype=torch.float32))
        self.width = nn.Parameter(torch.as_tensor(start[1], dtype=torch.float32))
        self.average_width = nn.Parameter(torch.full((n_filters,), 0.4))
        self.pcen = Pcen(bands=n_filters) if pcen else None

    @property
    def shift_invariant(self) -> bool:
        """False with normalisation, which remembers the clip's past."""
        return self.pcen is None

    def filters(self) -> Tensor:
        """Return the real and imaginary parts of the filters, ``(2 * n_filters, 1, length)``: Gaussians of unit area times waves.

        Centres are kept between 0 and half the rate, widths between about two samples and the window.
        """
        size = 2 * self.side + 1
        unit = float(np.sqrt(2 * np.log(2)) / np.pi)
        width = self.width.clamp(4 * unit, size * unit)[:, None]
        times = torch.arange(-self.side, self.side + 1, dtype=width.dtype, device=width.device)
        envelope = (-times.square() / (2 * width.square())).exp() / (np.sqrt(2 * np.pi) * width)
        phases = self.centre.clamp(0.0, float(np.pi))[:, None] * times
        return torch.cat((envelope * phases.cos(), envelope * phases.sin()))[:, None]

    def averages(self) -> Tensor:
        """Return the Gaussian windows ``(n_filters, 1, length)``, of height one."""
        size = 2 * self.side + 1
        width = self.average_width.clamp(2 / size, 0.5)[:, None] * self.side
        times = torch.arange(-self.side, self.side + 1, dtype=width.dtype, device=width.device)
        return (-0.5 * (times / width).square()).exp()[:, None]

    def features(self, x: Tensor) -> Tensor:
        """Return ``(B, n_filters, frames)``."""
        real, imag = F.conv1d(x[:, None], self.filters().to(x.dtype), padding=self.side).chunk(2, 1)
        energy = torch.addcmul(real.square(), imag, imag)
        energy = F.conv1d(energy, self.averages().to(x.dtype), stride=self.hop, padding=self.side, groups=self.bands)
        energy = energy.clamp_min(self.FLOOR)
        return energy.log() if self.pcen is None else self.pcen(energy)

    def frames(self, samples: int) -> int:
        """Return the number of frames: one per started hop."""
        return (samples - 1) // self.hop + 1


def _mel_start(n_filters: int, sample_rate: int, f_min: float, f_max: float, n_fft: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Return centres in radians per sample and widths in samples of Gabor filters as wide as those of a mel bank at half their height."""
    banks = mel_banks(n_mels=n_filters, n_fft=n_fft, sample_rate=sample_rate, f_min=f_min, f_max=f_max, scale="htk", area=False)
    magnitudes = np.sqrt(banks)
    bins = (magnitudes >= magnitudes.max(1, keepdims=True) / 2).sum(1)
    return magnitudes.argmax(1) * 2 * np.pi / n_fft, np.sqrt(2 * np.log(2)) * n_fft / (np.pi * bins)
