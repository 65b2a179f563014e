"""Which cases do these paths hold, and which files make up each?

Standard library only: the command line lists, shards and names cases before it imports anything heavy.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from cnnkit.errors import InputError

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl.gz", ".gipl", ".hdr", ".img")
"""Suffixes of the files that are read as volumes, longest first where one ends another."""

ACCEPTED = (
    "accepted are files (" + " ".join(SUFFIXES) + "), a folder of DICOM slices, a folder of such files or DICOM folders, "
    "and channels in files of their own (CASE_0000.nii.gz, CASE_0001.nii.gz, ...)"
)

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<number>\d{4})")
_IGNORED = frozenset({"DICOMDIR"})  # It carries the DICOM magic, but is an index without pixels.

Files = tuple[Path, ...]
Found = list[tuple[str, Path, Files | InputError]]
"""Case name, the path that tells two cases of one name apart, and the files or what is wrong with them."""


def split_suffix(path: Path) -> tuple[str, str]:
    """Split a file name into its stem and its volume suffix; the suffix is empty if it is not one of :data:`SUFFIXES`."""
    lower = path.name.lower()
    for suffix in SUFFIXES:
        if lower.endswith(suffix) and len(lower) > len(suffix):
            return path.name[: -len(suffix)], suffix
    return path.name, ""


def is_dicom(path: Path) -> bool:
    """Say whether a file is a DICOM object: by the magic at byte 128, or by the suffix ``.dcm``."""
    if path.name.startswith(".") or path.name.upper() in _IGNORED or not path.is_file():
        return False
    if path.suffix.lower() == ".dcm":
        return True
    try:
        with path.open("rb") as file:
            file.seek(128)
            return file.read(4) == b"DICM"
    except OSError:
        return False


def dicom_files(folder: Path) -> list[Path]:
    """Return the DICOM objects that lie directly in ``folder``, sorted by name."""
    return sorted(path for path in folder.iterdir() if not split_suffix(path)[1] and is_dicom(path))


def find_cases(paths: Sequence[Path | str], channels: int | None = None) -> dict[str, Files | InputError]:
    """Return the cases that lie at ``paths``, sorted by name.

    A value is the files of the case in the order of its channels (for DICOM, the one folder of the series), or the
    :class:`InputError` that says why the case cannot be read: one bad case leaves the others as they are. Two cases of one
    name are told apart by their folders: ``a/scan.nii.gz`` and ``b/scan.nii.gz`` become ``a_scan`` and ``b_scan``.

    Files of a folder that are no volumes are passed over; a file that was named itself and is no volume is an error.
    ``CASE_0000`` and ``CASE_0001`` are channels of ``CASE`` if number 0000 exists, or if the model takes several channels
    and the numbers fit; otherwise ``patient_0012`` is the name of a case.

    Args:
        paths: Files and folders, in any mixture.
        channels: Number of channels that the model takes, if known: a case in single-channel files must have all of them.

    Raises:
        InputError: If ``paths`` is empty.
    """
    if not paths:
        raise InputError(f"no input was given; {ACCEPTED}")
    files: dict[Path, None] = {}
    found: Found = []
    for path in dict.fromkeys(Path(path) for path in paths):
        if path.is_dir():
            _scan_folder(path, files, found)
        else:
            problem = _file_problem(path)
            if problem is None:
                files[path] = None
            else:
                found.append((split_suffix(path)[0], path, problem))
    found += _group(files, channels)
    return _unique_names(_without_repeats(found))


def _file_problem(path: Path) -> InputError | None:
    if not path.exists():
        return InputError(f"{path}: no such file or folder")
    if split_suffix(path)[1]:
        return None
    if is_dicom(path):
        return InputError(f"{path}: this is one DICOM object; give the folder of its series: {path.parent}")
    return InputError(f"{path}: not a volume that can be read; {ACCEPTED}")


def _scan_folder(folder: Path, files: dict[Path, None], found: Found) -> None:
    """Add the volumes of ``folder`` to ``files``, and it or the folders below it that hold DICOM objects to ``found``."""
    before = len(files) + len(found)
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        found.append((folder.name, folder, InputError(f"{folder}: cannot be listed: {error.strerror}")))
        return
    for path in entries:
        if path.is_file() and not path.name.startswith(".") and split_suffix(path)[1]:  # "._scan.nii.gz" is macOS metadata.
            files[path] = None
    for place, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if dicom_files(Path(place)):
            path = Path(place)
            found.append((path.name or path.absolute().name, path, (path,)))
    if len(files) + len(found) == before:
        name = folder.name or folder.absolute().name
        found.append((name, folder, InputError(f"{folder}: {'no volume in this folder' if entries else 'empty folder'}; {ACCEPTED}")))


def _group(files: Iterable[Path], channels: int | None) -> Found:
    """Put the channels of a case together, and check that none is missing."""
    listed = set(files)
    groups: dict[tuple[Path, str, str], dict[int, Path]] = defaultdict(dict)
    found: Found = []
    for path in sorted(listed):
        stem, suffix = split_suffix(path)
        pair = _header_of_pair(path, suffix, listed)
        if isinstance(pair, InputError):
            found.append((stem, path, pair))
        elif pair is not None:
            match = _CHANNEL.fullmatch(stem)
            if match:
                groups[path.parent, match["case"], suffix][int(match["number"])] = path
            else:
                found.append((stem, path, (path,)))
    for (folder, case, suffix), numbered in sorted(groups.items()):
        if _are_channels(numbered, channels):
            found.append((case, folder / f"{case}{suffix}", _check_channels(folder, case, suffix, numbered, channels)))
        else:
            found += [(split_suffix(path)[0], path, (path,)) for path in numbered.values()]
    return found


def _header_of_pair(path: Path, suffix: str, listed: set[Path]) -> Path | InputError | None:
    """Return the file to open: ``None`` for an ``.img`` whose ``.hdr`` is listed too, an error if its other half is missing."""
    if suffix not in (".hdr", ".img"):
        return path
    other = ".img" if suffix == ".hdr" else ".hdr"
    halves = [path.with_suffix(other), path.with_suffix(other.upper())]
    if not any(half.exists() for half in halves):
        return InputError(f"{path}: its other half is missing: {halves[0]}")
    return None if suffix == ".img" and any(half in listed for half in halves) else path


def _are_channels(numbered: dict[int, Path], channels: int | None) -> bool:
    return 0 in numbered or (channels is not None and channels > 1 and max(numbered) < channels)


def _check_channels(folder: Path, case: str, suffix: str, numbered: dict[int, Path], channels: int | None) -> Files | InputError:
    count = max(channels or 0, max(numbered) + 1)
    missing = [folder / f"{case}_{number:04d}{suffix}" for number in range(count) if number not in numbered]
    if channels is not None and max(numbered) >= channels:
        return InputError(
            f"{folder / case}{suffix}: its channels are numbered up to {max(numbered):04d}, and the model takes {channels}; "
            "remove the other files, or rename them if the number stands for a case and not for a channel"
        )
    if missing:
        wanted = f"; the model takes {channels} channels" if channels else ""
        given = ", ".join(path.name for _, path in sorted(numbered.items()))
        return InputError(f"missing channel file {', '.join(map(str, missing))} beside {given}{wanted}")
    return tuple(path for _, path in sorted(numbered.items()))


def _without_repeats(found: Found) -> Found:
    """Drop what was reached twice, for example by a folder and by a file of it."""
    kept: dict[tuple[str, str], tuple[str, Path, Files | InputError]] = {}
    for name, path, value in found:
        kept.setdefault((name, os.path.normpath(path.absolute())), (name, path, value))
    return list(kept.values())


def _unique_names(found: Found) -> dict[str, Files | InputError]:
    """Prefix the names that collide with as few parent folders as tell them apart; last resort, the suffix and a number."""
    by_name: dict[str, Found] = defaultdict(list)
    for item in found:
        by_name[item[0]].append(item)
    cases: dict[str, Files | InputError] = {}
    # Names that need no change come first, so that a prefixed name never takes the place of an original one.
    for name, items in sorted(by_name.items(), key=lambda pair: (len(pair[1]) > 1, pair[0])):
        items.sort(key=lambda item: str(item[1]))
        for candidate, item in zip(_told_apart(name, [item[1] for item in items]), items, strict=True):
            free, number = candidate, 2
            while free in cases:
                free, number = f"{candidate}_{number}", number + 1
            cases[free] = item[2]
    return dict(sorted(cases.items()))


def _told_apart(name: str, paths: list[Path]) -> list[str]:
    if len(paths) == 1:
        return [name]
    parents = [[part for part in Path(os.path.normpath(path.absolute())).parent.parts if part != os.sep] for path in paths]
    candidates = [name] * len(paths)
    if len({tuple(parts) for parts in parents}) > 1:
        for depth in range(1, max(map(len, parents)) + 1):
            candidates = ["_".join([*parts[-depth:], name]) for parts in parents]
            if len(set(candidates)) == len({tuple(parts) for parts in parents}):
                break
    if len(set(candidates)) < len(candidates):  # One folder, several suffixes.
        candidates = [
            candidate + split_suffix(path)[1].replace(".", "_") if candidates.count(candidate) > 1 else candidate
            for candidate, path in zip(candidates, paths, strict=True)
        ]
    return candidates
