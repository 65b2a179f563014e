"""Reading and resampling sound files: seconds beside librosa.load, and peak memory of an hour beside that of ten minutes.

Peaks are resident memory of fresh processes, less that of a process that read one second. Ours and the peer run in turns, the minimum
of the repeats counts. Exits with 1 when the hour takes a fifth more memory than ten minutes, or reading is slower than by
librosa.load in the geometric mean over the files.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from turns import in_turns

TARGET = 1.0
GROWTH = 1.2
RATE = 32000
CASES = (
    ("wav", 44100, 2, "PCM_16"),
    ("wav", 48000, 1, "PCM_24"),
    ("flac", 44100, 2, "PCM_16"),
    ("ogg", 44100, 2, "VORBIS"),
    ("mp3", 44100, 2, None),
)


def record(path: Path, seconds: float, rate: int, channels: int, subtype: str | None) -> Path:
    """Write noise with a slow tone, block by block."""
    from cnnkit_audio.writing import SoundWriter

    rng = np.random.default_rng(0)
    with SoundWriter(path, rate, channels, subtype, frames=round(seconds * rate)) as out:
        for first in range(0, round(seconds * rate), 10 * rate):
            count = min(10 * rate, round(seconds * rate) - first)
            tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(first, first + count) / rate)
            out.write((tone + 0.05 * rng.standard_normal((channels, count))).astype(np.float32))
    return path


def ours(path: Path) -> np.ndarray:
    """Read a file as a network wants it."""
    from cnnkit_audio.sound import open_sound

    return open_sound(path, quiet=True).read(RATE)[0]


def librosa_load(path: Path) -> np.ndarray:
    """Read it with librosa and its default resampler."""
    import librosa

    return librosa.load(path, sr=RATE, mono=True)[0]


def torchaudio_resample(path: Path) -> np.ndarray:
    """Read it with soundfile and resample it whole with torchaudio, the filter as long as ours."""
    import soundfile
    import torch
    import torchaudio.functional as AF

    data, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return AF.resample(torch.from_numpy(data.mean(axis=1)), rate, RATE, lowpass_filter_width=32).numpy()


def peak_megabytes(path: Path, how: str) -> float:
    """Return the peak memory of a fresh process that reads a file."""
    command = [sys.executable, __file__, "--read", str(path), "--how", how]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def read_one(path: Path, how: str) -> None:
    """Read a file and print the peak memory of this process in megabytes."""
    from cnnkit_audio.sound import open_sound

    if how == "blocks":
        for block in open_sound(path, quiet=True).blocks(RATE):
            assert block.ndim == 2
    else:
        librosa_load(path)
    status = Path("/proc/self/status").read_text()  # Not getrusage, which begins with the peak of the parent.
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def main() -> int:
    """Run both parts, print the tables, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="length of the files that are timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--how", default="blocks", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.read:
        read_one(args.read, args.how)
        return 0
    missed, ratios = [], []
    with tempfile.TemporaryDirectory() as folder:
        print(f"{args.seconds:g} s to {RATE} Hz mono; minimum of {args.repeats} interleaved repeats; milliseconds per second of sound")
        print(f"{'file':28} {'ours':>8} {'librosa.load':>13} {'ratio':>6} {'torchaudio':>11} {'ratio':>6}")
        for suffix, rate, channels, subtype in CASES:
            path = record(Path(folder) / f"a.{suffix}", args.seconds, rate, channels, subtype)
            runs: list[Callable[[], object]] = [lambda p=path, f=f: f(p) for f in (ours, librosa_load, torchaudio_resample)]  # type: ignore[misc]
            for run in runs:
                run()
            mine, theirs, other = (1000 * seconds / args.seconds for seconds in in_turns(runs, args.repeats, clock=time.perf_counter)[0])
            name = f"{suffix} {subtype or ''} {rate} Hz x {channels}"
            print(f"{name:28} {mine:8.3f} {theirs:13.3f} {theirs / mine:6.2f} {other:11.3f} {other / mine:6.2f}", flush=True)
            ratios.append(theirs / mine)
        mean = float(np.exp(np.mean(np.log(ratios))))
        print(f"geometric mean of the ratios to librosa.load: {mean:.2f}")
        if mean < TARGET:
            missed.append(f"{mean:.2f}x librosa.load, target {TARGET:g}x")
        print(f"\n{'WAV, 44100 Hz x 2, peak MB':28} {'blocks':>8} {'librosa.load':>13}")
        files = [record(Path(folder) / f"{minutes:g}.wav", 60 * minutes, 44100, 2, "PCM_16") for minutes in (1 / 60, 10, 60)]
        peaks = {how: [peak_megabytes(path, how) for path in files[: 3 if how == "blocks" else 2]] for how in ("blocks", "librosa")}
        floor = {how: values[0] for how, values in peaks.items()}
        for which, minutes in ((1, 10), (2, 60)):
            other_peak = f"{peaks['librosa'][which] - floor['librosa']:13.1f}" if which < 2 else f"{'-':>13}"
            print(f"{f'{minutes} minutes, less 1 s':28} {peaks['blocks'][which] - floor['blocks']:8.1f} {other_peak}")
        grown = peaks["blocks"][2] / peaks["blocks"][1]
        if grown > GROWTH:
            missed.append(f"an hour takes {grown:.2f}x the memory of ten minutes, limit {GROWTH:g}x")
    print(
        "\n".join(f"MISSED {line}" for line in missed)
        or "an hour takes the memory of ten minutes, and reading is no slower than by librosa.load"
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
