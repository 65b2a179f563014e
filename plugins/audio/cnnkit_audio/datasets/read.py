"""A data set by the name of its layout, divided into training, validation and test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from zlib import crc32

from cnnkit.errors import ConfigError, unknown

from cnnkit_audio.data_config import DataConfig
from cnnkit_audio.datasets.audioset import TEST, TRAIN, audioset, audioset_labels
from cnnkit_audio.datasets.clips import Clip, Clips, folders_in, sounds_in
from cnnkit_audio.datasets.environment import esc50, esc50_labels, fsd50k, fsd50k_labels, urbansound8k, urbansound8k_labels
from cnnkit_audio.datasets.speech import speech_commands, voxceleb

FOLDERS = "a folder per class, CLASS/FILE; or these below train/, val/ and test/"
FOLDS = 5
"""Folds that a plain folder per class is divided into."""
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "eval": "test",
}


def read_dataset(cfg: DataConfig) -> Clips:
    """Return the clips of ``cfg.folder`` by ``cfg.layout``.

    Raises:
        ConfigError: If no folder is named, it is not laid out so, or ``cfg.fold`` is none of its folds.
        InputError: If a row of a table is wrong, naming it.
    """
    if cfg.layout not in LAYOUTS:
        raise ConfigError(unknown("layout of recordings: data.layout =", cfg.layout, LAYOUTS))
    if not cfg.folder:
        raise ConfigError(f"data.folder names no folder; data.layout={cfg.layout} wants one: --set data.folder=FOLDER")
    folder = Path(cfg.folder).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"data.folder={cfg.folder} is no folder")
    return LAYOUTS[cfg.layout](folder, cfg)


def folders(folder: Path) -> list[Clip]:
    """Return the clips of a folder per class.

    Without folders ``train``, ``val`` and ``test`` above the classes, each clip has one of five folds, by its name alone, so that new
    clips leave the folds of the others as they were.

    Raises:
        ConfigError: If there are no such folders.
    """
    top = folders_in(folder, expected=FOLDERS)
    if any(_SPLITS.get(part.name.lower()) == "train" and not sounds_in(part) for part in top):
        splits = [(part, _SPLITS[part.name.lower()]) for part in top if part.name.lower() in _SPLITS]
        clips = [
            Clip(path, (kind.name,), split=split)
            for part, split in splits
            for kind in folders_in(part, expected=FOLDERS)
            for path in sounds_in(kind)
        ]
    else:
        clips = [Clip(path, (kind.name,), fold=1 + crc32(path.name.encode()) % FOLDS) for kind in top for path in sounds_in(kind)]
    if not clips:
        raise ConfigError(f"{folder} holds no recordings; expected {FOLDERS}")
    return clips


def by_fold(clips: Sequence[Clip], labels: Sequence[str], fold: int) -> Clips:
    """Return the data set with one fold held out.

    Raises:
        ConfigError: If there is no such fold.
    """
    folds = sorted({clip.fold for clip in clips if clip.fold is not None})
    if fold not in folds:
        raise ConfigError(f"data.fold={fold} is no fold of this data set; accepted: {', '.join(map(str, folds))}")
    held_out = tuple(clip for clip in clips if clip.fold == fold)
    return Clips(tuple(clip for clip in clips if clip.fold != fold), held_out, held_out, tuple(labels))


def by_split(clips: Sequence[Clip], labels: Sequence[str], *, multilabel: bool = False) -> Clips:
    """Return the data set as its lists divide it; where they name no validation (or no test), the other one serves for both.

    Raises:
        ConfigError: If nothing is left to train on.
    """
    train, val, test = (tuple(clip for clip in clips if clip.split == split) for split in ("train", "val", "test"))
    if not train:
        raise ConfigError("the lists of this data set leave nothing to train on")
    return Clips(train, val or test, test or val, tuple(labels), multilabel)


def all_labels(clips: Sequence[Clip]) -> tuple[str, ...]:
    """Return the labels of clips in alphabetical order."""
    return tuple(sorted({label for clip in clips for label in clip.labels}))


def _esc(folder: Path, cfg: DataConfig) -> Clips:
    small = cfg.layout == "esc10"
    return by_fold(esc50(folder, esc10=small), esc50_labels(folder, esc10=small), cfg.fold)


def _urban(folder: Path, cfg: DataConfig) -> Clips:
    return by_fold(urbansound8k(folder), urbansound8k_labels(folder), cfg.fold)


def _audioset(folder: Path, cfg: DataConfig) -> Clips:
    clips = audioset(folder, cfg.train_list or TRAIN, split="train") + audioset(folder, cfg.test_list or TEST, split="test")
    return by_split(clips, audioset_labels(folder), multilabel=True)


def _fsd(folder: Path, cfg: DataConfig) -> Clips:
    return by_split(fsd50k(folder), fsd50k_labels(folder), multilabel=True)


def _words(folder: Path, cfg: DataConfig) -> Clips:
    clips = speech_commands(folder)
    return by_split(clips, all_labels(clips))


def _speakers(folder: Path, cfg: DataConfig) -> Clips:
    """All recordings are for training: who is to be recognised later is not among them."""
    clips = voxceleb(folder)
    return Clips(tuple(clips), (), (), all_labels(clips))


def _folders(folder: Path, cfg: DataConfig) -> Clips:
    clips = folders(folder)
    divided = any(clip.split for clip in clips)
    return by_split(clips, all_labels(clips)) if divided else by_fold(clips, all_labels(clips), cfg.fold)


LAYOUTS: dict[str, Callable[[Path, DataConfig], Clips]] = {
    "esc50": _esc,
    "esc10": _esc,
    "urbansound8k": _urban,
    "audioset": _audioset,
    "fsd50k": _fsd,
    "speech_commands": _words,
    "voxceleb": _speakers,
    "folders": _folders,
}
"""How each layout is read."""
