"""Sliding windows against MONAI's and against nnU-Net's loop written out over the whole volume."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from cnnkit.errors import ConfigError, InputError
from cnnkit_medseg.window import gaussian_weights, slabs, sliding_window, tiles, window_starts
from scipy.ndimage import gaussian_filter

SIZES = [(5, 8), (8, 8), (9, 8), (110, 64), (37, 16), (192, 96), (200, 96), (7, 3), (3, 1), (301, 17)]
OVERLAPS = [0.0, 0.25, 0.5, 0.625, 0.9]


def nnunet_steps(size, tile, step):
    """The definition: as few windows as keep the step at or below ``tile * step``, spread evenly from border to border."""
    room = size - tile
    number = int(np.ceil(room / (tile * step))) + 1
    return [0] if number == 1 else [int(value) for value in np.round(np.arange(number) * (room / (number - 1)))]


def nnunet_gaussian(tile):
    impulse = np.zeros(tile)
    impulse[tuple(n // 2 for n in tile)] = 1
    weights = gaussian_filter(impulse, [n / 8 for n in tile], mode="constant", cval=0)
    weights = (weights / weights.max()).astype(np.float32)
    weights[weights == 0] = weights[weights > 0].min()
    return torch.from_numpy(weights)


def whole_volume(image, predictor, window, overlap, weights, mirror=()):
    """nnU-Net's inference in full: a sum of weighted logits, a sum of weights, a division."""
    extra = [max(w - n, 0) for n, w in zip(image.shape[1:], window, strict=True)]
    padded = torch.nn.functional.pad(image, [side for e in reversed(extra) for side in (e // 2, e - e // 2)])
    total = count = 0
    for corner in itertools.product(*(nnunet_steps(n, w, 1 - overlap) for n, w in zip(padded.shape[1:], window, strict=True))):
        cut = (slice(None), *(slice(c, c + w) for c, w in zip(corner, window, strict=True)))
        views = [axes for n in range(len(mirror) + 1) for axes in itertools.combinations([a + 2 for a in mirror], n)]
        logits = torch.stack([predictor(padded[cut][None].flip(v)).flip(v)[0] for v in views]).mean(0)
        if isinstance(total, int):
            total, count = torch.zeros(len(logits), *padded.shape[1:]), torch.zeros(1, *padded.shape[1:])
        total[cut] += logits * weights
        count[cut] += weights
    inner = tuple(slice(e // 2, e // 2 + n) for e, n in zip(extra, image.shape[1:], strict=True))
    return (total / count)[(slice(None), *inner)]


@pytest.fixture
def conv():
    torch.manual_seed(0)

    def build(dims, inputs=1, classes=3):
        layer = (torch.nn.Conv2d, torch.nn.Conv3d)[dims - 2](inputs, classes, 3, padding=1)
        return layer.requires_grad_(False)

    return build


@pytest.mark.parametrize(("size", "window"), SIZES)
@pytest.mark.parametrize("overlap", OVERLAPS)
def test_starts_equal_both_references(size, window, overlap):
    from monai.data.utils import dense_patch_slices
    from monai.inferers.utils import _get_scan_interval

    whole = max(size, window)
    assert window_starts(size, window, overlap, "nnunet") == nnunet_steps(whole, window, 1 - overlap)
    interval = _get_scan_interval((whole,), (window,), 1, (overlap,))
    assert window_starts(size, window, overlap, "monai") == [cut[0].start for cut in dense_patch_slices((whole,), (window,), interval)]


@pytest.mark.parametrize("window", [(8, 8), (7, 12), (16, 9, 5), (1, 24, 24), (96, 4, 4)])
def test_gaussian_equals_both_references(window):
    from monai.data.utils import compute_importance_map

    torch.testing.assert_close(gaussian_weights(window), nnunet_gaussian(window), rtol=1e-6, atol=1e-12)
    monai = compute_importance_map(window, mode="gaussian", sigma_scale=0.125)
    torch.testing.assert_close(gaussian_weights(window, kind="monai"), monai, rtol=1e-6, atol=1e-9)


def test_gaussian_narrow_lifts_zeros_as_nnunet():
    weights = gaussian_weights((16, 16), sigma_scale=1 / 40)
    assert weights.min() > 0 and (weights == weights.min()).sum() > 100


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize(
    ("size", "window", "overlap", "batch"),
    [
        ((17, 13, 22), (8, 8, 8), 0.5, 1),
        ((17, 13, 22), (8, 6, 9), 0.25, 3),
        ((9, 30, 11), (8, 10, 4), 0.7, 5),
        ((5, 13, 6), (8, 8, 8), 0.5, 2),
        ((33, 21), (8, 9), 0.6, 4),
        ((5, 6), (8, 9), 0.5, 4),
    ],
)
@pytest.mark.parametrize("identity", [True, False])
def test_equals_monai(conv, mode, size, window, overlap, batch, identity):
    from monai.inferers.utils import sliding_window_inference

    image = torch.randn(2, *size, generator=torch.Generator().manual_seed(1))
    net = torch.clone if identity else conv(len(size), 2)  # MONAI weights the output in place: a view would spoil its input
    expected = sliding_window_inference(image[None], window, batch, net, overlap=overlap, mode=mode)[0]
    result = sliding_window(image, net, window, overlap=overlap, grid="monai", weighting=mode, batch_size=batch)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    if identity:
        torch.testing.assert_close(result, image, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mirror", [(), (0,), (0, 1, 2)])
@pytest.mark.parametrize(("size", "overlap", "batch"), [((17, 13, 22), 0.5, 1), ((21, 9, 10), 0.3, 4), ((6, 5, 30), 0.75, 2)])
def test_equals_nnunet(conv, size, overlap, batch, mirror):
    window = (8, 9, 10)
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(2))
    net = conv(3)
    expected = whole_volume(image, net, window, overlap, nnunet_gaussian(window), mirror)
    result = sliding_window(image, net, window, overlap=overlap, batch_size=batch, mirror_axes=mirror)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(13, 12, 9), (14, 3, 9), (4, 14, 16), (31, 12)])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("recycle", [True, False])
@pytest.mark.parametrize("stream", [slabs, tiles])
def test_blocks_cover_the_volume_once_in_order(conv, size, overlap, recycle, stream):
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(3))
    net, window = conv(len(size)), (6, 5, 7)[: len(size)]
    whole = torch.full((3, *size), torch.nan)
    previous = 0
    for origin, block in stream(image, net, window, overlap=overlap, recycle=recycle, batch_size=3):
        origin = (origin,) if isinstance(origin, int) else origin
        cut = (slice(None), *(slice(first, first + n) for first, n in zip(origin, block.shape[1:], strict=False)))
        assert whole[cut].isnan().all(), "a voxel came twice"
        assert whole[cut].shape == block.shape
        whole[cut] = block
        if stream is slabs:
            assert origin[0] == previous
            previous += block.shape[1]
    torch.testing.assert_close(whole, sliding_window(image, net, window, overlap=overlap), rtol=1e-5, atol=1e-6)


def test_kept_blocks_stay_unless_recycled(conv):
    image, net = torch.randn(1, 24, 8, 8), conv(3)
    kept = list(slabs(image, net, (8, 8, 8)))
    torch.testing.assert_close(torch.cat([block for _, block in kept], 1), sliding_window(image, net, (8, 8, 8)))


def test_only_the_planes_of_one_window_are_alive():
    """The memory claim, counted: accumulators alive at any time, in logits."""
    from cnnkit_medseg import window as module

    alive = []
    image, net = torch.randn(1, 64, 32, 32), torch.nn.Identity()
    original = module._Cells.add

    def watched(self, *arguments):
        original(self, *arguments)
        alive.append(sum(memory.numel() for _, memory in self.open.values()) + sum(memory.numel() for memory in self.spare))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Cells, "add", watched)
        for _ in slabs(image, net, (16, 16, 16), recycle=True):
            pass
        assert max(alive) == 16 * 32 * 32
        alive.clear()
        for _ in tiles(image, net, (16, 16, 16), recycle=True):
            pass
        assert max(alive) <= 8 * (32 + 16) * 32


def test_slices_of_a_2d_network(conv):
    image, net = torch.randn(1, 4, 15, 12), conv(2)
    result = sliding_window(image, net, (8, 8), mirror_axes=(1,))
    for plane in range(4):
        torch.testing.assert_close(result[:, plane], sliding_window(image[:, plane], net, (8, 8), mirror_axes=(1,)), rtol=1e-5, atol=1e-6)


def test_image_is_left_alone_and_progress_reported():
    image = torch.randn(1, 20, 20)
    copy, calls = image.clone(), []
    sliding_window(image, torch.nn.Identity(), (8, 8), mirror_axes=(0, 1), batch_size=4, progress=lambda done, of: calls.append((done, of)))
    assert torch.equal(image, copy)
    assert calls[-1] == (16, 16) and len(calls) == 4


def test_half_precision_logits_are_accumulated_in_float32():
    result = sliding_window(torch.ones(1, 20, 20), lambda batch: batch.half(), (8, 8))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, torch.ones(1, 20, 20))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"window": (8,)}, ConfigError, "does not fit"),
        ({"window": (8, 8), "overlap": 1.0}, ConfigError, "overlap"),
        ({"window": (8, 8), "grid": "nnunett"}, ConfigError, "nnunet"),
        ({"window": (8, 8), "weighting": "gauss"}, ConfigError, "gaussian"),
        ({"window": (8, 8), "mirror_axes": (2,)}, ConfigError, "mirror_axes"),
        ({"window": (8, 8), "predictor": lambda batch: batch[..., ::2]}, ConfigError, "spatial size"),
        ({"window": (8, 8), "image": torch.zeros(1, 0, 4)}, InputError, "no voxels"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        sliding_window(**{"image": torch.zeros(1, 16, 16), "predictor": torch.nn.Identity(), **arguments})
