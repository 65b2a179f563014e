"""``cnnkit run superres`` and its sisters from file to file: good files are written, bad ones are rows, refusals say what to type."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from cnnkit import api
from cnnkit.backbones import create_model
from cnnkit.checkpoint import Header, save_checkpoint
from cnnkit.cli import main
from cnnkit.plugin import get
from cnnkit_superres.example import HELD_OUT, photograph
from cnnkit_superres.metrics import psnr
from cnnkit_superres.pictures import Picture, open_source
from cnnkit_superres.predict import enlarge
from cnnkit_superres.resize import imresize
from PIL import Image

SPAN = {"name": "superres/span_x2", "args": {"channels": 8, "merged": True}}
SIZES = {"photo": (14, 9), "deep": (7, 8), "clear": (6, 5), "film": (8, 10), "tiny": (1, 1), "long": (50, 3)}
"""Width and height of the good files."""


def checkpoint(path, network):
    torch.manual_seed(0)
    model = create_model(network["name"], **network["args"])
    return save_checkpoint(path, model.state_dict(), Header(task="superres", config={"network": network}))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("weights") / "small.ckpt", SPAN)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Good files of several kinds, and bad ones between them."""
    folder, rng = tmp_path_factory.mktemp("mixed"), np.random.default_rng(0)

    def noise(name, *channels):
        width, height = SIZES[name]
        return rng.integers(0, 256, (height, width, *channels), np.uint8)

    Image.fromarray(noise("photo", 3)).save(folder / "photo.png")
    Image.fromarray(noise("deep").astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(noise("clear", 4)).save(folder / "clear.png")
    frames = [Image.fromarray(noise("film", 3)) for _ in range(3)]
    frames[0].save(folder / "film.gif", save_all=True, append_images=frames[1:], duration=[50, 70, 90], loop=0)
    Image.fromarray(noise("tiny", 3)).save(folder / "tiny.png")
    Image.fromarray(noise("long", 3)).save(folder / "long.JPEG")
    (folder / "text.png").write_text("this is no picture")
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / "cut.jpg", quality=90)
    data = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    (folder / "empty.webp").touch()
    (folder / "notes.txt").write_text("not asked about")
    return folder


def command(*words, capsys) -> tuple[int, str, str]:
    """Call the command line and return its status and what it printed."""
    with pytest.raises(SystemExit) as stop:
        main([*map(str, words)])
    shown = capsys.readouterr()
    return int(stop.value.code or 0), shown.out, shown.err


@pytest.fixture(scope="module")
def mixed(small, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return api.run("superres", folder, output=out, checkpoint=small, device="cpu", progress=False), out


def test_one_bad_file_never_stops_the_folder(small, folder, tmp_path, capsys):
    status, _, _ = command("run", "superres", folder, "--ckpt", small, "-o", tmp_path, "-q", "--device", "cpu", capsys=capsys)
    assert status == 1
    rows = {row["input"]: row for row in csv.DictReader((tmp_path / "errors.csv").open())}
    assert set(rows) == {"text", "cut", "empty"}
    assert "not a picture" in rows["text"]["error"] and "truncated" in rows["cut"]["error"] and "empty" in rows["empty"]["error"]
    assert all(row["files"] in row["error"] for row in rows.values())
    done = {path.name for path in tmp_path.iterdir() if path.is_file()}
    pictures = {"photo_x2.png", "deep_x2.png", "clear_x2.png", "tiny_x2.png", "film_x2.gif", "long_x2.jpeg"}
    assert done == {"errors.csv", "report.json"} | pictures


def test_sizes_are_exactly_twice(mixed):
    report, _ = mixed
    assert {item.name for item in report.items if item.status == "ok"} == set(SIZES)
    for item in report.items:
        if item.status == "ok":
            with Image.open(item.outputs[0]) as image:
                assert image.size == tuple(2 * side for side in SIZES[item.name])


def test_what_a_file_is_stays(mixed, small, folder):
    _, out = mixed
    deep = np.asarray(Image.open(out / "deep_x2.png"))
    assert deep.dtype == np.uint16 and deep.ndim == 2 and (deep % 257).any()  # Real 16 bits, not 8 spread out.
    with Image.open(out / "clear_x2.png") as image:
        assert image.mode == "RGBA"
    with Image.open(out / "film_x2.gif") as film:
        durations = []
        for index in range(film.n_frames):
            film.seek(index)
            durations.append(film.info["duration"])
        assert durations == [50, 70, 90] and film.info["loop"] == 0
    from cnnkit.engine.load import load

    model = load(small).model
    (picture,) = open_source(folder / "photo.png").frames()
    result = np.asarray(Image.open(out / "photo_x2.png")).astype(int)
    assert np.abs(result - enlarge(model, picture).pixels).max() <= 1


def test_resume_does_only_what_is_left(small, folder, mixed):
    _, out = mixed
    before = {path: path.stat().st_mtime_ns for path in out.glob("*_x2.*")}
    again = api.run("superres", folder, output=out, checkpoint=small, device="cpu", progress=False, resume=True)
    assert {item.name for item in again.items if item.status == "resumed"} == set(SIZES) and len(again.failed) == 3
    assert {path: path.stat().st_mtime_ns for path in out.glob("*_x2.*")} == before


def test_comparison_and_format(small, folder, tmp_path, capsys):
    words = ["run", "superres", folder / "photo.png", folder / "film.gif", "--ckpt", small, "-o", tmp_path, "--compare", "--device", "cpu"]
    status, out, _ = command(*words, capsys=capsys)
    assert status == 0 and "photo_x2_compare.png" in out and "film_x2_compare.png" in out
    with Image.open(tmp_path / "photo_x2_compare.png") as image:
        assert image.width == 1200
    status, out, _ = command(
        "run", "superres", folder, "--ckpt", small, "-o", tmp_path / "jpg", "--format", "jpg", "--device", "cpu", capsys=capsys
    )
    assert status == 1
    assert {"photo_x2.jpg", "deep_x2.jpg", "clear_x2.png"} <= {path.name for path in (tmp_path / "jpg").iterdir()}
    report = json.loads((tmp_path / "jpg" / "report.json").read_text())
    items = {item["name"]: item for item in report["inputs"]}
    assert "transparency" in items["clear"]["warnings"][0] and "16 bits" in items["deep"]["warnings"][0]
    assert "animation" in items["film"]["error"] and items["film"]["status"] == "error"


def test_a_comparison_says_nothing_twice(small, tmp_path):
    Image.new("CMYK", (9, 8)).save(tmp_path / "print.jpg")
    report = api.run("superres", tmp_path / "print.jpg", output=tmp_path, checkpoint=small, device="cpu", progress=False, compare=True)
    (item,) = report.items
    assert len(item.outputs) == 2 and len(item.warnings) == 1 and "CMYK" in item.warnings[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scale", "3"], r"no built-in network enlarges by 3; accepted: --scale 2 or 4, or another network with --ckpt FILE"),
        (["--scale", "0"], "--scale 0 is too small"),
        (["--quality", "101"], "accepted: 1 to 100"),
        (["--tile", "0"], "--tile 0 is too small"),
        (["--overlap", "-1"], "--overlap -1 is too small"),
        (["--ckpt", "SMALL", "--scale", "3"], "this network enlarges by 2, not by 3"),
        (["--ckpt", "nowhere.ckpt"], "nowhere.ckpt does not exist"),
        (["--format", "exr"], "'exr' is not one of"),
        (["--ckpt", "PHOTO"], "photo.png"),
    ],
)
def test_refusals_come_first_and_say_what_is_accepted(small, folder, tmp_path, capsys, words, message):
    words = [{"SMALL": small, "PHOTO": folder / "photo.png"}.get(word, word) for word in words]
    status, out, err = command("run", "superres", folder / "photo.png", "-o", tmp_path / "out", "--device", "cpu", *words, capsys=capsys)
    assert status == 2 and message in err and "Traceback" not in err + out
    assert not list((tmp_path / "out").glob("*.png"))


@pytest.mark.paper("imdn")
@pytest.mark.parametrize(
    "network",
    [
        {"name": "superres/imdn_x2", "args": {"width": 16, "reduction": 2}},
        {"name": "superres/a2n_x2", "args": {"channels": 8, "tail_channels": 6, "depth": 2}},
    ],
    ids=lambda network: network["name"],
)
def test_tiles_of_a_network_that_sees_the_whole_picture(network, tmp_path):
    weights = checkpoint(tmp_path / "global.ckpt", network)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 44, 3), np.uint8)).save(tmp_path / "photo.png")
    run = {"output": tmp_path / "out", "checkpoint": weights, "device": "cpu", "progress": False, "tile": 24}
    report = api.run("superres", tmp_path / "photo.png", **run)
    assert [item.status for item in report.items] == ["error"]
    assert "sees the whole picture" in report.items[0].error and "--approximate" in report.items[0].error
    assert not report.items[0].details and not list((tmp_path / "out").glob("*.png"))
    report = api.run("superres", tmp_path / "photo.png", **run, approximate=True)
    assert not report.failed
    with Image.open(report.items[0].outputs[0]) as image:
        assert image.size == (88, 80)


def test_tiles_are_not_seen(small, tmp_path):
    """Tiles asked for on the command line are those of the whole picture, to the pixel."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 75, 3), np.uint8)).save(tmp_path / "photo.png")
    results, run = [], {"checkpoint": small, "device": "cpu", "progress": False}
    for tile in (None, 32):
        report = api.run("superres", tmp_path / "photo.png", output=tmp_path / str(tile), tile=tile, **run)
        results.append(np.asarray(Image.open(report.items[0].outputs[0])).astype(int))
    assert np.abs(results[0] - results[1]).max() <= 1 and (results[0] != results[1]).mean() < 1e-3


@pytest.mark.paper("espcn")
def test_cost_prints_the_table_of_challenges(small, tmp_path, capsys):
    status, out, _ = command("superres", "cost", "superres/espcn_x3", small, capsys=capsys)
    header, _, espcn, own = out.strip().splitlines()
    assert status == 0 and header.startswith("| Network | Params (M)")
    assert espcn.startswith("| superres/espcn_x3 | 0.023 |") and str(small) in own
    half = command("superres", "cost", "superres/espcn_x3", "--output-size", "639x360", capsys=capsys)[1].splitlines()[2]
    full, quarter = (float(line.split("|")[3]) for line in (espcn, half))
    assert quarter == pytest.approx(full / 4, abs=0.02)
    torch.save(create_model("superres/espcn_x2").state_dict(), tmp_path / "bare.pth")
    measured = command("superres", "cost", tmp_path / "bare.pth", "--measure", "--output-size", "64x64", capsys=capsys)[1]
    assert float(measured.splitlines()[2].split("|")[6]) > 0


@pytest.mark.parametrize("name", ["superres/cfsr_x4", "superres/span_x4", "superres/carn_x4", "superres/imdn_x3"])
def test_cost_is_what_the_papers_print(name, capsys):
    """Of the merged network, where branches serve training alone; of the layers as the paper writes them otherwise."""
    cells = command("superres", "cost", name, capsys=capsys)[1].splitlines()[2].split("|")
    figures = get("superres").models[name].figures
    assert float(cells[2]) == figures.params_m
    macs = figures.counted_gmacs or figures.gmacs
    assert macs is None or float(cells[3]) == pytest.approx(macs, abs=0.05)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["superres/espcn_x9"], "superres/espcn_x"),
        (["resnet18"], "does not enlarge pictures"),
        (["superres/espcn_x3", "--output-size", "1280"], "--output-size 1280x720"),
        (["superres/espcn_x3", "--output-size", "0x5"], "--output-size 1280x720"),
    ],
)
def test_cost_refuses(words, message, capsys):
    status, _, err = command("superres", "cost", *words, capsys=capsys)
    assert status == 2 and message in err and "Traceback" not in err


@pytest.mark.paper("dsclora")
def test_info_of_a_part(capsys):
    status, out, _ = command("info", "superres/dsclora", capsys=capsys)
    assert status == 0 and "Low-rank" in out and "dsclora" in out


def test_help_lists_the_options(capsys):
    status, out, _ = command("run", "superres", "--help", capsys=capsys)
    assert status == 0
    for word in ("--scale", "--tile", "--overlap", "--approximate", "--ensemble", "--alpha", "--compare", "--nonfinite", "--max-pixels"):
        assert word in out


def test_a_bomb_is_refused_and_may_be_allowed(small, folder, tmp_path):
    run = {"output": tmp_path, "checkpoint": small, "device": "cpu", "progress": False}
    report = api.run("superres", folder / "photo.png", **run, max_pixels=100)
    assert "14 x 9" in report.items[0].error
    assert not api.run("superres", folder / "photo.png", **run, max_pixels=126).failed


# The built-in networks.


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("name", HELD_OUT)
def test_built_in_networks_beat_bicubic_on_photographs_they_never_saw(name, scale):
    from cnnkit.engine.load import load

    loaded = load(api.find_checkpoint(get("superres"), None, get("superres").load_run()(scale=scale)))
    assert loaded.task.scale == scale
    large = photograph(name)
    top, left = ((side - 128) // 2 for side in large.shape[:2])
    large = np.ascontiguousarray(large[top : top + 128, left : left + 128])
    low = imresize(large, 1 / scale)
    ours = psnr(enlarge(loaded.model, Picture(low)).pixels, large, crop=scale)
    assert ours > psnr(imresize(low, scale), large, crop=scale)


@pytest.mark.parametrize("scale", [2, 4])
def test_the_example_prints_both(scale, tmp_path):
    words = ["run", "superres", "--example", "--scale", str(scale), "-o", str(tmp_path), "--device", "cpu"]
    from cnnkit.cli import cli

    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert "Y-PSNR in dB" in done.stdout and "SSIM" in done.stdout
    figures = {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines()[1:3]}
    assert figures["network"] > figures["bicubic"] > 20
    with Image.open(tmp_path / f"example_x{scale}.png") as image:
        assert image.size == (512, 512)
