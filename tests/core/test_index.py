"""The index of the backbones: fresh, complete, and readable without torch."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cnnkit import backbones
from cnnkit.backbones import INDEX, create_model, list_models, model_entry
from cnnkit.count import on_meta
from cnnkit.errors import RegistryError

TOOLS = Path(__file__).parents[2] / "tools"


def load_tool(name):
    spec = importlib.util.spec_from_file_location(f"{name}_tool", TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tool():
    return load_tool("index")


def test_the_index_is_fresh(tool):
    assert tool.main(["--check"]) == 0, "run: python tools/index.py"


def test_a_stale_index_is_noticed_and_rewritten(tool, tmp_path, monkeypatch, capsys):
    stale = tmp_path / "_index.json"
    entries = json.loads(INDEX.read_text(encoding="utf-8"))
    entries.pop("resnet18")
    stale.write_text(json.dumps(entries), encoding="utf-8")
    monkeypatch.setattr(tool, "INDEX", stale)
    monkeypatch.setattr(tool, "counted", lambda entry: entry)  # Counting is the other test's; here only the file matters.
    assert tool.main(["--check"]) == 1
    assert "python tools/index.py" in capsys.readouterr().err
    assert tool.main([]) == 0
    assert "resnet18" in json.loads(stale.read_text(encoding="utf-8"))
    assert tool.main(["--check"]) == 0


def test_sizes_are_those_that_the_model_states(tool):
    stated = tool.counted(model_entry("pvt_tiny")).sizes, tool.counted(model_entry("randformer_s12")).sizes
    assert stated == ({"least": 32}, {"fixed": (224, 224)}) and tool.counted(model_entry("resnet18")).sizes == {}
    with on_meta():
        model = create_model("resnet18")
    model.size_multiple, model.min_size = 32, 64
    assert tool.admitted_sizes(model) == {"multiple": 32, "least": 64}
    model.min_size = 32
    assert tool.admitted_sizes(model) == {"multiple": 32}


def test_the_tables_of_the_cores_readme_are_fresh(tmp_path, monkeypatch, capsys):
    tables = load_tool("core_readme")
    assert tables.main(["--check"]) == 0, "run: python tools/core_readme.py"
    fresh = tables.README.read_text(encoding="utf-8")
    monkeypatch.setattr(tables, "README", tmp_path / "README.md")
    tables.README.write_text(fresh.replace("`convnext_tiny` to", "`convnext_lost` to"), encoding="utf-8")
    assert tables.main(["--check"]) == 1 and "python tools/core_readme.py" in capsys.readouterr().err
    assert tables.main([]) == 0 and tables.README.read_text(encoding="utf-8") == fresh
    with pytest.raises(ValueError, match="lacks the marks '<!-- layers -->'"):
        tables.text("nothing")


def test_a_family_file_without_a_family_is_refused(tool, tmp_path):
    (tmp_path / "conftest.py").write_text("")
    (tmp_path / "_private.py").write_text("")
    with pytest.raises((RegistryError, ModuleNotFoundError), match=r"conftest"):
        tool.families(tmp_path)


def smallest_of_each_family() -> list[str]:
    """The variants of a family differ in numbers; the smallest is the quickest to build."""
    by_family: dict[str, str] = {}
    for name in sorted(list_models(), key=lambda name: model_entry(name).params):
        by_family.setdefault(model_entry(name).family, name)
    return sorted(by_family.values())


@pytest.mark.parametrize("name", smallest_of_each_family())
def test_every_family_is_built_in_every_dimension_that_it_states(name):
    entry = model_entry(name)
    for dims in entry.dims:
        with on_meta():
            model = create_model(name, dims=dims, in_chans=2, num_classes=5)
        # A few convolutions run over channels or along one axis; the others are of the model's own dimension.
        assert max(module.weight.ndim for module in model.modules() if hasattr(module, "stride") and hasattr(module, "weight")) == dims + 2


def test_every_family_has_a_declaration_of_its_own():
    """Also one whose variants are built by another family's class."""
    families = {model_entry(name).family for name in list_models()}
    assert {backbones.load_family(family).name for family in families} == families
    assert model_entry("seresnet50").target.startswith("cnnkit.backbones.resnet:")


def test_listing_imports_no_torch():
    code = "import sys; from cnnkit import backbones; assert backbones.list_models('convnext*', dims=3); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_list_models_filters():
    assert {"resnet50", "resnet50d"} <= set(list_models("resnet5*")) and "resnet18" not in list_models("resnet5*")
    assert "wide_resnet50_2" in list_models("resnet50")
    assert set(list_models(family="convnext")) <= set(list_models(dims=1))
    assert list_models("no such model") == []


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(RegistryError, match=r"did you mean .*'resnet50'"):
        create_model("resnt50")


def test_register_adds_a_name_and_refuses_a_taken_one(monkeypatch):
    backbones._registry.cache_clear()
    try:
        entry = model_entry("resnet18")
        backbones.register("my_resnet", entry)
        assert "my_resnet" in list_models()
        with pytest.raises(RegistryError, match="already registered"):
            backbones.register("convnext_tiny", entry)
    finally:
        backbones._registry.cache_clear()
    assert "my_resnet" not in list_models()
