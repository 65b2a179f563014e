"""Code and decode sounds of any length in constant memory, with the result of the whole.

Pieces overlap by as much as the network reaches (:attr:`~cnnkit_audio.models._codec.Codec.reach`) and begin where its windows do. Of
each piece only what lies further than that from its borders is used, and that is what the network gives for the whole: nothing is faded,
nothing joins audibly.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from cnnkit_audio.models._codec import Codec

SECONDS = 20.0
"""Length of a piece without its overlaps."""


def _pieces(model: Codec, seconds: float) -> int:
    """Return the code frames of a piece: as many whole grids as ``seconds`` hold, one at least."""
    grid = model.reach[2]
    return max(1, int(seconds * model.sample_rate / (model.frame * grid))) * grid


class StreamEncoder:
    """Turn blocks of samples into codes.

    Args:
        model: The codec.
        levels: Levels of the code; all by default.
        seconds: Length of a piece.

    Attributes:
        samples: Samples that were taken in.
    """

    def __init__(self, model: Codec, levels: int | None = None, *, seconds: float = SECONDS) -> None:
        self.model, self.levels = model, model.checked(levels)
        self.samples = 0
        self._reach, self._piece = model.reach[0], _pieces(model, seconds)
        self._held = np.zeros((1, 0), np.float32)
        self._start = self._done = 0  # Code frames: where what is held begins, and up to where codes were given out.

    def push(self, block: np.ndarray) -> Iterator[np.ndarray]:
        """Take in samples ``(1, n)`` and yield the codes ``(levels, groups, m)`` that are certain by then."""
        self.samples += block.shape[1]
        self._held = np.concatenate([self._held, block], axis=1)
        while self.samples >= (end := self._done + self._piece + self._reach) * self.model.frame:
            yield self._encode(end, self._done + self._piece)

    def finish(self) -> Iterator[np.ndarray]:
        """Yield the codes of the rest."""
        total = -(-self.samples // self.model.frame)
        if total > self._done:
            yield self._encode(total, total)

    def _encode(self, end: int, stop: int) -> np.ndarray:
        """Encode what is held up to ``end`` and return the codes up to ``stop``."""
        frame = self.model.frame
        some = next(self.model.parameters())
        wave = torch.from_numpy(self._held[:, : (end - self._start) * frame]).to(some)
        codes = self.model.encode(wave[None], self.levels)[0, ..., self._done - self._start : stop - self._start]
        keep = max(0, stop - self._reach)
        self._held = self._held[:, (keep - self._start) * frame :]
        self._start, self._done = keep, stop
        return codes.cpu().numpy()


class StreamDecoder:
    """Turn blocks of codes into samples.

    Args:
        model: The codec.
        seconds: Length of a piece.
    """

    def __init__(self, model: Codec, *, seconds: float = SECONDS) -> None:
        self.model = model
        self._reach, self._piece = model.reach[1], _pieces(model, seconds)
        self._held: np.ndarray | None = None
        self._start = self._done = 0

    def push(self, codes: np.ndarray) -> Iterator[np.ndarray]:
        """Take in codes ``(levels, groups, m)`` and yield samples ``(1, n)``."""
        self._held = codes if self._held is None else np.concatenate([self._held, codes], axis=2)
        while self._start + self._held.shape[2] >= (end := self._done + self._piece + self._reach):
            yield self._decode(end, self._done + self._piece, None)

    def finish(self, samples: int) -> Iterator[np.ndarray]:
        """Yield the rest, so that there are ``samples`` in all."""
        total = -(-samples // self.model.frame)
        if total > self._done:
            yield self._decode(total, total, samples)

    def _decode(self, end: int, stop: int, samples: int | None) -> np.ndarray:
        """Decode what is held up to ``end`` and return the samples up to the code frame ``stop``, or to ``samples``."""
        assert self._held is not None
        frame, start = self.model.frame, self._start
        device = next(self.model.parameters()).device
        codes = torch.from_numpy(np.ascontiguousarray(self._held[..., : end - start])).to(device)
        wave = self.model.decode(codes[None], None if samples is None else samples - start * frame)
        wave = wave[0, :, (self._done - start) * frame : (stop - start) * frame]
        keep = max(0, stop - self._reach)
        self._held = self._held[..., keep - start :]
        self._start, self._done = keep, stop
        return wave.float().cpu().numpy()
