"""The recognition job: recordings of any array in, transcripts with times and chosen microphones out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from cnnkit.engine.files import write_json, write_text
from cnnkit.errors import ConfigError
from cnnkit.options import RunOptions
from torch import Tensor, nn
from torch.nn import functional as F

from cnnkit_audio import args
from cnnkit_audio.models.acs_asr import ACSASR
from cnnkit_audio.recognition.config import RecognitionConfig
from cnnkit_audio.recognition.data import example_batch, make_loader, to_tensor
from cnnkit_audio.recognition.decode import Transcript, joined, transcribe
from cnnkit_audio.recognition.metrics import RecognitionMetric
from cnnkit_audio.recognition.recording import Recording
from cnnkit_audio.recognition.text import Vocabulary
from cnnkit_audio.task import Audio, Batch, open_input


class Recognition(Audio):
    """Distant speech recognition; ``recognition`` of the configuration is its section.

    Args:
        cfg: The experiment.
    """

    monitor = ("wer", "min")

    @property
    def section(self) -> RecognitionConfig:
        """The job's part of the configuration."""
        return self.cfg.recognition

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The units that the network writes."""
        return Vocabulary(self.section.vocabulary, characters=self.section.units == "characters")

    def labels(self) -> Sequence[str]:
        """Return the units in the order of the network's outputs: blank, edge, the vocabulary."""
        return self.vocabulary.labels

    def network_args(self) -> Mapping[str, Any]:
        """Return the size of the vocabulary."""
        return {"num_classes": len(self.labels())}

    def preprocess(self) -> dict[str, Any]:
        """Return what a recording goes through before the network."""
        return {
            "sample_rate": self.shape.sample_rate,
            "channels": "all microphones, in any order; silent ones do not take part",
            "range": [-1, 1],
            "window": self.section.window,
        }

    def export_inputs(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
        """Return a recording as the network's input; number, microphones and samples are free. The output are CTC logits."""
        return {"sound": batch["x"]}, {"sound": {0: "batch", 1: "microphones", 2: "samples"}}

    # Training.

    def loader(self, split: str) -> Iterable[Batch] | None:
        """Return utterances in batches; ``"example"`` is one of two."""
        rate = self.shape.sample_rate
        if split == "example":
            return [example_batch(self.section, self.vocabulary, rate)]
        return make_loader(self.section, self.vocabulary, rate, split, seed=self.cfg.train.seed)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of CTC and of the decoder, each per utterance and per unit, weighted."""
        assert isinstance(model, ACSASR)
        weight, units, counts = self.section.ctc_weight, batch["units"], batch["counts"]
        if not 0 <= weight <= 1:
            raise ConfigError(f"recognition.ctc_weight={weight} is no share; accepted: 0 to 1")
        heard = model.hear(batch["x"], batch["channels"], batch["lengths"])
        frames = heard.frames.sum(1)
        scores = heard.ctc.float().log_softmax(-1).transpose(0, 1)
        ctc = F.ctc_loss(scores, units, frames, counts, blank=model.blank, zero_infinity=True)
        before, after = shifted(units, counts, model.edge)
        logits = model.attend(heard, before).float()
        attention = F.cross_entropy(logits.transpose(1, 2), after, ignore_index=-1, label_smoothing=self.section.smoothing)
        return {"ctc": weight * ctc, "attention": (1 - weight) * attention}

    def metric(self) -> RecognitionMetric:
        """Return error rates of words, of characters, and of words by speaker and session."""
        return RecognitionMetric()

    # Prediction.

    def predict(self, model: nn.Module, batch: Batch) -> list[Transcript]:
        """Transcribe the utterances of a batch, or a recording piece by piece."""
        assert isinstance(model, ACSASR)
        search = {"beam": self.section.beam, "ctc_weight": self.section.ctc_weight}
        if "recording" not in batch:
            heard = model.hear(batch["x"], batch["channels"], batch["lengths"])
            seconds = (batch["lengths"] / model.sample_rate).tolist()
            return transcribe(model, heard, self.vocabulary, seconds=seconds, **search)  # type: ignore[arg-type]
        recording: Recording = batch["recording"]
        device = next(model.parameters()).device
        parts = []
        for start, sound in recording.pieces(model.sample_rate, window=self.section.window):
            heard = model.hear(to_tensor(sound).to(device))
            seconds = [sound.shape[1] / model.sample_rate]
            parts += transcribe(model, heard, self.vocabulary, seconds=seconds, start=start, **search)  # type: ignore[arg-type]
        return [joined(parts, microphones=recording.microphones)]

    def read(self, run: RunOptions) -> Iterable[Batch]:
        """Open the files of one input, which are the microphones of one recording, or the stream."""
        assert isinstance(run, args.Run)
        if run.stream:
            for batch in super().read(run):
                yield {"name": run.name, "recording": Recording((batch["sound"],)), "run": run}
            return
        yield {"name": run.name, "recording": Recording(tuple(open_input(path, run) for path in run.inputs)), "run": run}

    def write(self, predictions: Sequence[Transcript], run: RunOptions) -> list[Path]:
        """Write ``NAME.txt``, the transcript, and ``NAME.json`` with times, confidences and chosen microphones."""
        files = []
        for found in predictions:
            data = {
                "text": found.text,
                "confidence": found.confidence,
                "words": [asdict(word) for word in found.words],
                "microphones": list(found.microphones),
                "pieces": [_described(piece, found.microphones) for piece in map(asdict, found.pieces)],
            }
            files += [write_text(run.output / f"{run.name}.txt", found.text + "\n"), write_json(run.output / f"{run.name}.json", data)]
        return files


def _described(piece: dict[str, Any], microphones: Sequence[str]) -> dict[str, Any]:
    names = [microphones[number] for number in piece["channels"]] if microphones else []
    return piece | {"channels": [number + 1 for number in piece["channels"]], "microphones": names}


def shifted(units: Tensor, counts: Tensor, edge: int) -> tuple[Tensor, Tensor]:
    """Return what the decoder reads and what it is to write: the units after the edge, and before it.

    Shapes:
        units: ``(B, L)``, ``counts``: ``(B,)``; both results are ``(B, L + 1)``, the second with -1 where nothing is to be written.
    """
    there = torch.arange(units.shape[1] + 1, device=units.device) < counts[:, None]
    padded = F.pad(units, (0, 1))
    before = F.pad(units, (1, 0), value=edge)
    before = torch.where(F.pad(there[:, :-1], (1, 0), value=True), before, edge)
    end = torch.arange(units.shape[1] + 1, device=units.device) == counts[:, None]
    return before, torch.where(there, padded, torch.where(end, edge, -1))
