"""Where the voxels lie: checked affines, and exact travel between a file's axis order and the closest RAS order.

An affine maps voxel indices to millimetres in RAS (x to the patient's right, y to the front, z to the head). Oblique
volumes are permuted and flipped to the closest canonical axes, never resampled, so the way back is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cnnkit.errors import InputError
from numpy.typing import NDArray

Affine = NDArray[np.float64]

_SMALLEST_SPACING = 1e-6  # Millimetres: a nanometre. Below this a spacing is a missing value.


def spacing_of(affine: Affine) -> tuple[float, float, float]:
    """Return the voxel size in mm along each voxel axis of ``affine``."""
    x, y, z = np.sqrt((np.asarray(affine, np.float64)[:3, :3] ** 2).sum(axis=0))
    return float(x), float(y), float(z)


def check_affine(affine: Any, source: object, *, tolerance: float = 1e-3) -> Affine:
    """Return ``affine`` as a float64 array of shape ``(4, 4)`` if a volume can be processed with it.

    Args:
        affine: The matrix from voxel indices to mm.
        source: The file that it came from, named in messages.
        tolerance: Largest cosine between two voxel axes that still counts as a right angle.

    Raises:
        InputError: If a value is not finite, a spacing is zero, the axes are linearly dependent or not orthogonal.
    """
    matrix = np.array(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.array_equal(matrix[3], [0, 0, 0, 1]):
        raise InputError(f"{source}: the affine is not a 4 x 4 matrix with last row 0 0 0 1, but {matrix.tolist()}")
    if not np.isfinite(matrix).all():
        raise InputError(f"{source}: the affine has values that are not finite: {matrix[:3].tolist()}; repair the header or convert again")
    spacing = spacing_of(matrix)
    if min(spacing) < _SMALLEST_SPACING:
        raise InputError(f"{source}: zero spacing: the header gives voxels of {_size(spacing)}; set the true voxel size in the header")
    cosines = matrix[:3, :3] / spacing
    gram = np.abs(cosines.T @ cosines - np.eye(3))
    if abs(np.linalg.det(cosines)) < tolerance:
        raise InputError(f"{source}: singular affine: two voxel axes point the same way; repair the header or convert again")
    if gram.max() > tolerance:
        first, second = np.unravel_index(int(gram.argmax()), gram.shape)
        angle = np.degrees(np.arccos(np.clip(cosines[:, first] @ cosines[:, second], -1, 1)))
        raise InputError(
            f"{source}: non-orthonormal axes (shear, as from a tilted gantry): voxel axes {first} and {second} meet at "
            f"{angle:.2f} degrees; resample the volume onto a right-angled grid first"
        )
    return matrix


def _size(spacing: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in spacing) + " mm"


@dataclass(frozen=True)
class Orientation:
    """A permutation and flips of three voxel axes: exact, and exactly undone.

    Args:
        axes: For each axis of the result, the axis of the source that it comes from.
        flips: For each axis of the result, whether it runs the other way.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return a view of ``array`` ``(..., *spatial)`` in the result's axis order."""
        lead = array.ndim - 3
        moved = array.transpose(*range(lead), *(lead + axis for axis in self.axes))
        return moved[self._steps]

    def undo(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return a view of ``array`` ``(..., X, Y, Z)`` in the source's axis order: the inverse of :meth:`apply`."""
        lead = array.ndim - 3
        back = sorted(range(3), key=lambda axis: self.axes[axis])
        return array[self._steps].transpose(*range(lead), *(lead + axis for axis in back))

    def apply_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Return the spatial shape of the result for a source of ``shape``."""
        x, y, z = (int(shape[axis]) for axis in self.axes)
        return x, y, z

    def apply_affine(self, affine: Affine, shape: Sequence[int]) -> Affine:
        """Return the affine of the result, given the affine and spatial shape of the source."""
        result = affine.copy()
        result[:3, :3] = affine[:3, self.axes]
        for axis, (size, flip) in enumerate(zip(self.apply_shape(shape), self.flips, strict=True)):
            if flip:
                result[:3, 3] += (size - 1) * result[:3, axis]
                result[:3, axis] *= -1
        return result

    @property
    def _steps(self) -> tuple[Any, ...]:
        return (Ellipsis, *(slice(None, None, -1 if flip else 1) for flip in self.flips))


def orientation_of(affine: Affine) -> Orientation:
    """Return the orientation that brings voxel axes of ``affine`` closest to right, anterior, superior."""
    from nibabel.orientations import io_orientation

    closest = io_orientation(affine)
    axes = sorted(range(3), key=lambda axis: closest[axis, 0])
    return Orientation(axes=(axes[0], axes[1], axes[2]), flips=tuple(bool(closest[axis, 1] < 0) for axis in axes))  # type: ignore[arg-type]


def to_ras(array: NDArray[Any], affine: Affine) -> tuple[NDArray[Any], Affine, Orientation]:
    """Bring a volume to the closest RAS axis order.

    Args:
        array: ``(C, *spatial)`` or ``(*spatial)`` in the file's axis order.
        affine: From voxel indices to mm in RAS.

    Returns:
        A view of the array in RAS order, its affine, and the orientation whose ``undo`` leads back.
    """
    orientation = orientation_of(affine)
    return orientation.apply(array), orientation.apply_affine(affine, array.shape[-3:]), orientation


def from_ras(array: NDArray[Any], orientation: Orientation) -> NDArray[Any]:
    """Return a view of ``array`` ``(..., X, Y, Z)`` in the file's axis order: the exact inverse of :func:`to_ras`."""
    return orientation.undo(array)


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxel grid of a file as it was stored, and all that is needed to write another volume on it.

    Args:
        shape: Spatial shape in the file's axis order.
        affine: From the file's voxel indices to mm in RAS, ``(4, 4)``.
        header: The file's own header if it is NIfTI; written back with its qform, sform and codes untouched.
        source: The file or folder that it came from, named in messages.
    """

    shape: tuple[int, int, int]
    affine: Affine
    header: Any = field(default=None, repr=False)
    source: str = ""

    @property
    def orientation(self) -> Orientation:
        """The way from the file's axis order to the closest RAS order."""
        return orientation_of(self.affine)

    @property
    def ras_shape(self) -> tuple[int, int, int]:
        """Spatial shape in RAS order."""
        return self.orientation.apply_shape(self.shape)

    @property
    def ras_affine(self) -> Affine:
        """From voxel indices in RAS order to mm."""
        return self.orientation.apply_affine(self.affine, self.shape)

    @property
    def ras_spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along the axes in RAS order."""
        return spacing_of(self.ras_affine)

    def same_as(self, other: Grid, *, tolerance: float = 1e-3) -> bool:
        """Say whether both grids have one shape and affines that agree to ``tolerance`` mm in every entry."""
        return self.shape == other.shape and bool(np.abs(self.affine - other.affine).max() <= tolerance)
