"""Training batches of structures whose sizes differ: bounded, and as many in every epoch."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np
from cnnkit.engine.sampling import Position, item_rng, process
from torch.utils.data import Sampler

EXCHANGES = 8
"""Attempts per structure to exchange it with one of another batch, before an epoch."""


class BoundedSampler(Sampler[list[Position]]):
    """The positions of each batch of this process, where sizes add up to a bound at most.

    A schedule needs as many steps in every epoch, so structures are packed once. An epoch exchanges random pairs of structures between
    batches wherever the bound allows it, and takes the batches in a random order: a function of seed and epoch alone. Every structure
    comes once an epoch; over several processes, whose batches are bounded each, the first batches come again until all have as many.

    Args:
        sizes: Of the structures, such as their edges.
        batch_size: Structures per step over all processes, at most.
        most: What the sizes in the batch of a process add up to, at most, unless one structure alone has more.
        seed: Of the order.
    """

    def __init__(self, sizes: Sequence[int], *, batch_size: int, most: int, seed: int) -> None:
        self.sizes = np.maximum(np.asarray(sizes, int), 1)
        self.batch_size, self.most, self.seed, self.epoch = batch_size, most, seed, 0
        self._packed: tuple[int, np.ndarray] = (0, np.zeros(0, int))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0)."""
        self.epoch = epoch

    def batches(self) -> list[list[int]]:
        """Return the batches of the epoch, of all processes."""
        rng = item_rng(self.seed, self.epoch, 0)
        batch_of = exchange(self._start(), self.sizes, self.most, rng)
        order = np.argsort(batch_of, kind="stable")
        groups = np.split(order, np.cumsum(np.bincount(batch_of))[:-1])
        return [groups[number].tolist() for number in rng.permutation(len(groups))]

    def _start(self) -> np.ndarray:
        """Return a batch for each structure, which no epoch changes."""
        world = process()[1]
        if self._packed[0] != world:
            self._packed = world, pack(self.sizes, max(self.batch_size // world, 1), self.most)
        return self._packed[1]

    def __iter__(self) -> Iterator[list[Position]]:
        rank, world = process()
        batches = self.batches()
        place = np.cumsum([0, *map(len, batches)]).tolist()
        for step in range(len(self)):
            number = (step * world + rank) % len(batches)
            yield [(self.epoch, place[number] + at, item) for at, item in enumerate(batches[number])]

    def __len__(self) -> int:
        return -(-(int(self._start().max()) + 1) // process()[1])


def pack(sizes: np.ndarray, count: int, most: int) -> np.ndarray:
    """Return a batch for each structure ``(N,)``: the largest first, each into the emptiest batch, or a new one where it does not fit.

    Args:
        sizes: 1 or more, ``(N,)``.
        count: Structures in a batch, at most.
        most: What their sizes add up to, at most, unless it is one alone.
    """
    needed = min(max(-(-len(sizes) // count), -(-int(np.minimum(sizes, most).sum()) // most)), len(sizes))
    batch_of, held = np.zeros(len(sizes), int), [0] * needed
    emptiest = [(0, number) for number in range(needed)]
    for item in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[item])
        if not emptiest or (emptiest[0][0] and emptiest[0][0] + size > most):
            heapq.heappush(emptiest, (0, len(held)))
            held.append(0)
        filled, number = heapq.heappop(emptiest)
        batch_of[item] = number
        held[number] += 1
        if held[number] < count:
            heapq.heappush(emptiest, (filled + size, number))
    return batch_of


def exchange(batch_of: np.ndarray, sizes: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Return batches ``(N,)`` after exchanging random pairs of structures wherever no batch outgrows ``most`` by it."""
    filled = np.bincount(batch_of, sizes).astype(int).tolist()
    batch, size = batch_of.tolist(), sizes.tolist()
    for one, other in rng.integers(len(size), size=(EXCHANGES * len(size), 2)).tolist():
        first, second, more = batch[one], batch[other], size[one] - size[other]
        if first != second and filled[second] + max(more, 0) <= most and filled[first] + max(-more, 0) <= most:
            batch[one], batch[other] = second, first
            filled[first] -= more
            filled[second] += more
    return np.asarray(batch)
