"""Utterances for training and measuring: made ones in drawn rooms, and those of CHiME-7 sessions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cnnkit.engine.sampling import EachOnce, EpochLoader, Position, PositionSampler, item_rng
from cnnkit.errors import ConfigError
from numpy.random import Generator
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from cnnkit_audio.datasets import chime
from cnnkit_audio.recognition.config import RecognitionConfig
from cnnkit_audio.recognition.text import Vocabulary, normalise
from cnnkit_audio.sound import open_sound
from cnnkit_audio.synth.words import Place, draw_sentence, record

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Utterance:
    """What microphones recorded of one utterance.

    Args:
        name: For messages and reports.
        sound: ``(C, T)`` float32.
        text: Normalised transcript.
        units: Its numbers.
        speaker: Who speaks.
        session: Recording that it is part of.
        times: Start and end in the session, seconds.
        clean: Which microphones have little noise, ``(C,)``, where that is known.
        scenario: Part of a collection of data sets that it belongs to; empty if there is one.
    """

    name: str
    sound: np.ndarray
    text: str
    units: tuple[int, ...]
    speaker: str = "unknown"
    session: str = ""
    times: tuple[float, float] = (0.0, 0.0)
    clean: np.ndarray | None = None
    scenario: str = ""


def collate(items: Sequence[Utterance]) -> dict[str, Any]:
    """Return a batch: ``x`` ``(B, C, T)`` and ``units`` ``(B, L)`` filled up with zeros, and how much of both there is."""
    shapes = [item.sound.shape for item in items]
    x = torch.zeros(len(items), *(max(sizes) for sizes in zip(*shapes, strict=True)))
    channels = torch.zeros(x.shape[:2], dtype=torch.bool)
    for row, item in enumerate(items):
        count, samples = item.sound.shape
        x[row, :count, :samples] = torch.from_numpy(item.sound)
        channels[row, :count] = True
    units = pad_sequence([torch.tensor(item.units, dtype=torch.long) for item in items], batch_first=True)
    return {
        "x": x,
        "channels": channels,
        "lengths": torch.tensor([samples for _, samples in shapes]),
        "units": units,
        "counts": torch.tensor([len(item.units) for item in items]),
        "utterances": [(item.name, item.text, item.speaker, item.session, item.times, item.scenario) for item in items],
        "clean": [item.clean for item in items],
    }


class ToneSentences(Dataset[Utterance]):
    """Sentences of :mod:`cnnkit_audio.synth.words` in rooms that no other split has, addressed by position.

    Args:
        cfg: The experiment.
        vocabulary: Units.
        rate: Samples per second.
        split: ``"train"``, ``"val"`` or ``"test"``.
        seed: Seed of everything.
        size: Number of utterances of an epoch; those of validation and test are the same in every epoch.
    """

    def __init__(self, cfg: RecognitionConfig, vocabulary: Vocabulary, rate: int, split: str, *, seed: int, size: int) -> None:
        self.data, self.vocabulary, self.rate, self.size = cfg.data, vocabulary, rate, size
        self.seed = (seed, SPLITS.index(split))
        self.fixed = split != "train"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, position: Position) -> Utterance:
        epoch, index, item = position
        rng = np.random.default_rng((*self.seed, 1, item)) if self.fixed else np.random.default_rng((*self.seed, 2, epoch, index))
        place = self._place(int(rng.integers(self.data.places)))
        sentence = draw_sentence(rng, self.rate)
        scene = record(rng, sentence, place, clean=self.data.clean)
        units = tuple(self.vocabulary.encode(sentence.text, "a synthetic sentence"))
        name = f"sentence_{item:05d}"
        times = (0.0, scene.sound.shape[1] / self.rate)
        return Utterance(name, scene.sound, sentence.text, units, session=name, times=times, clean=scene.clean)

    @functools.lru_cache(maxsize=1024)  # noqa: B019  A loader keeps its dataset anyway.
    def _place(self, number: int) -> Place:
        return Place.draw(np.random.default_rng((*self.seed, 0, number)), self.rate, microphones=self.data.microphones)


class Sessions(Dataset[Utterance]):
    """Utterances of a split of CHiME-7 by its oracle segmentation.

    Args:
        cfg: The experiment.
        vocabulary: Units.
        rate: Samples per second.
        split: ``"train"``, ``"val"`` or ``"test"``.
        seed: Of the microphones that training draws.

    Raises:
        ConfigError: If there is no such data set, or nothing in it to train on.
        InputError: If files or transcriptions are missing or damaged.
    """

    def __init__(self, cfg: RecognitionConfig, vocabulary: Vocabulary, rate: int, split: str, *, seed: int) -> None:
        data, self.vocabulary, self.rate, self.seed = cfg.data, vocabulary, rate, seed
        self.train, self.most, self.normalise = split == "train", data.microphones[1], cfg.normalise
        name = data.splits[SPLITS.index(split)]
        clips = [(clip, (clip.start, clip.start if clip.end is None else clip.end)) for clip in chime(Path(data.folder), name)]
        self.items = [(clip, times) for clip, times in clips if not self.train or times[1] - times[0] <= data.longest]
        if not self.items:
            raise ConfigError(
                f"split {name!r} of {data.folder} holds no utterance of up to recognition.data.longest={data.longest:g} seconds"
            )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: Position) -> Utterance:
        epoch, index, number = position
        clip, (start, end) = self.items[number]
        files = list(clip.channels)
        if self.train and len(files) > self.most:
            chosen = item_rng(self.seed, epoch, index).permutation(len(files))[: self.most]
            files = [files[place] for place in sorted(chosen.tolist())]
        text = normalise(clip.text) if self.normalise else clip.text
        units = tuple(self.vocabulary.encode(text, f"{clip.session} at {start:.2f} s"))
        sound = read_together(files, self.rate, start=start, end=end)
        name = f"{clip.session}_{clip.speaker}_{start:.2f}"
        return Utterance(name, sound, text, units, clip.speaker, clip.session, (start, end), scenario=clip.scenario)


def read_together(files: Sequence[Path], rate: int, *, start: float = 0.0, end: float | None = None) -> np.ndarray:
    """Read the same stretch of several files as the microphones of one array, ``(C, T)``; shorter ones end in silence."""
    parts = [open_sound(path, start=start, end=end, quiet=True).read(rate, channels="all") for path in files]
    samples = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, samples - part.shape[1]))) for part in parts])


def fixed_utterances(dataset: ToneSentences | Sessions, batch_size: int) -> EachOnce:
    """Return utterances to measure on, in batches."""

    def batch(number: int) -> dict[str, Any]:
        places = range(number * batch_size, min((number + 1) * batch_size, len(dataset)))
        return collate([dataset[(0, place, place)] for place in places])

    return EachOnce(-(-len(dataset) // batch_size), batch)


def make_loader(cfg: RecognitionConfig, vocabulary: Vocabulary, rate: int, split: str, *, seed: int) -> EpochLoader | EachOnce | None:
    """Return the batches of a split; none if the configuration has no data for it.

    Raises:
        ConfigError: If a folder is wanted and not named.
    """
    data, train = cfg.data, split == "train"
    dataset: ToneSentences | Sessions
    if data.layout == "synthetic":
        size = (data.samples_per_epoch or 1024) if train else data.held_out
        if not size:
            return None
        dataset = ToneSentences(cfg, vocabulary, rate, split, seed=seed, size=size)
    else:
        if not data.folder:
            raise ConfigError("recognition.data.folder names no folder; type --set recognition.data.folder=FOLDER")
        if not data.splits[SPLITS.index(split)]:
            return None
        dataset = Sessions(cfg, vocabulary, rate, split, seed=seed)
    if not train:
        return fixed_utterances(dataset, data.batch_size)
    steps = None if data.samples_per_epoch is None else -(-data.samples_per_epoch // data.batch_size)
    sampler = PositionSampler(len(dataset), batch_size=data.batch_size, seed=seed, steps=steps)
    return EpochLoader(dataset, sampler, workers=data.workers, collate=collate)


def example_batch(cfg: RecognitionConfig, vocabulary: Vocabulary, rate: int) -> dict[str, Any]:
    """Return two utterances of few units with three and two microphones, made on the spot whatever the vocabulary is."""
    rng = np.random.default_rng(0)
    return collate([_beeps(rng, vocabulary, rate, microphones, number) for number, microphones in enumerate((3, 2))])


def _beeps(rng: Generator, vocabulary: Vocabulary, rate: int, microphones: int, number: int) -> Utterance:
    """Spell units as beeps, a pitch for each, with more noise from microphone to microphone."""
    units = [2 + (number + step) % len(vocabulary.units) for step in range(3)]
    time = np.arange(round(0.3 * rate)) / rate
    pitches = 0.05 * rate * (1 + 4 * (np.array(units) - 2) / len(vocabulary.units))
    dry = np.concatenate([np.hanning(len(time)) * np.sin(2 * np.pi * pitch * time) for pitch in pitches])
    noise = 0.1 * 4.0 ** np.arange(microphones)[:, None] * rng.standard_normal((microphones, len(dry)))
    sound = (0.2 * (dry + noise) / (1 + noise.std(1, keepdims=True))).astype(np.float32)
    name, times = f"example_{number}", (0.0, sound.shape[1] / rate)
    return Utterance(name, sound, vocabulary.decode(units), tuple(units), session=name, times=times)


def to_tensor(sound: np.ndarray) -> Tensor:
    """Return ``(C, T)`` as a batch of one, ``(1, C, T)``."""
    return torch.from_numpy(np.ascontiguousarray(sound))[None]
