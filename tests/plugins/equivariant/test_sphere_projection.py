"""Pictures and fields of files on the sphere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cnnkit.errors import ConfigError, InputError

pytest.importorskip("cnnkit_equivariant")

from cnnkit_equivariant.sphere.projection import grid_directions, present, read_field, turn
from cnnkit_equivariant.sphere.transform import SphereTransform, harmonics, rotate

pytestmark = pytest.mark.paper("scaling-spherical-cnn")


def smooth_picture(seed: int = 0) -> torch.Tensor:
    """A picture of blobs, 32 x 32, dark at its sides."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[-1:1:32j, -1:1:32j]
    blobs = [np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 0.1) for cx, cy in rng.uniform(-0.4, 0.4, (3, 2))]
    return torch.from_numpy(np.clip(sum(blobs), 0, 1))[None, None]


def test_turns_are_rotations():
    for name in ("none", "axis", "any"):
        matrices = turn(name, 50, np.random.default_rng(0))
        np.testing.assert_allclose(matrices @ matrices.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (50, 3, 3)), atol=1e-14)
        np.testing.assert_allclose(np.linalg.det(matrices), 1)
        assert np.allclose(matrices[:, 2, 2], 1) == (name != "any")
    assert (turn("none", 2, np.random.default_rng(0)) == np.eye(3)).all()


def test_any_turn_is_even_over_all_rotations():
    """Where the pole goes has mean 0 and variance 1/3 in each coordinate; the mean of the trace is 0."""
    matrices = turn("any", 20_000, np.random.default_rng(0))
    np.testing.assert_allclose(matrices.mean(0), 0, atol=0.02)
    np.testing.assert_allclose((matrices[:, :, 2] ** 2).mean(0), 1 / 3, atol=0.01)


@pytest.mark.parametrize("turns", ["axis", "any"])
def test_a_turned_picture_is_the_turned_field(turns):
    """Rotating the harmonics gives what rotating the picture gives; what is left are the edges that no grid holds."""
    size, pictures = 32, smooth_picture()
    matrix = turn(turns, 1, np.random.default_rng(4))[0]
    still = present(pictures, size, turns="none", rng=np.random.default_rng(4))
    moved = present(pictures, size, turns=turns, rng=np.random.default_rng(4))
    transform = SphereTransform((size - 1) // 2, rings=size, spins=(0,)).double()
    expected = transform.inverse(rotate(transform(still), matrix)).real
    assert (moved - still).norm() > 0.2 * still.norm()
    assert (moved - expected).norm() < 0.005 * still.norm()


def test_the_picture_lies_around_the_south_pole():
    """Its middle is at the pole, the middles of its sides on the equator, and seen from outside it is not a mirror image."""
    size, picture = 33, torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    rng = np.random.default_rng(0)
    picture[..., 14:18, 14:18] = 1
    assert present(picture, size, rng=rng)[0, 0].argmax() // size == size - 1
    picture.zero_()[..., 14:18, 26:30] = 1  # To the right of the middle, at 12/16 of the way to the side.
    peak = present(picture, size, rng=rng)[0, 0].argmax().item()
    direction = grid_directions(size, size)[peak // size, peak % size]
    # From below, x to the right and y downward is what is seen from outside.
    angle = 2 * np.arctan(0.75)
    np.testing.assert_allclose(direction, [np.sin(angle), 0, -np.cos(angle)], atol=0.1)
    picture.zero_()[..., 26:30, 14:18] = 1
    peak = present(picture, size, rng=rng)[0, 0].argmax().item()
    np.testing.assert_allclose(grid_directions(size, size)[peak // size, peak % size], [0, np.sin(angle), -np.cos(angle)], atol=0.12)


def test_pictures_keep_their_values_and_type():
    pictures = torch.rand(3, 2, 8, 8)
    x = present(pictures, 28, turns="any", rng=np.random.default_rng(0))
    assert x.shape == (3, 2, 28, 28) and x.dtype == torch.float32
    assert x.min() > -0.3 and x.max() < 1.3
    again = present(pictures, 28, turns="any", rng=np.random.default_rng(0))
    assert torch.equal(x, again)


@pytest.mark.parametrize(("rings", "longitudes", "poles"), [(65, 128, True), (32, 64, False), (24, 24, True)])
def test_a_field_is_resampled_exactly(rings, longitudes, poles):
    """A sum of few harmonics is the same function on another grid."""
    lmax, size = 6, 20
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(lmax + 1, 2 * lmax + 1)) + 1j * rng.normal(size=(lmax + 1, 2 * lmax + 1))

    def at(directions):
        flat = directions.reshape(-1, 3)
        return np.einsum("plm,lm->p", harmonics(lmax, flat), weights).real.reshape(1, *directions.shape[:2])

    found = read_field(at(grid_directions(rings, longitudes, poles=poles)).astype(np.float64), size, poles=poles)
    assert found.dtype == torch.float32 and found.shape == (1, size, size)
    np.testing.assert_allclose(found, at(grid_directions(size, size)), atol=1e-4)


def test_a_field_on_the_grid_is_itself():
    field = np.random.default_rng(0).normal(size=(2, 16, 16)).astype(np.float32)
    assert (read_field(field, 16).numpy() == field).all()


@pytest.mark.parametrize("shape", [(16, 16), (1, 3, 16), (1, 16, 2), (0, 16, 16), (1, 1, 16, 16)])
def test_what_is_no_field_is_refused(shape):
    with pytest.raises(InputError, match="accepted: "):
        read_field(np.zeros(shape), 16)


def test_gaps_are_refused():
    field = np.zeros((1, 16, 16))
    field[0, 3, 4:6] = np.nan
    with pytest.raises(InputError, match="2 of 256 values"):
        read_field(field, 16)


def test_unknown_turns_and_tiny_grids_are_refused():
    with pytest.raises(ConfigError, match="none, axis, any"):
        present(torch.zeros(1, 1, 8, 8), 16, turns="all", rng=np.random.default_rng(0))
    with pytest.raises(ConfigError, match="4 or more"):
        present(torch.zeros(1, 1, 8, 8), 3, rng=np.random.default_rng(0))
