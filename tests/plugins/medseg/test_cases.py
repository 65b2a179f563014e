"""Finding cases: names, channels, DICOM folders, and one bad case among good ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cnnkit.errors import InputError
from cnnkit_medseg.cases import find_cases


def touch(folder: Path, *names: str, content: bytes = b"x") -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return paths


def dicom(folder: Path, *names: str) -> None:
    touch(folder, *names, content=bytes(128) + b"DICM" + bytes(8))


def failure(cases, name: str) -> str:
    assert isinstance(cases[name], InputError)
    return str(cases[name])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".gipl.gz", ".NII.GZ"])
def test_a_file_is_a_case_named_without_its_suffix(tmp_path, suffix):
    (path,) = touch(tmp_path, f"liver.v2{suffix}")
    assert find_cases([path]) == {"liver.v2": (path,)}


def test_folder_gives_sorted_cases_and_passes_over_other_files(tmp_path):
    touch(tmp_path, "b.nii.gz", "a.mha", "dataset.json", "._a.mha", ".part-x-b.nii.gz", "a.zraw")
    assert find_cases([tmp_path]) == {"a": (tmp_path / "a.mha",), "b": (tmp_path / "b.nii.gz",)}
    assert list(find_cases([tmp_path])) == ["a", "b"]


def test_order_and_repetition_of_the_arguments_do_not_matter(tmp_path):
    b, a = touch(tmp_path, "b.nii", "a.nii")
    assert find_cases([b, a, b]) == find_cases([tmp_path, a]) == {"a": (a,), "b": (b,)}


def test_pair_of_header_and_image_is_one_case(tmp_path):
    touch(tmp_path, "a.hdr", "a.img", "b.hdr", "c.img")
    cases = find_cases([tmp_path])
    assert cases["a"] == (tmp_path / "a.hdr",)
    assert str(tmp_path / "b.img") in failure(cases, "b")
    assert str(tmp_path / "c.hdr") in failure(cases, "c")
    assert find_cases([tmp_path / "a.img"]) == {"a": (tmp_path / "a.img",)}


def test_channels_in_files_of_their_own(tmp_path):
    files = touch(tmp_path, "p1_0000.nii.gz", "p1_0001.nii.gz")
    others = touch(tmp_path, "p2_0000.nii.gz", "p2_0001.nii.gz")
    assert find_cases([tmp_path]) == find_cases([tmp_path], 2) == {"p1": tuple(files), "p2": tuple(others)}


def test_missing_channel_is_named_and_other_cases_go_on(tmp_path):
    touch(tmp_path, "gap_0000.nii.gz", "gap_0002.nii.gz", "few_0000.nii.gz", "few_0001.nii.gz")
    good = touch(tmp_path, "ok_0000.nii.gz", "ok_0001.nii.gz", "ok_0002.nii.gz")
    cases = find_cases([tmp_path], channels=3)
    assert cases["ok"] == tuple(good)
    assert str(tmp_path / "gap_0001.nii.gz") in failure(cases, "gap")
    assert str(tmp_path / "few_0002.nii.gz") in failure(cases, "few")
    assert str(tmp_path / "gap_0001.nii.gz") in failure(find_cases([tmp_path]), "gap")


def test_first_channel_missing(tmp_path):
    touch(tmp_path, "p_0001.nii.gz")
    assert "p_0000.nii.gz" in failure(find_cases([tmp_path], channels=2), "p")


def test_numbers_of_patients_are_no_channels(tmp_path):
    a, b = touch(tmp_path, "patient_0012.nii.gz", "patient_0013.nii.gz")
    for channels in (None, 1, 2):
        assert find_cases([tmp_path], channels) == {"patient_0012": (a,), "patient_0013": (b,)}


def test_too_many_channels(tmp_path):
    touch(tmp_path, "p_0000.nii.gz", "p_0001.nii.gz")
    assert "the model takes 1" in failure(find_cases([tmp_path], channels=1), "p")


def test_dicom_is_recognised_by_content_and_named_after_its_folder(tmp_path):
    dicom(tmp_path / "ct", "IM0001", "IM0002")
    touch(tmp_path / "mr", "1.dcm")
    touch(tmp_path / "notes", "a.txt")
    dicom(tmp_path / "index", "DICOMDIR")
    assert find_cases([tmp_path / "ct"]) == {"ct": (tmp_path / "ct",)}
    assert find_cases([tmp_path]) == {"ct": (tmp_path / "ct",), "mr": (tmp_path / "mr",)}


def test_one_dicom_file_is_answered_with_its_folder(tmp_path):
    dicom(tmp_path, "IM1")
    assert f"folder of its series: {tmp_path}" in failure(find_cases([tmp_path / "IM1"]), "IM1")


def test_collisions_are_told_apart_by_folders(tmp_path):
    a, b = touch(tmp_path, "a/scan.nii.gz", "b/scan.nii.gz")
    assert find_cases([b, a]) == find_cases([tmp_path / "b", tmp_path / "a"]) == {"a_scan": (a,), "b_scan": (b,)}
    c, d = touch(tmp_path, "x/s/scan.mha", "y/s/scan.mha")
    assert find_cases([c, d]) == {"x_s_scan": (c,), "y_s_scan": (d,)}


def test_collision_in_one_folder_and_with_an_existing_name(tmp_path):
    a, b = touch(tmp_path, "scan.nii.gz", "scan.nrrd")
    assert set(find_cases([tmp_path])) == {"scan_nii_gz", "scan_nrrd"}
    c, d = touch(tmp_path, "a/scan.nii", "a_scan.nii")
    assert find_cases([a, c, d])["a_scan"] == (d,)
    assert len(find_cases([a, b, c, d])) == 4


def test_dicom_series_of_one_folder_name(tmp_path):
    dicom(tmp_path / "p1/ct", "1")
    dicom(tmp_path / "p2/ct", "1")
    assert find_cases([tmp_path]) == {"p1_ct": (tmp_path / "p1/ct",), "p2_ct": (tmp_path / "p2/ct",)}


def test_bad_paths_become_values_that_say_what_is_accepted(tmp_path):
    (good,) = touch(tmp_path, "good.nii")
    (text,) = touch(tmp_path, "notes.txt")
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = find_cases([good, tmp_path / "gone.nii", text, empty])
    assert cases["good"] == (good,)
    assert "no such file" in failure(cases, "gone")
    assert ".nii.gz" in failure(cases, "notes.txt")
    assert "empty folder" in failure(cases, "empty")
    with pytest.raises(InputError, match="no input"):
        find_cases([])


def test_import_needs_neither_numpy_nor_torch():
    code = "import sys, cnnkit_medseg.cases; print([m for m in ('numpy', 'torch', 'nibabel', 'SimpleITK') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
