"""From a volume to the network's input in nnU-Net's order: crop to what is not zero, normalise, resample.

Isensee et al., 2021, "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation". Normalising
comes before resampling, or resampled masks would no longer fit the image. Everything is float32, one channel at a time;
only the spline coefficients of one channel are float64, because they come from a recursive filter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from cnnkit.errors import ConfigError, InputError, unknown
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from cnnkit_medseg.config import Intensity

Box = tuple[slice, ...]
Image = NDArray[np.floating[Any]]

ANISOTROPY = 3.0  # Largest voxel side over smallest, above which the coarse axis is resampled on its own.
_SMALLEST_DEVIATION = 1e-8
_NNUNET_SCHEMES = {
    "ZScoreNormalization": "zscore",
    "CTNormalization": "ct",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "rescale01",
    "RGBTo01Normalization": "rgb01",
}
SCHEMES = tuple(_NNUNET_SCHEMES.values())


def canonical_scheme(name: str) -> str:
    """Return our name of a normalisation scheme, from ours or nnU-Net's (``"CTNormalization"``).

    Raises:
        ConfigError: If the name is unknown.
    """
    scheme = _NNUNET_SCHEMES.get(name, name)
    if scheme not in SCHEMES:
        raise ConfigError(unknown("normalisation", name, (*SCHEMES, *_NNUNET_SCHEMES)))
    return scheme


def crop_to_nonzero(array: NDArray[Any]) -> tuple[NDArray[Any], Box, NDArray[np.bool_]]:
    """Crop to the box around the voxels that are not zero in any channel.

    Args:
        array: ``(C, *spatial)``.

    Returns:
        The cropped array (a view), the box as one slice per spatial axis, and the mask in the box with its holes filled. A
        volume of zeros is left whole, with an empty mask.
    """
    mask = np.zeros(array.shape[1:], bool)
    for channel in array:
        mask |= channel != 0
    box = tuple(_extent(mask, axis) for axis in range(mask.ndim))
    # A hole never reaches the border of the box, so it may be filled after cropping.
    return array[(slice(None), *box)], box, ndimage.binary_fill_holes(mask[box])


def _extent(mask: NDArray[np.bool_], axis: int) -> slice:
    """Return the range of ``mask`` along an axis that holds true voxels, all of it if there are none."""
    hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
    return slice(int(hit[0]), int(hit[-1]) + 1) if len(hit) else slice(0, mask.shape[axis])


def normalise(
    array: NDArray[Any],
    schemes: Sequence[str],
    intensity: Sequence[Intensity] | Mapping[int, Intensity] = (),
    mask: NDArray[np.bool_] | None = None,
    use_mask_for_norm: bool | Sequence[bool] = True,
) -> NDArray[np.float32]:
    """Return the array with each channel on the scale of its scheme, as a new float32 array ``(C, *spatial)``.

    Args:
        array: ``(C, *spatial)``, finite.
        schemes: One name per channel, or one for all. ``"zscore"``: mean 0, deviation 1. ``"ct"``: clipped to the percentiles
            0.5 and 99.5 of the training set's foreground, then by its mean and deviation. ``"none"``. ``"rescale01"``: minimum
            to 0, maximum to 1. ``"rgb01"``: 0..255 to 0..1. nnU-Net's class names are understood too.
        intensity: Statistics per channel, needed by ``"ct"``.
        mask: ``(*spatial)``; where given, ``"zscore"`` counts and changes only the voxels inside.
        use_mask_for_norm: Whether the channels heed the mask.

    Raises:
        ConfigError: If a scheme is unknown, or their number does not fit.
        InputError: If ``"rgb01"`` meets values outside 0..255.
    """
    names = [canonical_scheme(name) for name in schemes] * (len(array) if len(schemes) == 1 else 1)
    if len(names) != len(array):
        raise ConfigError(f"{len(names)} normalisation schemes for {len(array)} channels")
    heeds = [use_mask_for_norm] * len(names) if isinstance(use_mask_for_norm, bool) else list(use_mask_for_norm)
    if "ct" in names and len(intensity) <= max(index for index, name in enumerate(names) if name == "ct"):
        raise ConfigError(f"the 'ct' scheme needs the training set's intensities per channel; {len(intensity)} given for {len(names)}")
    result = np.array(array, dtype=np.float32)
    for index, (channel, name, heed) in enumerate(zip(result, names, heeds, strict=True)):
        if name == "zscore":
            _zscore(channel, mask if heed else None)
        elif name == "ct":
            known = intensity[index]
            np.clip(channel, known.percentile_00_5, known.percentile_99_5, out=channel)
            channel -= known.mean
            channel /= max(known.std, _SMALLEST_DEVIATION)
        elif name == "rescale01":
            channel -= channel.min()
            channel /= max(channel.max(), _SMALLEST_DEVIATION)
        elif name == "rgb01":
            if channel.min() < 0 or channel.max() > 255:
                raise InputError(f"channel {index} has values {channel.min():g} to {channel.max():g}; 'rgb01' takes 0 to 255")
            channel /= 255
    return result


def _zscore(channel: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> None:
    """Bring the voxels inside the mask to mean 0 and deviation 1, in place."""
    inside = channel if mask is None else channel[mask]
    if not inside.size:
        return
    inside = (inside - inside.mean()) / max(inside.std(), _SMALLEST_DEVIATION)
    channel[... if mask is None else mask] = inside


def intensity_statistics(samples: ArrayLike) -> Intensity:
    """Return the statistics of one channel over foreground voxels of the training set, in the image's own unit.

    Raises:
        InputError: If there are no samples.
    """
    values = np.asarray(samples).ravel()
    if not values.size:
        raise InputError("no foreground voxel to take intensity statistics from: every label map holds background only")
    low, median, high = (float(value) for value in np.percentile(values, (0.5, 50.0, 99.5)))
    mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    return Intensity(mean, std, median, float(values.min()), float(values.max()), low, high)


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], new_spacing: Sequence[float]) -> tuple[int, ...]:
    """Return the size in voxels after a change of voxel size in mm, rounded (halves to even), at least 1."""
    if not len(shape) == len(spacing) == len(new_spacing):
        raise ConfigError(f"shape {tuple(shape)}, spacing {tuple(spacing)} and new spacing {tuple(new_spacing)} differ in length")
    return tuple(max(round(old / new * size), 1) for old, new, size in zip(spacing, new_spacing, shape, strict=True))


def coarse_axis(spacing: Sequence[float], new_spacing: Sequence[float]) -> int | None:
    """Return the axis that is resampled on its own with order 0: the coarse one of an anisotropic volume.

    The old spacing decides first, then the new. Two equally coarse axes are no reason to separate, nor is there a plane
    to separate in a picture of two axes.
    """
    if len(spacing) < 3:
        return None
    for candidate in (spacing, new_spacing):
        if max(candidate) / min(candidate) > ANISOTROPY:
            coarse = [axis for axis, side in enumerate(candidate) if side == max(candidate)]
            return coarse[0] if len(coarse) == 1 else None
    return None


def resample_image(
    array: NDArray[Any],
    spacing: Sequence[float],
    new_spacing: Sequence[float] | None = None,
    *,
    new_shape: Sequence[int] | None = None,
    order: int = 3,
    order_z: int = 0,
) -> NDArray[np.float32]:
    """Resample with splines, as nnU-Net does: half-pixel centres, edges repeated, values kept in each channel's range.

    Args:
        array: ``(C, *spatial)``.
        spacing: Voxel size in mm per spatial axis.
        new_spacing: Wanted voxel size in mm; by default what ``new_shape`` gives.
        new_shape: Wanted size in voxels; by default what ``new_spacing`` gives.
        order: Spline order; within the plane if the volume is anisotropic.
        order_z: Spline order along the coarse axis of an anisotropic volume.

    Returns:
        float32 ``(C, *new_shape)``; the same array if nothing changes.

    Raises:
        ConfigError: If neither a spacing nor a shape is given, or their lengths do not fit.
    """
    spacing, new_spacing, shape = _target(array.shape[1:], spacing, new_spacing, new_shape)
    if shape == array.shape[1:]:
        return array.astype(np.float32, copy=False)
    axis = coarse_axis(spacing, new_spacing)
    result = np.empty((len(array), *shape), np.float32)
    for channel, out in zip(array, result, strict=True):
        source = channel.astype(np.float32, copy=False)
        if axis is None:
            _zoom(source, shape, order, out)
        else:
            _zoom_separately(source, shape, axis, order, order_z, out)
    return result


def resample_labels(
    array: NDArray[Any],
    spacing: Sequence[float],
    new_spacing: Sequence[float] | None = None,
    *,
    new_shape: Sequence[int] | None = None,
) -> NDArray[Any]:
    """Resample a label map: each label as a mask, linearly; the label whose mask is one half or more wins.

    That is nnU-Net's way with order 1: the coarse axis of an anisotropic volume takes the nearest voxel; of two labels with one
    half each the larger wins, and where none reaches one half there is background (0). Arguments and
    errors are those of :func:`resample_image`; ``array`` is ``(C, *spatial)`` of integers and keeps its data type.
    """
    spacing, new_spacing, shape = _target(array.shape[1:], spacing, new_spacing, new_shape)
    if shape == array.shape[1:]:
        return array
    axis = coarse_axis(spacing, new_spacing)
    result = np.zeros((len(array), *shape), array.dtype)
    share = np.empty(shape, np.float32)
    for channel, out in zip(array, result, strict=True):
        for label in np.unique(channel):
            mask = (channel == label).astype(np.float32)
            if axis is None:
                _zoom(mask, shape, 1, share)
            else:
                _zoom_separately(mask, shape, axis, 1, 0, share)
            out[share >= 0.5] = label
    return result


def _target(
    old: Sequence[int], spacing: Sequence[float], new_spacing: Sequence[float] | None, new_shape: Sequence[int] | None
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[int, ...]]:
    """Return old spacing, new spacing and new shape, the missing one of the last two computed."""
    if new_spacing is None and new_shape is None:
        raise ConfigError("resampling needs new_spacing or new_shape")
    if len(spacing) != len(old) or len(new_spacing or new_shape or ()) != len(old):
        raise ConfigError(f"resampling {len(old)} spatial axes takes as many numbers for the spacing and the new spacing or shape")
    if new_spacing is None:
        new_spacing = [side * size / new for side, size, new in zip(spacing, old, new_shape or (), strict=True)]
    shape = tuple(int(size) for size in new_shape) if new_shape is not None else resampled_shape(old, spacing, new_spacing)
    return tuple(spacing), tuple(new_spacing), shape


def _zoom(source: Image, shape: Sequence[int], order: int, out: Image) -> None:
    """Resample one array into ``out`` and keep it in the range of the source, for splines overshoot."""
    if source.shape == tuple(shape):
        out[...] = source
        return
    factors = [new / old for new, old in zip(shape, source.shape, strict=True)]
    ndimage.zoom(source, factors, output=out, order=order, mode="nearest", grid_mode=True)
    if order > 1:
        np.clip(out, source.min(), source.max(), out=out)


def _zoom_separately(source: Image, shape: Sequence[int], axis: int, order: int, order_z: int, out: Image) -> None:
    """Resample every plane across ``axis`` with ``order``, then along ``axis`` with ``order_z``."""
    planes = np.moveaxis(source, axis, 0)
    flat = tuple(size for index, size in enumerate(shape) if index != axis)
    target = np.moveaxis(out, axis, 0)
    if order_z == 0:  # Each plane of the result is a copy: nothing but the result is stored.
        where = (np.arange(shape[axis]) + 0.5) * (len(planes) / shape[axis]) - 0.5
        nearest = np.clip(np.floor(where + 0.5), 0, len(planes) - 1).astype(int)
        plane = np.empty(flat, np.float32)
        for index in np.unique(nearest):
            _zoom(planes[index], flat, order, plane)
            target[nearest == index] = plane
        return
    between = np.empty((len(planes), *flat), np.float32)
    for plane, resampled in zip(planes, between, strict=True):
        _zoom(plane, flat, order, resampled)
    resampled = np.empty((shape[axis], *flat), np.float32)
    _zoom(between, resampled.shape, order_z, resampled)
    target[...] = resampled
