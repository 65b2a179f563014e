"""How well transcripts are recognised, and whether the right microphones were chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cnnkit_audio.recognition.decode import Transcript
from cnnkit_audio.recognition.wer import Errors, Segment, attributed_errors, character_errors, word_errors


class RecognitionMetric:
    """Word and character error rates over all utterances, DA-WER over sessions, and the share of chosen microphones that are clean.

    Segmentation and speakers are the reference's (CHiME-7's oracle segmentation): the words of each speaker of a session are joined, and
    ``da_wer`` counts their errors. ``selected_clean`` is there where the data know which microphones are clean.
    """

    def __init__(self) -> None:
        self.words, self.characters = Errors(), Errors()
        self.reference: list[Segment] = []
        self.hypothesis: list[Segment] = []
        self.right = self.chosen = 0

    def update(self, predictions: Sequence[Transcript], batch: Mapping[str, Any]) -> None:
        """Take in the transcripts of a batch."""
        for found, (_, text, speaker, session, (start, end)), clean in zip(predictions, batch["utterances"], batch["clean"], strict=True):
            self.words += word_errors(text, found.text)
            self.characters += character_errors(text, found.text)
            for side, said in ((self.reference, text), (self.hypothesis, found.text)):
                side.append(Segment(session, speaker, start, end, said))
            if clean is not None:
                chosen = [channel for piece in found.pieces for channel in piece.channels]
                self.right, self.chosen = self.right + sum(bool(clean[channel]) for channel in chosen), self.chosen + len(chosen)

    def merge(self, other: RecognitionMetric) -> None:
        """Take in what another instance has collected."""
        self.words, self.characters = self.words + other.words, self.characters + other.characters
        self.reference, self.hypothesis = self.reference + other.reference, self.hypothesis + other.hypothesis
        self.right, self.chosen = self.right + other.right, self.chosen + other.chosen

    def compute(self) -> dict[str, float]:
        """Return the rates; 1 is as many errors as words."""
        attributed = sum(attributed_errors(self.reference, self.hypothesis, diarised=False).values(), start=Errors())
        figures = {"wer": self.words.rate, "cer": self.characters.rate, "da_wer": attributed.rate}
        return figures | ({"selected_clean": self.right / self.chosen} if self.chosen else {})
