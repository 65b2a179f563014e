"""What a person should know about a sound before trusting what was heard in it, found while it is read."""

from __future__ import annotations

from typing import Literal

import numpy as np
from cnnkit.errors import InputError

Nonfinite = Literal["refuse", "zero"]

CLIPPED_RUN = 3
"""Samples in a row at full scale that count as clipped: the peak of a tone rarely has more than two."""
CLIPPED_LEAST = 10
"""Clipped samples in a sound that are worth a word."""
OFFSET = 0.02
"""Mean, as a share of full scale, from which an offset is called large: good converters have less than 0.001."""
CANCELLED = 1e-3
"""Power of the mix relative to that of its channels (-30 dB) below which channels are called opposite."""
FAR_TOO_LOUD = 4.0
"""Peak of float samples, full scale being 1, from which they were hardly meant as such."""

_LAST_CODE = {"PCM_U8": 127 / 128, "PCM_S8": 127 / 128, "ULAW": 32124 / 32768, "ALAW": 32256 / 32768, "PCM_16": 32767 / 32768}
"""The largest value of a kind of samples; others reach 0.9999."""


class Inspection:
    """Statistics of a sound as it goes by, and what they mean.

    Args:
        name: What messages call the sound.
        sample_rate: Samples per second.
        channels: Number of channels.
        subtype: Kind of samples by libsndfile's name, for example ``"PCM_16"``.
        start: Place of the first frame in the file, for messages.
        nonfinite: Whether NaN and infinite samples are refused or become zero.
    """

    def __init__(
        self, name: str, sample_rate: int, channels: int, *, subtype: str = "", start: int = 0, nonfinite: Nonfinite = "refuse"
    ) -> None:
        self.name, self.rate, self.start = name, sample_rate, start
        self.nonfinite = nonfinite
        self.frames = 0
        self._limit = _LAST_CODE.get(subtype, 0.9999) - 1e-7
        self._peak = 0.0
        self._sum = np.zeros(channels)
        self._power = self._mixed_power = 0.0
        self._clipped = self._zeroed = 0
        self._hot = np.zeros((CLIPPED_RUN - 1, channels), bool)  # The last frames, for runs that go on.

    def add(self, block: np.ndarray) -> np.ndarray:
        """Take note of the next frames ``(n, C)`` and return them, without what is not finite.

        Raises:
            InputError: If a sample is not finite and that is refused.
        """
        flat = block.reshape(-1)
        power = float(np.vdot(flat, flat))
        if not np.isfinite(power) and not (finite := np.isfinite(block)).all():
            block = self._repair(block, finite)
            flat = block.reshape(-1)
            power = float(np.vdot(flat, flat))
        peak = max(float(flat.max()), -float(flat.min()))
        if peak >= self._limit:
            self._count_runs(np.abs(block) >= self._limit)
        else:
            self._hot[:] = False
        self._peak = max(self._peak, peak)
        self._power += power / block.shape[1]
        self._sum += flat.sum() if block.shape[1] == 1 else np.ones(len(block), np.float32) @ block
        self.frames += len(block)
        return block

    def add_mix(self, mix: np.ndarray) -> None:
        """Take note of the mean of the channels ``(n,)`` of the frames that :meth:`add` saw last."""
        self._mixed_power += float(np.vdot(mix, mix))

    def findings(self, *, mixed: bool = False) -> dict[str, str]:
        """Return what is odd about the sound: a sentence for each kind.

        Args:
            mixed: Whether several channels became one, by :meth:`add_mix`.
        """
        found = {}
        if self._zeroed:
            found["nonfinite"] = f"{self._zeroed} NaN or infinite samples; taken as zero"
        if self._peak == 0:
            found["silent"] = "every sample is zero"
        elif mixed and self._power > 0 and self._mixed_power < CANCELLED * self._power:
            found["opposite"] = (
                "its channels cancel each other (opposite phases), so that their mix is nearly silent; turn one of them around, or give one"
            )
        if self._peak > FAR_TOO_LOUD:
            found["loud"] = f"samples reach {self._peak:.4g} times full scale; integers may have been saved as float"
        elif self._clipped >= CLIPPED_LEAST:
            share = self._clipped / (self.frames * len(self._sum))
            found["clipped"] = f"clipped: {100 * share:.2g} % of its samples stand at full scale in a row"
        offset = float(self._sum[np.abs(self._sum).argmax()]) / max(self.frames, 1)
        if abs(offset) >= OFFSET and self.frames >= 0.1 * self.rate and "loud" not in found:
            found["offset"] = f"a large DC offset: the mean of its samples is {offset:+.3f} of full scale"
        return found

    def _repair(self, block: np.ndarray, finite: np.ndarray) -> np.ndarray:
        if self.nonfinite == "refuse":
            frame = self.start + self.frames + int(np.argmin(finite.all(axis=1)))
            raise InputError(
                f"{self.name}: holds NaN or infinite samples, the first at {frame / self.rate:.3f} s; "
                'repair it, or take them as zero by nonfinite="zero"'
            )
        self._zeroed += int(finite.size - np.count_nonzero(finite))
        return np.where(finite, block, np.float32(0))

    def _count_runs(self, hot: np.ndarray) -> None:
        hot = np.concatenate([self._hot, hot])
        run = hot[CLIPPED_RUN - 1 :].copy()
        for before in range(1, CLIPPED_RUN):
            run &= hot[CLIPPED_RUN - 1 - before : len(hot) - before]
        self._clipped += int(np.count_nonzero(run))
        self._hot = hot[1 - CLIPPED_RUN :]
