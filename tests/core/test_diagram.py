"""The picture of a backbone: what it states, and that it is whole or not there."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from click.testing import CliRunner
from cnnkit.backbones import list_models, load_family, model_entry
from cnnkit.cli import cli
from cnnkit.engine import diagram
from cnnkit.engine.diagram import Polygon, Stage, draw_backbone, layout, stages_of
from cnnkit.errors import CnnkitError, InputError, UsageError
from torch import nn

SMALLEST = {family: load_family(family).small[0] for family in sorted({model_entry(name).family for name in list_models()})}


def test_the_stages_of_a_resnet_are_those_of_its_paper():
    """Table 1 of He et al.; parameters counted by hand: convolutions of 3x3 with two numbers of a normalisation per output."""
    stem = 64 * 3 * 49 + 2 * 64
    stages = stages_of("resnet18")
    assert [(stage.name, stage.channels, stage.size) for stage in stages] == [
        ("input", 3, (224, 224)),
        ("act1", 64, (112, 112)),
        ("layer1", 64, (56, 56)),
        ("layer2", 128, (28, 28)),
        ("layer3", 256, (14, 14)),
        ("layer4", 512, (7, 7)),
        ("head", 1000, ()),
    ]
    assert [stage.params for stage in stages[:3]] == [0, stem, 4 * (64 * 64 * 9 + 2 * 64)] and stages[-1].params == 513 * 1000
    signal = stages_of("resnet18", dims=1, size=(64,))
    assert [stage.size for stage in signal[1:-1]] == [(32,), (16,), (8,), (4,), (2,)]
    volume = stages_of("resnet18", dims=3, size=(64, 32, 48))
    assert volume[-2].size == (2, 1, 2) and volume[0].size == (64, 32, 48)


@pytest.mark.parametrize("name", SMALLEST.values(), ids=SMALLEST)
def test_the_boxes_of_every_family_add_up_to_the_model(name):
    entry, stages = model_entry(name), stages_of(name)
    assert sum(stage.params for stage in stages) == entry.params
    assert stages[0].params == 0 and all(stage.size for stage in stages[:-1])
    assert sum(stage.params for stage in stages[1:-1]) > 0


class Late(nn.Module):
    """What leads to the second level is registered before the first level, and one parameter belongs to no module that is called."""

    feature_info = ({"module": "stages.0"}, {"module": "stages.1"})

    def __init__(self):
        super().__init__()
        self.embeddings = nn.ModuleList([nn.Linear(1, 2, bias=False), nn.Linear(2, 3, bias=False)])
        self.stages = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(3, 3, bias=False)])
        self.stages[1].scale = nn.Parameter(torch.ones(7))
        self.head = nn.Linear(3, 11, bias=False)
        self.head.unused = nn.ModuleDict({"never": nn.Linear(1, 100, bias=False)})

    def forward(self, x):
        for embedding, stage in zip(self.embeddings, self.stages, strict=True):
            x = stage(embedding(x))
        return self.head(x)


def test_a_box_owns_what_is_computed_for_it_wherever_it_is_registered():
    model = Late()
    assert diagram._shares(model, lambda: model(torch.zeros(1, 1))) == [2 + 4, 6 + 9 + 7, 33 + 100]
    stem = 3 * 96 * 16 + 96 + 2 * 96
    block = 96 * 49 + 96 + 2 * 96 + 2 * 96 * 384 + 96 + 384 + 96
    stages = stages_of("convnext_tiny")  # Its stages are never called as modules: their parts are.
    assert stages[1].params == stem + 3 * block and stages[-1].params == 769 * 1000 + 2 * 768


def test_boxes_follow_resolution_and_channels():
    shapes, (width, height) = layout("x", [Stage("input", 4, (64, 64)), Stage("a", 16, (16, 16), 30), Stage("head", 10, (), 10)])
    fronts = [shape for shape in shapes if isinstance(shape, Polygon) and shape.fill in (diagram.FRONT, diagram.ENDS[0])]
    spans = [[max(axis) - min(axis) for axis in zip(*shape.points, strict=True)] for shape in fronts]
    assert spans[1][0] == pytest.approx(2 * spans[0][0]) and spans[1][1] == pytest.approx(spans[0][1] / 2)
    assert all(0 <= x <= width and 0 <= y <= height for shape in shapes if isinstance(shape, Polygon) for x, y in shape.points)
    assert {"75.0 % of parameters", "25.0 % of parameters", "16 x 16", "one vector"} <= {getattr(shape, "text", "") for shape in shapes}


def test_an_svg_states_every_stage(tmp_path):
    result = CliRunner().invoke(cli, ["info", "resnet18", "--json", "--plot", str(tmp_path / "new" / "out.svg"), "--size", "64"])
    assert json.loads(result.output)["picture"] == str(tmp_path / "new" / "out.svg")
    root = ElementTree.parse(tmp_path / "new" / "out.svg").getroot()
    words = [item.text for item in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words[0] == "resnet18" and words.count("2 x 2") == 1 and "512 channels" in words and "1000 outputs" in words
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.svg"]


def test_a_png_is_one(tmp_path):
    image = pytest.importorskip("PIL.Image")
    draw_backbone("resnet18", tmp_path / "out.png", size=(64,))
    with image.open(tmp_path / "out.png") as picture:
        assert picture.format == "PNG" and picture.width > 1000
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**20)}
    assert {tuple(bytes.fromhex(colour[1:])) for colour in (diagram.FRONT, diagram.TOP, diagram.SIDE)} <= colours


def test_a_failure_leaves_the_picture_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "out.svg").write_text("before")
    with pytest.raises(InputError, match="every side must be at least"):
        draw_backbone("pvt_tiny", tmp_path / "out.svg", size=(8,))
    monkeypatch.setattr(diagram, "_write_svg", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        draw_backbone("resnet18", tmp_path / "out.svg", size=(64,))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out.svg", "before")]


def test_places_that_cannot_be_written_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(UsageError, match=r"file/out\.svg cannot be written .* choose another place with --plot"):
        draw_backbone("resnet18", tmp_path / "file" / "out.svg", size=(64,))
    with pytest.raises(UsageError, match=r"folder\.svg is a folder; name a file"):
        draw_backbone("resnet18", tmp_path / "folder.svg")
    with pytest.raises(CnnkitError, match="did you mean 'resnet18'"):
        draw_backbone("resnt18", tmp_path / "out.svg")


def test_without_pillow_a_png_is_answered_with_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(UsageError, match=r"pip install 'cnnkit\[plot\]', or draw an SVG with --plot .*out\.svg"):
        draw_backbone("resnet18", tmp_path / "out.png")
    assert not list(tmp_path.iterdir())
