"""What training does to features ``(B, 1, bands, frames)``: masks, shifts, warps, and sums of the same class."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from cnnkit.errors import ConfigError
from numpy.random import Generator
from torch import Tensor, nn


class SpecAugment(nn.Module):
    """Hide bands and stretches of time in training (Park et al. 2019), for each clip by itself; nothing in evaluation.

    A network places it behind its front end. Masks have from none up to the largest width, and lie anywhere inside the clip.

    Args:
        freq_mask: Largest number of bands of one mask.
        time_mask: Largest number of frames of one mask.
        freq_masks: Masks over bands.
        time_masks: Masks over frames.
        fill: What masked places hold: the clip's mean (``"mean"``), or a number, 0 for features that are normalised.
        generator: Source of the masks; torch's own, which the training seeds, if absent.
    """

    def __init__(
        self,
        *,
        freq_mask: int = 0,
        time_mask: int = 0,
        freq_masks: int = 1,
        time_masks: int = 1,
        fill: float | str = "mean",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if min(freq_mask, time_mask, freq_masks, time_masks) < 0 or (isinstance(fill, str) and fill != "mean"):
            raise ConfigError(
                f"freq_mask={freq_mask} x {freq_masks}, time_mask={time_mask} x {time_masks}, fill={fill}: "
                'accepted are 0 or more, and "mean" or a number to fill with'
            )
        self.freq_mask, self.time_mask, self.freq_masks, self.time_masks = freq_mask, time_mask, freq_masks, time_masks
        self.fill, self.generator = fill, generator

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape."""
        if not self.training:
            return x
        bands = self._hidden(len(x), x.shape[-2], self.freq_mask, self.freq_masks)
        frames = self._hidden(len(x), x.shape[-1], self.time_mask, self.time_masks)
        hidden = (bands[:, None, :, None] | frames[:, None, None, :]).to(x.device)
        fill = x.mean((1, 2, 3), keepdim=True) if self.fill == "mean" else x.new_tensor(self.fill)
        return torch.where(hidden, fill, x)

    def _hidden(self, batch: int, size: int, widest: int, masks: int) -> Tensor:
        """Return which places ``(B, size)`` are hidden."""
        draws = torch.rand(2, batch, masks, generator=self.generator)
        width = (draws[0] * (min(widest, size) + 1)).floor()
        first = (draws[1] * (size - width + 1)).floor()
        places = torch.arange(size)
        return ((places >= first[..., None]) & (places < (first + width)[..., None])).any(1)


def shift_features(x: Tensor, rng: Generator, *, bands: int = 0, frames: int | None = None) -> Tensor:
    """Shift each clip's features: in a circle over time, and up or down in pitch with the edge band repeated.

    Args:
        x: Features.
        rng: Source of shifts.
        bands: Largest shift over bands.
        frames: Largest shift over frames; any by default.
    """
    most = x.shape[-1] // 2 if frames is None else frames
    shifted = []
    for clip in x:
        clip = clip.roll(int(rng.integers(-most, most + 1)), -1)
        source = torch.arange(x.shape[-2], device=x.device) - int(rng.integers(-bands, bands + 1))
        shifted.append(clip[:, source.clamp(0, x.shape[-2] - 1)])
    return torch.stack(shifted)


def sum_same_class(x: Tensor, targets: Tensor, rng: Generator) -> Tensor:
    """Return the mean of each clip's features and those of another clip with the same labels, where there is one.

    The mean of two spectrograms is their sum on the scale of one.
    """
    labels = targets.detach().cpu().numpy()
    partners = np.arange(len(labels))
    for row, own in enumerate(labels):
        same = np.flatnonzero((labels == own).all(1) & (np.arange(len(labels)) != row))
        partners[row] = rng.choice(same) if len(same) else row
    return (x + x[torch.from_numpy(partners)]) / 2


def warp_bands(x: Tensor, rng: Generator, *, most: float = 0.1, knee: float = 0.8) -> Tensor:
    """Stretch or shrink the axis of the bands, as a longer or shorter vocal tract would (Jaitly and Hinton 2013).

    The lowest and the highest band stay; below the knee the warp is a factor, above it a line to the end.

    Args:
        x: Features.
        rng: Source of factors, one per clip, from ``1 - most`` to ``1 + most``.
        most: Largest relative change, below 1.
        knee: Where the factor ends, as a share of the axis.
    """
    if not 0 <= most < 1 or not 0 < knee < 1:
        raise ConfigError(f"most={most}, knee={knee}: accepted are 0 <= most < 1 and 0 < knee < 1")
    axis = np.linspace(0, 1, x.shape[-2])
    sources = [np.interp(axis, *_bend(factor, knee)) for factor in rng.uniform(1 - most, 1 + most, len(x))]
    return _at_bands(x, torch.from_numpy(np.stack(sources)).to(x) * (x.shape[-2] - 1))


def _bend(factor: float, knee: float) -> tuple[list[float], list[float]]:
    """Return the corners of the map from warped to original places."""
    corner = knee * min(factor, 1)
    return [0.0, corner, 1.0], [0.0, corner / factor, 1.0]


def _at_bands(x: Tensor, places: Tensor) -> Tensor:
    """Return features at fractional bands ``(B, bands)``, by straight lines between neighbours."""
    low = places.floor().clamp(0, x.shape[-2] - 1)
    share = (places - low)[:, None, :, None]
    lower = low.long()[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[-1])
    upper = (lower + 1).clamp_max(x.shape[-2] - 1)
    return x.gather(2, lower) * (1 - share) + x.gather(2, upper) * share


def stretch_features(x: Tensor, rng: Generator, *, most: float = 0.2) -> Tensor:
    """Stretch or shrink each clip's features in time; longer ones are cropped, shorter ones go on with their last frame.

    Args:
        x: Features.
        rng: Source of tempos, one per clip, from ``1 - most`` to ``1 + most``.
        most: Largest relative change, below 1.
    """
    if not 0 <= most < 1:
        raise ConfigError(f"most={most} is not accepted; accepted: 0 or more, below 1")
    frames, stretched = x.shape[-1], []
    for clip, tempo in zip(x, rng.uniform(1 - most, 1 + most, len(x)), strict=True):
        wanted = max(1, round(frames / tempo))
        new = F.interpolate(clip[None], size=(x.shape[-2], wanted), mode="bilinear", align_corners=False)[0]
        stretched.append(new[..., :frames] if wanted >= frames else F.pad(new, (0, frames - wanted), mode="replicate"))
    return torch.stack(stretched)
