"""DICOM series. Oracle for place and value of every voxel: SimpleITK's own series reader on the same folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from cnnkit.errors import InputError
from cnnkit_medseg.io import read_volume, write_labels
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

COS, SIN = np.cos(0.3), np.sin(0.3)
STRAIGHT = (np.array([1.0, 0, 0]), np.array([0, 1.0, 0]))
TILTED = (np.array([COS, SIN, 0]), np.array([-SIN * COS, COS * COS, SIN]))


def write_series(folder: Path, *, count=4, axes=STRAIGHT, uid=None, step=2.5, slopes=(1.0,), skip=(), **fields) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    uid, random = uid or generate_uid(), np.random.default_rng(3)
    normal = np.cross(*axes)
    for index in range(count):
        values = random.integers(0, 2000, (5, 6)).astype(np.int16)
        if index in skip:
            continue
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        data = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID, data.SeriesDescription, data.Modality = uid, f"thorax {uid[-4:]}", "CT"
        data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 5, 6, 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.PixelSpacing = [0.75, 0.5]
        data.ImagePositionPatient = [round(float(value), 6) for value in np.array([-20.0, 10, 5]) + index * step * normal]
        data.ImageOrientationPatient = [round(float(value), 8) for value in np.concatenate(axes)]
        data.RescaleSlope, data.RescaleIntercept = slopes[index % len(slopes)], -1024
        data.InstanceNumber = count - index
        for key, value in fields.items():
            setattr(data, key, value)
        data.PixelData = values.tobytes()
        data.save_as(folder / f"{(index * 7) % 10}-{uid[-6:]}")  # Names in another order than the slices, without suffix.
    return folder


@pytest.mark.parametrize("axes", [STRAIGHT, TILTED], ids=["straight", "oblique"])
def test_series_lies_where_simpleitk_puts_it(tmp_path, axes):
    folder = write_series(tmp_path / "ct", axes=axes)
    (folder / "readme.txt").write_text("not a slice")
    volume = read_volume([folder], channels=1)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    values = sitk.GetArrayFromImage(image)
    assert volume.name == "ct" and volume.warnings == [] and sorted(volume.array.shape) == sorted((1, *image.GetSize()))
    for index in np.ndindex(image.GetSize()):
        index = tuple(map(int, index))
        ras = np.array(image.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
        voxel = np.linalg.solve(volume.affine, [*ras, 1])[:3]
        np.testing.assert_allclose(voxel, voxel.round(), atol=1e-4)
        assert volume.array[(0, *voxel.round().astype(int))] == values[index[::-1]]
    again = sitk.ReadImage(str(write_labels(tmp_path / "o.nii.gz", (volume.array[0] > 0).astype(int), volume.grid)))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(again), values > 0)
    np.testing.assert_allclose(again.GetOrigin(), image.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(again.GetDirection(), image.GetDirection(), atol=1e-5)


def test_each_slice_has_its_own_slope(tmp_path):
    volume = read_volume([write_series(tmp_path / "pet", slopes=(1.0, 0.37))])
    raw = [pydicom.dcmread(path) for path in (tmp_path / "pet").iterdir()]
    raw.sort(key=lambda data: data.ImagePositionPatient[2])
    expected = np.stack([data.pixel_array * float(data.RescaleSlope) - 1024 for data in raw], -1).transpose(1, 0, 2)[::-1, ::-1]
    np.testing.assert_allclose(volume.array[0], expected, rtol=1e-6, atol=1e-4)


def test_localizer_and_report_are_passed_over(tmp_path):
    folder = write_series(tmp_path / "ct")
    write_series(folder, count=1, uid="1.2.3.999999")
    write_series(folder, count=1, uid="1.2.3.777777", Rows=0, Columns=0, Modality="SR")
    volume = read_volume([folder])
    assert volume.array.shape == (1, 6, 5, 4)
    assert len(volume.warnings) == 1 and "1.2.3.999999" in volume.warnings[0]


def two_series(folder: Path) -> None:
    write_series(folder, uid="1.2.3.111111")
    write_series(folder, uid="1.2.3.222222")


def mixed(**fields):
    def make(folder: Path) -> None:
        write_series(folder, count=3, uid="1.2.3.111111")
        write_series(folder, count=5, uid="1.2.3.111111", skip=(0, 1, 2), **fields)

    return make


def truncated(folder: Path) -> None:
    path = sorted(write_series(folder).iterdir())[1]
    path.write_bytes(path.read_bytes()[:-40])


REFUSED = {
    "two series": (two_series, r"2 DICOM series.*1\.2\.3\.111111 CT 'thorax 1111' \(4 slices\); 1\.2\.3\.222222"),
    "missing slice": (lambda f: write_series(f, count=7, skip=(3,)), r"gap between .* at 10\.00 mm and .* at 15\.00 mm: 5\.00 mm"),
    "two time points": (mixed(ImagePositionPatient=[-20, 10, 5]), "two slices at one place"),
    "other matrix": (mixed(Rows=6, Columns=5), "slices do not match"),
    "other orientation": (mixed(ImageOrientationPatient=[0, 1, 0, 0, 0, 1]), "slices of different orientation"),
    "no position": (lambda f: write_series(f, ImagePositionPatient=None), "cannot be placed"),
    "colour": (lambda f: write_series(f, SamplesPerPixel=3), "colour"),
    "multi-frame": (lambda f: write_series(f, NumberOfFrames=2), "multi-frame"),
    "single slice": (lambda f: write_series(f, count=1), "single slice"),
    "no image": (lambda f: f.mkdir(), "no DICOM image"),
    "truncated": (truncated, "cannot be decoded|damaged"),
    "tilted gantry": (lambda f: tilted_gantry(f), "non-orthonormal.*gantry"),
}


def tilted_gantry(folder: Path) -> None:
    for path in write_series(folder).iterdir():
        data = pydicom.dcmread(path)
        data.ImagePositionPatient[1] += 0.2 * data.ImagePositionPatient[2]
        data.save_as(path)


@pytest.mark.parametrize("reason", REFUSED)
def test_series_that_is_no_volume_is_refused_with_the_cause(tmp_path, reason):
    make, cause = REFUSED[reason]
    folder = tmp_path / "ct"
    make(folder)
    with pytest.raises(InputError, match=f"(?s){folder}.*({cause})"):
        read_volume([folder])
