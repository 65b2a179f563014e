"""Macro DA-WER of transcripts in files: which files belong together, what is counted, and the tables. No torch at import."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cnnkit.engine.files import write_rows
from cnnkit.errors import InputError, UsageError, unknown

from cnnkit_audio.recognition.text import normalise
from cnnkit_audio.recognition.wer import Errors, Segment, attributed_errors, macro_da_wer
from cnnkit_audio.transcripts import read_transcript

COLUMNS = ("words", "hits", "substitutions", "deletions", "insertions", "da_wer")
_LAYOUT = "SCENARIO.json for each scenario, or CHiME-7's SCENARIO/transcriptions_scoring/PARTITION/SESSION.json"


@dataclass(frozen=True)
class Scores:
    """Errors of scenarios.

    Args:
        errors: By scenario and session, as :func:`~cnnkit_audio.recognition.wer.attributed_errors` counts them.
    """

    errors: Mapping[str, Mapping[str, Errors]]

    @property
    def scenarios(self) -> dict[str, Errors]:
        """The errors of all sessions of each scenario."""
        return {name: sum(sessions.values(), start=Errors()) for name, sessions in self.errors.items()}

    @property
    def macro(self) -> float:
        """The mean of the scenarios' rates."""
        return macro_da_wer(self.errors)

    def table(self) -> str:
        """Return a row for each scenario and the macro average, for people."""
        head = ("scenario", "sessions", "words", "substitutions", "deletions", "insertions", "DA-WER")
        rows: list[tuple[str, ...]] = [head]
        for name, found in self.scenarios.items():
            counts = (len(self.errors[name]), found.words, found.substitutions, found.deletions, found.insertions)
            rows.append((name, *map(str, counts), f"{found.rate:.2%}"))
        rows.append(("macro average", *("",) * 5, f"{self.macro:.2%}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)

    def data(self) -> dict[str, Any]:
        """Return all of it as plain data; a rate without words is null."""
        return {
            "macro_da_wer": _finite(self.macro),
            "scenarios": {name: _counts(found) for name, found in self.scenarios.items()},
            "sessions": {name: {session: _counts(found) for session, found in here.items()} for name, here in self.errors.items()},
        }

    def write(self, folder: Path) -> list[Path]:
        """Write ``scenarios.csv``, which ends with the macro average, and ``sessions.csv``, and return the paths."""
        scenarios = [(name, *_row(found)) for name, found in self.scenarios.items()]
        scenarios.append(("macro average", *("",) * (len(COLUMNS) - 1), f"{self.macro:.6f}"))
        sessions = [(name, session, *_row(found)) for name, here in self.errors.items() for session, found in here.items()]
        return [
            write_rows(folder / "scenarios.csv", [("scenario", *COLUMNS), *scenarios]),
            write_rows(folder / "sessions.csv", [("scenario", "session", *COLUMNS), *sessions]),
        ]


@dataclass(frozen=True)
class Scenario:
    """The files of a scenario.

    Args:
        name: Its name.
        hypothesis: Transcripts of all its sessions.
        references: The files of its references.
        uem: Table of the times that count; all if absent.
    """

    name: str
    hypothesis: Path
    references: tuple[Path, ...]
    uem: Path | None = None

    def score(self, *, diarised: bool = True, collar: float = 0.5, normalised: bool = False) -> dict[str, Errors]:
        """Return the errors of each session.

        Args:
            diarised: Whether speakers of the hypothesis are to be assigned; with oracle segmentation they have the reference's names.
            collar: Seconds around each boundary of the reference that do not count in the assignment.
            normalised: Whether words go through :func:`~cnnkit_audio.recognition.text.normalise` first.

        Raises:
            InputError: If a file is damaged, a session is on one side alone or in two files, or a speaker unknown.
        """
        reference, sources = [], dict[str, Path]()
        for file in self.references:
            found = _segments(file, normalised=normalised)
            for session in {item.session for item in found}:
                if session in sources:
                    raise InputError(f"session {session} is in {sources[session]} and in {file} too; a session belongs to one file")
                sources[session] = file
            reference += found
        scored = None if self.uem is None else read_uem(self.uem)
        if scored is not None and (missing := sorted(set(sources) - set(scored))):
            raise InputError(f"{self.uem} names no time for the sessions {', '.join(missing)}")
        hypothesis = _segments(self.hypothesis, normalised=normalised)
        try:
            return attributed_errors(reference, hypothesis, diarised=diarised, collar=collar, scored=scored)
        except InputError as error:
            raise InputError(f"{self.hypothesis} against {self.references[0].parent}: {error}") from error


def score(scenarios: Sequence[Scenario], *, diarised: bool = True, collar: float = 0.5, normalised: bool = False) -> Scores:
    """Score scenarios (:meth:`Scenario.score`).

    Raises:
        InputError: Of a scenario; or if two have a session of the same name.
    """
    errors: dict[str, dict[str, Errors]] = {}
    for scenario in scenarios:
        found = scenario.score(diarised=diarised, collar=collar, normalised=normalised)
        for name, sessions in errors.items():
            if twice := sorted(set(sessions) & set(found)):
                raise InputError(f"sessions {', '.join(twice)} are in the scenarios {name} and {scenario.name}; a session belongs to one")
        errors[scenario.name] = found
    return Scores(errors)


def find_scenarios(
    hypotheses: Path, references: Path, *, partition: str = "dev", only: Sequence[str] = (), uem: Path | None = None
) -> list[Scenario]:
    """Return the files of each scenario, in the order of their names.

    Args:
        hypotheses: A file ``SCENARIO.json``, or a folder of these.
        references: A file, a folder of ``SCENARIO.json``, or the root of CHiME-7.
        partition: ``"dev"`` or ``"eval"`` of CHiME-7's layout.
        only: Scenarios to score; by default all.
        uem: Table of the times that count; by default that of CHiME-7's layout, if it is there.

    Raises:
        InputError: If something is missing, or scenarios are on one side alone.
        UsageError: If a scenario is asked for that is not there, or a folder is to be compared with a file.
    """
    for path in (hypotheses, references):
        if not path.exists():
            raise InputError(f"{path} does not exist")
    if hypotheses.is_file():
        found = {hypotheses.stem: hypotheses}
    elif references.is_file():
        raise UsageError(f"{hypotheses} is a folder and {references} a file; give two files, or the folder of the references")
    else:
        found = {path.stem: path for path in sorted(hypotheses.glob("*.json"))}
        if not found:
            raise InputError(f"{hypotheses} holds no transcripts; expected SCENARIO.json for each scenario, as chime6.json")
    expected = _references(references, partition, hypotheses)
    if hypotheses.is_file():
        expected = {name: item for name, item in expected.items() if name in found}
    for name in only:
        if name not in expected:
            raise UsageError(unknown("scenario", name, expected))
    names = list(only) or sorted({*found, *expected})
    for name in names:
        if name not in found or name not in expected:
            lacking, other = (hypotheses, references) if name in expected else (references, hypotheses)
            hint = "; leave it out by naming the others, each with --scenario" if len(names) > 1 else ""
            raise InputError(f"{lacking} has nothing of the scenario {name}, which {other} has{hint} (expected {_LAYOUT})")
    return [Scenario(name, found[name], expected[name][0], uem or expected[name][1]) for name in names]


def _references(references: Path, partition: str, hypotheses: Path) -> dict[str, tuple[tuple[Path, ...], Path | None]]:
    """Return the files of the references by scenario, and the table of times."""
    if references.is_file():
        return {hypotheses.stem: ((references,), None)}
    found: dict[str, tuple[tuple[Path, ...], Path | None]] = {path.stem: ((path,), None) for path in sorted(references.glob("*.json"))}
    for folder in sorted(references.glob(f"*/transcriptions_scoring/{partition}")):
        root = folder.parents[1]
        uem = root / "uem" / partition / "all.uem"
        if files := tuple(sorted(folder.glob("*.json"))):
            found[root.name] = files, uem if uem.is_file() else None
    if not found:
        raise InputError(f"{references} holds no references for the partition {partition!r}; expected {_LAYOUT}")
    return found


def read_uem(file: Path) -> dict[str, tuple[float, float]]:
    """Return start and end of the time that counts by session, of lines ``SESSION CHANNEL START END``.

    Raises:
        InputError: If the file cannot be read or a line is wrong.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    found: dict[str, tuple[float, float]] = {}
    for number, line in enumerate(lines, start=1):
        if not (parts := line.split()):
            continue
        try:
            session, _, start, end = parts[0], parts[1], *map(float, parts[2:])
        except (ValueError, IndexError):
            session, start, end = "", 0.0, 0.0
        if not start < end < math.inf:
            raise InputError(f"{file} line {number}: {line!r} is no time that counts; expected SESSION CHANNEL START END, in seconds")
        if session in found:
            raise InputError(f"{file} line {number}: session {session} is there twice")
        found[session] = start, end
    return found


def _segments(file: Path, *, normalised: bool) -> list[Segment]:
    found = read_transcript(file)
    if not found:
        raise InputError(f"{file} holds no utterances")
    return [replace(item, words=normalise(item.words)) for item in found] if normalised else found


def _counts(found: Errors) -> dict[str, float | None]:
    return {**{name: getattr(found, name) for name in COLUMNS[:-1]}, "da_wer": _finite(found.rate)}


def _row(found: Errors) -> tuple[Any, ...]:
    return (*(getattr(found, name) for name in COLUMNS[:-1]), f"{found.rate:.6f}")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
