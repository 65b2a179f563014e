"""Overlapping windows of a recording share their spectrogram, and the first layers of a network: exactly what each window alone gives.

Convolutions move with the sound. Where windows overlap by a multiple of a layer's stride, a column of its map that looks at no padding is
the same in each window that holds it. Only the columns at a window's ends, as far as the layer looks, are its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cnnkit_audio.frontends import FrontEnd

PIECE = 1_000
"""Frames that are computed at once, so that spectra stay in the processor's cache and memory does not grow with the recording."""


@dataclass(frozen=True)
class Stem:
    """A front end and the first layers of a network behind it, as if they were one front end.

    Args:
        front: The front end.
        layers: Maps its features ``(B, 1, bands, frames)`` to ``(B, channels, rows, frames // stride)``.
        rest: Maps those to the network's vectors.
        channels: Channels of the maps.
        bands: Rows of the maps.
        stride: Frames of the front end for each column of the maps.
        reach: Column ``t`` depends on the frames from ``t * stride - reach`` up to ``(t + 1) * stride + reach``, exclusive.
    """

    front: FrontEnd
    layers: Callable[[Tensor], Tensor]
    rest: Callable[[Tensor], Tensor]
    channels: int
    bands: int
    stride: int
    reach: int

    @property
    def hop(self) -> int:
        """Samples between two columns."""
        return self.front.hop * self.stride

    @property
    def left(self) -> int:
        """Column ``t`` depends on the samples from ``t * hop - left`` on."""
        return self.front.left + self.reach * self.front.hop

    @property
    def right(self) -> int:
        """... and up to ``t * hop + right``, exclusive."""
        return self.front.right + (self.stride - 1 + self.reach) * self.front.hop

    @property
    def least(self) -> int:
        """Samples of one column."""
        return self.front.least + (self.stride - 1) * self.front.hop

    @property
    def shift_invariant(self) -> bool:
        """That of the front end."""
        return self.front.shift_invariant

    def frames(self, samples: int) -> int:
        """Return how many columns so many samples give."""
        return self.front.frames(samples) // self.stride

    def __call__(self, x: Tensor) -> Tensor:
        """Return the maps of waveforms ``(B, 1, T)``."""
        return self.layers(self.front(x))


Columns = FrontEnd | Stem
"""What windows can share."""


def best_stem(stems: Sequence[Stem], starts: Sequence[int], length: int) -> Stem:
    """Return the stem that saves most for these windows.

    Each goes a level deeper, and levels are taken to cost the same, as they do in networks that double their channels where they halve
    the resolution. A deeper stem shares more layers, but between fewer windows, and has more to compute again at their ends.

    Args:
        stems: From the front end alone to the deepest one.
        starts: First sample of each window.
        length: Samples of a window.
    """
    saved = [(depth + 1) * (1 - _cost(stem, starts, length)) for depth, stem in enumerate(stems)]
    return stems[saved.index(max(saved))]


def _cost(front: Columns, starts: Sequence[int], length: int) -> float:
    """Return the samples that go through the front end where windows share what they can, as a part of those of all windows."""
    share = _share(front, length)
    if share is None:
        return 1.0
    grids = [[starts[row] for row in rows] for rows in _aligned(starts, front.hop)]
    return sum(min(share.together(grid), len(grid) * length) for grid in grids) / (len(starts) * length)


@torch.no_grad()
def window_features(front: Columns, signal: Tensor, starts: Sequence[int], length: int) -> Tensor:
    """Return the features of windows of a recording, equal (up to rounding) to those of each window alone.

    A frame away from a window's ends depends on the samples around it alone, and is computed once for all windows that hold it. The few
    frames at the ends, where the front end pads, are computed from the window's own ends, in one batch. Windows that share no frames
    (starts that differ by a part of a hop, windows far apart), and all windows of a front end that looks at the whole clip
    (:attr:`FrontEnd.shift_invariant` is false), are computed one by one. No gradient is kept.

    Args:
        front: The front end, or a stem.
        signal: The recording or a stretch of it, ``(1, 1, T)``.
        starts: First sample of each window, in any order.
        length: Samples of a window.

    Returns:
        ``(N, channels, bands, frames)``, in the order of ``starts``; a front end has one channel.

    Raises:
        ValueError: If a window is not inside the signal.
        InputError: If a window is too short for the front end.
    """
    if signal.ndim != 3 or signal.shape[:2] != (1, 1):
        raise ValueError(f"signal has the shape {tuple(signal.shape)}; accepted: (1, 1, samples)")
    if any(start < 0 or start + length > signal.shape[-1] for start in starts):
        raise ValueError(
            f"windows of {length} samples at {list(starts)} do not all lie inside the {signal.shape[-1]} samples of the signal"
        )
    shape = (len(starts), front.frames(length), front.bands, front.channels)
    # Maps of convolutions lie in memory column by column, channels last, so that windows are copied in one piece.
    result = signal.new_empty(shape).permute(0, 3, 2, 1) if front.channels > 1 else signal.new_empty(shape[0], 1, shape[2], shape[1])
    share = _share(front, length)
    for rows in _aligned(starts, front.hop):
        own = [starts[row] for row in rows]
        if share is None or share.together(own) >= len(own) * length:
            for row, start in zip(rows, own, strict=True):
                result[row] = front(signal[..., start : start + length])[0]
        else:
            _fill(result, front, signal, rows, own, share)
    return result


@dataclass(frozen=True)
class _Share:
    """Which frames of a window can be shared: those from ``first`` to ``last``, exclusive.

    Args:
        length: Samples of a window.
        total: Frames of a window.
        first: Frames at its start that depend on padding.
        last: First frame at its end that does.
        end: Samples of the window's start, and of its end, that give the others.
    """

    length: int
    total: int
    first: int
    last: int
    end: int

    def together(self, starts: Sequence[int]) -> int:
        """Return the samples to look at for windows on one grid: all that they cover, and the ends of each once more."""
        return max(starts) - min(starts) + self.length + 2 * self.end * len(starts)


def _share(front: Columns, length: int) -> _Share | None:
    """Return what windows of this length can share; None if there is nothing."""
    if not front.shift_invariant or length < front.least:
        return None
    hop, total = front.hop, front.frames(length)
    first, last = max(0, -(-front.left // hop)), min(total, (length - front.right) // hop + 1)
    if last <= first:
        return None
    # The start must hold what its last frame depends on; the end likewise, and lie on the same grid of hops as the window.
    end = max((first - 1) * hop + front.right, length - (last * hop - front.left), front.least)
    end += (length - end) % hop
    return _Share(length, total, first, last, end) if end < length else None


def _aligned(starts: Sequence[int], hop: int) -> Iterator[list[int]]:
    """Yield the positions of the starts that lie on one grid of hops."""
    grids: dict[int, list[int]] = defaultdict(list)
    for row, start in enumerate(starts):
        grids[start % hop].append(row)
    yield from grids.values()


def _fill(result: Tensor, front: Columns, signal: Tensor, rows: list[int], starts: list[int], share: _Share) -> None:
    """Compute the windows of one grid into their rows."""
    origin, count = min(starts), share.last - share.first
    shifts = [(start - origin) // front.hop for start in starts]
    for begin, piece in _interior(front, signal[..., origin:], share.first, max(shifts) + share.last):
        for row, shift in zip(rows, shifts, strict=True):
            low, high = max(begin - shift, share.first), min(begin + piece.shape[-1] - shift, share.last)
            if low < high:
                result[row, ..., low:high] = piece[0, ..., low + shift - begin : high + shift - begin]
    if count == share.total:
        return
    ends = [start + share.length for start in starts]
    pieces = [signal[0, :, start : start + share.end] for start in starts] + [signal[0, :, end - share.end : end] for end in ends]
    edges = front(torch.stack(pieces))
    skipped = (share.length - share.end) // front.hop
    index = torch.tensor(rows, device=result.device)
    result[index, ..., : share.first] = edges[: len(rows), ..., : share.first]
    result[index, ..., share.last :] = edges[len(rows) :, ..., share.last - skipped :]


def _interior(front: Columns, signal: Tensor, first: int, last: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the frames from ``first`` to ``last`` piece by piece, each with the number of its first frame; none depends on padding."""
    lead, size = max(0, -(-front.left // front.hop)), max(1, PIECE // front.stride)
    for begin in range(first, last, size):
        end = min(begin + size, last)
        samples = max((end - 1) * front.hop + front.right, (begin - lead) * front.hop + front.least)
        if samples > signal.shape[-1]:  # A last piece so short that the front end would refuse it: take it with frames before it.
            begin = max(first, begin - size)
            samples = (end - 1) * front.hop + front.right
        yield begin, front(signal[..., (begin - lead) * front.hop : samples])[..., lead : lead + end - begin]
