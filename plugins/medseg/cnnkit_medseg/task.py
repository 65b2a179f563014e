"""The segmentation task: volumes in, label maps on the original grid out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from cnnkit.backbones import create_model
from cnnkit.engine.files import writable_folder
from cnnkit.errors import CheckpointError, ConfigError, InputWarning
from cnnkit.layers.nd import tupled
from torch import Tensor, nn

from cnnkit_medseg import args, config
from cnnkit_medseg.geometry import Grid
from cnnkit_medseg.io import Volume, read_volume, write_labels, write_probabilities
from cnnkit_medseg.losses import DiceCELoss, deep_supervision_weights, resize_labels
from cnnkit_medseg.metrics import SegmentationMetric
from cnnkit_medseg.overlay import write_overlay
from cnnkit_medseg.predict import Segmentation, segment
from cnnkit_medseg.statistics import write_statistics

if TYPE_CHECKING:
    from cnnkit.checkpoint import Header
    from cnnkit.options import RunOptions

Batch = dict[str, Any]


@dataclass(frozen=True)
class Prediction:
    """A segmented case.

    Args:
        volume: The image that was segmented.
        labels: ``(X, Y, Z)`` on the image's RAS grid.
        probabilities: ``(K, X, Y, Z)``, if they were asked for.
    """

    volume: Volume
    labels: np.ndarray
    probabilities: np.ndarray | None = None


class MedSeg:
    """Segmentation of CT and MR volumes.

    Args:
        cfg: The experiment. Labels and channels may be open until :meth:`prepare` has read the dataset.
    """

    Config = config.Config
    Run = args.Run
    monitor: ClassVar[tuple[str, str]] = ("dice", "max")
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "nnunet": {},
        "swin_unetr": {
            "network": {"name": "medseg/swin_unetr"},
            "patch_size": [128, 128, 128],
            "deep_supervision": False,
            "train": {"optimizer": {"name": "adamw", "lr": 8e-4, "weight_decay": 1e-5, "momentum": 0.9, "schedule": "cosine"}},
        },
    }

    def __init__(self, cfg: config.Config) -> None:
        self.cfg = cfg

    def prepare(self, output: Path) -> config.Config:
        """Read the dataset, complete the configuration from it, and preprocess its cases into the cache."""
        from cnnkit_medseg.data import prepare

        if self.cfg.data.root is None:
            raise ConfigError("data.root is not set; type --set data.root=FOLDER, an nnU-Net or Decathlon dataset")
        return prepare(self.cfg, output)

    def labels(self) -> list[str]:
        """Return the class of each output channel."""
        foreground = list(self.cfg.foreground)
        return foreground if self.cfg.has_regions else ["background", *foreground]

    def preprocess(self) -> dict[str, Any]:
        """Return what an image goes through before the network, and how whole volumes are predicted."""
        from cnnkit.config import to_dict

        inference = {"patch_size": list(self.cfg.patch_size), **to_dict(self.cfg.inference)}
        outputs = {"values": list(self.cfg.output_values), "activation": "sigmoid" if self.cfg.has_regions else "softmax"}
        return {
            "channels": list(self.cfg.channels),
            "axes": "RAS",
            **to_dict(self.cfg.preprocess),
            "inference": inference,
            "outputs": outputs,
        }

    def model(self) -> nn.Module:
        """Build the network.

        Raises:
            ConfigError: If no labels are configured.
        """
        if not self.cfg.foreground:
            raise ConfigError("labels are not set; the training takes them from the dataset, or give labels: {background: 0, NAME: 1}")
        network, given = self.cfg.network, dict(self.cfg.network.args)
        if network.name in ("medseg/unet", "medseg/dynunet"):
            given.setdefault("deep_supervision", self.cfg.deep_supervision)
        return create_model(network.name, dims=self.cfg.dims, in_chans=len(self.cfg.channels), num_classes=len(self.labels()), **given)

    def loader(self, split: str) -> Iterable[Batch] | None:
        """Return patches (``"train"``), whole cases (``"val"``, ``"test"``: the held-out fold), or a synthetic case (``"example"``)."""
        from cnnkit_medseg import data

        if split == "example":
            return [self._synthetic()]
        if self.cfg.data.root is None:
            return None
        if split == "train":
            return data.train_loader(self.cfg)
        return data.val_loader(self.cfg)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return Dice and cross entropy, each summed over the resolutions of a network with deep supervision."""
        criterion = DiceCELoss(
            dice=self.cfg.loss.dice,
            cross_entropy=self.cfg.loss.cross_entropy,
            batch_dice=self.cfg.loss.batch_dice,
            regions=list(self.cfg.foreground.values()) if self.cfg.has_regions else None,
            ignore_label=self.cfg.ignore_label,
        )
        target = batch["label"] if self.cfg.has_regions else self._class_indices(batch["label"])
        outputs = model(batch["image"])
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        total: dict[str, Tensor] = {}
        for weight, logits in zip(deep_supervision_weights(len(outputs)), outputs, strict=True):
            for name, value in criterion.terms(logits, resize_labels(target, logits.shape[2:])).items():
                total[name] = total.get(name, 0) + weight * value
        return total

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Segment the volume of a batch, on its own grid."""
        run: args.Run | None = batch.get("run")
        cfg = self._overridden(run)
        result: Segmentation = segment(batch["volume"], model, cfg, probabilities=bool(run and run.save_probabilities))
        return [Prediction(batch["volume"], result.labels, result.probabilities)]

    def metric(self) -> VolumeMetric:
        """Return Dice and IoU, to which :meth:`full_metric` adds the surface distances."""
        return VolumeMetric(SegmentationMetric(self.cfg.foreground, ignore_label=self.cfg.ignore_label, surface=()))

    def full_metric(self) -> VolumeMetric:
        """Return everything that a report should hold: Dice, IoU, HD95, ASSD and NSD."""
        return VolumeMetric(SegmentationMetric(self.cfg.foreground, ignore_label=self.cfg.ignore_label))

    def read(self, run: RunOptions) -> Iterable[Batch]:
        """Read the files of one case."""
        assert isinstance(run, args.Run)
        channels = len(self.cfg.channels)
        volume = read_volume(run.inputs, name=run.name, channels=channels, nonfinite=run.nonfinite, geometry=run.geometry)
        for warning in volume.warnings:
            warnings.warn(f"{run.name}: {warning}", InputWarning, stacklevel=2)
        yield {"name": run.name, "volume": volume, "run": run}

    def write(self, predictions: Sequence[Prediction], run: RunOptions) -> list[Path]:
        """Write label map, and as asked for overlay, statistics and probabilities."""
        assert isinstance(run, args.Run)
        files: list[Path] = []
        names = self.cfg.class_names
        for prediction in predictions:
            volume = prediction.volume
            base = run.output / volume.name
            files.append(write_labels(Path(f"{base}.nii.gz"), prediction.labels, volume.grid, names=names))
            if run.overlay:
                image = volume.array[0]
                overlay = Path(f"{base}_overlay.png")
                files.append(
                    write_overlay(overlay, image, prediction.labels, names, volume.spacing, title=volume.name, affine=volume.affine)
                )
            if run.statistics:
                statistics = Path(f"{base}_statistics.json")
                files.append(write_statistics(statistics, volume.array, prediction.labels, names, affine=volume.affine))
            if prediction.probabilities is not None:
                files.append(write_probabilities(Path(f"{base}_probabilities.nii.gz"), prediction.probabilities, volume.grid))
        return files

    def check(self, header: Header, run: RunOptions) -> None:
        """Refuse a checkpoint without labels, and windows that cannot be placed, before the first case is read."""
        if not self.cfg.foreground:
            raise CheckpointError(
                "the checkpoint names no labels, so its output cannot be written; add --set 'labels={background: 0, NAME: 1}'"
            )
        assert isinstance(run, args.Run)
        inference = self._overridden(run).inference
        if not 0 <= inference.overlap < 1:
            raise ConfigError(f"overlap {inference.overlap:g} is not a share of the window; accepted: 0 <= overlap < 1, for example 0.5")
        if inference.batch_size < 1:
            raise ConfigError(f"inference.batch_size {inference.batch_size} is no number of windows; accepted: 1 or more")

    def export_inputs(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
        """Return one window as the network's input; the number of windows is free."""
        return {"image": batch["image"]}, {"image": {0: "batch"}}

    def example(self, run: RunOptions) -> Iterable[Batch]:
        """Yield the MNI152 template with its tissue maps.

        Raises:
            CheckpointError: If the checkpoint was not made for it.
        """
        from cnnkit_medseg.example import LABELS, example_volume

        if dict(self.cfg.labels) != LABELS:
            raise CheckpointError("the example is for the built-in checkpoint (grey and white matter); leave --ckpt out, or name an input")
        writable_folder(run.output)
        example = example_volume()
        yield {"name": example.volume.name, "volume": example.volume, "run": run, "reference": example.labels}

    def summarise(self, predictions: Sequence[Prediction], batch: Batch, run: RunOptions) -> dict[str, Any]:
        """Return Dice on the part of the template that the training never saw, beside thresholds, and the volumes in ml."""
        from cnnkit_medseg.example import dice, fit_thresholds, heldout_part, threshold_baseline, training_part

        volume, labels, reference = batch["volume"], predictions[0].labels, batch["reference"]
        image, train, held = volume.array[0], training_part(volume), heldout_part(volume)
        thresholds = fit_thresholds(image[train], reference[train])
        millilitres = float(np.prod(volume.spacing)) / 1000
        volumes = {name: round(float((labels == value).sum()) * millilitres, 1) for value, name in self.cfg.class_names.items()}
        return {
            "Dice on the held-out front of the brain": dice(labels[held], reference[held]),
            "Dice of two thresholds there": dice(threshold_baseline(image[held], thresholds), reference[held]),
            "Volume of the whole brain in ml": volumes,
        }

    def _class_indices(self, labels: Tensor) -> Tensor:
        """Turn label values into indices of the output channels, where a dataset's values have gaps; the ignored value stays."""
        values = self.cfg.output_values
        if values == tuple(range(len(values))):
            return labels
        indices = labels.clone()
        for index, value in enumerate(values):
            indices[labels == value] = index
        return indices

    def _overridden(self, run: args.Run | None) -> config.Config:
        """Return the configuration with the inference options of a run."""
        if run is None:
            return self.cfg
        names = ("overlap", "grid", "mirror", "largest_component")
        given = {name: getattr(run, name) for name in names if getattr(run, name) is not None}
        return replace(self.cfg, inference=replace(self.cfg.inference, **given))

    def _synthetic(self) -> Batch:
        """Return a ball of each class in noise: one window for the loss, and the same voxels as a volume to predict."""
        rng = np.random.default_rng(0)
        size = self.cfg.patch_size if self.cfg.dims == 3 else (*self.cfg.patch_size, 4)
        places = np.stack(np.meshgrid(*(np.linspace(-1, 1, edge) for edge in size), indexing="ij"))
        radius = np.sqrt((places**2).sum(0))
        values = sorted({value for members in self.cfg.foreground.values() for value in members})
        edges = np.linspace(0.9, 0.0, len(values) + 1)[:-1]
        labels = np.zeros(size, np.int16)
        for value, edge in zip(values, edges, strict=True):
            labels[radius < edge] = value
        order = np.searchsorted([0, *values], labels)
        image = (100 + 40 * order + rng.normal(0, 5, (len(self.cfg.channels), *size))).astype(np.float32)
        grid = Grid((size[0], size[1], size[2]), np.diag((*tupled(1.0, 3), 1.0)), None, "example")
        volume = Volume(image, grid.ras_spacing, grid.ras_affine, grid, (), "example", [])
        window = (image - image.mean()) / image.std()
        if self.cfg.dims == 2:
            window = window[..., 0]
        target = labels[..., 0] if self.cfg.dims == 2 else labels
        tensors = {"image": torch.from_numpy(window).float()[None], "label": torch.from_numpy(target.copy())[None, None]}
        return {"name": "example", "volume": volume, "reference": labels, **tensors}


class VolumeMetric:
    """The core's metric interface over :class:`~cnnkit_medseg.metrics.SegmentationMetric`.

    Args:
        scores: Where the cases are collected.
    """

    def __init__(self, scores: SegmentationMetric) -> None:
        self.scores = scores

    def update(self, predictions: Sequence[Prediction], batch: Batch) -> None:
        """Score one case against the reference in its batch."""
        volume = batch["volume"]
        files = ";".join(map(str, volume.files))
        self.scores.update(
            predictions[0].labels,
            batch["reference"],
            spacing=volume.spacing,
            case=batch["name"],
            prediction_file=files,
            reference_file=str(batch.get("reference_file", "")),
        )

    def merge(self, other: VolumeMetric) -> None:
        """Take in the cases of another process."""
        self.scores.merge(other.scores)

    def compute(self) -> dict[str, float]:
        """Return the mean figures."""
        return self.scores.compute()

    def report(self, folder: Path) -> list[Path]:
        """Write nnU-Net's ``summary.json``."""
        return self.scores.report(folder)
