"""The bundled example: a scene of synthetic sounds over soft noise, and how well it was heard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cnnkit_audio.sound import Sound, open_sound, write_sound
from cnnkit_audio.synth.channel import coloured_noise
from cnnkit_audio.synth.classes import CLASSES, Spoiling, make

if TYPE_CHECKING:
    from cnnkit_audio.tagging.task import Tags

SEED = 20
SECONDS = 2.5
PAUSE = 0.5

Scene = list[tuple[float, float, str]]


def write_scene(path: Path, rate: int) -> tuple[Sound, Scene]:
    """Write every class once, one after another, each through a channel and a room of its own, 15 dB above noise.

    Returns:
        The file, and where each sound starts and ends in seconds with its name.
    """
    rng = np.random.default_rng(SEED)
    signal, scene = coloured_noise(rng, round(len(CLASSES) * (SECONDS + PAUSE) * rate), 1) * 0.003, []
    for number, label in enumerate(rng.permutation(list(CLASSES)).tolist()):
        start = number * (SECONDS + PAUSE)
        sound = Spoiling(snr_db=15, gain_db=6, filtered=True, reverb=True).apply(make(label, rng, SECONDS, rate), rng, rate)
        first = round(start * rate)
        signal[first : first + sound.size] += sound
        scene.append((start, start + SECONDS, label))
    write_sound(path, np.clip(signal, -1, 1).astype(np.float32)[None], rate)
    return open_sound(path), scene


def compare(scene: Scene, tags: Tags, labels: tuple[str, ...]) -> dict[str, Any]:
    """Return for each sound of the scene the label with the highest mean confidence in the windows that lie within it."""
    middle, heard = (tags.starts + tags.ends) / 2, {}
    for start, end, label in scene:
        inside = (middle > start) & (middle < end)
        mean = tags.scores[inside].mean(axis=0)
        heard[f"{start:4.1f} to {end:4.1f} s: {label}"] = f"{labels[int(mean.argmax())]} ({mean.max():.2f})"
    right = sum(text.rpartition(" (")[0] == key.rpartition(": ")[2] for key, text in heard.items())
    return {"what sounds, and what the network hears": heard, "right": f"{right} of {len(scene)}"}
