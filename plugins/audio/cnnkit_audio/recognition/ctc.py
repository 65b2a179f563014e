"""From the scores of frames to units: connectionist temporal classification (Graves et al. 2006), read, searched and aligned."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

NEVER = -np.inf


def greedy(log_probs: np.ndarray, *, blank: int = 0) -> list[int]:
    """Return the units of the best path: the best of each frame, repetitions joined, blanks dropped.

    Args:
        log_probs: ``(N, units)``.
        blank: Number of the blank.
    """
    best = log_probs.argmax(-1)
    changed = np.concatenate(([True], best[1:] != best[:-1])) if len(best) else np.zeros(0, bool)
    return best[changed & (best != blank)].tolist()


def prefix_beam(log_probs: np.ndarray, beam: int, *, blank: int = 0) -> list[tuple[tuple[int, ...], float]]:
    """Search for the sequences of units with the greatest probability over all their paths (Hannun et al. 2014).

    A prefix keeps the probability of its paths that end in a blank apart from that of the others, because only after a blank a
    repeated unit is a new one.

    Args:
        log_probs: ``(N, units)``, natural logarithms.
        beam: Prefixes that are kept from frame to frame.
        blank: Number of the blank.

    Returns:
        The prefixes that are left, each with its logarithm, best first.
    """
    beams: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, NEVER)}
    for frame in log_probs:
        units = [unit for unit in np.argsort(-frame, kind="stable")[: beam + 1].tolist() if unit != blank]
        grown: dict[tuple[int, ...], tuple[float, float]] = {}

        def add(prefix: tuple[int, ...], empty: float, full: float, grown: dict[tuple[int, ...], tuple[float, float]] = grown) -> None:
            before = grown.get(prefix, (NEVER, NEVER))
            grown[prefix] = (float(np.logaddexp(before[0], empty)), float(np.logaddexp(before[1], full)))

        for prefix, (empty, full) in beams.items():
            both = float(np.logaddexp(empty, full))
            add(prefix, both + frame[blank], full + frame[prefix[-1]] if prefix else NEVER)
            for unit in units:
                again = bool(prefix) and prefix[-1] == unit
                add((*prefix, unit), NEVER, (empty if again else both) + frame[unit])
        possible = [item for item in grown.items() if max(item[1]) > NEVER]
        ranked = sorted(possible, key=lambda item: -np.logaddexp(*item[1]))
        beams = dict(ranked[:beam])
    return [(prefix, float(np.logaddexp(*scores))) for prefix, scores in beams.items()]


def align(log_probs: np.ndarray, units: Sequence[int], *, blank: int = 0) -> list[tuple[int, int]]:
    """Return the frames of each unit on the most probable path that spells ``units``.

    Args:
        log_probs: ``(N, all units)``.
        units: The units in their order.
        blank: Number of the blank.

    Returns:
        First frame, and the one after the last, of each unit.

    Raises:
        ValueError: If there are too few frames for the units.
    """
    wanted = len(units) + sum(one == other for one, other in pairwise(units))
    if wanted > len(log_probs):
        raise ValueError(f"{len(log_probs)} frames cannot spell {len(units)} units, which take {wanted}")
    if not units:
        return []
    states = np.full(2 * len(units) + 1, blank)
    states[1::2] = units
    skips = np.zeros(len(states), bool)
    skips[3::2] = states[3::2] != states[1:-2:2]  # From unit to unit without a blank, unless they are equal.
    scores = np.full(len(states), NEVER)
    scores[:2] = log_probs[0, states[:2]]
    steps = np.zeros((len(log_probs), len(states)), np.int8)
    for time in range(1, len(log_probs)):
        moves = np.full((3, len(states)), NEVER)
        moves[0], moves[1, 1:] = scores, scores[:-1]
        moves[2, 2:] = np.where(skips[2:], scores[:-2], NEVER)
        steps[time] = moves.argmax(0)
        scores = moves.max(0) + log_probs[time, states]
    state = len(states) - 1 if scores[-1] > scores[-2] else len(states) - 2
    path = np.empty(len(log_probs), np.int64)
    for time in range(len(log_probs) - 1, -1, -1):
        path[time] = state
        state -= steps[time, state]
    frames = [np.flatnonzero(path == 2 * number + 1) for number in range(len(units))]
    return [(int(found[0]), int(found[-1]) + 1) for found in frames]
