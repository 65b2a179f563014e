"""The application on a small folder with a damaged file: the page as a parser sees it, and what its links lead to."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from cnnkit.backbones import create_model
from cnnkit.checkpoint import Header, save_checkpoint
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "apps" / "photo" / "upscale_folder.py"
STRANGE = "a <b>&'\" 100% #1"
SIZES = {"clear": (12, 10), "deep": (9, 16), STRANGE: (20, 14)}


@pytest.fixture(scope="module", autouse=True)
def pixels():
    """The application lifts the limit of pixels for its whole process."""
    limit = Image.MAX_IMAGE_PIXELS
    yield
    Image.MAX_IMAGE_PIXELS = limit


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    network = {"name": "superres/span_x2", "args": {"channels": 8, "merged": True}}
    model = create_model(network["name"], **network["args"])
    path = tmp_path_factory.mktemp("weights") / "small.ckpt"
    return save_checkpoint(path, model.state_dict(), Header(task="superres", config={"network": network}))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)

    def noise(name, *channels):
        width, height = SIZES[name]
        return rng.integers(0, 256, (height, width, *channels), np.uint8)

    Image.fromarray(noise(STRANGE, 3)).save(folder / f"{STRANGE}.png")
    Image.fromarray(noise("clear", 4)).save(folder / "clear.png")
    Image.fromarray(noise("deep").astype(np.uint16) * 64).save(folder / "deep.png")  # A quarter of the range: a dark picture.
    (folder / "broken.png").write_bytes((folder / "clear.png").read_bytes()[:60])
    return folder


def run(photos, checkpoint, output, *options):
    command = [sys.executable, str(SCRIPT), str(photos), "-o", str(output), "--ckpt", str(checkpoint), "--device", "cpu", *options]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=False)


@pytest.fixture(scope="module")
def output(photos, checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    first = run(photos, checkpoint, folder)
    assert first.returncode == 1, first.stderr
    assert "broken" in first.stderr and str(folder / "gallery.html") in first.stdout
    return folder


@pytest.fixture(scope="module")
def page(output, read_page):
    return read_page((output / "gallery.html").read_text(encoding="utf-8"))


def test_page_is_whole_and_needs_nothing_else(output, page):
    text = (output / "gallery.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import", text)
    assert text.count("<script>") == 1 and "link" not in dict(page.tags) and 'lang="en"' in text
    targets = [attrs.get("src") or attrs.get("href") for attrs in page.all("img") + page.all("a")]
    assert len(targets) == 9
    for target in targets:
        assert not target.startswith("/") and ".." not in target
        assert (output / unquote(target)).is_file()
    assert sorted(path.name for path in output.iterdir()) == ["enlarged", "gallery.html", "previews"]


def test_names_are_escaped_and_shown(output, page):
    text = (output / "gallery.html").read_text(encoding="utf-8")
    assert "<b>" not in text and not page.all("b")
    assert STRANGE in "".join(page.text)
    assert [attrs["alt"] for attrs in page.all("img")][:2] == [f"{STRANGE}, enlarged", f"{STRANGE}, by bicubic interpolation"]
    assert [attrs["aria-label"] for attrs in page.all("input")] == [f"{name}: before and after" for name in (STRANGE, "clear", "deep")]


def test_the_broken_file_is_listed_with_its_message(page):
    words = "".join(page.text)
    assert page.all("h1") and "3 enlarged pictures" in words
    assert [attrs for attrs in page.all("p") if attrs.get("class") == "failed"]
    assert re.search(r"broken: .*broken\.png: damaged or truncated", words)


def test_results_and_previews_have_their_sizes(output, page):
    words = "".join(page.text)
    for name, (width, height) in SIZES.items():
        assert f"{name}, {2 * width} x {2 * height}" in words
        for path in (
            output / "enlarged" / f"{name}_x2.png",
            output / "previews" / f"{name}_before.jpg",
            output / "previews" / f"{name}_after.jpg",
        ):
            with Image.open(path) as image:
                assert image.size == (2 * width, 2 * height)
    for attrs in page.all("img"):
        with Image.open(output / unquote(attrs["src"])) as image:
            assert image.size == (int(attrs["width"]), int(attrs["height"]))


def grey(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("L"), float)


def test_previews_show_what_the_files_hold(output, photos):
    """The input by interpolation, the result as it is; a dark 16-bit picture stays dark, and alpha lies on white."""
    before = grey(output / "previews" / "deep_before.jpg")
    with Image.open(photos / "deep.png") as image:
        true = np.asarray(image, float) / 257
    assert before.mean() == pytest.approx(true.mean(), abs=2) and before.max() < 90
    after, result = grey(output / "previews" / "deep_after.jpg"), np.asarray(Image.open(output / "enlarged" / "deep_x2.png"), float) / 257
    assert np.abs(after - result).mean() < 6
    with Image.open(photos / "clear.png") as image:
        true = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("L")
        wanted = np.asarray(true.resize((24, 20), Image.Resampling.BICUBIC), float)
    assert np.abs(grey(output / "previews" / "clear_before.jpg") - wanted).mean() < 6


def test_second_run_redoes_nothing(app, photos, checkpoint, output, monkeypatch):
    results = sorted((output / "enlarged").glob("*.png"))
    before = {path: path.stat().st_mtime_ns for path in results}
    text = (output / "gallery.html").read_text(encoding="utf-8")
    reports = []
    true_run = app.cnnkit.run

    def recorded(*args, **options):
        reports.append(true_run(*args, **options))
        return reports[-1]

    monkeypatch.setattr(app.cnnkit, "run", recorded)
    assert app.enlarge(app.Settings((photos,), output, checkpoint=checkpoint, device="cpu", progress=False)) == 1
    assert sorted(item.status for item in reports[0].items) == ["error", "resumed", "resumed", "resumed"]
    assert {path: path.stat().st_mtime_ns for path in results} == before and len(before) == 3
    assert (output / "gallery.html").read_text(encoding="utf-8") == text
    assert app.enlarge(app.Settings((photos,), output, checkpoint=checkpoint, device="cpu", resume=False, progress=False)) == 1
    assert sorted(item.status for item in reports[1].items) == ["error", "ok", "ok", "ok"]


def test_a_turned_photograph_is_compared_upright(app, tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    Image.fromarray(np.repeat(np.repeat(np.rot90(pixels, -1), 2, 0), 2, 1)).save(tmp_path / "result.png")
    item = SimpleNamespace(name="turned", files=(tmp_path / "turned.jpg",), outputs=[tmp_path / "result.png"], warnings=["<a note>"])
    shown = app.preview(item, tmp_path)
    assert shown.size == shown.preview_size == (16, 32)
    assert np.abs(grey(shown.before) - grey(shown.after)).mean() < 12
    assert "&lt;a note&gt;" in app.page([shown], [], [], tmp_path)


def test_large_results_get_small_previews(app, tmp_path, monkeypatch):
    Image.new("RGB", (300, 200)).save(tmp_path / "small.png")
    Image.new("RGB", (600, 400)).save(tmp_path / "large.png")
    monkeypatch.setattr(app, "PREVIEW", 150)
    shown = app.preview(SimpleNamespace(name="p", files=(tmp_path / "small.png",), outputs=[tmp_path / "large.png"], warnings=[]), tmp_path)
    assert (shown.size, shown.preview_size) == ((600, 400), (150, 100))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr"])
def test_every_mode_is_flattened(app, mode):
    image = Image.new(mode, (3, 2))
    assert app.flattened(image, app.white_of(image)).mode == "RGB"


def test_float_pictures_are_shown_under_one_white(app):
    dark, bright = (Image.fromarray(np.full((2, 2), value, np.float32)) for value in (0.5, 4.0))
    assert (app.white_of(dark), app.white_of(bright)) == (1, 4)
    assert app.flattened(dark, 4.0).getpixel((0, 0)) == (32, 32, 32)


def test_what_has_no_preview_is_linked(app, photos, checkpoint, tmp_path, capsys, monkeypatch, read_page):
    """A film, or colours in floating point: cnnkit writes them, and Pillow shows none."""

    def refuse(item, folder):
        raise Image.UnidentifiedImageError(item.name)

    monkeypatch.setattr(app, "preview", refuse)
    settings = app.Settings((photos / "clear.png",), tmp_path, checkpoint=checkpoint, device="cpu", progress=False)
    assert app.enlarge(settings) == 0
    page = read_page((tmp_path / "gallery.html").read_text(encoding="utf-8"))
    assert "1 enlarged picture" in page.text and not page.all("img")
    assert [attrs["href"] for attrs in page.all("a")] == ["enlarged/clear_x2.png"] and "no preview" in capsys.readouterr().err


def test_no_picture_at_all_still_makes_a_page(app, checkpoint, tmp_path, read_page):
    settings = app.Settings((tmp_path / "nowhere.png",), tmp_path / "out", checkpoint=checkpoint, device="cpu", progress=False)
    assert app.enlarge(settings) == 1
    page = read_page((tmp_path / "out" / "gallery.html").read_text(encoding="utf-8"))
    assert "nowhere" in "".join(page.text) and not page.all("img")


def test_what_stops_the_start_is_a_sentence(app, photos, tmp_path):
    done = CliRunner().invoke(app.main, [str(photos), "-o", str(tmp_path / "out"), "--ckpt", str(tmp_path / "no.ckpt")])
    assert done.exit_code == 2 and "no.ckpt" in done.stderr and "Traceback" not in done.output


def test_only_public_names_are_used():
    source = SCRIPT.read_text(encoding="utf-8")
    import cnnkit

    assert set(re.findall(r"\bcnnkit\.([A-Za-z_]+)", source)) <= set(cnnkit.__all__)
    assert not re.search(r"from cnnkit|import cnnkit[._]|cnnkit_superres", source)
