"""What the networks that code sound have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import NamedTuple

from cnnkit.errors import UsageError
from torch import Tensor

from cnnkit_audio.models._base import SoundModel


class Coded(NamedTuple):
    """What training looks at.

    Attributes:
        wave: The decoded sound, ``(B, 1, T)``.
        spectrum: Its spectrum as the decoder made it, ``(B, 2, F, frames)``.
        target: The spectrum of the sound that was coded.
        commitment: Distance of what was coded from its codes, summed over levels, ``(B,)``; it moves the network.
        codebook: The same for the codes; it moves the entries.
    """

    wave: Tensor
    spectrum: Tensor
    target: Tensor
    commitment: Tensor
    codebook: Tensor


class Codec(SoundModel):
    """A network that turns sound into whole numbers and back.

    Args:
        sample_rate: Samples per second.
        levels: Levels of the code; the first few alone are a code too, of a lower rate.
        groups: Numbers per level and code frame.
        codebook_size: Values that each can take.
        frame: Samples of a code frame.
    """

    job = "codec"
    codebooks_fitted: Tensor
    """How often the codebooks have been set from data; one for codebooks that came trained."""

    def __init__(self, *, sample_rate: int, levels: int, groups: int, codebook_size: int, frame: int) -> None:
        super().__init__(sample_rate=sample_rate)
        self.levels, self.groups, self.codebook_size, self.frame = levels, groups, codebook_size, frame

    @property
    def bits(self) -> int:
        """Bits of one number."""
        return (self.codebook_size - 1).bit_length()

    @property
    def level_rate(self) -> float:
        """Bits per second of one level."""
        return self.bits * self.groups * self.sample_rate / self.frame

    def checked(self, levels: int | None) -> int:
        """Return a number of levels that the network has, all by default.

        Raises:
            UsageError: If it is none.
        """
        if levels is not None and not 1 <= levels <= self.levels:
            rates = ", ".join(f"{level} ({level * self.level_rate / 1000:g} kbit/s)" for level in range(1, self.levels + 1))
            raise UsageError(f"this codec has no {levels} levels; accepted: {rates}")
        return self.levels if levels is None else levels

    @property
    @abstractmethod
    def reach(self) -> tuple[int, int, int]:
        """How pieces of a long sound must lie for the same result, in code frames.

        By how many they overlap on each side in :meth:`encode`, and in :meth:`decode`, and of how many their places are multiples.
        """

    @abstractmethod
    def forward(self, x: Tensor, levels: Tensor | int | None = None, *, quantise: bool = True) -> Coded:
        """Code and decode with gradients.

        Args:
            x: Waveforms ``(B, 1, T)``.
            levels: Levels that are sent, of all or of each, ``(B,)``; all by default.
            quantise: Whether codes stand for the features; not so in the first stage of training.
        """

    @abstractmethod
    def fit_codebooks(self, waves: Iterable[Tensor], *, seed: int = 0) -> None:
        """Set all codebooks from waveforms ``(B, 1, T)``; ``seed`` is that of the draws."""

    @abstractmethod
    def encode(self, x: Tensor, levels: int | None = None) -> Tensor:
        """Return codes ``(B, levels, groups, ceil(T / frame))`` of waveforms ``(B, 1, T)``."""

    @abstractmethod
    def decode(self, codes: Tensor, samples: int | None = None) -> Tensor:
        """Return waveforms ``(B, 1, samples)``, by default all that the codes hold."""
