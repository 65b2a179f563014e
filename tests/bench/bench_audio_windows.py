"""Tagging ten minutes in overlapping windows: the task beside window by window at batch 1, and its memory.

Windows of 10 s every 2.5 s and every second, one thread, processor time; scores must agree. The plain way loads the whole file and makes a
spectrogram for each window by ``torch.stft``; a second one makes it by the plugin's own front end. The task computes the spectrogram and
the first two blocks once for all windows that hold them; the other two cannot be shared, as neither 2.5 s nor 1 s is a multiple of their
stride, and are merged with their normalisations. Then the peak of memory on ten and on thirty minutes beyond that of two, each in a
process of its own. Exits with 1 below a target, or if memory grows.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RATE, WINDOW = 32_000, 10.0
TARGETS = {2.5: (3.0, 2.3), 1.0: (3.0, 3.0)}
"""How many times as fast the task is to be as the plain way, and as that with the plugin's front end, by the seconds between windows."""
GROWTH_MB = 8.0
NETWORK = {"name": "audio/panns_cnn6", "args": {"widths": [4, 8, 16, 32], "window": WINDOW}}
"""A small network: the larger it is, the less its front end matters."""

MEMORY = """
import resource, sys
sys.path.insert(0, {here!r})
from bench_audio_windows import listen, task_and_model
task, model = task_and_model()
listen(task, model, {first!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
listen(task, model, {file!r})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def write_noise(path: Path, minutes: float) -> Path:
    """Write noise whose level changes, block by block."""
    from cnnkit_audio.writing import SoundWriter

    rng = np.random.default_rng(0)
    with SoundWriter(path, RATE, 1) as out:
        for second in range(round(60 * minutes)):
            out.write(rng.standard_normal((1, RATE)).astype(np.float32) * 0.02 * (1 + second % 7))
    return path


def task_and_model():
    """Return the task and its network, untrained."""
    import torch
    from cnnkit.config import from_dict
    from cnnkit_audio.task import Audio

    torch.set_num_threads(1)
    torch.manual_seed(0)
    task = Audio(from_dict(Audio.Config, {"network": NETWORK}))
    return task, task.model().eval()


def listen(task, model, path, hop=2.5):
    """Return the scores of all windows, as ``cnnkit run`` computes them."""
    import torch
    from cnnkit_audio.args import Run

    run = Run(inputs=(Path(path),), name="x", hop=hop, picture=False)
    (batch,) = task.read(run)
    with torch.no_grad():
        (tags,) = task.predict(model, batch)
    return tags.scores


def window_by_window(model, path, hop, front):
    """Return the same scores the plain way: the file as a whole, then a spectrogram and a network call for each window."""
    import librosa
    import torch

    signal, _ = librosa.load(path, sr=RATE, mono=True)
    length, scores = round(WINDOW * RATE), []
    with torch.no_grad():
        for start in range(0, signal.size - length + 1, round(hop * RATE)):
            clip = torch.from_numpy(signal[start : start + length])[None, None]
            scores.append(model.head(model.embed(front(clip))).softmax(1)[0].numpy())
    return np.stack(scores)


def plain_front(model):
    """Return the network's log-mel spectrogram as it is usually written."""
    import torch

    mels, window = model.front.bank.banks.T.contiguous(), torch.hann_window(1024)

    def front(clip):
        spectrum = torch.stft(clip[0], 1024, 320, 1024, window, center=True, pad_mode="reflect", return_complex=True)
        return 10 * (mels @ spectrum.abs().square()).clamp_min(1e-10).log10()[:, None]

    return front


def compare(task, model, path, hop):
    """Print the processor seconds of all, whose scores agree, and return the least of the task's ratios by their targets."""
    runs = {
        "task": lambda: listen(task, model, path, hop),
        "window by window": lambda: window_by_window(model, path, hop, plain_front(model)),
        "with the plugin's front end": lambda: window_by_window(model, path, hop, model.front),
    }
    times, results = {name: [] for name in runs}, {}
    for _ in range(3):
        for name, run in runs.items():
            start = time.process_time()
            results[name] = run()
            times[name].append(time.process_time() - start)
    ours, *others = (min(values) for values in times.values())
    for name in list(runs)[1:]:
        np.testing.assert_allclose(results["task"], results[name], atol=1e-4)
    shown = ", ".join(f"{name} {value:.2f} s ({value / ours:.2f}x)" for name, value in zip(list(runs)[1:], others, strict=True))
    print(f"10 minutes, {len(results['task'])} windows every {hop:g} s: task {ours:.2f} s, {shown}", flush=True)
    return min(other / ours / target for other, target in zip(others, TARGETS[hop], strict=True))


def main() -> int:
    """Print the figures and return 1 if a target is missed."""
    with tempfile.TemporaryDirectory() as folder:
        short, ten, thirty = (write_noise(Path(folder) / f"{minutes}.wav", minutes) for minutes in (2, 10, 30))
        task, model = task_and_model()
        listen(task, model, short)
        ratios = [compare(task, model, ten, hop) for hop in TARGETS]
        here, peaks = str(Path(__file__).parent), {}
        for file in (ten, thirty):
            code = MEMORY.format(here=here, first=str(short), file=str(file))
            peaks[file.stem] = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        print("peak of memory beyond that of two minutes: " + ", ".join(f"{name} minutes {value:.1f} MB" for name, value in peaks.items()))
        return int(min(ratios) < 1 or max(peaks.values()) > GROWTH_MB)


if __name__ == "__main__":
    sys.exit(main())
