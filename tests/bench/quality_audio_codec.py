"""Train a small ESC on synthetic voices for minutes, and compare it at each rate with the simplest codes of as many bits.

The recipe is ``configs/audio/esc_small.yaml``, through the same training as ``cnnkit train``. Measured are voices that the training
never hears. Beside it stand: PCM with a mu-law, at whichever split of the rate into samples and bits has the smallest mel distance;
noise with the mean spectrum of the voice, which takes no bits; and silence. Exit status 1 if a level does not lower the mel distance,
if less than 80 % of the codebooks' entries are used, or if a simpler code is nearer at equal bits::

    python tests/bench/quality_audio_codec.py
    python tests/bench/quality_audio_codec.py --ckpt runs/esc/best.ckpt
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio.functional as AF
from cnnkit.config import build
from cnnkit.engine.fit import fit
from cnnkit.engine.load import load
from cnnkit.plugin import get
from cnnkit_audio.codec.config import CodecDataConfig
from cnnkit_audio.codec.data import whole_speech
from cnnkit_audio.codec.metrics import si_sdr
from cnnkit_audio.codec.spectra import MelDistance
from cnnkit_audio.config import Config
from cnnkit_audio.models._codec import Codec
from cnnkit_audio.synth.voices import speech
from cnnkit_audio.task import Audio
from cnnkit_audio.writing import write_sound
from torch import Tensor

RECIPE = Path(__file__).parents[2] / "configs" / "audio" / "esc_small.yaml"
USE = 0.8


def mu_law(x: Tensor, rate: int, bits_per_second: float) -> list[Tensor]:
    """Return a sound after PCM at a lower rate with a mu-law, for several numbers of bits; rates are rounded up to full hundreds."""
    decoded = []
    for bits in (1, 2, 3, 4, 6, 8):
        low = 100 * math.ceil(bits_per_second / bits / 100)
        small = AF.resample(x, rate, low)
        peak = small.abs().max().clamp_min(1e-6)
        codes = AF.mu_law_encoding(small / peak, 2**bits)
        back = AF.resample(AF.mu_law_decoding(codes, 2**bits) * peak, low, rate)
        decoded.append(torch.nn.functional.pad(back, (0, max(0, x.shape[-1] - back.shape[-1])))[..., : x.shape[-1]])
    return decoded


def noise(x: Tensor) -> Tensor:
    """Return noise with the mean power spectrum of a sound."""
    window = torch.hann_window(512)
    power = torch.stft(x[0], 512, 128, window=window, return_complex=True).abs().square().mean(-1, keepdim=True)
    white = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    spectrum = torch.stft(white[0], 512, 128, window=window, return_complex=True)
    shaped = spectrum / spectrum.abs().square().mean().sqrt() * power.sqrt()
    return torch.istft(shaped, 512, 128, window=window, length=x.shape[-1])[None]


def measure(task: Any, model: Codec, voices: int, seconds: float) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Return the figures of the network, and the mel distances of the simple codes, by name."""
    rate, distance = model.sample_rate, MelDistance(model.sample_rate)
    metric = task.metric()
    simple: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        simple.setdefault(name, []).append(value)

    for batch in whole_speech(CodecDataConfig(seconds=seconds, voices=voices), "test", rate=rate):
        predictions = task.predict(model, batch)
        metric.update(predictions, batch)
        wave = batch["wave"][0]

        def mel(estimate: Tensor, wave: Tensor = wave) -> float:
            return float(distance(wave[None], estimate[None]).log)

        add("silence", mel(torch.zeros_like(wave)))
        add("noise", mel(noise(wave)))
        for levels, decoded in predictions[0].decoded.items():
            candidates = mu_law(wave, rate, levels * model.level_rate)
            add(f"mu-law/{levels}", min(mel(candidate) for candidate in candidates))
            add(f"si_sdr/{levels}", float(si_sdr(wave[0], torch.from_numpy(decoded))))
            add(f"mu-law si_sdr/{levels}", max(float(si_sdr(wave[0], candidate[0])) for candidate in candidates))
    return metric.compute(), simple


def record(folder: Path, count: int, rate: int, seconds: float = 3.0) -> Path:
    """Write recordings of voices, which are read faster than they are made; their seeds are those of no test."""
    folder.mkdir()
    for number in range(count):
        voice = speech(np.random.default_rng((3, number)), seconds, rate)[None]
        write_sound(folder / f"{number:04d}.wav", voice, rate, subtype="FLOAT")  # 16 bits would fill the pauses with noise.
    return folder


def train(recipe: Path, folder: Path, recordings: int) -> Path:
    """Train by a recipe, on voices recorded beforehand, and return the last checkpoint."""
    started = time.process_time()
    cfg = build(Config, file=recipe, overrides=[f"codec.data.train=[{record(folder / 'voices', recordings, 16000)}]"])
    result = fit(Audio(cfg), output=folder / "run", plugin=get("audio"))
    print(f"trained in {time.process_time() - started:.0f} s of the processor; {result}", file=sys.stderr)
    return Path(result.last)


def main(arguments: list[str] | None = None) -> int:
    """Train, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--ckpt", type=Path, help="measure this network in place of training one")
    parser.add_argument("--keep", type=Path, help="copy the trained network to this file")
    parser.add_argument("--recordings", type=int, default=400, help="voices to train on")
    parser.add_argument("--voices", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        ckpt = options.ckpt or train(options.recipe, Path(folder), options.recordings)
        loaded = load(ckpt)
        if options.keep:
            shutil.copyfile(ckpt, options.keep)
    task, model = loaded.task, loaded.model.eval()
    assert isinstance(model, Codec)
    with torch.no_grad():
        figures, simple = measure(task, model, options.voices, options.seconds)
    mean: Callable[[str], float] = lambda name: float(np.mean(simple[name]))  # noqa: E731
    print(f"{options.voices} voices of {options.seconds:g} s, mel distance (less is nearer) and SI-SDR in dB")
    print("| kbit/s | ESC | mu-law PCM | ESC, SI-SDR | mu-law PCM, SI-SDR |\n|---:|---:|---:|---:|---:|")
    good = figures["codebook_use"] > USE
    before = np.inf
    for level in range(1, model.levels + 1):
        ours, theirs = figures[f"mel_distance/{level}"], mean(f"mu-law/{level}")
        row = (level * model.level_rate / 1000, ours, theirs, mean(f"si_sdr/{level}"), mean(f"mu-law si_sdr/{level}"))
        print("| " + " | ".join(f"{value:.2f}" for value in row) + " |")
        good &= ours < min(before, theirs, mean("noise"), mean("silence"))
        before = ours
    print(f"noise of the mean spectrum {mean('noise'):.2f}, silence {mean('silence'):.2f}")
    print(", ".join(f"{name} {figures[name]:.3f}" for name in ("codebook_use", "bit_use", "perplexity", "bits_per_second")))
    print("good" if good else "MISSED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
