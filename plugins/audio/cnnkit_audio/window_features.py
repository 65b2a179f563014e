"""Features of overlapping windows from one spectrogram: exactly what the front end gives on each window alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cnnkit_audio.frontends import FrontEnd

PIECE = 1_000
"""Frames that are computed at once, so that spectra stay in the processor's cache and memory does not grow with the recording."""


@torch.no_grad()
def window_features(front: FrontEnd, signal: Tensor, starts: Sequence[int], length: int) -> Tensor:
    """Return the features of windows of a recording, equal (up to rounding) to those of each window alone.

    A frame away from a window's ends depends on the samples around it alone, and is computed once for all windows that hold it. The few
    frames at the ends, where the front end pads, are computed from the window's own ends, in one batch. Windows that share no frames
    (starts that differ by a part of a hop, windows far apart), and all windows of a front end that looks at the whole clip
    (:attr:`FrontEnd.shift_invariant` is false), are computed one by one. No gradient is kept.

    Args:
        front: The front end.
        signal: The recording or a stretch of it, ``(1, 1, T)``.
        starts: First sample of each window, in any order.
        length: Samples of a window.

    Returns:
        ``(N, 1, bands, frames)``, in the order of ``starts``.

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
    result = signal.new_empty(len(starts), 1, front.bands, front.frames(length))
    share = _share(front, length)
    for rows in _aligned(starts, front.hop):
        own = [starts[row] for row in rows]
        if share is None or (max(own) - min(own)) // front.hop + share.total >= len(own) * share.total:
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


def _share(front: FrontEnd, length: int) -> _Share | None:
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


def _fill(result: Tensor, front: FrontEnd, signal: Tensor, rows: list[int], starts: list[int], share: _Share) -> None:
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


def _interior(front: FrontEnd, signal: Tensor, first: int, last: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the frames from ``first`` to ``last`` piece by piece, each with the number of its first frame; none depends on padding."""
    lead = max(0, -(-front.left // front.hop))
    for begin in range(first, last, PIECE):
        end = min(begin + PIECE, last)
        samples = max((end - 1) * front.hop + front.right, (begin - lead) * front.hop + front.least)
        if samples > signal.shape[-1]:  # A last piece so short that the front end would refuse it: take it with frames before it.
            begin = max(first, begin - PIECE)
            samples = (end - 1) * front.hop + front.right
        yield begin, front(signal[..., (begin - lead) * front.hop : samples])[..., lead : lead + end - begin]
