"""The bar of one large picture: on a terminal, for many tiles, beneath the bar of the files, and gone when the picture is done."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from cnnkit import api
from cnnkit.backbones import create_model
from cnnkit.checkpoint import Header, save_checkpoint
from cnnkit.engine.progress import Progress, show_part
from PIL import Image

ESPCN = {"name": "superres/espcn_x2", "args": {"widths": [4, 4]}}


class Terminal(io.StringIO):
    """What people watch."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Enlarge a picture of 40 x 40 and return (tiles done, tiles in all, bars that are shown) after each tile."""
    state = create_model(ESPCN["name"], **ESPCN["args"]).state_dict()
    checkpoint = save_checkpoint(tmp_path / "net.ckpt", state, Header("superres", config={"network": ESPCN}))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)).save(tmp_path / "photo.png")
    seen: list[tuple[int, int, int]] = []
    part = Progress.part

    def noted(self: Progress, done: int, total: int, title: str) -> None:
        part(self, done, total, title)
        seen.append((done, total, len(self._bar.tasks) if self._bar is not None else 0))

    monkeypatch.setattr(Progress, "part", noted)

    def enlarge(tile: int) -> list[tuple[int, int, int]]:
        api.run("superres", tmp_path / "photo.png", output=tmp_path / "out", checkpoint=checkpoint, device="cpu", tile=tile)
        return seen

    return enlarge


def test_many_tiles_have_a_bar_while_they_last(run, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert run(14) == [*((done, 9, 2) for done in range(1, 9)), (9, 9, 1)]
    assert "tiles" in sys.stderr.getvalue()


def test_few_tiles_have_none(run, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert run(20) == []  # Four tiles.
    assert "tiles" not in sys.stderr.getvalue()


def test_a_file_is_told_one_line_alone(run, capsys):
    assert run(14) == [(done, 9, 0) for done in range(1, 10)]
    assert capsys.readouterr().err.count("\n") == 1


def test_a_picture_that_fails_takes_its_bar_along(monkeypatch):
    from cnnkit.engine.run import Item

    monkeypatch.setattr(sys, "stderr", Terminal())
    show_part(1, 5, "tiles")  # There is no bar to be beneath.
    with Progress(2, "superres") as progress:
        show_part(1, 5, "tiles")
        assert len(progress._bar.tasks) == 2
        progress.advance(Item("photo", status="error", error="damaged"))
        assert len(progress._bar.tasks) == 1
    show_part(2, 5, "tiles")
