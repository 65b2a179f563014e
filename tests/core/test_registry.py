"""The registry and the targets that its entries lead to."""

from __future__ import annotations

import json

import pytest
from cnnkit.errors import RegistryError, nearest, unknown
from cnnkit.registry import Entry, Figures, Registry, resolve


def test_names_are_sorted_and_unique():
    registry = Registry("model")
    first = registry.add("b", Entry("json:dumps"))
    registry.add("a", Entry("json:loads"))
    assert list(registry) == ["a", "b"] and len(registry) == 2 and registry["b"] is first and "c" not in registry
    assert registry.add("b", Entry("json:dumps")) == first  # The same again, as when a module is reloaded.
    with pytest.raises(RegistryError, match="model 'b' is already registered by json:dumps; json:loads needs another name"):
        registry.add("b", Entry("json:loads"))
    assert registry["b"] == first


def test_an_unknown_name_is_answered_with_the_nearest():
    registry = Registry("model")
    registry.add("resnet50", Entry("json:dumps"))
    with pytest.raises(RegistryError) as error:
        registry["resnet5"]
    assert str(error.value) == "unknown model 'resnet5'; did you mean 'resnet50'?"
    with pytest.raises(KeyError):
        registry["zzz"]
    assert registry.get("zzz") is None


@pytest.mark.parametrize("target", ["json", "json:", ":dumps", "", "json:nothing"])
def test_targets_that_lead_nowhere(target):
    with pytest.raises(RegistryError, match="target"):
        resolve(target)


def test_a_target_is_imported():
    assert resolve("json:dumps") is json.dumps and Entry("json:dumps").load() is json.dumps
    with pytest.raises(ModuleNotFoundError):
        resolve("no_such_module_here:x")


def test_entries_survive_json():
    entry = Entry(
        "a:b",
        paper="p",
        dims=(1, 3),
        args={"depths": (3, (4, 6)), "name": "x"},
        figures=Figures(25.6, note="n"),
        layouts=("timm",),
        params=3,
    )
    assert Entry.from_json(json.loads(json.dumps(entry.to_json()))) == entry
    assert Entry("a:b").to_json() == {"target": "a:b", "dims": (2,)}


def test_messages_for_unknown_words():
    assert unknown("thing", "x", ["b", "a"]) == "unknown thing 'x'; known: a, b"
    assert unknown("thing", "x", [], more="See there.") == "unknown thing 'x'; no thing is known here See there."
    assert nearest("swin_unet", ["swin_unetr", "unet", "resnet50"])[0] == "swin_unetr"
