"""How well transcripts are recognised, and whether the right microphones were chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnkit_audio.recognition.decode import Transcript
from cnnkit_audio.recognition.scoring import Scores
from cnnkit_audio.recognition.wer import Errors, attributed_errors, character_errors, word_errors
from cnnkit_audio.transcripts import Segment, write_transcript

Said = dict[str, list[Segment]]
"""Utterances by scenario."""


class RecognitionMetric:
    """Word and character error rates over all utterances, DA-WER over sessions, and the share of chosen microphones that are clean.

    Segmentation and speakers are the reference's (CHiME-7's oracle segmentation): the words of each speaker of a session are joined, and
    ``da_wer`` counts their errors. Where the data are of several scenarios, ``SCENARIO/da_wer`` is that of each, and ``macro_da_wer``
    their mean. ``selected_clean`` is there where the data know which microphones are clean.
    """

    def __init__(self) -> None:
        self.words, self.characters = Errors(), Errors()
        self.reference: Said = {}
        self.hypothesis: Said = {}
        self.right = self.chosen = 0

    def update(self, predictions: Sequence[Transcript], batch: Mapping[str, Any]) -> None:
        """Take in the transcripts of a batch."""
        for found, utterance, clean in zip(predictions, batch["utterances"], batch["clean"], strict=True):
            _, text, speaker, session, (start, end), scenario = utterance
            self.words += word_errors(text, found.text)
            self.characters += character_errors(text, found.text)
            for side, said in ((self.reference, text), (self.hypothesis, found.text)):
                side.setdefault(scenario or "all", []).append(Segment(session, speaker, start, end, said))
            if clean is not None:
                chosen = [channel for piece in found.pieces for channel in piece.channels]
                self.right, self.chosen = self.right + sum(bool(clean[channel]) for channel in chosen), self.chosen + len(chosen)

    def merge(self, other: RecognitionMetric) -> None:
        """Take in what another instance has collected."""
        self.words, self.characters = self.words + other.words, self.characters + other.characters
        for side, theirs in ((self.reference, other.reference), (self.hypothesis, other.hypothesis)):
            for scenario, said in theirs.items():
                side[scenario] = side.get(scenario, []) + said
        self.right, self.chosen = self.right + other.right, self.chosen + other.chosen

    def scores(self) -> Scores:
        """Return the errors of each scenario and session."""
        return Scores({name: attributed_errors(self.reference[name], said, diarised=False) for name, said in self.hypothesis.items()})

    def compute(self) -> dict[str, float]:
        """Return the rates; 1 is as many errors as words."""
        scores = self.scores()
        figures = {"wer": self.words.rate, "cer": self.characters.rate, "da_wer": sum(scores.scenarios.values(), start=Errors()).rate}
        if len(scores.errors) > 1:
            figures |= {"macro_da_wer": scores.macro, **{f"{name}/da_wer": found.rate for name, found in scores.scenarios.items()}}
        return figures | ({"selected_clean": self.right / self.chosen} if self.chosen else {})

    def report(self, folder: Path) -> list[Path]:
        """Write ``scenarios.csv`` and ``sessions.csv``, and each scenario's transcripts into ``hypotheses`` and ``references``.

        The transcripts are what ``cnnkit audio score`` reads.
        """
        sides = (("hypotheses", self.hypothesis), ("references", self.reference))
        files = [write_transcript(folder / name / f"{scenario}.json", said) for name, side in sides for scenario, said in side.items()]
        return self.scores().write(folder) + files
