"""SamplingAug: scores by integral image against brute force, and patches that lie where the picture has texture."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from cnnkit_superres.data_config import InformativeConfig
from cnnkit_superres.resize import imresize
from cnnkit_superres.sampling import InformativePatches, best, error_map, integral_image, patch_scores, suppress, throw_darts

pytestmark = pytest.mark.paper("samplingaug")


def brute_force(errors: np.ndarray, patch: int, stride: int, shave: int) -> np.ndarray:
    rows, columns = ((side - patch) // stride + 1 for side in errors.shape)
    inner = slice(shave, patch - shave)
    return np.array(
        [[errors[i * stride :, j * stride :][:patch, :patch][inner, inner].mean() for j in range(columns)] for i in range(rows)]
    )


def reduced(hr: np.ndarray, scale: int) -> np.ndarray:
    return imresize(hr, (hr.shape[0] // scale, hr.shape[1] // scale))


def half_textured(scale: int, side: int = 96) -> np.ndarray:
    """A picture whose left half is flat and whose right half is noise."""
    hr = np.full((side, 2 * side, 3), 120, np.uint8)
    hr[:, side:] = np.random.default_rng(0).integers(0, 256, (side, side, 3))
    return hr[: side // scale * scale, : 2 * side // scale * scale]


def informative(hr: np.ndarray, scale: int, patch: int, **cfg) -> InformativePatches:
    return InformativePatches(hr, reduced(hr, scale), patch, InformativeConfig(**cfg), rng=np.random.default_rng(7))


@pytest.mark.parametrize(("shape", "patch", "stride", "shave"), [((23, 31), 8, 1, 0), ((40, 33), 12, 3, 2), ((16, 16), 16, 4, 0)])
def test_scores_are_those_of_brute_force(shape, patch, stride, shave):
    errors = np.random.default_rng(1).random(shape)
    np.testing.assert_allclose(
        patch_scores(errors, patch, stride=stride, shave=shave), brute_force(errors, patch, stride, shave), rtol=1e-12
    )


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_scores_of_a_photograph_are_those_of_brute_force(scale):
    from skimage import data

    hr = data.astronaut()[:: 4 if scale == 4 else 5, ::4][:96, :120]
    hr = hr[: hr.shape[0] // scale * scale, : hr.shape[1] // scale * scale]
    errors = error_map(hr, reduced(hr, scale))
    np.testing.assert_allclose(patch_scores(errors, 8 * scale, stride=scale), brute_force(errors, 8 * scale, scale, 0), rtol=1e-5)
    enlarged = np.clip(imresize(reduced(hr, scale).astype(np.float64) / 255, hr.shape[:2]), 0, 1)
    np.testing.assert_allclose(errors, ((enlarged - hr / 255.0) ** 2).mean(2), atol=1e-6)


def test_many_small_errors_beside_a_large_one_keep_their_digits():
    errors = np.full((700, 300), 1e-7)
    errors[0, 0] = 1.0
    scores = patch_scores(errors.astype(np.float32), 48)
    np.testing.assert_allclose(scores[1:, 1:], np.float64(np.float32(1e-7)), rtol=1e-5)  # Sums in float32 would lose them.
    assert patch_scores(np.zeros((60, 60)), 48).min() == 0


def test_an_integral_image_sums_rectangles_and_leaves_its_input():
    values = np.arange(12).reshape(3, 4)
    sums = integral_image(values)
    assert sums.dtype == np.float64 and sums.shape == (4, 5)
    assert sums[3, 4] == values.sum() and sums[2, 3] == values[:2, :3].sum()
    assert not sums[0].any() and not sums[:, 0].any() and values[0, 1] == 1


@pytest.mark.parametrize("arguments", [{"patch": 20}, {"patch": 4, "shave": 2}, {"patch": 4, "stride": 0}])
def test_patches_that_do_not_fit_are_refused(arguments):
    with pytest.raises(ValueError, match="do not fit 10 x 30"):
        patch_scores(np.zeros((10, 30)), **arguments)


def test_the_best_are_the_highest_in_order_and_ties_go_to_the_first():
    scores = np.array([[3.0, 1.0, 2.0], [2.0, 0.0, 2.0]])
    assert best(scores, 3).tolist() == [0, 2, 3]
    assert best(scores, 4).tolist() == [0, 2, 3, 5]
    assert best(scores, 99).tolist() == [0, 2, 3, 5, 1, 4]


@pytest.mark.parametrize("choice", ["top", "nms", "darts"])
@pytest.mark.parametrize("scale", [2, 4])
def test_chosen_patches_lie_on_the_texture(choice, scale):
    hr, patch = half_textured(scale), 8
    patches = informative(hr, scale, patch, choice=choice, portion=0.2, darts=200)
    border = hr.shape[1] // 2
    assert len(patches) > 3
    assert (scale * patches.places[:, 1] >= border - scale * patch // 2).all()  # At least half of each is texture.
    rng = np.random.default_rng(0)
    known = {tuple(place) for place in patches.places.tolist()}
    assert all(patches.draw(rng) in known for _ in range(50))


@pytest.mark.parametrize("picture", ["astronaut", "coffee", "cat"])
def test_chosen_patches_of_a_photograph_are_harder_than_the_others(picture):
    from skimage import data

    hr = getattr(data, picture)()[:240, :320]
    lr = reduced(hr, 2)
    patches = informative(hr, 2, 24, portion=0.1)
    enlarged = imresize(lr, hr.shape[:2]).astype(float)
    gradient = np.hypot(*np.gradient(hr.mean(2)))

    def mean(values: np.ndarray, places: np.ndarray) -> float:
        return float(np.mean([values[2 * i : 2 * i + 48, 2 * j : 2 * j + 48].mean() for i, j in places]))

    rng = np.random.default_rng(0)
    anywhere = np.stack([rng.integers(side - 24 + 1, size=300) for side in lr.shape[:2]], axis=1)
    error = ((enlarged - hr) ** 2).mean(2)
    chosen = patches.places[:: max(1, len(patches) // 300)]
    assert mean(error, chosen) > 1.5 * mean(error, anywhere)
    assert mean(gradient, chosen) > 1.2 * mean(gradient, anywhere)
    scores = patch_scores(error_map(hr, lr), 48, stride=2)
    kept = scores[tuple(patches.places.T)]
    assert len(patches) == -(-scores.size // 10)
    assert (np.diff(kept) <= 0).all() and np.sort(scores.ravel())[-len(kept)] == kept[-1]


def overlap(one, other, patch: int) -> Fraction:
    shared = np.prod([max(0, patch - abs(int(a - b))) for a, b in zip(one, other, strict=True)])
    return Fraction(int(shared), int(2 * patch**2 - shared))


@pytest.mark.parametrize("limit", [0.0, 0.25, 0.5])
def test_suppression_keeps_the_best_of_those_that_overlap(limit):
    scores = np.random.default_rng(3).random((20, 26))
    order = best(scores, scores.size)
    left = suppress(order, scores.shape, 5, limit)
    places = [divmod(int(index), 26) for index in left]
    assert all(overlap(a, b, 5) <= limit for n, a in enumerate(places) for b in places[:n])
    assert left[0] == order[0] and (np.diff(scores.ravel()[left]) < 0).all()
    dropped = [divmod(int(index), 26) for index in order if index not in set(left.tolist())]
    better = {place: [p for p in places if scores[p] > scores[place]] for place in dropped}
    assert all(any(overlap(place, p, 5) > limit for p in better[place]) for place in dropped)


def test_darts_are_apart_and_as_many_as_asked_for():
    rng = np.random.default_rng(4)
    darts = throw_darts((40, 60), 100, rng)
    places = np.stack(np.divmod(darts, 60), axis=1)
    distance = np.sqrt(((places[:, None] - places[None]) ** 2).sum(2))
    nearest = (distance + 1e9 * np.eye(100)).min(1)
    assert len(set(darts.tolist())) == 100
    assert nearest.min() > 2  # Of 100 places at random the nearest two are closer.
    assert places.max(0).tolist() > [30, 45] and places.min(0).max() < 10
    assert throw_darts((3, 4), 12, rng).tolist() == list(range(12))
    assert len(set(throw_darts((5, 5), 24, rng).tolist())) == 24


def test_ranks_are_drawn_with_linearly_falling_probability():
    hr = np.random.default_rng(5).integers(0, 256, (20, 24, 1), np.uint8)
    patches = informative(hr, 2, 8, choice="rank")
    count = len(patches)
    assert count == 3 * 5  # Every patch can be drawn.
    rank = {tuple(place): number for number, place in enumerate(patches.places.tolist())}
    rng, draws = np.random.default_rng(6), 20_000
    seen = np.bincount([rank[patches.draw(rng)] for _ in range(draws)], minlength=count)
    expected = (2 * (count - np.arange(count)) - 1) / count**2
    assert expected.sum() == pytest.approx(1)
    assert (abs(seen / draws - expected) < 4.5 * np.sqrt(expected * (1 - expected) / draws)).all()


def test_the_border_of_the_papers_code_is_shaved_as_far_as_a_patch_allows():
    hr = np.random.default_rng(8).integers(0, 256, (64, 64, 3), np.uint8)
    errors = error_map(hr, reduced(hr, 2))
    scores = patch_scores(errors, 32, stride=2, shave=8)  # (2 + 6) / 2 = 4 pixels of LR.
    best_place = np.unravel_index(scores.argmax(), scores.shape)
    assert tuple(informative(hr, 2, 16, shave=-1).places[0]) == tuple(best_place)
    assert len(informative(hr, 2, 4, shave=-1)) > 0


def test_a_flat_picture_can_be_drawn_from_too():
    patches = informative(np.full((32, 32, 1), 9, np.uint8), 2, 16)
    assert patches.places.tolist() == [[0, 0]] and patches.draw(np.random.default_rng(0)) == (0, 0)
