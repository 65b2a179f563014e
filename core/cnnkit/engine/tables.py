"""The log of a training: CSV tables that survive a kill, and TensorBoard event files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnnkit.engine.files import write_text


class Table:
    """A CSV file that grows by rows and, if need be, by columns.

    Lightning's CSVLogger deletes an existing file when a training is resumed; this one goes on with it.

    Args:
        path: The file.
        key: Column with a number that grows.
        upto: Rows of an existing file are kept up to this number: what a killed process wrote later is written again.
    """

    def __init__(self, path: Path, *, key: str, upto: int) -> None:
        self.path = path
        self.columns: list[str] = []
        kept = [row for row in read_table(path) if 0 < _integer(row.get(key)) <= upto] if path.exists() else []
        if kept:
            self.columns = list(kept[0])
            self._rewrite(kept)
        else:
            path.unlink(missing_ok=True)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row; it is in the file when this returns."""
        new = [name for name in row if name not in self.columns]
        if new:
            self.columns += new
            self._rewrite([*(read_table(self.path) if self.path.exists() else []), row])
        else:
            with open(self.path, "a", encoding="utf-8", newline="") as stream:
                self._writer(stream).writerow(row)

    def _rewrite(self, rows: list[Any]) -> None:
        text = io.StringIO()
        writer = self._writer(text)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())

    def _writer(self, stream: Any) -> csv.DictWriter[str]:
        return csv.DictWriter(stream, self.columns, restval="", lineterminator="\n")


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file as text by column; a line that a kill cut short is left out."""
    with open(path, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [row for row in rows if None not in row and None not in row.values()]


def _integer(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0


class EventFiles:
    """TensorBoard event files.

    Args:
        folder: Where they are written.
        after: A resumed training hides what was written for later steps.
    """

    def __init__(self, folder: Path, *, after: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=after + 1 if after else None)

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Add figures of one optimizer step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the files."""
        self._writer.close()
