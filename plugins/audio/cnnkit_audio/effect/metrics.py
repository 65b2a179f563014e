"""How near a learnt device comes to the real one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio.functional as AF
from cnnkit.engine.files import write_rows
from torch import Tensor

GATE = 0.4
"""Seconds of the blocks that loudness is measured over (ITU-R BS.1770)."""


def error_to_signal(output: Tensor, target: Tensor) -> Tensor:
    """Return the energy of the error over that of the target, ``(B,)``, for sounds ``(B, 1, T)``."""
    return (output - target).square().sum((1, 2)) / target.square().sum((1, 2)).clamp_min(1e-12)


def stft_distance(output: Tensor, target: Tensor, fft_sizes: Sequence[int] = (1024,)) -> Tensor:
    """Return spectral convergence plus the mean distance of log-magnitudes, averaged over resolutions; a scalar.

    Windows are Hann's, a fourth of their length apart. Shapes: ``(B, 1, T)``.
    """
    total = output.new_zeros(())
    for size in fft_sizes:
        window = torch.hann_window(size, device=output.device, dtype=output.dtype)
        ours, theirs = (_magnitudes(signal, size, window) for signal in (output, target))
        convergence = (theirs - ours).norm() / theirs.norm()
        total = total + convergence + (theirs.log() - ours.log()).abs().mean()
    return total / len(fft_sizes)


def _magnitudes(signal: Tensor, size: int, window: Tensor) -> Tensor:
    spectrum = torch.stft(signal[:, 0], size, size // 4, window=window, return_complex=True)
    return (spectrum.real.square() + spectrum.imag.square()).clamp_min(1e-8).sqrt()


def loudness(signal: Tensor, rate: int) -> float:
    """Return integrated loudness in LUFS of ``(1, T)``; ``-inf`` for silence, NaN for less than 0.4 s."""
    if signal.shape[-1] < GATE * rate:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # A silent signal has an empty gate.
        value = float(AF.loudness(signal.double().cpu(), rate))
    return value if value == value else float("-inf")


class EffectMetric:
    """Collects outputs against the device's own.

    Args:
        rate: Samples per second.
    """

    COLUMNS = ("name", "mae", "esr_db", "stft", "lufs_difference", "dry_esr_db")

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.rows: list[tuple[Any, ...]] = []

    def update(self, predictions: Sequence[Any], batch: Any) -> None:
        """Take in whole outputs with ``signal`` ``(1, T)`` against ``batch["wet"]``, beside the dry sound itself."""
        for prediction, wet, dry, name in zip(predictions, batch["wet"], batch["dry"], batch["name"], strict=True):
            output = torch.as_tensor(prediction.signal).to(wet)[None]
            target = wet[None]
            esr = [10 * float(error_to_signal(signal, target).clamp_min(1e-12).log10()) for signal in (output, dry[None])]
            louder = loudness(output[0], self.rate) - loudness(target[0], self.rate)
            distances = float((output - target).abs().mean()), esr[0], float(stft_distance(output, target)), abs(louder), esr[1]
            self.rows.append((name, *distances))

    def merge(self, other: EffectMetric) -> None:
        """Take in the outputs of another process."""
        self.rows += other.rows

    def compute(self) -> dict[str, float]:
        """Return the means: error in amplitude, error to signal in dB beside that of doing nothing, spectral distance, loudness in LU."""
        table = np.array([row[1:] for row in self.rows], float)
        finite = np.where(np.isfinite(table), table, np.nan)
        return {
            name: float(np.nanmean(column)) if np.isfinite(column).any() else float("nan")
            for name, column in zip(self.COLUMNS[1:], finite.T, strict=True)
        }

    def report(self, folder: Path) -> list[Path]:
        """Write ``effect.csv`` with a row for each sound."""
        return [write_rows(folder / "effect.csv", [self.COLUMNS, *self.rows])]
