"""The task: bare weights recognised, adapters trained under a teacher and merged, scales, figures and their files."""

from __future__ import annotations

import csv
import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from cnnkit.backbones import create_model
from cnnkit.checkpoint import Header, read_header, read_state, save_checkpoint
from cnnkit.cli import cli
from cnnkit.config import from_dict, to_dict
from cnnkit.count import count_params, on_meta
from cnnkit.engine.evaluate import evaluate, write_evaluation
from cnnkit.engine.fit import fit
from cnnkit.engine.load import load
from cnnkit.errors import CheckpointError, ConfigError, InputWarning, UsageError
from cnnkit.plugin import get
from cnnkit_superres.args import Run
from cnnkit_superres.config import Config
from cnnkit_superres.cost import cost
from cnnkit_superres.metrics import psnr
from cnnkit_superres.models._base import SuperResolver
from cnnkit_superres.pictures import Picture
from cnnkit_superres.predict import Ensemble, enlarge
from cnnkit_superres.published import empty_network, find_network
from cnnkit_superres.resize import imresize
from cnnkit_superres.task import SuperRes
from PIL import Image
from torch import nn

NETWORK = {"name": "superres/span_x2", "args": {"channels": 8, "merged": True}}
TRAIN = {"epochs": 1, "accelerator": "cpu", "devices": 1, "ema": 0.0, "tensorboard": False}


def make(folder=None, **fields) -> SuperRes:
    """Return a task of a small network, with the pictures of a folder if there is one."""
    data = {"patch": 8, "batch_size": 2, "steps_per_epoch": 2}
    if folder is not None:
        data |= {"train": [str(folder)], "val": [str(folder)], "test": [str(folder)]}
    return SuperRes(from_dict(Config, {"network": NETWORK, "data": data, "train": TRAIN, **fields}))


def saved(path, task: SuperRes, *, seed: int = 0, **changes):
    """Save a network with random weights as a checkpoint of a task."""
    torch.manual_seed(seed)
    model = task.model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    save_checkpoint(path, model.state_dict(), Header(task="superres", config=to_dict(task.cfg), **changes))
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures") / "Pair"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        large = imresize(rng.integers(0, 256, (12, 14, 3), np.uint8), 3)
        Image.fromarray(large).save(folder / f"{name}.png")
    return folder


# Bare weights.


@pytest.mark.parametrize("name", sorted(get("superres").models))
def test_own_weights_are_recognised(name):
    """The very network, or one of equal weights: another scale of a file that serves several, or whose shapes do not tell it."""
    model = empty_network(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = find_network(model.state_dict())
    assert found is not None
    other = empty_network(found)
    assert type(other) is type(model) and found.rpartition("_x")[0] == name.rpartition("_x")[0]
    shapes = [{key: value.shape for key, value in each.state_dict().items()} for each in (model, other)]
    assert shapes[0] == shapes[1]
    if found != name:
        assert model.scale in other.scales or any(found in str(entry.message) and name in str(entry.message) for entry in caught)
    if len(model.scales) > 1:
        assert not caught


def test_weights_that_fit_two_scales_say_what_to_type():
    with on_meta():
        state = create_model("superres/a2n_x3").state_dict()
    with pytest.warns(InputWarning, match=r"superres/a2n_x2 and superres/a2n_x3 alike.*--set network\.name=superres/a2n_x3"):
        assert find_network(state) == "superres/a2n_x2"


def test_bare_weights_load_as_their_network(tmp_path):
    torch.manual_seed(0)
    model = create_model("superres/espcn_x3").eval()
    torch.save({"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, tmp_path / "espcn.pth")
    loaded = load(tmp_path / "espcn.pth", plugin=get("superres"))
    assert loaded.task.cfg.network.name == "superres/espcn_x3" and loaded.task.scale == 3
    x = torch.rand(1, 1, 6, 7)
    with torch.no_grad():
        assert torch.equal(loaded.model(x), model(x))
    assert loaded.task.preprocess()["colours"].startswith("Y")


@pytest.fixture
def esrgan(tmp_path):
    """A file as Real-ESRGAN's are, and the network of spandrel that wrote it."""
    pytest.importorskip("spandrel")
    from spandrel.architectures.ESRGAN import ESRGAN

    torch.manual_seed(0)
    inner = ESRGAN(num_filters=6, num_blocks=1, scale=4).eval()
    torch.save({"params_ema": inner.state_dict()}, tmp_path / "RealESRGAN.pth")
    return tmp_path / "RealESRGAN.pth", inner


def test_a_network_of_spandrel_runs(esrgan, tmp_path):
    path, inner = esrgan
    loaded = load(path, plugin=get("superres"))
    assert loaded.task.cfg.network.name == "superres/foreign" and loaded.model.scale == 4 and not loaded.model.training
    x = torch.rand(1, 3, 9, 8)
    with torch.no_grad():
        assert torch.allclose(loaded.model(x), inner(x), atol=1e-6)
    # What asks for the scale finds it in the weights, for no file is configured.
    assert loaded.task.scale == 4 and loaded.task.preprocess() == {"range": [0, 1], "colours": "RGB", "scale": 4}
    loaded.task.check(loaded.header, Run(scale=4))
    with pytest.raises(CheckpointError, match="by 4, not by 2"):
        loaded.task.check(loaded.header, Run(scale=2))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 9, 3), np.uint8)).save(tmp_path / "photo.png")
    done = CliRunner().invoke(
        cli,
        [
            "run",
            "superres",
            str(tmp_path / "photo.png"),
            "--ckpt",
            str(path),
            "-o",
            str(tmp_path / "out"),
            "--scale",
            "4",
            "--device",
            "cpu",
        ],
    )
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "out" / "photo_x4.png") as image:
        assert image.size == (36, 20)


@pytest.mark.paper("dsclora")
def test_adapters_on_a_network_of_spandrel(esrgan, tmp_path):
    path, inner = esrgan
    task = make(network={"name": "superres/foreign", "args": {"file": str(path)}}, adapters={"where": ["*"]})
    model = task.model()
    assert {name.rpartition(".")[2] for name, value in model.named_parameters() if value.requires_grad} == {"lora_A", "lora_B"}
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(model.eval()(x), inner(x), atol=1e-6)
        for name, value in model.named_parameters():
            if name.endswith("lora_B"):
                value.normal_(0, 0.01)
        wanted = model(x)
    save_checkpoint(tmp_path / "adapted.ckpt", model.state_dict(), Header(task="superres", config=to_dict(task.cfg)))
    path.unlink()  # The checkpoint has all that is needed.
    loaded = load(tmp_path / "adapted.ckpt")
    with torch.no_grad():
        assert torch.allclose(loaded.model(x), wanted, atol=1e-6) and not torch.allclose(wanted, inner(x), atol=1e-4)
    assert loaded.task.scale == 4


def test_foreign_without_weights_says_what_to_type():
    with pytest.raises(ConfigError, match=r"--set network\.args\.file"):
        make(network={"name": "superres/foreign"}).model()


@pytest.mark.parametrize("kind", ["classifier", "text", "pickle", "missing"])
def test_wrong_files_are_refused(tmp_path, kind):
    path = tmp_path / "weights.pth"
    if kind == "classifier":
        torch.save(nn.Sequential(nn.Linear(3, 4)).state_dict(), path)
    elif kind == "text":
        path.write_text("no weights")
    elif kind == "pickle":
        import pickle

        path.write_bytes(pickle.dumps({"weight": 1}))
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        load(path, plugin=get("superres"))


def test_a_network_that_enlarges_nothing_is_refused():
    with pytest.raises(ConfigError, match="does not enlarge"):
        make(network={"name": "resnet18"}).model()


# Training.


@pytest.mark.paper("dsclora")
def test_adapters_alone_are_trained_and_merge_without_a_trace(pictures, tmp_path):
    pytest.importorskip("lightning")
    base = saved(tmp_path / "base.ckpt", make())
    teacher = saved(tmp_path / "teacher.ckpt", make(network={**NETWORK, "args": {"channels": 12, "merged": True}}), seed=1)
    adapters = {"rank": 1, "alpha": 2.0, "teacher": str(teacher), "output_weight": 0.5}
    task = make(pictures, adapters=adapters, train={**TRAIN, "optimizer": {"name": "adam", "lr": 1e-2}})
    result = fit(task, output=tmp_path / "run", plugin=get("superres"), init=base, progress=False)

    before, after = read_state(base), read_state(result.last)
    kept = {key.replace(".parametrizations.weight.original", ".weight"): value for key, value in after.items() if ".lora_" not in key}
    kept = {key: value for key, value in kept.items() if not key.endswith(".weight.0.scale")}
    assert kept.keys() == before.keys() and all(torch.equal(kept[key], before[key]) for key in kept)
    assert sum(bool(value.any()) for key, value in after.items() if key.endswith("lora_B")) > 10
    losses = next(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert {"train/loss", "train/affinity", "train/output", "val/psnr", "val/baseline_psnr"} <= losses.keys()
    assert {"psnr", "ssim"} <= dict(result.metrics).keys()

    merged = tmp_path / "merged.ckpt"
    done = CliRunner().invoke(cli, ["superres", "merge", str(result.last), "-o", str(merged)])
    assert done.exit_code == 0 and "merged 20 adapters" in done.output, done.output
    assert read_state(merged).keys() == before.keys() and read_header(merged).config["adapters"] is None
    one, other, plain = (load(path) for path in (result.last, merged, base))
    x = torch.rand(1, 3, 9, 11)
    with torch.no_grad():
        assert torch.allclose(one.model(x), other.model(x), atol=1e-6)
        assert not torch.allclose(one.model(x), plain.model(x), atol=1e-4)
    assert cost(other.model) == cost(plain.model)
    again = CliRunner().invoke(cli, ["superres", "merge", str(merged), "-o", str(tmp_path / "again.ckpt")])
    assert isinstance(again.exception, UsageError) and "no adapters" in str(again.exception) and not (tmp_path / "again.ckpt").exists()


@pytest.mark.paper("dsclora")
def test_adapters_start_from_the_official_layout(tmp_path):
    """Files with branches are merged on the way in, as they are for the network without adapters."""
    torch.manual_seed(0)
    full = create_model("superres/span_x2", channels=8).eval()
    torch.save({"params": full.state_dict()}, tmp_path / "span.pth")
    from cnnkit.engine.load import load_into

    task = make(adapters={"rank": 1})
    model = task.model().eval()
    load_into(task, model, tmp_path / "span.pth")
    x = torch.rand(1, 3, 7, 8)
    with torch.no_grad():
        assert torch.allclose(model(x), full(x), atol=1e-4)


@pytest.mark.paper("dsclora")
def test_a_teacher_of_another_scale_is_refused(pictures, tmp_path):
    teacher = saved(tmp_path / "teacher.ckpt", make(network={"name": "superres/span_x4", "args": {"channels": 8, "merged": True}}))
    task = make(pictures, adapters={"teacher": str(teacher)})
    with pytest.raises(ConfigError, match="enlarges by 4, the network by 2"):
        task.losses(task.model(), {"lr": torch.rand(1, 3, 8, 8), "hr": torch.rand(1, 3, 16, 16)})


def test_rank_zero_trains_the_network_under_a_teacher(tmp_path):
    teacher = saved(tmp_path / "teacher.ckpt", make(), seed=3)
    task = make(adapters={"rank": 0, "teacher": str(teacher)})
    model = task.model()
    losses = task.losses(model, {"lr": torch.rand(1, 3, 8, 8), "hr": torch.rand(1, 3, 16, 16)})
    sum(losses.values()).backward()
    assert "affinity" in losses and all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.paper("samplingaug")
def test_training_with_chosen_patches(pictures, tmp_path):
    pytest.importorskip("lightning")
    task = make(pictures)
    cfg = dataclasses.replace(task.cfg, data=dataclasses.replace(task.cfg.data, sampler="informative"))
    before = tmp_path / "before.ckpt"
    saved(before, task)
    result = fit(SuperRes(cfg), output=tmp_path / "run", plugin=get("superres"), init=before, progress=False)
    old, new = read_state(before), read_state(result.last)
    assert any(not torch.equal(old[key], new[key]) for key in old)
    assert load(result.best).task.cfg.data.sampler == "informative"


# Prediction.


def test_a_network_of_several_scales_is_set_by_the_option(tmp_path):
    task = make(network={"name": "superres/carn_x2", "args": {"width": 8}})
    model = task.model().eval()
    source = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)).save(source)
    for scale, wanted in ((None, 2), (3, 3), (4, 4), (None, 2)):
        run = Run(inputs=(source,), output=tmp_path, name="photo", scale=scale)
        task.check(Header(task="superres"), run)
        (batch,) = task.read(run)
        predictions = task.predict(model, batch)
        (path,) = task.write(predictions, run)
        assert path.name == f"photo_x{wanted}.png" and model.scale == 2
        with Image.open(path) as image:
            assert image.size == (7 * wanted, 6 * wanted)
    with pytest.raises(CheckpointError, match="2 or 3 or 4, not by 5"):
        task.check(Header(task="superres"), Run(scale=5))
    with pytest.raises(CheckpointError, match="by 2, not by 4"):
        make().check(Header(task="superres"), Run(scale=4))


def test_the_example_is_made_for_the_scale_that_is_asked_for(tmp_path):
    pytest.importorskip("skimage")
    task = make(network={"name": "superres/carn_x2", "args": {"width": 8}})
    (batch,) = task.example(Run(output=tmp_path, name="example", scale=4))
    small = next(iter(batch["source"].frames()))
    assert batch["reference"].shape[:2] == tuple(4 * side for side in small.size)


def test_networks_run_merged_and_are_left_as_they_were(tmp_path):
    """Branches and adapters cost nothing in use, and the network that was given keeps them."""
    task = make(network={"name": "superres/span_x2", "args": {"channels": 8}}, adapters={"rank": 1, "where": ["conv_cat"]})
    model = task.model().eval()
    keys = list(model.state_dict())
    source = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    Image.fromarray(pixels).save(source)
    run = Run(inputs=(source,), output=tmp_path, name="photo")
    (batch,) = task.read(run)
    (prediction,) = task.predict(model, batch)
    (frame,) = prediction.frames
    assert np.abs(frame.pixels.astype(int) - enlarge(model, Picture(pixels)).pixels).max() <= 1
    assert list(model.state_dict()) == keys
    ready = task._ready(model, run)
    assert task._ready(model, run) is ready  # Its receptive field is found once.
    assert sum(parameter.numel() for parameter in ready.parameters()) < sum(parameter.numel() for parameter in model.parameters()) / 2
    assert isinstance(task._ready(model, Run(ensemble=True)), Ensemble)
    assert prediction.cost is None


# Several scales.


CARN = {"name": "superres/carn_x3", "args": {"width": 8}}


def joint(pictures, **data) -> SuperRes:
    """Return a task of CARN, trained at all its scales."""
    given = {"train": [str(pictures)], "patch": 5, "batch_size": 2, "steps_per_epoch": 12, "scales": [2, 3, 4], **data}
    return make(network=CARN, data=given)


@pytest.mark.paper("carn")
def test_each_step_of_joint_training_has_one_scale(pictures):
    loader = joint(pictures).loader("train")
    orders = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == len(loader) == 12
        assert all(batch["lr"].shape == (2, 3, 5, 5) for batch in batches)
        orders.append([batch["hr"].shape[-1] // 5 for batch in batches])
        assert set(orders[-1]) == {2, 3, 4}
        for batch in batches:  # The same place in both.
            scale = batch["hr"].shape[-1] // 5
            assert (torch.nn.functional.avg_pool2d(batch["hr"], scale) - batch["lr"]).abs().mean() < 0.15
    assert orders[0] == orders[2] != orders[1]


@pytest.mark.paper("carn")
def test_joint_training_reaches_every_branch(pictures):
    """A step moves the branch of its own scale and what all share; the network is left at the scale that it was built for."""
    task = joint(pictures)
    model = task.model()
    seen = set()
    for batch in task.loader("train"):
        model.zero_grad()
        sum(task.losses(model, batch).values()).backward()
        assert model.scale == 3
        scale = batch["hr"].shape[-1] // 5
        for factor in (2, 3, 4):
            moved = [parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.upsample[f"up{factor}"].parameters()]
            assert all(moved) if factor == scale else not any(moved)
        assert model.entry.weight.grad.any()
        seen.add(scale)
    assert seen == {2, 3, 4}


def test_joint_training_is_refused_where_it_cannot_be(pictures, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.scales has 3, but superres/span_x2 enlarges by 2"):
        make(network={**NETWORK, "name": "superres/span_x2"}, data={"train": [str(pictures)], "scales": [2, 3]}).loader("train")
    with pytest.raises(ConfigError, match="different factors"):
        joint(pictures, scales=[2, 2])
    with pytest.raises(ConfigError, match="lr_folders names pictures of one scale"):
        joint(pictures, lr_folders=[str(pictures)])
    teacher = saved(tmp_path / "teacher.ckpt", make(network=CARN))
    taught = make(network=CARN, adapters={"rank": 0, "teacher": str(teacher)}, data={"train": [str(pictures)], "scales": [2, 3]})
    with pytest.raises(ConfigError, match="a teacher teaches at one scale"):
        taught.loader("train")


# Figures.


def test_evaluation_has_the_usual_figures_and_files(pictures, tmp_path):
    checkpoint = saved(tmp_path / "net.ckpt", make(pictures))
    loaded = load(checkpoint)
    figures, metric = evaluate(loaded.task, loaded.model, split="test", device="cpu", progress=False)
    assert {"psnr", "ssim", "baseline_psnr", "seconds", "params_m", "gmacs_720p", "peak_memory_mb"} <= figures.keys()
    counted = cost(loaded.model)
    assert figures["params_m"] == pytest.approx(counted.params / 1e6) and figures["gmacs_720p"] == pytest.approx(counted.macs / 1e9)
    assert 0 < figures["seconds"] < 10 and figures["peak_memory_mb"] > 50
    ours, bicubic = [], []
    for batch in loaded.task.loader("test"):
        ours.append(psnr(enlarge(loaded.model, Picture(batch["pixels"])).pixels, batch["reference"], crop=2))
        bicubic.append(psnr(imresize(batch["pixels"], 2), batch["reference"], crop=2))
    assert figures["psnr"] == pytest.approx(np.mean(ours)) and figures["baseline_psnr"] == pytest.approx(np.mean(bicubic))

    files = write_evaluation(tmp_path / "out", figures, metric)
    assert [file.name for file in files] == ["metrics.json", "scores.csv", "scores.md", "cost.md"]
    rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    assert [row["picture"] for row in rows] == ["one", "two"] and [float(row["psnr"]) for row in rows] == pytest.approx(ours, abs=1e-5)
    assert (
        "Pair" in (tmp_path / "out" / "scores.md").read_text()
        and f"{counted.params / 1e6:.3f}" in (tmp_path / "out" / "cost.md").read_text()
    )


def test_cost_is_that_of_the_merged_network(pictures):
    task = make(pictures, network={"name": "superres/span_x2", "args": {"channels": 8}})
    figures, _ = evaluate(task, task.model(), split="val", device="cpu", progress=False)
    merged = cost(create_model("superres/span_x2", channels=8, merged=True))
    assert figures["gmacs_720p"] == pytest.approx(merged.macs / 1e9) and figures["params_m"] == pytest.approx(merged.params / 1e6)


def test_measured_pictures_are_those_of_the_merged_network_as_it_is_now(pictures):
    """Validation stands between steps of training: a copy that was merged before a step is not used after it."""
    task = make(pictures, network={"name": "superres/span_x2", "args": {"channels": 8}}, adapters={"rank": 1, "where": ["conv_cat"]})
    model = task.model().eval()
    batch = next(iter(task.loader("val")))
    with torch.inference_mode():
        (before,) = task.predict(model, batch)
        copied = task._measured.of(model)
        assert task._measured.of(model) is copied and count_params(copied) < count_params(model) / 2
    with torch.no_grad():
        model.upsampler[0].bias += 0.25
    (after,) = task.predict(model, batch)
    expected = enlarge(model, Picture(batch["pixels"])).pixels
    assert np.abs(after.frames[0].pixels.astype(int) - expected).max() <= 1
    assert np.abs(before.frames[0].pixels.astype(int) - expected).max() > 30


def test_metrics_of_two_processes_are_those_of_one(pictures):
    task = make(pictures)
    model = task.model().eval()
    batches = list(task.loader("val"))
    whole, parts = task.metric(), [task.metric(), task.metric()]
    for batch, part in zip(batches, parts, strict=True):
        predictions = task.predict(model, batch)
        whole.update(predictions, batch)
        part.update(predictions, batch)
    parts[0].merge(parts[1])
    one, other = whole.compute(), parts[0].compute()
    assert one.keys() == other.keys()
    assert all(one[key] == pytest.approx(other[key]) for key in one if key != "peak_memory_mb")


def test_figures_on_the_command_line(pictures, tmp_path):
    checkpoint = saved(tmp_path / "net.ckpt", make(pictures))
    words = ["eval", "superres", "--ckpt", str(checkpoint), "-o", str(tmp_path / "out"), "--device", "cpu", "--json", "-q"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["psnr"] == json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]["psnr"]


def test_presets_are_configurations():
    for preset in SuperRes.presets.values():
        assert isinstance(from_dict(Config, preset), Config)
    assert isinstance(make().model(), SuperResolver)
