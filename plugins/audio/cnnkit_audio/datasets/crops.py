"""Waveforms of clips for training and validation: crops of one length, at one rate, with their targets."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from cnnkit.engine.sampling import item_rng
from cnnkit.errors import ConfigError
from torch import Tensor
from torch.utils.data import Dataset

from cnnkit_audio.datasets.clips import Clip
from cnnkit_audio.sound import open_sound


class ClipDataset(Dataset[tuple[Tensor, Tensor]]):
    """Crops of clips with their labels.

    What is random about an item depends on the seed, the epoch and its position alone. An item is asked for by its number, in the epoch
    of :meth:`set_epoch`; or, as worker processes that live through all epochs need it, by a position ``(epoch, place in the epoch,
    number of the clip)``.

    Args:
        clips: The clips.
        labels: Names in the order of the network's outputs.
        rate: Samples per second.
        samples: Length of a crop.
        seed: Seed of the crops.
        random: Crop at random; if not, in the middle.
        pad: What follows a clip that is shorter than a crop: ``"repeat"`` it, or ``"silence"``.
        cache_mb: Megabytes of decoded clips that are kept, in each process that loads. A clip that would fill an eighth of them is
            never kept: of an hour-long recording only the crop is decoded.

    Shapes:
        An item is a waveform ``(1, samples)`` and a target ``(labels,)`` of zeros and ones, float32.

    Raises:
        ConfigError: If there are no clips, or one has a label that is not among ``labels``.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        labels: Sequence[str],
        rate: int,
        samples: int,
        seed: int,
        *,
        random: bool = True,
        pad: Literal["repeat", "silence"] = "repeat",
        cache_mb: int = 512,
    ) -> None:
        if not clips or samples < 1:
            raise ConfigError(f"{len(clips)} clips of {samples} samples are nothing to learn from")
        if pad not in ("repeat", "silence"):
            raise ValueError(f"pad={pad!r}; accepted: 'repeat', 'silence'")
        self.clips, self.labels = tuple(clips), tuple(labels)
        self.rate, self.samples, self.seed = rate, samples, seed
        self.random, self.pad = random, pad
        self.epoch = 0
        self._numbers = label_numbers(clips, labels)
        self._lengths: dict[int, int | None] = {}
        self._cache = _Cache(cache_mb * 2**20)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) of items that are asked for by their number."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, position: int | tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        epoch, place, number = position if isinstance(position, tuple) else (self.epoch, position, position)
        rng = item_rng(self.seed, epoch, place) if self.random else None
        target = torch.zeros(len(self.labels))
        target[self._numbers[number]] = 1
        return torch.from_numpy(self._crop(number, rng)[None]), target

    def _crop(self, number: int, rng: np.random.Generator | None) -> np.ndarray:
        """Return a crop ``(samples,)``."""
        clip = self.clips[number]
        length = self._length(number)
        if length is not None and 4 * length > self._cache.limit // 8 and length > self.samples:
            first = _offset(length - self.samples, rng) / self.rate + clip.start
            sound = open_sound(clip.path, start=first, end=first + self.samples / self.rate, quiet=True)
            return _fit(sound.read(self.rate)[0], self.samples, "silence")
        signal = self._cache.get(number, lambda: open_sound(clip.path, start=clip.start, end=clip.end, quiet=True).read(self.rate)[0])
        if len(signal) > self.samples:
            first = _offset(len(signal) - self.samples, rng)
            return signal[first : first + self.samples].copy()
        return _fit(signal, self.samples, self.pad)

    def _length(self, number: int) -> int | None:
        """Return the samples of a clip at the wanted rate, as far as its file's header says."""
        if number not in self._lengths:
            clip = self.clips[number]
            sound = open_sound(clip.path, start=clip.start, end=clip.end, quiet=True)
            self._lengths[number] = None if sound.frames is None else round(sound.frames * self.rate / sound.sample_rate)
        return self._lengths[number]


def label_numbers(clips: Sequence[Clip], labels: Sequence[str]) -> list[list[int]]:
    """Return the numbers of each clip's labels.

    Raises:
        ConfigError: If a clip has a label that is not among ``labels``.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    if strange := next(((clip, label) for clip in clips for label in clip.labels if label not in numbers), None):
        raise ConfigError(f"{strange[0].path} is labelled {strange[1]!r}, which is not among the {len(numbers)} labels of the experiment")
    return [[numbers[label] for label in clip.labels] for clip in clips]


def balanced_weights(clips: Sequence[Clip], labels: Sequence[str]) -> np.ndarray:
    """Return the probability with which to draw each clip so that every label comes as often, ``(clips,)`` with sum 1.

    A clip's weight is the sum over its labels of one over the number of clips that have the label. With single labels all come exactly
    as often; with several, rare ones come about as often as common ones. Clips without labels are never drawn.

    Raises:
        ConfigError: If no clip has a label, or one has a label that is not among ``labels``.
    """
    numbers = label_numbers(clips, labels)
    counts = np.bincount(np.concatenate([np.asarray(n, np.int64) for n in numbers]), minlength=len(labels))
    weights = np.array([sum(1 / counts[number] for number in set(mine)) for mine in numbers])
    if not weights.sum() > 0:
        raise ConfigError("no clip has a label; there is nothing to balance")
    return weights / weights.sum()


class _Cache:
    """Decoded clips, those used last; together never more than ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()

    def get(self, number: int, decode: Callable[[], np.ndarray]) -> np.ndarray:
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        signal = decode()
        if signal.nbytes <= self.limit:
            self._kept[number] = signal
            self.bytes += signal.nbytes
        while self.bytes > self.limit:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes
        return signal


def _offset(room: int, rng: np.random.Generator | None) -> int:
    return room // 2 if rng is None else int(rng.integers(room + 1))


def _fit(signal: np.ndarray, samples: int, pad: str) -> np.ndarray:
    if pad == "repeat" and len(signal):
        return np.resize(signal, samples)
    fitted = np.zeros(samples, np.float32)
    fitted[: min(samples, len(signal))] = signal[:samples]
    return fitted
