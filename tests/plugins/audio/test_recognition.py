"""The recognition job: search and alignment by hand and by brute force, data, recordings of several files, what is written."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cnnkit.checkpoint import save_checkpoint
from cnnkit.cli import main
from cnnkit.config import from_dict
from cnnkit.engine.fit import header_for
from cnnkit.errors import ConfigError, InputWarning
from cnnkit.plugin import get
from cnnkit_audio.args import Run
from cnnkit_audio.config import Config
from cnnkit_audio.recognition import ctc
from cnnkit_audio.recognition.decode import Piece, Transcript, Word, joined, rescore, transcribe
from cnnkit_audio.recognition.recording import Recording, quietest
from cnnkit_audio.recognition.task import Recognition, shifted
from cnnkit_audio.recognition.text import Vocabulary
from cnnkit_audio.sound import open_sound, write_sound
from cnnkit_audio.task import Audio

pytestmark = pytest.mark.paper("chime7-acs-asr")

NETWORK: dict[str, Any] = {
    "name": "audio/acs_asr",
    "args": {"sample_rate": 4000, "n_fft": 64, "win_length": 64, "hop": 32, "n_mels": 8, "width": 16, "heads": 2, "hidden": 16, "kernel": 3}
    | {"keep": [2, 2], "channel_layers": 1, "layers": 1, "decoder_layers": 1, "fusion_width": 2, "dropout": 0.0},
}


def job(**section: Any) -> Recognition:
    """The job with a small network."""
    task = Audio(from_dict(Config, {"network": NETWORK, "recognition": section}))
    assert isinstance(task, Recognition)
    return task


def posteriors(rows: list[list[float]]) -> np.ndarray:
    return np.log(np.array(rows))


def path_sums(log_probs: np.ndarray) -> dict[tuple[int, ...], float]:
    """The probability of every sequence, over all paths one by one."""
    sums: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        units = tuple(unit for unit, _ in itertools.groupby(path) if unit)
        sums[units] = sums.get(units, 0.0) + float(np.exp(log_probs[range(len(path)), path].sum()))
    return sums


def test_greedy_joins_repetitions_and_drops_blanks() -> None:
    """Hand cases: a a - a b b -> a a b."""
    best = [1, 1, 0, 1, 2, 2]
    assert ctc.greedy(np.eye(3)[best]) == [1, 1, 2]
    assert ctc.greedy(np.eye(3)[[0, 0]]) == [] == ctc.greedy(np.zeros((0, 3)))


def test_beam_finds_what_the_best_path_misses() -> None:
    """The classic hand case: blank is best in both frames (0.36), but the paths of "a" sum to 0.64."""
    log_probs = posteriors([[0.6, 0.4], [0.6, 0.4]])
    assert ctc.greedy(log_probs) == []
    found = ctc.prefix_beam(log_probs, 4)
    assert found[0][0] == (1,) and np.exp(found[0][1]) == pytest.approx(0.64)
    assert dict(found)[()] == pytest.approx(np.log(0.36))


def test_beam_equals_the_sum_over_all_paths() -> None:
    """With room for every prefix, the probability of each sequence is that of all its paths."""
    for seed in range(5):
        log_probs = np.log(np.random.default_rng(seed).dirichlet(np.ones(3), 5))
        sums = path_sums(log_probs)
        found = ctc.prefix_beam(log_probs, 1000)
        assert {prefix for prefix, _ in found} == set(sums)
        for prefix, score in found:
            assert np.exp(score) == pytest.approx(sums[prefix])
        assert found[0][0] == max(sums, key=lambda units: sums[units])


def test_alignment_is_the_best_path() -> None:
    """By brute force over all paths that spell the units; equal neighbours need a blank between them."""
    for seed, units in itertools.product(range(4), ([1], [1, 2], [2, 2], [1, 1, 2])):
        log_probs = np.log(np.random.default_rng(seed).dirichlet(np.ones(3), 6))
        paths = [path for path in itertools.product(range(3), repeat=6) if [unit for unit, _ in itertools.groupby(path) if unit] == units]
        best = max(paths, key=lambda path: log_probs[range(6), path].sum())
        spans = ctc.align(log_probs, units)
        runs = [(unit, [place for place, _ in group]) for unit, group in itertools.groupby(enumerate(best), key=lambda item: item[1])]
        assert spans == [(places[0], places[-1] + 1) for unit, places in runs if unit]
    assert ctc.align(log_probs, []) == []
    with pytest.raises(ValueError, match="frames"):
        ctc.align(log_probs[:2], [1, 1])


def test_words_of_characters() -> None:
    """Spaces part words, one or several of them, at the ends too."""
    vocabulary = Vocabulary("ab ", characters=True)
    units = vocabulary.encode(" ab  b")
    assert vocabulary.decode(units) == " ab  b"
    assert vocabulary.words(units) == [("ab", 1, 3), ("b", 5, 6)]
    words = Vocabulary(("yes", "no"), characters=False)
    assert words.words(words.encode("no yes")) == [("no", 0, 1), ("yes", 1, 2)] and words.labels[:2] == ("<blank>", "<edge>")
    for units_, characters in ((("yes", "yes"), False), (("two words",), False), (("ab",), True), ((), False)):
        with pytest.raises(ConfigError, match="vocabulary"):
            Vocabulary(units_, characters=characters)
    with pytest.raises(ConfigError, match="maybe"):
        words.encode("yes maybe")


def test_decoder_reads_what_came_before() -> None:
    """Hand case of teacher forcing: the edge first, the edge after the last unit, nothing to write beyond."""
    before, after = shifted(torch.tensor([[5, 6, 7], [8, 0, 0]]), torch.tensor([3, 1]), 1)
    assert before.tolist() == [[1, 5, 6, 7], [1, 8, 1, 1]]
    assert after.tolist() == [[5, 6, 7, 1], [8, 1, -1, -1]]


def test_rescoring_is_the_sum_of_the_decoder_s_steps() -> None:
    """One candidate after the other, unit by unit, and the greatest weighted sum is chosen."""
    task = job()
    torch.manual_seed(0)
    model = task.model().eval()
    batch = task.loader("example")[0]  # type: ignore[index]
    with torch.no_grad():
        heard = model.hear(batch["x"], batch["channels"], batch["lengths"])
        candidates = [(4, 3), (5,), ()]
        scores = rescore(model, heard, 1, candidates)
        for units, score in zip(candidates, scores, strict=True):
            slow, tokens = 0.0, [1]
            alone = heard._replace(memory=heard.memory[1:], frames=heard.frames[1:])
            for unit in (*units, 1):
                slow += float(model.attend(alone, torch.tensor([tokens]))[0, -1].log_softmax(-1)[unit])
                tokens.append(unit)
            assert score == pytest.approx(slow, abs=1e-4)
        frames = heard.ctc[1, : int(heard.frames[1].sum())].log_softmax(-1).double().numpy()
        found = [(prefix, total) for prefix, total in ctc.prefix_beam(frames, 6) if 1 not in prefix]
        sums = [0.3 * total + 0.7 * ours for (_, total), ours in zip(found, rescore(model, heard, 1, [p for p, _ in found]), strict=True)]
        best = found[int(np.argmax(sums))][0]
        ours = transcribe(model, heard, task.vocabulary, beam=6, ctc_weight=0.3, seconds=[1.0, 1.0])[1]
    assert ours.text == task.vocabulary.decode(best)


def test_times_of_words() -> None:
    """Hand case: scores that spell two words at known frames; half a second is added to all times."""
    task = job(vocabulary=["yes", "no"], beam=1)
    model = task.model().eval()
    with torch.no_grad():
        heard = model.hear(0.1 * torch.randn(1, 3, 1900, generator=torch.Generator().manual_seed(0)))
        scores = torch.full_like(heard.ctc, -20.0)
        scores[..., 0] = 0
        for frame, unit in ((2, 2), (3, 2), (7, 3)):
            scores[0, frame, [0, unit]] = torch.tensor([-20.0, 0.0])
        found = transcribe(model, heard._replace(ctc=scores), task.vocabulary, beam=1, ctc_weight=0.3, seconds=[0.475], start=0.5)[0]
    assert found.text == "yes no" and [word.text for word in found.words] == ["yes", "no"]
    assert model.frame_seconds == pytest.approx(0.032)
    assert [word.start for word in found.words] == pytest.approx([0.564, 0.724])
    assert [word.end for word in found.words] == pytest.approx([0.628, 0.756])
    assert found.confidence == pytest.approx(1, abs=1e-6)
    assert len(found.pieces[0].channels) == 2 and sum(found.pieces[0].weights) == pytest.approx(1, abs=1e-6)


def test_synthetic_utterances_depend_on_their_position_alone() -> None:
    """Twice the same, another epoch another sentence, validation the same in every epoch; the clean microphones are known."""
    task = job(data={"places": 2, "samples_per_epoch": 4, "batch_size": 2, "held_out": 2, "microphones": [2, 4]})
    loaders = [task.loader("train") for _ in range(2)]
    for loader in loaders:
        loader.set_epoch(3)  # type: ignore[union-attr]
    one, other = ([batch["utterances"] for batch in loader] for loader in loaders)  # type: ignore[union-attr]
    assert one == other and len(one) == 2
    loaders[0].set_epoch(4)  # type: ignore[union-attr]
    assert [batch["utterances"] for batch in loaders[0]] != one  # type: ignore[union-attr]
    batch = next(iter(task.loader("val")))  # type: ignore[arg-type]
    assert [clean.sum() for clean in batch["clean"]] == [2, 2] and len(batch["utterances"]) == 2
    for row, (_, text, *_) in enumerate(batch["utterances"]):
        assert task.vocabulary.decode(batch["units"][row, : batch["counts"][row]].tolist()) == text
        assert batch["x"][row, :, : batch["lengths"][row]].abs().amax(-1).gt(0).equal(batch["channels"][row])


def test_chime_sessions(tmp_path: Path) -> None:
    """A small folder of the layout: utterances by the transcription's times, all distant microphones, normalised words, DA-WER."""
    sound = 0.1 * np.random.default_rng(0).standard_normal((4, 8000)).astype(np.float32)
    for folder in ("audio/dev", "transcriptions/dev"):
        (tmp_path / folder).mkdir(parents=True)
    for number, name in enumerate(("U01.CH1", "U01.CH2", "U02.CH1", "U02.CH2")):
        write_sound(tmp_path / f"audio/dev/S02_{name}.wav", sound[number : number + 1], 4000)
    rows = [("0.50", "1.25", "One, two!", "P05"), ("1.5", "1.9", "[laughs] nine", "P06")]
    entries = [{"session_id": "S02", "start_time": a, "end_time": b, "words": words, "speaker": who} for a, b, words, who in rows]
    (tmp_path / "transcriptions/dev/S02.json").write_text(json.dumps(entries), encoding="utf-8")
    task = job(data={"layout": "chime7", "folder": str(tmp_path), "splits": ["", "dev", ""]})
    assert task.loader("test") is None and task.loader("train") is None
    (batch,) = task.loader("val")  # type: ignore[misc]
    assert [item[1:4] for item in batch["utterances"]] == [("one two", "P05", "S02"), ("nine", "P06", "S02")]
    assert batch["x"].shape == (2, 4, 3000) and batch["lengths"].tolist() == [3000, 1600]
    np.testing.assert_allclose(batch["x"][0].numpy(), sound[:, 2000:5000], atol=1e-4)
    piece = Piece(0, 1, (0,), (1.0,))
    metric = task.metric()
    metric.update([Transcript(text, (), (piece,)) for text in ("one too", "nine nine")], batch)
    figures = metric.compute()
    assert figures["wer"] == figures["da_wer"] == pytest.approx(2 / 3) and "selected_clean" not in figures
    with pytest.raises(ConfigError, match=r"recognition\.data\.folder"):
        job(data={"layout": "chime7"}).loader("val")


def test_long_recordings_are_cut_where_they_are_silent() -> None:
    """The cut is in the last third, in the gap; the measure does not care for a microphone's gain."""
    sound = np.random.default_rng(0).standard_normal((2, 4000)).astype(np.float32) * np.array([[1.0], [100.0]], np.float32)
    sound[:, 3100:3600] *= 1e-3
    assert 3100 <= quietest(sound, 4000) <= 3600
    assert quietest(np.zeros((1, 3)), 4000) == 3


def test_pieces_of_several_files_are_the_whole_recording(tmp_path: Path) -> None:
    """Put together they are the files, at most a window each; a shorter file ends in silence, and that is said."""
    rng = np.random.default_rng(0)
    sounds = [0.2 * rng.standard_normal((1, 9000)), 0.2 * rng.standard_normal((2, 7000))]
    paths = [write_sound(tmp_path / f"{number}.wav", one.astype(np.float32), 4000) for number, one in enumerate(sounds)]
    recording = Recording(tuple(open_sound(path) for path in paths))
    assert recording.microphones == ("0.wav", "1.wav:1", "1.wav:2")
    with pytest.warns(InputWarning, match="equally long"):
        pieces = list(recording.pieces(4000, window=0.8))
    assert all(sound.shape[1] <= 3200 for _, sound in pieces) and len(pieces) >= 3
    assert [start for start, _ in pieces] == pytest.approx(np.cumsum([0, *(sound.shape[1] / 4000 for _, sound in pieces)])[:-1])
    whole = np.concatenate([sound for _, sound in pieces], 1)
    assert whole.shape == (3, 9000) and not whole[1:, 7000:].any()
    np.testing.assert_allclose(whole[0], sounds[0][0], atol=1e-4)
    np.testing.assert_allclose(whole[1:, :7000], sounds[1], atol=1e-4)


def test_transcripts_of_pieces_are_joined() -> None:
    """Words and pieces in order; an empty piece leaves no gap."""
    parts = [Transcript(text, (Word(text, 0, 1, 0.5),) if text else (), (Piece(0, 1, (), ()),)) for text in ("a", "", "b")]
    whole = joined(parts, microphones=("m",))
    assert whole.text == "a b" and len(whole.words) == 2 and len(whole.pieces) == 3 and whole.confidence == 0.5
    assert Transcript("", (), ()).confidence == 1


def names(folder: Path, *files: str) -> list[Path]:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return [folder / file for file in files]


def test_files_of_an_array_are_one_input(tmp_path: Path) -> None:
    """By device, by session, by folder; channels by number, not by name; other files stay alone; twice named is once read."""
    files = names(tmp_path, "S01_U01.CH10.wav", "S01_U01.CH2.wav", "S01_U02.CH1.wav", "talk.wav", "deep/S01_U01.CH1.wav")
    found = {array: Run(inputs=(tmp_path, files[-1], files[3]), array=array).group() for array in ("none", "device", "session", "folder")}
    shapes = {array: {name: [path.name for path in paths] for name, paths in group.items()} for array, group in found.items()}  # type: ignore[union-attr]
    assert len(shapes["none"]) == 5 and all(len(paths) == 1 for paths in shapes["none"].values())
    assert ["S01_U01.CH2.wav", "S01_U01.CH10.wav"] in shapes["device"].values() and len(shapes["device"]) == 4
    assert ["S01_U01.CH2.wav", "S01_U01.CH10.wav", "S01_U02.CH1.wav"] in shapes["session"].values() and len(shapes["session"]) == 3
    assert sorted(map(len, shapes["folder"].values())) == [1, 4]
    assert any(name.endswith("talk") for name in shapes["device"])


def test_run_writes_one_transcript_for_an_array(tmp_path: Path) -> None:
    """The command line: three files of one device and one that is no sound; text, and JSON with times, weights and microphones by name."""
    task = job(window=1.0)
    torch.manual_seed(0)
    model = task.model()
    checkpoint = save_checkpoint(tmp_path / "model.ckpt", model.state_dict(), header_for(task, model, get("audio"), {}))
    inputs, output = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    rng = np.random.default_rng(0)
    for channel in (1, 2, 3):
        write_sound(inputs / f"S01_U01.CH{channel}.wav", 0.1 * rng.standard_normal((1, 6000)).astype(np.float32), 4000)
    (inputs / "bad.wav").write_text("no sound")
    with pytest.raises(SystemExit) as stopped:
        main(["run", "audio", str(inputs), "-o", str(output), "--ckpt", str(checkpoint), "--array", "device", "--device", "cpu", "-q"])
    assert stopped.value.code == 1
    data = json.loads((output / "S01_U01.json").read_text(encoding="utf-8"))
    assert (output / "S01_U01.txt").read_text(encoding="utf-8").strip() == data["text"]
    assert data["microphones"] == [f"S01_U01.CH{channel}.wav" for channel in (1, 2, 3)]
    assert len(data["pieces"]) == 2 and data["pieces"][-1]["end"] == pytest.approx(1.5)
    for piece in data["pieces"]:
        assert len(piece["channels"]) == 2 and sum(piece["weights"]) == pytest.approx(1, abs=1e-5)
        assert piece["microphones"] == [f"S01_U01.CH{channel}.wav" for channel in piece["channels"]]
    assert [word["text"] for word in data["words"]] == data["text"].split()
    assert all(0 <= word["confidence"] <= 1 and word["start"] <= word["end"] for word in data["words"])


@pytest.mark.parametrize("units", ["words", "characters"])
def test_losses_fall_and_selection_is_counted(units: str) -> None:
    """A few steps on one batch with either kind of unit."""
    section = {"units": units, "vocabulary": list("abcdefghijklmnopqrstuvwxyz "), "data": {"held_out": 4}} if units == "characters" else {}
    task = job(**section)
    torch.manual_seed(0)
    model, batch = task.model().train(), task.loader("example")[0]  # type: ignore[index]
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    totals = []
    for _ in range(12):
        loss = torch.stack(list(task.losses(model, batch).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert totals[-1] < 0.8 * totals[0]
    with pytest.raises(ConfigError, match="ctc_weight"):
        job(ctc_weight=2.0).losses(model, batch)
