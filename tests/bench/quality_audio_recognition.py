"""Train the recogniser for arrays for two minutes of one core, and compare it with what needs no selection, and with no network at all.

Trained by configs/audio/acs_asr.yaml on words of tones heard by 3 to 6 microphones, measured in other rooms with 2 to 12 of them; two have
little noise (12 to 20 dB), the others much (-12 to -4 dB). The rows: the network with all microphones; the same with one drawn at random,
and with their mean without delays; template matching, which is told where each word begins and ends, and takes the word whose mean
spectrum is nearest, on one drawn microphone, on the mean, and on the cleanest. Exit status 1 if a claim of the table does not hold::

    python tests/bench/quality_audio_recognition.py
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cnnkit.config import from_dict, read_yaml
from cnnkit_audio.recognition.data import Utterance, collate
from cnnkit_audio.recognition.task import Recognition
from cnnkit_audio.recognition.wer import Errors, word_errors
from cnnkit_audio.synth.words import WORDS, Place, Scene, Voice, draw_sentence, record
from cnnkit_audio.task import Audio

CONFIG = Path(__file__).parents[2] / "configs" / "audio" / "acs_asr.yaml"
MICROPHONES = (2, 4, 8, 12)
CLEAN_SHARE = 0.95


def trained(task: Recognition, epochs: int) -> Any:
    """Train by the task's own loader and losses; the schedule is the file's."""
    torch.manual_seed(0)
    model: Any = task.model().train()
    loader: Any = task.loader("train")
    settings = task.cfg.train
    optimizer = torch.optim.AdamW(model.parameters(), settings.optimizer.lr, weight_decay=settings.optimizer.weight_decay)
    total = epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.optimizer.lr, total_steps=total, pct_start=settings.optimizer.warmup_steps / total
    )
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for batch in loader:
            losses = task.losses(model, batch)
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            optimizer.step()
            schedule.step()
        print(
            f"epoch {epoch + 1}: " + ", ".join(f"{name} {value.item():.3f}" for name, value in losses.items()), file=sys.stderr, flush=True
        )
    return model.eval()


def scenes(count: int, microphones: int, rate: int) -> list[Scene]:
    """Sentences in rooms that training has not seen."""
    made = []
    for number in range(count):
        rng = np.random.default_rng((77, microphones, number))
        place = Place.draw(rng, rate, microphones=(microphones, microphones))
        made.append(record(rng, draw_sentence(rng, rate), place, clean=2))
    return made


def network(task: Recognition, model: Any, made: list[Scene], heard: Callable[[Scene], np.ndarray]) -> tuple[Errors, float]:
    """The errors of the network, and the share of the microphones that it chose which are clean."""
    items = [Utterance("", heard(one), one.sentence.text, (), session="", clean=one.clean) for one in made]
    metric: Any = task.metric()
    with torch.no_grad():
        for first in range(0, len(items), 8):
            batch = collate(items[first : first + 8])
            found = task.predict(model, batch)
            if len(items[first].sound) == 1:
                batch["clean"] = [None] * len(found)
            metric.update(found, batch)
    return metric.words, metric.right / max(1, metric.chosen)


def spectrum(sound: np.ndarray, rate: int) -> np.ndarray:
    """The mean spectrum in 32 bands, of length one."""
    power = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 1 << 13)) ** 2
    bands = np.add.reduceat(power, np.linspace(0, len(power) - 1, 33).astype(int)[:-1])
    return np.sqrt(bands / bands.sum())


def templates(made: list[Scene], rate: int, heard: Callable[[Scene], np.ndarray]) -> Errors:
    """The errors of the nearest mean spectrum, with the words' times given."""
    known = {word: spectrum(Voice().say(word, rate), rate) for word in WORDS}
    errors = Errors()
    for one in made:
        sound = heard(one)[0].astype(float)
        found = []
        for start, end in one.sentence.times:
            said = spectrum(sound[round(start * rate) : round(end * rate)], rate)
            found.append(max(known, key=lambda word: float(known[word] @ said)))
        errors += word_errors(one.sentence.text, " ".join(found))
    return errors


def one_of(scene: Scene) -> np.ndarray:
    """A microphone drawn at random."""
    number = int(np.random.default_rng(len(scene.sentence.sound)).integers(len(scene.sound)))
    return scene.sound[number : number + 1]


def mean_of(scene: Scene) -> np.ndarray:
    """The mean of the microphones."""
    return scene.sound.mean(0, keepdims=True)


def clean_of(scene: Scene) -> np.ndarray:
    """The microphone with the least noise."""
    number = int(scene.snr.argmax())
    return scene.sound[number : number + 1]


def main() -> int:
    """Train, measure, print; 1 if the network does not beat what it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--sentences", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task: Any = Audio(from_dict(Audio.Config, read_yaml(CONFIG)))
    rate = task.shape.sample_rate
    start = time.process_time()
    model = trained(task, options.epochs)
    seconds = time.process_time() - start
    rows: dict[str, list[float]] = {}
    clean: list[float] = []
    for count in MICROPHONES:
        made = scenes(options.sentences, count, rate)
        ours, share = network(task, model, made, lambda one: one.sound)
        clean.append(share)
        found = {
            "network, all microphones": ours,
            "network, one drawn microphone": network(task, model, made, one_of)[0],
            "network, mean of microphones": network(task, model, made, mean_of)[0],
            "nearest spectrum, one drawn": templates(made, rate, one_of),
            "nearest spectrum, mean": templates(made, rate, mean_of),
            "nearest spectrum, cleanest": templates(made, rate, clean_of),
        }
        for name, errors in found.items():
            rows.setdefault(name, []).append(100 * errors.rate)
    print(f"| WER in % | {' | '.join(f'{count} microphones' for count in MICROPHONES)} |\n|---|{'---|' * len(MICROPHONES)}")
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(f'{value:.1f}' for value in values)} |")
    print(f"| clean among chosen | {' | '.join(f'{100 * share:.1f}' for share in clean)} |")
    print(f"{sum(p.numel() for p in model.parameters())} parameters, trained in {seconds:.0f} s of one core")
    ours = rows.pop("network, all microphones")
    missed = [
        f"WER with {count} microphones"
        for place, count in enumerate(MICROPHONES)
        if count > 2 and ours[place] >= min(v[place] for v in rows.values())
    ]
    missed += [f"clean microphones among {count}" for count, share in zip(MICROPHONES, clean, strict=True) if share <= CLEAN_SHARE]
    print("\n".join(f"MISSED {line}" for line in missed) or "the network beats every row, and chooses clean microphones")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
