"""Inputs by unique names, parts of a batch, and checked choices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from cnnkit.errors import InputError, UsageError
from cnnkit.options import RunOptions, Shard, name_inputs, option


@dataclass(frozen=True)
class Run(RunOptions):
    suffixes = (".nii", ".nii.gz")
    way: str = option("left", "Where to go.", choices=("left", "right"))


def make(root: Path, *names: str) -> list[Path]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    return [root / name for name in names]


def test_a_folder_stands_for_its_files(tmp_path):
    make(tmp_path, "in/b.nii.gz", "in/a.NII", "in/.hidden.nii", "in/notes.txt", "in/deeper/c.nii")
    assert Run(inputs=(tmp_path / "in",)).group() == {"a": (tmp_path / "in/a.NII",), "b": (tmp_path / "in/b.nii.gz",)}


def test_what_cannot_be_used_stands_as_its_error(tmp_path):
    (tmp_path / "empty").mkdir()
    good, other = make(tmp_path, "good.nii", "other.txt")
    grouped = Run(inputs=(tmp_path / "lost.nii", tmp_path / "empty", other, good)).group()
    assert grouped.pop("good") == (good,)
    assert all(isinstance(value, InputError) for value in grouped.values())
    assert "does not exist" in str(grouped["lost"]) and "holds no input" in str(grouped["empty"])
    assert "other.txt is not an accepted kind of file; accepted: .nii, .nii.gz" in str(grouped["other"])


def test_equal_names_are_told_apart_by_their_folders(tmp_path):
    paths = make(tmp_path, "s1/a/x.nii", "s1/b/x.nii", "s2/a/x.nii", "s1/a/y.nii")
    assert list(name_inputs(paths, (".nii",))) == ["s1_a_x", "s1_b_x", "s2_a_x", "s1_a_y"]
    assert list(name_inputs(paths[:2], (".nii",))) == ["a_x", "b_x"]
    assert list(name_inputs([paths[0], paths[3]], (".nii",))) == ["x", "y"]


def test_files_of_one_folder_that_differ_in_their_suffix(tmp_path):
    names = list(name_inputs(make(tmp_path, "scan.png", "scan.jpg", "scan_png.tif"), ()))
    assert len(set(names)) == 3
    assert names[1] == "scan_jpg" or names[1].startswith("scan_jpg")
    for name in names:  # A name is a file name: it never leads out of the output folder.
        assert (tmp_path / f"{name}.out").parent == tmp_path


def test_the_same_file_twice_is_one_input(tmp_path, monkeypatch):
    (path,) = make(tmp_path, "x.nii")
    monkeypatch.chdir(tmp_path)
    assert len(name_inputs([path, Path("x.nii"), tmp_path / "y" / ".." / "x.nii"], (".nii",))) == 1


def test_a_link_keeps_its_own_name(tmp_path):
    (target,) = make(tmp_path, "objects/3f2a.nii")
    (tmp_path / "patient.nii").symlink_to(target)
    assert list(name_inputs([tmp_path / "patient.nii"], (".nii",))) == ["patient"]


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2", "1/2/3", ""])
def test_malformed_parts(text):
    with pytest.raises(UsageError, match="--shard"):
        Shard.parse(text)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_parts_cover_everything_once(count):
    parts = [Shard.parse(f"{index}/{count}") for index in range(1, count + 1)]
    assert all(sum(part.takes(position) for part in parts) == 1 for position in range(20))
    assert len({part.suffix for part in parts}) == count and Shard().suffix == ""


def test_choices_hold_in_python_too():
    assert Run(way="right").way == "right"
    with pytest.raises(UsageError, match="unknown value of option 'way': 'rigth'; did you mean 'right'"):
        Run(way="rigth")
