"""Errors of transcripts against jiwer, by hand, and with speakers as CHiME-7 counts them."""

from __future__ import annotations

import numpy as np
import pytest
from cnnkit.errors import InputError
from cnnkit_audio.recognition.text import normalise
from cnnkit_audio.recognition.wer import (
    Errors,
    Segment,
    assign_speakers,
    attributed_errors,
    character_errors,
    compare,
    macro_da_wer,
    word_errors,
)

pytestmark = pytest.mark.paper("chime7-acs-asr")


def said(session: str, *rows: tuple[str, float, float, str]) -> list[Segment]:
    """Segments of one session."""
    return [Segment(session, *row) for row in rows]


def test_words_and_characters_equal_jiwer() -> None:
    """As many errors, and as many words; which of several best alignments is counted is free."""
    jiwer = pytest.importorskip("jiwer")
    rng = np.random.default_rng(0)
    for _ in range(300):
        reference, hypothesis = (" ".join(rng.choice(list("abcde"), rng.integers(least, 14))) for least in (1, 0))
        for count, theirs in ((word_errors, jiwer.process_words), (character_errors, jiwer.process_characters)):
            ours, oracle = count(reference, hypothesis), theirs(reference, hypothesis)
            assert ours.total == oracle.substitutions + oracle.deletions + oracle.insertions
            assert ours.words == oracle.hits + oracle.substitutions + oracle.deletions
            assert ours.hits + ours.substitutions + ours.insertions == oracle.hits + oracle.substitutions + oracle.insertions
        assert word_errors(reference, hypothesis).rate == pytest.approx(jiwer.wer(reference, hypothesis))
        assert character_errors(reference, hypothesis).rate == pytest.approx(jiwer.cer(reference, hypothesis))


def test_long_transcripts_equal_jiwer() -> None:
    """More words than a machine word has bits."""
    jiwer = pytest.importorskip("jiwer")
    rng = np.random.default_rng(1)
    reference, hypothesis = (" ".join(rng.choice(list("abcdefgh"), 400)) for _ in range(2))
    assert word_errors(reference, hypothesis).rate == pytest.approx(jiwer.wer(reference, hypothesis))


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors"),
    [
        ("a b c", "a b c", Errors(3, 0, 0, 0)),
        ("a b c", "a x c", Errors(2, 1, 0, 0)),
        ("a b c", "a c", Errors(2, 0, 1, 0)),
        ("a c", "a b c", Errors(2, 0, 0, 1)),
        ("a b", "", Errors(0, 0, 2, 0)),
        ("", "a", Errors(0, 0, 0, 1)),
        ("", "", Errors()),
    ],
)
def test_hand_cases(reference: str, hypothesis: str, errors: Errors) -> None:
    """Each kind of error alone."""
    assert compare(reference.split(), hypothesis.split()) == errors


def test_rates_at_the_edge() -> None:
    """Nothing for nothing is right; something for nothing has no rate."""
    assert Errors().rate == 0 and Errors(insertions=1).rate == float("inf") and Errors(1, 1, 1, 1).rate == 1


def test_speakers_are_assigned_by_time_and_not_by_words() -> None:
    """Hand case: the words would suit the other way round, and all are then wrong."""
    reference = said("s", ("ann", 0, 4, "one two"), ("bob", 5, 9, "three four"))
    hypothesis = said("s", ("x", 5, 9, "one two"), ("y", 0, 4, "three four"))
    assert assign_speakers(reference, hypothesis) == {"x": "bob", "y": "ann"}
    assert attributed_errors(reference, hypothesis)["s"] == Errors(0, 4, 0, 0)


def test_assignment_is_the_best_of_all_together() -> None:
    """Hand case where taking the longest overlap first (a with p, 3 s) leaves b with nothing: 2 + 2 s are more than 3 s."""
    reference = said("s", ("p", 0, 5, "u"), ("q", 10, 12, "v"))
    hypothesis = said("s", ("a", 0, 3, "u"), ("a", 10, 12, "v"), ("b", 3, 5, "w"))
    assert assign_speakers(reference, hypothesis, collar=0) == {"a": "q", "b": "p"}


def test_collars_and_scored_time_do_not_count() -> None:
    """Half a second around each boundary of the reference is left out, and what lies outside of the scored time."""
    reference = said("s", ("p", 0, 1, "u"), ("q", 1, 2, "v"))
    hypothesis = said("s", ("a", 0.8, 1.2, "u"))
    assert assign_speakers(reference, hypothesis, collar=0) in ({"a": "p"}, {"a": "q"})
    assert assign_speakers(reference, hypothesis, collar=0.5) == {}
    hypothesis = said("s", ("a", 0, 1, "u"), ("a", 1.2, 2, "v"))
    assert assign_speakers(reference, hypothesis, collar=0) == {"a": "p"}
    assert assign_speakers(reference, hypothesis, collar=0, scored=(1.0, 2.0)) == {"a": "q"}
    late = said("s", ("p", 0, 1, "one"), ("p", 30, 31, "two"))
    assert attributed_errors(late, late, scored={"s": (0.0, 10.0)})["s"] == Errors(1, 0, 0, 0)


def test_missing_and_invented_speakers() -> None:
    """Hand case: a speaker whom nobody found is all deletions, one who does not exist all insertions; names need not agree."""
    reference = said("s", ("ann", 0, 4, "one two three"), ("bob", 5, 9, "four five"))
    hypothesis = said("s", ("1", 0, 4, "one too three"), ("2", 20, 22, "six"))
    errors = attributed_errors(reference, hypothesis)["s"]
    assert (errors.hits, errors.substitutions, errors.deletions, errors.insertions) == (2, 1, 2, 1)
    assert errors.rate == pytest.approx(4 / 5)


def test_words_of_a_speaker_are_joined_over_segments() -> None:
    """Where a segment ends does not matter, only the order of the starts."""
    reference = said("s", ("p", 0, 2, "a b"), ("p", 3, 5, "c d"))
    hypothesis = said("s", ("x", 3.5, 5, "d"), ("x", 0, 3.4, "a b c"))
    assert attributed_errors(reference, hypothesis)["s"] == Errors(4, 0, 0, 0)


def test_macro_average_weighs_scenarios_and_not_words() -> None:
    """One error in ten words of two sessions, and one in two words: (0.1 + 0.5) / 2."""
    long = {"s1": Errors(5, 0, 0, 0), "s2": Errors(4, 1, 0, 0)}
    assert macro_da_wer({"chime6": long, "dipco": {"s3": Errors(1, 0, 1, 0)}}) == pytest.approx(0.3)


def test_oracle_segmentation_keeps_names() -> None:
    """Without diarisation speakers are those of the reference, whatever the times say; sessions must be on both sides."""
    reference = said("s", ("p", 0, 1, "a"), ("q", 0, 1, "b"))
    assert attributed_errors(reference, reference, diarised=False)["s"] == Errors(2, 0, 0, 0)
    with pytest.raises(InputError, match="session"):
        attributed_errors(reference, said("t", ("p", 0, 1, "a")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello,  World!", "hello world"),
        ("It\u2019s [laughs] fine <noise> .", "it's fine"),
        ("Mhm, um - uh", "hmmm ummm uhhh"),
        ("twenty-one \u00e9t\u00e9 5", "twenty-one \u00e9t\u00e9 5"),
        ("[inaudible]", ""),
        ("humming umbrella", "humming umbrella"),
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    """Stated in the docstring, case by case; doing it twice is doing it once."""
    assert normalise(text) == expected == normalise(normalise(text))
