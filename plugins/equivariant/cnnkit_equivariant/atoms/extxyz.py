"""Where the frames of an xyz or extxyz file lie, so that a damaged one is found and the next one is not lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True)
class Span:
    """One frame.

    Args:
        start: Byte at which it begins.
        stop: Byte after its last.
        problem: Why it cannot be read, or empty.
    """

    start: int
    stop: int
    problem: str = ""


def spans(stream: BinaryIO) -> list[Span]:
    """Find the frames of a file.

    A frame is a line with the number of its atoms, a line about it, and a line for each atom. Where that does not hold, the next line with
    nothing but a number begins the next frame: no atom's line looks like that.

    Args:
        stream: The file, open at its beginning.
    """
    found: list[Span] = []
    lines = _Lines(stream)
    while lines.skip_blank():
        start = lines.at
        count = _count(lines.take())
        if count is None:
            lines.skip_until_count()
            found.append(Span(start, lines.at, "a line with the number of atoms is expected before the structure"))
            continue
        lines.take()  # What the frame says of itself may be anything.
        rows, last = 0, b""
        while rows < count and not lines.ended and _count(lines.line) is None and lines.line.strip():
            last = lines.take()
            rows += 1
        while lines.line.lstrip().startswith(b"VEC"):
            lines.take()
        problem = f"it says that it has {count} atoms, and has {rows}" if rows < count else ""
        if not problem and rows and len(lines.line.split()) == len(last.split()):  # Else it is a damaged beginning of the next frame.
            lines.skip_until_count()
            problem = f"it says that it has {count} atoms, and has more lines than that"
        found.append(Span(start, lines.at, problem))
    return found


class _Lines:
    """Lines of a file, one of them in view.

    Attributes:
        line: The line in view; empty at the end.
        at: Byte at which it begins.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.at, self.line = stream, 0, b""
        self.line = stream.readline()

    @property
    def ended(self) -> bool:
        return not self.line

    def take(self) -> bytes:
        """Return the line in view and go on to the next."""
        line = self.line
        self.at += len(line)
        self.line = self.stream.readline()
        return line

    def skip_blank(self) -> bool:
        """Go on to a line with something in it; return whether there is one."""
        while not self.ended and not self.line.strip():
            self.take()
        return not self.ended

    def skip_until_count(self) -> None:
        while not self.ended and _count(self.line) is None:
            self.take()


def _count(line: bytes) -> int | None:
    text = line.removeprefix(b"\xef\xbb\xbf").strip()
    return int(text) if text.isdigit() else None
