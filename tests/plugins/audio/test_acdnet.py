"""ACDNet: the official arithmetic and keys at several lengths and widths, the paper's figures, refusals, and the vote of ten crops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from click.testing import CliRunner
from cnnkit.backbones import create_model
from cnnkit.cli import cli
from cnnkit.config import from_dict
from cnnkit.count import count_params, on_meta
from cnnkit.engine.load import load
from cnnkit.errors import ConfigError, InputWarning, UsageError
from cnnkit.testing.compare import assert_near, assert_same_keys, filled, randomise, without_gradient
from cnnkit_audio.compress import sizes
from cnnkit_audio.compress.chain import run
from cnnkit_audio.models.acdnet import MICRO, ACDNet, crops, frame_count, pool_sizes
from cnnkit_audio.sound import write_sound
from cnnkit_audio.task import Audio

pytestmark = pytest.mark.paper("acdnet")

NARROW = (3, 6, 4, 5, 4, 6, 5, 7, 6, 8, 7, 5)
CASES = (
    {"channels": MICRO, "length": 30225, "num_classes": 50},
    {"channels": NARROW, "length": 4000, "num_classes": 4},
    {"channels": (2, 40, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2), "length": 20000, "num_classes": 3},
    {"channels": NARROW, "length": 1200, "num_classes": 2},
    {"channels": NARROW, "length": 16000, "num_classes": 3, "sample_rate": 16000},
)


def clips(length: int, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 1, length, generator=torch.Generator().manual_seed(1)) * 2 - 1


def twin(plain, model: ACDNet) -> Any:
    """Return the plain network with the same weights."""
    theirs = plain("acdnet").ACDNet(model.length, model.num_classes, model.sample_rate, list(model.widths)).eval()
    theirs.load_state_dict(model.state_dict())
    return theirs


@pytest.mark.parametrize("words", CASES)
def test_the_same_weights_give_the_official_confidences(plain, words):
    ours: Any = randomise(ACDNet(**words), gain=2.0)
    theirs = twin(plain, ours)
    assert_same_keys(ours, theirs)
    x = clips(ours.length)
    with torch.no_grad():
        assert_near(ours(x).softmax(1), theirs(x[:, :, None]), 1e-5)
        assert_near(ours.double()(x.double()), theirs.double().tfeb(theirs.sfeb(x.double()[:, :, None]).transpose(1, 2)), 1e-10)
        assert_near(run(ours, x.double()), ours(x.double()), 1e-12)


def test_the_published_network_has_the_official_keys(plain):
    with on_meta():
        ours, theirs = create_model("audio/acdnet", dims=1, num_classes=50), plain("acdnet").ACDNet()
    assert_same_keys(ours, theirs)
    assert list(ours.state_dict())[-1] == "tfeb.38.bias"


@pytest.mark.parametrize(("name", "params", "operations"), [("acdnet", 4_735_378, 544_422_040), ("acdnet_micro", 131_474, 14_822_095)])
def test_parameters_and_flops_as_the_paper_counts_them(name, params, operations):
    """4.74 M and 544 M; 0.131 M and 14.8 M, which are 97.22 % and 97.28 % less."""
    with on_meta():
        model = create_model(f"audio/{name}", dims=1, num_classes=50)
        assert count_params(model) == params
    macs, others = sizes.operations(model)
    assert macs + others == operations
    if name == "acdnet_micro":
        assert round(100 * (1 - params / 4_735_378), 2) == 97.22
        assert round(100 * (1 - operations / 544_422_040), 2) == 97.28


@pytest.mark.parametrize(
    ("size", "windows"),
    [(64, (2, 2, 2, 2, 2, 2)), (151, (2, 2, 2, 2, 2, 4)), (20, (2, 2, 2, 2, 1, 1)), (1, (1,) * 6), (3, (2, 1, 1, 1, 1, 1))],
)
def test_poolings_follow_from_the_size(plain, size, windows):
    assert pool_sizes(size) == windows == tuple(plain("acdnet").halvings(size))


def test_lengths_that_the_poolings_do_not_fit_are_refused_with_the_nearest_that_work():
    assert frame_count(32000, 20000) == 159  # The official code believes in 160, and its last window of 5 finds 4.
    with pytest.raises(ConfigError, match=r"gives 159 frames.* nearest lengths that work are 31999 and 32013") as caught:
        ACDNet(length=32000, channels=NARROW)
    for length in (31999, 32013):
        ACDNet(length=length, channels=NARROW, num_classes=2).eval()(clips(length, 1))
    assert "32000" in str(caught.value)
    with pytest.raises(ConfigError, match="0 frames"):
        ACDNet(length=5)


def test_wrong_widths_are_refused():
    for channels in ((8, 64), (*MICRO, 1), (0, *MICRO[1:])):
        with pytest.raises(ConfigError, match="12 widths of 1 or more"):
            ACDNet(channels=channels)


def test_longer_clips_are_averaged_and_shorter_ones_refused():
    model: Any = randomise(ACDNet(channels=NARROW, length=4000, num_classes=3), gain=2.0)
    with torch.no_grad():
        seen = []
        model.tfeb[-3].register_forward_hook(lambda module, args, out: seen.append(out))
        longer = model(clips(9000))
        assert longer.shape == (2, 3) and seen[0].shape[-1] > 1
        assert_near(longer, model.tfeb[-1](seen[0].mean((2, 3))), 1e-6)
    with pytest.raises(UsageError, match="3999 samples is too short for this network; pad it to 4000"):
        model(clips(3999))


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    model = ACDNet(channels=NARROW, length=4000, num_classes=3)
    model(clips(4000, 4)).square().mean().backward()
    assert without_gradient(model) == []


def test_a_pruned_official_file_runs_without_a_configuration(plain, tmp_path):
    """The released files hold the weights beside the list of widths; here is one row alone, and so no pooling over rows."""
    widths = (4, 1, 6, 7, 6, 9, 8, 7, 6, 8, 7, 5)
    theirs = randomise(plain("acdnet").ACDNet(30225, 7, 20000, list(widths)), gain=2.0).eval()
    path = tmp_path / "pruned.pt"
    torch.save({"weight": theirs.state_dict(), "config": list(widths)}, path)
    with pytest.warns(InputWarning) as said:
        loaded = load(path, task="audio")
    texts = [str(item.message) for item in said]
    assert any("pruned.pt does not name its 7 labels" in text for text in texts)
    assert any(f"fits audio/acdnet with channels={list(widths)}; the length and the rate" in text for text in texts)
    assert dict(loaded.task.cfg.network.args) == {"channels": list(widths)}
    x = clips(30225, 1)
    assert_near(loaded.model(x).detach().softmax(1), theirs(x[:, :, None]).detach(), 1e-5)


def test_a_pruned_official_file_hears_a_recording(plain, tmp_path):
    theirs = randomise(plain("acdnet").ACDNet(30225, 3, 20000, list(NARROW)), gain=2.0)
    torch.save({"weight": theirs.state_dict(), "config": list(NARROW)}, tmp_path / "pruned.pt")
    write_sound(tmp_path / "sound.wav", clips(40000, 1)[0].numpy() / 2, 20000)
    done = CliRunner().invoke(
        cli,
        [
            *map(str, ("run", "audio", tmp_path / "sound.wav", "-o", tmp_path / "out")),
            "--ckpt",
            str(tmp_path / "pruned.pt"),
            "--no-picture",
            "--threshold",
            "0",
        ],
    )
    assert done.exit_code == 0, done.output
    rows = (tmp_path / "out" / "sound.cnnkit.results.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0].startswith("Start (s)") and len(rows) > 1 and "label " in rows[1]


def test_files_of_another_layout_have_no_arguments():
    """Neither one of fewer convolutions, nor one with another classifier behind it."""
    with on_meta():
        state = dict(ACDNet(channels=NARROW, num_classes=3).state_dict())
    assert ACDNet.arguments_of(state) == {"channels": list(NARROW), "num_classes": 3}
    assert ACDNet.arguments_of({**state, "tfeb.99.weight": torch.zeros(4, 3)}) is None
    assert ACDNet.arguments_of({key: value for key, value in state.items() if key != "sfeb.0.weight"}) is None


def test_ten_crops_vote(plain):
    """The paper's test of a clip: the mean of the confidences of ten windows, by tagging.crops=10."""
    args = {"channels": list(NARROW), "length": 1200}
    sections = {"network": {"name": "audio/acdnet", "args": args}, "tagging": {"labels": ["a", "b", "c"], "crops": 10}}
    task = Audio(from_dict(Audio.Config, sections))
    model: Any = randomise(task.model(), gain=2.0).eval()
    for samples in (1, 1200, 5000):
        sound = clips(samples, 1)[0]
        theirs = plain("acdnet").crops(sound[0], 1200, 10)
        assert torch.equal(crops(sound, 1200)[:, 0], theirs)
        with torch.no_grad():
            (tags,) = task.predict(model, {"sound": sound[None]})
            assert_near(torch.from_numpy(tags.scores.mean(0)), twin(plain, model)(theirs[:, None, None]).mean(0), 1e-5)
        assert len(tags.scores) == 10 and tags.ends[0] == samples / 20000
    with pytest.raises(UsageError, match="without samples"):
        crops(torch.zeros(1, 0), 1200)
    with pytest.raises(ConfigError, match=r"tagging\.crops=-1 is no number"):
        Audio(from_dict(Audio.Config, {**sections, "tagging": {"crops": -1}}))


def test_it_exports_with_a_free_batch():
    model = filled(lambda: ACDNet(channels=NARROW, length=1200, num_classes=3), gain=2.0)
    program = torch.export.export(model, (clips(1200),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)).module()
    assert_near(program(clips(1200, 5)).detach(), model(clips(1200, 5)).detach(), 1e-6)
