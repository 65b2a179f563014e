"""From what the encoder heard to a transcript: CTC proposes, the decoder chooses, CTC says when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cnnkit_audio.recognition.ctc import align, greedy, prefix_beam
from cnnkit_audio.recognition.text import Vocabulary

if TYPE_CHECKING:
    from cnnkit_audio.models.acs_asr import ACSASR, Heard


@dataclass(frozen=True)
class Word:
    """A recognised word.

    Args:
        text: The word.
        start: Seconds from the beginning of the recording.
        end: Seconds.
        confidence: Mean probability of its units on their frames, 0 to 1.
    """

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Piece:
    """What was chosen in one piece of a recording.

    Args:
        start: Seconds.
        end: Seconds.
        channels: Numbers of the microphones that were listened to, from 0, best first.
        weights: Share of each of these.
    """

    start: float
    end: float
    channels: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Transcript:
    """What was said in a recording.

    Args:
        text: The words.
        words: Each with its time.
        pieces: The stretches that were recognised in one go, with their microphones.
        microphones: Names of the recording's microphones; empty where they have none.
    """

    text: str
    words: tuple[Word, ...]
    pieces: tuple[Piece, ...]
    microphones: tuple[str, ...] = field(default=(), compare=False)

    @property
    def confidence(self) -> float:
        """Mean confidence of the words; 1 where nothing was said."""
        return float(np.mean([word.confidence for word in self.words])) if self.words else 1.0


def transcribe(
    model: ACSASR, heard: Heard, vocabulary: Vocabulary, *, beam: int, ctc_weight: float, seconds: Sequence[float], start: float = 0.0
) -> list[Transcript]:
    """Return the transcript of each recording of a batch.

    Args:
        model: The network.
        heard: What its encoder made of the batch.
        vocabulary: Units.
        beam: Candidates of CTC's search that the decoder chooses from; 1 for the best path of CTC alone.
        ctc_weight: Share of CTC in the choice.
        seconds: Length of each recording.
        start: Seconds that are added to all times.
    """
    probabilities = heard.ctc.log_softmax(-1).double().cpu().numpy()
    counts = heard.frames.sum(1).tolist()
    results = []
    for row, (count, length) in enumerate(zip(counts, seconds, strict=True)):
        frames = probabilities[row, :count]
        units = greedy(frames, blank=model.blank) if beam == 1 else _search(model, heard, row, frames, beam, ctc_weight)
        words = _timed(frames, units, vocabulary, model, start, length)
        results.append(Transcript(vocabulary.decode(units), words, (_piece(heard, row, start, length),)))
    return results


def _search(model: ACSASR, heard: Heard, row: int, frames: np.ndarray, beam: int, ctc_weight: float) -> list[int]:
    """Return the candidate of CTC's search with the greatest sum of weighted logarithms of CTC and of the decoder."""
    found = prefix_beam(frames, beam, blank=model.blank)
    spoken = [(prefix, score) for prefix, score in found if model.edge not in prefix]
    if len(spoken) < 2:
        return list(spoken[0][0]) if spoken else []
    ours = rescore(model, heard, row, [prefix for prefix, _ in spoken])
    totals = [ctc_weight * score + (1 - ctc_weight) * other for (_, score), other in zip(spoken, ours, strict=True)]
    return list(spoken[int(np.argmax(totals))][0])


def rescore(model: ACSASR, heard: Heard, row: int, candidates: Sequence[Sequence[int]]) -> list[float]:
    """Return the decoder's logarithm of the probability of each candidate, its end included.

    Args:
        model: The network.
        heard: What its encoder made of a batch.
        row: Which recording of it.
        candidates: Sequences of units.
    """
    device = heard.memory.device
    edge = [model.edge]
    before = _filled([[*edge, *units] for units in candidates], model.edge, device)
    after = _filled([[*units, *edge] for units in candidates], -1, device)
    one = heard._replace(
        memory=heard.memory[row : row + 1].expand(len(candidates), -1, -1), frames=heard.frames[row : row + 1].expand(len(candidates), -1)
    )
    scores = model.attend(one, before).double().log_softmax(-1).gather(-1, after.clamp_min(0)[..., None])[..., 0]
    return (scores * (after >= 0)).sum(1).tolist()


def _filled(rows: Sequence[Sequence[int]], value: int, device: torch.device) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value).to(device)


def _timed(
    frames: np.ndarray, units: Sequence[int], vocabulary: Vocabulary, model: ACSASR, start: float, length: float
) -> tuple[Word, ...]:
    """Return the words with their times on the best path that spells them."""
    spans = align(frames, units, blank=model.blank)
    words = []
    for text, first, last in vocabulary.words(units):
        begin, end = spans[first][0] * model.frame_seconds, spans[last - 1][1] * model.frame_seconds
        scores = np.concatenate([np.exp(frames[slice(*spans[place]), units[place]]) for place in range(first, last)])
        words.append(Word(text, start + begin, start + min(end, length), float(scores.mean())))
    return tuple(words)


def _piece(heard: Heard, row: int, start: float, length: float) -> Piece:
    """Return which microphones both selectors kept, best first by the second's weights."""
    weights = heard.second.weights[row]
    kept = [number for number in weights.argsort(descending=True, stable=True).tolist() if heard.second.kept[row, number]]
    return Piece(start, start + length, tuple(kept), tuple(weights[kept].tolist()))


def joined(parts: Sequence[Transcript], *, microphones: Sequence[str] = ()) -> Transcript:
    """Return the transcript of a recording from those of its pieces, in their order."""
    text = " ".join(part.text for part in parts if part.text)
    words = tuple(word for part in parts for word in part.words)
    return Transcript(text, words, tuple(piece for part in parts for piece in part.pieces), tuple(microphones))
