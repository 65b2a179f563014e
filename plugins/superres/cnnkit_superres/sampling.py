"""SamplingAug: train on the patches that bicubic interpolation restores worst.

Wang et al., "SamplingAug: On the Importance of Patch Sampling Augmentation for Single Image Super-Resolution", BMVC 2021
(arXiv:2111.15185). The importance of a patch pair is the squared error between the HR patch and the enlarged LR patch. With the
integral image ``S`` of the error map, the score of any patch is four look-ups, ``S[b, r] - S[t, r] - S[b, l] + S[t, l]``, so that
every patch of a picture is scored at the price of one sum over its pixels. Of these a share is trained on: the worst ones (the
paper's greedy sampling), thinned so that they overlap less (non-maximum suppression), or the worst of darts thrown evenly. Drawing
by rank, with no patch left out, is an addition.

The importance is of the picture, not of the network: model, loss and the rest of the training stay as they are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from cnnkit_superres.data_config import InformativeConfig
from cnnkit_superres.resize import imresize

_DART_TRIES = 5  # Throws at a spot before the distance between darts is reduced,
_DART_SHRINK = 0.96  # by this factor; both as in the paper's code.


def error_map(hr: NDArray[np.uint8], lr: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the squared error, a mean over channels in units of the full range, of MATLAB's bicubic enlargement of ``lr``.

    Shapes:
        hr: ``(s H, s W, C)``. lr: ``(H, W, C)``. The result: ``(s H, s W)``.
    """
    enlarged = imresize(lr.astype(np.float32) / 255, hr.shape[:2]).clip(0, 1)
    error = enlarged - hr.astype(np.float32) / 255
    return np.einsum("hwc,hwc->hw", error, error, dtype=np.float64) / error.shape[2]


def integral_image(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the sums over all rectangles that begin at the upper left corner, in float64.

    Shapes:
        values: ``(H, W)``. The result: ``(H + 1, W + 1)``, with zeros in the first row and column.
    """
    sums = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    np.cumsum(values, axis=0, out=sums[1:, 1:])
    np.cumsum(sums[1:, 1:], axis=1, out=sums[1:, 1:])
    return sums


def patch_scores(errors: NDArray[Any], patch: int, *, stride: int = 1, shave: int = 0) -> NDArray[np.float64]:
    """Return the mean error of every patch.

    Args:
        errors: A value per HR pixel, see :func:`error_map`.
        patch: Side of a patch in HR pixels.
        stride: Step between patches: the scale, when they are to begin at an LR pixel.
        shave: Border of a patch, in HR pixels, that is left out of its mean.

    Shapes:
        errors: ``(H, W)``. The result: ``(1 + (H - patch) // stride, 1 + (W - patch) // stride)``; element ``(i, j)`` is the patch
        whose upper left pixel is ``(i stride, j stride)``.

    Raises:
        ValueError: If no patch fits, or the shaved border leaves nothing of it.
    """
    height, width = errors.shape
    side = patch - 2 * shave
    if patch > min(height, width) or side < 1 or stride < 1:
        raise ValueError(f"patches of {patch}, {shave} shaved, every {stride} pixels, do not fit {height} x {width} pixels")
    sums = integral_image(errors)
    rows = slice(shave, shave + height - patch + 1, stride)
    columns = slice(shave, shave + width - patch + 1, stride)
    lower = slice(rows.start + side, rows.stop + side, stride)
    right = slice(columns.start + side, columns.stop + side, stride)
    # A difference of large sums may come out below 0 by a rounding, where all errors are 0.
    return ((sums[lower, right] - sums[rows, right] - sums[lower, columns] + sums[rows, columns]) / side**2).clip(min=0)


def best(scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return the flat indices of the ``count`` highest scores, best first; of equal scores the first comes first."""
    flat = scores.ravel()
    if count >= flat.size:
        return np.argsort(-flat, kind="stable")
    threshold = np.partition(flat, flat.size - count)[flat.size - count]
    above, equal = np.flatnonzero(flat > threshold), np.flatnonzero(flat == threshold)
    chosen = np.sort(np.concatenate([above, equal[: count - above.size]]))
    return chosen[np.argsort(-flat[chosen], kind="stable")]


def suppress(order: NDArray[np.int64], shape: tuple[int, int], patch: int, overlap: float) -> NDArray[np.int64]:
    """Drop every patch that overlaps one before it too much: non-maximum suppression.

    Args:
        order: Flat indices of patches, best first.
        shape: Rows and columns of patches that the indices count.
        patch: Side of a patch in units of the distance between neighbouring patches.
        overlap: Largest accepted intersection over union.

    Returns:
        Those that are left, in their order; of any two the intersection over union is at most ``overlap``.
    """
    shared = patch - np.abs(np.arange(1 - patch, patch))
    intersection = np.outer(shared, shared)
    near = intersection / (2 * patch**2 - intersection) > overlap  # Of patches at an offset of up to patch - 1 each way.
    free = np.ones((shape[0] + 2 * patch, shape[1] + 2 * patch), dtype=bool)  # A frame spares the clipping at the borders.
    left = []
    for index in order.tolist():
        row, column = divmod(index, shape[1])
        if free[row + patch, column + patch]:
            left.append(index)
            free[row + 1 : row + 2 * patch, column + 1 : column + 2 * patch] &= ~near
    return np.array(left, dtype=np.int64)


def throw_darts(shape: tuple[int, int], count: int, rng: Generator) -> NDArray[np.int64]:
    """Return flat indices of ``count`` places that keep apart, as far as that many can.

    A place is thrown at random and kept if it is far enough from those before it. The distance is at first that of discs that
    fill the area, and shrinks whenever several throws in a row fail.

    Args:
        shape: Rows and columns of places.
        count: Places wanted; all of them if there are no more.
        rng: Source of randomness.
    """
    places = shape[0] * shape[1]
    if count >= places:
        return np.arange(places)
    kept = np.empty((count, 2))
    distance = 2 * math.sqrt(places / count / math.pi)
    for number in range(count):
        while True:
            thrown = rng.integers(shape, size=(_DART_TRIES, 2))
            apart = ((kept[None, :number] - thrown[:, None]) ** 2).sum(2).min(1, initial=math.inf)
            good = np.flatnonzero(apart >= max(distance, 1) ** 2)  # 1: no place twice.
            if good.size:
                kept[number] = thrown[good[0]]
                break
            distance *= _DART_SHRINK
    return (kept[:, 0] * shape[1] + kept[:, 1]).astype(np.int64)


class InformativePatches:
    """The patches of one picture, and a draw among them by importance.

    It keeps four bytes per patch that can be drawn.

    Args:
        hr: The picture.
        lr: The same, reduced.
        patch: Side of a patch in LR pixels.
        cfg: Which patches are drawn.
        rng: Source of the darts, for ``choice="darts"``.

    Shapes:
        hr: ``(s H, s W, C)`` uint8. lr: ``(H, W, C)`` uint8, ``H`` and ``W`` at least ``patch``.
    """

    def __init__(self, hr: NDArray[np.uint8], lr: NDArray[np.uint8], patch: int, cfg: InformativeConfig, *, rng: Generator) -> None:
        scale = hr.shape[0] // lr.shape[0]
        shave = cfg.shave if cfg.shave >= 0 else -(-(scale + 6) // scale)
        shave = min(shave, (patch - 1) // 2)  # A small patch keeps its middle.
        scores = patch_scores(error_map(hr, lr), scale * patch, stride=scale, shave=scale * shave)
        self._columns = scores.shape[1]
        self._by_rank = cfg.choice == "rank"
        self._order = self._choose(scores, patch, cfg, rng).astype(np.int32)

    @staticmethod
    def _choose(scores: NDArray[np.float64], patch: int, cfg: InformativeConfig, rng: Generator) -> NDArray[np.int64]:
        """Return the flat indices of the patches that can be drawn, best first."""
        shape = (scores.shape[0], scores.shape[1])
        if cfg.choice == "darts":
            darts = throw_darts(shape, cfg.darts, rng)
            return darts[best(scores.ravel()[darts], math.ceil(cfg.portion * darts.size))]
        order = best(scores, scores.size if cfg.choice == "rank" else math.ceil(cfg.portion * scores.size))
        return suppress(order, shape, patch, cfg.overlap) if cfg.choice == "nms" else order

    def __len__(self) -> int:
        return self._order.size

    @property
    def places(self) -> NDArray[np.int64]:
        """The upper left LR pixels ``(N, 2)`` of the patches that can be drawn, best first."""
        return np.stack(np.divmod(self._order.astype(np.int64), self._columns), axis=1)

    def draw(self, rng: Generator) -> tuple[int, int]:
        """Return the upper left LR pixel ``(row, column)`` of a patch.

        All of :attr:`places` are equally likely; with ``choice="rank"`` the probability of the patch at rank ``k`` of ``n`` is
        ``(2 (n - k) - 1) / n^2``.
        """
        count = self._order.size
        share = 1 - math.sqrt(1 - rng.random()) if self._by_rank else rng.random()
        number = min(int(count * share), count - 1)
        row, column = divmod(int(self._order[number]), self._columns)
        return row, column
