"""Data sets of speech: Speech Commands, VoxCeleb, and distant speech as the CHiME challenges lay it out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from cnnkit.errors import ConfigError, InputError

from cnnkit_audio.datasets.clips import Clip, Files, folders_in, sounds_in

SPEECH_COMMANDS = "Speech Commands: WORD/FILE.wav for each word, validation_list.txt, testing_list.txt, and _background_noise_/"
VOXCELEB = "VoxCeleb: wav/SPEAKER/VIDEO/FILE.wav (or SPEAKER/VIDEO/FILE.wav)"
TRIALS = "a list of trials: a line '1 FILE FILE' for the same speaker, '0 FILE FILE' for two"
CHIME = "CHiME: transcriptions/SPLIT/SESSION.json and audio/SPLIT/SESSION_U01.CH1.wav (or SESSION_CH01.flac) for each microphone"
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

    Close-talking microphones (``SESSION_P05.wav``) are left out; of ``SESSION_CH01.flac``, where names do not tell, all are taken.

    Args:
        folder: Root of the data set.
        split: Folder below ``audio`` and ``transcriptions``, for example ``"dev"``.

    Raises:
        ConfigError: If there is no such data set.
        InputError: If a transcription is wrong, or a session has no recordings.
    """
    place = Files(folder / "transcriptions", expected=CHIME).inside(split, "split")
    sessions = sorted(place.glob("*.json"))
    if not sessions:
        raise ConfigError(f"{place} holds no transcriptions; expected {CHIME}")
    return [clip for session in sessions for clip in _session(session, folder / "audio" / split)]


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
    try:
        entries = json.loads(table.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{table} cannot be read as json: {error}") from error
    if not isinstance(entries, list):
        raise InputError(f"{table} is not a list of utterances")
    clips = []
    for number, entry in enumerate(entries, start=1):
        where = f"{table} entry {number}"
        if not isinstance(entry, dict):
            raise InputError(f"{where}: not an utterance (start_time, end_time, words, speaker)")
        start, end = (_seconds(entry.get(key), f"{where}: {key}") for key in ("start_time", "end_time"))
        if end <= start:
            raise InputError(f"{where}: ends at {end} s, before it starts at {start} s")
        words, speaker = str(entry.get("words", "")), str(entry.get("speaker", ""))
        clips.append(Clip(channels[0], start=start, end=end, channels=channels, speaker=speaker, text=words, session=name))
    return sorted(clips, key=lambda clip: (clip.start, clip.speaker))


def _seconds(value: Any, where: str) -> float:
    """Return the seconds of ``11.37`` or, as CHiME-6 has it, ``0:00:11.37``."""
    if re.fullmatch(r"(\d+:)?(\d+:)?\d+(\.\d*)?", str(value)) is None:
        raise InputError(f"{where}={value!r} is no time; accepted: seconds or H:MM:SS")
    seconds = 0.0
    for part in str(value).split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def _lines(path: Path, expected: str) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; expected {expected}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
