"""nnU-Net's augmentations of training patches, deterministic under one random generator.

Isensee et al., "nnU-Net", Nature Methods 18, 2021: the list, order, probabilities and ranges are those of version 2. Written anew
for speed: rotation and scale are one interpolation that reads no more of the volume than it needs, and labels are resampled in one
pass whatever their number. ``bias_field``, the smooth shading of MR coils, is an addition.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cnnkit.layers.nd import LINEAR_MODE
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from cnnkit_medseg.config import AugmentConfig
from cnnkit_medseg.dataset import OUTSIDE
from cnnkit_medseg.preprocess import ANISOTROPY

_BLUR = (0.5, 1.0)
_FACTOR = (0.75, 1.25)
_ZOOM = (0.5, 1.0)
_GAMMA = (0.7, 1.5)
_SHADING = (0.1, 0.4)
_PER_CHANNEL = 0.5  # Share of the channels that blur and low resolution reach once they are drawn.


@dataclass(frozen=True, eq=False)
class Warp:
    """A rotation and scaling about the centre of a patch.

    Args:
        matrix: ``(dims, dims)``; takes a voxel's offset from the patch's centre to the offset that is read.
    """

    matrix: NDArray[np.float64]

    def source_shape(self, patch: Sequence[int]) -> tuple[int, ...]:
        """Return the size of the region, about the same centre, that a patch of this size is read from."""
        reach = np.abs(self.matrix) @ ((np.asarray(patch) - 1) / 2)
        # The same parity as the patch keeps both centres on one point; one voxel more is read for the interpolation.
        return tuple(max(int(n % 2), int(n + 2 * (np.ceil(r - (n - 1) / 2) + 1))) or 2 for n, r in zip(patch, reach, strict=True))

    def apply(self, image: Tensor, label: Tensor, patch: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Read a patch out of a region about its centre.

        Intensities are interpolated linearly, with 0 beyond the region. A voxel gets the label with the largest linear weight,
        and :data:`OUTSIDE` beyond the region.

        Shapes:
            image: ``(C, *region)`` float32. label: ``(1, *region)`` integers. The results: ``(C, *patch)``, ``(1, *patch)``.
        """
        places = self._places(image.shape[1:], patch)
        normalised = [(2 * place + 1) / size - 1 for place, size in zip(places, image.shape[1:], strict=True)]
        grid = torch.stack(normalised[::-1], dim=-1)  # grid_sample counts axes from the last.
        return F.grid_sample(image[None], grid[None], align_corners=False)[0], _sample_labels(label[0], places)[None]

    def _places(self, region: Sequence[int], patch: Sequence[int]) -> list[Tensor]:
        """Return, per axis of the region, the voxel coordinate that each voxel of the patch is read from, ``(*patch)``."""
        dims = len(patch)
        offsets = [torch.arange(n, dtype=torch.float32).sub_((n - 1) / 2) for n in patch]
        shaped = [offset.view([-1 if axis == own else 1 for axis in range(dims)]) for own, offset in enumerate(offsets)]
        return [
            sum((float(self.matrix[row, axis]) * shaped[axis] for axis in range(dims)), torch.full((1,) * dims, (region[row] - 1) / 2))
            for row in range(dims)
        ]


def draw_warp(patch: Sequence[int], cfg: AugmentConfig, rng: Generator) -> Warp | None:
    """Draw rotation and scale for a patch, or ``None`` where neither is drawn.

    Angles as in nnU-Net: within 30 degrees about each axis of a volume; within 180 degrees in the plane of a slice, 15 if its
    edges differ by more than 1.5; volumes whose longest edge is more than three times the shortest are treated as stacks of slices.
    """
    rotate, scale = rng.random() < cfg.rotate, rng.random() < cfg.scale
    if not (rotate or scale):
        return None
    dims, flat = len(patch), flat_axis(patch)
    plane = [axis for axis in range(dims) if axis != flat]
    matrix = np.eye(dims)
    if rotate and len(plane) == 2:
        edges = [patch[axis] for axis in plane]
        limit = 15 if flat is None and max(edges) > 1.5 * min(edges) else 180
        matrix = _rotation(dims, plane[0], plane[1], rng.uniform(-limit, limit))
    elif rotate:
        for first, second in ((1, 2), (0, 2), (0, 1)):
            matrix = _rotation(dims, first, second, rng.uniform(-30, 30)) @ matrix
    if scale:
        matrix[:, plane] *= rng.uniform(*cfg.scale_range)
    return Warp(matrix)


def flat_axis(patch: Sequence[int]) -> int | None:
    """Return the axis along which a patch of three dimensions is much shorter than along the others, or ``None``."""
    return int(np.argmin(patch)) if len(patch) == 3 and max(patch) > ANISOTROPY * min(patch) else None


def augment(image: Tensor, label: Tensor, cfg: AugmentConfig, rng: Generator) -> tuple[Tensor, Tensor]:
    """Augment one patch: rotation and scale about its centre, intensities, mirroring.

    The loader reads the region that a rotated patch needs, and so calls the parts; here corners without data become 0 and
    :data:`OUTSIDE`.

    Shapes:
        image: ``(C, *patch)`` float32. label: ``(1, *patch)`` integers. The results have the same shapes; inputs stay as they are.
    """
    patch = image.shape[1:]
    warp = draw_warp(patch, cfg, rng)
    if warp is not None:
        image, label = warp.apply(image, label, patch)
    image = augment_intensity(image, cfg, rng)
    return mirror(image, label, rng) if cfg.mirror else (image, label)


def augment_intensity(image: Tensor, cfg: AugmentConfig, rng: Generator) -> Tensor:
    """Apply the drawn changes of intensity in nnU-Net's order and return a new ``(C, *patch)`` tensor, or the image itself."""
    if rng.random() < cfg.bias_field:
        image = bias_field(image, rng)
    if rng.random() < cfg.noise:
        image = noise(image, cfg.noise_range, rng)
    if rng.random() < cfg.blur:
        image = blur(image, rng)
    if rng.random() < cfg.brightness:
        image = brightness(image, rng)
    if rng.random() < cfg.contrast:
        image = contrast(image, rng)
    if rng.random() < cfg.low_resolution:
        image = low_resolution(image, rng)
    if rng.random() < cfg.gamma_inverted:
        image = -gamma(-image, rng)
    if rng.random() < cfg.gamma:
        image = gamma(image, rng)
    return image


def noise(image: Tensor, deviation: tuple[float, float], rng: Generator) -> Tensor:
    """Add Gaussian noise whose standard deviation, one for all channels, is drawn from a range (nnU-Net's: 0 to 0.1)."""
    return image + rng.uniform(*deviation) * torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32))


def blur(image: Tensor, rng: Generator) -> Tensor:
    """Blur half of the channels, drawn by chance, by Gaussians of 0.5 to 1 voxel, another width along each axis."""
    from scipy.ndimage import gaussian_filter

    image = image.clone()
    for channel in _drawn_channels(image, rng):
        sigmas = rng.uniform(*_BLUR, size=channel.ndim)
        values = channel.numpy()
        gaussian_filter(values, sigmas, output=values, mode="mirror", truncate=3)
    return image


def brightness(image: Tensor, rng: Generator) -> Tensor:
    """Multiply each channel by a factor of 0.75 to 1.25."""
    return image * torch.tensor([_about_one(rng, *_FACTOR) for _ in image], dtype=image.dtype).view(-1, *[1] * (image.ndim - 1))


def contrast(image: Tensor, rng: Generator) -> Tensor:
    """Stretch each channel about its mean by a factor of 0.75 to 1.25, and clip it to the range that it had."""
    return torch.stack([_stretched(channel, _about_one(rng, *_FACTOR)) for channel in image])


def low_resolution(image: Tensor, rng: Generator) -> Tensor:
    """Sample half of the channels, drawn by chance, down to 0.5 to 1 of their size (nearest) and up again (linear)."""
    image, size = image.clone(), tuple(image.shape[1:])
    flat = flat_axis(size)
    for channel in _drawn_channels(image, rng):
        zoom = rng.uniform(*_ZOOM)
        small = [n if axis == flat else max(1, round(n * zoom)) for axis, n in enumerate(size)]
        reduced = F.interpolate(channel[None, None], small, mode="nearest-exact")
        channel.copy_(F.interpolate(reduced, size, mode=LINEAR_MODE[len(size)], align_corners=False)[0, 0])
    return image


def gamma(image: Tensor, rng: Generator) -> Tensor:
    """Raise each channel, scaled to 0 to 1, to a power of 0.7 to 1.5; its mean and standard deviation stay as they were."""
    return torch.stack([_powered(channel, _about_one(rng, *_GAMMA)) for channel in image])


def bias_field(image: Tensor, rng: Generator) -> Tensor:
    """Shade the patch by ``exp`` of a random cubic polynomial, whose largest value is 0.1 to 0.4, scaled to mean one.

    The field is the same for all channels. Intensities are shaded from the patch's lowest value up, as raw intensities would
    be if that were air.
    """
    size = image.shape[1:]
    axes = [np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in size]
    exponent: NDArray[Any] = rng.uniform(-1, 1, size=(4,) * len(size))
    exponent[np.indices(exponent.shape).sum(axis=0) > 3] = 0
    for axis in axes:  # Each turns the first axis, of coefficients, into a last one of values.
        exponent = np.polynomial.polynomial.polyval(axis, exponent)
    field = np.exp(exponent * (rng.uniform(*_SHADING) / np.abs(exponent).max()))
    low = image.amin(dim=tuple(range(1, image.ndim)), keepdim=True)
    return low + (image - low) * torch.from_numpy((field / field.mean()).astype(np.float32))


def mirror(image: Tensor, label: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
    """Flip image and label together along each spatial axis with a probability of one half."""
    axes = [axis for axis in range(1, image.ndim) if rng.random() < 0.5]
    return (image.flip(axes), label.flip(axes)) if axes else (image, label)


def _rotation(dims: int, first: int, second: int, degrees: float) -> NDArray[np.float64]:
    matrix, angle = np.eye(dims), np.deg2rad(degrees)
    matrix[[first, second], [first, second]] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


def _about_one(rng: Generator, low: float, high: float) -> float:
    """Draw a factor below one half of the time, and above one otherwise."""
    return float(rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high))


def _drawn_channels(image: Tensor, rng: Generator) -> list[Tensor]:
    return [channel for channel in image if rng.random() < _PER_CHANNEL]


def _stretched(channel: Tensor, factor: float) -> Tensor:
    mean, (low, high) = channel.mean(), torch.aminmax(channel)
    return (channel - mean).mul_(factor).add_(mean).clamp_(low, high)


def _powered(channel: Tensor, power: float) -> Tensor:
    low, high = torch.aminmax(channel)
    if high - low < 1e-7:
        return channel
    result = ((channel - low) / (high - low)).pow_(power)
    old_std, old_mean = torch.std_mean(channel)
    std, mean = torch.std_mean(result)
    return result.sub_(mean).mul_(old_std / std).add_(old_mean)


def _sample_labels(label: Tensor, places: Sequence[Tensor]) -> Tensor:
    """Return at each place the label whose voxels have the largest sum of linear weights there.

    Most places lie between voxels of one label, which a table of the 2^dims voxels around each corner tells at once; the
    weights are summed for the others alone.

    Shapes:
        label: ``(*region)``. places: ``(*patch)`` per axis, in voxels. The result: ``(*patch)``.
    """
    padded = F.pad(label, (2, 2) * label.ndim, value=OUTSIDE)  # Two, so that far places are not between labels.
    low, high = _corner_range(padded)
    inside = [place.add(2).clamp_(0, size - 1 - 1e-3) for place, size in zip(places, padded.shape, strict=True)]
    bases = [place.long() for place in inside]
    corner = _flat_index(bases, low.shape)
    result = low.flatten()[corner]
    mixed = result != high.flatten()[corner]
    if mixed.any():
        fractions = [(place - base)[mixed] for place, base in zip(inside, bases, strict=True)]
        result[mixed] = _heaviest(padded, [base[mixed] for base in bases], fractions)
    return result


def _corner_range(label: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest and highest label of the 2^dims voxels that follow each voxel; each axis is one shorter."""
    low = high = label
    for axis in range(label.ndim):
        n = label.shape[axis] - 1
        low = torch.minimum(low.narrow(axis, 0, n), low.narrow(axis, 1, n))
        high = torch.maximum(high.narrow(axis, 0, n), high.narrow(axis, 1, n))
    return low, high


def _heaviest(label: Tensor, bases: Sequence[Tensor], fractions: Sequence[Tensor]) -> Tensor:
    """Return the label of the largest summed weight among the 2^dims voxels around each of n places, ``(n,)``."""
    labels, weights = [], []
    for steps in itertools.product((0, 1), repeat=label.ndim):
        labels.append(label.flatten()[_flat_index([base + step for base, step in zip(bases, steps, strict=True)], label.shape)])
        weights.append(torch.stack([f if step else 1 - f for f, step in zip(fractions, steps, strict=True)]).prod(dim=0))
    best, chosen = torch.zeros_like(weights[0]), torch.zeros_like(labels[0])
    for own in labels:
        share = sum((weight * (other == own) for other, weight in zip(labels, weights, strict=True)), torch.zeros_like(best))
        better = share > best
        best, chosen = torch.where(better, share, best), torch.where(better, own, chosen)
    return chosen


def _flat_index(places: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    index = places[0]
    for place, size in zip(places[1:], shape[1:], strict=True):
        index = index * size + place
    return index
