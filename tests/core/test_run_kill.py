"""A batch that is killed in the middle of writing goes on where it stood, and ends with the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cnnkit import api

TOY = Path(__file__).parent / "toy_plugin"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9")
def test_kill_and_resume(toy, toy_checkpoint, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(6):
        (folder / f"n{number}.txt").write_text(" ".join(map(str, range(number, number + 50))))
    command = [sys.executable, "-c", "from cnnkit.cli import main; main()", "run", "toy", str(folder), "--ckpt", str(toy_checkpoint)]
    path = os.pathsep.join([str(TOY), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "CNNKIT_PLUGINS": "toy"}
    process = subprocess.Popen([*command, "-o", str(out), "--device", "cpu", "--delay", "0.3"], env=env, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 100
        while not (len(list(out.glob("n*.out"))) == 2 and list(out.glob(".part-*n2.out"))):
            assert process.poll() is None and time.monotonic() < deadline, "the run ended, or never came to its third input"
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("n*.out")}
    assert sorted(before) == ["n0.out", "n1.out"] and list(out.glob(".part-*")) and not (out / "report.json").exists()

    options = {"checkpoint": toy_checkpoint, "device": "cpu", "progress": False, "delay": 0.3}
    report = api.run("toy", [folder], output=out, resume=True, **options)
    assert [item.status for item in report.items] == ["resumed"] * 2 + ["ok"] * 4
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert not list(out.rglob(".part-*"))
    whole = tmp_path / "whole"
    api.run("toy", [folder], output=whole, **{**options, "delay": 0.0})
    names = [f"n{number}.out" for number in range(6)]
    assert [(out / name).read_bytes() for name in names] == [(whole / name).read_bytes() for name in names]
