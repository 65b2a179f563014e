"""One DICOM series as one volume, or a sentence that says why it is none.

Headers are read with pydicom to prove that the slices form a regular grid; pixels are decoded by GDCM through SimpleITK.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cnnkit.errors import InputError
from numpy.typing import NDArray

from cnnkit_medseg.cases import dicom_files
from cnnkit_medseg.geometry import Affine, Grid, check_affine

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

_TAGS = [
    "SeriesInstanceUID",
    "SeriesDescription",
    "Modality",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
]


@dataclass(frozen=True)
class _Slice:
    path: Path
    uid: str
    description: str
    modality: str
    size: tuple[int, int]
    frames: int
    samples: int
    spacing: tuple[float, ...]
    position: tuple[float, ...]
    orientation: tuple[float, ...]


def read_series(folder: Path) -> tuple[NDArray[np.float32], Grid, list[str]]:
    """Read the one image series of a folder.

    Args:
        folder: Holds the slices, in any order and under any names; other files are passed over.

    Returns:
        Rescaled values ``(*spatial)``: along the rows, along the columns, along the normal of the slices; grid; and warnings.

    Raises:
        InputError: If there is no series or more than one, a slice is missing, doubled or damaged, or slices do not match.
    """
    slices, warnings = _pick_series(folder, [_read_header(path) for path in dicom_files(folder)])
    _check_slices(folder, slices)
    slices, affine = _grid_of(folder, slices)
    array = _read_pixels(folder, slices)
    x, y, z = array.shape
    return array, Grid((x, y, z), check_affine(affine, folder), None, str(folder)), warnings


def _read_header(path: Path) -> _Slice:
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS, force=path.suffix.lower() == ".dcm")
        return _Slice(
            path=path,
            uid=str(data.get("SeriesInstanceUID", "")),
            description=str(data.get("SeriesDescription", "")),
            modality=str(data.get("Modality", "")),
            size=(int(data.get("Columns") or 0), int(data.get("Rows") or 0)),
            frames=int(data.get("NumberOfFrames") or 1),
            samples=int(data.get("SamplesPerPixel") or 1),
            spacing=tuple(float(value) for value in data.get("PixelSpacing") or ()),
            position=tuple(float(value) for value in data.get("ImagePositionPatient") or ()),
            orientation=tuple(float(value) for value in data.get("ImageOrientationPatient") or ()),
        )
    except (InvalidDicomError, OSError, EOFError, ValueError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
        raise InputError(f"{path}: damaged DICOM header ({error})") from error


def _pick_series(folder: Path, slices: list[_Slice]) -> tuple[list[_Slice], list[str]]:
    """Return the only series with several images; localizers and objects without pixels are passed over with a warning."""
    series: dict[str, list[_Slice]] = defaultdict(list)
    for item in slices:
        if item.size != (0, 0):  # Reports, structure sets and the like have no pixels.
            series[item.uid].append(item)
    if not series:
        raise InputError(f"{folder}: no DICOM image in this folder")
    for items in series.values():
        if items[0].frames > 1:
            raise InputError(f"{items[0].path}: multi-frame DICOM ({items[0].frames} frames); convert it to NIfTI, e.g. with dcm2niix")
    volumes = {uid: items for uid, items in series.items() if len(items) > 1}
    if not volumes:
        raise InputError(f"{folder}: every DICOM series here has a single slice; a volume needs at least two")
    if len(volumes) > 1:
        listed = "; ".join(
            f"{uid} {items[0].modality} '{items[0].description}' ({len(items)} slices)" for uid, items in sorted(volumes.items())
        )
        raise InputError(f"{folder}: {len(volumes)} DICOM series in one folder; put each into a folder of its own: {listed}")
    ((chosen, items),) = volumes.items()
    skipped = sorted(uid for uid in series if uid != chosen)
    return items, [f"passed over DICOM series of a single image: {', '.join(skipped)}"] if skipped else []


def _check_slices(folder: Path, slices: list[_Slice]) -> None:
    first = slices[0]
    for item in slices:
        if item.samples != 1:
            raise InputError(f"{item.path}: colour DICOM image; a series of intensities is needed, one number per voxel")
        if len(item.position) != 3 or len(item.orientation) != 6 or len(item.spacing) != 2:
            raise InputError(f"{item.path}: no ImagePositionPatient, ImageOrientationPatient or PixelSpacing; the slice cannot be placed")
        if item.size != first.size or not np.allclose(item.spacing, first.spacing, rtol=1e-3):
            raise InputError(
                f"{folder}: slices do not match: {first.path.name} has {first.size} pixels of {first.spacing} mm, "
                f"{item.path.name} has {item.size} of {item.spacing}"
            )
        if not np.allclose(item.orientation, first.orientation, atol=1e-3):
            raise InputError(f"{folder}: slices of different orientation: {first.path.name} and {item.path.name}; keep one stack of slices")


def _grid_of(folder: Path, slices: list[_Slice]) -> tuple[list[_Slice], Affine]:
    """Sort the slices along their normal, check that the steps are equal, and return them with the affine to RAS."""
    row, column = np.array(slices[0].orientation[:3]), np.array(slices[0].orientation[3:])
    normal = np.cross(row, column)
    slices = sorted(slices, key=lambda item: float(np.dot(item.position, normal)))
    places = np.array([np.dot(item.position, normal) for item in slices])
    steps = np.diff(places)
    usual = float(np.median(steps))
    if steps.min() < 1e-3:
        index = int(steps.argmin())
        raise InputError(
            f"{folder}: two slices at one place, {slices[index].path.name} and {slices[index + 1].path.name} at {places[index]:.2f} mm: "
            "several time points, echoes or reconstructions; keep one of them in the folder"
        )
    worst = int(np.abs(steps - usual).argmax())
    if abs(steps[worst] - usual) > max(0.02, 0.02 * usual):
        raise InputError(
            f"{folder}: gap between {slices[worst].path.name} at {places[worst]:.2f} mm and {slices[worst + 1].path.name} at "
            f"{places[worst + 1]:.2f} mm: {steps[worst]:.2f} mm where the other slices are {usual:.2f} mm apart; "
            "slices are missing or unevenly spaced"
        )
    affine = np.eye(4)
    affine[:3, 0] = row * slices[0].spacing[1]  # PixelSpacing gives the distance between rows first.
    affine[:3, 1] = column * slices[0].spacing[0]
    affine[:3, 2] = (np.array(slices[-1].position) - slices[0].position) / (len(slices) - 1)
    affine[:3, 3] = slices[0].position
    return slices, LPS_TO_RAS @ affine


def _read_pixels(folder: Path, slices: list[_Slice]) -> NDArray[np.float32]:
    import SimpleITK as sitk

    reader: Any = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(item.path) for item in slices])
    # Slices of PET have slopes of their own: in the type of the first slice the others could be cut to integers.
    reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        return sitk.GetArrayFromImage(reader.Execute()).transpose(2, 1, 0)
    except RuntimeError as error:
        raise InputError(f"{folder}: pixels cannot be decoded ({str(error).strip().splitlines()[-1].strip()})") from error
