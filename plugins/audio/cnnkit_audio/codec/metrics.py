"""How well a codec reproduces sound, at what rate, and how it uses its codebooks."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnkit_audio.codec.bitstream import pack
from cnnkit_audio.codec.spectra import MelDistance, stft_distances


def si_sdr(reference: Tensor, estimate: Tensor) -> Tensor:
    """Return the scale-invariant signal-to-distortion ratio in decibels (Le Roux et al., 2019); means are taken off first.

    Shapes:
        reference, estimate: ``(..., T)``; the result is ``(...)``.
    """
    reference = reference - reference.mean(-1, keepdim=True)
    estimate = estimate - estimate.mean(-1, keepdim=True)
    scale = (estimate * reference).sum(-1, keepdim=True) / reference.square().sum(-1, keepdim=True)
    target = scale * reference
    return 10 * torch.log10(target.square().sum(-1) / (estimate - target).square().sum(-1))


def codebook_figures(counts: np.ndarray) -> dict[str, float]:
    """Return how codebooks are used, as means over all of them.

    Args:
        counts: How often each entry was chosen, ``(..., size)``.

    Returns:
        ``codebook_use``, the share of entries that were chosen at all; ``perplexity``, two to the entropy in bits: as many entries,
        all chosen equally often, would say as much; and ``bit_use``, the entropy by the bits of a number.
    """
    size = counts.shape[-1]
    shares = counts.reshape(-1, size) / np.maximum(counts.reshape(-1, size).sum(-1, keepdims=True), 1)
    entropy = -(shares * np.log2(np.where(shares > 0, shares, 1.0))).sum(-1)
    return {
        "codebook_use": float((shares > 0).mean()),
        "perplexity": float(np.exp2(entropy).mean()),
        "bit_use": float(entropy.mean() / math.log2(size)),
    }


@dataclass
class Measured:
    """A sound that was coded and decoded at several rates.

    Args:
        codes: All levels, ``(levels, groups, code frames)``.
        decoded: The sound by the number of levels, each ``(T,)``.
    """

    codes: np.ndarray
    decoded: Mapping[int, np.ndarray] = field(default_factory=dict)


class CodecMetric:
    """SI-SDR, mel and STFT distances, measured bits per second, and the use of the codebooks.

    The mel distance is given for every number of levels (``mel_distance/3``), the others for all levels. Wide-band PESQ is added
    where the library ``pesq`` is installed.

    Args:
        sample_rate: Samples per second.
        codebook_size: Entries of a codebook.
        bits: Bits of a number.
    """

    def __init__(self, *, sample_rate: int, codebook_size: int, bits: int) -> None:
        self.sample_rate, self.codebook_size, self.bits = sample_rate, codebook_size, bits
        self.rows: list[dict[str, float]] = []
        self.coded_bits, self.seconds = 0, 0.0
        self.counts: np.ndarray | None = None
        self._mel = MelDistance(sample_rate)

    def update(self, predictions: Sequence[Measured], batch: Mapping[str, Any]) -> None:
        """Take in decoded sounds; the batch holds the ``"wave"`` that each was made from."""
        for measured, wave in zip(predictions, batch["wave"].detach().cpu().double(), strict=True):
            self.rows.append(self._row(wave[None], measured))
            self.coded_bits += 8 * len(pack(measured.codes, self.bits))
            self.seconds += wave.shape[-1] / self.sample_rate
            counts = np.stack([np.bincount(group.ravel(), minlength=self.codebook_size) for level in measured.codes for group in level])
            self.counts = counts if self.counts is None else self.counts + counts

    def _row(self, wave: Tensor, measured: Measured) -> dict[str, float]:
        mel = self._mel.double()
        row = {}
        for levels, decoded in measured.decoded.items():
            estimate = torch.from_numpy(decoded).double()[None, None]
            row[f"mel_distance/{levels}"] = float(mel(wave, estimate).log)
        stft = stft_distances(wave, estimate)  # The last one is of all levels.
        row |= {
            "mel_distance": row[f"mel_distance/{levels}"],
            "si_sdr": float(si_sdr(wave, estimate)),
            "stft_convergence": float(stft.convergence),
            "stft_log": float(stft.log),
        }
        if self.sample_rate == 16000 and importlib.util.find_spec("pesq"):
            row |= _pesq(self.sample_rate, wave, estimate)
        return row

    def merge(self, other: Any) -> None:
        """Take in what another process has collected."""
        self.rows += other.rows
        self.coded_bits += other.coded_bits
        self.seconds += other.seconds
        if other.counts is not None:
            self.counts = other.counts if self.counts is None else self.counts + other.counts

    def compute(self) -> dict[str, float]:
        """Return the means over all sounds; nothing was measured, nothing is returned."""
        if not self.rows or self.counts is None:
            return {}
        names = dict.fromkeys(name for row in self.rows for name in row)
        means = {}
        for name in names:
            values = [row[name] for row in self.rows if name in row and math.isfinite(row[name])]
            means[name] = math.fsum(values) / len(values) if values else math.nan
        return {**means, "bits_per_second": self.coded_bits / self.seconds, **codebook_figures(self.counts)}


def _pesq(rate: int, wave: Tensor, estimate: Tensor) -> dict[str, float]:
    """Return wide-band PESQ, or nothing for a sound in which it finds no speech."""
    from pesq import NoUtterancesError, pesq

    try:
        return {"pesq": float(pesq(rate, wave.ravel().numpy(), estimate.ravel().numpy(), "wb"))}
    except NoUtterancesError:
        return {}
