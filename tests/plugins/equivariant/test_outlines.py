"""Outlines of pictures: the same contours as scikit-image's, closed, turned exactly, and alike at any sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cnnkit.errors import ConfigError
from torch import Tensor

pytest.importorskip("cnnkit_equivariant")

from cnnkit_equivariant.classification.outlines import LEVEL, marching_squares, outlines, present, read_field, turned

pytestmark = pytest.mark.paper("nuft-cnn")


def pictures(count: int, side: int, channels: int = 1, seed: int = 0) -> Tensor:
    """Noise, in which all sixteen cases of a cell occur."""
    return torch.from_numpy(np.random.default_rng(seed).uniform(size=(count, channels, side, side)))


def area(segments: Tensor) -> float:
    """The area that closed contours enclose, by Green's formula."""
    start, end = segments.unbind(-2)
    return float(0.5 * (start[..., 0] * end[..., 1] - start[..., 1] * end[..., 0]).sum())


def disc(side: int, radius: float = 0.3) -> Tensor:
    steps = (torch.arange(side, dtype=torch.float64) + 0.5) / side - 0.5
    return (0.5 + side * (radius - (steps[:, None] ** 2 + steps[None] ** 2).sqrt()) / 2).clamp(0, 1)[None, None]


class TestMarchingSquares:
    def test_it_finds_the_contours_of_scikit_image(self) -> None:
        measure = pytest.importorskip("skimage.measure")
        values = pictures(3, 12)[:, 0].numpy()
        owners, pieces = marching_squares(values)
        for number, picture in enumerate(values):
            chains = measure.find_contours(picture, LEVEL, positive_orientation="high")
            expected = np.concatenate([np.stack([chain[:-1], chain[1:]], 1) for chain in chains])
            expected = expected[np.abs(expected[:, 0] - expected[:, 1]).max(1) > 1e-12]

            def ordered(some: np.ndarray) -> np.ndarray:
                flat = some.reshape(-1, 4).round(9)
                return flat[np.lexsort(flat.T)]

            ours = ordered(pieces[owners == number])
            turned_round = ordered(expected[:, ::-1])
            assert ours.shape == turned_round.shape
            direct, reverse = (np.abs(ours - which).max() for which in (ordered(expected), turned_round))
            assert min(direct, reverse) < 1e-8

    def test_contours_are_closed_and_turn_about_what_is_bright(self) -> None:
        """As many pieces start at a point as end there; a bright sample has a positive area, a dark one in the bright a negative."""
        _, pieces = marching_squares(np.pad(pictures(1, 10)[:, 0].numpy(), ((0, 0), (1, 1), (1, 1))))
        starts, ends = (np.unique(pieces[:, which].round(9), axis=0, return_counts=True) for which in (0, 1))
        np.testing.assert_array_equal(starts[0], ends[0])
        np.testing.assert_array_equal(starts[1], ends[1])
        spot = np.zeros((1, 5, 5))
        spot[0, 2, 2] = 1.0
        assert area(torch.from_numpy(marching_squares(spot)[1])) == pytest.approx(0.5)
        assert area(torch.from_numpy(marching_squares(1 - spot)[1])) == pytest.approx(-0.5)

    def test_empty_and_full_pictures_have_no_contour(self) -> None:
        for level in (0.0, 0.5, 1.0):
            assert marching_squares(np.full((2, 4, 4), level))[1].shape == (0, 2, 2)


class TestOutlines:
    def test_a_disc_is_a_disc_at_every_sampling(self) -> None:
        """Drawn on 40 x 40, traced on more and fewer samples: area and length are those of the circle, the number of pieces is not."""
        counts = set()
        for size in (20, 40, 64):
            (segments,) = outlines(disc(40)[0], size)
            counts.add(len(segments))
            assert area(segments) == pytest.approx(np.pi * 0.09, rel=0.01)
            assert float((segments[:, 0] - segments[:, 1]).norm(dim=1).sum()) == pytest.approx(2 * np.pi * 0.3, rel=0.01)
            assert float((segments.mean(1) - 0.5).norm(dim=1).std()) < 0.005
        assert len(counts) == 3

    def test_a_bright_picture_is_a_square_and_an_oblong_one_is_centred(self) -> None:
        """Dark begins half a sample beyond the last sample, so a picture of ones is the unit square but for its corners."""
        (segments,) = outlines(torch.ones(1, 10, 10), 10)
        assert float(segments.min()) == pytest.approx(0.0) and float(segments.max()) == pytest.approx(1.0)
        (oblong,) = outlines(torch.ones(1, 10, 20), 20)
        assert float(oblong[..., 0].min()) == pytest.approx(0.25) and float(oblong[..., 0].max()) == pytest.approx(0.75)
        assert float(oblong[..., 1].min()) == pytest.approx(0.0) and float(oblong[..., 1].max()) == pytest.approx(1.0)

    def test_turning_is_counter_clockwise_and_exact(self) -> None:
        """A quarter turn of the segments is the outline of the picture that numpy.rot90 turns."""
        picture = pictures(1, 9)
        (segments,), (expected,) = outlines(picture[0], 9), outlines(picture[0].rot90(1, (1, 2)), 9)
        ours = np.sort(turned(segments, np.pi / 2).reshape(-1, 4).round(decimals=9).numpy(), axis=0)
        np.testing.assert_allclose(ours, np.sort(expected.reshape(-1, 4).round(decimals=9).numpy(), axis=0), atol=1e-8)

    def test_present_fills_up_and_turns_by_the_generator(self) -> None:
        shown = pictures(3, 8, seed=3)
        shown[2] = 0
        x = present(shown, 8, turns="none", rng=np.random.default_rng(0))
        assert x.shape[0] == 3 and x.shape[2:] == (2, 2) and x.dtype == torch.float32 and not x[2].any()
        assert present(shown[2:], 8, turns="none", rng=np.random.default_rng(0)).shape == (1, 1, 2, 2)
        once, again = (present(shown, 8, turns="axis", rng=np.random.default_rng(5)) for _ in range(2))
        assert torch.equal(once, again) and not torch.allclose(once, x)
        assert [area(row) for row in once.double()] == pytest.approx([area(row) for row in x.double()], abs=1e-5)
        with pytest.raises(ConfigError, match="axis"):
            present(shown, 8, turns="any", rng=np.random.default_rng(0))

    def test_channels_have_outlines_of_their_own(self) -> None:
        shown = pictures(2, 8, channels=3)
        x = present(shown, 8, turns="none", rng=np.random.default_rng(0))
        assert x.shape[0] == 2 and x.shape[2:] == (3, 2, 2)
        alone = present(shown[:, 1:2], 8, turns="none", rng=np.random.default_rng(0))
        torch.testing.assert_close(x[:, : alone.shape[1], 1], alone)
        field = read_field(shown[1].numpy(), 8)
        torch.testing.assert_close(field, x[1, : len(field)])
        assert read_field(shown[0, :1].numpy(), 8).shape[1:] == (2, 2)
