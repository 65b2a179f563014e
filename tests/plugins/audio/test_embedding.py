"""The embedding job: the loss, the data, recordings of any length, and the commands that verify and search."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from cnnkit.checkpoint import read_header, save_checkpoint
from cnnkit.config import from_dict
from cnnkit.engine.fit import header_for
from cnnkit.engine.load import load
from cnnkit.errors import ConfigError, InputWarning, UsageError
from cnnkit.plugin import get
from cnnkit_audio.embedding.commands import search as search_command
from cnnkit_audio.embedding.commands import verify as verify_command
from cnnkit_audio.embedding.data import TrainClips, at_least, read_recordings, stage_space
from cnnkit_audio.embedding.losses import AAMSoftmax
from cnnkit_audio.embedding.task import Embedding, pieces
from cnnkit_audio.embedding.verify import verify
from cnnkit_audio.models.efficient_tdnn_space import SubNet
from cnnkit_audio.sound import open_sound, write_sound
from cnnkit_audio.synth.voices import Speaker, speech

pytestmark = pytest.mark.paper("efficienttdnn")

RATE = 16000
VOICES = {"speakers": 6, "held_out": 3, "takes": 2, "seconds": 0.6}
SUPERNET = {"name": "audio/efficient_tdnn_supernet", "args": {"channels": [16, 16, 16], "kernels": [3, 3, 3], "cat": 24}}
STAGES = [{"epochs": 1}, {"epochs": 2, "kernels": [1, 3]}, {"epochs": 1, "kernels": [1, 3], "depths": [-1, 0], "widths": [0.5, 1.0]}]


def make(**embedding: Any) -> Embedding:
    """A task on few and short synthetic voices."""
    kind: Any = get("audio").load_task()
    section = {"speakers": 6, "voices": VOICES, "batch_size": 4, "seconds": 0.5, "stages": STAGES, **embedding}
    return kind(from_dict(kind.Config, {"network": SUPERNET, "embedding": section}))


def save(task: Embedding, path: Path, metrics: dict[str, float]) -> Path:
    torch.manual_seed(0)
    model = task.model()
    return save_checkpoint(path, model.state_dict(), header_for(task, model, get("audio"), metrics))


def voice(path: Path, person: int, words: int, seconds: float = 0.7) -> Path:
    speaker = Speaker.draw(np.random.default_rng(person))
    return write_sound(path, speech(np.random.default_rng(words), seconds, RATE, speaker)[None], RATE)


# The loss.


def test_loss_by_angles() -> None:
    """The margin is added to the angle of the right speaker: written with arccos, in float64; beyond pi - margin the cosine falls on."""
    head = AAMSoftmax(5, 7, margin=0.3, scale=20.0).double()
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    speakers = torch.arange(64) % 7
    with torch.no_grad():
        x[:7] = -head.W.T  # Opposite to their speakers.
        cosine = F.normalize(x, dim=1) @ F.normalize(head.W, dim=0)
        angle = cosine.clamp(-1, 1).arccos()
        moved = torch.where(angle + 0.3 < np.pi, (angle + 0.3).cos(), cosine - 0.3 * np.sin(0.3))
        right = F.one_hot(speakers, 7).bool()
        expected = 20 * torch.where(right, moved, cosine)
        assert torch.allclose(head.logits(x, speakers), expected, atol=1e-5)
        assert head(x, speakers) == pytest.approx(F.cross_entropy(expected, speakers).item(), abs=1e-6)


def test_loss_without_margin_is_softmax_and_has_finite_gradients() -> None:
    """At margin zero cosines alone; a clip that lies on its speaker's direction gets a finite gradient."""
    head = AAMSoftmax(4, 3, margin=0.0, scale=10.0)
    x = head.W.detach().T.clone().requires_grad_(True)
    speakers = torch.arange(3)
    cosine = F.normalize(x, dim=1) @ F.normalize(head.W, dim=0)
    assert torch.allclose(head.logits(x, speakers), 10 * cosine, atol=1e-5)
    head.margin = 0.2
    head(x, speakers).backward()
    assert x.grad is not None and x.grad.isfinite().all()


# Data.


def test_training_clips_depend_on_their_position_alone() -> None:
    """The same epoch gives the same clips and sub-networks, another one others."""
    task = make()
    batches: list[list[dict[str, Any]]] = []
    for epoch in (3, 3, 4):
        loader: Any = task.loader("train")
        loader.set_epoch(epoch)
        batches.append(list(loader))
    for one, other in zip(batches[0], batches[1], strict=True):
        assert torch.equal(one["clip"], other["clip"]) and one["subnet"] == other["subnet"]
    assert not torch.equal(batches[0][0]["clip"], batches[2][0]["clip"])
    assert batches[0][0]["clip"].shape == (4, 1, RATE // 2)
    assert {int(speaker) for batch in batches[0] for speaker in batch["speaker"]} == set(range(6))


def test_augmentation_is_part_of_the_position() -> None:
    """It changes clips, the same way in the same epoch; what would mix speakers is refused."""
    batches = []
    for noise in (None, 0.0, 0.0):
        loader: Any = make(augment={"noise_db": noise}).loader("train")
        batches.append(next(iter(loader))["clip"])
    assert torch.equal(batches[1], batches[2]) and not torch.equal(batches[0], batches[1])
    with pytest.raises(ConfigError, match="mix=none"):
        make(augment={"mix": "mixup"}).loader("train")


def test_stages_follow_each_other() -> None:
    """Largest, then kernels, then everything; the last goes on."""
    loader: Any = make().loader("train")
    assert isinstance(loader, TrainClips)
    largest, seen = SubNet((16, 16, 16), (3, 3, 3), 24), []
    for epoch in (0, 1, 2, 3, 9):
        loader.set_epoch(epoch)
        space = stage_space(loader.stage(), largest)  # type: ignore[arg-type]
        seen.append(space.size)
        assert all(space.size > 1 or SubNet.parse(batch["subnet"]) == largest for batch in loader)
    assert seen == [1, 2**3, 2**3, *[(4**2 + 4**3) * 2] * 2]


def test_splits_have_other_people_and_all_pairs() -> None:
    """Validation and test share no voice with the training; their trials are all pairs."""
    cfg = make().cfg.embedding
    found = {split: read_recordings(cfg, split, RATE) for split in ("train", "val", "test")}
    names = {split: {name.split("/")[0] for name in recordings[0].names} for split, recordings in found.items() if recordings}
    assert not names["train"] & names["val"] and not names["val"] & names["test"]
    trials = found["val"][1]  # type: ignore[index]
    assert len(trials) == 15 and sum(label for label, *_ in trials) == 3


def test_voxceleb_layout(tmp_path: Path) -> None:
    """Folders of speakers, the last held out; a trial list for the test."""
    for person in range(3):
        for take in range(2):
            voice(tmp_path / "wav" / f"id{person:05d}" / "clip" / f"{take}.wav", person, 10 * person + take, 0.3)
    (tmp_path / "trials.txt").write_text("1 id00000/clip/0.wav id00000/clip/1.wav\n0 id00000/clip/0.wav id00001/clip/0.wav\n")
    task = make(folder=str(tmp_path), trials=str(tmp_path / "trials.txt"), held_out=1, speakers=0)
    assert task.prepare(tmp_path).embedding.speakers == 2
    val: Any = list(task.loader("val") or ())
    assert [batch["name"][0] for batch in val] == ["id00002/clip/0.wav", "id00002/clip/1.wav"]
    test: Any = list(task.loader("test") or ())
    assert test[0]["trials"][0] == (1, "id00000/clip/0.wav", "id00000/clip/1.wav") and len(test) == 3
    batch = next(iter(task.loader("train") or ()))
    assert batch["clip"].shape == (4, 1, RATE // 2)  # Shorter recordings are repeated.
    with pytest.raises(ConfigError, match="SPEAKER/VIDEO/FILE"):
        make(folder=str(tmp_path / "nothing")).loader("train")
    with pytest.raises(ConfigError, match=r"3 speakers, of whom embedding\.held_out=3 leaves nobody"):
        make(folder=str(tmp_path), held_out=3).loader("train")


def test_a_cohort_comes_first_and_normalises() -> None:
    """Recordings of the training, before those of the trials."""
    task = make(cohort=5, top=4)
    batches: Any = list(task.loader("val") or ())
    assert [batch["cohort"] for batch in batches] == [True] * 5 + [False] * 6
    assert len(task.loader("val")) == 11  # type: ignore[arg-type]
    model, metric = task.model().eval(), task.metric()
    with torch.no_grad():
        for batch in batches:
            metric.update(task.predict(model, batch), batch)
    assert 0 <= metric.compute()["eer_norm"] <= 1


def test_stages_want_a_supernet_and_losses_a_head() -> None:
    """Otherwise the message says what to set."""
    kind: Any = get("audio").load_task()
    plain = {"name": "audio/efficient_tdnn", "args": {"channels": [16, 16], "kernels": [3, 3], "cat": 16}}
    task = kind(from_dict(kind.Config, {"network": plain, "embedding": {"stages": STAGES, "voices": VOICES}}))
    with pytest.raises(ConfigError, match="efficient_tdnn_supernet"):
        task.loader("train")
    with pytest.raises(ConfigError, match=r"embedding\.speakers"):
        task.losses(task.model(), next(iter(task.loader("example"))))


# Recordings of any length.


@pytest.mark.parametrize("total", [1, 99, 100, 199, 200, 555])
def test_pieces_join_to_the_recording(total: int) -> None:
    """Whatever the blocks: each piece as long as asked, the last less than twice, and nothing lost."""
    signal = np.arange(total, dtype=np.float32)
    found = list(pieces([block[None] for block in np.array_split(signal, 7)], 100))
    assert np.array_equal(np.concatenate(found), signal)
    assert all(len(piece) == 100 for piece in found[:-1]) and len(found[-1]) < 200 and (len(found) == 1 or len(found[-1]) >= 100)


def test_short_clips_are_repeated() -> None:
    """Until they are long enough, whole."""
    assert at_least(np.arange(3), 7).tolist() == [0, 1, 2] * 3
    assert at_least(np.arange(3), 2).tolist() == [0, 1, 2]


def test_a_file_is_the_mean_of_its_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directions weighed by length; one piece is the network's own direction; a blip is repeated and said."""
    monkeypatch.setattr("cnnkit_audio.embedding.task.PIECE", 0.6)
    task = make()
    model = task.model().eval()
    with torch.no_grad():
        (long,) = task.predict(model, {"sound": open_sound(voice(tmp_path / "long.wav", 1, 1, 1.5))})
        (short,) = task.predict(model, {"sound": open_sound(voice(tmp_path / "short.wav", 1, 2, 0.7))})
        with pytest.warns(InputWarning, match="repeated"):
            (blip,) = task.predict(model, {"sound": open_sound(voice(tmp_path / "blip.wav", 1, 3, 0.1))})
    assert long.seconds.tolist() == pytest.approx([0.6, 0.9]) and long.pieces.shape == (2, 192)
    directions = long.pieces / np.linalg.norm(long.pieces, axis=1, keepdims=True)
    mean = 0.6 * directions[0] + 0.9 * directions[1]
    assert np.allclose(long.vector, mean / np.linalg.norm(mean), atol=1e-6)
    assert np.allclose(short.vector, short.pieces[0] / np.linalg.norm(short.pieces[0]), atol=1e-6)
    assert np.isfinite(blip.vector).all() and blip.seconds[0] == pytest.approx(0.1)


# The commands.


def test_verify_decides_at_the_checkpoints_threshold(tmp_path: Path) -> None:
    """A file is the same as itself; the threshold is the validation's unless one is given; without either it is asked for."""
    task = make()
    ckpt = save(task, tmp_path / "net.ckpt", {"eer": 0.1, "threshold": 0.5})
    one, other = voice(tmp_path / "a.wav", 1, 1), voice(tmp_path / "b.wav", 2, 2)
    done = CliRunner().invoke(verify_command, [str(one), str(one), "--ckpt", str(ckpt), "--device", "cpu"], catch_exceptions=False)
    assert done.output.strip() == "1.0000 same speaker (threshold 0.5000)"
    verdict = verify(one, other, ckpt, threshold=1.5, device="cpu")
    assert not verdict.same and -1 <= verdict.score < 1
    with pytest.raises(UsageError, match="--threshold"):
        verify(one, other, save(task, tmp_path / "raw.ckpt", {}), device="cpu")


def test_search_writes_a_network_and_a_table(tmp_path: Path) -> None:
    """Under the limit, loadable, with the threshold of its own validation; an impossible limit names the least."""
    ckpt = save(make(), tmp_path / "supernet.ckpt", {})
    words = ["--ckpt", str(ckpt), "-o", str(tmp_path / "out"), "--macs", "2.6M", "--samples", "3", "--finalists", "2"]
    fast = ["--generations", "2", "--calibrate", "4", "--device", "cpu"]
    done = CliRunner().invoke(search_command, [*words, *fast], catch_exceptions=False)
    assert done.exit_code == 0 and "multiply-adds, EER" in done.output
    with open(tmp_path / "out" / "search.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["how"] for row in rows] == ["sample"] * 3 + ["found"] * 2
    assert all(int(row["macs"]) <= 2.6e6 for row in rows) and any(row["pareto"] == "1" for row in rows)
    loaded = load(tmp_path / "out" / "subnet.ckpt", task="audio")
    best = min(rows, key=lambda row: (float(row["eer"]), int(row["macs"])))
    assert str(loaded.model.subnet) == best["subnet"] and loaded.header.model == "audio/efficient_tdnn"
    assert read_header(tmp_path / "out" / "subnet.ckpt").metrics["eer"] == pytest.approx(float(best["eer"]), abs=1e-6)
    assert verify(*[voice(tmp_path / "a.wav", 1, 1)] * 2, tmp_path / "out" / "subnet.ckpt", device="cpu").score == pytest.approx(1)
    words[5] = "1k"
    assert isinstance(CliRunner().invoke(search_command, [*words, *fast]).exception, UsageError)
    words[5] = "much"
    assert "accepted" in str(CliRunner().invoke(search_command, [*words, *fast]).exception)
    with pytest.raises(UsageError, match="nothing can be searched"):
        CliRunner().invoke(search_command, ["--ckpt", str(tmp_path / "out" / "subnet.ckpt"), "-o", "x"], catch_exceptions=False)
