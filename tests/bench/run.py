"""Run every benchmark of this folder, one after the other: ``make bench``, or ``python tests/bench/run.py medseg`` for some."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main(words: list[str]) -> int:
    """Run the benchmarks whose file name holds one of ``words`` (all if there are none); 1 if one missed its target."""
    files = [file for file in sorted(Path(__file__).parent.glob("bench_*.py")) if not words or any(word in file.stem for word in words)]
    missed = []
    for file in files:
        print(f"\n== {file.stem}", flush=True)
        if subprocess.run([sys.executable, file], check=False).returncode:
            missed.append(file.stem)
    print("\nall targets met" if not missed else "\nmissed: " + ", ".join(missed))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
