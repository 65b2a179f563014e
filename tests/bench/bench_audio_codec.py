"""Time ESC against the straightforward version of its paper's code: same weights, same codes, one thread.

Encoding and decoding at all levels, and how much faster than the sound they are (real-time factor: time by length; below 1 is faster than
real time). The two take turns and the fastest of each counts, in seconds of the processor, which a busy machine disturbs less than the
clock's. Then the peak memory of a stream is measured at two lengths. Exits with 1 when ours is slower, when two results differ, or when
memory grows with the sound::

    python tests/bench/bench_audio_codec.py --seconds 3 --rounds 3
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from cnnkit.weights import load_weights
from cnnkit_audio.codec.streaming import StreamDecoder, StreamEncoder
from cnnkit_audio.models.esc import ESC
from torch import Tensor
from turns import plain

TARGET = 1.0
TOLERANCE = 1e-5
GROWTH = 1.1
"""Peak memory of a sound by that of one of a quarter of its length, at most."""


def fastest(*calls: Callable[[], object], rounds: int) -> list[float]:
    """Return the fewest processor seconds of each call, which take turns; each is warmed up once."""
    for call in calls:
        call()
    found = [float("inf")] * len(calls)
    for _ in range(rounds):
        for index, call in enumerate(calls):
            start = time.process_time()
            call()
            found[index] = min(found[index], time.process_time() - start)
    return found


def speed(seconds: float, rounds: int) -> bool:
    """Print the table and tell whether ours is as fast, and the same."""
    torch.manual_seed(0)
    theirs = plain("audio", "esc").PlainESC().eval()
    ours = ESC().eval()
    load_weights(ours, theirs.state_dict())
    x = 0.1 * torch.randn(1, 1, round(seconds * 50) * 320 - 80)
    codes, shape = theirs.encode(x[:, 0], 6)
    agree = float((ours.encode(x) == codes).float().mean())
    near: Tensor = (ours.decode(codes, x.shape[-1])[:, 0] - theirs.decode(codes, shape)).abs().max()
    scale = float(theirs.decode(codes, shape).abs().max())
    print(
        f"ESC-Base, {seconds:g} s, 9 kbit/s: {100 * agree:.2f} % of the codes alike, decoded within {float(near) / scale:.1e} of the peak"
    )
    print("| | ours, s | peer, s | ratio | real-time factor |\n|---|---:|---:|---:|---:|")
    good = agree > 0.999 and float(near) <= TOLERANCE * scale
    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "encode": (lambda: ours.encode(x), lambda: theirs.encode(x[:, 0], 6)),
        "decode": (lambda: ours.decode(codes), lambda: theirs.decode(codes, shape)),
    }
    sums = [0.0, 0.0]
    with torch.no_grad():
        for name, pair in pairs.items():
            mine, their = fastest(*pair, rounds=rounds)
            sums = [sums[0] + mine, sums[1] + their]
            good &= mine <= TARGET * their
            print(f"| {name} | {mine:.3f} | {their:.3f} | {mine / their:.2f} | {mine / seconds:.2f} |")
    print(f"| both | {sums[0]:.3f} | {sums[1]:.3f} | {sums[0] / sums[1]:.2f} | {sums[0] / seconds:.2f} |")
    return good


def stream(seconds: int) -> None:
    """Code and decode noise of a length in pieces of two seconds, and print the peak memory of the process in KiB."""
    torch.manual_seed(0)
    model = ESC(patch_size=(12, 2), channels=(8, 12, 16), heads=(2, 2), codebook_channels=(4, 4, 4)).eval()
    encoder, decoder = StreamEncoder(model, seconds=2), StreamDecoder(model, seconds=2)
    block = (0.1 * torch.randn(1, 16000)).numpy()
    for _ in range(seconds):
        for codes in encoder.push(block):
            for _sound in decoder.push(codes):
                pass
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def memory(seconds: int) -> bool:
    """Print the peak memory for two lengths, and tell whether it stays."""
    peaks = []
    for length in (seconds // 4, seconds):
        done = subprocess.run([sys.executable, __file__, "--stream", str(length)], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1024)
    print(f"stream of {seconds // 4} s: {peaks[0]:.0f} MiB at the peak; of {seconds} s: {peaks[1]:.0f} MiB")
    return peaks[1] <= GROWTH * peaks[0]


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--long", type=int, default=240, help="seconds of the longer stream")
    parser.add_argument("--stream", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.stream is not None:
        stream(options.stream)
        return 0
    fast = speed(options.seconds, options.rounds)
    flat = memory(options.long)
    print("good" if fast and flat else "MISSED")
    return 0 if fast and flat else 1


if __name__ == "__main__":
    sys.exit(main())
