"""Order and randomness of training data as pure functions of the seed, the epoch and the position.

That is what makes a training resumable bit for bit, and equal on one process and on several. A task that keeps to
two rules gets both:

* its training loader takes its order from an :class:`EpochSampler`, with ``batch_size = global batch / processes``
  (:func:`process` says how many there are);
* what is random about an item (crops, flips, noise) is drawn from :func:`item_rng` and from nothing else. A dataset
  learns the epoch by a method ``set_epoch(epoch)``, which the core calls before each epoch.

Worker processes then need no seeding, and their number changes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from cnnkit.errors import ConfigError


def process() -> tuple[int, int]:
    """Return the rank of this process and the number of processes of the job: ``(0, 1)`` without a process group."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def item_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the random generator of one item in one epoch, the same in every process and worker."""
    return np.random.default_rng((seed, epoch, index))


def position_seed(*position: int) -> int:
    """Mix non-negative integers (seed, epoch, batch, rank ...) into one seed of 63 bits."""
    return int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_all(*position: int) -> None:
    """Seed torch (all devices), numpy and Python by a position (see :func:`position_seed`)."""
    seed = position_seed(*position)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


class EpochSampler(Sampler[int]):
    """An order of items that depends on the seed and the epoch alone, dealt out to the processes of the job.

    Process ``r`` of ``w`` takes the positions ``r, r + w, r + 2w, ...``, so that one process with batches of ``B``
    items and ``w`` processes with batches of ``B / w`` see the same items in each step.

    Args:
        length: Number of items in the dataset.
        seed: Seed of the order.
        samples: Items per epoch; by default each item once. More than ``length`` goes through further permutations.
        shuffle: Whether the order is random; if not, it is ``0, 1, 2, ...`` in every epoch.
        even: Repeat the first items until every process has as many, as gradient steps in step require. For
            validation and test give ``False``: no item is then seen twice.
    """

    def __init__(self, length: int, *, seed: int, samples: int | None = None, shuffle: bool = True, even: bool = True) -> None:
        if length < 1 or (samples is not None and samples < 1):
            raise ValueError(f"a sampler needs at least one item; got length={length}, samples={samples}")
        self.length = length
        self.seed = seed
        self.samples = length if samples is None else samples
        self.shuffle = shuffle
        self.even = even
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) whose order the next iteration takes."""
        self.epoch = epoch

    def order(self) -> np.ndarray:
        """Return the items of the epoch for all processes together, shape ``(samples,)``."""
        rounds = -(-self.samples // self.length)
        if self.shuffle:
            # One generator per round: asking for more samples leaves the earlier ones where they are.
            parts = [np.random.default_rng((self.seed, self.epoch, turn)).permutation(self.length) for turn in range(rounds)]
        else:
            parts = [np.arange(self.length)] * rounds
        return np.concatenate(parts)[: self.samples]

    def __iter__(self) -> Iterator[int]:
        rank, world = process()
        order = self.order()
        if self.even:
            order = np.resize(order, -(-self.samples // world) * world)
        return iter(order[rank::world].tolist())

    def __len__(self) -> int:
        rank, world = process()
        return -(-self.samples // world) if self.even else len(range(rank, self.samples, world))


Position = tuple[int, int, int]
"""Epoch, place in the epoch over all processes, and item: all that what is random about a sample may depend on."""


class PositionSampler(Sampler[list[Position]]):
    """The positions of each batch that fall to this process.

    Process ``r`` of ``w`` takes the places ``r, r + w, ...`` of each batch.

    Args:
        items: Number of items; they come equally often, in a new order each time.
        batch_size: Samples per step over all processes.
        seed: Seed of the order.
        steps: Steps per epoch; by default as many as it takes for every item to come once.
        weights: How often each item is to come, relative to the others, ``(items,)``; each is then drawn by itself.

    Raises:
        ConfigError: If the batch is empty, or while iterating if it does not divide among the processes.
    """

    def __init__(
        self, items: int, *, batch_size: int, seed: int, steps: int | None = None, weights: Sequence[float] | np.ndarray | None = None
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"data.batch_size={batch_size} is no batch; accepted: 1 or more")
        self.batch_size = batch_size
        self.steps = -(-items // batch_size) if steps is None else steps
        self._order = EpochSampler(items, seed=seed, samples=self.steps * batch_size)
        self._weights = None if weights is None else np.asarray(weights, np.float64) / np.sum(weights)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0)."""
        self._order.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[Position]]:
        rank, world = process()
        if self.batch_size % world:
            raise ConfigError(f"data.batch_size={self.batch_size}, the samples of all processes, does not divide among {world} of them")
        epoch, order = self._order.epoch, self._order.order()
        if self._weights is not None:
            order = item_rng(self._order.seed, epoch, 0).choice(self._weights.size, order.size, p=self._weights)
        for first in range(0, self.steps * self.batch_size, self.batch_size):
            yield [(epoch, place, int(order[place])) for place in range(first + rank, first + self.batch_size, world)]

    def __len__(self) -> int:
        return self.steps


class EpochLoader:
    """The batches of one epoch after another, for this process, from a dataset whose items depend on their position alone.

    Args:
        dataset: Answers the positions that the sampler yields.
        sampler: Yields the positions of each batch; has ``set_epoch``.
        workers: Processes that load; 0 for the training process itself.
        collate: Makes a batch of items; by default equal shapes are stacked.
    """

    def __init__(self, dataset: Any, sampler: Any, *, workers: int = 0, collate: Callable[[list[Any]], Any] | None = None) -> None:
        self.dataset, self.sampler = dataset, sampler
        self._loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
            collate_fn=collate,
            generator=torch.Generator(),  # Otherwise each epoch draws from the generator of dropout.
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) that the next iteration yields."""
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._loader)

    def __len__(self) -> int:
        return len(self.sampler)


class EachOnce:
    """Batches to measure on, each made when its turn comes and seen by one process alone: ``r`` of ``w`` takes ``r, r + w, ...``.

    Args:
        count: Number of batches over all processes.
        make: Makes a batch by its number.
    """

    def __init__(self, count: int, make: Callable[[int], Any]) -> None:
        self.count, self.make = count, make

    def _mine(self) -> range:
        rank, world = process()
        return range(rank, self.count, world)

    def __iter__(self) -> Iterator[Any]:
        return map(self.make, self._mine())

    def __len__(self) -> int:
        return len(self._mine())
