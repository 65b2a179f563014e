"""The recogniser for arrays, its rooms and its error rates against straightforward peers in the same run, on one core.

The network at its default size, with four layers, and 2, 8 and 12 microphones, against the version that loops over microphones and frames,
with the same weights; room responses against a windowed sinc for each image; error rates against jiwer. Runs in turns, the minimum of
the repeats counts. Exit status 1 when a ratio is under the target or two results differ::

    python tests/bench/bench_audio_recognition.py
"""

from __future__ import annotations

import argparse
import inspect
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from turns import in_turns, plain

TARGET = 1.0
ROOM, SOURCE = (5.0, 4.0, 3.0), (1.2, 1.1, 1.4)

Pair = tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]


def networks(microphones: int, seconds: float) -> Pair:
    """The network and the straightforward version on one recording."""
    from cnnkit_audio.models.acs_asr import ACSASR

    straight = plain("audio", "acs_asr")
    defaults = {name: item.default for name, item in inspect.signature(ACSASR).parameters.items()} | {"num_classes": 100, "layers": 4}
    torch.manual_seed(0)
    ours = ACSASR(**defaults).eval()
    theirs = straight.Recogniser(**{key: value for key, value in defaults.items() if key != "dropout"}).eval()
    theirs.load_state_dict(ours.state_dict())
    x, tokens = 0.1 * torch.randn(1, microphones, round(16000 * seconds)), torch.tensor([1, 5, 6, 7])

    def network() -> np.ndarray:
        heard = ours.hear(x)
        ours.attend(heard, tokens[None])
        return heard.ctc[0, heard.frames[0]].numpy()

    return network, lambda: theirs(x[0], tokens)[0].numpy()


def responses() -> Pair:
    """A room with eight microphones, and a loop over its images."""
    from cnnkit_audio.synth import rooms

    microphones = np.random.default_rng(0).uniform(2.0, 2.8, (8, 3))
    absorbed = rooms.absorption_for(ROOM, 0.2)
    samples = round(0.2 * 8000) + 2 * rooms.TAPS

    def ours() -> np.ndarray:
        return rooms.room_response(ROOM, SOURCE, microphones, rate=8000, rt60=0.2)

    def theirs() -> np.ndarray:
        places, orders = rooms.image_sources(ROOM, SOURCE, reach=0.2 * rooms.SPEED + max(ROOM))
        result = np.zeros((8, samples + 200))
        taps = np.arange(-rooms.TAPS, rooms.TAPS + 1)
        window = np.kaiser(2 * rooms.TAPS + 1, 8)
        for row, microphone in zip(result, microphones, strict=True):
            for place, order in zip(places, orders, strict=True):
                distance = np.sqrt(((place - microphone) ** 2).sum())
                late = distance / rooms.SPEED * 8000
                first = round(late)
                if first + rooms.TAPS < result.shape[1] - 100:
                    amplitude = (1 - absorbed) ** (order / 2) / (4 * np.pi * distance)
                    row[100 + first - rooms.TAPS : 101 + first + rooms.TAPS] += amplitude * window * np.sinc(taps + first - late)
        return result[:, 100 : 100 + samples]

    return ours, theirs


def error_rates() -> Pair:
    """Five hundred transcripts of thirty words."""
    import jiwer
    from cnnkit_audio.recognition.wer import word_errors

    rng = np.random.default_rng(0)
    pairs = [[" ".join(rng.choice(list("abcdefghijklmnop"), 30)) for _ in range(2)] for _ in range(500)]
    return (
        lambda: np.array([word_errors(*pair).rate for pair in pairs]),
        lambda: np.array([jiwer.wer(*pair) for pair in pairs]),
    )


def main() -> int:
    """Run the pairings, print the table, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pairings = {f"network, {count} microphones, {options.seconds:g} s": networks(count, options.seconds) for count in (2, 8, 12)}
    pairings |= {"room of 8 microphones, rt60 0.2 s": responses(), "word error rates, jiwer": error_rates()}
    missed = []
    print("| pairing | ours s | peer s | ratio | difference |\n|---|---|---|---|---|")
    for name, runs in pairings.items():
        with torch.no_grad():
            seconds, results = in_turns(runs, options.repeats, clock=time.perf_counter)
        difference = float(np.abs(results[0] - results[1]).max() / np.abs(results[1]).max())
        ratio = seconds[1] / seconds[0]
        print(f"| {name} | {seconds[0]:.3f} | {seconds[1]:.3f} | {ratio:.1f} | {difference:.1e} |", flush=True)
        if ratio < TARGET:
            missed.append(f"{name}: {ratio:.2f}x, target {TARGET:g}x")
        if difference > (2e-2 if "room" in name else 1e-4):  # The peer's short sinc is the coarser one.
            missed.append(f"{name}: results differ by {difference:.1e}")
    print("\n".join(f"MISSED {line}" for line in missed) or "every pairing is faster, and equal")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
