"""``cnnkit audio score``: CHiME-7's layout and plain files by hand, what ``eval`` writes for it, and what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from cnnkit.cli import cli
from cnnkit.config import from_dict
from cnnkit.engine.evaluate import evaluate, write_evaluation
from cnnkit.errors import CnnkitError, InputError, InputWarning, UsageError
from cnnkit_audio.config import Config
from cnnkit_audio.datasets import chime
from cnnkit_audio.recognition.metrics import RecognitionMetric
from cnnkit_audio.recognition.scoring import find_scenarios, score
from cnnkit_audio.sound import write_sound
from cnnkit_audio.task import Audio
from cnnkit_audio.transcripts import Segment, read_transcript, write_transcript

from tests.contract.test_audio import SMALL

pytestmark = pytest.mark.paper("chime7-acs-asr")

Row = tuple[str, str, float, float, str]


def written(path: Path, *rows: Row) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_transcript(path, [Segment(*row) for row in rows])


@pytest.fixture
def chime7(tmp_path: Path) -> tuple[Path, Path]:
    """Two sessions of one scenario and one of another, with what was heard in them. By hand:

    S02 (ann: a b c d, bob: e f): the names are exchanged, d is missing and f is x: 1 deletion, 1 substitution of 6 words.
    S09 (bob: g h): right. Together 2 of 8 words are wrong. S28 (eve: one two): two words of nobody beside them, 2 of 2.
    """
    root, heard = tmp_path / "chime7_task1", tmp_path / "heard" / "dev"
    scoring = root / "chime6" / "transcriptions_scoring" / "dev"
    written(scoring / "S02.json", ("S02", "ann", 0, 4, "a b"), ("S02", "bob", 5, 9, "e f"), ("S02", "ann", 10, 14, "c d"))
    written(scoring / "S09.json", ("S09", "bob", 0, 4, "g h"), ("S09", "bob", 90, 94, "late words"))
    written(root / "dipco" / "transcriptions_scoring" / "dev" / "S28.json", ("S28", "eve", 0, 4, "one two"))
    (root / "chime6" / "uem" / "dev").mkdir(parents=True)
    (root / "chime6" / "uem" / "dev" / "all.uem").write_text("S02 1 0.000 60.000\nS09 1 0.000 60.000\n", encoding="utf-8")
    spoken = [("S02", "bob", 0.0, 4.0, "a b"), ("S02", "bob", 10.0, 14.0, "c"), ("S02", "ann", 5.0, 9.0, "e x")]
    written(heard / "chime6.json", *spoken, ("S09", "1", 0, 4, "g h"))
    written(heard / "dipco.json", ("S28", "1", 0, 4, "one two"), ("S28", "2", 30, 34, "three four"))
    return heard, root


def job(**data: Any) -> Any:
    """The recognition job with a small network."""
    network = {"name": "audio/acs_asr", "args": dict(SMALL["audio/acs_asr"].args)}
    return Audio(from_dict(Config, {"network": network, "recognition": {"data": data}}))


def typed(*words: Any) -> Result:
    return CliRunner().invoke(cli, ["audio", "score", *map(str, words)])


def test_chime7_layout_by_hand(chime7: tuple[Path, Path], tmp_path: Path) -> None:
    """The table, the csv files and the JSON; what lies outside of the scored time does not count."""
    result = typed(*chime7, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert lines[1] == ["chime6", "2", "8", "1", "1", "0", "25.00%"] and lines[2] == ["dipco", "1", "2", "0", "0", "2", "100.00%"]
    assert lines[3] == ["macro", "average", "62.50%"]
    with open(tmp_path / "out" / "scenarios.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["scenario"], row["da_wer"]) for row in rows] == [
        ("chime6", "0.250000"),
        ("dipco", "1.000000"),
        ("macro average", "0.625000"),
    ]
    with open(tmp_path / "out" / "sessions.csv", encoding="utf-8", newline="") as stream:
        sessions = {row["session"]: row for row in csv.DictReader(stream)}
    assert [sessions[name]["words"] for name in ("S02", "S09", "S28")] == ["6", "2", "2"] and sessions["S02"]["deletions"] == "1"
    data = json.loads(typed(*chime7, "--json").output)
    assert data["macro_da_wer"] == 0.625 and data["sessions"]["dipco"]["S28"]["insertions"] == 2


def test_some_scenarios_and_oracle_names(chime7: tuple[Path, Path]) -> None:
    """``--scenario`` leaves others out, as a single file does; ``--oracle`` takes the exchanged names at their word."""
    heard, root = chime7
    for words in ((heard, root, "--scenario", "chime6"), (heard / "chime6.json", root)):
        output = typed(*words).output
        assert "dipco" not in output and output.splitlines()[-1].split() == ["macro", "average", "25.00%"]
    (heard / "chime6.json").unlink()
    written(heard / "chime6.json", ("S02", "bob", 0, 4, "a b"), ("S02", "ann", 5, 9, "e f"), ("S09", "bob", 0, 4, "g h"))
    (scenario,) = find_scenarios(heard, root, only=("chime6",))
    assert score([scenario]).macro == 2 / 8  # The words "c d" are missing.
    assert scenario.score(diarised=False)["S02"].total == 2 + 4


def test_files_of_the_same_names_and_spelling(tmp_path: Path) -> None:
    """Without CHiME-7's folders; capitals are errors unless words are normalised."""
    ours = written(tmp_path / "references" / "talk.json", ("one", "ann", 0, 1, "so ummm"))
    theirs = written(tmp_path / "hypotheses" / "talk.json", ("one", "x", 0, 1, "So, [laughs] um"))
    for pair in ((theirs, ours), (theirs.parent, ours.parent)):
        assert typed(*pair).output.splitlines()[-1].endswith("150.00%")
        assert typed(*pair, "--normalise").output.splitlines()[-1].endswith(" 0.00%")


def test_uem_by_hand(tmp_path: Path) -> None:
    """An utterance that ends before the time that counts is left out on both sides."""
    ours = written(tmp_path / "r.json", ("one", "ann", 0, 1, "a"), ("one", "ann", 5, 6, "b"))
    theirs = written(tmp_path / "h.json", ("one", "x", 0, 1, "z"), ("one", "x", 5, 6, "b"))
    assert typed(theirs, ours).output.splitlines()[-1].endswith("50.00%")
    (tmp_path / "all.uem").write_text("one 1 2.5 10\n", encoding="utf-8")
    assert typed(theirs, ours, "--uem", tmp_path / "all.uem").output.splitlines()[-1].endswith(" 0.00%")


def test_what_eval_writes_is_scored_alike(tmp_path: Path) -> None:
    """``cnnkit eval`` of synthetic sentences writes both sides; scoring them gives its figure, by names and by times."""
    task = job(held_out=2, microphones=[2, 3], places=1)
    figures, metric = evaluate(task, task.model(), split="val", device="cpu", progress=False)
    files = write_evaluation(tmp_path, figures, metric)
    assert {file.name for file in files} == {"metrics.json", "scenarios.csv", "sessions.csv", "all.json"}
    for diarised in (False, True):
        again = score(find_scenarios(tmp_path / "hypotheses", tmp_path / "references"), diarised=diarised)
        assert again.macro == pytest.approx(figures["da_wer"]) and len(again.errors["all"]) == 2


def test_scenarios_of_an_experiment(tmp_path: Path) -> None:
    """A folder of scenarios is one data set; each has a figure of its own, and the macro average is theirs."""
    sound = 0.1 * np.random.default_rng(0).standard_normal((1, 8000)).astype(np.float32)
    for scenario, session, words in (("chime6", "S02", "one two"), ("dipco", "S28", "three")):
        write_sound(tmp_path / scenario / "audio" / "dev" / f"{session}_U01.CH1.wav", sound, 4000)
        written(tmp_path / scenario / "transcriptions" / "dev" / f"{session}.json", (session, "ann", 0.5, 1.5, words))
    (tmp_path / "mixer6" / "transcriptions" / "train").mkdir(parents=True)
    assert [clip.scenario for clip in chime(tmp_path, "dev")] == ["chime6", "dipco"]
    task = job(layout="chime7", folder=str(tmp_path), splits=["", "dev", ""])
    (batch,) = task.loader("val")
    halves = [RecognitionMetric(), RecognitionMetric()]
    for number, (metric, text) in enumerate(zip(halves, ("one too", "three"), strict=True)):
        one = {key: batch[key][number : number + 1] for key in ("utterances", "clean")}
        metric.update([_heard(text)], one)
    halves[0].merge(halves[1])
    figures = halves[0].compute()
    assert figures["chime6/da_wer"] == 0.5 and figures["dipco/da_wer"] == 0 and figures["macro_da_wer"] == 0.25
    assert figures["da_wer"] == pytest.approx(1 / 3)


def _heard(text: str) -> Any:
    from cnnkit_audio.recognition.decode import Transcript

    return Transcript(text, (), ())


def test_utterances_that_end_before_they_start(tmp_path: Path) -> None:
    """As one of CHiME-6 does: times are exchanged, and that is said."""
    file = written(tmp_path / "S21.json", ("S21", "P45", 3561.7, 3561.49, "ok"))
    with pytest.warns(InputWarning, match=r"S21\.json entry 1: ends at 3561\.49 s, before it starts at 3561\.7 s"):
        (found,) = read_transcript(file)
    assert found == Segment("S21", "P45", 3561.49, 3561.7, "ok")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"cannot be read as json"),
        ("{}", r"is not a list of utterances \(session_id, speaker"),
        ("[]", r"holds no utterances"),
        ("[1]", r"entry 1: not an utterance"),
        ('[{"speaker": "", "words": ""}]', r"entry 1: speaker='' is no name"),
        ('[{"words": ""}]', r"entry 1: speaker=None is no name"),
        ('[{"speaker": "a", "start_time": 0, "end_time": 1}]', r"entry 1: words=None is no text"),
        ('[{"speaker": "a", "words": "", "start_time": NaN, "end_time": 1}]', r"entry 1: start_time=nan is no time"),
        ('[{"speaker": "a", "words": "", "start_time": "0", "end_time": "1e5"}]', r"entry 1: end_time='1e5' is no time"),
        ("[" * 100_000, r"cannot be read as json"),
    ],
)
def test_damaged_transcripts_are_refused(tmp_path: Path, content: str, message: str) -> None:
    written(tmp_path / "r.json", ("h", "a", 0, 1, ""))
    (tmp_path / "h.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=rf"h\.json.*{message}"):
        score(find_scenarios(tmp_path / "h.json", tmp_path / "r.json"))


def _no_session(heard: Path, root: Path) -> None:
    written(heard / "dipco.json", ("S99", "1", 0, 4, "one two"))


def _fewer_sessions(heard: Path, root: Path) -> None:
    written(heard / "chime6.json", ("S02", "1", 0, 4, "a"))


def _two_files(heard: Path, root: Path) -> None:
    written(root / "chime6" / "transcriptions_scoring" / "dev" / "again.json", ("S09", "bob", 0, 4, "g h"))


def _two_scenarios(heard: Path, root: Path) -> None:
    written(heard / "dipco.json", ("S02", "1", 0, 4, "one two"))
    written(root / "dipco" / "transcriptions_scoring" / "dev" / "S28.json", ("S02", "eve", 0, 4, "one two"))


def _no_scenario(heard: Path, root: Path) -> None:
    (heard / "dipco.json").unlink()


def _uem(text: str) -> Callable[[Path, Path], None]:
    def spoil(heard: Path, root: Path) -> None:
        (root / "chime6" / "uem" / "dev" / "all.uem").write_text(text, encoding="utf-8")

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_no_session, r"dipco\.json against .*: the hypothesis lacks sessions: S28; where nothing was said"),
        (_fewer_sessions, r"the hypothesis lacks sessions: S09"),
        (_two_files, r"session S09 is in .*S09\.json and in .*again\.json too"),
        (_two_scenarios, r"sessions S02 are in the scenarios chime6 and dipco"),
        (_no_scenario, r"has nothing of the scenario dipco, which .* has; leave it out by naming the others, each with --scenario"),
        (_uem("S02 1 0 60\n"), r"all\.uem names no time for the sessions S09"),
        (_uem("S02 1 0 60\nS02 1 0 60\n"), r"line 2: session S02 is there twice"),
        (_uem("S02 1 60 0\n"), r"line 1: .* is no time that counts; expected SESSION CHANNEL START END"),
        (_uem("S02 1 0\n"), r"line 1: .* is no time that counts"),
    ],
)
def test_sides_that_do_not_fit_are_refused(chime7: tuple[Path, Path], spoil: Callable[[Path, Path], None], message: str) -> None:
    spoil(*chime7)
    with pytest.raises(InputError, match=message):
        score(find_scenarios(*chime7))


def test_other_mistakes_are_refused(chime7: tuple[Path, Path], tmp_path: Path) -> None:
    heard, root = chime7
    wrong: list[tuple[Callable[[], Any], type[CnnkitError], str]] = [
        (lambda: find_scenarios(heard, tmp_path / "none"), InputError, "none does not exist"),
        (lambda: find_scenarios(heard, root, partition="eval"), InputError, r"no references for the partition 'eval'; expected SCENARIO"),
        (lambda: find_scenarios(heard, root, only=("chime5",)), UsageError, r"unknown scenario 'chime5'; did you mean 'chime6'"),
        (lambda: find_scenarios(heard, heard / "dipco.json"), UsageError, "is a folder and .* a file"),
        (lambda: find_scenarios(heard.parent, root), InputError, "holds no transcripts"),
        (lambda: score(find_scenarios(heard, root), diarised=False), InputError, "session S09: the reference has no speaker 1, as oracle"),
    ]
    for call, kind, message in wrong:
        with pytest.raises(kind, match=message):
            call()
    result = typed(heard, root, "--collar", "-1")
    assert result.exit_code == 2 and "collar" in result.output
