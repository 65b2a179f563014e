"""Measure grey and white matter in a folder of brain scans: a CSV for the statistics, and one HTML page for the people.

    python apps/radiology/brain_volumes.py SCANS -o OUT

Scans are T1-weighted MR volumes whose head was removed, in any format that ``cnnkit run medseg`` reads. ``OUT`` receives
``brain_volumes.csv``, ``brain_volumes.html`` and the folder ``segmentations`` with label maps, overlays and ``report.json``.
The page is one file without scripts or links to elsewhere, so it can be mailed. The exit status is 1 if a scan failed.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import click
import cnnkit

TISSUES = {"grey_matter": "Grey matter", "white_matter": "White matter"}
MEASURES = {"grey_matter_ml": "Grey matter", "white_matter_ml": "White matter", "grey_white_ratio": "Grey / white"}
LIMIT_SD = 2.0
SMALLEST_COHORT = 6  # Among n values none lies more than (n - 1) / sqrt(n) sd from their mean: 1.79 for five, 2.04 for six.
PICTURE_WIDTH = 1200  # Pixels: sharp on a page of 1080, and an eighth of the bytes of the PNG.


@dataclass(frozen=True)
class Settings:
    """What to measure, and how.

    Args:
        scans: Files and folders.
        output: Folder for everything that is written.
        checkpoint: A medseg checkpoint with the labels of :data:`TISSUES`; the built-in one if not given.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` ...
        resume: Keep what an earlier run in the same folder has finished from the same files.
        progress: Show progress on stderr.
    """

    scans: tuple[Path, ...]
    output: Path
    checkpoint: Path | None = None
    device: str = "auto"
    resume: bool = True
    progress: bool = True


@dataclass(frozen=True)
class Scan:
    """One measured scan.

    Args:
        name: Its unique name.
        files: What it was read from.
        overlay: Picture of its segmentation.
        volumes: Volume in ml by tissue.
        means: Mean intensity by tissue in the scan's own units; None for a tissue that was not found.
        warnings: What a person should know about it.
    """

    name: str
    files: tuple[Path, ...]
    overlay: Path
    volumes: dict[str, float]
    means: dict[str, float | None]
    warnings: tuple[str, ...] = ()

    @classmethod
    def read(cls, item: Any) -> Scan:
        """Collect the figures of an item of the report from the files that it wrote."""
        written = {kind: next(path for path in item.outputs if path.name.endswith(kind)) for kind in ("_overlay.png", "_statistics.json")}
        classes = json.loads(written["_statistics.json"].read_text(encoding="utf-8"))["classes"]
        volumes = {tissue: classes[tissue]["volume_ml"] for tissue in TISSUES}
        means = {tissue: classes[tissue]["mean"][0] if classes[tissue]["mean"] else None for tissue in TISSUES}
        return cls(item.name, item.files, written["_overlay.png"], volumes, means, tuple(item.warnings))

    def value(self, measure: str) -> float | None:
        """Return one of :data:`MEASURES`; the ratio to no white matter is None."""
        grey, white = self.volumes.values()
        if measure == "grey_white_ratio":
            return grey / white if white else None
        return grey if measure == "grey_matter_ml" else white


@dataclass(frozen=True)
class Spread:
    """How a measure spreads over the cohort; scans without a value are left out."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, scans: Sequence[Scan], measure: str) -> Spread:
        """Collect a measure of all scans."""
        return cls(tuple(value for scan in scans if (value := scan.value(measure)) is not None))

    @property
    def mean(self) -> float | None:
        """The mean."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def sd(self) -> float | None:
        """The standard deviation of the sample (n - 1)."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def median(self) -> float | None:
        """The median."""
        return statistics.median(self.values) if self.values else None

    def z(self, value: float | None) -> float | None:
        """Return how many sd a value lies above the mean; None where there is no spread."""
        return (value - statistics.fmean(self.values)) / self.sd if value is not None and self.sd else None

    def deviates(self, value: float | None) -> bool:
        """Tell whether a value lies more than :data:`LIMIT_SD` from the mean of a cohort that is large enough to say so."""
        z = self.z(value)
        return z is not None and len(self.values) >= SMALLEST_COHORT and abs(z) > LIMIT_SD


def measure(settings: Settings) -> int:
    """Segment the scans, write CSV and page, and return the exit status.

    Raises:
        CnnkitError: For everything that is wrong before the first scan is read.
    """
    if settings.checkpoint is not None:
        labels = cnnkit.read_header(settings.checkpoint).labels
        if missing := [tissue for tissue in TISSUES if tissue not in labels]:
            known = ", ".join(labels) or "none"
            raise cnnkit.InputError(f"{settings.checkpoint} has no label {' nor '.join(missing)} (its labels: {known}); leave --ckpt out")
    report = cnnkit.run(
        "medseg",
        settings.scans,
        output=settings.output / "segmentations",
        checkpoint=settings.checkpoint,
        device=settings.device,
        resume=settings.resume,
        progress=settings.progress,
    )
    scans = [Scan.read(item) for item in report.items if item.status != "error"]
    spreads = {name: Spread.of(scans, name) for name in MEASURES}
    write(settings.output / "brain_volumes.csv", table(scans, spreads))
    write(settings.output / "brain_volumes.html", page(scans, spreads, report))
    return 1 if report.failed else 0


def write(path: Path, text: str) -> None:
    """Write a file that is either whole under its name, or not there."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8", newline="")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def table(scans: Sequence[Scan], spreads: dict[str, Spread]) -> str:
    """Return the measured scans as CSV, a row each; what does not exist is empty."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("scan", *MEASURES, *(f"{tissue}_mean" for tissue in TISSUES), *(f"{name}_z" for name in MEASURES), "flagged", "files"))
    for scan in scans:
        values = {name: scan.value(name) for name in MEASURES}
        flagged = [name for name, value in values.items() if spreads[name].deviates(value)]
        rows.writerow(
            (
                scan.name,
                *(number(value, "{:.4f}", "") for value in values.values()),
                *(number(value, "{:.6g}", "") for value in scan.means.values()),
                *(number(spreads[name].z(value), "{:.3f}", "") for name, value in values.items()),
                " ".join(flagged),
                ";".join(map(str, scan.files)),
            )
        )
    return text.getvalue()


def number(value: float | None, form: str = "{:.1f}", missing: str = "–") -> str:
    """Return a number as text, or what stands for none."""
    return missing if value is None else form.format(value)


def form_of(measure: str) -> str:
    """Return the format of a measure on the page: volumes with one digit after the point, ratios with three."""
    return "{:.3f}" if measure == "grey_white_ratio" else "{:.1f}"


def page(scans: Sequence[Scan], spreads: dict[str, Spread], report: Any) -> str:
    """Return the whole page."""
    flagged = sum(any(spreads[name].deviates(scan.value(name)) for name in MEASURES) for scan in scans)
    counts = [(len(scans), "measured", ""), (flagged, "to look at", "note"), (len(report.failed), "failed", "bad")]
    tiles = "".join(f'<li class="{kind if count else ""}"><b>{count}</b> {text}</li>' for count, text, kind in counts)
    sections = [_failures(report.failed)]
    if scans:
        sections += [_cohort(scans, spreads), _rows(scans, spreads), _pictures(scans)]
    body = "\n".join(filter(None, sections))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Brain volumes: {_scans(len(scans))}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>Brain volumes</h1>
<p class="lead">Grey and white matter, segmented on {escape(report.data["started"][:10])}</p>
<ul class="tiles">{tiles}</ul>
</header>
<main>
{body}
</main>
{_footer(report)}
</body>
</html>
"""


def _scans(count: int) -> str:
    return f"{count} scan{'' if count == 1 else 's'}"


def _failures(failed: Sequence[Any]) -> str:
    if not failed:
        return ""
    items = "".join(f"<dt>{escape(item.name)}</dt><dd>{escape(item.error)}</dd>" for item in failed)
    return f'<section class="failed" aria-labelledby="failed"><h2 id="failed">{_scans(len(failed))} failed</h2><dl>{items}</dl></section>'


def _cohort(scans: Sequence[Scan], spreads: dict[str, Spread]) -> str:
    plots = "".join(f"<figure>{_plot(scans, name, spread)}</figure>" for name, spread in spreads.items() if spread.values)
    large = len(scans) >= SMALLEST_COHORT
    box = "box: quartiles; whiskers: smallest and largest; " if large else ""
    rule = (
        f"A scan is marked where a value lies more than {LIMIT_SD:g} sd from the mean."
        if large
        else f"No scan is marked: among fewer than {SMALLEST_COHORT}, none can lie {LIMIT_SD:g} sd from the mean."
    )
    return f"""<section aria-labelledby="cohort">
<h2 id="cohort">Spread over {_scans(len(scans))}</h2>
<div class="plots">{plots}</div>
<p class="small">Each dot is a scan; {box}line: median; diamond: mean. {rule}</p>
</section>"""


def _plot(scans: Sequence[Scan], measure: str, spread: Spread) -> str:
    """Draw a measure of all scans as dots, with a box if they are many enough, over an axis of round numbers."""
    left, right, middle, base, half = 24.0, 316.0, 62.0, 104.0, 15.0
    unit = "" if measure == "grey_white_ratio" else " ml"
    low, high = min(spread.values), max(spread.values)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    ticks = round_numbers(low - margin, high + margin)

    def x(value: float) -> float:
        return left + (right - left) * (value - low + margin) / (high - low + 2 * margin)

    shapes = [f'<line class="axis" x1="{left}" x2="{right}" y1="{base}" y2="{base}"/>']
    for tick in ticks:
        shapes.append(f'<line class="axis" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{base}" y2="{base + 4}"/>')
        shapes.append(f'<text class="tick" x="{x(tick):.1f}" y="{base + 17}">{tick:g}</text>')
    if len(spread.values) >= SMALLEST_COHORT:
        first, _, third = statistics.quantiles(spread.values, n=4, method="inclusive")
        shapes.append(f'<line class="whisker" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{middle}" y2="{middle}"/>')
        shapes.append(f'<rect class="box" x="{x(first):.1f}" y="{middle - half}" width="{x(third) - x(first):.1f}" height="{2 * half}"/>')
    median, mean = x(statistics.median(spread.values)), x(statistics.fmean(spread.values))
    shapes.append(f'<line class="median" x1="{median:.1f}" x2="{median:.1f}" y1="{middle - half}" y2="{middle + half}"/>')
    for index, scan in enumerate(scans):
        if (value := scan.value(measure)) is not None:
            across = middle + (index * 0.618 % 1 - 0.5) * 1.5 * half  # The golden ratio keeps neighbours apart.
            kind, radius = ("dot far", 5.5) if spread.deviates(value) else ("dot", 4)
            label = f"{escape(scan.name)}: {number(value, form_of(measure))}{unit}"
            shapes.append(f'<circle class="{kind}" cx="{x(value):.1f}" cy="{across:.1f}" r="{radius}"><title>{label}</title></circle>')
    shapes.append(f'<path class="mean" d="M{mean:.1f} {middle - 6}l6 6l-6 6l-6 -6z"/>')
    figures = f"{number(spread.mean, form_of(measure))} ± {number(spread.sd, form_of(measure))}{unit}"
    title = f"{MEASURES[measure]}: mean ± sd {figures}, median {number(spread.median, form_of(measure))}{unit}"
    return f"""<svg class="{measure}" viewBox="0 0 340 126" role="img" aria-label="{title}">
<text class="name" x="{left}" y="22">{MEASURES[measure]}</text><text class="figures" x="{right}" y="22">{figures}</text>
{"".join(shapes)}</svg>"""


def round_numbers(low: float, high: float) -> list[float]:
    """Return three to six round numbers between two bounds."""
    power = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = next(factor * power for factor in (10, 5, 2.5, 2, 1) if (high - low) / (factor * power) >= 3)
    return [round(index * step, 12) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _rows(scans: Sequence[Scan], spreads: dict[str, Spread]) -> str:
    rows = "".join(_row(index, scan, spreads) for index, scan in enumerate(scans, start=1))
    summary = "".join(
        f'<tr><th scope="row">{row}</th>'
        + "".join(f"<td>{number(getattr(spread, row), form_of(name))}</td>" for name, spread in spreads.items())
        + "<td></td><td></td></tr>"
        for row in ("mean", "sd", "median")
    )
    span = "".join(
        f"<td>{number(min(spread.values, default=None), form_of(name))} – {number(max(spread.values, default=None), form_of(name))}</td>"
        for name, spread in spreads.items()
    )
    return f"""<section aria-labelledby="scans">
<h2 id="scans">Scans</h2>
<p class="small" id="units">Volumes in ml, below them the z-score: how many sd above or below the mean of these scans. Intensities in
each scan's own units, which compare only between scans of one protocol.</p>
<div class="scroll" role="region" aria-labelledby="scans" tabindex="0">
<table aria-labelledby="scans" aria-describedby="units">
<thead><tr><th scope="col">Scan</th><th scope="col">Grey matter, ml</th><th scope="col">White matter, ml</th>
<th scope="col">Grey / white</th><th scope="col">Grey, mean intensity</th><th scope="col">White, mean intensity</th></tr></thead>
<tbody>{rows}</tbody>
<tfoot>{summary}<tr><th scope="row">range</th>{span}<td></td><td></td></tr></tfoot>
</table>
</div>
</section>"""


def _row(index: int, scan: Scan, spreads: dict[str, Spread]) -> str:
    cells, flagged = [], False
    for name, spread in spreads.items():
        value = scan.value(name)
        z, far = spread.z(value), spread.deviates(value)
        mark = f'<b class="mark">{"high" if (z or 0) > 0 else "low"}</b> ' if far else ""
        shown = "" if z is None else f'<span class="z">{mark}z {z:+.2f}</span>'.replace("-", "−")
        cells.append(f"<td>{number(value, form_of(name))}{shown}</td>")
        flagged |= far
    cells += [f"<td>{number(mean, '{:.1f}' if abs(mean or 0) >= 10 else '{:.3g}')}</td>" for mean in scan.means.values()]
    notes = "".join(f'<span class="z">{escape(text)}</span>' for text in scan.warnings)
    opening = '<tr class="flagged">' if flagged else "<tr>"
    return f'{opening}<th scope="row"><a href="#scan-{index}">{escape(scan.name)}</a>{notes}</th>{"".join(cells)}</tr>'


def _pictures(scans: Sequence[Scan]) -> str:
    figures = []
    for index, scan in enumerate(scans, start=1):
        volumes = ", ".join(f"{text.lower()} {number(scan.volumes[tissue])} ml" for tissue, text in TISSUES.items())
        source, width, height = picture(scan.overlay)
        alt = f"{escape(scan.name)}: slices in three planes with grey and white matter coloured; {volumes}"
        figures.append(
            f'<figure id="scan-{index}" class="overlay"><img src="{source}" width="{width}" height="{height}" alt="{alt}">'
            f"<figcaption><b>{escape(scan.name)}</b> {volumes}</figcaption></figure>"
        )
    return f'<section aria-labelledby="pictures"><h2 id="pictures">Segmentations</h2>{"".join(figures)}</section>'


def picture(path: Path) -> tuple[str, int, int]:
    """Return an overlay as the source of an ``img``, small enough for mail, with its width and height."""
    from PIL import Image

    with Image.open(path) as image:
        image = image.convert("RGB")
        image.thumbnail((PICTURE_WIDTH, 2 * PICTURE_WIDTH), Image.Resampling.LANCZOS)
        data = io.BytesIO()
        image.save(data, "WEBP", quality=85)
        return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode("ascii"), image.width, image.height


def _footer(report: Any) -> str:
    data = report.data
    facts = {
        "Versions": ", ".join(f"{name} {version}" for name, version in data["versions"].items()),
        "Model": f"{data['model']}, {Path(data['checkpoint_file']).name}",
        "Checkpoint SHA-256": data["checkpoint"],
        "Device": f"{data['device']['type']} ({data['device']['name']})",
        "Run": f"{data['started']} to {data['finished']}, cnnkit run {data['task']}",
    }
    rows = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    return f"<footer><dl>{rows}</dl><p>For research. Not a medical device: a person must look at every segmentation.</p></footer>"


STYLE = """
:root { --ground: #ffffff; --panel: #f6f8fa; --ink: #1f2328; --faint: #59636e; --line: #d1d9e0; --link: #0550ae;
  --grey: #2b8cc4; --white: #b57700; --ratio: #00805f; --bad: #b42318; --note: #8a4b00; --tint: #fff4e0; }
@media (prefers-color-scheme: dark) { :root { --ground: #0d1117; --panel: #161b22; --ink: #e6edf3; --faint: #9aa5b1; --line: #30363d;
  --link: #79b8ff; --grey: #56b4e9; --white: #e69f00; --ratio: #2fbf9a; --bad: #ff8b7e; --note: #f0b453; --tint: #2a2113; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 40px 24px; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0; font-size: 34px; font-weight: 650; letter-spacing: -0.02em; line-height: 1.2; }
h2 { margin: 48px 0 12px; font-size: 20px; font-weight: 600; }
a { color: var(--link); }
.lead { margin: 4px 0 20px; color: var(--faint); }
.small { color: var(--faint); font-size: 14px; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 0; padding: 0; list-style: none; }
.tiles li { padding: 10px 18px; border: 1px solid var(--line); border-radius: 10px; background: var(--panel); color: var(--faint); }
.tiles b { margin-right: 4px; color: var(--ink); font-size: 22px; font-variant-numeric: tabular-nums; }
.tiles .bad, .tiles .bad b { color: var(--bad); } .tiles .note, .tiles .note b { color: var(--note); }
.failed { margin-top: 28px; padding: 4px 20px 12px; border: 1px solid var(--line); border-left: 4px solid var(--bad); border-radius: 6px; }
.failed h2 { margin: 12px 0; font-size: 17px; color: var(--bad); }
.failed dt { font-weight: 600; } .failed dd { margin: 0 0 10px; color: var(--faint); font-size: 14px; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(290px, 1fr)); gap: 16px; }
.plots figure { margin: 0; border: 1px solid var(--line); border-radius: 10px; background: var(--panel); }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--ink); font-size: 12.5px; } svg .name { font-weight: 600; }
svg .figures { text-anchor: end; fill: var(--faint); } svg .tick { text-anchor: middle; fill: var(--faint); font-size: 11px; }
svg .axis { stroke: var(--faint); stroke-width: 1; } svg .whisker { stroke: var(--colour); stroke-width: 1.5; }
svg .box { fill: var(--colour); fill-opacity: 0.16; stroke: var(--colour); stroke-width: 1.5; }
svg .median { stroke: var(--colour); stroke-width: 3; } svg .dot { fill: var(--colour); fill-opacity: 0.75; stroke: var(--panel); }
svg .far { fill: var(--panel); fill-opacity: 1; stroke: var(--bad); stroke-width: 2.5; }
svg .mean { fill: var(--panel); stroke: var(--ink); stroke-width: 1.5; }
.grey_matter_ml { --colour: var(--grey); } .white_matter_ml { --colour: var(--white); } .grey_white_ratio { --colour: var(--ratio); }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 12px; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; } td { white-space: nowrap; }
th:first-child { text-align: left; } thead th { color: var(--faint); font-size: 13px; font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 500; overflow-wrap: anywhere; } tfoot th, tfoot td { padding: 5px 12px; color: var(--faint); font-weight: 400; }
tbody tr:last-child > * { border-bottom: 2px solid var(--line); } tfoot th, tfoot td { border-bottom: 0; }
.z { display: block; color: var(--faint); font-size: 12.5px; font-weight: 400; } .mark { color: var(--note); }
.flagged > * { background: var(--tint); } .flagged > th { box-shadow: inset 4px 0 var(--note); }
.overlay { margin: 0 0 28px; break-inside: avoid; } .overlay img { display: block; width: 100%; height: auto; border-radius: 10px; }
figcaption { margin-top: 8px; color: var(--faint); font-size: 14px; } figcaption b { margin-right: 8px; color: var(--ink); }
footer { margin-top: 56px; padding-top: 16px; border-top: 1px solid var(--line); color: var(--faint); font-size: 13px; }
footer dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 0; }
footer dd { margin: 0; overflow-wrap: anywhere; }
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("scans", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for the CSV, the page and the label maps.")
@click.option("--ckpt", "checkpoint", type=click.Path(path_type=Path), help="A medseg checkpoint; the built-in one if not given.")
@click.option("--device", default=Settings.device, show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--resume/--no-resume", default=Settings.resume, show_default=True, help="Keep what an earlier run has finished.")
@click.option("--progress/--no-progress", default=Settings.progress, show_default=True, help="Show progress on stderr.")
def main(**values: Any) -> None:
    """Measure grey and white matter in SCANS, files or folders of T1-weighted MR volumes without the head."""
    settings = Settings(**values)
    try:
        status = measure(settings)
    except (cnnkit.CnnkitError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for name in ("brain_volumes.csv", "brain_volumes.html"):
        print(settings.output / name)
    sys.exit(status)


if __name__ == "__main__":
    main()
