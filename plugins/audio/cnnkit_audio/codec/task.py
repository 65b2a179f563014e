"""The job of codecs: sounds in, bit files and decoded sounds out; bit files in, sounds out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from cnnkit.errors import CheckpointError, InputError, UsageError
from cnnkit.options import RunOptions
from torch import Tensor, nn

from cnnkit_audio import args
from cnnkit_audio.codec import data
from cnnkit_audio.codec.bitstream import BitFile, BitHeader, BitWriter, network_digest, open_bits
from cnnkit_audio.codec.losses import CodecLoss
from cnnkit_audio.codec.metrics import CodecMetric, Measured
from cnnkit_audio.codec.streaming import StreamDecoder, StreamEncoder
from cnnkit_audio.models._codec import Codec
from cnnkit_audio.sound import Sound
from cnnkit_audio.task import Audio, Batch
from cnnkit_audio.writing import SoundWriter

if TYPE_CHECKING:
    from cnnkit.checkpoint import Header


@dataclass
class Transfer:
    """A file on its way through the codec; it is read, coded and written piece by piece.

    Args:
        model: The network.
        source: The sound, or its codes.
        header: What a bit file of it says.
    """

    model: Codec
    source: Sound | BitFile
    header: BitHeader

    def write(self, bits: Path, sound: Path) -> list[Path]:
        """Write the bit file, if the source is a sound, and the decoded sound; return the files."""
        if isinstance(self.source, BitFile):
            with SoundWriter(sound, self.header.rate, 1, frames=self.source.header.samples) as out:
                self._decode(self._stored(), self.source.header.samples, out)
            return [sound]
        encoder = StreamEncoder(self.model, self.header.levels)
        with SoundWriter(sound, self.header.rate, 1, frames=None) as out, BitWriter(bits, self.header) as file:
            decoder = StreamDecoder(self.model)
            for codes in self._coded(encoder):
                file.write(codes)
                _put(out, decoder.push(codes))
            _put(out, decoder.finish(encoder.samples))
            self.header = file.finish(encoder.samples)
        return [bits, sound]

    def _coded(self, encoder: StreamEncoder) -> Iterator[np.ndarray]:
        assert isinstance(self.source, Sound)
        for block in self.source.blocks(self.header.rate):
            yield from encoder.push(block)
        if not encoder.samples:
            raise InputError(f"{self.source.name} holds no samples to code")
        yield from encoder.finish()

    def _stored(self) -> Iterator[np.ndarray]:
        assert isinstance(self.source, BitFile)
        for codes in self.source.blocks():
            if codes.max(initial=0) >= self.model.codebook_size:
                raise InputError(f"{self.source.path.name} is damaged: it names an entry that the codebooks do not have")
            yield codes[: self.header.levels]

    def _decode(self, stream: Iterable[np.ndarray], samples: int, out: SoundWriter) -> None:
        decoder = StreamDecoder(self.model)
        for codes in stream:
            _put(out, decoder.push(codes))
        _put(out, decoder.finish(samples))


def _put(out: SoundWriter, blocks: Iterable[np.ndarray]) -> None:
    for block in blocks:
        out.write(np.clip(block, -1, 1))


class Coding(Audio):
    """Speech coding.

    Args:
        cfg: The experiment.
    """

    monitor: tuple[str, str] = ("mel_distance", "min")

    def preprocess(self) -> dict[str, Any]:
        """Return what a sound goes through before the network."""
        shape = self._codec
        return {
            "sample_rate": shape.sample_rate,
            "channels": "mono",
            "range": [-1, 1],
            "bits_per_second": [round(shape.level_rate * (level + 1), 6) for level in range(shape.levels)],
        }

    @cached_property
    def _codec(self) -> Codec:
        assert isinstance(self.shape, Codec)
        return self.shape

    def check_export(self, suffix: str) -> None:
        """Refuse to export: a codec is two networks, with codes between them, and a file holds one."""
        raise UsageError(
            "a codec is not exported: it is an encoder and a decoder, with codes between them, and an exported file holds one network. "
            "Code and decode files by cnnkit run audio; in Python, torch.export.export takes a module that calls the network's "
            "encode(wave), or its decode(codes), with the batch as a free axis"
        )

    # Training.

    def loader(self, split: str) -> Iterable[Batch] | None:
        """Return clips (``"train"``), whole recordings (``"val"``, ``"test"``), or two synthetic voices (``"example"``)."""
        shape, cfg = self._codec, self.cfg.codec
        if split == "train":
            return data.train_loader(cfg, levels=shape.levels, rate=shape.sample_rate, seed=self.cfg.train.seed)
        if split == "example":
            rng = np.random.default_rng(0)
            waves = np.stack([data.speech(rng, 0.3, shape.sample_rate)[None] for _ in range(2)])
            every = torch.full((2,), shape.levels)
            return [{"wave": torch.from_numpy(waves), "levels": every, "epoch": torch.full((2,), cfg.pretrain_epochs)}]
        return data.whole_speech(cfg.data, split, rate=shape.sample_rate)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the losses; the first batch that is quantised sets the codebooks before, and so does the first of each later refit."""
        assert isinstance(model, Codec)
        cfg, wave, epoch = self.cfg.codec, batch["wave"], int(batch["epoch"][0])
        quantise = epoch >= cfg.pretrain_epochs
        if model.training and int(model.codebooks_fitted) < sum(at <= epoch for at in (cfg.pretrain_epochs, *cfg.refit_epochs)):
            self._fit_codebooks(model, batch)
        coded = model(wave, batch["levels"] if quantise else None, quantise=quantise)
        return self._loss.to(wave.device)(coded, wave)

    @cached_property
    def _loss(self) -> CodecLoss:
        return CodecLoss(self.cfg.codec.loss, self._codec.sample_rate)

    def _fit_codebooks(self, model: Codec, batch: Batch) -> None:
        """Set the codebooks by k-means over this batch and as many of the epoch's as it takes, and let all processes have the same."""
        wave: Tensor = batch["wave"]
        waves, wanted = [wave], self.cfg.codec.init_vectors * model.frame
        samples = wave.shape[0] * wave.shape[-1]
        if samples < wanted:
            loader: Any = self.loader("train")
            loader.set_epoch(int(batch["epoch"][0]))
            for more in loader:
                if samples >= wanted:
                    break
                waves.append(more["wave"].to(wave))
                samples += more["wave"].shape[0] * more["wave"].shape[-1]
        model.fit_codebooks(waves, seed=self.cfg.train.seed)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for parameter in model.parameters():
                torch.distributed.broadcast(parameter.data, 0)

    def metric(self) -> CodecMetric:
        """Return distances by level, the measured rate, and the use of the codebooks."""
        shape = self._codec
        return CodecMetric(sample_rate=shape.sample_rate, codebook_size=shape.codebook_size, bits=shape.bits)

    # Prediction.

    def predict(self, model: nn.Module, batch: Batch) -> Sequence[Measured] | Sequence[Transfer]:
        """Code waveforms at all rates, or prepare the transfer of a file."""
        assert isinstance(model, Codec)
        if "source" in batch:
            return [self._transfer(model, batch["source"], batch["run"])]
        wave = batch["wave"]
        codes = model.encode(wave)
        by_levels = {levels: model.decode(codes[:, :levels], wave.shape[-1])[:, 0] for levels in range(1, model.levels + 1)}
        return [
            Measured(item.cpu().numpy(), {levels: waves[index].cpu().numpy() for levels, waves in by_levels.items()})
            for index, item in enumerate(codes)
        ]

    def _transfer(self, model: Codec, source: Sound | BitFile, run: args.Run) -> Transfer:
        digest = self._digest(model)
        if isinstance(source, Sound):
            levels = model.checked(run.levels)
            return Transfer(model, source, BitHeader(levels, model.groups, model.bits, model.sample_rate, model.frame, digest))
        header, name = source.header, source.path.name
        if header.network != digest:
            raise InputError(
                f"{name} was coded by another network ({header.network.hex()[:12]}) than this one ({digest.hex()[:12]}); "
                "give the checkpoint that coded it with --ckpt"
            )
        stored = (header.groups, header.bits, header.rate, header.frame)
        if stored != (model.groups, model.bits, model.sample_rate, model.frame) or header.levels > model.levels:
            raise InputError(f"{name} is damaged: its sizes are not those of the network that coded it")
        if run.levels is not None and run.levels > header.levels:
            raise UsageError(
                f"{name} holds {header.levels} levels, not {run.levels}; type --levels {header.levels} or less, or leave it out"
            )
        levels = run.levels or header.levels
        return Transfer(model, source, BitHeader(levels, model.groups, model.bits, model.sample_rate, model.frame, digest))

    def _digest(self, model: Codec) -> bytes:
        """Return the digest of the network, computed once."""
        if self._known is None or self._known[0] is not model:
            self._known = (model, network_digest(model))
        return self._known[1]

    _known: tuple[Codec, bytes] | None = None

    # Files.

    def read(self, run: RunOptions) -> Iterable[Batch]:
        """Open each file: a sound, or the bits of one."""
        assert isinstance(run, args.Run)
        if run.stream:
            raise UsageError("--stream is for networks that tag sound, recognise speech or model effects; give a codec files")
        if len(run.inputs) == 1 and run.inputs[0].suffix.lower() == args.BITS:
            yield {"name": run.name, "source": open_bits(run.inputs[0]), "run": run}
            return
        for batch in super().read(run):
            yield {"name": run.name, "source": batch["sound"], "run": run}

    def write(self, predictions: Sequence[Transfer], run: RunOptions) -> list[Path]:
        """Write ``NAME.esc`` of a sound, and ``NAME.decoded.wav`` of it or of a bit file."""
        files: list[Path] = []
        for transfer in predictions:
            files += transfer.write(run.output / f"{run.name}{args.BITS}", run.output / f"{run.name}.decoded.wav")
        return files

    def check(self, header: Header, run: RunOptions) -> None:
        """Refuse a number of levels that the network does not have, before the first sound is read."""
        assert isinstance(run, args.Run)
        try:
            self._codec.checked(run.levels)
        except UsageError as error:
            raise CheckpointError(f"--levels {run.levels}: {error}") from error
