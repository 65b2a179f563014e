"""The sum rule over networks that tag sound: as a network, as a file, and as a command that trains what is declared."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchaudio
from cnnkit.backbones import create_model
from cnnkit.checkpoint import read_header, save_checkpoint
from cnnkit.cli import main
from cnnkit.config import from_dict
from cnnkit.engine.fit import header_for
from cnnkit.engine.load import load
from cnnkit.errors import CheckpointError, ConfigError, UsageError
from cnnkit.plugin import get
from cnnkit.testing.compare import assert_near, stir
from cnnkit_audio.ensemble import Augmentation, Comparison, EnsembleConfig, Heard, compare, fuse_scores, mcnemar, signed_rank
from cnnkit_audio.models.cnn_ensemble import CNNEnsemble, sum_rule
from cnnkit_audio.sound import write_sound
from cnnkit_audio.synth.classes import make
from cnnkit_audio.task import Audio
from torch import Tensor

pytestmark = pytest.mark.paper("audio-cnn-ensemble")
RATE = 8000
SMALL = {"sample_rate": RATE, "window": 0.5, "size": 32, "backbone": "resnet18", "backbone_args": {"widths": [4, 5, 6, 7]}}
MEMBERS: list[dict[str, Any]] = [
    {"name": "audio/image_cnn", "args": {**SMALL, "image": "gammatone"}},
    {"name": "audio/image_cnn", "args": {**SMALL, "image": "gabor", "size": None}},
    {"name": "audio/panns_cnn6", "args": {"sample_rate": 4000, "widths": [4, 5], "pools": 2, "window": 0.4}},
]


def ensemble(members: list[dict[str, Any]] = MEMBERS, **args: Any) -> Any:
    torch.manual_seed(0)
    return stir(CNNEnsemble(num_classes=3, members=members, **args)).eval()


def command(words: list[str]) -> int:
    """Run the command line and return its exit status."""
    with pytest.raises(SystemExit) as left:
        main(words)
    return int(left.value.code or 0)


def sounds(samples: int = 4000) -> Tensor:
    return 0.1 * torch.randn(2, 1, samples, generator=torch.Generator().manual_seed(0))


def test_the_sum_rule() -> None:
    """The softmax of the fused logits is the mean of the softmaxes, and its logarithm is what they are; sigmoids likewise: 1e-12."""
    logits = torch.randn(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5
    torch.testing.assert_close(sum_rule(logits), logits.softmax(-1).mean(0).log(), rtol=0, atol=1e-12)
    torch.testing.assert_close(sum_rule(logits, "sigmoid").sigmoid(), logits.sigmoid().mean(0), rtol=0, atol=1e-12)
    sure = torch.tensor([[[900.0, -900.0]], [[900.0, -900.0]]])
    assert torch.isfinite(sum_rule(sure)).all() and torch.isfinite(sum_rule(sure, "sigmoid")).all()


def test_the_order_does_not_matter() -> None:
    """Of members of a network, to 1e-6; of stored scores, to the last bit."""
    logits = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0)) * 5
    rng = np.random.default_rng(0)
    heard = [Heard(rng.random((7, 3)).astype(np.float32), np.eye(3)[[0, 1, 2, 0, 1, 2, 0]], ("a", "b", "c"), False) for _ in range(5)]
    for order in itertools.permutations(range(5)):
        torch.testing.assert_close(sum_rule(logits[list(order)]), sum_rule(logits), rtol=0, atol=1e-6)
        assert np.array_equal(fuse_scores([heard[index] for index in order]).scores, fuse_scores(heard).scores)


@pytest.mark.parametrize("samples", [4000, 9000, 100])
def test_members_hear_what_they_would_hear_alone(samples: int) -> None:
    """At their own rates, padded to their own least length: the fused probabilities are the mean of theirs, 1e-6."""
    model, x = ensemble(), sounds(samples)
    assert (model.sample_rate, model.window) == (RATE, 0.5)
    with torch.no_grad():
        alone = []
        for entry, member in zip(MEMBERS, model.members, strict=True):
            network: Any = create_model(entry["name"], dims=1, num_classes=3, **entry["args"])
            network.load_state_dict(member.state_dict())
            rate = entry["args"]["sample_rate"]
            sound = torchaudio.functional.resample(x, RATE, rate, lowpass_filter_width=32, rolloff=0.99)
            missing = max(0, network.least - sound.shape[-1])
            alone.append(network.eval()(torch.nn.functional.pad(sound, (0, missing))).softmax(1))
        expected = torch.stack(alone).mean(0)
        assert_near(model(x).softmax(1), expected, 1e-6)
        assert_near(model(x), expected.log(), 1e-5)
        assert model.embed(x).shape == (2, 9)


def test_export() -> None:
    """Front ends, filters between rates and the sum are part of what torch.export sees: the same logits, 1e-5."""
    tiny = {"backbone": "vgg11", "backbone_args": {"depths": [1, 1], "widths": [4, 5], "head_width": 6, "head_size": 1}}
    model = ensemble([{"name": "audio/image_cnn", "args": {**SMALL, **tiny, "image": "gabor"}}, MEMBERS[2]])
    x = sounds()
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    with torch.no_grad():
        assert_near(exported(torch.cat((x, x))), model(torch.cat((x, x))), 1e-5)


def test_what_is_refused() -> None:
    """Each message says what is accepted."""
    with pytest.raises(ConfigError, match="members is empty"):
        ensemble([])
    with pytest.raises(ConfigError, match="does not tag 3 sounds"):
        ensemble([{"name": "audio/lstm_32", "args": {"hidden": 4}}])
    with pytest.raises(ConfigError, match="a name, and args"):
        ensemble([{"network": "audio/aclnet"}])
    with pytest.raises(ConfigError, match="unknown scores"):
        ensemble(scores="max")


def saved(path: Path, entry: dict[str, Any], seed: int, labels: tuple[str, ...] = ("siren", "rain")) -> Path:
    task = Audio(from_dict(Audio.Config, {"network": entry, "tagging": {"labels": labels}}))
    torch.manual_seed(seed)
    model = stir(task.model())
    return save_checkpoint(path, model.state_dict(), header_for(task, model, get("audio"), {}))


def test_fuse_and_run(tmp_path: Path) -> None:
    """Trained networks become one checkpoint that runs by itself: its scores of a file are the mean of theirs."""
    paths = [saved(tmp_path / f"{index}.ckpt", entry, index) for index, entry in enumerate(MEMBERS[:2])]
    fused = tmp_path / "ensemble.ckpt"
    assert command(["audio", "fuse", *map(str, paths), "-o", str(fused)]) == 0
    assert read_header(fused).model == "audio/cnn_ensemble" and read_header(fused).labels == ("siren", "rain")
    sound = write_sound(tmp_path / "a.wav", make("siren", np.random.default_rng(0), 1.2, RATE)[None], RATE)
    scores = []
    for path in (*paths, fused):
        out = tmp_path / path.stem
        assert (
            command(["run", "audio", str(sound), "--ckpt", str(path), "-o", str(out), "--threshold", "0", "--no-merge", "--top", "2"]) == 0
        )
        with open(out / "a.cnnkit.results.csv", encoding="utf-8", newline="") as stream:
            scores.append({(row["Start (s)"], row["Label"]): float(row["Confidence"]) for row in csv.DictReader(stream)})
    assert len(scores[2]) >= 6
    for place, score in scores[2].items():
        assert score == pytest.approx((scores[0][place] + scores[1][place]) / 2, abs=2e-4)  # Confidences have four digits.


def test_fuse_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Networks for other labels, one network alone, and a target that is one of them."""
    one, other = saved(tmp_path / "a.ckpt", MEMBERS[0], 0), saved(tmp_path / "b.ckpt", MEMBERS[0], 0, ("rain", "siren"))
    for words, said in (
        ([one, other, "-o", tmp_path / "c.ckpt"], "other labels"),
        ([one, "-o", tmp_path / "c.ckpt"], "two checkpoints or more"),
        ([one, other, "-o", one], "one of the networks"),
    ):
        assert command(["audio", "fuse", *map(str, words)]) != 0
        assert said in capsys.readouterr().err
    tcn = Audio(from_dict(Audio.Config, {"network": {"name": "audio/lstm_32", "args": {"hidden": 4}}}))
    path = save_checkpoint(tmp_path / "l.ckpt", tcn.model().state_dict(), header_for(tcn, tcn.model(), get("audio"), {}))
    with pytest.raises(CheckpointError, match="does not tag sound"):
        from cnnkit_audio.ensemble import fuse_checkpoints

        fuse_checkpoints([one, path], tmp_path / "c.ckpt")


def declared(folder: Path) -> Path:
    """Two members on two classes in two folds, in the layout of ESC-50."""
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    (folder / "data" / "meta").mkdir(parents=True)
    for fold, (target, label), take in itertools.product((1, 2), enumerate(("siren", "rain")), "AB"):
        name = f"{fold}-{target}{take}.wav"
        write_sound(folder / "data" / "audio" / name, make(label, np.random.default_rng((fold, target, ord(take))), 0.6, RATE)[None], RATE)
        rows.append(f"{name},{fold},{target},{label},True,{fold},{take}")
    (folder / "data" / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    torch.save(stir(create_model("resnet18", dims=2, widths=(4, 5, 6, 7))).state_dict(), folder / "pictures.pth")
    file = folder / "members.yaml"
    file.write_text(
        f"""
base:
  network: {{args: {{sample_rate: {RATE}, window: 0.5, size: 32}}}}
  tagging: {{data: {{layout: esc50, folder: "{folder / "data"}", batch_size: 4}}}}
  train: {{epochs: 1, tensorboard: false, accelerator: cpu}}
representations:
  gammatone: {{image: gammatone}}
backbones:
  small: {{backbone: resnet18, backbone_args: {{widths: [4, 5, 6, 7]}}}}
networks:
  cnn6: {{name: audio/panns_cnn6, args: {{sample_rate: {RATE}, widths: [4, 5], pools: 2, window: 0.5}}}}
init: {{small: "{folder / "pictures.pth"}"}}
folds: [1, 2]
""",
        encoding="utf-8",
    )
    return file


def test_what_is_declared_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A second call trains and listens to nothing, and writes the same table; a member under another configuration is refused."""
    words = ["audio", "ensemble", "--config", str(declared(tmp_path)), "-o", str(tmp_path / "out"), "--device", "cpu", "--no-progress"]
    assert command(words) == 0
    first = capsys.readouterr().out
    other = [*words[:4], "-o", str(tmp_path / "other"), "--set", "init.small=missing.pth"]
    assert command(other) != 0 and "missing.pth" in capsys.readouterr().err
    out = tmp_path / "out"
    assert "| gammatone-small |" in first and "McNemar" in first and (out / "ensemble.md").read_text(encoding="utf-8") == first
    stored = np.load(out / "fold2" / "cnn6" / "scores.npz")
    assert stored["scores"].shape == (4, 2) and stored["labels"].tolist() == ["siren", "rain"]
    table = list(csv.reader((out / "ensemble.csv").read_text(encoding="utf-8").splitlines()))
    assert [row[0] for row in table] == ["network", "gammatone-small", "cnn6", "ensemble"] and table[0][1:] == ["fold1", "fold2", "mean"]
    loaded: Any = load(out / "ensemble.ckpt")
    assert loaded.task.labels() == ("siren", "rain") and len(loaded.model.members) == 2

    def computes(*args: Any, **options: Any) -> Any:
        raise AssertionError("the second call computes")

    for name in ("cnnkit.engine.fit.fit", "cnnkit.engine.evaluate.evaluate", "cnnkit.engine.load.load"):
        monkeypatch.setattr(name, computes)
    assert command(words) == 0
    assert capsys.readouterr().out == first
    assert command([*words, "--set", "base.train.epochs=2"]) != 0
    assert "trained under another configuration" in capsys.readouterr().err


def test_a_changed_checkpoint_or_damaged_scores_are_heard_again(tmp_path: Path) -> None:
    """The scores are those of the checkpoint beside them, by its digest."""
    from cnnkit_audio.ensemble import member_scores

    declared(tmp_path)
    entry = {"name": "audio/panns_cnn6", "args": {"sample_rate": RATE, "widths": [4, 5], "pools": 2, "window": 0.5}}
    data = {"layout": "esc50", "folder": str(tmp_path / "data")}
    task = Audio(from_dict(Audio.Config, {"network": entry, "tagging": {"labels": ["siren", "rain"], "data": data}}))
    path = tmp_path / "last.ckpt"
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = stir(task.model())
        save_checkpoint(path, model.state_dict(), header_for(task, model, get("audio"), {}))
        found.append(member_scores(path, device="cpu"))
        assert np.array_equal(member_scores(path, device="cpu").scores, found[-1].scores)
    assert not np.array_equal(found[0].scores, found[1].scores)
    (tmp_path / "scores.npz").write_bytes(b"PK cut off")
    assert np.array_equal(member_scores(path, device="cpu").scores, found[1].scores)


def test_members_of_a_declaration() -> None:
    """Each combination of representation, augmentation, backbone and seed; other networks by augmentation and seed."""
    cfg = EnsembleConfig(
        representations={"mel": {"image": "mel"}, "gabor": {"image": "gabor"}},
        augmentations={"plain": Augmentation(), "masks": Augmentation(image={"freq_mask": 8})},
        backbones={"a": {"backbone": "resnet18"}, "b": {"backbone": "vgg11"}},
        networks={},
        seeds=(0, 1),
        folds=(1, 2),
        repeats=2,
    )
    members = cfg.members()
    assert len(members) == len({member.name for member in members}) == 16 and members[0].name == "mel-plain-a-seed0"
    assert members[-1].network.args == {"image": "gabor", "backbone": "vgg11", "freq_mask": 8}
    assert cfg.trials() == [(0, 1), (0, 2), (1, 1), (1, 2)]
    seeds = {cfg.experiment(member, repeat, fold).train.seed for member in members for repeat, fold in cfg.trials()}
    assert len(seeds) == 4 and cfg.experiment(members[0], 0, 2).tagging.data.fold == 2
    with pytest.raises(ConfigError, match="no members"):
        EnsembleConfig().members()
    with pytest.raises(ConfigError, match="in init 'smal'; did you mean 'small'"):
        EnsembleConfig(backbones={"small": {}}, init={"smal": "a.pth"})
    with pytest.raises(ConfigError, match="'a/b'"):
        EnsembleConfig(backbones={"a/b": {}})
    with pytest.raises(ConfigError, match="stand once"):
        EnsembleConfig(folds=(1, 1))


def test_tests_of_significance() -> None:
    """McNemar: 1 against 8 of 9 is 2 (1 + 9) / 2^9; no difference is 1. Wilcoxon: five gains of different size have 2 / 2^5."""
    ours, theirs = np.ones(20, bool), np.ones(20, bool)
    theirs[:8], ours[8] = False, False
    assert mcnemar(ours, theirs) == (8, 1, pytest.approx(20 / 512))
    assert mcnemar(ours, ours) == (0, 0, 1.0)
    base = np.array([0.5, 0.6, 0.7, 0.55, 0.65])
    assert signed_rank(base + np.arange(1, 6) / 100, base) == pytest.approx(2 / 32)
    assert signed_rank(base, base) is None and signed_rank([0.5], [0.4]) is None


def test_comparison() -> None:
    """Members that err in different places: each names half of its clips for sure, and their sum all; figures by trial and in the mean."""
    truth = np.eye(2)[[0, 0, 1, 1]]
    first = np.array([[0.9, 0.1], [0.45, 0.55], [0.1, 0.9], [0.55, 0.45]])
    second = np.array([[0.45, 0.55], [0.9, 0.1], [0.55, 0.45], [0.1, 0.9]])
    heard = {"a": Heard(first, truth, ("x", "y"), False), "b": Heard(second, truth, ("x", "y"), False)}
    found = compare({"fold1": heard, "fold2": heard}, clips=2)
    assert isinstance(found, Comparison) and found.fused == (1.0, 1.0) and found.members["a"] == (0.5, 0.5) and found.best == "a"
    assert found.mcnemar == (4, 0, 0.125) and "| ensemble | 1.0000 | 1.0000 | 1.0000 |" in found.markdown()
    several = {name: Heard(item.scores, item.truth, item.labels, True) for name, item in heard.items()}
    assert compare({"fold1": several}, clips=1).figure == "map" and compare({"fold1": several}, clips=1).mcnemar is None
    other = Heard(first, truth[::-1], ("x", "y"), False)
    with pytest.raises(UsageError, match="same clips"):
        fuse_scores([heard["a"], other])
