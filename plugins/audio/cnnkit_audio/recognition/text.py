"""Texts and units: how transcripts are normalised, and which numbers stand for them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cnnkit.errors import ConfigError

BLANK, EDGE = "<blank>", "<edge>"
"""Units of every vocabulary: nothing new (CTC), and the beginning or end of an utterance (decoder)."""

_SOUNDS = (("hmmm", ("hm", "hmm", "mhm", "mmh", "mmm")), ("ummm", ("uhm", "um", "umm", "umh", "ummh")), ("uhhh", ("uh", "uhh")))
_FILLERS = {spelt: word for word, spellings in _SOUNDS for spelt in spellings}


def normalise(text: str) -> str:
    """Return a transcript in the form that errors are counted in, after the rules of the CHiME-7 scoring.

    Lower case; notes in brackets (``[laughs]``, ``<noise>``) are dropped; curly apostrophes become straight; whatever is no letter,
    digit, apostrophe or hyphen is a space; the spellings of hmmm, ummm and uhhh become one each; spaces are single.
    """
    text = re.sub(r"\[[^\]]*\]|<[^>]*>", " ", text.lower().replace("\u2019", "'"))
    words = re.sub(r"[^\w'\-]|_", " ", text).split()
    return " ".join(_FILLERS.get(word, word) for word in words if word.strip("'-"))


class Vocabulary:
    """The units that a network writes.

    Args:
        units: The words, or the characters; with characters the space must be among them.
        characters: Whether they are characters.

    Raises:
        ConfigError: If a unit comes twice, or is not of its kind.
    """

    def __init__(self, units: Sequence[str], *, characters: bool) -> None:
        self.units, self.characters = tuple(units), characters
        self.labels = (BLANK, EDGE, *self.units)
        self._numbers = {unit: number for number, unit in enumerate(self.labels)}
        if len(self._numbers) != len(self.labels):
            twice = sorted({unit for unit in self.labels if self.labels.count(unit) > 1})
            raise ConfigError(f"recognition.vocabulary names {', '.join(map(repr, twice))} twice")
        wrong = [unit for unit in self.units if (len(unit) != 1 if characters else not unit or any(c.isspace() for c in unit))]
        if wrong or not self.units:
            kind = "single characters" if characters else "words without spaces"
            raise ConfigError(f"recognition.vocabulary holds {wrong[:3] or 'nothing'}; accepted with this recognition.units: {kind}")

    def encode(self, text: str, source: str = "the transcript") -> list[int]:
        """Return the numbers of a text's units.

        Raises:
            ConfigError: If it holds one that is not in the vocabulary.
        """
        parts = list(text) if self.characters else text.split()
        strange = sorted({part for part in parts if part not in self._numbers})
        if strange:
            raise ConfigError(f"{source} holds {', '.join(map(repr, strange[:5]))}, which recognition.vocabulary lacks; add them there")
        return [self._numbers[part] for part in parts]

    def decode(self, numbers: Sequence[int]) -> str:
        """Return the text of units; blank and edge are passed over."""
        parts = [self.labels[number] for number in numbers if number > 1]
        return "".join(parts) if self.characters else " ".join(parts)

    def words(self, numbers: Sequence[int]) -> list[tuple[str, int, int]]:
        """Return each word with the place of its first unit, and of the one after its last."""
        if not self.characters:
            return [(self.labels[number], place, place + 1) for place, number in enumerate(numbers)]
        found, start = [], 0
        for place, number in enumerate([*numbers, self._numbers.get(" ", -1)]):
            if place == len(numbers) or self.labels[number] == " ":
                if place > start:
                    found.append((self.decode(numbers[start:place]), start, place))
                start = place + 1
        return found
