"""The pipeline from a trained network to C code and a report, as functions and as one command."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cnnkit.checkpoint import Header, read_header, save_checkpoint
from cnnkit.cli import main
from cnnkit.count import count_params
from cnnkit.engine.load import load
from cnnkit.errors import ConfigError, UsageError
from cnnkit.testing.interpreter import assert_no_heavy_imports, fresh_interpreter
from cnnkit_audio.compress.baseline import Constant, MeanLogMel
from cnnkit_audio.compress.pipeline import Plan, compress
from cnnkit_audio.compress.quantize import to_pcm
from cnnkit_audio.compress.report import Report
from cnnkit_audio.compress.training import refresh_statistics, stream, train
from cnnkit_audio.models._base import Tagger
from cnnkit_audio.models.acdnet import ACDNet

pytestmark = pytest.mark.paper("acdnet")

WIDTHS = (2, 16, 8, 8, 8, 12, 12, 16, 16, 24, 24, 12)
LENGTH = 1200
LABELS = ("low tone", "high tone", "clicks")


def clip(label: int, rng: np.random.Generator) -> np.ndarray:
    """Return a tone below 1 kHz, one above 3 kHz, or clicks, in noise."""
    time = np.arange(LENGTH) / 20000
    if label == 2:
        sound = np.zeros(LENGTH)
        sound[rng.integers(0, LENGTH, 5)] = 0.9
    else:
        sound = 0.4 * np.sin(2 * np.pi * rng.uniform(*((300, 900), (3000, 6000))[label]) * time + rng.uniform(0, 6))
    return (sound + 0.02 * rng.standard_normal(LENGTH)).astype(np.float32)


def epoch(seed: int, *, count: int = 4, batch: int = 16) -> list[dict[str, Any]]:
    rng = np.random.default_rng((7, seed))
    found = []
    for _ in range(count):
        labels = rng.integers(0, 3, batch)
        sounds = np.stack([clip(int(label), rng) for label in labels])
        found.append({"sound": torch.from_numpy(sounds)[:, None], "target": F.one_hot(torch.from_numpy(labels), 3).float()})
    return found


def loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    return F.cross_entropy(model(batch["sound"]), batch["target"])


def accuracy(model: Tagger) -> float:
    held_out = epoch(10_000, count=8)
    with torch.no_grad():
        right = [model(batch["sound"]).argmax(1) == batch["target"].argmax(1) for batch in held_out]
    return float(torch.cat(right).float().mean())


@pytest.fixture(scope="module")
def trained() -> ACDNet:
    torch.manual_seed(0)
    model = ACDNet(num_classes=3, channels=WIDTHS, length=LENGTH)
    train(model, stream(epoch), loss, steps=60, lr=2e-2)
    return model


def test_a_third_of_the_network_knows_as_much(trained):
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    torch.manual_seed(1)
    said: list[str] = []
    plan = Plan(keep=0.3, rounds=3, sparse_steps=5, round_steps=5, final_steps=60, lr=1e-2, rank_batches=2, calibration=8)
    found = compress(trained, epoch, loss, accuracy, plan, say=said.append)
    names = [step.name for step in found.steps]
    assert names == ["as given", "sparse", "pruned", "pruned, trained", "8 bits"]
    by_name = {step.name: step for step in found.steps}
    assert by_name["as given"].size.parameters == count_params(trained)
    assert by_name["sparse"].size.sparsity == pytest.approx(0.5, abs=0.03)
    assert count_params(found.model) <= 0.3 * count_params(trained)
    assert by_name["8 bits"].size.bytes < 0.1 * by_name["as given"].size.bytes
    assert by_name["as given"].figure > 0.95 and by_name["8 bits"].figure > by_name["as given"].figure - 0.05
    assert by_name["8 bits"].size.macs < by_name["as given"].size.macs
    assert len(said) == len(names) + plan.rounds
    assert all(torch.equal(value, before[key]) for key, value in trained.state_dict().items())
    x = epoch(3)[0]["sound"]
    integers = found.quantised(found.quantised.from_pcm(to_pcm(x)))
    assert (integers.argmax(1) == found.model(x).argmax(1).numpy()).mean() > 0.9


@pytest.mark.parametrize("words", [{"rank": "magnitude", "sparsity": 0.0}, {"rank": "taylor", "sparsity": 0.3, "distil": True}])
def test_it_ends_the_same_from_the_same_seed(trained, words):
    plan = Plan(keep=0.5, rounds=2, sparse_steps=1, round_steps=1, final_steps=1, rank_batches=1, calibration=1, **words)
    states = []
    for _ in range(2):
        torch.manual_seed(4)
        found = compress(trained, epoch, loss, accuracy, plan)
        names = [step.name for step in found.steps]
        assert ("sparse" in names) is bool(words["sparsity"]) and ("distilled (to compare)" in names) is ("distil" in words)
        states.append(found.model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_the_baselines_are_what_they_say(trained):
    often = Constant(trained, torch.tensor([0.2, 0.5, 0.3]))
    assert often(epoch(0)[0]["sound"]).argmax(1).unique().tolist() == [1]
    sklearn = pytest.importorskip("sklearn.linear_model")
    data = epoch(0)
    ours = MeanLogMel(trained).fit(data, penalty=1e-3)
    assert ours.front is not None
    means = torch.cat([ours.front(batch["sound"]).mean(3)[:, 0] for batch in data]).numpy()
    standard = (means - means.mean(0)) / np.sqrt(means.var(0) + 1e-5)
    labels = torch.cat([batch["target"].argmax(1) for batch in data]).numpy()
    # C is the inverse of twice the penalty times the number of clips.
    theirs = sklearn.LogisticRegression(C=1 / (2 * 1e-3 * len(labels)), max_iter=2000, tol=1e-8).fit(standard, labels)
    x = epoch(1)[0]["sound"]
    mean = ours.front(x).mean(3)[:, 0].numpy()
    expected = theirs.predict_proba((mean - means.mean(0)) / np.sqrt(means.var(0) + 1e-5))
    assert ours(x).detach().softmax(1).numpy() == pytest.approx(expected, abs=0.01)


def test_the_report_says_what_was_measured(trained, tmp_path):
    plan = Plan(keep=0.5, rounds=1, sparse_steps=0, final_steps=0, rank_batches=1, calibration=1)
    found = compress(trained, epoch, loss, accuracy, plan)
    report = Report(found.steps, {"nothing": 0.25}, "accuracy", 128, found.quantised.arena, 12345)
    files = report.write(tmp_path)
    data, text = json.loads((tmp_path / "report.json").read_text()), (tmp_path / "report.md").read_text()
    assert [file.name for file in files] == ["report.md", "report.json"]
    assert [row["name"] for row in data["steps"]] == ["as given", "sparse", "pruned", "pruned, trained", "8 bits"]
    assert data["steps"][0]["parameters"] == count_params(trained) and data["baselines"] == {"nothing": 0.25}
    assert data["steps"][1]["sparsity"] == pytest.approx(0.5, abs=0.03) and data["arena"] == found.quantised.arena
    assert f"| as given | {found.steps[0].figure:.1%} | {count_params(trained):,} |" in text and "| nothing | 25.0% |" in text
    assert "* as given: " + ", ".join(map(str, WIDTHS)) in text and "12,345 bytes" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [({"keep": 0}, "keep=0"), ({"rounds": 0}, "rounds=0"), ({"final_steps": -1}, "0 or more"), ({"calibration": 0}, "one batch")],
)
def test_plans_that_make_no_sense(words, message):
    with pytest.raises(ConfigError, match=message):
        Plan(**words)


def test_statistics_are_those_of_the_batches_that_are_given(trained):
    """Against the mean over batches, and only normalisations change."""
    model = copy.deepcopy(trained)
    data, seen = epoch(0, count=2), []
    handle = model.sfeb[0].register_forward_hook(lambda module, args, out: seen.append(out))
    refresh_statistics(model, data)
    handle.remove()
    expected = torch.stack([out.mean((0, 2, 3)) for out in seen]).mean(0)
    assert torch.allclose(model.sfeb[1].running_mean, expected, atol=1e-6) and model.sfeb[1].momentum == trained.sfeb[1].momentum
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), trained.parameters(), strict=True))


def test_no_data_is_said(trained):
    with pytest.raises(UsageError, match=r"no training data; set tagging\.data"):
        compress(trained, lambda epoch: [], loss, accuracy, Plan(sparsity=0.2))


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A checkpoint of a network for two synthetic sounds, few and short so that the test is quick."""
    from cnnkit_audio.tagging.data import SyntheticSounds

    defaults = SyntheticSounds.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "per_fold", 4)
    monkeypatch.setitem(defaults, "seconds", 0.2)
    torch.manual_seed(0)
    labels = ("tone", "noise")
    network = {"name": "audio/acdnet", "args": {"channels": list(WIDTHS), "length": LENGTH}}
    config = {"network": network, "tagging": {"labels": list(labels), "data": {"batch_size": 8}}}
    state = ACDNet(num_classes=2, channels=WIDTHS, length=LENGTH).state_dict()
    return save_checkpoint(tmp_path / "big.ckpt", state, Header(task="audio", model="audio/acdnet", config=config, labels=labels))


def command(*words: Any) -> int:
    """Call the command line and return its status."""
    with pytest.raises(SystemExit) as stop:
        main(["audio", "compress", *map(str, words)])
    return int(stop.value.code or 0)


def test_one_command_from_a_checkpoint_to_c(checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--rounds", 2, "--sparse-epochs", 0.5, "--round-epochs", 0.5, "--epochs", 1, "--device", "cpu"]
    assert command("--ckpt", checkpoint, "-o", out, "--keep", 0.2, "--name", "ears", *words) == 0
    assert sorted(file.name for file in out.iterdir()) == ["ears.c", "ears.h", "report.json", "report.md", "small.ckpt"]
    assert capsys.readouterr().out.strip() == (out / "report.md").read_text().strip()
    data = json.loads((out / "report.json").read_text())
    assert data["metric"] == "accuracy" and data["clips"] == 8 and len(data["baselines"]) == 2
    assert 'ears_labels[2] = {\n    "tone",\n    "noise"\n}' in (out / "ears.c").read_text()
    small = load(out / "small.ckpt", task="audio")
    assert list(small.model.widths) == data["steps"][-1]["widths"] == read_header(out / "small.ckpt").config["network"]["args"]["channels"]
    assert count_params(small.model) <= 0.2 * data["steps"][0]["parameters"]


def test_a_compressed_network_is_compressed_again(checkpoint, tmp_path):
    words = ["--rounds", 1, "--sparsity", 0, "--epochs", 0, "--device", "cpu", "--rank", "magnitude"]
    assert command("--ckpt", checkpoint, "-o", tmp_path, "--keep", 0.5, *words) == 0
    before = count_params(load(tmp_path / "small.ckpt").model)
    assert command("--ckpt", tmp_path / "small.ckpt", "-o", tmp_path, "--keep", 0.5, *words) == 0
    assert count_params(load(tmp_path / "small.ckpt").model) <= before / 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--name", "My net"], "no name for C code"),
        (["--keep", 2], "keep=2.0"),
        (["--sparsity", 1], "sparsity=1.0"),
        (["--ckpt", "nothing.ckpt"], "nothing.ckpt"),
        (["--set", "tagging.data.fold=9"], "fold=9"),
    ],
)
def test_refusals_say_what_is_accepted(checkpoint, tmp_path, capsys, words, message):
    assert command("--ckpt", checkpoint, "-o", tmp_path / "out", *words) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_help_needs_no_torch():
    done = fresh_interpreter("from cnnkit.cli import main\nmain(['audio', 'compress', '--help'])")
    assert "--keep" in done.output and "microcontroller" in done.output
    assert_no_heavy_imports(done.modules)
