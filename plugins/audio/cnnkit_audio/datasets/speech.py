"""Data sets of speech: Speech Commands, VoxCeleb, and distant speech as the CHiME challenges lay it out."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from cnnkit.errors import ConfigError, InputError

from cnnkit_audio.datasets.clips import Clip, Files, folders_in, sounds_in
from cnnkit_audio.transcripts import read_transcript

SPEECH_COMMANDS = "Speech Commands: WORD/FILE.wav for each word, validation_list.txt, testing_list.txt, and _background_noise_/"
VOXCELEB = "VoxCeleb: wav/SPEAKER/VIDEO/FILE.wav (or SPEAKER/VIDEO/FILE.wav)"
TRIALS = "a list of trials: a line '1 FILE FILE' for the same speaker, '0 FILE FILE' for two"
CHIME = (
    "CHiME: transcriptions/SPLIT/SESSION.json and audio/SPLIT/SESSION_U01.CH1.wav (or SESSION_CH01.flac) for each microphone; "
    "or, as CHiME-7 has it, a folder with these for each scenario"
)
_MICROPHONE = re.compile(r"(?:U(\d+)(?:\.CH(\d+))?|CH(\d+))\.(?:wav|flac)$")


class Trial(NamedTuple):
    """Two recordings, and whether they are of the same speaker."""

    same: bool
    first: Path
    second: Path


def speech_commands(folder: Path) -> list[Clip]:
    """Return the words by name, each with its speaker; the two lists say what is ``"val"`` and ``"test"``, the rest is ``"train"``.

    Raises:
        ConfigError: If there is no such data set.
        InputError: If a list names a file that is missing.
    """
    listed = {}
    files = Files(folder, expected=SPEECH_COMMANDS)
    for name, split in (("validation_list.txt", "val"), ("testing_list.txt", "test")):
        for line, text in enumerate(_lines(folder / name, SPEECH_COMMANDS), start=1):
            where = f"{folder / name} row {line}"
            listed[files.require(files.inside(text, where), where)] = split
    files.check()
    clips = [
        Clip(path, (word.name,), split=listed.get(path, "train"), speaker=path.stem.split("_nohash_")[0])
        for word in folders_in(folder, expected=SPEECH_COMMANDS)
        for path in sounds_in(word)
    ]
    if not clips:
        raise ConfigError(f"{folder} holds no recordings; expected {SPEECH_COMMANDS}")
    return clips


def background_noise(folder: Path) -> list[Clip]:
    """Return the long noises of Speech Commands, to be mixed in or cut into silence."""
    return [Clip(path) for path in sounds_in(folder / "_background_noise_")]


def voxceleb(folder: Path) -> list[Clip]:
    """Return the recordings by speaker, video and name; the speaker is also their label, the video their session.

    Raises:
        ConfigError: If there is no such data set.
    """
    root = voxceleb_root(folder)
    clips = [
        Clip(path, (speaker.name,), speaker=speaker.name, session=video.name)
        for speaker in folders_in(root, expected=VOXCELEB)
        for video in folders_in(speaker, expected=VOXCELEB)
        for path in sounds_in(video)
    ]
    if not clips:
        raise ConfigError(f"{folder} holds no recordings; expected {VOXCELEB}")
    return clips


def voxceleb_root(folder: Path) -> Path:
    """Return the folder of the speakers."""
    return folder / "wav" if (folder / "wav").is_dir() else folder


def read_trials(trials: Path, folder: Path) -> list[Trial]:
    """Read a list of trials, whose files are relative to the folder of the speakers.

    Raises:
        ConfigError: If there is no list.
        InputError: If a line is wrong, leads out of the folder, or names a file that is missing.
    """
    files, found = Files(voxceleb_root(folder), expected=VOXCELEB), []
    for line, text in enumerate(_lines(trials, TRIALS), start=1):
        where = f"{trials} row {line}"
        parts = text.split()
        if len(parts) != 3 or parts[0] not in ("0", "1"):
            raise InputError(f"{where}: {text!r} is no trial; expected {TRIALS}")
        first, second = (files.require(files.inside(name, where), where) for name in parts[1:])
        found.append(Trial(parts[0] == "1", first, second))
    files.check()
    return found


def chime(folder: Path, split: str) -> list[Clip]:
    """Return the utterances of a split, in order of time, each with the files of all distant microphones of its session.

    Close-talking microphones (``SESSION_P05.wav``) are left out; of ``SESSION_CH01.flac``, where names do not tell, all are taken. Of
    CHiME-7's scenarios those count that have the split.

    Args:
        folder: Root of the data set, or the folder of the scenarios (``chime6/``, ``dipco/``, ``mixer6/``).
        split: Folder below ``audio`` and ``transcriptions``, for example ``"dev"``.

    Raises:
        ConfigError: If there is no such data set.
        InputError: If a transcription is wrong, or a session has no recordings.
    """
    roots = {"": folder}
    if not (folder / "transcriptions").is_dir():
        roots = {root.name: root for root in folders_in(folder, expected=CHIME) if (root / "transcriptions").is_dir()}
    clips = []
    for scenario, root in roots.items():
        place = Files(root / "transcriptions", expected=CHIME).inside(split, "split")
        for table in sorted(place.glob("*.json")):
            clips += [replace(clip, scenario=scenario) for clip in _session(table, root / "audio" / split)]
    if not clips:
        raise ConfigError(f"{folder} holds no transcriptions of the split {split!r}; expected {CHIME}")
    return clips


def _session(table: Path, audio: Path) -> list[Clip]:
    name = table.stem
    microphones = {}
    for path in sounds_in(audio):
        match = _MICROPHONE.match(path.name[len(name) + 1 :]) if path.name.startswith(f"{name}_") else None
        if match:
            microphones[tuple(int(number or 0) for number in match.groups())] = path
    if not microphones:
        raise InputError(f"{audio} holds no recording of session {name}; expected {CHIME}")
    channels = tuple(path for _, path in sorted(microphones.items()))
    clips = []
    for number, item in enumerate(read_transcript(table), start=1):
        if item.end == item.start:
            raise InputError(f"{table} entry {number}: lasts no time, from {item.start} s to {item.end} s")
        clips.append(
            Clip(channels[0], start=item.start, end=item.end, channels=channels, speaker=item.speaker, text=item.words, session=name)
        )
    return sorted(clips, key=lambda clip: (clip.start, clip.speaker))


def _lines(path: Path, expected: str) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; expected {expected}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
