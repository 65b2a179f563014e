"""Mel spectrograms in the conventions of librosa, torchaudio and Kaldi, and cepstra of them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from cnnkit.errors import ConfigError
from torch import Tensor, nn

from cnnkit_audio.frontends._banks import Scale, dct_matrix, mel_banks
from cnnkit_audio.frontends._base import Framing, FrontEnd, Padding, Window, one_of, table
from cnnkit_audio.frontends._spectrum import Bank, Spectrum, band_energies

Log = Literal["db", "ln", "ln_max", "none"]


class Scaling(nn.Module):
    """What follows the energies of bands: the logarithm, its range, and a fixed normalisation.

    Args:
        bands: Number of bands.
        log: ``"db"`` is ``10 log10 max(x, amin)``, ``"ln"`` is ``ln(x + amin)``, ``"ln_max"`` is ``ln max(x, amin)``.
        amin: Floor.
        ref: What 0 dB means: an energy, or ``"max"``, the loudest of the clip. Only for ``"db"``.
        top_db: Lift what is quieter than so many decibels below the clip's loudest. Only for ``"db"``.
        mean: Subtracted from the logarithm.
        std: What is left is divided by it.
        batch_norm: Whether bands are normalised over the batch then, with a learned scale.
    """

    def __init__(
        self,
        *,
        bands: int,
        log: Log = "db",
        amin: float = 1e-10,
        ref: float | Literal["max"] = 1.0,
        top_db: float | None = None,
        mean: float = 0.0,
        std: float = 1.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        one_of("log", log, Log)
        if amin <= 0 or std <= 0 or (ref != "max" and ref <= 0) or (top_db is not None and top_db < 0):
            raise ConfigError(f"amin={amin}, std={std}, ref={ref}, top_db={top_db}: accepted are amin, std and ref above 0, top_db from 0")
        if log != "db" and (ref != 1.0 or top_db is not None):
            raise ConfigError(f'ref={ref} and top_db={top_db} are for log="db", and this is "{log}"; leave them out or give log="db"')
        self.log, self.amin, self.ref, self.top_db = log, amin, ref, top_db
        self.mean, self.std = mean, std
        self.bn0 = nn.BatchNorm2d(bands) if batch_norm else None

    @property
    def local(self) -> bool:
        """Whether the result at a frame depends on that frame alone."""
        return self.ref != "max" and self.top_db is None and not (self.bn0 is not None and self.bn0.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, bands, frames)`` for energies of that shape."""
        x = self._logarithm(x)
        if self.mean != 0.0:
            x = x - self.mean
        if self.std != 1.0:
            x = x / self.std
        return x if self.bn0 is None else self.bn0(x[..., None])[..., 0]

    def _logarithm(self, x: Tensor) -> Tensor:
        if self.log == "none":
            return x
        if self.log != "db":
            return (x + self.amin if self.log == "ln" else x.clamp_min(self.amin)).log()
        x = 10 * x.clamp_min(self.amin).log10()
        if isinstance(self.ref, str):
            x = x - x.amax((1, 2), keepdim=True)
        elif self.ref != 1.0:
            x = x - 10 * float(np.log10(max(self.ref, self.amin)))
        return x if self.top_db is None else torch.maximum(x, x.amax((1, 2), keepdim=True) - self.top_db)


class LogMel(FrontEnd):
    """Logarithm of mel band energies.

    Args:
        sample_rate: Samples per second.
        n_fft: Length of the Fourier transform.
        win_length: Length of the window; ``n_fft`` by default.
        hop: Samples between two frames.
        n_mels: Bands.
        f_min: Lower edge of the lowest band in hertz.
        f_max: Upper edge of the highest; half the rate by default.
        mel: The mel scale: ``"slaney"`` (librosa's default), ``"htk"``, or ``"kaldi"``.
        area: Whether bands are normalised by their width; by default those of ``"slaney"`` are.
        power: 2 for energies, 1 for magnitudes.
        log: ``"db"`` (``10 log10 max(x, amin)``), ``"ln"`` (``ln(x + amin)``), ``"ln_max"`` (``ln max(x, amin)``) or ``"none"``.
        amin: Floor.
        ref: What 0 dB means: an energy, or ``"max"``, the loudest band of the clip.
        top_db: Lift what is quieter than so many decibels below the clip's loudest.
        window: Shape of the window.
        pad: How the clip goes on at its ends: ``"reflect"``, ``"constant"`` (silence), ``"replicate"``, or ``"none"`` for frames
            inside the clip only.
        preemphasis: Share of each sample that is subtracted from the next one in the clip, which then is one sample shorter.
        mean: Subtracted from the logarithm.
        std: What is left is divided by it.
        batch_norm: Normalise bands over the batch then, as PANNs do.

    Raises:
        ConfigError: If the arguments contradict each other.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        n_fft: int = 1024,
        win_length: int | None = None,
        hop: int = 320,
        n_mels: int = 64,
        f_min: float = 0.0,
        f_max: float | None = None,
        mel: Scale = "slaney",
        area: bool | None = None,
        power: float = 2.0,
        log: Log = "db",
        amin: float = 1e-10,
        ref: float | Literal["max"] = 1.0,
        top_db: float | None = None,
        window: Window = "hann",
        pad: Padding = "reflect",
        preemphasis: float = 0.0,
        mean: float = 0.0,
        std: float = 1.0,
        batch_norm: bool = False,
    ) -> None:
        framing = Framing.centred(n_fft, win_length or n_fft, hop, pad)
        extra = int(preemphasis != 0)
        super().__init__(
            sample_rate=sample_rate,
            bands=n_mels,
            hop=hop,
            left=framing.left,
            right=framing.reach + extra,
            least=framing.least + extra,
        )
        self.framing, self.preemphasis = framing, preemphasis
        self.spectrum = Spectrum(framing=framing, n_fft=n_fft, window=window, power=power)
        banks = mel_banks(
            n_mels=n_mels,
            n_fft=n_fft,
            sample_rate=sample_rate,
            f_min=f_min,
            f_max=sample_rate / 2 if f_max is None else f_max,
            scale=mel,
            area=mel == "slaney" if area is None else area,
        )
        self.bank = Bank(banks)
        self.scaling = Scaling(bands=n_mels, log=log, amin=amin, ref=ref, top_db=top_db, mean=mean, std=std, batch_norm=batch_norm)

    @property
    def shift_invariant(self) -> bool:
        """False with ``ref="max"``, ``top_db``, or while bands are normalised over a batch."""
        return self.scaling.local

    def features(self, x: Tensor) -> Tensor:
        """Return ``(B, n_mels, frames)``."""
        if self.preemphasis:
            x = torch.sub(x[:, 1:], x[:, :-1], alpha=self.preemphasis)
        return self.scaling(band_energies(self.spectrum, self.bank, x))

    def frames(self, samples: int) -> int:
        """Return the number of frames: one per hop, and one at the start (unless ``pad="none"``)."""
        return self.framing.count(samples - int(self.preemphasis != 0))


class Fbank(FrontEnd):
    """Kaldi's log mel filter banks: what ``torchaudio.compliance.kaldi.fbank`` gives without dither, for batches.

    Each frame loses its mean, is pre-emphasised and windowed by itself, and is transformed at the next power of two.

    Args:
        sample_rate: Samples per second.
        n_mels: Bands.
        frame_length: Milliseconds of a frame.
        frame_shift: Milliseconds between two frames.
        f_min: Lower edge of the lowest band in hertz.
        f_max: Upper edge of the highest; from 0 downwards it counts from half the rate.
        window: ``"povey"`` (Kaldi's default), ``"hann_symmetric"`` (its "hanning"), ``"hamming_symmetric"`` or ``"rectangular"``.
        preemphasis: Share of the sample before that is subtracted from each.
        remove_dc: Subtract each frame's mean.
        snip_edges: Only frames inside the clip; else one per shift, with the clip mirrored at its ends.
        power: 2 for energies, 1 for magnitudes.
        use_energy: Add the logarithm of the frame's energy, before pre-emphasis, as a further band.
        htk_compat: That band comes last, not first.
        scale: Factor of the waveform: ``2**15`` for networks that were trained on 16-bit integers.
        log: As in :class:`LogMel`; Kaldi's is ``"ln_max"``.
        mean: Subtracted from the logarithm.
        std: What is left is divided by it.

    Raises:
        ConfigError: If the arguments contradict each other.
    """

    EPSILON = float(np.finfo(np.float32).eps)

    def __init__(
        self,
        *,
        sample_rate: int = 16_000,
        n_mels: int = 80,
        frame_length: float = 25.0,
        frame_shift: float = 10.0,
        f_min: float = 20.0,
        f_max: float = 0.0,
        window: Window = "povey",
        preemphasis: float = 0.97,
        remove_dc: bool = True,
        snip_edges: bool = True,
        power: float = 2.0,
        use_energy: bool = False,
        htk_compat: bool = False,
        scale: float = 1.0,
        log: Log = "ln_max",
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        length, hop = int(sample_rate * frame_length * 0.001), int(sample_rate * frame_shift * 0.001)
        if length < 2 or hop < 1:
            raise ConfigError(
                f"frame_length={frame_length} ms and frame_shift={frame_shift} ms are {length} and {hop} samples at {sample_rate} Hz; "
                "accepted are 2 and 1 samples, or more"
            )
        framing = Framing.kaldi(length, hop, snip_edges=snip_edges)
        super().__init__(
            sample_rate=sample_rate,
            bands=n_mels + int(use_energy),
            hop=hop,
            left=framing.left,
            right=framing.reach,
            least=framing.least,
        )
        self.framing, self.scale, self.remove_dc = framing, scale, remove_dc
        self.use_energy, self.htk_compat = use_energy, htk_compat
        n_fft = 1 << (length - 1).bit_length()
        self.spectrum = Spectrum(framing=framing, n_fft=n_fft, window=window, power=power, remove_dc=remove_dc, preemphasis=preemphasis)
        high = f_max + sample_rate / 2 if f_max <= 0 else f_max
        banks = mel_banks(n_mels=n_mels, n_fft=n_fft, sample_rate=sample_rate, f_min=f_min, f_max=high, scale="kaldi", area=False)
        self.bank = Bank(banks)
        self.scaling = Scaling(bands=n_mels, log=log, amin=self.EPSILON, mean=mean, std=std)

    def features(self, x: Tensor) -> Tensor:
        """Return ``(B, bands, frames)``."""
        if self.scale != 1.0:
            x = x * self.scale
        mels = self.scaling(band_energies(self.spectrum, self.bank, x))
        if not self.use_energy:
            return mels
        energy = self._energy(x)[:, None]
        return torch.cat((mels, energy) if self.htk_compat else (energy, mels), 1)

    def _energy(self, x: Tensor) -> Tensor:
        frames = self.framing.cut(x)
        if self.remove_dc:
            frames = frames - frames.mean(-1, keepdim=True)
        return frames.square().sum(-1).clamp_min(1.0).log()  # Kaldi's energy_floor is 1.

    def frames(self, samples: int) -> int:
        """Return the number of frames."""
        return self.framing.count(samples)


class Mfcc(FrontEnd):
    """Cepstra: the discrete cosine transform of the bands of another front end.

    ``Mfcc(mel=LogMel(..., top_db=80))`` is librosa's; ``Mfcc(mel=Fbank(n_mels=23), coefficients=13, lifter=22, lifter_from=0)`` Kaldi's.

    Args:
        mel: What gives the logarithms of band energies.
        coefficients: How many cepstra, from the one for the sum of the bands on.
        lifter: Length of the sine that weights them; 0 for none.
        lifter_from: Position of the first coefficient on that sine: 1 in librosa, 0 in Kaldi.
    """

    matrix: Tensor

    def __init__(self, *, mel: FrontEnd, coefficients: int = 20, lifter: float = 0.0, lifter_from: int = 1) -> None:
        if not 1 <= coefficients <= mel.bands:
            raise ConfigError(f"coefficients={coefficients} of {mel.bands} bands; accepted: 1 to {mel.bands}")
        super().__init__(sample_rate=mel.sample_rate, bands=coefficients, hop=mel.hop, left=mel.left, right=mel.right, least=mel.least)
        self.mel = mel
        matrix = dct_matrix(mel.bands, coefficients)
        if lifter:
            matrix *= 1 + lifter / 2 * np.sin(np.pi * (np.arange(coefficients) + lifter_from) / lifter)[:, None]
        self.register_buffer("matrix", table(matrix), persistent=False)

    @property
    def shift_invariant(self) -> bool:
        """That of the bands."""
        return self.mel.shift_invariant

    def features(self, x: Tensor) -> Tensor:
        """Return ``(B, coefficients, frames)``."""
        return F.conv1d(self.mel.features(x), self.matrix.to(x.dtype)[..., None])

    def frames(self, samples: int) -> int:
        """Return the number of frames."""
        return self.mel.frames(samples)
