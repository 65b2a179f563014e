"""IMDN's adaptive cropping (Hui et al., ACM MM 2019): a picture of any size in overlapping patches of a size that the network takes.

The picture is divided into equal parts, four in the paper, and each part gets a margin of its surroundings, such that all patches have one
size, a multiple of what the network wants. They go through the network as one batch, the margins are cut off, and the parts are put
together. No pixel is invented to fill the picture up to a multiple.

Without the margin a part would end at zeros where the picture goes on; a margin of the network's receptive radius hides that, and
the result is the whole picture's. IMDN's convolutions reach 27 pixels, so the paper's margin of 32 is enough for them. Its channel
attention is not local: it sees the statistics of a patch in place of the picture's, which moves the result everywhere, by a little: with
the published weights at most 7 of 255 levels on the pictures of Set5, and 0.02 dB of their PSNR. The convolutions of IMDN_AS, whose
features are a quarter as large, reach beyond 100 pixels: there the margin of 32 costs 0.3 dB against the reflection to a multiple of 4
that the network applies by itself (two photographs of its authors' test set).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from cnnkit.errors import ConfigError
from torch import Tensor

from cnnkit_superres.models._base import reflect_to_multiple


@dataclass(frozen=True)
class Part:
    """One of the parts of a side: its pixels are those from ``begin`` to ``end``, and its patch starts at ``start``."""

    begin: int
    end: int
    start: int


def divide(side: int, parts: int, *, overlap: int = 32, multiple: int = 1) -> tuple[int, list[Part]]:
    """Divide a side into parts and return the length that their patches have in common, and the parts.

    Args:
        side: Pixels, at least ``multiple``.
        parts: How many; a side that is no multiple gets two or more, for no single patch would cover it.
        overlap: Pixels of a patch beyond its part, where there are as many: towards the inside of the picture, fewer by what the
            multiple takes away.
        multiple: The length of a patch is a multiple of it.
    """
    parts = min(max(parts, 2 if side % multiple else 1), side)
    if parts == 1:
        return side, [Part(0, side, 0)]
    edges = [index * side // parts for index in range(parts + 1)]
    longest = -(-side // parts)
    length = (side // parts + overlap * min(parts - 1, 2)) // multiple * multiple
    length = min(max(length, -(-longest // multiple) * multiple), side // multiple * multiple)
    starts = [begin - (length - (end - begin)) // 2 for begin, end in itertools.pairwise(edges)]
    return length, [
        Part(begin, end, min(max(start, 0), side - length)) for (begin, end), start in zip(itertools.pairwise(edges), starts, strict=True)
    ]


def adaptive_crop(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    parts: int = 2,
    overlap: int = 32,
    multiple: int | None = None,
    at_once: int | None = None,
) -> Tensor:
    """Enlarge a picture in overlapping patches, all of one size.

    Args:
        model: Enlarges ``(B, C, h, w)`` by a whole factor.
        x: ``(B, C, H, W)``; a side that is shorter than ``multiple`` is extended by reflection.
        parts: Parts of each side.
        overlap: Pixels of a patch beyond its part; the network's receptive radius or more makes the result that of the whole picture.
        multiple: Patches have sides that are multiples of it; by default the network's ``size_multiple``, 1 if it has none.
        at_once: Patches in a batch; by default all, as in the paper. With 1, memory holds one patch and the result.

    Shapes:
        x: ``(B, C, H, W)``; the result is ``(B, C', scale * H, scale * W)``.

    Raises:
        ConfigError: If a number is too small.
    """
    multiple = int(getattr(model, "size_multiple", 1)) if multiple is None else multiple
    for name, value, least in (("parts", parts, 1), ("overlap", overlap, 0), ("multiple", multiple, 1), ("at_once", at_once, 1)):
        if value is not None and value < least:
            raise ConfigError(f"{name}={value} is too small; accepted: {least} or more")
    height, width = x.shape[2:]
    if min(height, width) < multiple:
        x = reflect_to_multiple(x, multiple)
    tall, rows = divide(x.shape[2], parts, overlap=overlap, multiple=multiple)
    wide, columns = divide(x.shape[3], parts, overlap=overlap, multiple=multiple)
    places = list(itertools.product(rows, columns))
    result, scale = x, 1
    for first in range(0, len(places), at_once or len(places)):
        group = places[first : first + (at_once or len(places))]
        batch = torch.cat([x[:, :, row.start : row.start + tall, column.start : column.start + wide] for row, column in group])
        enlarged = model(batch)
        if first == 0:
            scale = enlarged.shape[3] // wide
            result = enlarged.new_empty(x.shape[0], enlarged.shape[1], scale * x.shape[2], scale * x.shape[3])
        for (row, column), patch in zip(group, enlarged.chunk(len(group)), strict=True):
            inner = patch[..., _inside(row, scale), _inside(column, scale)]
            result[..., scale * row.begin : scale * row.end, scale * column.begin : scale * column.end] = inner
    return result[..., : scale * height, : scale * width]


def _inside(part: Part, scale: int) -> slice:
    """Return where in its enlarged patch a part lies."""
    return slice(scale * (part.begin - part.start), scale * (part.end - part.start))
