"""The journal of a batch: one small file per finished input, so that a killed run goes on where it stood.

Standard library only. A record is written atomically after the outputs of its input; it names what made them (the
checkpoint, the options, the input files with size and time) and the outputs with their sizes. Several machines may
work on parts of the same batch in the same folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cnnkit.engine.files import write_json

FOLDER = ".cnnkit"


class Journal:
    """Records of finished inputs in ``output/.cnnkit``.

    Args:
        output: The output folder of the run.
        context: What determines the outputs besides the input: checkpoint, options, versions.
    """

    def __init__(self, output: Path, context: Any) -> None:
        self.output = output
        self.folder = output / FOLDER / "journal"
        self.context = _digest(context)

    def finished(self, name: str, files: Sequence[Path]) -> list[Path] | None:
        """Return the outputs of ``name`` if they were made from the same files in the same way and are all there."""
        try:
            record = json.loads(self._file(name).read_text(encoding="utf-8"))
            key, sizes = record["key"], dict(record["outputs"])
        except (OSError, ValueError, KeyError, TypeError):  # A record that cannot be read is no record.
            return None
        if key != self._key(name, files):
            return None
        outputs = {self.output / path: size for path, size in sizes.items()}
        whole = all(path.is_file() and path.stat().st_size == size for path, size in outputs.items())
        return list(outputs) if whole else None

    def finish(self, name: str, files: Sequence[Path], outputs: Iterable[Path]) -> None:
        """Record that ``name`` is finished."""
        sizes = {str(path.relative_to(self.output)): path.stat().st_size for path in outputs}
        write_json(self._file(name), {"name": name, "key": self._key(name, files), "outputs": sizes})

    def forget(self, name: str) -> None:
        """Remove the record of ``name``, because its outputs are about to be replaced."""
        self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self.folder / f"{_digest(name)[:20]}.json"

    def _key(self, name: str, files: Sequence[Path]) -> str:
        inside = [item for path in files for item in ([path] if path.is_file() else sorted(path.rglob("*")))]
        stats = [(str(item.resolve()), item.stat().st_size, item.stat().st_mtime_ns) for item in inside if item.is_file()]
        return _digest([name, self.context, stats])


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()
