"""What nnU-Net derives from the data: target spacing, normalisation, patch size, and the shape of the U-Net.

Isensee et al., "nnU-Net", Nature Methods 18, 2021; the rules are those of version 2 with its target of 8 GB. An experiment's
configuration leaves a field open by leaving it at its default, and :func:`complete` fills the open fields and no others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from cnnkit.errors import ConfigError

from cnnkit_medseg.config import Config, Intensity, PreprocessConfig, Scheme
from cnnkit_medseg.dataset import Dataset
from cnnkit_medseg.preprocess import ANISOTROPY

PLANNED = ("medseg/unet", "medseg/dynunet")
"""Networks whose stages are planned when ``network.args`` is empty."""

_SCHEMES: Mapping[str, Scheme] = {
    "ct": "ct",
    "nonorm": "none",
    "zscore": "zscore",
    "rescale_to_0_1": "rescale01",
    "rescale_0_1": "rescale01",  # nnU-Net's code and its documentation differ.
    "rgb_to_0_1": "rgb01",
}
_SHORTEST_EDGE = 4  # Of the lowest resolution, in voxels.
_BASE_FEATURES = 32
_MOST_FEATURES = {2: 512, 3: 320}
_START_VOXELS = {2: 2048**2, 3: 256**3}
# Voxels x features of all convolutions that fit into 8 GB with a batch of so many: nnU-Net's reference.
_REFERENCE_VOXELS = {2: 85_000_000, 3: 560_000_000}
_REFERENCE_BATCH = {2: 12, 3: 2}
_REFERENCE_GB = 8.0
_LEAST_BATCH = 2
_LARGEST_SHARE = 0.05  # Of the dataset's voxels in one batch.
_MASKED_BELOW = 0.75  # Median share of a volume that remains after cropping.


@dataclass(frozen=True)
class Fingerprint:
    """What the plan needs to know of the training cases.

    Args:
        spacings: Voxel size in mm per case, RAS axis order.
        shapes: Voxels per case after the crop to what is not zero.
        relative_sizes: Share of each volume that the crop kept.
        intensity: Statistics per channel over the foreground of all cases.
    """

    spacings: tuple[tuple[float, float, float], ...]
    shapes: tuple[tuple[int, int, int], ...]
    relative_sizes: tuple[float, ...]
    intensity: tuple[Intensity, ...] = ()


@dataclass(frozen=True)
class Topology:
    """The stages of a U-Net for one patch size.

    Args:
        patch_size: Divisible by the strides along each axis.
        strides: Per stage and axis, the first all one.
        kernel_sizes: Per stage and axis: 1 across an axis that is still coarse, else 3.
    """

    patch_size: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]

    @property
    def channels(self) -> tuple[int, ...]:
        """Features per stage: 32, doubling to 320 (512 in 2-D)."""
        return tuple(min(_MOST_FEATURES[len(self.patch_size)], _BASE_FEATURES * 2**stage) for stage in range(len(self.strides)))

    @property
    def divisor(self) -> tuple[int, ...]:
        """Product of the strides along each axis."""
        return tuple(int(np.prod(axis)) for axis in zip(*self.strides, strict=True))

    def network_args(self) -> dict[str, Any]:
        """Return the arguments of the network as plain lists, as they stand in a configuration."""
        lists = {"strides": self.strides, "kernel_sizes": self.kernel_sizes}
        return {"channels": list(self.channels), **{name: [list(stage) for stage in stages] for name, stages in lists.items()}}


def complete(cfg: Config, dataset: Dataset, fingerprint: Fingerprint | None = None, *, memory_gb: float = _REFERENCE_GB) -> Config:
    """Fill what the configuration leaves open: every field below that has its default value.

    ``labels``, ``regions_class_order``, ``ignore_label`` and ``channels`` come from the dataset's description;
    ``preprocess.normalise`` from the channels' names. With a fingerprint and ``plan`` also ``preprocess.spacing``, ``.mask_zscore``,
    ``.intensity``; and for the networks of :data:`PLANNED`, if ``network.args`` is empty, these, ``patch_size`` and
    ``data.batch_size``. Without one, what the data would decide stays as it is.

    Args:
        cfg: The experiment.
        dataset: Its dataset.
        fingerprint: Of the dataset's training cases, where :func:`needs_fingerprint` asks for one.
        memory_gb: GPU memory that the patch size is planned for.

    Raises:
        ConfigError: If neither the dataset nor the configuration names the labels, or a given patch size does not fit the network.
    """
    default = Config()
    changes: dict[str, Any] = {}
    if not cfg.labels:
        if not dataset.labels:
            raise ConfigError(f"{dataset.root}: the datalist has no 'labels'; give them: labels: {{background: 0, liver: 1}}")
        changes = {"labels": dict(dataset.labels), "regions_class_order": dataset.regions_class_order, "ignore_label": dataset.ignore_label}
    if cfg.channels == default.channels and dataset.channels:
        changes["channels"] = dataset.channels
    channels = changes.get("channels", cfg.channels)
    preprocess = cfg.preprocess
    if preprocess.normalise == default.preprocess.normalise:
        preprocess = replace(preprocess, normalise=schemes(channels))
    if fingerprint is not None:
        preprocess = _complete_preprocess(preprocess, fingerprint, plan=cfg.plan)
    cfg = replace(cfg, preprocess=preprocess, **changes)
    if fingerprint is None or not cfg.plan or cfg.network.args or cfg.network.name not in PLANNED:
        return cfg
    return _complete_network(cfg, default, fingerprint, memory_gb)


def needs_fingerprint(cfg: Config, dataset: Dataset) -> bool:
    """Say whether :func:`complete` would leave something open without having looked at the volumes."""
    preprocess = complete(cfg, dataset).preprocess
    open_statistics = "ct" in preprocess.normalise and not preprocess.intensity
    open_plan = preprocess.spacing is None or (not cfg.network.args and cfg.network.name in PLANNED)
    return open_statistics or (cfg.plan and open_plan)


def schemes(channels: Sequence[str]) -> tuple[Scheme, ...]:
    """Return the normalisation of each channel by its name: ``CT``, ``noNorm``, ``rescale_to_0_1``, ``rgb_to_0_1``, else z-score."""
    return tuple(_SCHEMES.get(name.casefold(), "zscore") for name in channels)


def target_spacing(spacings: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]]) -> tuple[float, float, float]:
    """Return nnU-Net's target spacing in mm: the median; the 10th percentile along an axis that is coarse and has few voxels.

    Args:
        spacings: Voxel size per case.
        shapes: Voxels per case after cropping.
    """
    target = np.median(np.asarray(spacings, dtype=np.float64), axis=0)
    size = np.median(np.asarray(shapes, dtype=np.float64), axis=0)
    coarse = int(np.argmax(target))
    finer = float(np.delete(target, coarse).max())
    if target[coarse] > ANISOTROPY * finer and size[coarse] * ANISOTROPY < np.delete(size, coarse).min():
        target[coarse] = max(float(np.percentile([spacing[coarse] for spacing in spacings], 10)), finer + 1e-5)
    x, y, z = target.tolist()
    return x, y, z


def topology(spacing: Sequence[float], patch_size: Sequence[int]) -> Topology:
    """Return the stages for a patch: every axis is halved until an edge would fall below 4 voxels.

    An axis that is coarser than the finest by a factor of 2 or more waits until the others have caught up, and has kernels of 1
    meanwhile. The patch size is rounded up to what the strides divide.
    """
    dims = len(spacing)
    distance, edge = [float(value) for value in spacing], [int(value) for value in patch_size]
    strides, kernels, kernel = [(1,) * dims], [], [1] * dims
    while True:
        long_enough = [axis for axis in range(dims) if edge[axis] >= 2 * _SHORTEST_EDGE]
        halved = [axis for axis in long_enough if distance[axis] / min(distance[other] for other in long_enough) < 2]
        if not halved or (len(halved) == 1 and edge[halved[0]] < 3 * _SHORTEST_EDGE):
            break
        kernel = [3 if kernel[axis] == 3 or distance[axis] / min(distance) < 2 else 1 for axis in range(dims)]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in range(dims)))
        for axis in halved:
            distance[axis], edge[axis] = distance[axis] * 2, -(-edge[axis] // 2)
    kernels.append((3,) * dims)
    divisor = [int(np.prod(axis)) for axis in zip(*strides, strict=True)]
    rounded = [-(-size // step) * step for size, step in zip(patch_size, divisor, strict=True)]
    return Topology(tuple(rounded), tuple(strides), tuple(kernels))


def plan_patch(
    spacing: Sequence[float], median_shape: Sequence[int], *, cases: int, outputs: int, memory_gb: float = _REFERENCE_GB
) -> tuple[Topology, int]:
    """Return the largest patch that fits the memory, with its stages, and the batch size.

    The patch has the proportions of a cube in mm, is no larger than the median volume, and shrinks along the axis that covers
    most of the median volume. The batch has two patches or more, and holds no more than 5 % of the dataset.

    Args:
        spacing: Target spacing in mm, of two or three axes.
        median_shape: Median size of the volumes at that spacing, in voxels.
        cases: Number of training cases.
        outputs: Number of the network's outputs.
        memory_gb: GPU memory to plan for.
    """
    dims = len(spacing)
    inverse = 1 / np.asarray(spacing, dtype=np.float64)
    isotropic = inverse * (_START_VOXELS[dims] / inverse.prod()) ** (1 / dims)
    stages = topology(spacing, [min(round(edge), int(size)) for edge, size in zip(isotropic, median_shape, strict=True)])
    budget = _REFERENCE_VOXELS[dims] * memory_gb / _REFERENCE_GB
    while feature_voxels(stages, outputs) / _REFERENCE_BATCH[dims] * _LEAST_BATCH > budget:
        smaller = _shrunk(stages, spacing, median_shape)
        if smaller.patch_size == stages.patch_size:
            break  # Nothing is left to take away.
        stages = smaller
    batch = round(budget / feature_voxels(stages, outputs) * _REFERENCE_BATCH[dims])
    covered = round(cases * float(np.prod(median_shape)) * _LARGEST_SHARE / float(np.prod(stages.patch_size)))
    return stages, max(min(batch, covered), _LEAST_BATCH)


def feature_voxels(stages: Topology, outputs: int) -> int:
    """Return the values that all convolutions of the plain U-Net (two per stage, on the way down and up) put out for one patch."""
    factors = np.cumprod(np.asarray(stages.strides), axis=0)
    voxels = [int(np.prod(np.asarray(stages.patch_size) // factor)) for factor in factors]
    values = [features * count for features, count in zip(stages.channels, voxels, strict=True)]
    down, up = 2 * sum(values), 3 * sum(values[:-1])  # Up: a transposed convolution and two convolutions.
    return down + up + outputs * voxels[0]


def _shrunk(stages: Topology, spacing: Sequence[float], median_shape: Sequence[int]) -> Topology:
    """Take one step off the axis that covers most of the median shape; the step is what the smaller patch's strides ask for."""
    ratios = [size / whole for size, whole in zip(stages.patch_size, median_shape, strict=True)]
    axis = int(np.argsort(ratios)[-1])
    tried = list(stages.patch_size)
    tried[axis] = max(1, tried[axis] - stages.divisor[axis])
    step = topology(spacing, tried).divisor[axis]
    smaller = list(stages.patch_size)
    smaller[axis] = max(1, smaller[axis] - step)
    return topology(spacing, smaller)


def _complete_preprocess(preprocess: PreprocessConfig, fingerprint: Fingerprint, *, plan: bool) -> PreprocessConfig:
    changes: dict[str, Any] = {}
    if plan and preprocess.spacing is None:
        changes["spacing"] = target_spacing(fingerprint.spacings, fingerprint.shapes)
    if "ct" in preprocess.normalise and not preprocess.intensity:
        changes["intensity"] = fingerprint.intensity
    cropped = plan and preprocess.crop_nonzero and float(np.median(fingerprint.relative_sizes)) < _MASKED_BELOW
    if cropped and "zscore" in preprocess.normalise:
        changes["mask_zscore"] = True
    return replace(preprocess, **changes)


def _complete_network(cfg: Config, default: Config, fingerprint: Fingerprint, memory_gb: float) -> Config:
    spacing = cfg.preprocess.spacing or target_spacing(fingerprint.spacings, fingerprint.shapes)
    resampled = [
        [round(size * old / new) for size, old, new in zip(shape, before, spacing, strict=True)]
        for shape, before in zip(fingerprint.shapes, fingerprint.spacings, strict=True)
    ]
    median_shape = [max(1, int(size)) for size in np.median(resampled, axis=0)]
    dims, outputs = cfg.dims, len(cfg.foreground) + (not cfg.has_regions)
    if cfg.patch_size == default.patch_size:
        cases = len(fingerprint.shapes)
        stages, batch = plan_patch(spacing[:dims], median_shape[:dims], cases=cases, outputs=outputs, memory_gb=memory_gb)
    else:
        stages, batch = topology(spacing[:dims], cfg.patch_size), cfg.data.batch_size
    if cfg.patch_size not in (default.patch_size, stages.patch_size):
        raise ConfigError(
            f"patch_size={list(cfg.patch_size)} is not divided by the network's strides {list(stages.divisor)}; "
            f"the next size that fits is {list(stages.patch_size)}"
        )
    if cfg.data.batch_size != default.data.batch_size:
        batch = cfg.data.batch_size
    network = replace(cfg.network, args=stages.network_args())
    return replace(cfg, patch_size=stages.patch_size, network=network, data=replace(cfg.data, batch_size=batch))
