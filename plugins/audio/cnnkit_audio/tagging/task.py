"""The tagging job: which sounds are heard when."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cnnkit.engine.files import atomic_path, writable_folder
from cnnkit.errors import ConfigError, InputWarning
from cnnkit.layers.merged import MergedCopy, merged
from cnnkit.options import RunOptions
from torch import Tensor, nn

from cnnkit_audio import args, config
from cnnkit_audio.models._base import Tagger
from cnnkit_audio.models.acdnet import crops
from cnnkit_audio.sound import Sound
from cnnkit_audio.tagging.data import SyntheticSounds, labels_of, read_sounds, train_clips, whole_clips
from cnnkit_audio.tagging.events import find_events, write_audacity, write_csv
from cnnkit_audio.tagging.metrics import TagMetric
from cnnkit_audio.tagging.picture import Overview, draw_tags
from cnnkit_audio.tagging.windows import WindowGroup, window_groups
from cnnkit_audio.task import Audio, Batch, until_interrupted
from cnnkit_audio.window_features import best_stem, window_features

GROUP = 16
"""Windows that are looked at together, and share what they have in common."""
BATCH = 8
"""Windows that go through the network at once."""


@dataclass
class Tags:
    """What a network hears in a recording, window by window.

    Args:
        starts: Seconds at which each window starts, ``(N,)``.
        ends: Seconds at which each ends, or the recording if that is earlier, ``(N,)``.
        scores: Confidences, ``(N, C)``.
        embeddings: The vector of each window, ``(N, D)``; empty if they were not asked for.
        sound: The file.
        overview: Its spectrogram for the picture, if one was asked for.
    """

    starts: np.ndarray
    ends: np.ndarray
    scores: np.ndarray
    embeddings: np.ndarray
    sound: Sound | None = None
    overview: Overview | None = None


class Tagging(Audio):
    """Tags over windows of a recording.

    Args:
        cfg: The experiment; its section ``tagging`` counts.
    """

    def __init__(self, cfg: config.Config) -> None:
        super().__init__(cfg)
        if cfg.tagging.crops < 0:
            raise ConfigError(f"tagging.crops={cfg.tagging.crops} is no number of windows; accepted: 0 for every half window, or more")
        self.monitor = ("map", "max") if cfg.tagging.multilabel else ("accuracy", "max")
        self._merged = MergedCopy(_merge)

    def prepare(self, output: Path) -> config.Config:
        """Complete the configuration by the labels of the data set, and by whether clips may have several."""
        cfg = self.cfg.tagging
        names, multilabel = labels_of(cfg.data)
        tagging = replace(cfg, labels=cfg.labels or names, multilabel=cfg.multilabel or multilabel)
        return replace(self.cfg, tagging=tagging)

    def labels(self) -> Sequence[str]:
        """Return the names of the sounds."""
        return self.cfg.tagging.names

    def network_args(self) -> Mapping[str, Any]:
        """One output for each label."""
        return {"num_classes": len(self.cfg.tagging.names)}

    def preprocess(self) -> dict[str, Any]:
        """Return what a recording goes through before the network."""
        shape = self.tagger
        return {"sample_rate": shape.sample_rate, "channels": "mean", "range": [-1, 1], "window_seconds": shape.window}

    @property
    def tagger(self) -> Tagger:
        """The network without its weights."""
        assert isinstance(self.shape, Tagger)
        return self.shape

    @property
    def length(self) -> int:
        """Samples of a window."""
        return round(self.tagger.window * self.tagger.sample_rate)

    def export_inputs(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
        """Return a window of sound as the network's input; the number of windows is free."""
        return {"sound": batch["sound"][..., : self.length]}, {"sound": {0: "batch"}}

    # Training.

    def loader(self, split: str) -> Iterable[Batch] | None:
        """Return augmented crops (``"train"``), whole clips (``"val"``, ``"test"``), or a few synthetic sounds (``"example"``)."""
        cfg, rate = self.cfg.tagging, self.tagger.sample_rate
        if split == "example":
            return [self._synthetic()]
        if split == "train":
            samples = round((cfg.data.seconds or self.tagger.window) * rate)
            return train_clips(cfg.data, cfg.augment, cfg.names, rate=rate, samples=samples, seed=self.cfg.train.seed)
        sounds = read_sounds(cfg.data, cfg.names, split, rate)
        return None if sounds is None else whole_clips(sounds)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy with the clips' soft labels, binary for each label where several may hold."""
        cfg, sound, target = self.cfg.tagging, batch["sound"], batch["target"]
        logits = model.learn(sound, target) if isinstance(model, Tagger) else model(sound)
        if cfg.multilabel:
            return {"bce": F.binary_cross_entropy_with_logits(logits, target)}
        return {"ce": F.cross_entropy(logits, target, label_smoothing=cfg.label_smoothing)}

    def metric(self) -> TagMetric:
        """Return accuracy, mAP, mAUC and d'."""
        return TagMetric(self.cfg.tagging.names, multilabel=self.cfg.tagging.multilabel)

    # Prediction.

    def predict(self, model: nn.Module, batch: Batch) -> list[Tags]:
        """Listen to whole clips, or to a file of any length block by block."""
        assert isinstance(model, Tagger)
        if not isinstance(batch["sound"], Sound):
            if self.cfg.tagging.crops:
                return [self._vote(model, clip, self.cfg.tagging.crops) for clip in batch["sound"]]
            return [self._listen(model, [clip.cpu().numpy()]) for clip in batch["sound"]]
        sound, run = batch["sound"], batch["run"]
        rate = model.sample_rate
        overview = Overview(rate) if run.picture else None
        blocks = sound.blocks(rate)
        tags = self._listen(self._merged.of(model), blocks if overview is None else overview.watch(blocks), run=run)
        tags.sound, tags.overview = sound, overview
        return [tags]

    def _vote(self, model: Tagger, clip: Tensor, count: int) -> Tags:
        """Run the network over so many windows of a clip, each of which is a vote on the whole of it."""
        scores = self._confidences(model(crops(clip, self.length, count)))
        ends = np.full(count, clip.shape[-1] / model.sample_rate)
        return Tags(np.zeros(count), ends, scores, np.zeros((0, 0), np.float32))

    def _listen(self, model: Tagger, blocks: Iterable[np.ndarray], run: args.Run | None = None) -> Tags:
        """Run the network over the windows of a recording."""
        rate, length = model.sample_rate, self.length
        hop = length // 2 if run is None or run.hop is None else max(1, round(run.hop * rate))
        keep, live = run is not None and run.embeddings, run is not None and run.stream
        starts: list[float] = []
        ends: list[float] = []
        scores: list[np.ndarray] = []
        embeddings: list[np.ndarray] = []
        groups = window_groups(blocks, length, hop, size=1 if live else GROUP)
        for group in until_interrupted(groups) if live else groups:
            if group.missing:
                _say_padded(length, length - group.missing, rate)
            vectors = embed_windows(model, group)
            scores.append(self._confidences(model.head(vectors)))
            if keep:
                embeddings.append(vectors.float().cpu().numpy())
            first = [(group.offset + start) / rate for start in group.starts]
            if live:
                self._print(first[0], scores[-1][0], run)
            starts += first
            ends += [start + (length - group.missing) / rate for start in first]
        none = np.zeros((0, 0), np.float32)
        return Tags(np.array(starts), np.array(ends), np.concatenate(scores), np.concatenate(embeddings) if keep else none)

    def _print(self, second: float, scores: np.ndarray, run: args.Run | None) -> None:
        """Say at once what is heard in a window of a stream."""
        assert run is not None
        best = [index for index in np.argsort(-scores, kind="stable")[: run.top] if scores[index] >= run.threshold]
        print(f"{second:8.2f} s  " + "  ".join(f"{self.cfg.tagging.names[index]}: {scores[index]:.3f}" for index in best), flush=True)

    def _confidences(self, logits: Tensor) -> np.ndarray:
        logits = logits.float()
        scores = logits.sigmoid() if self.cfg.tagging.multilabel else logits.softmax(1)
        return scores.cpu().numpy()

    def write(self, predictions: Sequence[Tags], run: RunOptions) -> list[Path]:
        """Write the table, Audacity's labels, and the picture and the vectors if they were asked for."""
        assert isinstance(run, args.Run)
        files: list[Path] = []
        for tags in predictions:
            assert tags.sound is not None
            labels = self.cfg.tagging.names
            events = find_events(tags.starts, tags.ends, tags.scores, labels, threshold=run.threshold, top=run.top, merge=run.merge)
            files.append(write_csv(run.output / f"{run.name}.cnnkit.results.csv", events, tags.sound.path))
            files.append(write_audacity(run.output / f"{run.name}.txt", events))
            if tags.overview is not None:
                files.append(draw_tags(run.output / f"{run.name}.png", tags.overview, tags.starts, tags.ends, tags.scores, labels))
            if run.embeddings:
                files.append(_write_embeddings(run.output / f"{run.name}.npz", tags))
        return files

    # The example.

    def example(self, run: RunOptions) -> Iterable[Batch]:
        """Yield a scene of synthetic sounds, written as a file into the output folder."""
        from cnnkit_audio.tagging.example import write_scene

        writable_folder(run.output)
        sound, scene = write_scene(run.output / "example.wav", self.tagger.sample_rate)
        yield {"name": "example", "sound": sound, "scene": scene, "run": run}

    def summarise(self, predictions: Sequence[Tags], batch: Batch, run: RunOptions) -> dict[str, Any]:
        """Return what is in the scene beside what was heard there."""
        from cnnkit_audio.tagging.example import compare

        return compare(batch["scene"], predictions[0], self.cfg.tagging.names)

    def _synthetic(self) -> Batch:
        from cnnkit_audio.synth.classes import CLASSES

        labels = self.cfg.tagging.names
        sounds = SyntheticSounds(tuple(CLASSES), (1,), self.tagger.sample_rate, per_fold=1, seconds=max(self.tagger.window, 0.5))
        clips = torch.from_numpy(np.stack([sounds.clip(index)[:, : self.length] for index in range(4)]))
        target = torch.zeros(4, len(labels))
        target[torch.arange(4), torch.arange(4) % len(labels)] = 1
        return {"sound": clips, "target": target, "name": list(sounds.names[:4]), "fold": [1] * 4}


def embed_windows(model: Tagger, group: WindowGroup) -> Tensor:
    """Return the network's vector of each window; what overlapping ones have in common is computed once."""
    signal, stems = group.signal.to(next(model.parameters()).device), model.stems()
    if not stems:
        return torch.cat([model.embed(some) for some in replace(group, signal=signal).stack().split(BATCH)])
    stem = best_stem(stems, group.starts, group.length)
    return torch.cat([stem.rest(some) for some in window_features(stem, signal, group.starts, group.length).split(BATCH)])


def _merge(model: Tagger) -> Tagger:
    place = next(model.parameters())
    return merged(model, torch.zeros(1, 1, model.least, device=place.device, dtype=place.dtype))


def _say_padded(length: int, heard: int, rate: int) -> None:
    message = f"the recording lasts {heard / rate:.3g} s, less than the window of {length / rate:.3g} s: silence was added at its end"
    warnings.warn(message, InputWarning, stacklevel=2)


def _write_embeddings(path: Path, tags: Tags) -> Path:
    with atomic_path(path) as part:
        np.savez(part, embeddings=tags.embeddings, starts=tags.starts, ends=tags.ends)
    return path
