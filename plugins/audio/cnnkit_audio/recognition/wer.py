"""Errors of transcripts: of words, of characters, and of words with their speakers as CHiME-7 counts them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from cnnkit.errors import InputError

from cnnkit_audio.transcripts import Segment


@dataclass(frozen=True)
class Errors:
    """Counts of an alignment with the fewest errors; they add up.

    Args:
        hits: Words that are right.
        substitutions: Words that are others.
        deletions: Words of the reference that are missing.
        insertions: Words that nobody said.
    """

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    def __add__(self, other: Errors) -> Errors:
        return Errors(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )

    @property
    def total(self) -> int:
        """All errors."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def words(self) -> int:
        """Words of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """Errors per word of the reference; infinite for words where there should be none, and 0 for nothing on both sides."""
        if self.words:
            return self.total / self.words
        return float("inf") if self.total else 0.0


def compare(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> Errors:
    """Count the errors of a sequence by an alignment with the fewest.

    All rows of a column of the table of distances are computed at once, as bits of two integers that say where the distance rises and
    falls (Hyyro 2003); the columns are kept, and the alignment is read back from them.

    Args:
        reference: What was said: words, or characters.
        hypothesis: What was recognised.
    """
    rows = len(reference)
    where: dict[Hashable, int] = defaultdict(int)
    for row, item in enumerate(reference):
        where[item] |= 1 << row
    rises, falls, every = (1 << rows) - 1, 0, (1 << rows) - 1
    columns = [(rises, falls)]
    for item in hypothesis:
        match = where.get(item, 0)
        diagonal = (((match & rises) + rises) ^ rises) | match | falls
        up, down = falls | ~(diagonal | rises), diagonal & rises
        up, down = (up << 1) | 1, down << 1
        rises, falls = (down | ~(diagonal | up)) & every, up & diagonal & every
        columns.append((rises, falls))
    return _read_back(reference, hypothesis, columns)


def _read_back(reference: Sequence[Hashable], hypothesis: Sequence[Hashable], columns: list[tuple[int, int]]) -> Errors:
    """Walk from the end of both sequences to their beginning over steps that keep the distance."""
    row, column = len(reference), len(hypothesis)
    hits = substitutions = deletions = insertions = 0
    while row and column:
        bit = 1 << (row - 1)
        if columns[column][0] & bit:  # One row less is one error less.
            deletions, row = deletions + 1, row - 1
        elif columns[column - 1][1] & bit:  # The column before falls here: from there only an insertion leads on.
            insertions, column = insertions + 1, column - 1
        else:
            same = reference[row - 1] == hypothesis[column - 1]
            hits, substitutions = hits + same, substitutions + (not same)
            row, column = row - 1, column - 1
    return Errors(hits, substitutions, deletions + row, insertions + column)


def word_errors(reference: str, hypothesis: str) -> Errors:
    """Count the errors of words, which spaces part."""
    return compare(reference.split(), hypothesis.split())


def character_errors(reference: str, hypothesis: str) -> Errors:
    """Count the errors of characters, with the spaces among them."""
    return compare(reference, hypothesis)


def assign_speakers(
    reference: Sequence[Segment], hypothesis: Sequence[Segment], *, collar: float = 0.5, scored: tuple[float, float] | None = None
) -> dict[str, str]:
    """Return which speaker of the reference each speaker of the hypothesis is: the assignment with the longest common time.

    Args:
        reference: Segments of one session.
        hypothesis: Segments of the same session.
        collar: Seconds, half before and half after each boundary of the reference, that do not count.
        scored: Start and end of the time that counts; by default all.

    Returns:
        Hypothesis speaker to reference speaker; without those that share no time with anybody.
    """
    from scipy.optimize import linear_sum_assignment

    edges = [edge for item in (*reference, *hypothesis) for edge in (item.start, item.end)]
    collars = [(edge - collar / 2, edge + collar / 2) for item in reference for edge in (item.start, item.end)]
    edges += [edge for pair in collars for edge in pair] + list(scored or ())
    times = np.unique(edges)
    names = [sorted({item.speaker for item in side}) for side in (reference, hypothesis)]
    active = [np.zeros((len(known), max(len(times) - 1, 0))) for known in names]
    for side, known, table in zip((reference, hypothesis), names, active, strict=True):
        for item in side:
            table[known.index(item.speaker), _between(times, item.start, item.end)] += 1
    counted = np.diff(times)
    for start, end in collars:
        counted[_between(times, start, end)] = 0
    if scored is not None:
        counted[(times[:-1] < scored[0]) | (times[1:] > scored[1])] = 0
    common = (active[0] * counted) @ active[1].T
    pairs = zip(*linear_sum_assignment(-common), strict=True)
    return {names[1][theirs]: names[0][ours] for ours, theirs in pairs if common[ours, theirs] > 0}


def _between(times: np.ndarray, start: float, end: float) -> slice:
    first, last = np.searchsorted(times, (start, end))
    return slice(int(first), int(last))


def attributed_errors(
    reference: Iterable[Segment],
    hypothesis: Iterable[Segment],
    *,
    diarised: bool = True,
    collar: float = 0.5,
    scored: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, Errors]:
    """Count the errors of each session by the rules of the CHiME-7 DASR scoring (diarisation attributed, DA-WER).

    Speakers are assigned by the time that they share, not by their words. The words of each speaker are joined in the order of their
    starts; those of speakers that nobody is assigned to are insertions, and a speaker of the reference without counterpart is all
    deletions.

    Args:
        reference: Segments of any number of sessions.
        hypothesis: Segments of the same sessions.
        diarised: Whether the speakers of the hypothesis were found; with oracle segmentation they have the reference's names.
        collar: Of :func:`assign_speakers`.
        scored: By session, start and end of the time that counts; segments outside of it are left out.

    Raises:
        InputError: If the sessions of both sides are not the same, or the hypothesis has other speakers though they are the reference's.
    """
    sides = [_by_session(side, scored or {}) for side in (reference, hypothesis)]
    for here, there, side in ((*sides, "hypothesis"), (*reversed(sides), "reference")):
        if missing := sorted(set(here) - set(there)):
            raise InputError(
                f"the {side} lacks sessions: {', '.join(missing)}; where nothing was said, an utterance without words is needed"
            )
    found = {}
    for session, ours in sides[0].items():
        theirs = sides[1][session]
        names: dict[str, str] | None = None
        if diarised:
            names = assign_speakers(ours, theirs, collar=collar, scored=(scored or {}).get(session))
        elif strange := sorted({item.speaker for item in theirs} - {item.speaker for item in ours}):
            raise InputError(f"session {session}: the reference has no speaker {', '.join(strange)}, as oracle segmentation must have")
        said, heard = _joined(ours, None), _joined(theirs, names)
        found[session] = sum(
            (compare(said.get(speaker, []), heard.get(speaker, [])) for speaker in sorted({*said, *heard})), start=Errors()
        )
    return found


def macro_da_wer(scenarios: Mapping[str, Mapping[str, Errors]]) -> float:
    """Return the mean over scenarios of the word error rate of all their sessions together: the figure that ranked CHiME-7.

    Args:
        scenarios: For each scenario (CHiME-6, DiPCo, Mixer 6) what :func:`attributed_errors` counted.
    """
    rates = [sum(sessions.values(), start=Errors()).rate for sessions in scenarios.values()]
    return sum(rates) / len(rates)


def _by_session(segments: Iterable[Segment], scored: Mapping[str, tuple[float, float]]) -> dict[str, list[Segment]]:
    found: dict[str, list[Segment]] = {}
    for item in segments:
        inside = found.setdefault(item.session, [])
        start, end = scored.get(item.session, (-np.inf, np.inf))
        if item.end >= start and item.start <= end:
            inside.append(item)
    return found


def _joined(segments: Sequence[Segment], names: Mapping[str, str] | None) -> dict[str, list[str]]:
    words: dict[str, list[str]] = defaultdict(list)
    for item in sorted(segments, key=lambda item: item.start):
        speaker = item.speaker if names is None else names.get(item.speaker, f"nobody: {item.speaker}")
        words[speaker] += item.words.split()
    return words
