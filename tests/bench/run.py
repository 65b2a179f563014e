"""Run the benchmarks of this folder one after the other: ``make bench``, or ``python tests/bench/run.py medseg`` for some.

``bench_*.py`` measure speed and memory, ``quality_*.py`` train to a quality. Those in ``SLOW`` run only when a word names them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

AUDIO = ("codec", "effect", "speakers", "taggers")
SLOW = frozenset({"quality_swin_unetr", "quality_superres", *(f"quality_audio_{name}" for name in AUDIO)})  # They train for many minutes.


def chosen(words: list[str]) -> list[Path]:
    """Return the files whose name holds one of ``words``; all but the slow ones if there are none."""
    files = [file for kind in ("bench", "quality") for file in sorted(Path(__file__).parent.glob(f"{kind}_*.py"))]
    return [file for file in files if (any(word in file.stem for word in words) if words else file.stem not in SLOW)]


def main(words: list[str]) -> int:
    """Run the chosen benchmarks; 1 if one missed its target or a word names none."""
    files = chosen(words)
    if not files:
        print(f"no benchmark has {' or '.join(words)} in its name", file=sys.stderr)
        return 1
    missed = []
    for file in files:
        print(f"\n== {file.stem}", flush=True)
        if subprocess.run([sys.executable, file], check=False).returncode:
            missed.append(file.stem)
    print("\nall targets met" if not missed else "\nmissed: " + ", ".join(missed))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
