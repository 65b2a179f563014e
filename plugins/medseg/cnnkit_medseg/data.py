"""Training patches and validation cases.

What is random about a patch (case, place, augmentation) depends on the seed, the epoch and the patch's position alone, so that a
training is resumed bit for bit, and is the same with any number of workers and of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cnnkit.engine.sampling import EachOnce, EpochLoader, item_rng, process
from cnnkit.errors import ConfigError
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from cnnkit_medseg.augment import augment_intensity, draw_warp, mirror
from cnnkit_medseg.cache import CachedCase, check_pair, fingerprint, known_labels, prepare_cases
from cnnkit_medseg.config import AugmentConfig, Config
from cnnkit_medseg.dataset import OUTSIDE, Case, find_split, pick, read_dataset, write_splits
from cnnkit_medseg.plan import complete

Position = tuple[int, int, bool]
"""Epoch, position of a patch in the epoch over all processes, and whether it must show foreground."""


def prepare(cfg: Config, output: Path, *, progress: bool = True) -> Config:
    """Look at every training case, complete the configuration, preprocess the cases of the fold, and write ``splits_final.json``.

    Args:
        cfg: The experiment.
        output: The run's folder; the cache lies in it unless ``data.cache`` names another.
        progress: Show progress on stderr.

    Returns:
        The configuration that the training runs with; every open field is filled, and ``data.cache`` names the cache.

    Raises:
        ConfigError: If the dataset's description or the configuration does not hold together.
        InputError: Naming every case that cannot be trained on.
    """
    dataset = read_dataset(cfg.data)
    cfg = replace(cfg, data=replace(cfg.data, cache=cfg.data.cache or output / "cache"))
    cache = Path(cfg.data.cache or output)
    split, splits = find_split(dataset, cfg.data, folders=(cache,))
    write_splits(splits, output)
    cfg = complete(cfg, dataset)  # Labels and channels, which the cases are checked against.
    cfg = complete(cfg, dataset, fingerprint(cfg, dataset.training, cache, progress=progress))
    prepare_cases(cfg, pick(dataset.training, split.train), cache, progress=progress)
    return cfg


def train_loader(cfg: Config, cases: Sequence[Case] | None = None, *, progress: bool = True) -> PatchLoader:
    """Return the batches of augmented patches ``{"image": (B, C, *patch) float32, "label": (B, 1, *patch) int16}``.

    Args:
        cfg: The experiment, as :func:`prepare` returned it.
        cases: Cases to draw from; by default the training cases of the configured fold.
        progress: Show progress on stderr while cases are preprocessed that the cache does not hold.

    Raises:
        ConfigError: If ``data.cache`` is not set, or the batch does not divide among the processes.
        InputError: Naming every case that cannot be read.
    """
    if cfg.data.cache is None:
        raise ConfigError("data.cache is not set; type --set data.cache=FOLDER, or prepare the training first")
    cases = _fold(cfg)[0] if cases is None else cases
    return PatchLoader(PatchDataset(prepare_cases(cfg, cases, Path(cfg.data.cache), progress=progress), cfg), cfg)


def val_loader(cfg: Config, cases: Sequence[Case] | None = None) -> EachOnce:
    """Return whole cases as they lie on disk, so that validation measures exactly what ``run`` does.

    They come as ``{"name", "volume", "reference", "reference_file"}``: ``volume`` is what :func:`cnnkit_medseg.io.read_volume` returns,
    ``reference`` an integer array ``(X, Y, Z)`` on the same RAS grid. One case is in memory at a time.

    Args:
        cfg: The experiment.
        cases: Cases to validate on; by default those that the configured fold holds out.
    """
    chosen, known = tuple(_fold(cfg)[1] if cases is None else cases), known_labels(cfg)

    def one(number: int) -> dict[str, Any]:
        case = chosen[number]
        volume, reference = check_pair(case, len(cfg.channels), known)
        return {"name": case.name, "volume": volume, "reference": reference, "reference_file": case.label}

    return EachOnce(len(chosen), one)


class PatchDataset(Dataset[dict[str, Tensor]]):
    """Augmented patches, addressed by :data:`Position`.

    nnU-Net's way: any case is equally likely; a patch lies anywhere inside of the volume or is centred on a voxel of a class
    drawn from those that the case has. What a patch has beyond the volume is 0 in the image and background in the labels.
    A patch of two dimensions is an axial slice. With ``preprocess.mask_zscore`` the image stays 0 outside of the mask.

    Args:
        cases: Preprocessed cases.
        cfg: The experiment.
    """

    def __init__(self, cases: Sequence[CachedCase], cfg: Config) -> None:
        if not cases:
            raise ConfigError("there is no case to train on")
        self.cases = tuple(cases)
        self.patch_size = cfg.patch_size
        self.augment: AugmentConfig = cfg.augment
        self.seed = cfg.train.seed
        self.sparse = cfg.ignore_label is not None
        self.masked = cfg.preprocess.mask_zscore

    def __getitem__(self, position: Position) -> dict[str, Tensor]:
        epoch, index, forced = position
        rng = item_rng(self.seed, epoch, index)
        case = self.cases[int(rng.integers(len(self.cases)))]
        flat = len(self.patch_size) == 2
        patch = (*self.patch_size, 1) if flat else self.patch_size
        corner = self._place(case, patch, forced, rng)
        warp = draw_warp(self.patch_size, self.augment, rng)
        region = patch if warp is None else (*warp.source_shape(self.patch_size), *([1] if flat else []))
        start = [c - (wide - narrow) // 2 for c, wide, narrow in zip(corner, region, patch, strict=True)]
        image = torch.from_numpy(read_box(case.image, start, region, fill=0))
        label = torch.from_numpy(read_box(case.label[None], start, region, fill=OUTSIDE))
        if flat:
            image, label = image[..., 0], label[..., 0]
        if warp is not None:
            image, label = warp.apply(image, label, self.patch_size)
        image = augment_intensity(image, self.augment, rng)
        if self.augment.mirror:
            image, label = mirror(image, label, rng)
        if self.masked:
            image = image.masked_fill(label == OUTSIDE, 0)
        return {"image": image.contiguous(), "label": label.masked_fill(label == OUTSIDE, 0)}

    def _place(self, case: CachedCase, patch: Sequence[int], forced: bool, rng: Generator) -> list[int]:
        """Return the lowest corner of a patch; a volume smaller than the patch is centred in it."""
        first = [min(0, (size - edge) // 2) for size, edge in zip(case.shape, patch, strict=True)]
        last = [max(size - edge, low) for size, edge, low in zip(case.shape, patch, first, strict=True)]
        centre = self._centre(case, forced, rng)
        if centre is None:
            return [int(rng.integers(low, high + 1)) for low, high in zip(first, last, strict=True)]
        return [min(max(int(c) - edge // 2, low), high) for c, edge, low, high in zip(centre, patch, first, last, strict=True)]

    def _centre(self, case: CachedCase, forced: bool, rng: Generator) -> NDArray[Any] | None:
        """Return a voxel of a class that the case has; with sparse annotations, of whatever is annotated; else ``None``."""
        names = [name for name in case.classes if len(case.locations(name))] if forced else []
        if names:
            places = case.locations(names[int(rng.integers(len(names)))])
        elif self.sparse:
            places = case.locations("")
        else:
            return None
        return places[int(rng.integers(len(places)))] if len(places) else None


class PatchLoader(EpochLoader):
    """The batches of one epoch after another, for this process.

    ``data.batch_size`` is the batch of all processes together; its last ``round(batch_size * foreground)`` patches must show
    foreground. Process ``r`` of ``w`` takes the patches ``r, r + w, ...`` of each batch.

    Args:
        dataset: The patches.
        cfg: The experiment.
    """

    def __init__(self, dataset: PatchDataset, cfg: Config) -> None:
        sampler = PositionSampler(cfg.data.batch_size, cfg.data.steps_per_epoch, cfg.data.foreground)
        super().__init__(dataset, sampler, workers=cfg.data.workers)


class PositionSampler(Sampler[list[Position]]):
    """The positions of each batch that fall to this process.

    Args:
        batch_size: Patches per step over all processes.
        steps: Steps per epoch.
        foreground: Share of the batch that must show foreground: nnU-Net's rule, the last ones.
    """

    def __init__(self, batch_size: int, steps: int, foreground: float) -> None:
        if batch_size < 1 or steps < 1 or not 0 <= foreground <= 1:
            values = f"batch_size={batch_size}, steps_per_epoch={steps}, foreground={foreground}"
            raise ConfigError(f"data: {values}; the first two must be 1 or more, the last a share from 0 to 1")
        self.batch_size = batch_size
        self.steps = steps
        self.unforced = round(batch_size * (1 - foreground))
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0)."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Position]]:
        rank, world = process()
        if self.batch_size % world:
            raise ConfigError(f"data.batch_size={self.batch_size}, the patches of all processes, does not divide among {world} of them")
        for step in range(self.steps):
            places = range(rank, self.batch_size, world)
            yield [(self.epoch, step * self.batch_size + place, place >= self.unforced) for place in places]

    def __len__(self) -> int:
        return self.steps


def read_box(array: NDArray[Any], start: Sequence[int], size: Sequence[int], *, fill: float) -> NDArray[Any]:
    """Return a copy of a box of ``array`` ``(C, *spatial)``, with ``fill`` where it reaches beyond the array.

    Args:
        array: May be memory-mapped; only the box is read.
        start: Lowest corner, which may be negative.
        size: Edges of the box.
        fill: Value beyond the array.
    """
    inside = [slice(max(0, s), max(0, s + n)) for s, n in zip(start, size, strict=True)]
    part = np.asarray(array[(slice(None), *inside)])
    if part.shape[1:] == tuple(size):
        return part.copy()
    box = np.full((len(array), *size), fill, dtype=array.dtype)
    box[(slice(None), *(slice(max(0, -s), max(0, -s) + n) for s, n in zip(start, part.shape[1:], strict=True)))] = part
    return box


def _fold(cfg: Config) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Return the training and the validation cases of the configured fold."""
    dataset = read_dataset(cfg.data)
    split, _ = find_split(dataset, cfg.data, folders=[Path(cfg.data.cache)] if cfg.data.cache else [])
    return pick(dataset.training, split.train), pick(dataset.training, split.val)
