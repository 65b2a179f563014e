"""Which HR pictures does a folder hold, and which LR picture belongs to each? No torch, no picture is opened.

The field's layouts are known by their names (``s`` is the scale):

* a plain folder of pictures, without LR pictures;
* DIV2K: ``DIV2K_train_HR/0001.png`` beside ``DIV2K_train_LR_bicubic/X4/0001x4.png``, and BasicSR's cut pictures in
  ``DIV2K_train_HR_sub`` beside ``DIV2K_train_LR_bicubic/X4_sub``;
* BasicSR's benchmarks: ``Set5/GTmod4`` (or ``GTmod12``, ``original``) beside ``Set5/LRbicx4``;
* EDSR's benchmarks: ``Set5/HR/baby.png`` beside ``Set5/LR_bicubic/X4/babyx4.png``;
* SelfExSR's: ``Set5/image_SRF_4/img_001_SRF_4_HR.png`` beside ``img_001_SRF_4_LR.png``;
* BasicSR's lists: ``meta_info.txt`` with lines ``0001_s001.png (480,480,3)`` or ``gt/0001.png, lq/0001x4.png``. Files in a list may not
  leave the list's folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnkit.errors import ConfigError, InputError
from numpy.typing import NDArray

from cnnkit_superres.pictures import SUFFIXES, VIDEO_FORMATS

META_INFO = "meta_info.txt"
"""The list of pictures that BasicSR keeps in a folder."""

STILLS = tuple(suffix for suffix in SUFFIXES if suffix[1:] not in VIDEO_FORMATS)
"""The endings of the files that are taken for pictures."""

_LINE = re.compile(r"(?P<name>.+?)\s+\((?P<height>\d+),\s*(?P<width>\d+),\s*\d+\)(?:\s+\d+)?")
_SHOWN = 10  # Problems that a message lists.


@dataclass(frozen=True, eq=False)
class Pair:
    """An HR picture and its LR picture: files, or pixels that are in memory already.

    Args:
        name: Name of the picture, without suffix.
        hr: A file, or ``(H, W, C)`` uint8.
        lr: A file, or ``(h, w, C)`` uint8; ``None`` if it has to be made.
        dataset: Name of the dataset.
        size: Height and width of the HR picture, where a list states them.
    """

    name: str
    hr: Path | NDArray
    lr: Path | NDArray | None = None
    dataset: str = ""
    size: tuple[int, int] | None = None


def find_pairs(folder: Path | str, scale: int, *, lr_folder: Path | str | None = None) -> tuple[Pair, ...]:
    """Return the pictures of a folder in one of the layouts, sorted by name, or in the order of a list.

    Args:
        folder: A folder of pictures or a dataset's folder, or a ``meta_info.txt``.
        scale: Factor between HR and LR.
        lr_folder: Where the LR pictures are; by default they are looked for beside the HR pictures.

    Raises:
        ConfigError: If there is no such folder, or several that it could mean, or a list is not understood.
        InputError: If there is no picture, or an LR picture is missing.
    """
    folder = Path(folder)
    if lr_folder is not None and not Path(lr_folder).is_dir():
        raise ConfigError(f"{lr_folder} is not a folder; name the folder of the LR pictures of {folder}")
    given = None if lr_folder is None else _deepest(Path(lr_folder), scale)
    if folder.is_file() and folder.suffix == ".txt":
        return _read_list(folder, scale, given)
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder of pictures; name one, or a {META_INFO}")
    if (folder / META_INFO).is_file():
        return _read_list(folder / META_INFO, scale, given)
    hr_folder = _hr_folder(folder, scale)
    ending = f"_SRF_{scale}_HR"
    files = _pictures(hr_folder)
    marked = [file for file in files if file.stem.endswith(ending)]  # Beside them lie LR pictures and other people's results.
    found = given or _lr_folder(hr_folder, scale, marked=bool(marked))
    lr = None if found is None else LowResolution(found, scale)
    dataset = hr_folder.parent.name if _is_layout(hr_folder.name) else hr_folder.resolve().name
    names = [(file.stem.removesuffix(ending), file) for file in marked or files]
    return _complete([Pair(name, file, None if lr is None else lr.find(name), dataset) for name, file in names], lr)


class LowResolution:
    """The LR pictures of a folder by the names of their HR pictures.

    Args:
        folder: The folder.
        scale: Factor, which names may end with.
    """

    def __init__(self, folder: Path, scale: int) -> None:
        self.folder = folder
        self.endings = (f"x{scale}", f"_x{scale}", "", "_LR", f"_SRF_{scale}_LR", f"_LRBI_x{scale}")
        self._files = {file.stem: file for file in reversed(_pictures(folder))}

    def find(self, name: str) -> Path | None:
        """Return the file for an HR picture ``NAME``: ``NAMEx4``, ``NAME_x4``, ``NAME``, ``NAME_LR``, ``NAME_SRF_4_LR`` ..."""
        name = name.removesuffix("_HR")
        return next((self._files[name + ending] for ending in self.endings if name + ending in self._files), None)


def _complete(pairs: Sequence[Pair], lr: LowResolution | None) -> tuple[Pair, ...]:
    """Return the pairs if none lacks an LR picture that others of its folder have."""
    missing = [f"  {pair.hr}" for pair in pairs if lr is not None and pair.lr is None]
    if lr is not None and missing:
        looked = ", ".join("NAME" + ending for ending in lr.endings)
        raise InputError(listed(f"{lr.folder} has no LR picture (looked for {looked}) for", missing))
    return tuple(pairs)


def listed(heading: str, problems: Sequence[str]) -> str:
    """Return a message with the first problems, one a line, and the number of the others."""
    more = len(problems) - _SHOWN
    return "\n".join([heading + ":", *problems[:_SHOWN], *([f"  and {more} more"] if more > 0 else [])])


def _pictures(folder: Path) -> list[Path]:
    """Return the pictures directly in a folder, without the hidden ones that macOS scatters."""
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(file for file in files if file.suffix.lower() in STILLS and not file.name.startswith(".") and file.is_file())


def _hr_names(scale: int) -> tuple[str, ...]:
    """Return the names that folders of HR pictures have inside of a dataset, the most exact first."""
    return (f"GTmod{scale}", *(["GTmod12"] if 12 % scale == 0 else []), "HR", "GT", "original", f"image_SRF_{scale}")


def _is_layout(name: str) -> bool:
    return re.fullmatch(r"GTmod\d+|HR|GT|original|image_SRF_\d+", name) is not None


def _hr_folder(folder: Path, scale: int) -> Path:
    if _pictures(folder):
        return folder
    named = [folder / name for name in _hr_names(scale) if _pictures(folder / name)]
    if named:
        return named[0]
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    ending = [path for path in inside if path.name.endswith("_HR") and _pictures(path)]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise ConfigError(f"{folder} holds several folders of HR pictures; name one of {', '.join(str(path) for path in ending)}")
    hint = f"; it holds the folders {', '.join(path.name for path in inside[:_SHOWN])}: name one of them" if inside else ""
    raise InputError(f"{folder} holds no picture ({', '.join(STILLS)}) and no folder {' or '.join(_hr_names(scale))}{hint}")


def _lr_folder(hr_folder: Path, scale: int, *, marked: bool) -> Path | None:
    """Return the folder of LR pictures that a layout has beside this one, if it is there."""
    if marked:
        return hr_folder
    name, parent = hr_folder.name, hr_folder.parent
    candidates: list[Path] = []
    if _is_layout(name):
        candidates = [parent / f"LRbicx{scale}", parent / "LR_bicubic" / f"X{scale}"]
    elif name.endswith(("_HR", "_HR_sub")):
        stem, _, sub = name.rpartition("_HR")
        candidates = [parent / f"{stem}_LR_bicubic" / f"X{scale}{sub}"]
    return next((path for path in candidates if _pictures(path)), None)


def _deepest(folder: Path, scale: int) -> Path:
    """Return the folder of LR pictures itself, where that of all scales was named."""
    if _pictures(folder):
        return folder
    inside = [folder / name for name in (f"X{scale}", f"LRbicx{scale}", f"LR_bicubic/X{scale}") if _pictures(folder / name)]
    if not inside:
        raise InputError(f"{folder} holds no LR picture ({', '.join(STILLS)}), and neither does a folder X{scale} in it")
    return inside[0]


def _read_list(file: Path, scale: int, lr_folder: Path | None) -> tuple[Pair, ...]:
    """Read a BasicSR list: a picture with its size, or a pair of pictures, on a line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read as a list of pictures: {error}") from error
    root, pairs, missing = file.parent, [], []
    folders: dict[Path, LowResolution] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        names = [match["name"]] if match else [name.strip() for name in line.split(",")]
        if len(names) > 2 or not all(names):
            raise ConfigError(f"{file}, line {number}: {line.strip()!r} is neither 'NAME (HEIGHT,WIDTH,CHANNELS)' nor 'HR, LR'")
        inside = [_inside(root, name, f"{file}, line {number}") for name in names]
        missing += [f"  line {number}: {path}" for path in inside if not path.is_file()]
        lr = inside[1] if len(inside) == 2 else None
        if lr is None and lr_folder is not None:
            place = lr_folder / inside[0].parent.relative_to(root)
            lr = folders.setdefault(place, LowResolution(place, scale)).find(inside[0].stem)
            missing += [] if lr else [f"  line {number}: the LR picture of {inside[0]}, in {place}"]
        size = (int(match["height"]), int(match["width"])) if match else None
        pairs.append(Pair(inside[0].stem, inside[0], lr, root.resolve().name, size))
    if missing:
        raise InputError(listed(f"{file} names pictures that do not exist", missing))
    if not pairs:
        raise InputError(f"{file} is an empty list; a line 'NAME (HEIGHT,WIDTH,CHANNELS)' for each picture is expected")
    return tuple(pairs)


def _inside(root: Path, name: str, where: str) -> Path:
    """Return the file that a list names, if it lies in the list's folder."""
    base = os.path.abspath(root)
    full = os.path.normpath(os.path.join(base, name))
    if os.path.commonpath([base, full]) != base or full == base:
        raise ConfigError(f"{where}: {name!r} leaves the list's folder {root}; only files inside of it are read")
    return root / os.path.relpath(full, base)


def find_all(folders: Iterable[Path | str], scale: int, *, lr_folders: Sequence[Path | str] = ()) -> tuple[Pair, ...]:
    """Return the pairs of several folders, one folder after another; see :func:`find_pairs`."""
    folders = list(folders)
    lr: Sequence[Path | str | None] = lr_folders or [None] * len(folders)
    return tuple(pair for folder, low in zip(folders, lr, strict=True) for pair in find_pairs(folder, scale, lr_folder=low))
