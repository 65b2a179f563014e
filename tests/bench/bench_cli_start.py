"""Start of the command line: wall time of ``--help`` in fresh interpreters. Target: 0.25 s each.

Peer: the bare interpreter with click imported, which is the least that a click program can cost.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

TARGET = 0.25
REPEATS = 9
MAIN = "from cnnkit.cli import main; main()"
COMMANDS = {
    "python -c 'import click'": [sys.executable, "-c", "import click"],
    "cnnkit --help": [sys.executable, "-c", MAIN, "--help"],
    "cnnkit run --help": [sys.executable, "-c", MAIN, "run", "--help"],
    "cnnkit run medseg --help": [sys.executable, "-c", MAIN, "run", "medseg", "--help"],
}


def seconds(command: list[str]) -> float:
    """Return the wall time of a command."""
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> int:
    """Time the commands in turn and print minimum and median; 1 if a minimum is above the target."""
    for command in COMMANDS.values():  # Once, so that bytecode is there.
        seconds(command)
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(REPEATS):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    print("| command | minimum s | median s | target s |\n|---|---|---|---|")
    for name, values in times.items():
        target = f"{TARGET}" if name.startswith("cnnkit") else ""
        print(f"| `{name}` | {min(values):.3f} | {statistics.median(values):.3f} | {target} |")
    return int(any(min(values) > TARGET for name, values in times.items() if name.startswith("cnnkit")))


if __name__ == "__main__":
    sys.exit(main())
