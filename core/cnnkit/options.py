"""Options of ``run`` as dataclass fields: one declaration gives the command line, its help and the Python call.

Standard library only: a plugin's ``args.py`` derives its ``Run`` from :class:`RunOptions` and imports nothing heavier.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cnnkit.errors import InputError, UsageError


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

    def group(self) -> Mapping[str, tuple[Path, ...] | InputError]:
        """Return the files of each input by a unique name, in a stable order.

        A folder stands for the files in it. A task whose inputs are several files, or a folder, overrides this.
        An input that cannot be used stands in the mapping as its error, so that the others go on.
        """
        return name_inputs(expand(self.inputs, self.suffixes), self.suffixes)


def expand(paths: Sequence[Path], suffixes: Sequence[str]) -> list[Path | tuple[Path, InputError]]:
    """Replace folders by the files in them that end in one of ``suffixes``; keep unusable paths with their error."""
    found: list[Path | tuple[Path, InputError]] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(item for item in path.iterdir() if item.is_file() and has_suffix(item, suffixes) and item.name[0] != ".")
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
    """Name each path by its stem, and by as many parent folders as make the names differ."""
    paths = [item[0] if isinstance(item, tuple) else item for item in items]
    unique = list(dict.fromkeys(paths))
    deepest = max((len(path.resolve().parts) for path in unique), default=1)
    for depth in range(1, deepest + 1):
        names = {path: _name(path, depth, suffixes) for path in unique}
        if len(set(names.values())) == len(names):
            break
    else:  # Files that differ in their suffix alone: scan.png beside scan.jpg.
        names = {path: "_".join(path.resolve().parts[-depth:]) for path in unique}
    result: dict[str, tuple[Path, ...] | InputError] = {}
    for item, path in zip(items, paths, strict=True):
        result.setdefault(names[path], item[1] if isinstance(item, tuple) else (path,))
    return result


def _name(path: Path, depth: int, suffixes: Sequence[str]) -> str:
    *parents, last = path.resolve().parts[-depth:]
    ending = next((suffix for suffix in sorted(suffixes, key=len, reverse=True) if last.lower().endswith(suffix)), path.suffix)
    return "_".join((*(parent.strip("/\\:") for parent in parents), last[: len(last) - len(ending)] or last)).strip("_")


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
