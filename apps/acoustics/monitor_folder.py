"""Watch a folder of recordings and keep a timeline of what is heard on each day.

    python apps/acoustics/monitor_folder.py RECORDINGS -o OUT --watch 60

``OUT`` receives one page for each day (``2026-05-01.html``: 24 hours from left to right, a row for each sound, and how often it was
heard), ``events.csv`` with every event at its time of day, and the folder ``heard`` with the tables and pictures of each recording. With
``--watch SECONDS`` new recordings are looked for until Ctrl-C; one that still grows is left for the next round. Without it the
folder is gone through once, and the exit status is 1 if a recording failed; the others are there.

When a recording was made is read from its name (``20260501_043000.WAV`` as field recorders write it, or ``2026-05-01 04-30-00.flac``),
or from the time at which the file was last written, less its length.
"""

from __future__ import annotations

import csv
import io
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from html import escape
from pathlib import Path
from urllib.parse import quote

import click
import cnnkit
import soundfile

NAMED = re.compile(r"(?<!\d)(20\d\d)[-_]?(\d\d)[-_]?(\d\d)[ T_-]?(\d\d)[-_:h]?(\d\d)[-_:m]?(\d\d)(?!\d)")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#8c564b")  # Told apart by all eyes.
DAY = 24 * 3600
LEFT, WIDTH, ROW = 150, 960, 30

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1160px; padding: 0 1rem; color: #222; background: #fafafa }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem } .failed { color: #a00 }
svg { width: 100%; height: auto; background: #fff }
table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: left } td.number { text-align: right }
img { max-width: 100% } summary { cursor: pointer }
"""


@dataclass(frozen=True)
class Settings:
    """What to listen to, and how.

    Args:
        recordings: Folder that is watched.
        output: Folder for everything that is written.
        watch: Seconds between two looks; none for a single one.
        threshold: Least confidence of an event.
        checkpoint: Weights of a network that tags; the built-in one if not given.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` ...
        progress: Show progress on stderr.
    """

    recordings: Path
    output: Path
    watch: float | None = None
    threshold: float = 0.5
    checkpoint: Path | None = None
    device: str = "auto"
    progress: bool = True


@dataclass(frozen=True)
class Heard:
    """One event at its time of day."""

    start: datetime
    end: datetime
    label: str
    confidence: float
    recording: str


@dataclass(frozen=True)
class Recording:
    """One recording: its name, when it was made, its picture, and what should be known about it."""

    name: str
    start: datetime
    seconds: float
    picture: Path | None
    warnings: tuple[str, ...]


def started(path: Path, seconds: float) -> datetime:
    """Return when a recording was begun, by its name or by its file's time."""
    match = NAMED.search(path.stem)
    if match:
        try:
            return datetime(*map(int, match.groups()))
        except ValueError:  # Digits that are no time, such as a serial number.
            pass
    return datetime.fromtimestamp(path.stat().st_mtime) - timedelta(seconds=seconds)


def read_events(table: Path, recording: Recording) -> list[Heard]:
    """Read a table of results and move it to the recording's time."""
    with open(table, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [
        Heard(
            recording.start + timedelta(seconds=float(row["Start (s)"])),
            recording.start + timedelta(seconds=float(row["End (s)"])),
            row["Label"],
            float(row["Confidence"]),
            recording.name,
        )
        for row in rows
    ]


def listen(settings: Settings, files: Sequence[Path]) -> tuple[list[Recording], list[Heard], dict[str, str]]:
    """Run the network over recordings; return them, what was heard, and what failed with its reason.

    Raises:
        CnnkitError: For everything that is wrong before the first recording is read.
    """
    report = cnnkit.run(
        "audio",
        files,
        output=settings.output / "heard",
        checkpoint=settings.checkpoint,
        device=settings.device,
        resume=True,
        progress=settings.progress,
        threshold=settings.threshold,
    )
    recordings, events, failed = [], [], {item.name: item.error for item in report.failed}
    for item in report.items:
        if item.status == "error":
            continue
        outputs = {path.suffix: path for path in item.outputs}
        try:
            seconds = soundfile.info(item.files[0]).duration
            recording = Recording(item.name, started(item.files[0], seconds), seconds, outputs.get(".png"), tuple(item.warnings))
            found = read_events(outputs[".csv"], recording)
        except (OSError, soundfile.LibsndfileError) as error:  # It was taken away after it was heard.
            failed[item.name] = str(error)
            continue
        recordings.append(recording)
        events += found
    return recordings, sorted(events, key=lambda event: event.start), failed


def timeline(day: date, recordings: Iterable[Recording], events: Sequence[Heard]) -> str:
    """Return 24 hours as SVG: a row for each sound, most frequent first, over a band that shows when anything was recorded."""
    midnight = datetime.combine(day, datetime.min.time())

    def span(start: datetime, seconds: float) -> tuple[float, float]:
        first = max((start - midnight).total_seconds(), 0)
        last = min((start - midnight).total_seconds() + seconds, DAY)
        return LEFT + first / DAY * WIDTH, max((last - first) / DAY * WIDTH, 1.5)

    counts = counted(events)
    height = ROW * (len(counts) + 1) + 40
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 30} {height}" font-size="13" font-family="sans-serif">']
    for hour in range(0, 25, 2):
        x = LEFT + hour / 24 * WIDTH
        parts.append(f'<line x1="{x}" x2="{x}" y1="8" y2="{height - 28}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{height - 10}" text-anchor="middle" fill="#555">{hour}:00</text>')
    parts.append(f'<text x="{LEFT - 10}" y="{ROW * 0.5 + 13}" text-anchor="end" fill="#777">recorded</text>')
    for recording in recordings:
        x, width = span(recording.start, recording.seconds)
        name = escape(recording.name)
        parts.append(f'<rect x="{x:.1f}" y="15" width="{width:.1f}" height="8" fill="#bbb"><title>{name}</title></rect>')
    for row, label in enumerate(counts, start=1):
        parts.append(f'<text x="{LEFT - 10}" y="{ROW * (row + 0.5) + 13}" text-anchor="end">{escape(label.replace("_", " "))}</text>')
        for event in events:
            if event.label == label:
                x, width = span(event.start, (event.end - event.start).total_seconds())
                told = escape(f"{event.start:%H:%M:%S} {label}, {event.confidence:.2f}, {event.recording}")
                shape = f'x="{x:.1f}" y="{ROW * row + 11}" width="{width:.1f}" height="{ROW - 8}"'
                colour = COLOURS[(row - 1) % len(COLOURS)]
                parts.append(f'<rect {shape} fill="{colour}" opacity="{0.35 + 0.65 * event.confidence:.2f}"><title>{told}</title></rect>')
    return "".join(parts) + "</svg>"


def counted(events: Sequence[Heard]) -> dict[str, list[Heard]]:
    """Return the events of each label, the label with the most first."""
    labels: dict[str, list[Heard]] = {}
    for event in events:
        labels.setdefault(event.label, []).append(event)
    return dict(sorted(labels.items(), key=lambda pair: (-len(pair[1]), pair[0])))


def page(day: date, recordings: Sequence[Recording], events: Sequence[Heard], failed: dict[str, str], output: Path) -> str:
    """Return the page of a day as HTML, with links relative to ``output``."""
    rows = "".join(
        f'<tr><td>{escape(label.replace("_", " "))}</td><td class="number">{len(found)}</td>'
        f'<td class="number">{sum((event.end - event.start).total_seconds() for event in found):.0f} s</td>'
        f"<td>{found[0].start:%H:%M:%S}</td><td>{max(event.end for event in found):%H:%M:%S}</td></tr>"
        for label, found in counted(events).items()
    )
    head = "<tr><th>sound</th><th>times</th><th>in all</th><th>first</th><th>last</th></tr>"
    table = f"<table>{head}{rows}</table>" if rows else "<p>Nothing was heard above the threshold.</p>"
    pictures = []
    for recording in recordings:
        notes = "".join(f"<br>{escape(warning)}" for warning in recording.warnings)
        shown = ""
        if recording.picture is not None:
            address = quote(os.fsencode(Path(os.path.relpath(recording.picture, output)).as_posix()))
            shown = f'<img src="{escape(address)}" alt="spectrogram of {escape(recording.name)}" loading="lazy">'
        told = f"{recording.start:%H:%M:%S}: {escape(recording.name)}, {recording.seconds:.0f} s"
        pictures.append(f"<details><summary>{told}</summary>{notes}{shown}</details>")
    trouble = "".join(f'<p class="failed">{escape(name)}: {escape(error)}</p>' for name, error in failed.items())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Heard on {day}</title><style>{STYLE}</style></head>'
        f"<body><h1>Heard on {day:%A}, {day}</h1>{timeline(day, recordings, events)}{table}"
        f"<h2>Recordings</h2>{''.join(pictures)}{trouble}</body></html>\n"
    )


def write(path: Path, text: str) -> Path:
    """Write a file so that it is never seen half."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(text.encode("utf-8", "replace"))  # A file's name may be no text.
    part.replace(path)
    return path


def update(settings: Settings, files: Sequence[Path]) -> int:
    """Listen to what is new, write all pages anew, and return the exit status."""
    recordings, events, failed = listen(settings, files)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("Start", "End", "Label", "Confidence", "Recording"))
    moments = ((event.start.isoformat(" ", "milliseconds"), event.end.isoformat(" ", "milliseconds"), event) for event in events)
    writer.writerows((start, end, event.label, f"{event.confidence:.4f}", event.recording) for start, end, event in moments)
    write(settings.output / "events.csv", text.getvalue())
    days = sorted({recording.start.date() for recording in recordings} | {event.start.date() for event in events}) or [date.today()]
    for day in days:
        # A recording may begin on one day and end on the next: it is listed where it begins, its events where they are heard.
        made = sorted((recording for recording in recordings if recording.start.date() == day), key=lambda one: one.start)
        heard = [event for event in events if event.start.date() == day]
        print(write(settings.output / f"{day}.html", page(day, made, heard, failed, settings.output)))
    return 1 if failed else 0


def grown_up(folder: Path, sizes: dict[Path, int]) -> list[Path]:
    """Return the files whose size did not change since the last look, and note the sizes."""
    suffixes = {f".{name.lower()}" for name in soundfile.available_formats()} | {".aif", ".opus"}
    now = {path: path.stat().st_size for path in sorted(folder.iterdir()) if path.suffix.lower() in suffixes and path.name[0] != "."}
    steady = [path for path, size in now.items() if sizes.get(path) == size]
    sizes.clear()
    sizes.update(now)
    return steady


def watch(settings: Settings) -> int:
    """Look for new recordings again and again, until Ctrl-C."""
    assert settings.watch is not None
    sizes: dict[Path, int] = {}
    known: list[Path] = []
    status = 0
    grown_up(settings.recordings, sizes)
    try:
        while True:
            time.sleep(settings.watch)
            files = grown_up(settings.recordings, sizes)
            if files and files != known:
                status, known = update(settings, files), files
    except KeyboardInterrupt:
        return status


@click.command(help=__doc__.split("\n\n")[0] if __doc__ else None)
@click.argument("recordings", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for everything that is written.")
@click.option("--watch", "seconds", type=click.FloatRange(min=0.1), metavar="SECONDS", help="Look for new recordings this often.")
@click.option("--threshold", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Least confidence of an event.")
@click.option("--ckpt", "checkpoint", type=click.Path(path_type=Path), help="Weights of another network that tags.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
def main(
    recordings: Path, output: Path, seconds: float | None, threshold: float, checkpoint: Path | None, device: str, quiet: bool
) -> None:
    """Read the command line."""
    settings = Settings(recordings, output, seconds, threshold, checkpoint, device, not quiet)
    output.mkdir(parents=True, exist_ok=True)
    try:
        sys.exit(watch(settings) if seconds is not None else update(settings, [recordings]))
    except cnnkit.CnnkitError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
