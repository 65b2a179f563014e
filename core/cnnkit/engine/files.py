"""Atomic outputs: a file is either whole under its name, or not there.

Standard library only.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cnnkit.errors import UsageError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its name when the block ends well.

    The temporary name keeps all suffixes (``.nii.gz``), because writers choose the format by them.
    On an exception the temporary file is removed and ``path`` is left as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = path.name[-100:]  # A long name must not become too long for the file system.
    handle, name = tempfile.mkstemp(prefix=f".part-{os.getpid()}@{_host()}-", suffix="-" + ending, dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o666 & ~_umask())  # mkstemp's 0600 would hide results from colleagues.
        with open(part, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def remove_stale_parts(folder: str | os.PathLike[str]) -> None:
    """Remove what a killed process of this machine left half written in ``folder``.

    Parts of living processes, and of other machines that share the folder, stay.
    """
    for part in Path(folder).glob(f".part-*@{_host()}-*"):
        match = re.match(r"\.part-(\d+)@", part.name)
        if match and not _alive(int(match[1])):
            part.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # It lives and belongs to somebody else.
        return True
    return True


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 text atomically and return the path."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | os.PathLike[str], data: Any) -> Path:
    """Write indented JSON atomically and return the path."""
    return write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def write_rows(path: str | os.PathLike[str], rows: Iterable[Iterable[Any]]) -> Path:
    """Write a table as CSV atomically, its head first, and return the path."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return write_text(path, text.getvalue())


def writable_folder(path: str | os.PathLike[str]) -> Path:
    """Create the folder if needed and prove that a file can be written in it.

    Raises:
        UsageError: If it cannot, naming the folder and the system's reason.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=".probe-", dir=path):
            pass
    except OSError as error:
        raise UsageError(f"output folder {path} is not writable ({error.strerror or error}); choose another with -o") from error
    return path
