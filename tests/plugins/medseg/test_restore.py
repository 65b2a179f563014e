"""The streamed way back against interpolating every class over the whole volume and deciding then."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cnnkit.errors import ConfigError, InputError
from cnnkit_medseg.restore import Argmax, Regions, _argmax, restore_labels, restore_probabilities
from cnnkit_medseg.window import slabs, tiles
from skimage.transform import resize

SHAPES = [
    ((9, 8, 7), (18, 16, 14)),
    ((9, 8, 7), (13, 21, 7)),
    ((9, 8, 7), (4, 8, 5)),
    ((9, 8, 7), (9, 8, 7)),
    ((1, 8, 7), (3, 4, 7)),
    ((9, 1, 7), (1, 5, 20)),
    ((12, 10), (25, 17)),
    ((12, 10), (12, 10)),
]


def logits_on(shape, classes=4, seed=0):
    return torch.randn(classes, *shape, generator=torch.Generator().manual_seed(seed))


def cut(logits, planes=(2, 1, 3), lines=()):
    """Cut logits into slabs of the given thickness (in turn), or into blocks; each is overwritten after its turn."""
    x = 0
    thickness = iter(planes * logits.shape[1])
    while x < logits.shape[1]:
        slab = logits[:, x : x + next(thickness)]
        y = 0
        widths = iter((lines or (slab.shape[2],)) * slab.shape[2])
        while y < slab.shape[2]:
            block = slab[:, :, y : y + next(widths)].clone()
            step = block.shape[2]
            yield ((x, y) if lines else x), block
            block.fill_(torch.nan)
            y += step
        x += slab.shape[1]


def linear(logits, out):
    mode = "bilinear" if len(out) == 2 else "trilinear"
    return F.interpolate(logits[None], size=out, mode=mode, align_corners=False)[0]


def agree(labels, whole):
    """Equal but where two logits are as close as float32 rounding."""
    top = whole.topk(2, dim=0).values
    clear = (top[0] - top[1] > 1e-5).numpy()
    assert clear.mean() > 0.99
    return np.array_equal(labels[clear], whole.argmax(0).numpy()[clear])


@pytest.mark.parametrize(("shape", "out"), SHAPES)
@pytest.mark.parametrize("planes", [(2, 1, 3), (1,), (50,)])
def test_labels_equal_torch_over_the_whole_volume(shape, out, planes):
    logits = logits_on(shape)
    labels = restore_labels(cut(logits, planes), shape, out)
    assert labels.dtype == np.uint8 and labels.shape == out
    assert agree(labels, linear(logits, out))


@pytest.mark.parametrize(("shape", "out"), [pair for pair in SHAPES if len(pair[0]) == 3])
@pytest.mark.parametrize("lines", [(1,), (3, 2)])
def test_blocks_of_lines_make_no_difference(shape, out, lines):
    logits = logits_on(shape)
    assert np.array_equal(restore_labels(cut(logits, lines=lines), shape, out), restore_labels(cut(logits), shape, out))


@pytest.mark.parametrize(("shape", "out"), SHAPES)
def test_probabilities_equal_nnunets_resize_per_class(shape, out):
    logits = logits_on(shape)
    whole = np.stack([resize(channel.astype(float), out, order=1, mode="edge", anti_aliasing=False) for channel in logits.numpy()])
    expected = np.exp(whole) / np.exp(whole).sum(0)
    np.testing.assert_allclose(restore_probabilities(cut(logits), shape, out), expected, atol=2e-6)
    assert (restore_labels(cut(logits), shape, out) == whole.argmax(0)).mean() > 0.9999


def test_small_blocks_inside_give_the_same(monkeypatch):
    logits = logits_on((9, 8, 7))
    expected = restore_labels(cut(logits), (9, 8, 7), (20, 19, 18))
    monkeypatch.setattr("cnnkit_medseg.restore._SCRATCH", 200)
    assert np.array_equal(restore_labels(cut(logits), (9, 8, 7), (20, 19, 18)), expected)


def test_downsampled_and_nearest_axes_equal_map_coordinates():
    from scipy.ndimage import map_coordinates

    shape, out = (5, 8, 7), (13, 16, 11)
    logits = logits_on(shape)
    where = np.stack(np.meshgrid(*((np.arange(n) + 0.5) * s / n - 0.5 for s, n in zip(shape, out, strict=True)), indexing="ij"))
    where[0] = np.floor(where[0] + 0.5)  # order 0 along the first axis
    whole = np.stack([map_coordinates(channel, where, order=1, mode="nearest") for channel in logits.numpy()])
    result = restore_probabilities(cut(logits), shape, out, activation="sigmoid", nearest_axes=(0,))
    np.testing.assert_allclose(result, 1 / (1 + np.exp(-whole)), atol=2e-6)


def test_regions_are_painted_in_order():
    logits, order = logits_on((9, 8, 7), 3), (2, 1, 3)
    whole = linear(logits, (18, 16, 14)).sigmoid().numpy()
    expected = np.zeros((18, 16, 14), np.uint8)
    for probability, value in zip(whole, order, strict=True):
        expected[probability > 0.5] = value
    assert np.array_equal(restore_labels(cut(logits), (9, 8, 7), (18, 16, 14), decide=Regions(order)), expected)


def test_label_values_are_written():
    logits = logits_on((4, 5, 6), 3)
    labels = restore_labels(cut(logits), (4, 5, 6), (4, 5, 6), decide=Argmax((0, 7, 300)))
    assert labels.dtype == np.uint16
    assert np.array_equal(labels, np.array([0, 7, 300])[logits.argmax(0).numpy()])


@pytest.mark.parametrize("classes", [1, 2, 104, 256, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_argmax_takes_the_first_of_equals(classes, dtype):
    logits = torch.randint(0, 5, (classes, 200), generator=torch.Generator().manual_seed(0)).to(dtype)
    assert np.array_equal(_argmax(logits.float().numpy()), logits.float().numpy().argmax(0))
    assert np.array_equal(restore_labels([(0, logits[..., None])], (200, 1), (200, 1))[:, 0], logits.float().numpy().argmax(0))


@pytest.mark.parametrize("stream", [slabs, tiles])
def test_windows_to_labels_end_to_end(stream):
    image, net = torch.randn(1, 30, 21, 19), torch.nn.Conv3d(1, 5, 3, padding=1).requires_grad_(False)
    arguments = {"overlap": 0.5, "grid": "monai", "recycle": True}
    labels = restore_labels(stream(image, net, (8, 8, 8), **arguments), (30, 21, 19), (41, 30, 19))
    logits = torch.cat([slab for _, slab in slabs(image, net, (8, 8, 8), overlap=0.5, grid="monai")], 1)
    assert agree(labels, linear(logits, (41, 30, 19)))


def test_infinite_logits_do_not_spoil_their_neighbours():
    logits = logits_on((9, 8, 7), 3)
    logits[1] = -torch.inf  # a class that was masked out
    labels = restore_labels(cut(logits), (9, 8, 7), (18, 16, 14))
    assert agree(labels, linear(logits.clamp(min=-1e9), (18, 16, 14))) and not (labels == 1).any()
    assert np.isfinite(restore_probabilities(cut(logits), (9, 8, 7), (18, 16, 14))).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator here")
def test_device_equals_cpu():
    logits = logits_on((9, 8, 7))
    on_device = restore_labels(((x, block.cuda()) for x, block in cut(logits)), (9, 8, 7), (18, 16, 14))
    assert np.array_equal(on_device, restore_labels(cut(logits), (9, 8, 7), (18, 16, 14)))


def test_device_code_equals_cpu_code():
    """The tensor operators that serve devices, against the array operators of the CPU."""
    from cnnkit_medseg import restore

    logits, out = logits_on((9, 8, 7)), (20, 19, 6)
    axis = restore._Axis.build(8, 19, False)
    rows = range(4, 15)
    low, high = int(axis.first[4]), int(axis.second[14]) + 1
    source = logits[:, 2, low:high]
    for dim, (part, line, offset) in {1: (rows, axis, low), 2: (range(out[2]), restore._Axis.build(7, 6, False), 0)}.items():
        bands = restore._bands(line, part, offset)
        tensor = restore._blend(source, line, part, offset, dim, bands)
        array = restore._blend(source.numpy(), line, part, offset, dim, bands)
        np.testing.assert_allclose(tensor.numpy(), array, atol=1e-6)


def test_given_arrays_are_filled():
    logits = logits_on((4, 5, 6))
    out, probabilities = np.zeros((8, 5, 6), np.int16), np.zeros((4, 8, 5, 6), np.float64)
    assert restore_labels(cut(logits), (4, 5, 6), (8, 5, 6), out=out) is out
    assert restore_probabilities(cut(logits), (4, 5, 6), (8, 5, 6), out=probabilities) is probabilities
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"shape": (4, 5, 7)}, InputError, "does not lie on a grid"),
        ({"shape": (9, 5, 6)}, InputError, "held 120 voxels"),
        ({"slabs": []}, InputError, "held 0 voxels"),
        ({"out_shape": (4, 5)}, ConfigError, "cannot restore"),
        ({"out": np.zeros((1, 1, 1), np.uint8)}, ConfigError, "has shape"),
        ({"decide": Argmax((0, 1))}, ConfigError, "2 label values for 4 classes"),
        ({"decide": Regions((0, 1))}, ConfigError, "regions_class_order"),
        ({"decide": Argmax((0, 1, 2, 999)), "out": np.zeros((4, 5, 6), np.uint8)}, ConfigError, "999 do not fit"),
    ],
)
def test_what_does_not_fit_is_named(change, error, message):
    arguments = {"slabs": cut(logits_on((4, 5, 6))), "shape": (4, 5, 6), "out_shape": (4, 5, 6), **change}
    with pytest.raises(error, match=message):
        restore_labels(**arguments)
