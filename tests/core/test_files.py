"""A file is whole under its name, or not there."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest
from cnnkit.engine.files import atomic_path, remove_stale_parts, writable_folder, write_json, write_text
from cnnkit.errors import UsageError


def test_the_name_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "a.nii.gz"
    with atomic_path(target) as part:
        assert part.name.endswith(".nii.gz") and part.parent == target.parent
        part.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole" and list(target.parent.iterdir()) == [target]


def test_a_failure_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(OSError, match="full"), atomic_path(target) as part:
        part.write_text("half")
        raise OSError("full")
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_colleagues_can_read_it(tmp_path):
    before = os.umask(0o022)
    try:
        path = write_text(tmp_path / "a.txt", "ü")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644 and path.read_bytes() == "ü".encode()


def test_a_name_as_long_as_the_file_system_allows(tmp_path):
    path = tmp_path / ("x" * 245 + ".nii.gz")
    assert write_text(path, "1").read_text() == "1"


def test_parts_of_dead_processes_are_removed_and_of_living_ones_kept(tmp_path):
    script = (
        "import sys, os; from cnnkit.engine.files import atomic_path\n"
        f"with atomic_path({str(tmp_path / 'a.txt')!r}) as part: part.write_text('half'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 9
    (dead,) = tmp_path.glob(".part-*")
    elsewhere = tmp_path / ".part-999999@another_machine-x-a.txt"
    elsewhere.write_text("")
    with atomic_path(tmp_path / "b.txt") as mine:
        remove_stale_parts(tmp_path)
        assert mine.exists() and elsewhere.exists() and not dead.exists()
        mine.write_text("b")


def test_folders_that_cannot_be_written(tmp_path):
    assert writable_folder(tmp_path / "new" / "folder").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"output folder .*file/out is not writable \(.*\); choose another with -o"):
        writable_folder(tmp_path / "file" / "out")
    with pytest.raises(UsageError, match="is not writable"):
        writable_folder(tmp_path / "file")


def test_json_is_readable(tmp_path):
    assert write_json(tmp_path / "a.json", {"ü": [1]}).read_text(encoding="utf-8") == '{\n  "ü": [\n    1\n  ]\n}\n'
