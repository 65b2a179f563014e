"""The configuration of a segmentation experiment. Standard library and the core's dataclasses only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cnnkit.engine.config import OptimizerConfig, TrainConfig

Scheme = Literal["zscore", "ct", "none", "rescale01", "rgb01"]


@dataclass(frozen=True)
class Intensity:
    """Statistics of one channel over the foreground voxels of the training set, as CT normalisation needs them."""

    mean: float
    std: float
    median: float
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True)
class PreprocessConfig:
    """From a volume on its own grid to the network's input, in nnU-Net's order: crop, normalise, resample.

    Args:
        spacing: Voxel size of the network's grid in mm, in RAS axis order; none keeps each volume's own.
        normalise: One scheme per channel.
        intensity: Statistics per channel for the ``ct`` scheme; the training computes them.
        crop_nonzero: Crop to the bounding box of the voxels that are not zero.
        mask_zscore: Take mean and deviation over the voxels that are not zero, and leave the others zero; what lies outside
            of them (holes filled) is background.
        order: Spline order of the image resampling.
    """

    spacing: tuple[float, float, float] | None = None
    normalise: tuple[Scheme, ...] = ("zscore",)
    intensity: tuple[Intensity, ...] = ()
    crop_nonzero: bool = True
    mask_zscore: bool = False
    order: int = 3


@dataclass(frozen=True)
class NetworkConfig:
    """The network by its registered name, for example ``medseg/unet``, and its own arguments."""

    name: str = "medseg/unet"
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InferenceConfig:
    """How a whole volume is predicted by windows.

    Args:
        overlap: Share of the window that neighbouring windows share.
        grid: Placement of windows: ``nnunet`` spreads them evenly, ``monai`` clamps the last to the border.
        weighting: Weight of a window's voxels: Gaussian around its centre, or constant.
        batch_size: Windows per forward pass.
        mirror: Average over all mirrored copies (8 times the work in 3-D).
        largest_component: Keep the largest connected part of each class.
    """

    overlap: float = 0.5
    grid: Literal["nnunet", "monai"] = "nnunet"
    weighting: Literal["gaussian", "constant"] = "gaussian"
    batch_size: int = 1
    mirror: bool = False
    largest_component: bool = False


@dataclass(frozen=True)
class DataConfig:
    """Where the training data lie and how patches are drawn from them.

    Args:
        root: Folder of an nnU-Net dataset (``Dataset001_Name`` with ``dataset.json``) or of a Decathlon/MONAI datalist.
        datalist: JSON file of the datalist inside ``root``; empty for ``dataset.json``.
        layout: ``auto`` decides by the content of ``dataset.json``.
        fold: Part that is held out for validation; -1 trains on every case and validates on the same.
        folds: Number of parts; splits are nnU-Net's (shuffled by seed 12345) unless ``splits_final.json`` lies there.
        batch_size: Patches per step, of all processes together.
        steps_per_epoch: Batches that make an epoch.
        foreground: Share of the batch that is centred on a foreground voxel.
        workers: Processes that load and augment; 0 for the training process itself.
        cache: Folder for preprocessed cases; none puts it beside the run.
    """

    root: Path | None = None
    datalist: str = ""
    layout: Literal["auto", "nnunet", "decathlon"] = "auto"
    fold: int = 0
    folds: int = 5
    batch_size: int = 2
    steps_per_epoch: int = 250
    foreground: float = 0.33
    workers: int = 0
    cache: Path | None = None


@dataclass(frozen=True)
class AugmentConfig:
    """Probabilities of nnU-Net's augmentations, per patch; ``mirror`` switches flips over all axes.

    ``noise_range`` is of the standard deviation, in units of the normalised image.

    ``bias_field`` is not nnU-Net's: the smooth shading of MR coils, for data without bias correction.
    """

    rotate: float = 0.2
    scale: float = 0.2
    scale_range: tuple[float, float] = (0.7, 1.4)
    noise: float = 0.1
    noise_range: tuple[float, float] = (0.0, 0.1)
    blur: float = 0.2
    brightness: float = 0.15
    contrast: float = 0.15
    low_resolution: float = 0.25
    gamma_inverted: float = 0.1
    gamma: float = 0.3
    mirror: bool = True
    bias_field: float = 0.0


@dataclass(frozen=True)
class LossConfig:
    """Dice plus cross entropy (binary cross entropy for regions).

    Args:
        dice: Weight of the soft Dice loss.
        cross_entropy: Weight of the cross entropy.
        batch_dice: Sum over the batch before the Dice ratio, as nnU-Net does for 2-D.
    """

    dice: float = 1.0
    cross_entropy: float = 1.0
    batch_dice: bool = False


def _nnunet_training() -> TrainConfig:
    """Return nnU-Net's schedule: SGD with Nesterov momentum, polynomial decay, 1000 epochs of 250 steps."""
    optimizer = OptimizerConfig(name="sgd", lr=1e-2, weight_decay=3e-5, momentum=0.99, schedule="poly", poly_power=0.9)
    return TrainConfig(epochs=1000, optimizer=optimizer, clip_norm=12.0)


@dataclass(frozen=True)
class Config:
    """A segmentation experiment.

    Args:
        labels: Label value per class name, background 0 included; a list of values makes a region (overlapping classes).
        regions_class_order: Label written for each region, in the order in which they are painted.
        ignore_label: Value in the references that neither teaches nor counts.
        channels: Names of the image channels; the number of files or channels that a case must have.
        patch_size: Window of the network in voxels of its grid: three numbers, or two for a slice-wise network.
        deep_supervision: Train the lower resolutions of the decoder too.
        plan: Derive from the data what is left at its default: spacing, patch size, batch size, the network's stages.
            Without it the defaults count: each volume keeps its own spacing.
    """

    labels: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    regions_class_order: tuple[int, ...] = ()
    ignore_label: int | None = None
    channels: tuple[str, ...] = ("MR",)
    patch_size: tuple[int, ...] = (96, 96, 96)
    deep_supervision: bool = True
    plan: bool = True
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=_nnunet_training)

    def __post_init__(self) -> None:
        if len(self.patch_size) not in (2, 3):
            raise ValueError(f"patch_size has two or three numbers, not {len(self.patch_size)}")
        if self.labels and self.labels.get("background", 0) != 0:
            raise ValueError("the label of 'background' is 0")
        if self.regions_class_order and len(self.regions_class_order) != len(self.foreground):
            raise ValueError(f"regions_class_order names {len(self.regions_class_order)} labels for {len(self.foreground)} regions")
        if len(self.preprocess.normalise) not in (1, len(self.channels)):
            raise ValueError(f"preprocess.normalise names {len(self.preprocess.normalise)} schemes for {len(self.channels)} channels")

    @property
    def dims(self) -> int:
        """Spatial dimensions of the network."""
        return len(self.patch_size)

    @property
    def foreground(self) -> dict[str, tuple[int, ...]]:
        """The classes other than background, each with the label values that it is made of."""
        return {name: (value,) if isinstance(value, int) else tuple(value) for name, value in self.labels.items() if name != "background"}

    @property
    def has_regions(self) -> bool:
        """Whether classes may overlap, so that the outputs are sigmoids."""
        return bool(self.regions_class_order)

    @property
    def output_values(self) -> tuple[int, ...]:
        """Label value that each output channel stands for in a written label map (background first unless regions)."""
        if self.has_regions:
            return self.regions_class_order
        return (0, *(value[0] for value in self.foreground.values()))

    @property
    def class_names(self) -> dict[int, str]:
        """Name of each label value that can appear in a written label map, without background."""
        values = self.regions_class_order if self.has_regions else self.output_values[1:]
        return dict(zip(values, self.foreground, strict=True))
