"""Windows of recordings: every sample is heard, and blocks change nothing."""

from __future__ import annotations

import numpy as np
import pytest
from cnnkit_audio.tagging.windows import WindowGroup, window_groups


def cut(signal: np.ndarray, sizes: int) -> list[np.ndarray]:
    return [signal[:, first : first + sizes] for first in range(0, signal.shape[1], sizes)]


def spread(groups: list[WindowGroup]) -> list[tuple[int, np.ndarray]]:
    """Each window's place in the recording, and its samples."""
    return [
        (group.offset + start, window.numpy()[0]) for group in groups for start, window in zip(group.starts, group.stack(), strict=True)
    ]


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize(("total", "length", "hop"), [(100, 10, 5), (103, 10, 5), (10, 10, 3), (57, 10, 10), (200, 10, 25), (11, 10, 50)])
def test_windows_lie_every_hop_and_one_at_the_end(total: int, length: int, hop: int, size: int, block: int) -> None:
    """Whatever blocks the recording comes in."""
    signal = np.arange(1.0, total + 1, dtype=np.float32)[None]
    found = spread(list(window_groups(cut(signal, block), length, hop, size=size)))
    regular = list(range(0, total - length + 1, hop))
    expected = regular if regular[-1] + length == total else [*regular, total - length]
    assert [start for start, _ in found] == expected
    for start, window in found:
        np.testing.assert_array_equal(window, signal[0, start : start + length])


def test_a_short_recording_is_one_padded_window() -> None:
    """And says how much of it is silence; nothing at all is no window."""
    (group,) = window_groups([np.ones((1, 3), np.float32)], 10, 5)
    assert group.missing == 7 and group.starts == (0,)
    np.testing.assert_array_equal(group.signal[0, 0].numpy(), [1] * 3 + [0] * 7)
    assert list(window_groups([], 10, 5)) == []


def test_little_is_held() -> None:
    """A group never spans more than its windows, and comes as soon as they are complete."""
    seen = 0

    def blocks():
        nonlocal seen
        for _ in range(100):
            seen += 10
            yield np.zeros((1, 10), np.float32)

    for group in window_groups(blocks(), 40, 20, size=3):
        assert group.signal.shape[2] <= 80 and seen - (group.offset + group.signal.shape[2]) <= 20
