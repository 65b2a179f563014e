"""Data sets to classify: digits, or a folder of each class; and how they are presented to a network of each domain."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cnnkit.engine.sampling import EachOnce, EpochLoader, Position, PositionSampler, item_rng
from cnnkit.errors import ConfigError, InputError, unknown
from cnnkit.registry import resolve
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from cnnkit_equivariant.args import FIELDS
from cnnkit_equivariant.classification.config import ClassificationConfig
from cnnkit_equivariant.classification.files import read_array

Batch = dict[str, Any]

DOMAINS = {
    "picture": "cnnkit_equivariant.classification.pictures",
    "sphere": "cnnkit_equivariant.sphere.projection",
    "outline": "cnnkit_equivariant.classification.outlines",
}
"""The module of each domain. ``present(pictures (B, C, h, w) in [0, 1], size, *, turns, rng)`` makes a batch of what the network takes, and
``read_field(array (C, H, W), size)`` one sample of a file, without the axis of the batch; on the sphere, files are fields on its grid."""

DIGITS = tuple("0123456789")
SPLITS = ("train", "val", "test")
SHARE = 0.2
"""Of each class, what goes into the validation, and into the test."""
KEPT = 256 * 2**20
"""Bytes of presented samples that are kept, where presenting them again would give the same."""


def divide(targets: Sequence[int] | NDArray[np.int64], split: str) -> NDArray[np.int64]:
    """Return which samples belong to a split: of each class as large a share, and always the same ones."""
    targets = np.asarray(targets)
    parts = []
    for label in np.unique(targets):
        order = np.random.default_rng((5, int(label))).permutation(np.flatnonzero(targets == label))
        held = round(SHARE * len(order))
        parts.append({"test": order[:held], "val": order[held : 2 * held], "train": order[2 * held :]}[split])
    return np.sort(np.concatenate(parts))


class Samples(ABC):
    """Labelled samples of one split.

    Args:
        names: A name for each.
        targets: Index of the class of each.
        domain: How they are presented.
    """

    def __init__(self, names: Sequence[str], targets: Sequence[int] | NDArray[np.int64], domain: str) -> None:
        self.names, self.targets, self.domain = tuple(names), np.asarray(targets, np.int64), domain

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def sample(self, index: int, size: int, turns: str, rng: np.random.Generator) -> Tensor:
        """Return what the network takes, without the axis of the batch."""


class Digits(Samples):
    """The 1797 handwritten digits of scikit-learn, 8 x 8.

    Args:
        split: Which part.
        domain: How they are presented.
    """

    def __init__(self, split: str, domain: str) -> None:
        self.pictures, targets = digits()
        self._rows = divide(targets, split)
        super().__init__([f"digit_{row:04d}" for row in self._rows], targets[self._rows], domain)

    def sample(self, index: int, size: int, turns: str, rng: np.random.Generator) -> Tensor:
        """Return a digit as the domain presents it."""
        return present(self.domain, self.pictures[self._rows[index]][None], size, turns=turns, rng=rng)[0]


@cache
def digits() -> tuple[Tensor, NDArray[np.int64]]:
    """Return the pictures ``(1797, 1, 8, 8)`` in [0, 1] and their classes ``(1797,)``."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.from_numpy(found.images / 16).float()[:, None], found.target.astype(np.int64)


class Files(Samples):
    """Files in one folder for each class.

    Args:
        paths: The files.
        targets: Their classes.
        channels: Channels that each has.
        domain: How they are presented.
    """

    def __init__(self, paths: Sequence[Path], targets: Sequence[int], channels: int, domain: str) -> None:
        super().__init__([str(path) for path in paths], targets, domain)
        self._paths, self._channels = tuple(paths), channels

    def sample(self, index: int, size: int, turns: str, rng: np.random.Generator) -> Tensor:
        """Return a file as the domain presents it."""
        array = read_array(self._paths[index], self._channels)
        if self.domain == "sphere":
            return read_field(self.domain, array, size)
        return present(self.domain, torch.from_numpy(array)[None], size, turns=turns, rng=rng)[0]


def present(domain: str, pictures: Tensor, size: int, *, turns: str, rng: np.random.Generator) -> Tensor:
    """Return a batch of pictures ``(B, C, h, w)`` in [0, 1] as a network of the domain takes them."""
    return resolve(f"{DOMAINS[domain]}:present")(pictures, size, turns=turns, rng=rng)


def read_field(domain: str, array: NDArray[np.float32], size: int) -> Tensor:
    """Return the array of a file ``(C, H, W)`` as a network of the domain takes it, without the axis of the batch."""
    return resolve(f"{DOMAINS[domain]}:read_field")(array, size)


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each class by its name, sorted; none if the folder has no class.

    Raises:
        InputError: If a folder of a class is empty.
    """
    found = {place.name: sorted(place.iterdir()) for place in sorted(folder.iterdir()) if place.is_dir() and place.name[0] != "."}
    classes = {name: [path for path in paths if path.suffix.lower() in FIELDS and path.name[0] != "."] for name, paths in found.items()}
    if empty := [name for name, paths in classes.items() if not paths]:
        raise InputError(f"{folder / empty[0]} holds no file of the class {empty[0]!r}; accepted: {', '.join(FIELDS)}")
    return classes


def read_labels(cfg: ClassificationConfig) -> tuple[str, ...]:
    """Return the names of the classes: those of the configuration, or the data set's own.

    Raises:
        ConfigError: If the data set has other classes, or the folder none.
    """
    if cfg.data == "digits":
        if cfg.labels not in ((), DIGITS):
            raise ConfigError(f"classification.labels={list(cfg.labels)} are not the digits; leave them out, or name a folder as data")
        return DIGITS
    if cfg.labels:
        return cfg.labels
    root = Path(cfg.data)
    if not root.is_dir():
        raise ConfigError(f"classification.data={cfg.data} is no folder; accepted: digits, or a folder with one folder for each class")
    classes = tuple(class_folders(root / "train" if (root / "train").is_dir() else root))
    if len(classes) < 2:
        raise ConfigError(f"classification.data={cfg.data} needs a folder for each of two classes or more, of {' or '.join(FIELDS)} files")
    return classes


def count_channels(cfg: ClassificationConfig) -> int:
    """Return the channels of the first file of a folder: one or three of a png, any number of an npy."""
    if cfg.data == "digits":
        return 1
    root = Path(cfg.data)
    path = next(iter(class_folders(root / "train" if (root / "train").is_dir() else root).values()))[0]
    if path.suffix.lower() == ".npy":
        try:
            shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read as npy ({error})") from error
        return shape[0] if len(shape) == 3 else 1
    from PIL import Image

    with Image.open(path, formats=["PNG"]) as picture:
        return 1 if picture.mode in ("1", "L", "LA") or picture.mode.startswith("I") else 3


def read_samples(cfg: ClassificationConfig, split: str, domain: str) -> Samples | None:
    """Return the samples of a split, or ``None`` if the folder has none.

    Raises:
        ConfigError: If the data set is unknown, has other classes than ``cfg.labels``, or cannot be turned.
    """
    labels = read_labels(cfg)
    if cfg.data == "digits":
        return Digits(split, domain)
    if domain == "sphere" and (cfg.train_turns, cfg.test_turns) != ("none", "none"):
        raise ConfigError("fields of files lie on the sphere as they are; set classification.train_turns and test_turns to none")
    root = Path(cfg.data)
    divided = (root / "train").is_dir()
    place = root / split if divided else root
    if not place.is_dir():
        return None
    classes = class_folders(place)
    if strange := [name for name in classes if name not in labels]:
        raise ConfigError(unknown(f"class in {place}:", strange[0], labels))
    paths = [path for files in classes.values() for path in files]
    targets = [labels.index(name) for name, files in classes.items() for _ in files]
    rows = range(len(paths)) if divided else divide(targets, split)
    return Files([paths[row] for row in rows], [targets[row] for row in rows], cfg.channels, domain) if len(rows) else None


class Presented(Dataset[tuple[Tensor, int]]):
    """Samples at one size, by :data:`~cnnkit.engine.sampling.Position`.

    Args:
        samples: The samples.
        size: Size at which they are presented.
        turns: How they are turned.
        seed: Seed of the turns.
    """

    def __init__(self, samples: Samples, size: int, turns: str, seed: int) -> None:
        self.samples, self.size, self.turns, self.seed = samples, size, turns, seed
        self._kept: dict[int, Tensor] = {}
        self._room = KEPT

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: Position) -> tuple[Tensor, int]:
        epoch, place, index = position
        x = self._kept.get(index) if self.turns == "none" else None
        if x is None:
            x = self.samples.sample(index, self.size, self.turns, item_rng(self.seed, epoch, place))
            if self.turns == "none" and x.nbytes <= self._room:
                self._kept[index], self._room = x, self._room - x.nbytes
        return x, int(self.samples.targets[index])


def stack(items: Sequence[Tensor]) -> Tensor:
    """Make a batch; the shorter ones of different length are filled up with zeros, which in an outline are segments without length."""
    longest = max(len(item) for item in items)
    padded = [torch.cat([item, item.new_zeros(longest - len(item), *item.shape[1:])]) if len(item) < longest else item for item in items]
    return torch.stack(padded)


def collate(items: Sequence[tuple[Tensor, int]]) -> Batch:
    """Return ``{"x", "target"}``."""
    return {"x": stack([x for x, _ in items]), "target": torch.tensor([target for _, target in items])}


def train_loader(cfg: ClassificationConfig, samples: Samples, seed: int) -> EpochLoader:
    """Return the batches of one epoch after another: ``x`` and ``target (B,)``."""
    order = PositionSampler(len(samples), batch_size=cfg.batch_size, seed=seed)
    return EpochLoader(Presented(samples, cfg.size, cfg.train_turns, seed), order, workers=cfg.workers, collate=collate)


def measuring_loader(cfg: ClassificationConfig, samples: Samples, split: str) -> EachOnce:
    """Return batches that show each sample once at each size, turned by an angle of its own that is always the same."""
    sizes = (cfg.size, *cfg.sizes)
    shown = {size: Presented(samples, size, cfg.test_turns, SPLITS.index(split)) for size in sizes}
    starts = [(size, first) for size in sizes for first in range(0, len(samples), cfg.batch_size)]
    made: dict[int, Batch] = {}

    def make(number: int) -> Batch:
        if number not in made:
            size, first = starts[number]
            rows = range(first, min(first + cfg.batch_size, len(samples)))
            batch = collate([shown[size][(0, row, row)] for row in rows]) | {"size": size, "name": [samples.names[row] for row in rows]}
            if sum(kept["x"].nbytes for kept in made.values()) + batch["x"].nbytes > KEPT:
                return batch
            made[number] = batch
        return made[number]

    return EachOnce(len(starts), make)


def drawings(count: int, channels: int, classes: int) -> tuple[Tensor, Tensor]:
    """Return rings with a stroke whose direction tells the class, ``(count, channels, 12, 12)``, and the classes ``(count,)``."""
    steps = torch.linspace(-1, 1, 12)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    target = torch.arange(count) % classes
    angle = (torch.pi * target / classes + 0.05 * torch.arange(count))[:, None, None]
    across = x * angle.sin() - y * angle.cos()
    ring = torch.exp(-(((x**2 + y**2).sqrt() - 0.6) ** 2) / 0.02)
    pictures = torch.maximum(ring.expand_as(across), torch.exp(-(across**2) / 0.03) * (x**2 + y**2 < 0.7))
    return pictures[:, None].repeat(1, channels, 1, 1), target
