"""Enlarge a folder of pictures and make a gallery of them: before and after under a slider.

    python apps/photo/upscale_folder.py PICTURES -o OUT

``OUT`` receives ``gallery.html``, the folder ``enlarged`` with the results and ``report.json``, and ``previews`` with what the page shows.
Drag the slider over a picture to compare it with bicubic interpolation; click its name for the full result. The page needs no
network connection. The exit status is 1 if a picture failed; the others are there.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import cnnkit
import numpy as np
from PIL import Image, ImageOps

PREVIEW = 1400  # Longest side in pixels: a page of fifty pictures still opens at once.

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1000px; padding: 0 1rem; color: #222; background: #fafafa }
figure { margin: 0 0 2.5rem } figcaption { padding: .4rem 0; color: #555 } h1 { font-size: 1.4rem }
.pair { position: relative; overflow: hidden; line-height: 0; background: #ddd } .pair img { width: 100%; height: auto }
.pair .before { position: absolute; inset: 0; height: 100%; clip-path: inset(0 calc(100% - var(--at)) 0 0) }
.pair::after { content: ""; position: absolute; top: 0; bottom: 0; left: var(--at); width: 2px; background: #fff; pointer-events: none }
.pair input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize }
.pair:focus-within { outline: 3px solid #06c } .failed { color: #a00 }
"""
SCRIPT = (
    "for (const slider of document.querySelectorAll('.pair input')) "
    "slider.oninput = () => slider.parentNode.style.setProperty('--at', slider.value + '%');"
)


@dataclass(frozen=True)
class Settings:
    """What to enlarge, and how.

    Args:
        pictures: Files and folders.
        output: Folder for everything that is written.
        scale: Factor; the checkpoint's if not given.
        checkpoint: Weights of any network that ``cnnkit run superres`` reads; the built-in one if not given.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` ...
        resume: Keep what an earlier run in the same folder has finished from the same files.
        progress: Show progress on stderr.
    """

    pictures: tuple[Path, ...]
    output: Path
    scale: int | None = None
    checkpoint: Path | None = None
    device: str = "auto"
    resume: bool = True
    progress: bool = True


@dataclass(frozen=True)
class Shown:
    """One picture on the page: its name, its result and the size of that, and the two previews with theirs."""

    name: str
    result: Path
    size: tuple[int, int]
    before: Path
    after: Path
    preview_size: tuple[int, int]
    warnings: tuple[str, ...]


def preview(item: Any, folder: Path) -> Shown:
    """Write the previews of an item of the report: its result, and its input by bicubic interpolation, at one size.

    Raises:
        OSError, ValueError, SyntaxError: If Pillow cannot read what cnnkit can: a video, or floating-point colours.
    """
    files = (folder / f"{item.name}_before.jpg", folder / f"{item.name}_after.jpg")
    with Image.open(item.files[0]) as original:
        white = white_of(original)
        before = flattened(ImageOps.exif_transpose(original), white)
    with Image.open(item.outputs[0]) as enlarged:
        profile = enlarged.info.get("icc_profile") if enlarged.mode in ("RGB", "RGBA") else None
        after = flattened(enlarged, white)
    full = after.size
    after.thumbnail((PREVIEW, PREVIEW), Image.Resampling.LANCZOS)
    before = before.resize(full, Image.Resampling.BICUBIC).resize(after.size, Image.Resampling.LANCZOS)
    for image, path in zip((before, after), files, strict=True):
        image.save(path, quality=92, icc_profile=profile)
    return Shown(item.name, item.outputs[0], full, *files, after.size, tuple(item.warnings))


def white_of(image: Image.Image) -> float:
    """Return the value of white: both previews are shown under the same, and a dark picture stays dark."""
    if image.mode == "F":
        return max(1.0, float(image.getextrema()[1]))  # type: ignore[arg-type]
    return 65535.0 if image.mode.startswith("I") else 255.0


def flattened(image: Image.Image, white: float = 255.0) -> Image.Image:
    """Return a picture of any mode as RGB on white."""
    if image.mode == "F" or image.mode.startswith("I"):
        unit = np.asarray(image, np.float64) / (white if image.mode == "F" else 65535.0)
        return Image.fromarray(np.rint(unit.clip(0, 1) * 255).astype(np.uint8)).convert("RGB")
    layered = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")


def page(shown: list[Shown], unseen: list[Any], failed: list[Any], output: Path) -> str:
    """Return the gallery as HTML with links relative to ``output``.

    Args:
        shown: Pictures with previews.
        unseen: Items whose results are linked alone.
        failed: Items that are listed with what went wrong.
        output: Folder of the page.
    """

    def link(path: Path) -> str:
        return escape(quote(os.fsencode(Path(os.path.relpath(path, output)).as_posix())))

    figures = []
    for picture in shown:
        notes = "".join(f"<br>{escape(warning)}" for warning in picture.warnings)
        sides = f'width="{picture.preview_size[0]}" height="{picture.preview_size[1]}" loading="lazy"'
        figures.append(
            f'<figure><div class="pair" style="--at: 50%">'
            f'<img src="{link(picture.after)}" alt="{escape(picture.name)}, enlarged" {sides}>'
            f'<img class="before" src="{link(picture.before)}" alt="{escape(picture.name)}, by bicubic interpolation" {sides}>'
            f'<input type="range" value="50" aria-label="{escape(picture.name)}: before and after"></div>'
            f'<figcaption><a href="{link(picture.result)}">{escape(picture.name)}</a>, {picture.size[0]} x {picture.size[1]}; '
            f"left of the line: bicubic, right: network{notes}</figcaption></figure>"
        )
    trouble = "".join(f'<p class="failed">{escape(item.name)}: {escape(item.error)}</p>' for item in failed)
    links = "".join(f'<p><a href="{link(item.outputs[0])}">{escape(item.name)}</a>, enlarged; without a preview</p>' for item in unseen)
    count = len(shown) + len(unseen)
    title = f"{count} enlarged picture{'s' * (count != 1)}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Enlarged pictures</title><style>{STYLE}</style></head>'
        f"<body><h1>{title}</h1>{trouble}{''.join(figures)}{links}<script>{SCRIPT}</script></body></html>\n"
    )


def enlarge(settings: Settings) -> int:
    """Enlarge the pictures, write the gallery, and return the exit status.

    Raises:
        CnnkitError: For everything that is wrong before the first picture is read.
    """
    report = cnnkit.run(
        "superres",
        settings.pictures,
        output=settings.output / "enlarged",
        checkpoint=settings.checkpoint,
        device=settings.device,
        resume=settings.resume,
        progress=settings.progress,
        scale=settings.scale,
    )
    Image.MAX_IMAGE_PIXELS = None  # Inputs were checked when they were read, and results are larger by intention.
    previews = settings.output / "previews"
    previews.mkdir(exist_ok=True)
    shown, unseen, failed = [], [], list(report.failed)
    for item in report.items:
        if item.status == "error":
            continue
        try:
            shown.append(preview(item, previews))
        except (OSError, ValueError, SyntaxError):
            print(f"{item.name}: has no preview in the gallery; the result is {item.outputs[0]}", file=sys.stderr)
            unseen.append(item)
    part = settings.output / ".gallery.html.part"
    part.write_bytes(page(shown, unseen, failed, settings.output).encode("utf-8", "replace"))  # A file's name may be no text.
    part.replace(settings.output / "gallery.html")
    print(settings.output / "gallery.html")
    return 1 if failed else 0


@click.command(help=__doc__.split("\n\n")[0] if __doc__ else None)
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for everything that is written.")
@click.option("--scale", type=int, help="2 or 4 with the built-in networks.")
@click.option("--ckpt", "checkpoint", type=click.Path(path_type=Path), help="Weights of another network.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--resume/--no-resume", default=True, show_default=True, help="Keep what an earlier run has finished.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
def main(
    pictures: tuple[Path, ...], output: Path, scale: int | None, checkpoint: Path | None, device: str, resume: bool, quiet: bool
) -> None:
    """Read the command line."""
    try:
        sys.exit(enlarge(Settings(pictures, output, scale, checkpoint, device, resume, not quiet)))
    except cnnkit.CnnkitError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
