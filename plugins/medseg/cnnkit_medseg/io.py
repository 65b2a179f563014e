"""Volumes in and results out: any orientation, any format, exact geometry, clear refusals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from cnnkit.errors import InputError
from numpy.typing import NDArray

from cnnkit_medseg.cases import ACCEPTED, split_suffix
from cnnkit_medseg.dicom import LPS_TO_RAS, read_series
from cnnkit_medseg.geometry import Affine, Grid, check_affine
from cnnkit_medseg.nifti import Geometry, read_label_names, read_nifti, write_nifti

__all__ = ["Labels", "Volume", "read_label_names", "read_labels", "read_volume", "write_labels", "write_probabilities"]

Nonfinite = Literal["refuse", "zero"]

_SLAB = 16  # Slices that are converted at once: float64 copies stay this small.


@dataclass(frozen=True, eq=False)
class Volume:
    """An image volume in the closest RAS axis order.

    Args:
        array: ``(C, X, Y, Z)``, float32, contiguous.
        spacing: Voxel size in mm along X, Y, Z.
        affine: From voxel indices of ``array`` to mm in RAS, ``(4, 4)``.
        grid: The grid of the file, on which results are written.
        files: What it was read from.
        name: Name of the case.
        warnings: What a user should know about the data, one sentence each.
    """

    array: NDArray[np.float32]
    spacing: tuple[float, float, float]
    affine: Affine
    grid: Grid
    files: tuple[Path, ...]
    name: str = ""
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Labels:
    """A label volume in the closest RAS axis order; unpacks as ``array, spacing, affine``.

    Args:
        array: ``(X, Y, Z)``, int16, or int32 where labels need it.
        spacing: Voxel size in mm along X, Y, Z.
        affine: From voxel indices of ``array`` to mm in RAS, ``(4, 4)``.
        grid: The grid of the file.
    """

    array: NDArray[np.integer[Any]]
    spacing: tuple[float, float, float]
    affine: Affine
    grid: Grid

    def __iter__(self) -> Iterator[Any]:
        return iter((self.array, self.spacing, self.affine))


@dataclass(frozen=True, eq=False)
class _Stored:
    """Stored values of one file ``(C, *spatial)`` in its own axis order, with the scale that makes them intensities."""

    values: NDArray[Any]
    slope: float
    inter: float
    grid: Grid
    warnings: list[str]

    def slabs(self) -> Iterator[tuple[int, slice, NDArray[Any]]]:
        """Yield channel, range along the last axis, and the scaled values there."""
        scaled = (self.slope, self.inter) != (1.0, 0.0)
        for channel in range(len(self.values)):
            for start in range(0, self.values.shape[-1], _SLAB):
                part = self.values[channel, :, :, start : start + _SLAB]
                yield channel, slice(start, start + _SLAB), part * np.float64(self.slope) + self.inter if scaled else part


def read_volume(
    files: Sequence[Path | str],
    *,
    name: str = "",
    channels: int | None = None,
    nonfinite: Nonfinite = "refuse",
    geometry: Geometry = "refuse",
) -> Volume:
    """Read one case.

    Args:
        files: One file, one folder of a DICOM series, or one single-channel file per channel.
        name: Name of the case; by default that of the first file.
        channels: Number of channels that the model takes, if known.
        nonfinite: ``"refuse"`` a volume with NaN or infinite voxels, or replace them by ``"zero"`` with a warning.
        geometry: ``"refuse"`` a NIfTI file whose sform and qform contradict each other, or believe one of the two.

    Raises:
        InputError: If a file is missing, damaged, of another kind, or has unsound geometry; the message names file and cause.
    """
    paths = tuple(Path(file) for file in files)
    if not paths:
        raise InputError(f"case {name!r} has no files; {ACCEPTED}")
    stored = [_read_stored(path, geometry) for path in paths]
    _check_channels(paths, stored, channels)
    grid = stored[0].grid
    array = np.empty((sum(len(item.values) for item in stored), *grid.ras_shape), np.float32)
    file_order = grid.orientation.undo(array)
    warnings = list(dict.fromkeys(warning for item in stored for warning in item.warnings))
    offset = 0
    for path, item in zip(paths, stored, strict=True):
        with np.errstate(over="ignore"):  # What exceeds float32 becomes infinite, and is reported below.
            for channel, where, values in item.slabs():
                file_order[offset + channel, :, :, where] = values
        warnings += _check_values(path, array[offset : offset + len(item.values)], nonfinite)
        offset += len(item.values)
    return Volume(array, grid.ras_spacing, grid.ras_affine, grid, paths, name or _name_of(paths), warnings)


def read_labels(path: Path | str, *, geometry: Geometry = "refuse") -> Labels:
    """Read a label volume; the result unpacks as ``array, spacing, affine``.

    Args:
        path: A file of any format that :func:`read_volume` takes.
        geometry: As in :func:`read_volume`.

    Raises:
        InputError: If the file cannot be read, has several channels, or holds values that are no integers.
    """
    path = Path(path)
    stored = _read_stored(path, geometry)
    if len(stored.values) != 1:
        raise InputError(f"{path}: {len(stored.values)} channels; labels are one integer per voxel")
    low, high = _check_integers(path, stored)
    grid = stored.grid
    array = np.empty(grid.ras_shape, np.int16 if low >= -(2**15) and high < 2**15 else np.int32)
    file_order = grid.orientation.undo(array)
    for _, where, values in stored.slabs():
        file_order[:, :, where] = np.rint(values) if values.dtype.kind == "f" else values
    return Labels(array, grid.ras_spacing, grid.ras_affine, grid)


def write_labels(path: Path | str, labels: NDArray[Any], grid: Grid, *, names: Mapping[int, str] | None = None) -> Path:
    """Write a label volume on the grid of the source image, atomically.

    The file is NIfTI, uint8 if every label is below 256 and uint16 otherwise, in the source's axis order, with its affine
    (for a NIfTI source, with its qform, sform and codes) bit for bit.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file.
        labels: ``(X, Y, Z)`` integers in RAS order.
        grid: Grid of the source, as in ``Volume.grid``.
        names: Names of the labels, stored in the header extension that TotalSegmentator uses.

    Raises:
        InputError: If labels are no integers of 0 to 65535, or do not fit the grid.
    """
    labels = np.asarray(labels)
    if labels.ndim != 3 or labels.dtype.kind not in "iub":
        raise InputError(f"{path}: labels must be integers of shape (X, Y, Z), not {labels.dtype} of shape {labels.shape}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > 65535:
        raise InputError(f"{path}: labels range from {low} to {high}; 0 to 65535 can be stored")
    return write_nifti(path, labels.astype(np.uint8 if high < 256 else np.uint16, copy=False), grid, names=names)


def write_probabilities(
    path: Path | str, probabilities: NDArray[Any], grid: Grid, *, dtype: Literal["float32", "uint16"] = "float32"
) -> Path:
    """Write class probabilities as a 4-D NIfTI file (channels last) on the grid of the source image, atomically.

    NIfTI has no 16-bit floating-point type. ``"uint16"`` takes the same space, stores steps of 1/65535, and is read back as
    probabilities by every reader that applies the scale of the header.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file.
        probabilities: ``(C, X, Y, Z)`` in RAS order, from 0 to 1.
        grid: Grid of the source, as in ``Volume.grid``.
        dtype: How values are stored.

    Raises:
        InputError: If the array does not fit the grid.
    """
    probabilities = np.asarray(probabilities)
    if probabilities.ndim != 4:
        raise InputError(f"{path}: probabilities must have the shape (C, X, Y, Z), not {probabilities.shape}")
    if dtype == "float32":
        return write_nifti(path, probabilities.astype(np.float32, copy=False), grid)
    steps = np.empty(probabilities.shape, np.uint16)
    for target, source in zip(steps, probabilities, strict=True):
        target[...] = np.rint(np.clip(source, 0, 1).astype(np.float32) * np.float32(65535))
    return write_nifti(path, steps, grid, scale=1 / 65535)


def _read_stored(path: Path, geometry: Geometry) -> _Stored:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_dir():
        array, grid, warnings = read_series(path)
        return _Stored(array[None], 1.0, 0.0, grid, warnings)
    suffix = split_suffix(path)[1]
    if suffix in (".nii", ".nii.gz", ".hdr", ".img"):
        values, slope, inter, grid, warnings = read_nifti(path, geometry)
        values = values[None] if values.ndim == 3 else np.moveaxis(values, -1, 0)
        return _Stored(values, slope, inter, grid, warnings)
    if suffix:
        return _read_itk(path)
    raise InputError(f"{path}: not a volume that can be read; {ACCEPTED}")


def _read_itk(path: Path) -> _Stored:
    """Read NRRD, MetaImage and GIPL with SimpleITK; its LPS geometry becomes RAS."""
    import SimpleITK as sitk

    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        cause = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"{path}: cannot be read; damaged, truncated, or its data file is missing ({cause})") from error
    dims, size = image.GetDimension(), image.GetSize()
    if dims not in (3, 4):
        raise InputError(f"{path}: {dims}-D image of shape {size}; a 3-D volume is needed")
    if "complex" in image.GetPixelIDTypeAsString():
        raise InputError(f"{path}: complex voxels; store the magnitude as a real-valued volume")
    if dims == 4 and image.GetNumberOfComponentsPerPixel() > 1:
        raise InputError(f"{path}: 4-D image of vectors; one axis of channels is accepted")
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(dims, dims)[:3, :3] * image.GetSpacing()[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    grid = Grid((size[0], size[1], size[2]), check_affine(LPS_TO_RAS @ affine, path), None, str(path))
    values = sitk.GetArrayFromImage(image)  # (Z, Y, X), (Z, Y, X, C) or (T, Z, Y, X).
    if image.GetNumberOfComponentsPerPixel() > 1:
        values = np.moveaxis(values, -1, 0)
    elif dims == 3:
        values = values[None]
    return _Stored(values.transpose(0, 3, 2, 1), 1.0, 0.0, grid, [])


def _check_channels(paths: Sequence[Path], stored: Sequence[_Stored], channels: int | None) -> None:
    if len(paths) > 1:
        for path, item in zip(paths, stored, strict=True):
            if len(item.values) != 1:
                raise InputError(f"{path}: {len(item.values)} channels in one of {len(paths)} channel files; each must have one")
            if not item.grid.same_as(stored[0].grid):
                raise InputError(
                    f"{path} and {paths[0]} are channels of one case but do not lie on one grid: shape {item.grid.shape} and "
                    f"{stored[0].grid.shape}, affine {item.grid.affine[:3].tolist()} and {stored[0].grid.affine[:3].tolist()}; "
                    "register and resample them first"
                )
    count = sum(len(item.values) for item in stored)
    if channels is not None and count != channels:
        where = ", ".join(map(str, paths))
        raise InputError(f"{where}: {count} {'channel' if count == 1 else 'channels'}; the model takes {channels}")


def _check_values(path: Path, array: NDArray[np.float32], nonfinite: Nonfinite) -> list[str]:
    """Refuse or replace what is not finite in ``array`` ``(C, X, Y, Z)``, and return warnings."""
    warnings = []
    for channel in array:
        low, high = float(channel.min()), float(channel.max())  # NaN passes through both.
        if not np.isfinite([low, high]).all():
            bad = sum(int((~np.isfinite(plane)).sum()) for plane in channel)
            what = f"{bad} of {channel.size} voxels are NaN or infinite"
            if nonfinite == "refuse":
                raise InputError(f"{path}: {what}; repair the file, or have them replaced by 0 with --nonfinite zero")
            np.nan_to_num(channel, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
            warnings.append(f"{path.name}: {what}; replaced by 0")
            low, high = float(channel.min()), float(channel.max())
        if low == high:
            warnings.append(f"{path.name}: constant image, every voxel is {low:g}")
    return warnings


def _check_integers(path: Path, stored: _Stored) -> tuple[int, int]:
    low, high = 0, 0
    for _, _, values in stored.slabs():
        if values.dtype.kind == "f":
            finite = np.isfinite(values)
            wrong = values[np.abs(values - np.rint(values)) > 1e-4] if finite.all() else values[~finite]
            if wrong.size:
                examples = ", ".join(f"{value:g}" for value in np.unique(wrong)[:5])
                raise InputError(f"{path}: values such as {examples} are no labels, which are integers; is this an image?")
        low, high = min(low, round(float(values.min()))), max(high, round(float(values.max())))
    if low < -(2**31) or high >= 2**31:
        raise InputError(f"{path}: labels range from {low} to {high}; is this an image?")
    return low, high


def _name_of(paths: Sequence[Path]) -> str:
    name = paths[0].absolute().name if paths[0].is_dir() else split_suffix(paths[0])[0]
    return name.removesuffix("_0000") if len(paths) > 1 else name
