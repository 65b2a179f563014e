"""What the benchmarks share: two ways to the same result that run in turns, and the straightforward versions of the tests."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

PLUGINS = Path(__file__).parents[1] / "plugins"


@dataclass(frozen=True)
class Pairing:
    """Two ways to the same result.

    Args:
        name: What is compared.
        ours: Computes it.
        peer: Computes it, too.
        target: Least ratio of the peer's time to ours; 0 for a ratio that is only shown.
    """

    name: str
    ours: Callable[[], Any]
    peer: Callable[[], Any]
    target: float = 0.0


def in_turns(
    runs: Sequence[Callable[[], Any]], repeats: int, *, clock: Callable[[], float] = time.process_time
) -> tuple[list[float], list[Any]]:
    """Run each in turns, and return the least seconds of each and its last result.

    Args:
        runs: What to time.
        repeats: How often.
        clock: Processor time by default, which a busy machine spoils less; ``time.perf_counter`` where several threads count.
    """
    seconds, results = [float("inf")] * len(runs), [None] * len(runs)
    for _ in range(repeats):
        for which, run in enumerate(runs):
            start = clock()
            results[which] = run()
            seconds[which] = min(seconds[which], clock() - start)
    return seconds, results


def plain(plugin: str, name: str) -> ModuleType:
    """Import ``tests/plugins/PLUGIN/plain/NAME.py``: a network written the straightforward way."""
    spec = importlib.util.spec_from_file_location(f"plain_{plugin}_{name}", PLUGINS / plugin / "plain" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
