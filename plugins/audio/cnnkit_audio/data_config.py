"""Where recordings come from and what training does to them. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DataConfig:
    """Recordings, by the layout of a public data set.

    Args:
        folder: Root of the data set.
        layout: ``"esc50"`` (meta/esc50.csv, audio/) or its part ``"esc10"``, ``"urbansound8k"`` (metadata/UrbanSound8K.csv,
            audio/foldN/), ``"audioset"`` (a csv or json of files and labels), ``"fsd50k"`` (FSD50K.ground_truth/dev.csv),
            ``"speech_commands"`` (a folder per word), ``"voxceleb"`` (a folder per speaker), ``"folders"`` (a folder per class) or
            ``"synthetic"`` (sounds that are made on the spot).
        fold: Fold that is held out, for layouts with folds.
        train_list: Table or json file of the training clips, relative to ``folder``, for ``"audioset"``; the balanced one by default.
        test_list: The same for the clips to measure on; the evaluation's by default.
        seconds: Length of a training crop; the network's window by default.
        batch_size: Clips per step, over all processes.
        samples_per_epoch: Clips per epoch; all by default.
        balanced: Draw clips so that each label comes as often.
        workers: Processes that load.
    """

    folder: str = ""
    layout: Literal["esc50", "esc10", "urbansound8k", "audioset", "fsd50k", "speech_commands", "voxceleb", "folders", "synthetic"] = (
        "synthetic"
    )
    fold: int = 1
    train_list: str = ""
    test_list: str = ""
    seconds: float | None = None
    batch_size: int = 32
    samples_per_epoch: int | None = None
    balanced: bool = False
    workers: int = 0


@dataclass(frozen=True)
class AugmentConfig:
    """What training does to clips; each is off at zero.

    Args:
        mix: ``"mixup"`` (labels mixed by the same share as amplitudes), ``"between_class"`` (share corrected for loudness) or ``"none"``.
        mix_alpha: Both parameters of the Beta distribution of mixup.
        gain_db: Largest random gain in decibels, up or down.
        roll: Shift the clip in a circle by a random amount.
        noise_db: Least signal-to-noise ratio of added noise; none if absent.
        noise_span_db: The ratio is drawn from there up to so many decibels more.
        noise_colour: ``"white"``, ``"pink"``, ``"brown"``, or ``"any"`` of them.
        reverb: Share of clips that a random room's decaying noise is convolved with.
        channel: Share of clips that a random channel colours, as microphones and loudspeakers do.
        rt60: Shortest and longest reverberation time in seconds.
        freq_mask: Largest number of bands that SpecAugment hides.
        time_mask: Largest number of frames that SpecAugment hides.
        speed: Largest relative change of speed (and pitch).
        pitch: Largest shift of the pitch in semitones, at the same tempo.
        time_scale: Largest relative change of the tempo, at the same pitch.
        clipping: Largest share of samples whose peaks are cut off.
    """

    mix: Literal["none", "mixup", "between_class"] = "none"
    mix_alpha: float = 0.2
    gain_db: float = 0.0
    roll: bool = False
    noise_db: float | None = None
    noise_span_db: float = 20.0
    noise_colour: Literal["white", "pink", "brown", "any"] = "white"
    reverb: float = 0.0
    channel: float = 0.0
    rt60: tuple[float, float] = (0.1, 0.8)
    freq_mask: int = 0
    time_mask: int = 0
    speed: float = 0.0
    pitch: float = 0.0
    time_scale: float = 0.0
    clipping: float = 0.0
