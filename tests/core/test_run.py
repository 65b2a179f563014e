"""A batch: bad inputs harm no other, reports say what happened, and an interrupted batch goes on."""

from __future__ import annotations

import csv
import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from cnnkit import api
from cnnkit.checkpoint import digest, save_checkpoint
from cnnkit.cli import cli, main
from cnnkit.errors import CheckpointError, ConfigError, UsageError


@pytest.fixture
def inputs(tmp_path):
    """Five inputs, of which the second and the fourth are bad."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, text in {"a": "1 2", "b": "1 x", "c": "3", "d": "bug", "e": "-4"}.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


@pytest.fixture
def run(toy, toy_checkpoint, tmp_path):
    def call(*inputs, **options):
        options = {"checkpoint": toy_checkpoint, "output": tmp_path / "out", "progress": False, "device": "cpu"} | options
        return api.run("toy", inputs, **options)

    return call


def status(report) -> dict[str, str]:
    return {item.name: item.status for item in report.items}


def stored(folder: Path, name: str = "report.json") -> dict:
    return json.loads((folder / name).read_text())


def errors(folder: Path, name: str = "errors.csv") -> dict[str, dict[str, str]]:
    with open(folder / name, newline="") as stream:
        return {row["input"]: row for row in csv.DictReader(stream)}


def test_bad_inputs_are_rows_and_the_others_go_on(run, inputs, tmp_path, capsys):
    report = run(inputs, tmp_path / "lost.txt")
    assert status(report) == {"a": "ok", "b": "error", "c": "ok", "d": "error", "e": "ok", "lost": "error"}
    out = tmp_path / "out"
    assert (out / "a.out").read_text() == "2.0 4.0" and (out / "e.out").read_text() == "-8.0"
    assert not (out / "b.out").exists() and not list(out.glob(".part-*"))
    rows = errors(out)
    assert list(rows) == ["b", "d", "lost"]
    assert "b.txt: not a number" in rows["b"]["error"] and rows["b"]["files"] == str(inputs / "b.txt")
    assert rows["d"]["error"] == "d: ZeroDivisionError: a fault of the task"
    assert "lost.txt does not exist" in rows["lost"]["error"]
    assert "error: " in capsys.readouterr().err  # Errors are shown even without progress.


def test_the_report(run, inputs, toy_checkpoint, tmp_path):
    report = run(inputs, shift=1.0)
    data = stored(tmp_path / "out")
    assert data == json.loads(json.dumps(report.to_json())) and report.path == tmp_path / "out" / "report.json"
    assert data["task"] == "toy" and data["labels"] == ["number"] and data["device"]["type"] == "cpu" and data["complete"] is True
    assert data["versions"].keys() == {"python", "cnnkit", "cnnkit-toy", "torch"} and data["versions"]["torch"] == torch.__version__
    assert data["checkpoint"] == digest(toy_checkpoint) and data["checkpoint_file"] == str(toy_checkpoint)
    assert data["options"] == {"shift": 1.0, "sign": "plus", "digits": None, "loud": None, "delay": 0.0}
    assert data["counts"] == {"ok": 3, "resumed": 0, "error": 2} and data["seconds"] >= 0 and data["started"] <= data["finished"]
    rows = {row["name"]: row for row in data["inputs"]}
    assert rows["a"]["files"] == [str(inputs / "a.txt")] and rows["a"]["outputs"] == [str(tmp_path / "out" / "a.out")]
    assert rows["a"]["seconds"].keys() == {"read", "predict", "write"} and "warnings" not in rows["a"]
    assert rows["e"]["warnings"] == ["e.txt: negative numbers"]  # And not what is of no interest to people.
    assert "Traceback" in rows["d"]["details"] and "details" not in rows["b"]


def test_an_input_without_content_is_an_error(run, tmp_path):
    (tmp_path / "void.txt").write_text("")
    assert "void: nothing was found to work on" in run(tmp_path / "void.txt").items[0].error


def test_a_later_good_run_removes_the_old_errors(run, inputs, tmp_path):
    run(inputs)
    (inputs / "b.txt").write_text("5")
    (inputs / "d.txt").unlink()
    assert not run(inputs).failed and not (tmp_path / "out" / "errors.csv").exists()


def test_resume_skips_what_is_finished(run, inputs, tmp_path):
    out = tmp_path / "out"
    run(inputs)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.out")}
    again = run(inputs, resume=True)
    assert status(again) == {"a": "resumed", "b": "error", "c": "resumed", "d": "error", "e": "resumed"}
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.out")} == before
    assert [str(path) for path in again.items[0].outputs] == [str(out / "a.out")]
    assert set(status(run(inputs)).values()) == {"ok", "error"}  # Without resume everything is done again.


@pytest.mark.parametrize("change", ["content", "time", "missing output", "short output", "damaged record"])
def test_resume_does_again_what_has_changed(change, run, inputs, tmp_path):
    out = tmp_path / "out"
    run(inputs)
    if change == "content":
        (inputs / "a.txt").write_text("7 8 9")
    elif change == "time":
        os.utime(inputs / "a.txt", ns=(1, 1))
    elif change == "missing output":
        (out / "a.out").unlink()
    elif change == "short output":
        (out / "a.out").write_text("2")
    else:
        for record in (out / ".cnnkit" / "journal").iterdir():
            if json.loads(record.read_text())["name"] == "a":
                record.write_text("[]")
    report = run(inputs, resume=True)
    assert status(report) == {"a": "ok", "b": "error", "c": "resumed", "d": "error", "e": "resumed"}
    assert (out / "a.out").read_text() == ("14.0 16.0 18.0" if change == "content" else "2.0 4.0")


def test_resume_does_everything_again_in_another_way(run, inputs, tmp_path):
    done = {"ok", "error"}
    run(inputs)
    assert set(status(run(inputs, resume=True, shift=1.0)).values()) == done
    assert set(status(run(inputs, resume=True, shift=1.0, overrides=["unit=mm"])).values()) == done
    other = save_checkpoint(tmp_path / "triple.ckpt", {"weight": torch.tensor([[3.0]])}, api_header())
    assert set(status(run(inputs, resume=True, checkpoint=other)).values()) == done
    base, file = tmp_path / "base.yaml", tmp_path / "c.yaml"
    base.write_text("unit: cm")
    file.write_text("extends: base.yaml")
    run(inputs, config=file)
    assert "resumed" in status(run(inputs, resume=True, config=file)).values()
    base.write_text("unit: km")  # The file that was named stays the same.
    assert set(status(run(inputs, resume=True, config=file)).values()) == done
    assert (tmp_path / "out" / "a.out").read_text() == "2.0 4.0km"


def api_header():
    from cnnkit.checkpoint import Header

    return Header(task="toy", config={"names": ["number"]}, labels=("number",))


def test_parts_cover_the_batch_and_keep_out_of_each_others_way(run, inputs, tmp_path):
    out = tmp_path / "out"
    done = [status(run(inputs, shard=f"{index}/3")) for index in (1, 2, 3)]
    assert [list(part) for part in done] == [["a", "d"], ["b", "e"], ["c"]]
    assert sorted(path.name for path in out.glob("report*.json")) == ["report-1of3.json", "report-2of3.json", "report-3of3.json"]
    assert sorted(path.name for path in out.glob("errors*.csv")) == ["errors-1of3.csv", "errors-2of3.csv"]
    assert list(errors(out, "errors-2of3.csv")) == ["b"]
    assert sorted(path.name for path in out.glob("*.out")) == ["a.out", "c.out", "e.out"]
    assert status(run(inputs, resume=True))["c"] == "resumed"  # The parts share one journal.


def test_inputs_of_one_name_do_not_overwrite_each_other(run, tmp_path):
    for folder, text in (("x", "1"), ("y", "2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "n.txt").write_text(text)
    run(tmp_path / "x", tmp_path / "y")
    assert {path.name: path.read_text() for path in (tmp_path / "out").glob("*.out")} == {"x_n.out": "2.0", "y_n.out": "4.0"}


def test_a_full_disk_harms_one_input_and_is_named(run, inputs, tmp_path, monkeypatch):
    whole = Path.open

    def full(self, *args, **kwargs):
        if "c.out" in self.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    report = run(inputs)
    out = tmp_path / "out"
    assert status(report) == {"a": "ok", "b": "error", "c": "error", "d": "error", "e": "ok"}
    assert "c: No space left on device" in errors(out)["c"]["error"] and not list(out.glob(".part-*"))


def test_a_disk_too_full_for_the_report(toy, toy_checkpoint, inputs, tmp_path, monkeypatch):
    import cnnkit.engine.files as files

    def full(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "write_text", lambda path, text: full(path, text) if "report" in str(path) else Path(path).write_text(text))
    result = CliRunner().invoke(
        cli, ["run", "toy", str(inputs / "a.txt"), "--ckpt", str(toy_checkpoint), "-o", str(tmp_path / "out")], standalone_mode=False
    )
    assert (tmp_path / "out" / "a.out").read_text() == "2.0 4.0"
    assert "the report could not be written" in result.stderr and "No space left" in result.stderr
    assert result.return_value == 1 and "None" not in result.stdout


def test_an_interrupt_leaves_a_report(run, inputs, toy_checkpoint, tmp_path):
    (inputs / "c.txt").write_text("stop")
    with pytest.raises(KeyboardInterrupt):
        run(inputs)
    data = stored(tmp_path / "out")
    assert data["complete"] is False and [row["name"] for row in data["inputs"]] == ["a", "b"]
    with pytest.raises(SystemExit) as stop:
        main(["run", "toy", str(inputs), "--ckpt", str(toy_checkpoint), "-o", str(tmp_path / "out"), "-q"])
    assert stop.value.code == 130
    (inputs / "c.txt").write_text("3")
    assert status(run(inputs, resume=True)) == {"a": "resumed", "b": "error", "c": "ok", "d": "error", "e": "ok"}


def test_what_is_wrong_before_the_work_starts(run, inputs, toy_checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"output folder .*file/out is not writable"):
        run(inputs, output=tmp_path / "file" / "out")
    with pytest.raises(CheckpointError, match=r"lost\.ckpt does not exist"):
        run(inputs, checkpoint=tmp_path / "lost.ckpt")
    with pytest.raises(CheckpointError, match="ships no checkpoint; give one with --ckpt"):
        run(inputs, checkpoint=None)
    with pytest.raises(UsageError, match="unknown option of toy 'shfit'; did you mean 'shift'"):
        run(inputs, shfit=1.0)
    with pytest.raises(UsageError, match="unknown value of option 'sign'"):
        run(inputs, sign="mins")
    with pytest.raises(UsageError, match="no input was given"):
        run()
    with pytest.raises(UsageError, match="takes no inputs"):
        run(inputs, example=True)
    with pytest.raises(UsageError, match="device 'cuda:99' is not available"):
        run(inputs, device="cuda:99")
    with pytest.raises(ConfigError, match="unknown key 'unti'; did you mean 'unit'"):
        run(inputs, overrides=["unti=mm"])
    assert not (tmp_path / "out" / "report.json").exists()


def test_one_path_may_stand_by_itself(run, toy_checkpoint, inputs, tmp_path):
    report = api.run("toy", str(inputs / "a.txt"), output=tmp_path / "one", checkpoint=toy_checkpoint, progress=False, device="cpu")
    assert status(report) == {"a": "ok"}


def test_the_example(run, tmp_path):
    report = run(example=True)
    assert report.items[0].summary == {"largest": 10.0} and stored(tmp_path / "out")["inputs"][0]["summary"] == {"largest": 10.0}


@pytest.mark.parametrize(("names", "code"), [("a.txt c.txt", 0), ("a.txt b.txt", 1)])
def test_the_command_line_prints_json_alone_and_its_status_says_if_all_is_well(names, code, toy, toy_checkpoint, inputs, tmp_path, capsys):
    files = [str(inputs / name) for name in names.split()]
    with pytest.raises(SystemExit) as stop:
        main(["run", "toy", *files, "--ckpt", str(toy_checkpoint), "-o", str(tmp_path / "out"), "--json", "--sign", "minus", "--loud"])
    shown = capsys.readouterr()
    data = json.loads(shown.out)
    assert stop.value.code == code and data["options"]["sign"] == "minus" and data["options"]["loud"] is True
    assert "[1/2] a: ok" in shown.err and (tmp_path / "out" / "a.out").read_text() == "-2.0 -4.0"


def test_the_command_line_prints_what_it_wrote(toy, toy_checkpoint, inputs, tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        main(["run", "toy", "--example", "--ckpt", str(toy_checkpoint), "-o", str(out)])
    assert stop.value.code == 0
    assert capsys.readouterr().out.splitlines() == ["largest  10", str(out / "example.out"), str(out / "report.json")]
    with pytest.raises(SystemExit) as stop:
        main(["run", "toy", str(inputs), "--ckpt", str(toy_checkpoint), "-o", str(out), "-q"])
    shown = capsys.readouterr()
    assert stop.value.code == 1 and shown.out == "" and "error: " in shown.err and "[1/" not in shown.err


def test_options_choose_among_built_in_checkpoints(toy, tmp_path, monkeypatch):
    from cnnkit_toy.args import Run

    monkeypatch.setattr(Run, "builtin", lambda self, checkpoint: f"weights/{self.sign}.ckpt")
    shipped = replace(toy, checkpoint="weights/plus.ckpt")
    for sign in ("plus", "minus"):
        with pytest.raises(CheckpointError, match=rf"weights.{sign}.ckpt is missing"):
            api.find_checkpoint(shipped, None, Run(sign=sign))
    with pytest.raises(CheckpointError, match="ships no checkpoint"):
        api.find_checkpoint(toy, None, Run())
