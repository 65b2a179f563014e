"""The application on three small scans and one damaged file: the figures against the label maps, the page as a parser sees it."""

from __future__ import annotations

import base64
import csv
import io
import re
import statistics
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from cnnkit_medseg.example import example_volume
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "apps" / "radiology" / "brain_volumes.py"
SIZE = (64, 64, 64)
STRANGE = "sub-03 <b>&'\""


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    template, rng = example_volume(), np.random.default_rng(0)
    spoil = {
        "sub-01": ((20, 100, 60), lambda array: array),
        "sub-02": ((110, 100, 60), lambda array: 255 * (array / 255) ** 1.5),
        STRANGE: ((66, 40, 70), lambda array: np.where(array > 0, np.maximum(array + rng.normal(0, 8, array.shape), 1), 0)),
    }
    for name, (start, change) in spoil.items():
        part = template.cut(tuple(slice(first, first + size) for first, size in zip(start, SIZE, strict=True))).volume
        nib.save(nib.Nifti1Image(change(part.array[0]).astype(np.float32), part.affine), folder / f"{name}.nii.gz")
    data = (folder / "sub-01.nii.gz").read_bytes()
    (folder / "sub-99.nii.gz").write_bytes(data[: len(data) // 2])
    return folder


def run(scans, output, *options):
    command = [sys.executable, str(SCRIPT), str(scans), "-o", str(output), "--device", "cpu", *options]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=False)


@pytest.fixture(scope="module")
def output(scans, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    first = run(scans, folder)
    assert first.returncode == 1, first.stderr
    assert "sub-99" in first.stderr and str(folder / "brain_volumes.html") in first.stdout
    return folder


def rows_of(output):
    return list(csv.DictReader(io.StringIO((output / "brain_volumes.csv").read_text(encoding="utf-8"))))


def test_volumes_are_those_of_the_label_maps(output):
    rows = rows_of(output)
    assert [row["scan"] for row in rows] == ["sub-01", "sub-02", STRANGE]
    for row in rows:
        labels = nib.load(output / "segmentations" / f"{row['scan']}.nii.gz")
        millilitres = abs(np.linalg.det(labels.affine[:3, :3])) / 1000
        image = nib.load(row["files"]).get_fdata()
        values = np.asarray(labels.dataobj)
        for label, tissue in ((1, "grey_matter"), (2, "white_matter")):
            inside = values == label
            assert inside.sum() > 10_000
            assert float(row[f"{tissue}_ml"]) == pytest.approx(inside.sum() * millilitres, abs=1e-4)
            assert float(row[f"{tissue}_mean"]) == pytest.approx(image[inside].mean(), rel=1e-4)
        assert float(row["grey_white_ratio"]) == pytest.approx((values == 1).sum() / (values == 2).sum(), abs=1e-4)


def test_z_scores_follow_their_definition(output):
    rows = rows_of(output)
    for name in ("grey_matter_ml", "white_matter_ml", "grey_white_ratio"):
        values = [float(row[name]) for row in rows]
        expected = [(value - np.mean(values)) / np.std(values, ddof=1) for value in values]
        assert [float(row[f"{name}_z"]) for row in rows] == pytest.approx(expected, abs=2e-3)
        assert {row["flagged"] for row in rows} == {""}


def test_page_is_whole_and_needs_nothing_else(output, read_page):
    text = (output / "brain_volumes.html").read_text(encoding="utf-8")
    page = read_page(text)
    assert "script" not in dict(page.tags) and "link" not in dict(page.tags)
    assert not re.search(r"https?://|url\(|@import", text)
    assert len(set(page.ids)) == len(page.ids)
    links = [attrs["href"] for attrs in page.all("a")]
    assert len(links) == 3 and all(link[0] == "#" and link[1:] in page.ids for link in links)
    assert len(page.all("svg")) == 3 and all(attrs["role"] == "img" and attrs["aria-label"] for attrs in page.all("svg"))
    assert len(page.all("circle")) == 9
    words = "".join(page.text)
    assert "sub-99" in words and "truncated" in words  # The failure and its message.
    assert STRANGE in words
    assert "<b>&'" not in text  # Escaped wherever it stands.
    assert "prefers-color-scheme: dark" in text and 'lang="en"' in text
    report = (output / "segmentations" / "report.json").read_text(encoding="utf-8")
    digest = re.search(r'"checkpoint": "([0-9a-f]{64})"', report)[1]
    assert digest in words and "cnnkit-medseg" in words


def test_page_shows_the_overlays(output, read_page):
    page = read_page((output / "brain_volumes.html").read_text(encoding="utf-8"))
    pictures = page.all("img")
    assert len(pictures) == 3
    for row, attrs in zip(rows_of(output), pictures, strict=True):
        data = base64.b64decode(attrs["src"].removeprefix("data:image/webp;base64,"), validate=True)
        with Image.open(io.BytesIO(data)) as shown, Image.open(output / "segmentations" / f"{row['scan']}_overlay.png") as overlay:
            assert shown.size == (int(attrs["width"]), int(attrs["height"]))
            small = overlay.convert("RGB").resize(shown.size, Image.Resampling.LANCZOS)
            difference = np.abs(np.asarray(shown.convert("RGB"), float) - np.asarray(small, float)).mean()
        assert difference < 6  # Of 255 levels, for the loss of WebP; another scan's overlay is more than 20 away.
        assert row["scan"] in attrs["alt"] and f"{float(row['grey_matter_ml']):.1f} ml" in attrs["alt"]


def test_second_run_redoes_nothing(app, scans, output, monkeypatch, read_page):
    maps = sorted((output / "segmentations").glob("*.nii.gz"))
    before = {path: path.stat().st_mtime_ns for path in maps}
    table = (output / "brain_volumes.csv").read_text(encoding="utf-8")
    reports = []
    true_run = app.cnnkit.run

    def recorded(*args, **options):
        reports.append(true_run(*args, **options))
        return reports[-1]

    monkeypatch.setattr(app.cnnkit, "run", recorded)
    assert app.measure(app.Settings(scans=(scans,), output=output, device="cpu", progress=False)) == 1
    assert [item.status for item in reports[0].items] == ["resumed", "resumed", "resumed", "error"]
    assert {path: path.stat().st_mtime_ns for path in maps} == before and len(before) == 3
    assert (output / "brain_volumes.csv").read_text(encoding="utf-8") == table
    assert len(read_page((output / "brain_volumes.html").read_text(encoding="utf-8")).all("img")) == 3
    assert not list(output.glob(".*.part"))


def scan(app, grey, white=100.0, name="s"):
    return app.Scan(name, (Path("x"),), Path("x.png"), {"grey_matter": grey, "white_matter": white}, dict.fromkeys(app.TISSUES))


def test_a_scan_that_stands_out_is_flagged_from_six_on(app):
    values = [100.0, 101, 102, 99, 98, 100, 180]
    spread = app.Spread.of([scan(app, value) for value in values], "grey_matter_ml")
    assert spread.mean == pytest.approx(np.mean(values)) and spread.sd == pytest.approx(np.std(values, ddof=1))
    assert spread.median == statistics.median(values)
    assert [value for value in values if spread.deviates(value)] == [180]
    few = app.Spread.of([scan(app, value) for value in (100.0, 100, 100, 100, 1e6)], "grey_matter_ml")
    assert few.z(1e6) == pytest.approx(4 / 5**0.5)  # The most that one of five can reach.


def test_flagged_scan_is_marked_in_csv_and_plot(app, read_page):
    scans = [scan(app, value, name=f"s{index}") for index, value in enumerate([100.0, 101, 102, 99, 98, 100, 180])]
    spreads = {name: app.Spread.of(scans, name) for name in app.MEASURES}
    rows = list(csv.DictReader(io.StringIO(app.table(scans, spreads))))
    assert [row["flagged"] for row in rows] == [""] * 6 + ["grey_matter_ml grey_white_ratio"]
    assert {row["white_matter_ml_z"] for row in rows} == {""}  # No spread, no z-score.
    plot = read_page(app._plot(scans, "grey_matter_ml", spreads["grey_matter_ml"]))
    assert [attrs["class"] for attrs in plot.all("circle")] == ["dot"] * 6 + ["dot far"]
    assert len(plot.all("rect")) == 1
    assert '<tr class="flagged">' in app._rows(scans, spreads)


def test_a_tissue_that_is_absent_leaves_gaps(app, read_page):
    scans = [scan(app, 100.0, white=0.0), scan(app, 90.0)]
    spreads = {name: app.Spread.of(scans, name) for name in app.MEASURES}
    rows = list(csv.DictReader(io.StringIO(app.table(scans, spreads))))
    assert [row["grey_white_ratio"] for row in rows] == ["", "0.9000"] and rows[0]["grey_matter_mean"] == ""
    read_page(app._cohort(scans, spreads) + app._rows(scans, spreads))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (112.3, 148.9), (0.4, 1.7), (-3, 900), (5.0, 5.001)])
def test_axis_has_few_round_numbers(app, low, high):
    ticks = app.round_numbers(low, high)
    assert 3 <= len(ticks) <= 8 and low <= ticks[0] and ticks[-1] <= high
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_checkpoint_without_the_tissues_is_refused(app, tmp_path, monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr(app.cnnkit, "read_header", lambda path: SimpleNamespace(labels=("background", "liver")))
    with pytest.raises(app.cnnkit.CnnkitError, match=r"no label grey_matter nor white_matter .*liver"):
        app.measure(app.Settings(scans=(tmp_path,), output=tmp_path, checkpoint=tmp_path / "liver.ckpt"))


def test_no_scan_at_all_still_makes_a_page(app, tmp_path, read_page):
    settings = app.Settings(scans=(tmp_path / "nowhere.nii.gz",), output=tmp_path / "out", device="cpu", progress=False)
    assert app.measure(settings) == 1
    page = read_page((tmp_path / "out" / "brain_volumes.html").read_text(encoding="utf-8"))
    assert "nowhere" in "".join(page.text) and not page.all("img")
    assert rows_of(tmp_path / "out") == []


def test_what_stops_the_start_is_a_sentence(app, tmp_path):
    done = CliRunner().invoke(app.main, [str(tmp_path), "-o", str(tmp_path / "out"), "--ckpt", str(tmp_path / "no.ckpt")])
    assert done.exit_code == 2 and "no.ckpt" in done.stderr and "Traceback" not in done.output


def test_only_public_names_are_used():
    source = SCRIPT.read_text(encoding="utf-8")
    import cnnkit

    assert set(re.findall(r"\bcnnkit\.([A-Za-z_]+)", source)) <= set(cnnkit.__all__)
    assert not re.search(r"from cnnkit|import cnnkit[._]|cnnkit_medseg", source)
