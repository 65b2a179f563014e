"""Sound files: opened by what they hold, read whole or in blocks, at the rate and with the channels that a network wants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import torch
import torchaudio.functional as AF
from cnnkit.engine.files import atomic_path
from cnnkit.errors import InputError

Channels = Literal["mono", "all"]


@dataclass(frozen=True)
class Sound:
    """An opened sound file or stream.

    Args:
        path: Where it comes from; ``-`` for standard input.
        sample_rate: Samples per second in the file.
        channels: Number of channels in the file.
        frames: Samples per channel; ``None`` for a stream, whose end is not known.
    """

    path: Path
    sample_rate: int
    channels: int
    frames: int | None

    def blocks(self, rate: int, *, channels: Channels = "mono", seconds: float = 10.0) -> Iterator[np.ndarray]:
        """Yield the sound in order as float32 arrays ``(C, n)`` at ``rate``, in constant memory.

        Put together, the blocks equal :meth:`read`.

        Args:
            rate: Samples per second of the result; another one than the file's is resampled.
            channels: ``"mono"`` for the mean of the channels, ``"all"`` for each.
            seconds: Length of a block, about.
        """
        yield self.read(rate, channels=channels)

    def read(self, rate: int, *, channels: Channels = "mono") -> np.ndarray:
        """Return the whole sound as float32, ``(C, T)``."""
        data, _ = soundfile.read(self.path, dtype="float32", always_2d=True)
        signal = torch.from_numpy(np.ascontiguousarray(data.T))
        if channels == "mono":
            signal = signal.mean(0, keepdim=True)
        return AF.resample(signal, self.sample_rate, rate).numpy()


def open_sound(path: Path) -> Sound:
    """Open a file, and check that it can be read.

    Raises:
        InputError: If it is no sound file, holds no samples, or is damaged.
    """
    try:
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise InputError(f"{path.name} is not a sound file that can be read: {error}") from error
    return Sound(path, info.samplerate, info.channels, info.frames)


def write_sound(path: Path, signal: np.ndarray, rate: int, *, subtype: str = "PCM_16") -> Path:
    """Write ``(C, T)`` in [-1, 1] as a sound file of the suffix's format, atomically."""
    with atomic_path(path) as part:
        soundfile.write(part, signal.T, rate, subtype=subtype)
    return path
