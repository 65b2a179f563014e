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
from cnnkit.testing.backbones import admitted, last_decimal
from cnnkit.testing.compare import stir, without_gradient
from torch import nn

SMALL = {"depths": (1, 1, 1, 1), "widths": (4, 8, 8, 8)}


def test_a_fresh_interpreter_tells_what_was_imported_and_printed():
    fresh = fresh_interpreter("import json, os; print('said'); print(os.environ['WORD'])", env={"WORD": "heard"})
    assert fresh.status == 0 and fresh.output.split() == ["said", "heard"] and "json" in fresh.modules
    fresh = fresh_interpreter("import sys; print('bad', file=sys.stderr); sys.exit(3)")
    assert fresh.status == 3 and "bad" in fresh.errors and fresh.modules
    with pytest.raises(AssertionError, match="numpy"):
        assert_no_heavy_imports(fresh_interpreter("import numpy.linalg").modules)


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
