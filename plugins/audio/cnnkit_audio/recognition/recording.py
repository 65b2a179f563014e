"""A recording of one or several files as pieces of all its microphones, in constant memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from cnnkit.errors import InputWarning

from cnnkit_audio.sound import Sound


@dataclass(frozen=True)
class Recording:
    """Files that are the microphones of one recording.

    Args:
        sounds: The opened files, each of one channel or more.
    """

    sounds: tuple[Sound, ...]

    @property
    def microphones(self) -> tuple[str, ...]:
        """A name for each microphone: the file's, and the channel's from 1 where it has several."""
        return tuple(
            sound.path.name if sound.channels == 1 else f"{sound.path.name}:{channel}"
            for sound in self.sounds
            for channel in range(1, sound.channels + 1)
        )

    def pieces(self, rate: int, *, window: float) -> Iterator[tuple[float, np.ndarray]]:
        """Yield the start in seconds and the samples ``(C, n)`` of each piece, in order and without gaps.

        A piece is ``window`` seconds long at most. Where the recording goes on, it is cut where its last third is most silent over all
        microphones, so that few words are cut in two.

        Args:
            rate: Samples per second.
            window: Seconds.
        """
        longest, at = max(2, round(window * rate)), 0
        waiting = np.zeros((len(self.microphones), 0), np.float32)
        for block in self._blocks(rate, seconds=window):
            waiting = np.concatenate((waiting, block), axis=1)
            while waiting.shape[1] > longest:
                cut = quietest(waiting[:, :longest], rate)
                yield at / rate, waiting[:, :cut]
                at, waiting = at + cut, waiting[:, cut:]
        if waiting.shape[1]:
            yield at / rate, waiting

    def _blocks(self, rate: int, *, seconds: float) -> Iterator[np.ndarray]:
        """Yield blocks of all microphones; a file that ends before the others goes on as silence."""
        streams = [sound.blocks(rate, channels="all", seconds=seconds) for sound in self.sounds]
        uneven = False
        for blocks in zip_longest(*streams):
            samples = max(block.shape[1] for block in blocks if block is not None)
            parts = []
            for sound, block in zip(self.sounds, blocks, strict=True):
                here = np.zeros((sound.channels, 0), np.float32) if block is None else block
                uneven = uneven or here.shape[1] < samples
                parts.append(np.pad(here, ((0, 0), (0, samples - here.shape[1]))))
            yield np.concatenate(parts)
        if uneven:
            names = ", ".join(sound.path.name for sound in self.sounds[:3])
            warnings.warn(f"{names}: the files are not equally long; the shorter ones end in silence", InputWarning, stacklevel=2)


def quietest(sound: np.ndarray, rate: int) -> int:
    """Return the sample in the last third of ``(C, n)`` around which 50 ms are most silent, each microphone by its own measure."""
    width = max(1, round(0.05 * rate))
    first = 2 * sound.shape[1] // 3
    power = (sound[:, first:] ** 2).astype(np.float64)
    power = (power / (power.mean(1, keepdims=True) + 1e-20)).sum(0)
    if len(power) <= width:
        return sound.shape[1]
    sums = np.concatenate(([0.0], np.cumsum(power)))
    return first + int(np.argmin(sums[width:] - sums[:-width])) + width // 2


def names_of(sounds: Sequence[Sound]) -> str:
    """Return what messages call the files together."""
    return sounds[0].path.name + (f" and {len(sounds) - 1} more" if len(sounds) > 1 else "")
