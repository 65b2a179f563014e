"""What an experiment in speech recognition is made of. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

TONE_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class SpeechConfig:
    """Utterances, recorded by several microphones.

    Args:
        layout: ``"synthetic"`` (words of tones in drawn rooms) or ``"chime7"`` (folders of the CHiME-7 DASR task).
        folder: Root of ``"chime7"``: ``audio/SPLIT/`` and ``transcriptions/SPLIT/SESSION.json``, or a folder with these for each scenario.
        splits: Its folders for training, validation and test; an empty name leaves one out.
        longest: Seconds of an utterance at most; longer ones are left out of training.
        microphones: Fewest and most, in training; of real sessions so many are drawn.
        clean: Microphones with little noise, of synthetic utterances.
        places: Synthetic rooms with arrays that utterances are drawn from; training, validation and test share none.
        batch_size: Utterances per step, over all processes.
        samples_per_epoch: Utterances per epoch; of real sessions all by default, else 1024.
        held_out: Synthetic utterances of validation and of test.
        workers: Processes that load.
    """

    layout: Literal["synthetic", "chime7"] = "synthetic"
    folder: str = ""
    splits: tuple[str, str, str] = ("train", "dev", "eval")
    longest: float = 20.0
    microphones: tuple[int, int] = (2, 12)
    clean: int = 2
    places: int = 64
    batch_size: int = 16
    samples_per_epoch: int | None = None
    held_out: int = 64
    workers: int = 0


@dataclass(frozen=True)
class RecognitionConfig:
    """Units, data, losses and search.

    Args:
        units: What the network writes: whole ``"words"`` or ``"characters"``.
        vocabulary: The units in the order of the network's outputs, after blank and edge.
        normalise: Whether transcripts go through :func:`cnnkit_audio.recognition.text.normalise`.
        ctc_weight: Share of CTC in the loss and in the search; the decoder has the rest.
        smoothing: Share of the decoder's target that is spread over all units.
        beam: Candidates of the search that the decoder chooses from; 1 takes the best path of CTC alone.
        window: Seconds of a recording that are recognised in one piece at most; longer ones are cut where it is most silent.
        data: Utterances to train and to measure on.
    """

    units: Literal["words", "characters"] = "words"
    vocabulary: tuple[str, ...] = TONE_WORDS
    normalise: bool = True
    ctc_weight: float = 0.3
    smoothing: float = 0.1
    beam: int = 8
    window: float = 20.0
    data: SpeechConfig = field(default_factory=SpeechConfig)
