"""What the recogniser hears: log-mel energies of each microphone, and phase differences between microphones, from one spectrum."""

from __future__ import annotations

import torch
import torchaudio.functional as AF
from cnnkit.errors import ConfigError
from torch import Tensor, nn
from torch.nn import functional as F

SILENCE = 1e-10
"""Energy below which bands are not told apart."""
EPS = 1e-12
"""Power below which a bin has no phase."""
# Both are bounds, not added: the optimiser of ONNX files takes a sum with less than 1e-8 for one with zero, and zeros have no logarithm.


class ArrayFeatures(nn.Module):
    """Log-mel energies and inter-channel phase differences of microphones.

    Windows are centred on multiples of ``hop`` with zeros beyond the ends, so that what follows a recording in a batch does not matter
    as long as it is silent; their number is filled up to a multiple of ``multiple``, so that everything after can be halved without a
    rest. The mean of each microphone's log-mel energies is taken out: its gain does not count.

    Args:
        sample_rate: Samples per second.
        n_fft: Length of the Fourier transform.
        win_length: Length of the Hann window.
        hop: Samples between two frames.
        n_mels: Bands.
        multiple: What the number of windows is a multiple of.
    """

    banks: Tensor
    window: Tensor

    def __init__(self, *, sample_rate: int, n_fft: int, win_length: int, hop: int, n_mels: int, multiple: int) -> None:
        super().__init__()
        self.n_fft, self.hop, self.bands, self.multiple = n_fft, hop, n_mels, multiple
        with torch.device("cpu"):  # Also where a network is built without its values.
            banks = AF.melscale_fbanks(n_fft // 2 + 1, 0.0, sample_rate / 2, n_mels, sample_rate, mel_scale="htk")
            edge = (n_fft - win_length) // 2
            window = F.pad(torch.hann_window(win_length), (edge, n_fft - win_length - edge))
        if not bool((banks.sum(0) > 0).all()):
            raise ConfigError(f"n_mels={n_mels} bands are too many for n_fft={n_fft}: some hold no bin; accepted: fewer bands")
        self.register_buffer("banks", banks, persistent=False)
        self.register_buffer("window", window, persistent=False)

    def frames(self, samples: Tensor) -> Tensor:
        """Return how many windows so many samples give, without the filling."""
        return samples // self.hop + 1

    def spectrum(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return real and imaginary part, each ``(B, C, N, n_fft // 2 + 1)``, of waveforms ``(B, C, T)``."""
        half, samples = self.n_fft // 2, x.shape[-1]
        windows = (samples // self.hop + self.multiple) // self.multiple * self.multiple
        after = (windows - 1) * self.hop + self.n_fft - half - samples
        pieces = F.pad(x, (half, after)).unfold(-1, self.n_fft, self.hop) * self.window
        real, imaginary = torch.view_as_real(torch.fft.rfft(pieces)).unbind(-1)
        return real, imaginary

    def log_mel(self, spectrum: tuple[Tensor, Tensor], frames: Tensor) -> Tensor:
        """Return natural logarithms of band energies, ``(B, C, N, bands)``, of zero mean per microphone, and zero in the padding.

        Args:
            spectrum: Of :meth:`spectrum`.
            frames: Which frames exist, ``(B, N)``.
        """
        real, imaginary = spectrum
        energies = (real.square() + imaginary.square()) @ self.banks
        features = energies.clamp_min(SILENCE).log()
        there = frames[:, None, :, None].to(features.dtype)
        mean = (features * there).sum((2, 3), keepdim=True) / (there.sum(2, keepdim=True) * self.bands)
        return (features - mean) * there

    def phase(self, spectrum: tuple[Tensor, Tensor], weights: Tensor) -> Tensor:
        """Return cosine and sine of each microphone's phase against a common one, ``(B, C, N, n_fft + 2)``.

        The common phase is that of the weighted sum of all microphones' unit phasors. It does not depend on their order, needs no
        microphone that is always there, and is the phase of the best microphone as soon as that one has all the weight.

        Args:
            spectrum: Of :meth:`spectrum`.
            weights: Of the microphones, ``(B, C)``; those of weight zero do not enter the common phase.
        """
        real, imaginary = _unit(*spectrum)
        common = (part * weights[:, :, None, None] for part in (real, imaginary))
        there_real, there_imaginary = _unit(*(part.sum(1, keepdim=True) for part in common))
        cosine = real * there_real + imaginary * there_imaginary
        sine = imaginary * there_real - real * there_imaginary
        return torch.cat((cosine, sine), -1)


def _unit(real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
    """Return phasors of length one; shorter, down to zero, where there is no sound."""
    length = (real.square() + imaginary.square()).clamp_min(EPS).rsqrt()
    return real * length, imaginary * length
