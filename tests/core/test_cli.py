"""The command line in fresh interpreters: quick, complete, and on its feet whatever a plugin does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from cnnkit.cli import VERBS, cli, main
from cnnkit.cli.run import own_fields
from cnnkit.plugin import KNOWN

TOY = Path(__file__).parent / "toy_plugin"
HEAVY = ("torch", "numpy", "pydantic", "yaml", "rich", "monai", "nibabel", "lightning", "safetensors", "scipy", "SimpleITK")
PROBE = (
    "import sys, atexit\n"
    f"def tell(): print('LOADED', *sorted(set(sys.modules) & set({HEAVY!r})), file=sys.stderr)\n"
    "atexit.register(tell)\n"
    "from cnnkit.cli import main; main()"
)
TASKS = ("run", "train", "eval", "export")


def install(folder, name: str, source: str, info: str = "") -> None:
    """Make a package ``pkg_NAME`` with an entry point NAME."""
    (folder / f"pkg_{name}").mkdir(parents=True)
    (folder / f"pkg_{name}" / "__init__.py").write_text(source)
    place = folder / f"cnnkit_{name}-1.0.dist-info"
    place.mkdir()
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: cnnkit-{name}\nVersion: 1.0\n{info}")
    (place / "entry_points.txt").write_text(f"[cnnkit.plugins]\n{name} = pkg_{name}:PLUGIN\n")


def manifest(**values) -> str:
    return f"from cnnkit.plugin import Plugin\nPLUGIN = Plugin(**{values!r})\n"


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Three plugins that cannot be used, and one whose library is missing."""
    folder = tmp_path_factory.mktemp("broken")
    install(folder, "lacking", "import no_such_library")
    install(folder, "older", manifest(name="older", api=0, summary="s", task="a:b", run="a:b"))
    install(folder, "misnamed", manifest(name="other", api=1, summary="s", task="a:b", run="a:b"))
    requires = ("no_such_library",)
    install(folder, "bare", manifest(name="bare", api=1, summary="Bare.", task="pkg_bare.task:T", run="pkg_bare.args:R", requires=requires))
    (folder / "pkg_bare" / "args.py").write_text("from cnnkit.options import RunOptions as R")
    (folder / "pkg_bare" / "task.py").write_text("import no_such_library")
    return folder


@pytest.mark.parametrize("words", [[], ["run"], ["run", "toy"], ["list"], ["list", "backbones"], ["info"]])
def test_help_imports_nothing_heavy(words, fresh):
    result = fresh(*words, "--help", code=PROBE, path=(TOY,))
    assert result.returncode == 0 and result.stdout.startswith("Usage: cnnkit") and result.stderr.strip() == "LOADED"


@pytest.mark.parametrize(
    "words", [["list", "papers", "--json"], ["list", "backbones"], ["list", "plugins"], ["info", "convnext_tiny"], ["info", "toy"]]
)
def test_what_only_reads_declarations_imports_nothing_heavy(words, fresh):
    result = fresh(*words, code=PROBE, path=(TOY,))
    assert result.returncode == 0 and result.stdout and result.stderr.strip() == "LOADED"


def test_a_checkpoint_is_explained_without_torch(toy_checkpoint, fresh):
    result = fresh("info", str(toy_checkpoint), "--json", code=PROBE)
    data = json.loads(result.stdout)
    assert result.stderr.strip() == "LOADED" and result.returncode == 0
    assert data["task"] == "toy" and data["labels"] == ["number"] and data["metrics"] == {"mean": 2.0} and len(data["sha256"]) == 64


def test_help_is_quick(fresh):
    """In processor time, which a busy machine changes little: 0.25 s of an idle one, and a bare interpreter's share."""
    code = "import os, sys; {}; print(sum(os.times()[:2]), file=sys.stderr)"
    whole = min(
        _seconds(fresh, "try:\n from cnnkit.cli import main; main()\nexcept SystemExit: pass\n" + code.format("0")) for _ in range(3)
    )
    assert whole < 0.3


def _seconds(fresh, code: str) -> float:
    return float(fresh("--help", code=code).stderr)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_answers_help(verb, toy):
    result = CliRunner().invoke(cli, [verb, "--help"])
    assert result.exit_code == 0 and result.output.startswith(f"Usage: cli {verb}")


@pytest.mark.parametrize("verb", TASKS)
def test_every_verb_of_a_task_answers_help(verb, toy):
    result = CliRunner().invoke(cli, [verb, "toy", "--help"])
    assert result.exit_code == 0 and result.output.startswith(f"Usage: cli {verb} toy")


def test_the_options_of_a_task_are_its_fields(toy):
    assert [item.name for item in own_fields(toy.load_run())] == ["shift", "sign", "digits", "loud", "delay"]
    shown = CliRunner().invoke(cli, ["run", "toy", "--help"], terminal_width=200).output
    for text in (
        "Multiply numbers.",
        "Writes NAME.out, and report.json.",
        "--shift",
        "[plus|minus]",
        "--loud / --no-loud",
        "[default: plus]",
    ):
        assert text in shown
    assert "Not shown" not in shown


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("rn toy", "unknown command 'rn'; did you mean 'run'"),
        ("run ty x", "unknown plugin 'ty'; did you mean 'toy'?"),
        ("run toy --shfit 3 x", "Did you mean"),
        ("run toy --sign mins x", "'mins' is not one of 'plus', 'minus'"),
        ("run toy --shift much x", "'much' is not a valid float"),
        ("run toy", "no input was given; type: cnnkit run toy FILE"),
        ("run toy x --example", "--example takes no inputs"),
        ("run toy x --shard 3/2", "--shard '3/2' is not of the form I/N"),
        ("run toy x --ckpt lost.ckpt", "checkpoint lost.ckpt does not exist"),
        ("list paper", "unknown command 'paper'; did you mean 'papers'"),
        ("info convnext_tny", "did you mean 'convnext_tiny'"),
        ("info lost.ckpt", "lost.ckpt does not exist"),
        ("info a/lost.pt", "a/lost.pt does not exist"),
        ("info convnext_tiny --plot out.gif", "out.gif has no known suffix; accepted: .png, .svg"),
        ("info convnext_tiny --plot x.svg --size big", "--size 'big' is not a size"),
        ("info convnext_tiny --plot x.svg --size 1,2,3", "--size has 3 sides and the model 2 dimensions"),
        ("info convnext_tiny --plot x.svg --size 2", "input size (2, 2) does not fit convnext_tiny"),
        ("info pvt_tiny --plot x.svg --size 20", "every side must be at least 32"),
        ("info convnext_tiny --size 64", "add --plot out.png"),
        ("info convnext_tny --plot x.svg", "did you mean 'convnext_tiny'"),
        ("info toy --plot x.svg", "--plot draws backbones, and toy is none"),
        ("toy helo", "unknown command 'helo'; did you mean 'hello'"),
        ("export toy --ckpt x -o model.tflite", "model.tflite has no known suffix; accepted: .onnx"),
        ("train toy -o out --preset x", "unknown preset 'x'"),
    ],
)
def test_what_is_typed_wrong_is_answered_with_exit_status_2(words, answer, toy, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    shown = capsys.readouterr()
    assert stop.value.code == 2 and answer in shown.err and "Traceback" not in shown.err and shown.out == ""


def test_a_plugins_own_command(toy, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["toy", "hello", "you"])
    assert stop.value.code == 0 and capsys.readouterr().out == "hello you\n"
    assert "toy  hello" in CliRunner().invoke(cli, ["--help"]).output


@pytest.mark.parametrize("words", ["--help", "run --help", "list plugins", "run toy --help"])
def test_broken_plugins_do_not_break_the_command_line(words, broken, fresh):
    result = fresh(*words.split(), path=(broken, TOY), env={"CNNKIT_PLUGINS": "lacking,older,misnamed,bare,toy"})
    assert result.returncode == 0, result.stderr
    if words == "run --help":
        text = " ".join(result.stdout.split())
        assert "cannot be used: ModuleNotFoundError: No module named 'no_such_library'" in text and "Multiply the numbers" in text


def test_the_doctor_explains_broken_plugins(broken, fresh):
    limit = {"CNNKIT_PLUGINS": "lacking,older,misnamed,bare,toy"}
    result = fresh("doctor", "--json", path=(broken, TOY), env=limit)
    assert result.returncode == 1
    rows = {row["what"]: row for row in json.loads(result.stdout)}
    assert [rows[f"plugin {name}"]["good"] for name in ("lacking", "older", "misnamed", "bare", "toy")] == [False] * 4 + [True]
    assert "no_such_library" in rows["plugin lacking"]["text"] and "pkg_lacking" in rows["plugin lacking"]["text"]
    assert "install a newer cnnkit-older" in rows["plugin older"]["text"] and "its manifest 'other'" in rows["plugin misnamed"]["text"]
    assert rows["plugin bare"]["text"] == "missing: no_such_library; type: pip install cnnkit cnnkit-bare"
    assert rows["safe loading"]["good"] is True
    sound = fresh("doctor", path=(TOY,), env={"CNNKIT_PLUGINS": "toy"})
    assert sound.returncode == 0 and "WRONG" not in sound.stdout


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("run lacking x", "plugin 'lacking' is installed but cannot be used: ModuleNotFoundError"),
        ("lacking hello", "plugin 'lacking' is installed but cannot be used: ModuleNotFoundError"),
        ("train older -o x", "it speaks plugin interface 0 and this cnnkit speaks 1"),
        ("bare", "'bare' is a task and has no commands of its own; type: cnnkit run bare"),
    ],
)
def test_a_broken_plugin_asked_for_says_why(words, answer, broken, fresh):
    result = fresh(*words.split(), path=(broken, TOY), env={"CNNKIT_PLUGINS": "lacking,older,bare,toy"})
    assert result.returncode == 2 and answer in result.stderr and "Traceback" not in result.stderr


def test_a_plugin_that_is_left_out_says_so(fresh):
    result = fresh("run", "toy", "x", path=(TOY,), env={"CNNKIT_PLUGINS": "medseg"})
    assert result.returncode == 2 and "plugin 'toy' is left out by CNNKIT_PLUGINS" in result.stderr


def test_a_task_whose_library_is_missing(broken, toy_checkpoint, tmp_path, fresh):
    (tmp_path / "x").write_text("")
    words = ("run", "bare", "x", "--ckpt", "plain.safetensors", "--config", "c.yaml")
    import safetensors.torch
    import torch

    safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / "plain.safetensors")
    (tmp_path / "c.yaml").write_text("a: 1")
    words = [str(tmp_path / word) if (tmp_path / word).exists() else word for word in words]
    result = fresh(*words, "-o", str(tmp_path / "out"), path=(broken,))
    assert result.returncode == 2 and "no_such_library not installed" in result.stderr
    assert "pip install cnnkit cnnkit-bare" in result.stderr and "Traceback" not in result.stderr


def test_a_known_plugin_that_is_not_installed_is_answered_with_its_pip_line(fresh):
    code = "import sys, importlib.metadata as m; m.entry_points = lambda **k: (); from cnnkit.cli import main; main()"
    for words in ("run medseg x", "export medseg -o a.onnx", "medseg score"):
        result = fresh(*words.split(), code=code)
        assert result.returncode == 2 and "plugin 'medseg' is not installed here; type: pip install cnnkit cnnkit-medseg" in result.stderr
    listed = fresh("list", "plugins", "--json", code=code)
    assert [(row["name"], row["state"]) for row in json.loads(listed.stdout)] == [(name, "not installed") for name in sorted(KNOWN)]
    assert fresh("doctor", code=code).returncode == 0 and "no plugin is installed" in fresh("run", "--help", code=code).stdout


def test_papers_as_json():
    rows = json.loads(CliRunner().invoke(cli, ["list", "papers", "--json"]).output)
    assert len(rows) == 270 and all(row.keys() == {"slug", "title", "home", "built", "names"} for row in rows)
    found = {row["slug"]: row for row in rows}
    assert found["convnext"]["built"] and "convnext_tiny" in found["convnext"]["names"]
    built = json.loads(CliRunner().invoke(cli, ["list", "papers", "--json", "--built"]).output)
    assert built == [row for row in rows if row["built"]]


def test_lists(toy):
    from cnnkit.backbones import list_models

    rows = json.loads(CliRunner().invoke(cli, ["list", "backbones", "--json"]).output)
    assert [row["name"] for row in rows] == list(list_models()) and all(row["params"] > 0 for row in rows)
    volumes = json.loads(CliRunner().invoke(cli, ["list", "backbones", "--json", "--dims", "3"]).output)
    assert volumes == [row for row in rows if 3 in row["dims"]]
    assert json.loads(CliRunner().invoke(cli, ["list", "models", "--json"]).output)[0]["name"] == "toy/line"
    table = CliRunner().invoke(cli, ["list", "plugins"]).output.splitlines()
    assert table[0].split() == ["NAME", "VERSION", "STATE", "SUMMARY"]
    assert any(line.split()[:3] == ["toy", "0.1.0", "ready"] for line in table)


def test_info_explains_models_plugins_and_checkpoints(toy, toy_checkpoint):
    model = json.loads(CliRunner().invoke(cli, ["info", "convnext_tiny", "--json"]).output)
    assert model["name"] == "convnext_tiny" and model["slug"] == "convnext" and model["paper"] == "A ConvNet for the 2020s"
    assert model["published"] == {"parameters (M)": 28.59, "multiply-adds (G) at 224": 4.5, "quality": "82.1 top-1"}
    assert model["counted here"] == {"parameters": 28589128, "multiply-adds (G) at 224": 4.5, "why they differ": ""}
    assert model["dims"] == [1, 2, 3] and model["weights understood"] == ["cnnkit", "timm", "official", "torchvision"]
    assert model["sizes"] == "any" and "2022" in model["reference"] and "depthwise7(x)" in model["idea"]
    text = CliRunner().invoke(cli, ["info", "convnext_tiny"]).output
    assert "None" not in text and "parameters" in text and model["idea"] in text and "why they differ" not in text
    reference = json.loads(CliRunner().invoke(cli, ["info", "seresnet50", "--json"]).output)["reference"]
    assert "Squeeze-and-Excitation" in reference  # The family's paper, though the class is that of another.
    plugin = json.loads(CliRunner().invoke(cli, ["info", "toy", "--json"]).output)
    assert plugin["models"] == {"toy/line": "A straight line."} and plugin["commands"] == ["cnnkit toy hello"] and plugin["missing"] == []
    text = CliRunner().invoke(cli, ["info", str(toy_checkpoint)]).output
    assert "labels" in text and "[" not in text.split("config")[0]


def test_info_states_the_admitted_sizes():
    from cnnkit.cli.info import _sizes

    assert json.loads(CliRunner().invoke(cli, ["info", "pvt_tiny", "--json"]).output)["sizes"] == "every side at least 32"
    assert _sizes({"multiple": 32, "least": 96}) == "every side a multiple of 32, every side at least 96"
    assert _sizes({"fixed": (224, 192)}) == "224 x 192 only; img_size=... builds it for another"


def test_info_finds_no_idea_where_there_is_no_source():
    from cnnkit.cli.info import _docstring

    assert _docstring("no_such_package.module:Class") == _docstring("cnnkit.no_such_module:Class") == ("", "")


def test_info_of_a_file_that_is_no_checkpoint(tmp_path, capsys):
    (tmp_path / "a.ckpt").write_text("hello")
    with pytest.raises(SystemExit) as stop:
        main(["info", str(tmp_path / "a.ckpt")])
    assert stop.value.code == 2 and "a.ckpt is not a checkpoint" in capsys.readouterr().err


def test_eval(toy, toy_checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["eval", "toy", "--ckpt", str(toy_checkpoint), "-o", str(tmp_path), "--json", "-q", "--device", "cpu"])
    shown = capsys.readouterr()
    assert stop.value.code == 0 and json.loads(shown.out) == {"mean": 2.0}
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert "mean" in json.dumps(stored) and stored != {}


def test_the_doctor_predicts_an_example(toy, toy_checkpoint, monkeypatch):
    rows = {row["what"]: row for row in json.loads(CliRunner().invoke(cli, ["doctor", "--deep", "--json"]).output)}
    row = rows["plugin toy, example batch"]
    assert row["good"] is True and row["text"] == "not tried: the plugin ships no checkpoint"
    monkeypatch.setattr("cnnkit.api.find_checkpoint", lambda item: toy_checkpoint)
    object.__setattr__(toy, "checkpoint", "double.ckpt")
    try:
        rows = {row["what"]: row for row in json.loads(CliRunner().invoke(cli, ["doctor", "--deep", "--json"]).output)}
        assert rows["plugin toy, example batch"]["text"] == "1 prediction(s)"
        monkeypatch.setattr("cnnkit.api.find_checkpoint", lambda item: 1 / 0)
        result = CliRunner().invoke(cli, ["doctor", "--deep"], standalone_mode=False)
        assert result.return_value == 1 and "ZeroDivisionError" in result.output
    finally:
        object.__setattr__(toy, "checkpoint", "")
