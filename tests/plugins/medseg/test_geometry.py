"""Affines are checked; all 48 orientations lead to RAS and exactly back. Oracle: nibabel."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from cnnkit.errors import InputError
from cnnkit_medseg.geometry import Grid, check_affine, from_ras, spacing_of, to_ras

SIGNED_AXES = [(axes, signs) for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def rotation(degrees: float = 17.0) -> np.ndarray:
    """A rotation about an oblique axis, by Rodrigues' formula."""
    x, y, z = np.array([1, 2, 2]) / 3
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def affine_of(axes, signs, oblique: float = 0.0) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = rotation(oblique) @ np.eye(3)[:, axes] * signs * (0.7, 1.25, 3.0)
    affine[:3, 3] = (-91.3, 12.5, 40.1)
    return affine


@pytest.mark.parametrize("oblique", [0.0, 17.0])
@pytest.mark.parametrize(("axes", "signs"), SIGNED_AXES)
def test_to_ras_agrees_with_nibabel_and_is_exactly_undone(axes, signs, oblique):
    affine = affine_of(axes, signs, oblique)
    array = np.random.default_rng(0).normal(size=(2, 5, 3, 4)).astype(np.float32)
    ras, ras_affine, orientation = to_ras(array, affine)
    for channel in range(2):
        expected = nib.as_closest_canonical(nib.Nifti1Image(array[channel], affine))
        np.testing.assert_array_equal(ras[channel], expected.dataobj)
        np.testing.assert_allclose(ras_affine, expected.affine, rtol=0, atol=1e-12)
    assert nib.aff2axcodes(ras_affine) == ("R", "A", "S")
    np.testing.assert_array_equal(from_ras(ras, orientation), array)
    grid = Grid((5, 3, 4), affine)
    assert grid.ras_shape == ras.shape[1:]
    np.testing.assert_array_equal(grid.ras_affine, ras_affine)
    np.testing.assert_allclose(sorted(grid.ras_spacing), (0.7, 1.25, 3.0), rtol=1e-12)


def test_spacing_of_oblique_affine():
    np.testing.assert_allclose(spacing_of(affine_of((0, 1, 2), (1, 1, 1), 33)), (0.7, 1.25, 3.0), rtol=1e-12)


@pytest.mark.parametrize(("axes", "signs"), SIGNED_AXES[::7])
def test_sound_affines_pass_unchanged(axes, signs):
    affine = affine_of(axes, signs, 17)
    np.testing.assert_array_equal(check_affine(affine, "x"), affine)


@pytest.mark.parametrize(
    ("edit", "cause"),
    [
        (lambda a: a.__setitem__((0, 3), np.nan), "not finite"),
        (lambda a: a.__setitem__((0, 0), np.inf), "not finite"),
        (lambda a: a[:, 1].fill(0), "zero spacing"),
        (lambda a: a[:3, 1].__setitem__(slice(None), a[:3, 0]), "singular"),
        (lambda a: a.__setitem__((0, 1), 0.2), "non-orthonormal"),
        (lambda a: a.__setitem__((3, 3), 2.0), "last row"),
    ],
)
def test_unsound_affines_are_refused_with_file_and_cause(edit, cause):
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    edit(affine)
    with pytest.raises(InputError, match=rf"scan\.nii.*{cause}"):
        check_affine(affine, "scan.nii")


def test_rounding_of_direction_cosines_is_tolerated():
    affine = affine_of((0, 1, 2), (1, 1, 1), 17)
    affine[:3, :3] = affine[:3, :3].round(4)
    check_affine(affine, "x")
