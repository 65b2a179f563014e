"""The super-resolution task: pictures and videos in, larger pictures and videos out."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from cnnkit.backbones import create_model
from cnnkit.checkpoint import read_state
from cnnkit.engine.files import writable_folder
from cnnkit.engine.progress import show_part
from cnnkit.errors import CheckpointError, ConfigError, InputWarning
from cnnkit.layers.merged import MergedCopy
from torch import Tensor, nn

from cnnkit_superres import args, config
from cnnkit_superres.compare import write_comparison
from cnnkit_superres.dsclora import Distillation, add_adapters
from cnnkit_superres.evaluate import PictureMetric
from cnnkit_superres.losses import SuperResolutionLoss
from cnnkit_superres.merging import merged
from cnnkit_superres.models._base import SuperResolver
from cnnkit_superres.pictures import Picture, Source, open_source
from cnnkit_superres.predict import Ensemble, Settings, bicubic, enlarge
from cnnkit_superres.resize import imresize
from cnnkit_superres.warm_start import adopt_base, without_adapters

if TYPE_CHECKING:
    from cnnkit.checkpoint import Header
    from cnnkit.options import RunOptions

    from cnnkit_superres.cost import Cost

Batch = dict[str, Any]

MANY_TILES = 8
"""From so many tiles on, a picture has a bar of progress to itself."""


@dataclass
class Prediction:
    """An enlarged picture, or the frames of an animation or video one after another.

    Args:
        frames: The enlarged frames; of several, an iterator, so that one is in memory at a time.
        scale: The factor.
        source: The opened file, which knows how to write what it was; none for a picture in memory.
        seconds: Time that a still picture took.
        cost: What the network costs, where pictures are measured.
    """

    frames: Iterable[Picture]
    scale: int
    source: Source | None = field(default=None, compare=False)
    seconds: float = field(default=0.0, compare=False)
    cost: Cost | None = field(default=None, compare=False)


class SuperRes:
    """Enlargement of pictures by trained networks.

    Args:
        cfg: The experiment.
    """

    Config = config.Config
    Run = args.Run
    monitor: ClassVar[tuple[str, str]] = ("psnr", "max")
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "bicubic": {},
        "blind": {"degrade": {"kind": "real_esrgan"}},
        "dsclora": {"adapters": {}},
        "samplingaug": {"data": {"sampler": "informative"}},
    }

    def __init__(self, cfg: config.Config) -> None:
        self.cfg = cfg
        self._counted: Cost | None = None
        self._measured = MergedCopy(merged, setting=lambda model: model.scale)
        self._prepared: tuple[nn.Module, tuple[int | None, bool], SuperResolver] | None = None

    # The network.

    def model(self) -> nn.Module:
        """Build the network; with adapters on it if they are configured.

        Raises:
            ConfigError: If it is another project's and no file of weights is named.
        """
        network = self.cfg.network
        if network.name == config.FOREIGN:
            if "file" not in network.args:
                raise ConfigError("superres/foreign is told by its weights; type --set network.args.file=WEIGHTS.pth")
            return self.model_from(read_state(network.args["file"]))
        model = create_model(network.name, **network.args)
        if not isinstance(model, SuperResolver):
            raise ConfigError(f"network.name={network.name} does not enlarge pictures; cnnkit list shows those of superres")
        return self._adapted(model)

    def model_from(self, state: Mapping[str, Tensor]) -> nn.Module:
        """Build the network that weights belong to, filled with them: for :data:`config.FOREIGN`, whose weights alone tell what it is."""
        if self.cfg.network.name != config.FOREIGN:
            return self.model()
        from cnnkit_superres.foreign import recognise

        self._shape = recognise(without_adapters(state))
        return self._adapted(self._shape)

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor], source: str) -> Mapping[str, Any]:
        """Return the configuration for bare weights: one of our networks, or one that spandrel knows."""
        from cnnkit_superres.published import find_network

        name = find_network(state)
        if name is None:
            from cnnkit_superres.foreign import recognise

            recognise(state, source=source)  # Raises, saying what it is not.
            name = config.FOREIGN
        return {"network": {"name": name}}

    def _adapted(self, model: nn.Module) -> nn.Module:
        cfg = self.cfg.adapters
        if cfg is not None and cfg.rank:
            add_adapters(model, rank=cfg.rank, alpha=cfg.alpha, where=cfg.where or None, ranks=cfg.ranks)
            adopt_base(model)
        return model

    @cached_property
    def scale(self) -> int:
        """The factor of the configured network."""
        return self._shape.scale

    @cached_property
    def _shape(self) -> SuperResolver:
        """The network without its weights; of another project's, the one that was built last."""
        from cnnkit.count import on_meta

        if self.cfg.network.name == config.FOREIGN:
            self.model()
            return self.__dict__["_shape"]
        with on_meta():
            return create_model(self.cfg.network.name, **self.cfg.network.args)  # type: ignore[return-value]

    def preprocess(self) -> dict[str, Any]:
        """Return what a picture goes through before the network."""
        colours = "RGB" if self._shape.in_chans == 3 else "Y of YCbCr, BT.601, [16, 235] / 255"
        return {"range": [0, 1], "colours": colours, "scale": self.scale}

    def export_inputs(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
        """Return the small picture as the network's input; number, height and width are free."""
        return {"picture": batch["lr"]}, {"picture": {0: "batch", 2: "height", 3: "width"}}

    # Training.

    def loader(self, split: str) -> Iterable[Batch] | None:
        """Return patches (``"train"``), whole pictures (``"val"``, ``"test"``), or a synthetic picture (``"example"``)."""
        from cnnkit_superres import data

        if split == "example":
            return [self._synthetic()]
        if split == "train":
            shape = self._shape
            self._check_scales(shape)
            return data.train_loader(self.cfg.data, self.cfg.degrade, scale=shape.scale, in_chans=shape.in_chans, seed=self.cfg.train.seed)
        folders = self.cfg.data.val if split == "val" else self.cfg.data.test
        return data.EvalPictures(folders, scale=self.scale) if folders else None

    def _check_scales(self, shape: SuperResolver) -> None:
        """Refuse factors of the batches that the network, or the method, does not know."""
        scales = self.cfg.data.scales
        unserved = [str(scale) for scale in scales if scale not in shape.scales]
        if unserved:
            raise ConfigError(
                f"data.scales has {' and '.join(unserved)}, but {self.cfg.network.name} enlarges by {' or '.join(map(str, shape.scales))}; "
                "leave data.scales empty for a network of one scale"
            )
        if scales not in ((), (shape.scale,)) and self._distillation is not None:
            raise ConfigError("a teacher teaches at one scale; leave data.scales empty, or adapters.teacher out")

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the configured losses, and with a teacher those of the distillation."""
        assert isinstance(model, SuperResolver)
        loss = SuperResolutionLoss(self.cfg.loss)
        if self._distillation is None:
            with model.at_scale(batch["hr"].shape[-1] // batch["lr"].shape[-1]):
                return loss.terms(model(batch["lr"]), batch["hr"])
        output, taught = self._distillation.run(model, batch["lr"])
        return {**loss.terms(output, batch["hr"]), **taught}

    @cached_property
    def _distillation(self) -> Distillation | None:
        cfg = self.cfg.adapters
        if cfg is None or cfg.teacher is None:
            return None
        from cnnkit.engine.load import load

        teacher = load(cfg.teacher, task="superres")
        if teacher.task.scale != self.scale:
            raise ConfigError(
                f"the teacher {cfg.teacher} enlarges by {teacher.task.scale}, the network by {self.scale}; both must be equal"
            )
        return Distillation(
            teacher.model,
            layers=cfg.layers,
            teacher_layers=cfg.teacher_layers,
            affinity_weight=cfg.affinity_weight,
            output_weight=cfg.output_weight,
            max_positions=cfg.max_positions,
        )

    def metric(self) -> PictureMetric:
        """Return PSNR and SSIM of luminance, beside those of bicubic interpolation, and the network's cost."""
        return PictureMetric(self.scale)

    # Prediction.

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Enlarge the picture of a batch; the frames of an animation or video are enlarged when they are asked for."""
        assert isinstance(model, SuperResolver)
        run: args.Run | None = batch.get("run")
        settings = _settings(run)
        ready = self._measured.of(model) if run is None else self._ready(model, run)
        source: Source | None = batch.get("source")
        if source is None or (source.frame_count == 1 and not source.is_animation):
            picture = Picture(batch["pixels"]) if source is None else next(iter(source.frames()))
            start = time.perf_counter()
            enlarged = enlarge(ready, picture, settings, progress=_show_tiles)
            seconds = time.perf_counter() - start
            cost = self._cost(model) if run is None else None
            return [Prediction([enlarged], ready.scale, source, seconds, cost)]
        return [Prediction((enlarge(ready, frame, settings, progress=_show_tiles) for frame in source.frames()), ready.scale, source)]

    def _ready(self, model: SuperResolver, run: args.Run) -> SuperResolver:
        """Return the network as it is run on files: with branches and adapters merged, at the scale that was asked for."""
        how = (run.scale, run.ensemble)
        if self._prepared is None or self._prepared[0] is not model or self._prepared[1] != how:
            ready = merged(model)
            if run.scale is not None:
                ready.set_scale(run.scale)
            self._prepared = (model, how, Ensemble(ready).eval() if run.ensemble else ready)
        return self._prepared[2]

    def _cost(self, model: SuperResolver) -> Cost:
        """Return what the network costs, counted once."""
        from cnnkit_superres.cost import cost

        if self._counted is None:
            self._counted = cost(model)
        return self._counted

    def read(self, run: RunOptions) -> Iterable[Batch]:
        """Open the file."""
        assert isinstance(run, args.Run)
        for path in run.inputs:
            yield {"name": run.name, "source": open_source(path, nonfinite=run.nonfinite, max_pixels=run.max_pixels), "run": run}

    def write(self, predictions: Sequence[Prediction], run: RunOptions) -> list[Path]:
        """Write the enlarged picture in the format of its source, and the comparison if it was asked for."""
        assert isinstance(run, args.Run)
        files: list[Path] = []
        for prediction in predictions:
            source = prediction.source
            assert source is not None
            path = run.output / f"{run.name}_x{prediction.scale}{source.path.suffix.lower()}"
            first: list[Picture] = []
            files.append(source.write(path, _keep_first(prediction.frames, first), format=run.format, quality=run.quality))
            if run.compare:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", InputWarning)  # What is odd about the file was said when it was read first.
                    before = bicubic(next(iter(source.frames())), prediction.scale)
                files.append(write_comparison(run.output / f"{run.name}_x{prediction.scale}_compare.png", before, first[0]))
        return files

    def check(self, header: Header, run: RunOptions) -> None:
        """Refuse a scale that the network does not have, before the first picture is read."""
        assert isinstance(run, args.Run)
        if run.scale is not None and run.scale not in self._shape.scales:
            scales = " or ".join(map(str, self._shape.scales))
            raise CheckpointError(f"this network enlarges by {scales}, not by {run.scale}; leave --scale out, or give another --ckpt")

    # The example.

    def example(self, run: RunOptions) -> Iterable[Batch]:
        """Yield a photograph that the built-in networks were not trained on, reduced by their scale."""
        from cnnkit_superres.example import write_small

        writable_folder(run.output)
        assert isinstance(run, args.Run)
        small, reference = write_small(run.output, run.scale or self.scale)
        yield {"name": "example", "source": open_source(small), "reference": reference, "run": run}

    def summarise(self, predictions: Sequence[Prediction], batch: Batch, run: RunOptions) -> dict[str, Any]:
        """Return Y-PSNR and SSIM against the photograph, beside bicubic interpolation."""
        from cnnkit_superres.metrics import psnr, ssim

        reference, scale = batch["reference"], predictions[0].scale
        ours = next(iter(predictions[0].frames)).pixels
        theirs = imresize(next(iter(batch["source"].frames())).pixels, scale)
        named = {"network": ours, "bicubic": theirs}
        return {
            "Y-PSNR in dB": {name: round(psnr(pixels, reference, crop=scale), 2) for name, pixels in named.items()},
            "SSIM": {name: round(ssim(pixels, reference, crop=scale), 4) for name, pixels in named.items()},
        }

    def _synthetic(self) -> Batch:
        """Return rings whose distance shrinks outwards, as a small and a large picture, without a file."""
        from cnnkit_superres.data import to_tensor

        side = 24 * self.scale
        y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
        rings = 0.5 + 0.4 * np.cos(18 * (y**2 + x**2) * np.array([1.0, 0.8, 1.2])[:, None, None])
        large = np.ascontiguousarray(np.rint(255 * rings).astype(np.uint8).transpose(1, 2, 0))
        small = imresize(large, 1 / self.scale)
        tensors = {"lr": to_tensor(small, self._shape.in_chans)[None], "hr": to_tensor(large, self._shape.in_chans)[None]}
        return {"name": "example", "dataset": "", "pixels": small, "reference": large, **tensors}


def _settings(run: args.Run | None) -> Settings:
    if run is None:
        return Settings()
    return Settings(tile=run.tile, overlap=run.overlap, approximate=run.approximate, ensemble=run.ensemble, alpha=run.alpha)


def _show_tiles(done: int, total: int) -> None:
    """Show the tiles of a picture that takes long."""
    if total >= MANY_TILES:
        show_part(done, total, "tiles")


def _keep_first(frames: Iterable[Picture], first: list[Picture]) -> Iterator[Picture]:
    """Pass the frames on and keep the first for the comparison."""
    for frame in frames:
        if not first:
            first.append(frame)
        yield frame
