"""Training patches and pictures to validate on.

Every picture is decoded once and kept as bytes, as long as memory is granted for it. What is random about a patch (picture, place,
flips and turns, degradation) depends on the seed, the epoch and the patch's position alone, so that a training is resumed bit for
bit, and is the same with any number of workers and of processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cnnkit.engine.sampling import EachOnce, EpochLoader, Position, PositionSampler, item_rng
from cnnkit.errors import ConfigError, InputError
from numpy.random import Generator
from torch import Tensor
from torch.utils.data import Dataset

from cnnkit_superres.cache import PictureCache, Pixels, read_pair, source
from cnnkit_superres.colour import luminance
from cnnkit_superres.data_config import DataConfig, DegradeConfig
from cnnkit_superres.degrade import degrade
from cnnkit_superres.folders import Pair, find_all
from cnnkit_superres.sampling import InformativePatches


def train_loader(
    data: DataConfig, degradation: DegradeConfig | None = None, *, scale: int, in_chans: int = 3, seed: int = 0, progress: bool = True
) -> PatchLoader:
    """Read the training folders and return the batches of patches, ``{"lr": (B, C, p, p), "hr": (B, C, s p, s p)}`` in [0, 1].

    Args:
        data: Folders, patches and sampler; with several scales in it, each batch has one of them.
        degradation: How LR is made; bicubic by default.
        scale: Factor ``s`` between HR and LR, where ``data`` names none.
        in_chans: 3 for RGB, 1 for luminance.
        seed: Seed of everything random.
        progress: Show a bar while pictures are read, on a terminal.

    Raises:
        ConfigError: If no folder is named, or a folder is not understood.
        InputError: Naming every picture that cannot be trained on.
    """
    if not data.train:
        raise ConfigError("data.train names no folder; type --set data.train=[FOLDER], for example DIV2K/DIV2K_train_HR")
    if data.lr_folders and degradation is not None and degradation.blind:
        raise ConfigError(
            f"data.lr_folders names LR pictures, but degrade.kind={degradation.kind} makes its own; "
            "type --set degrade.kind=bicubic, or leave data.lr_folders empty"
        )
    datasets: dict[int, PatchDataset] = {}
    scales = data.scales or (scale,)
    share = replace(data, cache_mb=data.cache_mb // len(scales))
    for factor in scales:
        pairs = find_all(data.train, factor, lr_folders=data.lr_folders)
        datasets[factor] = PatchDataset(pairs, share, degradation, scale=factor, in_chans=in_chans, seed=seed, progress=progress)
    joint = JointPatches(datasets, batch_size=data.batch_size)
    return PatchLoader(datasets[scales[0]] if len(scales) == 1 else joint, data)


class PatchDataset(Dataset[dict[str, Tensor]]):
    """Patches of pictures, addressed by :data:`~cnnkit.engine.sampling.Position`.

    Args:
        pairs: The pictures, in files or in memory.
        data: Side of a patch, sampler, augmentation and memory.
        degradation: How LR is made; by default the LR pictures of the pairs, or bicubic reductions where they have none.
        scale: Factor ``s`` between HR and LR.
        in_chans: 3 for RGB, 1 for luminance.
        seed: Seed of everything random.
        progress: Show a bar while pictures are read, on a terminal.

    Shapes:
        An item is ``{"lr": (in_chans, p, p), "hr": (in_chans, s p, s p)}``, float32 in [0, 1].

    Raises:
        InputError: Naming every picture that cannot be read, is smaller than a patch, or does not fit its LR picture.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        data: DataConfig,
        degradation: DegradeConfig | None = None,
        *,
        scale: int,
        in_chans: int = 3,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        self.patch, self.augment = data.patch, data.augment
        self.degradation = degradation or DegradeConfig()
        self.scale, self.in_chans, self.seed = scale, in_chans, seed
        self._names = [source(pair.hr, pair.name) for pair in pairs]
        self._informative = data.informative if data.sampler == "informative" else None
        self.pictures = PictureCache(pairs, scale=scale, megabytes=data.cache_mb, inspect=self._inspect, progress=progress)
        self._places: list[InformativePatches | tuple[int, int]] = self.pictures.inspected

    def _inspect(self, index: int, hr: Pixels, lr: Pixels) -> InformativePatches | tuple[int, int]:
        """Return the patches to draw from: the informative ones, or the rows and columns that may begin a patch."""
        height, width = lr.shape[:2]
        if min(height, width) < self.patch:
            raise InputError(
                f"{self._names[index]}: {width} x {height} pixels of LR are smaller than a patch; "
                f"type --set data.patch={min(height, width)} or less, or take the picture out"
            )
        if self._informative is None:
            return height - self.patch + 1, width - self.patch + 1
        # Darts belong to the picture, so they are the same in every epoch.
        return InformativePatches(hr, lr, self.patch, self._informative, rng=np.random.default_rng((self.seed, index)))

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, position: Position) -> dict[str, Tensor]:
        epoch, index, picture = position
        rng = item_rng(self.seed, epoch, index)
        hr, lr = self.pictures[picture]
        places = self._places[picture]
        row, column = places.draw(rng) if isinstance(places, InformativePatches) else (int(rng.integers(count)) for count in places)
        if self.degradation.blind:
            pair = self._degraded(hr, row, column, rng)
        else:
            pair = {"lr": self._cut(lr, row, column, 1), "hr": self._cut(hr, row, column, self.scale)}
        return dihedral(pair, int(rng.integers(8))) if self.augment else pair

    def _cut(self, pixels: Pixels, row: int, column: int, scale: int) -> Tensor:
        rows, columns = (slice(scale * start, scale * (start + self.patch)) for start in (row, column))
        return to_tensor(pixels[rows, columns], self.in_chans)

    def _degraded(self, hr: Pixels, row: int, column: int, rng: Generator) -> dict[str, Tensor]:
        """Degrade the surroundings of a patch and cut it out of them: a blur reaches beyond the patch, and JPEG has no border there."""
        first = [max(0, start - self.degradation.margin) for start in (row, column)]
        last = [
            min(side // self.scale, start + self.patch + self.degradation.margin)
            for side, start in zip(hr.shape[:2], (row, column), strict=True)
        ]
        around = hr[tuple(slice(self.scale * a, self.scale * b) for a, b in zip(first, last, strict=True))]
        pixels = torch.from_numpy(np.ascontiguousarray(around.transpose(2, 0, 1))).float() / 255
        lr = (degrade(pixels, self.degradation, scale=self.scale, rng=rng) * 255).round().byte().permute(1, 2, 0).numpy()
        return {"lr": self._cut(lr, row - first[0], column - first[1], 1), "hr": self._cut(hr, row, column, self.scale)}


def dihedral(pair: dict[str, Tensor], which: int) -> dict[str, Tensor]:
    """Apply one of the eight flips and quarter turns to every picture ``(C, H, W)``: 0 changes nothing."""

    def turn(x: Tensor) -> Tensor:
        x = x.transpose(1, 2) if which & 1 else x
        return x.flip([axis for axis, bit in ((1, 2), (2, 4)) if which & bit]).contiguous()

    return {name: turn(x) for name, x in pair.items()}


def to_tensor(pixels: Pixels, in_chans: int) -> Tensor:
    """Return a picture as a network takes it: RGB (grey three times), or the Y of MATLAB's YCbCr, in [0, 1].

    Shapes:
        pixels: ``(H, W, C)``, C = 1 or 3; the result is ``(in_chans, H, W)`` float32.
    """
    unit = pixels.astype(np.float32) / np.float32(255)
    if unit.shape[2] == 1:
        unit = np.repeat(unit, 3, axis=2)
    if in_chans == 1:
        unit = luminance(unit)
    return torch.from_numpy(np.ascontiguousarray(unit.transpose(2, 0, 1), dtype=np.float32))


class PatchLoader(EpochLoader):
    """The batches of one epoch after another, for this process: ``{"lr": (B, C, p, p), "hr": (B, C, s p, s p)}``.

    Process ``r`` of ``w`` takes the patches ``r, r + w, ...`` of each batch.

    Args:
        dataset: The patches.
        data: Batch size, steps per epoch, workers.
    """

    def __init__(self, dataset: PatchDataset | JointPatches, data: DataConfig) -> None:
        sampler = PositionSampler(len(dataset), batch_size=data.batch_size, steps=data.steps_per_epoch, seed=dataset.seed)
        super().__init__(dataset, sampler, workers=data.workers)


class JointPatches(Dataset[dict[str, Tensor]]):
    """Patches for weights that serve several factors: those of one batch have the same factor, drawn for each batch.

    Args:
        datasets: The patches of each factor, of the same pictures.
        batch_size: Patches per step, of all processes together.
    """

    def __init__(self, datasets: Mapping[int, PatchDataset], *, batch_size: int) -> None:
        self.datasets, self.batch_size = tuple(datasets.values()), batch_size
        self.seed = self.datasets[0].seed

    def __len__(self) -> int:
        return len(self.datasets[0])

    def __getitem__(self, position: Position) -> dict[str, Tensor]:
        epoch, place, _ = position
        rng = np.random.default_rng((self.seed, epoch, place // self.batch_size, 0))  # A fourth number: the patches draw by three.
        return self.datasets[int(rng.integers(len(self.datasets)))][position]


class EvalPictures(EachOnce):
    """Whole pictures of benchmark folders, one after another: ``{"name", "dataset", "pixels", "reference"}``.

    ``pixels`` is LR ``(h, w, C)`` and ``reference`` HR ``(s h, s w, C)``, uint8; one is in memory at a time.

    Args:
        folders: Folders as :func:`cnnkit_superres.folders.find_pairs` reads them; or pairs that were found already.
        scale: Factor ``s``.
        lr_folders: Folder of the LR pictures for each of ``folders``, if it is not beside them.

    Raises:
        ConfigError, InputError: As :func:`~cnnkit_superres.folders.find_pairs` and, while pictures are read, :func:`read_pair`.
    """

    def __init__(self, folders: Sequence[Path | str | Pair], *, scale: int, lr_folders: Sequence[Path | str] = ()) -> None:
        given = [item for item in folders if isinstance(item, Pair)]
        found = find_all([item for item in folders if not isinstance(item, Pair)], scale, lr_folders=lr_folders)
        pairs = (*found, *given)

        def picture(number: int) -> dict[str, Any]:
            hr, lr = read_pair(pairs[number], scale)
            return {"name": pairs[number].name, "dataset": pairs[number].dataset, "pixels": lr, "reference": hr}

        super().__init__(len(pairs), picture)
