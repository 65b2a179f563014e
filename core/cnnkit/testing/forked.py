"""Commands in processes that start with everything imported: forks of a process that imports and does nothing else.

A new Python imports torch and lightning for eight seconds before a training of one. Every command still has a process of its own, so
nothing that one leaves behind reaches the next. Where forks are not to be trusted, which is everywhere but on Linux, it is a new Python.
Standard library only.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def run_forked(words: Sequence[str], folder: Path, imported: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder and return its exit status and what it printed.

    It sees the environment variables of the first call: the process that is forked starts then.

    Args:
        words: ``cnnkit ...`` or ``python SCRIPT ...``.
        folder: The command's working directory.
        imported: Modules that are there before the command starts; those that cannot be imported are left out. The first call decides.
    """
    linux = sys.platform == "linux"
    context: Any = multiprocessing.get_context("forkserver" if linux else "spawn")
    if linux:
        context.set_forkserver_preload(list(imported))
    with TemporaryDirectory() as kept:
        output, errors = Path(kept, "output"), Path(kept, "errors")
        process = context.Process(target=_run, args=(list(words), folder, output, errors))
        process.start()
        process.join()
        printed = [path.read_text(encoding="utf-8") if path.exists() else "" for path in (output, errors)]
    assert process.exitcode is not None  # It has been waited for.
    return subprocess.CompletedProcess(words, process.exitcode, *printed)


def _run(words: list[str], folder: Path, output: Path, errors: Path) -> None:
    """Run a command in this process, which ends with it."""
    os.chdir(folder)
    for path, stream in ((output, 1), (errors, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    if words[0] == "cnnkit":
        from cnnkit.cli import main

        sys.argv = words
        main(words[1:])
    else:
        sys.argv = words[1:]
        sys.path.insert(0, str(Path(words[1]).parent))
        runpy.run_path(words[1], run_name="__main__")
