"""A recording of any length as groups of overlapping windows, in constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class WindowGroup:
    """Some neighbouring windows with the stretch of sound that they share.

    Args:
        signal: The stretch, ``(1, 1, T)``.
        starts: First sample of each window inside it.
        length: Samples of a window.
        offset: Where the stretch begins in the recording, in samples.
        missing: Samples of silence at its end, where the recording is shorter than a window.
    """

    signal: Tensor
    starts: tuple[int, ...]
    length: int
    offset: int
    missing: int = 0

    def stack(self) -> Tensor:
        """Return the windows one by one, ``(N, 1, length)``."""
        return torch.stack([self.signal[0, :, start : start + self.length] for start in self.starts])


def window_groups(blocks: Iterable[np.ndarray], length: int, hop: int, *, size: int = 16) -> Iterator[WindowGroup]:
    """Cut a recording into windows, ``size`` of them at a time.

    Windows start every ``hop`` samples; one more ends with the recording, so that its end is always heard. A recording that is
    shorter than a window is one window, filled up with silence.

    Args:
        blocks: The recording in order, arrays ``(1, n)``.
        length: Samples of a window.
        hop: Samples between the starts of two.
        size: Windows of a group; 1 gives each as soon as it was heard.
    """
    held, base, start, end = [np.zeros((1, 0), np.float32)], 0, 0, 0  # What is held lies from base to end; start is the next window's.
    for block in blocks:
        held.append(block)
        end += block.shape[1]
        while end >= start + (size - 1) * hop + length:
            held = [np.concatenate(held, axis=1)]
            yield _group(held[0], start - base, base, size, length, hop)
            start += size * hop
        base += _drop(held, max(0, min(start, end - length) - base))  # The last window of all may begin before the next regular one.
    whole = np.concatenate(held, axis=1)
    if end < length:
        if end:
            yield WindowGroup(torch.from_numpy(np.pad(whole, ((0, 0), (0, length - end))))[None], (0,), length, 0, length - end)
        return
    left = max(0, (end - start - length) // hop + 1)
    if left:
        yield _group(whole, start - base, base, left, length, hop)
    if start + (left - 1) * hop + length < end:
        yield _group(whole, end - length - base, base, 1, length, hop)


def _drop(held: list[np.ndarray], spent: int) -> int:
    """Remove the first ``spent`` samples and return that number."""
    left = spent
    while left >= held[0].shape[1] and len(held) > 1:
        left -= held.pop(0).shape[1]
    held[0] = held[0][:, left:]
    return spent


def _group(held: np.ndarray, first: int, base: int, count: int, length: int, hop: int) -> WindowGroup:
    signal = torch.from_numpy(np.ascontiguousarray(held[:, first : first + (count - 1) * hop + length]))[None]
    return WindowGroup(signal, tuple(range(0, count * hop, hop)), length, base + first)
