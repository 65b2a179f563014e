"""The contract suites notice what they are there to notice."""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from cnnkit.backbones import create_model, model_entry
from cnnkit.backbones._base import FeaturePyramid
from cnnkit.count import on_meta
from cnnkit.errors import InputError
from cnnkit.registry import Figures
from cnnkit.testing import BackboneContract, assert_no_heavy_imports, assert_same, fresh_interpreter, watch_outside
from cnnkit.testing.backbones import admitted
from cnnkit.testing.compare import assert_near, assert_same_keys, centred, image, last_decimal, randomise, stir, without_gradient
from torch import nn

SMALL = {"depths": (1, 1, 1, 1), "widths": (4, 8, 8, 8)}


def test_a_fresh_interpreter_tells_what_was_imported_and_printed():
    fresh = fresh_interpreter("import json, os; print('said'); print(os.environ['WORD'])", env={"WORD": "heard"})
    assert fresh.status == 0 and fresh.output.split() == ["said", "heard"] and "json" in fresh.modules
    fresh = fresh_interpreter("import sys; print('bad', file=sys.stderr); sys.exit(3)")
    assert fresh.status == 3 and "bad" in fresh.errors and fresh.modules
    with pytest.raises(AssertionError, match="numpy"):
        assert_no_heavy_imports(fresh_interpreter("import numpy.linalg").modules)


FORKS = """
from pathlib import Path
from cnnkit.testing.forked import run_forked
for words in (["python", "leave.py", "a b"], ["python", "look.py"], ["cnnkit", "list", "nothing"]):
    done = run_forked(words, Path(FOLDER), imported=["fractions", "no_such_module"])
    print(done.returncode, done.stdout.strip(), done.stderr.strip().splitlines()[-1:])
"""


def test_forked_commands_have_their_own_status_and_output_and_leave_nothing_behind(tmp_path):
    (tmp_path / "leave.py").write_text(
        "import os, sys\nprint(sys.argv[1], os.path.exists('look.py'), 'fractions' in sys.modules)\n"
        "sys.modules['json'] = os.environ['LEFT'] = 'x'\nsys.exit(3)"
    )
    (tmp_path / "look.py").write_text("import json, os\nprint(json.dumps(os.environ.get('LEFT')))\n1 / 0")
    fresh = fresh_interpreter(FORKS.replace("FOLDER", repr(str(tmp_path))))
    assert fresh.status == 0, fresh.errors
    left, looked, listed = fresh.output.splitlines()[:3]
    assert left == f"3 a b True {sys.platform == 'linux'} []"
    assert looked == "1 null ['ZeroDivisionError: division by zero']"
    assert listed.startswith("2 ") and "nothing" in listed


def test_without_pytest_the_suites_say_what_to_install():
    code = "import sys; sys.modules['pytest'] = None\nimport cnnkit.testing as t\nt.fresh_interpreter\nt.TaskContract"
    fresh = fresh_interpreter(code)
    assert fresh.status == 1 and "pip install pytest" in fresh.errors.splitlines()[-1]
    assert "torch" not in fresh.modules


def test_files_and_connections_are_noticed_only_while_watching(tmp_path):
    with watch_outside() as touched:
        (tmp_path / "a").write_text("")
        with pytest.raises(OSError), socket.socket() as probe:
            probe.settimeout(0.1)
            probe.connect(("127.0.0.1", 1))
    (tmp_path / "b").write_text("")
    assert touched == [f"open {tmp_path / 'a'}", "socket.connect"]


@dataclass
class Box:
    values: object


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(2), torch.tensor([0.0, 1e-7])),
        (np.zeros(2, np.int16), np.zeros(2, np.int32)),
        ([1, 2], [1]),
        ({"a": 1}, {"b": 1}),
        (Box([torch.ones(1)]), Box([torch.zeros(1)])),
        (1, 1.0),
        (float("nan"), 0.0),
        ("a", "b"),
    ],
)
def test_differences_are_found_and_equals_pass(one, other):
    with pytest.raises((AssertionError, ValueError)):
        assert_same(one, other)
    assert_same(one, one)


def test_closeness_is_asked_for():
    assert_same({"a": [torch.ones(1)], "b": 1.0}, {"a": [torch.ones(1) + 1e-6], "b": 1.0 + 1e-6}, atol=1e-5)


def test_nearness_is_measured_at_the_scale_of_the_other_side():
    theirs = torch.tensor([1000.0, 0.0])
    assert_near(theirs + 0.005, theirs)
    assert_near([theirs, theirs + 0.005], (theirs, theirs))
    for wrong in (theirs + 0.02, theirs[:, None], theirs * float("nan"), [theirs], [theirs, theirs]):
        with pytest.raises(AssertionError):
            assert_near(wrong, theirs)
    for wrong in ([theirs], [theirs, theirs + 0.02]):
        with pytest.raises((AssertionError, ValueError)):
            assert_near(wrong, [theirs, theirs])


def test_other_keys_and_shapes_are_found():
    with on_meta():
        model = nn.Linear(3, 2)
    assert_same_keys(model, nn.Linear(3, 2).state_dict())
    with pytest.raises(AssertionError, match=r"2 keys.*'weight': \(\(2, 3\), \(2, 4\)\), 'bias': \(\(2,\), None\)"):
        assert_same_keys(model, nn.Linear(4, 2, bias=False))


def test_all_that_a_forward_pass_reads_is_drawn_and_nothing_else():
    model = nn.Sequential(nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64), nn.Linear(256, 256))
    model.register_buffer("index", torch.arange(5))
    model.gamma = nn.Parameter(torch.zeros(64, 1, 1))
    model.pos_embed = nn.Parameter(torch.zeros(1, 16, 64))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    assert randomise(model, gain=2.0, spread={"pos_embed": 0.5}) is model and not model.training
    assert torch.equal(torch.rand(1), expected)
    after = model.state_dict()
    assert [key for key in before if torch.equal(before[key], after[key])] == ["index", "1.num_batches_tracked"]
    assert after["1.running_var"].min() >= 0.5
    deviations = {"0.weight": (2 / 576) ** 0.5, "1.weight": 0.3, "1.running_mean": 0.3, "2.weight": (2 / 256) ** 0.5, "pos_embed": 0.5}
    for key, deviation in (deviations | {"gamma": 0.3, "2.bias": 0.3}).items():
        assert float(after[key].std()) == pytest.approx(deviation, rel=0.3), key
        assert float(after[key].mean()) == pytest.approx(float(key in ("1.weight", "gamma")), abs=0.15), key
    first = after["0.weight"].clone()
    assert torch.equal(randomise(model, gain=2.0).get_parameter("0.weight"), first)
    assert not torch.equal(randomise(model, seed=1).get_parameter("0.weight"), first)
    state = randomise({key: value.clone() for key, value in after.items()})
    assert_same(state, dict(randomise(model).state_dict()))


def test_images_are_the_same_for_the_same_arguments():
    assert torch.equal(image(5, 4), image(5, 4)) and not torch.equal(image(5, 4), image(5, 4, seed=2))
    assert image(7, channels=2, batch=3).shape == (3, 2, 7)


@torch.no_grad()
def test_a_centred_model_does_not_mix_slices():
    flat = randomise(nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 3, 5)))
    deep = centred(flat, nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, (5, 1))))
    x = image(9, 6, channels=2)
    assert_near(deep(x), torch.stack([flat(line) for line in x.unbind(-1)], -1))


def test_unused_parameters_are_found_and_those_behind_a_zero_are_not():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model.unused = nn.Parameter(torch.ones(1))
    with torch.no_grad():
        model[1].weight.zero_()
    x = torch.randn(4, 3)
    model[1](model[0](x)).sum().backward()
    assert without_gradient(model) == ["unused", "0.weight", "0.bias"]
    stir(model).zero_grad()
    model[1](model[0](x)).sum().backward()
    assert without_gradient(model) == ["unused"]


def test_wrong_levels_are_found():
    contract, x = BackboneContract(), torch.zeros(2, 3, 64, 64)
    pyramid = FeaturePyramid(create_model("resnet18", **SMALL))
    contract.check_levels(pyramid, x, exact=True)
    pyramid.feature_info[1]["reduction"] *= 2
    with pytest.raises(AssertionError, match="at the stated reduction"):
        contract.check_levels(pyramid, x, exact=True)


@pytest.mark.parametrize("wrong", [{"params_m": 11.6}, {"gmacs": 1.9, "counted_gmacs": 1.9}, {"counted_params_m": 11.69, "note": ""}])
def test_wrong_figures_are_found(wrong):
    entry = model_entry("resnet18")
    right = Figures(params_m=11.69, gmacs=1.8)
    with on_meta():
        model = create_model("resnet18")
    BackboneContract().check_figures(replace(entry, figures=right), model, 2)
    with pytest.raises(AssertionError):
        BackboneContract().check_figures(replace(entry, figures=replace(right, **wrong)), model, 2)


def test_precision_is_that_of_the_print():
    assert [last_decimal(figure) for figure in (4.0, 28.59, 61)] == pytest.approx([0.05, 0.005, 0.5])


def test_the_next_admitted_size():
    model = create_model("resnet18", **SMALL)
    assert admitted(model, (75, 97)) == (75, 97)
    model.size_multiple = 32
    assert admitted(model, (64, 97)) == (64, 128)
    model.min_size = 75
    assert admitted(model, (64, 97)) == (96, 128)
    assert model.example_input().shape[2:] == (96, 96)
    with pytest.raises(InputError, match=r"at least 75; resize or pad to \(96, 96\)"):
        model.check_size(torch.zeros(1, 3, 64, 96))
    model.fixed_size = (224, 224)
    assert admitted(model, (64, 97)) == (224, 224)


def test_asserts_of_the_suites_show_their_values():
    """pytest rewrites them; without that a failing contract would say nothing."""
    assert "@pytest_ar" in vars(sys.modules["cnnkit.testing.backbones"])
