"""How far a network looks: the exact receptive field, found by following a NaN through it.

Pixels that are no numbers are put into a random picture. Whatever is computed from them is no number either, so those in the output
mark, to the pixel, what depends on them. The copy that is probed works in double precision and without cuDNN, so that no convolution
mixes neighbours on its way (Winograd, FFT; oneDNN has none in double precision). Weights play no part, for zero times NaN is NaN: a
branch that starts at zero counts.

Two facts follow, and tiles that respect both give the pixels of the whole picture:

* the **halo**: how much of its surroundings a tile must see;
* the **period**: windows, strides and pixel shuffles tie the arithmetic to positions in the picture. A tile that starts at a multiple of
  the period is divided in the same way as the whole picture is. It is the smallest crop of the picture that changes nothing further
  inside, in marks and in values.

A NaN goes through additions, products, convolutions, norms, softmax, pooling (the maximum too) and every activation of
``torch.nn``. It gets lost in ``torch.where`` by a condition, in comparisons and casts to integers or booleans, in ``masked_fill``,
``sign``, ``fmax``, ``fmin``, ``nan_to_num``, ``nanmean``, ``nan ** 0`` and in the indices of ``topk`` or ``argmax``; such a step usually
lies beside one that keeps it. The comparison of values notices what is left, and a network whose output keeps no NaN at all counts as
unbounded. So does masked attention over the whole picture, for a mask that is added to logits hides nothing from a NaN.
"""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from cnnkit_superres.models._base import SuperResolver

LENGTHS = (512, 1024)
"""Lengths of the probed strips, in pixels of the small picture. The first shows taps that lie far apart, with nothing between them;
the last bounds the halos that are found: beyond 500 pixels little is left to tile."""
STRIP = 8
"""Least width of the strips: what a network depends on along one axis is seen on a strip, and strips are quick."""
PERIODS = sorted(range(1, 65), key=lambda period: (period // (period & -period), period))
"""Periods in units of the size multiple, so ordered that the first that holds is the smallest: 1, 2, 4 ... 64, 3, 6 ... 48, 5 ..."""
TOLERANCE = 1e-9
AXES = (3, 2)


@dataclass(frozen=True)
class Reach:
    """What a tile must respect to give the pixels of the whole picture, in pixels of the small picture.

    Args:
        halo: Surroundings that a tile must see at each side, a multiple of the period.
        period: Tiles, with and without their surroundings, begin at multiples of it.
    """

    halo: int
    period: int


_known: WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], Reach | None]] = WeakKeyDictionary()


def reach(model: SuperResolver) -> Reach | None:
    """Return halo and period of a network, or ``None`` if its tiles can never equal the whole picture.

    That is so for global pooling and global attention, for positions that are learned for the whole picture, for circular padding, and
    beyond a halo of about 500 pixels. The network is not changed and the global random state is not touched; the answer is
    remembered until the network is built differently.

    Args:
        model: The network, on any device. It is probed as a copy in double precision and evaluation mode.
    """
    signature = _signature(model)
    if model not in _known or _known[model][0] != signature:
        _known[model] = (signature, _reach(model))
    return _known[model][1]


def receptive_radius(model: SuperResolver) -> int | None:
    """Return how many pixels away, along an axis, the farthest input pixel lies that an output pixel depends on.

    Distances count in pixels of the small picture, so 0 is a network that enlarges every pixel by itself. Where windows or strides make
    them depend on the position, it is the largest.

    Args:
        model: The network.

    Returns:
        The radius, or ``None`` where :func:`reach` is ``None``.
    """
    found = reach(model)
    if found is None:
        return None
    if found.period == 1:
        return found.halo
    probe = _Probe(model)
    length = probe.length(2 * found.halo + 4 * found.period)
    starts = range(probe.middle(length, found.period), length)[: found.period]
    return max(max(probe.extent(axis, length, start, start + 1) or (0, 0)) for axis in AXES for start in starts)


def _signature(model: SuperResolver) -> tuple[object, ...]:
    """Return what the receptive field follows from: the scale, the modules, and the shapes of the weights."""
    modules = tuple((name, type(module)) for name, module in model.named_modules())
    return model.scale, modules, tuple(tuple(tensor.shape) for tensor in itertools.chain(model.parameters(), model.buffers()))


def _reach(model: SuperResolver) -> Reach | None:
    probe = _Probe(model)
    if probe.square:
        return None
    extents = [probe.grown(axis) for axis in AXES]
    bounded = [extent for extent in extents if extent is not None]
    if len(bounded) < len(AXES):
        return None
    margin = max(bounded)
    period = next((probe.multiple * k for k in PERIODS if all(probe.repeats(axis, probe.multiple * k, margin) for axis in AXES)), None)
    if period is None:
        return None
    if period > probe.multiple:
        length = probe.length(2 * margin + 6 * period)
        start = probe.middle(length, period)
        margin = max(max(probe.extent(axis, length, start, start + period) or (length, 0)) for axis in AXES)
    return Reach(halo=math.ceil(margin / period) * period, period=period)


class _Probe:
    """A copy of the network that is asked which columns, or rows, of its output depend on which of its input."""

    def __init__(self, model: SuperResolver) -> None:
        first = next(itertools.chain(model.parameters(), model.buffers()), torch.empty(0))
        self.device = first.device if first.device.type == "cuda" else torch.device("cpu")
        self.net = copy.deepcopy(model).to(self.device, torch.float64).eval()
        self.colours, self.scale, self.multiple = model.in_chans, model.scale, model.size_multiple
        self.square = bool(getattr(model, "square", False))
        self.across = self.length(max(STRIP, int(getattr(model, "minimum", 1))))

    def length(self, wanted: int) -> int:
        """Return ``wanted``, enlarged to a size that the network takes without padding."""
        return math.ceil(wanted / self.multiple) * self.multiple

    def middle(self, length: int, period: int) -> int:
        """Return the multiple of ``period`` that lies in the middle."""
        return (length - period) // 2 // period * period

    def grown(self, axis: int) -> int | None:
        """Return how far a block of one size multiple is seen, on the first strip that shows the whole of it."""
        for wanted in LENGTHS:
            length = self.length(max(wanted, 4 * self.across))
            start = self.middle(length, self.multiple)
            extent = self.extent(axis, length, start, start + self.multiple)
            if extent is not None:
                return max(extent)
        return None

    def extent(self, axis: int, length: int, start: int, stop: int) -> tuple[int, int] | None:
        """Return how far before and after the columns from ``start`` to ``stop`` the output depends on them, ``None`` if to the border."""
        marks = self._marked(self._run(axis, self._picture(length, start, stop)))
        (seen,) = marks.nonzero(as_tuple=True)
        if not len(seen) or marks[0] or marks[-1]:
            return None
        return max(start - int(seen[0]), 0), max(int(seen[-1]) - stop + 1, 0)

    def repeats(self, axis: int, period: int, margin: int) -> bool:
        """Tell whether the result away from a cut stays what it was: ``period`` columns less at the beginning, or one multiple at the end.

        One column of the picture is no number: a network whose windows fall differently marks other columns, whatever its weights.
        """
        margin += period
        length = self.length(4 * margin + 2 * period + 2 * self.across)
        picture = self._picture(length, length // 2, length // 2 + 1)
        whole = self._run(axis, picture)
        away = margin * self.scale
        later = self._run(axis, picture[..., period:])
        if not _equal(later[..., away:], whole[..., period * self.scale + away :]):
            return False
        earlier = self._run(axis, picture[..., : length - self.multiple])
        return _equal(earlier[..., :-away], whole[..., : earlier.shape[-1] - away])

    def _picture(self, length: int, start: int, stop: int) -> Tensor:
        """Return a random picture, long along the last axis, with columns of NaN."""
        generator = torch.Generator().manual_seed(0)
        picture = torch.rand(1, self.colours, self.across, length, generator=generator, dtype=torch.float64)
        picture[..., start:stop] = math.nan
        return picture.to(self.device)

    def _run(self, axis: int, picture: Tensor) -> Tensor:
        """Return the network's answer, with the probed axis last again."""
        devices = [self.device] if self.device.type == "cuda" else []
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices),  # Some networks draw noise.
            torch.backends.cudnn.flags(enabled=False),
        ):
            return self.net(picture.transpose(axis, 3).contiguous()).transpose(axis, 3)

    def _marked(self, output: Tensor) -> Tensor:
        """Return for each column of the small picture whether any output pixel of it is no number."""
        return output.isnan().flatten(0, 2).any(0).view(-1, self.scale).any(1)


def _equal(one: Tensor, other: Tensor) -> bool:
    """Tell whether two results have the same marks and, elsewhere, the same values."""
    if not torch.equal(one.isnan(), other.isnan()):
        return False
    one, other = one.nan_to_num(), other.nan_to_num()
    return bool((one - other).abs().max() <= TOLERANCE * one.abs().max())
