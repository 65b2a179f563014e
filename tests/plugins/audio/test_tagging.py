"""The tagging task: data sets in, tables, labels, vectors and pictures out, and the bundled example."""

from __future__ import annotations

import csv
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from cnnkit.checkpoint import read_header, save_checkpoint
from cnnkit.config import from_dict
from cnnkit.engine.fit import fit, header_for
from cnnkit.engine.load import load
from cnnkit.errors import ConfigError, InputError, InputWarning, UsageError
from cnnkit.plugin import get
from cnnkit.testing.compare import stir
from cnnkit_audio.args import Run
from cnnkit_audio.sound import open_sound, write_sound
from cnnkit_audio.synth.classes import make
from cnnkit_audio.tagging.data import SyntheticSounds
from cnnkit_audio.tagging.picture import COLUMNS, Overview
from cnnkit_audio.tagging.task import Tagging
from cnnkit_audio.task import Audio
from PIL import Image

RATE = 8000
SMALL: dict[str, Any] = {"name": "audio/panns_cnn6", "args": {"sample_rate": RATE, "widths": [4, 6], "pools": 2, "window": 0.5}}


def task(**tagging: Any) -> Tagging:
    made = Audio(from_dict(Audio.Config, {"network": SMALL, "tagging": tagging}))
    assert isinstance(made, Tagging)
    return made


def model_of(made: Tagging) -> torch.nn.Module:
    torch.manual_seed(0)
    return stir(made.model()).eval()


def esc50(folder: Path) -> Path:
    """Two classes in five folds, in the layout of ESC-50."""
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    (folder / "meta").mkdir(parents=True)
    for fold in range(1, 6):
        for target, label in enumerate(("siren", "rain")):
            name = f"{fold}-{target}.wav"
            write_sound(folder / "audio" / name, make(label, np.random.default_rng((fold, target)), 0.8, RATE)[None], RATE)
            rows.append(f"{name},{fold},{target},{label},True,{fold},A")
    (folder / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def test_a_data_set_trains_and_names_the_labels(tmp_path: Path) -> None:
    """ESC-50's layout with a fold held out: its table names the labels of the checkpoint, which measures the held-out fold."""
    data = {"folder": str(esc50(tmp_path / "data")), "layout": "esc50", "fold": 2, "batch_size": 4}
    made = task(data=data, augment={"mix": "between_class", "gain_db": 6, "reverb": 0.5})
    cfg = from_dict(Audio.Config, {"network": SMALL, "tagging": {"data": data}, "train": {"epochs": 1, "tensorboard": False}})
    result = fit(Audio(cfg), output=tmp_path / "run", plugin=get("audio"))
    assert read_header(result.last).labels == ("siren", "rain")
    loaded = load(result.last)
    held_out = list(loaded.task.loader("test"))
    assert [Path(batch["name"][0]).name for batch in held_out] == ["2-0.wav", "2-1.wav"] and held_out[0]["fold"] == [2]
    assert held_out[0]["sound"].shape == (1, 1, round(0.8 * RATE)) and held_out[1]["target"].tolist() == [[0, 1]]
    prepared = Tagging(made.prepare(tmp_path))
    loader = prepared.loader("train")
    loader.set_epoch(0)
    first, again = list(loader), list(loader)
    assert len(first) == 2 and first[0]["sound"].shape == (4, 1, 4000)
    torch.testing.assert_close(first[0]["target"].sum(1), torch.ones(4))
    assert all(torch.equal(a["sound"], b["sound"]) for a, b in zip(first, again, strict=True))
    loader.set_epoch(1)
    assert not torch.equal(next(iter(loader))["sound"], first[0]["sound"])


def test_synthetic_folds() -> None:
    """A fold's sounds are in no other's training, and the same in every run; a fold or label that does not exist is named."""
    made = task(data={"fold": 3})
    train, test = made.loader("train"), made.loader("test")
    held_out = list(itertools.islice(test, 8))
    assert {batch["fold"][0] for batch in held_out} == {3} and len(test) == 400
    assert set(train._loader.dataset.sounds.folds) == {1, 2, 4, 5}
    other = SyntheticSounds(made.labels(), [3], RATE)
    np.testing.assert_array_equal(held_out[7]["sound"][0], other.clip(7))
    with pytest.raises(ConfigError, match="fold=6"):
        task(data={"fold": 6}).loader("train")
    with pytest.raises(ConfigError, match="no synthetic sound 'dog'"):
        task(labels=("tone", "dog")).loader("test")


def run_options(folder: Path, path: Path, **options: Any) -> Run:
    return Run(inputs=(path,), output=folder, name=path.stem, **options)


def outputs(made: Tagging, model: torch.nn.Module, run: Run) -> dict[str, Path]:
    (batch,) = made.read(run)
    with torch.no_grad():
        return {path.name: path for path in made.write(made.predict(model, batch), run)}


def test_files_that_are_written(tmp_path: Path) -> None:
    """A table of events, Audacity's labels, one vector for each window, and a picture; times in seconds of the recording."""
    made = task()
    model = model_of(made)
    path = write_sound(tmp_path / "long.wav", make("siren", np.random.default_rng(0), 3.1, 16000)[None], 16000)
    run = run_options(tmp_path, path, embeddings=True, threshold=0.0, top=1, merge=False, hop=0.5)
    with pytest.warns(InputWarning, match="16000"):
        files = outputs(made, model, run)
    assert set(files) == {"long.cnnkit.results.csv", "long.txt", "long.png", "long.npz"}
    rows = list(csv.DictReader(files["long.cnnkit.results.csv"].read_text(encoding="utf-8").splitlines()))
    assert [(row["Start (s)"], row["End (s)"]) for row in rows][:2] == [("0.000", "0.500"), ("0.500", "1.000")]
    assert rows[-1]["End (s)"] == "3.100" and rows[0]["File"] == str(path)
    vectors = np.load(files["long.npz"])
    assert vectors["embeddings"].shape[0] == len(rows) == 7 and vectors["starts"][1] == 0.5
    assert Image.open(files["long.png"]).width == 1280
    assert len(files["long.txt"].read_text(encoding="utf-8").splitlines()) == 7


def test_windows_of_a_file_are_those_of_the_clip(tmp_path: Path) -> None:
    """Blocks, groups and one shared spectrogram change nothing: 1e-5."""
    made = task()
    model = model_of(made)
    signal = make("chirp", np.random.default_rng(0), 5.3, RATE)
    path = write_sound(tmp_path / "a.wav", signal[None], RATE, subtype="FLOAT")
    (batch,) = made.read(run_options(tmp_path, path, picture=False))
    with torch.no_grad():
        (tags,) = made.predict(model, batch)
        starts = np.rint(tags.starts * RATE).astype(int)
        windows = torch.from_numpy(np.stack([signal[start : start + 4000] for start in starts]))[:, None]
        expected = model(windows).softmax(1).numpy()
    np.testing.assert_allclose(tags.scores, expected, atol=1e-5)
    assert starts[-1] + 4000 == signal.size and tags.overview is None


def test_a_short_recording_is_padded_and_says_so(tmp_path: Path) -> None:
    """One window, never an empty answer; its event ends where the recording does."""
    made = task()
    path = write_sound(tmp_path / "short.wav", make("tone", np.random.default_rng(0), 0.2, RATE)[None], RATE)
    run = run_options(tmp_path, path, threshold=0.0, top=1)
    with pytest.warns(InputWarning, match="lasts 0.2 s, less than the window of 0.5 s"):
        files = outputs(made, model_of(made), run)
    (row,) = csv.DictReader(files["short.cnnkit.results.csv"].read_text(encoding="utf-8").splitlines())
    assert (row["Start (s)"], row["End (s)"]) == ("0.000", "0.200")


def test_samples_that_are_not_finite(tmp_path: Path) -> None:
    """Are refused by name, or silence with ``--nonfinite zero``."""
    made = task()
    signal = make("tone", np.random.default_rng(0), 1.0, RATE)
    signal[500] = np.nan
    path = tmp_path / "bad.wav"
    soundfile.write(path, signal, RATE, subtype="FLOAT")
    with pytest.raises(InputError, match=r"bad\.wav"):
        outputs(made, model_of(made), run_options(tmp_path, path))
    with pytest.warns(InputWarning, match="not finite|NaN"):
        assert outputs(made, model_of(made), run_options(tmp_path, path, nonfinite="zero"))


def test_several_labels_at_once() -> None:
    """Confidences by themselves, and a loss for each label."""
    made = task(labels=("a", "b", "c"), multilabel=True)
    model, (batch,) = model_of(made), made.loader("example")
    assert set(made.losses(model, batch)) == {"bce"} and made.monitor == ("map", "max")
    with torch.no_grad():
        scores = np.concatenate([tags.scores for tags in made.predict(model, batch)])
    assert not np.allclose(scores.sum(1), 1, atol=1e-3) and ((scores > 0) & (scores < 1)).all()


def test_the_overview_of_hours_stays_small() -> None:
    """Columns are joined when there are too many, and stand for their time."""
    overview = Overview(RATE)
    second = np.random.default_rng(0).standard_normal((1, RATE)).astype(np.float32)
    for _ in overview.watch(second * (0.001 if 100 <= number < 200 else 1) for number in range(300)):
        assert len(overview.columns) < COLUMNS
    levels = overview.levels()
    assert overview.seconds == 300 and levels.shape[1] * overview.column_seconds == pytest.approx(300, rel=0.01)
    loudness = levels.mean(0)
    third = len(loudness) // 3
    assert loudness[third + 5 : 2 * third - 5].max() < loudness[: third - 5].min() - 0.3


def test_a_stream_is_heard_as_it_comes(tmp_path: Path) -> None:
    """Standard input, WAV and raw: the same windows as those of the file, printed one by one."""
    made = task()
    checkpoint = save_checkpoint(tmp_path / "model.ckpt", model_of(made).state_dict(), header_for(made, made.model(), get("audio"), {}))
    signal = make("siren", np.random.default_rng(0), 1.6, RATE)
    path = write_sound(tmp_path / "a.wav", signal[None], RATE)
    command = [sys.executable, "-c", "from cnnkit.cli import main; main()", "run", "audio", "--ckpt", str(checkpoint), "--device", "cpu"]
    command += ["-q", "--threshold", "0", "--top", "1", "--no-merge"]
    subprocess.run([*command, str(path), "-o", str(tmp_path / "file")], check=True, capture_output=True)
    rows = (tmp_path / "file" / "a.cnnkit.results.csv").read_text(encoding="utf-8").replace(str(path), "-")
    raw = path.read_bytes()[-2 * signal.size :]
    for name, data, options in (("wav", path.read_bytes(), ()), ("raw", raw, ("--raw", f"s16le,{RATE}"))):
        words = [*command, "-", "--stream", *options, "-o", str(tmp_path / name)]
        done = subprocess.run(words, input=data, capture_output=True, check=True)
        assert (tmp_path / name / "stream.cnnkit.results.csv").read_text(encoding="utf-8") == rows
        printed = [line for line in done.stdout.decode().splitlines() if " s  " in line]
        assert len(printed) == len(rows.splitlines()) - 1 and printed[1].startswith("    0.25 s  ")


def test_a_stream_is_one_input() -> None:
    with pytest.raises(UsageError, match="one input"):
        Run(inputs=(Path("a.wav"),), stream=True)
    with pytest.raises(UsageError, match="add it"):
        Run(inputs=(Path("a.wav"),), raw="s16le,8000")
    with pytest.raises(UsageError, match="FORMAT,RATE"):
        Run(inputs=(Path("-"),), stream=True, raw="s16le,fast").raw_samples()


def test_the_example_is_heard(tmp_path: Path) -> None:
    """The built-in network names at least eight of the ten sounds of the scene."""
    import cnnkit

    report = cnnkit.run("audio", output=tmp_path, example=True, progress=False, device="cpu")
    data = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert not report.failed and int(data["inputs"][0]["summary"]["right"].split()[0]) >= 8
    assert (tmp_path / "example.png").exists() and open_sound(tmp_path / "example.wav").frames == 30 * 16000
