"""What an import costs, proved in a new Python; and what code touches outside of its own memory. Standard library only."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

HEAVY = ("torch", "numpy", "scipy", "pandas", "matplotlib", "lightning", "monai", "torchvision", "torchaudio", "pydantic")
"""Libraries that no help text, listing or manifest may import."""

_MARK = "cnnkit-testing-modules:"


@dataclass(frozen=True)
class Fresh:
    """What a new interpreter did.

    Args:
        modules: Names in ``sys.modules`` at its end.
        output: What it printed to standard output.
        errors: What it printed to standard error.
        status: Its exit status.
    """

    modules: frozenset[str]
    output: str
    errors: str
    status: int


def fresh_interpreter(code: str, *, env: Mapping[str, str] | None = None, timeout: float = 120.0) -> Fresh:
    """Run code in a new Python and return what it imported and printed.

    The test process will not do for this: it has imported torch long ago.

    Args:
        code: Statements; one that ends in ``SystemExit`` is reported by its status.
        env: Environment variables over the present ones.
        timeout: Seconds.
    """
    tail = f"import atexit, sys\natexit.register(lambda: print('\\n{_MARK}' + ' '.join(sys.modules), flush=True))\n"
    result = subprocess.run(
        [sys.executable, "-c", tail + code],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **(env or {})},
    )
    output, _, modules = result.stdout.rpartition(f"\n{_MARK}")
    return Fresh(frozenset(modules.split()), output, result.stderr, result.returncode)


def assert_no_heavy_imports(modules: Iterable[str], heavy: Iterable[str] = HEAVY) -> None:
    """Fail if one of the ``heavy`` libraries is among imported modules, naming it."""
    found = sorted({name.partition(".")[0] for name in modules} & set(heavy))
    assert not found, f"imported, and must not be: {', '.join(found)}; import it in the function that needs it"


class _Watch:
    """An audit hook: it cannot be removed, so there is one, which listens only while asked to."""

    def __init__(self) -> None:
        self.events: list[str] | None = None
        self.installed = False

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.events is None:
            return
        if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
            self.events.append(f"open {os.fsdecode(args[0])}")
        elif event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen"):
            self.events.append(event)


_WATCH = _Watch()


@contextlib.contextmanager
def watch_outside() -> Iterator[list[str]]:
    """Yield a list that collects the files opened, connections made and processes started inside the block."""
    if not _WATCH.installed:
        sys.addaudithook(_WATCH.hook)
        _WATCH.installed = True
    before, _WATCH.events = _WATCH.events, []
    try:
        yield _WATCH.events
    finally:
        _WATCH.events = before
