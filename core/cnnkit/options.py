"""Options of ``run`` as dataclass fields: one declaration gives the command line, its help and the Python call.

Standard library only: a plugin's ``args.py`` derives its ``Run`` from :class:`RunOptions` and imports nothing heavier.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cnnkit.errors import InputError, UsageError, unknown


def option(default: Any, help: str, *, choices: Sequence[str] = (), metavar: str = "") -> Any:
    """Declare a dataclass field that becomes an option of ``run``.

    Args:
        default: Its default; ``bool`` becomes a ``--name/--no-name`` switch.
        help: One sentence for ``--help``.
        choices: Accepted words, if they are few.
        metavar: What ``--help`` shows in place of the value.
    """
    metadata = {"help": help, "choices": tuple(choices), "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class RunOptions:
    """What every ``run`` has; a plugin adds its own fields by :func:`option`.

    Args:
        inputs: Files and folders as they were given.
        output: Folder for the outputs.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
        name: Name of the one input that is being processed; set by the core.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    """File name endings that are picked from a folder; empty for all."""

    inputs: tuple[Path, ...] = ()
    output: Path = Path("out")
    device: str = "auto"
    name: str = ""

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):  # The command line checks by itself; this is for calls from Python.
            choices, value = item.metadata.get("choices"), getattr(self, item.name)
            if choices and value is not None and value not in choices:
                raise UsageError(unknown(f"value of option {item.name!r}:", value, choices))

    def group(self) -> Mapping[str, tuple[Path, ...] | InputError]:
        """Return the files of each input by a unique name, in a stable order.

        A folder stands for the files in it. A task whose inputs are several files, or a folder, overrides this.
        An input that cannot be used stands in the mapping as its error, so that the others go on.
        """
        return name_inputs(expand(self.inputs, self.suffixes), self.suffixes)

    def builtin(self, checkpoint: str) -> str:
        """Return which of the plugin's built-in checkpoints these options ask for, given the one of the manifest.

        Raises:
            UsageError: If none serves them.
        """
        return checkpoint


def expand(paths: Sequence[Path], suffixes: Sequence[str]) -> list[Path | tuple[Path, InputError]]:
    """Replace folders by the files in them that end in one of ``suffixes``; keep unusable paths with their error."""
    found: list[Path | tuple[Path, InputError]] = []
    for path in paths:
        if path.is_dir():
            try:
                inside = sorted(item for item in path.iterdir() if item.is_file() and has_suffix(item, suffixes) and item.name[0] != ".")
            except OSError as error:
                found.append((path, InputError(f"folder {path} cannot be listed: {error.strerror}")))
                continue
            accepted = ", ".join(suffixes) or "any file"
            found += inside or [(path, InputError(f"folder {path} holds no input; accepted: {accepted}"))]
        elif not path.exists():
            found.append((path, InputError(f"{path} does not exist")))
        elif not has_suffix(path, suffixes):
            found.append((path, InputError(f"{path} is not an accepted kind of file; accepted: {', '.join(suffixes)}")))
        else:
            found.append(path)
    return found


def has_suffix(path: Path, suffixes: Sequence[str]) -> bool:
    """Tell whether the file name ends in one of ``suffixes`` (case does not matter; none accepts all)."""
    return not suffixes or path.name.lower().endswith(tuple(suffixes))


def name_inputs(items: Sequence[Path | tuple[Path, InputError]], suffixes: Sequence[str] = ()) -> dict[str, tuple[Path, ...] | InputError]:
    """Name each path by its stem, and by as many parent folders as make the names differ.

    Files of one folder that differ in their suffix alone (``scan.png``, ``scan.jpg``) keep it as ``scan_png``, ``scan_jpg``.
    """
    paths = [item[0] if isinstance(item, tuple) else item for item in items]
    places = {path: Path(os.path.normpath(path.absolute())) for path in paths}  # Not resolved: a link's own name is what people know.
    unique = list(dict.fromkeys(places.values()))
    deepest = max((len(place.parts) for place in unique), default=1)
    tries = [(depth, keep) for keep in (False, True) for depth in range(1, deepest + 1)]
    for depth, keep in tries:
        names = {place: _name(place, depth, suffixes, keep_suffix=keep) for place in unique}
        if len(set(names.values())) == len(names):
            break
    else:  # Names that meet only after the suffix was joined on: a number tells them apart.
        names = {place: f"{name}_{number}" for number, (place, name) in enumerate(names.items(), start=1)}
    result: dict[str, tuple[Path, ...] | InputError] = {}
    for item, path in zip(items, paths, strict=True):
        result.setdefault(names[places[path]], item[1] if isinstance(item, tuple) else (path,))
    return result


def _name(place: Path, depth: int, suffixes: Sequence[str], *, keep_suffix: bool) -> str:
    *parents, last = place.parts[-depth:]
    ending = next((suffix for suffix in sorted(suffixes, key=len, reverse=True) if last.lower().endswith(suffix)), place.suffix)
    stem = last[: len(last) - len(ending)] or last
    if keep_suffix and stem != last:
        stem += last[len(stem) :].replace(".", "_")
    return "_".join((*filter(None, (parent.strip("/\\:") for parent in parents)), stem))


@dataclass(frozen=True)
class Shard:
    """One part of a batch that several machines share: part ``index`` (from 1) of ``count``."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``"2/8"``.

        Raises:
            UsageError: If it is not of that form.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError(f"--shard {text!r} is not of the form I/N with 1 <= I <= N; type for example --shard 2/8")
        return cls(int(match[1]), int(match[2]))

    def takes(self, position: int) -> bool:
        """Tell whether the input at ``position`` of the whole list belongs to this part."""
        return position % self.count == self.index - 1

    @property
    def suffix(self) -> str:
        """What is added to the names of the report files, so that parts do not overwrite each other."""
        return "" if self.count == 1 else f"-{self.index}of{self.count}"
