"""Progress of a batch on stderr: a bar on a terminal, one line per input elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnkit.engine.run import Item


class Progress:
    """Shows how many inputs are done, how many failed, and what is left.

    Args:
        total: Number of inputs.
        title: What stands before the bar.
        enabled: Show nothing when false.
    """

    def __init__(self, total: int, title: str, *, enabled: bool = True) -> None:
        self.total, self.title = total, title
        self.done = self.failed = 0
        self.started = time.monotonic()
        self.enabled = enabled
        self._bar: Any = None
        self._task: Any = None
        self._part: Any = None

    def __enter__(self) -> Progress:
        _entered.append(self)
        if self.enabled and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total)
        return self

    def advance(self, item: Item) -> None:
        """Count one input as done and say what became of it."""
        self._end_part()
        self.done += 1
        self.failed += item.status == "error"
        for warning in item.warnings:
            self._say(f"warning: {warning}")
        if item.status == "error":
            self._say(f"error: {item.error}")
        if self._bar is not None:
            failed = f" ({self.failed} failed)" if self.failed else ""
            self._bar.update(self._task, advance=1, description=f"{self.title}{failed}")
        elif self.enabled:
            print(f"[{self.done}/{self.total}] {item.name}: {item.status} ({sum(item.seconds.values()):.1f} s)", file=sys.stderr)

    def part(self, done: int, total: int, title: str) -> None:
        """Show on a terminal how much of the present input is done, in a bar of its own that goes when all of it is."""
        if self._bar is None:
            return
        if self._part is None:
            self._part = self._bar.add_task(title, total=total)
        self._bar.update(self._part, completed=done, total=total, description=title)
        if done >= total:
            self._end_part()

    def _end_part(self) -> None:
        if self._part is not None:
            self._bar.remove_task(self._part)
            self._part = None

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:  # Errors and warnings are shown even when progress is not.
            print(text, file=sys.stderr)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _entered.remove(self)
        if self._bar is not None:
            self._bar.stop()


_entered: list[Progress] = []  # Those that are shown, the innermost last.


def show_part(done: int, total: int, title: str) -> None:
    """Show how much of the input that is predicted now is done, beneath the bar of all inputs; without such a bar, nothing.

    For tasks whose prediction of one input may take minutes.

    Args:
        done: Parts that are done.
        total: Parts in all.
        title: What the parts are.
    """
    if _entered:
        _entered[-1].part(done, total, title)
