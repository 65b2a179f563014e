"""From a volume to its label map: crop, normalise, resample, windows, and back to the original grid as a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cnnkit_medseg.config import Config
from cnnkit_medseg.io import Volume
from cnnkit_medseg.preprocess import coarse_axis, crop_to_nonzero, normalise, resample_image
from cnnkit_medseg.restore import Argmax, Regions, restore_labels, restore_probabilities
from cnnkit_medseg.window import tiles


@dataclass(frozen=True)
class Segmentation:
    """Labels ``(X, Y, Z)`` on the volume's RAS grid, and probabilities ``(K, X, Y, Z)`` if asked for."""

    labels: NDArray[Any]
    probabilities: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Prepared:
    """A volume on the network's grid.

    Args:
        image: ``(C, *spatial)`` float32.
        box: Where the crop lies in the volume.
        nearest_axes: Axes along which the way back takes the nearest plane: the coarse one of an anisotropic volume.
        mask: Voxels of the crop that belong to the image, where ``mask_zscore`` says that the others do not.
    """

    image: NDArray[np.float32]
    box: tuple[slice, ...]
    nearest_axes: tuple[int, ...]
    mask: NDArray[np.bool_] | None = None


def prepare_volume(volume: Volume, cfg: Config) -> Prepared:
    """Bring a volume to the network's grid in nnU-Net's order: crop, normalise, resample."""
    settings = cfg.preprocess
    array, box, mask = crop_to_nonzero(volume.array)
    if not settings.crop_nonzero:
        full = np.zeros(volume.array.shape[1:], bool)
        full[box] = mask
        everything = tuple(slice(0, size) for size in volume.array.shape[1:])
        array, box, mask = volume.array, everything, full
    inside = mask if settings.mask_zscore else None
    image = normalise(array, settings.normalise, settings.intensity, inside)
    if settings.spacing is None:
        return Prepared(image, box, (), inside)
    coarse = coarse_axis(settings.spacing, volume.spacing)  # In the direction of the way back.
    image = resample_image(image, volume.spacing, settings.spacing, order=settings.order)
    return Prepared(image, box, () if coarse is None else (coarse,), inside)


def segment(volume: Volume, model: nn.Module, cfg: Config, *, probabilities: bool = False) -> Segmentation:
    """Segment a volume on its own grid.

    Without probabilities, windows, interpolation and decision are one stream: the logits of the whole volume never stand
    in memory, neither on the network's grid nor on the original one.

    Args:
        volume: The image.
        model: The network, on the device that it shall run on.
        cfg: The experiment, with the inference settings.
        probabilities: Return the class probabilities too, which takes the memory of classes x volume.
    """
    prepared = prepare_volume(volume, cfg)
    cropped = tuple(part.stop - part.start for part in prepared.box)
    shape, classes = prepared.image.shape[1:], len(cfg.foreground) if cfg.has_regions else len(cfg.output_values)
    decide = Regions(cfg.regions_class_order) if cfg.has_regions else Argmax(cfg.output_values)
    labels = np.zeros(volume.array.shape[1:], np.uint8 if max(cfg.output_values) < 255 else np.uint16)
    if not probabilities:
        stream = _stream(prepared, model, cfg)
        found = restore_labels(stream, shape, cropped, decide=decide, nearest_axes=prepared.nearest_axes)
        labels[prepared.box] = _inside(found, prepared)
        return Segmentation(_finished(labels, cfg))
    soft = np.zeros((classes, *labels.shape), np.float32)
    if not cfg.has_regions:
        soft[0] = 1  # Outside of the crop is background.
    stream = _stream(prepared, model, cfg)
    inside = restore_probabilities(
        stream, shape, cropped, activation="sigmoid" if cfg.has_regions else "softmax", nearest_axes=prepared.nearest_axes
    )
    soft[(slice(None), *prepared.box)] = inside
    flat = torch.from_numpy(inside.reshape(classes, -1))
    labels[prepared.box] = _inside(decide(flat.logit() if cfg.has_regions else flat).reshape(cropped), prepared)
    return Segmentation(_finished(labels, cfg), soft)


def _stream(prepared: Prepared, model: nn.Module, cfg: Config) -> Any:
    """Return the blocks of logits along the volume's first axes; a slice-wise network sees the axial slices."""
    settings = cfg.inference
    device = next(model.parameters()).device
    image = torch.from_numpy(prepared.image)
    window: Sequence[int] = cfg.patch_size
    predictor: Any = model
    if cfg.dims == 2:
        window = (*cfg.patch_size, 1)

        def predictor(batch: torch.Tensor) -> torch.Tensor:
            return model(batch.squeeze(-1)).unsqueeze(-1)

    return tiles(
        image,
        predictor,
        window,
        overlap=settings.overlap,
        grid=settings.grid,
        weighting=settings.weighting,
        batch_size=settings.batch_size,
        mirror_axes=tuple(range(cfg.dims)) if settings.mirror else (),
        device=device,
        recycle=True,
    )


def _inside(labels: NDArray[Any], prepared: Prepared) -> NDArray[Any]:
    """Set what lies outside of the image's mask to background: the network never learnt from there."""
    return labels if prepared.mask is None else np.where(prepared.mask, labels, labels.dtype.type(0))


def _finished(labels: NDArray[Any], cfg: Config) -> NDArray[Any]:
    return largest_components(labels) if cfg.inference.largest_component else labels


def largest_components(labels: NDArray[Any]) -> NDArray[Any]:
    """Keep the largest face-connected part of each label and set the others to background; returns a new array.

    Of parts of equal size the first in memory order stays.
    """
    from scipy import ndimage

    kept = np.zeros_like(labels)
    # One pass finds each label's bounding box, so that the work is done on small arrays.
    for value, box in enumerate(ndimage.find_objects(labels.astype(np.int32)), start=1):
        if box is None:
            continue
        inside = labels[box] == value
        parts, count = ndimage.label(inside)
        if count > 1:
            sizes = np.bincount(parts.ravel())
            sizes[0] = 0
            inside = parts == int(sizes.argmax())
        kept[box][inside] = value
    return kept
