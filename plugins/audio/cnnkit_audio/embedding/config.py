"""What an experiment with embeddings is made of. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field

from cnnkit_audio.data_config import AugmentConfig


@dataclass(frozen=True)
class StageConfig:
    """One stage of the training of a supernet: what may differ from the largest network, and for how long.

    In each step one sub-network is drawn and trained. The last stage goes on if the training is longer, and is what a search chooses from.

    Args:
        epochs: How long it lasts.
        kernels: Kernels that are drawn; empty for the largest network's.
        depths: Blocks more (less) than the largest network has; empty for as many.
        widths: Shares of its channels; empty for all.
    """

    epochs: int = 1
    kernels: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()
    widths: tuple[float, ...] = ()


@dataclass(frozen=True)
class VoicesConfig:
    """Synthetic speakers, for trainings without recordings.

    Args:
        speakers: People in the training; as many others are for validation and for test as the next argument says.
        held_out: People in the validation, and others in the test.
        takes: Recordings of each person.
        seconds: Length of a recording.
        channel_db: Largest gain or loss of the recording's channel in any band, which differs between recordings.
        noise_db: Least signal-to-noise ratio of a recording.
    """

    speakers: int = 200
    held_out: int = 40
    takes: int = 5
    seconds: float = 3.0
    channel_db: float = 12.0
    noise_db: float = 15.0


@dataclass(frozen=True)
class EmbeddingConfig:
    """Speakers, trials, loss and stages.

    Args:
        folder: Root of recordings in VoxCeleb's layout, ``SPEAKER/VIDEO/FILE.wav`` (or ``wav/SPEAKER/...``); empty for synthetic voices.
        test_folder: Root of the recordings that the trials name; ``folder`` by default.
        trials: Trial list of the test, lines ``1 FILE FILE`` (same speaker) or ``0 FILE FILE``. Its speakers are not trained on.
        held_out: Speakers of ``folder``, the last by name, whose recordings make the trials of the validation.
        speakers: People whom the training tells apart; counted before the training starts, 0 for a network without that layer.
        voices: Synthetic speakers.
        seconds: Length of a training clip.
        batch_size: Clips per step, over all processes.
        samples_per_epoch: Clips per epoch; as many as recordings by default.
        augment: What is done to training clips; nothing is mixed, since a clip has one speaker.
        margin: Angle that the loss adds between a clip and its speaker, in radians.
        scale: Factor of the loss's cosines.
        stages: Stages in the training of a supernet, in order; empty for the largest network alone.
        cohort: Recordings of the training that scores are normalised by in validation and test; 0 for none.
        top: Of these, how many of the nearest count.
        workers: Processes that load.
    """

    folder: str = ""
    test_folder: str = ""
    trials: str = ""
    held_out: int = 40
    speakers: int = 0
    voices: VoicesConfig = field(default_factory=VoicesConfig)
    seconds: float = 2.0
    batch_size: int = 128
    samples_per_epoch: int | None = None
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    margin: float = 0.2
    scale: float = 30.0
    stages: tuple[StageConfig, ...] = ()
    cohort: int = 0
    top: int = 300
    workers: int = 0
