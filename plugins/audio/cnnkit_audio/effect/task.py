"""The effect job: what comes out of a device when a recording goes through it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cnnkit.engine.files import writable_folder
from cnnkit.errors import UsageError, unknown
from cnnkit.options import RunOptions
from torch import Tensor, nn

from cnnkit_audio import args, config
from cnnkit_audio.effect.data import SimulatedPairs, crop_loader, read_pairs, whole, whole_pairs
from cnnkit_audio.effect.metrics import EffectMetric, error_to_signal, stft_distance
from cnnkit_audio.models._base import Effect
from cnnkit_audio.sound import Sound, open_sound, write_sound
from cnnkit_audio.task import Audio, Batch, until_interrupted
from cnnkit_audio.writing import SoundWriter


@dataclass
class Processed:
    """A whole output ``(1, T)``."""

    signal: np.ndarray


@dataclass
class Processing:
    """The output for a file, block by block as it is asked for."""

    sound: Sound
    blocks: Iterable[np.ndarray]


class EffectModelling(Audio):
    """Learn a device from pairs, and run recordings of any length through it.

    Args:
        cfg: The experiment; its section ``effect`` counts.
    """

    def __init__(self, cfg: config.Config) -> None:
        super().__init__(cfg)
        self.monitor = ("esr_db", "min")

    @property
    def device(self) -> Effect:
        """The network without its weights."""
        assert isinstance(self.shape, Effect)
        return self.shape

    def preprocess(self) -> dict[str, Any]:
        """Return what a recording goes through before the network."""
        shape = self.device
        return {"sample_rate": shape.sample_rate, "channels": "each", "range": [-1, 1], "knobs": list(shape.knobs), "delay": shape.delay}

    def export_inputs(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
        """Return sound and knobs as the network's inputs; their number is free."""
        return {"x": batch["dry"], "knobs": batch["knobs"]}, {"x": {0: "batch"}, "knobs": {0: "batch"}}

    # Training.

    def loader(self, split: str) -> Iterable[Batch] | None:
        """Return random stretches (``"train"``), whole pairs (``"val"``, ``"test"``), or a short simulated one (``"example"``)."""
        shape, cfg = self.device, self.cfg.effect
        if split == "example":
            seconds = (shape.context + 4096) / shape.sample_rate
            pairs = SimulatedPairs("val", shape.sample_rate, count=2, seconds=seconds)
            batches = [self._fitting(whole(pairs, index)) for index in range(2)]
            joined = {key: torch.cat([batch[key] for batch in batches]) for key in ("dry", "wet", "knobs")}
            return [{**joined, "name": list(pairs.names)}]
        pairs_found = read_pairs(cfg, split, shape.sample_rate)
        if pairs_found is None:
            return None
        if split == "train":
            return crop_loader(pairs_found, cfg, context=shape.context, seed=self.cfg.train.seed)
        return whole_pairs(pairs_found)

    def _fitting(self, batch: Batch) -> Batch:
        """Repeat or leave out knobs, so that an example of two serves a device of any number."""
        count = len(self.device.knobs)
        return {**batch, "knobs": batch["knobs"].repeat(1, -(-count // 2))[:, :count]}

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the mean absolute error and the spectral distance where the network has heard enough to answer."""
        assert isinstance(model, Effect)
        cfg, output = self.cfg.effect, model(batch["dry"], batch["knobs"])
        first = model.context - model.lookahead - model.delay
        target = batch["wet"][..., first : first + output.shape[2]]
        losses = {"l1": cfg.l1 * (output - target).abs().mean()} if cfg.l1 else {}
        return losses | ({"stft": cfg.stft * stft_distance(output, target, cfg.fft_sizes)} if cfg.stft else {})

    def metric(self) -> EffectMetric:
        """Return errors in amplitude, energy, spectrum and loudness."""
        return EffectMetric(self.device.sample_rate)

    # Prediction.

    def predict(self, model: nn.Module, batch: Batch) -> list[Processed] | list[Processing]:
        """Run sound through the device; a file block by block, when its blocks are asked for."""
        assert isinstance(model, Effect)
        if "sound" not in batch:
            pairs = zip(batch["dry"], batch["knobs"], strict=True)
            return [Processed(np.concatenate(list(through(model, [dry.cpu().numpy()], knobs)), axis=1)) for dry, knobs in pairs]
        sound, run = batch["sound"], batch["run"]
        knobs = torch.tensor(settings(run.knobs, model.knobs))
        blocks = sound.blocks(model.sample_rate, channels="all")
        return [Processing(sound, through(model, until_interrupted(blocks) if run.stream else blocks, knobs))]

    def write(self, predictions: Sequence[Processing], run: RunOptions) -> list[Path]:
        """Write ``NAME.processed.wav``: 24 bits, at the network's rate, as long as the recording."""
        files = []
        for prediction in predictions:
            path = run.output / f"{run.name}.processed.wav"
            with SoundWriter(path, self.device.sample_rate, prediction.sound.channels, "PCM_24", frames=prediction.sound.frames) as out:
                for block in prediction.blocks:
                    out.write(block)
            files.append(path)
        return files

    # The example.

    def example(self, run: RunOptions) -> Iterable[Batch]:
        """Yield drums that the simulated compressor was not shown, written into the output folder."""
        assert isinstance(run, args.Run)
        writable_folder(run.output)
        rate = self.device.sample_rate
        batch = self._fitting(whole(SimulatedPairs("test", rate, count=1), 0))
        sound = open_sound(write_sound(run.output / "example.wav", batch["dry"][0].numpy(), rate))
        chosen = ",".join(f"{name}={value:.4f}" for name, value in zip(self.device.knobs, batch["knobs"][0].tolist(), strict=True))
        yield {"name": "example", "sound": sound, "wet": batch["wet"], "dry": batch["dry"], "run": _with_knobs(run, run.knobs or chosen)}

    def summarise(self, predictions: Sequence[Processing], batch: Batch, run: RunOptions) -> dict[str, Any]:
        """Return the error to signal of the network's output, and of the dry sound, against the simulated device."""
        output = open_sound(run.output / f"{run.name}.processed.wav").read(self.device.sample_rate)
        named = {"network": torch.from_numpy(output)[None], "nothing done": batch["dry"]}
        levels = {name: 10 * float(error_to_signal(signal, batch["wet"]).log10()) for name, signal in named.items()}
        return {"settings": batch["run"].knobs, "error to signal in dB": {name: round(level, 2) for name, level in levels.items()}}


def _with_knobs(run: args.Run, knobs: str) -> args.Run:
    from dataclasses import replace

    return replace(run, knobs=knobs)


def settings(text: str, names: Sequence[str]) -> list[float]:
    """Read ``"limit=1,peak_reduction=0.4"``.

    Raises:
        UsageError: If a knob is unknown, missing or no number.
    """
    shown = ",".join(f"{name}=0.5" for name in names)
    values: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, separator, value = part.partition("=")
        if name.strip() not in names:
            raise UsageError(f"{unknown('knob', name.strip(), names)}; type for example --knobs {shown}")
        try:
            values[name.strip()] = float(value)
        except ValueError:
            raise UsageError(f"--knobs {part!r} is no setting; type for example --knobs {shown}") from None
        if not separator or not np.isfinite(values[name.strip()]):
            raise UsageError(f"--knobs {part!r} is no setting; type for example --knobs {shown}")
    if missing := [name for name in names if name not in values]:
        raise UsageError(f"this device needs --knobs with {', '.join(missing)}; type for example --knobs {shown}")
    return [values[name] for name in names]


def through(model: Effect, blocks: Iterable[np.ndarray], knobs: Tensor) -> Iterator[np.ndarray]:
    """Run sound through a device, silence before and after it, and yield as many samples as come in, in time with them.

    Args:
        model: The device.
        blocks: The sound in order, arrays ``(C, n)``; each channel goes through a device of its own.
        knobs: ``(K,)``.
    """
    place = next(model.parameters())
    stream = model.stream(knobs[None].to(place))
    late, begun, channels = model.delay, False, 1

    def push(block: np.ndarray) -> np.ndarray:
        nonlocal late
        with torch.no_grad():
            out = stream.push(torch.from_numpy(block)[:, None].to(place))[:, 0].float().cpu().numpy()
        dropped = min(late, out.shape[1])
        late -= dropped
        return out[:, dropped:]

    for block in blocks:
        if not begun:
            begun, channels = True, len(block)
            # Nothing of this reaches the output: it is one sample short of the first.
            push(np.zeros((channels, model.context - model.lookahead), np.float32))
        yield push(np.ascontiguousarray(block))
    if begun:
        yield push(np.zeros((channels, model.lookahead + model.delay), np.float32))
