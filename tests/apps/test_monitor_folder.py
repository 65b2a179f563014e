"""The application on a small folder with a damaged file: the page of a day, the table, and files that still grow."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from datetime import date, datetime
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("cnnkit_audio")

from cnnkit.backbones import create_model
from cnnkit.checkpoint import Header, save_checkpoint
from cnnkit_audio.synth.classes import make

SCRIPT = Path(__file__).parents[2] / "apps" / "acoustics" / "monitor_folder.py"
STRANGE = "a <b>&'\" 100% #1"
RATE = 8000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    network = {"name": "audio/panns_cnn6", "args": {"sample_rate": RATE, "widths": [4, 6], "pools": 2, "window": 0.5}}
    model = create_model(network["name"], dims=1, num_classes=10, **network["args"])
    path = tmp_path_factory.mktemp("weights") / "small.ckpt"
    return save_checkpoint(path, model.state_dict(), Header(task="audio", config={"network": network}))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    for number, name in enumerate((f"{STRANGE} 2026-05-01 04-30-00", "20260501_235958", "20260502_120000")):
        soundfile.write(folder / f"{name}.wav", make("siren", np.random.default_rng(number), 4.0, RATE), RATE)
    (folder / "broken.wav").write_bytes(b"this is no sound")
    (folder / "notes.txt").write_text("not a recording")
    return folder


@pytest.fixture(scope="module")
def output(recordings, checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    command = [
        sys.executable,
        str(SCRIPT),
        str(recordings),
        "-o",
        str(folder),
        "--ckpt",
        str(checkpoint),
        "--device",
        "cpu",
        "--threshold",
        "0",
    ]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines() == [str(folder / "2026-05-01.html"), str(folder / "2026-05-02.html")]
    return folder


def test_the_page_of_a_day(output, read_page):
    """Rows for labels over 24 hours, a picture for each recording by a link that leads there, and what failed."""
    page = read_page((output / "2026-05-01.html").read_text(encoding="utf-8"))
    text = " ".join(page.text)
    assert "Friday, 2026-05-01" in text and "broken" in text and STRANGE in text and "04:30:00" in text
    pictures = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 2 and all((output / unquote(address)).is_file() for address in pictures)
    bars = [attrs for tag, attrs in page.tags if tag == "rect" and "opacity" in attrs]
    assert bars and all(float(bar["x"]) >= 150 and float(bar["x"]) + float(bar["width"]) <= 150 + 960 + 1.6 for bar in bars)
    expected = 150 + 4.5 / 24 * 960
    assert any(abs(float(bar["x"]) - expected) < 0.2 for bar in bars)


def test_events_have_their_time_of_day(output, read_page):
    """A recording over midnight is listed on the day on which it begins, and its events on the day on which they are heard."""
    rows = list(csv.DictReader((output / "events.csv").read_text(encoding="utf-8").splitlines()))
    starts = [datetime.fromisoformat(row["Start"]) for row in rows]
    assert starts == sorted(starts) and starts[0] == datetime(2026, 5, 1, 4, 30)
    assert {row["Recording"] for row in rows} >= {"20260501_235958", "20260502_120000"}
    late = [start for start, row in zip(starts, rows, strict=True) if row["Recording"] == "20260501_235958"]
    assert min(late) == datetime(2026, 5, 1, 23, 59, 58)
    text = " ".join(read_page((output / "2026-05-02.html").read_text(encoding="utf-8")).text)
    assert "12:00:00" in text


def test_when_a_recording_was_made(app, tmp_path):
    """From the name if it is a time, else from the file's time."""
    path = tmp_path / "x.wav"
    path.touch()
    os.utime(path, (1_750_000_000, 1_750_000_000))
    assert app.started(Path("site3_20260501_043000.WAV"), 1) == datetime(2026, 5, 1, 4, 30)
    assert app.started(Path("2026-05-01T04-30-07.flac"), 1) == datetime(2026, 5, 1, 4, 30, 7)
    assert app.started(path, 10) == datetime.fromtimestamp(1_749_999_990)
    odd = tmp_path / "20269999_999999.wav"
    odd.touch()
    assert app.started(odd, 0).date() == date.today()


def test_a_recording_that_grows_is_left_for_later(app, tmp_path):
    sizes = {}
    done, growing = tmp_path / "a.wav", tmp_path / "b.flac"
    for path in (done, growing, tmp_path / ".hidden.wav", tmp_path / "notes.txt"):
        path.write_bytes(b"123")
    assert app.grown_up(tmp_path, sizes) == []
    growing.write_bytes(b"12345")
    assert app.grown_up(tmp_path, sizes) == [done]
    assert app.grown_up(tmp_path, sizes) == [done, growing]


def test_watching_goes_on_until_it_is_stopped(app, recordings, checkpoint, tmp_path, monkeypatch):
    """Each round hears what is new; Ctrl-C ends it with the status of the last."""
    rounds = []

    def sleep(seconds):
        rounds.append(seconds)
        if len(rounds) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(app.time, "sleep", sleep)
    settings = app.Settings(recordings, tmp_path, watch=5.0, threshold=0.0, checkpoint=checkpoint, device="cpu", progress=False)
    assert app.watch(settings) == 1 and rounds == [5.0] * 3
    assert (tmp_path / "2026-05-02.html").is_file()
